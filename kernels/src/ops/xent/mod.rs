//! The head and its cross-entropy, in chunks of rows: the logits of a whole batch never exist.
//!
//! z_iv  = Σ_j n_ij w_vj                                i: rows (tokens), j: cols, v: vocab
//! nll_i = log Σ_v exp(z_iv) − z_{i,t_i}                 t_i: the target; 0 where it is [`IGNORE`]
//!
//! g_iv  = scale · (exp(z_iv) / Σ_u exp(z_iu) − [v = t_i])           0 where the target is ignored
//! dn_ij = Σ_v g_iv w_vj
//! dw_vj += Σ_i g_iv n_ij
//!
//! The loss of a step is Σ nll · scale, `scale` being one over the targets of the whole step. A chunk of rows goes
//! through all five lines before the next one: three products of 2·chunk·vocab·cols flops each, and a softmax of
//! chunk·vocab elements, of which each is read and written a few times near the core. Chunks start anew with each
//! *grain* of rows, so the sums of `dw` have one order whatever the number of rows in a call. In a bf16 run the logits
//! and the softmax are f32, and the gradient of the logits is rounded to bf16 for its two products.
//!
//! [`rank`] scores without targets: it leaves the logits of some rows, log Σ_v exp(z_iv) and the v of the largest z_iv.
//!
//! 6·rows·vocab·cols flops in training: bound by arithmetic, unless a chunk has so few rows that moving `w` and `dw`
//! once a chunk costs more; see [`chunk_rows`].
//! Source: the definition, as `torch.nn.functional.cross_entropy` after a linear layer without bias. Chunks: the idea of
//! Hsu et al. 2024, arXiv:2410.10989.

mod cpu;
mod gpu;
mod softmax;

pub mod cases;
pub mod reference;

use super::matmul;
use crate::{Result, device::Stream, tensor::Tensor};

/// The target of a row that is not counted.
pub const IGNORE: u32 = u32::MAX;

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Tokens.
    pub rows: usize,
    /// Width of the residual stream.
    pub cols: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Rows whose logits exist at one time; part of what fixes the bits of `dw`. See [`chunk_rows`].
    pub chunk: usize,
}

/// Arguments of [`train`].
#[derive(Debug)]
pub struct Train<'a> {
    /// `[rows, cols]` f32 or bf16: the residual stream after its last norm
    pub n: &'a Tensor,
    /// `[vocab, cols]`, dtype of `n`
    pub w: &'a Tensor,
    /// `[rows]` u32, each below `vocab` or [`IGNORE`]
    pub targets: &'a Tensor,
    /// `[rows]` f32, set
    pub nll: &'a mut Tensor,
    /// `[rows, cols]` f32 or dtype of `n`, set
    pub dn: &'a mut Tensor,
    /// `[vocab, cols]` f32, added to
    pub dw: &'a mut Tensor,
    /// What every gradient is multiplied by: one over the targets of the whole step.
    pub scale: f32,
    /// `[chunk, vocab]` f32, scratch
    pub logits: &'a mut Tensor,
}

/// Arguments of [`score`].
#[derive(Debug)]
pub struct Score<'a> {
    /// `[rows, cols]` f32 or bf16
    pub n: &'a Tensor,
    /// `[vocab, cols]`, dtype of `n`
    pub w: &'a Tensor,
    /// `[rows]` u32, each below `vocab` or [`IGNORE`]
    pub targets: &'a Tensor,
    /// `[rows]` f32, set
    pub nll: &'a mut Tensor,
    /// `[chunk, vocab]` f32, scratch
    pub logits: &'a mut Tensor,
}

/// Arguments of [`logits`].
#[derive(Debug)]
pub struct Logits<'a> {
    /// `[rows, cols]` f32 or bf16
    pub n: &'a Tensor,
    /// `[vocab, cols]`, dtype of `n`
    pub w: &'a Tensor,
    /// `[rows, vocab]` f32, set
    pub logits: &'a mut Tensor,
}

/// Arguments of [`rank`].
#[derive(Debug)]
pub struct Rank<'a> {
    /// `[rows, cols]` f32 or bf16
    pub n: &'a Tensor,
    /// `[vocab, cols]`, dtype of `n`
    pub w: &'a Tensor,
    /// `[rows, vocab]` f32, set
    pub logits: &'a mut Tensor,
    /// `[rows]` f32, set: log Σ_v exp(z_iv); NaN where a logit is NaN or +∞
    pub lse: &'a mut Tensor,
    /// `[rows]` u32, set: the v of the largest z_iv, the lowest of equals
    pub best: &'a mut Tensor,
}

