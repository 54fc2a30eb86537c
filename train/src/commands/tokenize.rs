//! `esker tokenize`: text into token shards.

use super::{Failure, print, print_json, quoted};
use crate::{cli, plan::grouped};
use esker_data::{
    pack::{self, PackOptions},
    tokenizer::Tokenizer,
};
use std::path::Path;

pub fn run(args: cli::Tokenize) -> Result<(), Failure> {
    let tokenizer =
        if args.tokenizer == Path::new("bytes") { Tokenizer::bytes() } else { Tokenizer::from_file(&args.tokenizer)? };
    if !(0.0..=1.0).contains(&args.val_fraction) {
        return Err(Failure::input(format!("--val-fraction is {}; expected 0 to 1", args.val_fraction)));
    }
    let defaults = PackOptions::default();
    let options =
        PackOptions { val_fraction: args.val_fraction, seed: args.seed, overwrite: args.overwrite, ..defaults };
    let begin = std::time::Instant::now();
    let manifest = pack::tokenize(&args.inputs, &tokenizer, &args.out, &options)?;
    if args.json {
        return print_json(&manifest);
    }
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
    let bytes = manifest.train.text_bytes + manifest.val.text_bytes;
    let seconds = begin.elapsed().as_secs_f64();
    text.push_str(&format!("{:.1} s, {:.1} MB/s\n", seconds, bytes as f64 / seconds / 1e6));
    let list = |split: &pack::SplitEntry| {
        let files: Vec<String> =
            split.shards.iter().map(|s| format!("\"{}\"", args.out.join(&s.file).display())).collect();
        files.join(", ")
    };
    text.push_str("\nin a config:\n  [data]\n  source = \"shards\"\n");
    text.push_str(&format!(
        "  tokenizer = {{ kind = \"file\", path = \"{}\" }}\n",
        args.out.join("tokenizer.json").display()
    ));
    text.push_str(&format!("  train = [{}]\n  validation = [{}]\n", list(&manifest.train), list(&manifest.val)));
    text.push_str(&format!("\nvocabulary: {}; folder: {}\n", manifest.vocab_size, quoted(&args.out.to_string_lossy())));
    print(&text)
}
