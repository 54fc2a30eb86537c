//! The k largest magnitudes of a chunk, exactly.
//!
//! ① A floor that at least k values reach. The k-th largest of the last chunks, and how far off it was as a guess for
//!   the next, say where to look ([`Guess`]); a floor so far below, taken on trust in the pass that reads the chunk
//!   ([`super::scan`]), lets some 110 of 4096 normal values through for k = 64. Where fewer than k reach it, or far more,
//!   the chunk is copied and read twice more: where k ≤ 64 (or 128), the smallest of 64 (128) lane-wise maxima is such a
//!   floor; else it is zero.
//! ② What reaches the floor is fetched into a list, with its place.
//! ③ Of these the largest T that k values reach, or the first met that just k reach: searched for by interpolation,
//!   since magnitudes lie nearly evenly in so small a range, and by halves where they do not.
//! ④ What exceeds T is taken, and of what equals it the first.
//!
//! So a guess changes how long it takes, never what is found. Magnitudes are compared as the bits of |x|, which order
//! like the numbers; NaN lies above infinity.

use super::{
    CHUNK, Tile,
    ahead::Ahead,
    record::Picks,
    scan::{Chunk, RUN, scan},
};
use crate::{ops::cast::element::per_level, pool::Parts, simd::Level};

/// Values that may be among the largest.
pub(crate) struct Candidates {
    /// See [`key`]; with room for a whole vector past the end.
    keys: [u32; CHUNK + 16],
    /// Where in the chunk; with room for a whole run past the end.
    places: [u16; CHUNK + RUN],
}

impl Candidates {
    pub fn new() -> Candidates {
        Candidates { keys: [0; CHUNK + 16], places: [0; CHUNK + RUN] }
    }

    /// Room for the places of a run after `count`.
    #[inline(always)]
    pub fn room(&mut self, count: usize) -> &mut [u16; RUN] {
        (&mut self.places[count..count + RUN]).try_into().expect("a run")
    }

    /// Fetches what the chunk holds at the first `count` places.
    fn fetch(&mut self, chunk: &Chunk<'_>, count: usize) {
        // SAFETY: `scan` found the places in this chunk, which has one piece.
        unsafe {
            chunk.each(&self.places[..count], |i, x| {
                if i % 16 == 0 {
                    chunk.ahead.fetch();
                }
                self.keys[i] = key(*x);
            });
        }
        // What is not there reaches nothing.
        self.keys[count..count + 16].fill(0);
    }
}

/// The bits of a value with its sign at the end: larger magnitudes have larger keys.
#[inline(always)]
fn key(x: f32) -> u32 {
    x.to_bits().rotate_left(1)
}

/// Where the k-th largest magnitude of a chunk is thought to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guess {
    /// About there; no number when nothing is known.
    kth: f32,
    /// What guesses were off by of late, as a share.
    off: f32,
}

impl Guess {
    /// Nothing is known.
    pub const NONE: Guess = Guess { kth: f32::NAN, off: 0.025 };

    pub fn to_bits(self) -> u64 {
        u64::from(self.kth.to_bits()) << 32 | u64::from(self.off.to_bits())
    }

    pub fn from_bits(bits: u64) -> Guess {
        Guess { kth: f32::from_bits((bits >> 32) as u32), off: f32::from_bits(bits as u32) }
    }

    /// What k values reach unless the guess is off by much more than of late.
    fn floor(self) -> u32 {
        magnitude(self.kth * (1.0 - 4.5 * self.off))
    }

    fn learn(&mut self, kth: f32) {
        if self.kth > 0.0 {
            self.off += ((kth / self.kth - 1.0).abs().min(0.2) - self.off) / 16.0;
            self.kth += (kth - self.kth) / 4.0;
        } else {
            self.kth = kth;
        }
    }
}

/// Finds the largest of one chunk after another.
pub(super) struct Picker {
    level: Level,
    /// For the next.
    pub guess: Guess,
    candidates: Candidates,
    x: [f32; CHUNK],
}

impl Picker {
    /// `guess` may be that of another picker.
    pub fn new(level: Level, guess: Guess) -> Picker {
        Picker { level, guess, candidates: Candidates::new(), x: [0.0; CHUNK] }
    }

    /// Brings a chunk up to date and picks its largest elements, as many as `picks.len`.
    pub fn largest(&mut self, chunk: &Chunk<'_>, picks: &mut Picks) {
        let (n, k) = (chunk.tile.len(), picks.len);
        // A small chunk, or one of which much is taken, tells little of the next.
        let (level, c, guessing) = (self.level, &mut self.candidates, n >= 512 && 8 * k <= n);
        let floor = if guessing { self.guess.floor() } else { u32::MAX };
        let count = scan(level, chunk, floor, c);
        let kth = if (k..=8 * k).contains(&count) {
            c.fetch(chunk, count);
            among(level, c, count, floor, magnitude(self.guess.kth), &chunk.ahead, picks)
        } else {
            let x = &mut self.x[..n];
            for (row, x) in x.chunks_exact_mut(chunk.tile.cols).enumerate() {
                // SAFETY: chunks do not overlap, and each has one piece.
                x.copy_from_slice(unsafe { chunk.e.window(chunk.tile.place(chunk.stride, row * x.len()), x.len()) });
            }
            largest(level, x, c, picks)
        };
        if guessing {
            self.guess.learn(f32::from_bits(kth));
        }
    }
}

