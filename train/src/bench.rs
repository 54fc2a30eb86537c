//! `esker bench`: the ops, whole training steps, and generation, each row beside what this machine's peaks allow; and rows
//! of tokens from shards, beside what a small model takes.
//!
//! *step*: forward, backward and AdamW on random tokens, all rows of the batch in memory and summed together, no clip; the
//! four shapes are those of published figures for other trainers (stories15M and stories110M of llama2.c; GPT-2 124M as a
//! Llama network with the same matrices a token, so that FLOPs a token agree). *decode*: one sequence, token after token,
//! at the 110M shape, bound by reading the weights. *tokenize*: text through our own tokenizer and through the `tokenizers`
//! crate, ids compared. *gpu*: all that a card is asked, see `bench/gpu.rs`. Times are medians of wall clock; repeat them on a quiet machine.

mod data;
mod decode;
mod gpu;
mod step;
mod tokenize;

pub use data::data;
pub use decode::decode;
pub use gpu::{Conformance, Extent, GpuError, GpuReport, Torch, Training, gpu};
pub use step::steps;
pub use tokenize::{Tokenize, TokenizeRow, tokenize};

use esker_kernels::{Result, device::Stream, harness, peak::Peaks, tensor::DType};
use esker_model::{Config, Family, Rope};
use serde::Serialize;

/// Both kinds of arithmetic.
pub const DTYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// One line of the bench.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Row {
    /// A case of an op.
    Op(harness::Row),
    /// A training step, or a token of generation.
    Model(ModelRow),
    /// Rows of tokens from shards.
    Data(DataRow),
    /// Text through a tokenizer.
    Tokenize(TokenizeRow),
}

/// Reading tokens.
#[derive(Clone, Debug, Serialize)]
pub struct DataRow {
    /// `data`.
    pub bench: &'static str,
    /// What is read, and how.
    pub case: &'static str,
    /// Threads that make rows.
    pub threads: usize,
    /// Time to open the shards.
    pub open_ms: f64,
    /// Tokens read.
    pub tokens: u64,
    /// Time that took.
    pub seconds: f64,
    /// Tokens over time.
    pub tokens_per_s: f64,
    /// That over what the 15M shape takes.
    pub times_15m: f64,
}

impl DataRow {
    fn new(case: &'static str, threads: usize, open_ms: f64, tokens: u64, seconds: f64, taken_per_s: f64) -> DataRow {
        let tokens_per_s = tokens as f64 / seconds;
        let times_15m = tokens_per_s / taken_per_s;
        DataRow { bench: "data", case, threads, open_ms, tokens, seconds, tokens_per_s, times_15m }
    }
}

/// A whole model at work.
#[derive(Clone, Debug, Serialize)]
pub struct ModelRow {
    /// `step` or `decode`.
    pub bench: &'static str,
    /// Shape and batch.
    pub case: String,
    /// Arithmetic of the ops.
    pub dtype: DType,
    /// Threads on the host.
    pub threads: usize,
    /// Parameters.
    pub params: u64,
    /// Times counted.
    pub runs: usize,
    /// Of a step, or of a token.
    pub median_ms: f64,
    /// The fastest.
    pub min_ms: f64,
    /// At the median.
    pub tokens_per_s: f64,
    /// As `esker plan` counts them.
    pub flops_per_token: f64,
    /// At the median.
    pub gflop_per_s: f64,
    /// Of the measured arithmetic peak of this dtype.
    pub share_of_peak: f64,
    /// Bytes of weights read a token in generation; null for a step.
    pub bytes_per_token: Option<u64>,
    /// Of the measured read bandwidth, in generation; null for a step.
    pub share_of_bandwidth: Option<f64>,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Row::Op(r) => writeln!(
                f,
                "{:<12} {:>11.1} us {:>8.1} GFLOP/s {:>7.1} GB/s {:>4.0} % of roofline   {}",
                r.op,
                r.median_us,
                r.gflop_per_s,
                r.gb_per_s,
                100.0 * r.roofline,
                r.case
            ),
            Row::Data(r) => writeln!(
                f,
                "{:<42} {} threads {:>8.2} M tok/s {:>8.0} x the 15M shape   opened in {:.2} ms",
                r.case,
                r.threads,
                r.tokens_per_s / 1e6,
                r.times_15m,
                r.open_ms
            ),
            Row::Model(r) => {
                write!(
                    f,
                    "{:<26} {:<5} {:>10.1} ms {:>9.1} tok/s {:>8.1} GFLOP/s {:>3.0} % of peak   {:.1} MFLOP a token",
                    r.case,
                    r.dtype.to_string(),
                    r.median_ms,
                    r.tokens_per_s,
                    r.gflop_per_s,
                    100.0 * r.share_of_peak,
                    r.flops_per_token / 1e6,
                )?;
                if let Some(share) = r.share_of_bandwidth {
                    write!(f, ", {:.0} % of read bandwidth", 100.0 * share)?;
                }
                writeln!(f)
            }
            Row::Tokenize(r) => r.fmt(f),
        }
    }
}

/// Times the cases of one op, or of all where `op` is empty, whose printed form contains `filter` and, where given, names
/// the dtype.
pub fn ops(
    s: &Stream,
    peaks: &Peaks,
    op: &str,
    filter: &str,
    dtype: Option<DType>,
    each: &mut dyn FnMut(Row) -> bool,
) -> Result<()> {
    // Some cases print a dtype as `bf16`, some as `Bf16`; the ops take one filter, so this one is applied to their rows.
    let named = dtype.map_or(String::new(), |d| d.to_string());
    let mut wanted = true;
    for entry in esker_kernels::bench::OPS.iter().filter(|entry| op.is_empty() || entry.name == op) {
        if wanted {
            entry.time(s, peaks, filter, |row| {
                if wanted && row.case.to_lowercase().contains(&named) {
                    wanted = each(Row::Op(row));
                }
            })?;
        }
    }
    Ok(())
}

/// What `esker bench NAME` takes.
pub fn names() -> impl Iterator<Item = &'static str> {
    esker_kernels::bench::OPS.iter().map(|entry| entry.name).chain(["step", "decode", "data", "tokenize", "gpu"])
}

/// What stands above the rows.
pub fn heading(s: &Stream, p: &Peaks, what: &str) -> String {
    let what = if what.is_empty() { "all ops" } else { what };
    format!(
        "{what}, {} threads, {}; peaks: f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, stream {:.1} GB/s, read {:.1} GB/s\n",
        s.threads(),
        esker_kernels::simd::level().name(),
        p.f32_flops_per_s / 1e9,
        p.bf16_flops_per_s / 1e9,
        p.stream_bytes_per_s / 1e9,
        p.read_bytes_per_s / 1e9
    )
}

/// Llama networks with tied embeddings, as many heads of keys as of queries.
fn llama(vocab: usize, context: usize, hidden: usize, layers: usize, heads: usize, ffn: usize) -> Config {
    Config {
        family: Family::Llama,
        vocab,
        context,
        hidden,
        layers,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        ffn,
        norm_eps: 1e-5,
        tied: true,
        init_std: 0.02,
        rope: Rope { theta: 10_000.0, scaling: None },
    }
}

/// Median and least of some times; there is at least one.
fn median_and_min(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}
