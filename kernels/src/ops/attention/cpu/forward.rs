//! Forward: a piece is one head and [`PIECE`] queries; tiles of keys pass by in order.

use super::{
    Arithmetic, Sink,
    ahead::{Ahead, address},
    input, lanes, take, take_f32,
};
use crate::{
    ops::attention::{Dims, Forward, Tree},
    ops::matmul::{
        Put,
        tile::{In, Major, Operand},
    },
    pool::{Parts, Pool},
    simd::{self, Level},
    tensor::Tensor,
};
use lanes::{NONE, Running, Seen};
use std::f32::consts::LN_2;

/// Queries of a piece: how often a packed tile of keys is used.
const PIECE: usize = 256;

/// What is read, and where: rows of `k` and `v` are keys 0, 1, .. of a row b; rows of `q` are queries from `start` on.
pub(super) struct Source<'a> {
    pub q: In<'a>,
    pub k: In<'a>,
    pub v: In<'a>,
    pub first: Option<&'a [u32]>,
    /// Begin and end of each query's trunk.
    pub trunk: Option<&'a [u32]>,
    /// Position of query 0: the keys before it come from a cache.
    pub start: usize,
}

/// See [`crate::ops::attention::forward`].
pub(in crate::ops::attention) fn forward(pool: &Pool, d: Dims, a: Forward<'_>) {
    let x =
        Source { q: input(a.q), k: input(a.k), v: input(a.v), first: a.first.map(Tensor::u32), trunk: None, start: 0 };
    forward_at(pool, simd::level(), d, &x, a.o, Some(a.lse));
}

/// See [`crate::ops::attention::tree`].
pub(in crate::ops::attention) fn tree(pool: &Pool, d: Dims, a: Tree<'_>) {
    let (first, trunk) = (Some(a.first.u32()), Some(a.trunk.u32()));
    let x = Source { q: input(a.q), k: input(a.k), v: input(a.v), first, trunk, start: 0 };
    forward_at(pool, simd::level(), d, &x, a.o, None);
}

/// Forward at `level`.
pub(super) fn forward_at(pool: &Pool, level: Level, d: Dims, x: &Source<'_>, o: &mut Tensor, lse: Option<&mut Tensor>) {
    let arithmetic = Arithmetic::new(level, o.dtype());
    let o = Sink::new(o);
    let lse = lse.map(|lse| Parts::new(lse.f32_mut()));
    let (heads, blocks) = (d.batch * d.heads, d.seq.div_ceil(PIECE));
    pool.run(heads * blocks, |piece, lane| {
        // The last queries see most keys: they start first.
        let (block, head) = (blocks - 1 - piece / heads, piece % heads);
        let piece = Piece { d, b: head / d.heads, h: head % d.heads, from: block * PIECE };
        piece.run(&arithmetic, x, &o, lse.as_ref(), bytemuck::cast_slice_mut(lane.scratch));
    });
}

/// Head h of row b, `PIECE` queries from `from` on.
struct Piece {
    d: Dims,
    b: usize,
    h: usize,
    from: usize,
}