/// Picks the largest of `x`, as many as `picks.len`, and returns a number that these alone reach or exceed.
fn largest(level: Level, x: &mut [f32], c: &mut Candidates, picks: &mut Picks) -> u32 {
    let (n, k) = (x.len(), picks.len);
    assert!(n <= CHUNK && k <= n, "chunk_topk: {k} of {n}");
    let floor = match k {
        ..=64 if n >= 256 => bound_64(level, x),
        ..=128 if n >= 512 => bound_128(level, x),
        _ => 0,
    };
    let (tile, e) = (Tile { row: 0, col: 0, rows: 1, cols: n }, Parts::new(x));
    let chunk = Chunk { tile, stride: n, e: &e, delta: None, beta: 0.0, ahead: Ahead::nothing() };
    let count = scan(level, &chunk, floor, c);
    c.fetch(&chunk, count);
    among(level, c, count, floor, floor, &chunk.ahead, picks)
}

/// As [`largest`], of `count` candidates, all of which reach `floor`.
fn among(
    level: Level,
    c: &Candidates,
    count: usize,
    floor: u32,
    guess: u32,
    ahead: &Ahead<'_>,
    picks: &mut Picks,
) -> u32 {
    let kth = kth(level, &c.keys[..count.next_multiple_of(16)], count, picks.len, floor, guess, || {
        (0..3).for_each(|_| ahead.fetch())
    });
    picks.least = kth;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the level says that the CPU has the instructions.
    if level >= Level::Avx512 && unsafe { pick_avx512(c, count, kth, ahead, picks) } {
        return kth;
    }
    pick(&c.keys[..count], &c.places[..count], kth, picks);
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

/// The magnitude of the `k`-th largest of `count` keys, or a number between it and the next that is less. All reach
/// `floor`; `guess` is looked at first; past `count` there are zeros up to a whole vector.
fn kth(level: Level, keys: &[u32], count: usize, k: usize, floor: u32, guess: u32, between: impl Fn()) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { kth_avx512(keys, count, k, floor, guess, between) };
    }
    let _ = level;
    let reach = |m: u32| {
        between();
        keys.iter().map(|&key| u32::from(key >= m << 1)).sum::<u32>() as usize
    };
    search(count, k, floor, guess, reach)
}

