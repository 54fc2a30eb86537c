//! On a device: tensor cores for bf16 products of aligned operands, plain multiply-adds for all others.
//!
//! | operands | kernel |
//! | --- | --- |
//! | both bf16, rows a multiple of eight numbers apart | `matmul_mma` |
//! | one of them f32, otherwise the same | it is rounded into scratch, part by part, then `matmul_mma` |
//! | anything else | `matmul_plain` |

use super::{Dims, Put};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, SCRATCH_BYTES, kernel},
    ops::cast::gpu::convert_at,
    tensor::{DType, Tensor},
};

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Nt,
    Nn,
    Tn,
}

/// An operand in device memory: rows as they lie, `ld` numbers apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub at: u64,
    pub dtype: DType,
    pub ld: usize,
}

impl Side {
    /// Row `row` and what follows.
    pub fn at_row(self, row: usize) -> Side {
        Side { at: self.at + (row * self.ld * self.dtype.bytes()) as u64, ..self }
    }

    fn is_aligned(self) -> bool {
        self.ld.is_multiple_of(8)
    }
}

/// c in device memory; its rows follow each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub at: u64,
    pub dtype: DType,
    /// What the product is added to, f32: c itself, another of its shape, or 0 for nothing.
    pub added: u64,
}

impl Target {
    pub fn new(at: u64, dtype: DType, put: Put) -> Target {
        Target { at, dtype, added: if put == Put::Add { at } else { 0 } }
    }

    /// What is added to what was there already.
    fn more(self) -> Target {
        Target { added: self.at, ..self }
    }

    /// From byte `by` on.
    fn at_byte(self, by: usize) -> Target {
        let added = if self.added == 0 { 0 } else { self.added + by as u64 };
        Target { at: self.at + by as u64, added, ..self }
    }
}

/// The operand that `t` holds.
pub(crate) fn side(t: &Tensor, ld: usize) -> Result<Side> {
    Ok(Side { at: t.device()?, dtype: t.dtype(), ld })
}

/// Any of the three forms; `grain` matters to tn alone.
pub(super) fn product(gpu: &Gpu, form: Form, d: Dims, p: super::Product<'_>, grain: usize) -> Result<()> {
    let (a, b) = match form {
        Form::Nt => (side(p.a, d.k)?, side(p.b, d.k)?),
        Form::Nn => (side(p.a, d.k)?, side(p.b, d.n)?),
        Form::Tn => (side(p.a, d.m)?, side(p.b, d.n)?),
    };
    let c = Target::new(p.c.device_mut()?, p.c.dtype(), p.put);
    product_at(gpu, form, d, a, b, c, grain)
}

/// See [`super::onto`].
pub(super) fn onto(gpu: &Gpu, d: Dims, p: super::Onto<'_>) -> Result<()> {
    let c = Target { at: p.y.device_mut()?, dtype: DType::F32, added: p.x.device()? };
    product_at(gpu, Form::Nt, d, side(p.a, d.k)?, side(p.b, d.k)?, c, 1)
}

/// [`product`] between addresses. Uses the scratch where an operand must be rounded.
pub(crate) fn product_at(gpu: &Gpu, form: Form, d: Dims, a: Side, b: Side, c: Target, grain: usize) -> Result<()> {
    if d.m == 0 || d.n == 0 {
        return Ok(());
    }
    let bf16 = (a.dtype == DType::Bf16, b.dtype == DType::Bf16);
    // Rows of a row-major operand: what k runs over in tn, and in nn for b.
    let b_rows = if form == Form::Nt { d.n } else { d.k };
    let aligned = a.is_aligned() && b.is_aligned() && d.k > 0;
    match bf16 {
        (true, true) if aligned => mma(gpu, form, d, a, b, c, grain),
        (true, false) if aligned && b_rows * b.ld * 2 <= SCRATCH_BYTES => {
            let rounded = Side { at: gpu.scratch(b_rows * b.ld * 2), dtype: DType::Bf16, ld: b.ld };
            convert_at(gpu, b_rows * b.ld, b.at, b.dtype, rounded.at, DType::Bf16)?;
            mma(gpu, form, d, a, rounded, c, grain)
        }
        (false, true) if aligned => rounding_a(gpu, form, d, a, b, c, grain),
        _ => plain(gpu, form, d, a, b, c, grain, bf16.0 || bf16.1),
    }
}

/// The product with an f32 a, of which as many rows as fit are rounded at a time.
fn rounding_a(gpu: &Gpu, form: Form, d: Dims, a: Side, b: Side, c: Target, grain: usize) -> Result<()> {
    let rows = if form == Form::Tn { d.k } else { d.m };
    let fit = SCRATCH_BYTES / (2 * a.ld);
    let step = match form {
        // Grains whole: the sums of a grain are those of a call of its own.
        Form::Tn if fit >= grain.max(1) => fit / grain.max(1) * grain.max(1),
        _ => (fit / 128 * 128).max(1),
    };
    assert!(fit > 0, "matmul: a row of {} numbers does not fit the scratch", a.ld);
    let rounded = Side { at: gpu.scratch(step.min(rows) * a.ld * 2), dtype: DType::Bf16, ld: a.ld };
    for from in (0..rows).step_by(step) {
        let n = step.min(rows - from);
        convert_at(gpu, n * a.ld, a.at_row(from).at, a.dtype, rounded.at, DType::Bf16)?;
        if form == Form::Tn {
            let c = if from > 0 { c.more() } else { c };
            mma(gpu, form, Dims { k: n, ..d }, rounded, b.at_row(from), c, grain)?;
        } else {
            let c = c.at_byte(from * d.n * c.dtype.bytes());
            mma(gpu, form, Dims { m: n, ..d }, rounded, b, c, grain)?;
        }
    }
    Ok(())
}

