//! Barriers of a block: sixteen of them, each counting the threads that have come.
//!
//! A warp comes as a whole: its count goes up by 32 when the last of its lanes that have not ended arrives, as hardware
//! does it. Without a count, a barrier awaits all warps of the block that have not ended.

use std::fmt;

use super::warp::Warp;
use super::{Cluster, Context, LANES, watch};
use crate::fault::{Step, Stop};
use crate::ir::{Bar, BarRed};

/// What lanes wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// The block's barrier `id`; counted once all lanes of the warp are there.
    Bar { id: u32, count: Option<u32>, red: Option<(BarRed, u32)>, counted: bool },
    /// A phase of the mbarrier at `offset` of block `cta`, told by its parity or its token; `p` hears of its end.
    Mbar { cta: usize, offset: u64, awaited: u64, parity: bool, p: Option<u16> },
    /// The other warps of the warpgroup, at wgmma.wait_group.
    Group { left: u32 },
    /// The cluster's barrier, for the n-th time.
    Cluster { phase: u64 },
    /// The other lanes of `members`; at the instruction at `pc`, or for a mere `__syncwarp` at any.
    Lanes { members: u32, pc: Option<u32> },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Bar { id, count: Some(n), .. } => write!(f, "barrier {id} of {n} threads"),
            Wait::Bar { id, count: None, .. } => write!(f, "barrier {id} of the block"),
            Wait::Mbar { cta, offset, awaited, parity: true, .. } => {
                write!(f, "the phase of parity {awaited} of the mbarrier at {offset:#x} of block {cta} of the cluster")
            }
            Wait::Mbar { cta, offset, awaited, .. } => {
                write!(f, "phase {awaited} of the mbarrier at {offset:#x} of block {cta} of the cluster")
            }
            Wait::Group { left } => write!(f, "the other warps of its warpgroup at wgmma.wait_group {left}"),
            Wait::Cluster { phase } => write!(f, "the cluster's barrier, for the {phase}. time"),
            Wait::Lanes { members, .. } => write!(f, "lanes {members:#010x} of its warp"),
        }
    }
}

/// One barrier's state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Barrier {
    threads: u32,
    expected: Option<u32>,
    any: bool,
    all_not: bool,
    sum: u32,
}

impl Cluster {
    /// Lanes `m` of warp `i` come to a barrier. False, as they have to wait or have just woken others.
    pub(super) fn bar(&mut self, x: &mut Context<'_>, i: usize, pc: u32, b: &Bar, m: u32) -> Step<bool> {
        let w = &mut self.warps[i];
        let lane = m.trailing_zeros();
        let uniform = |w: &Warp, row: u32| {
            let v = w.r32(row);
            let first = v[lane as usize];
            let same = (0..LANES).all(|l| m >> l & 1 == 0 || v[l] == first);
            if same { Ok(first) } else { Err(Stop::misuse(lane, "lanes of a warp name different barriers")) }
        };
        let id = uniform(w, b.id)?;
        let count = b.count.map(|c| uniform(w, c)).transpose()?.filter(|&c| c != 0);
        if id >= 16 {
            return Err(Stop::misuse(lane, format!("barrier {id}; there are 16")));
        }
        if count.is_some_and(|c| c % 32 != 0 || c > 1024) {
            return Err(Stop::misuse(lane, format!("a barrier of {count:?} threads, no multiple of 32 up to 1024")));
        }
        if b.arrive_only {
            if m != w.live {
                return Err(Stop::misuse(lane, "bar.arrive by a part of a warp"));
            }
            return self.arrived(x, i, id, count, lane);
        }
        let votes = b.red.map_or(0, |(_, p)| w.pred(p) & m);
        w.block(m, pc + 1, Wait::Bar { id, count, red: b.red.map(|(r, _)| (r, votes)), counted: false });
        self.count_warp(x, i, lane)?;
        Ok(self.warps[i].runnable())
    }

