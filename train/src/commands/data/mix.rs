//! `esker data mix`: what a run would take of each source of its tokens, before it takes it.

use super::tokens;
use crate::{
    cli::data::Mix,
    commands::{Failure, print, print_json},
    config,
    plan::grouped,
    source::{self, Share},
};
use esker_data::loader::Loader;
use serde::Serialize;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    name: String,
    steps: u64,
    tokens: u64,
    /// Rows after which the sources' turns repeat and all shares are exact.
    period_rows: u64,
    sources: Vec<Share>,
}

pub fn run(args: Mix) -> Result<(), Failure> {
    let run = config::load(&args.file, &args.set)?;
    let loader = Loader::mixed(tokens::counted(&run)?, run.mix(), run.rows())?;
    let sources = source::shares(&run, &loader);
    let answer = Answer {
        name: run.name.clone(),
        steps: run.train.steps,
        tokens: run.tokens(),
        period_rows: loader.mix().period(),
        sources,
    };
    if args.json {
        return print_json(&answer);
    }
    let mut text = format!(
        "{}: {} steps, {} tokens; shares are exact every {} rows\n",
        answer.name,
        grouped(answer.steps),
        grouped(answer.tokens),
        grouped(answer.period_rows)
    );
    let width = answer.sources.iter().map(|s| s.name.chars().count()).max().unwrap_or(0).max("source".len());
    text.push_str(&format!(
        "{:<width$} {:>10} {:>18} {:>20} {:>18} {:>9}\n",
        "source", "share", "tokens it has", "expected tokens", "realised tokens", "epochs"
    ));
    for s in &answer.sources {
        text.push_str(&format!(
            "{:<width$} {:>8.4} % {:>18} {:>20.1} {:>18} {:>9.3}\n",
            s.name,
            100.0 * s.share,
            grouped(s.tokens),
            s.expected_tokens,
            grouped(s.realised_tokens),
            s.epochs
        ));
    }
    print(&text)
}
