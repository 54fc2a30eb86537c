//! One pass over a chunk where it lies: it is brought up to date, and where it reaches a floor is noted.
//!
//! Nothing is copied: elements are read once, in runs of up to 64 neighbours (a row of a tile, a piece of a vector). A
//! run gives 64 bits, one for each element that reaches the floor, and the bits give places. A good floor (see
//! [`super::select::Picker`]) lets through some two elements a run.
//!
//! The same line of the next chunk is fetched after each, since the machine's own guesses start anew with every row. (To
//! fetch a run before it is read, or half of a chunk later, cost a matrix half as much time again on a Zen 4.)

use super::{
    CHUNK, SIDE, Tile,
    select::{Candidates, magnitude},
};
use crate::{ops::cast::element::per_level, pool::Parts, simd::Level};

/// Elements of a run, a bit each.
pub(super) const RUN: usize = 64;

/// A chunk in memory, and what is added to it.
pub(super) struct Chunk<'a> {
    pub tile: Tile,
    /// Distance between its rows.
    pub stride: usize,
    pub e: &'a Parts<'a, f32>,
    /// Anchor and theta.
    pub delta: Option<(&'a [f32], &'a [f32])>,
    pub beta: f32,
    /// How many elements further the next chunk lies.
    pub ahead: usize,
}

impl Chunk<'_> {
    /// Calls `each(nth, element)` for the elements at these places of the chunk.
    ///
    /// # Safety
    /// The places lie in the chunk, and the caller has the chunk for itself.
    #[inline(always)]
    pub unsafe fn each(&self, places: &[u16], mut each: impl FnMut(usize, &mut f32)) {
        let (stride, cols) = (self.stride, self.tile.cols);
        let start = self.tile.start(stride);
        // All of it lies in the tensor: between here and the last element of its last row.
        // SAFETY: the caller has the chunk for itself; the window is not used.
        let start = unsafe { self.e.window(start, 1) }.as_mut_ptr();
        let end = self.tile.start(stride) + (self.tile.rows - 1) * stride + cols;
        assert!(self.e.at(end) >= start, "chunk_topk: a chunk past the end");
        // Nearly all chunks are whole, and to divide takes longer than all else that is done for an element.
        // SAFETY: what the caller promises, and the bounds above.
        unsafe {
            match (self.tile.rows, cols) {
                (1, _) => places.iter().enumerate().for_each(|(i, &p)| each(i, &mut *start.add(usize::from(p)))),
                (_, SIDE) => places.iter().map(|&p| usize::from(p)).enumerate().for_each(|(i, p)| {
                    each(i, &mut *start.add(p / SIDE * stride + p % SIDE));
                }),
                _ => places.iter().map(|&p| usize::from(p)).enumerate().for_each(|(i, p)| {
                    each(i, &mut *start.add(p / cols * stride + p % cols));
                }),
            }
        }
    }
}

/// e ← β·e + (a − θ), where there is a delta; notes the places that then reach `floor`, in order, and returns how many.
pub(super) fn scan(level: Level, chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        if is_x86_feature_detected!("avx512vbmi2") {
            // SAFETY: the CPU has the instructions.
            return unsafe { scan_vbmi2(chunk, floor, to) };
        }
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { scan_avx512(chunk, floor, to) };
    }
    // The compiler's loops leave fetching to the machine.
    let _ = chunk.ahead;
    scan_plain(level, chunk, floor, to)
}

per_level! {
    fn scan_plain[](chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
        walk(chunk, to, note, |e, delta| {
            if let Some((anchor, theta)) = delta {
                for i in 0..e.len() {
                    e[i] = chunk.beta * e[i] + (anchor[i] - theta[i]);
                }
            }
            e.iter().enumerate().fold(0, |mask, (i, &x)| mask | u64::from(magnitude(x) >= floor) << i)
        })
    }
}

