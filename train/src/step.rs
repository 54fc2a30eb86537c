//! The gradient of one step, in an order of additions that the configuration alone decides.
//!
//! ```text
//! step       rows position .. position + R, cut into V virtual ranks of R / V rows
//! rank       its rows in order, `micro_rows` at a time; the model adds grain after grain into one sum
//! joined     ((r0 + r1) + (r2 + r3)) + ...                       one binary tree in f32, losses beside it in f64
//! scale      1 / targets of the whole step, counted before it
//! ```
//!
//! Rows come from a thread that makes them ahead ([`feed`]); a step waits only where that is behind. The losses of a
//! micro-batch are read while a device works on the next.
//!
//! The tree is a binary counter: when rank r is done its sum takes in, for each trailing one of r, the pending sum of
//! that level, and waits at the first zero. So log₂ V + 1 sets of gradients are alive at once. Threads and `micro_rows`
//! appear nowhere in the order.

use crate::config::Run;
use crate::state::State;
use esker_data::loader::{Batch, Loader, LoaderError};
use esker_data::prefetch::{Ahead, Prefetch, Request};
use esker_kernels::DeviceError;
use esker_kernels::device::{Pending, Stream};
use esker_kernels::ops::cast;
use esker_model::{Buffers, Weights};
use esker_train_elements::total;
use std::time::{Duration, Instant};

/// Bytes of rows made ahead, and the fewest and most buffers for them. A buffer is a micro-batch; one is with the step,
/// so three keep two ready.
const AHEAD_BYTES: usize = 4 << 20;
const AHEAD_BUFFERS: std::ops::RangeInclusive<usize> = 3..=16;

/// Rows on their way to the device that no thread makes ahead: those of validation. And the losses that come back.
#[derive(Debug)]
pub struct Host {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    first: Option<Vec<u32>>,
    nll: Vec<f32>,
    /// Losses of the micro-batch before, when they are collected after the next was handed over.
    before: Vec<f32>,
}

impl Host {
    /// Buffers for the rows that are in memory at once.
    pub fn new(run: &Run) -> Host {
        let len = run.micro_rows() * run.batch.seq_len;
        Host {
            inputs: vec![0; len],
            targets: vec![0; len],
            first: run.data.document_mask.then(|| vec![0; len]),
            nll: vec![0.0; len],
            before: vec![0.0; len],
        }
    }

    /// Bytes that [`Host::new`] and [`feed`] take.
    pub fn bytes(run: &Run) -> usize {
        let buffers = if run.data.document_mask { 5 } else { 4 };
        let own = buffers * 4 * run.micro_rows() * run.batch.seq_len;
        own + ahead(run).bytes(run.batch.seq_len) + run.mix().bytes()
    }

    /// The first `len` places, row after row.
    pub fn batch(&mut self, from: usize, to: usize) -> Batch<'_> {
        Batch {
            inputs: &mut self.inputs[from..to],
            targets: &mut self.targets[from..to],
            doc_first: self.first.as_mut().map(|first| &mut first[from..to]),
        }
    }

    /// Hands the first `len` tokens to the device.
    pub fn upload(&self, s: &Stream, b: &mut Buffers, len: usize) -> Result<(), DeviceError> {
        upload(s, b, &self.inputs[..len], &self.targets[..len], self.first.as_ref().map(|first| &first[..len]))
    }

    /// `sum` and the losses of the first `len` tokens, added one by one.
    pub fn add_losses(&mut self, s: &Stream, b: &Buffers, len: usize, sum: f64) -> Result<f64, DeviceError> {
        s.download_f32(&b.nll, &mut self.nll[..len])?;
        Ok(total(&self.nll[..len], sum))
    }

    /// Asks for the losses of the first `len` tokens, and adds those that were asked for before: the device has the next
    /// micro-batch to do while the host waits for the last.
    fn ask_losses(&mut self, s: &Stream, b: &Buffers, len: usize, late: &mut Late) -> Result<(), DeviceError> {
        std::mem::swap(&mut self.nll, &mut self.before);
        let asked = s.start_download_f32(&b.nll, &mut self.nll[..len])?;
        if let Some((pending, len)) = late.asked.replace((asked, len)) {
            s.finish_download(pending, &mut self.before[..len])?;
            late.sum = total(&self.before[..len], late.sum);
        }
        Ok(())
    }

    /// All losses, once the last that were asked for are here.
    fn all_losses(&mut self, s: &Stream, mut late: Late) -> Result<f64, DeviceError> {
        if let Some((pending, len)) = late.asked.take() {
            s.finish_download(pending, &mut self.nll[..len])?;
            late.sum = total(&self.nll[..len], late.sum);
        }
        Ok(late.sum)
    }
}

/// The losses of a virtual rank so far, and those that are on their way.
#[derive(Debug, Default)]
struct Late {
    sum: f64,
    asked: Option<(Pending, usize)>,
}

fn upload(
    s: &Stream,
    b: &mut Buffers,
    inputs: &[u32],
    targets: &[u32],
    first: Option<&[u32]>,
) -> Result<(), DeviceError> {
    s.upload_u32(inputs, &mut b.inputs)?;
    s.upload_u32(targets, &mut b.targets)?;
    match (first, &mut b.first) {
        (Some(first), Some(to)) => s.upload_u32(first, to),
        _ => Ok(()),
    }
}

