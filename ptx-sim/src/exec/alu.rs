//! Operations that only touch registers: here those on bits and predicates, in the files beside it integers, floats,
//! comparisons and conversions.
//!
//! Every operation is computed for all 32 lanes and kept for those of the mask, so that the loops have no branches and
//! the compiler turns them into vector instructions.

use super::compare::{compare, setp};
use super::float::{float1, float2, fma};
use super::integer::{int1, int2, int3, mul_wide};
use super::warp::{LANES, Warp};
use crate::ir::{Bool, Float, Op, Row, Width};

/// `d[i] = expression of the sources' lanes`, of 32 bits.
macro_rules! each32 {
    ($w:ident, $m:expr, $d:expr; $($x:ident = $r:expr),+; $e:expr) => {{
        $(let $x = *$w.r32($r);)+
        let mut out = [0u32; LANES];
        for i in 0..LANES {
            $(let $x = $x[i];)+
            out[i] = $e;
        }
        $w.set32($d, $m, &out);
    }};
}

/// As `each32`, of 64 bits.
macro_rules! each64 {
    ($w:ident, $m:expr, $d:expr; $($x:ident = $r:expr),+; $e:expr) => {{
        $(let $x = *$w.r64($r);)+
        let mut out = [0u64; LANES];
        for i in 0..LANES {
            $(let $x = $x[i];)+
            out[i] = $e;
        }
        $w.set64($d, $m, &out);
    }};
}

pub(super) use {each32, each64};

/// Runs an operation that only touches registers; false if `op` is another.
#[inline(always)]
pub(super) fn run(w: &mut Warp, op: &Op, m: u32) -> bool {
    match *op {
        Op::Mov { w: Width::W64, d, a } => each64!(w, m, d; x = a; x),
        Op::Mov { d, a, .. } => each32!(w, m, d; x = a; x),
        Op::MovPred { d, a } => {
            let v = w.pred(a);
            w.set_pred(d, m, v);
        }
        Op::Int2 { f, w: width, d, a, b } => int2(w, m, f, width, d, a, b),
        Op::Int1 { f, w: width, d, a } => int1(w, m, f, width, d, a),
        Op::Int3 { f, w: width, d, a, b, c } => int3(w, m, f, width, d, a, b, c),
        Op::MulWide { w: width, signed, d, a, b, c } => mul_wide(w, m, width, signed, d, a, b, c),
        Op::Float2 { f, t, m: mode, d, a, b } => float2(w, m, f, t, mode, d, a, b),
        Op::Fma { t, m: mode, d, a, b, c } => fma(w, m, t, mode, d, a, b, c),
        Op::Float1 { f, t, m: mode, d, a } => float1(w, m, f, t, mode, d, a),
        Op::Setp(ref s) => setp(w, m, s),
        Op::Selp { w: Width::W64, d, a, b, p } => {
            let p = w.pred(p);
            let (x, y) = (*w.r64(a), *w.r64(b));
            w.set64(d, m, &std::array::from_fn(|i| if p >> i & 1 == 1 { x[i] } else { y[i] }));
        }
        Op::Selp { d, a, b, p, .. } => {
            let p = w.pred(p);
            let (x, y) = (*w.r32(a), *w.r32(b));
            w.set32(d, m, &std::array::from_fn(|i| if p >> i & 1 == 1 { x[i] } else { y[i] }));
        }
        Op::PredLogic { f, d, a, b } => {
            let v = combine(f, w.pred(a), w.pred(b));
            w.set_pred(d, m, v);
        }
        Op::Cvt(ref c) => super::convert::run(w, m, c),
        _ => return rare(w, op, m),
    }
    true
}

