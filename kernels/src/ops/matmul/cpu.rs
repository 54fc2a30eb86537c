//! Large products on all threads.
//!
//! B is packed once, into the scratch that lanes share, all lanes packing; then c is cut into pieces of `rows` by
//! `cols`, and a piece packs its own rows of A, one block of k after another, and multiplies them by its columns of B.
//! B's panel of a block lies in L1 while the panels of A stream past it from L2. Bounds of pieces follow from the sizes
//! alone. What does not fit the shared scratch is cut into *phases*, by columns of B first, else by blocks of k.

use super::{
    Dims, Put,
    tile::{Dest, In, Kernel, Major, Operand, Out, Precision, kernel},
};
use crate::{
    pool::{LANE_BYTES, Pool},
    simd::{self, Level},
};
use half::bf16;
use std::ops::Range;

/// c = a·bᵀ; see [`super::nt`].
pub(crate) fn nt(pool: &Pool, d: Dims, a: In<'_>, b: In<'_>, c: Out<'_>, put: Put) {
    let a = Operand { data: a, ld: d.k, major: Major::K };
    let b = Operand { data: b, ld: d.k, major: Major::K };
    product(pool, simd::level(), d, a, b, c, put, d.k);
}

/// c = a·b; see [`super::nn`].
pub(crate) fn nn(pool: &Pool, d: Dims, a: In<'_>, b: In<'_>, c: Out<'_>, put: Put) {
    let a = Operand { data: a, ld: d.k, major: Major::K };
    let b = Operand { data: b, ld: d.n, major: Major::Outer };
    product(pool, simd::level(), d, a, b, c, put, d.k);
}

/// c = aᵀ·b, `grain` of k at a time; see [`super::tn`].
pub(crate) fn tn(pool: &Pool, d: Dims, a: In<'_>, b: In<'_>, c: Out<'_>, put: Put, grain: usize) {
    let a = Operand { data: a, ld: d.m, major: Major::Outer };
    let b = Operand { data: b, ld: d.n, major: Major::Outer };
    product(pool, simd::level(), d, a, b, c, put, grain);
}

/// How k is cut: each grain into blocks of equal length, so that a short last block is rare.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    grain: usize,
    /// Length of a block; the last of a grain may be shorter.
    len: usize,
    in_grain: usize,
    count: usize,
    /// k in a step.
    pair: usize,
}

impl Blocks {
    fn new(kern: &Kernel, k: usize, grain: usize) -> Blocks {
        assert!(grain > 0 && k.is_multiple_of(grain), "matmul: {k} tokens in grains of {grain}");
        let in_grain = grain.div_ceil(kern.block * kern.pair);
        let len = grain.div_ceil(in_grain).next_multiple_of(8).min(grain);
        let in_grain = grain.div_ceil(len);
        Blocks { grain, len, in_grain, count: k / grain * in_grain, pair: kern.pair }
    }

    /// Where block `i` lies in k.
    fn range(&self, i: usize) -> Range<usize> {
        let (grain, part) = (i / self.in_grain, i % self.in_grain);
        let start = part * self.len;
        grain * self.grain + start..grain * self.grain + (start + self.len).min(self.grain)
    }

    fn steps(&self, i: usize) -> usize {
        self.range(i).len().div_ceil(self.pair)
    }

    /// Steps of the blocks before block `i`.
    fn steps_before(&self, i: usize) -> usize {
        let whole = |blocks: usize| blocks * self.len.div_ceil(self.pair);
        let last = self.steps(self.in_grain - 1);
        i / self.in_grain * (whole(self.in_grain - 1) + last) + whole(i % self.in_grain)
    }
}

/// One phase: all rows `m` of c, some columns, some blocks of k.
struct Phase<'a> {
    kern: &'static Kernel,
    blocks: Blocks,
    /// Blocks of this phase.
    over: Range<usize>,
    /// Columns of this phase.
    cols: Range<usize>,
    m: usize,
    a: Operand<'a>,
    b: Operand<'a>,
    c: Target,
    /// Distance of rows of c.
    ldc: usize,
    put: Put,
}

