//! On the host: pieces of a fixed number of elements.

use super::element::{Element, holds, per_level};
use crate::{pool::Pool, simd::Level, tensor::Tensor};
use half::bf16;

/// Elements of a piece.
const PIECE: usize = 1 << 15;

pub(super) fn convert(pool: &Pool, level: Level, len: usize, from: &Tensor, to: &mut Tensor) {
    match (holds::<bf16>(from), holds::<bf16>(to)) {
        (false, true) => pieces::<f32, bf16>(pool, level, len, from, to),
        (true, false) => pieces::<bf16, f32>(pool, level, len, from, to),
        (false, false) => pieces::<f32, f32>(pool, level, len, from, to),
        (true, true) => pieces::<bf16, bf16>(pool, level, len, from, to),
    }
}

fn pieces<A: Element, B: Element>(pool: &Pool, level: Level, len: usize, from: &Tensor, to: &mut Tensor) {
    let from = &A::of(from)[..len];
    pool.chunks(&mut B::of_mut(to)[..len], PIECE, |i, to, _| convert_piece(level, &from[i * PIECE..][..to.len()], to));
}

pub(super) fn add(pool: &Pool, level: Level, len: usize, from: &Tensor, to: &mut Tensor) {
    let from = &from.f32()[..len];
    pool.chunks(&mut to.f32_mut()[..len], PIECE, |i, to, _| add_piece(level, &from[i * PIECE..][..to.len()], to));
}

per_level! {
    fn convert_piece[A: Element, B: Element](from: &[A], to: &mut [B]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = B::narrow(from.wide());
        }
    }

    fn add_piece[](from: &[f32], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }
}
