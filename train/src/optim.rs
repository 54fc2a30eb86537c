//! The update: norm of the whole gradient, clip, AdamW, fresh copies for the ops.
//!
//! ```text
//! ‖g‖   = √ Σ over tensors, in their fixed order, Σ g²          f64
//! clip  = min(1, max / (‖g‖ + 1e-6))                            1 when optim.clip_norm is 0
//! w    ← AdamW(w, clip · g, m, v; lr of the step, t updates)    decay on matrices alone, the embedding among them
//! ```
//!
//! The gradients are zero afterwards. A step that the guard skips changes nothing but them.

use crate::config::Run;
use crate::state::State;
use esker_kernels::Result;
use esker_kernels::device::Stream;
use esker_kernels::ops::{adamw, global_norm};
use esker_kernels::tensor::DType;
use esker_model::Weights;

/// The norm over all tensors of `grads`.
pub fn norm(s: &Stream, grads: &Weights) -> Result<f64> {
    Ok(global_norm::sum_squares_of(s, grads.each().map(|(_, g)| g))?.sqrt())
}

/// What a gradient of norm `norm` is multiplied with.
pub fn clip(run: &Run, norm: f64) -> f32 {
    match run.optim.clip_norm {
        0.0 => 1.0,
        max => global_norm::clip_scale(norm, max),
    }
}

/// Changes the weights by their gradients, `scale` times, at learning rate `lr`; `t` counts updates from 1.
pub fn update(s: &Stream, run: &Run, state: &mut State, lr: f64, t: u64, scale: f32) -> Result<()> {
    let o = &run.optim;
    let State { master, low, compute, m, v, grads, .. } = state;
    let mut lows = low.iter_mut().flatten();
    let mut copies = compute.as_mut().map(|copy| copy.each_mut());
    let sets = master.each_mut().zip(grads.sum.each_mut()).zip(m.each_mut()).zip(v.each_mut());
    for ((((name, w), (_, g)), (_, m)), (_, v)) in sets {
        let weight_decay = if name.is_matrix() { o.weight_decay } else { 0.0 };
        let hyper =
            adamw::Hyper { lr, beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay, t, scale, zero_grad: true };
        let mut copy = copies.as_mut().and_then(Iterator::next).map(|(_, copy)| copy);
        let len = w.len();
        if name.is_matrix()
            && let Some(low) = lows.next()
        {
            adamw::split::step(s, len, adamw::split::Step { high: w, low, g, m, v }, hyper)?;
            continue;
        }
        // The op writes bf16 copies itself; an f32 one, of a norm, is copied.
        let out = copy.take_if(|copy| copy.dtype() == DType::Bf16);
        adamw::step(s, len, adamw::Step { w: &mut *w, g, m, v, out }, hyper)?;
        if let Some(copy) = copy {
            s.copy(w, copy, len)?;
        }
    }
    Ok(())
}
