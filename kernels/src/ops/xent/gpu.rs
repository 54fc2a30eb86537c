//! On a device: the products of `matmul`, and `cuda/xent.cu` between them.
//!
//! In a bf16 run the gradient of the logits goes to scratch, in rows filled up to a multiple of eight, as many at a time
//! as fit there; in an f32 run it takes the place of the logits.

use super::{Dims, Rank, Score, Train};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, SCRATCH_BYTES, kernel},
    ops::matmul::{
        self, Put,
        gpu::{Form, Side, Target, product_at, side},
    },
    tensor::DType,
};

const THREADS: u32 = 512;

pub(super) fn train(gpu: &Gpu, d: Dims, a: Train<'_>, grain: usize) -> Result<()> {
    let (n, w) = (side(a.n, d.cols)?, side(a.w, d.cols)?);
    let (dn, dn_dtype) = (a.dn.device_mut()?, a.dn.dtype());
    let (targets, nll, dw, z) = (a.targets.device()?, a.nll.device_mut()?, a.dw.device_mut()?, a.logits.device_mut()?);
    let narrow = n.dtype == DType::Bf16;
    let ld = if narrow { d.vocab.next_multiple_of(8) } else { d.vocab };
    let at_once = if narrow { (SCRATCH_BYTES / (2 * ld)).max(1) } else { d.chunk };
    for at in (0..d.rows).step_by(grain) {
        for from in (at..at + grain).step_by(d.chunk) {
            let chunk = d.chunk.min(at + grain - from);
            logits(gpu, d, chunk, n.at_row(from), w, z)?;
            for first in (0..chunk).step_by(at_once) {
                let rows = at_once.min(chunk - first);
                let row = from + first;
                let z = z + (4 * first * d.vocab) as u64;
                let args = Args::new().address(z).address(targets + 4 * row as u64).address(nll + 4 * row as u64);
                let g = if narrow {
                    let g = gpu.scratch(rows * ld * 2);
                    let args = args.address(g).int(d.vocab).int(ld).float(a.scale);
                    gpu.launch(kernel("xent", "xent_gradient_bf16"), Grid::row(rows, THREADS), &args)?;
                    Side { at: g, dtype: DType::Bf16, ld }
                } else {
                    let args = args.int(d.vocab).float(a.scale);
                    gpu.launch(kernel("xent", "xent_gradient_f32"), Grid::row(rows, THREADS), &args)?;
                    Side { at: z, dtype: DType::F32, ld }
                };
                let to = dn + (row * d.cols * dn_dtype.bytes()) as u64;
                let to = Target::new(to, dn_dtype, Put::Set);
                product_at(gpu, Form::Nn, matmul::Dims { m: rows, n: d.cols, k: d.vocab }, g, w, to, 1)?;
                let to = Target::new(dw, DType::F32, Put::Add);
                let dims = matmul::Dims { m: d.vocab, n: d.cols, k: rows };
                product_at(gpu, Form::Tn, dims, g, n.at_row(row), to, rows)?;
            }
        }
    }
    Ok(())
}

fn logits(gpu: &Gpu, d: Dims, rows: usize, n: Side, w: Side, z: u64) -> Result<()> {
    let to = Target::new(z, DType::F32, Put::Set);
    product_at(gpu, Form::Nt, matmul::Dims { m: rows, n: d.vocab, k: d.cols }, n, w, to, 1)
}

pub(super) fn score(gpu: &Gpu, d: Dims, a: Score<'_>) -> Result<()> {
    let (n, w) = (side(a.n, d.cols)?, side(a.w, d.cols)?);
    let (targets, nll, z) = (a.targets.device()?, a.nll.device_mut()?, a.logits.device_mut()?);
    for from in (0..d.rows).step_by(d.chunk) {
        let rows = d.chunk.min(d.rows - from);
        logits(gpu, d, rows, n.at_row(from), w, z)?;
        let args = Args::new().address(z).address(targets + 4 * from as u64).address(nll + 4 * from as u64);
        gpu.launch(kernel("xent", "xent_loss"), Grid::row(rows, THREADS), &args.int(d.vocab))?;
    }
    Ok(())
}

/// What is left of [`super::rank`] once the logits are there.
pub(super) fn rank(gpu: &Gpu, d: Dims, a: Rank<'_>) -> Result<()> {
    let args = Args::new().address(a.logits.device()?).address(a.lse.device_mut()?).address(a.best.device_mut()?);
    gpu.launch(kernel("xent", "xent_rank"), Grid::row(d.rows, THREADS), &args.int(d.vocab))
}
