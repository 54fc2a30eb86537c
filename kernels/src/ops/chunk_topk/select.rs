//! The k largest magnitudes of a chunk, exactly, in two passes over values that lie in L1.
//!
//! ① Where k ≤ 64 (or 128), the smallest of 64 (128) lane-wise maxima is a lower bound of the k-th largest: at least
//!   that many values reach it. Else the bound is zero.
//! ② What reaches the bound (some 260 of 4096 normal values for k = 64) is copied out with its place.
//! ③ The k-th largest of these, bit by bit from the top of its magnitude: the largest T that k values reach.
//! ④ What exceeds T is taken, and of what equals it the first.
//!
//! Magnitudes are compared as the bits of |x|, which order like the numbers; NaN lies above infinity.

use super::CHUNK;
use crate::{ops::cast::element::per_level, simd::Level};

/// Values that may be among the largest, with room for a whole vector past the end.
pub(crate) struct Candidates {
    magnitudes: [u32; CHUNK + 16],
    places: [u32; CHUNK + 16],
}

impl Candidates {
    pub fn new() -> Candidates {
        Candidates { magnitudes: [0; CHUNK + 16], places: [0; CHUNK + 16] }
    }
}

/// Writes the places of the `k` largest of `x`, ascending.
pub(crate) fn largest(level: Level, x: &[f32], k: usize, c: &mut Candidates, places: &mut [u16]) {
    assert!(x.len() <= CHUNK && k <= x.len(), "chunk_topk: {k} of {}", x.len());
    let bound = match k {
        ..=64 if x.len() >= 256 => bound_64(level, x),
        ..=128 if x.len() >= 512 => bound_128(level, x),
        _ => 0,
    };
    let count = collect(level, x, bound, c);
    let kth = kth(level, &c.magnitudes[..count], k);
    pick(&c.magnitudes[..count], &c.places[..count], kth, &mut places[..k]);
}

#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & !(1 << 31)
}

#[inline(always)]
fn bound<const LANES: usize>(x: &[f32]) -> u32 {
    let mut most = [0u32; LANES];
    for block in x.chunks_exact(LANES) {
        for l in 0..LANES {
            most[l] = most[l].max(magnitude(block[l]));
        }
    }
    most.into_iter().min().expect("lanes")
}

per_level! {
    fn bound_64[](x: &[f32]) -> u32 {
        bound::<64>(x)
    }

    fn bound_128[](x: &[f32]) -> u32 {
        bound::<128>(x)
    }
}

/// The `k`-th largest of `magnitudes`.
pub(crate) fn kth(level: Level, magnitudes: &[u32], k: usize) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { kth_avx512(magnitudes, k) };
    }
    let _ = level;
    bit_by_bit(magnitudes, k, |next| magnitudes.iter().map(|&m| u32::from(m >= next)).sum::<u32>() as usize)
}

