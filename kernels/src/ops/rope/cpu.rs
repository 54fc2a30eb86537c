//! On the host: pieces of whole tokens; a token's row of the table serves all of its heads.

use super::{Dims, Rope, Rotate, Table};
use crate::{
    ops::cast::element::{Element, holds, per_level},
    pool::{Parts, Pool},
    simd::Level,
};
use half::bf16;

/// Elements of a piece, about.
const PIECE: usize = 1 << 15;

pub(super) fn table(pool: &Pool, rope: &Rope, positions: usize, head_dim: usize, t: Table<'_>) {
    let half = head_dim / 2;
    let sin = Parts::new(&mut t.sin.f32_mut()[..positions * half]);
    pool.chunks(&mut t.cos.f32_mut()[..positions * half], half.max(1), |position, cos, _| {
        // SAFETY: pieces own disjoint positions.
        let sin = unsafe { sin.window(position * half, half) };
        for ((c, s), f) in cos.iter_mut().zip(sin).zip(rope.frequencies(head_dim)) {
            let angle = position as f64 * f;
            (*c, *s) = (angle.cos() as f32, angle.sin() as f32);
        }
    });
}

/// Turns by the angles of the table times `sign`, 1 or −1.
pub(super) fn rotate(pool: &Pool, level: Level, d: Dims, a: Rotate<'_>, sign: f32) {
    if holds::<bf16>(a.x) {
        rotate_as::<bf16>(pool, level, d, a, sign);
    } else {
        rotate_as::<f32>(pool, level, d, a, sign);
    }
}

fn rotate_as<X: Element>(pool: &Pool, level: Level, d: Dims, a: Rotate<'_>, sign: f32) {
    let (half, token) = (d.head_dim / 2, d.heads * d.head_dim);
    let (cos, sin) = (a.cos.f32(), a.sin.f32());
    let rows = (PIECE / token).max(1);
    pool.chunks(&mut X::of_mut(a.x)[..d.rows * token], rows * token, |piece, x, _| {
        for (i, x) in x.chunks_exact_mut(token).enumerate() {
            let t = (a.start + (piece * rows + i) % d.seq) * half;
            rotate_token(level, x, &cos[t..t + half], &sin[t..t + half], sign);
        }
    });
}

per_level! {
    fn rotate_token[X: Element](x: &mut [X], cos: &[f32], sin: &[f32], sign: f32) {
        for head in x.chunks_exact_mut(2 * cos.len()) {
            let (left, right) = head.split_at_mut(cos.len());
            for (((l, r), c), s) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let (a, b, s) = (l.wide(), r.wide(), sign * s);
                *l = X::narrow(a * c - b * s);
                *r = X::narrow(b * c + a * s);
            }
        }
    }
}
