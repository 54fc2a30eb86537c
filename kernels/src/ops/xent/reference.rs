//! The formula, one thread, in `f64`.

use super::{Dims, IGNORE};

/// `z [rows, vocab]`.
pub fn logits(d: Dims, n: &[f64], w: &[f64]) -> Vec<f64> {
    let mut z = vec![0.0; d.rows * d.vocab];
    for i in 0..d.rows {
        for v in 0..d.vocab {
            for j in 0..d.cols {
                z[i * d.vocab + v] += n[i * d.cols + j] * w[v * d.cols + j];
            }
        }
    }
    z
}

/// `nll [rows]`.
pub fn forward(d: Dims, n: &[f64], w: &[f64], targets: &[u32]) -> Vec<f64> {
    let z = logits(d, n, w);
    (0..d.rows)
        .map(|i| match targets[i] {
            IGNORE => 0.0,
            t => {
                let z = &z[i * d.vocab..][..d.vocab];
                log_sum_exp(z) - z[t as usize]
            }
        })
        .collect()
}

/// log Σ exp `[rows]` and the place of the largest logit `[rows]`.
pub fn rank(d: Dims, n: &[f64], w: &[f64]) -> (Vec<f64>, Vec<usize>) {
    let z = logits(d, n, w);
    let first_largest = |z: &[f64]| (0..z.len()).fold(0, |best, v| if z[v] > z[best] { v } else { best });
    z.chunks_exact(d.vocab).map(|z| (log_sum_exp(z), first_largest(z))).unzip()
}

/// `dn [rows, cols]`; adds to `dw [vocab, cols]`.
pub fn backward(d: Dims, n: &[f64], w: &[f64], targets: &[u32], scale: f64, dw: &mut [f64]) -> Vec<f64> {
    let z = logits(d, n, w);
    let mut dn = vec![0.0; d.rows * d.cols];
    for i in 0..d.rows {
        if targets[i] == IGNORE {
            continue;
        }
        let z = &z[i * d.vocab..][..d.vocab];
        let lse = log_sum_exp(z);
        for v in 0..d.vocab {
            let hit = if v == targets[i] as usize { 1.0 } else { 0.0 };
            let g = scale * ((z[v] - lse).exp() - hit);
            for j in 0..d.cols {
                dn[i * d.cols + j] += g * w[v * d.cols + j];
                dw[v * d.cols + j] += g * n[i * d.cols + j];
            }
        }
    }
    dn
}

fn log_sum_exp(z: &[f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}