    /// Counts warp `i` at a barrier when all its lanes have come to it.
    fn count_warp(&mut self, x: &mut Context<'_>, i: usize, lane: u32) -> Step<()> {
        let w = &mut self.warps[i];
        let Some(&(_, Wait::Bar { id, count, .. })) =
            w.waits.iter().find(|(_, w)| matches!(w, Wait::Bar { counted: false, .. }))
        else {
            return Ok(());
        };
        let here = |wait: &Wait| matches!(wait, Wait::Bar { id: n, counted: false, .. } if *n == id);
        let there: u32 = w.waits.iter().filter(|(_, w)| here(w)).fold(0, |m, (l, _)| m | l);
        if there != w.live {
            return Ok(());
        }
        let (mut ones, mut lanes) = (0, 0);
        for (mask, wait) in &mut w.waits {
            if let Wait::Bar { red, counted, .. } = wait {
                *counted = true;
                lanes |= *mask;
                ones |= red.map_or(0, |(_, v)| v);
            }
        }
        let cta = w.cta;
        let bar = &mut self.ctas[cta].barriers[id as usize];
        bar.sum += ones.count_ones();
        bar.any |= ones != 0;
        bar.all_not |= ones != lanes;
        self.arrived(x, i, id, count, lane).map(|_| ())
    }

    fn arrived(&mut self, x: &mut Context<'_>, i: usize, id: u32, count: Option<u32>, lane: u32) -> Step<bool> {
        let cta = self.warps[i].cta;
        let bar = &mut self.ctas[cta].barriers[id as usize];
        if bar.threads > 0 && bar.expected != count {
            return Err(Stop::misuse(lane, format!("barrier {id} awaits {:?} threads and {count:?}", bar.expected)));
        }
        bar.expected = count;
        bar.threads += LANES as u32;
        let w = &self.warps[i];
        if let Some(r) = &mut x.races {
            let at = watch::index(&x.plan, w);
            r.clocks.meet(at, w.live, w.live);
            r.arrive(cta, id as usize, at, w.live);
        }
        self.complete(x, cta, id, lane)?;
        Ok(true)
    }

    /// Opens a barrier whose threads have all come.
    fn complete(&mut self, x: &mut Context<'_>, cta: usize, id: u32, lane: u32) -> Step<()> {
        let c = &mut self.ctas[cta];
        let bar = c.barriers[id as usize];
        let expected = bar.expected.unwrap_or(c.live_warps * LANES as u32);
        if bar.threads == 0 || bar.threads < expected {
            return Ok(());
        }
        if bar.threads > expected {
            return Err(Stop::misuse(lane, format!("{} threads at barrier {id} of {expected}", bar.threads)));
        }
        c.barriers[id as usize] = Barrier::default();
        let known = x.races.as_mut().and_then(|r| r.open(cta, id as usize));
        for w in self.warps.iter_mut().filter(|w| w.cta == cta) {
            let waits = |wait: &Wait| matches!(wait, Wait::Bar { id: n, counted: true, .. } if *n == id);
            if let (Some(r), Some(known)) = (&mut x.races, &known)
                && w.waits.iter().any(|(_, wait)| waits(wait))
            {
                r.clocks.acquire(watch::index(&x.plan, w), w.live, w.live, known);
            }
            let mut results = Vec::new();
            for (mask, wait) in &w.waits {
                if let Wait::Bar { id: n, red: Some((r, _)), .. } = wait
                    && *n == id
                {
                    results.push((*mask, *r));
                }
            }
            for (mask, r) in results {
                match r {
                    BarRed::Popc(d) => w.set32(d, mask, &[bar.sum; LANES]),
                    BarRed::And(p) => w.set_pred(p, mask, if bar.all_not { 0 } else { u32::MAX }),
                    BarRed::Or(p) => w.set_pred(p, mask, if bar.any { u32::MAX } else { 0 }),
                }
            }
            w.unblock(waits);
        }
        Ok(())
    }

