//! Loads and stores of a warp: between the bytes of memory and the registers of its lanes.

use super::memory::{addresses, gather, scatter};
use super::traffic::count;
use super::warp::{LANES, Warp};
use super::watch::Kind;
use super::{Context, Cta};
use crate::fault::Step;
use crate::ir::Access;

/// Calls `$f` for accesses of so many bytes a lane.
macro_rules! by_size {
    ($bytes:expr, $f:ident($($arg:expr),*)) => {
        match $bytes {
            1 => $f::<1>($($arg),*),
            2 => $f::<2>($($arg),*),
            4 => $f::<4>($($arg),*),
            8 => $f::<8>($($arg),*),
            16 => $f::<16>($($arg),*),
            _ => $f::<32>($($arg),*),
        }
    };
}

pub(super) fn load(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Access, m: u32, pc: u32) -> Step<()> {
    let at = addresses(w, &a.addr);
    let total = a.bytes as usize * a.slots.len();
    count(x, a.space, &at, m, total, pc, false);
    by_size!(total, load_n(w, ctas, x, a, &at, m))
}

fn load_n<const N: usize>(
    w: &mut Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    a: &Access,
    at: &[u64; LANES],
    m: u32,
) -> Step<()> {
    let bytes = gather::<N>(w, ctas, x, a.space, at, m, Kind { order: a.order, ..Kind::read("load") })?;
    let n = a.bytes as usize;
    for (s, slot) in a.slots.iter().enumerate() {
        let Some(d) = slot.row else { continue };
        if (n, slot.bits) == (4, 32) {
            let word = |b: &[u8; N]| u32::from_le_bytes(b[4 * s..4 * s + 4].try_into().expect("4 bytes"));
            w.set32(d, m, &std::array::from_fn(|i| word(&bytes[i])));
            continue;
        }
        let part = |b: &[u8; N]| -> u64 {
            let p = &b[s * n..(s + 1) * n];
            match (n, a.signed) {
                (1, false) => p[0].into(),
                (1, true) => p[0] as i8 as i64 as u64,
                (2, false) => u16::from_le_bytes([p[0], p[1]]).into(),
                (2, true) => i16::from_le_bytes([p[0], p[1]]) as i64 as u64,
                (4, false) => u32::from_le_bytes(p.try_into().expect("4 bytes")).into(),
                (4, true) => i32::from_le_bytes(p.try_into().expect("4 bytes")) as i64 as u64,
                _ => u64::from_le_bytes(p.try_into().expect("8 bytes")),
            }
        };
        match slot.bits {
            64 => w.set64(d, m, &std::array::from_fn(|i| part(&bytes[i]))),
            32 => w.set32(d, m, &std::array::from_fn(|i| part(&bytes[i]) as u32)),
            _ => w.set32(d, m, &std::array::from_fn(|i| part(&bytes[i]) as u32 & 0xFFFF)),
        }
    }
    Ok(())
}

pub(super) fn store(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Access, m: u32, pc: u32) -> Step<()> {
    let at = addresses(w, &a.addr);
    let total = a.bytes as usize * a.slots.len();
    count(x, a.space, &at, m, total, pc, true);
    by_size!(total, store_n(w, ctas, x, a, &at, m))
}

fn store_n<const N: usize>(
    w: &mut Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    a: &Access,
    at: &[u64; LANES],
    m: u32,
) -> Step<()> {
    let n = a.bytes as usize;
    let mut bytes = [[0u8; N]; LANES];
    for (s, slot) in a.slots.iter().enumerate() {
        let Some(row) = slot.row else { continue };
        if slot.bits == 64 {
            let v = w.r64(row);
            for i in 0..LANES {
                bytes[i][s * n..(s + 1) * n].copy_from_slice(&v[i].to_le_bytes()[..n]);
            }
        } else if n == 4 {
            let v = w.r32(row);
            for i in 0..LANES {
                bytes[i][s * 4..s * 4 + 4].copy_from_slice(&v[i].to_le_bytes());
            }
        } else {
            let v = w.r32(row);
            for i in 0..LANES {
                bytes[i][s * n..(s + 1) * n].copy_from_slice(&v[i].to_le_bytes()[..n]);
            }
        }
    }
    scatter::<N>(w, ctas, x, a.space, at, m, &bytes, Kind { order: a.order, ..Kind::write("store") })
}
