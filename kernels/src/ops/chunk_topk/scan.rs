//! One pass over a chunk where it lies: it is brought up to date, and where it reaches a floor is noted.
//!
//! Nothing is copied: elements are read once, in runs of up to 64 neighbours (a row of a tile, a piece of a vector). A
//! run gives 64 bits, one for each element that reaches the floor, and the bits give places. A good floor (see
//! [`super::select::Picker`]) lets through some two elements a run.
//!
//! Of the next chunk half is fetched meanwhile, and the rest while this one is worked on further: see
//! [`super::ahead`].

use super::{
    CHUNK, SIDE, Tile,
    ahead::Ahead,
    select::{Candidates, magnitude},
};
use crate::{ops::cast::element::per_level, pool::Parts, simd::Level};

/// Elements of a run, a bit each.
pub(super) const RUN: usize = 64;

/// Numbers of a run's elements.
#[cfg(target_arch = "x86_64")]
pub(super) const LANES: [u8; RUN] = {
    let (mut lanes, mut i) = ([0; RUN], 0);
    while i < RUN {
        lanes[i] = i as u8;
        i += 1;
    }
    lanes
};

/// A chunk in memory, and what is added to it.
pub(super) struct Chunk<'a> {
    pub tile: Tile,
    /// Distance between its rows.
    pub stride: usize,
    pub e: &'a Parts<'a, f32>,
    /// Anchor and theta.
    pub delta: Option<(&'a [f32], &'a [f32])>,
    pub beta: f32,
    /// The next chunk.
    pub ahead: Ahead<'a>,
}

impl Chunk<'_> {
    /// Where its first element lies in memory. All of it lies in the tensor.
    fn first(&self) -> *mut f32 {
        assert!(self.e.at(self.end()) > self.e.at(0), "chunk_topk: an empty chunk");
        self.e.at(self.tile.start(self.stride))
    }

    /// The element of the tensor after its last.
    fn end(&self) -> usize {
        self.tile.start(self.stride) + (self.tile.rows - 1) * self.stride + self.tile.cols
    }

    /// Number of its runs, and elements between the starts of two, if all are whole.
    #[cfg(target_arch = "x86_64")]
    fn whole_runs(&self) -> Option<(usize, usize)> {
        match (self.tile.rows, self.tile.cols) {
            (rows, RUN) => Some((rows, self.stride)),
            (1, cols) if cols.is_multiple_of(RUN) => Some((cols / RUN, RUN)),
            _ => None,
        }
    }

    /// Calls `each(nth, element)` for the elements at these places of the chunk.
    ///
    /// # Safety
    /// The places lie in the chunk, and the caller has the chunk for itself.
    #[inline(always)]
    pub unsafe fn each(&self, places: &[u16], mut each: impl FnMut(usize, &mut f32)) {
        let (stride, cols, first) = (self.stride, self.tile.cols, self.first());
        let places = places.iter().map(|&place| usize::from(place)).enumerate();
        // Nearly all chunks are whole, and to divide takes longer than all else that is done for an element.
        // SAFETY: places lie in the chunk by the caller's promise, and the chunk in the tensor.
        unsafe {
            match (self.tile.rows, cols) {
                (1, _) => places.for_each(|(i, p)| each(i, &mut *first.add(p))),
                (_, SIDE) => places.for_each(|(i, p)| each(i, &mut *first.add(p / SIDE * stride + p % SIDE))),
                _ => places.for_each(|(i, p)| each(i, &mut *first.add(p / cols * stride + p % cols))),
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
    scan_runs(chunk, floor, to, note)
}

/// As [`scan_avx512`], with an instruction that makes places of bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,popcnt,bmi1,bmi2")]
fn scan_vbmi2(chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
    use std::arch::x86_64::*;
    // SAFETY: 64 bytes.
    let lanes = unsafe { _mm512_loadu_si512(LANES.as_ptr().cast()) };
    scan_runs(chunk, floor, to, |mask, first, places| {
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
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
#[inline]
fn scan_runs(chunk: &Chunk<'_>, floor: u32, to: &mut Candidates, note: impl Fn(u64, u16, &mut [u16; RUN])) -> usize {
    let Some((runs, step)) = chunk.whole_runs() else {
        return walk(chunk, to, note, |e, delta| {
            let delta = delta.map(|(a, t)| (a.as_ptr(), t.as_ptr()));
            // SAFETY: as many elements as `e` has.
            unsafe { run_avx512::<false>(e.as_mut_ptr(), e.len(), delta, chunk.beta, floor) }
        });
    };
    let (first, at) = (chunk.first(), chunk.tile.start(chunk.stride));
    // The chunk lies in both, as in `e`.
    let delta = chunk.delta.map(|(a, t)| (a[at..chunk.end()].as_ptr(), t[at..chunk.end()].as_ptr()));
    let mut count = 0;
    for run in 0..runs {
        let here = run * step;
        let delta = delta.map(|(a, t)| (a.wrapping_add(here), t.wrapping_add(here)));
        // SAFETY: the chunk is made of such runs, and has one piece.
        let mask = unsafe { run_avx512::<true>(first.add(here), RUN, delta, chunk.beta, floor) };
        note(mask, (run * RUN) as u16, to.room(count));
        count += mask.count_ones() as usize;
        if run.is_multiple_of(2) {
            chunk.ahead.fetch();
        }
    }
    count
}

/// Brings a run up to date; which of it reach the floor, a bit each.
///
/// # Safety
/// There are `len` elements at each pointer, 64 if the run is `WHOLE`, else at most that, and nobody else has those of
/// `e`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
#[inline]
unsafe fn run_avx512<const WHOLE: bool>(
    e: *mut f32,
    len: usize,
    delta: Option<(*const f32, *const f32)>,
    beta: f32,
    floor: u32,
) -> u64 {
    use std::arch::x86_64::*;
    let len = if WHOLE { RUN } else { len };
    let (floor, beta) = (_mm512_set1_epi32(floor as i32), _mm512_set1_ps(beta));
    let mut mask = 0;
    for i in (0..len).step_by(16) {
        let there = if WHOLE { u16::MAX } else { ((1u32 << (len - i).min(16)) - 1) as u16 };
        // SAFETY: `there` keeps loads and the store inside the run.
        unsafe {
            let mut x = _mm512_maskz_loadu_ps(there, e.add(i));
            if let Some((a, t)) = delta {
                let moved =
                    _mm512_sub_ps(_mm512_maskz_loadu_ps(there, a.add(i)), _mm512_maskz_loadu_ps(there, t.add(i)));
                x = _mm512_add_ps(_mm512_mul_ps(beta, x), moved);
                _mm512_mask_storeu_ps(e.add(i), there, x);
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
            if (row + col / RUN).is_multiple_of(2) {
                chunk.ahead.fetch();
            }
        }
    }
    count
}
