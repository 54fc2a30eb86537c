//! AdamW: one update of weights, moments and the weights' bf16 copy, in one pass over memory.
//!
//! g' = scale · g
//! m  ← m + (1 − beta1) · (g' − m)
//! v  ← beta2 · v + (1 − beta2) · g'²
//! w  ← (1 − lr · weight_decay) · w − lr / (1 − beta1^t) · m / (sqrt(v) / sqrt(1 − beta2^t) + eps)
//!
//! The factors that do not depend on the element are computed once in f64 and rounded to f32. Each element then takes
//! the operations of the page in f32, each rounded apart, with no fused multiply-add: the same bits at every level and
//! on every device. m, v and w are f32; the copy is rounded to nearest.
//!
//! Reads 16 bytes a parameter and writes 12, 2 more for the copy, 4 more to zero the gradient: bound by memory.
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101, in the order of operations of `torch.optim.AdamW`.

pub mod cases;
pub(crate) mod cpu;
mod gpu;
pub mod reference;
pub mod split;

use crate::{
    Result,
    device::Stream,
    simd,
    tensor::{DType, Tensor},
};

/// Tensors of [`step`].
#[derive(Debug)]
pub struct Step<'a> {
    /// `[len]` f32: the master copy
    pub w: &'a mut Tensor,
    /// `[len]` f32: the gradient; left at zero if `zero_grad`
    pub g: &'a mut Tensor,
    /// `[len]` f32: mean of gradients
    pub m: &'a mut Tensor,
    /// `[len]` f32: mean of squared gradients
    pub v: &'a mut Tensor,
    /// `[len]` bf16, set to w: what a bf16 run reads
    pub out: Option<&'a mut Tensor>,
}

/// Numbers of [`step`], one for the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of m.
    pub beta1: f64,
    /// Decay of v.
    pub beta2: f64,
    /// Added to the root of v.
    pub eps: f64,
    /// Share of w, times lr, that is taken away; 0 where weights do not decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub t: u64,
    /// Multiplies g: the clip's factor.
    pub scale: f32,
    /// Whether g is left at zero.
    pub zero_grad: bool,
}

/// What an element's update multiplies by, in f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factors {
    pub scale: f32,
    pub one_less_beta1: f32,
    pub beta2: f32,
    pub one_less_beta2: f32,
    pub keep: f32,
    pub rate: f32,
    pub root: f32,
    pub eps: f32,
}

impl Hyper {
    pub(crate) fn factors(&self) -> Factors {
        assert!(self.t >= 1, "adamw: steps count from 1");
        let t = self.t as f64;
        Factors {
            scale: self.scale,
            one_less_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_less_beta2: (1.0 - self.beta2) as f32,
            keep: (1.0 - self.lr * self.weight_decay) as f32,
            rate: (self.lr / (1.0 - self.beta1.powf(t))) as f32,
            root: (1.0 / (1.0 - self.beta2.powf(t)).sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

/// Updates the first `len` elements.
pub fn step(s: &Stream, len: usize, a: Step<'_>, h: Hyper) -> Result<()> {
    for (name, t) in [("w", &*a.w), ("g", &*a.g), ("m", &*a.m), ("v", &*a.v)] {
        assert!(t.len() >= len, "adamw: {name} has {} of {len}", t.len());
        assert_eq!(t.dtype(), DType::F32, "adamw: dtype of {name}");
    }
    if let Some(out) = &a.out {
        assert!(out.len() >= len, "adamw: out has {} of {len}", out.len());
        assert_eq!(out.dtype(), DType::Bf16, "adamw: dtype of out");
    }
    match s {
        Stream::Cpu(pool) => cpu::step(pool, simd::level(), len, a, h),
        Stream::Gpu(gpu) => gpu::step(gpu, len, a, h)?,
    }
    Ok(())
}
