//! On the host: a piece is a few neighbouring chunks, each worked on where it lies.

use super::{
    CHUNK, Compress, Fold, Grid, Mean,
    ahead::Ahead,
    record::{self, Codec, Picks, Spec, TOGETHER, Table, decode, decode_all, encode},
    scan::Chunk,
    select::{Guess, Picker},
};
use crate::{
    ops::cast::element::per_level,
    pool::{Parts, Pool, SHARED_BYTES},
    simd::{self, Level},
    tensor::Tensor,
};
use std::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Chunks of the shortest and of the longest piece: neighbours in a row of tiles, so that a page that is open serves
/// several.
const PIECE: [usize; 2] = [16, 256];
/// Pieces of a tensor that is neither too small nor too large for that.
const PIECES: usize = 64;
/// Runs of the next chunk that are fetched for each update: of eight updates' worth, all.
const AHEAD: usize = 8;

/// Chunks of a piece.
fn piece(chunks: usize) -> usize {
    (chunks / PIECES).clamp(PIECE[0], PIECE[1])
}

pub(super) fn compress(pool: &Pool, level: Level, grid: Grid, spec: Spec, a: Compress<'_>) -> bool {
    let bytes = a.update.bytes_mut();
    bytes[grid.update_bytes(spec)..].fill(0);
    if spec.codec == Codec::Reference {
        return compress_by_table(pool, level, grid, spec, a);
    }
    let delta = a.delta.as_ref().map(|d| (d.anchor.f32(), d.theta.f32()));
    let (e, bytes) = (Parts::new(a.e.f32_mut()), Parts::new(bytes));
    each_chunk(pool, level, grid, spec, a.beta, &e, delta, &bytes, put_back)
}

/// Brings `e` up to date, picks the largest of each chunk and writes its record, with an empty table where a codec has
/// one; then calls `after(chunk, picks)` with what the record decodes to. Returns whether all that was picked is
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
    after: impl Fn(&Chunk<'_>, &Picks) + Sync,
) -> bool {
    let chunks = grid.chunks();
    let (finite, guess) = (AtomicBool::new(true), AtomicU64::new(Guess::NONE.to_bits()));
    let piece = piece(chunks);
    pool.run(chunks.div_ceil(piece), |nth, _| {
        // What the lanes tell each other changes how long it takes, not what is found.
        let mut picker = Picker::new(level, Guess::from_bits(guess.load(Ordering::Relaxed)));
        let (mut picks, stride) = (Picks::new(), grid.stride());
        let here = nth * piece..chunks.min((nth + 1) * piece);
        let mut at = grid.record_at(spec, here.start);
        for i in here {
            let (tile, ahead) = (grid.tile(i), Ahead::new(grid, i, e.at(0), delta));
            let chunk = Chunk { tile, stride, e, delta, beta, ahead };
            picks.len = spec.kept(tile.len());
            picker.largest(&chunk, &mut picks);
            if !picks.values[..picks.len].iter().fold(true, |all, v| all & v.is_finite()) {
                finite.store(false, Ordering::Relaxed);
            }
            let length = spec.record_bytes(tile.len());
            // SAFETY: records of different chunks do not overlap.
            let record = unsafe { bytes.window(at, length) };
            encode(level, spec, tile.len(), Table::default(), &mut picks, record);
            after(&chunk, &picks);
            chunk.ahead.fetch_all();
            at += length;
        }
        guess.store(picker.guess.to_bits(), Ordering::Relaxed);
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
    let finite = each_chunk(pool, level, grid, spec, a.beta, &parts.0, delta, &parts.1, |_, _| ());
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
            e[tile.place(grid.stride(), i)] -= d;
        }
    }
    finite
}

