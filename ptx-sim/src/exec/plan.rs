//! What the host asks of a launch, against what the kernel allows.

use super::Launch;
use super::warp::LANES;
use crate::ir::Kernel;

/// Numbers of a launch, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub threads: u32,
    pub warps: u32,
    /// Blocks of a cluster.
    pub blocks: u32,
    /// Where dynamic shared memory begins, and where it ends.
    pub dynamic: u64,
    pub shared: u64,
    pub dynamic_bytes: u32,
}

/// Shared memory of a block on the largest device the kernels are made for.
const SHARED_MAX: u64 = 227 * 1024;

impl Plan {
    pub fn new(k: &Kernel, l: &Launch<'_>) -> Result<Plan, String> {
        let product = |v: [u32; 3]| v.iter().try_fold(1u32, |p, &x| p.checked_mul(x));
        let threads = product(l.block).filter(|t| (1..=1024).contains(t));
        let threads = threads.ok_or(format!("{:?} threads; 1 to 1024 expected", l.block))?;
        if let Some(want) = k.req_threads.filter(|&want| want != l.block) {
            return Err(format!("{:?} threads where the kernel requires {want:?}", l.block));
        }
        if let Some(most) = k.max_threads().filter(|&most| threads > most) {
            return Err(format!("{threads} threads where the kernel allows {most}"));
        }
        if product(l.grid).is_none_or(|n| n == 0) {
            return Err(format!("a grid of {:?}", l.grid));
        }
        if l.params.len() != k.param_bytes {
            return Err(format!("{} bytes of parameters where it takes {}", l.params.len(), k.param_bytes));
        }
        let cluster = match k.cluster {
            Some(own) if l.cluster != [1; 3] && l.cluster != own => {
                return Err(format!("clusters of {:?} where the kernel has {own:?}", l.cluster));
            }
            Some(own) => own,
            None => l.cluster,
        };
        let blocks = product(cluster).filter(|n| (1..=16).contains(n));
        let blocks = blocks.ok_or(format!("clusters of {cluster:?}; 1 to 16 blocks expected"))?;
        if (0..3).any(|i| !l.grid[i].is_multiple_of(cluster[i])) {
            return Err(format!("a grid of {:?} is no multiple of its cluster {cluster:?}", l.grid));
        }
        let dynamic = k.shared_bytes.div_ceil(1024) * 1024;
        let shared = if l.shared > 0 || k.dynamic_shared { dynamic + u64::from(l.shared) } else { k.shared_bytes };
        // Where both kinds are used, hardware leaves less of a gap than the rounding here does.
        if k.shared_bytes + u64::from(l.shared) > SHARED_MAX {
            return Err(format!(
                "{} bytes of shared memory; at most {SHARED_MAX}",
                k.shared_bytes + u64::from(l.shared)
            ));
        }
        let warps = threads.div_ceil(LANES as u32);
        let (grid, block) = (l.grid, l.block);
        Ok(Plan { grid, block, cluster, threads, warps, blocks, dynamic, shared, dynamic_bytes: l.shared })
    }
}
