//! The softmax of one row.

use super::IGNORE;

/// Loss of a row of logits; `z` is left as it was.
pub(super) fn loss(z: &[f32], target: u32) -> f32 {
    if target == IGNORE {
        return 0.0;
    }
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = z.iter().map(|z| (z - max).exp()).sum();
    sum.ln() + (max - z[target as usize])
}

/// Loss of a row of logits, which becomes their gradient times `scale`.
pub(super) fn gradient(z: &mut [f32], target: u32, scale: f32) -> f32 {
    if target == IGNORE {
        z.fill(0.0);
        return 0.0;
    }
    let nll = loss(z, target);
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = z.iter().map(|z| (z - max).exp()).sum();
    for z in z.iter_mut() {
        *z = (*z - max).exp() * (scale / sum);
    }
    z[target as usize] -= scale;
    nll
}
