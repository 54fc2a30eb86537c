//! The formula, one thread, in `f64`.

use super::Dims;

/// `x [rows, cols]`.
pub fn forward(d: Dims, ids: &[u32], w: &[f64]) -> Vec<f64> {
    let mut x = vec![0.0; d.rows * d.cols];
    for i in 0..d.rows {
        for j in 0..d.cols {
            x[i * d.cols + j] = w[ids[i] as usize * d.cols + j];
        }
    }
    x
}

/// Adds to `dw [vocab, cols]`.
pub fn backward(d: Dims, ids: &[u32], dx: &[f64], dw: &mut [f64]) {
    for i in 0..d.rows {
        for j in 0..d.cols {
            dw[ids[i] as usize * d.cols + j] += dx[i * d.cols + j];
        }
    }
}
