//! On the host: forward cuts the rows into pieces; backward cuts each grain into blocks of rows, whose shares of dw are
//! written side by side and then added in order.

use super::{AddForward, Backward, Dims, Forward};
use crate::{
    ops::{
        cast::element::{Element, holds, per_level},
        matmul::Put,
    },
    pool::{Parts, Pool, SHARED_BYTES},
    simd::Level,
};
use half::bf16;

/// Lanes of a sum over a row.
const LANES: usize = 32;
/// Elements of a piece of forward, and of a block of backward, about.
const PIECE: usize = 1 << 15;
/// Rows of a block of backward at least: its share of dw is then a thirty-second of what it reads.
const BLOCK_ROWS_MIN: usize = 32;

pub(super) fn forward(pool: &Pool, level: Level, d: Dims, a: Forward<'_>) {
    match (holds::<bf16>(a.x), holds::<bf16>(a.y)) {
        (false, false) => forward_as::<f32, f32>(pool, level, d, a),
        (false, true) => forward_as::<f32, bf16>(pool, level, d, a),
        (true, true) => forward_as::<bf16, bf16>(pool, level, d, a),
        (true, false) => panic!("rmsnorm: x is bf16 and y f32"),
    }
}

fn forward_as<X: Element, Y: Element>(pool: &Pool, level: Level, d: Dims, a: Forward<'_>) {
    let x = &X::of(a.x)[..d.rows * d.cols];
    let y = Parts::new(&mut Y::of_mut(a.y)[..d.rows * d.cols]);
    let w = &a.w.f32()[..d.cols];
    let rows = (PIECE / d.cols).max(1);
    pool.chunks(&mut a.r.f32_mut()[..d.rows], rows, |piece, r, _| {
        let (at, len) = (piece * rows * d.cols, r.len() * d.cols);
        // SAFETY: pieces own disjoint rows.
        let y = unsafe { y.window(at, len) };
        forward_rows(level, &x[at..at + len], w, y, r, a.eps);
    });
}

pub(super) fn add_forward(pool: &Pool, level: Level, d: Dims, a: AddForward<'_>) {
    match (holds::<bf16>(a.delta), holds::<bf16>(a.y)) {
        (false, false) => add_forward_as::<f32>(pool, level, d, a),
        (true, true) => add_forward_as::<bf16>(pool, level, d, a),
        _ => panic!("rmsnorm: delta is {} and y {}", a.delta.dtype(), a.y.dtype()),
    }
}

fn add_forward_as<Y: Element>(pool: &Pool, level: Level, d: Dims, a: AddForward<'_>) {
    let x = &a.x.f32()[..d.rows * d.cols];
    let delta = &Y::of(a.delta)[..d.rows * d.cols];
    let sum = Parts::new(&mut a.sum.f32_mut()[..d.rows * d.cols]);
    let y = Parts::new(&mut Y::of_mut(a.y)[..d.rows * d.cols]);
    let w = &a.w.f32()[..d.cols];
    let rows = (PIECE / d.cols).max(1);
    pool.chunks(&mut a.r.f32_mut()[..d.rows], rows, |piece, r, _| {
        let (at, len) = (piece * rows * d.cols, r.len() * d.cols);
        // SAFETY: pieces own disjoint rows.
        let (sum, y) = unsafe { (sum.window(at, len), y.window(at, len)) };
        add_rows(level, &x[at..at + len], &delta[at..at + len], sum);
        forward_rows(level, sum, w, y, r, a.eps);
    });
}

pub(super) fn backward(pool: &Pool, level: Level, d: Dims, a: Backward<'_>, grain: usize) {
    match (holds::<bf16>(a.x), holds::<bf16>(a.dy), holds::<bf16>(a.dx)) {
        (false, false, false) => backward_as::<f32, f32>(pool, level, d, a, grain),
        (false, true, false) => backward_as::<f32, bf16>(pool, level, d, a, grain),
        (true, true, true) => backward_as::<bf16, bf16>(pool, level, d, a, grain),
        _ => panic!("rmsnorm: x is {}, dy {} and dx {}", a.x.dtype(), a.dy.dtype(), a.dx.dtype()),
    }
}