/// The largest magnitude that `k` of `count` reach, or the first met that just `k` reach; all reach `floor`, `guess` is
/// looked at first, and `reach` counts.
#[inline(always)]
pub(super) fn search(count: usize, k: usize, floor: u32, guess: u32, reach: impl Fn(u32) -> usize) -> u32 {
    // At least k reach `low`, fewer reach `high`.
    let (mut low, mut high) = ((u64::from(floor), count), (1u64 << 31, 0));
    let (mut next, mut steps) = (u64::from(guess), 0);
    while low.1 > k && high.0 - low.0 > 1 {
        next = next.clamp(low.0 + 1, high.0 - 1);
        let here = (next, reach(next as u32));
        // As if magnitudes lay evenly, from here to the other end, or, where that is nowhere, as they did up to here.
        let (from, to) = if here.1 < k {
            (low, here)
        } else if high.1 > 0 {
            (here, high)
        } else {
            (low, here)
        };
        let (width, between) = (to.0 - from.0, (from.1 - to.1) as u64);
        let beyond = if here.1 < k { low } else { here };
        let start = beyond.0;
        next = start + width * (2 * (beyond.1 - k) as u64 + 1) / (2 * between + 2);
        if here.1 < k {
            high = here
        } else {
            low = here
        }
        steps += 1;
        if steps > 6 {
            // They do not.
            next = low.0.midpoint(high.0);
        }
    }
    low.0 as u32
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
fn kth_avx512(keys: &[u32], count: usize, k: usize, floor: u32, guess: u32, between: impl Fn()) -> u32 {
    use std::arch::x86_64::*;
    let (blocks, rest) = keys.as_chunks::<16>();
    assert!(rest.is_empty(), "chunk_topk: {} keys", keys.len());
    let one = _mm512_set1_epi32(1);
    search(count, k, floor, guess, |m| {
        between();
        let (least, mut reached) = (_mm512_set1_epi32((m << 1) as i32), _mm512_setzero_si512());
        for block in blocks {
            // SAFETY: sixteen keys.
            let keys = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            // Counted in lanes: to fetch each mask from its register takes longer than to compare.
            reached = _mm512_mask_add_epi32(reached, _mm512_cmpge_epu32_mask(keys, least), reached, one);
        }
        _mm512_reduce_add_epi32(reached) as usize
    })
}

/// Picks what reaches `kth`, if it is just as much as is wanted; says whether it is.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,popcnt")]
fn pick_avx512(c: &Candidates, count: usize, kth: u32, ahead: &Ahead<'_>, picks: &mut Picks) -> bool {
    use std::arch::x86_64::*;
    let (k, least) = (picks.len, _mm512_set1_epi32((kth << 1) as i32));
    let mut found = 0;
    for at in (0..count).step_by(16) {
        ahead.fetch();
        let there = (u32::from(u16::MAX) >> (16 - (count - at).min(16))) as u16;
        // SAFETY: both arrays go on for a whole vector past the last candidate.
        let (keys, places) = unsafe {
            (_mm512_loadu_si512(c.keys.as_ptr().add(at).cast()), _mm256_loadu_si256(c.places.as_ptr().add(at).cast()))
        };
        let reach = _mm512_mask_cmpge_epu32_mask(there, keys, least);
        let more = reach.count_ones() as usize;
        if found + more > k {
            return false;
        }
        let values = _mm512_ror_epi32::<1>(_mm512_maskz_compress_epi32(reach, keys));
        let places = _mm512_maskz_compress_epi32(reach, _mm512_cvtepu16_epi32(places));
        // SAFETY: both arrays have room for a whole vector past a chunk.
        unsafe {
            _mm512_storeu_si512(picks.values.as_mut_ptr().add(found).cast(), values);
            _mm256_storeu_si256(picks.places.as_mut_ptr().add(found).cast(), _mm512_cvtepi32_epi16(places));
        }
        found += more;
    }
    found == k
}

/// Picks what exceeds `kth`, and of what equals it as many of the first as there is room for.
fn pick(keys: &[u32], places: &[u16], kth: u32, picks: &mut Picks) {
    let above: u32 = keys.iter().map(|&key| u32::from(key >> 1 > kth)).sum();
    let (mut equal_left, mut found) = (picks.len as u32 - above, 0);
    let last = picks.len - 1;
    // No branch: each is written, and stays if the count moves on.
    for (&key, &place) in keys.iter().zip(places) {
        let equal = u32::from(key >> 1 == kth) & u32::from(equal_left > 0);
        equal_left -= equal;
        if found <= last {
            (picks.places[found], picks.values[found]) = (place, f32::from_bits(key.rotate_right(1)));
        }
        found += (u32::from(key >> 1 > kth) | equal) as usize;
    }
    assert_eq!(found, picks.len, "chunk_topk: picked");
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
        let (mut c, mut picks) = (Candidates::new(), Picks::new());
        for n in [1, 5, 15, 16, 17, 64, 255, 256, 257, 511, 513, 1000, 4096] {
            let normal = crate::harness::draw(3, n);
            let few: Vec<f32> = normal.iter().map(|x| x.round()).collect();
            let mut odd = normal.clone();
            odd[n / 2] = f32::NAN;
            odd[n / 3] = f32::NEG_INFINITY;
            for mut x in [normal, few, vec![0.0; n], vec![-1.5; n], odd] {
                for k in [1, 2, n / 64, n / 32, n / 7, n].map(|k| k.clamp(1, n)) {
                    for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                        picks.len = k;
                        largest(level, &mut x, &mut c, &mut picks);
                        assert_eq!(picks.places[..k], sorted(&x, k), "n {n} k {k} {}", level.name());
                        assert!(picks.iter().all(|(i, v)| x[i].to_bits() == v.to_bits()));
                    }
                }
            }
        }
    }

    #[test]
    fn guesses_change_nothing_that_is_found() {
        let scales = [1.0, 1.0, 1.01, 1.5, 40.0, 1e-3, 1e-3, 0.0, 1.0, f32::NAN, 1.0, 1.0, 1e30, 1.0];
        for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
            for (rows, cols) in [(1, CHUNK), (64, 64), (64, 30), (1, 777)] {
                let (mut picker, mut picks) = (Picker::new(level, Guess::NONE), Picks::new());
                for (i, scale) in scales.into_iter().enumerate() {
                    let stride = if rows == 1 { cols } else { 100 };
                    let mut all: Vec<f32> = crate::harness::draw(i as u64, rows * stride);
                    all.iter_mut().step_by(3).for_each(|x| *x *= scale);
                    let x: Vec<f32> =
                        (0..rows).flat_map(|row| all[row * stride..row * stride + cols].iter().copied()).collect();
                    let (tile, e) = (Tile { row: 0, col: 0, rows, cols }, Parts::new(&mut all));
                    let ahead = Ahead::nothing();
                    let chunk = Chunk { tile, stride, e: &e, delta: None, beta: 0.0, ahead };
                    picks.len = 50;
                    picker.guess = Guess::from_bits(picker.guess.to_bits());
                    picker.largest(&chunk, &mut picks);
                    assert_eq!(picks.places[..50], sorted(&x, 50), "{rows} x {cols}, {i} at {}", level.name());
                    assert!(picks.iter().all(|(i, v)| x[i].to_bits() == v.to_bits()));
                }
            }
        }
    }
}