/// The first element of c. All threads write it, each its own pieces.
#[derive(Clone, Copy)]
enum Target {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: pieces of c are disjoint; `Phase::piece` says which thread writes what.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

/// Columns below which a phase is rather cut along k: an A packed for fewer is packed too often.
const COLS_MIN: usize = 512;
/// Columns of a phase that is cut along k.
const COLS_CUT: usize = 2048;

/// Any form, at any level that the CPU has.
pub(crate) fn product(
    pool: &Pool,
    level: Level,
    d: Dims,
    a: Operand<'_>,
    b: Operand<'_>,
    c: Out<'_>,
    put: Put,
    grain: usize,
) {
    if d.m == 0 || d.n == 0 {
        return;
    }
    assert!(put == Put::Set || matches!(c, Out::F32(_)), "matmul: only an f32 c is added to");
    let (c, len) = match c {
        Out::F32(c) => (Target::F32(c.as_mut_ptr()), c.len()),
        Out::Bf16(c) => (Target::Bf16(c.as_mut_ptr()), c.len()),
    };
    assert!(len >= d.m * d.n, "matmul: c has {len} elements, {d:?}");
    if d.k == 0 {
        return clear(c, d.m * d.n, put);
    }
    let kern = kernel(level, Precision::of(a.data, b.data));
    let blocks = Blocks::new(kern, d.k, grain);
    let phase = Phase { kern, blocks, over: 0..blocks.count, cols: 0..d.n, m: d.m, a, b, c, ldc: d.n, put };
    pool.with_shared(|shared| {
        let shared: &mut [u32] = bytemuck::cast_slice_mut(shared);
        let steps = blocks.steps_before(blocks.count);
        let fit = shared.len() / steps / kern.nr * kern.nr;
        if fit >= d.n.min(COLS_MIN) {
            for cols in even(d.n, fit, kern.nr) {
                Phase { cols, over: 0..blocks.count, ..phase }.run(pool, shared);
            }
        } else {
            phase.by_blocks(pool, shared);
        }
    });
}

/// k is empty: the product is zero.
fn clear(c: Target, len: usize, put: Put) {
    if put == Put::Set {
        // SAFETY: c has `len` elements, borrowed mutably by the caller.
        match c {
            Target::F32(c) => unsafe { std::slice::from_raw_parts_mut(c, len) }.fill(0.0),
            Target::Bf16(c) => unsafe { std::slice::from_raw_parts_mut(c, len) }.fill(bf16::ZERO),
        }
    }
}

/// Cuts `0..len` into ranges of at most `most` and nearly equal length, all but the last a multiple of `unit`.
fn even(len: usize, most: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = len.div_ceil(most.max(unit));
    let step = len.div_ceil(parts).next_multiple_of(unit);
    (0..len.div_ceil(step)).map(move |i| i * step..((i + 1) * step).min(len))
}

impl Phase<'_> {
    /// Cuts along k: sums of earlier phases wait in c, or, where c is bf16, in a quarter of the shared scratch.
    fn by_blocks(self, pool: &Pool, shared: &mut [u32]) {
        let (shared, wait) = shared.split_at_mut(shared.len() / 4 * 3);
        let n = self.cols.len();
        for cols in even(n, COLS_CUT, self.kern.nr) {
            let width = cols.len().next_multiple_of(self.kern.nr);
            // A block is at most 1,024 steps long, so at least two fit.
            let fit = (shared.len() / width / self.blocks.steps(0)).max(1);
            let rows_fit = match self.c {
                Target::F32(_) => self.m,
                Target::Bf16(_) => wait.len() / cols.len(),
            };
            for rows in even(self.m, rows_fit, 1) {
                for over in even(self.blocks.count, fit, 1) {
                    let (first, last) = (over.start == 0, over.end == self.blocks.count);
                    let (c, ldc, cols_here) = match self.c {
                        // SAFETY: rows.start is a row of c.
                        Target::F32(c) => (Target::F32(unsafe { c.add(rows.start * self.ldc) }), self.ldc, cols.clone()),
                        Target::Bf16(_) => (Target::F32(wait.as_mut_ptr().cast()), cols.len(), cols.clone()),
                    };
                    // Columns of `wait` start at 0, those of c at cols.start.
                    let b = self.b;
                    let (b, cols_here) = match self.c {
                        Target::F32(_) => (b, cols_here),
                        Target::Bf16(_) => (b.from(cols.start, 0), 0..cols.len()),
                    };
                    Phase {
                        kern: self.kern,
                        blocks: self.blocks,
                        over,
                        cols: cols_here,
                        m: rows.len(),
                        a: self.a.from(rows.start, 0),
                        b,
                        c,
                        ldc,
                        put: if first { self.put } else { Put::Add },
                    }
                    .run(pool, shared);
                    if let (true, Target::Bf16(c)) = (last, self.c) {
                        for (i, row) in bytemuck::cast_slice::<u32, f32>(wait).chunks_exact(cols.len()).take(rows.len()).enumerate() {
                            for (j, &x) in row.iter().enumerate() {
                                // SAFETY: an element of c, which no other thread touches now.
                                unsafe { *c.add((rows.start + i) * self.ldc + cols.start + j) = bf16::from_f32(x) };
                            }
                        }
                    }
                }
            }
        }
    }

