//! Python's `random.Random`, as far as the language detector draws from it.
//!
//! MT19937, seeded with one word through `init_by_array`; `random()` takes 27 bits and 26, `_randbelow(n)` as many high
//! bits as n has, again until they are below n, and `gauss` makes two numbers at a time (Box and Muller) and keeps one.
//! Source: Matsumoto & Nishimura 1998, "Mersenne Twister"; the Python library reference.

const N: usize = 624;
const M: usize = 397;

pub(super) struct Random {
    state: [u32; N],
    at: usize,
    /// the second of the last two numbers that `gauss` made
    kept: Option<f64>,
}

impl Random {
    /// `random.Random(seed)`.
    pub(super) fn new(seed: u32) -> Random {
        let mut s = [19_650_218u32; N];
        for i in 1..N {
            s[i] = (s[i - 1] ^ s[i - 1] >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        // Each place but the first is mixed once with the seed (place 1 twice), then once with its number.
        for (round, factor) in [(0, 1_664_525u32), (1, 1_566_083_941)] {
            for step in 0..N - round {
                let i = (step + round) % (N - 1) + 1;
                let mixed = s[i] ^ (s[i - 1] ^ s[i - 1] >> 30).wrapping_mul(factor);
                s[i] = if round == 0 { mixed.wrapping_add(seed) } else { mixed.wrapping_sub(i as u32) };
                if i == N - 1 {
                    s[0] = s[N - 1];
                }
            }
        }
        s[0] = 1 << 31;
        Random { state: s, at: N, kept: None }
    }

    fn word(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = self.state[i] & 1 << 31 | self.state[(i + 1) % N] & (1 << 31) - 1;
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ y >> 1 ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    /// `random()`: in [0, 1).
    fn random(&mut self) -> f64 {
        let (high, low) = (self.word() >> 5, self.word() >> 6);
        (f64::from(high) * f64::from(1 << 26) + f64::from(low)) / (1u64 << 53) as f64
    }

    /// `_randbelow(n)`: what `choice` draws. n is at least 1 and below 2^32.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let shift = (n as u32).leading_zeros();
        loop {
            let drawn = (self.word() >> shift) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `gauss(0, 1)`.
    pub(super) fn gauss(&mut self) -> f64 {
        if let Some(z) = self.kept.take() {
            return z;
        }
        let angle = self.random() * std::f64::consts::TAU;
        let radius = (-2.0 * (1.0 - self.random()).ln()).sqrt();
        self.kept = Some(angle.sin() * radius);
        angle.cos() * radius
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From CPython 3.11.
    #[test]
    fn draws_are_pythons() {
        let mut r = Random::new(0);
        assert_eq!(r.random(), 0.844_421_851_525_048_1);
        let mut r = Random::new(0);
        let g = [r.gauss(), r.gauss(), r.gauss()];
        assert_eq!(g, GAUSS);
        assert_eq!([r.below(1000), r.below(7), r.below(1)], BELOW);
    }

    const GAUSS: [f64; 3] = [0.9417154046806644, -1.3965781047011498, -0.6797144480784211];
    const BELOW: [usize; 3] = [523, 3, 0];
}
