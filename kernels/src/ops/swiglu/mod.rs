//! The gated unit of the MLP.
//!
//! h = silu(g) · u                     silu(g) = g · σ(g),  σ(g) = 1 / (1 + exp(−g)); each element alone
//!
//! du = dh · silu(g)
//! dg = dh · u · σ(g) · (1 + g · (1 − σ(g)))
//!
//! σ is recomputed in backward. On the host exp(x) is a power of two times a polynomial of degree 5, the same operations
//! for each element at each level; its relative error stays below 2e-7 + 1e-7·|x|, and |x| is held to 87.
//!
//! Forward moves 3·rows·cols elements, backward 5: bound by memory where it is DRAM, by the division in cache.
//! Source: Shazeer 2020, arXiv:2002.05202; exp as Cody & Waite 1980 reduce it.

pub mod cases;
pub(crate) mod cpu;
mod gpu;
pub mod reference;

use crate::{Result, device::Stream, simd, tensor::Tensor};

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Tokens.
    pub rows: usize,
    /// Hidden width of the MLP.
    pub cols: usize,
}

/// Arguments of [`forward`]: all of one dtype, f32 or bf16.
#[derive(Debug)]
pub struct Forward<'a> {
    /// `[rows, cols]`: the gate
    pub g: &'a Tensor,
    /// `[rows, cols]`: what is gated
    pub u: &'a Tensor,
    /// `[rows, cols]`, set
    pub h: &'a mut Tensor,
}

/// Arguments of [`backward`]: all of one dtype, f32 or bf16.
#[derive(Debug)]
pub struct Backward<'a> {
    /// `[rows, cols]`, as forward read it
    pub g: &'a Tensor,
    /// `[rows, cols]`, as forward read it
    pub u: &'a Tensor,
    /// `[rows, cols]`
    pub dh: &'a Tensor,
    /// `[rows, cols]`, set
    pub dg: &'a mut Tensor,
    /// `[rows, cols]`, set
    pub du: &'a mut Tensor,
}

/// h = silu(g) · u
pub fn forward(s: &Stream, d: Dims, a: Forward<'_>) -> Result<()> {
    for (name, t) in [("g", a.g), ("u", a.u), ("h", &*a.h)] {
        check(name, d, t, a.g);
    }
    match s {
        Stream::Cpu(pool) => cpu::forward(pool, simd::level(), d, a),
        Stream::Gpu(gpu) => gpu::forward(gpu, d, a)?,
    }
    Ok(())
}

/// dg and du from dh.
pub fn backward(s: &Stream, d: Dims, a: Backward<'_>) -> Result<()> {
    for (name, t) in [("g", a.g), ("u", a.u), ("dh", a.dh), ("dg", &*a.dg), ("du", &*a.du)] {
        check(name, d, t, a.g);
    }
    match s {
        Stream::Cpu(pool) => cpu::backward(pool, simd::level(), d, a),
        Stream::Gpu(gpu) => gpu::backward(gpu, d, a)?,
    }
    Ok(())
}

fn check(name: &str, d: Dims, t: &Tensor, like: &Tensor) {
    assert!(t.len() >= d.rows * d.cols, "swiglu: {name} has {} of {}x{}", t.len(), d.rows, d.cols);
    assert_eq!(t.dtype(), like.dtype(), "swiglu: {name} beside g");
}
