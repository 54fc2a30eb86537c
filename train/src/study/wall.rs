//! How long a round would take over a link, by arithmetic.
//!
//! ```text
//! compute     steps · step_seconds
//! dense       2·(R − 1) hops of a ring, each a share of 1/R of the bytes up and down at once:
//!             2·(R − 1) · (latency + bytes / R / min(up, down))
//! sparse      an update goes up once (to a seeder), and R − 1 come down meanwhile and after:
//!             2·latency + max(bytes / up, (R − 1) · bytes / down)
//! ```
//!
//! Nothing is overlapped with computing, and a rate is what is left of it for payload.

/// What an owner has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits a second up.
    pub up: f64,
    /// Bits a second down.
    pub down: f64,
    /// Seconds one way.
    pub latency: f64,
    /// Seconds of one inner step.
    pub step_seconds: f64,
}

impl Link {
    /// What Covenant-72B asked of its owners, between continents. A step takes as long as one processor core takes for
    /// the study's.
    pub const HOME: Link = Link { up: 110e6, down: 500e6, latency: 0.05, step_seconds: 0.012 };

    /// Seconds of an exchange in which everybody's `bytes` are summed.
    pub fn dense(&self, owners: u64, bytes: u64) -> f64 {
        let (r, bits) = (owners as f64, 8.0 * bytes as f64);
        2.0 * (r - 1.0) * (self.latency + bits / r / self.up.min(self.down))
    }

    /// Seconds of an exchange in which everybody gets everybody's `bytes`.
    pub fn sparse(&self, owners: u64, bytes: u64) -> f64 {
        let bits = 8.0 * bytes as f64;
        2.0 * self.latency + (bits / self.up).max((owners as f64 - 1.0) * bits / self.down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_what_the_page_says() {
        let link = Link { up: 8e6, down: 16e6, latency: 0.5, step_seconds: 0.0 };
        assert_eq!(link.dense(5, 1_000_000), 8.0 * (0.5 + 0.2));
        assert_eq!(link.sparse(2, 1_000_000), 1.0 + 1.0);
        assert_eq!(link.sparse(5, 1_000_000), 1.0 + 2.0);
    }
}
