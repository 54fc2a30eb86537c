//! Floats: f32 in plain modes by the machine's own arithmetic, the rest by way of f64 (see `fp`).

use super::alu::{each32, each64};
use super::warp::{LANES, Warp};
use crate::fp::{self, Round};
use crate::ir::{F1, F2, Float, Mode, Row};

pub(super) fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[inline(always)]
fn plain(mode: Mode) -> bool {
    mode.round == Round::Near && !mode.ftz && !mode.sat && !mode.relu
}

/// What `.sat` and `.ftz` leave of a result.
#[inline(always)]
fn finish(x: f32, mode: Mode) -> u32 {
    let x = if mode.ftz { fp::flush(x) } else { x };
    let x = if mode.sat { if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) } } else { x };
    fp::canonical(x).to_bits()
}

/// The smaller, and a NaN only if both are; -0 is smaller than +0.
#[inline(always)]
fn min(x: f32, y: f32) -> f32 {
    let less = if x == y { x.to_bits() > y.to_bits() } else { x < y };
    if y.is_nan() || less { x } else { y }
}

#[inline(always)]
fn max(x: f32, y: f32) -> f32 {
    let more = if x == y { x.to_bits() < y.to_bits() } else { x > y };
    if y.is_nan() || more { x } else { y }
}

#[inline(always)]
pub(super) fn float2(w: &mut Warp, m: u32, op: F2, t: Float, mode: Mode, d: Row, a: Row, b: Row) {
    if t != Float::F32 || !plain(mode) {
        return float2_rare(w, m, op, t, mode, d, a, b);
    }
    match op {
        F2::Add => each32!(w, m, d; x = a, y = b; fp::canonical(f(x) + f(y)).to_bits()),
        F2::Sub => each32!(w, m, d; x = a, y = b; fp::canonical(f(x) - f(y)).to_bits()),
        F2::Mul => each32!(w, m, d; x = a, y = b; fp::canonical(f(x) * f(y)).to_bits()),
        F2::Div => each32!(w, m, d; x = a, y = b; fp::canonical(f(x) / f(y)).to_bits()),
        F2::Min => each32!(w, m, d; x = a, y = b; fp::canonical(min(f(x), f(y))).to_bits()),
        F2::Max => each32!(w, m, d; x = a, y = b; fp::canonical(max(f(x), f(y))).to_bits()),
        _ => float2_rare(w, m, op, t, mode, d, a, b),
    }
}

/// f(x, y) of f32 values, in any direction.
fn f32_pair(op: F2, x: f32, y: f32, mode: Mode) -> u32 {
    let (x, y) = if mode.ftz { (fp::flush(x), fp::flush(y)) } else { (x, y) };
    let (p, q) = (f64::from(x), f64::from(y));
    let nan = x.is_nan() || y.is_nan();
    let r = match op {
        F2::Add => fp::to_f32(fp::add_odd(p, q), mode.round),
        F2::Sub => fp::to_f32(fp::add_odd(p, -q), mode.round),
        F2::Mul => fp::to_f32(p * q, mode.round),
        F2::Div => fp::to_f32(fp::div_odd(p, q), mode.round),
        F2::Min => min(x, y),
        F2::Max => max(x, y),
        F2::MinNan => {
            if nan {
                f32::NAN
            } else {
                min(x, y)
            }
        }
        F2::MaxNan => {
            if nan {
                f32::NAN
            } else {
                max(x, y)
            }
        }
        F2::Copysign => return y.to_bits() & 0x7FFF_FFFF | x.to_bits() & 0x8000_0000,
    };
    finish(r, mode)
}

