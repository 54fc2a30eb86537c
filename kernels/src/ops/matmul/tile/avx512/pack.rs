//! Packing: 16 by 16 words are transposed in registers where k is the fast index; where it is not, rows are copied and,
//! for pairs, two of them interleaved. Loads of one row or column serve [`super`]'s dots too.

use super::super::{In, Major, Operand};
use std::arch::x86_64::*;

/// f32 as it is.
pub(super) const PLAIN: u8 = 0;
/// f32 rounded to bf16, kept as f32.
pub(super) const ROUNDED: u8 = 1;
/// bf16 as f32.
pub(super) const WIDE: u8 = 2;
/// Two f32 as a pair of bf16.
pub(super) const ROUNDED_PAIR: u8 = 3;
/// A pair of bf16.
pub(super) const PAIR: u8 = 4;

/// Bytes of an element before packing, and elements in a word after it.
pub(super) const fn shape(how: u8) -> (usize, usize) {
    match how {
        PLAIN | ROUNDED => (4, 1),
        WIDE => (2, 1),
        ROUNDED_PAIR => (4, 2),
        _ => (2, 2),
    }
}

/// Safety: see [`super::super::Pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_f32<const W: usize>(src: Operand<'_>, outer: usize, k: usize, out: &mut [u32]) {
    // SAFETY: passed on as promised by the caller.
    unsafe {
        match src.data {
            In::F32(x) => pack::<W, PLAIN>(x.as_ptr().cast(), src, outer, k, out),
            In::Bf16(x) => pack::<W, WIDE>(x.as_ptr().cast(), src, outer, k, out),
        }
    }
}

/// Safety: see [`super::super::Pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pack_widened<const W: usize>(src: Operand<'_>, outer: usize, k: usize, out: &mut [u32]) {
    // SAFETY: passed on as promised by the caller.
    unsafe {
        match src.data {
            In::F32(x) => pack::<W, ROUNDED>(x.as_ptr().cast(), src, outer, k, out),
            In::Bf16(x) => pack::<W, WIDE>(x.as_ptr().cast(), src, outer, k, out),
        }
    }
}

/// Safety: see [`super::super::Pack`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_pairs<const W: usize>(src: Operand<'_>, outer: usize, k: usize, out: &mut [u32]) {
    // SAFETY: passed on as promised by the caller.
    unsafe {
        match src.data {
            In::F32(x) => pack_two::<W, ROUNDED_PAIR>(x.as_ptr().cast(), src, outer, k, out),
            In::Bf16(x) => pack_two::<W, PAIR>(x.as_ptr().cast(), src, outer, k, out),
        }
    }
}

/// The low `n` bits (at most 32).
pub(super) fn ones(n: usize) -> u32 {
    ((1u64 << n.min(32)) - 1) as u32
}

/// Steps that rows which lie across are fetched ahead while they are packed.
const AHEAD: usize = 8;

