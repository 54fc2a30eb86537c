//! The learning rate of a step, a closed form of the step alone: nothing is carried over, so nothing can be lost.
//!
//! Steps count from 0 to S − 1; W steps of warm-up, R the final ratio, lr the highest rate.
//!
//! ```text
//! s < W              lr · (s + 1) / W
//! constant           lr
//! cosine             lr · (R + (1 − R) · ½ (1 + cos π p)),   p = (s + 1 − W) / (S − W)
//! wsd, last D steps  lr · (R + (1 − R) · (1 − √p)),          p = (s + 1 − (S − D)) / D
//! ```
//!
//! So the last step of a cosine or WSD run has rate R · lr, and the last of warm-up has lr.
//! Source: Loshchilov & Hutter 2017, arXiv:1608.03983 (cosine); Hu et al. 2024, arXiv:2404.06395 (WSD); Hägele et al.
//! 2024, arXiv:2405.18392 (one minus the square root).

use crate::config::Schedule;

/// The learning rate of step `step` (from 0) of a run of `steps`, whose highest is `lr`.
pub fn rate(schedule: &Schedule, lr: f64, step: u64, steps: u64) -> f64 {
    let warm = |w: u64| (step < w).then(|| lr * (step + 1) as f64 / w as f64);
    let down = |from: u64, length: u64| ((step + 1).saturating_sub(from) as f64 / length.max(1) as f64).min(1.0);
    let between = |ratio: f64, share: f64| lr * (ratio + (1.0 - ratio) * share);
    match *schedule {
        Schedule::Constant { warmup_steps } => warm(warmup_steps).unwrap_or(lr),
        Schedule::Cosine { warmup_steps, final_ratio } => warm(warmup_steps).unwrap_or_else(|| {
            let p = down(warmup_steps, steps.saturating_sub(warmup_steps));
            between(final_ratio, 0.5 * (1.0 + (std::f64::consts::PI * p).cos()))
        }),
        Schedule::Wsd { warmup_steps, decay_steps, final_ratio } => warm(warmup_steps).unwrap_or_else(|| {
            let from = steps.saturating_sub(decay_steps);
            if step < from { lr } else { between(final_ratio, 1.0 - down(from, decay_steps).sqrt()) }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &Schedule, steps: u64, golden: &[(u64, f64)]) {
        for &(step, want) in golden {
            let got = rate(schedule, 2.0, step, steps);
            assert!((got - want).abs() < 1e-12, "{schedule:?} step {step}: {got}, want {want}");
        }
    }

    // Values worked out by hand from the formulas above, with lr = 2.
    #[test]
    fn golden() {
        let quarter = 2.0 * (0.1 + 0.9 * 0.5 * (1.0 + std::f64::consts::FRAC_1_SQRT_2));
        check(&Schedule::Constant { warmup_steps: 4 }, 10, &[(0, 0.5), (2, 1.5), (3, 2.0), (9, 2.0)]);
        let cosine = Schedule::Cosine { warmup_steps: 4, final_ratio: 0.1 };
        check(&cosine, 12, &[(0, 0.5), (3, 2.0), (5, quarter), (7, 1.1), (11, 0.2), (50, 0.2)]);
        let wsd = Schedule::Wsd { warmup_steps: 2, decay_steps: 4, final_ratio: 0.0 };
        check(&wsd, 10, &[(0, 1.0), (1, 2.0), (5, 2.0), (6, 1.0), (9, 0.0)]);
        let whole = Schedule::Wsd { warmup_steps: 2, decay_steps: 8, final_ratio: 0.5 };
        check(&whole, 10, &[(1, 2.0), (3, 1.5), (9, 1.0)]);
        check(&Schedule::Cosine { warmup_steps: 0, final_ratio: 1.0 }, 1, &[(0, 2.0)]);
        check(&Schedule::Cosine { warmup_steps: 5, final_ratio: 0.0 }, 5, &[(4, 2.0)]);
    }

    #[test]
    fn a_rate_never_leaves_its_range() {
        for warmup_steps in [0, 1, 7, 50] {
            for schedule in [
                Schedule::Cosine { warmup_steps, final_ratio: 0.1 },
                Schedule::Wsd { warmup_steps, decay_steps: 20, final_ratio: 0.1 },
                Schedule::Constant { warmup_steps },
            ] {
                for step in 0..100 {
                    let lr = rate(&schedule, 1.0, step, 100);
                    assert!(0.0 < lr && lr <= 1.0, "{schedule:?} {step}: {lr}");
                }
            }
        }
    }
}
