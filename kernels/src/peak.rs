//! What this machine can do at most, measured: the roofs that every bench row and progress line is set against.

use crate::tensor::DType;
use serde::Serialize;

/// Measured ceilings of a stream, all threads together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Fused multiply-adds in f32, a multiply-add counting two.
    pub f32_flops_per_s: f64,
    /// The same with bf16 inputs and f32 sums; equal to f32's where the CPU has no such instruction.
    pub bf16_flops_per_s: f64,
    /// Bytes read and written a second by a stream over memory far larger than the caches.
    pub stream_bytes_per_s: f64,
}

impl Peaks {
    /// The arithmetic peak for inputs of `dtype`.
    pub fn flops(&self, dtype: DType) -> f64 {
        match dtype {
            DType::Bf16 => self.bf16_flops_per_s,
            _ => self.f32_flops_per_s,
        }
    }
}