    /// Packs B, then makes c.
    fn run(&self, pool: &Pool, shared: &mut [u32]) {
        let kern = self.kern;
        let width = self.cols.len().next_multiple_of(kern.nr);
        let base = self.blocks.steps_before(self.over.start);
        let at = |block: usize| (self.blocks.steps_before(block) - base) * width;
        let b = &mut shared[..at(self.over.end)];
        self.pack_b(pool, b, width, &at);
        let b = &*b;

        let (rows, cols) = self.piece_size();
        let down = self.m.div_ceil(rows);
        pool.run(down * self.cols.len().div_ceil(cols), |i, lane| {
            let (r, c) = (i % down * rows, i / down * cols);
            let (r, c) = (r..(r + rows).min(self.m), c..(c + cols).min(self.cols.len()));
            self.piece(r, c, b, &at, bytemuck::cast_slice_mut(lane.scratch));
        });
    }

    fn pack_b(&self, pool: &Pool, out: &mut [u32], width: usize, at: &(impl Fn(usize) -> usize + Sync)) {
        const PANELS: usize = 4;
        let wide = PANELS * self.kern.nr;
        let across = width.div_ceil(wide);
        let parts = crate::pool::Parts::new(out);
        pool.run(self.over.len() * across, |i, _| {
            let (block, j) = (self.over.start + i / across, i % across * wide);
            let (k, steps) = (self.blocks.range(block), self.blocks.steps(block));
            let cols = wide.min(self.cols.len() - j);
            // SAFETY: each piece has panels of its own.
            let out = unsafe { parts.window(at(block) + j * steps, cols.next_multiple_of(self.kern.nr) * steps) };
            self.kern.pack_b(self.b.from(self.cols.start + j, k.start), cols, k.len(), out);
        });
    }

    /// Rows and columns of a piece of c: large, so that packing A and fetching B cost little, yet some dozens of
    /// pieces, so that threads end together.
    fn piece_size(&self) -> (usize, usize) {
        const PIECES: usize = 48;
        let (mr, nr) = (self.kern.mr, self.kern.nr);
        let (m, n) = (self.m, self.cols.len());
        let even_size = |len: usize, parts: usize, unit: usize| len.div_ceil(parts).next_multiple_of(unit);
        let (mut down, mut across) = (m.div_ceil(12 * mr), n.div_ceil(1024));
        while down * across < PIECES {
            // Rows are cut to two panels first where columns are many, else columns to four panels.
            if m.div_ceil(down) > 4 * mr {
                down += 1;
            } else if n.div_ceil(across) > 8 * nr {
                across += 1;
            } else if m.div_ceil(down) > 2 * mr {
                down += 1;
            } else {
                break;
            }
        }
        (even_size(m, down, mr), even_size(n, across, nr))
    }

