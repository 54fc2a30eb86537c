//! On a device: see `cuda/rope.cu`. The table is made on the host, in f64, as for the CPU.

use super::{Dims, Rotate};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
    tensor::DType,
};

pub(super) fn rotate(gpu: &Gpu, d: Dims, a: Rotate<'_>, sign: f32) -> Result<()> {
    let name = if a.x.dtype() == DType::Bf16 { "rope_bf16" } else { "rope_f32" };
    let half = d.head_dim / 2;
    let groups = d.rows * d.heads * half.div_ceil(8);
    let args = Args::new().address(a.x.device_mut()?).address(a.cos.device()?).address(a.sin.device()?).int(groups);
    let args = args.int(d.seq).int(d.heads).int(half).int(a.start).float(sign);
    gpu.launch(kernel("rope", name), Grid::row(groups.div_ceil(256), 256), &args)
}
