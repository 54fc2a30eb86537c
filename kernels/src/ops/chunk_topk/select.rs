//! The k largest magnitudes of a chunk, exactly.
//!
//! ① A floor that at least k values reach. What the last chunk's k-th largest was says where to look: a guess an eighth
//!   below it, taken on trust in the pass that reads the chunk ([`super::scan`]), lets some 130 of 4096 normal values
//!   through for k = 64. Where fewer than k reach it, or far more, the chunk is copied and read twice more: where
//!   k ≤ 64 (or 128), the smallest of 64 (128) lane-wise maxima is such a floor; else it is zero.
//! ② What reaches the floor is copied out with its place.
//! ③ Of these, bit by bit from the top of its magnitude, the largest T that k values reach; the first that just k reach
//!   does as well.
//! ④ What exceeds T is taken, and of what equals it the first.
//!
//! So a guess changes how long it takes, never what is found. Magnitudes are compared as the bits of |x|, which order
//! like the numbers; NaN lies above infinity.

use super::{
    CHUNK,
    scan::{Chunk, scan},
};
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

    /// Room for four from `at` on.
    #[inline(always)]
    pub fn four(&mut self, at: usize) -> (&mut [u32; 4], &mut [u32; 4]) {
        let four = at..at + 4;
        let (magnitudes, places) = (&mut self.magnitudes[four.clone()], &mut self.places[four]);
        (magnitudes.try_into().expect("four"), places.try_into().expect("four"))
    }
}

/// Finds the largest of one chunk after another.
pub(crate) struct Picker {
    level: Level,
    /// Where to look; no number when nothing is known.
    guess: f32,
    candidates: Candidates,
    x: [f32; CHUNK],
}

impl Picker {
    /// `guess` is that of another picker, or NaN.
    pub fn new(level: Level, guess: f32) -> Picker {
        Picker { level, guess, candidates: Candidates::new(), x: [0.0; CHUNK] }
    }

    /// For a picker that goes on from here.
    pub fn guess(&self) -> f32 {
        self.guess
    }

    /// Brings a chunk up to date and writes the places of its largest elements, as many as `places` holds, ascending.
    pub(super) fn largest(&mut self, chunk: &Chunk<'_>, places: &mut [u16]) {
        let (n, k) = (chunk.tile.len(), places.len());
        // A small chunk, or one of which much is taken, tells little of the next.
        let (level, c, guessing) = (self.level, &mut self.candidates, n >= 512 && 8 * k <= n);
        let floor = if guessing { magnitude(self.guess) } else { u32::MAX };
        let count = scan(level, chunk, floor, c);
        let kth = if (k..=8 * k).contains(&count) {
            among(level, c, count, places)
        } else {
            let x = &mut self.x[..n];
            for (row, x) in x.chunks_exact_mut(chunk.tile.cols).enumerate() {
                // SAFETY: chunks do not overlap, and each has one piece.
                x.copy_from_slice(unsafe { chunk.e.window(chunk.place(row * chunk.tile.cols), x.len()) });
            }
            largest(level, x, c, places)
        };
        if guessing {
            self.guess = 0.875 * f32::from_bits(kth);
        }
    }
}

/// Writes the places of the largest of `x`, ascending, and returns a number that these alone reach or exceed.
fn largest(level: Level, x: &[f32], c: &mut Candidates, places: &mut [u16]) -> u32 {
    let k = places.len();
    assert!(x.len() <= CHUNK && k <= x.len(), "chunk_topk: {k} of {}", x.len());
    let bound = match k {
        ..=64 if x.len() >= 256 => bound_64(level, x),
        ..=128 if x.len() >= 512 => bound_128(level, x),
        _ => 0,
    };
    let count = collect(level, x, bound, c);
    among(level, c, count, places)
}

/// As [`largest`], of `count` candidates.
fn among(level: Level, c: &Candidates, count: usize, places: &mut [u16]) -> u32 {
    let (magnitudes, all) = (&c.magnitudes[..count], &c.places[..count]);
    let kth = kth(level, magnitudes, places.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the level says that the CPU has the instructions.
    if level >= Level::Avx512 && unsafe { pick_avx512(magnitudes, all, kth, places) } {
        return kth;
    }
    pick(magnitudes, all, kth, places);
    kth
}

#[inline(always)]
pub(crate) fn magnitude(x: f32) -> u32 {
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

/// The `k`-th largest of `magnitudes`, or a number between it and the next that is less.
pub(crate) fn kth(level: Level, magnitudes: &[u32], k: usize) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { kth_avx512(magnitudes, k) };
    }
    let _ = level;
    bit_by_bit(magnitudes, k, |next| magnitudes.iter().map(|&m| u32::from(m >= next)).sum::<u32>() as usize)
}

