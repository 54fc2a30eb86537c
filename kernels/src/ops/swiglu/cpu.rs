//! On the host: pieces of a fixed number of elements.

use super::{Backward, Dims, Forward};
use crate::{
    ops::cast::element::{Element, holds, per_level},
    pool::{Parts, Pool},
    simd::Level,
};
use half::bf16;

/// Elements of a piece.
const PIECE: usize = 1 << 14;

pub(super) fn forward(pool: &Pool, level: Level, d: Dims, a: Forward<'_>) {
    if holds::<bf16>(a.g) { forward_as::<bf16>(pool, level, d, a) } else { forward_as::<f32>(pool, level, d, a) }
}

fn forward_as<X: Element>(pool: &Pool, level: Level, d: Dims, a: Forward<'_>) {
    let (g, u) = (X::of(a.g), X::of(a.u));
    pool.chunks(&mut X::of_mut(a.h)[..d.rows * d.cols], PIECE, |i, h, _| {
        let (at, len) = (i * PIECE, h.len());
        forward_piece(level, &g[at..at + len], &u[at..at + len], h);
    });
}

pub(super) fn backward(pool: &Pool, level: Level, d: Dims, a: Backward<'_>) {
    if holds::<bf16>(a.g) { backward_as::<bf16>(pool, level, d, a) } else { backward_as::<f32>(pool, level, d, a) }
}

fn backward_as<X: Element>(pool: &Pool, level: Level, d: Dims, a: Backward<'_>) {
    let (g, u, dh) = (X::of(a.g), X::of(a.u), X::of(a.dh));
    let dg = Parts::new(X::of_mut(a.dg));
    pool.chunks(&mut X::of_mut(a.du)[..d.rows * d.cols], PIECE, |i, du, _| {
        let (at, len) = (i * PIECE, du.len());
        // SAFETY: pieces own disjoint elements.
        let dg = unsafe { dg.window(at, len) };
        backward_piece(level, &g[at..at + len], &u[at..at + len], &dh[at..at + len], dg, du);
    });
}

per_level! {
    fn forward_piece[X: Element](g: &[X], u: &[X], h: &mut [X]) {
        for ((h, g), u) in h.iter_mut().zip(g).zip(u) {
            let g = g.wide();
            *h = X::narrow(g * sigmoid(g) * u.wide());
        }
    }

    fn backward_piece[X: Element](g: &[X], u: &[X], dh: &[X], dg: &mut [X], du: &mut [X]) {
        for ((((g, u), dh), dg), du) in g.iter().zip(u).zip(dh).zip(dg).zip(du) {
            let (g, u, dh) = (g.wide(), u.wide(), dh.wide());
            let s = sigmoid(g);
            *du = X::narrow(dh * (g * s));
            *dg = X::narrow(dh * u * (s * (1.0 + g * (1.0 - s))));
        }
    }
}

#[inline(always)]
fn sigmoid(g: f32) -> f32 {
    1.0 / (1.0 + exp(-g))
}

/// exp of `x` held to ±87, where neither it nor one over it leaves the normal numbers.
///
/// exp(x) = 2^n · 2^f, n whole and |f| <= 1/2. Of a NaN it makes some number: g times it is NaN all the same.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let t = x * std::f32::consts::LOG2_E;
    let shifted = t + ROUND;
    let f = t - (shifted - ROUND);
    // Value and slope at 0 are exact; the rest makes the largest relative error least: 1.1e-7.
    let p = 0.001_330_060_5;
    let p = p * f + 0.009_669_691;
    let p = p * f + 0.055_505_585;
    let p = p * f + 0.240_222_83;
    let p = p * f + std::f32::consts::LN_2;
    let p = p * f + 1.0;
    // p lies in [0.7, 1.5], so n goes straight into its exponent.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}
