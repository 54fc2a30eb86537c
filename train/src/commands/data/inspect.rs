//! `esker data inspect`: a row as text, the documents in a step, how long documents are.

use super::tokens::Tokens;
use crate::{
    cli::data::Inspect,
    commands::{Failure, print, print_json},
    plan::grouped,
};
use esker_data::{
    loader::{Loader, LoaderConfig, Place},
    tokenizer::Tokenizer,
    tokens::TokenSet,
};
use serde::Serialize;
use std::path::PathBuf;

/// Tokens of a row of shards alone, unless something else is asked for.
const SEQ: u32 = 256;

/// A run of tokens of one document.
#[derive(Debug, Serialize)]
struct Piece {
    /// Number of the document in its shard.
    document: u64,
    /// Tokens of the document from here
    from: u64,
    /// and before here.
    to: u64,
    /// Tokens of the whole document.
    of: u64,
    /// What they say; null where that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// One row.
#[derive(Debug, Serialize)]
struct Row {
    /// Since the start of the run; of shards alone, the number of the window.
    row: u64,
    source: String,
    /// Pass over the source.
    epoch: u64,
    shard: PathBuf,
    /// Tokens of the shard: the inputs and, last, the target that is no input.
    from: u64,
    to: u64,
    documents: Vec<Piece>,
}

/// How long the documents of one source are.
#[derive(Debug, Serialize)]
struct Lengths {
    source: String,
    documents: u64,
    tokens: u64,
    shortest: u64,
    longest: u64,
    mean: f64,
    buckets: Vec<Bucket>,
}

/// Documents of `from` to below `to` tokens, the end mark counted.
#[derive(Debug, Serialize)]
struct Bucket {
    from: u64,
    to: u64,
    documents: u64,
    tokens: u64,
}

pub fn run(args: Inspect) -> Result<(), Failure> {
    let tokens = Tokens::open(&args.path, &args.set)?;
    match (args.window, args.step) {
        (Some(window), _) => show_window(&args, &tokens, window),
        (None, Some(step)) => show_step(&args, &tokens, step),
        (None, None) => show_lengths(&args, &tokens),
    }
}

fn show_window(args: &Inspect, tokens: &Tokens, window: u64) -> Result<(), Failure> {
    let tokenizer = tokens.tokenizer.as_ref().ok_or_else(|| {
        Failure::input(format!("{}: no tokenizer.json of these shards lies beside them", args.path.display()))
            .help("copy the tokenizer.json that they were made with into their folder")
    })?;
    let row = match &tokens.run {
        Some(run) => {
            let loader = loader(tokens, run.rows())?;
            row(tokens, &loader.place(window), window, run.batch.seq_len, Some(tokenizer))?
        }
        None => {
            let seq = args.seq.unwrap_or(SEQ) as usize;
            row(tokens, &in_order(&tokens.sources[0].1, window, seq)?, window, seq, Some(tokenizer))?
        }
    };
    if args.json {
        return print_json(&row);
    }
    let shard = row.shard.display();
    let of = match &tokens.run {
        Some(run) => {
            let (step, place) = (window / run.rows_per_step() as u64 + 1, window % run.rows_per_step() as u64);
            format!("row {window} of the run: place {place} of step {step}; {}, epoch {}", row.source, row.epoch)
        }
        None => format!("window {window}"),
    };
    let mut text = format!("{of}\n{shard}, tokens {} to {}\n", row.from, row.to);
    for d in &row.documents {
        let (begins, ends) =
            (if d.from == 0 { "begins" } else { "goes on" }, if d.to == d.of { "ends" } else { "cut" });
        let Piece { document, from, to, of, .. } = d;
        text.push_str(&format!("\n--- document {document} {begins}: its tokens {from} to {to} of {of}, {ends} ---\n"));
        text.push_str(d.text.as_deref().unwrap_or(""));
        text.push('\n');
    }
    print(&text)
}

fn show_step(args: &Inspect, tokens: &Tokens, step: u64) -> Result<(), Failure> {
    let run = tokens.run.as_ref().ok_or_else(|| {
        Failure::input(format!("{}: shards alone have no steps", args.path.display()))
            .help("name a config or a run, or ask for --window N")
    })?;
    if !(1..=run.train.steps).contains(&step) {
        return Err(Failure::input(format!("--step {step}: the run has steps 1 to {}", run.train.steps)));
    }
    let loader = loader(tokens, run.rows())?;
    let rows = run.rows_per_step() as u64;
    let all = ((step - 1) * rows..step * rows).map(|p| row(tokens, &loader.place(p), p, run.batch.seq_len, None));
    let rows: Vec<Row> = all.collect::<Result<_, _>>()?;
    if args.json {
        return print_json(&serde_json::json!({ "step": step, "rows": rows }));
    }
    let mut text = format!("step {step}: {} rows of {} tokens\n", rows.len(), run.batch.seq_len);
    text.push_str("       row  source            shard                     document  its tokens\n");
    for row in &rows {
        let shard = row.shard.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        for d in &row.documents {
            let span = format!("{} to {} of {}", d.from, d.to, d.of);
            text.push_str(&format!("{:>10}  {:<16}  {shard:<22}  {:>10}  {span}\n", row.row, row.source, d.document));
        }
    }
    print(&text)
}

fn show_lengths(args: &Inspect, tokens: &Tokens) -> Result<(), Failure> {
    let all: Vec<Lengths> = tokens.sources.iter().map(|(name, set)| lengths(name, set)).collect();
    if args.json {
        return print_json(&serde_json::json!({ "sources": all }));
    }
    let mut text = String::new();
    for l in &all {
        text.push_str(&format!(
            "{}: {} documents, {} tokens; shortest {}, mean {:.1}, longest {}\n",
            l.source,
            grouped(l.documents),
            grouped(l.tokens),
            grouped(l.shortest),
            l.mean,
            grouped(l.longest)
        ));
        text.push_str("             tokens     documents   share   share of tokens\n");
        for b in &l.buckets {
            let (d, t) = (b.documents as f64 / l.documents as f64, b.tokens as f64 / l.tokens as f64);
            let span = format!("{} to {}", grouped(b.from), grouped(b.to - 1));
            let bar = "#".repeat((40.0 * d).round() as usize);
            let (documents, d, t) = (grouped(b.documents), 100.0 * d, 100.0 * t);
            text.push_str(&format!("{span:>19}  {documents:>12}  {d:>5.1}%  {t:>5.1}%  {bar}\n"));
        }
    }
    print(&text)
}

fn loader(tokens: &Tokens, config: LoaderConfig) -> Result<Loader, Failure> {
    let sets = tokens.sources.iter().map(|(_, set)| set.clone()).collect();
    Ok(Loader::mixed(sets, tokens.mix(), config)?)
}

/// Window `window` of a set in the order on disk.
fn in_order(set: &TokenSet, window: u64, seq: usize) -> Result<Place, Failure> {
    let (mut left, mut all) = (window, 0);
    for (part, tokens) in set.part_tokens().enumerate() {
        let windows = tokens.saturating_sub(1) / seq as u64;
        if left < windows {
            return Ok(Place { source: 0, epoch: 0, part, window: left, start: left * seq as u64 });
        }
        (left, all) = (left - windows, all + windows);
    }
    Err(Failure::input(format!("--window {window}: there are {all} windows of {seq} tokens")))
}

/// The documents of a row, with their text where there is a tokenizer.
fn row(tokens: &Tokens, at: &Place, row: u64, seq: usize, tokenizer: Option<&Tokenizer>) -> Result<Row, Failure> {
    let (name, set) = &tokens.sources[at.source];
    let (from, to) = (at.start, at.start + seq as u64 + 1);
    let mut ids = vec![0; seq + 1];
    set.copy(at.part, from, &mut ids)?;
    let (mut documents, mut start) = (Vec::new(), from);
    while start < to {
        let document = set.document_of(at.part, start);
        if document >= set.documents_of(at.part) {
            return Err(Failure::input(format!("{name}: token {start} belongs to no document; verify the shards")));
        }
        let whole = set.document(at.part, document);
        let end = whole.end.min(to).max(start + 1);
        let of_row = &ids[(start - from) as usize..(end - from) as usize];
        let text = tokenizer.map(|t| t.decode(of_row, false)).transpose()?;
        let (from, to) = (start - whole.start.min(start), end - whole.start.min(start));
        documents.push(Piece { document, from, to, of: whole.end - whole.start, text });
        start = end;
    }
    let shard = set.names().nth(at.part).expect("inspect: a part of the set");
    Ok(Row { row, source: name.clone(), epoch: at.epoch, shard, from, to, documents })
}

fn lengths(name: &str, set: &TokenSet) -> Lengths {
    let mut buckets: Vec<Bucket> = Vec::new();
    let (mut shortest, mut longest) = (u64::MAX, 0);
    for part in 0..set.names().count() {
        for d in 0..set.documents_of(part) {
            let range = set.document(part, d);
            let n = range.end - range.start;
            (shortest, longest) = (shortest.min(n), longest.max(n));
            let k = n.max(1).ilog2() as usize;
            while buckets.len() <= k {
                let from = 1 << buckets.len();
                buckets.push(Bucket { from, to: 2 * from, documents: 0, tokens: 0 });
            }
            buckets[k].documents += 1;
            buckets[k].tokens += n;
        }
    }
    buckets.drain(..buckets.iter().take_while(|b| b.documents == 0).count());
    let (documents, tokens) = (set.documents(), set.tokens());
    let shortest = if documents == 0 { 0 } else { shortest };
    let mean = tokens as f64 / documents.max(1) as f64;
    Lengths { source: name.into(), documents, tokens, shortest, longest, mean, buckets }
}
