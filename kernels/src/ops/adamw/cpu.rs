//! On the host: pieces of a fixed number of elements, each read and written once.

use super::{Factors, Hyper, Step};
use crate::{
    ops::cast::element::{Element, per_level},
    pool::{Parts, Pool},
    simd::Level,
};
use half::bf16;

/// Elements of a piece: its gradient is still in the core's cache when it is zeroed.
const PIECE: usize = 1 << 13;

pub(super) fn step(pool: &Pool, level: Level, len: usize, a: Step<'_>, h: Hyper) {
    let f = h.factors();
    let (g, m, v) = (Parts::new(a.g.f32_mut()), Parts::new(a.m.f32_mut()), Parts::new(a.v.f32_mut()));
    let out = a.out.map(|out| Parts::new(out.bf16_mut()));
    pool.chunks(&mut a.w.f32_mut()[..len], PIECE, |i, w, _| {
        let (at, n) = (i * PIECE, w.len());
        // SAFETY: pieces own disjoint elements.
        let (g, m, v) = unsafe { (g.window(at, n), m.window(at, n), v.window(at, n)) };
        match &out {
            // SAFETY: as above.
            Some(out) => update_and_copy(level, f, w, g, m, v, unsafe { out.window(at, n) }),
            None => update(level, f, w, g, m, v),
        }
        if h.zero_grad {
            g.fill(0.0);
        }
    });
}

per_level! {
    fn update[](f: Factors, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            (*w, *m, *v) = element(f, *w, *g, *m, *v);
        }
    }

    fn update_and_copy[](f: Factors, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], out: &mut [bf16]) {
        for ((((w, g), m), v), out) in w.iter_mut().zip(g).zip(m).zip(v).zip(out) {
            (*w, *m, *v) = element(f, *w, *g, *m, *v);
            *out = bf16::narrow(*w);
        }
    }
}

/// The new w, m and v.
#[inline(always)]
pub(super) fn element(f: Factors, w: f32, g: f32, m: f32, v: f32) -> (f32, f32, f32) {
    let g = f.scale * g;
    let m = m + f.one_less_beta1 * (g - m);
    let v = f.beta2 * v + f.one_less_beta2 * (g * g);
    let w = f.keep * w - f.rate * (m / (v.sqrt() * f.root + f.eps));
    (w, m, v)
}
