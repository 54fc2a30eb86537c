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
    tokens: u64,
    bytes: u64,
}

impl Validator {
    /// Chooses the windows of `set` that `run` scores each time.
    pub fn new(run: &Run, set: Arc<TokenSet>) -> Result<Validator, LoaderError> {
        let scan = Scan::new(set, run.batch.seq_len)?;
        let windows = windows(run, scan.windows());
        let (mut tokens, mut bytes) = (0, 0);
        for window in windows.clone() {
            let scored = scan.scored(window..window + 1);
            tokens += scored.tokens;
            bytes += scored.bytes;
        }
        Ok(Validator { scan, tokens, bytes })
    }

    /// UTF-8 bytes of the text that is scored.
    pub fn bytes(&self) -> u64 {
        self.bytes
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
        let (seq, mut nll) = (run.batch.seq_len, 0.0);
        let mut left = windows(run, self.scan.windows());
        loop {
            let mut rows = 0;
            for window in left.by_ref().take(run.micro_rows()) {
                self.scan.fill(window, 1, host.batch(rows * seq, (rows + 1) * seq))?;
                rows += 1;
            }
            if rows == 0 {
                break;
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

/// The windows that `run` scores, of `all` that its validation set has.
pub fn windows(run: &Run, all: u64) -> impl Iterator<Item = u64> + Clone + use<> {
    let n = all.min(run.validation.tokens / run.batch.seq_len as u64);
    (0..n).map(move |i| (u128::from(i) * u128::from(all) / u128::from(n)) as u64)
}
