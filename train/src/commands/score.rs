//! `esker score`: the log-probability of every token of given rows.

use super::{Failure, model::Opened, print_json};
use crate::cli;
use esker_eval::loss::Scorer;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The input file.
#[derive(Debug, Deserialize)]
struct Rows {
    rows: Vec<Vec<u32>>,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Scores {
    /// Over all tokens of all rows; null when there is none.
    mean_nll: Option<f64>,
    logprob: Vec<Vec<f32>>,
}

pub fn run(args: cli::model::Score) -> Result<(), Failure> {
    let rows = read(&args.tokens)?;
    let model = Opened::new(&args.model)?;
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let longest = rows.iter().map(|row| row.len().saturating_sub(1)).max().unwrap_or(0).max(1);
    model.warn_past_context(longest);
    let mut scorer = Scorer::new(&model.stream, model.config(), &model.weights, longest, false)?;
    let nll = scorer.rows(&rows).map_err(|e| {
        let failure = Failure::from(e);
        Failure { message: format!("{}: {}", args.tokens.display(), failure.message), ..failure }
    })?;
    let count = nll.iter().map(Vec::len).sum::<usize>();
    let sum: f64 = nll.iter().flatten().map(|&x| f64::from(x)).sum();
    let mean_nll = (count > 0).then(|| sum / count as f64);
    if mean_nll.is_some_and(|x| !x.is_finite()) {
        let message = format!("{}: the model's losses are not finite numbers", model.dir.display());
        return Err(Failure::input(message).help("its weights are damaged, or overflow in this dtype: try --dtype f32"));
    }
    // 0 - x, so that a loss of zero prints as 0 and not as -0.
    print_json(&Scores { mean_nll, logprob: nll.iter().map(|row| row.iter().map(|x| 0.0 - x).collect()).collect() })
}

fn read(path: &Path) -> Result<Vec<Vec<u32>>, Failure> {
    let text = std::fs::read(path).map_err(|e| Failure::file(path, &e))?;
    let rows: Rows = serde_json::from_slice(&text).map_err(|e| {
        Failure::input(format!("{}: {e}", path.display()))
            .help("expected {\"rows\": [[id, ...], ...]} with ids as whole numbers from 0 to 4294967295")
    })?;
    Ok(rows.rows)
}
