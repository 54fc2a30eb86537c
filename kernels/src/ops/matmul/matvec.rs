//! nt for few rows, as in decoding: b is read once, where it lies, at the speed of memory.
//!
//! A piece is some rows of b, about 64 KiB; one after another, as a single stream, they meet up to four rows of a, which
//! stay in L1. An element's sum does not depend on m, n or its place.

use super::{
    Dims, Put,
    cpu::Target,
    tile::{In, Major, Operand, Out, Precision, kernel},
};
use crate::{pool::Pool, simd::Level};
use half::bf16;

const PIECE_BYTES: usize = 64 << 10;

/// See [`super::matvec()`].
pub(super) fn nt(pool: &Pool, level: Level, d: Dims, a: In<'_>, b: In<'_>, c: Out<'_>, put: Put) {
    let (c, len) = Target::of(c, put);
    assert!(len >= d.m * d.n, "matmul matvec: c has {len} elements, {d:?}");
    if d.k == 0 {
        // SAFETY: c was borrowed mutably and is that long.
        return unsafe { c.clear(d.m * d.n, put) };
    }
    let kern = kernel(level, Precision::of(a, b));
    let bytes = match b {
        In::F32(_) => 4,
        In::Bf16(_) => 2,
    };
    let a = Operand { data: a, ld: d.k, major: Major::K };
    let b = Operand { data: b, ld: d.k, major: Major::K };
    let rows = (PIECE_BYTES / (d.k * bytes)).next_multiple_of(4).max(4);
    pool.run_streams(d.n.div_ceil(rows), |piece, _| {
        let end = d.n.min((piece + 1) * rows);
        for j in (piece * rows..end).step_by(4) {
            let across = 4.min(end - j);
            for i in (0..d.m).step_by(4) {
                let down = 4.min(d.m - i);
                let sums = kern.dots(a.from(i, 0), down, b.from(j, 0), across, d.k);
                for (r, sums) in sums.iter().take(down).enumerate() {
                    // SAFETY: this piece alone writes columns j.. of c, all inside it.
                    unsafe { c.put((i + r) * d.n + j, &sums[..across], put) };
                }
            }
        }
    });
}

impl Target {
    /// Stores sums from element `at` on.
    ///
    /// # Safety
    /// They lie inside c, and no other thread touches them.
    unsafe fn put(self, at: usize, sums: &[f32], put: Put) {
        for (j, &sum) in sums.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe {
                match self {
                    Target::F32(c) if put == Put::Add => *c.add(at + j) += sum,
                    Target::F32(c) => *c.add(at + j) = sum,
                    Target::Bf16(c) => *c.add(at + j) = bf16::from_f32(sum),
                }
            }
        }
    }
}
