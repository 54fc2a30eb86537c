//! Shows every access to the race check, and turns what it finds into faults.

use super::memory::{Home, place};
use super::warp::{LANES, Warp};
use super::{Context, Plan};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{Inst, Kernel, Op, Order, Space};
use crate::race::{Actor, Clash, Strong, Who};

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
    let mut actor = Actor { warp: index(&x.plan, w), lane: 0, pc: x.pc, strong, engine: None };
    let blocks = x.plan.blocks as usize;
    for i in 0..LANES {
        if m >> i & 1 == 0 {
            continue;
        }
        actor.lane = i;
        let Some((home, address)) = place(space, at[i], w.cta, blocks) else { continue };
        let twin = |j: usize| same(i, j);
        let found = match home {
            Home::Shared(cta) => races.shared(cta, address, n, kind.write, &actor, &twin),
            Home::Global => races.global(&mut x.shadow, address, n, kind.write, &actor, &twin),
            _ => Ok(()),
        };
        if let Home::Shared(cta) = home
            && cta != w.cta
        {
            races.remote(cta, &actor);
        }
        if let Err(clash) = found {
            return Err(fault(x, home, kind.what, i as u32, clash));
        }
        if strong {
            let cta = if let Home::Shared(cta) = home { Some(cta) } else { None };
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

/// The narrowest access the kernel makes to shared and to device memory, in bytes, at most 4: a cell's width.
pub(super) fn grains(k: &Kernel) -> (u32, u32) {
    let (mut shared, mut global) = (4, 4);
    let mut note = |space: Space, bytes: u32| {
        if matches!(space, Space::Shared | Space::Cluster | Space::Generic) {
            shared = shared.min(bytes);
        }
        if matches!(space, Space::Global | Space::Generic) {
            global = global.min(bytes);
        }
    };
    for Inst { op, .. } in &k.code {
        match op {
            Op::Ld(a) | Op::St(a) => note(a.space, a.bytes),
            Op::Atom(a) => note(a.space, a.bytes),
            _ => {}
        }
    }
    (shared, global)
}
