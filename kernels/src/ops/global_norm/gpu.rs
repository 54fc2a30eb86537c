//! On a device: see `cuda/global_norm.cu`. The sum comes back to the host, which waits for it.

use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
    tensor::Tensor,
};

/// Elements that a block sums.
const PER_BLOCK: usize = 16384;

pub(super) fn sum_squares(gpu: &Gpu, t: &Tensor, len: usize) -> Result<f64> {
    if len == 0 {
        return Ok(0.0);
    }
    let blocks = len.div_ceil(PER_BLOCK);
    let sums = gpu.scratch((blocks + 1) * 8);
    let total = sums + 8 * blocks as u64;
    let args = Args::new().address(t.device()?).address(sums).long(len);
    gpu.launch(kernel("global_norm", "global_norm_squares"), Grid::row(blocks, 256), &args)?;
    let args = Args::new().address(sums).address(total).int(blocks);
    gpu.launch(kernel("global_norm", "global_norm_join"), Grid::row(1, 256), &args)?;
    let mut bytes = [0; 8];
    gpu.read(total, &mut bytes)?;
    Ok(f64::from_le_bytes(bytes))
}
