//! Arithmetic, logic and comparison of rows.
//!
//! Every operation is computed for all 32 lanes and kept for those of the mask, so that the loops have no branches and
//! the compiler turns them into vector instructions.

use super::warp::{LANES, Warp};
use crate::fp::{self, Round};
use crate::ir::{Bool, Cmp, F1, F2, Float, I1, I2, I3, Mode, Num, Op, Prmt, Row, Setp, Width};

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
pub(super) use each32;

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

fn combine(f: Bool, a: u32, b: u32) -> u32 {
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

#[inline(always)]
fn int2(w: &mut Warp, m: u32, f: I2, width: Width, d: Row, a: Row, b: Row) {
    match width {
        Width::W32 => int2_32(w, m, f, d, a, b),
        Width::W64 => int2_64(w, m, f, d, a, b),
        Width::W16 => int2_16(w, m, f, d, a, b),
    }
}

#[inline(always)]
fn int2_32(w: &mut Warp, m: u32, f: I2, d: Row, a: Row, b: Row) {
    macro_rules! go {
        (|$x:ident, $y:ident| $e:expr) => {
            each32!(w, m, d; $x = a, $y = b; $e)
        };
    }
    match f {
        I2::Add => go!(|x, y| x.wrapping_add(y)),
        I2::Sub => go!(|x, y| x.wrapping_sub(y)),
        I2::Mul => go!(|x, y| x.wrapping_mul(y)),
        I2::MulHiU => go!(|x, y| ((u64::from(x) * u64::from(y)) >> 32) as u32),
        I2::MulHiS => go!(|x, y| ((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32),
        // A division by zero gives all ones on the hardware at hand; the manual leaves it open.
        I2::DivU => go!(|x, y| x.checked_div(y).unwrap_or(u32::MAX)),
        I2::DivS => go!(|x, y| if y == 0 { u32::MAX } else { (x as i32).wrapping_div(y as i32) as u32 }),
        I2::RemU => go!(|x, y| x.checked_rem(y).unwrap_or(x)),
        I2::RemS => go!(|x, y| if y == 0 { x } else { (x as i32).wrapping_rem(y as i32) as u32 }),
        I2::MinU => go!(|x, y| x.min(y)),
        I2::MinS => go!(|x, y| (x as i32).min(y as i32) as u32),
        I2::MaxU => go!(|x, y| x.max(y)),
        I2::MaxS => go!(|x, y| (x as i32).max(y as i32) as u32),
        I2::And => go!(|x, y| x & y),
        I2::Or => go!(|x, y| x | y),
        I2::Xor => go!(|x, y| x ^ y),
        I2::Shl => go!(|x, y| if y < 32 { x << y } else { 0 }),
        I2::ShrU => go!(|x, y| if y < 32 { x >> y } else { 0 }),
        I2::ShrS => go!(|x, y| (x as i32 >> y.min(31)) as u32),
        I2::AddSat => go!(|x, y| (x as i32).saturating_add(y as i32) as u32),
        I2::SubSat => go!(|x, y| (x as i32).saturating_sub(y as i32) as u32),
    }
}

#[inline(always)]
fn int2_64(w: &mut Warp, m: u32, f: I2, d: Row, a: Row, b: Row) {
    macro_rules! go {
        (|$x:ident, $y:ident| $e:expr) => {
            each64!(w, m, d; $x = a, $y = b; $e)
        };
    }
    macro_rules! shift {
        (|$x:ident, $y:ident| $e:expr) => {{
            let (p, q) = (*w.r64(a), *w.r32(b));
            let mut out = [0u64; LANES];
            for i in 0..LANES {
                let ($x, $y) = (p[i], q[i]);
                out[i] = $e;
            }
            w.set64(d, m, &out);
        }};
    }
    match f {
        I2::Add | I2::AddSat => go!(|x, y| x.wrapping_add(y)),
        I2::Sub | I2::SubSat => go!(|x, y| x.wrapping_sub(y)),
        I2::Mul => go!(|x, y| x.wrapping_mul(y)),
        I2::MulHiU => go!(|x, y| ((u128::from(x) * u128::from(y)) >> 64) as u64),
        I2::MulHiS => go!(|x, y| ((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64),
        I2::DivU => go!(|x, y| x.checked_div(y).unwrap_or(u64::MAX)),
        I2::DivS => go!(|x, y| if y == 0 { u64::MAX } else { (x as i64).wrapping_div(y as i64) as u64 }),
        I2::RemU => go!(|x, y| x.checked_rem(y).unwrap_or(x)),
        I2::RemS => go!(|x, y| if y == 0 { x } else { (x as i64).wrapping_rem(y as i64) as u64 }),
        I2::MinU => go!(|x, y| x.min(y)),
        I2::MinS => go!(|x, y| (x as i64).min(y as i64) as u64),
        I2::MaxU => go!(|x, y| x.max(y)),
        I2::MaxS => go!(|x, y| (x as i64).max(y as i64) as u64),
        I2::And => go!(|x, y| x & y),
        I2::Or => go!(|x, y| x | y),
        I2::Xor => go!(|x, y| x ^ y),
        I2::Shl => shift!(|x, y| if y < 64 { x << y } else { 0 }),
        I2::ShrU => shift!(|x, y| if y < 64 { x >> y } else { 0 }),
        I2::ShrS => shift!(|x, y| (x as i64 >> y.min(63)) as u64),
    }
}

/// Lanes of 16 bits, widened to words by their sign where it matters.
#[inline(never)]
fn int2_16(w: &mut Warp, m: u32, f: I2, d: Row, a: Row, b: Row) {
    macro_rules! go {
        (|$x:ident, $y:ident| $e:expr) => {
            each32!(w, m, d; $x = a, $y = b; u32::from({
                let ($x, $y) = ($x as u16, $y as u16);
                $e
            }))
        };
    }
    match f {
        I2::Add | I2::AddSat => go!(|x, y| x.wrapping_add(y)),
        I2::Sub | I2::SubSat => go!(|x, y| x.wrapping_sub(y)),
        I2::Mul => go!(|x, y| x.wrapping_mul(y)),
        I2::MulHiU => go!(|x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16),
        I2::MulHiS => go!(|x, y| ((i32::from(x as i16) * i32::from(y as i16)) >> 16) as u16),
        I2::DivU => go!(|x, y| x.checked_div(y).unwrap_or(u16::MAX)),
        I2::DivS => go!(|x, y| if y == 0 { u16::MAX } else { (x as i16).wrapping_div(y as i16) as u16 }),
        I2::RemU => go!(|x, y| x.checked_rem(y).unwrap_or(x)),
        I2::RemS => go!(|x, y| if y == 0 { x } else { (x as i16).wrapping_rem(y as i16) as u16 }),
        I2::MinU => go!(|x, y| x.min(y)),
        I2::MinS => go!(|x, y| (x as i16).min(y as i16) as u16),
        I2::MaxU => go!(|x, y| x.max(y)),
        I2::MaxS => go!(|x, y| (x as i16).max(y as i16) as u16),
        I2::And => go!(|x, y| x & y),
        I2::Or => go!(|x, y| x | y),
        I2::Xor => go!(|x, y| x ^ y),
        // The amount has 32 bits.
        I2::Shl => each32!(w, m, d; x = a, y = b; if y < 16 { x << y & 0xFFFF } else { 0 }),
        I2::ShrU => each32!(w, m, d; x = a, y = b; if y < 16 { (x & 0xFFFF) >> y } else { 0 }),
        I2::ShrS => each32!(w, m, d; x = a, y = b; (i32::from(x as i16) >> y.min(15)) as u32 & 0xFFFF),
    }
}

#[inline(never)]
fn int1(w: &mut Warp, m: u32, f: I1, width: Width, d: Row, a: Row) {
    fn find(x: u64, width: u32, shift: bool) -> u32 {
        let top = 64 - x.leading_zeros();
        match (top, shift) {
            (0, _) => u32::MAX,
            (t, false) => t - 1,
            (t, true) => width - t,
        }
    }
    // A negative number is searched for its highest zero.
    let sign = |x: i64| if x < 0 { !x as u64 } else { x as u64 };
    match (f, width) {
        (I1::Not, Width::W64) => each64!(w, m, d; x = a; !x),
        (I1::Neg, Width::W64) => each64!(w, m, d; x = a; x.wrapping_neg()),
        (I1::Abs, Width::W64) => each64!(w, m, d; x = a; (x as i64).wrapping_abs() as u64),
        (I1::Brev, Width::W64) => each64!(w, m, d; x = a; x.reverse_bits()),
        (I1::CNot, Width::W64) => each64!(w, m, d; x = a; u64::from(x == 0)),
        (_, Width::W64) => {
            let x = *w.r64(a);
            let out = x.map(|x| match f {
                I1::Popc => x.count_ones(),
                I1::Clz => x.leading_zeros(),
                I1::FindU(shift) => find(x, 64, shift),
                _ => find(sign(x as i64), 64, f == I1::FindS(true)),
            });
            w.set32(d, m, &out);
        }
        (I1::Not, Width::W16) => each32!(w, m, d; x = a; !x & 0xFFFF),
        (I1::Neg, Width::W16) => each32!(w, m, d; x = a; x.wrapping_neg() & 0xFFFF),
        (I1::Abs, Width::W16) => each32!(w, m, d; x = a; u32::from((x as i16).wrapping_abs() as u16)),
        (I1::Not, _) => each32!(w, m, d; x = a; !x),
        (I1::Neg, _) => each32!(w, m, d; x = a; x.wrapping_neg()),
        (I1::Abs, _) => each32!(w, m, d; x = a; (x as i32).wrapping_abs() as u32),
        (I1::CNot, _) => each32!(w, m, d; x = a; u32::from(x == 0)),
        (I1::Brev, _) => each32!(w, m, d; x = a; x.reverse_bits()),
        (I1::Popc, _) => each32!(w, m, d; x = a; x.count_ones()),
        (I1::Clz, _) => each32!(w, m, d; x = a; x.leading_zeros()),
        (I1::FindU(shift), _) => each32!(w, m, d; x = a; find(x.into(), 32, shift)),
        (I1::FindS(shift), _) => each32!(w, m, d; x = a; find(sign((x as i32).into()), 32, shift)),
    }
}

#[inline(always)]
fn int3(w: &mut Warp, m: u32, f: I3, width: Width, d: Row, a: Row, b: Row, c: Row) {
    match (f, width) {
        (I3::Mad, Width::W32) => each32!(w, m, d; x = a, y = b, z = c; x.wrapping_mul(y).wrapping_add(z)),
        (I3::Mad, Width::W64) => each64!(w, m, d; x = a, y = b, z = c; x.wrapping_mul(y).wrapping_add(z)),
        _ => int3_rare(w, m, f, width, d, a, b, c),
    }
}

#[inline(never)]
fn int3_rare(w: &mut Warp, m: u32, f: I3, width: Width, d: Row, a: Row, b: Row, c: Row) {
    macro_rules! go {
        (|$x:ident, $y:ident, $z:ident| $e:expr) => {
            each32!(w, m, d; $x = a, $y = b, $z = c; $e)
        };
    }
    fn extract(x: u64, at: u32, n: u32, width: u32, signed: bool) -> u64 {
        let (at, n) = (at & 0xFF, n & 0xFF);
        if n == 0 {
            return 0;
        }
        // Bits past the top repeat the sign, which is the last bit that is there.
        let top = (at + n - 1).min(width - 1);
        let fill = if signed && x >> top & 1 == 1 { u64::MAX } else { 0 };
        let got = if at >= width { fill } else { x >> at };
        let have = if at >= width { 0 } else { n.min(width - at) };
        let mask = if have == 0 { 0 } else { u64::MAX >> (64 - have) };
        got & mask | fill & !mask
    }
    let clamp = |n: u32, wrap: bool| if wrap { n & 31 } else { n.min(32) };
    match (f, width) {
        (I3::BfeU | I3::BfeS, Width::W64) => {
            let (x, at, n) = (*w.r64(a), *w.r32(b), *w.r32(c));
            w.set64(d, m, &std::array::from_fn(|i| extract(x[i], at[i], n[i], 64, f == I3::BfeS)));
        }
        (I3::BfeU, _) => go!(|x, y, z| extract(x.into(), y, z, 32, false) as u32),
        (I3::BfeS, _) => go!(|x, y, z| extract(x.into(), y, z, 32, true) as u32),
        (I3::Mad, Width::W16) => go!(|x, y, z| x.wrapping_mul(y).wrapping_add(z) & 0xFFFF),
        (I3::Mad, _) => go!(|x, y, z| x.wrapping_mul(y).wrapping_add(z)),
        (I3::MadHiU, Width::W64) => {
            each64!(w, m, d; x = a, y = b, z = c; (((u128::from(x) * u128::from(y)) >> 64) as u64).wrapping_add(z));
        }
        (I3::MadHiS, Width::W64) => {
            each64!(w, m, d; x = a, y = b, z = c; (((i128::from(x as i64) * i128::from(y as i64)) >> 64) as u64).wrapping_add(z));
        }
        (I3::MadHiU, _) => go!(|x, y, z| (((u64::from(x) * u64::from(y)) >> 32) as u32).wrapping_add(z)),
        (I3::MadHiS, _) => {
            go!(|x, y, z| (((i64::from(x as i32) * i64::from(y as i32)) >> 32) as u32).wrapping_add(z));
        }
        (I3::SadU, _) => go!(|x, y, z| x.abs_diff(y).wrapping_add(z)),
        (I3::SadS, _) => go!(|x, y, z| (x as i32).abs_diff(y as i32).wrapping_add(z)),
        (I3::ShfL { wrap }, _) => {
            go!(|x, y, z| (((u64::from(y) << 32 | u64::from(x)) << clamp(z, wrap)) >> 32) as u32);
        }
        (I3::ShfR { wrap }, _) => go!(|x, y, z| ((u64::from(y) << 32 | u64::from(x)) >> clamp(z, wrap)) as u32),
        (I3::Lop3(lut), _) => go!(|x, y, z| lop3(x, y, z, lut)),
        (I3::Prmt(mode), _) => go!(|x, y, z| permute(x, y, z, mode)),
        (I3::Fns, _) => go!(|x, y, z| nth_set(x, y, z)),
        (I3::Dp4a { a_signed, b_signed }, _) => {
            let byte = |x: u32, n: u32, s: bool| {
                let b = (x >> (8 * n)) as u8;
                if s { i32::from(b as i8) } else { i32::from(b) }
            };
            go!(|x, y, z| (0..4)
                .fold(z, |sum, n| { sum.wrapping_add((byte(x, n, a_signed) * byte(y, n, b_signed)) as u32) }));
        }
    }
}

/// Bit by bit, the entry of `lut` that the three bits name.
fn lop3(x: u32, y: u32, z: u32, lut: u8) -> u32 {
    let mut out = 0;
    for n in 0..8 {
        if lut >> n & 1 == 1 {
            let pick = |v: u32, bit: u32| if n >> bit & 1 == 1 { v } else { !v };
            out |= pick(x, 2) & pick(y, 1) & pick(z, 0);
        }
    }
    out
}

fn permute(x: u32, y: u32, sel: u32, mode: Prmt) -> u32 {
    let bytes = (u64::from(y) << 32 | u64::from(x)).to_le_bytes();
    let n = sel & 3;
    let select: [u32; 4] = match mode {
        Prmt::Index => std::array::from_fn(|i| sel >> (4 * i) & 0xF),
        Prmt::F4e => std::array::from_fn(|i| n + i as u32),
        Prmt::B4e => std::array::from_fn(|i| (n + 8 - i as u32) & 7),
        Prmt::Rc8 => [n; 4],
        Prmt::Ecl => std::array::from_fn(|i| n.max(i as u32)),
        Prmt::Ecr => std::array::from_fn(|i| n.min(i as u32)),
        Prmt::Rc16 => std::array::from_fn(|i| 2 * (n & 1) + (i as u32 & 1)),
    };
    u32::from_le_bytes(select.map(|s| {
        let b = bytes[(s & 7) as usize];
        // Bit 3 asks for the byte's sign, eight times.
        if s & 8 == 0 { b } else { ((b as i8) >> 7) as u8 }
    }))
}

/// `fns`: the place of the n-th set bit of `mask` from `base`, upwards or, for negative n, downwards.
fn nth_set(mask: u32, base: u32, n: u32) -> u32 {
    let (base, n) = (base & 31, n as i32);
    if n == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let mut left = n.unsigned_abs();
    let mut at = base as i32;
    while (0..32).contains(&at) {
        if mask >> at & 1 == 1 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += n.signum();
    }
    u32::MAX
}

#[inline(always)]
fn mul_wide(w: &mut Warp, m: u32, width: Width, signed: bool, d: Row, a: Row, b: Row, c: Option<Row>) {
    if width == Width::W16 {
        let product = |x: u32, y: u32| {
            if signed {
                i32::from(x as i16).wrapping_mul(i32::from(y as i16)) as u32
            } else {
                (x & 0xFFFF) * (y & 0xFFFF)
            }
        };
        match c {
            Some(c) => each32!(w, m, d; x = a, y = b, z = c; product(x, y).wrapping_add(z)),
            None => each32!(w, m, d; x = a, y = b; product(x, y)),
        }
        return;
    }
    let (x, y) = (*w.r32(a), *w.r32(b));
    let mut out = [0u64; LANES];
    if signed {
        for i in 0..LANES {
            out[i] = (i64::from(x[i] as i32) * i64::from(y[i] as i32)) as u64;
        }
    } else {
        for i in 0..LANES {
            out[i] = u64::from(x[i]) * u64::from(y[i]);
        }
    }
    if let Some(c) = c {
        let z = w.r64(c);
        for i in 0..LANES {
            out[i] = out[i].wrapping_add(z[i]);
        }
    }
    w.set64(d, m, &out);
}

fn f(x: u32) -> f32 {
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
fn float2(w: &mut Warp, m: u32, op: F2, t: Float, mode: Mode, d: Row, a: Row, b: Row) {
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

fn is_pair(t: Float) -> bool {
    matches!(t, Float::F16x2 | Float::Bf16x2)
}

fn is_bf(t: Float) -> bool {
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
fn fma(w: &mut Warp, m: u32, t: Float, mode: Mode, d: Row, a: Row, b: Row, c: Row) {
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
fn float1(w: &mut Warp, m: u32, op: F1, t: Float, mode: Mode, d: Row, a: Row) {
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

fn setp(w: &mut Warp, m: u32, s: &Setp) {
    let (v, ordered) = compare(w, s.cmp, s.ty, s.ftz, s.a, s.b);
    let c = w.pred(s.c);
    if let Some(p) = s.p {
        let r = combine(s.bool_op, v, c);
        w.set_pred(p, m, r);
    }
    if let Some(q) = s.q {
        let r = combine(s.bool_op, ordered.unwrap_or(!v), c);
        w.set_pred(q, m, r);
    }
}

/// The comparison of each lane, and of the high halves of pairs.
#[inline(always)]
fn compare(w: &Warp, cmp: Cmp, ty: Num, ftz: bool, a: Row, b: Row) -> (u32, Option<u32>) {
    macro_rules! ints {
        ($read:ident, $t:ty) => {{
            let (x, y) = (w.$read(a), w.$read(b));
            match cmp {
                Cmp::Eq => bits_of(|i| x[i] as $t == y[i] as $t),
                Cmp::Ne => bits_of(|i| x[i] as $t != y[i] as $t),
                Cmp::Lt => bits_of(|i| (x[i] as $t) < y[i] as $t),
                Cmp::Le => bits_of(|i| x[i] as $t <= y[i] as $t),
                Cmp::Gt => bits_of(|i| x[i] as $t > y[i] as $t),
                _ => bits_of(|i| x[i] as $t >= y[i] as $t),
            }
        }};
    }
    let v = match ty {
        Num::U(32) => ints!(r32, u32),
        Num::S(32) => ints!(r32, i32),
        Num::U(64) => ints!(r64, u64),
        Num::S(64) => ints!(r64, i64),
        Num::S(_) => ints!(r32, i16),
        Num::U(_) => ints!(r32, u16),
        Num::F(Float::F32) => {
            let (x, y) = (w.r32(a), w.r32(b));
            let v = |x: u32| if ftz { fp::flush(f(x)) } else { f(x) };
            bits_of(|i| holds(cmp, v(x[i]).into(), v(y[i]).into()))
        }
        Num::F(Float::F64) => {
            let (x, y) = (w.r64(a), w.r64(b));
            bits_of(|i| holds(cmp, f64::from_bits(x[i]), f64::from_bits(y[i])))
        }
        Num::F(t) => {
            let format = if is_bf(t) { fp::BF16 } else { fp::F16 };
            let (x, y) = (w.r32(a), w.r32(b));
            let at =
                |s: u32| bits_of(|i| holds(cmp, format.value(x[i] >> s & 0xFFFF), format.value(y[i] >> s & 0xFFFF)));
            return (at(0), is_pair(t).then(|| at(16)));
        }
        Num::Tf32 | Num::E4m3x2 | Num::E5m2x2 => unreachable!("the decoder lets no such comparison through"),
    };
    (v, None)
}

#[inline(always)]
fn holds(cmp: Cmp, x: f64, y: f64) -> bool {
    let nan = x.is_nan() || y.is_nan();
    match cmp {
        Cmp::Eq => x == y,
        Cmp::Ne => !nan && x != y,
        Cmp::Lt => x < y,
        Cmp::Le => x <= y,
        Cmp::Gt => x > y,
        Cmp::Ge => x >= y,
        Cmp::Equ => nan || x == y,
        Cmp::Neu => x != y,
        Cmp::Ltu => nan || x < y,
        Cmp::Leu => nan || x <= y,
        Cmp::Gtu => nan || x > y,
        Cmp::Geu => nan || x >= y,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}
