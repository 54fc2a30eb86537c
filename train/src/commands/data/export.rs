//! `esker data export`: token shards into files of other programs.

use super::bar::Bar;
use crate::{
    cli::data::{Export, Part},
    commands::{Failure, print, print_json},
    plan::{grouped, size},
};
use esker_data::{
    formats::{self, ExportOptions},
    pack::Split,
};

pub fn run(args: Export) -> Result<(), Failure> {
    let options = ExportOptions {
        split: args.split.map(|part| match part {
            Part::Train => Split::Train,
            Part::Val => Split::Val,
        }),
        seq_len: args.seq_len,
        pad: args.pad,
        int: args.dtype,
        records: args.records,
        bytes_column: args.bytes,
        zstd: args.zstd,
        file_bytes: args.shard_bytes,
        samples_per_file: args.shard_contexts,
        ..ExportOptions::new(args.format)
    };
    let begin = std::time::Instant::now();
    let bar = Bar::tokens();
    let report = formats::export(&args.shards, &args.out, &options, &mut |done, all| bar.set(done, all));
    bar.clear();
    let report = report?;
    if args.json {
        return print_json(&report);
    }
    let mut text = String::new();
    for (path, bytes) in &report.files {
        text.push_str(&format!("{:>10}  {}\n", size(*bytes), path.display()));
    }
    let seconds = begin.elapsed().as_secs_f64();
    text.push_str(&format!(
        "{} tokens, {} documents, {seconds:.1} s, {:.1} M tokens/s\n",
        grouped(report.tokens),
        grouped(report.documents),
        report.tokens as f64 / seconds.max(1e-9) / 1e6
    ));
    for (tokens, what) in [
        (report.dropped_tokens, "fill no window and were left out"),
        (report.padded_tokens, "were added to fill contexts up"),
    ] {
        if tokens > 0 {
            text.push_str(&format!("{} tokens {what}\n", grouped(tokens)));
        }
    }
    print(&text)
}
