//! The configuration of a run: [`File`] is what someone wrote, [`Run`] is what can start.
//!
//! A file is TOML with one section a subject. Unknown keys are refused, and nothing that changes a result has a default
//! that is not written down: only `[outer]`, `[peers]`, `[eval]` and `[sample]` may be left out, and of `[data]`
//! `mixture` and `boundary_loss`, whose default stands beside it. `--set a.b=c` replaces one value before anything is
//! checked. An error names the file, the line, the key, what was expected, and the key that was perhaps meant.
//!
//! Whatever passes [`parse`] has been checked once and for all; the proof is the type [`Run`].

mod check;
mod hash;
mod read;

pub use hash::{Difference, differences};
pub use read::{load, parse};

use esker_data::{
    formats::{Format, Int},
    loader::LoaderConfig,
    mix::Mix,
};
use esker_kernels::tensor::DType;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What someone wrote. Every section but `[outer]`, `[peers]`, `[eval]` and `[sample]` must be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Names the run's folder: `<out>/<name>-001`, next free number.
    pub name: String,
    /// Every random draw of the run is a function of this and of what it is for.
    pub seed: u64,
    /// The network.
    pub model: esker_model::Config,
    /// The tokens.
    pub data: Data,
    /// How many tokens make a step, and in which order they are summed.
    pub batch: Batch,
    /// The optimiser.
    pub optim: Optim,
    /// The learning rate as a function of the step.
    pub schedule: Schedule,
    /// Length, precision, memory.
    pub train: Train,
    /// What to do about a sudden loss or gradient.
    pub guard: Guard,
    /// Validation in the loop.
    pub validation: Validation,
    /// What is kept on disk.
    pub checkpoint: Checkpoint,
    /// What the owners of a run exchange, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<crate::outer::Outer>,
    /// Who decides between owners, where they are apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<crate::peers::Peers>,
    /// Benchmarks in the loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<Eval>,
    /// A text to generate when training is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// The embedded corpus, shards on disk, or token files of other programs.
    pub source: Source,
    /// How text becomes tokens.
    pub tokenizer: TokenizerChoice,
    /// Files of the training set, in this order; empty for the embedded corpus, and where `mixture` has them.
    pub train: Vec<PathBuf>,
    /// Shard files of the validation set; may be empty. They are shards with `source = "foreign"` too: bits per byte
    /// need the bytes of text, which other programs do not keep.
    pub validation: Vec<PathBuf>,
    /// Whether attention stays inside a document.
    pub document_mask: bool,
    /// Whether the first token of a document is a target, predicted from the end mark before it. Left out, it is one
    /// where attention may look into the document before: the opposite of `document_mask`. An end mark is a target
    /// either way, and no target is padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary_loss: Option<bool>,
    /// Several training sets and how much of each, in place of `train`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureSource>,
    /// How the files of `source = "foreign"` are read, where they do not say it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<Foreign>,
}

/// What token files of other programs are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// Their format; left out, each file's name and content tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How ids are stored; left out, the format or the file's header tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Int>,
}

/// One training set of a mixture. Its rows have an order of their own, and begin again when all were read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSource {
    /// What it is called in messages.
    pub name: String,
    /// Its part of all rows is this over the sum of the weights, after every row as exact as whole rows can be.
    pub weight: f64,
    /// Files, in this order.
    pub train: Vec<PathBuf>,
}

/// Which text a run reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The corpus inside the binary.
    Embedded,
    /// Shard files, made by `esker data prepare` or `import`.
    Shards,
    /// Token files of other programs, read where they lie: Megatron, llm.c, nanoGPT, OLMo, datatrove, Templar, .npy.
    Foreign,
}

/// Which tokenizer a run uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum TokenizerChoice {
    /// A byte-level BPE, trained at the start on the embedded corpus's training part.
    Bpe {
        /// Entries, at most.
        vocab: u32,
    },
    /// A byte is a token; 256 ends a text.
    Bytes {},
    /// A tokenizer.json; for shards, the one they were made with.
    File {
        /// Where it lies.
        path: PathBuf,
    },
}

/// The tokens of a step and their order of summation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Tokens of a step, all virtual ranks together.
    pub tokens_per_step: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences held in memory at once: speed and memory, never bits.
    pub micro_rows: usize,
    /// Sequences whose gradients are summed together.
    pub grain_rows: usize,
    /// Shares of a step that are summed apart and joined by a tree; a power of two.
    pub virtual_ranks: usize,
}

/// AdamW, with decay on matrices only (the embedding among them) and none on norms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Which optimiser.
    pub kind: OptimKind,
    /// The highest learning rate of the schedule.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a matrix that a step of learning rate 1 would take away.
    pub weight_decay: f64,
    /// The largest norm a step's gradient may have; 0 turns clipping off.
    pub clip_norm: f64,
}

/// The optimisers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimKind {
    /// Loshchilov & Hutter 2019, in PyTorch's form.
    Adamw,
}

/// The learning rate over the steps; the formulas stand in [`crate::schedule`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// Up in a line, then down along half a cosine until the last step.
    Cosine {
        /// Steps on the way up.
        warmup_steps: u64,
        /// The last learning rate, as a share of `optim.lr`.
        final_ratio: f64,
    },
    /// Up in a line, level, then down by one minus a square root over the last `decay_steps`.
    Wsd {
        /// Steps on the way up.
        warmup_steps: u64,
        /// Steps on the way down.
        decay_steps: u64,
        /// The last learning rate, as a share of `optim.lr`.
        final_ratio: f64,
    },
    /// Up in a line, then level.
    Constant {
        /// Steps on the way up.
        warmup_steps: u64,
    },
}

