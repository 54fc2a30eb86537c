//! The page's formulas, one thread, a stable sort and index loops. In `f32`: bits must agree, so the reference rounds
//! where the page rounds, and what is proved against it agrees exactly.

use super::{
    Grid, Mean,
    record::{Codec, Picks, Spec, Table, decode, encode},
};
use crate::simd::Level;

/// Element `i` of chunk `chunk` in the tensor.
fn at(grid: Grid, chunk: usize, i: usize) -> usize {
    let tile = grid.tile(chunk);
    (tile.row + i / tile.cols) * grid.stride() + tile.col + i % tile.cols
}

/// e ← β·e + (a − θ); returns the update and leaves what was not sent in `e`.
pub fn compress(grid: Grid, spec: Spec, beta: f32, e: &mut [f32], anchor: &[f32], theta: &[f32]) -> Vec<u8> {
    for i in 0..e.len() {
        e[i] = beta * e[i] + (anchor[i] - theta[i]);
    }
    let mut sent = Vec::new();
    for chunk in 0..grid.chunks() {
        let n = grid.tile(chunk).len();
        let mut places: Vec<usize> = (0..n).collect();
        places.sort_by_key(|&i| std::cmp::Reverse(e[at(grid, chunk, i)].abs().to_bits()));
        places.truncate(spec.kept(n));
        places.sort();
        sent.push(places);
    }
    let values: Vec<f32> = sent
        .iter()
        .enumerate()
        .flat_map(|(c, places)| places.iter().map(move |&i| (c, i)))
        .map(|(c, i)| e[at(grid, c, i)])
        .collect();
    let table = if spec.codec == Codec::Reference { table(&values) } else { Table::default() };

    let mut update = vec![0; grid.update_bytes(spec)];
    if spec.codec == Codec::Reference {
        table.write(&mut update);
    }
    for (chunk, places) in sent.iter().enumerate() {
        let mut picks = Picks::new();
        picks.len = places.len();
        for (j, &i) in places.iter().enumerate() {
            (picks.places[j], picks.values[j]) = (i as u16, e[at(grid, chunk, i)]);
        }
        let record = grid.record_at(spec, chunk)..grid.record_at(spec, chunk + 1);
        encode(Level::Portable, spec, grid.tile(chunk).len(), table, &mut picks, &mut update[record]);
        for (i, d) in picks.iter() {
            e[at(grid, chunk, i)] -= d;
        }
    }
    update
}

/// Templar's levels of all values sent of a tensor; sums in f64.
fn table(values: &[f32]) -> Table {
    let n = values.len() as f64;
    let shift = (values.iter().map(|&v| f64::from(v)).sum::<f64>() / n) as f32;
    let square: f64 = values.iter().map(|&v| f64::from(v - shift).powi(2)).sum();
    let scale = (1.5 * (square / (n - 1.0)).sqrt()) as f32;
    let mut table =
        Table { shift, scale: if scale > 0.0 && scale.is_finite() { scale } else { 1.0 }, levels: [0.0; 4] };
    for code in 0..4 {
        let of_code = || values.iter().filter(|&&v| table.code(v) == code);
        let sum: f64 = of_code().map(|&v| f64::from(v - shift)).sum();
        let count = of_code().count();
        table.levels[code] = if count == 0 { 0.0 } else { (sum / count as f64) as f32 };
    }
    table
}

/// The values of an update, dense, with where they were sent.
pub fn dense(grid: Grid, spec: Spec, update: &[u8]) -> Vec<Option<f32>> {
    let table = if spec.codec == Codec::Reference { Table::read(update) } else { Table::default() };
    let mut out = vec![None; grid.len()];
    for chunk in 0..grid.chunks() {
        let mut picks = Picks::new();
        let record = &update[grid.record_at(spec, chunk)..grid.record_at(spec, chunk + 1)];
        decode(Level::Portable, spec, grid.tile(chunk).len(), table, record, &mut picks).expect("an honest record");
        for (i, d) in picks.iter() {
            out[at(grid, chunk, i)] = Some(d);
        }
    }
    out
}

/// a ← a − α·D.
pub fn fold(grid: Grid, spec: Spec, updates: &[(&[u8], f32)], mean: Mean, alpha: f32, anchor: &mut [f32]) {
    let updates: Vec<_> = updates.iter().map(|&(bytes, factor)| (dense(grid, spec, bytes), factor)).collect();
    for j in 0..anchor.len() {
        let (mut sum, mut senders) = (0.0f32, 0);
        for (values, factor) in &updates {
            if let Some(d) = values[j] {
                sum += factor * d;
                senders += 1;
            }
        }
        let over = match mean {
            Mean::Peers => updates.len(),
            Mean::Senders => senders,
        };
        if over > 0 {
            anchor[j] -= alpha * (sum / over as f32);
        }
    }
}
