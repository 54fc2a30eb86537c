//! Large products on all threads.
//!
//! The work is done in *phases*: some rows of A, some columns of B and some k are packed into the scratch that lanes
//! share, all lanes packing; then c is cut into pieces, and a piece multiplies its panels, one block of k after another.
//! An f32 A whose rows run fast, as in tn, is read where it lies; so are the rows of A where c has few columns, or pieces
//! pack their own.
//! B's panel of a block lies in L1 and L2 while the piece's panels of A are multiplied by it. Bounds of phases and
//! pieces follow from the sizes alone.

use super::{
    Dims, Put,
    cut::{Blocks, Cut, even},
    tile::{Dest, In, Kernel, LINE, Left, Major, Next, Operand, Out, Precision, kernel},
};
use crate::{
    pool::{Parts, Pool},
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

/// A product, or one phase of it: some rows and columns of c, some blocks of k.
#[derive(Clone)]
struct Phase<'a> {
    kern: &'static Kernel,
    blocks: Blocks,
    /// Blocks of this phase.
    over: Range<usize>,
    /// Rows and columns of this phase.
    rows: Range<usize>,
    cols: Range<usize>,
    a: Operand<'a>,
    b: Operand<'a>,
    c: Target,
    /// Distance of rows of c.
    ldc: usize,
    put: Put,
    how: How,
    /// Whether A is still to be packed for all; else the phase before had the same rows.
    pack_a: bool,
    /// Where the f32 sums of a bf16 c wait between phases, when it takes several.
    wait: Option<Wait>,
}

/// Where pieces find A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Where it lies: tiles read it there.
    Lie,
    /// Each piece packs its own rows into its lane's scratch, to be used at once.
    Own,
    /// Packed for all pieces first.
    Shared,
}

impl How {
    fn new(kern: &Kernel, a: Operand<'_>, d: Dims, grain: usize) -> How {
        let n = d.n;
        // Rows pay where c has few columns, an A that lies across always: its words come as the tile takes them.
        let pays = a.major == Major::Outer || n <= COLS_FEW;
        let few = if a.major == Major::Outer && d.m >= 2 * n { COLS_FEW_TALL } else { COLS_FEW };
        if pays && kern.lies_ready(a, grain) {
            How::Lie
        } else if n > few {
            How::Shared
        } else {
            How::Own
        }
    }
}

/// Sums in f32, a row as long as the columns of the phase.
#[derive(Clone, Copy)]
struct Wait(*mut f32);

// SAFETY: as for `Target`.
unsafe impl Sync for Wait {}
// SAFETY: as for `Target`.
unsafe impl Send for Wait {}

/// The first element of c. All threads write it, each its own pieces.
#[derive(Clone, Copy)]
pub(super) enum Target {
    F32(*mut f32),
    Bf16(*mut bf16),
}

impl Target {
    /// Of `c`, and how many elements that has.
    pub(super) fn of(c: Out<'_>, put: Put) -> (Target, usize) {
        assert!(put == Put::Set || matches!(c, Out::F32(_)), "matmul: only an f32 c is added to");
        match c {
            Out::F32(c) => (Target::F32(c.as_mut_ptr()), c.len()),
            Out::Bf16(c) => (Target::Bf16(c.as_mut_ptr()), c.len()),
        }
    }

    /// k is empty: the product is zero.
    ///
    /// # Safety
    /// c has `len` elements, and nobody else touches them.
    pub(super) unsafe fn clear(self, len: usize, put: Put) {
        if put == Put::Set {
            // SAFETY: by the caller's promise.
            unsafe {
                match self {
                    Target::F32(c) => std::slice::from_raw_parts_mut(c, len).fill(0.0),
                    Target::Bf16(c) => std::slice::from_raw_parts_mut(c, len).fill(bf16::ZERO),
                }
            }
        }
    }
}

// SAFETY: pieces of c are disjoint; `Phase::piece` says which thread writes what.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

/// Words of packed B in a phase: 4 MiB stay in the caches while they are used, and are there to be written over.
const CHUNK_WORDS: usize = 1 << 20;
/// Columns below which a phase is rather cut along k.
const COLS_MIN: usize = 768;
/// Most columns of a phase that is cut along k.
const COLS_CUT: usize = 1024;

