//! Which token comes next: a choice from logits, a function of (options, place, logits) alone.
//!
//! ① p_i = softmax(z / temperature)_i                                  temperature = 0: the largest z, nothing is drawn
//! ② order tokens by p, largest first; of equals the lower id first
//! ③ keep the first `top_k` (0 = all)
//! ④ of what is left, renormalised, keep the shortest head whose sum reaches `top_p`, at least one token
//! ⑤ u = uniform(seed, place) in [0, 1); take the first token whose running share of the kept sum exceeds u
//!
//! The order ①③④ is that of transformers' `generate`. The draw is counter-based (SplitMix64, Steele, Lea and Flood 2014,
//! used as a hash of seed and place): a continuation can be taken up at any place and draws the same. Sums are f64.
//! Top-p (nucleus) sampling: Holtzman et al. 2019, arXiv:1904.09751.

/// How to choose; [`Sampler::new`] checks it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the shortest head of this probability; 1 keeps all, 0 the most likely token alone.
    pub top_p: f32,
    /// Start of the draws.
    pub seed: u64,
}

impl Options {
    /// The most likely token, always.
    pub fn greedy() -> Options {
        Options { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Options that mean nothing, or logits that are no distribution.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// Temperature is negative, infinite or not a number.
    #[error("temperature is {0}; expected a finite number of 0 or more (0 = greedy)")]
    Temperature(f32),
    /// Top-p lies outside 0..=1.
    #[error("top_p is {0}; expected a number from 0 to 1 (1 = all tokens)")]
    TopP(f32),
    /// A logit is NaN or plus infinity.
    #[error("the logit of token {id} is {value}: the model's weights or activations overflowed")]
    Logit {
        /// Which token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// No token has a finite logit.
    #[error("no token is possible: all {0} logits are minus infinity")]
    Nothing(usize),
}

/// Options that were checked, and the memory that choices reuse.
#[derive(Debug)]
pub struct Sampler {
    options: Options,
    /// Tokens still in the race, with exp((z - max) / temperature).
    kept: Vec<(f64, u32)>,
}

impl Sampler {
    /// Checks the options.
    pub fn new(options: Options) -> Result<Sampler, SampleError> {
        if !(options.temperature.is_finite() && options.temperature >= 0.0) {
            return Err(SampleError::Temperature(options.temperature));
        }
        if !(0.0..=1.0).contains(&options.top_p) {
            return Err(SampleError::TopP(options.top_p));
        }
        Ok(Sampler { options, kept: Vec::new() })
    }

    /// The token for `place`, the index of the draw (0 for the first new token).
    pub fn pick(&mut self, logits: &[f32], place: u64) -> Result<u32, SampleError> {
        let best = largest(logits)?;
        let o = self.options;
        if o.temperature == 0.0 || o.top_k == 1 || o.top_p == 0.0 {
            return Ok(best);
        }
        // ① without the division by the sum, which ⑤ makes up for.
        let top = f64::from(logits[best as usize]);
        let weight = |z: f32| ((f64::from(z) - top) / f64::from(o.temperature)).exp();
        self.kept.clear();
        self.kept.extend(logits.iter().zip(0u32..).map(|(&z, id)| (weight(z), id)).filter(|&(p, _)| p > 0.0));
        self.keep_top_k();
        self.keep_top_p();
        // ⑤
        let total: f64 = self.kept.iter().map(|&(p, _)| p).sum();
        let wanted = uniform(o.seed, place) * total;
        let mut sum = 0.0;
        for &(p, id) in &self.kept {
            sum += p;
            if sum > wanted {
                return Ok(id);
            }
        }
        // The draw is below 1, so that only rounding of the last sum leads here.
        Ok(self.kept.last().map_or(best, |&(_, id)| id))
    }

    /// ② and ③.
    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.kept.len() {
            self.kept.select_nth_unstable_by(k - 1, likelier);
            self.kept.truncate(k);
        }
        if k > 0 {
            self.kept.sort_unstable_by(likelier);
        }
    }

    /// ② and ④.
    fn keep_top_p(&mut self) {
        let top_p = f64::from(self.options.top_p);
        if top_p >= 1.0 {
            return;
        }
        let total: f64 = self.kept.iter().map(|&(p, _)| p).sum();
        // Tokens below (1 - top_p) / n share less than 1 - top_p between them: the head ends before the first of them,
        // so they need not be sorted. The factor keeps rounding on the safe side.
        let n = self.kept.len() as f64;
        let least = 0.999 * (1.0 - top_p) / n * total;
        self.kept.retain(|&(p, _)| p >= least);
        self.kept.sort_unstable_by(likelier);
        let mut sum = 0.0;
        let head = self.kept.iter().position(|&(p, _)| {
            sum += p;
            sum >= top_p * total
        });
        if let Some(last) = head {
            self.kept.truncate(last + 1);
        }
    }
}

/// Larger probability first; of equals the lower id.
fn likelier(a: &(f64, u32), b: &(f64, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The id of the largest logit, the lowest of equals.
pub fn largest(logits: &[f32]) -> Result<u32, SampleError> {
    let mut best: Option<usize> = None;
    for (id, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SampleError::Logit { id, value });
        }
        if value > best.map_or(f32::NEG_INFINITY, |b| logits[b]) {
            best = Some(id);
        }
    }
    best.map(|id| id as u32).ok_or(SampleError::Nothing(logits.len()))
}

/// ln Σ exp z, summed in f64.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - max).exp()).sum();
    (f64::from(max) + sum.ln()) as f32
}

/// Ids and logits of the `k` likeliest, those first; of equals the lower id first.
pub fn likeliest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
    for (other, &z) in (0u32..).zip(logits) {
        if k > 0 && (top.len() < k || z > top[k - 1].1) {
            let at = top.partition_point(|&(_, better)| better >= z);
            top.insert(at, (other, z));
            top.truncate(k);
        }
    }
    top
}

