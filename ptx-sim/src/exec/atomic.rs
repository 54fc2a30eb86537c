//! Atomics, and what they and bulk reductions compute.

use super::memory::{addresses, inside, lanes, outside, place, region};
use super::traffic::count;
use super::warp::{LANES, Warp};
use super::watch::{self, Kind};
use super::{Context, Cta};
use crate::fault::{FaultKind, Step, Stop};
use crate::fp;
use crate::ir::{Atom, AtomOp, Float, Row};
use crate::memory::{is_set, set};

/// Atomics take place lane by lane, lowest first.
pub(super) fn atomic(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Atom, m: u32, pc: u32) -> Step<()> {
    let at = addresses(w, &a.addr);
    let n = a.bytes as usize;
    count(x, a.space, &at, m, n * a.b.len(), pc, true);
    if let AtomOp::AddFloat(_) = a.op {
        x.report.float_atomics += u64::from(m.count_ones());
    }
    let mut old = [0u64; LANES];
    for i in lanes(m) {
        for (part, &b) in a.b.iter().enumerate() {
            let address = at[i].wrapping_add((part * n) as u64);
            let read = |w: &Warp, row: Row| if n == 8 { w.r64(row)[i] } else { w.r32(row)[i].into() };
            let (b, c) = (read(w, b), a.c.map_or(0, |c| read(w, c)));
            old[i] = atomic_lane(w, ctas, x, a, address, i, b, c)?;
            let kind = Kind { order: a.order, ..Kind::write("atomic") };
            watch::lanes(w, x, a.space, &[address; LANES], 1 << i, n, kind, |_, _| false)?;
        }
    }
    if let Some(d) = a.d {
        if n == 8 {
            w.set64(d, m, &old);
        } else {
            w.set32(d, m, &old.map(|v| v as u32));
        }
    }
    Ok(())
}

fn atomic_lane(
    w: &Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    a: &Atom,
    address: u64,
    lane: usize,
    b: u64,
    c: u64,
) -> Step<u64> {
    let (n, what) = (a.bytes as usize, "atomic");
    let fault = |kind| Stop::new(lane as u32, kind);
    let blocks = ctas.len();
    let Some((home, address)) = place(a.space, address, w.cta, blocks) else {
        return Err(Stop::misuse(lane as u32, "an atomic on no memory"));
    };
    let found = region(ctas, x, home, address).and_then(|r| inside(&r, address, n).map(|offset| (r, offset)));
    let Some((mut r, offset)) = found else {
        return Err(fault(outside(x, home, address, n as u32, what)));
    };
    if address % n as u64 != 0 {
        return Err(fault(FaultKind::Misaligned { what, space: home.name(), address, bytes: n as u32 }));
    }
    let written = r.written.as_deref_mut().unwrap_or(&mut []);
    if a.op != AtomOp::Exch && !is_set(written, offset, n) {
        return Err(fault(FaultKind::Unwritten { what, space: home.name(), address, bytes: n as u32 }));
    }
    set(written, offset, n, true);
    let mut word = [0u8; 8];
    word[..n].copy_from_slice(&r.data[offset..offset + n]);
    let old = u64::from_le_bytes(word);
    let new = update(a.op, n, old, b, c);
    r.data[offset..offset + n].copy_from_slice(&new.to_le_bytes()[..n]);
    Ok(old)
}

pub(super) fn update(op: AtomOp, n: usize, old: u64, b: u64, c: u64) -> u64 {
    let sign = |v: u64| if n == 8 { v as i64 } else { i64::from(v as u32 as i32) };
    let (x, y) = (old as u32, b as u32);
    match op {
        AtomOp::AddInt => old.wrapping_add(b),
        AtomOp::AddFloat(f) => add_float(f, old, b),
        AtomOp::MinFloat(f) => pick_float(f, old, b, |x, y| y < x || x.is_nan()),
        AtomOp::MaxFloat(f) => pick_float(f, old, b, |x, y| y > x || x.is_nan()),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::MinU => old.min(b),
        AtomOp::MaxU => old.max(b),
        AtomOp::MinS => {
            if sign(b) < sign(old) {
                b
            } else {
                old
            }
        }
        AtomOp::MaxS => {
            if sign(b) > sign(old) {
                b
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if x >= y {
                0
            } else {
                u64::from(x + 1)
            }
        }
        AtomOp::Dec => {
            if x == 0 || x > y {
                b
            } else {
                u64::from(x - 1)
            }
        }
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
    }
}

fn add_float(f: Float, x: u64, y: u64) -> u64 {
    let half = |format: fp::Format, s: u32| {
        let v = |w: u64| format.value((w >> s) as u32 & 0xFFFF);
        u64::from(format.round(fp::add_odd(v(x), v(y)), fp::Round::Near, false)) << s
    };
    match f {
        Float::F32 => u64::from(fp::canonical(f32::from_bits(x as u32) + f32::from_bits(y as u32)).to_bits()),
        Float::F64 => (f64::from_bits(x) + f64::from_bits(y)).to_bits(),
        Float::F16 => half(fp::F16, 0),
        Float::Bf16 => half(fp::BF16, 0),
        Float::F16x2 => half(fp::F16, 0) | half(fp::F16, 16),
        Float::Bf16x2 => half(fp::BF16, 0) | half(fp::BF16, 16),
    }
}

fn pick_float(f: Float, x: u64, y: u64, second: impl Fn(f64, f64) -> bool) -> u64 {
    let value = |v: u64| match f {
        Float::F64 => f64::from_bits(v),
        Float::F16 | Float::F16x2 => fp::F16.value(v as u32 & 0xFFFF),
        Float::Bf16 | Float::Bf16x2 => fp::BF16.value(v as u32 & 0xFFFF),
        Float::F32 => f32::from_bits(v as u32).into(),
    };
    if second(value(x), value(y)) { y } else { x }
}
