//! Attention on the host, one piece a row of the batch and key head.

use super::{Backward, Decode, Dims, Forward};
use crate::{
    pool::Pool,
    tensor::{DType, Tensor},
};

fn read(t: &Tensor, i: usize) -> f32 {
    match t.dtype() {
        DType::Bf16 => t.bf16()[i].to_f32(),
        _ => t.f32()[i],
    }
}

fn write(t: &mut Tensor, i: usize, x: f32) {
    match t.dtype() {
        DType::Bf16 => t.bf16_mut()[i] = half::bf16::from_f32(x),
        _ => t.f32_mut()[i] = x,
    }
}

/// See [`super::forward`].
pub(super) fn forward(_: &Pool, d: Dims, a: Forward<'_>) {
    let first: Option<&[u32]> = a.first.map(Tensor::u32);
    for b in 0..d.batch {
        for i in 0..d.seq {
            let from = first.map_or(0, |f| f[b * d.seq + i] as usize);
            for h in 0..d.heads {
                let lse = row(d, (a.q, (b * d.seq + i) * d.heads), (a.k, a.v, b * d.seq), h, from..i + 1, a.o);
                a.lse.f32_mut()[(b * d.heads + h) * d.seq + i] = lse;
            }
        }
    }
}

fn row(
    d: Dims,
    (q, q0): (&Tensor, usize),
    (k, v, k0): (&Tensor, &Tensor, usize),
    h: usize,
    keys: std::ops::Range<usize>,
    o: &mut Tensor,
) -> f32 {
    let at = (q0 + h) * d.head_dim;
    let key = |j: usize| ((k0 + j) * d.kv_heads + h / d.group()) * d.head_dim;
    let score =
        |j: usize| (0..d.head_dim).map(|c| read(q, at + c) * read(k, key(j) + c)).sum::<f32>() * d.scale() as f32;
    let max = keys.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = keys.clone().map(|j| (score(j) - max).exp()).sum();
    let lse = max + sum.ln();
    for c in 0..d.head_dim {
        let x = keys.clone().map(|j| (score(j) - lse).exp() * read(v, key(j) + c)).sum();
        write(o, at + c, x);
    }
    lse
}

/// See [`super::backward`].
pub(super) fn backward(_: &Pool, d: Dims, a: Backward<'_>) {
    let wide = |t: &Tensor, n: usize| -> Vec<f64> { (0..n).map(|i| f64::from(read(t, i))).collect() };
    let (nq, nk) = (d.batch * d.seq * d.heads * d.head_dim, d.batch * d.seq * d.kv_heads * d.head_dim);
    let (q, k, v, do_) = (wide(a.q, nq), wide(a.k, nk), wide(a.v, nk), wide(a.do_, nq));
    let x = super::reference::Inputs { q: &q, k: &k, v: &v, first: a.first.map(Tensor::u32) };
    let (dq, dk, dv) = super::reference::backward(d, x, &do_);
    for (to, from) in [(a.dq, dq), (a.dk, dk), (a.dv, dv)] {
        for (i, &x) in from.iter().enumerate() {
            write(to, i, x as f32);
        }
    }
}

/// See [`super::decode`].
pub(super) fn decode(_: &Pool, d: Dims, a: Decode<'_>) {
    for j in 0..d.seq {
        for h in 0..d.heads {
            row(d, (a.q, j * d.heads), (a.k_cache, a.v_cache, 0), h, 0..a.len - d.seq + j + 1, a.o);
        }
    }
}
