//! The outer step on the host, at the rate at which memory moves weights.
//!
//! Updates are added up in *blocks*: up to sixteen neighbouring chunks, whose sums stay in L2. While the updates of the
//! next block are read, the weights of the last one are moved, some after each record, so that memory does not wait for
//! arithmetic. Weights are moved in the order in which they lie in the whole block: memory brings long rows at twice
//! the rate of the short ones of a tile.

use super::{
    CHUNK, Fold, Grid, Mean, SIDE, Tile, Update,
    cpu::record,
    record::{Codec, Picks, Spec, TOGETHER, Table, decode_all},
};
use crate::{
    ops::cast::element::per_level,
    pool::{Parts, Pool},
    simd::{Level, fetch_far, fetch_near},
};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

/// Chunks of a block of a matrix, at most, and of a vector, whose chunks are long enough by themselves.
const WIDE: usize = 16;
const LONG: usize = 4;
/// Elements from the sums of a chunk to those of its neighbour: a row more than there are, so that the same row of all
/// chunks does not fall on the same few sets of L1.
const STEP: usize = CHUNK + SIDE;
/// Elements of a block's sums.
const SUMS: usize = WIDE * STEP;
/// Pieces for each lane, and blocks of the longest piece.
const PIECES: usize = 4;
const LONGEST: usize = 32;

/// Neighbouring chunks of one row of tiles. Their elements make up lines: rows of all tiles together, or a vector's
/// chunks. Sums of a chunk are held in rows of 64, whatever its width.
#[derive(Clone, Copy, Default)]
struct Block {
    /// The first chunk, and how many.
    chunk: usize,
    chunks: usize,
    /// First element of the first line.
    start: usize,
    lines: usize,
    /// Elements from a line to the next; elements of a line, and of the last.
    stride: usize,
    width: usize,
    last_width: usize,
    /// Elements of sums from a line to the next, and from a run of a line to the next.
    sums: [usize; 2],
}

impl Block {
    /// Chunks of a block, all but the last of a row of tiles.
    fn wide(grid: Grid) -> usize {
        if grid.tile_rows == 1 { LONG } else { grid.across().div_ceil(grid.across().div_ceil(WIDE)) }
    }

    /// How many there are.
    fn count(grid: Grid) -> usize {
        grid.chunks() / grid.across() * grid.across().div_ceil(Block::wide(grid))
    }

    fn new(grid: Grid, nth: usize) -> Block {
        let wide = Block::wide(grid);
        let a_row = grid.across().div_ceil(wide);
        let (row, first) = (nth / a_row, nth % a_row * wide);
        let (chunk, chunks) = (row * grid.across() + first, wide.min(grid.across() - first));
        let [tile, last] = [chunk, chunk + chunks - 1].map(|i| grid.tile(i));
        let block = Block { chunk, chunks, start: tile.start(grid.stride()), ..Block::default() };
        if grid.tile_rows == 1 {
            let (width, last_width) = (CHUNK, last.cols);
            return Block { lines: chunks, stride: CHUNK, width, last_width, sums: [STEP, SIDE], ..block };
        }
        let width = last.col + last.cols - tile.col;
        Block { lines: tile.rows, stride: grid.stride(), width, last_width: width, sums: [SIDE, STEP], ..block }
    }

    /// Runs, or a few more.
    fn runs(&self) -> usize {
        self.lines * self.width.div_ceil(SIDE)
    }
}

/// What sums are divided by.
#[derive(Clone, Copy)]
enum Divide {
    /// By the number of all peers.
    Peers(f32),
    /// The same, where the quotient of every sum is found by the number's reciprocal: see [`quotient`].
    Reciprocal(f32),
    /// By the count of each coordinate.
    Counts,
}

