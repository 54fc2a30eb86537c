//! Shows every access to the race check, and turns what it finds into faults.

use super::Context;
use super::memory::{Home, place};
use super::plan::Plan;
use super::warp::{LANES, Warp};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{Inst, Kernel, Op, Order, Space};
use crate::race::{Actor, Clash, Grain, Strong, Who};

/// What an access is, for the check and for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub what: &'static str,
    pub write: bool,
    pub order: Order,
}

impl Kind {
    pub const fn read(what: &'static str) -> Kind {
        Kind { what, write: false, order: Order::Weak }
    }

    pub const fn write(what: &'static str) -> Kind {
        Kind { what, write: true, order: Order::Weak }
    }
}

/// The number of a warp in its cluster.
pub(super) fn index(p: &Plan, w: &Warp) -> usize {
    w.cta * p.warps as usize + w.id as usize
}

/// `n` bytes at `at` of every lane of `m`. `same(i, j)` tells whether lanes i and j store the same.
pub(super) fn lanes(
    w: &Warp,
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    n: usize,
    kind: Kind,
    same: impl Fn(usize, usize) -> bool,
) -> Step<()> {
    let Some(races) = x.races.as_deref_mut() else { return Ok(()) };
    let strong = kind.order != Order::Weak;
    let warp = index(&x.plan, w);
    let blocks = x.plan.blocks as usize;
    // Lanes that read the same bytes are looked at together, as long as it makes no difference.
    let mut grouped = !kind.write && !strong && races.clocks.is_uniform(warp);
    let twice = grouped && m == u32::MAX && at[..16] == at[16..];
    let mut left = m;
    while left != 0 {
        let i = left.trailing_zeros() as usize;
        let mut actor = Actor { strong, ..Actor::lane(warp, i, x.pc) };
        let lies = place(space, at[i], w.cta, blocks);
        let Some((home @ (Home::Shared(_) | Home::Global), address)) = lies else {
            left &= left - 1;
            continue;
        };
        let cta = if let Home::Shared(cta) = home { Some(cta) } else { None };
        if grouped && cta.is_none_or(|cta| cta == w.cta) {
            actor.lanes = alike(at, left, i, twice);
            if actor.lanes != 1 << i && !races.agree(&mut x.shadow, cta, address, n, &actor) {
                (grouped, actor.lanes) = (false, 1 << i);
            }
        }
        left &= !actor.lanes;
        let twin = |j: usize| same(i, j);
        let found = match cta {
            Some(cta) => races.shared(cta, address, n, kind.write, &actor, &twin),
            None => races.global(&mut x.shadow, address, n, kind.write, &actor, &twin),
        };
        if let Some(cta) = cta.filter(|&cta| cta != w.cta) {
            races.remote(cta, &actor);
        }
        if let Err(clash) = found {
            return Err(fault(x, home, kind.what, i as u32, clash));
        }
        if strong {
            let atomic = kind.what == "atomic";
            let s = Strong {
                reads: atomic || !kind.write,
                writes: kind.write,
                acquire: matches!(kind.order, Order::Acquire | Order::AcqRel),
                release: matches!(kind.order, Order::Release | Order::AcqRel),
            };
            races.strong(&mut x.shadow, cta, address, &actor, w.live, s);
        }
    }
    Ok(())
}

/// The lanes of `left` from lane `i` on that have its address; where lanes 16 to 31 do as lanes 0 to 15, those of both.
#[inline(always)]
fn alike(at: &[u64; LANES], left: u32, i: usize, twice: bool) -> u32 {
    let end = if twice { LANES / 2 } else { LANES };
    let mut j = i + 1;
    while j < end && left >> j & 1 == 1 && at[j] == at[i] {
        j += 1;
    }
    let run = (u32::MAX >> (32 - (j - i))) << i;
    if twice && i < end { run | run << 16 } else { run }
}

/// The fault of a clash found by lane `lane`.
pub(super) fn fault(x: &Context<'_>, home: Home, what: &'static str, lane: u32, c: Clash) -> Box<Stop> {
    let line = x.kernel.code[c.pc as usize].line;
    let per_block = x.plan.warps as usize * LANES;
    let by = match c.who {
        Who::Engine => "an asynchronous engine".to_string(),
        Who::Elsewhere => "a thread of another cluster".to_string(),
        Who::Thread(t) => {
            let (block, t) = (t / per_block, t % per_block);
            let of = if x.plan.blocks > 1 { format!(" of block {block} of the cluster") } else { String::new() };
            format!("warp {} lane {}{of}", t / LANES, t % LANES)
        }
    };
    let (space, address) = (home.name(), c.address);
    let kind = if c.proxy {
        FaultKind::ProxyFence { space, address, by, line }
    } else {
        FaultKind::Race { what, space, address, other: c.other, by, line }
    };
    Stop::new(lane, kind)
}

/// How wide the accesses are that the kernel makes to shared and to device memory.
pub(super) fn grains(k: &Kernel) -> (Grain, Grain) {
    let (mut shared, mut global) = (Grain { part: 4, cell: 1 }, Grain { part: 4, cell: 1 });
    // `one` of the bytes an access asks for at once, `all` of them.
    let mut note = |space: Space, one: u32, all: u32| {
        let widen = |g: &mut Grain| *g = Grain { part: g.part.min(one), cell: g.cell.max(all.min(16)) };
        if matches!(space, Space::Shared | Space::Cluster | Space::Generic) {
            widen(&mut shared);
        }
        if matches!(space, Space::Global | Space::Generic) {
            widen(&mut global);
        }
    };
    for Inst { op, .. } in &k.code {
        match op {
            Op::Ld(a) | Op::St(a) => note(a.space, a.bytes, a.bytes * a.slots.len() as u32),
            Op::Atom(a) => note(a.space, a.bytes, a.bytes),
            Op::LdMatrix(_) | Op::StMatrix(_) | Op::CpAsync(_) | Op::Bulk(_) | Op::Wgmma(_) => {
                note(Space::Generic, 16, 16);
            }
            _ => {}
        }
    }
    (shared, global)
}
