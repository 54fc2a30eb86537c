//! Root-mean-square norm of each row.
//!
//! r_i  = 1 / sqrt(mean_j x_ij² + eps)                i: rows, j: cols
//! y_ij = x_ij · r_i · w_j
//!
//! dw_j  += Σ_i dy_ij · x_ij · r_i
//! dx_ij  = r_i · (g_ij − x_ij · r_i² · mean_k g_ik x_ik),   g_ij = dy_ij · w_j
//!
//! On the residual stream x and dx are f32 and dx is added to; [`add_forward`] first adds what a block hands on:
//! sum_ij = x_ij + delta_ij, y = norm(sum). On queries and keys (one row a head) all are of the run's dtype and dx is
//! set. Arithmetic is f32 throughout.
//!
//! **Order of sums.** A row is summed in 32 lanes, element j in lane j mod 32, the lanes by halves. dw takes blocks of
//! rows in order, each block summed row by row; blocks start anew at each *grain* of rows and their length is a
//! function of cols. So a row's bits depend on the row alone, and a call over three grains gives those of three calls.
//!
//! Forward moves 2·rows·cols elements, with the sum 4, backward 3 and one more where dx is added to: bound by memory.
//! Source: Zhang & Sennrich 2019, arXiv:1910.07467; eps as in Llama.

pub mod cases;
pub(crate) mod cpu;
mod gpu;
pub mod reference;

use crate::{
    Result,
    device::Stream,
    ops::matmul::Put,
    simd,
    tensor::{DType, Tensor},
};

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Tokens, or tokens times heads.
    pub rows: usize,
    /// Length of what is normed: the width of the stream, or of a head.
    pub cols: usize,
}

/// Arguments of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// `[rows, cols]` f32 or bf16
    pub x: &'a Tensor,
    /// `[cols]` f32
    pub w: &'a Tensor,
    /// `[rows, cols]` f32 or bf16, set; f32 only if x is
    pub y: &'a mut Tensor,
    /// `[rows]` f32, set: kept for backward
    pub r: &'a mut Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Arguments of [`add_forward`].
#[derive(Debug)]
pub struct AddForward<'a> {
    /// `[rows, cols]` f32: the residual stream
    pub x: &'a Tensor,
    /// `[rows, cols]` f32 or bf16: what a block adds to it
    pub delta: &'a Tensor,
    /// `[rows, cols]` f32, set: the stream from here on
    pub sum: &'a mut Tensor,
    /// `[cols]` f32
    pub w: &'a Tensor,
    /// `[rows, cols]`, dtype of delta, set
    pub y: &'a mut Tensor,
    /// `[rows]` f32, set: kept for backward
    pub r: &'a mut Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Arguments of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// `[rows, cols]` f32 or bf16, as forward read it
    pub x: &'a Tensor,
    /// `[cols]` f32
    pub w: &'a Tensor,
    /// `[rows]` f32, from forward
    pub r: &'a Tensor,
    /// `[rows, cols]` f32 or bf16; f32 only if x is
    pub dy: &'a Tensor,
    /// `[rows, cols]`, dtype of x: set, or added to if f32
    pub dx: &'a mut Tensor,
    /// `[cols]` f32, added to
    pub dw: &'a mut Tensor,
    /// Whether dx is overwritten or added to.
    pub put: Put,
}

/// y = norm(x)
pub fn forward(s: &Stream, d: Dims, a: Forward<'_>) -> Result<()> {
    check("x", d.rows * d.cols, a.x);
    check("w", d.cols, a.w);
    check("y", d.rows * d.cols, a.y);
    check("r", d.rows, a.r);
    match s {
        Stream::Cpu(pool) => cpu::forward(pool, simd::level(), d, a),
        Stream::Gpu(gpu) => gpu::forward(gpu, d, a)?,
    }
    Ok(())
}

/// sum = x + delta, y = norm(sum)
pub fn add_forward(s: &Stream, d: Dims, a: AddForward<'_>) -> Result<()> {
    check("x", d.rows * d.cols, a.x);
    check("delta", d.rows * d.cols, a.delta);
    check("sum", d.rows * d.cols, a.sum);
    check("w", d.cols, a.w);
    check("y", d.rows * d.cols, a.y);
    check("r", d.rows, a.r);
    match s {
        Stream::Cpu(pool) => cpu::add_forward(pool, simd::level(), d, a),
        Stream::Gpu(gpu) => gpu::add_forward(gpu, d, a)?,
    }
    Ok(())
}

/// dx and dw from dy; `grain`: rows whose sum dw takes together, of which `rows` is a multiple.
pub fn backward(s: &Stream, d: Dims, a: Backward<'_>, grain: usize) -> Result<()> {
    check("x", d.rows * d.cols, a.x);
    check("w", d.cols, a.w);
    check("r", d.rows, a.r);
    check("dy", d.rows * d.cols, a.dy);
    check("dx", d.rows * d.cols, a.dx);
    check("dw", d.cols, a.dw);
    assert!(grain > 0 && d.rows.is_multiple_of(grain), "rmsnorm: {} rows in grains of {grain}", d.rows);
    assert!(a.put == Put::Set || a.dx.dtype() == DType::F32, "rmsnorm: only an f32 dx is added to");
    match s {
        Stream::Cpu(pool) => cpu::backward(pool, simd::level(), d, a, grain),
        Stream::Gpu(gpu) => gpu::backward(gpu, d, a, grain)?,
    }
    Ok(())
}

fn check(name: &str, wanted: usize, t: &Tensor) {
    assert!(t.len() >= wanted, "rmsnorm: {name} has {} of {wanted}", t.len());
}