/// A number in `[0, 1)` with 53 random bits, a function of its arguments.
fn uniform(seed: u64, place: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let start = mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
    let bits = mix(start.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(options: Options, logits: &[f32], place: u64) -> u32 {
        Sampler::new(options).unwrap().pick(logits, place).unwrap()
    }

    const PLAIN: Options = Options { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 3 };

    /// Share of each of 4 tokens in 40,000 draws.
    fn shares(options: Options, logits: &[f32; 4]) -> [f64; 4] {
        let mut sampler = Sampler::new(options).unwrap();
        let mut counts = [0.0; 4];
        for place in 0..40_000 {
            counts[sampler.pick(logits, place).unwrap() as usize] += 1.0 / 40_000.0;
        }
        counts
    }

    fn close(got: [f64; 4], want: [f64; 4]) {
        for (g, w) in got.iter().zip(want) {
            // Four standard deviations of 40,000 draws are at most 0.01.
            assert!((g - w).abs() <= if w == 0.0 { 0.0 } else { 0.01 }, "{got:?} {want:?}");
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        close(shares(PLAIN, &logits), [0.1, 0.2, 0.3, 0.4]);
        // Temperature 1/2 squares: 1, 4, 9, 16 of 30.
        let cold = Options { temperature: 0.5, ..PLAIN };
        close(shares(cold, &logits), [1.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0, 16.0 / 30.0]);
        close(shares(Options { top_k: 2, ..PLAIN }, &logits), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        // 0.4 alone is less than 0.5, 0.4 + 0.3 is enough.
        close(shares(Options { top_p: 0.5, ..PLAIN }, &logits), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        // Top-k first, then top-p of what it left: 4/9 is less than 0.7, 7/9 is enough.
        let both = Options { top_k: 3, top_p: 0.7, ..PLAIN };
        close(shares(both, &logits), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
    }

    #[test]
    fn the_short_cut_of_top_p_changes_nothing() {
        for seed in 0..30 {
            let logits: Vec<f32> = (0..50).map(|i| (uniform(seed, i) * 8.0) as f32).collect();
            for top_p in [0.01f32, 0.3, 0.9, 0.99, 0.999_99] {
                let mut sampler = Sampler::new(Options { top_p, ..PLAIN }).unwrap();
                sampler.pick(&logits, 0).unwrap();
                let mut kept: Vec<u32> = sampler.kept.iter().map(|&(_, id)| id).collect();
                kept.sort_unstable();
                let mut all: Vec<(f64, u32)> =
                    logits.iter().zip(0..).map(|(&z, id)| (f64::from(z - 8.0).exp(), id)).collect();
                all.sort_by(likelier);
                let total: f64 = all.iter().map(|a| a.0).sum();
                let mut sum = 0.0;
                let mut want = Vec::new();
                for (p, id) in all {
                    want.push(id);
                    sum += p / total;
                    if sum >= f64::from(top_p) {
                        break;
                    }
                }
                want.sort_unstable();
                assert_eq!(kept, want, "seed {seed} top_p {top_p}");
            }
        }
    }

    #[test]
    fn greedy_and_its_other_names_take_the_largest() {
        let logits = [1.0, 5.0, -2.0, 5.0];
        for options in [
            Options::greedy(),
            Options { top_k: 1, ..PLAIN },
            Options { top_p: 0.0, ..PLAIN },
            Options { temperature: 1e-30, top_k: 1, ..PLAIN },
        ] {
            for place in 0..20 {
                assert_eq!(pick(options, &logits, place), 1, "of equals the lower id: {options:?}");
            }
        }
    }

    #[test]
    fn edges_of_the_logits() {
        let inf = f32::INFINITY;
        let mut sampler = Sampler::new(PLAIN).unwrap();
        assert!(matches!(sampler.pick(&[0.0, f32::NAN], 0), Err(SampleError::Logit { id: 1, .. })));
        assert!(matches!(sampler.pick(&[inf, 0.0], 0), Err(SampleError::Logit { id: 0, .. })));
        assert_eq!(sampler.pick(&[-inf, -inf], 0), Err(SampleError::Nothing(2)));
        assert_eq!(sampler.pick(&[], 0), Err(SampleError::Nothing(0)));
        assert_eq!(sampler.pick(&[-inf, -3e38, -inf], 7), Ok(1), "the only possible one");
        for top_k in [4, 5, 1_000_000] {
            let all = Options { top_k, ..PLAIN };
            assert!((0..50).all(|place| pick(all, &[0.0; 4], place) < 4));
        }
        // A temperature this small leaves one token; this large, all alike.
        assert!((0..50).all(|p| pick(Options { temperature: 1e-30, ..PLAIN }, &[1.0, 2.0, 1.5], p) == 1));
        close(shares(Options { temperature: 3e38, ..PLAIN }, &[1.0, 2.0, 3.0, 4.0]), [0.25; 4]);
    }

    #[test]
    fn options_are_checked() {
        for temperature in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(Sampler::new(Options { temperature, ..PLAIN }), Err(SampleError::Temperature(_))));
        }
        for top_p in [-0.1, 1.1, f32::NAN] {
            assert!(matches!(Sampler::new(Options { top_p, ..PLAIN }), Err(SampleError::TopP(_))));
        }
    }

    #[test]
    fn a_draw_is_a_function_of_seed_and_place() {
        let a: Vec<u64> = (0..5).map(|i| uniform(1, i).to_bits()).collect();
        assert_eq!(a, (0..5).map(|i| uniform(1, i).to_bits()).collect::<Vec<_>>());
        assert!((0..5).all(|i| uniform(2, i).to_bits() != a[i as usize]));
        let mean: f64 = (0..10_000).map(|i| uniform(9, i)).sum::<f64>() / 1e4;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