    /// Makes rows `r` and columns `c` (counted from the phase's first) of the result.
    fn piece(&self, r: Range<usize>, c: Range<usize>, b: &[u32], at: &impl Fn(usize) -> usize, scratch: &mut [u32]) {
        let kern = self.kern;
        let (rows, cols) = (r.len(), c.len());
        let (packed, wait) = scratch.split_at_mut(LANE_BYTES / 4 / 2);
        let wait: *mut f32 = wait.as_mut_ptr().cast();
        for block in self.over.clone() {
            let k = self.blocks.range(block);
            let steps = self.blocks.steps(block);
            kern.pack_a(self.a.from(r.start, k.start), rows, k.len(), packed);
            let (first, last) = (block == self.over.start, block + 1 == self.over.end);
            let corner = r.start * self.ldc + self.cols.start + c.start;
            let (dest, ld) = match self.c {
                Target::F32(to) if first && self.put == Put::Set => (Dest::Set(to.wrapping_add(corner)), self.ldc),
                Target::F32(to) => (Dest::Add(to.wrapping_add(corner)), self.ldc),
                Target::Bf16(to) if first && last => (Dest::SetBf16(to.wrapping_add(corner)), self.ldc),
                Target::Bf16(to) if last => (Dest::FinishBf16(wait, cols, to.wrapping_add(corner)), self.ldc),
                Target::Bf16(_) if first => (Dest::Set(wait), cols),
                Target::Bf16(_) => (Dest::Add(wait), cols),
            };
            let b = &b[at(block) + c.start * steps..];
            // SAFETY: this piece alone writes these rows and columns of c, and `wait` is this lane's.
            unsafe { kern.block_to(rows, cols, steps, packed, b, dest, ld) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{harness, ops::matmul::reference};

    #[test]
    fn quick() {
        for lv in Level::ALL {
            if lv > simd::detected() {
                continue;
            }
            for (m, n, k) in [(1, 1, 1), (3, 5, 7), (14, 32, 16), (29, 65, 33), (100, 130, 801)] {
                let pool = Pool::new(2).unwrap();
                let d = Dims { m, n, k };
                let (a, b) = (harness::draw(1, m * k), harness::draw(2, n * k));
                let (a6, b6): (Vec<_>, Vec<_>) = (a.iter().map(|&x| f64::from(x)).collect(), b.iter().map(|&x| f64::from(x)).collect());
                let (ah, bh): (Vec<_>, Vec<_>) = (a.iter().map(|&x| bf16::from_f32(x)).collect(), b.iter().map(|&x| bf16::from_f32(x)).collect());
                for form in 0..3 {
                    for (x, y) in [(In::F32(&a), In::F32(&b)), (In::Bf16(&ah), In::F32(&b)), (In::Bf16(&ah), In::Bf16(&bh))] {
                        let mut c = vec![f32::NAN; m * n];
                        let want = match form {
                            0 => reference::nt(d, &a6, &b6),
                            1 => reference::nn(d, &a6, &b6),
                            _ => reference::tn(d, &a6, &b6),
                        };
                        let xa = Operand { data: x, ld: if form < 2 { k } else { m }, major: if form < 2 { Major::K } else { Major::Outer } };
                        let xb = Operand { data: y, ld: if form > 0 { n } else { k }, major: if form < 1 { Major::K } else { Major::Outer } };
                        product(&pool, lv, d, xa, xb, Out::F32(&mut c), Put::Set, k);
                        let c: Vec<_> = c.iter().map(|&x| f64::from(x)).collect();
                        let e = harness::distance(&c, &want);
                        assert!(e.0 < if matches!(x, In::F32(_)) {1e-5} else {0.03}, "{lv:?} {d:?} {form} {e:?}");
                    }
                }
            }
        }
    }
}
