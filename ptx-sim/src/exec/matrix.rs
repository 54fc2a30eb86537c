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
use super::memory::{addresses, gather, scatter};
use super::traffic::count;
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
    for (matrix, &d) in rows.chunks_exact(8).zip(&a.rows) {
        // A lane holds two neighbours of a row: as they lie, the rows are the words of lanes 0 to 31.
        let matrix: &[[u8; 16]; 8] = matrix.try_into().expect("eight rows");
        let mut halves: [u16; 64] = bytemuck::cast(*matrix);
        if a.trans {
            halves = transposed(&halves);
        }
        w.set32(d, u32::MAX, &bytemuck::cast(halves));
    }
    Ok(())
}

/// An 8 by 8 matrix, turned.
#[inline(always)]
fn transposed(m: &[u16; 64]) -> [u16; 64] {
    std::array::from_fn(|i| m[i % 8 * 8 + i / 8])
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
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature, as has just been asked.
        unsafe { multiply_wide(w, a) };
        return Ok(());
    }
    multiply_plain(w, a);
    Ok(())
}

/// As `multiply_plain`, with vectors of eight: a row of D at once.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn multiply_wide(w: &mut Warp, a: &Mma) {
    multiply_plain(w, a);
}

#[inline(always)]
fn multiply_plain(w: &mut Warp, a: &Mma) {
    let (mut ma, mut mb) = ([[0f32; 16]; 16], [[0f32; 8]; 16]);
    match a.elem {
        Elem::Bf16 => fragments::<u16, 8>(w, a, &mut ma, &mut mb, |x| fp::from_bf16(x.into())),
        Elem::F16 => fragments::<u16, 8>(w, a, &mut ma, &mut mb, |x| fp::from_f16(x.into())),
        Elem::Tf32 => fragments::<u32, 4>(w, a, &mut ma, &mut mb, |x| value(Elem::Tf32, x, 0)),
    }
    let mut md = sums(w, a);
    for (row, a_row) in md.chunks_exact_mut(8).zip(&ma) {
        let row: &mut [f32; 8] = row.try_into().expect("eight columns");
        let mut sum = *row;
        // The mantissa of a product of two such numbers fits f32, so that only the sum rounds.
        for k in 0..a.k as usize {
            for j in 0..8 {
                sum[j] += a_row[k] * mb[k][j];
            }
        }
        *row = sum;
    }
    for (n, &d) in a.d.iter().enumerate() {
        let out: [u32; LANES] = if a.half_sums {
            std::array::from_fn(|l| fp::f16_near(md[64 * n + 2 * l]) | fp::f16_near(md[64 * n + 2 * l + 1]) << 16)
        } else {
            std::array::from_fn(|l| fp::canonical(md[64 * (n / 2) + 2 * l + n % 2]).to_bits())
        };
        w.set32(d, u32::MAX, &out);
    }
}

/// A and B from their fragments. The words of four lanes are `N` neighbours of a row of A, or of a column of B.
#[inline(always)]
fn fragments<T: bytemuck::Pod, const N: usize>(
    w: &Warp,
    a: &Mma,
    ma: &mut [[f32; 16]; 16],
    mb: &mut [[f32; 8]; 16],
    value: impl Fn(T) -> f32,
) {
    for (n, &row) in a.a.iter().enumerate().take(4) {
        // Words alternate between rows g and g + 8, then go on by the neighbours of a row.
        let v: &[T] = bytemuck::cast_slice(w.r32(row));
        for (g, from) in v.chunks_exact(N).enumerate() {
            let to = &mut ma[8 * (n & 1) + g][(n >> 1) * N..][..N];
            to.iter_mut().zip(from).for_each(|(to, &x)| *to = value(x));
        }
    }
    for (n, &row) in a.b.iter().enumerate().take(2) {
        let v: &[T] = bytemuck::cast_slice(w.r32(row));
        for k in 0..N {
            for g in 0..8 {
                mb[n * N + k][g] = value(v[g * N + k]);
            }
        }
    }
}

/// C, one row after the other.
#[inline(always)]
fn sums(w: &Warp, a: &Mma) -> [f32; 128] {
    let mut md = [0f32; 128];
    for (n, &row) in a.c.iter().enumerate() {
        let v = w.r32(row);
        for l in 0..LANES {
            if a.half_sums {
                md[64 * n + 2 * l] = fp::from_f16(v[l] & 0xFFFF);
                md[64 * n + 2 * l + 1] = fp::from_f16(v[l] >> 16);
            } else {
                md[64 * (n / 2) + 2 * l + n % 2] = f32::from_bits(v[l]);
            }
        }
    }
    md
}
