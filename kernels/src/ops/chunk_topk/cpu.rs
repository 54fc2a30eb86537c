//! On the host: a piece is a few neighbouring chunks, each worked on where it lies.

use super::{
    Compress, Grid,
    ahead::Ahead,
    record::{self, Codec, Picks, Spec, Table, decode, encode},
    scan::Chunk,
    select::{Guess, Picker},
};
use crate::{
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

/// Takes what was sent out of a chunk.
fn put_back(chunk: &Chunk<'_>, picks: &Picks) {
    // SAFETY: picked from this chunk, which has one piece.
    unsafe { chunk.each(&picks.places[..picks.len], |i, e| *e -= picks.values[i]) };
}

/// These bytes of an update, and the table to read them by.
pub(super) fn record(spec: Spec, update: &Tensor, bytes: Range<usize>) -> (&[u8], Table) {
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
