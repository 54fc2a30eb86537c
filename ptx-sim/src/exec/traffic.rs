//! Counts what accesses move: bytes always; sectors of device memory and passes over the banks of shared memory, by line,
//! when counters are asked for.

use super::memory::lanes;
use super::warp::LANES;
use super::{Context, space_name};
use crate::ir::Space;

/// Adds the traffic of one access to the counters; `n` bytes a lane.
pub(super) fn count(x: &mut Context<'_>, space: Space, at: &[u64; LANES], m: u32, n: usize, pc: u32, store: bool) {
    let bytes = u64::from(m.count_ones()) * n as u64;
    let first = at[m.trailing_zeros() as usize & 31];
    let shared =
        matches!(space, Space::Shared | Space::Cluster) || space == Space::Generic && space_name(first) == "shared";
    let global = space == Space::Global || space == Space::Generic && space_name(first) == "global";
    let total = match (shared, global, store) {
        (true, _, false) => &mut x.report.shared_read,
        (true, _, true) => &mut x.report.shared_written,
        (_, true, false) => &mut x.report.global_read,
        (_, true, true) => &mut x.report.global_written,
        _ => return,
    };
    *total += bytes;
    if !x.counters {
        return;
    }
    let line = &mut x.lines[pc as usize];
    if global {
        let mut sectors: Vec<u64> =
            lanes(m).flat_map(|i| [at[i] / 32, at[i].saturating_add(n as u64 - 1) / 32]).collect();
        sectors.sort_unstable();
        sectors.dedup();
        line.sectors += sectors.len() as u64;
        line.sectors_best += bytes.div_ceil(32);
    } else {
        line.conflicts += bank_passes(at, m, n);
    }
}

/// Passes over the 32 banks of 4 bytes beyond the fewest possible. Wide accesses go in parts of 128 bytes: half a warp
/// at 8 bytes a lane, a quarter at 16.
fn bank_passes(at: &[u64; LANES], m: u32, n: usize) -> u64 {
    let group = (128 / n.max(4)).clamp(1, LANES);
    let mut extra = 0;
    for start in (0..LANES).step_by(group) {
        let mut words: Vec<u64> = (start..start + group)
            .filter(|i| m >> i & 1 == 1)
            .flat_map(|i| (at[i] / 4)..=(at[i].saturating_add(n as u64 - 1) / 4))
            .collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; 32];
        words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
        extra += banks.iter().max().map_or(0, |&most| most.saturating_sub(1));
    }
    extra
}
