//! AVX-512: a tile of 14 by 32 in 28 accumulators; two loads of B and 14 broadcasts of A feed 28 multiply-adds a step.
//!
//! [`pack`] makes the panels. Edges are masks: the operations an element sees are those of a full tile.

mod pack;

use super::{Dest, Fetch, In, Kernel, Operand};
use pack::{
    PAIR, PLAIN, ROUNDED, ROUNDED_PAIR, WIDE, load, load_two, ones, pack_f32, pack_pairs, pack_widened, round, shape,
};
use std::arch::x86_64::*;

const MR: usize = 14;
const NR: usize = 32;

pub(super) static F32: Kernel = Kernel {
    mr: MR,
    nr: NR,
    pair: 1,
    block: 384,
    pack_a: pack_f32::<MR>,
    pack_b: pack_f32::<NR>,
    tile,
    tile_rows: Some(tile_rows),
    tile_across: Some(tile_across),
    dots: dots_f32,
};

pub(super) static WIDENED: Kernel = Kernel {
    pack_a: pack_widened::<MR>,
    pack_b: pack_widened::<NR>,
    tile_rows: None,
    tile_across: None,
    dots: dots_widened,
    ..F32
};

pub(super) static PAIRS: Kernel = Kernel {
    pair: 2,
    pack_a: pack_pairs::<MR>,
    pack_b: pack_pairs::<NR>,
    tile: tile_two,
    tile_rows: Some(tile_rows_two),
    tile_across: None,
    dots: dots_pairs,
    ..F32
};

/// A is a panel: word `i` of step `t` at `t * MR + i`.
const PANEL: u8 = 0;
/// A lies in memory with its k running fast: word `t` of row `i` at `i * lda + t`.
const ROWS: u8 = 1;
/// A lies in memory with its rows running fast: word `i` of step `t` at `t * lda + i`.
const ACROSS: u8 = 2;
/// Steps that an A that lies across is fetched ahead.
const STEPS_AHEAD: usize = 12;

