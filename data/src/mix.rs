//! Which source a row comes from, so that shares are exact at every prefix.
//!
//! Source s has weight W_s, a whole number; D = Σ W_s is the period. Row j of source s (j counts
//! from 0 within the source) may stand at any place from its release on and before its deadline,
//!
//! ```text
//! release(s, j) = ⌊j D / W_s⌋        deadline(s, j) = ⌈(j + 1) D / W_s⌉
//! ```
//!
//! and each place takes the released row of the earliest deadline, ties to the source named
//! first. No deadline is ever missed: the rows whose release and deadline both lie in a..b are
//! at most Σ (⌊b W_s / D⌋ − ⌈a W_s / D⌉) ≤ b − a, and then serving the earliest deadline first
//! meets them all. So for every n and s
//!
//! ```text
//! rows of s among the first n  is  ⌊n W_s / D⌋ or ⌈n W_s / D⌉
//! ```
//!
//! never off by one row or more, which choosing the source that is furthest behind (Megatron's
//! rule) does not promise. After D places all counts are exact and the pattern begins again: one
//! period is worked out once, and any place of a run is a division and a look into that table.
//! Integers alone: the same order on every machine, for ever.
//!
//! Sources: Liu & Layland 1973 (earliest deadline first); Baruah, Cohen, Plaxton & Varvel 1996
//! (proportionate progress: these releases and deadlines); Tijdeman 1980 (that shares within one
//! can be had).

/// The longest period: weights of six digits and a little more.
pub const PERIOD_MAX: u64 = 1 << 20;
/// The most sources.
pub const SOURCES_MAX: usize = 256;
/// The most digits behind the point of a weight.
const DECIMALS_MAX: usize = 9;

/// Why weights cannot be used. The number of a source counts from 0.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MixError {
    #[error("a mixture of {got} sources; expected 1 to {SOURCES_MAX}")]
    Sources { got: usize },
    #[error(
        "weight {weight} of source {source_number}: expected a number above 0 with at most {DECIMALS_MAX} decimals"
    )]
    Weight { source_number: usize, weight: f64 },
    #[error(
        "these weights repeat after {period} rows, at most {PERIOD_MAX} can be kept exact; write them with fewer \
         digits, as 0.7 or 35"
    )]
    Period { period: u128 },
}

/// The pattern of sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    weights: Vec<u64>,
    /// Source of each place of a period.
    source: Vec<u8>,
    /// How many places before it in the period are of the same source.
    rank: Vec<u32>,
}

impl Mix {
    /// The pattern of whole weights, of which only the ratios count.
    pub fn new(weights: &[u64]) -> Result<Mix, MixError> {
        if !(1..=SOURCES_MAX).contains(&weights.len()) {
            return Err(MixError::Sources { got: weights.len() });
        }
        if let Some(source_number) = weights.iter().position(|&w| w == 0) {
            return Err(MixError::Weight { source_number, weight: 0.0 });
        }
        let divisor = weights.iter().copied().fold(0, gcd);
        let weights: Vec<u64> = weights.iter().map(|w| w / divisor).collect();
        let period: u128 = weights.iter().map(|&w| u128::from(w)).sum();
        if period > PERIOD_MAX.into() {
            return Err(MixError::Period { period });
        }
        let (source, rank) = schedule(&weights, period as u64);
        Ok(Mix { weights, source, rank })
    }

    /// The pattern of weights as people write them: taken as the decimal fractions they read as.
    pub fn of_decimals(weights: &[f64]) -> Result<Mix, MixError> {
        Mix::new(&whole(weights)?)
    }

    /// One source alone.
    pub fn single() -> Mix {
        Mix { weights: vec![1], source: vec![0], rank: vec![0] }
    }

    /// Source of a place, and which row of that source it is.
    pub fn at(&self, position: u64) -> (usize, u64) {
        let (periods, place) = (position / self.period(), (position % self.period()) as usize);
        let source = usize::from(self.source[place]);
        (source, periods * self.weights[source] + u64::from(self.rank[place]))
    }

    /// Rows of each source among the first `n`.
    pub fn counts(&self, n: u64) -> Vec<u64> {
        let (periods, places) = (n / self.period(), (n % self.period()) as usize);
        let mut counts: Vec<u64> = self.weights.iter().map(|w| periods * w).collect();
        for &source in &self.source[..places] {
            counts[usize::from(source)] += 1;
        }
        counts
    }

    /// Whole weights without a common divisor.
    pub fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// The share of a source in all rows.
    pub fn share(&self, source: usize) -> f64 {
        self.weights[source] as f64 / self.period() as f64
    }

    /// Places after which the pattern begins again.
    pub fn period(&self) -> u64 {
        self.source.len() as u64
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.source.len() * (size_of::<u8>() + size_of::<u32>())
    }
}

