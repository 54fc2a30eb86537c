//! DeMo, the baseline that exchanges at every step.
//!
//! ```text
//! tiles of 64 x 64, C: the orthonormal DCT-II,  C_ux = √(2/64) · cos(π(2x + 1)u / 128), row 0 divided by √2
//! M_r  ← decay · M_r + lr · C·G_r·Cᵀ            the momentum of owner r, kept as coefficients
//! Q_r  = the k largest of each tile of M_r;      M_r ← M_r − Q_r
//! Q    = mean of Q_r over those who sent a coefficient
//! w    ← (1 − lr · weight decay) · w − lr · sign(Cᵀ·Q·C)
//! ```
//!
//! The published form keeps the momentum in the space of the weights and transforms it forth and back each step: with an
//! orthonormal transform that is the same up to rounding. Norm weights, under two thousandths of the model, are sent
//! whole and without the transform. A coefficient is counted as 32 bits of value and 12 of place, as published.
//! Source: Peng et al. 2024, arXiv:2411.19870.

use super::methods::{Course, params, stream};
use super::{Outcome, Setting, StudyError, run_of};
use crate::outer::OuterError;
use crate::outer::inner::Inner;
use crate::schedule;
use crate::source::Opened;
use esker_kernels::device::Stream;
use esker_kernels::ops::chunk_topk::{self, Codec, Compress, Grid, SIDE, Spec, record};
use esker_kernels::ops::matmul::{self, Dims, Product, Put};
use esker_kernels::tensor::{DType, Tensor};
use esker_model::Weights;
use esker_train_elements as elements;
use std::sync::Arc;

const _: () = assert!(SIDE == elements::SIDE);

/// All owners' momenta, and room for one transform.
struct Demo {
    stream: Arc<Stream>,
    /// `[tiles · 64, 64]` an owner.
    momenta: Vec<Tensor>,
    /// Of norm weights, an owner.
    plain: Vec<Vec<f32>>,
    /// `[64, 64]`
    basis: Tensor,
    a: Tensor,
    b: Tensor,
    update: Tensor,
    sum: Vec<f32>,
    count: Vec<f32>,
    grid: Grid,
    spec: Spec,
    decay: f32,
}

pub(super) fn run(mut course: Course<'_>, opened: &Opened, k: usize, decay: f64) -> Result<Outcome, StudyError> {
    let setting = course.setting();
    let run = run_of(setting);
    let opening = stream().and_then(|s| {
        let inner = Inner::open(Arc::clone(&s), run.clone(), opened)?;
        let demo = Demo::new(s, &inner.state.master, setting, k, decay)?;
        Ok((inner, demo))
    });
    let (mut inner, mut demo) = course.named(opening)?;
    let bytes = demo.bytes();
    let rows = run.rows_per_step() as u64;
    for step in 0..setting.steps {
        let lr = schedule::rate(&run.schedule, run.optim.lr, step, setting.steps) as f32;
        let stepped = demo.step(&mut inner, step, lr, rows);
        course.named(stepped)?;
        if course.exchanged(1, bytes, false)? {
            let point = course.point(&mut inner);
            course.named(point)?;
        }
    }
    Ok(course.end(bytes, params()))
}

impl Demo {
    fn new(stream: Arc<Stream>, w: &Weights, setting: &Setting, k: usize, decay: f64) -> Result<Demo, OuterError> {
        let matrices: usize = w.each().filter(|(name, _)| name.is_matrix()).map(|(_, t)| t.len()).sum();
        let plain: usize = w.each().filter(|(name, _)| !name.is_matrix()).map(|(_, t)| t.len()).sum();
        let (rows, spec) = (matrices / SIDE, Spec { k, codec: Codec::Exact });
        let grid = Grid::matrix(rows, SIDE);
        let tensor = || Tensor::alone(&stream, DType::F32, [rows, SIDE]);
        let mut basis = Tensor::alone(&stream, DType::F32, [SIDE, SIDE])?;
        basis.set(&dct());
        Ok(Demo {
            momenta: (0..setting.owners).map(|_| tensor()).collect::<Result<_, _>>()?,
            plain: (0..setting.owners).map(|_| vec![0.0; plain]).collect(),
            basis,
            a: tensor()?,
            b: tensor()?,
            update: Tensor::alone(&stream, DType::U32, [grid.update_words(spec)])?,
            sum: vec![0.0; matrices],
            count: vec![0.0; matrices],
            stream,
            grid,
            spec,
            decay: decay as f32,
        })
    }

    /// Bytes that an owner sends a step.
    fn bytes(&self) -> u64 {
        let coefficients = self.grid.chunks() * self.spec.k;
        (coefficients * (32 + 12)).div_ceil(8) as u64 + 4 * self.plain[0].len() as u64
    }

