//! Expressions, and what they are worth: exactly, or at a point.
//!
//! Two expressions are equal if both have an exact value and it is the same, or if they differ by less than 1e-11 of
//! their size at every point of [`POINTS`] where both are defined, and at two at least. Points are fixed: a symbol's
//! value at a point depends on its name alone. So `(x+1)^2` is `x^2+2x+1`, and no two answers of a competition are so
//! near each other without being equal.

use super::number::{Complex, Ratio};

/// Points at which expressions with symbols are compared.
const POINTS: u64 = 6;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expr {
    /// exact; `true` if written with a point
    Number(Ratio, bool),
    Symbol(String),
    Pi,
    E,
    Infinity,
    Add(Vec<Expr>),
    Mul(Vec<Expr>),
    Div(Box<Expr>, Box<Expr>),
    Pow(Box<Expr>, Box<Expr>),
    Call(String, Vec<Expr>),
    /// a number of hundredths
    Percent(Box<Expr>),
    /// a chain: one relation fewer than expressions
    Relation(Vec<Expr>, Vec<Op>),
    Tuple(Vec<Expr>),
    Set(Vec<Expr>),
    Interval {
        ends: Box<(Expr, Expr)>,
        /// whether the left and the right end are left out
        open: (bool, bool),
    },
    Union(Vec<Expr>),
    Matrix(Vec<Vec<Expr>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Op {
    pub(super) fn flipped(self) -> Op {
        match self {
            Op::Less => Op::More,
            Op::More => Op::Less,
            Op::AtMost => Op::AtLeast,
            Op::AtLeast => Op::AtMost,
            same => same,
        }
    }
}

impl Expr {
    pub(super) fn integer(n: i128) -> Expr {
        Expr::Number(Ratio::new(n, 1).expect("a small integer"), false)
    }

    pub(super) fn negated(self) -> Expr {
        Expr::Mul(vec![Expr::integer(-1), self])
    }

    pub(super) fn minus(&self, other: &Expr) -> Expr {
        Expr::Add(vec![self.clone(), other.clone().negated()])
    }

    /// Whether this is a number and nothing that has parts of other kinds.
    pub(super) fn is_scalar(&self) -> bool {
        match self {
            Expr::Relation(..) | Expr::Tuple(_) | Expr::Set(_) | Expr::Interval { .. } | Expr::Union(_) => false,
            Expr::Matrix(_) => false,
            Expr::Add(parts) | Expr::Mul(parts) | Expr::Call(_, parts) => parts.iter().all(Expr::is_scalar),
            Expr::Div(a, b) | Expr::Pow(a, b) => a.is_scalar() && b.is_scalar(),
            Expr::Percent(a) => a.is_scalar(),
            Expr::Number(..) | Expr::Symbol(_) | Expr::Pi | Expr::E | Expr::Infinity => true,
        }
    }

    /// The exact value of an expression of fractions.
    pub(super) fn exact(&self) -> Option<Ratio> {
        match self {
            Expr::Number(n, _) => Some(*n),
            Expr::Add(parts) => parts.iter().try_fold(Ratio::new(0, 1)?, |sum, part| sum.add(part.exact()?)),
            Expr::Mul(parts) => parts.iter().try_fold(Ratio::new(1, 1)?, |product, part| product.mul(part.exact()?)),
            Expr::Div(a, b) => a.exact()?.mul(b.exact()?.recip()?),
            Expr::Pow(a, b) => a.exact()?.pow(b.exact()?),
            Expr::Percent(a) => a.exact()?.mul(Ratio::new(1, 100)?),
            Expr::Call(name, args) => {
                let args: Vec<i128> = args.iter().map(|a| a.exact()?.integer()).collect::<Option<_>>()?;
                match (name.as_str(), args[..].as_ref()) {
                    ("factorial", [n @ 0..=33]) => Ratio::new((1..=*n).product(), 1),
                    ("binom", [n, k]) => binomial(*n, *k),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// The value at a point; `None` where it has none.
    pub(super) fn at(&self, point: u64, complex: bool) -> Option<Complex> {
        let at = |e: &Expr| e.at(point, complex);
        let value = match self {
            Expr::Number(n, _) => Complex::real(n.to_f64()),
            Expr::Symbol(name) => place(name, point, complex),
            Expr::Pi => Complex::real(std::f64::consts::PI),
            Expr::E => Complex::real(std::f64::consts::E),
            Expr::Add(parts) => parts.iter().try_fold(Complex::real(0.0), |s, p| Some(s.add(at(p)?)))?,
            Expr::Mul(parts) => parts.iter().try_fold(Complex::real(1.0), |s, p| Some(s.mul(at(p)?)))?,
            Expr::Div(a, b) => at(a)?.div(at(b)?),
            Expr::Pow(a, b) => at(a)?.pow(at(b)?),
            Expr::Percent(a) => at(a)?.mul(Complex::real(0.01)),
            Expr::Call(name, args) => {
                let args: Vec<Complex> = args.iter().map(at).collect::<Option<_>>()?;
                call(name, &args, point)?
            }
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// Whether two scalars are equal: see the head of this page.
    pub(super) fn equals(&self, other: &Expr, complex: bool) -> bool {
        if let (Some(a), Some(b)) = (self.exact(), other.exact()) {
            return a == b;
        }
        let mut compared = 0;
        for point in 0..POINTS {
            if let (Some(a), Some(b)) = (self.at(point, complex), other.at(point, complex)) {
                if a.sub(b).abs() > 1e-11 * (a.abs() + b.abs()).max(1e-3) {
                    return false;
                }
                compared += 1;
            }
        }
        compared >= 2
    }
}

fn binomial(n: i128, k: i128) -> Option<Ratio> {
    if !(0..=120).contains(&n) || !(0..=n).contains(&k) {
        return None;
    }
    (0..k).try_fold(Ratio::new(1, 1)?, |b, i| b.mul(Ratio::new(n - i, i + 1)?))
}

/// A number in [-3, 3] that a name and a point fix, not near zero more often than elsewhere.
fn place(name: &str, point: u64, complex: bool) -> Complex {
    let mix = |salt: u64| {
        let start = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(point + 1).wrapping_add(salt);
        let hash = name.bytes().fold(start, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3).rotate_left(23));
        let hash = (hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (hash ^ hash >> 32) as u32 as f64 / f64::from(u32::MAX) * 6.0 - 3.0
    };
    Complex { re: mix(1), im: if complex { mix(2) } else { 0.0 } }
}

/// A function of its arguments; one that is not known is a symbol whose value its arguments fix.
fn call(name: &str, args: &[Complex], point: u64) -> Option<Complex> {
    let one = Complex::real(1.0);
    let (Some(&x), rest) = (args.first(), args.get(1)) else { return None };
    let trig = |x: Complex| {
        let (up, down) = (Complex::I.mul(x).exp(), Complex::I.mul(x).mul(Complex::real(-1.0)).exp());
        let sin = up.sub(down).div(Complex { re: 0.0, im: 2.0 });
        (sin, up.add(down).div(Complex::real(2.0)))
    };
    let (sin, cos) = trig(x);
    let hyper = |sign: f64| x.exp().add(Complex::real(sign).div(x.exp())).div(Complex::real(2.0));
    let real = |f: fn(f64) -> f64| (x.im == 0.0).then(|| Complex::real(f(x.re)));
    Some(match (name, rest) {
        ("sin", None) => sin,
        ("cos", None) => cos,
        ("tan", None) => sin.div(cos),
        ("cot", None) => cos.div(sin),
        ("sec", None) => one.div(cos),
        ("csc", None) => one.div(sin),
        ("sinh", None) => hyper(-1.0),
        ("cosh", None) => hyper(1.0),
        ("tanh", None) => hyper(-1.0).div(hyper(1.0)),
        ("arcsin", None) => real(f64::asin)?,
        ("arccos", None) => real(f64::acos)?,
        ("arctan", None) => real(f64::atan)?,
        ("floor", None) => real(f64::floor)?,
        ("ceil", None) => real(f64::ceil)?,
        ("exp", None) => x.exp(),
        ("ln", None) => x.ln(),
        ("abs", None) => Complex::real(x.abs()),
        ("log", Some(base)) => x.ln().div(base.ln()),
        ("factorial", None) => real(gamma_after)?,
        ("binom", Some(k)) if x.im == 0.0 && k.im == 0.0 => {
            Complex::real(gamma_after(x.re) / gamma_after(k.re) / gamma_after(x.re - k.re))
        }
        ("max", _) if args.iter().all(|a| a.im == 0.0) => {
            Complex::real(args.iter().map(|a| a.re).fold(f64::NEG_INFINITY, f64::max))
        }
        ("min", _) if args.iter().all(|a| a.im == 0.0) => {
            Complex::real(args.iter().map(|a| a.re).fold(f64::INFINITY, f64::min))
        }
        _ => {
            let key: String = args.iter().map(|a| format!(" {:.9e} {:.9e}", a.re + 0.0, a.im + 0.0)).collect();
            place(&format!("{name}{key}"), point, true)
        }
    })
}

/// Γ(x + 1), by Lanczos' approximation with g = 7 and nine terms (1e-15 of its size).
fn gamma_after(x: f64) -> f64 {
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < -0.5 {
        let sine = (std::f64::consts::PI * (x + 1.0)).sin();
        return std::f64::consts::PI / (sine * gamma_after(-x - 1.0));
    }
    let t = x + 7.5;
    let sum = (1..9).fold(TERMS[0], |s, i| s + TERMS[i] / (x + i as f64));
    (2.0 * std::f64::consts::PI).sqrt() * t.powf(x + 0.5) * (-t).exp() * sum
}
