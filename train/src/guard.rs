//! The spike guard: how far a loss and a gradient norm stand from those of the last steps.
//!
//! z = (x − mean) / deviation over the last `window` steps, for the loss and for the norm; a z above `sigma` is a spike.
//! The guard says nothing before its window is full. Every finite value enters the window, a spike too: what stays is
//! the new level, not an endless alarm. Sums run from the oldest value to the newest, so that a resumed run judges as
//! the straight one does.
//!
//! Source: the sliding z-score is that of llm.c and of OLMo's skip-step optimiser.

use crate::config;
use serde::{Deserialize, Serialize};

/// The values of the last steps.
#[derive(Clone, Debug)]
pub struct Guard {
    losses: Window,
    norms: Window,
    sigma: f64,
    action: config::Action,
}

/// What the guard says of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// z of the loss; 0 until the window is full.
    pub loss_z: f64,
    /// z of the gradient norm.
    pub norm_z: f64,
    /// One of them lies above `sigma`.
    pub spike: bool,
    /// The update is to be left out.
    pub skip: bool,
}

/// What a checkpoint keeps: the values, oldest first, as bit patterns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Losses.
    pub losses: Vec<u64>,
    /// Gradient norms.
    pub norms: Vec<u64>,
}

impl Guard {
    /// An empty guard.
    pub fn new(c: &config::Guard) -> Guard {
        Guard { losses: Window::new(c.window), norms: Window::new(c.window), sigma: c.sigma, action: c.action }
    }

    /// A guard as it was, or why `kept` cannot be one of this configuration.
    pub fn restore(c: &config::Guard, kept: &Kept) -> Result<Guard, String> {
        let (l, n) = (kept.losses.len(), kept.norms.len());
        if l != n || l > c.window {
            return Err(format!("{l} losses and {n} norms in a window of {}", c.window));
        }
        let mut guard = Guard::new(c);
        for (&loss, &norm) in kept.losses.iter().zip(&kept.norms) {
            guard.losses.push(f64::from_bits(loss));
            guard.norms.push(f64::from_bits(norm));
        }
        Ok(guard)
    }

    /// What a checkpoint keeps.
    pub fn keep(&self) -> Kept {
        let bits = |w: &Window| w.in_order().map(f64::to_bits).collect();
        Kept { losses: bits(&self.losses), norms: bits(&self.norms) }
    }

    /// Judges a step and takes its values in. A value that is not finite is a spike and enters no window.
    pub fn judge(&mut self, loss: f64, norm: f64) -> Verdict {
        if !(loss.is_finite() && norm.is_finite()) {
            let skip = self.action == config::Action::Skip;
            return Verdict { loss_z: f64::INFINITY, norm_z: f64::INFINITY, spike: true, skip };
        }
        let (loss_z, norm_z) = (self.losses.z(loss), self.norms.z(norm));
        self.losses.push(loss);
        self.norms.push(norm);
        let spike = self.sigma > 0.0 && (loss_z > self.sigma || norm_z > self.sigma);
        Verdict { loss_z, norm_z, spike, skip: spike && self.action == config::Action::Skip }
    }
}

/// A ring of the last values; never grows.
#[derive(Clone, Debug)]
struct Window {
    values: Vec<f64>,
    size: usize,
    oldest: usize,
}

impl Window {
    fn new(size: usize) -> Window {
        Window { values: Vec::with_capacity(size), size, oldest: 0 }
    }

    fn push(&mut self, x: f64) {
        if self.values.len() < self.size {
            self.values.push(x);
        } else if self.size > 0 {
            self.values[self.oldest] = x;
            self.oldest = (self.oldest + 1) % self.size;
        }
    }

    fn in_order(&self) -> impl Iterator<Item = f64> + '_ {
        self.values[self.oldest..].iter().chain(&self.values[..self.oldest]).copied()
    }

    fn z(&self, x: f64) -> f64 {
        if self.size < 2 || self.values.len() < self.size {
            return 0.0;
        }
        let n = self.size as f64;
        let mean = self.in_order().sum::<f64>() / n;
        let variance = self.in_order().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        // All values equal: there is no scale to judge by.
        if variance > 0.0 { (x - mean) / variance.sqrt() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Action;

    fn guard(action: Action) -> Guard {
        Guard::new(&config::Guard { window: 4, sigma: 3.0, action })
    }

    #[test]
    fn a_spike_is_seen_once_the_window_is_full() {
        let mut g = guard(Action::Skip);
        assert!(!g.judge(100.0, 1.0).spike);
        for loss in [1.0, 2.0, 1.0, 2.0] {
            assert!(!g.judge(loss, 1.0).spike);
        }
        let v = g.judge(3.1, 1.0);
        assert!((v.loss_z - (3.1 - 1.5) / 0.5).abs() < 1e-12);
        assert!(v.spike && v.skip && v.norm_z == 0.0);
        assert!(!g.judge(3.1, 1.0).spike, "the new level has entered the window");
        assert!(!guard(Action::Report).judge(f64::NAN, 1.0).skip);
        assert!(g.judge(f64::NAN, 1.0).skip);
    }

    #[test]
    fn a_kept_guard_judges_the_same() {
        let c = config::Guard { window: 5, sigma: 1.5, action: Action::Report };
        let mut straight = Guard::new(&c);
        for i in 0..40u64 {
            let mut resumed = Guard::restore(&c, &straight.keep()).unwrap();
            let (loss, norm) = (((i * 37) % 11) as f64 / 7.0, ((i * 53) % 13) as f64 / 3.0);
            assert_eq!(straight.judge(loss, norm), resumed.judge(loss, norm));
            assert_eq!(straight.keep(), resumed.keep());
        }
        assert!(Guard::restore(&c, &Kept { losses: vec![0; 6], norms: vec![0; 6] }).is_err());
        assert!(Guard::restore(&c, &Kept { losses: vec![0; 2], norms: vec![0; 3] }).is_err());
    }
}