/// f(x, y) of values of 16 bits.
fn half_pair(op: F2, x: u32, y: u32, bf: bool, mode: Mode) -> u32 {
    let format = if bf { fp::BF16 } else { fp::F16 };
    let (p, q) = (format.value(x & 0xFFFF), format.value(y & 0xFFFF));
    let (nan, first) = (p.is_nan() || q.is_nan(), |c: bool| if c { x } else { y } & 0xFFFF);
    let sign = |x: u32| x >> 15 & 1 == 1;
    let r = match op {
        F2::Add => fp::add_odd(p, q),
        F2::Sub => fp::add_odd(p, -q),
        F2::Mul => p * q,
        F2::MinNan | F2::MaxNan if nan => return 0x7FFF,
        F2::Min | F2::MinNan if p.is_nan() && q.is_nan() => return 0x7FFF,
        F2::Max | F2::MaxNan if p.is_nan() && q.is_nan() => return 0x7FFF,
        F2::Min | F2::MinNan => return first(q.is_nan() || p < q || p == q && sign(x)),
        F2::Max | F2::MaxNan => return first(q.is_nan() || p > q || p == q && !sign(x)),
        F2::Div | F2::Copysign => return y & 0x7FFF | x & 0x8000,
    };
    half_finish(r, format, mode)
}

fn half_finish(r: f64, format: fp::Format, mode: Mode) -> u32 {
    let r = if mode.sat { if r.is_nan() { 0.0 } else { r.clamp(0.0, 1.0) } } else { r };
    let r = if mode.relu && r < 0.0 { 0.0 } else { r };
    format.round(r, mode.round, false)
}

/// Applies `f` to each half of a word, or to its low half only.
fn halves(pair: bool, f: impl Fn(u32) -> u32) -> u32 {
    let low = f(0) & 0xFFFF;
    if pair { low | f(16) << 16 } else { low }
}

pub(super) fn is_pair(t: Float) -> bool {
    matches!(t, Float::F16x2 | Float::Bf16x2)
}

pub(super) fn is_bf(t: Float) -> bool {
    matches!(t, Float::Bf16 | Float::Bf16x2)
}

#[inline(never)]
fn float2_rare(w: &mut Warp, m: u32, op: F2, t: Float, mode: Mode, d: Row, a: Row, b: Row) {
    match t {
        Float::F32 => each32!(w, m, d; x = a, y = b; f32_pair(op, f(x), f(y), mode)),
        Float::F64 => each64!(w, m, d; x = a, y = b; {
            let (x, y) = (f64::from_bits(x), f64::from_bits(y));
            match op {
                F2::Add => x + y,
                F2::Sub => x - y,
                F2::Mul => x * y,
                F2::Div => x / y,
                F2::Min | F2::MinNan => x.min(y),
                F2::Max | F2::MaxNan => x.max(y),
                F2::Copysign => y.copysign(x),
            }.to_bits()
        }),
        _ => {
            let (pair, bf) = (is_pair(t), is_bf(t));
            each32!(w, m, d; x = a, y = b; halves(pair, |s| half_pair(op, x >> s, y >> s, bf, mode)));
        }
    }
}

#[inline(always)]
pub(super) fn fma(w: &mut Warp, m: u32, t: Float, mode: Mode, d: Row, a: Row, b: Row, c: Row) {
    if t == Float::F32 && plain(mode) {
        let out = fma_lanes(w.r32(a), w.r32(b), w.r32(c));
        w.set32(d, m, &out);
    } else {
        fma_rare(w, m, t, mode, d, a, b, c);
    }
}

/// x · y + z of all lanes, rounded once.
fn fma_lanes(x: &[u32; LANES], y: &[u32; LANES], z: &[u32; LANES]) -> [u32; LANES] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both features, as has just been asked.
        return unsafe { fma_wide(x, y, z) };
    }
    fma_plain(x, y, z)
}

/// As `fma_plain`, which becomes a call of the C library for each lane where the compiler may not use the instruction.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_wide(x: &[u32; LANES], y: &[u32; LANES], z: &[u32; LANES]) -> [u32; LANES] {
    fma_plain(x, y, z)
}

#[inline(always)]
fn fma_plain(x: &[u32; LANES], y: &[u32; LANES], z: &[u32; LANES]) -> [u32; LANES] {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = fp::canonical(f(x[i]).mul_add(f(y[i]), f(z[i]))).to_bits();
    }
    out
}

