//! On a device: `cuda/attention_mma.cu` for bf16 heads of a multiple of eight up to 256, `cuda/attention_plain.cu` for all
//! others. A head runs in the smallest size compiled that holds it.

use super::{Backward, Dims, Forward};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, Kernel, count, kernel},
    tensor::{DType, Tensor},
};

/// One compiled size.
struct Size {
    head: usize,
    module: &'static str,
    mma: bool,
}

const fn size(head: usize, module: &'static str, mma: bool) -> Size {
    Size { head, module, mma }
}

static SIZES: [Size; 9] = [
    size(64, "attention_mma_64", true),
    size(80, "attention_mma_80", true),
    size(96, "attention_mma_96", true),
    size(128, "attention_mma_128", true),
    size(256, "attention_mma_256", true),
    size(64, "attention_plain_64", false),
    size(128, "attention_plain_128", false),
    size(256, "attention_plain_256", false),
    size(512, "attention_plain_512", false),
];

impl Size {
    fn of(d: Dims, dtype: DType) -> &'static Size {
        let mma = dtype == DType::Bf16 && d.head_dim.is_multiple_of(8) && d.head_dim <= 256;
        SIZES.iter().find(|s| s.mma == mma && s.head >= d.head_dim).expect("a head that check lets pass")
    }

    fn kernel(&self, mma: &'static str, plain: &'static str) -> Kernel {
        kernel(self.module, if self.mma { mma } else { plain })
    }

    /// Queries that a block of forward and of dq owns.
    fn queries(&self) -> usize {
        if self.mma { 64 } else { 16 }
    }

    /// Keys that a block of dk and dv owns, and in how many parts.
    fn keys(&self) -> (usize, usize) {
        match self.mma {
            true => (64, if self.head <= 128 { 1 } else { 2 }),
            false => (16, 1),
        }
    }

    /// Shared memory of forward, and of both kernels of backward: tiles by rows of the head and a little more.
    fn shared(&self) -> (u32, u32) {
        let bytes = if self.mma {
            let row = (self.head + 8) * 2;
            let (keys, step) = if self.head <= 128 { (64, 32) } else { (32, 16) };
            ((64 + 2 * keys) * row, (2 * 64 + 2 * step) * row)
        } else {
            let (row, tile) = ((self.head + 1) * 4, if self.head <= 256 { 32 } else { 16 });
            let p = 16 * (tile + 1) * 4;
            ((16 + tile) * row + p, (32 + tile) * row + p)
        };
        (bytes.0 as u32, bytes.1 as u32)
    }
}

/// The sizes that end every list of arguments.
fn sizes(args: Args, d: Dims, s: &Size, dtype: DType) -> Args {
    let args = args.int(d.seq).int(d.heads).int(d.kv_heads).int(d.head_dim).float(d.scale() as f32);
    if s.mma { args } else { args.flag(dtype == DType::Bf16) }
}

fn optional(t: Option<&Tensor>) -> Result<u64> {
    t.map_or(Ok(0), Tensor::device)
}

pub(super) fn forward(gpu: &Gpu, d: Dims, a: Forward<'_>) -> Result<()> {
    let dtype = a.q.dtype();
    let s = Size::of(d, dtype);
    let args = Args::new().address(a.q.device()?).address(a.k.device()?).address(a.v.device()?);
    let args = args.address(optional(a.first)?).address(a.o.device_mut()?).address(a.lse.device_mut()?);
    let blocks = [count(d.seq.div_ceil(s.queries())), count(d.heads), count(d.batch)];
    let grid = Grid { blocks, threads: 128, shared: s.shared().0 };
    gpu.launch(s.kernel("attention_mma_forward", "attention_plain_forward"), grid, &sizes(args, d, s, dtype))
}

pub(super) fn backward(gpu: &Gpu, d: Dims, a: Backward<'_>) -> Result<()> {
    let dtype = a.q.dtype();
    let s = Size::of(d, dtype);
    let rows = d.batch * d.seq * d.heads;
    let (do_, delta) = (a.do_.device()?, a.delta.device_mut()?);
    let args = Args::new().address(a.o.device()?).address(do_).address(delta);
    let args = args.int(rows).int(d.seq).int(d.heads).int(d.head_dim).flag(dtype == DType::Bf16);
    gpu.launch(kernel("attention_delta", "attention_delta"), Grid::row(rows.div_ceil(8), 256), &args)?;

    let inputs = Args::new().address(a.q.device()?).address(a.k.device()?).address(a.v.device()?);
    let inputs = inputs.address(optional(a.first)?).address(a.lse.device()?).address(do_).address(delta);
    let (keys, parts) = s.keys();
    let grid = |blocks| Grid { blocks, threads: 128, shared: s.shared().1 };

    let args = sizes(inputs.address(a.dk.device_mut()?).address(a.dv.device_mut()?), d, s, dtype);
    let k = s.kernel("attention_mma_backward_kv", "attention_plain_backward_kv");
    gpu.launch(k, grid([count(d.seq.div_ceil(keys)), count(d.kv_heads * parts), count(d.batch)]), &args)?;

    let args = sizes(inputs.address(a.dq.device_mut()?), d, s, dtype);
    let k = s.kernel("attention_mma_backward_q", "attention_plain_backward_q");
    gpu.launch(k, grid([count(d.seq.div_ceil(s.queries())), count(d.heads), count(d.batch)]), &args)
}
