//! On a device: see `cuda/rmsnorm.cu`.

use super::{AddForward, Backward, Dims, Forward};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, Kernel, SCRATCH_BYTES, kernel},
    ops::matmul::Put,
    tensor::DType::{self, Bf16, F32},
};

/// Warps that share a row.
fn warps(cols: usize) -> usize {
    if cols <= 1024 { 1 } else { 8 }
}

fn by_rows(d: Dims) -> Grid {
    Grid::row(if warps(d.cols) == 1 { d.rows.div_ceil(8) } else { d.rows }, 256)
}

fn pick(door: &str, x: DType, y: DType, table: &[(DType, DType, &'static str)]) -> Kernel {
    let found = table.iter().find(|entry| (entry.0, entry.1) == (x, y));
    kernel("rmsnorm", found.unwrap_or_else(|| panic!("rmsnorm {door}: x {x} with y {y}")).2)
}

pub(super) fn forward(gpu: &Gpu, d: Dims, a: Forward<'_>) -> Result<()> {
    let table = [
        (F32, F32, "rmsnorm_forward_f32_f32"),
        (F32, Bf16, "rmsnorm_forward_f32_bf16"),
        (Bf16, Bf16, "rmsnorm_forward_bf16_bf16"),
    ];
    let k = pick("forward", a.x.dtype(), a.y.dtype(), &table);
    let args = Args::new().address(a.x.device()?).address(a.w.device()?);
    let args = args.address(a.y.device_mut()?).address(a.r.device_mut()?);
    gpu.launch(k, by_rows(d), &args.int(d.rows).int(d.cols).float(a.eps).int(warps(d.cols)))
}

pub(super) fn add_forward(gpu: &Gpu, d: Dims, a: AddForward<'_>) -> Result<()> {
    let table = [(F32, F32, "rmsnorm_add_forward_f32"), (F32, Bf16, "rmsnorm_add_forward_bf16")];
    let k = pick("add_forward", a.x.dtype(), a.y.dtype(), &table);
    let args = Args::new().address(a.x.device()?).address(a.delta.device()?).address(a.sum.device_mut()?);
    let args = args.address(a.w.device()?).address(a.y.device_mut()?).address(a.r.device_mut()?);
    gpu.launch(k, by_rows(d), &args.int(d.rows).int(d.cols).float(a.eps).int(warps(d.cols)))
}

pub(super) fn backward(gpu: &Gpu, d: Dims, a: Backward<'_>, grain: usize) -> Result<()> {
    let table = match a.put {
        Put::Set => vec![
            (F32, F32, "rmsnorm_backward_f32_f32_set"),
            (F32, Bf16, "rmsnorm_backward_f32_bf16_set"),
            (Bf16, Bf16, "rmsnorm_backward_bf16_bf16_set"),
        ],
        Put::Add => vec![(F32, F32, "rmsnorm_backward_f32_f32_add"), (F32, Bf16, "rmsnorm_backward_f32_bf16_add")],
    };
    let k = pick("backward", a.x.dtype(), a.dy.dtype(), &table);
    // About 256 blocks a grain, of at least 16 rows: a function of sizes alone, as it fixes the order of dw's sums.
    let slab = grain.div_ceil(256).max(16);
    let (per_grain, row) = (grain.div_ceil(slab), d.cols * 4);
    let grains_at_once = (SCRATCH_BYTES / row / per_grain).max(1);
    let partial = gpu.scratch(row * per_grain * grains_at_once.min(d.rows / grain));
    let shared = row * if warps(d.cols) == 1 { 8 } else { 1 };
    let (x, w, r, dy) = (a.x.device()?, a.w.device()?, a.r.device()?, a.dy.device()?);
    let (x_row, dy_row) = (d.cols * a.x.dtype().bytes(), d.cols * a.dy.dtype().bytes());
    let (dx, dw) = (a.dx.device_mut()?, a.dw.device_mut()?);
    for from in (0..d.rows).step_by(grain * grains_at_once) {
        let slabs = (d.rows - from).min(grain * grains_at_once) / grain * per_grain;
        let args = Args::new().address(x + (from * x_row) as u64).address(w).address(r + 4 * from as u64);
        let args = args.address(dy + (from * dy_row) as u64).address(dx + (from * x_row) as u64).address(partial);
        let args = args.int(d.cols).int(grain).int(slab).int(warps(d.cols));
        gpu.launch(k, Grid { shared: shared as u32, ..Grid::row(slabs, 256) }, &args)?;
        let args = Args::new().address(partial).address(dw).int(slabs).int(d.cols);
        gpu.launch(kernel("rmsnorm", "rmsnorm_fold"), Grid::row(d.cols.div_ceil(256), 256), &args)?;
    }
    Ok(())
}
