//! How long to wait before the next try.
//!
//! wait_n = min(cap, base · 2ⁿ) · u,   u uniform in [0.5, 1), from a seed
//!
//! The jitter keeps a hundred peers that lost one bootstrap from coming back in one instant; the seed keeps a test
//! the same twice. The wait is a time, never a sleep: who waits decides how.

use std::time::Duration;

/// A stream of 64-bit numbers from a seed (SplitMix64: Steele, Lea & Flood 2014). For jitter and rotation, not for
/// keys.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The waits of one target.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    tries: u32,
    jitter: Jitter,
}

impl Backoff {
    /// Waits from `base`, doubled each time, never above `cap`.
    pub fn new(base: Duration, cap: Duration, seed: u64) -> Backoff {
        Backoff { base, cap, tries: 0, jitter: Jitter::new(seed) }
    }

    /// The wait before the next try.
    pub fn fail(&mut self) -> Duration {
        let whole = self.base.saturating_mul(1 << self.tries.min(20)).min(self.cap);
        self.tries = self.tries.saturating_add(1);
        whole.mul_f64(0.5 + 0.5 * self.jitter.unit())
    }

    /// Starts again from `base`, since something worked.
    pub fn clear(&mut self) {
        self.tries = 0;
    }

    /// Failures since the last success.
    pub fn tries(&self) -> u32 {
        self.tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_differ_by_seed() {
        let run = |seed| {
            let mut b = Backoff::new(Duration::from_millis(500), Duration::from_secs(30), seed);
            (0..12).map(|_| b.fail()).collect::<Vec<_>>()
        };
        let waits = run(1);
        assert_eq!(waits, run(1));
        assert_ne!(waits, run(2));
        for (n, wait) in waits.iter().enumerate() {
            let whole = Duration::from_millis(500 << n.min(16)).min(Duration::from_secs(30));
            assert!(*wait >= whole / 2 && *wait <= whole, "try {n}: {wait:?}");
        }
    }
}
