//! On a device: the compact form, by `cuda/chunk_topk.cu`. The other two run on the host: one of them needs the levels of
//! a whole tensor before its first value is written, and neither is what rounds use.

use super::{
    CHUNK, Compress, Fold, Grid, Mean, cpu,
    record::{CHOOSE, Codec, Spec},
};
use crate::{
    Result,
    gpu::{Args, Gpu, Kernel, kernel},
    simd,
    tensor::Tensor,
};

const THREADS: u32 = 256;
/// Shared memory of a block: the chunk, what was picked of it with places, and a record.
const CHUNK_BYTES: u32 = (4 + 4 + 2) * CHUNK as u32 + 4096;

/// Where things lie in scratch: a table of binomials, a word that says whether all is finite, then lists.
const FINITE_AT: usize = 8848;
const LISTS_AT: usize = 8864;

fn binomials(gpu: &Gpu, lists: usize) -> Result<u64> {
    let at = gpu.scratch(LISTS_AT + lists);
    gpu.write(at, bytemuck::cast_slice(CHOOSE.as_flattened()))?;
    Ok(at)
}

/// The sizes that begin every list of arguments.
fn cut(grid: Grid, spec: Spec) -> Args {
    let (down, right) = (grid.rows % grid.tile_rows, grid.cols % grid.tile_cols);
    let bytes = |rows: usize, cols: usize| if rows * cols == 0 { 0 } else { spec.record_bytes(rows * cols) };
    let args = Args::new().long(grid.rows).long(grid.cols).long(spec.head_bytes());
    let args = args.int(grid.tile_rows).int(grid.tile_cols).int(spec.k);
    let args = args.int(bytes(grid.tile_rows, grid.tile_cols)).int(bytes(grid.tile_rows, right));
    args.int(bytes(down, grid.tile_cols)).int(bytes(down, right)).int(grid.across())
}

fn launch(gpu: &Gpu, name: &'static str, grid: Grid, shared: u32, args: &Args) -> Result<()> {
    let k: Kernel = kernel("chunk_topk", name);
    gpu.launch(k, crate::gpu::Grid { shared, ..crate::gpu::Grid::row(grid.chunks(), THREADS) }, args)
}

pub(super) fn compress(gpu: &Gpu, grid: Grid, spec: Spec, a: Compress<'_>) -> Result<bool> {
    if spec.codec != Codec::Compact {
        return Ok(cpu::compress(gpu.host(), simd::level(), grid, spec, a));
    }
    let scratch = binomials(gpu, 0)?;
    let finite = scratch + FINITE_AT as u64;
    gpu.write(finite, &1u32.to_le_bytes())?;
    let (anchor, theta) = match &a.delta {
        Some(delta) => (delta.anchor.device()?, delta.theta.device()?),
        None => (0, 0),
    };
    let args = cut(grid, spec).address(a.e.device_mut()?).address(anchor).address(theta);
    let args = args.address(a.update.device_mut()?).address(scratch).address(finite).float(a.beta);
    launch(gpu, "chunk_topk_compress", grid, CHUNK_BYTES, &args)?;
    let mut word = [0; 4];
    gpu.read(finite, &mut word)?;
    Ok(u32::from_le_bytes(word) == 1)
}

pub(super) fn fold(gpu: &Gpu, grid: Grid, spec: Spec, a: Fold<'_>) -> Result<()> {
    if spec.codec != Codec::Compact {
        super::fold::fold(gpu.host(), simd::level(), grid, spec, a);
        return Ok(());
    }
    let mut peers = Vec::new();
    for u in a.updates {
        peers.extend(u.update.device()?.to_le_bytes());
        peers.extend(u.factor.to_le_bytes());
        peers.extend([0; 4]);
    }
    let scratch = binomials(gpu, peers.len())?;
    gpu.write(scratch + LISTS_AT as u64, &peers)?;
    let args = cut(grid, spec).address(a.anchor.device_mut()?).address(a.theta.device_mut()?);
    let args = args.address(scratch + LISTS_AT as u64).address(scratch).int(a.updates.len());
    let args = args.float(a.alpha).flag(a.mean == Mean::Senders);
    launch(gpu, "chunk_topk_fold", grid, CHUNK_BYTES + 4 * CHUNK as u32, &args)
}

pub(super) fn sum_squares(gpu: &Gpu, grid: Grid, spec: Spec, update: &Tensor) -> Result<f64> {
    if spec.codec != Codec::Compact {
        return Ok(cpu::sum_squares(gpu.host(), grid, spec, update));
    }
    let mut sums = vec![0f64; grid.chunks()];
    let scratch = binomials(gpu, 8 * sums.len())?;
    let to = scratch + LISTS_AT as u64;
    let args = cut(grid, spec).address(update.device()?).address(scratch).address(to);
    launch(gpu, "chunk_topk_squares", grid, CHUNK_BYTES, &args)?;
    gpu.read(to, bytemuck::cast_slice_mut(&mut sums))?;
    // Chunks in order, as on the host.
    Ok(sums.iter().sum())
}