/// Loss of each row, gradient of `n`, and the gradient of `w` added to `dw`, one grain of rows after another.
pub fn train(s: &Stream, d: Dims, a: Train<'_>, grain: usize) -> Result<()> {
    assert!(grain > 0 && d.rows.is_multiple_of(grain), "xent: {} rows in grains of {grain}", d.rows);
    check(d, a.n, a.w, a.targets, a.nll, a.logits);
    assert!(a.dn.len() >= d.rows * d.cols, "xent: dn has {} of {}x{}", a.dn.len(), d.rows, d.cols);
    assert!(a.dw.len() >= d.vocab * d.cols, "xent: dw has {} of {}x{}", a.dw.len(), d.vocab, d.cols);
    match s {
        Stream::Cpu(pool) => cpu::train(pool, d, a, grain),
        Stream::Gpu(gpu) => gpu::train(gpu, d, a, grain)?,
    }
    Ok(())
}

/// Loss of each row alone: the same bits as [`train`]'s.
pub fn score(s: &Stream, d: Dims, a: Score<'_>) -> Result<()> {
    check(d, a.n, a.w, a.targets, a.nll, a.logits);
    match s {
        Stream::Cpu(pool) => cpu::score(pool, d, a),
        Stream::Gpu(gpu) => gpu::score(gpu, d, a)?,
    }
    Ok(())
}

/// The logits of a few rows, for generation, by [`matmul::matvec`] and so with its bits; `d.chunk` is not used.
pub fn logits(s: &Stream, d: Dims, a: Logits<'_>) -> Result<()> {
    let product = matmul::Product { a: a.n, b: a.w, c: a.logits, put: matmul::Put::Set };
    matmul::matvec(s, matmul::Dims { m: d.rows, n: d.vocab, k: d.cols }, product)
}

/// The logits of some rows with the logarithm of their sum of exponentials and the likeliest of each: log-probabilities
/// of any tokens follow. `d.chunk` is not used; rows have the bits of [`score`].
pub fn rank(s: &Stream, d: Dims, a: Rank<'_>) -> Result<()> {
    assert!(d.vocab > 0, "xent: {d:?}");
    assert!(a.logits.len() >= d.rows * d.vocab, "xent: logits has {} of {}x{}", a.logits.len(), d.rows, d.vocab);
    assert!(a.lse.len() >= d.rows && a.best.len() >= d.rows, "xent: lse and best for {} rows", d.rows);
    let product = matmul::Product { a: a.n, b: a.w, c: a.logits, put: matmul::Put::Set };
    matmul::nt(s, matmul::Dims { m: d.rows, n: d.vocab, k: d.cols }, product)?;
    match s {
        Stream::Cpu(pool) => cpu::rank(pool, d, a),
        Stream::Gpu(gpu) => gpu::rank(gpu, d, a)?,
    }
    Ok(())
}

/// A good chunk for grains of `grain_rows` rows: the grain in equal parts, each with at most about 64 MiB of logits.
///
/// Longer chunks are faster, since each packs `w` and moves `dw` once: on one core of an EPYC (Zen 4) that others also
/// used, 512 rows of 768 x 32,000 took 470, 415 and 393 ms in bf16 with chunks of 128, 256 and 512, and 914, 791 and
/// 794 ms in f32. So a chunk has at least 128 rows, however large the vocabulary.
pub fn chunk_rows(vocab: usize, grain_rows: usize) -> usize {
    let most = ((64 << 20) / (4 * vocab.max(1))).max(128);
    let parts = grain_rows.div_ceil(most).max(1);
    grain_rows.div_ceil(parts).next_multiple_of(16).min(grain_rows).max(1)
}

fn check(d: Dims, n: &Tensor, w: &Tensor, targets: &Tensor, nll: &Tensor, logits: &Tensor) {
    assert!(d.chunk > 0 && d.vocab > 0, "xent: {d:?}");
    assert_eq!(n.dtype(), w.dtype(), "xent: dtypes of n and w");
    assert!(n.len() >= d.rows * d.cols, "xent: n has {} of {}x{}", n.len(), d.rows, d.cols);
    assert!(w.len() >= d.vocab * d.cols, "xent: w has {} of {}x{}", w.len(), d.vocab, d.cols);
    assert!(nll.len() >= d.rows, "xent: nll has {} of {}", nll.len(), d.rows);
    let chunk = d.chunk.min(d.rows);
    assert!(logits.len() >= chunk * d.vocab, "xent: logits has {} of {chunk}x{}", logits.len(), d.vocab);
    assert!(targets.len() >= d.rows, "xent: targets has {} of {}", targets.len(), d.rows);
    for (i, &t) in targets.u32()[..d.rows].iter().enumerate() {
        assert!((t as usize) < d.vocab || t == IGNORE, "xent: target {t} at row {i} of a vocabulary of {}", d.vocab);
    }
}
