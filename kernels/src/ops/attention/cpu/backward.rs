//! Backward: blocks of keys pass by; for each, the blocks of queries that see it.
//!
//! dk and dv of a block of keys are complete when its queries are through. dq gathers over all blocks of keys, in f32:
//! G·T·D words for the G heads that share a key head. Where a lane has such room the five products are made once
//! ([`Plan::Fused`], a piece is one key head of one row of the batch). Where it has not, or where there are fewer key heads
//! than threads, dk and dv come from one pass (a piece: one block of keys) and dq from a second ([`Plan::Split`], a
//! piece: one head and a few blocks of queries), seven products in all. Both plans run [`Sweep::run`], whose sums have
//! one order, so they give the same bits.
//!
//! Scratch of a lane, in words of 32 bits with D' = D + 31 at most and a block of N keys (256, or 128 where D > 128): packed
//! k, v and k again N·(2·D + D'), sums of dk and dv 2·N·D, q and do both ways 112·4·D', ds 112·(N + 31), scores and
//! their packed form 4·112·32. D = 64: 0.6 MiB; D = 512: 2.4 MiB. The rest of [`LANE_BYTES`], or
//! its share of [`SHARED_BYTES`], holds dq.

use super::{
    Arithmetic, Sink,
    ahead::{Ahead, address},
    input, lanes, take, take_f32,
};
use crate::{
    ops::attention::{Backward, Dims},
    ops::matmul::{
        Put,
        tile::{In, Left, Major, Operand},
    },
    pool::{LANE_BYTES, Parts, Pool, SHARED_BYTES},
    simd::{self, Level},
    tensor::Tensor,
};
use lanes::Rows;
use std::ops::Range;

/// Tokens of a piece of δ.
const DELTA_ROWS: usize = 64;
/// Blocks of queries in a piece of the second pass.
const SPLIT_BLOCKS: usize = 4;
/// Rows of dq that are written at a time.
const OUT_ROWS: usize = 32;
/// Most lanes of a panel.
const LANES: usize = 32;

/// How the work is cut; the choice does not change a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// One pass; dq is summed in a lane's own scratch.
    Fused,
    /// One pass; dq is summed in a lane's share of the common scratch.
    FusedShared,
    /// Two passes.
    Split,
}

impl Plan {
    /// The plan that costs least on `threads` threads.
    fn choose(with: &Arithmetic, d: Dims, threads: usize) -> Plan {
        let (pieces, words) = (d.batch * d.kv_heads, d.group() * d.seq * d.head_dim);
        // Five products in rounds of `threads` pieces, against seven in small pieces.
        if 5 * threads * pieces.div_ceil(threads) > 7 * pieces {
            return Plan::Split;
        }
        if words <= Space::room(with, d) {
            return Plan::Fused;
        }
        if words.next_multiple_of(16) <= SHARED_BYTES / 4 / threads { Plan::FusedShared } else { Plan::Split }
    }
}

/// See [`crate::ops::attention::backward`].
pub(in crate::ops::attention) fn backward(pool: &Pool, d: Dims, a: Backward<'_>) {
    backward_at(pool, simd::level(), None, d, a);
}

/// Backward at `level`, by `plan` or the cheapest one.
pub(super) fn backward_at(pool: &Pool, level: Level, plan: Option<Plan>, d: Dims, a: Backward<'_>) {
    if d.batch * d.seq == 0 {
        return;
    }
    let with = Arithmetic::new(level, a.q.dtype());
    let plan = plan.unwrap_or_else(|| Plan::choose(&with, d, pool.lanes()));
    delta(pool, &with, d, input(a.do_), input(a.o), a.delta.f32_mut());
    let sweep = Sweep {
        d,
        q: input(a.q),
        k: input(a.k),
        v: input(a.v),
        do_: input(a.do_),
        first: a.first.map(Tensor::u32),
        lse: a.lse.f32(),
        delta: a.delta.f32(),
        dq: Sink::new(a.dq),
        dk: Sink::new(a.dk),
        dv: Sink::new(a.dv),
        with,
    };
    match plan {
        Plan::Fused => sweep.fused(pool, None),
        Plan::FusedShared => pool.with_shared(|shared| sweep.fused(pool, Some(bytemuck::cast_slice_mut(shared)))),
        Plan::Split => sweep.split(pool),
    }
}

