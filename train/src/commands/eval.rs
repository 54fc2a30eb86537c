//! `esker eval`: bits per byte of a text, of shards, or of a run's own validation tokens; benchmarks in `tasks.rs`.

use super::{Failure, model::Opened, print, print_json, tasks};
use crate::{cli, config, folder, plan::grouped, source};
use esker_data::{shard::Check, tokens::TokenSet};
use esker_eval::loss::{Loss, Scorer};
use serde::Serialize;
use std::{path::Path, sync::Arc};

/// Windows are not longer than this unless asked for.
const SEQ_MAX: usize = 2048;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    of: String,
    bits_per_byte: f64,
    nats_per_token: f64,
    tokens: u64,
    bytes: u64,
    seq: usize,
    seconds: f64,
}

pub fn run(args: cli::model::Eval) -> Result<(), Failure> {
    if !args.tasks.names.is_empty() {
        return tasks::run(&args);
    }
    let model = Opened::new(&args.model)?;
    let run_config = args.model.dir.join(folder::CONFIG);
    let mut seq = if args.seq > 0 { args.seq } else { model.config().context.min(SEQ_MAX) };
    let begin = std::time::Instant::now();
    let (of, loss) = if let Some(path) = &args.text {
        (path.display().to_string(), of_text(&model, path, seq)?)
    } else if !args.shard.is_empty() {
        let set = TokenSet::open(&args.shard, Check::Everything)?;
        let names: Vec<String> = args.shard.iter().map(|p| p.display().to_string()).collect();
        (names.join(", "), of_set(&model, &Arc::new(set), seq, false)?)
    } else if run_config.exists() {
        let run = config::load(&run_config, &[])?;
        if args.seq == 0 {
            seq = run.batch.seq_len;
        }
        let set = source::open(&run, &args.model.dir)?.validation.ok_or_else(|| {
            Failure::input(format!("{}: data.validation is empty", run_config.display()))
                .help("give --text FILE or --shard FILE")
        })?;
        let of = format!("the validation tokens of {}", args.model.dir.display());
        (of, of_set(&model, &set, seq, run.data.document_mask)?)
    } else {
        return Err(Failure::input("nothing to evaluate on: a model alone has no validation tokens")
            .help("give --text FILE or --shard FILE, or a run folder as --model"));
    };
    let answer = Answer {
        of,
        bits_per_byte: loss.bits_per_byte(),
        nats_per_token: loss.nats_per_token(),
        tokens: loss.tokens,
        bytes: loss.bytes,
        seq,
        seconds: begin.elapsed().as_secs_f64(),
    };
    if args.json {
        return print_json(&answer);
    }
    print(&format!(
        "{:.4} bits per byte   {:.4} nats a token, {} tokens, {} bytes, windows of {seq}, {:.1} s\nof {}\n",
        answer.bits_per_byte,
        answer.nats_per_token,
        grouped(answer.tokens),
        grouped(answer.bytes),
        answer.seconds,
        answer.of,
    ))
}

fn of_text(model: &Opened, path: &Path, seq: usize) -> Result<Loss, Failure> {
    let text = std::fs::read(path).map_err(|e| Failure::file(path, &e))?;
    let text = String::from_utf8(text).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::input(format!("{}: byte {at} is not UTF-8", path.display())).help("convert the text to UTF-8 first")
    })?;
    let tokenizer = model.tokenizer()?;
    let ids = tokenizer.encode(&text)?;
    let start = tokenizer.bos().or(tokenizer.eos());
    let bytes = match (start, ids.first()) {
        (None, Some(&first)) => text.len() as u64 - tokenizer.bytes_of(&[first])?.min(text.len() as u64),
        _ => text.len() as u64,
    };
    let seq = seq.min(ids.len().max(1));
    let mut scorer = Scorer::new(&model.stream, model.config(), &model.weights, seq, false)?;
    scorer.text(&ids, start, bytes).map_err(|e| {
        let failure = Failure::from(e);
        Failure { message: format!("{}: {}", path.display(), failure.message), ..failure }
    })
}

fn of_set(model: &Opened, set: &Arc<TokenSet>, seq: usize, documents: bool) -> Result<Loss, Failure> {
    Ok(Scorer::new(&model.stream, model.config(), &model.weights, seq, documents)?.set(set)?)
}
