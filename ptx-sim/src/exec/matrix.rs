//! Fragments of matrices and the product of a warp.
//!
//! With g = lane / 4 and t = lane mod 4, a lane holds of a product m16n8k16
//!
//! ```text
//! A: rows g and g + 8, columns 2t, 2t + 1 and those plus 8        (words: row g, row g + 8, then columns + 8)
//! B: rows 2t, 2t + 1 and those plus 8, column g
//! C, D: rows g and g + 8, columns 2t, 2t + 1
//! ```
//!
//! Sums here run over k in order, in f32. A tensor core adds in another order and cuts bits in between, so that results
//! agree within the rounding of f32 sums and not bit by bit.
//!
//! Source: PTX ISA 9.0, 9.7.14 (fragments of mma, ldmatrix).

use super::collective::together;
use super::memory::{addresses, count, gather, scatter};
use super::warp::{LANES, Warp};
use super::watch::Kind;
use super::{Context, Cta};
use crate::fault::Step;
use crate::fp;
use crate::ir::{Elem, Matrix, Mma, Row};

/// The lanes whose addresses `n` matrices use.
fn address_lanes(n: usize) -> u32 {
    if n == 4 { u32::MAX } else { (1 << (8 * n)) - 1 }
}

pub(super) fn load(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Matrix, m: u32, pc: u32) -> Step<()> {
    together(m, "ldmatrix")?;
    let at = addresses(w, &a.addr);
    let used = address_lanes(a.rows.len());
    count(x, a.space, &at, used, 16, pc, false);
    let rows = gather::<16>(w, ctas, x, a.space, &at, used, Kind::read("ldmatrix"))?;
    for (n, &d) in a.rows.iter().enumerate() {
        let half = |row: usize, col: usize| {
            let r = &rows[8 * n + row];
            u32::from(u16::from_le_bytes([r[2 * col], r[2 * col + 1]]))
        };
        let out = std::array::from_fn(|l| {
            let (g, t) = (l / 4, 2 * (l % 4));
            if a.trans { half(t, g) | half(t + 1, g) << 16 } else { half(g, t) | half(g, t + 1) << 16 }
        });
        w.set32(d, u32::MAX, &out);
    }
    Ok(())
}

pub(super) fn store(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Matrix, m: u32, pc: u32) -> Step<()> {
    together(m, "stmatrix")?;
    let at = addresses(w, &a.addr);
    let used = address_lanes(a.rows.len());
    count(x, a.space, &at, used, 16, pc, true);
    let mut rows = [[0u8; 16]; LANES];
    for (n, &s) in a.rows.iter().enumerate() {
        let v = w.r32(s);
        for l in 0..LANES {
            let (g, t) = (l / 4, 2 * (l % 4));
            for (e, half) in [v[l] as u16, (v[l] >> 16) as u16].into_iter().enumerate() {
                let (row, col) = if a.trans { (t + e, g) } else { (g, t + e) };
                rows[8 * n + row][2 * col..2 * col + 2].copy_from_slice(&half.to_le_bytes());
            }
        }
    }
    scatter::<16>(w, ctas, x, a.space, &at, used, &rows, Kind::write("stmatrix"))
}

/// `movmatrix`: the transposed of one 8 by 8 matrix.
pub(super) fn transpose(w: &mut Warp, d: Row, a: Row, m: u32) -> Step<()> {
    together(m, "movmatrix")?;
    let v = *w.r32(a);
    let half = |row: usize, col: usize| v[row * 4 + col / 2] >> (16 * (col % 2)) & 0xFFFF;
    let out = std::array::from_fn(|l| half(2 * (l % 4), l / 4) | half(2 * (l % 4) + 1, l / 4) << 16);
    w.set32(d, u32::MAX, &out);
    Ok(())
}

/// The value of half `h` of a word.
#[inline(always)]
pub(super) fn value(elem: Elem, word: u32, h: u32) -> f32 {
    match elem {
        Elem::Bf16 => f32::from_bits(if h == 0 { word << 16 } else { word & 0xFFFF_0000 }),
        Elem::F16 => fp::from_f16(word >> (16 * h) & 0xFFFF),
        // The tensor core reads the high 19 bits.
        Elem::Tf32 => f32::from_bits(word & 0xFFFF_E000),
    }
}

pub(super) fn multiply(w: &mut Warp, a: &Mma, m: u32) -> Step<()> {
    together(m, "mma")?;
    let (mut ma, mut mb, mut md) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    match a.elem {
        Elem::Bf16 => fragments::<2>(w, a, &mut ma, &mut mb, |x, h| value(Elem::Bf16, x, h)),
        Elem::F16 => fragments::<2>(w, a, &mut ma, &mut mb, |x, h| value(Elem::F16, x, h)),
        Elem::Tf32 => fragments::<1>(w, a, &mut ma, &mut mb, |x, h| value(Elem::Tf32, x, h)),
    }
    sums(w, a, &mut md);
    for i in 0..16 {
        let mut row = md[i];
        for k in 0..a.k as usize {
            let s = ma[i][k];
            for j in 0..8 {
                row[j] += s * mb[k][j];
            }
        }
        md[i] = row;
    }
    let at = |l: usize, n: usize| md[l / 4 + 8 * (n / 2)][2 * (l % 4) + n % 2];
    for (n, &d) in a.d.iter().enumerate() {
        let out: [u32; LANES] = if a.half_sums {
            std::array::from_fn(|l| fp::f16_near(at(l, 2 * n)) | fp::f16_near(at(l, 2 * n + 1)) << 16)
        } else {
            std::array::from_fn(|l| fp::canonical(at(l, n)).to_bits())
        };
        w.set32(d, u32::MAX, &out);
    }
    Ok(())
}

/// A and B, from their fragments; `PER` values a word.
#[inline(always)]
fn fragments<const PER: usize>(
    w: &Warp,
    a: &Mma,
    ma: &mut [[f32; 16]; 16],
    mb: &mut [[f32; 8]; 16],
    value: impl Fn(u32, u32) -> f32,
) {
    for (n, &row) in a.a.iter().enumerate().take(4) {
        let v = w.r32(row);
        // Words alternate between rows g and g + 8, then go on by the four words of a row.
        let (i, k) = (8 * (n & 1), (n >> 1 & 1) * 4 * PER);
        for g in 0..8 {
            for t in 0..4 {
                for h in 0..PER {
                    ma[i + g][k + t * PER + h] = value(v[4 * g + t], h as u32);
                }
            }
        }
    }
    for (n, &row) in a.b.iter().enumerate().take(2) {
        let v = w.r32(row);
        let k = (n & 1) * 4 * PER;
        for g in 0..8 {
            for t in 0..4 {
                for h in 0..PER {
                    mb[k + t * PER + h][g] = value(v[4 * g + t], h as u32);
                }
            }
        }
    }
}

/// C, from its fragments.
fn sums(w: &Warp, a: &Mma, md: &mut [[f32; 8]; 16]) {
    for (n, &row) in a.c.iter().enumerate() {
        let v = w.r32(row);
        for l in 0..LANES {
            let (g, t) = (l / 4, 2 * (l % 4));
            if a.half_sums {
                md[g + 8 * n][t] = fp::from_f16(v[l] & 0xFFFF);
                md[g + 8 * n][t + 1] = fp::from_f16(v[l] >> 16);
            } else {
                md[g + 8 * (n / 2)][t + n % 2] = f32::from_bits(v[l]);
            }
        }
    }
}
