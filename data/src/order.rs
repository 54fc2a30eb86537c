//! The order of an epoch: a keyed bijection of 0..n, with nothing stored.
//!
//! A Feistel network over 2h bits, 2^(2h) >= n, with h as small as that allows:
//!
//! ```text
//! (L, R) <- (index >> h, index mod 2^h)
//! twelve rounds:  (L, R) <- (R, L xor (mix(R + k_r) mod 2^h))
//! again from the top until the value is below n            (cycle walking)
//! ```
//!
//! A Feistel network is a bijection whatever its round function is; walking the cycle of a
//! bijection of a larger set until it comes back below n is a bijection of 0..n. Since
//! 2^(2h) < 4n, a walk takes fewer than four passes on average, and at most 2^(2h).
//!
//! The keys are the first 96 bytes that blake3 (key derivation mode, context
//! `"esker data order v1"`) gives for seed, epoch and n as three little-endian u64, and for the
//! number of the source as a fourth where that is not 0; `mix` is the finaliser of SplitMix64. Integers alone: the same order on every machine, for ever.
//!
//! Sources: Luby & Rackoff 1988 (Feistel permutations); Black & Rogaway 2002 (cycle walking);
//! Steele, Lea & Flood 2014 (SplitMix64).

use std::ops::Range;

/// The largest n: 2^48 windows.
pub const MAX_N: u64 = 1 << 48;

const ROUNDS: usize = 12;

/// The order of one epoch of `n` windows.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    keys: [u64; ROUNDS],
    half_bits: u32,
    n: u64,
}

impl Order {
    /// The order of epoch `epoch` under `seed`. Costs one blake3 block or two, no memory.
    ///
    /// # Panics
    /// If `n` is 0 or above [`MAX_N`]: callers count windows before they order them.
    pub fn new(seed: u64, epoch: u64, n: u64) -> Order {
        Order::of_source(seed, 0, epoch, n)
    }

    /// The order of epoch `epoch` of one source of a mixture: orders of different sources have
    /// nothing to do with each other, and that of source 0 is [`Order::new`].
    ///
    /// # Panics
    /// As [`Order::new`].
    pub fn of_source(seed: u64, source: usize, epoch: u64, n: u64) -> Order {
        assert!((1..=MAX_N).contains(&n), "order: n = {n} lies outside 1..=2^48");
        let mut hasher = blake3::Hasher::new_derive_key("esker data order v1");
        for word in [seed, epoch, n] {
            hasher.update(&word.to_le_bytes());
        }
        if source > 0 {
            hasher.update(&(source as u64).to_le_bytes());
        }
        let mut bytes = [0u8; ROUNDS * 8];
        hasher.finalize_xof().fill(&mut bytes);
        let mut keys = [0; ROUNDS];
        for (key, b) in keys.iter_mut().zip(bytes.chunks_exact(8)) {
            *key = u64::from_le_bytes(b.try_into().expect("8 bytes"));
        }
        let bits = u64::BITS - (n - 1).leading_zeros();
        Order { keys, half_bits: bits.div_ceil(2).max(1), n }
    }