/// Packing, written once for words of one element and once for pairs, which take instructions of their own.
macro_rules! packing {
    ($pack:ident, $by_k:ident, $by_outer:ident, $load:ident, $two:ident, $features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn $pack<const W: usize, const HOW: u8>(
            x: *const u8,
            src: Operand<'_>,
            outer: usize,
            k: usize,
            out: &mut [u32],
        ) {
            let (bytes, pair) = shape(HOW);
            let steps = k.div_ceil(pair);
            let panels = outer.div_ceil(W);
            assert!(out.len() == panels * steps * W, "matmul: length of the panels");
            // SAFETY: the source holds `outer` by `k`, by the caller's promise, the panels by the assert.
            unsafe {
                match src.major {
                    Major::K => {
                        for p in 0..panels {
                            let (x, to) = (x.add(p * W * src.ld * bytes), out.as_mut_ptr().add(p * steps * W));
                            $by_k::<W, HOW>(x, src.ld * bytes, W.min(outer - p * W), k, to);
                        }
                    }
                    Major::Outer => $by_outer::<W, HOW>(x, src.ld * bytes, outer, k, out.as_mut_ptr()),
                }
            }
        }

        /// One panel from rows in which k runs fast, 16 steps of 16 rows at a time.
        #[target_feature(enable = $features)]
        unsafe fn $by_k<const W: usize, const HOW: u8>(
            x: *const u8,
            row_bytes: usize,
            width: usize,
            k: usize,
            to: *mut u32,
        ) {
            let (bytes, pair) = shape(HOW);
            let steps = k.div_ceil(pair);
            // The next panel's rows are fetched into L2 meanwhile, whole row after row: the hardware does not follow so
            // many short streams. On a Zen 4, f32 from memory went from 4.5 to 16 GB/s. Short rows are a tile's, in L1.
            let (row_end, fetched) = (k * bytes, if row_bytes > 512 { W } else { 0 });
            let (mut ahead, mut line) = (x.wrapping_add(W * row_bytes), 0);
            for t in (0..steps).step_by(16) {
                for _ in 0..fetched {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
                    line += 64;
                    if line >= row_end {
                        (ahead, line) = (ahead.wrapping_add(row_bytes), 0);
                    }
                }
                let here = 16.min(steps - t);
                if width == W && t * pair + 16 * pair <= k {
                    // Nothing is missing: spelt out for sizes known when compiled, so that all stays in registers.
                    for group in (0..W).step_by(16) {
                        let mut rows = [_mm512_setzero_si512(); 16];
                        // SAFETY: sixteen words are there in each of W rows; stores as below.
                        unsafe {
                            let x = x.add(group * row_bytes + t * pair * bytes);
                            for i in 0..16.min(W - group) {
                                rows[i] = $load::<HOW>(x.add(i * row_bytes), u32::MAX);
                            }
                            transpose(&mut rows);
                            let to = to.add(t * W + group);
                            for i in 0..15 {
                                _mm512_storeu_si512(to.add(i * W).cast(), rows[i]);
                            }
                            if W.is_multiple_of(16) || t + 16 < steps {
                                _mm512_storeu_si512(to.add(15 * W).cast(), rows[15]);
                            } else {
                                _mm512_mask_storeu_epi32(to.add(15 * W).cast(), ones(W - group) as u16, rows[15]);
                            }
                        }
                    }
                    continue;
                }
                let mask = ones((k - t * pair).min(16 * pair));
                for group in (0..W).step_by(16) {
                    let mut rows = [_mm512_setzero_si512(); 16];
                    // SAFETY: `mask` keeps the loads inside row `group + i`, which exists; step t + i has W words, and
                    // a store of 16 that begins before the last step's ends inside the panel.
                    unsafe {
                        let x = x.add(group * row_bytes + t * pair * bytes);
                        for i in 0..16.min(W - group) {
                            if group + i < width {
                                rows[i] = $load::<HOW>(x.add(i * row_bytes), mask);
                            }
                        }
                        transpose(&mut rows);
                        for i in 0..here {
                            let to = to.add((t + i) * W + group);
                            if W.is_multiple_of(16) || t + i + 1 < steps {
                                _mm512_storeu_si512(to.cast(), rows[i]);
                            } else {
                                _mm512_mask_storeu_epi32(to.cast(), ones(W - group) as u16, rows[i]);
                            }
                        }
                    }
                }
            }
        }

        /// All panels from rows in which the outer index runs fast: whole rows are read, each panel gets its share.
        #[target_feature(enable = $features)]
        unsafe fn $by_outer<const W: usize, const HOW: u8>(
            x: *const u8,
            row_bytes: usize,
            outer: usize,
            k: usize,
            to: *mut u32,
        ) {
            let (bytes, pair) = shape(HOW);
            let steps = k.div_ceil(pair);
            // Four steps at a time, so that each panel gets a few whole lines.
            for t0 in (0..steps).step_by(4) {
                for p in 0..outer.div_ceil(W) {
                    for t in t0..(t0 + 4).min(steps) {
                        for group in (0..W).step_by(16) {
                            let at = p * W + group;
                            let there = ones(outer.saturating_sub(at).min(16).min(W - group)) as u16;
                            let below = if t * pair + 1 < k { there } else { 0 };
                            // SAFETY: `there` and `below` keep the loads inside rows t·pair and, where it exists, the
                            // next; the store is of the panel's own words.
                            unsafe {
                                let first = x.wrapping_add(t * pair * row_bytes + at * bytes);
                                _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(AHEAD * pair * row_bytes).cast());
                                let words = $two::<HOW>(first, first.wrapping_add(row_bytes), there, below);
                                let to = to.add((p * steps + t) * W + group);
                                if W.is_multiple_of(16) {
                                    _mm512_storeu_si512(to.cast(), words);
                                } else {
                                    _mm512_mask_storeu_epi32(to.cast(), ones(W - group) as u16, words);
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}

packing!(pack, by_k, by_outer, load, load_outer, "avx512f,avx512bw,avx512dq,avx512vl");
packing!(pack_two, by_k_two, by_outer_two, load_two, load_outer_two, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");

/// Sixteen words from the elements at `x` that `mask` names.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
pub(super) unsafe fn load<const HOW: u8>(x: *const u8, mask: u32) -> __m512i {
    // SAFETY: masked loads touch only what the mask names, which the caller promises to be there.
    unsafe {
        match HOW {
            PLAIN => _mm512_maskz_loadu_epi32(mask as u16, x.cast()),
            ROUNDED => _mm512_slli_epi32::<16>(round(_mm512_maskz_loadu_epi32(mask as u16, x.cast()))),
            _ => {
                let x = _mm256_maskz_loadu_epi16(mask as u16, x.cast());
                _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x))
            }
        }
    }
}

/// Sixteen pairs from the 32 elements at `x` that `mask` names.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
pub(super) unsafe fn load_two<const HOW: u8>(x: *const u8, mask: u32) -> __m512i {
    // SAFETY: as in `load`.
    unsafe {
        if HOW == ROUNDED_PAIR {
            let low = _mm512_maskz_loadu_ps(mask as u16, x.cast());
            let high = _mm512_maskz_loadu_ps((mask >> 16) as u16, x.cast::<f32>().wrapping_add(16));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        } else {
            _mm512_maskz_loadu_epi16(mask, x.cast())
        }
    }
}

/// Sixteen words of one row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn load_outer<const HOW: u8>(x: *const u8, _: *const u8, there: u16, _: u16) -> __m512i {
    // SAFETY: as in `load`.
    unsafe { load::<HOW>(x, u32::from(there)) }
}

/// Sixteen pairs, each of one element of row `x` and the one below it in row `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
unsafe fn load_outer_two<const HOW: u8>(x: *const u8, y: *const u8, in_x: u16, in_y: u16) -> __m512i {
    // SAFETY: as in `load`.
    let (x, y) = unsafe {
        if HOW == ROUNDED_PAIR {
            let (x, y) = (_mm512_maskz_loadu_ps(in_x, x.cast()), _mm512_maskz_loadu_ps(in_y, y.cast()));
            (_mm512_cvtneps_pbh(x), _mm512_cvtneps_pbh(y))
        } else {
            let (x, y) = (_mm256_maskz_loadu_epi16(in_x, x.cast()), _mm256_maskz_loadu_epi16(in_y, y.cast()));
            (std::mem::transmute::<__m256i, __m256bh>(x), std::mem::transmute::<__m256i, __m256bh>(y))
        }
    };
    // SAFETY: both types are 32 bytes without meaning of their own.
    let (x, y) = unsafe { (std::mem::transmute::<__m256bh, __m256i>(x), std::mem::transmute::<__m256bh, __m256i>(y)) };
    _mm512_or_si512(_mm512_cvtepu16_epi32(x), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(y)))
}

/// The bits of bf16(x), to nearest, ties to even, in the low half of each word; a NaN stays one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
pub(super) fn round(x: __m512i) -> __m512i {
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
    let near = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd));
    let quiet = _mm512_or_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(0x40));
    let f = _mm512_castsi512_ps(x);
    _mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(f, f), quiet)
}

/// Swaps rows and columns of 16 by 16 words.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn transpose(r: &mut [__m512i; 16]) {
    let mut t = [_mm512_setzero_si512(); 16];
    // Four words of a 128-bit quarter hold one column of four rows after these two rounds.
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for i in (0..16).step_by(4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4g + c] holds columns c, 4 + c, 8 + c, 12 + c of rows 4g.., a quarter each: transpose the quarters.
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(r[c], r[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(r[c], r[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(r[8 + c], r[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(r[8 + c], r[12 + c]);
        t[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        t[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        t[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        t[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    *r = t;
}
