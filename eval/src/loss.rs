//! How well a model predicts: the loss of every token of a text, of shards, or of given rows.
//!
//! loss          −ln p(token | what stands before it in its window)       nats
//! bits per byte Σ loss / ln 2 / bytes of the text                         the same unit whatever the tokenizer
//!
//! A text or a set is cut into windows of T tokens that follow one another: each token is scored exactly once, with the
//! tokens of its own window before it (and the last one of the window before). What the first token stands after:
//! in shards the end mark, as in training; in a text the tokenizer's start mark, or its end mark where it has none. A
//! text's own end is not scored; the end marks of a set are. With no mark at all the first token is not scored and its
//! bytes do not count.

use esker_data::{
    loader::{Batch, LoaderError, Scan},
    tokens::TokenSet,
};
use esker_kernels::{DeviceError, device::Stream, tensor::Arena};
use esker_model::{Buffers, Config, IGNORE, Shape, Weights};
use serde::Serialize;
use std::sync::Arc;

/// Tokens of a call, about: enough rows to fill the matrix products, few enough to stay small.
const TOKENS_A_CALL: usize = 2048;

/// A sum of losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Loss {
    /// Σ loss, nats.
    pub nll_sum: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Bytes of text that they stand for.
    pub bytes: u64,
}

impl Loss {
    /// Σ loss / ln 2 / bytes.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll_sum / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// Mean loss of a token, nats.
    pub fn nats_per_token(&self) -> f64 {
        self.nll_sum / self.tokens as f64
    }
}

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// No memory, or the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The tokens could not be read.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// An id that the model has no embedding for.
    #[error(
        "token id {id} (place {place} of row {row}) is outside the model's vocabulary of {vocab}; was it made with this model's tokenizer?"
    )]
    Id {
        /// The id.
        id: u32,
        /// Row of the input.
        row: usize,
        /// Place within it.
        place: usize,
        /// Ids are below it.
        vocab: usize,
    },
    /// A set whose ids the model has no embedding for.
    #[error("the tokens come from a vocabulary of {got}, the model's has {vocab}; tokenize with the model's tokenizer")]
    Vocabulary {
        /// Of the set.
        got: u32,
        /// Of the model.
        vocab: usize,
    },
    /// Nothing to score.
    #[error("there is nothing to score: a row needs a token and one before it")]
    Nothing,
}

/// A model with the buffers to score windows of T tokens.
#[derive(Debug)]
pub struct Scorer<'a> {
    stream: &'a Stream,
    config: &'a Config,
    weights: &'a Weights,
    buffers: Buffers,
    rows: usize,
    seq: usize,
}

impl<'a> Scorer<'a> {
    /// Buffers for windows of `seq` tokens; `documents`: attention stays inside a document of a set.
    pub fn new(
        stream: &'a Stream,
        config: &'a Config,
        weights: &'a Weights,
        seq: usize,
        documents: bool,
    ) -> Result<Scorer<'a>, DeviceError> {
        let rows = (TOKENS_A_CALL / seq).max(1);
        let dtype = weights.embed.dtype();
        let shape = Shape { micro_rows: rows, seq, grain_rows: 1, dtype, documents, backward: None };
        let (mut buffers, _) = Arena::build(stream, |arena| Buffers::layout(arena, config, shape))?;
        buffers.ready(stream, config)?;
        Ok(Scorer { stream, config, weights, buffers, rows, seq })
    }

    /// The loss of every token of a set, in order.
    pub fn set(&mut self, set: &Arc<TokenSet>) -> Result<Loss, LossError> {
        if set.vocab_size() as usize > self.config.vocab {
            return Err(LossError::Vocabulary { got: set.vocab_size(), vocab: self.config.vocab });
        }
        let scan = Scan::new(set.clone(), self.seq)?;
        let mut sum = 0.0;
        for window in (0..scan.windows()).step_by(self.rows) {
            let rows = self.rows.min((scan.windows() - window) as usize);
            let places = rows * self.seq;
            let b = &mut self.buffers;
            let batch = Batch {
                inputs: &mut b.inputs.u32_mut()[..places],
                targets: &mut b.targets.u32_mut()[..places],
                doc_first: b.first.as_mut().map(|first| &mut first.u32_mut()[..places]),
            };
            scan.fill(window, rows, batch)?;
            sum += self.run(rows)?.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        let scored = scan.scored(0..scan.windows());
        Ok(Loss { nll_sum: sum, tokens: scored.tokens, bytes: scored.bytes })
    }

    /// The loss of a text's tokens after `start`; `bytes` is the length of the text that is scored.
    pub fn text(&mut self, ids: &[u32], start: Option<u32>, bytes: u64) -> Result<Loss, LossError> {
        let row: Vec<u32> = start.into_iter().chain(ids.iter().copied()).collect();
        let windows: Vec<&[u32]> = (0..row.len().saturating_sub(1))
            .step_by(self.seq)
            .map(|at| &row[at..row.len().min(at + self.seq + 1)])
            .collect();
        let sum = self.rows(&windows)?.iter().flatten().map(|&x| f64::from(x)).sum();
        match row.len() {
            0 | 1 => Err(LossError::Nothing),
            n => Ok(Loss { nll_sum: sum, tokens: n as u64 - 1, bytes }),
        }
    }

    /// The loss of each token of each row but its first; a row has at most `seq + 1` ids.
    pub fn rows(&mut self, rows: &[&[u32]]) -> Result<Vec<Vec<f32>>, LossError> {
        check_ids(rows, self.config.vocab)?;
        let (seq, mut out) = (self.seq, Vec::with_capacity(rows.len()));
        for group in rows.chunks(self.rows) {
            // What follows a row's end cannot change it, since attention looks back only.
            let (inputs, targets) = (self.buffers.inputs.u32_mut(), self.buffers.targets.u32_mut());
            inputs[..group.len() * seq].fill(0);
            targets[..group.len() * seq].fill(IGNORE);
            for (i, row) in group.iter().enumerate() {
                let n = row.len().saturating_sub(1);
                assert!(n <= seq, "loss: a row of {} ids in windows of {seq}", row.len());
                inputs[i * seq..][..n].copy_from_slice(&row[..n]);
                targets[i * seq..][..n].copy_from_slice(&row[row.len() - n..]);
            }
            if let Some(first) = &mut self.buffers.first {
                first.u32_mut().fill(0);
            }
            let nll = self.run(group.len())?;
            out.extend(group.iter().enumerate().map(|(i, row)| nll[i * seq..][..row.len().saturating_sub(1)].to_vec()));
        }
        Ok(out)
    }

    /// Scores the first `rows` rows of the buffers.
    fn run(&mut self, rows: usize) -> Result<&[f32], DeviceError> {
        let (s, b) = (self.stream, &mut self.buffers);
        let (config, weights) = (self.config, self.weights);
        s.enter(|| esker_model::score(s, config, weights, b, rows))?;
        s.synchronise()?;
        Ok(&self.buffers.nll.f32()[..rows * self.seq])
    }
}

fn check_ids(rows: &[&[u32]], vocab: usize) -> Result<(), LossError> {
    for (row, ids) in rows.iter().enumerate() {
        if let Some(place) = ids.iter().position(|&id| id as usize >= vocab) {
            return Err(LossError::Id { id: ids[place], row, place, vocab });
        }
    }
    Ok(())
}
