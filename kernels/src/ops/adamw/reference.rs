//! The formula, one thread, in `f64`.

use super::Hyper;

/// One update of w, m and v; g is read.
pub fn step(w: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64], h: &Hyper) {
    let correct1 = 1.0 - h.beta1.powf(h.t as f64);
    let correct2 = 1.0 - h.beta2.powf(h.t as f64);
    for i in 0..w.len() {
        let g = g[i] * f64::from(h.scale);
        m[i] = h.beta1 * m[i] + (1.0 - h.beta1) * g;
        v[i] = h.beta2 * v[i] + (1.0 - h.beta2) * g * g;
        w[i] -= h.lr * h.weight_decay * w[i];
        w[i] -= h.lr * (m[i] / correct1) / ((v[i] / correct2).sqrt() + h.eps);
    }
}
