//! On a device: see `cuda/swiglu.cu`.

use super::{Backward, Dims, Forward};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
    tensor::DType,
};

/// Elements that a block owns.
const PER_BLOCK: usize = 4096;

pub(super) fn forward(gpu: &Gpu, d: Dims, a: Forward<'_>) -> Result<()> {
    let name = if a.g.dtype() == DType::Bf16 { "swiglu_forward_bf16" } else { "swiglu_forward_f32" };
    let len = d.rows * d.cols;
    let args = Args::new().address(a.g.device()?).address(a.u.device()?).address(a.h.device_mut()?).long(len);
    gpu.launch(kernel("swiglu", name), Grid::row(len.div_ceil(PER_BLOCK), 256), &args)
}

pub(super) fn backward(gpu: &Gpu, d: Dims, a: Backward<'_>) -> Result<()> {
    let name = if a.g.dtype() == DType::Bf16 { "swiglu_backward_bf16" } else { "swiglu_backward_f32" };
    let len = d.rows * d.cols;
    let args = Args::new().address(a.g.device()?).address(a.u.device()?).address(a.dh.device()?);
    let args = args.address(a.dg.device_mut()?).address(a.du.device_mut()?).long(len);
    gpu.launch(kernel("swiglu", name), Grid::row(len.div_ceil(PER_BLOCK), 256), &args)
}