/// A tile's arithmetic, written once for each way to multiply; `$bf16` rounds 16 sums. `$pick` takes A in one of the ways
/// above, `$tile` as a panel, `$tile_rows` in rows.
macro_rules! tiles {
    ($tile:ident, $tile_rows:ident, $pick:ident, $rows_of:ident, $multiply_add:ident, $bf16:ident, $features:literal) => {
        /// Safety: see [`super::Tile`].
        #[target_feature(enable = $features)]
        unsafe fn $tile(
            steps: usize,
            a: *const u32,
            b: *const u32,
            dest: Dest,
            ldc: usize,
            rows: usize,
            cols: usize,
            fetch: Fetch,
        ) {
            // SAFETY: passed on as promised by the caller.
            unsafe { $pick::<PANEL>(steps, (a, MR), b, dest, ldc, rows, cols, fetch) }
        }

        /// Safety: see [`super::TileRows`].
        #[target_feature(enable = $features)]
        unsafe fn $tile_rows(
            steps: usize,
            (a, lda): (*const u32, usize),
            b: *const u32,
            dest: Dest,
            ldc: usize,
            rows: usize,
            cols: usize,
            fetch: Fetch,
        ) {
            // SAFETY: passed on as promised by the caller.
            unsafe { $pick::<ROWS>(steps, (a, lda), b, dest, ldc, rows, cols, fetch) }
        }

        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $pick<const HOW: u8>(
            steps: usize,
            a: (*const u32, usize),
            b: *const u32,
            dest: Dest,
            ldc: usize,
            rows: usize,
            cols: usize,
            fetch: Fetch,
        ) {
            // SAFETY: passed on as promised by the caller; `rows` picks the version for that many.
            unsafe {
                match rows {
                    1 => $rows_of::<1, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    2 => $rows_of::<2, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    3 => $rows_of::<3, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    4 => $rows_of::<4, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    5 => $rows_of::<5, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    6 => $rows_of::<6, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    7 => $rows_of::<7, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    8 => $rows_of::<8, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    9 => $rows_of::<9, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    10 => $rows_of::<10, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    11 => $rows_of::<11, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    12 => $rows_of::<12, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    13 => $rows_of::<13, HOW>(steps, a, b, dest, ldc, cols, fetch),
                    _ => $rows_of::<14, HOW>(steps, a, b, dest, ldc, cols, fetch),
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $rows_of<const R: usize, const HOW: u8>(
            steps: usize,
            (a, lda): (*const u32, usize),
            mut b: *const u32,
            dest: Dest,
            ldc: usize,
            cols: usize,
            fetch: Fetch,
        ) {
            // What the end reads or writes is fetched while the sums are made, a row a step: all at once would hold up
            // the loads of A and B.
            let (c, row_bytes) = match dest {
                Dest::Set(c) | Dest::Add(c) => (c.cast::<i8>(), 4 * ldc),
                Dest::SetBf16(c) => (c.cast::<i8>(), 2 * ldc),
                Dest::FinishBf16(p, ldp, _) => (p.cast::<i8>().cast_mut(), 4 * ldp),
            };
            let Fetch { from: mut later, advance: to_later } = fetch;
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            if HOW == ROWS {
                // Every third row has a pointer; the two behind it are one and two row lengths away, which the
                // addressing of x86 adds for nothing.
                let (mut p0, mut p3, mut p6) = (a, a.wrapping_add(3 * lda), a.wrapping_add(6 * lda));
                let (mut p9, mut p12) = (a.wrapping_add(9 * lda), a.wrapping_add(12 * lda));
                // A line of each row holds sixteen steps, in which the same line of the next tile's rows is fetched.
                let (mut next, mut advance) = (c, row_bytes);
                // Of its own, so that it stays in registers whatever becomes of `sums` below.
                let mut acc = sums;
                for line in (0..steps).step_by(16) {
                    let mut ahead = a.wrapping_add(MR * lda + line);
                    for _ in line..steps.min(line + 16) {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        _mm_prefetch::<_MM_HINT_T0>(next);
                        _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64));
                        _mm_prefetch::<_MM_HINT_T1>(later.cast());
                        later = later.wrapping_add(to_later);
                        ahead = ahead.wrapping_add(lda);
                        next = next.wrapping_add(advance);
                        // SAFETY: the panel of B holds `steps` steps of NR words, and so many lie in each row of A.
                        unsafe {
                            let (b0, b1) = (_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast()));
                            // Spelt out, since a loop that picks among pointers keeps all sums in memory.
                            macro_rules! row {
                                ($i:literal, $lead:ident, $behind:literal) => {
                                    if $i < R {
                                        let word = $lead.wrapping_add($behind * lda).read_unaligned();
                                        let x = _mm512_set1_epi32(word as i32);
                                        let sum = &mut acc[$i % R];
                                        sum[0] = $multiply_add(x, b0, sum[0]);
                                        sum[1] = $multiply_add(x, b1, sum[1]);
                                    }
                                };
                            }
                            row!(0, p0, 0);
                            row!(1, p0, 1);
                            row!(2, p0, 2);
                            row!(3, p3, 0);
                            row!(4, p3, 1);
                            row!(5, p3, 2);
                            row!(6, p6, 0);
                            row!(7, p6, 1);
                            row!(8, p6, 2);
                            row!(9, p9, 0);
                            row!(10, p9, 1);
                            row!(11, p9, 2);
                            row!(12, p12, 0);
                            row!(13, p12, 1);
                        }
                        b = b.wrapping_add(NR);
                        (p0, p3, p6) = (p0.wrapping_add(1), p3.wrapping_add(1), p6.wrapping_add(1));
                        (p9, p12) = (p9.wrapping_add(1), p12.wrapping_add(1));
                    }
                    advance = 0;
                }
                sums = acc;
            } else {
                let (mut next, mut left, mut a) = (c, R, a);
                let step = if HOW == PANEL { MR } else { lda };
                for _ in 0..steps {
                    if HOW == ACROSS {
                        // Fourteen words share one line or two; what is fetched past the last step is the next block's.
                        let ahead = a.wrapping_add(STEPS_AHEAD * step);
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(MR - 1).cast());
                    }
                    _mm_prefetch::<_MM_HINT_T1>(later.cast());
                    later = later.wrapping_add(to_later);
                    if left > 0 {
                        _mm_prefetch::<_MM_HINT_T0>(next);
                        _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(64));
                        (next, left) = (next.wrapping_add(row_bytes), left - 1);
                    }
                    // SAFETY: the panel of B holds `steps` steps of NR words, and A has R words in each step.
                    unsafe {
                        let (b0, b1) = (_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast()));
                        for i in 0..R {
                            let x = _mm512_set1_epi32(*a.add(i) as i32);
                            sums[i][0] = $multiply_add(x, b0, sums[i][0]);
                            sums[i][1] = $multiply_add(x, b1, sums[i][1]);
                        }
                    }
                    (a, b) = (a.wrapping_add(step), b.wrapping_add(NR));
                }
            }
            let masks = [ones(cols.min(16)) as u16, ones(cols.saturating_sub(16)) as u16];
            // SAFETY: a mask keeps loads and stores inside row i, which the caller lets this thread write.
            unsafe {
                match dest {
                    Dest::Set(c) => {
                        for i in 0..R {
                            for h in 0..2 {
                                _mm512_mask_storeu_ps(c.wrapping_add(i * ldc + 16 * h), masks[h], sums[i][h]);
                            }
                        }
                    }
                    Dest::Add(c) => {
                        for i in 0..R {
                            for h in 0..2 {
                                let c = c.wrapping_add(i * ldc + 16 * h);
                                let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[h], c), sums[i][h]);
                                _mm512_mask_storeu_ps(c, masks[h], sum);
                            }
                        }
                    }
                    Dest::SetBf16(c) => {
                        for i in 0..R {
                            for h in 0..2 {
                                let c = c.wrapping_add(i * ldc + 16 * h);
                                _mm256_mask_storeu_epi16(c.cast(), masks[h], $bf16(sums[i][h]));
                            }
                        }
                    }
                    Dest::FinishBf16(p, ldp, c) => {
                        for i in 0..R {
                            for h in 0..2 {
                                let p = _mm512_maskz_loadu_ps(masks[h], p.wrapping_add(i * ldp + 16 * h));
                                let c = c.wrapping_add(i * ldc + 16 * h);
                                _mm256_mask_storeu_epi16(c.cast(), masks[h], $bf16(_mm512_add_ps(p, sums[i][h])));
                            }
                        }
                    }
                }
            }
        }
    };
}