    /// The window at place `index` of the epoch.
    ///
    /// # Panics
    /// If `index` is not below n.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.n, "order: index {index} of {}", self.n);
        let mut x = index;
        loop {
            x = self.pass(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn pass(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut l, mut r) = (x >> self.half_bits, x & mask);
        for key in self.keys {
            (l, r) = (r, l ^ (mix(r.wrapping_add(key)) & mask));
        }
        (l << self.half_bits) | r
    }
}

/// The positions that one peer trains on in one round, of a run whose rounds have `slots` places
/// for peers and whose peers take `windows` rows a round each:
///
/// ```text
/// (round * slots + slot) * windows .. + windows
/// ```
///
/// The intervals of different (round, slot) are disjoint and together leave nothing out, so no
/// two peers ever train on the same row of an epoch; a slot that nobody takes leaves its rows
/// unread. `slots` and `windows` belong to the run, and are not the number of those who came.
/// None where `slot` is not below `slots`, or a position would not fit u64.
pub fn interval(round: u64, slot: u64, slots: u64, windows: u64) -> Option<Range<u64>> {
    if slot >= slots {
        return None;
    }
    let start = round.checked_mul(slots)?.checked_add(slot)?.checked_mul(windows)?;
    Some(start..start.checked_add(windows)?)
}

/// The finaliser of SplitMix64.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(seed: u64, epoch: u64, n: u64) -> Vec<u64> {
        let order = Order::new(seed, epoch, n);
        (0..n).map(|i| order.at(i)).collect()
    }

    #[test]
    fn every_small_n_is_a_permutation() {
        for n in 1..=300 {
            let mut got = all(7, n, n);
            got.sort_unstable();
            assert!(got.into_iter().eq(0..n), "n = {n}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn is_a_permutation(seed: u64, epoch in 0u64..1000, n in 1u64..60_000) {
            let mut got = all(seed, epoch, n);
            got.sort_unstable();
            prop_assert!(got.into_iter().eq(0..n));
        }

        /// Where all of it cannot be listed: in range, and no two alike among many.
        #[test]
        fn large_n_does_not_collide(seed: u64, n in (1u64 << 40)..=MAX_N, from: u64) {
            let order = Order::new(seed, 3, n);
            let start = from % (n - 2000);
            let mut got: Vec<u64> = (start..start + 2000).map(|i| order.at(i)).collect();
            prop_assert!(got.iter().all(|&w| w < n));
            got.sort_unstable();
            got.dedup();
            prop_assert_eq!(got.len(), 2000);
        }
    }

    /// Rounds after rounds, the intervals of all slots follow one another without gap or overlap.
    #[test]
    fn intervals_of_peers_are_disjoint_and_whole() {
        for (slots, windows) in [(1, 1), (3, 5), (64, 480), (7, 1)] {
            let mut end = 0;
            for round in 0..20 {
                for slot in 0..slots {
                    let got = interval(round, slot, slots, windows).unwrap();
                    assert_eq!(got, end..end + windows);
                    end = got.end;
                }
            }
            assert_eq!(interval(0, slots, slots, windows), None);
        }
        assert_eq!(interval(0, 0, 0, 9), None);
        assert_eq!(interval(u64::MAX, 1, 2, 1), None);
        assert_eq!(interval(1 << 60, 0, 1, 16), None);
        assert_eq!(interval((1 << 60) - 1, 0, 1, 16), None);
        assert_eq!(interval((1 << 60) - 2, 0, 1, 16), Some(u64::MAX - 31..u64::MAX - 15));
    }

    #[test]
    fn sources_have_orders_of_their_own() {
        let of = |source| (0..500).map(|i| Order::of_source(1, source, 0, 500).at(i)).collect::<Vec<_>>();
        assert_eq!(of(0), all(1, 0, 500));
        for (a, b) in [(0, 1), (1, 2), (0, 2)] {
            let same = of(a).iter().zip(of(b)).filter(|(x, y)| **x == *y).count();
            assert!(same <= 8, "sources {a} and {b} agree in {same} places");
        }
    }

    #[test]
    fn differs_by_seed_epoch_and_n() {
        let base = all(1, 0, 1000);
        for (seed, epoch, n) in [(2, 0, 1000), (1, 1, 1000), (1, 0, 999), (0, 1, 1000)] {
            let other = all(seed, epoch, n);
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            // Two independent orders agree in one place on average (Poisson).
            assert!(same <= 8, "seed {seed}, epoch {epoch}, n {n}: {same} places agree");
        }
    }

    /// Over many epochs each window comes first equally often, whatever n is: chi-squared within
    /// five standard deviations of its mean. The same for the step from one place to the next.
    #[test]
    fn places_are_uniform() {
        for n in [2u64, 3, 5, 10, 64, 100, 255] {
            let draws = 200 * n;
            let (mut first, mut step) = (vec![0f64; n as usize], vec![0f64; n as usize]);
            for epoch in 0..draws {
                let order = Order::new(11, epoch, n);
                let (a, b) = (order.at(0), order.at(n - 1));
                first[a as usize] += 1.0;
                step[((b + n - a) % n) as usize] += 1.0;
            }
            let chi =
                |counts: &[f64], expected: f64| counts.iter().map(|c| (c - expected).powi(2) / expected).sum::<f64>();
            let bound = |free: f64| free + 5.0 * (2.0 * free).sqrt() + 5.0;
            let got = chi(&first, draws as f64 / n as f64);
            assert!(got < bound(n as f64 - 1.0), "n {n}: first place, chi-squared {got}");
            assert_eq!(step[0], 0.0);
            let got = chi(&step[1..], draws as f64 / (n - 1) as f64);
            assert!(got < bound((n as f64 - 2.0).max(1.0)), "n {n}: step, chi-squared {got}");
        }
    }

    /// Kept for ever: a checkpoint names a position, and a position means these windows.
    #[test]
    fn golden() {
        let order = Order::new(42, 7, 1_000_003);
        let far: Vec<u64> = (0..6).map(|i| order.at(i)).collect();
        let order = Order::new(u64::MAX, u64::MAX, MAX_N);
        let widest = [order.at(0), order.at(MAX_N - 1)];
        let got = (all(0, 0, 10), far, widest);
        assert_eq!(
            got,
            (
                vec![7, 4, 6, 8, 3, 5, 1, 2, 9, 0],
                vec![411_261, 826_993, 724_635, 366_771, 258_848, 778_086],
                [18_518_986_540_240, 257_044_492_362_116]
            )
        );
    }

    /// Kept for ever: the first 10,000 windows of a run of a million.
    #[test]
    fn golden_first_windows() {
        let order = Order::new(2026, 0, 1_000_000);
        let mut digest = blake3::Hasher::new();
        for i in 0..10_000 {
            digest.update(&order.at(i).to_le_bytes());
        }
        assert_eq!(
            digest.finalize().to_hex().as_str(),
            "46109186e77cc080a9f6523c2d5848befee81bcc4fa637034978cb775d503454"
        );
    }
}