fn backward_as<X: Element, Y: Element>(pool: &Pool, level: Level, d: Dims, a: Backward<'_>, grain: usize) {
    let x = &X::of(a.x)[..d.rows * d.cols];
    let dy = &Y::of(a.dy)[..d.rows * d.cols];
    let dx = Parts::new(&mut X::of_mut(a.dx)[..d.rows * d.cols]);
    let (w, r) = (&a.w.f32()[..d.cols], &a.r.f32()[..d.rows]);
    let dw = &mut a.dw.f32_mut()[..d.cols];

    let rows = (PIECE / d.cols).max(BLOCK_ROWS_MIN);
    let blocks_a_grain = grain.div_ceil(rows);
    let blocks = d.rows / grain * blocks_a_grain;
    // As many blocks at a time as the shared scratch has room for; where that cuts does not show in the sums.
    let at_a_time = SHARED_BYTES / size_of::<f32>() / d.cols;
    assert!(at_a_time > 0, "rmsnorm: {} columns", d.cols);
    pool.with_shared(|scratch| {
        let shares: &mut [f32] = bytemuck::cast_slice_mut(scratch);
        for first in (0..blocks).step_by(at_a_time) {
            let shares = &mut shares[..at_a_time.min(blocks - first) * d.cols];
            pool.chunks(shares, d.cols, |i, share, _| {
                let (g, b) = ((first + i) / blocks_a_grain, (first + i) % blocks_a_grain);
                let (from, to) = (g * grain + b * rows, g * grain + ((b + 1) * rows).min(grain));
                let (at, len) = (from * d.cols, (to - from) * d.cols);
                // SAFETY: blocks own disjoint rows.
                let dx = unsafe { dx.window(at, len) };
                backward_rows(level, &x[at..at + len], w, &r[from..to], &dy[at..at + len], dx, share, a.put);
            });
            for share in shares.chunks_exact(d.cols) {
                add_share(level, share, dw);
            }
        }
    });
}

per_level! {
    fn add_rows[Y: Element](x: &[f32], delta: &[Y], sum: &mut [f32]) {
        for ((sum, x), delta) in sum.iter_mut().zip(x).zip(delta) {
            *sum = x + delta.wide();
        }
    }

    fn forward_rows[X: Element, Y: Element](x: &[X], w: &[f32], y: &mut [Y], r: &mut [f32], eps: f32) {
        let cols = w.len();
        for ((x, y), r) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(r) {
            *r = 1.0 / (sum_squares(x) / cols as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = Y::narrow(x.wide() * *r * w);
            }
        }
    }

    /// dx of some rows, and their share of dw.
    fn backward_rows[X: Element, Y: Element](
        x: &[X], w: &[f32], r: &[f32], dy: &[Y], dx: &mut [X], share: &mut [f32], put: Put,
    ) {
        let cols = w.len();
        share.fill(0.0);
        let rows = x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(dx.chunks_exact_mut(cols)).zip(r);
        for (((x, dy), dx), r) in rows {
            match put {
                Put::Add => backward_row::<_, _, true>(x, w, *r, dy, dx, share),
                Put::Set => backward_row::<_, _, false>(x, w, *r, dy, dx, share),
            }
        }
    }

    fn add_share[](share: &[f32], dw: &mut [f32]) {
        for (dw, share) in dw.iter_mut().zip(share) {
            *dw += share;
        }
    }
}

#[inline(always)]
fn backward_row<X: Element, Y: Element, const ADD: bool>(
    x: &[X],
    w: &[f32],
    r: f32,
    dy: &[Y],
    dx: &mut [X],
    share: &mut [f32],
) {
    let shrink = r * r * (sum_products(x, w, dy) / w.len() as f32);
    for ((((dx, x), w), dy), share) in dx.iter_mut().zip(x).zip(w).zip(dy).zip(share) {
        let (x, dy) = (x.wide(), dy.wide());
        *share += dy * x * r;
        let own = r * (dy * w - x * shrink);
        *dx = X::narrow(if ADD { dx.wide() + own } else { own });
    }
}

/// Σ_j x_j²
#[inline(always)]
fn sum_squares<X: Element>(x: &[X]) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut add = |x: &[X; LANES]| {
        for l in 0..LANES {
            lanes[l] += x[l].wide() * x[l].wide();
        }
    };
    let (blocks, rest) = x.as_chunks();
    blocks.iter().for_each(&mut add);
    if !rest.is_empty() {
        add(&padded(rest));
    }
    join(lanes)
}

/// Σ_j dy_j · w_j · x_j
#[inline(always)]
fn sum_products<X: Element, Y: Element>(x: &[X], w: &[f32], dy: &[Y]) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut add = |x: &[X; LANES], w: &[f32; LANES], dy: &[Y; LANES]| {
        for l in 0..LANES {
            lanes[l] += dy[l].wide() * w[l] * x[l].wide();
        }
    };
    let ((x, x_rest), (w, w_rest), (dy, dy_rest)) = (x.as_chunks(), w.as_chunks(), dy.as_chunks());
    for ((x, w), dy) in x.iter().zip(w).zip(dy) {
        add(x, w, dy);
    }
    if !x_rest.is_empty() {
        add(&padded(x_rest), &padded(w_rest), &padded(dy_rest));
    }
    join(lanes)
}

/// The last elements of a row and zeros, which add nothing.
#[inline(always)]
fn padded<D: Element>(rest: &[D]) -> [D; LANES] {
    let mut block = [D::narrow(0.0); LANES];
    block[..rest.len()].copy_from_slice(rest);
    block
}

/// The lanes' sum, by halves.
#[inline(always)]
fn join(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}