/// δ of every query.
fn delta(pool: &Pool, with: &Arithmetic, d: Dims, do_: In<'_>, o: In<'_>, delta: &mut [f32]) {
    let delta = Parts::new(&mut delta[..d.batch * d.heads * d.seq]);
    let parts = d.seq.div_ceil(DELTA_ROWS);
    pool.run(d.batch * parts, |piece, _| {
        let (b, from) = (piece / parts, piece % parts * DELTA_ROWS);
        let rows = DELTA_ROWS.min(d.seq - from);
        for i in from..from + rows {
            for h in 0..d.heads {
                let at = d.query(b, i, h);
                // SAFETY: this token of this head is this piece's alone.
                let to = unsafe { delta.window((b * d.heads + h) * d.seq + i, 1) };
                with.lanes.dots(do_.from(at), o.from(at), d.head_dim, d.head_dim, to);
            }
        }
    });
}

/// All that a piece reads and writes.
struct Sweep<'a> {
    with: Arithmetic,
    d: Dims,
    q: In<'a>,
    k: In<'a>,
    v: In<'a>,
    do_: In<'a>,
    first: Option<&'a [u32]>,
    lse: &'a [f32],
    delta: &'a [f32],
    dq: Sink<'a>,
    dk: Sink<'a>,
    dv: Sink<'a>,
}

/// What one piece makes, in row b for one key head.
struct Part {
    b: usize,
    kv_head: usize,
    /// Query heads that take part.
    heads: Range<usize>,
    /// Keys; starts at a block of keys.
    keys: Range<usize>,
    /// Queries; starts at a block of queries.
    queries: Range<usize>,
    /// Whether dk and dv of these keys are made.
    dkv: bool,
}

/// A lane's scratch: see the head of the file.
struct Space<'a> {
    /// Right operands `[keys, D]`.
    k: &'a mut [u32],
    v: &'a mut [u32],
    /// Right operand `[D, keys]`.
    k_turned: &'a mut [u32],
    /// `[panel][D][nr]`
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Left operands `[queries, D]`.
    q: &'a mut [u32],
    do_: &'a mut [u32],
    /// Left operands `[D, queries]`.
    q_turned: &'a mut [u32],
    do_turned: &'a mut [u32],
    /// Left operand `[queries, keys]`.
    ds_left: &'a mut [u32],
    /// Tiles `[queries][nr]`: scores, then p; dp, then ds.
    s: &'a mut [f32],
    dp: &'a mut [f32],
    /// p or ds as a right operand.
    right: &'a mut [u32],
}

/// Keys of a block: whole panels.
fn block_keys(with: &Arithmetic, d: Dims) -> usize {
    if d.head_dim <= 128 { 256 } else { 128 }.max(with.kernel.nr)
}

/// Words of each part of [`Space`], in order.
fn words(with: &Arithmetic, d: Dims) -> [usize; 13] {
    let (kernel, nr, head_dim, keys) = (with.kernel, with.kernel.nr, d.head_dim, block_keys(with, d));
    let by_row = with.near_words(Major::K, with.rows, head_dim);
    let turned = kernel.a_words(head_dim, with.rows);
    [
        kernel.b_words(keys, head_dim),
        kernel.b_words(keys, head_dim),
        kernel.b_words(head_dim, keys),
        keys * head_dim,
        keys * head_dim,
        by_row,
        by_row,
        turned,
        turned,
        with.near_words(Major::K, with.rows, keys),
        with.rows * nr,
        with.rows * nr,
        kernel.b_words(nr, with.rows).max(nr * nr),
    ]
}

