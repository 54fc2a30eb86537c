//! `esker study`: ways for owners to share a run, compared on one small model, real text and equal tokens.
//!
//! Eight owners are trained in one process, one after the other, with the code that trains them apart. A [`Setting`]
//! says all of what a run depends on, its result is a file named for it, so a study that was killed goes on with what is
//! missing, and one that has grown runs only what is new.
//!
//! | method | exchanged | when | settings |
//! | --- | --- | --- | --- |
//! | DDP | gradients, f32 | every step | AdamW on the mean |
//! | DiLoCo | a − θ, f32 | every H steps | Nesterov 0.9, outer learning rate 0.6 |
//! | DeMo | 32 coefficients of the momentum's DCT a tile | every step | decay 0.999, sign of the mean |
//! | SparseLoCo | k of 4096 of the error feedback, two bits | every H steps | [`crate::outer`] |
//!
//! Sources: Douillard et al. 2023, arXiv:2311.08105 (DiLoCo); Peng et al. 2024, arXiv:2411.19870 (DeMo); Sarfi et al.
//! 2025, arXiv:2508.15706 (SparseLoCo, and the settings of all four).

mod demo;
mod lies;
mod methods;
mod report;
mod runs;
mod validator;
mod wall;

pub use lies::{Forger, Lie};
pub use report::write as write_report;
pub use runs::{liars, sparseloco, tuning};
pub use wall::Link;

use crate::config::{self, File, Run};
use crate::folder::{self, FolderError};
use crate::outer::{Clip, Knot, Outer, OuterError};
use crate::source::{self, Opened};
use esker_kernels::ops::chunk_topk::{Codec, Mean};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Raised when the layout of a result, or anything that it depends on and that a setting does not say, changes.
const VERSION: u32 = 1;

/// All that a run of the study depends on, besides [`base.toml`](self).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// How owners share.
    pub method: Method,
    /// Of weights and order.
    pub seed: u64,
    /// Highest learning rate of the (inner) optimiser.
    pub lr: f64,
    /// Steps of each owner.
    pub steps: u64,
    /// Honest owners.
    pub owners: u64,
    /// Owners who lie, besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liars: Option<Liars>,
}

/// Owners who lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Liars {
    /// How many.
    pub count: u64,
    /// What they do, every round; none: they do not come.
    pub lie: Option<Lie>,
    /// Whether a validator judges updates before they count.
    pub judged: bool,
}

/// How owners share a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// The mean of all gradients, every step.
    Ddp,
    /// The mean of what all moved, every H steps, into a Nesterov optimiser.
    Diloco {
        /// H.
        inner_steps: u64,
        /// Outer learning rate.
        outer_lr: f64,
        /// Outer momentum.
        momentum: f64,
    },
    /// The fastest parts of the momentum, every step.
    Demo {
        /// Coefficients of a tile of 4096.
        k: usize,
        /// Of the momentum.
        decay: f64,
    },
    /// As [`crate::outer`] has it.
    Sparseloco {
        /// H.
        inner_steps: u64,
        /// How updates are written.
        codec: Codec,
        /// Values of a tile of 4096.
        k: usize,
        /// Decay of the error feedback.
        beta: f64,
        /// Over whom the mean runs.
        mean: Mean,
        /// The outer learning rate, the same in every round.
        alpha: f64,
    },
}

impl Method {
    /// Its name in tables.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Ddp => "DDP",
            Method::Diloco { .. } => "DiLoCo",
            Method::Demo { .. } => "DeMo",
            Method::Sparseloco { .. } => "SparseLoCo",
        }
    }

    /// Steps between two exchanges.
    pub fn inner_steps(&self) -> u64 {
        match self {
            Method::Ddp | Method::Demo { .. } => 1,
            Method::Diloco { inner_steps, .. } | Method::Sparseloco { inner_steps, .. } => *inner_steps,
        }
    }
}

/// A point of a run's curve, after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Steps of each owner.
    pub step: u64,
    /// Tokens of all owners.
    pub tokens: u64,
    /// Bytes that each owner has sent, each update counted once.
    pub bytes: u64,
    /// Modelled time since the start, see [`Link`].
    pub seconds: f64,
    /// Loss on the validation set, nats a token.
    pub nll: f64,
    /// The same in bits a byte.
    pub bits_per_byte: f64,
}

/// What honest updates of a run looked like to a validator, over all rounds but the first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The least agreement, as a share of the round's median.
    pub agreement_min: f64,
    /// The median of the rounds' median agreements.
    pub agreement: f64,
    /// The largest overlap.
    pub overlap_max: f64,
    /// Shortest and longest norm, as shares of the round's median.
    pub norm_min: f64,
    /// See `norm_min`.
    pub norm_max: f64,
    /// Honest updates that did not count.
    pub honest_rejected: u64,
    /// Of how many.
    pub honest: u64,
    /// Lies that counted.
    pub lies_counted: u64,
    /// Of how many.
    pub lies: u64,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Version of the form of who wrote it.
    pub version: u32,
    /// Digest of the base configuration.
    pub base: String,
    /// Of what.
    pub setting: Setting,
    /// Its curve; the last point is the end.
    pub curve: Vec<Point>,
    /// Bytes of one update.
    pub update_bytes: u64,
    /// How many times less that is than the model in f32.
    pub compression: f64,
    /// Parameters of the model.
    pub params: u64,
    /// What a validator saw, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
    /// Processor time that it took, seconds, one thread: not part of the comparison.
    pub took: f64,
}

