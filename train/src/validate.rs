//! Validation in the loop: bits per byte over fixed windows of the validation set.
//!
//! Every window when `validation.tokens` allows, else as many as it allows, spread evenly: window ⌊i · all / n⌋ for i < n.
//! The choice is made once, so all validations of a run score the same text. bits per byte = Σ nll / ln 2 / bytes, summed
//! in f64 from the first token to the last, whatever `micro_rows` is.

use crate::config::Run;
use crate::metrics::Validated;
use crate::state::State;
use crate::step::{Host, StepError};
use esker_data::loader::{LoaderError, Scan};
use esker_data::tokens::TokenSet;
use esker_kernels::device::Stream;
use std::sync::Arc;
use std::time::Instant;

/// The windows to score.
#[derive(Debug)]
pub struct Validator {
    scan: Scan,
    windows: u64,
    tokens: u64,
    bytes: u64,
}

impl Validator {
    /// Chooses the windows of `set` that `run` scores each time.
    pub fn new(run: &Run, set: Arc<TokenSet>) -> Result<Validator, LoaderError> {
        let scan = Scan::new(set, run.batch.seq_len)?;
        let windows = scan.windows().min(run.validation.tokens / run.batch.seq_len as u64);
        let mut v = Validator { scan, windows, tokens: 0, bytes: 0 };
        for i in 0..windows {
            let window = v.window(i);
            let scored = v.scan.scored(window..window + 1);
            v.tokens += scored.tokens;
            v.bytes += scored.bytes;
        }
        Ok(v)
    }

    /// UTF-8 bytes of the text that is scored.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn window(&self, i: u64) -> u64 {
        (u128::from(i) * u128::from(self.scan.windows()) / u128::from(self.windows)) as u64
    }

    /// Scores the windows with the weights of `state`.
    pub fn score(
        &self,
        s: &Stream,
        run: &Run,
        state: &mut State,
        host: &mut Host,
        step: u64,
    ) -> Result<Validated, StepError> {
        let start = Instant::now();
        let (seq, micro, mut nll) = (run.batch.seq_len, run.micro_rows() as u64, 0.0);
        for first in (0..self.windows).step_by(micro as usize) {
            let rows = micro.min(self.windows - first) as usize;
            for row in 0..rows {
                let batch = host.batch(row * seq, (row + 1) * seq);
                self.scan.fill(self.window(first + row as u64), 1, batch)?;
            }
            let State { master, compute, buffers, .. } = &mut *state;
            host.upload(s, buffers, rows * seq)?;
            esker_model::score(s, &run.model, compute.as_ref().unwrap_or(master), buffers, rows)?;
            nll = host.add_losses(s, buffers, rows * seq, nll)?;
        }
        Ok(Validated {
            step,
            bits_per_byte: nll / std::f64::consts::LN_2 / self.bytes.max(1) as f64,
            nll: nll / self.tokens.max(1) as f64,
            tokens: self.tokens,
            bytes: self.bytes,
            ms: start.elapsed().as_secs_f64() * 1e3,
        })
    }
}