/// Columns up to which packing A for all pieces first does not pay: too few products share what was packed. A piece
/// then is as wide as c, and packs nothing twice. With 288 columns, one core of a Zen 4 gained 3 to 8 % in f32; with 768
/// it gained nothing. (A tn, whose A is not packed at all, gained 3 to 10 %.)
const COLS_FEW: usize = 512;
/// The same where A lies across, and c is tall: 2048 x 768 over 1024 tokens gained 4 % in f32 and 2 % in bf16 on two
/// threads of a Zen 4, 768 x 768 lost 3 % in bf16.
const COLS_FEW_TALL: usize = 1024;

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
    let (c, len) = Target::of(c, put);
    assert!(len >= d.m * d.n, "matmul: c has {len} elements, {d:?}");
    if d.k == 0 {
        // SAFETY: c was borrowed mutably and is that long.
        return unsafe { c.clear(d.m * d.n, put) };
    }
    let kern = kernel(level, Precision::of(a.data, b.data));
    let blocks = Blocks::new(kern, d.k, grain);
    let (over, rows, cols) = (0..blocks.count, 0..d.m, 0..d.n);
    let how = How::new(kern, a, d, grain);
    let phase = Phase { kern, blocks, over, rows, cols, a, b, c, ldc: d.n, put, how, pack_a: true, wait: None };
    pool.with_shared(|shared| {
        let (for_b, rest) = bytemuck::cast_slice_mut(shared).split_at_mut(CHUNK_WORDS);
        phase.in_chunks(pool, for_b, rest);
    });
}