    /// Lanes come to the cluster's barrier, which opens when all that have not ended have. Unlike the block's barriers
    /// it counts threads.
    pub(super) fn cluster_arrive(&mut self, x: &mut Context<'_>, i: usize, m: u32, release: bool) -> Step<()> {
        let (w, phase) = (&mut self.warps[i], self.cluster_phase);
        for lane in (0..LANES).filter(|l| m >> l & 1 == 1) {
            if w.cluster_arrivals[lane] > phase {
                return Err(Stop::misuse(
                    lane as u32,
                    "the thread comes to the cluster's barrier twice without a wait",
                ));
            }
            w.cluster_arrivals[lane] += 1;
        }
        if let (Some(r), true) = (&mut x.races, release) {
            r.cluster_arrive(watch::index(&x.plan, w), m);
        }
        self.cluster_complete(x);
        Ok(())
    }

    fn cluster_complete(&mut self, x: &mut Context<'_>) {
        let now = self.cluster_phase;
        let come = |w: &Warp| (0..LANES).fold(0, |m, l| m | u32::from(w.cluster_arrivals[l] > now) << l);
        let mut any = false;
        for w in &self.warps {
            let there = come(w);
            any |= there != 0;
            if w.live & !there != 0 {
                return;
            }
        }
        if !any {
            return;
        }
        self.cluster_phase += 1;
        let phase = self.cluster_phase;
        if let Some(r) = &mut x.races {
            r.cluster_open();
        }
        for w in &mut self.warps {
            let over = |wait: &Wait| matches!(wait, Wait::Cluster { phase: p } if *p <= phase);
            let woken = w.waits.iter().filter(|(_, wait)| over(wait)).fold(0, |m, (lanes, _)| m | lanes);
            if let (Some(r), true) = (&mut x.races, woken != 0) {
                r.cluster_pass(watch::index(&x.plan, w), woken, w.live);
            }
            w.unblock(over);
        }
    }

    pub(super) fn cluster_wait(&mut self, x: &mut Context<'_>, i: usize, pc: u32, m: u32) -> Step<bool> {
        let w = &mut self.warps[i];
        let lane = m.trailing_zeros() as usize;
        let arrivals = w.cluster_arrivals[lane];
        if (0..LANES).any(|l| m >> l & 1 == 1 && w.cluster_arrivals[l] != arrivals) {
            return Err(Stop::misuse(
                lane as u32,
                "lanes that wait at the cluster's barrier came to it unequally often",
            ));
        }
        if arrivals > self.cluster_phase {
            w.block(m, pc + 1, Wait::Cluster { phase: arrivals });
            return Ok(w.runnable());
        }
        if let Some(r) = &mut x.races {
            r.cluster_pass(watch::index(&x.plan, w), m, w.live);
        }
        Ok(true)
    }

    /// Lanes of warp `i` have ended: what awaited them is looked at again.
    pub(super) fn exited(&mut self, x: &mut Context<'_>, i: usize) -> Step<()> {
        let w = &self.warps[i];
        let cta = w.cta;
        if w.live != 0 {
            self.count_warp(x, i, 0)?;
            self.cluster_complete(x);
            return Ok(());
        }
        self.ctas[cta].live_warps -= 1;
        let over = self.ctas[cta].live_warps == 0;
        if let Some((who, pc)) = x.races.as_ref().filter(|_| over).and_then(|r| r.unended(cta)) {
            let (block, line) = (who / (x.plan.warps as usize * LANES), x.kernel.code[pc as usize].line);
            let what = "ends, and none of its threads knows that";
            return Err(Stop::misuse(
                0,
                format!("the block {what} block {block} of the cluster is done with it (line {line})"),
            ));
        }
        for id in 0..16 {
            self.complete(x, cta, id, 0)?;
        }
        self.cluster_complete(x);
        Ok(())
    }
}
