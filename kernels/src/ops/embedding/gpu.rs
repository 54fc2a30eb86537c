//! On a device: see `cuda/embedding.cu`.

use super::{Backward, Dims, Forward};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
    tensor::DType,
};

pub(super) fn forward(gpu: &Gpu, d: Dims, a: Forward<'_>) -> Result<()> {
    let name = if a.w.dtype() == DType::Bf16 { "embedding_forward_bf16" } else { "embedding_forward_f32" };
    let args = Args::new().address(a.ids.device()?).address(a.w.device()?).address(a.x.device_mut()?);
    gpu.launch(kernel("embedding", name), Grid::row(d.rows.div_ceil(8), 256), &args.int(d.rows).int(d.cols))
}

pub(super) fn backward(gpu: &Gpu, d: Dims, a: Backward<'_>) -> Result<()> {
    let args = Args::new().address(a.ids.device()?).address(a.dx.device()?).address(a.dw.device_mut()?);
    gpu.launch(kernel("embedding", "embedding_backward"), Grid::row(d.rows, 256), &args.int(d.rows).int(d.cols))
}