    fn step(&mut self, inner: &mut Inner, step: u64, lr: f32, rows: u64) -> Result<(), OuterError> {
        self.sum.fill(0.0);
        self.count.fill(0.0);
        let owners = self.momenta.len();
        let mut feed = inner.feed(step * owners as u64 * rows, owners as u64)?;
        for owner in 0..owners {
            let (sums, norm) = inner.gradient(&mut feed, (step * owners as u64 + owner as u64) * rows)?;
            if !(sums.loss.is_finite() && norm.is_finite()) {
                return Err(OuterError::Diverged { round: step, step });
            }
            self.take_in(owner, &inner.state.grads.sum, lr)?;
            inner.state.grads.zero(&self.stream)?;
        }
        elements::means(&mut self.sum, &self.count);
        self.move_weights(&mut inner.state.master, lr, inner.run.optim.weight_decay as f32)?;
        inner.refresh()
    }

    /// Adds a gradient to an owner's momentum, and the largest of that to the sums.
    fn take_in(&mut self, owner: usize, grads: &Weights, lr: f32) -> Result<(), OuterError> {
        let (mut at, mut plain) = (0, 0);
        for (name, g) in grads.each() {
            if name.is_matrix() {
                elements::to_tiles(shape(g), g.f32(), &mut self.a.f32_mut()[at..]);
                at += g.len();
            } else {
                elements::decay_add(&mut self.plain[owner][plain..][..g.len()], self.decay, lr, g.f32());
                plain += g.len();
            }
        }
        // ① rows  ② the tiles turned over  ③ columns: what comes out is turned over too, in every tile alike
        self.product(false)?;
        elements::turn(self.b.f32(), self.a.f32_mut());
        self.product(false)?;
        elements::decay_add(self.momenta[owner].f32_mut(), self.decay, lr, self.b.f32());
        let a = Compress { e: &mut self.momenta[owner], delta: None, update: &mut self.update, beta: 0.0 };
        chunk_topk::compress(&self.stream, self.grid, self.spec, a)?;
        let bytes = &self.update.bytes()[..self.grid.update_bytes(self.spec)];
        let (sum, count) = (&mut self.sum, &mut self.count);
        record::visit(self.grid, self.spec, bytes, |i, v| (sum[i], count[i]) = (sum[i] + v, count[i] + 1.0))
            .expect("demo: an update of our own");
        Ok(())
    }

    fn move_weights(&mut self, w: &mut Weights, lr: f32, weight_decay: f32) -> Result<(), OuterError> {
        self.a.set(&self.sum);
        self.product(true)?;
        elements::turn(self.b.f32(), self.a.f32_mut());
        self.product(true)?;
        let (moved, mut at, mut plain) = (self.b.f32(), 0, 0);
        for (name, w) in w.each_mut() {
            let (shape, len) = (shape(w), w.len());
            if name.is_matrix() {
                elements::sign_step_of_tiles(shape, w.f32_mut(), &moved[at..], lr, weight_decay);
                at += len;
            } else {
                let momenta: Vec<&[f32]> = self.plain.iter().map(|m| &m[plain..]).collect();
                elements::sign_step_of_sums(w.f32_mut(), &momenta, lr);
                plain += len;
            }
        }
        Ok(())
    }

    /// b = a·Cᵀ, or a·C back.
    fn product(&mut self, back: bool) -> Result<(), OuterError> {
        let d = Dims { m: self.a.len() / SIDE, n: SIDE, k: SIDE };
        let p = Product { a: &self.a, b: &self.basis, c: &mut self.b, put: Put::Set };
        let done = if back { matmul::nn(&self.stream, d, p) } else { matmul::nt(&self.stream, d, p) };
        Ok(done?)
    }
}

/// Rows and columns.
fn shape(t: &Tensor) -> [usize; 2] {
    [t.shape()[0], *t.shape().last().expect("demo: a shape")]
}

fn dct() -> Vec<f32> {
    let n = SIDE as f64;
    let at = |i: usize| {
        let (u, x) = ((i / SIDE) as f64, (i % SIDE) as f64);
        let scale = if u == 0.0 { (1.0 / n).sqrt() } else { (2.0 / n).sqrt() };
        (scale * (std::f64::consts::PI * (2.0 * x + 1.0) * u / (2.0 * n)).cos()) as f32
    };
    (0..SIDE * SIDE).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_basis_is_orthonormal() {
        let c = dct();
        for u in 0..SIDE {
            for v in 0..SIDE {
                let dot: f32 = (0..SIDE).map(|x| c[u * SIDE + x] * c[v * SIDE + x]).sum();
                assert!((dot - f32::from(u8::from(u == v))).abs() < 1e-5, "{u} {v}: {dot}");
            }
        }
    }
}
