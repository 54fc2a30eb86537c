//! `esker data prepare`: corpora of any size into token shards. `esker tokenize` is the same with fewer options.

use crate::{
    cli::{
        Tokenize,
        data::{Bad, Prepare},
    },
    commands::{Failure, print, print_json, quoted},
    plan::grouped,
    progress::clock,
};
use esker_data::{
    pack::{self, Manifest, PackError, PackOptions, SplitEntry},
    prepare::{Progress, prepare},
    text::TextOptions,
    tokenizer::Tokenizer,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

pub fn run(args: Prepare) -> Result<(), Failure> {
    let Prepare { base, text_key, id_key, separator, max_document_bytes, bad, keep_empty, .. } = args;
    let options = PackOptions {
        shard_tokens: args.shard_tokens,
        text: TextOptions { separator, max_document_bytes, text_key, id_key },
        bad: if bad == Bad::Drop { pack::Bad::Drop } else { pack::Bad::Error },
        keep_empty,
        piece_bytes: args.piece_bytes,
        threads: args.threads,
        ..PackOptions::default()
    };
    with(base, options)
}

/// What both commands do; `options` holds what `base` does not name.
pub fn with(base: Tokenize, options: PackOptions) -> Result<(), Failure> {
    let tokenizer = if base.tokenizer == Path::new("bytes") { Tokenizer::bytes() } else { tokenizer(&base.tokenizer)? };
    let Tokenize { val_fraction, seed, overwrite, .. } = base;
    let options = PackOptions { val_fraction, seed, overwrite, ..options };
    let mut shown = Shown::new();
    let outcome = prepare(&base.inputs, &tokenizer, &base.out, &options, &mut |p| shown.on(p));
    shown.end();
    let manifest = outcome.map_err(|e| match e {
        PackError::Exists { .. } => Failure::from(e).help("--overwrite replaces it"),
        e => Failure::from(e),
    })?;
    if base.json {
        return print_json(&manifest);
    }
    print(&summary(&manifest, &base.out, shown.begin.elapsed()))?;
    // On stderr: it is advice, and the summary's lines are to be copied.
    if manifest.val.documents == 0 && val_fraction > 0.0 {
        eprintln!(
            "note: no document fell to validation; a larger --val-fraction holds out more (a .txt file is one document)"
        );
    }
    Ok(())
}

fn tokenizer(path: &Path) -> Result<Tokenizer, Failure> {
    let what = "--tokenizer takes a tokenizer.json, a folder that holds one, or `bytes`";
    Tokenizer::from_file(path).map_err(|e| Failure::from(e).help(what))
}

fn summary(manifest: &Manifest, out: &Path, took: Duration) -> String {
    let mut text = String::new();
    for (name, split) in [("train", &manifest.train), ("validation", &manifest.val)] {
        text.push_str(&format!(
            "{name:<12} {:>14} tokens  {:>10} documents  {:>14} bytes of text  {} shards\n",
            grouped(split.tokens),
            grouped(split.documents),
            grouped(split.text_bytes),
            split.shards.len(),
        ));
    }
    if let Some(prepared) = &manifest.prepared {
        let d = &prepared.dropped;
        let reasons = [
            (d.empty, "empty"),
            (d.no_text, "without text"),
            (d.too_long, "too long"),
            (d.bad_utf8, "not UTF-8"),
            (d.bad_json, "not JSON"),
        ];
        let named: Vec<String> =
            reasons.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{} {why}", grouped(*n))).collect();
        if !named.is_empty() {
            text.push_str(&format!("dropped      {} documents: {}\n", grouped(d.total()), named.join(", ")));
        }
    }
    let bytes = manifest.train.text_bytes + manifest.val.text_bytes;
    let seconds = took.as_secs_f64();
    text.push_str(&format!("{:.1} s, {:.1} MB/s\n", seconds, bytes as f64 / seconds / 1e6));
    let list = |split: &SplitEntry| {
        let files: Vec<String> = split.shards.iter().map(|s| format!("\"{}\"", out.join(&s.file).display())).collect();
        files.join(", ")
    };
    text.push_str("\nin a config:\n  [data]\n  source = \"shards\"\n");
    let tokenizer = out.join("tokenizer.json");
    text.push_str(&format!("  tokenizer = {{ kind = \"file\", path = \"{}\" }}\n", tokenizer.display()));
    text.push_str(&format!("  train = [{}]\n  validation = [{}]\n", list(&manifest.train), list(&manifest.val)));
    text.push_str(&format!("\nvocabulary: {}; folder: {}\n", manifest.vocab_size, quoted(&out.to_string_lossy())));
    text
}

/// Lines where there is no terminal, the last aside.
const LINES: u64 = 10;
/// Before the first line: what ends sooner says nothing.
const QUIET: Duration = Duration::from_secs(2);

/// A bar on a terminal, some lines elsewhere; all on stderr.
struct Shown {
    bar: Option<ProgressBar>,
    begin: Instant,
    /// What the first call told: work of earlier processes is no speed of this one.
    first: Option<Progress>,
    /// Tenths of the input that a line told of.
    told: u64,
}

impl Shown {
    fn new() -> Shown {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            let style = "{bar:24.cyan/blue} {bytes}/{total_bytes}  {msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a template of ours").progress_chars("━╸─"));
            bar
        });
        Shown { bar, begin: Instant::now(), first: None, told: 0 }
    }

    fn on(&mut self, p: Progress) {
        let first = *self.first.get_or_insert(p);
        let line = line(p, first, self.begin.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_length(p.bytes_total);
            bar.set_position(p.bytes);
            bar.set_message(line);
            return;
        }
        let tenths = (p.bytes * LINES).checked_div(p.bytes_total).unwrap_or(0);
        if tenths > self.told && self.begin.elapsed() > QUIET {
            self.told = tenths;
            // A reader that is gone must not end the work.
            let _ = writeln!(std::io::stderr(), "{:3}%  {line}", 100 * p.bytes / p.bytes_total.max(1));
        }
    }

    fn end(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Speed and time left, of what this process did in `took`.
fn line(p: Progress, first: Progress, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-9);
    let (bytes, tokens) = ((p.bytes - first.bytes) as f64, (p.tokens - first.tokens) as f64);
    let left = (p.bytes_total - p.bytes) as f64 * seconds / bytes.max(1.0);
    format!(
        "{} tokens  {:.1} MB/s  {} tokens/s  eta {}",
        grouped(p.tokens),
        bytes / seconds / 1e6,
        grouped((tokens / seconds) as u64),
        clock(left)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let at = |bytes, tokens| Progress { bytes, bytes_total: 9_000_000, documents: 1, tokens };
        let got = line(at(5_000_000, 1_300_000), at(1_000_000, 300_000), Duration::from_secs(2));
        assert_eq!(got, "1,300,000 tokens  2.0 MB/s  500,000 tokens/s  eta 0:02");
        let begin = line(at(0, 0), at(0, 0), Duration::ZERO);
        assert!(begin.starts_with("0 tokens  0.0 MB/s"), "{begin}");
    }
}
