//! `cvt`: every lane through f64 or i128, both wide enough to hold any source exactly, then rounded once.

use super::alu::each32;
use super::warp::{LANES, Warp};
use crate::fp::{self, Format, Round};
use crate::ir::{Cvt, Float, Num, Width};

/// Converts the lanes of `m`.
#[inline(always)]
pub(super) fn run(w: &mut Warp, m: u32, c: &Cvt) {
    let plain = c.round == Round::Near && !c.ftz && !c.sat && !c.relu && !c.whole;
    match (c.to, c.from, c.b) {
        (Num::F(Float::Bf16x2), _, Some(b)) if plain => {
            each32!(w, m, c.d; x = c.a, y = b;
                fp::bf16_near(f32::from_bits(x)) << 16 | fp::bf16_near(f32::from_bits(y)));
        }
        (Num::F(Float::Bf16), Num::F(Float::F32), _) if plain => {
            each32!(w, m, c.d; x = c.a; fp::bf16_near(f32::from_bits(x)));
        }
        (Num::F(Float::F16), Num::F(Float::F32), _) if plain => {
            each32!(w, m, c.d; x = c.a; fp::f16_near(f32::from_bits(x)));
        }
        (Num::F(Float::F32), Num::F(Float::Bf16), _) if plain => {
            each32!(w, m, c.d; x = c.a; fp::canonical(fp::from_bf16(x)).to_bits());
        }
        (Num::F(Float::F32), Num::F(Float::F16), _) if plain => {
            each32!(w, m, c.d; x = c.a; fp::canonical(fp::from_f16(x)).to_bits());
        }
        (Num::U(_) | Num::S(_), Num::U(_) | Num::S(_), _) if !c.sat => integers(w, m, c),
        _ => rare(w, m, c),
    }
}

fn integers(w: &mut Warp, m: u32, c: &Cvt) {
    let source: [u64; LANES] = if c.aw == Width::W64 { *w.r64(c.a) } else { w.r32(c.a).map(u64::from) };
    let (from, from_signed) = int_of(c.from);
    let (to, to_signed) = int_of(c.to);
    let extend = |x: u64, bits: u32, signed: bool| {
        let up = 64 - bits;
        if signed { ((x << up) as i64 >> up) as u64 } else { x << up >> up }
    };
    let out = source.map(|x| extend(extend(x, from, from_signed), to, to_signed));
    write(w, m, c, &out);
}

fn int_of(n: Num) -> (u32, bool) {
    match n {
        Num::S(b) => (b.into(), true),
        Num::U(b) => (b.into(), false),
        _ => unreachable!("asked of integers only"),
    }
}

fn write(w: &mut Warp, m: u32, c: &Cvt, out: &[u64; LANES]) {
    match c.w {
        Width::W64 => w.set64(c.d, m, out),
        Width::W32 => w.set32(c.d, m, &out.map(|x| x as u32)),
        Width::W16 => w.set32(c.d, m, &out.map(|x| x as u32 & 0xFFFF)),
    }
}

/// A lane's value: an integer or a float, exact.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Real(f64),
}

#[inline(never)]
fn rare(w: &mut Warp, m: u32, c: &Cvt) {
    let source: [u64; LANES] = if c.aw == Width::W64 { *w.r64(c.a) } else { w.r32(c.a).map(u64::from) };
    let second = c.b.map(|b| *w.r32(b));
    let mut out = [0u64; LANES];
    for i in 0..LANES {
        if m >> i & 1 == 0 {
            continue;
        }
        out[i] = match (c.to, second) {
            (Num::F(Float::Bf16x2), Some(b)) => pair(c, fp::BF16, 16, source[i] as u32, b[i]),
            (Num::F(Float::F16x2), Some(b)) => pair(c, fp::F16, 16, source[i] as u32, b[i]),
            (Num::E4m3x2, Some(b)) => pair(c, fp::E4M3, 8, source[i] as u32, b[i]),
            (Num::E5m2x2, Some(b)) => pair(c, fp::E5M2, 8, source[i] as u32, b[i]),
            (Num::F(Float::F16x2), None) => unpack(c, source[i]),
            (Num::E4m3x2, None) => repack(c, fp::E4M3, source[i]),
            (Num::E5m2x2, None) => repack(c, fp::E5M2, source[i]),
            _ => one(c, source[i]),
        };
    }
    write(w, m, c, &out);
}