impl<'a> Space<'a> {
    /// The parts of a lane's scratch, and what remains.
    fn carve(with: &Arithmetic, d: Dims, mut scratch: &'a mut [u32]) -> (Space<'a>, &'a mut [u32]) {
        let [k, v, k_turned, dk, dv, q, do_, q_turned, do_turned, ds_left, s, dp, right] = words(with, d);
        let rest = &mut scratch;
        let space = Space {
            k: take(rest, k),
            v: take(rest, v),
            k_turned: take(rest, k_turned),
            dk: take_f32(rest, dk),
            dv: take_f32(rest, dv),
            q: take(rest, q),
            do_: take(rest, do_),
            q_turned: take(rest, q_turned),
            do_turned: take(rest, do_turned),
            ds_left: take(rest, ds_left),
            s: take_f32(rest, s),
            dp: take_f32(rest, dp),
            right: take(rest, right),
        };
        (space, scratch)
    }

    /// Words of a lane that are left for dq.
    fn room(with: &Arithmetic, d: Dims) -> usize {
        // Each part ends on a cache line.
        LANE_BYTES / 4 - words(with, d).iter().map(|words| words.next_multiple_of(16)).sum::<usize>()
    }
}

/// Whether a lane has room for the sums of a piece of [`Plan::Split`].
#[cfg(test)]
pub(super) fn split_fits(with: &Arithmetic, d: Dims) -> bool {
    SPLIT_BLOCKS * with.rows * d.head_dim <= Space::room(with, d)
}

