//! Between the dtypes of a run: rounding, widening, and adding gradients up.
//!
//! convert: to_i = from_i, rounded to the nearest bf16 (ties to even) where `to` is the narrower; NaN stays NaN
//! add:     to_i += from_i
//!
//! An f32 past the largest bf16 by half a step or more becomes infinite, a subnormal one rounds like any other; a NaN
//! keeps its sign and the upper half of its payload and is made quiet. Widening is exact.
//!
//! convert moves each element once in and once out, 6 bytes between f32 and bf16; add moves 12. Both are bound by
//! memory. What every op needs to read and write elements of either dtype is in `element.rs`.
//! Source: IEEE 754-2019, roundTiesToEven.

pub mod cases;
pub(crate) mod cpu;
pub(crate) mod element;
pub(crate) mod gpu;
pub mod reference;

use crate::{
    Result,
    device::Stream,
    simd,
    tensor::{DType, Tensor},
};

/// Writes the first `len` elements of `from`, f32 or bf16, into the head of `to`, f32 or bf16.
pub fn convert(s: &Stream, len: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
    assert!(from.len() >= len, "cast: from has {} of {len}", from.len());
    assert!(to.len() >= len, "cast: to has {} of {len}", to.len());
    match s {
        Stream::Cpu(pool) => cpu::convert(pool, simd::level(), len, from, to),
        Stream::Gpu(gpu) => gpu::convert(gpu, len, from, to)?,
    }
    Ok(())
}

/// Adds the first `len` elements of `from` to those of `to`; both are f32.
pub fn add(s: &Stream, len: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
    assert!(from.len() >= len, "cast: from has {} of {len}", from.len());
    assert!(to.len() >= len, "cast: to has {} of {len}", to.len());
    assert!(from.dtype() == DType::F32 && to.dtype() == DType::F32, "cast: only f32 is added");
    match s {
        Stream::Cpu(pool) => cpu::add(pool, simd::level(), len, from, to),
        Stream::Gpu(gpu) => gpu::add(gpu, len, from, to)?,
    }
    Ok(())
}