fn pair(c: &Cvt, f: Format, bits: u32, high: u32, low: u32) -> u64 {
    let half = |x: u32| u64::from(small(c, f, f32::from_bits(x).into()));
    half(high) << bits | half(low)
}

fn small(c: &Cvt, f: Format, x: f64) -> u32 {
    let x = if c.relu && (x < 0.0 || x.is_nan()) { if x.is_nan() { x } else { 0.0 } } else { x };
    f.round(x, c.round, c.sat)
}

/// Two values of 8 bits to two of f16.
fn unpack(c: &Cvt, x: u64) -> u64 {
    let f = if c.from == Num::E4m3x2 { fp::E4M3 } else { fp::E5M2 };
    let half = |s: u32| u64::from(small(c, fp::F16, f.value((x >> s) as u32 & 0xFF)));
    half(8) << 16 | half(0)
}

fn repack(c: &Cvt, f: Format, x: u64) -> u64 {
    let half = |s: u32| u64::from(small(c, f, fp::F16.value((x >> s) as u32 & 0xFFFF)));
    half(16) << 8 | half(0)
}

fn one(c: &Cvt, x: u64) -> u64 {
    let value = match c.from {
        Num::U(b) => Value::Int((x & (u64::MAX >> (64 - b))).into()),
        Num::S(b) => Value::Int((((x << (64 - b)) as i64) >> (64 - b)).into()),
        Num::F(Float::F32) => {
            let v = f32::from_bits(x as u32);
            Value::Real(if c.ftz { fp::flush(v) } else { v }.into())
        }
        Num::F(Float::F64) => Value::Real(f64::from_bits(x)),
        Num::F(Float::F16) => Value::Real(fp::F16.value(x as u32 & 0xFFFF)),
        Num::F(Float::Bf16) => Value::Real(fp::BF16.value(x as u32 & 0xFFFF)),
        _ => unreachable!("the decoder lets no such conversion through"),
    };
    match c.to {
        Num::U(b) => to_int(c, value, 0, i128::from(u64::MAX >> (64 - b))),
        Num::S(b) => to_int(c, value, -(1i128 << (b - 1)), (1i128 << (b - 1)) - 1),
        _ => to_real(c, value),
    }
}

/// To an integer: floats out of range give its nearest end and NaN gives 0, or for 64 bits the lowest.
fn to_int(c: &Cvt, v: Value, low: i128, high: i128) -> u64 {
    let n = match v {
        Value::Int(n) => n,
        Value::Real(x) if x.is_nan() => {
            if high > i128::from(u32::MAX) {
                1i128 << 63
            } else {
                0
            }
        }
        Value::Real(x) => (fp::whole(x, c.round) as i128).clamp(low, high),
    };
    let n = if c.sat { n.clamp(low, high) } else { n };
    n as u64
}

fn to_real(c: &Cvt, v: Value) -> u64 {
    let mut x = match v {
        // Beyond 53 bits the last bit keeps what was cut, so that rounding once more is rounding once.
        Value::Int(n) => {
            let cut = 128 - n.unsigned_abs().leading_zeros().min(128);
            let over = cut.saturating_sub(53);
            let lost = n & ((1 << over) - 1) != 0;
            ((n >> over) | i128::from(lost)) as f64 * 2f64.powi(over as i32)
        }
        Value::Real(x) => x,
    };
    if c.whole {
        x = fp::whole(x, c.round);
    }
    if c.sat {
        x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) };
    }
    if c.relu && x < 0.0 {
        x = 0.0;
    }
    match c.to {
        Num::F(Float::F64) => match v {
            Value::Int(n) if c.round == Round::Near => (n as f64).to_bits(),
            _ => x.to_bits(),
        },
        Num::F(Float::F32) => {
            let r = fp::to_f32(x, c.round);
            (if c.ftz { fp::flush(r) } else { r }).to_bits().into()
        }
        Num::F(Float::F16) => fp::F16.round(x, c.round, false).into(),
        Num::F(Float::Bf16) => fp::BF16.round(x, c.round, false).into(),
        // A word whose last 13 bits are zero.
        Num::Tf32 => u64::from(fp::TF32.round(x, c.round, c.sat)) << 13,
        _ => unreachable!("the decoder lets no such conversion through"),
    }
}
