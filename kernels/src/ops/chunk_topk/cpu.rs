//! On the host: a piece is a few neighbouring chunks; each is copied into L1, worked on there, and written back.

use super::{
    CHUNK, Compress, Fold, Grid, Mean, Tile,
    record::{Codec, Picks, Spec, Table, decode, encode},
    select::{Candidates, largest},
};
use crate::{
    ops::cast::element::per_level,
    pool::{Parts, Pool, SHARED_BYTES},
    simd::Level,
    tensor::Tensor,
};
use std::sync::atomic::{AtomicBool, Ordering};

/// Chunks of a piece: neighbours in a row of tiles, so that a page that is open serves several.
const PIECE: usize = 16;

pub(super) fn compress(pool: &Pool, level: Level, grid: Grid, spec: Spec, a: Compress<'_>) -> bool {
    let bytes = a.update.bytes_mut();
    bytes[grid.update_bytes(spec)..].fill(0);
    if spec.codec == Codec::Reference {
        return compress_by_table(pool, level, grid, spec, a);
    }
    let delta = a.delta.as_ref().map(|d| (d.anchor.f32(), d.theta.f32()));
    let (e, bytes) = (Parts::new(a.e.f32_mut()), Parts::new(bytes));
    each_chunk(pool, level, grid, spec, a.beta, &e, delta, &bytes, |tile, x, picks| put_back(grid, tile, &e, x, picks))
}

/// Brings `e` up to date, picks the largest of each chunk and writes its record, with an empty table where a codec has
/// one; then calls `after(tile, x, picks)` with what the record decodes to. Returns whether all that was picked is
/// finite.
fn each_chunk(
    pool: &Pool,
    level: Level,
    grid: Grid,
    spec: Spec,
    beta: f32,
    e: &Parts<'_, f32>,
    delta: Option<(&[f32], &[f32])>,
    bytes: &Parts<'_, u8>,
    after: impl Fn(Tile, &[f32], &Picks) + Sync,
) -> bool {
    let chunks = grid.chunks();
    let finite = AtomicBool::new(true);
    pool.run(chunks.div_ceil(PIECE), |piece, _| {
        let (mut x, mut candidates, mut picks) = ([0.0; CHUNK], Candidates::new(), Picks::new());
        for chunk in piece * PIECE..chunks.min((piece + 1) * PIECE) {
            let tile = grid.tile(chunk);
            let x = &mut x[..tile.len()];
            take_in(level, grid, tile, e, delta, beta, x);
            if chunk + 1 < chunks {
                fetch_ahead(grid, grid.tile(chunk + 1), e, delta);
            }
            pick(level, spec, x, &mut candidates, &mut picks);
            if picks.values[..picks.len].iter().any(|v| !v.is_finite()) {
                finite.store(false, Ordering::Relaxed);
            }
            let at = grid.record_at(spec, chunk);
            // SAFETY: records of different chunks do not overlap.
            let record = unsafe { bytes.window(at, spec.record_bytes(tile.len())) };
            encode(level, spec, tile.len(), Table::default(), &mut picks, record);
            after(tile, x, &picks);
        }
    });
    finite.into_inner()
}

/// Templar's quantiser needs all values sent of a tensor before the first is written. So the places are written first;
/// the levels come from what `e` holds there, on one thread, since they are few; then each record is written whole.
fn compress_by_table(pool: &Pool, level: Level, grid: Grid, spec: Spec, a: Compress<'_>) -> bool {
    let chunks = grid.chunks();
    let delta = a.delta.as_ref().map(|d| (d.anchor.f32(), d.theta.f32()));
    let (e, bytes) = (a.e.f32_mut(), a.update.bytes_mut());
    let parts = (Parts::new(e), Parts::new(bytes));
    let finite = each_chunk(pool, level, grid, spec, a.beta, &parts.0, delta, &parts.1, |_, _, _| ());
    let mut picks = Picks::new();
    let table = {
        let (e, bytes) = (&*e, &*bytes);
        table(|each| {
            for chunk in 0..chunks {
                sent(grid, spec, chunk, e, bytes, &mut picks);
                picks.values[..picks.len].iter().for_each(|&v| each(v));
            }
        })
    };
    table.write(bytes);
    for chunk in 0..chunks {
        sent(grid, spec, chunk, e, bytes, &mut picks);
        let (tile, at) = (grid.tile(chunk), grid.record_at(spec, chunk));
        encode(level, spec, tile.len(), table, &mut picks, &mut bytes[at..at + spec.record_bytes(tile.len())]);
        for (i, d) in picks.iter() {
            e[place(grid, tile, i)] -= d;
        }
    }
    finite
}

