//! Which positions an update picks, as a sketch that tells copies: one-permutation min-hash.
//!
//! ```text
//! bin_b = min of the low 32 bits of hash(position) over the positions whose high 6 bits are b
//! J     = bins equal in both / the bins that the fuller one filled;   share in common = 2 J / (1 + J)
//! ```
//!
//! Source: Li, Owen, Zhang 2012.

/// Bins of a sketch.
pub const BINS: usize = 64;

/// A small sketch of the positions that an update picks: in each of 64 bins the smallest hash that falls into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picks(pub(super) Box<[u32; BINS]>);

impl Picks {
    /// A bin into which nothing fell.
    pub(super) const EMPTY: u32 = u32::MAX;

    /// The sketch of a set of positions, in any order; repeats change nothing.
    pub fn of(positions: impl IntoIterator<Item = u64>) -> Picks {
        Picks::sketch(&mut positions.into_iter())
    }

    fn sketch(positions: &mut dyn Iterator<Item = u64>) -> Picks {
        let mut bins = Box::new([Picks::EMPTY; BINS]);
        for position in positions {
            // The finaliser of SplitMix64: bins from the high bits, values from the low.
            let mut z = position.wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let bin = &mut bins[(z >> 58) as usize];
            *bin = (*bin).min(z as u32);
        }
        Picks(bins)
    }

    pub(super) fn filled(&self) -> usize {
        self.0.iter().filter(|b| **b != Picks::EMPTY).count()
    }

    /// The share of an update's picks that another has too, estimated: 2 J / (1 + J) of the bins' Jaccard index J.
    pub fn overlap(&self, other: &Picks) -> f64 {
        let equal = self.0.iter().zip(other.0.iter()).filter(|(a, b)| a == b && **a != Picks::EMPTY).count();
        share(equal, self.filled().max(other.filled()))
    }
}

/// The same, of so many equal bins of the fuller one's `filled`.
pub(super) fn share(equal: usize, filled: usize) -> f64 {
    let jaccard = equal as f64 / filled.max(1) as f64;
    2.0 * jaccard / (1.0 + jaccard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_tells_shares_apart() {
        let a = Picks::of(0..2000);
        assert_eq!(a.overlap(&Picks::of((0..2000).rev())), 1.0);
        assert!(a.overlap(&Picks::of(1000..3000)) > 0.3);
        assert!(a.overlap(&Picks::of(1980..3980)) < 0.15);
        assert_eq!(Picks::of([]).overlap(&Picks::of([])), 0.0);
    }
}