/// Why a step could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A token could not be read.
    #[error(transparent)]
    Tokens(#[from] LoaderError),
}

/// What a step's gradient came with.
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// Mean loss over the targets, nats.
    pub loss: f64,
    /// Targets that counted.
    pub targets: u64,
    /// Time spent waiting for tokens.
    pub data_wait: Duration,
}

/// Starts making the micro-batches of `run` from step `step` on, in the order in which [`gradient`] takes them.
pub fn feed(run: &Run, loader: Loader, step: u64) -> Result<Prefetch, LoaderError> {
    let done = step * run.rows_per_step() as u64;
    feed_rows(run, loader, done, run.train.steps.saturating_sub(step))
}

/// As [`feed`], for `steps` steps from row `position` on.
pub fn feed_rows(run: &Run, loader: Loader, position: u64, steps: u64) -> Result<Prefetch, LoaderError> {
    Prefetch::start(loader, ahead(run), requests(run, position, steps))
}

fn ahead(run: &Run) -> Ahead {
    let one = Ahead { buffers: 1, rows: run.micro_rows(), documents: run.data.document_mask };
    let fit = AHEAD_BYTES / one.bytes(run.batch.seq_len);
    Ahead { buffers: fit.clamp(*AHEAD_BUFFERS.start(), *AHEAD_BUFFERS.end()), ..one }
}

/// The first micro-batch of a step comes with the number of its targets.
fn requests(run: &Run, position: u64, steps: u64) -> impl Iterator<Item = Request> + Send + use<> {
    let (per_step, per_rank, micro) = (run.rows_per_step(), run.rows_per_rank(), run.micro_rows());
    let of_rank = move |first: usize| micro_batches(per_rank, micro).map(move |(at, rows)| (first + at, rows));
    (0..steps).flat_map(move |step| {
        let micro_batches = (0..per_step).step_by(per_rank).flat_map(of_rank);
        micro_batches.map(move |(at, rows)| Request {
            position: position + step * per_step as u64 + at as u64,
            rows,
            count_rows: if at == 0 { per_step } else { 0 },
        })
    })
}

/// Leaves the gradient of the step at row `position` in `state.grads.sum`, which must be zero. Takes the step's rows
/// from `feed`, whose next they must be.
pub fn gradient(
    s: &Stream,
    run: &Run,
    feed: &mut Prefetch,
    state: &mut State,
    host: &mut Host,
    position: u64,
) -> Result<Sums, StepError> {
    let (mut data_wait, mut targets, mut scale) = (Duration::ZERO, 0, 0.0);
    let (seq, rows, ranks) = (run.batch.seq_len, run.rows_per_rank(), run.batch.virtual_ranks);
    let mut held = [0.0; usize::BITS as usize];
    let mut loss = 0.0;
    for rank in 0..ranks {
        if rank > 0 {
            state.grads.sum.zero(s)?;
        }
        let mut late = Late::default();
        let from = position + (rank * rows) as u64;
        for (at, rows) in micro_batches(rows, run.micro_rows()) {
            let start = Instant::now();
            let batch = feed.wait()?;
            data_wait += start.elapsed();
            let got = batch.request();
            assert_eq!((got.position, got.rows), (from + at as u64, rows), "step: rows of another micro-batch");
            if got.count_rows > 0 {
                targets = batch.targets_counted();
                scale = if targets == 0 { 0.0 } else { (1.0 / targets as f64) as f32 };
            }
            let State { master, compute, grads, buffers, .. } = &mut *state;
            upload(s, buffers, batch.inputs(), batch.targets(), batch.doc_first())?;
            let weights = compute.as_ref().unwrap_or(master);
            s.graph("micro", rows, || esker_model::train_micro(s, &run.model, weights, grads, buffers, rows, scale))?;
            host.ask_losses(s, buffers, rows * seq, &mut late)?;
        }
        state.grads.join(s)?;
        loss = host.all_losses(s, late)?;
        let mut level = 0;
        while rank >> level & 1 == 1 {
            add(s, &state.grads.sum, &mut state.pending[level])?;
            std::mem::swap(&mut state.grads.sum, &mut state.pending[level]);
            loss += held[level];
            level += 1;
        }
        if rank + 1 < ranks {
            std::mem::swap(&mut state.grads.sum, &mut state.pending[level]);
            held[level] = loss;
        }
    }
    Ok(Sums { loss: loss / targets.max(1) as f64, targets, data_wait })
}

/// Cuts `rows` into pieces of `micro`, the last perhaps shorter: `(first row, rows)`.
fn micro_batches(rows: usize, micro: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(micro).map(move |at| (at, micro.min(rows - at)))
}

/// `to` += `from`, tensor by tensor.
fn add(s: &Stream, from: &Weights, to: &mut Weights) -> Result<(), DeviceError> {
    for ((_, from), (_, to)) in from.each().zip(to.each_mut()) {
        cast::add(s, from.len(), from, to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_cover_every_row_once() {
        let cuts: Vec<_> = micro_batches(7, 3).collect();
        assert_eq!(cuts, [(0, 3), (3, 3), (6, 1)]);
        assert_eq!(micro_batches(4, 4).collect::<Vec<_>>(), [(0, 4)]);
    }
}