/// The largest number that `k` of them reach; `reach` counts.
#[inline(always)]
fn bit_by_bit(magnitudes: &[u32], k: usize, reach: impl Fn(u32) -> usize) -> u32 {
    // Bits above the first in which two magnitudes differ are known.
    let (all, any) = magnitudes.iter().fold((u32::MAX, 0), |(all, any), &m| (all & m, any | m));
    let open = 32 - (all ^ any).leading_zeros();
    let mut kth = if open == 32 { 0 } else { all >> open << open };
    for bit in (0..open).rev() {
        let next = kth | 1 << bit;
        if reach(next) >= k {
            kth = next;
        }
    }
    kth
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
fn kth_avx512(magnitudes: &[u32], k: usize) -> u32 {
    use std::arch::x86_64::*;
    bit_by_bit(magnitudes, k, |next| {
        let (floor, mut count) = (_mm512_set1_epi32(next as i32), 0);
        let mut blocks = magnitudes.chunks_exact(16);
        for block in &mut blocks {
            // SAFETY: sixteen values.
            let m = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            count += _mm512_cmpge_epu32_mask(m, floor).count_ones() as usize;
        }
        count + blocks.remainder().iter().filter(|&&m| m >= next).count()
    })
}

/// Copies what reaches `bound` out, in order; returns how many.
fn collect(level: Level, x: &[f32], bound: u32, c: &mut Candidates) -> usize {
    #[cfg(target_arch = "x86_64")]
    match level {
        // SAFETY: the level says that the CPU has the instructions.
        Level::Avx512 | Level::Avx512Bf16 => return unsafe { collect_avx512(x, bound, c) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { collect_avx2(x, bound, c) },
        Level::Portable => {}
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    collect_from(x, 0, bound, c, 0)
}

/// Goes on at place `from` with `count` candidates found.
fn collect_from(x: &[f32], from: usize, bound: u32, c: &mut Candidates, mut count: usize) -> usize {
    for (i, &x) in x.iter().enumerate().skip(from) {
        c.magnitudes[count] = magnitude(x);
        c.places[count] = i as u32;
        count += usize::from(magnitude(x) >= bound);
    }
    count
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
fn collect_avx512(x: &[f32], bound: u32, c: &mut Candidates) -> usize {
    use std::arch::x86_64::*;
    let floor = _mm512_set1_epi32(bound as i32);
    let mut place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut count = 0;
    for block in x.chunks_exact(16) {
        // SAFETY: sixteen values.
        let bits = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        let m = _mm512_and_si512(bits, _mm512_set1_epi32(i32::MAX));
        let keep = _mm512_cmpge_epu32_mask(m, floor);
        // No branch: whether a block has a candidate is a coin toss, which no predictor wins.
        // SAFETY: `count` is at most the place of the block, and both arrays have 16 to spare past a chunk.
        unsafe {
            let to = c.magnitudes.as_mut_ptr().add(count);
            _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(keep, m));
            let to = c.places.as_mut_ptr().add(count);
            _mm512_storeu_si512(to.cast(), _mm512_maskz_compress_epi32(keep, place));
        }
        count += keep.count_ones() as usize;
        place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
    }
    collect_from(x, x.len() / 16 * 16, bound, c, count)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn collect_avx2(x: &[f32], bound: u32, c: &mut Candidates) -> usize {
    use std::arch::x86_64::*;
    let floor = _mm256_set1_epi32(bound as i32);
    let mut count = 0;
    for (i, block) in x.chunks_exact(8).enumerate() {
        // SAFETY: eight values.
        let bits = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
        let m = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MAX));
        // Magnitudes have no sign bit, so signed comparison orders them.
        let below = _mm256_cmpgt_epi32(floor, m);
        let mut keep = !_mm256_movemask_ps(_mm256_castsi256_ps(below)) as u8;
        while keep != 0 {
            let lane = keep.trailing_zeros() as usize;
            c.magnitudes[count] = magnitude(block[lane]);
            c.places[count] = (8 * i + lane) as u32;
            count += 1;
            keep &= keep - 1;
        }
    }
    collect_from(x, x.len() / 8 * 8, bound, c, count)
}

/// What exceeds `kth`, and of what equals it as many of the first as there is room for.
fn pick(magnitudes: &[u32], all: &[u32], kth: u32, places: &mut [u16]) {
    let above: u32 = magnitudes.iter().map(|&m| u32::from(m > kth)).sum();
    let (mut equal_left, mut found) = (places.len() as u32 - above, 0);
    let last = places.len() - 1;
    // No branch either: each place is written, and stays if the count moves on.
    for (&m, &place) in magnitudes.iter().zip(all) {
        let equal = u32::from(m == kth) & u32::from(equal_left > 0);
        equal_left -= equal;
        if found <= last {
            places[found] = place as u16;
        }
        found += (u32::from(m > kth) | equal) as usize;
    }
    assert_eq!(found, places.len(), "chunk_topk: picked");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd;

    fn sorted(x: &[f32], k: usize) -> Vec<u16> {
        let mut places: Vec<u16> = (0..x.len() as u16).collect();
        places.sort_by_key(|&p| std::cmp::Reverse(magnitude(x[usize::from(p)])));
        places.truncate(k);
        places.sort();
        places
    }

    #[test]
    fn the_largest_are_those_that_a_stable_sort_puts_first() {
        let mut c = Candidates::new();
        for n in [1, 5, 15, 16, 17, 64, 255, 256, 257, 511, 513, 1000, 4096] {
            let normal = crate::harness::draw(3, n);
            let few: Vec<f32> = normal.iter().map(|x| x.round()).collect();
            let mut odd = normal.clone();
            odd[n / 2] = f32::NAN;
            odd[n / 3] = f32::NEG_INFINITY;
            for x in [normal, few, vec![0.0; n], vec![-1.5; n], odd] {
                for k in [1, 2, n / 64, n / 32, n / 7, n].map(|k| k.clamp(1, n)) {
                    for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                        let mut places = vec![0; k];
                        largest(level, &x, k, &mut c, &mut places);
                        assert_eq!(places, sorted(&x, k), "n {n} k {k} {}", level.name());
                    }
                }
            }
        }
    }
}
