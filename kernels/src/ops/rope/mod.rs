//! Rotary position embedding: pairs of a head's coordinates turn by an angle that grows with the position.
//!
//! f_k = theta^(−2k / D)                         k < D/2: pairs, D: head size; then scaled, see [`Scaling`]
//! c_tk = cos(t · f_k),  s_tk = sin(t · f_k)     t: position
//!
//! y_k       = x_k · c_tk − x_{k+D/2} · s_tk     for each token and head; k pairs with k + D/2
//! y_{k+D/2} = x_{k+D/2} · c_tk + x_k · s_tk
//!
//! Backward turns back: dx is forward of dy with −s. Both work in place. The table of c and s is computed once, in f64,
//! and kept in f32.
//!
//! Moves 2·rows·heads·D elements: bound by memory.
//! Source: Su et al. 2021, arXiv:2104.09864; pairs in two halves as in GPT-NeoX and Hugging Face's Llama. Scaling:
//! Chen et al. 2023, arXiv:2306.15595 (linear); Llama 3.1's reference code (by wavelength).

pub mod cases;
pub(crate) mod cpu;
mod gpu;
pub mod reference;

use crate::{
    Result,
    device::Stream,
    simd,
    tensor::{DType, Tensor},
};

/// Which frequencies: base and scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric row of frequencies: 10000 in Llama 2, 500000 in Llama 3.
    pub theta: f64,
    /// How frequencies are lowered for contexts longer than those first trained on.
    pub scaling: Scaling,
}

/// How frequencies are lowered for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// f_k becomes f_k / factor.
        factor: f64,
    },
    /// By wavelength λ = 2π / f_k against the context L first trained on: f_k stays where λ < L / high_freq_factor,
    /// becomes f_k / factor where λ > L / low_freq_factor, and is blended in between, linearly in L / λ.
    Llama3 {
        /// Divides the lowest frequencies.
        factor: f64,
        /// Turns within L below which a frequency is fully scaled.
        low_freq_factor: f64,
        /// Turns within L above which a frequency is left alone.
        high_freq_factor: f64,
        /// L, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// f_k of each pair, in f64: `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> impl Iterator<Item = f64> {
        let rope = *self;
        (0..head_dim / 2).map(move |k| rope.scale(rope.theta.powf(-2.0 * k as f64 / head_dim as f64)))
    }

    fn scale(&self, f: f64) -> f64 {
        match self.scaling {
            Scaling::None => f,
            Scaling::Linear { factor } => f / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let turns = original_max_position_embeddings as f64 * f / std::f64::consts::TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - kept) * f / factor + kept * f
            }
        }
    }
}

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Tokens of all sequences.
    pub rows: usize,
    /// Tokens of one sequence: row i stands at position `start + i % seq`.
    pub seq: usize,
    /// Heads of a token.
    pub heads: usize,
    /// D, even.
    pub head_dim: usize,
}

/// Where [`table`] writes.
#[derive(Debug)]
pub struct Table<'a> {
    /// `[positions, head_dim / 2]` f32, set
    pub cos: &'a mut Tensor,
    /// `[positions, head_dim / 2]` f32, set
    pub sin: &'a mut Tensor,
}

/// Arguments of [`forward`] and [`backward`].
#[derive(Debug)]
pub struct Rotate<'a> {
    /// `[rows, heads, head_dim]` f32 or bf16, turned in place
    pub x: &'a mut Tensor,
    /// `[at least start + seq, head_dim / 2]` f32
    pub cos: &'a Tensor,
    /// `[at least start + seq, head_dim / 2]` f32
    pub sin: &'a Tensor,
    /// Position of the first token of each sequence.
    pub start: usize,
}

/// Fills cos and sin for positions `0..positions`.
pub fn table(s: &Stream, rope: &Rope, positions: usize, head_dim: usize, t: Table<'_>) -> Result<()> {
    assert!(head_dim.is_multiple_of(2), "rope: a head of {head_dim}");
    let len = positions * head_dim / 2;
    assert!(t.cos.len() >= len, "rope: cos has {} of {len}", t.cos.len());
    assert!(t.sin.len() >= len, "rope: sin has {} of {len}", t.sin.len());
    match s {
        Stream::Cpu(pool) => cpu::table(pool, rope, positions, head_dim, t),
        Stream::Gpu(gpu) => cpu::table(gpu.host(), rope, positions, head_dim, t),
    }
    Ok(())
}

/// Turns each pair by its position's angle.
pub fn forward(s: &Stream, d: Dims, a: Rotate<'_>) -> Result<()> {
    check(d, &a);
    match s {
        Stream::Cpu(pool) => cpu::rotate(pool, simd::level(), d, a, 1.0),
        Stream::Gpu(gpu) => gpu::rotate(gpu, d, a, 1.0)?,
    }
    Ok(())
}

/// Turns each pair back: the gradient of x from that of y, in place.
pub fn backward(s: &Stream, d: Dims, a: Rotate<'_>) -> Result<()> {
    check(d, &a);
    match s {
        Stream::Cpu(pool) => cpu::rotate(pool, simd::level(), d, a, -1.0),
        Stream::Gpu(gpu) => gpu::rotate(gpu, d, a, -1.0)?,
    }
    Ok(())
}

fn check(d: Dims, a: &Rotate<'_>) {
    let (x, table) = (d.rows * d.heads * d.head_dim, (a.start + d.seq) * d.head_dim / 2);
    assert!(d.head_dim.is_multiple_of(2), "rope: a head of {}", d.head_dim);
    assert!(a.x.len() >= x, "rope: x has {} of {x}", a.x.len());
    assert!(a.cos.len() >= table, "rope: cos has {} of {table}", a.cos.len());
    assert!(a.sin.len() >= table, "rope: sin has {} of {table}", a.sin.len());
    assert!(a.x.dtype() != DType::U32, "rope: dtype of x");
}