/// How long, how precise, in how much memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Updates of the whole run.
    pub steps: u64,
    /// What the ops read: f32, or bf16 with f32 master weights and moments.
    pub dtype: DType,
    /// What backward makes again instead of keeping.
    pub recompute: esker_model::Recompute,
    /// Threads; 0 takes every core. Never changes bits.
    pub threads: usize,
}

/// The spike guard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Steps that a new loss and gradient norm are compared with.
    pub window: usize,
    /// Standard deviations above their mean that make a spike; 0 turns the guard off.
    pub sigma: f64,
    /// What happens to a spike.
    pub action: Action,
}

/// What the guard does about a spike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Say so.
    Report,
    /// Say so, and leave weights and moments as they were.
    Skip,
}

/// Validation in the loop; the last step is always validated when there is a validation set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Steps between two; 0 = only at the end.
    pub every_steps: u64,
    /// Tokens scored each time, at most.
    pub tokens: u64,
}

/// What is kept on disk; the last step is always saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between two; 0 = only at the end and on a signal.
    pub every_steps: u64,
    /// How many of the newest are kept.
    pub keep_last: usize,
    /// Those at multiples of this many steps are kept for ever; 0 = none.
    pub keep_every: u64,
}

/// Benchmarks in the loop; the model of the last step is always scored. They change no weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Steps between two; 0 = only at the end.
    pub every_steps: u64,
    /// Their names, as `esker eval --tasks` takes them.
    pub tasks: Vec<String>,
    /// Folder of their rows.
    pub data: PathBuf,
    /// Documents of a task, at most; 0 = all.
    pub limit: usize,
    /// Examples before each question; left out, each task's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
}

/// A text to generate when training is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What the text begins with.
    pub prompt: String,
    /// Tokens to generate.
    pub tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Draw among this many; 0 = all.
    pub top_k: usize,
    /// Draw among the likeliest that hold this much probability; 1 = all.
    pub top_p: f32,
    /// The seed of the draws.
    pub seed: u64,
}

/// A checked configuration: it can start on any machine with the memory. Reads like its [`File`].
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    file: File,
}

impl std::ops::Deref for Run {
    type Target = File;
    fn deref(&self) -> &File {
        &self.file
    }
}

impl Run {
    /// The effective configuration, as a file that gives the same run.
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.file).expect("config: a File is always TOML")
    }

    /// Sequences of a step.
    pub fn rows_per_step(&self) -> usize {
        self.batch.tokens_per_step / self.batch.seq_len
    }

    /// Sequences of a step that one virtual rank sums.
    pub fn rows_per_rank(&self) -> usize {
        self.rows_per_step() / self.batch.virtual_ranks
    }

    /// Sequences held in memory at once: `batch.micro_rows`, or all of a virtual rank's when those are fewer.
    pub fn micro_rows(&self) -> usize {
        self.batch.micro_rows.min(self.rows_per_rank())
    }

    /// How the sources of the training set take turns; a single one is a mixture of its own.
    pub fn mix(&self) -> Mix {
        let weights: Vec<f64> = self.data.mixture.iter().map(|source| source.weight).collect();
        match weights.is_empty() {
            true => Mix::single(),
            false => Mix::of_decimals(&weights).expect("config: weights are checked"),
        }
    }

    /// Names and files of the sources of the training set; one without files for the embedded corpus.
    pub fn sources(&self) -> Vec<(&str, &[PathBuf])> {
        match self.data.mixture.is_empty() {
            true => vec![("train", self.data.train.as_slice())],
            false => self.data.mixture.iter().map(|source| (source.name.as_str(), source.train.as_slice())).collect(),
        }
    }

    /// How rows are cut and ordered.
    pub fn rows(&self) -> LoaderConfig {
        let boundary_loss = self.data.boundary_loss.unwrap_or(!self.data.document_mask);
        LoaderConfig { seq_len: self.batch.seq_len, seed: self.seed, ignore_boundary: !boundary_loss }
    }

    /// Tokens of the whole run.
    pub fn tokens(&self) -> u64 {
        self.train.steps.saturating_mul(self.batch.tokens_per_step as u64)
    }

    /// The same run with some values changed, where that still passes every check.
    pub fn varied(&self, change: impl FnOnce(&mut File)) -> Option<Run> {
        let mut file = self.file.clone();
        change(&mut file);
        check::check(&file).is_ok().then_some(Run { file })
    }

    /// Threads a stream of this run gets on this machine.
    pub fn threads(&self) -> usize {
        match self.train.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        }
    }
}

/// What is wrong with a configuration; says all there is to say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{at}: not TOML: {why}")]
    Syntax {
        /// File, or file:line.
        at: String,
        /// What the parser found.
        why: String,
    },
    /// A key that does not exist.
    #[error("{at}: unknown key {key}{}; {section} has {known}", hint(.meant))]
    UnknownKey {
        /// File, or file:line, or the override.
        at: String,
        /// The whole key.
        key: String,
        /// The key that was perhaps meant.
        meant: Option<String>,
        /// Where the key was looked for.
        section: String,
        /// What stands there.
        known: String,
    },
    /// A value of the wrong type, or a key that is missing.
    #[error("{at}: {key}: {why}")]
    Value {
        /// File, or file:line, or the override.
        at: String,
        /// The whole key.
        key: String,
        /// What was found and what was expected.
        why: String,
    },
    /// An override that is not `key=value`.
    #[error("--set {given}: expected key=value, as in --set optim.lr=3e-4")]
    Override {
        /// What was given.
        given: String,
    },
}

fn hint(meant: &Option<String>) -> String {
    meant.as_ref().map_or(String::new(), |m| format!(" (did you mean {m}?)"))
}