impl Phase<'_> {
    /// Makes c phase by phase; packed B goes to `for_b`, packed A to `rest`, where sums may have to wait too.
    fn in_chunks(&self, pool: &Pool, for_b: &mut [u32], rest: &mut [u32]) {
        let (kern, blocks) = (self.kern, self.blocks);
        let (m, n, steps) = (self.rows.len(), self.cols.len(), blocks.steps_before(blocks.count));
        let unit = |len: usize, unit: usize| len / unit * unit;
        let shared = self.how == How::Shared;
        let rows_fit = if shared { unit(rest.len() / steps, kern.mr) } else { m };
        let cols_fit = unit(for_b.len() / steps, kern.nr);
        if rows_fit > 0 && cols_fit >= n.min(COLS_MIN) {
            for rows in even(m, rows_fit, kern.mr) {
                for cols in even(n, cols_fit, kern.nr) {
                    let pack_a = cols.start == 0;
                    Phase { cols, rows: rows.clone(), pack_a, ..self.clone() }.run(pool, rest, for_b);
                }
            }
            return;
        }
        // Cut along k: c keeps the sums between phases, or, where it is bf16, a part of the scratch does.
        let (wait, for_a) = match self.c {
            Target::F32(_) => rest.split_at_mut(0),
            Target::Bf16(_) => rest.split_at_mut(rest.len() / 2),
        };
        for cols in even(n, COLS_CUT, kern.nr) {
            let blocks_fit = for_b.len() / (blocks.steps(0) * cols.len().next_multiple_of(kern.nr));
            let mut rows_fit = match shared {
                true => for_a.len() / (blocks.steps(0) * blocks_fit.min(blocks.count)),
                // All rows, the last panel's padding included: B is packed once.
                false => m.next_multiple_of(kern.mr),
            };
            if matches!(self.c, Target::Bf16(_)) {
                rows_fit = rows_fit.min(wait.len() / cols.len());
            }
            for rows in even(m, unit(rows_fit, kern.mr), kern.mr) {
                for over in even(blocks.count, blocks_fit, 1) {
                    let wait = Some(Wait(wait.as_mut_ptr().cast()));
                    Phase { cols: cols.clone(), rows: rows.clone(), over, wait, ..self.clone() }
                        .run(pool, for_a, for_b);
                }
            }
        }
    }

    /// Packs A and B, then makes c.
    fn run(&self, pool: &Pool, for_a: &mut [u32], for_b: &mut [u32]) {
        let kern = self.kern;
        let high = self.rows.len().next_multiple_of(kern.mr);
        let wide = self.cols.len().next_multiple_of(kern.nr);
        let steps = self.before(self.over.end);
        let of_a = if self.how == How::Shared { steps * high } else { 0 };
        let (a, b) = (&mut for_a[..of_a], &mut for_b[..steps * wide]);
        self.pack(pool, a, b);
        let (a, b) = (&*a, &*b);
        let cut = Cut::new(kern, self.rows.len(), self.cols.len(), self.how);
        pool.run(cut.count(), |i, lane| {
            let (r, c) = cut.piece(i);
            self.piece(r, c, (a, high), (b, wide), bytemuck::cast_slice_mut(lane.scratch));
        });
    }

    /// Steps of this phase before block `block`.
    fn before(&self, block: usize) -> usize {
        self.blocks.steps_before(block) - self.blocks.steps_before(self.over.start)
    }

    /// Packs what the phase needs, all panels of a block after all of the block before.
    fn pack(&self, pool: &Pool, a: &mut [u32], b: &mut [u32]) {
        let kern = self.kern;
        let (m, n) = (self.rows.len(), self.cols.len());
        let (high, wide) = (m.next_multiple_of(kern.mr), n.next_multiple_of(kern.nr));
        // Some 110 rows or 256 columns a piece: columns that run fast are then read a KiB in a row, which the hardware
        // fetches ahead (f32 from memory at 14 GB/s by one core of a Zen 4, 12.4 with half of it).
        let (down, across) = (kern.mr * 112_usize.div_ceil(kern.mr), kern.nr * 256_usize.div_ceil(kern.nr));
        let of_a = if self.pack_a && self.how == How::Shared { self.over.len() * m.div_ceil(down) } else { 0 };
        let of_b = self.over.len() * n.div_ceil(across);
        let (a, b) = (Parts::new(a), Parts::new(b));
        pool.run(of_a + of_b, |i, _| {
            let piece = |i: usize, len: usize, most: usize| {
                let parts = len.div_ceil(most);
                let (block, at) = (self.over.start + i / parts, i % parts * most);
                (self.before(block), self.blocks.range(block), self.blocks.steps(block), at, most.min(len - at))
            };
            if i < of_a {
                let (before, k, steps, at, rows) = piece(i, m, down);
                // SAFETY: each piece has panels of its own.
                let out = unsafe { a.window(before * high + at * steps, kern.a_words(rows, k.len())) };
                kern.pack_a(self.a.from(self.rows.start + at, k.start), rows, k.len(), out);
            } else {
                let (before, k, steps, at, cols) = piece(i - of_a, n, across);
                // SAFETY: as above.
                let out = unsafe { b.window(before * wide + at * steps, kern.b_words(cols, k.len())) };
                kern.pack_b(self.b.from(self.cols.start + at, k.start), cols, k.len(), out);
            }
        });
    }

    /// Makes rows `r` and columns `c` (counted from the phase's first) of the result, from packed A and B and the rows
    /// and columns that these have with padding.
    fn piece(
        &self,
        r: Range<usize>,
        c: Range<usize>,
        (packed, high): (&[u32], usize),
        (b, wide): (&[u32], usize),
        scratch: &mut [f32],
    ) {
        let (rows, cols) = (r.len(), c.len());
        let (scratch, own) = scratch.split_at_mut(scratch.len() / 2);
        let own: &mut [u32] = bytemuck::cast_slice_mut(own);
        let corner = (self.rows.start + r.start) * self.ldc + self.cols.start + c.start;
        // Sums of a bf16 c wait in the lane's scratch if this phase makes them from the first to the last.
        let (wait, ldw) = match self.wait {
            Some(Wait(wait)) => (wait.wrapping_add(r.start * self.cols.len() + c.start), self.cols.len()),
            None => (scratch[..rows * cols].as_mut_ptr(), cols),
        };
        for block in self.over.clone() {
            let (before, steps) = (self.before(block), self.blocks.steps(block));
            let (first, last) = (block == 0, block + 1 == self.blocks.count);
            let (dest, ld) = match self.c {
                Target::F32(c) if first && self.put == Put::Set => (Dest::Set(c.wrapping_add(corner)), self.ldc),
                Target::F32(c) => (Dest::Add(c.wrapping_add(corner)), self.ldc),
                Target::Bf16(c) if first && last => (Dest::SetBf16(c.wrapping_add(corner)), self.ldc),
                Target::Bf16(c) if last => (Dest::FinishBf16(wait, ldw, c.wrapping_add(corner)), self.ldc),
                Target::Bf16(_) if first => (Dest::Set(wait), ldw),
                Target::Bf16(_) => (Dest::Add(wait), ldw),
            };
            let k = self.blocks.range(block);
            let here = self.a.from(self.rows.start + r.start, k.start);
            let a = match self.how {
                How::Lie => Left::Lying(here),
                How::Own => {
                    self.kern.pack_a(here, rows, k.len(), own);
                    Left::Panels(own)
                }
                How::Shared => Left::Panels(&packed[before * high + r.start * steps..]),
            };
            let b = &b[before * wide + c.start * steps..];
            let next = if block + 1 < self.over.end { self.next(block + 1, r.start, packed, high) } else { None };
            // SAFETY: this piece alone writes these rows and columns of c, and their sums in `wait`.
            unsafe { self.kern.block_to(rows, cols, steps, a, b, dest, ld, next) };
        }
    }

    /// Where A for `block` lies from row `row` of the phase on.
    fn next(&self, block: usize, row: usize, packed: &[u32], high: usize) -> Option<Next> {
        match (self.how, self.a.data) {
            (How::Shared, _) => {
                let (before, steps) = (self.before(block), self.blocks.steps(block));
                let start = packed[before * high + row * steps..].as_ptr();
                Some(Next { start, row: steps, advance: LINE })
            }
            (How::Lie, In::F32(a)) if self.a.major == Major::Outer => {
                let ld = self.a.ld;
                let start = a[self.blocks.range(block).start * ld + self.rows.start + row..].as_ptr();
                Some(Next { start: start.cast(), row: 1, advance: ld * size_of::<f32>() })
            }
            // Rows are fetched as tiles go down them; what a piece packs itself is not there yet.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::draw;

    /// A product that takes several phases has the bits of one that takes one, wherever A is found.
    #[test]
    fn phases_do_not_show() {
        let pool = Pool::new(2).unwrap();
        let (m, n, k) = (70, 70, 1700);
        let (a, b) = (draw(1, m * k), draw(2, n * k));
        let half = |x: &[f32]| -> Vec<bf16> { x.iter().map(|&x| bf16::from_f32(x)).collect() };
        let (half_a, half_b) = (half(&a), half(&b));
        let rows = |data| Operand { data, ld: k, major: Major::K };
        let across = |data, ld| Operand { data, ld, major: Major::Outer };
        let kinds = [
            (Precision::Bf16, rows(In::Bf16(&half_a)), rows(In::Bf16(&half_b))),
            (Precision::F32, across(In::F32(&a), m), across(In::F32(&b), n)),
        ];
        for level in Level::ALL.into_iter().filter(|&level| level <= simd::detected()) {
            for (precision, a, b) in kinds {
                let kern = kernel(level, precision);
                let run = |how: How, for_b: usize, rest: usize| {
                    let mut wide = vec![1f32; m * n];
                    let mut short = vec![bf16::NAN; m * n];
                    for (out, put) in [(Out::F32(&mut wide), Put::Add), (Out::Bf16(&mut short), Put::Set)] {
                        let (c, _) = Target::of(out, put);
                        let blocks = Blocks::new(kern, k, k);
                        let (over, rows, cols) = (0..blocks.count, 0..m, 0..n);
                        let pack_a = true;
                        let phase =
                            Phase { kern, blocks, over, rows, cols, a, b, c, ldc: n, put, how, pack_a, wait: None };
                        phase.in_chunks(&pool, &mut vec![0; for_b], &mut vec![0; rest]);
                    }
                    (wide, short)
                };
                let once = run(How::Shared, 1 << 18, 1 << 18);
                for how in [How::Lie, How::Own, How::Shared] {
                    if how == How::Lie && !kern.lies_ready(a, k) {
                        continue;
                    }
                    // Columns and rows in several phases, all k in each.
                    assert_eq!(run(how, 1 << 18, 30 * k), once, "{level:?} {precision:?} {how:?} by rows");
                    // Two blocks at a time, some thirty rows packed, and fewer than seventy waiting.
                    let scratch = 2 * 30 * 2 * 384;
                    assert_eq!(run(how, 2 * 96 * 384, scratch), once, "{level:?} {precision:?} {how:?} by blocks");
                }
            }
        }
    }
}