tiles!(tile, tile_rows, pick, rows_of, fused, round_half, "avx512f,avx512bw,avx512dq,avx512vl");
tiles!(
    tile_two,
    tile_rows_two,
    pick_two,
    rows_of_two,
    dot_two,
    round_half_own,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
);

/// Safety: see [`super::TileAcross`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile_across(
    steps: usize,
    a: (*const u32, usize),
    b: *const u32,
    dest: Dest,
    ldc: usize,
    rows: usize,
    cols: usize,
    fetch: Fetch,
) {
    // SAFETY: passed on as promised by the caller.
    unsafe { pick::<ACROSS>(steps, a, b, dest, ldc, rows, cols, fetch) }
}

/// How far ahead of the sum rows are fetched. On a Zen 4, decoding a 110M model in bf16 gained 14 to
/// 23 % over fetching four rows ahead into L1 alone.
const FAR_BYTES: usize = 36 << 10;
const NEAR_BYTES: usize = 6 << 10;

/// Dots of rows: `$by` for sizes known when compiled, `$dots` for the kernel's table.
macro_rules! dots {
    ($dots:ident, $rows_by:ident, $by:ident, $load:ident, $multiply_add:ident, $features:literal, $of_f32:ident, $of_bf16:ident) => {
        /// Safety: see [`super::Dots`].
        #[target_feature(enable = $features)]
        unsafe fn $dots(a: Operand<'_>, rows: usize, b: Operand<'_>, cols: usize, k: usize) -> [[f32; 4]; 4] {
            // SAFETY: passed on as promised by the caller.
            unsafe {
                match (a.data, b.data) {
                    (In::F32(x), In::F32(y)) => {
                        $rows_by::<$of_f32, $of_f32>(x.as_ptr().cast(), a.ld, rows, y.as_ptr().cast(), b.ld, cols, k)
                    }
                    (In::F32(x), In::Bf16(y)) => {
                        $rows_by::<$of_f32, $of_bf16>(x.as_ptr().cast(), a.ld, rows, y.as_ptr().cast(), b.ld, cols, k)
                    }
                    (In::Bf16(x), In::F32(y)) => {
                        $rows_by::<$of_bf16, $of_f32>(x.as_ptr().cast(), a.ld, rows, y.as_ptr().cast(), b.ld, cols, k)
                    }
                    (In::Bf16(x), In::Bf16(y)) => {
                        $rows_by::<$of_bf16, $of_bf16>(x.as_ptr().cast(), a.ld, rows, y.as_ptr().cast(), b.ld, cols, k)
                    }
                }
            }
        }

        #[target_feature(enable = $features)]
        unsafe fn $rows_by<const A: u8, const B: u8>(
            a: *const u8,
            lda: usize,
            rows: usize,
            b: *const u8,
            ldb: usize,
            cols: usize,
            k: usize,
        ) -> [[f32; 4]; 4] {
            let mut sums = [[0.0; 4]; 4];
            // One after another: a single stream is what the hardware fetches ahead best.
            for j in 0..cols {
                // SAFETY: passed on as promised by the caller.
                unsafe {
                    let b = b.add(j * ldb * shape(B).0);
                    match rows {
                        1 => $by::<A, B, 1>(a, lda, b, k, j, &mut sums),
                        2 => $by::<A, B, 2>(a, lda, b, k, j, &mut sums),
                        3 => $by::<A, B, 3>(a, lda, b, k, j, &mut sums),
                        _ => $by::<A, B, 4>(a, lda, b, k, j, &mut sums),
                    }
                }
            }
            sums
        }

        #[target_feature(enable = $features)]
        unsafe fn $by<const A: u8, const B: u8, const I: usize>(
            a: *const u8,
            lda: usize,
            b: *const u8,
            k: usize,
            j: usize,
            out: &mut [[f32; 4]; 4],
        ) {
            let pair = shape(A).1;
            let (a_bytes, b_bytes) = (shape(A).0, shape(B).0);
            let mut sums = [_mm512_setzero_ps(); I];
            for t in (0..k).step_by(16 * pair) {
                let mask = ones((k - t).min(16 * pair));
                let b = b.wrapping_add(t * b_bytes);
                // Rows lie one behind another, so these are rows to come: far ones for L2, near ones for L1.
                _mm_prefetch::<_MM_HINT_T1>(b.wrapping_add(FAR_BYTES).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(NEAR_BYTES).cast());
                // SAFETY: `mask` keeps the loads inside the rows.
                unsafe {
                    let y = $load::<B>(b, mask);
                    for i in 0..I {
                        let x = $load::<A>(a.wrapping_add((i * lda + t) * a_bytes), mask);
                        sums[i] = $multiply_add(x, y, sums[i]);
                    }
                }
            }
            for i in 0..I {
                out[i][j] = _mm512_reduce_add_ps(sums[i]);
            }
        }
    };
}

