//! Exact fractions of 128-bit integers, and complex floats for what has no exact value.

/// A fraction in lowest terms, its denominator positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ratio {
    num: i128,
    den: i128,
}

fn gcd(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Ratio {
    /// `None` for a denominator of zero, and where a number would pass 127 bits; so for all that follow.
    pub(super) fn new(num: i128, den: i128) -> Option<Ratio> {
        if den == 0 || num == i128::MIN || den == i128::MIN {
            return None;
        }
        let g = gcd(num, den).abs() * den.signum();
        Some(Ratio { num: num / g, den: den / g })
    }

    /// Digits with at most one point among them.
    pub(super) fn parse(text: &str) -> Option<Ratio> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let num = format!("{whole}{part}").parse().ok()?;
        Ratio::new(num, 10i128.checked_pow(u32::try_from(part.len()).ok()?)?)
    }

    pub(super) fn add(self, o: Ratio) -> Option<Ratio> {
        let left = self.num.checked_mul(o.den)?;
        Ratio::new(left.checked_add(o.num.checked_mul(self.den)?)?, self.den.checked_mul(o.den)?)
    }

    pub(super) fn mul(self, o: Ratio) -> Option<Ratio> {
        Ratio::new(self.num.checked_mul(o.num)?, self.den.checked_mul(o.den)?)
    }

    pub(super) fn recip(self) -> Option<Ratio> {
        Ratio::new(self.den, self.num)
    }

    /// A whole power.
    pub(super) fn pow(self, exponent: Ratio) -> Option<Ratio> {
        let n = exponent.integer()?;
        let base = if n < 0 { self.recip()? } else { self };
        let n = u32::try_from(n.unsigned_abs()).ok()?;
        Ratio::new(base.num.checked_pow(n)?, base.den.checked_pow(n)?)
    }

    pub(super) fn integer(self) -> Option<i128> {
        (self.den == 1).then_some(self.num)
    }

    pub(super) fn to_f64(self) -> f64 {
        self.num as f64 / self.den as f64
    }
}

/// re + im·i
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

impl Complex {
    pub(super) const I: Complex = Complex { re: 0.0, im: 1.0 };

    pub(super) fn real(re: f64) -> Complex {
        Complex { re, im: 0.0 }
    }

    pub(super) fn add(self, o: Complex) -> Complex {
        Complex { re: self.re + o.re, im: self.im + o.im }
    }

    pub(super) fn sub(self, o: Complex) -> Complex {
        Complex { re: self.re - o.re, im: self.im - o.im }
    }

    pub(super) fn mul(self, o: Complex) -> Complex {
        Complex { re: self.re * o.re - self.im * o.im, im: self.re * o.im + self.im * o.re }
    }

    pub(super) fn div(self, o: Complex) -> Complex {
        let norm = o.re * o.re + o.im * o.im;
        let top = self.mul(Complex { re: o.re, im: -o.im });
        Complex { re: top.re / norm, im: top.im / norm }
    }

    pub(super) fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    pub(super) fn exp(self) -> Complex {
        let r = self.re.exp();
        Complex { re: r * self.im.cos(), im: r * self.im.sin() }
    }

    pub(super) fn ln(self) -> Complex {
        Complex { re: self.abs().ln(), im: self.im.atan2(self.re) }
    }

    /// The principal value.
    pub(super) fn pow(self, o: Complex) -> Complex {
        if o.im == 0.0 && o.re.fract() == 0.0 && o.re.abs() <= 64.0 {
            let power = (0..o.re.abs() as u32).fold(Complex::real(1.0), |p, _| p.mul(self));
            return if o.re < 0.0 { Complex::real(1.0).div(power) } else { power };
        }
        if self.abs() == 0.0 {
            return Complex::real(if o.re > 0.0 { 0.0 } else { f64::NAN });
        }
        self.ln().mul(o).exp()
    }

    pub(super) fn is_finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }
}