/// Operations kernels use seldom.
#[inline(never)]
fn rare(w: &mut Warp, op: &Op, m: u32) -> bool {
    match *op {
        Op::Join { bits, d, ref a } => join(w, m, bits, d, a),
        Op::Split { bits, ref d, a } => split(w, m, bits, d, a),
        Op::Bfi { w: Width::W64, d, a, b, c, e } => {
            let (x, y, at, n) = (*w.r64(a), *w.r64(b), *w.r32(c), *w.r32(e));
            w.set64(d, m, &std::array::from_fn(|i| insert(x[i], y[i], at[i], n[i], 64)));
        }
        Op::Bfi { d, a, b, c, e, .. } => {
            each32!(w, m, d; x = a, y = b, at = c, n = e; insert(x.into(), y.into(), at, n, 32) as u32);
        }
        Op::Carry { sub, w: width, carry, take, give, d, a, b } => {
            add_carry(w, m, sub, width, carry, take, give, d, a, b);
        }
        Op::Set { cmp, ty, ftz, float, d, a, b } => {
            let (v, _) = compare(w, cmp, ty, ftz, a, b);
            let one = if float { 1f32.to_bits() } else { u32::MAX };
            w.set32(d, m, &std::array::from_fn(|i| if v >> i & 1 == 1 { one } else { 0 }));
        }
        Op::Slct { w: width, float, d, a, b, c } => {
            let c = *w.r32(c);
            let first = |i: usize| if float { f32::from_bits(c[i]) >= 0.0 } else { c[i] as i32 >= 0 };
            if width == Width::W64 {
                let (x, y) = (*w.r64(a), *w.r64(b));
                w.set64(d, m, &std::array::from_fn(|i| if first(i) { x[i] } else { y[i] }));
            } else {
                let (x, y) = (*w.r32(a), *w.r32(b));
                w.set32(d, m, &std::array::from_fn(|i| if first(i) { x[i] } else { y[i] }));
            }
        }
        Op::TestP { finite, nan, inf, normal, t, d, a } => {
            let holds = |class: std::num::FpCategory| match class {
                std::num::FpCategory::Nan => nan,
                std::num::FpCategory::Infinite => inf,
                std::num::FpCategory::Normal => finite || normal,
                _ => finite,
            };
            let v = if t == Float::F64 {
                let x = w.r64(a);
                bits_of(|i| holds(f64::from_bits(x[i]).classify()))
            } else {
                let x = w.r32(a);
                bits_of(|i| holds(f32::from_bits(x[i]).classify()))
            };
            w.set_pred(d, m, v);
        }
        _ => return false,
    }
    true
}

/// One bit a lane.
#[inline(always)]
pub(super) fn bits_of(f: impl Fn(usize) -> bool) -> u32 {
    let mut v = 0;
    for i in 0..LANES {
        v |= u32::from(f(i)) << i;
    }
    v
}

pub(super) fn combine(f: Bool, a: u32, b: u32) -> u32 {
    match f {
        Bool::And => a & b,
        Bool::Or => a | b,
        Bool::Xor => a ^ b,
    }
}

fn join(w: &mut Warp, m: u32, bits: u32, d: Row, parts: &[Row]) {
    let mut out = [0u64; LANES];
    for (n, &part) in parts.iter().enumerate() {
        let x = w.r32(part);
        let mask = (1u64 << bits) - 1;
        for i in 0..LANES {
            out[i] |= (u64::from(x[i]) & mask) << (n as u32 * bits);
        }
    }
    if bits * parts.len() as u32 == 64 {
        w.set64(d, m, &out);
    } else {
        w.set32(d, m, &out.map(|x| x as u32));
    }
}

fn split(w: &mut Warp, m: u32, bits: u32, parts: &[Option<Row>], a: Row) {
    let x: [u64; LANES] = if bits * parts.len() as u32 == 64 { *w.r64(a) } else { w.r32(a).map(u64::from) };
    for (n, part) in parts.iter().enumerate() {
        let Some(d) = *part else { continue };
        let mask = (1u64 << bits) - 1;
        w.set32(d, m, &x.map(|x| (x >> (n as u32 * bits) & mask) as u32));
    }
}

/// `bfi`: `n` low bits of `a` placed into `b` from bit `at`.
fn insert(a: u64, b: u64, at: u32, n: u32, width: u32) -> u64 {
    let (at, n) = (at & 0xFF, n & 0xFF);
    if at >= width || n == 0 {
        return b;
    }
    let n = n.min(width - at);
    let mask = (u64::MAX >> (64 - n)) << at;
    b & !mask | a << at & mask
}

fn add_carry(
    w: &mut Warp,
    m: u32,
    sub: bool,
    width: Width,
    carry: u16,
    take: bool,
    give: bool,
    d: Row,
    a: Row,
    b: Row,
) {
    let flag = if take { w.preds[carry as usize] } else { 0 };
    let (mut out, mut new) = ([0u64; LANES], 0u32);
    let wide = width == Width::W64;
    let x: [u64; LANES] = if wide { *w.r64(a) } else { w.r32(a).map(u64::from) };
    let y: [u64; LANES] = if wide { *w.r64(b) } else { w.r32(b).map(u64::from) };
    for i in 0..LANES {
        let c = u128::from(flag >> i & 1);
        let (p, q) = (u128::from(x[i]), u128::from(y[i]));
        // A borrow is kept as a carry of its own.
        let r = if sub { p.wrapping_sub(q).wrapping_sub(c) } else { p + q + c };
        out[i] = r as u64;
        let over = if wide { r >> 64 != 0 } else { r >> 32 != 0 };
        new |= u32::from(over) << i;
    }
    if wide {
        w.set64(d, m, &out);
    } else {
        w.set32(d, m, &out.map(|x| x as u32));
    }
    if give {
        w.set_pred(carry, m, new);
    }
}
