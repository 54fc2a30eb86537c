//! Python's `random.Random`, as far as drawing examples, resampling and telling languages apart need it.
//!
//! The generator is MT19937; a whole number seeds it through `init_by_array` with its 32-bit words, least first.
//!
//! ```text
//! random()         (a · 2^26 + b) / 2^53     a: 27 high bits of one word, b: 26 of the next
//! getrandbits(k)   the k high bits of a word
//! randbelow(n)     getrandbits(bit length of n), again until it is below n
//! gauss(0, 1)      √(−2 ln(1 − v)) · cos 2πu, then the same with sin   u, v: two of random()
//! sample(n, k)     n ≤ S: a pool of all n from which drawn ones are taken out; else draws that repeat are drawn again
//!                  S = 21, and for k > 5 also + 4^⌈log₄ 3k⌉
//! choices(n, k)    ⌊random() · n⌋, k times
//! ```
//!
//! Equal seeds give Python's numbers to the bit, so that a benchmark shows the examples that lm-evaluation-harness shows.
//! Source: Matsumoto & Nishimura 1998, "Mersenne Twister"; the Python library reference and CPython 3.11's `random.py`,
//! read for what they do.

const N: usize = 624;
const M: usize = 397;

/// A generator that draws what Python's `random.Random(seed)` draws.
#[derive(Clone)]
pub struct Random {
    state: [u32; N],
    next: usize,
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Random {{ next: {} }}", self.next)
    }
}

impl Random {
    /// `random.Random(seed)`.
    pub fn new(seed: u64) -> Random {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        let mut r = Random { state: [0; N], next: N };
        let s = &mut r.state;
        s[0] = 19_650_218;
        let scramble = |x: u32| x ^ (x >> 30);
        for i in 1..N {
            s[i] = scramble(s[i - 1]).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        let wrap = |s: &mut [u32; N], i: &mut usize| {
            *i += 1;
            if *i >= N {
                s[0] = s[N - 1];
                *i = 1;
            }
        };
        for _ in 0..N {
            s[i] = (s[i] ^ scramble(s[i - 1]).wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            wrap(s, &mut i);
            j = (j + 1) % key.len();
        }
        for _ in 1..N {
            s[i] = (s[i] ^ scramble(s[i - 1]).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            wrap(s, &mut i);
        }
        s[0] = 0x8000_0000;
        r
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn refill(&mut self) {
        let s = &mut self.state;
        let mix = |a: u32, b: u32| {
            let y = (a & 0x8000_0000) | (b & 0x7fff_ffff);
            (y >> 1) ^ ((y & 1).wrapping_neg() & 0x9908_b0df)
        };
        for i in 0..N - M {
            s[i] = s[i + M] ^ mix(s[i], s[i + 1]);
        }
        for i in N - M..N - 1 {
            s[i] = s[i + M - N] ^ mix(s[i], s[i + 1]);
        }
        s[N - 1] = s[M - 1] ^ mix(s[N - 1], s[0]);
        self.next = 0;
    }

    /// `random()`: in [0, 1).
    pub fn random(&mut self) -> f64 {
        let (a, b) = (self.word() >> 5, self.word() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `_randbelow(n)`, for 0 < n < 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        let n = u32::try_from(n).expect("random: fewer than 2^32 things to draw from");
        assert!(n > 0, "random: nothing to draw from");
        let shift = n.leading_zeros();
        loop {
            let r = self.word() >> shift;
            if r < n {
                return r as usize;
            }
        }
    }

    /// What two calls of `gauss(0, 1)` give: the first makes two numbers, the second draws nothing.
    pub fn gauss_pair(&mut self) -> (f64, f64) {
        let angle = self.random() * std::f64::consts::TAU;
        let radius = (-2.0 * (1.0 - self.random()).ln()).sqrt();
        (angle.cos() * radius, angle.sin() * radius)
    }

    /// The places that `sample(population, k)` takes from a population of `n`, in its order; none when k > n.
    pub fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        let mut pool_max = 21usize;
        if k > 5 {
            let mut table = 4usize;
            while table < 3 * k {
                table *= 4;
            }
            pool_max += table;
        }
        if n <= pool_max {
            let mut pool: Vec<usize> = (0..n).collect();
            return Some(
                (0..k)
                    .map(|i| {
                        let j = self.below(n - i);
                        let last = pool[n - i - 1];
                        std::mem::replace(&mut pool[j], last)
                    })
                    .collect(),
            );
        }
        let mut drawn = Vec::with_capacity(k);
        while drawn.len() < k {
            let j = self.below(n);
            if !drawn.contains(&j) {
                drawn.push(j);
            }
        }
        Some(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From CPython 3.11.
    #[test]
    fn draws_are_pythons() {
        let mut r = Random::new(1234);
        let got: Vec<f64> = (0..3).map(|_| r.random()).collect();
        assert_eq!(got, RANDOM_1234);
        assert_eq!(Random::new(0).random(), 0.844_421_851_525_048_1);
        assert_eq!(Random::new(u64::MAX).random(), RANDOM_MAX);
        let mut r = Random::new(1234);
        assert_eq!(r.sample(7473, 5).unwrap(), SAMPLE_BIG);
        assert_eq!(r.sample(20, 6).unwrap(), SAMPLE_POOL);
        assert_eq!(r.sample(85, 16).unwrap(), SAMPLE_EDGE);
        assert_eq!(r.sample(86, 16).unwrap(), SAMPLE_PAST);
        assert_eq!(r.sample(3, 0).unwrap(), [0; 0]);
        assert_eq!(r.sample(3, 4), None);
        let (first, second) = Random::new(0).gauss_pair();
        assert!((first - 0.941_715_404_680_664_4).abs() + (second + 1.396_578_104_701_149_8).abs() < 1e-12);
        // Past one refill of the state.
        let sum: f64 = (0..1000).map(|_| r.random()).sum();
        assert!((sum - SUM_1000).abs() < 1e-9, "{sum}");
    }

    const RANDOM_1234: [f64; 3] = [0.9664535356921388, 0.4407325991753527, 0.007491470058587191];
    const RANDOM_MAX: f64 = 0.021825695401270107;
    const SAMPLE_BIG: [usize; 5] = [6374, 3610, 957, 61, 742];
    const SAMPLE_POOL: [usize; 6] = [18, 1, 2, 3, 11, 16];
    const SAMPLE_EDGE: [usize; 16] = [2, 3, 84, 44, 79, 61, 78, 59, 19, 11, 23, 14, 1, 64, 62, 31];
    const SAMPLE_PAST: [usize; 16] = [8, 85, 69, 59, 76, 11, 65, 74, 5, 34, 71, 82, 38, 61, 45, 31];
    const SUM_1000: f64 = 505.6606783776012;
}
