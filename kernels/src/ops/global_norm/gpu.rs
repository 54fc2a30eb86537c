//! On a device: see `cuda/global_norm.cu`. Sums come back to the host, which waits for them.

use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
    tensor::Tensor,
};

/// Elements that a block sums.
const PER_BLOCK: usize = 16384;

/// Tensors whose sums are read back together.
const TENSORS: usize = 256;

pub(super) fn sum_squares(gpu: &Gpu, t: &Tensor, len: usize) -> Result<f64> {
    let mut bytes = [0; 8];
    let total = gpu.scratch(8);
    one(gpu, t, len, total, total + 8)?;
    gpu.read(total, &mut bytes)?;
    Ok(f64::from_le_bytes(bytes))
}

pub(super) fn sum_squares_of<'a>(gpu: &Gpu, tensors: impl Iterator<Item = &'a Tensor>) -> Result<f64> {
    let totals = gpu.scratch(8 * TENSORS);
    let (mut sum, mut held, mut bytes) = (0.0, 0, [0; 8 * TENSORS]);
    let mut add = |held: usize| -> Result<()> {
        gpu.read(totals, &mut bytes[..8 * held])?;
        let all = bytes[..8 * held].chunks_exact(8);
        sum = all.fold(sum, |sum, b| sum + f64::from_le_bytes(b.try_into().expect("eight bytes")));
        Ok(())
    };
    for t in tensors {
        if held == TENSORS {
            add(held)?;
            held = 0;
        }
        one(gpu, t, t.len(), totals + 8 * held as u64, totals + 8 * TENSORS as u64)?;
        held += 1;
    }
    add(held)?;
    Ok(sum)
}

/// Leaves Σ t² at `total`; blocks leave theirs from `sums` on, in the scratch.
fn one(gpu: &Gpu, t: &Tensor, len: usize, total: u64, sums: u64) -> Result<()> {
    let blocks = len.div_ceil(PER_BLOCK);
    gpu.scratch(8 * (TENSORS + blocks));
    let args = Args::new().address(t.device()?).address(sums).long(len);
    gpu.launch(kernel("global_norm", "global_norm_squares"), Grid::row(blocks, 256), &args)?;
    let args = Args::new().address(sums).address(total).int(blocks);
    gpu.launch(kernel("global_norm", "global_norm_join"), Grid::row(1, 256), &args)
}