impl Divide {
    fn by(spec: Spec, mean: Mean, updates: &[Update<'_>]) -> Divide {
        let peers = updates.len().max(1);
        // A level is a multiple of 2^-32 and less than 8, so a sum of such products is 0 or from 2^-85 to 2^23.
        let exact = spec.codec == Codec::Compact
            && peers <= 1 << 20
            && updates.iter().all(|u| (2.0f32.powi(-30)..=1.0).contains(&u.factor));
        match mean {
            Mean::Senders => Divide::Counts,
            Mean::Peers if exact => Divide::Reciprocal(peers as f32),
            Mean::Peers => Divide::Peers(peers as f32),
        }
    }
}

/// Moves the weights of blocks whose sums are made.
struct Mover<'a> {
    level: Level,
    alpha: f32,
    divide: Divide,
    anchor: &'a Parts<'a, f32>,
    theta: &'a Parts<'a, f32>,
    /// The block, its line, and how many elements of that are moved.
    block: Block,
    line: usize,
    moved: usize,
    /// First element of the next block.
    next: usize,
}

/// Sums of a block, and how many made each.
struct Sums<'a> {
    sum: &'a mut [f32],
    count: &'a mut [f32],
}

pub(super) fn fold(pool: &Pool, level: Level, grid: Grid, spec: Spec, a: Fold<'_>) {
    let (updates, mean, alpha) = (a.updates, a.mean, a.alpha);
    let divide = Divide::by(spec, mean, updates);
    let (anchor, theta) = (Parts::new(a.anchor.f32_mut()), Parts::new(a.theta.f32_mut()));
    let blocks = Block::count(grid);
    let piece = blocks.div_ceil(PIECES * pool.lanes()).min(LONGEST);
    pool.run_streams(blocks.div_ceil(piece), |nth, lane| {
        let here = nth * piece..blocks.min((nth + 1) * piece);
        let (scratch, _) = bytemuck::cast_slice_mut(lane.scratch).as_chunks_mut::<SUMS>();
        let [sum, count, last_sum, last_count, ..] = scratch else { panic!("chunk_topk: a lane's scratch") };
        let (mut sums, mut last) = (Sums { sum, count }, Sums { sum: last_sum, count: last_count });
        let (anchor, theta, block) = (&anchor, &theta, Block::default());
        // Whoever moves weights leaves their sums zero.
        [&mut sums, &mut last].into_iter().for_each(|s| s.sum[..Block::wide(grid) * STEP].fill(0.0));
        let mut mover = Mover { level, alpha, divide, anchor, theta, block, line: 0, moved: 0, next: 0 };
        for nth in here {
            let block = Block::new(grid, nth);
            mover.next = block.start;
            let share = mover.block.runs().div_ceil(block.chunks * updates.len().max(1));
            add_up(level, grid, spec, (updates, mean), block, &mut sums, || mover.advance(share, &mut last));
            mover.advance(usize::MAX, &mut last);
            (mover.block, mover.line) = (block, 0);
            std::mem::swap(&mut sums, &mut last);
        }
        mover.advance(usize::MAX, &mut last);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has it. What was written past the caches is there before anybody is told so.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    });
}