impl Sweep<'_> {
    fn fused(&self, pool: &Pool, shared: Option<&mut [f32]>) {
        let d = self.d;
        let words = d.group() * d.seq * d.head_dim;
        let shared = shared.map(Parts::new);
        pool.run(d.batch * d.kv_heads, |piece, lane| {
            let (b, kv_head) = (piece / d.kv_heads, piece % d.kv_heads);
            let heads = kv_head * d.group()..(kv_head + 1) * d.group();
            let part = Part { b, kv_head, heads, keys: 0..d.seq, queries: 0..d.seq, dkv: true };
            let (mut space, rest) = Space::carve(&self.with, d, bytemuck::cast_slice_mut(lane.scratch));
            let dq = match &shared {
                // SAFETY: a lane runs one piece at a time, and lanes have windows of their own.
                Some(shared) => unsafe { shared.window(lane.index * words.next_multiple_of(16), words) },
                None => &mut bytemuck::cast_slice_mut(rest)[..words],
            };
            self.run(&part, Some(dq), &mut space);
        });
    }

    fn split(&self, pool: &Pool) {
        let d = self.d;
        let block = block_keys(&self.with, d);
        let (blocks, rows) = (d.seq.div_ceil(block), d.batch * d.kv_heads);
        pool.run(rows * blocks, |piece, lane| {
            // The first keys are seen by most queries: they start first.
            let (b, kv_head, from) = (piece % rows / d.kv_heads, piece % d.kv_heads, piece / rows * block);
            let heads = kv_head * d.group()..(kv_head + 1) * d.group();
            let keys = from..d.seq.min(from + block);
            let part = Part { b, kv_head, heads, keys, queries: 0..d.seq, dkv: true };
            let (mut space, _) = Space::carve(&self.with, d, bytemuck::cast_slice_mut(lane.scratch));
            self.run(&part, None, &mut space);
        });
        let block = SPLIT_BLOCKS * self.with.rows;
        let (blocks, rows) = (d.seq.div_ceil(block), d.batch * d.heads);
        pool.run(rows * blocks, |piece, lane| {
            // The last queries see most keys.
            let (b, h, from) = (piece % rows / d.heads, piece % d.heads, (blocks - 1 - piece / rows) * block);
            let queries = from..d.seq.min(from + block);
            let (heads, keys) = (h..h + 1, 0..queries.end);
            let words = queries.len() * d.head_dim;
            let part = Part { b, kv_head: h / d.group(), heads, keys, queries, dkv: false };
            let (mut space, rest) = Space::carve(&self.with, d, bytemuck::cast_slice_mut(lane.scratch));
            self.run(&part, Some(&mut bytemuck::cast_slice_mut(rest)[..words]), &mut space);
        });
    }

    /// Makes one part. `dq`, where wanted, is room for the sums `[heads][queries][D]`.
    fn run(&self, part: &Part, mut dq: Option<&mut [f32]>, space: &mut Space<'_>) {
        let (d, with, head_dim) = (self.d, &self.with, self.d.head_dim);
        if let Some(dq) = &mut dq {
            dq.fill(0.0);
        }
        let block = block_keys(with, d);
        for from in part.keys.clone().step_by(block) {
            let keys = from..part.keys.end.min(from + block);
            self.pack_keys(part, &keys, dq.is_some(), space);
            space.dk.fill(0.0);
            space.dv.fill(0.0);
            for h in part.heads.clone() {
                let before = (h - part.heads.start) * part.queries.len();
                let start = part.queries.start.max(from / with.rows * with.rows);
                for i in (start..part.queries.end).step_by(with.rows) {
                    let queries = i..part.queries.end.min(i + with.rows);
                    let at = (before + i - part.queries.start) * head_dim;
                    let dq = dq.as_deref_mut().map(|dq| &mut dq[at..][..queries.len() * head_dim]);
                    let ahead = self.ahead(part, h, &keys, &queries, start);
                    self.tile(part, h, &keys, queries, dq, ahead, space);
                }
            }
            if part.dkv {
                self.put_keys(part, &keys, space);
            }
        }
        if let Some(dq) = dq {
            for (n, rows) in dq.chunks_exact(part.queries.len() * head_dim).enumerate() {
                self.put_queries(part, part.heads.start + n, rows);
            }
        }
    }

    /// What is needed after a tile: the next one's queries; after a block of keys' last, the next block, and where the
    /// gradients of this one go.
    fn ahead(&self, part: &Part, h: usize, keys: &Range<usize>, queries: &Range<usize>, start: usize) -> Ahead {
        let (d, bytes) = (self.d, self.with.bytes());
        let (width, next) = (d.head_dim * bytes, if queries.end < part.queries.end { h } else { h + 1 });
        if next < part.heads.end {
            let from = if next == h { queries.end } else { start };
            let at = d.query(part.b, from, next);
            let rows = self.with.rows.min(part.queries.end - from);
            return Ahead::new(&[address(self.q, at), address(self.do_, at)], rows, d.heads * width, width);
        }
        let (at, then) = (d.key(part.b, keys.start, part.kv_head), d.key(part.b, keys.end, part.kv_head));
        let from = [address(self.k, then), address(self.v, then), self.dk.address(at), self.dv.address(at)];
        Ahead::new(&from[..if part.dkv { 4 } else { 2 }], keys.len(), d.kv_heads * width, width)
    }

    /// Writes dq of head h.
    fn put_queries(&self, part: &Part, h: usize, rows: &[f32]) {
        let (d, bytes) = (self.d, self.with.bytes());
        let (ld, by) = (d.heads * d.head_dim, [d.scale() as f32; OUT_ROWS]);
        let to = self.dq.address(d.query(part.b, part.queries.start, h));
        let mut ahead = Ahead::new(&[to], part.queries.len(), ld * bytes, d.head_dim * bytes);
        ahead.turns(part.queries.len().div_ceil(OUT_ROWS));
        ahead.ask();
        for (i, rows) in part.queries.clone().step_by(OUT_ROWS).zip(rows.chunks(OUT_ROWS * d.head_dim)) {
            ahead.ask();
            let by = &by[..rows.len() / d.head_dim];
            // SAFETY: these queries of this head are this part's alone.
            unsafe { self.with.lanes.write(rows, by, d.head_dim, &self.dq, d.query(part.b, i, h), ld) }
        }
    }

    /// Packs a block of keys and values.
    fn pack_keys(&self, part: &Part, keys: &Range<usize>, turned: bool, to: &mut Space<'_>) {
        let (d, kernel) = (self.d, self.with.kernel);
        let (at, ld) = (d.key(part.b, keys.start, part.kv_head), d.kv_heads * d.head_dim);
        let k = Operand { data: self.k.from(at), ld, major: Major::K };
        let v = Operand { data: self.v.from(at), ld, major: Major::K };
        kernel.pack_b(k, keys.len(), d.head_dim, to.k);
        kernel.pack_b(v, keys.len(), d.head_dim, to.v);
        if turned {
            kernel.pack_b(Operand { major: Major::Outer, ..k }, d.head_dim, keys.len(), to.k_turned);
        }
    }

    /// Writes dk and dv of a block of keys.
    fn put_keys(&self, part: &Part, keys: &Range<usize>, space: &mut Space<'_>) {
        let (d, nr) = (self.d, self.with.kernel.nr);
        for (p, from) in keys.clone().step_by(nr).enumerate() {
            let lanes = nr.min(keys.end - from);
            let (at, ld) = (d.key(part.b, from, part.kv_head), d.kv_heads * d.head_dim);
            for (sums, to, by) in [(&space.dk, &self.dk, d.scale() as f32), (&space.dv, &self.dv, 1.0)] {
                let sums = &sums[p * d.head_dim * nr..][..d.head_dim * nr];
                // SAFETY: these keys of this head are this part's alone.
                unsafe { self.with.turn_out(sums, &[by; LANES][..lanes], to, at, ld, space.right) }
            }
        }
    }

    /// One block of queries of head h against one block of keys.
    fn tile(
        &self,
        part: &Part,
        h: usize,
        keys: &Range<usize>,
        queries: Range<usize>,
        dq: Option<&mut [f32]>,
        mut ahead: Ahead,
        space: &mut Space<'_>,
    ) {
        let (d, with, kernel) = (self.d, &self.with, self.with.kernel);
        let (nr, mr, head_dim, rows) = (kernel.nr, kernel.mr, d.head_dim, queries.len());
        let first = self.first.map_or(&[][..], |f| &f[part.b * d.seq..][queries.clone()]);
        let least = first.iter().copied().min().unwrap_or(0) as usize;
        if least >= keys.end {
            return;
        }
        let Space { k, v, k_turned, dk, dv, q, do_, q_turned, do_turned, ds_left, s, dp, right } = space;
        let (q, q_turned) = self.near_queries(part, h, self.q, &queries, q, q_turned);
        let (do_, do_turned) = self.near_queries(part, h, self.do_, &queries, do_, do_turned);
        let at = (part.b * d.heads + h) * d.seq;
        let (lse, delta) = (&self.lse[at..][queries.clone()], &self.delta[at..][queries.clone()]);
        let lies = with.reads_rows();
        let (unit, ds_ld) = (if lies { 1 } else { mr }, Arithmetic::distance(block_keys(with, d)));
        // Panels of keys that some query sees.
        let panels = least.saturating_sub(keys.start) / nr..(keys.end.min(queries.end) - keys.start).div_ceil(nr);
        ahead.turns(panels.len() * (2 * with.asks(rows) + 2 * with.asks(head_dim)));
        for p in panels.clone() {
            let key = keys.start + p * nr;
            // Rows before the first that sees key `key` are left out.
            let top = key.saturating_sub(queries.start) / unit * unit;
            let seen = Rows {
                query: queries.start + top,
                key,
                first: first.get(top..).unwrap_or(&[]),
                lse: &lse[top..],
                delta: &delta[top..],
            };
            let (s, dp) = (&mut s[..(rows - top) * nr], &mut dp[..(rows - top) * nr]);
            let (size, at) = ([rows - top, nr, head_dim], p * nr * kernel.steps(head_dim));
            with.product(size, (with.part(q, head_dim, top, 0), head_dim), &k[at..], (s, nr), Put::Set, &mut ahead);
            with.product(size, (with.part(do_, head_dim, top, 0), head_dim), &v[at..], (dp, nr), Put::Set, &mut ahead);
            let wanted = dq.is_some() && lies;
            let also = wanted.then(|| (&mut bytemuck::cast_slice_mut(ds_left)[top * ds_ld + p * nr..], ds_ld));
            with.lanes.gradients(s, dp, also, d.scale() as f32, &seen);
            if part.dkv {
                for (tile, left, sums) in [(&*s, do_turned, &mut *dv), (&*dp, q_turned, &mut *dk)] {
                    let right = with.right(tile, rows - top, right);
                    let sums = &mut sums[p * head_dim * nr..][..head_dim * nr];
                    let left = (with.part(left, rows, 0, top), rows);
                    with.product([head_dim, nr, rows - top], left, right, (sums, nr), Put::Add, &mut ahead);
                }
            }
            if wanted {
                // Rows that share a panel with the first, and do not see these keys.
                for r in top / mr * mr..top {
                    ds_left[r * ds_ld + p * nr..][..nr].fill(0);
                }
            } else if dq.is_some() {
                let steps = kernel.steps(block_keys(with, d));
                for r in (0..rows - top).step_by(mr) {
                    let ds = Operand { data: In::F32(&dp[r * nr..]), ld: nr, major: Major::K };
                    let to = &mut ds_left[(top + r) * steps + p * kernel.steps(nr) * mr..];
                    kernel.pack_a(ds, mr.min(rows - top - r), nr, to);
                }
            }
        }
        if let Some(dq) = dq {
            let ds = match lies {
                true => {
                    Left::Lying(Operand { data: In::F32(bytemuck::cast_slice(ds_left)), ld: ds_ld, major: Major::K })
                }
                false => Left::Panels(ds_left),
            };
            self.add_to_dq(keys, &queries, panels, dq, ds, k_turned, &mut ahead);
        }
    }

    /// A block of queries, or of the gradients of their outputs, as the left operands `[queries, D]` and `[D, queries]`.
    fn near_queries<'a>(
        &self,
        part: &Part,
        h: usize,
        x: In<'a>,
        queries: &Range<usize>,
        by_row: &'a mut [u32],
        turned: &'a mut [u32],
    ) -> (Left<'a>, Left<'a>) {
        let (d, with, rows) = (self.d, &self.with, queries.len());
        let (at, ld) = (d.query(part.b, queries.start, h), d.heads * d.head_dim);
        let (x, by_row) = with.near(Operand { data: x.from(at), ld, major: Major::K }, rows, d.head_dim, by_row);
        let x = Operand { major: Major::Outer, ..x };
        match with.kernel.lies_ready(x, rows) || !part.dkv {
            true => (by_row, Left::Lying(x)),
            false => (by_row, with.packed(x, d.head_dim, rows, turned)),
        }
    }

    /// dq += ds·k over the keys of `panels`, for each panel of rows up to the last key it sees.
    fn add_to_dq(
        &self,
        keys: &Range<usize>,
        queries: &Range<usize>,
        panels: Range<usize>,
        dq: &mut [f32],
        ds: Left<'_>,
        k_turned: &[u32],
        ahead: &mut Ahead,
    ) {
        let (d, with, kernel) = (self.d, &self.with, self.with.kernel);
        let (nr, mr, rows) = (kernel.nr, kernel.mr, queries.len());
        let (block, skip) = (block_keys(with, d), panels.start * nr);
        let unit = if matches!(ds, Left::Lying(_)) { 1 } else { nr };
        for r in (0..rows).step_by(mr) {
            let height = mr.min(rows - r);
            let last = queries.start + r + height;
            let end = last.saturating_sub(keys.start).next_multiple_of(unit).min(keys.len());
            if end <= skip {
                continue;
            }
            let ds = (with.part(ds, block, r, skip), block);
            for c in (0..d.head_dim).step_by(nr) {
                let right = &k_turned[c * kernel.steps(keys.len()) + kernel.steps(skip) * nr..];
                let (to, width) = (&mut dq[r * d.head_dim + c..], nr.min(d.head_dim - c));
                with.product([height, width, end - skip], ds, right, (to, d.head_dim), Put::Add, ahead);
            }
        }
    }
}
