//! Decode: few new tokens against a cache.
//!
//! The keys of a query are cut into ranges of 256 (longer ones where there would be more than 32); a piece is one key head
//! and one range, and takes all queries and heads that share these keys while they are in the caches. It leaves
//! max (in units of ln 2), Σ exp and o of its range in the common scratch, H·32·(D + 2) words a query; a second pass
//! joins the ranges of each query in order. Ranges depend on the number of keys that the query sees, so its bits do not
//! depend on the other queries.
//!
//! More than [`FEW`] queries are a prefill: they run [`forward_at`], whose bits they get.

use super::{Arithmetic, Sink, forward::Source, forward::forward_at, input};
use crate::{
    ops::attention::{Decode, Dims},
    ops::matmul::tile::In,
    pool::{LANE_BYTES, Parts, Pool, SHARED_BYTES},
    simd::{self, Level},
};

/// Most queries that go one by one.
const FEW: usize = 8;
/// Most ranges of one query.
const RANGES: usize = 32;
/// Least keys of a range.
const RANGE: usize = 256;
/// Keys that all heads use before the next ones.
const NEAR: usize = 16;

/// See [`crate::ops::attention::decode`].
pub(in crate::ops::attention) fn decode(pool: &Pool, d: Dims, a: Decode<'_>) {
    decode_at(pool, simd::level(), d, a);
}

/// Decode at `level`.
pub(super) fn decode_at(pool: &Pool, level: Level, d: Dims, a: Decode<'_>) {
    let (q, k, v) = (input(a.q), input(a.k_cache), input(a.v_cache));
    let start = a.len - d.seq;
    if d.seq > FEW {
        return forward_at(pool, level, d, &Source { q, k, v, first: None, trunk: None, start }, a.o, None);
    }
    let with = Arithmetic::new(level, a.o.dtype());
    let o = Sink::new(a.o);
    let words = d.heads * RANGES * (d.head_dim + 2);
    let at_once = SHARED_BYTES / 4 / words;
    let scores = d.group() * cut(a.len).0;
    assert!(at_once > 0 && scores <= LANE_BYTES / 4, "attention: decode of {d:?}");
    pool.with_shared(|shared| {
        for from in (0..d.seq).step_by(at_once) {
            let queries = from..d.seq.min(from + at_once);
            let parts = Parts::new(bytemuck::cast_slice_mut(shared));
            let few = Few { with, d, start, q, k, v, parts };
            few.ranges(pool, queries.clone());
            few.join(pool, queries, &o);
        }
    });
}

/// A few queries, and what is known of each of their ranges: `[query][head][range]` of max, Σ exp, o.
struct Few<'a> {
    with: Arithmetic,
    d: Dims,
    start: usize,
    q: In<'a>,
    k: In<'a>,
    v: In<'a>,
    parts: Parts<'a, f32>,
}

/// Keys of a range, and ranges, of a query that sees `keys` keys.
fn cut(keys: usize) -> (usize, usize) {
    let range = RANGE * keys.div_ceil(RANGE * RANGES).next_power_of_two();
    (range, keys.div_ceil(range))
}

impl Few<'_> {
    /// Where the result of a range lies; `n` counts queries from the first of the group.
    fn part(&self, n: usize, h: usize, range: usize) -> usize {
        ((n * self.d.heads + h) * RANGES + range) * (self.d.head_dim + 2)
    }

    fn ranges(&self, pool: &Pool, queries: std::ops::Range<usize>) {
        let (d, head_dim, lanes) = (self.d, self.d.head_dim, self.with.lanes);
        let ld = d.kv_heads * head_dim;
        let ranges = cut(self.start + queries.end).1.max(cut(self.start + queries.start + 1).1);
        pool.run(ranges * d.kv_heads, |piece, lane| {
            let (range, kv_head) = (piece / d.kv_heads, piece % d.kv_heads);
            let scores: &mut [f32] = bytemuck::cast_slice_mut(lane.scratch);
            for (n, i) in queries.clone().enumerate() {
                let (length, count) = cut(self.start + i + 1);
                if range >= count {
                    continue;
                }
                let keys = range * length..(self.start + i + 1).min((range + 1) * length);
                let heads = kv_head * d.group()..(kv_head + 1) * d.group();
                // SAFETY: this range of these heads and this query is this piece's alone.
                let part = |h| unsafe { self.parts.window(self.part(n, h, range), head_dim + 2) };
                let at = |key: usize| (key * d.kv_heads + kv_head) * head_dim;
                // All heads use a few keys before the next few: a cache read once from memory is read from L1 then on.
                for few in (0..keys.len()).step_by(NEAR) {
                    let k = self.k.from(at(keys.start + few));
                    for (g, h) in heads.clone().enumerate() {
                        let s = &mut scores[g * length..][few..keys.len().min(few + NEAR)];
                        lanes.dots(self.q.from(d.query(0, i, h)), k, head_dim, ld, s);
                    }
                }
                for (g, h) in heads.clone().enumerate() {
                    let part = part(h);
                    (part[0], part[1]) = lanes.exp_row(&mut scores[g * length..][..keys.len()], d.scale() as f32);
                    part[2..].fill(0.0);
                }
                for few in (0..keys.len()).step_by(NEAR) {
                    let v = self.v.from(at(keys.start + few));
                    for (g, h) in heads.clone().enumerate() {
                        let p = &scores[g * length..][few..keys.len().min(few + NEAR)];
                        lanes.add_rows(p, v, ld, &mut part(h)[2..]);
                    }
                }
            }
        });
    }

    fn join(&self, pool: &Pool, queries: std::ops::Range<usize>, o: &Sink<'_>) {
        let (d, lanes) = (self.d, self.with.lanes);
        pool.run(queries.len() * d.heads, |piece, lane| {
            let (n, h) = (piece / d.heads, piece % d.heads);
            let count = cut(self.start + queries.start + n + 1).1;
            let sum_o: &mut [f32] = &mut bytemuck::cast_slice_mut(lane.scratch)[..d.head_dim];
            sum_o.fill(0.0);
            // SAFETY: the first pass is over, and nobody writes the ranges now.
            let part = |range| unsafe { &*self.parts.window(self.part(n, h, range), d.head_dim + 2) };
            let max = (0..count).map(|range| part(range)[0]).fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for range in 0..count {
                let part = part(range);
                let fade = (part[0] - max).exp2();
                sum += fade * part[1];
                lanes.add_rows(&[fade], In::F32(&part[2..]), d.head_dim, sum_o);
            }
            // SAFETY: this query and head are this piece's alone.
            unsafe { lanes.write(sum_o, &[1.0 / sum], d.head_dim, o, d.query(0, queries.start + n, h), 0) }
        });
    }
}
