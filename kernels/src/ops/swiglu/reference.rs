//! The formula, one thread, in `f64`.

fn sigmoid(g: f64) -> f64 {
    1.0 / (1.0 + (-g).exp())
}

/// h.
pub fn forward(g: &[f64], u: &[f64]) -> Vec<f64> {
    let mut h = vec![0.0; g.len()];
    for i in 0..g.len() {
        h[i] = g[i] * sigmoid(g[i]) * u[i];
    }
    h
}

/// dg and du.
pub fn backward(g: &[f64], u: &[f64], dh: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut dg, mut du) = (vec![0.0; g.len()], vec![0.0; g.len()]);
    for i in 0..g.len() {
        let s = sigmoid(g[i]);
        du[i] = dh[i] * g[i] * s;
        dg[i] = dh[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
    }
    (dg, du)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{draw, slope};

    #[test]
    fn backward_is_the_slope_of_forward() {
        let wide = |seed| draw(seed, 30).into_iter().map(|x| 3.0 * f64::from(x)).collect::<Vec<_>>();
        let (g, u, dh) = (wide(1), wide(2), wide(3));
        let loss = |g: &[f64], u: &[f64]| forward(g, u).iter().zip(&dh).map(|(h, dh)| h * dh).sum::<f64>();
        let (dg, du) = backward(&g, &u, &dh);
        slope(|g| loss(g, &u), &g, &dg, 8, 1e-7);
        slope(|u| loss(&g, u), &u, &du, 8, 1e-7);
    }
}
