//! On the host: each chunk's logits by the matmul engine, a softmax in place by rows, two more products.

use super::{Dims, Logits, Score, Train, softmax};
use crate::{
    pool::{Parts, Pool},
    tensor::{DType, Tensor},
};
use half::bf16;

/// Elements of a piece of the softmax, at least.
const PIECE: usize = 1 << 14;

pub(super) fn train(pool: &Pool, d: Dims, a: Train<'_>, grain: usize) {
    let targets = &a.targets.u32()[..d.rows];
    for at in (0..d.rows).step_by(grain) {
        for from in (at..at + grain).step_by(d.chunk) {
            let rows = from..(from + d.chunk).min(at + grain);
            let n = Values::of(a.n, rows.start * d.cols..rows.end * d.cols);
            let w = Values::of(a.w, 0..d.vocab * d.cols);
            let z = &mut a.logits.f32_mut()[..rows.len() * d.vocab];
            product_nt(pool, rows.len(), d.vocab, d.cols, n, w, z);
            let nll = &mut a.nll.f32_mut()[rows.clone()];
            by_rows(pool, d.vocab, z, nll, |i, z| softmax::gradient(z, targets[rows.start + i], a.scale));
            let out = rows.start * d.cols..rows.end * d.cols;
            product_nn(pool, rows.len(), d.cols, d.vocab, z, w, a.dn, out);
            product_tn(pool, d.vocab, d.cols, rows.len(), z, n, &mut a.dw.f32_mut()[..d.vocab * d.cols]);
        }
    }
}

pub(super) fn score(pool: &Pool, d: Dims, a: Score<'_>) {
    let targets = &a.targets.u32()[..d.rows];
    for from in (0..d.rows).step_by(d.chunk) {
        let rows = from..(from + d.chunk).min(d.rows);
        let n = Values::of(a.n, rows.start * d.cols..rows.end * d.cols);
        let w = Values::of(a.w, 0..d.vocab * d.cols);
        let z = &mut a.logits.f32_mut()[..rows.len() * d.vocab];
        product_nt(pool, rows.len(), d.vocab, d.cols, n, w, z);
        let nll = &mut a.nll.f32_mut()[rows.clone()];
        by_rows(pool, d.vocab, z, nll, |i, z| softmax::loss(z, targets[rows.start + i]));
    }
}

pub(super) fn logits(pool: &Pool, d: Dims, a: Logits<'_>) {
    let n = Values::of(a.n, 0..d.rows * d.cols);
    let w = Values::of(a.w, 0..d.vocab * d.cols);
    product_nt(pool, d.rows, d.vocab, d.cols, n, w, &mut a.logits.f32_mut()[..d.rows * d.vocab]);
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

#[derive(Clone, Copy)]
enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    fn of(t: &'a Tensor, r: std::ops::Range<usize>) -> Values<'a> {
        match t.dtype() {
            DType::Bf16 => Values::Bf16(&t.bf16()[r]),
            _ => Values::F32(&t.f32()[r]),
        }
    }
    fn at(&self, i: usize) -> f32 {
        match self {
            Values::F32(x) => x[i],
            Values::Bf16(x) => x[i].to_f32(),
        }
    }
    fn round(&self, x: f32) -> f32 {
        match self {
            Values::F32(_) => x,
            Values::Bf16(_) => bf16::from_f32(x).to_f32(),
        }
    }
}

fn product_nt(pool: &Pool, _m: usize, n: usize, k: usize, a: Values<'_>, b: Values<'_>, c: &mut [f32]) {
    pool.chunks(c, n, |i, c, _| {
        for (j, c) in c.iter_mut().enumerate() {
            *c = (0..k).map(|l| a.at(i * k + l) * b.at(j * k + l)).sum();
        }
    });
}

fn product_nn(
    pool: &Pool,
    _m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    b: Values<'_>,
    c: &mut Tensor,
    at: std::ops::Range<usize>,
) {
    let row = |i: usize, j: usize| (0..k).map(|l| b.round(a[i * k + l]) * b.at(l * n + j)).sum::<f32>();
    match c.dtype() {
        DType::Bf16 => pool.chunks(&mut c.bf16_mut()[at], n, |i, c, _| {
            for (j, c) in c.iter_mut().enumerate() {
                *c = bf16::from_f32(row(i, j));
            }
        }),
        _ => pool.chunks(&mut c.f32_mut()[at], n, |i, c, _| {
            for (j, c) in c.iter_mut().enumerate() {
                *c = row(i, j);
            }
        }),
    }
}

fn product_tn(pool: &Pool, m: usize, n: usize, k: usize, a: &[f32], b: Values<'_>, c: &mut [f32]) {
    pool.chunks(c, n, |i, c, _| {
        for (j, c) in c.iter_mut().enumerate() {
            *c += (0..k).map(|l| b.round(a[l * m + i]) * b.at(l * n + j)).sum::<f32>();
        }
    });
}