/// Writes the places of a run's set bits, the first bit's being `first`.
#[inline(always)]
fn note(mut mask: u64, first: u16, places: &mut [u16; RUN]) {
    // Four at a time, whether there are so many or not: how many there are is a toss that no predictor wins.
    for four in places.chunks_exact_mut(4) {
        for place in four {
            *place = first + (mask.trailing_zeros() % RUN as u32) as u16;
            mask &= mask.wrapping_sub(1);
        }
        if mask == 0 {
            break;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
fn scan_avx512(chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
    // Of a length that the compiler knows, for all but the last column of tiles.
    if chunk.tile.cols.is_multiple_of(RUN) {
        walk(chunk, to, note, |e, delta| run_avx512::<true>(chunk, e, delta, floor))
    } else {
        walk(chunk, to, note, |e, delta| run_avx512::<false>(chunk, e, delta, floor))
    }
}

/// As [`scan_avx512`], with an instruction that makes places of bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt,bmi1,bmi2")]
fn scan_vbmi2(chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
    use std::arch::x86_64::*;
    const LANES: [u8; RUN] = {
        let (mut lanes, mut i) = ([0; RUN], 0);
        while i < RUN {
            lanes[i] = i as u8;
            i += 1;
        }
        lanes
    };
    // SAFETY: 64 bytes.
    let lanes = unsafe { _mm512_loadu_si512(LANES.as_ptr().cast()) };
    let note = |mask: u64, first: u16, places: &mut [u16; RUN]| {
        let (set, first) = (_mm512_maskz_compress_epi8(mask, lanes), _mm512_set1_epi16(first as i16));
        let wide = |half| _mm512_add_epi16(_mm512_cvtepu8_epi16(half), first);
        // SAFETY: 32 places, then the other 32.
        unsafe {
            _mm512_storeu_si512(places.as_mut_ptr().cast(), wide(_mm512_castsi512_si256(set)));
            if mask.count_ones() > 32 {
                let half = _mm512_extracti64x4_epi64::<1>(set);
                _mm512_storeu_si512(places[32..].as_mut_ptr().cast(), wide(half));
            }
        }
    };
    if chunk.tile.cols.is_multiple_of(RUN) {
        walk(chunk, to, note, |e, delta| run_avx512::<true>(chunk, e, delta, floor))
    } else {
        walk(chunk, to, note, |e, delta| run_avx512::<false>(chunk, e, delta, floor))
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
#[inline]
fn run_avx512<const WHOLE: bool>(chunk: &Chunk<'_>, e: &mut [f32], delta: Option<(&[f32], &[f32])>, floor: u32) -> u64 {
    use std::arch::x86_64::*;
    let len = if WHOLE { RUN } else { e.len() };
    assert!(e.len() == len && delta.is_none_or(|(a, t)| a.len() == len && t.len() == len), "chunk_topk: a run");
    let (floor, beta) = (_mm512_set1_epi32(floor as i32), _mm512_set1_ps(chunk.beta));
    let mut mask = 0;
    for i in (0..len).step_by(16) {
        let there = if WHOLE { u16::MAX } else { ((1u32 << (len - i).min(16)) - 1) as u16 };
        // SAFETY: `there` keeps loads and the store inside the run; a fetch ahead reads nothing.
        unsafe {
            let at = e.as_mut_ptr().add(i);
            let fetch = |from: *const f32| _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(chunk.ahead).cast());
            let mut x = _mm512_maskz_loadu_ps(there, at);
            fetch(at);
            if let Some((anchor, theta)) = delta {
                let (a, t) = (anchor.as_ptr().add(i), theta.as_ptr().add(i));
                let moved = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, a), _mm512_maskz_loadu_ps(there, t));
                fetch(a);
                fetch(t);
                x = _mm512_add_ps(_mm512_mul_ps(beta, x), moved);
                _mm512_mask_storeu_ps(at, there, x);
            }
            let magnitudes = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
            mask |= u64::from(_mm512_mask_cmpge_epu32_mask(there, magnitudes, floor)) << i;
        }
    }
    mask
}

/// Goes through the runs of a chunk; `run` brings one up to date and says which of its elements are candidates, `note`
/// writes their places.
#[inline(always)]
fn walk(
    chunk: &Chunk<'_>,
    to: &mut Candidates,
    note: impl Fn(u64, u16, &mut [u16; RUN]),
    run: impl Fn(&mut [f32], Option<(&[f32], &[f32])>) -> u64,
) -> usize {
    let tile = chunk.tile;
    assert!(tile.len() <= CHUNK, "chunk_topk: a chunk of {}", tile.len());
    let mut count = 0;
    for row in 0..tile.rows {
        let start = (tile.row + row) * chunk.stride + tile.col;
        for col in (0..tile.cols).step_by(RUN) {
            let here = start + col..start + tile.cols.min(col + RUN);
            // SAFETY: chunks do not overlap, and each has one piece.
            let e = unsafe { chunk.e.window(here.start, here.len()) };
            let mask = run(e, chunk.delta.map(|(a, t)| (&a[here.clone()], &t[here.clone()])));
            note(mask, (row * tile.cols + col) as u16, to.room(count));
            count += mask.count_ones() as usize;
        }
    }
    count
}
