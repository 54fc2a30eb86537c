//! Fetching the next chunk while this one is worked on.
//!
//! To look through a chunk takes about as long as memory needs to bring one; to pick and write takes as long again, and
//! memory would rest meanwhile. So lines of the next chunk are asked for all along, a run of four at a time, no more of
//! them at once than the core keeps track of: the machine's own guesses stop where reading does.
//!
//! Memory brings the short rows of tiles at less than half the rate of long ones. So of a matrix each chunk also asks
//! for its share of the next row of tiles, in the order in which they lie, and tiles are then fetched from the last
//! cache.

use super::{CHUNK, Grid};
use crate::simd::fetch_far;
use std::cell::Cell;

/// Elements fetched at a time: four lines.
const RUN: usize = 64;
/// Elements of a row of tiles, up to which it is fetched: half of a usual last cache.
const BAND: usize = 4 << 20;

/// What is left to fetch.
pub(super) struct Ahead<'a> {
    e: *const f32,
    delta: Option<(&'a [f32], &'a [f32])>,
    next: Cell<Runs>,
    band: Cell<Runs>,
}

/// Runs that lie `step` elements apart, the first at element `at` of the tensor.
#[derive(Clone, Copy, Default)]
struct Runs {
    at: usize,
    left: usize,
    step: usize,
}

impl<'a> Ahead<'a> {
    /// What follows chunk `i` of a tensor that lies at `e`, and of which `delta` is read too.
    pub fn new(grid: Grid, i: usize, e: *const f32, delta: Option<(&'a [f32], &'a [f32])>) -> Ahead<'a> {
        let next = if i + 1 == grid.chunks() { Runs::default() } else { Runs::tile(grid, i + 1) };
        Ahead { e, delta, next: Cell::new(next), band: Cell::new(Runs::band(grid, i)) }
    }

    /// Nothing.
    pub fn nothing() -> Ahead<'a> {
        Ahead { e: std::ptr::null(), delta: None, next: Cell::default(), band: Cell::default() }
    }

    /// Asks for the next run, if one is left.
    #[inline(always)]
    pub fn fetch(&self) {
        for runs in [&self.next, &self.band] {
            let Runs { at, left, step } = runs.get();
            if left == 0 {
                continue;
            }
            runs.set(Runs { at: at + step, left: left - 1, step });
            run(self.e.wrapping_add(at));
            if let Some((anchor, theta)) = self.delta {
                run(anchor.as_ptr().wrapping_add(at));
                run(theta.as_ptr().wrapping_add(at));
            }
        }
    }

    /// Asks for all that is left.
    pub fn fetch_all(&self) {
        while self.next.get().left + self.band.get().left > 0 {
            self.fetch();
        }
    }
}

impl Runs {
    /// A chunk.
    fn tile(grid: Grid, i: usize) -> Runs {
        let tile = grid.tile(i);
        let (left, step) = if tile.rows == 1 { (tile.cols.div_ceil(RUN), RUN) } else { (tile.rows, grid.stride()) };
        Runs { at: tile.start(grid.stride()), left, step }
    }

    /// The share of chunk `i` of the row of tiles below its own.
    fn band(grid: Grid, i: usize) -> Runs {
        let (band, across) = (grid.tile_rows * grid.cols, grid.across());
        let at = (i / across + 1) * band + i % across * CHUNK;
        if grid.tile_rows == 1 || across == 1 || band > BAND || at >= grid.len() {
            return Runs::default();
        }
        Runs { at, left: (grid.len() - at).min(CHUNK).div_ceil(RUN), step: RUN }
    }
}

#[inline(always)]
fn run(from: *const f32) {
    (0..4).for_each(|line| fetch_far(from.wrapping_add(16 * line)));
}
