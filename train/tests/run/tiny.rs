//! A run so small that a test can afford fifty of them, and what two equal runs must share.

use esker_data::pack::{self, PackOptions, Split};
use esker_data::tokenizer::Tokenizer;
use esker_kernels::device::Kind;
use esker_train::config::{self, Run};
use esker_train::metrics::{self, StepRow};
use esker_train::run::{self, Event, Options, Outcome, Start, TrainError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The run. `@` stands for the folder that holds the shards.
pub const TOML: &str = include_str!("../tiny.toml");

/// A folder with shards of made-up text, packed once, and room for runs.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let texts = (0..40u32).map(|i| {
            let split = if i % 8 == 7 { Split::Val } else { Split::Train };
            Ok((split, text(i)))
        });
        pack::pack(texts, &Tokenizer::bytes(), dir.path(), &PackOptions::default()).unwrap();
        Place { dir }
    }

    pub fn toml(&self) -> String {
        TOML.replace('@', self.dir.path().to_str().unwrap())
    }

    pub fn run(&self, sets: &[&str]) -> Run {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        config::parse(&self.toml(), "tiny.toml", &sets).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts a new run and lets it stop after `stop` steps; 0 lets it end.
    pub fn train(&self, run: Run, stop: u64) -> Outcome {
        train(Start::New { run, out: self.out() }, stop).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn out(&self) -> PathBuf {
        self.dir.path().join("runs")
    }
}

/// Trains and lets it stop after `stop` steps; 0 lets it end.
pub fn train(start: Start, stop: u64) -> Result<Outcome, TrainError> {
    train_on(Kind::Cpu, start, stop)
}

/// [`train`] on some device.
pub fn train_on(device: Kind, start: Start, stop: u64) -> Result<Outcome, TrainError> {
    let flag = AtomicBool::new(false);
    let options = Options { stop: &flag, peaks: None, device };
    run::train(start, &options, &mut |event: Event<'_>| {
        if let Event::Step(row) = event
            && row.step == stop
        {
            flag.store(true, Ordering::Relaxed);
        }
    })
}

pub fn resume(folder: &Path, run: Option<Run>, stop: u64) -> Result<Outcome, TrainError> {
    train(Start::Resume { folder: folder.into(), run }, stop)
}

/// What two runs of one configuration share to the bit: the newest checkpoint's weights, optimiser and position, and
/// every line but for its times.
#[derive(Debug, PartialEq)]
pub struct Print {
    pub weights: blake3::Hash,
    pub state: blake3::Hash,
    pub steps: Vec<String>,
    pub evals: Vec<String>,
}

pub fn print(outcome: &Outcome) -> Print {
    print_of(&outcome.folder, outcome.checkpoint.as_deref().expect("a checkpoint"))
}

pub fn print_of(folder: &Path, checkpoint: &Path) -> Print {
    let digest = |name: &str| blake3::hash(&std::fs::read(checkpoint.join(name)).unwrap());
    let steps = metrics::read_steps(folder).unwrap();
    let timeless =
        |row: StepRow| StepRow { step_ms: 0.0, data_wait_ms: 0.0, tokens_per_s: 0.0, peak_share: None, ..row };
    let evals = metrics::read_evals(folder).unwrap();
    Print {
        weights: digest("model.safetensors"),
        state: digest("state.safetensors"),
        steps: steps.into_iter().map(|row| format!("{:?}", timeless(row))).collect(),
        evals: evals.into_iter().map(|row| format!("{:?}", metrics::Validated { ms: 0.0, ..row })).collect(),
    }
}

/// A few sentences that differ from document to document.
fn text(i: u32) -> String {
    let words = ["ice", "river", "stone", "the", "of", "lays", "under", "grain", "ridge", "and"];
    let mut seed = blake3::hash(&i.to_le_bytes()).as_bytes()[0] as usize + i as usize;
    let mut text = String::new();
    for _ in 0..60 + i {
        text.push_str(words[seed % words.len()]);
        text.push(' ');
        seed = seed * 31 + 7;
        seed %= 1009;
    }
    text
}
