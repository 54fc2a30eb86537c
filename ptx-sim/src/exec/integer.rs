//! Integers of 16, 32 and 64 bits.

use super::alu::{each32, each64};
use super::warp::{LANES, Warp};
use crate::ir::{I1, I2, I3, Prmt, Row, Width};

#[inline(always)]
pub(super) fn int2(w: &mut Warp, m: u32, f: I2, width: Width, d: Row, a: Row, b: Row) {
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
pub(super) fn int1(w: &mut Warp, m: u32, f: I1, width: Width, d: Row, a: Row) {
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
pub(super) fn int3(w: &mut Warp, m: u32, f: I3, width: Width, d: Row, a: Row, b: Row, c: Row) {
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
pub(super) fn mul_wide(w: &mut Warp, m: u32, width: Width, signed: bool, d: Row, a: Row, b: Row, c: Option<Row>) {
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
