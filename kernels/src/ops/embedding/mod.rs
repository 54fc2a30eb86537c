//! Token embedding: a row of the table for each token.
//!
//! x_ij        = w_{id_i, j}            i: rows (tokens), j: cols
//! dw_{id_i,j} += dx_ij                 one token after another, in the order of i
//!
//! `w` has the run's dtype, the residual stream `x` and all gradients are f32. A token's rows are added one by one, so
//! the sum of a vocabulary row is the same whatever the number of threads or of rows in a call.
//!
//! Forward moves rows·cols elements of `w` in and as many f32 out; backward reads rows·cols f32 and reads and writes as
//! many of `dw`. Both are bound by memory.
//! Source: the definition, as `torch.nn.functional.embedding`.

mod cpu;
mod gpu;

pub mod cases;
pub mod reference;

use crate::{
    Result,
    device::Stream,
    tensor::{DType, Tensor},
};

/// Sizes of a call.
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    /// Tokens.
    pub rows: usize,
    /// Width of the residual stream.
    pub cols: usize,
    /// Rows of the table.
    pub vocab: usize,
}

/// Arguments of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// `[rows]` u32, each below `vocab`
    pub ids: &'a Tensor,
    /// `[vocab, cols]` f32 or bf16
    pub w: &'a Tensor,
    /// `[rows, cols]` f32, set
    pub x: &'a mut Tensor,
}

/// Arguments of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// `[rows]` u32, each below `vocab`
    pub ids: &'a Tensor,
    /// `[rows, cols]` f32
    pub dx: &'a Tensor,
    /// `[vocab, cols]` f32, added to
    pub dw: &'a mut Tensor,
}

/// Looks the tokens up.
pub fn forward(s: &Stream, d: Dims, a: Forward<'_>) -> Result<()> {
    check(d, a.ids, a.w);
    assert!(a.x.len() >= d.rows * d.cols, "embedding: x has {} of {}x{}", a.x.len(), d.rows, d.cols);
    match s {
        Stream::Cpu(pool) => cpu::forward(pool, d, a),
        Stream::Gpu(gpu) => gpu::forward(gpu, d, a)?,
    }
    Ok(())
}

/// Adds the gradient of each token's row to the table's.
pub fn backward(s: &Stream, d: Dims, a: Backward<'_>) -> Result<()> {
    check(d, a.ids, a.dw);
    assert_eq!(a.dw.dtype(), DType::F32, "embedding: dtype of dw");
    assert!(a.dx.len() >= d.rows * d.cols, "embedding: dx has {} of {}x{}", a.dx.len(), d.rows, d.cols);
    match s {
        Stream::Cpu(pool) => cpu::backward(pool, d, a),
        Stream::Gpu(gpu) => gpu::backward(gpu, d, a)?,
    }
    Ok(())
}

/// Lengths, and that every id names a row of the table: the loader has seen to it, so here it would be our bug.
fn check(d: Dims, ids: &Tensor, table: &Tensor) {
    assert!(ids.len() >= d.rows, "embedding: ids has {} of {}", ids.len(), d.rows);
    assert!(table.len() >= d.vocab * d.cols, "embedding: table has {} of {}x{}", table.len(), d.vocab, d.cols);
    for (i, &id) in ids.u32()[..d.rows].iter().enumerate() {
        assert!((id as usize) < d.vocab, "embedding: id {id} at row {i}, the table has {}", d.vocab);
    }
}
