//! The formula, one thread, in `f64`; the frequencies case by case, as Llama 3.1's own code has them.

use super::{Dims, Rope, Scaling};
use std::f64::consts::PI;

/// f_k: `[head_dim / 2]`.
pub fn frequencies(rope: &Rope, head_dim: usize) -> Vec<f64> {
    let mut all = Vec::new();
    for k in 0..head_dim / 2 {
        let f = 1.0 / rope.theta.powf((2 * k) as f64 / head_dim as f64);
        all.push(match rope.scaling {
            Scaling::None => f,
            Scaling::Linear { factor } => f / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let old = original_max_position_embeddings as f64;
                let wavelength = 2.0 * PI / f;
                if wavelength < old / high_freq_factor {
                    f
                } else if wavelength > old / low_freq_factor {
                    f / factor
                } else {
                    let smooth = (old / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }
        });
    }
    all
}

/// cos and sin: `[positions, head_dim / 2]`.
pub fn table(rope: &Rope, positions: usize, head_dim: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for t in 0..positions {
        for f in frequencies(rope, head_dim) {
            cos.push((t as f64 * f).cos());
            sin.push((t as f64 * f).sin());
        }
    }
    (cos, sin)
}

/// `y [rows, heads, head_dim]`.
pub fn forward(d: Dims, x: &[f64], cos: &[f64], sin: &[f64], start: usize) -> Vec<f64> {
    let half = d.head_dim / 2;
    let mut y = vec![0.0; x.len()];
    for i in 0..d.rows {
        for h in 0..d.heads {
            for k in 0..half {
                let at = (i * d.heads + h) * d.head_dim + k;
                let t = (start + i % d.seq) * half + k;
                y[at] = x[at] * cos[t] - x[at + half] * sin[t];
                y[at + half] = x[at + half] * cos[t] + x[at] * sin[t];
            }
        }
    }
    y
}

/// `dx [rows, heads, head_dim]`.
pub fn backward(d: Dims, dy: &[f64], cos: &[f64], sin: &[f64], start: usize) -> Vec<f64> {
    let half = d.head_dim / 2;
    let mut dx = vec![0.0; dy.len()];
    for i in 0..d.rows {
        for h in 0..d.heads {
            for k in 0..half {
                let at = (i * d.heads + h) * d.head_dim + k;
                let t = (start + i % d.seq) * half + k;
                dx[at] = dy[at] * cos[t] + dy[at + half] * sin[t];
                dx[at + half] = dy[at + half] * cos[t] - dy[at] * sin[t];
            }
        }
    }
    dx
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{draw, slope};

    #[test]
    fn backward_is_the_slope_of_forward() {
        let d = Dims { rows: 6, seq: 3, heads: 2, head_dim: 10 };
        let wide = |seed| draw(seed, 120).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, dy) = (wide(1), wide(2));
        let (cos, sin) = table(&Rope { theta: 100.0, scaling: Scaling::None }, 5, d.head_dim);
        let dx = backward(d, &dy, &cos, &sin, 2);
        let loss = |x: &[f64]| forward(d, x, &cos, &sin, 2).iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>();
        slope(loss, &x, &dx, 8, 1e-7);
    }
}
