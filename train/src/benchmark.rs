//! Benchmarks of a model that is being trained: the same questions and scores as `esker eval --tasks`.
//!
//! Rows are read when the run starts, so that what is wrong with them ends it before its first step. Asking takes memory
//! of its own, beside what `esker plan` shows, and gives it back.

use crate::config::Eval;
use crate::metrics::TaskRow;
use esker_data::tokenizer::Tokenizer;
use esker_eval::engine::{self, Engine, EngineError};
use esker_eval::tasks::{Options, Outcome, Suite, TaskError};
use esker_kernels::device::Stream;
use esker_model::{Config, Weights};

/// Why a model in training cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchmarkError {
    /// The tasks or their rows.
    #[error("[eval]: {0}")]
    Task(#[from] TaskError),
    /// The questions could not be answered.
    #[error("[eval]: {0}")]
    Engine(#[from] EngineError),
    /// Nothing turns the questions into tokens.
    #[error(
        "[eval]: asks in text, but the tokenizer of the shards is not known; set data.tokenizer to the tokenizer.json they were made with"
    )]
    NoTokenizer,
}

/// Tasks with their rows.
#[derive(Debug)]
pub struct Benchmarks {
    suite: Suite,
}

impl Benchmarks {
    /// Reads the rows that `section` names.
    pub fn open(section: &Eval, tokenizer: Option<&Tokenizer>) -> Result<Benchmarks, BenchmarkError> {
        if tokenizer.is_none() {
            return Err(BenchmarkError::NoTokenizer);
        }
        let limit = (section.limit > 0).then_some(section.limit);
        let options = Options { limit, num_fewshot: section.num_fewshot, ..Options::default() };
        Ok(Benchmarks { suite: Suite::load(&section.tasks, &section.data, &options)? })
    }

    /// A row for each name in the section.
    pub fn score(
        &self,
        stream: &Stream,
        config: &Config,
        weights: &Weights,
        tokenizer: &Tokenizer,
        step: u64,
    ) -> Result<Vec<TaskRow>, BenchmarkError> {
        let mut engine = Engine::new(stream, config, weights, tokenizer, engine::Options::default())?;
        let outcomes = self.suite.run(|_, _, requests| engine.answer(requests), |_, _, _| Ok(()))?;
        Ok(rows(&outcomes, step))
    }
}

/// What stands in `evals.jsonl` of a model after `step`: a row for each name that was asked for.
pub fn rows(outcomes: &[Outcome], step: u64) -> Vec<TaskRow> {
    let row = |o: &Outcome| {
        let finite = |x: f64| x.is_finite().then_some(x);
        let values = o.metrics.iter().map(|m| (format!("{},{}", m.name, m.filter), finite(m.value)));
        let errors = o.metrics.iter().map(|m| (format!("{}_stderr,{}", m.name, m.filter), m.stderr.and_then(finite)));
        TaskRow {
            step,
            task: o.name.clone(),
            num_fewshot: o.num_fewshot,
            documents: o.documents,
            metrics: values.chain(errors).collect(),
            chance: o.metrics.iter().find_map(|m| m.chance),
        }
    };
    outcomes.iter().filter(|o| o.depth == 0).map(row).collect()
}

/// The number of a row that a curve shows, and its name: by length where there is one.
pub fn headline(row: &TaskRow) -> Option<(&str, f64)> {
    const ORDER: [&str; 5] = [
        "acc_norm,none",
        "acc,none",
        "exact_match,flexible-extract",
        "exact_match,none",
        "prompt_level_strict_acc,none",
    ];
    let (key, value) = ORDER.iter().find_map(|key| row.metrics.get_key_value(*key))?;
    Some((key.split(',').next().unwrap_or(key), value.unwrap_or(f64::NAN)))
}
