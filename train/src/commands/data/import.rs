//! `esker data import`: token files of other programs into token shards.

use super::bar::Bar;
use crate::{
    cli::data::{Divide, Import},
    commands::{Failure, print, print_json, quoted},
    plan::grouped,
};
use esker_data::{
    formats::{self, Division, ImportOptions, Options},
    pack::SplitEntry,
    tokenizer::Tokenizer,
};
use std::path::Path;

pub fn run(args: Import) -> Result<(), Failure> {
    let tokenizer = match args.tokenizer.as_deref() {
        None => None,
        Some(path) if path == Path::new("bytes") => Some(Tokenizer::bytes()),
        Some(path) => Some(Tokenizer::from_file(path)?),
    };
    let read = Options {
        format: args.format.0,
        eos: args.eos,
        pad: args.pad,
        int: args.dtype,
        division: match args.documents {
            Divide::Auto => Division::Auto,
            Divide::Marks => Division::Marks,
            Divide::Records => Division::Records,
        },
        column: args.column,
        drop_loss_mask: args.drop_loss_mask,
        ..Options::default()
    };
    let options = ImportOptions {
        read,
        vocab_size: args.vocab_size,
        val_fraction: args.val_fraction,
        seed: args.seed,
        overwrite: args.overwrite,
        ..ImportOptions::default()
    };
    let begin = std::time::Instant::now();
    let bar = Bar::bytes();
    let report = formats::import(&args.inputs, tokenizer.as_ref(), &args.out, &options, &mut |done, all| {
        bar.set(done, all);
    });
    bar.clear();
    let report = report?;
    if args.json {
        return print_json(&report);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut text = format!("format       {}\n", report.format);
    let line = |name: &str, split: &SplitEntry| {
        format!(
            "{name:<12} {:>14} tokens  {:>10} documents  {} shards\n",
            grouped(split.tokens),
            grouped(split.documents),
            split.shards.len()
        )
    };
    text.push_str(&line("train", &report.manifest.train));
    if report.manifest.val.documents > 0 {
        text.push_str(&line("validation", &report.manifest.val));
    }
    text.push_str(&format!("{seconds:.1} s, {:.1} M tokens/s\n", report.tokens as f64 / seconds.max(1e-9) / 1e6));
    if report.unclosed_documents > 0 {
        let n = grouped(report.unclosed_documents);
        text.push_str(&format!("\n{n} documents do not end with the end mark {}\n", report.manifest.eos));
    }
    if tokenizer.is_none() {
        text.push_str(
            "\nno tokenizer was given: the shards can be exported, but training asks for the one that made the ids\n",
        );
    }
    text.push_str(&format!(
        "\nvocabulary: {}; folder: {}\n",
        report.manifest.vocab_size,
        quoted(&args.out.to_string_lossy())
    ));
    print(&text)
}