/// Places from the record of a chunk, with what `e` holds there.
fn sent(grid: Grid, spec: Spec, chunk: usize, e: &[f32], bytes: &[u8], picks: &mut Picks) {
    let (tile, at) = (grid.tile(chunk), grid.record_at(spec, chunk));
    let record = &bytes[at..at + spec.record_bytes(tile.len())];
    decode(spec, tile.len(), Table::default(), record, picks).expect("chunk_topk: a record of our own");
    for i in 0..picks.len {
        picks.values[i] = e[place(grid, tile, usize::from(picks.places[i]))];
    }
}

/// Levels of all values of a tensor that `sweep` goes through, each time in the same order.
fn table(mut sweep: impl FnMut(&mut dyn FnMut(f32))) -> Table {
    let (mut count, mut sum) = (0.0, 0.0);
    sweep(&mut |v| (count, sum) = (count + 1.0, sum + f64::from(v)));
    let shift = (sum / count) as f32;
    let mut square = 0.0;
    sweep(&mut |v| square += f64::from(v - shift) * f64::from(v - shift));
    let scale = (1.5 * (square / (count - 1.0)).sqrt()) as f32;
    let mut table =
        Table { shift, scale: if scale > 0.0 && scale.is_finite() { scale } else { 1.0 }, levels: [0.0; 4] };
    let mut bins = [(0.0, 0.0); 4];
    sweep(&mut |v| {
        let bin = &mut bins[table.code(v)];
        *bin = (bin.0 + 1.0, bin.1 + f64::from(v - shift));
    });
    table.levels = bins.map(|(count, sum)| if count == 0.0 { 0.0 } else { (sum / count) as f32 });
    table
}

/// Where element `i` of a tile lies in the tensor.
fn place(grid: Grid, tile: Tile, i: usize) -> usize {
    (tile.row + i / tile.cols) * grid.stride() + tile.col + i % tile.cols
}

/// Brings a chunk of `e` up to date and copies it into `x`.
fn take_in(
    level: Level,
    grid: Grid,
    tile: Tile,
    e: &Parts<'_, f32>,
    delta: Option<(&[f32], &[f32])>,
    beta: f32,
    x: &mut [f32],
) {
    for (row, x) in x.chunks_exact_mut(tile.cols).enumerate() {
        let at = (tile.row + row) * grid.stride() + tile.col;
        // SAFETY: rows of different tiles do not overlap, and a tile has one piece.
        let e = unsafe { e.window(at, tile.cols) };
        match delta {
            Some((anchor, theta)) => add(level, e, &anchor[at..at + tile.cols], &theta[at..at + tile.cols], beta, x),
            None => x.copy_from_slice(e),
        }
    }
}

