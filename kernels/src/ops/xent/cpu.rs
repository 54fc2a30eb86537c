//! On the host: each chunk's logits by the matmul engine, a softmax in place by rows, two more products.
//!
//! The gradient of the logits stays f32 in the logits' memory; where `n` and `w` are bf16, the engine rounds it while
//! packing, once for each of its two products and to the same values.

use super::{Dims, Rank, Score, Train, softmax};
use crate::{
    ops::matmul::{
        self, Put,
        cpu::{nn, nt, tn},
        tile::{In, Out},
    },
    pool::{Parts, Pool},
    tensor::{DType, Tensor},
};
use std::ops::Range;

/// Elements of a piece of the softmax, at least.
const PIECE: usize = 1 << 14;

pub(super) fn train(pool: &Pool, d: Dims, a: Train<'_>, grain: usize) {
    let targets = &a.targets.u32()[..d.rows];
    let w = input(a.w, 0..d.vocab * d.cols);
    let dw = &mut a.dw.f32_mut()[..d.vocab * d.cols];
    for at in (0..d.rows).step_by(grain) {
        for from in (at..at + grain).step_by(d.chunk) {
            let rows = from..(from + d.chunk).min(at + grain);
            let m = rows.len();
            let part = rows.start * d.cols..rows.end * d.cols;
            let n = input(a.n, part.clone());
            let z = &mut a.logits.f32_mut()[..m * d.vocab];
            nt(pool, matmul::Dims { m, n: d.vocab, k: d.cols }, n, w, Out::F32(z), Put::Set);
            let nll = &mut a.nll.f32_mut()[rows.clone()];
            by_rows(pool, d.vocab, z, nll, |i, z| softmax::gradient(z, targets[rows.start + i], a.scale));
            nn(pool, matmul::Dims { m, n: d.cols, k: d.vocab }, In::F32(z), w, output(a.dn, part), Put::Set);
            tn(pool, matmul::Dims { m: d.vocab, n: d.cols, k: m }, In::F32(z), n, Out::F32(dw), Put::Add, m);
        }
    }
}

pub(super) fn score(pool: &Pool, d: Dims, a: Score<'_>) {
    let targets = &a.targets.u32()[..d.rows];
    let w = input(a.w, 0..d.vocab * d.cols);
    for from in (0..d.rows).step_by(d.chunk) {
        let rows = from..(from + d.chunk).min(d.rows);
        let n = input(a.n, rows.start * d.cols..rows.end * d.cols);
        let z = &mut a.logits.f32_mut()[..rows.len() * d.vocab];
        nt(pool, matmul::Dims { m: rows.len(), n: d.vocab, k: d.cols }, n, w, Out::F32(z), Put::Set);
        let nll = &mut a.nll.f32_mut()[rows.clone()];
        by_rows(pool, d.vocab, z, nll, |i, z| softmax::loss(z, targets[rows.start + i]));
    }
}

/// What is left of [`super::rank`] once the logits are there.
pub(super) fn rank(pool: &Pool, d: Dims, a: Rank<'_>) {
    let best = Parts::new(&mut a.best.u32_mut()[..d.rows]);
    let z = &mut a.logits.f32_mut()[..d.rows * d.vocab];
    by_rows(pool, d.vocab, z, &mut a.lse.f32_mut()[..d.rows], |i, z| {
        let (lse, top) = softmax::rank(z);
        // SAFETY: each row is one piece's alone.
        unsafe { best.window(i, 1)[0] = top };
        lse
    });
}

/// Calls `f(i, row i of z)` for every row and puts what it returns into `nll[i]`.
fn by_rows(pool: &Pool, vocab: usize, z: &mut [f32], nll: &mut [f32], f: impl Fn(usize, &mut [f32]) -> f32 + Sync) {
    let rows = (PIECE / vocab).max(1);
    let nll = Parts::new(nll);
    pool.chunks(z, rows * vocab, |piece, z, _| {
        let at = piece * rows;
        // SAFETY: rows of different pieces are disjoint.
        let nll = unsafe { nll.window(at, z.len() / vocab) };
        for (i, z) in z.chunks_exact_mut(vocab).enumerate() {
            nll[i] = f(at + i, z);
        }
    });
}

fn input(t: &Tensor, part: Range<usize>) -> In<'_> {
    match t.dtype() {
        DType::Bf16 => In::Bf16(&t.bf16()[part]),
        _ => In::F32(&t.f32()[part]),
    }
}

fn output(t: &mut Tensor, part: Range<usize>) -> Out<'_> {
    match t.dtype() {
        DType::Bf16 => Out::Bf16(&mut t.bf16_mut()[part]),
        _ => Out::F32(&mut t.f32_mut()[part]),
    }
}
