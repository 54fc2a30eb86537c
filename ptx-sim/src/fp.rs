//! Rounding: from exact or nearly exact f64 values to the formats of the lanes.
//!
//! A sum, product, quotient or root of f32 values is computed in f64 and *rounded to odd*: cut, with the last bit set
//! when anything was cut off. As f64 has more than two bits beyond what is wanted, rounding that once more gives what
//! rounding the exact value would have given, in every direction.
//!
//! Source: Boldo & Melquiond 2008, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to
//! odd".

/// Directions of rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Near,
    Zero,
    Down,
    Up,
    /// To nearest, ties away from zero.
    Away,
}

/// A binary format: bits of exponent and of fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Format {
    pub exp: u32,
    pub man: u32,
    /// Whether the largest exponent holds infinities; e4m3 gives it to numbers and keeps one NaN.
    pub inf: bool,
}

pub(crate) const F16: Format = Format { exp: 5, man: 10, inf: true };
pub(crate) const BF16: Format = Format { exp: 8, man: 7, inf: true };
pub(crate) const F32: Format = Format { exp: 8, man: 23, inf: true };
pub(crate) const TF32: Format = Format { exp: 8, man: 10, inf: true };
pub(crate) const E5M2: Format = Format { exp: 5, man: 2, inf: true };
pub(crate) const E4M3: Format = Format { exp: 4, man: 3, inf: false };

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exp - 1)) - 1
    }

    fn sign_shift(self) -> u32 {
        self.exp + self.man
    }

    /// The bits of the largest finite value.
    pub fn max_bits(self) -> u32 {
        let top = ((1 << self.exp) - 1) << self.man;
        if self.inf { top - 1 } else { top | ((1 << self.man) - 2) }
    }

    pub fn nan_bits(self) -> u32 {
        // NVIDIA's one NaN of each format: all ones below the sign.
        (1 << self.sign_shift()) - 1
    }

    /// The bits of `x` rounded into this format; beyond its range infinity, or what the direction or `satfinite` says.
    pub fn round(self, x: f64, round: Round, satfinite: bool) -> u32 {
        if x.is_nan() {
            return self.nan_bits();
        }
        let sign = u32::from(x.is_sign_negative()) << self.sign_shift();
        let a = x.abs();
        if a == 0.0 {
            return sign;
        }
        let over = match round {
            Round::Zero => self.max_bits(),
            Round::Down if x > 0.0 => self.max_bits(),
            Round::Up if x < 0.0 => self.max_bits(),
            _ if satfinite || !self.inf => self.max_bits(),
            _ => self.max_bits() + 1,
        };
        if a.is_infinite() {
            let inf = if satfinite || !self.inf { self.max_bits() } else { self.max_bits() + 1 };
            return sign | inf;
        }
        let e = ((a.to_bits() >> 52) as i32 - 1023).max(1 - self.bias());
        if e > self.bias() + 1 {
            return sign | over;
        }
        // In units of the last place: exact, as a power of two only moves the exponent.
        let units = a * exp2i(self.man as i32 - e);
        let whole = whole(units, if x < 0.0 { flip(round) } else { round }) as u64;
        let field = (e + self.bias() - 1) as u64;
        let bits = (field << self.man) + whole;
        if bits > u64::from(self.max_bits()) { sign | over } else { sign | bits as u32 }
    }

    /// The value of `bits`.
    pub fn value(self, bits: u32) -> f64 {
        let negative = bits >> self.sign_shift() & 1 == 1;
        let body = bits & ((1 << self.sign_shift()) - 1);
        if body > self.max_bits() {
            let inf = self.inf && body == self.max_bits() + 1;
            let v = if inf { f64::INFINITY } else { f64::NAN };
            return if negative { -v } else { v };
        }
        let field = (body >> self.man) as i32;
        let fraction = f64::from(body & ((1 << self.man) - 1));
        let scale = exp2i(field.max(1) - self.bias() - self.man as i32);
        let v = (fraction + if field > 0 { f64::from(1u32 << self.man) } else { 0.0 }) * scale;
        if negative { -v } else { v }
    }
}

fn exp2i(e: i32) -> f64 {
    // Subnormal f64 never appear: the widest exponent asked for is f32's.
    f64::from_bits(((1023 + e) as u64) << 52)
}

fn flip(r: Round) -> Round {
    match r {
        Round::Down => Round::Up,
        Round::Up => Round::Down,
        r => r,
    }
}

/// `x` to a whole number.
pub(crate) fn whole(x: f64, round: Round) -> f64 {
    match round {
        Round::Near => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Away => x.round(),
    }
}

/// `s`, whose error is `err`, rounded to odd.
fn odd(s: f64, err: f64) -> f64 {
    let bits = s.to_bits();
    if err == 0.0 || !s.is_finite() || err.is_nan() || bits & 1 == 1 {
        return s;
    }
    f64::from_bits(if (err > 0.0) == (s > 0.0) { bits + 1 } else { bits - 1 })
}

