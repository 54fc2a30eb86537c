//! How far a perplexity may be off: its deviation over resamplings, drawn as lm-evaluation-harness draws them.
//!
//! R resamplings in pieces of 1000 (of R when that is less), piece i from Python's `Random(i)`; what is left of R after
//! whole pieces is not done. A resampling draws as many values as there are.
//! Source: lm-evaluation-harness 0.4.13, api/metrics.py (MIT), read for what it means.

use crate::random::Random;
use rayon::prelude::*;

/// Resamplings of one piece.
const PIECE: usize = 1000;

/// Σ x / n
pub fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// exp(−mean)
pub fn perplexity(mean: f64) -> f64 {
    (-mean).exp()
}

/// Of a sample: √(Σ (x − mean)² / (n − 1)).
pub fn deviation(x: &[f64]) -> f64 {
    let mean = mean(x);
    (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (x.len() as f64 - 1.0)).sqrt()
}

/// The deviation of the perplexity over `iters` resamplings of `x`.
pub fn of_perplexity(x: &[f64], iters: usize) -> f64 {
    let piece = PIECE.min(iters);
    let n = x.len() as f64;
    let each = (0..iters / piece).into_par_iter().flat_map_iter(|i| {
        let mut random = Random::new(i as u64);
        (0..piece)
            .map(|_| {
                let sum = (0..x.len()).fold(0.0, |sum, _| sum + x[(random.random() * n) as usize]);
                perplexity(sum / n)
            })
            .collect::<Vec<f64>>()
    });
    deviation(&each.collect::<Vec<f64>>())
}