/// The largest number that `k` of them reach, or the first met that just `k` reach; `reach` counts.
#[inline(always)]
fn bit_by_bit(magnitudes: &[u32], k: usize, reach: impl Fn(u32) -> usize) -> u32 {
    // Bits above the first in which two magnitudes differ are known.
    let (all, any) = magnitudes.iter().fold((u32::MAX, 0), |(all, any), &m| (all & m, any | m));
    let open = 32 - (all ^ any).leading_zeros();
    let mut kth = if open == 32 { 0 } else { all >> open << open };
    for bit in (0..open).rev() {
        let next = kth | 1 << bit;
        let reached = reach(next);
        if reached >= k {
            kth = next;
        }
        if reached == k {
            break;
        }
    }
    kth
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
fn kth_avx512(magnitudes: &[u32], k: usize) -> u32 {
    use std::arch::x86_64::*;
    let (blocks, rest) = magnitudes.as_chunks::<16>();
    let there = ((1u32 << rest.len()) - 1) as u16;
    // SAFETY: `there` keeps the load inside the rest.
    let rest = unsafe { _mm512_maskz_loadu_epi32(there, rest.as_ptr().cast()) };
    let one = _mm512_set1_epi32(1);
    bit_by_bit(magnitudes, k, |next| {
        let floor = _mm512_set1_epi32(next as i32);
        // What is not there is zero, which `next` is not.
        let mut count = _mm512_maskz_mov_epi32(_mm512_cmpge_epu32_mask(rest, floor), one);
        for block in blocks {
            // SAFETY: sixteen values.
            let m = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            // Counted in lanes: to fetch each mask from its register takes longer than to compare.
            count = _mm512_mask_add_epi32(count, _mm512_cmpge_epu32_mask(m, floor), count, one);
        }
        _mm512_reduce_add_epi32(count) as usize
    })
}

/// Which of up to 64 magnitudes reach `floor`, a bit each.
pub(crate) fn reaching(level: Level, magnitudes: &[u32], floor: u32) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { reaching_avx512(magnitudes, floor) };
    }
    let _ = level;
    magnitudes.iter().enumerate().fold(0, |set, (i, &m)| set | u64::from(m >= floor) << i)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn reaching_avx512(magnitudes: &[u32], floor: u32) -> u64 {
    use std::arch::x86_64::*;
    magnitudes.chunks(16).enumerate().fold(0, |set, (i, block)| {
        let there = (u32::from(u16::MAX) >> (16 - block.len())) as u16;
        // SAFETY: `there` keeps the load inside the block.
        let m = unsafe { _mm512_maskz_loadu_epi32(there, block.as_ptr().cast()) };
        let reach = _mm512_mask_cmpge_epu32_mask(there, m, _mm512_set1_epi32(floor as i32));
        set | u64::from(reach) << (16 * i)
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

/// What reaches `kth`, if `places` has room for just so many; says whether it has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn pick_avx512(magnitudes: &[u32], all: &[u32], kth: u32, places: &mut [u16]) -> bool {
    use std::arch::x86_64::*;
    let mut found = 0;
    for (block, all) in magnitudes.chunks(16).zip(all.chunks(16)) {
        let there = (u32::from(u16::MAX) >> (16 - block.len())) as u16;
        // SAFETY: `there` keeps the loads inside the blocks.
        let (m, all) = unsafe {
            (
                _mm512_maskz_loadu_epi32(there, block.as_ptr().cast()),
                _mm512_maskz_loadu_epi32(there, all.as_ptr().cast()),
            )
        };
        let reach = _mm512_mask_cmpge_epu32_mask(there, m, _mm512_set1_epi32(kth as i32));
        let more = reach.count_ones() as usize;
        let Some(to) = places.get_mut(found..found + more) else { return false };
        let taken = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(reach, all));
        // SAFETY: as many as `to` has.
        unsafe { _mm256_mask_storeu_epi16(to.as_mut_ptr().cast(), ((1u32 << more) - 1) as u16, taken) };
        found += more;
    }
    found == places.len()
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
                        largest(level, &x, &mut c, &mut places);
                        assert_eq!(places, sorted(&x, k), "n {n} k {k} {}", level.name());
                    }
                }
            }
        }
    }
}
