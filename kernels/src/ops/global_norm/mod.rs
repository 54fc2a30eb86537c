//! The norm over all gradients, and the factor that clips it.
//!
//! sum  = Σ_i t_i²                        of one tensor; the caller adds tensors up, in a fixed order
//! clip = min(1, max / (sqrt(sum) + 1e-6))
//!
//! Squares and sums are f64: exact squares, no overflow below 1e154. A tensor is cut into chunks of 2^16 elements, a
//! chunk is summed in 32 lanes (element i in lane i mod 32, the lanes joined by halves), chunks are added in order: the
//! same bits whatever the number of threads.
//!
//! Reads 4 bytes an element: bound by memory.
//! Source: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063; 1e-6 as in `torch.nn.utils.clip_grad_norm_`.

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

/// Σ t_i² over the first `len` elements of `t`, which is f32.
pub fn sum_squares(s: &Stream, t: &Tensor, len: usize) -> Result<f64> {
    assert!(t.len() >= len, "global_norm: t has {} of {len}", t.len());
    assert_eq!(t.dtype(), DType::F32, "global_norm: dtype of t");
    Ok(match s {
        Stream::Cpu(pool) => cpu::sum_squares(pool, simd::level(), &t.f32()[..len]),
        Stream::Gpu(gpu) => gpu::sum_squares(gpu, t, len)?,
    })
}

/// Σ over tensors, one after another, of Σ t_i² of all their elements, which are f32. A device is waited for once.
pub fn sum_squares_of<'a>(s: &Stream, mut tensors: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    match s {
        Stream::Cpu(_) => tensors.try_fold(0.0, |sum, t| Ok(sum + sum_squares(s, t, t.len())?)),
        Stream::Gpu(gpu) => gpu::sum_squares_of(gpu, tensors),
    }
}

/// What gradients of norm `norm` are multiplied by so that it does not pass `max`. A norm of NaN gives NaN.
pub fn clip_scale(norm: f64, max: f64) -> f32 {
    let scale = max / (norm + 1e-6);
    (if scale > 1.0 { 1.0 } else { scale }) as f32
}
