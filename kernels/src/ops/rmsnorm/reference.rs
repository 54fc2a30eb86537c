//! The formula, one thread, in `f64`.

use super::Dims;

/// `y [rows, cols]` and `r [rows]`.
pub fn forward(d: Dims, x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let mut y = vec![0.0; d.rows * d.cols];
    let mut r = vec![0.0; d.rows];
    for i in 0..d.rows {
        let mut squares = 0.0;
        for j in 0..d.cols {
            squares += x[i * d.cols + j] * x[i * d.cols + j];
        }
        r[i] = 1.0 / (squares / d.cols as f64 + eps).sqrt();
        for j in 0..d.cols {
            y[i * d.cols + j] = x[i * d.cols + j] * r[i] * w[j];
        }
    }
    (y, r)
}

/// `dx [rows, cols]`; adds to `dw [cols]`.
pub fn backward(d: Dims, x: &[f64], w: &[f64], r: &[f64], dy: &[f64], dw: &mut [f64]) -> Vec<f64> {
    let mut dx = vec![0.0; d.rows * d.cols];
    for i in 0..d.rows {
        let mut gx = 0.0;
        for j in 0..d.cols {
            let at = i * d.cols + j;
            gx += dy[at] * w[j] * x[at];
            dw[j] += dy[at] * x[at] * r[i];
        }
        let mean = gx / d.cols as f64;
        for j in 0..d.cols {
            let at = i * d.cols + j;
            dx[at] = r[i] * (dy[at] * w[j] - x[at] * r[i] * r[i] * mean);
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
        let d = Dims { rows: 3, cols: 7 };
        let wide = |seed, n| draw(seed, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let (x, w, dy) = (wide(1, 21), wide(2, 7), wide(3, 21));
        let loss = |x: &[f64], w: &[f64]| {
            let (y, _) = forward(d, x, w, 1e-3);
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let (_, r) = forward(d, &x, &w, 1e-3);
        let mut dw = vec![0.0; 7];
        let dx = backward(d, &x, &w, &r, &dy, &mut dw);
        slope(|x| loss(x, &w), &x, &dx, 8, 1e-7);
        slope(|w| loss(&x, w), &w, &dw, 8, 1e-7);
    }
}
