//! Addresses from one window to another: `cvta`, `isspacep`, `mapa`, `getctarank`.

use super::alu::bits_of;
use super::memory::{addresses, lanes};
use super::warp::{LANES, Warp};
use super::{Context, space_name};
use crate::fault::{Step, Stop};
use crate::ir::{Addr, Row, Space};
use crate::window;

/// A window's address to a generic one, or back.
pub(super) fn cvta(w: &mut Warp, m: u32, space: Space, to: bool, wide: bool, d: Row, a: Row) -> Step<()> {
    let base = match space {
        Space::Shared | Space::Cluster => window::SHARED,
        Space::Local => window::LOCAL,
        Space::Param => window::PARAM,
        Space::Generic | Space::Global | Space::Const => 0,
    };
    if !wide {
        let lane = m.trailing_zeros();
        return Err(Stop::misuse(lane, "generic addresses have 64 bits"));
    }
    let x = *w.r64(a);
    let out = x.map(|x| if to { x.wrapping_sub(base) } else { x.wrapping_add(base) });
    w.set64(d, m, &out);
    Ok(())
}

pub(super) fn is_space(w: &mut Warp, m: u32, space: Space, d: u16, a: &Addr) -> Step<()> {
    let at = addresses(w, a);
    let want = match space {
        Space::Global => "global",
        Space::Shared | Space::Cluster => "shared",
        Space::Local => "local",
        Space::Param => "parameter",
        Space::Const | Space::Generic => "constant",
    };
    let v = bits_of(|i| space_name(at[i]) == want);
    w.set_pred(d, m, v);
    Ok(())
}

/// `mapa`: the address of `a` in the block of that rank.
pub(super) fn mapa(
    w: &mut Warp,
    x: &Context<'_>,
    m: u32,
    wide: bool,
    generic: bool,
    d: Row,
    a: &Addr,
    rank: Row,
) -> Step<()> {
    let (at, ranks) = (addresses(w, a), *w.r32(rank));
    for i in lanes(m) {
        if ranks[i] >= x.plan.blocks {
            let what = format!("block {} of a cluster of {}", ranks[i], x.plan.blocks);
            return Err(Stop::misuse(i as u32, what));
        }
    }
    let base = if generic { window::SHARED } else { 0 };
    let out: [u64; LANES] = std::array::from_fn(|i| {
        let offset = at[i].wrapping_sub(base) & ((1 << window::BLOCK_BITS) - 1);
        base + (u64::from(ranks[i].wrapping_add(1) & 0xFF) << window::BLOCK_BITS | offset)
    });
    if wide {
        w.set64(d, m, &out);
    } else {
        w.set32(d, m, &out.map(|v| v as u32));
    }
    Ok(())
}

/// `getctarank`: the block an address of shared memory belongs to.
pub(super) fn rank_of(w: &mut Warp, m: u32, generic: bool, d: Row, a: &Addr) {
    let (at, own) = (addresses(w, a), w.cta as u32);
    let base = if generic { window::SHARED } else { 0 };
    let out = at.map(|v| match (v.wrapping_sub(base) >> window::BLOCK_BITS) as u32 {
        0 => own,
        n => n - 1,
    });
    w.set32(d, m, &out);
}
