//! The three products in `f64`.

use super::Dims;

/// `c[i, j] = Σ_k a[i, k] · b[j, k]`
pub fn nt(d: Dims, a: &[f64], b: &[f64]) -> Vec<f64> {
    sum(d, |i, k| a[i * d.k + k], |k, j| b[j * d.k + k])
}

/// `c[i, j] = Σ_k a[i, k] · b[k, j]`
pub fn nn(d: Dims, a: &[f64], b: &[f64]) -> Vec<f64> {
    sum(d, |i, k| a[i * d.k + k], |k, j| b[k * d.n + j])
}

/// `c[i, j] = Σ_k a[k, i] · b[k, j]`
pub fn tn(d: Dims, a: &[f64], b: &[f64]) -> Vec<f64> {
    sum(d, |i, k| a[k * d.m + i], |k, j| b[k * d.n + j])
}

fn sum(d: Dims, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let mut c = vec![0.0; d.m * d.n];
    for i in 0..d.m {
        for j in 0..d.n {
            for k in 0..d.k {
                c[i * d.n + j] += a(i, k) * b(k, j);
            }
        }
    }
    c
}
