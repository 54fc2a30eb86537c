//! Barriers of a block: sixteen of them, each counting the threads that have come.
//!
//! A warp comes as a whole: its count goes up by 32 when the last of its lanes that have not ended arrives, as hardware
//! does it. Without a count, a barrier awaits all warps of the block that have not ended.

use std::fmt;

use super::warp::Warp;
use super::{Cluster, LANES};
use crate::fault::{Step, Stop};
use crate::ir::{Bar, BarRed};

/// What lanes wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// The block's barrier `id`; counted once all lanes of the warp are there.
    Bar { id: u32, count: Option<u32>, red: Option<(BarRed, u32)>, counted: bool },
    /// The other lanes of `members`; at the instruction at `pc`, or for a mere `__syncwarp` at any.
    Lanes { members: u32, pc: Option<u32> },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wait::Bar { id, count: Some(n), .. } => write!(f, "barrier {id} of {n} threads"),
            Wait::Bar { id, count: None, .. } => write!(f, "barrier {id} of the block"),
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
    pub(super) fn bar(&mut self, i: usize, pc: u32, b: &Bar, m: u32) -> Step<bool> {
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
            return self.arrived(i, id, count, lane);
        }
        let votes = b.red.map_or(0, |(_, p)| w.pred(p) & m);
        w.block(m, pc + 1, Wait::Bar { id, count, red: b.red.map(|(r, _)| (r, votes)), counted: false });
        self.count_warp(i, lane)?;
        Ok(self.warps[i].runnable())
    }

    /// Counts warp `i` at a barrier when all its lanes have come to it.
    fn count_warp(&mut self, i: usize, lane: u32) -> Step<()> {
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
        self.arrived(i, id, count, lane).map(|_| ())
    }

    fn arrived(&mut self, i: usize, id: u32, count: Option<u32>, lane: u32) -> Step<bool> {
        let cta = self.warps[i].cta;
        let bar = &mut self.ctas[cta].barriers[id as usize];
        if bar.threads > 0 && bar.expected != count {
            return Err(Stop::misuse(lane, format!("barrier {id} awaits {:?} threads and {count:?}", bar.expected)));
        }
        bar.expected = count;
        bar.threads += LANES as u32;
        self.complete(cta, id, lane)?;
        Ok(true)
    }

    /// Opens a barrier whose threads have all come.
    fn complete(&mut self, cta: usize, id: u32, lane: u32) -> Step<()> {
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
        for w in self.warps.iter_mut().filter(|w| w.cta == cta) {
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
            w.unblock(|wait| matches!(wait, Wait::Bar { id: n, counted: true, .. } if *n == id));
        }
        Ok(())
    }

    /// Lanes of warp `i` have ended: what awaited them is looked at again.
    pub(super) fn exited(&mut self, i: usize) -> Step<()> {
        let w = &self.warps[i];
        let cta = w.cta;
        if w.live != 0 {
            return self.count_warp(i, 0);
        }
        self.ctas[cta].live_warps -= 1;
        for id in 0..16 {
            self.complete(cta, id, 0)?;
        }
        Ok(())
    }
}