/// Asks for the next tile while this one is worked on: the machine's own guesses start anew with every row.
fn fetch_ahead(grid: Grid, tile: Tile, e: &Parts<'_, f32>, delta: Option<(&[f32], &[f32])>) {
    #[cfg(target_arch = "x86_64")]
    for row in 0..tile.rows {
        let at = (tile.row + row) * grid.stride() + tile.col;
        for col in (0..tile.cols).step_by(16) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: a hint; it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(e.at(at + col).cast_const().cast()) };
            if let Some((anchor, theta)) = delta {
                // SAFETY: as above.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T1>(anchor[at + col..].as_ptr().cast());
                    _mm_prefetch::<_MM_HINT_T1>(theta[at + col..].as_ptr().cast());
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (grid, tile, e, delta);
}

per_level! {
    fn add[](e: &mut [f32], anchor: &[f32], theta: &[f32], beta: f32, x: &mut [f32]) {
        for i in 0..e.len() {
            e[i] = beta * e[i] + (anchor[i] - theta[i]);
            x[i] = e[i];
        }
    }

    fn outer[](sum: &[f32], count: &[f32], alpha: f32, anchor: &mut [f32], theta: &mut [f32]) {
        for i in 0..sum.len() {
            anchor[i] -= alpha * (sum[i] / count[i]);
        }
        theta.copy_from_slice(anchor);
    }
}

/// The largest of a chunk: places and values.
fn pick(level: Level, spec: Spec, x: &[f32], candidates: &mut Candidates, picks: &mut Picks) {
    picks.len = spec.kept(x.len());
    largest(level, x, picks.len, candidates, &mut picks.places);
    for (value, &place) in picks.values.iter_mut().zip(&picks.places[..picks.len]) {
        *value = x[usize::from(place)];
    }
}

/// Takes what was sent out of `e`, whose chunk `x` is.
fn put_back(grid: Grid, tile: Tile, e: &Parts<'_, f32>, x: &[f32], picks: &Picks) {
    for (i, d) in picks.iter() {
        // SAFETY: an element of this piece's own tile.
        unsafe { e.window(place(grid, tile, i), 1)[0] = x[i] - d };
    }
}

pub(super) fn fold(pool: &Pool, level: Level, grid: Grid, spec: Spec, a: Fold<'_>) {
    let chunks = grid.chunks();
    let everyone = a.updates.len().max(1) as f32;
    let (anchor, theta) = (Parts::new(a.anchor.f32_mut()), Parts::new(a.theta.f32_mut()));
    pool.run(chunks.div_ceil(PIECE), |piece, _| {
        let (mut sum, mut count, mut picks) = ([0.0f32; CHUNK], [everyone; CHUNK], Picks::new());
        for chunk in piece * PIECE..chunks.min((piece + 1) * PIECE) {
            let tile = grid.tile(chunk);
            let n = tile.len();
            sum[..n].fill(0.0);
            if a.mean == Mean::Senders {
                count[..n].fill(0.0);
            }
            for u in a.updates {
                read(grid, spec, chunk, u.update, &mut picks);
                for (i, d) in picks.iter() {
                    sum[i] += u.factor * d;
                }
                if a.mean == Mean::Senders {
                    picks.iter().for_each(|(i, _)| count[i] += 1.0);
                }
            }
            if a.mean == Mean::Senders {
                // Nobody sent it: 0 / 1.
                count[..n].iter_mut().for_each(|c| *c = c.max(1.0));
            }
            for row in 0..tile.rows {
                let (at, here) = ((tile.row + row) * grid.stride() + tile.col, row * tile.cols..(row + 1) * tile.cols);
                // SAFETY: rows of different tiles do not overlap, and a tile has one piece.
                let (a_row, t_row) = unsafe { (anchor.window(at, tile.cols), theta.window(at, tile.cols)) };
                outer(level, &sum[here.clone()], &count[here], a.alpha, a_row, t_row);
            }
        }
    });
}

/// What an update that was checked holds for a chunk.
fn read(grid: Grid, spec: Spec, chunk: usize, update: &Tensor, picks: &mut Picks) {
    let (n, at) = (grid.tile(chunk).len(), grid.record_at(spec, chunk));
    let bytes = update.bytes();
    let table = if spec.codec == Codec::Reference { Table::read(bytes) } else { Table::default() };
    decode(spec, n, table, &bytes[at..at + spec.record_bytes(n)], picks)
        .expect("chunk_topk: an update that was checked");
}

pub(super) fn sum_squares(pool: &Pool, grid: Grid, spec: Spec, update: &Tensor) -> f64 {
    let chunks = grid.chunks();
    assert!(chunks <= SHARED_BYTES / size_of::<f64>(), "chunk_topk: {chunks} chunks");
    pool.with_shared(|scratch| {
        let sums: &mut [f64] = &mut bytemuck::cast_slice_mut(scratch)[..chunks];
        pool.chunks(sums, PIECE, |piece, sums, _| {
            let mut picks = Picks::new();
            for (i, sum) in sums.iter_mut().enumerate() {
                read(grid, spec, piece * PIECE + i, update, &mut picks);
                *sum = picks.values[..picks.len].iter().map(|&d| f64::from(d) * f64::from(d)).sum();
            }
        });
        sums.iter().sum()
    })
}
