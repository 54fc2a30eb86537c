//! A run without files: for `parity` and `bench`, which bring their own weights and tokens and use a run's tensors and
//! optimiser.

use crate::config::{
    self, Action, Batch, Checkpoint, ConfigError, Data, File, Guard, Optim, Run, Schedule, Source, TokenizerChoice,
    Train, Validation,
};
use esker_kernels::tensor::DType;
use esker_model::{Config, Recompute};
use std::path::PathBuf;

/// What [`run`] cannot choose.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Sequences of a step, all in memory and summed together.
    pub rows: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Updates.
    pub steps: u64,
    /// What the ops read.
    pub dtype: DType,
}

/// A checked run of `model`; its data names no file that anyone opens.
pub fn run(model: Config, sizes: &Sizes, optim: Optim) -> Result<Run, ConfigError> {
    let nowhere = PathBuf::from("tokens given by the caller");
    let file = File {
        name: "bare".into(),
        seed: 1,
        model,
        data: Data {
            source: Source::Shards,
            tokenizer: TokenizerChoice::File { path: nowhere.clone() },
            train: vec![nowhere],
            validation: Vec::new(),
            document_mask: false,
            boundary_loss: None,
            mixture: Vec::new(),
            foreign: None,
        },
        batch: Batch {
            tokens_per_step: sizes.rows * sizes.seq,
            seq_len: sizes.seq,
            micro_rows: sizes.rows,
            grain_rows: sizes.rows,
            virtual_ranks: 1,
        },
        optim,
        schedule: Schedule::Constant { warmup_steps: 0 },
        train: Train { steps: sizes.steps, dtype: sizes.dtype, recompute: Recompute::None, threads: 0 },
        guard: Guard { window: 2, sigma: 0.0, action: Action::Report },
        validation: Validation { every_steps: 0, tokens: sizes.seq as u64 },
        checkpoint: Checkpoint { every_steps: 0, keep_last: 1, keep_every: 0 },
        outer: None,
        peers: None,
        eval: None,
        sample: None,
    };
    let text = toml::to_string(&file).expect("config: a File is always TOML");
    config::parse(&text, "bare run", &[])
}
