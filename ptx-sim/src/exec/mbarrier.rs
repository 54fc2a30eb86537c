//! mbarriers: phases that end when enough threads have arrived and enough bytes have come.
//!
//! A phase of an mbarrier ends once as many arrivals as it was made for have come and its count of bytes is zero. Who
//! waits for a phase learns what all who arrived in it knew, and what the copies that completed on it wrote.

use std::rc::Rc;

use super::barrier::Wait;
use super::memory::{Home, addresses, inside, outside, place, region};
use super::warp::{LANES, Warp};
use super::{Cluster, Context, watch};
use crate::clock::Known;
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{Mbar, MbarOp};
use crate::race::{Actor, Who};

/// One mbarrier's state.
#[derive(Debug)]
pub(crate) struct MbarState {
    /// Arrivals a phase takes.
    count: u32,
    /// Arrivals the present phase still takes.
    pending: u32,
    /// Bytes the present phase still awaits; negative when they come before they are announced.
    bytes: i64,
    /// Phases that have ended.
    pub phase: u64,
    /// Who made it, and when, for the race check: thread, clock, instruction.
    made: (usize, u32, u32),
    /// The engine of the copies that complete here.
    pub engine: usize,
    /// What those know who arrived in this phase, and in those before.
    arriving: Known,
    done: Rc<Known>,
}

impl Cluster {
    /// The mbarrier at an address of lane `lane` of warp `i`, made and known to be made.
    pub(super) fn mbar_at(
        &mut self,
        x: &mut Context<'_>,
        i: usize,
        lane: u32,
        m: &Mbar,
        at: u64,
    ) -> Step<(usize, u64)> {
        let w = &self.warps[i];
        let blocks = self.ctas.len();
        let Some((Home::Shared(cta), offset)) = place(m.space, at, w.cta, blocks) else {
            return Err(Stop::misuse(lane, format!("an mbarrier at {at:#x}, outside of shared memory")));
        };
        let fits =
            region(&mut self.ctas, x, Home::Shared(cta), offset).is_some_and(|r| inside(&r, offset, 8).is_some());
        if !fits {
            return Err(Stop::new(lane, outside(x, Home::Shared(cta), offset, 8, "mbarrier")));
        }
        if offset % 8 != 0 {
            let kind = FaultKind::Misaligned { what: "mbarrier", space: "shared", address: offset, bytes: 8 };
            return Err(Stop::new(lane, kind));
        }
        if matches!(m.op, MbarOp::Init { .. }) {
            return Ok((cta, offset));
        }
        let Some(bar) = self.ctas[cta].mbars.get(&offset) else {
            return Err(Stop::misuse(lane, format!("no mbarrier was made at {offset:#x}")));
        };
        let (who, clock, pc) = bar.made;
        if let Some(r) = &x.races
            && !r.clocks.knows(watch::index(&x.plan, &self.warps[i]), lane as usize, who, clock)
        {
            let clash =
                crate::race::Clash { address: offset, pc, other: "making", who: Who::Thread(who), proxy: false };
            return Err(watch::fault(x, Home::Shared(cta), "use of an mbarrier", lane, clash));
        }
        let w = &self.warps[i];
        if let (Some(r), true) = (&mut x.races, cta != w.cta) {
            let warp = watch::index(&x.plan, w);
            r.remote(cta, &Actor { strong: true, ..Actor::lane(warp, lane as usize, x.pc) });
        }
        Ok((cta, offset))
    }

    pub(super) fn mbarrier(&mut self, x: &mut Context<'_>, i: usize, pc: u32, b: &Mbar, m: u32) -> Step<bool> {
        let at = addresses(&self.warps[i], &b.addr);
        if let MbarOp::Wait { p, phase, parity, test } = b.op {
            return self.mbar_wait(x, i, pc, b, m, &at, (p, phase, parity, test));
        }
        for lane in (0..LANES).filter(|l| m >> l & 1 == 1) {
            let (cta, offset) = self.mbar_at(x, i, lane as u32, b, at[lane])?;
            self.mbar_lane(x, i, lane, b.op, cta, offset)?;
        }
        Ok(true)
    }

