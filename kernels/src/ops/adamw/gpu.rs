//! On a device: see `cuda/adamw.cu`.

use super::{Hyper, Step, split};
use crate::{
    Result,
    gpu::{Args, Gpu, Grid, kernel},
};

/// Elements that a block owns.
const PER_BLOCK: usize = 2048;

pub(super) fn step(gpu: &Gpu, len: usize, a: Step<'_>, h: Hyper) -> Result<()> {
    let args = Args::new().address(a.w.device_mut()?).address(a.g.device_mut()?);
    let args = args.address(a.m.device_mut()?).address(a.v.device_mut()?);
    let args = args.address(a.out.map_or(Ok(0), |out| out.device_mut())?).long(len);
    gpu.launch(kernel("adamw", "adamw_step"), Grid::row(len.div_ceil(PER_BLOCK), 256), &numbers(args, h))
}

/// See [`super::split::step`].
pub(super) fn step_split(gpu: &Gpu, len: usize, a: split::Step<'_>, h: Hyper) -> Result<()> {
    let args = Args::new().address(a.high.device_mut()?).address(a.low.device_mut()?).address(a.g.device_mut()?);
    let args = args.address(a.m.device_mut()?).address(a.v.device_mut()?).long(len);
    gpu.launch(kernel("adamw", "adamw_step_split"), Grid::row(len.div_ceil(PER_BLOCK), 256), &numbers(args, h))
}

fn numbers(args: Args, h: Hyper) -> Args {
    let f = h.factors();
    let args = args.float(f.scale).float(f.one_less_beta1).float(f.beta2).float(f.one_less_beta2);
    args.float(f.keep).float(f.rate).float(f.root).float(f.eps).flag(h.zero_grad)
}
