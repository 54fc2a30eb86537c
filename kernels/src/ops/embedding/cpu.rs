//! On the host: forward cuts the rows, backward the columns, so that one piece sees all tokens of its columns in order.

use super::{Backward, Dims, Forward};
use crate::{
    pool::{Parts, Pool},
    tensor::DType,
};

/// Elements of `x` that a piece of forward writes, about.
const FORWARD_PIECE: usize = 1 << 14;
/// Columns that a piece of backward owns at least; eight pieces where there are more.
const BACKWARD_COLS: usize = 128;

pub(super) fn forward(pool: &Pool, d: Dims, a: Forward<'_>) {
    let ids = &a.ids.u32()[..d.rows];
    let x = &mut a.x.f32_mut()[..d.rows * d.cols];
    let rows = (FORWARD_PIECE / d.cols.max(1)).max(1);
    match a.w.dtype() {
        DType::Bf16 => {
            let w = a.w.bf16();
            pool.chunks(x, rows * d.cols, |piece, x, _| {
                for (&id, x) in ids[piece * rows..].iter().zip(x.chunks_exact_mut(d.cols)) {
                    let w = &w[id as usize * d.cols..][..d.cols];
                    for (x, w) in x.iter_mut().zip(w) {
                        *x = f32::from_bits(u32::from(w.to_bits()) << 16);
                    }
                }
            });
        }
        _ => {
            let w = a.w.f32();
            pool.chunks(x, rows * d.cols, |piece, x, _| {
                for (&id, x) in ids[piece * rows..].iter().zip(x.chunks_exact_mut(d.cols)) {
                    x.copy_from_slice(&w[id as usize * d.cols..][..d.cols]);
                }
            });
        }
    }
}

pub(super) fn backward(pool: &Pool, d: Dims, a: Backward<'_>) {
    let ids = &a.ids.u32()[..d.rows];
    let dx = &a.dx.f32()[..d.rows * d.cols];
    let dw = Parts::new(&mut a.dw.f32_mut()[..d.vocab * d.cols]);
    // Long runs of columns stream better; several pieces keep several threads busy.
    let cols = d.cols.div_ceil(8).next_multiple_of(16).max(BACKWARD_COLS);
    pool.run(d.cols.div_ceil(cols), |piece, _| {
        let at = piece * cols;
        let len = cols.min(d.cols - at);
        for (&id, dx) in ids.iter().zip(dx.chunks_exact(d.cols)) {
            // SAFETY: pieces own disjoint columns, and within a piece one window is alive at a time.
            let dw = unsafe { dw.window(id as usize * d.cols + at, len) };
            for (dw, dx) in dw.iter_mut().zip(&dx[at..at + len]) {
                *dw += dx;
            }
        }
    });
}