/// Rows and columns of c that a block of `matmul_mma` owns, and its shared memory.
const TILE: usize = 128;
const STAGES_BYTES: u32 = 64 << 10;

fn mma(gpu: &Gpu, form: Form, d: Dims, a: Side, b: Side, c: Target, grain: usize) -> Result<()> {
    let name = match form {
        Form::Nt => "matmul_mma_nt",
        Form::Nn => "matmul_mma_nn",
        Form::Tn => "matmul_mma_tn",
    };
    let blocks = d.m.div_ceil(TILE) * d.n.div_ceil(TILE);
    let grid = Grid { shared: STAGES_BYTES, ..Grid::row(blocks, 256) };
    // A grain of tokens after another, each onto what the one before left: the bits of so many calls.
    let step = if form == Form::Tn { grain.max(1) } else { d.k };
    for from in (0..d.k).step_by(step) {
        let (a, b) = if from > 0 { (a.at_row(from), b.at_row(from)) } else { (a, b) };
        let args = Args::new().address(a.at).int(a.ld).int(d.m).address(b.at).int(b.ld).int(d.n);
        let c = if from > 0 { c.more() } else { c };
        let args = args.address(c.at).address(c.added).int(step.min(d.k - from)).flag(c.dtype == DType::Bf16);
        gpu.launch(kernel("matmul_mma", name), grid, &args)?;
    }
    Ok(())
}

/// Whether [`gated`] can take these: all bf16, rows of a multiple of eight.
pub(super) fn takes_gated(d: Dims, all: [&Tensor; 6]) -> bool {
    d.k > 0 && d.k.is_multiple_of(8) && all.iter().all(|t| t.dtype() == DType::Bf16)
}

/// See [`super::gated`].
pub(super) fn gated(gpu: &Gpu, d: Dims, p: super::Gated<'_>) -> Result<()> {
    let args = Args::new().address(p.a.device()?).int(d.k).int(d.m).address(p.gate.device()?).int(d.k).int(d.n);
    let args = args.address(p.up.device()?).address(p.g.device_mut()?).address(p.u.device_mut()?);
    // Of a tile's columns half are the gate's and half are up's.
    let blocks = d.m.div_ceil(TILE) * d.n.div_ceil(TILE / 2);
    let grid = Grid { shared: STAGES_BYTES, ..Grid::row(blocks, 256) };
    gpu.launch(kernel("matmul_mma", "matmul_mma_gated"), grid, &args.address(p.h.device_mut()?).int(d.k))
}

fn plain(gpu: &Gpu, form: Form, d: Dims, a: Side, b: Side, c: Target, grain: usize, rounded: bool) -> Result<()> {
    // How far one goes in an operand for the next row of c (or column), and for the next k.
    let by_k = |s: Side| (s.ld, 1);
    let by_outer = |s: Side| (1, s.ld);
    let (a_steps, b_steps) = match form {
        Form::Nt => (by_k(a), by_k(b)),
        Form::Nn => (by_k(a), by_outer(b)),
        Form::Tn => (by_outer(a), by_outer(b)),
    };
    let operand = |args: Args, s: Side, steps: (usize, usize)| {
        args.address(s.at).long(steps.0).long(steps.1).flag(s.dtype == DType::Bf16).flag(rounded)
    };
    let args = operand(operand(Args::new(), a, a_steps), b, b_steps).address(c.at).address(c.added);
    let grain = if form == Form::Tn { grain.max(1) } else { d.k.max(1) };
    let args = args.int(d.m).int(d.n).int(d.k).int(grain).flag(c.dtype == DType::Bf16);
    let blocks = [d.n.div_ceil(64) as u32, d.m.div_ceil(64) as u32, 1];
    gpu.launch(kernel("matmul_plain", "matmul_plain"), Grid { blocks, threads: 256, shared: 0 }, &args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::Stream, harness::draw, ops::matmul};

    /// One pass or two: the same bits, on tensor cores and off them.
    #[test]
    fn a_product_onto_the_residual_stream_is_a_copy_and_a_product() {
        let s = Stream::sim(1).unwrap();
        let d = Dims { m: 5, n: 40, k: 24 };
        let made = |dtype, seed, shape: [usize; 2]| {
            let mut t = Tensor::alone(&s, dtype, shape).unwrap();
            t.set(&draw(seed, shape[0] * shape[1]));
            t
        };
        for dtypes in [[DType::Bf16; 2], [DType::F32; 2], [DType::F32, DType::Bf16]] {
            let (a, b, x) = (made(dtypes[0], 1, [5, 24]), made(dtypes[1], 2, [40, 24]), made(DType::F32, 3, [5, 40]));
            let [mut one, mut two] = [4, 5].map(|seed| made(DType::F32, seed, [5, 40]));
            matmul::onto(&s, d, matmul::Onto { a: &a, b: &b, x: &x, y: &mut one }, matmul::nt).unwrap();
            s.copy(&x, &mut two, 200).unwrap();
            matmul::nt(&s, d, matmul::Product { a: &a, b: &b, c: &mut two, put: Put::Add }).unwrap();
            assert_eq!(one.bytes(), two.bytes(), "{dtypes:?}");
        }
    }
}