impl Piece {
    fn run(
        &self,
        with: &Arithmetic,
        x: &Source<'_>,
        o: &Sink<'_>,
        lse: Option<&Parts<'_, f32>>,
        mut scratch: &mut [u32],
    ) {
        let Piece { d, b, h, from } = *self;
        let (kernel, head_dim, nr) = (with.kernel, d.head_dim, with.kernel.nr);
        let queries = PIECE.min(d.seq - from);
        let panels = queries.div_ceil(nr);
        let rest = &mut scratch;
        let q = take(rest, kernel.b_words(queries, head_dim));
        let k = take(rest, with.near_words(Major::K, with.rows, head_dim));
        let v = take(rest, with.near_words(Major::Outer, head_dim, with.rows));
        let sums = take_f32(rest, panels * head_dim * nr);
        let s = take_f32(rest, with.rows * nr);
        let space = take(rest, kernel.b_words(nr, with.rows).max(nr * nr));
        let (max, sum) = (take_f32(rest, panels * nr), take_f32(rest, panels * nr));
        let (fade, first) = (take_f32(rest, nr), take_f32(rest, panels * nr));
        let (begins, ends) = (take_f32(rest, panels * nr), take_f32(rest, panels * nr));

        let source = Operand { data: x.q.from(d.query(b, from, h)), ld: d.heads * head_dim, major: Major::K };
        kernel.pack_b(source, queries, head_dim, q);
        sums.fill(0.0);
        max.fill(NONE);
        sum.fill(0.0);
        first.fill(0.0);
        if let Some(f) = x.first {
            first.iter_mut().zip(&f[b * d.seq + from..][..queries]).for_each(|(to, &f)| *to = f as f32);
        }
        if let Some(t) = x.trunk {
            begins.fill(0.0);
            ends.fill(0.0);
            let trunks = t[2 * (b * d.seq + from)..].chunks_exact(2).take(queries);
            begins.iter_mut().zip(ends.iter_mut()).zip(trunks).for_each(|((begin, end), t)| {
                (*begin, *end) = (t[0] as f32, t[1] as f32);
            });
        }
        let bytes = with.bytes();
        let least = |first: &[f32]| match x.first {
            None => 0,
            Some(_) => first.iter().copied().fold(f32::INFINITY, f32::min) as usize,
        };
        // Whether any of these lanes may see a key of `key..end`; `query` is their last.
        let meet = |lanes: std::ops::Range<usize>, query: usize, key: usize, end: usize| {
            let own = key <= query && least(&first[lanes.clone()]) < end;
            let of_trunk = |j: usize| begins[j] < ends[j] && begins[j] < end as f32 && ends[j] > key as f32;
            own || x.trunk.is_some() && lanes.into_iter().any(of_trunk)
        };

        // Positions in the row: queries from `begin`, keys to `end`.
        let (begin, end) = (x.start + from, x.start + from + queries);
        let kv_head = h / d.group();
        let mut key = match x.trunk {
            None => least(&first[..queries]) / with.rows * with.rows,
            Some(_) => least(&first[..queries]).min(least(&begins[..queries])) / with.rows * with.rows,
        };
        while key < end {
            let keys = with.rows.min(end - key);
            if x.trunk.is_some() && !meet(0..queries, end - 1, key, key + keys) {
                key += with.rows;
                continue;
            }
            let at = (key * d.kv_heads + kv_head + b * d.seq * d.kv_heads) * head_dim;
            let ld = d.kv_heads * head_dim;
            let (_, k) = with.near(Operand { data: x.k.from(at), ld, major: Major::K }, keys, head_dim, k);
            let (_, v) = with.near(Operand { data: x.v.from(at), ld, major: Major::Outer }, head_dim, keys, v);
            // Meanwhile the next tile's rows are asked for, or those of the result.
            let next = at + keys * ld;
            let mut ahead = match key + keys < end {
                true => Ahead::new(&[address(x.k, next), address(x.v, next)], keys, ld * bytes, head_dim * bytes),
                false => {
                    let to = o.address(d.query(b, from, h));
                    Ahead::new(&[to], queries, d.heads * head_dim * bytes, head_dim * bytes)
                }
            };
            ahead.turns(panels * (with.asks(keys) + with.asks(head_dim)));
            for p in 0..panels {
                let lanes = nr.min(queries - p * nr);
                let query = begin + p * nr;
                if !meet(p * nr..p * nr + lanes, query + lanes - 1, key, key + keys) {
                    continue;
                }
                let first = &first[p * nr..][..nr];
                let rows = keys.min(query + lanes - key);
                let s = &mut s[..rows * nr];
                let q = &q[p * nr * kernel.steps(head_dim)..];
                with.product([rows, nr, head_dim], (k, head_dim), q, (s, nr), Put::Set, &mut ahead);
                if key + rows > query + 1 || first.iter().any(|&f| f > key as f32) {
                    let trunk = x.trunk.map(|_| [&begins[p * nr..][..nr], &ends[p * nr..][..nr]]);
                    with.lanes.mask(s, &Seen { key, query, first, trunk });
                }
                let of_panel = p * nr..(p + 1) * nr;
                let (max, sum) = (&mut max[of_panel.clone()], &mut sum[of_panel]);
                with.lanes.softmax(s, d.scale() as f32, Running { max, sum, fade });
                let sums = &mut sums[p * head_dim * nr..][..head_dim * nr];
                if fade.iter().any(|&f| f != 1.0) {
                    with.lanes.rescale(sums, fade);
                }
                let pr = with.right(s, rows, space);
                with.product([head_dim, nr, rows], (v, keys), pr, (sums, nr), Put::Add, &mut ahead);
            }
            key += with.rows;
        }

        for p in 0..panels {
            let (lanes, query) = (nr.min(queries - p * nr), from + p * nr);
            let (max, sum) = (&max[p * nr..], &mut sum[p * nr..][..lanes]);
            let sums = &sums[p * head_dim * nr..][..head_dim * nr];
            // SAFETY: the rows of these queries and this head are this piece's alone.
            unsafe {
                if let Some(lse) = lse {
                    let to = lse.window((b * d.heads + h) * d.seq + query, lanes);
                    to.iter_mut().enumerate().for_each(|(j, to)| *to = max[j] * LN_2 + sum[j].ln());
                }
                sum.iter_mut().for_each(|sum| *sum = 1.0 / *sum);
                with.turn_out(sums, sum, o, d.query(b, query, h), d.heads * head_dim, space);
            }
        }
    }
}