#[inline(never)]
fn fma_rare(w: &mut Warp, m: u32, t: Float, mode: Mode, d: Row, a: Row, b: Row, c: Row) {
    match t {
        Float::F32 => each32!(w, m, d; x = a, y = b, z = c; {
            let [x, y, z] = [x, y, z].map(|v| f64::from(if mode.ftz { fp::flush(f(v)) } else { f(v) }));
            finish(fp::to_f32(fp::fma_odd(x, y, z), mode.round), mode)
        }),
        Float::F64 => each64!(w, m, d; x = a, y = b, z = c;
            f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z)).to_bits()),
        _ => {
            let (pair, format) = (is_pair(t), if is_bf(t) { fp::BF16 } else { fp::F16 });
            each32!(w, m, d; x = a, y = b, z = c; halves(pair, |s| {
                let v = |x: u32| format.value(x >> s & 0xFFFF);
                half_finish(fp::fma_odd(v(x), v(y), v(z)), format, mode)
            }));
        }
    }
}

/// f(x), rounded from f64: the approximations of hardware err by a unit or two in the last place, these do not.
fn f32_single(op: F1, x: f32, mode: Mode) -> u32 {
    let x = if mode.ftz { fp::flush(x) } else { x };
    let wide = f64::from(x);
    let r = match op {
        F1::Neg => return finish_sign(x.to_bits() ^ 0x8000_0000, mode),
        F1::Abs => return finish_sign(x.to_bits() & 0x7FFF_FFFF, mode),
        F1::Rcp => fp::to_f32(fp::div_odd(1.0, wide), mode.round),
        F1::Sqrt => fp::to_f32(fp::sqrt_odd(wide), mode.round),
        F1::Rsqrt => (1.0 / wide.sqrt()) as f32,
        F1::Ex2 => x.exp2(),
        F1::Lg2 => wide.log2() as f32,
        F1::Sin => wide.sin() as f32,
        F1::Cos => wide.cos() as f32,
        F1::Tanh => wide.tanh() as f32,
    };
    finish(r, mode)
}

fn finish_sign(bits: u32, mode: Mode) -> u32 {
    if mode.ftz { fp::flush(f(bits)).to_bits() } else { bits }
}

#[inline(never)]
pub(super) fn float1(w: &mut Warp, m: u32, op: F1, t: Float, mode: Mode, d: Row, a: Row) {
    match t {
        Float::F32 => match op {
            F1::Neg if plain(mode) => each32!(w, m, d; x = a; x ^ 0x8000_0000),
            F1::Abs if plain(mode) => each32!(w, m, d; x = a; x & 0x7FFF_FFFF),
            F1::Ex2 => each32!(w, m, d; x = a; finish(if mode.ftz { fp::flush(f(x)) } else { f(x) }.exp2(), mode)),
            _ => each32!(w, m, d; x = a; f32_single(op, f(x), mode)),
        },
        Float::F64 => each64!(w, m, d; x = a; {
            let v = f64::from_bits(x);
            match op {
                F1::Neg => (-v).to_bits(),
                F1::Abs => v.abs().to_bits(),
                F1::Rcp => (1.0 / v).to_bits(),
                F1::Sqrt => v.sqrt().to_bits(),
                _ => (1.0 / v.sqrt()).to_bits(),
            }
        }),
        _ => {
            let (pair, format) = (is_pair(t), if is_bf(t) { fp::BF16 } else { fp::F16 });
            each32!(w, m, d; x = a; halves(pair, |s| {
                let x = x >> s & 0xFFFF;
                match op {
                    F1::Neg => x ^ 0x8000,
                    F1::Abs => x & 0x7FFF,
                    F1::Ex2 => format.round(format.value(x).exp2(), Round::Near, false),
                    _ => format.round(format.value(x).tanh(), Round::Near, false),
                }
            }));
        }
    }
}