impl Outcome {
    /// The loss at the end, nats a token.
    pub fn loss(&self) -> f64 {
        self.curve.last().map_or(f64::NAN, |point| point.nll)
    }
}

/// Why a study cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// An owner could not go on.
    #[error("{setting}: {source}")]
    Owner {
        /// Which run.
        setting: String,
        /// Why.
        source: Box<OuterError>,
    },
    /// Owners came to different weights: a bug of ours.
    #[error("{setting}: after round {round} the owners' roots differ")]
    Roots {
        /// Which run.
        setting: String,
        /// Which round.
        round: u64,
    },
    /// The tokens cannot be had.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// A result cannot be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file that is no result.
    #[error("{file}: {why}; remove it, and the study makes it anew")]
    NoResult {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A signal.
    #[error("stopped; the same command goes on with what is missing")]
    Stopped,
}

/// The study's configuration of one owner.
pub fn base() -> Run {
    config::parse(include_str!("study/base.toml"), "base.toml", &[]).expect("study: its own configuration")
}

/// The configuration of an owner under `setting`.
fn run_of(setting: &Setting) -> Run {
    let warmup = setting.steps / 20;
    let change = |file: &mut File| {
        file.seed = setting.seed;
        file.optim.lr = setting.lr;
        file.train.steps = setting.steps;
        file.schedule = config::Schedule::Cosine { warmup_steps: warmup, final_ratio: 0.1 };
        if let Method::Sparseloco { inner_steps, codec, k, beta, mean, alpha } = setting.method {
            file.outer = Some(Outer {
                slots: slots(setting),
                inner_steps,
                codec,
                k,
                beta,
                mean,
                clip: Clip::Median,
                alpha: vec![Knot { round: 0, value: alpha }],
            });
        }
    };
    base().varied(change).expect("study: settings are within what a run allows")
}

/// Places for owners in a round, liars' among them.
fn slots(setting: &Setting) -> u64 {
    setting.owners + setting.liars.as_ref().map_or(0, |liars| liars.count)
}

/// What the study tells while it goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Before the first run.
    Begins {
        /// Runs that are there already.
        done: usize,
        /// All runs.
        all: usize,
    },
    /// A run is done.
    Done {
        /// What it came to.
        outcome: &'a Outcome,
        /// Runs that are there now.
        done: usize,
        /// All runs.
        all: usize,
    },
}

/// Runs what is missing of `settings` in `out`, `jobs` at a time, and gives all results in their order.
pub fn run(
    settings: &[Setting],
    out: &Path,
    jobs: usize,
    stop: &AtomicBool,
    sink: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Vec<Outcome>, StudyError> {
    let runs = out.join("runs");
    std::fs::create_dir_all(&runs).map_err(|source| FolderError::Io {
        path: runs.clone(),
        action: "create",
        source,
    })?;
    let opened = source::open(&base(), &out.join("tokens"))?;
    let found = settings.iter().map(|s| read(&runs, s)).collect::<Result<Vec<_>, _>>()?;
    let missing: Vec<&Setting> = settings.iter().zip(&found).filter(|(_, f)| f.is_none()).map(|(s, _)| s).collect();
    let (all, before) = (settings.len(), settings.len() - missing.len());
    sink(Event::Begins { done: before, all });
    let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(before), Mutex::new(None));
    let work = || {
        while let Some(setting) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = one(setting, &opened, stop).and_then(|outcome| {
                let json = serde_json::to_vec_pretty(&outcome).expect("our own types become JSON");
                folder::write(&runs.join(name_of(setting)), &json)?;
                sink(Event::Done { outcome: &outcome, done: done.fetch_add(1, Ordering::Relaxed) + 1, all });
                Ok(())
            });
            if let Err(e) = result {
                // The first counts; the others end with their runs.
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                next.store(missing.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => settings.iter().map(|s| Ok(read(&runs, s)?.expect("study: just written"))).collect(),
    }
}

fn one(setting: &Setting, opened: &Opened, stop: &AtomicBool) -> Result<Outcome, StudyError> {
    let start = Instant::now();
    let mut outcome = methods::run(setting, opened, stop)?;
    outcome.took = start.elapsed().as_secs_f64();
    Ok(outcome)
}

/// The result of `setting` in `runs`, if it is there.
fn read(runs: &Path, setting: &Setting) -> Result<Option<Outcome>, StudyError> {
    let file = runs.join(name_of(setting));
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FolderError::Io { path: file, action: "read", source }.into()),
    };
    let wrong = |why: String| StudyError::NoResult { file: file.clone(), why };
    let outcome: Outcome = serde_json::from_slice(&text).map_err(|e| wrong(format!("is no result: {e}")))?;
    match outcome.setting == *setting && outcome.version == VERSION && outcome.base == base().hash() {
        true => Ok(Some(outcome)),
        false => Err(wrong("is the result of something else".into())),
    }
}

/// A name that tells a person what it is, and a digest that tells settings apart.
fn name_of(setting: &Setting) -> String {
    let json = serde_json::to_string(setting).expect("our own types become JSON");
    let digest = blake3::hash(format!("{VERSION} {} {json}", base().hash()).as_bytes()).to_hex();
    let lie = setting
        .liars
        .as_ref()
        .map_or(String::new(), |l| l.lie.map_or("-honest".into(), |lie| format!("-{}", lie.name())));
    format!(
        "{}{lie}-h{}-s{}-{}.json",
        setting.method.name().to_lowercase(),
        setting.method.inner_steps(),
        setting.seed,
        &digest[..10]
    )
}