dots!(dots_f32, dots_rows_f32, dots_by_f32, load, fused, "avx512f,avx512bw,avx512dq,avx512vl", PLAIN, WIDE);
dots!(
    dots_widened,
    dots_rows_widened,
    dots_by_widened,
    load,
    fused,
    "avx512f,avx512bw,avx512dq,avx512vl",
    ROUNDED,
    WIDE
);
dots!(
    dots_pairs,
    dots_rows_pairs,
    dots_by_pairs,
    load_two,
    dot_two,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16",
    ROUNDED_PAIR,
    PAIR
);

#[target_feature(enable = "avx512f")]
#[inline]
fn fused(a: __m512i, b: __m512i, c: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), c)
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn dot_two(a: __m512i, b: __m512i, c: __m512) -> __m512 {
    // SAFETY: the types are 64 bytes without meaning of their own.
    unsafe {
        _mm512_dpbf16_ps(c, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
// A call: written out for every sum of a tile it keeps that loop from being unrolled, so that sums are picked by index
// and therefore from memory, by the f32 ends too. Then each tile clears 1.8 KB before it begins.
#[inline(never)]
fn round_half(x: __m512) -> __m256i {
    _mm512_cvtepi32_epi16(round(_mm512_castps_si512(x)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
fn round_half_own(x: __m512) -> __m256i {
    // SAFETY: both types are 32 bytes without meaning of their own.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
}
