//! One pass over a chunk where it lies: it is brought up to date, and what reaches a floor is noted.
//!
//! Nothing is copied: elements are read once, in runs of up to 64 neighbours (a row of a tile, a piece of a vector). A
//! good floor (see [`super::select::Picker`]) lets through twice as many elements as are wanted, two or three a run.
//!
//! The same line of the next chunk is fetched after each, since the machine's own guesses start anew with every row. (To
//! fetch a run before it is read, or half of a chunk later, cost a matrix half as much time again on a Zen 4.)

use super::{
    Tile,
    select::{Candidates, magnitude},
};
use crate::{ops::cast::element::per_level, pool::Parts, simd::Level};

/// Elements of a run, a bit each.
const RUN: usize = 64;

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
    /// Where element `i` lies in the tensor.
    #[inline(always)]
    pub fn place(&self, i: usize) -> usize {
        self.tile.place(self.stride, i)
    }
}

/// e ← β·e + (a − θ), where there is a delta; notes what then reaches `floor`, in order, and returns how many.
pub(super) fn scan(level: Level, chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { scan_avx512(chunk, floor, to) };
    }
    // The compiler's loops leave fetching to the machine.
    let _ = chunk.ahead;
    scan_plain(level, chunk, floor, to)
}

per_level! {
    fn scan_plain[](chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
        walk(chunk, to, |e, delta| {
            if let Some((anchor, theta)) = delta {
                for i in 0..e.len() {
                    e[i] = chunk.beta * e[i] + (anchor[i] - theta[i]);
                }
            }
            e.iter().enumerate().fold(0, |mask, (i, &x)| mask | u64::from(magnitude(x) >= floor) << i)
        })
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,bmi2")]
fn scan_avx512(chunk: &Chunk<'_>, floor: u32, to: &mut Candidates) -> usize {
    walk(chunk, to, |e, delta| {
        let whole = e.len() == RUN;
        // Of a length that the compiler knows, for all but the last column of tiles.
        if whole { run_avx512::<true>(chunk, e, delta, floor) } else { run_avx512::<false>(chunk, e, delta, floor) }
    })
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

/// Goes through the runs of a chunk; `run` brings one up to date and says which of its elements are candidates.
#[inline(always)]
fn walk(chunk: &Chunk<'_>, to: &mut Candidates, run: impl Fn(&mut [f32], Option<(&[f32], &[f32])>) -> u64) -> usize {
    let tile = chunk.tile;
    let mut count = 0;
    for row in 0..tile.rows {
        let start = (tile.row + row) * chunk.stride + tile.col;
        for col in (0..tile.cols).step_by(RUN) {
            let here = start + col..start + tile.cols.min(col + RUN);
            // SAFETY: chunks do not overlap, and each has one piece.
            let e = unsafe { chunk.e.window(here.start, here.len()) };
            let mut mask = run(e, chunk.delta.map(|(a, t)| (&a[here.clone()], &t[here.clone()])));
            let (first, mut next) = ((row * tile.cols + col) as u32, count);
            count += mask.count_ones() as usize;
            // Four at a time, whether there are so many or not: how many there are is a toss that no predictor wins.
            while next < count {
                let (magnitudes, places) = to.four(next);
                for slot in 0..4 {
                    let lane = mask.trailing_zeros() % RUN as u32;
                    magnitudes[slot] = magnitude(e[lane as usize]);
                    places[slot] = first + lane;
                    mask &= mask.wrapping_sub(1);
                }
                next += 4;
            }
        }
    }
    count
}