/// a + b, rounded to odd.
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    odd(s, (a - (s - t)) + (b - t))
}

/// a · b + c of values of at most 24 bits, rounded to odd.
pub(crate) fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// a / b, rounded to odd.
pub(crate) fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || q == 0.0 {
        return q;
    }
    let rest = (-q).mul_add(b, a);
    odd(q, if b > 0.0 { rest } else { -rest })
}

/// The root of a, rounded to odd.
pub(crate) fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    if !s.is_finite() || s == 0.0 {
        return s;
    }
    odd(s, (-s).mul_add(s, a))
}

/// The f32 of an f64 that is exact or rounded to odd.
pub(crate) fn to_f32(x: f64, round: Round) -> f32 {
    if round == Round::Near {
        return canonical(x as f32);
    }
    if x.is_nan() {
        return f32::from_bits(0x7FFF_FFFF);
    }
    f32::from_bits(F32.round(x, round, false))
}

/// Operations of f32 give one NaN.
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7FFF_FFFF) } else { x }
}

/// bf16 of an f32, to nearest even.
#[inline(always)]
pub(crate) fn bf16_near(x: f32) -> u32 {
    let b = x.to_bits();
    let r = b.wrapping_add(0x7FFF + (b >> 16 & 1)) >> 16;
    if b & 0x7FFF_FFFF > 0x7F80_0000 { 0x7FFF } else { r }
}

/// f16 of an f32, to nearest even.
#[inline(always)]
pub(crate) fn f16_near(x: f32) -> u32 {
    if x.is_nan() { 0x7FFF } else { u32::from(half::f16::from_f32(x).to_bits()) }
}

#[inline(always)]
pub(crate) fn from_f16(x: u32) -> f32 {
    half::f16::from_bits(x as u16).to_f32()
}

#[inline(always)]
pub(crate) fn from_bf16(x: u32) -> f32 {
    f32::from_bits(x << 16)
}

/// A subnormal becomes zero of its sign.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.to_bits() & 0x7F80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn agrees_with_the_machine_to_nearest() {
        let mut seed = 7;
        for _ in 0..200_000 {
            let (a, b, c) = (random(&mut seed) as u32, random(&mut seed) as u32, random(&mut seed) as u32);
            let [x, y, z] = [a, b, c].map(|v| f64::from(f32::from_bits(v)));
            let [p, q, r] = [a, b, c].map(f32::from_bits);
            let same = |got: f64, want: f32| {
                let got = F32.round(got, Round::Near, false);
                assert!(got == want.to_bits() || want.is_nan() && f32::from_bits(got).is_nan(), "{a:x} {b:x} {c:x}");
            };
            same(add_odd(x, y), p + q);
            same(fma_odd(x, y, z), p.mul_add(q, r));
            same(div_odd(x, y), p / q);
            same(sqrt_odd(x), p.sqrt());
            let h = half::f16::from_f32(p);
            assert!(F16.round(x, Round::Near, false) == u32::from(h.to_bits()) || h.is_nan());
            let h = half::bf16::from_f32(p);
            assert!(bf16_near(p) == u32::from(h.to_bits()) || h.is_nan());
            assert_eq!(BF16.round(x, Round::Near, false), bf16_near(p));
        }
    }

    #[test]
    fn every_small_value_stays() {
        for f in [F16, BF16, E4M3, E5M2] {
            for bits in 0..1u32 << (f.sign_shift() + 1) {
                let v = f.value(bits);
                if !v.is_nan() {
                    for r in [Round::Near, Round::Zero, Round::Down, Round::Up, Round::Away] {
                        assert_eq!(f.round(v, r, false), bits, "{f:?} {bits:x}");
                    }
                }
            }
        }
        assert_eq!(E4M3.value(E4M3.max_bits()), 448.0);
        assert_eq!(E5M2.value(E5M2.max_bits()), 57344.0);
        assert_eq!(E4M3.round(1e9, Round::Near, true), E4M3.max_bits());
    }

    #[test]
    fn directions() {
        let third = 1.0 / 3.0;
        let near = third as f32;
        let down = to_f32(third, Round::Down);
        assert!(
            f64::from(down) < third
                && f64::from(to_f32(third, Round::Up)) > third
                && near.to_bits() - down.to_bits() <= 1
        );
        assert_eq!(to_f32(-third, Round::Zero), -down);
        assert_eq!(to_f32(1e300, Round::Down), f32::MAX);
        assert_eq!(to_f32(1e300, Round::Near), f32::INFINITY);
        assert_eq!(TF32.round(1.0 + 2f64.powi(-11), Round::Away, false), (0x3F80_2000u32) >> 13);
    }
}