/// Adds the updates of a block up in sums that are all zero, and calls `after` after each record.
fn add_up(
    level: Level,
    grid: Grid,
    spec: Spec,
    (updates, mean): (&[Update<'_>], Mean),
    block: Block,
    sums: &mut Sums<'_>,
    mut after: impl FnMut(),
) {
    let mut picks = Picks::new();
    if mean == Mean::Senders {
        sums.count[..block.chunks * STEP].fill(0.0);
    }
    let (mut at, mut nth) = (grid.record_at(spec, block.chunk), 0);
    // As many whole chunks of one size together as make up a batch; all but the last of a row of tiles are of one size.
    let (n, last) = (grid.tile(block.chunk).len(), grid.tile(block.chunk + block.chunks - 1).len());
    let same = if n == last { block.chunks } else { block.chunks - 1 };
    let mut batch = [(&[][..], Table::default()); TOGETHER];
    while nth < block.chunks {
        let (n, left) = if nth < same { (n, same - nth) } else { (last, 1) };
        let (bytes, chunks) = (spec.record_bytes(n), left.min((TOGETHER / updates.len().max(1)).max(1)));
        for some in updates.chunks(TOGETHER) {
            let places = (0..chunks).flat_map(|chunk| some.iter().map(move |u| (chunk, u)));
            for (to, (chunk, u)) in batch.iter_mut().zip(places.clone()) {
                *to = record(spec, u.update, at + chunk * bytes..at + (chunk + 1) * bytes);
            }
            let mut places = places;
            decode_all(level, spec, n, &batch[..chunks * some.len()], &mut picks, |_, picks| {
                let (chunk, u) = places.next().expect("as many as were put in");
                let tile = grid.tile(block.chunk + nth + chunk);
                let here = (nth + chunk) * STEP..(nth + chunk) * STEP + CHUNK;
                add(tile, picks, u.factor, &mut sums.sum[here.clone()]);
                if mean == Mean::Senders {
                    picks.iter().for_each(|(i, _)| sums.count[here.start + place(tile, i)] += 1.0);
                }
                after();
            })
            .expect("chunk_topk: updates that were checked");
        }
        (at, nth) = (at + chunks * bytes, nth + chunks);
    }
    // The records of the next block.
    for u in updates {
        let next = &u.update.bytes()[at..];
        let len = next.len().min(block.chunks * spec.record_bytes(CHUNK));
        next[..len].chunks(64).for_each(|line| fetch_near(line.as_ptr()));
    }
    if mean == Mean::Senders {
        // Nobody sent it: 0 / 1.
        sums.count[..block.chunks * STEP].iter_mut().for_each(|c| *c = c.max(1.0));
    }
}

/// Adds what a record holds, times a factor, to the sums of its chunk.
fn add(tile: Tile, picks: &Picks, factor: f32, sums: &mut [f32]) {
    let sums: &mut [f32; CHUNK] = sums.try_into().expect("the sums of a chunk");
    if whole_rows(tile) {
        picks.iter().for_each(|(i, d)| sums[i % CHUNK] += factor * d);
    } else {
        picks.iter().for_each(|(i, d)| sums[place(tile, i)] += factor * d);
    }
}

/// Whether a tile's rows are as long as rows of sums; a vector's chunk is cut into such.
fn whole_rows(tile: Tile) -> bool {
    tile.rows == 1 || tile.cols == SIDE
}

/// Where the sum of a chunk's element `i` lies.
fn place(tile: Tile, i: usize) -> usize {
    if whole_rows(tile) { i } else { i / tile.cols * SIDE + i % tile.cols }
}

impl Mover<'_> {
    /// Moves the weights of up to `runs` runs of 64 elements of the block whose sums these are.
    fn advance(&mut self, mut runs: usize, sums: &mut Sums<'_>) {
        let b = self.block;
        while runs > 0 && self.line < b.lines {
            let last = self.line + 1 == b.lines;
            let width = if last { b.last_width } else { b.width };
            let at = b.start + self.line * b.stride + self.moved;
            let ahead = if last { self.next + self.moved } else { at + b.stride };
            let first = self.line * b.sums[0] + self.moved / SIDE * b.sums[1];
            let len = (width - self.moved).min(runs.saturating_mul(SIDE));
            // SAFETY: lines do not overlap, and a block has one piece.
            let (anchor, theta) = unsafe { (self.anchor.window(at, len), self.theta.window(at, len)) };
            let (sum, count) = (&mut sums.sum[first..], &sums.count[first..]);
            self.stretch(sum, count, b.sums[1], anchor, theta, self.anchor.at(0).wrapping_add(ahead));
            (runs, self.moved) = (runs - len.div_ceil(SIDE), self.moved + len);
            if self.moved == width {
                (self.line, self.moved) = (self.line + 1, 0);
            }
        }
    }

    /// Moves neighbouring weights, whose sums and counts lie in runs `step` apart, and leaves the sums zero.
    fn stretch(
        &self,
        sum: &mut [f32],
        count: &[f32],
        step: usize,
        anchor: &mut [f32],
        theta: &mut [f32],
        ahead: *const f32,
    ) {
        #[cfg(target_arch = "x86_64")]
        if self.level >= Level::Avx512 && theta.len().is_multiple_of(SIDE) && theta.as_ptr().addr().is_multiple_of(64) {
            // SAFETY: the level says that the CPU has the instructions.
            return unsafe {
                match self.divide {
                    Divide::Peers(by) => outer_avx512::<0>(sum, count, step, by, self.alpha, anchor, theta, ahead),
                    Divide::Reciprocal(by) => outer_avx512::<1>(sum, count, step, by, self.alpha, anchor, theta, ahead),
                    Divide::Counts => outer_avx512::<2>(sum, count, step, 1.0, self.alpha, anchor, theta, ahead),
                }
            };
        }
        let _ = ahead;
        let by = [if let Divide::Peers(by) | Divide::Reciprocal(by) = self.divide { by } else { 1.0 }; SIDE];
        for (nth, (anchor, theta)) in anchor.chunks_mut(SIDE).zip(theta.chunks_mut(SIDE)).enumerate() {
            let here = nth * step..nth * step + anchor.len();
            let count = if let Divide::Counts = self.divide { &count[here.clone()] } else { &by[..anchor.len()] };
            outer_plain(self.level, &sum[here.clone()], count, self.alpha, anchor, theta);
            sum[here].fill(0.0);
        }
    }
}

per_level! {
    /// a ← a − α·sum/count;  θ ← a.
    fn outer_plain[](sum: &[f32], count: &[f32], alpha: f32, anchor: &mut [f32], theta: &mut [f32]) {
        for i in 0..sum.len() {
            anchor[i] -= alpha * (sum[i] / count[i]);
        }
        theta.copy_from_slice(anchor);
    }
}

/// As [`outer_plain`] for whole runs. Writes θ, of which nothing is read, past the caches: its lines need not be
/// fetched first. Asks for as many weights from `ahead` on.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn outer_avx512<const DIVIDE: u8>(
    sum: &mut [f32],
    count: &[f32],
    step: usize,
    by: f32,
    alpha: f32,
    anchor: &mut [f32],
    theta: &mut [f32],
    ahead: *const f32,
) {
    use std::arch::x86_64::*;
    let runs = anchor.len() / SIDE;
    let there = |of: &[f32]| runs == 0 || of.len() >= (runs - 1) * step + SIDE;
    assert!(there(sum) && there(count) && theta.len() == anchor.len(), "chunk_topk: a stretch");
    let (alpha, by, r) = (_mm512_set1_ps(alpha), _mm512_set1_ps(by), _mm512_set1_ps(1.0 / by));
    for run in 0..runs {
        for i in (0..SIDE).step_by(16) {
            // SAFETY: inside of all four, by the check above; θ lies on a line's boundary.
            unsafe {
                let (here, of) = (run * SIDE + i, run * step + i);
                fetch_far(ahead.wrapping_add(here));
                let sum_at = sum.as_mut_ptr().add(of);
                let sum = _mm512_loadu_ps(sum_at);
                _mm512_storeu_ps(sum_at, _mm512_setzero_ps());
                let mean = match DIVIDE {
                    0 => _mm512_div_ps(sum, by),
                    1 => quotient(sum, by, r),
                    _ => _mm512_div_ps(sum, _mm512_loadu_ps(count.as_ptr().add(of))),
                };
                let anchor = anchor.as_mut_ptr().add(here);
                let moved = _mm512_sub_ps(_mm512_loadu_ps(anchor), _mm512_mul_ps(alpha, mean));
                _mm512_storeu_ps(anchor, moved);
                _mm512_stream_ps(theta.as_mut_ptr().add(here), moved);
            }
        }
    }
}