/// Places from the record of a chunk, with what `e` holds there.
fn sent(grid: Grid, spec: Spec, chunk: usize, e: &[f32], bytes: &[u8], picks: &mut Picks) {
    let (tile, at) = (grid.tile(chunk), grid.record_at(spec, chunk));
    let record = &bytes[at..at + spec.record_bytes(tile.len())];
    decode(simd::level(), spec, tile.len(), Table::default(), record, picks).expect("chunk_topk: a record of our own");
    for i in 0..picks.len {
        picks.values[i] = e[tile.place(grid.stride(), usize::from(picks.places[i]))];
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

per_level! {
    fn outer_plain[](sum: &[f32], count: &[f32], alpha: f32, anchor: &mut [f32], theta: &mut [f32]) {
        for i in 0..sum.len() {
            anchor[i] -= alpha * (sum[i] / count[i]);
        }
        theta.copy_from_slice(anchor);
    }
}

/// a ← a − α·sum/count;  θ ← a.
fn outer(level: Level, sum: &[f32], count: &[f32], alpha: f32, anchor: &mut [f32], theta: &mut [f32]) {
    let len = sum.len();
    assert!(count.len() == len && anchor.len() == len && theta.len() == len, "chunk_topk: a row");
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && len.is_multiple_of(16) && theta.as_ptr().cast::<[f32; 16]>().addr().is_multiple_of(64)
    {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { outer_avx512(sum, count, alpha, anchor, theta) };
    }
    outer_plain(level, sum, count, alpha, anchor, theta);
}

/// Writes θ, of which nothing is read, past the caches: its lines need not be fetched first.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn outer_avx512(sum: &[f32], count: &[f32], alpha: f32, anchor: &mut [f32], theta: &mut [f32]) {
    use std::arch::x86_64::*;
    let alpha = _mm512_set1_ps(alpha);
    for i in (0..sum.len()).step_by(16) {
        // SAFETY: sixteen elements of each, all of the same whole number of sixteens; θ lies on a line's boundary.
        unsafe {
            let mean = _mm512_div_ps(_mm512_loadu_ps(sum.as_ptr().add(i)), _mm512_loadu_ps(count.as_ptr().add(i)));
            let anchor = anchor.as_mut_ptr().add(i);
            let moved = _mm512_sub_ps(_mm512_loadu_ps(anchor), _mm512_mul_ps(alpha, mean));
            _mm512_storeu_ps(anchor, moved);
            _mm512_stream_ps(theta.as_mut_ptr().add(i), moved);
        }
    }
}

/// Takes what was sent out of a chunk.
fn put_back(chunk: &Chunk<'_>, picks: &Picks) {
    // SAFETY: picked from this chunk, which has one piece.
    unsafe { chunk.each(&picks.places[..picks.len], |i, e| *e -= picks.values[i]) };
}

pub(super) fn fold(pool: &Pool, level: Level, grid: Grid, spec: Spec, a: Fold<'_>) {
    let (chunks, stride) = (grid.chunks(), grid.stride());
    let everyone = a.updates.len().max(1) as f32;
    let (anchor, theta) = (Parts::new(a.anchor.f32_mut()), Parts::new(a.theta.f32_mut()));
    let piece = piece(chunks);
    pool.run(chunks.div_ceil(piece), |nth, _| {
        let (mut sum, mut count, mut picks) = ([0.0f32; CHUNK], [everyone; CHUNK], Picks::new());
        let here = nth * piece..chunks.min((nth + 1) * piece);
        let mut at = grid.record_at(spec, here.start);
        for chunk in here {
            let tile = grid.tile(chunk);
            let (n, ahead) = (tile.len(), Ahead::new(grid, chunk, anchor.at(0), None));
            let bytes = at..at + spec.record_bytes(n);
            at = bytes.end;
            sum[..n].fill(0.0);
            if a.mean == Mean::Senders {
                count[..n].fill(0.0);
            }
            for updates in a.updates.chunks(TOGETHER) {
                let record = |i: usize| record(spec, updates[i.min(updates.len() - 1)].update, bytes.clone());
                let records: [_; TOGETHER] = std::array::from_fn(record);
                decode_all(level, spec, n, &records[..updates.len()], &mut picks, |i, picks| {
                    (0..AHEAD).for_each(|_| ahead.fetch());
                    let factor = updates[i].factor;
                    picks.iter().for_each(|(i, d)| sum[i] += factor * d);
                    if a.mean == Mean::Senders {
                        picks.iter().for_each(|(i, _)| count[i] += 1.0);
                    }
                })
                .expect("chunk_topk: updates that were checked");
            }
            if a.mean == Mean::Senders {
                // Nobody sent it: 0 / 1.
                count[..n].iter_mut().for_each(|c| *c = c.max(1.0));
            }
            for row in 0..tile.rows {
                let (at, here) = ((tile.row + row) * stride + tile.col, row * tile.cols..(row + 1) * tile.cols);
                // SAFETY: rows of different tiles do not overlap, and a tile has one piece.
                let (a_row, t_row) = unsafe { (anchor.window(at, tile.cols), theta.window(at, tile.cols)) };
                outer(level, &sum[here.clone()], &count[here], a.alpha, a_row, t_row);
            }
            ahead.fetch_all();
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has it. What was written past the caches is there before anybody is told so.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    });
}

/// These bytes of an update, and the table to read them by.
fn record(spec: Spec, update: &Tensor, bytes: Range<usize>) -> (&[u8], Table) {
    let all = update.bytes();
    (&all[bytes], if spec.codec == Codec::Reference { Table::read(all) } else { Table::default() })
}

pub(super) fn sum_squares(pool: &Pool, grid: Grid, spec: Spec, update: &Tensor) -> f64 {
    let chunks = grid.chunks();
    assert!(chunks <= SHARED_BYTES / size_of::<f64>(), "chunk_topk: {chunks} chunks");
    pool.with_shared(|scratch| {
        let sums: &mut [f64] = &mut bytemuck::cast_slice_mut(scratch)[..chunks];
        let piece = piece(chunks);
        pool.chunks(sums, piece, |nth, sums, _| {
            let (level, mut picks, mut at) = (simd::level(), Picks::new(), grid.record_at(spec, nth * piece));
            for (i, sum) in sums.iter_mut().enumerate() {
                let n = grid.tile(nth * piece + i).len();
                let (bytes, table) = record(spec, update, at..at + spec.record_bytes(n));
                *sum = record::sum_squares(level, spec, n, table, bytes, &mut picks);
                at += bytes.len();
            }
        });
        sums.iter().sum()
    })
}
