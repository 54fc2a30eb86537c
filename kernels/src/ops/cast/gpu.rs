//! On a device: see `cuda/cast.cu`.

use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
    tensor::{DType, Tensor},
};

/// Elements that a block owns.
const PER_BLOCK: usize = 8192;

pub(super) fn convert(gpu: &Gpu, len: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
    let (source, target) = (from.dtype(), to.dtype());
    convert_at(gpu, len, from.device()?, source, to.device_mut()?, target)
}

/// [`convert`] between addresses.
pub(crate) fn convert_at(gpu: &Gpu, len: usize, from: u64, source: DType, to: u64, target: DType) -> Result<()> {
    let args = Args::new().address(from).address(to);
    let grid = Grid::row(len.div_ceil(PER_BLOCK), 256);
    match (source, target) {
        (DType::F32, DType::Bf16) => gpu.launch(kernel("cast", "cast_f32_bf16"), grid, &args.long(len)),
        (DType::Bf16, DType::F32) => gpu.launch(kernel("cast", "cast_bf16_f32"), grid, &args.long(len)),
        _ => {
            let bytes = len * source.bytes();
            gpu.launch(kernel("cast", "cast_copy"), Grid::row(bytes.div_ceil(2 * PER_BLOCK), 256), &args.long(bytes))
        }
    }
}

pub(super) fn add(gpu: &Gpu, len: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
    let args = Args::new().address(from.device()?).address(to.device_mut()?).long(len);
    gpu.launch(kernel("cast", "cast_add"), Grid::row(len.div_ceil(PER_BLOCK), 256), &args)
}