/// Source and rank of each place of a period.
fn schedule(weights: &[u64], period: u64) -> (Vec<u8>, Vec<u32>) {
    struct Next {
        rank: u64,
        release: u64,
        deadline: u64,
    }
    // No overflow: both factors are at most the period, and that 2^20.
    let of = |w: u64, rank: u64| Next { rank, release: rank * period / w, deadline: ((rank + 1) * period).div_ceil(w) };
    let mut next: Vec<Next> = weights.iter().map(|&w| of(w, 0)).collect();
    let (mut sources, mut ranks) = (Vec::with_capacity(period as usize), Vec::with_capacity(period as usize));
    for place in 0..period {
        let released = next.iter().enumerate().filter(|(_, n)| n.release <= place);
        let (source, _) = released.min_by_key(|(_, n)| n.deadline).expect("mix: a row is always released");
        let chosen = &mut next[source];
        assert!(place < chosen.deadline, "mix: source {source} is late at place {place}");
        sources.push(source as u8);
        ranks.push(chosen.rank as u32);
        *chosen = of(weights[source], chosen.rank + 1);
    }
    (sources, ranks)
}

/// Decimal fractions as whole numbers in the same ratios.
fn whole(weights: &[f64]) -> Result<Vec<u64>, MixError> {
    let mut parts = Vec::with_capacity(weights.len());
    for (source_number, &weight) in weights.iter().enumerate() {
        // Display writes the shortest decimal that reads back as this number: what was typed.
        let text = weight.to_string();
        let (digits, decimals) = text.split_once('.').unwrap_or((&text, ""));
        let good = weight.is_finite() && weight > 0.0 && decimals.len() <= DECIMALS_MAX;
        match format!("{digits}{decimals}").parse::<u64>() {
            Ok(number) if good => parts.push((number, decimals.len())),
            _ => return Err(MixError::Weight { source_number, weight }),
        }
    }
    let most = parts.iter().map(|&(_, decimals)| decimals).max().unwrap_or(0);
    let scaled = parts.iter().enumerate().map(|(source_number, &(number, decimals))| {
        let scale = 10u64.pow((most - decimals) as u32);
        number.checked_mul(scale).ok_or(MixError::Weight { source_number, weight: weights[source_number] })
    });
    scaled.collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        /// After any n rows each source has had the floor or the ceiling of its share, and its
        /// rows came in order; a place can be had without those before it.
        #[test]
        fn shares_are_exact_at_every_prefix(weights in prop::collection::vec(1u64..2000, 1..12), far in 0u64..1 << 40) {
            let mix = Mix::new(&weights).unwrap();
            let period = mix.period();
            let mut counts = vec![0u64; weights.len()];
            for n in 0..2 * period + 3 {
                if n < 5000 || n % 997 == 0 {
                    prop_assert_eq!(&mix.counts(n), &counts);
                }
                for (count, w) in counts.iter().zip(mix.weights()) {
                    let exact = u128::from(n) * u128::from(*w);
                    let (low, high) = (exact / u128::from(period), exact.div_ceil(u128::from(period)));
                    prop_assert!((low..=high).contains(&u128::from(*count)), "{} of {} at {}", count, w, n);
                }
                let (source, index) = mix.at(n);
                prop_assert_eq!(index, counts[source]);
                counts[source] += 1;
            }
            let (source, index) = mix.at(far);
            prop_assert_eq!(index, mix.counts(far)[source]);
        }
    }

    #[test]
    fn weights_are_what_was_typed() {
        let weights = |typed: &[f64]| Mix::of_decimals(typed).map(|m| m.weights().to_vec());
        assert_eq!(weights(&[0.7, 0.2, 0.1]), Ok(vec![7, 2, 1]));
        assert_eq!(weights(&[35.0, 10.0, 5.0]), Ok(vec![7, 2, 1]));
        assert_eq!(weights(&[1.0, 0.025]), Ok(vec![40, 1]));
        assert_eq!(weights(&[3.0]), Ok(vec![1]));
        assert_eq!(Mix::of_decimals(&[2.5]), Ok(Mix::single()));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-10, 1e300] {
            assert!(matches!(weights(&[1.0, bad]), Err(MixError::Weight { source_number: 1, .. })), "{bad}");
        }
        assert!(matches!(weights(&[]), Err(MixError::Sources { got: 0 })));
        assert!(matches!(Mix::new(&vec![1; 257]), Err(MixError::Sources { got: 257 })));
        assert!(matches!(weights(&[1.0, 0.123_456_7]), Err(MixError::Period { .. })));
        assert!(matches!(Mix::new(&[u64::MAX, u64::MAX - 1]), Err(MixError::Period { .. })));
    }

    /// Heavy beside very light, many alike, and the longest period there is.
    #[test]
    fn extremes() {
        for weights in [vec![PERIOD_MAX - 255; 1], [vec![PERIOD_MAX - 255], vec![1; 255]].concat(), vec![1; 256]] {
            let mix = Mix::new(&weights).unwrap();
            assert_eq!(mix.counts(mix.period()), mix.weights());
            let (source, index) = mix.at(u64::MAX / 2);
            assert_eq!(index, mix.counts(u64::MAX / 2)[source]);
        }
    }
}
