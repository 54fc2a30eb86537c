//! The formula, one thread, in `f64`.

/// Σ t_i².
pub fn sum_squares(t: &[f64]) -> f64 {
    let mut sum = 0.0;
    for x in t {
        sum += x * x;
    }
    sum
}

/// The clip's factor.
pub fn clip_scale(norm: f64, max: f64) -> f64 {
    (max / (norm + 1e-6)).min(1.0)
}
