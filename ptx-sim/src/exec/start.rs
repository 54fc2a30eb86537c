//! The registers a warp starts with.

use super::Context;
use super::plan::Plan;
use super::warp::{LANES, Warp};
use crate::ir::{Fill, Special, Width};

/// Fills the rows of constants and special registers of a warp; after the first time only those the block changes.
pub(super) fn fill_rows(x: &Context<'_>, w: &mut Warp, block: [u32; 3], cluster: [u32; 3], rank: u32) {
    let (p, kept) = (&x.plan, w.is_kept());
    for &(row, width, fill) in &x.kernel.fills {
        let values: [u64; LANES] = match fill {
            Fill::Const(_) | Fill::Dynamic(_) if kept => continue,
            Fill::Const(v) => [v; LANES],
            Fill::Dynamic(off) => [p.dynamic.wrapping_add_signed(off); LANES],
            Fill::Special(s) => match (s.of_block(), kept) {
                (false, true) => continue,
                (true, _) => [special(p, s, w.id, 0, block, cluster, rank).into(); LANES],
                (false, false) => std::array::from_fn(|i| special(p, s, w.id, i as u32, block, cluster, rank).into()),
            },
        };
        match width {
            Width::W64 => w.set64(row, u32::MAX, &values),
            _ => w.set32(row, u32::MAX, &values.map(|v| v as u32)),
        }
    }
    if !kept {
        w.keep();
    }
}

fn special(p: &Plan, s: Special, warp: u32, lane: u32, block: [u32; 3], cluster: [u32; 3], rank: u32) -> u32 {
    let t = warp * LANES as u32 + lane;
    let axis = |v: [u32; 3], n: u8| v[n as usize];
    let within: [u32; 3] = std::array::from_fn(|i| block[i] - cluster[i] * p.cluster[i]);
    match s {
        Special::Tid(n) => axis([t % p.block[0], t / p.block[0] % p.block[1], t / p.block[0] / p.block[1]], n),
        Special::BlockDim(n) => axis(p.block, n),
        Special::BlockId(n) => axis(block, n),
        Special::GridDim(n) => axis(p.grid, n),
        Special::ClusterId(n) => axis(cluster, n),
        Special::ClusterCount(n) => axis(std::array::from_fn(|i| p.grid[i] / p.cluster[i]), n),
        Special::ClusterBlock(n) => axis(within, n),
        Special::ClusterDim(n) => axis(p.cluster, n),
        Special::ClusterRank => rank,
        Special::ClusterSize => p.blocks,
        Special::Lane => lane,
        Special::WarpId => warp,
        Special::WarpCount => p.warps,
        Special::SmId => (block[0] + block[1] * 7 + block[2] * 13) % 132,
        Special::SmCount => 132,
        Special::MaskEq => 1 << lane,
        Special::MaskLe => (2u32 << lane).wrapping_sub(1),
        Special::MaskLt => (1 << lane) - 1,
        Special::MaskGe => u32::MAX << lane,
        Special::MaskGt => u32::MAX << lane & !(1 << lane),
        Special::DynamicBytes => p.dynamic_bytes,
        Special::SharedBytes => p.shared as u32,
    }
}