/// x / by, to the bit as division gives it, in a third of its time: q = x·r with r = 1/by rounded is at most two units
/// off, its remainder x − q·by is exact, and q + remainder·r, rounded once, is the quotient rounded. For whole `by` to
/// 2^20, no x/by lies so near to the middle of two numbers that the error of remainder·r would matter (that takes
/// 2^-21 of a unit, and the error is 2^-23); x must be 0 or far from both ends of f32's range. Source: Markstein 1990.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn quotient(x: __m512, by: __m512, r: __m512) -> __m512 {
    use std::arch::x86_64::*;
    let q = _mm512_mul_ps(x, r);
    _mm512_fmadd_ps(_mm512_fnmadd_ps(q, by, x), r, q)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Compress, compress, reference},
        *,
    };
    use crate::{
        device::Stream,
        harness::draw,
        simd,
        tensor::{DType, Tensor},
    };

    #[test]
    fn blocks_of_any_shape_fold_as_the_reference_does() {
        let s = Stream::cpu(2).unwrap();
        let grids = [Grid::matrix(130, 2200), Grid::matrix(64, 1030), Grid::vector(70_001), Grid::vector(5)];
        for (nth, grid) in grids.into_iter().enumerate() {
            let n = grid.len();
            let spec = Spec { k: 64, codec: [Codec::Compact, Codec::Exact][nth % 2] };
            let f32 = |values: &[f32]| {
                let mut t = Tensor::alone(&s, DType::F32, [n]).unwrap();
                t.set(values);
                t
            };
            let updates: Vec<Tensor> = (0..TOGETHER as u64 + 3)
                .map(|peer| {
                    let mut update = Tensor::alone(&s, DType::U32, [grid.update_words(spec)]).unwrap();
                    let e = &mut f32(&draw(peer, n));
                    assert!(
                        compress(&s, grid, spec, Compress { e, delta: None, update: &mut update, beta: 1.0 }).unwrap()
                    );
                    update
                })
                .collect();
            for (peers, mean) in [(0, Mean::Peers), (1, Mean::Peers), (3, Mean::Senders), (updates.len(), Mean::Peers)]
            {
                let factor = |i: usize| if i.is_multiple_of(2) { 1.0 } else { 0.3 };
                let sent: Vec<(&[u8], f32)> =
                    (0..peers).map(|i| (&updates[i].bytes()[..grid.update_bytes(spec)], factor(i))).collect();
                let mut want = draw(99, n);
                reference::fold(grid, spec, &sent, mean, 0.7, &mut want);
                let some: Vec<Update<'_>> =
                    (0..peers).map(|i| Update { update: &updates[i], factor: factor(i) }).collect();
                for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                    let (mut anchor, mut theta) = (f32(&draw(99, n)), f32(&[]));
                    let a = Fold { updates: &some, mean, alpha: 0.7, anchor: &mut anchor, theta: &mut theta };
                    fold(s.host(), level, grid, spec, a);
                    let same = |t: &Tensor| t.f32().iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same(&anchor) && same(&theta), "{grid:?} {mean:?} of {peers} at {}", level.name());
                }
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_quotient_by_reciprocal_is_the_quotient() {
        #[target_feature(enable = "avx512f")]
        fn check(by: f32, first: u32) {
            use std::arch::x86_64::*;
            let (many, r) = (_mm512_set1_ps(by), _mm512_set1_ps(1.0 / by));
            // Every 37th mantissa, at one exponent after another.
            for i in 0..(1 << 23) / (37 * 16) {
                let x: [f32; 16] = std::array::from_fn(|lane| {
                    let mantissa = (first + 37 * (16 * i + lane as u32)) & 0x7f_ffff;
                    f32::from_bits((127 - 82 + i % 104) << 23 | mantissa)
                });
                let mut got = [0.0f32; 16];
                // SAFETY: sixteen elements each.
                unsafe { _mm512_storeu_ps(got.as_mut_ptr(), quotient(_mm512_loadu_ps(x.as_ptr()), many, r)) };
                assert_eq!(got, x.map(|x| x / by), "{x:?} / {by}");
            }
        }
        if simd::detected() >= Level::Avx512 {
            for by in (1..40).chain([63, 65, 100, 255, 257, 1000, 4095, 65_537, (1 << 20) - 1, 1 << 20]) {
                // SAFETY: the CPU has the instructions.
                unsafe { check(by as f32, by as u32) };
            }
        }
    }
}