    fn mbar_lane(
        &mut self,
        x: &mut Context<'_>,
        i: usize,
        lane: usize,
        op: MbarOp,
        cta: usize,
        offset: u64,
    ) -> Step<()> {
        let misuse = |what: String| Err(Stop::misuse(lane as u32, what));
        let w = &mut self.warps[i];
        let read = |w: &Warp, row: u32| w.r32(row)[lane];
        let at = watch::index(&x.plan, w);
        match op {
            MbarOp::Init { count } => {
                let count = read(w, count);
                if count == 0 || count >= 1 << 20 {
                    return misuse(format!("an mbarrier of {count} arrivals; 1 to 1048575 expected"));
                }
                let (clock, engine) = match &mut x.races {
                    Some(r) => (r.clocks.stamp(at), r.clocks.engine()),
                    None => (0, 0),
                };
                let made = (at * LANES + lane, clock, x.pc);
                let new = MbarState {
                    count,
                    pending: count,
                    bytes: 0,
                    phase: 0,
                    made,
                    engine,
                    arriving: Known::default(),
                    done: Rc::default(),
                };
                self.ctas[cta].mbars.insert(offset, new);
            }
            MbarOp::Inval => {
                self.ctas[cta].mbars.remove(&offset);
            }
            MbarOp::Expect { bytes } => {
                let n = read(w, bytes);
                self.bar_mut(cta, offset).bytes += i64::from(n);
            }
            MbarOp::Complete { bytes } => {
                let n = read(w, bytes);
                self.bar_mut(cta, offset).bytes -= i64::from(n);
                self.advance(x, cta, offset);
            }
            MbarOp::Arrive { count, expect, drop, state } => {
                let n = count.map_or(1, |c| read(w, c));
                let bytes = expect.map_or(0, |e| read(w, e));
                let phase = self.ctas[cta].mbars[&offset].phase;
                if let Some(d) = state {
                    w.set64(d, 1 << lane, &[phase; LANES]);
                }
                let known = x.races.as_mut().map(|r| r.clocks.publish(at, 1 << lane));
                let bar = self.bar_mut(cta, offset);
                if bar.pending < n {
                    return misuse(format!(
                        "{n} arrivals at the mbarrier at {offset:#x}, whose phase awaits {} of {} more",
                        bar.pending, bar.count
                    ));
                }
                if let Some(known) = known {
                    bar.arriving.join(&known);
                }
                bar.pending -= n;
                bar.bytes += i64::from(bytes);
                bar.count -= u32::from(drop);
                self.advance(x, cta, offset);
            }
            MbarOp::Wait { .. } => unreachable!("waits go elsewhere"),
        }
        Ok(())
    }

    fn bar_mut(&mut self, cta: usize, offset: u64) -> &mut MbarState {
        self.ctas[cta].mbars.get_mut(&offset).expect("mbar_at has found it")
    }

    /// `bytes` have come to the mbarrier. False if there is none.
    pub(super) fn bytes_came(&mut self, x: &mut Context<'_>, cta: usize, offset: u64, bytes: usize) -> bool {
        match self.ctas[cta].mbars.get_mut(&offset) {
            Some(bar) => bar.bytes -= bytes as i64,
            None => return false,
        }
        self.advance(x, cta, offset);
        true
    }

    /// Ends the phase if nothing is missing, and wakes those who wait for it.
    fn advance(&mut self, x: &mut Context<'_>, cta: usize, offset: u64) {
        let bar = self.bar_mut(cta, offset);
        if bar.pending != 0 || bar.bytes != 0 {
            return;
        }
        bar.phase += 1;
        bar.pending = bar.count;
        let mut known = std::mem::take(&mut bar.arriving);
        if x.races.is_some() {
            known.join(&bar.done);
            known.own.resize(known.own.len().max(bar.engine + 1), 0);
            known.own[bar.engine] = bar.phase as u32;
        }
        bar.done = Rc::new(known);
        let (phase, done) = (bar.phase, bar.done.clone());
        for w in &mut self.warps {
            let over = |wait: &Wait| {
                matches!(wait, Wait::Mbar { cta: c, offset: o, awaited, parity, .. }
                    if *c == cta && *o == offset && is_over(*awaited, *parity, phase))
            };
            let woken: Vec<(u32, Option<u16>)> = w
                .waits
                .iter()
                .filter(|(_, wait)| over(wait))
                .map(|(m, wait)| (*m, if let Wait::Mbar { p, .. } = wait { *p } else { None }))
                .collect();
            for (mask, p) in woken {
                if let Some(p) = p {
                    w.set_pred(p, mask, u32::MAX);
                }
                if let Some(r) = &mut x.races {
                    r.clocks.acquire(watch::index(&x.plan, w), mask, w.live, &done);
                }
            }
            w.unblock(over);
        }
    }

    fn mbar_wait(
        &mut self,
        x: &mut Context<'_>,
        i: usize,
        pc: u32,
        b: &Mbar,
        m: u32,
        at: &[u64; LANES],
        (p, row, parity, test): (Option<u16>, u32, bool, bool),
    ) -> Step<bool> {
        let mut left = m;
        let mut waited = false;
        while left != 0 {
            // Lanes that wait for the same go together.
            let first = left.trailing_zeros() as usize;
            let w = &self.warps[i];
            let phases: [u64; LANES] = if parity { w.r32(row).map(u64::from) } else { *w.r64(row) };
            let group = (0..LANES)
                .fold(0, |g, l| g | (left >> l & u32::from(at[l] == at[first] && phases[l] == phases[first])) << l);
            left &= !group;
            let (cta, offset) = self.mbar_at(x, i, first as u32, b, at[first])?;
            let (phase, done) = {
                let bar = &self.ctas[cta].mbars[&offset];
                (bar.phase, bar.done.clone())
            };
            let awaited = phases[first];
            let over = is_over(awaited, parity, phase);
            let w = &mut self.warps[i];
            if over {
                if let Some(r) = &mut x.races {
                    r.clocks.acquire(watch::index(&x.plan, w), group, w.live, &done);
                }
            } else if !test {
                w.block(group, pc + 1, Wait::Mbar { cta, offset, awaited, parity, p });
                waited = true;
                continue;
            }
            if let Some(p) = p {
                w.set_pred(p, group, if over { u32::MAX } else { 0 });
            }
            waited |= !over;
        }
        Ok(!waited)
    }
}

/// Whether the phase of that parity, or of that token, has ended.
fn is_over(awaited: u64, parity: bool, phase: u64) -> bool {
    if parity { phase & 1 != awaited & 1 } else { phase != awaited }
}
