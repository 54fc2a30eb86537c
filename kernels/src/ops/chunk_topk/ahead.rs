//! Fetching the next chunk while this one is worked on.
//!
//! To look through a chunk takes about as long as memory needs to bring one; to pick and write takes as long again, and
//! memory would rest meanwhile. So lines of the next chunk are asked for all along, a run of four at a time, no more of
//! them at once than the core keeps track of. The machine's own guesses start anew with every row of a tile, and stop
//! where reading does.

use super::Tile;
use std::cell::Cell;

/// Elements fetched at a time: four lines.
const RUN: usize = 64;

/// What is left to fetch of a chunk.
pub(super) struct Ahead<'a> {
    e: *const f32,
    delta: Option<(&'a [f32], &'a [f32])>,
    /// Element of the tensor at which the next run begins, and how many are left.
    at: Cell<usize>,
    left: Cell<usize>,
    /// Elements between the starts of two runs.
    step: usize,
}

impl<'a> Ahead<'a> {
    /// All of `tile`, in a tensor that lies at `e`, whose rows are `stride` apart, and of which `delta` is read too.
    pub fn new(tile: Tile, stride: usize, e: *const f32, delta: Option<(&'a [f32], &'a [f32])>) -> Ahead<'a> {
        let (runs, step) = if tile.rows == 1 { (tile.cols.div_ceil(RUN), RUN) } else { (tile.rows, stride) };
        Ahead { e, delta, at: Cell::new(tile.start(stride)), left: Cell::new(runs), step }
    }

    /// Nothing.
    pub fn nothing() -> Ahead<'a> {
        Ahead { e: std::ptr::null(), delta: None, at: Cell::new(0), left: Cell::new(0), step: 0 }
    }

    /// Asks for the next run, if one is left.
    #[inline(always)]
    pub fn fetch(&self) {
        if self.left.get() == 0 {
            return;
        }
        let at = self.at.get();
        self.left.set(self.left.get() - 1);
        self.at.set(at + self.step);
        run(self.e.wrapping_add(at));
        if let Some((anchor, theta)) = self.delta {
            run(anchor.as_ptr().wrapping_add(at));
            run(theta.as_ptr().wrapping_add(at));
        }
    }

    /// Asks for all that is left.
    pub fn fetch_all(&self) {
        while self.left.get() > 0 {
            self.fetch();
        }
    }
}

#[inline(always)]
fn run(from: *const f32) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..4 {
        // SAFETY: every x86-64 has the instruction, and to fetch ahead reads nothing.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(16 * line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}
