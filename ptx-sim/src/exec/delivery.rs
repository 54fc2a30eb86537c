//! Bulk copies on their way: when they take place, what threads wait for, and the bytes they move.

use super::atomic::update;
use super::bulk::{End, Job, WHAT};
use super::memory::{Home, inside, outside, region};
use super::{Cluster, Context, watch};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::AtomOp;
use crate::memory::{is_set, set};

impl Cluster {
    /// Lanes `m` wait until at most `left` of their groups are open: what those were is done now.
    pub(super) fn bulk_wait(&mut self, x: &mut Context<'_>, i: usize, m: u32, left: u32) -> Step<()> {
        let w = &mut self.warps[i];
        let commits = w.groups.commits;
        let over = |lane: u32, group: u32| m >> lane & 1 == 1 && group + left < commits[lane as usize];
        w.groups.open.retain(|&(lane, group)| !over(lane, group));
        let (now, later): (Vec<Job>, Vec<Job>) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|j| j.warp == i && matches!(j.end, End::Out { group, .. } if over(j.lane, group)));
        self.jobs = later;
        for j in now {
            self.perform(x, j)?;
        }
        let w = &self.warps[i];
        if let Some(r) = &mut x.races {
            for &(lane, engine) in w.groups.engines.iter().filter(|e| m >> e.0 & 1 == 1) {
                let mut known = crate::clock::Known::default();
                known.own.resize(engine + 1, 0);
                known.own[engine] = commits[lane as usize].saturating_sub(left);
                let at = watch::index(&x.plan, w);
                r.clocks.acquire(at, 1 << lane, w.live, &std::rc::Rc::new(known));
            }
        }
        Ok(())
    }

    /// A thread may not end while its copies still read its block's memory.
    pub(super) fn bulk_exit(&self, i: usize, m: u32) -> Step<()> {
        match self.warps[i].groups.open.iter().find(|(lane, _)| m >> lane & 1 == 1) {
            Some(&(lane, _)) => Err(Stop::misuse(lane, "the thread ends with bulk copies it has not waited for")),
            None => Ok(()),
        }
    }

    /// Performs the copies that are due, or the next one if `any`. False if there was none.
    pub(super) fn deliver(&mut self, x: &mut Context<'_>, any: bool) -> Result<bool, (usize, u32, Box<Stop>)> {
        let mut some = false;
        loop {
            let next = self.jobs.iter().enumerate().min_by_key(|(_, j)| j.due).map(|(n, j)| (n, j.due));
            match next {
                Some((n, due)) if due <= self.tick || any && !some => {
                    let j = self.jobs.remove(n);
                    let (warp, pc) = (j.warp, j.pc);
                    x.pc = pc;
                    self.perform(x, j).map_err(|stop| (warp, pc, stop))?;
                    some = true;
                }
                _ => return Ok(some),
            }
        }
    }

    pub(super) fn perform(&mut self, x: &mut Context<'_>, j: Job) -> Step<()> {
        match &j.end {
            End::In { blocks, offset, mbar } => {
                let (data, known) = self.fetch(x, &j)?;
                x.report.global_read += j.bytes as u64;
                for &cta in blocks {
                    let c = &mut self.ctas[cta];
                    for p in (0..j.bytes).step_by(16) {
                        let to = j.swizzle.place(offset + p as u64) as usize;
                        c.shared[to..to + 16].copy_from_slice(&data[p..p + 16]);
                        for b in 0..16 {
                            set(&mut c.written, to + b, 1, known[p + b]);
                        }
                    }
                    x.report.shared_written += j.bytes as u64;
                    if !self.bytes_came(x, cta, *mbar, j.bytes) {
                        return Err(Stop::misuse(j.lane, "the mbarrier of a bulk copy is gone"));
                    }
                }
            }
            &End::Across { from, to, mbar } => {
                let n = j.bytes;
                let data = self.ctas[from.0].shared[from.1 as usize..from.1 as usize + n].to_vec();
                let known: Vec<bool> =
                    (0..n).map(|b| is_set(&self.ctas[from.0].written, from.1 as usize + b, 1)).collect();
                let c = &mut self.ctas[to.0];
                c.shared[to.1 as usize..to.1 as usize + n].copy_from_slice(&data);
                known.iter().enumerate().for_each(|(b, k)| set(&mut c.written, to.1 as usize + b, 1, *k));
                if !self.bytes_came(x, mbar.0, mbar.1, n) {
                    return Err(Stop::misuse(j.lane, "the mbarrier of a bulk copy is gone"));
                }
            }
            &End::Out { offset, reduce, .. } => {
                let cta = self.warps[j.warp].cta;
                x.report.global_written += j.bytes as u64;
                for &(at, address, skip, len) in j.rows.iter().filter(|r| r.3 > 0) {
                    self.put(x, &j, cta, offset + at as u64, address, (skip, len), reduce)?;
                }
            }
        }
        Ok(())
    }

    /// The box as it stands in device memory, zero outside of the tensor; and which bytes were written.
    fn fetch(&mut self, x: &mut Context<'_>, j: &Job) -> Step<(Vec<u8>, Vec<bool>)> {
        let (mut data, mut known) = (vec![0u8; j.bytes], vec![true; j.bytes]);
        for &(at, address, skip, len) in j.rows.iter().filter(|r| r.3 > 0) {
            let (from, to, n) = (address + (skip * j.element) as u64, at + skip * j.element, len * j.element);
            let found = region(&mut self.ctas, x, Home::Global, from).and_then(|r| inside(&r, from, n).map(|o| (r, o)));
            let Some((r, o)) = found else {
                return Err(Stop::new(j.lane, outside(x, Home::Global, from, n as u32, WHAT)));
            };
            data[to..to + n].copy_from_slice(&r.data[o..o + n]);
            let written = r.written.as_deref().unwrap_or(&[]);
            if !is_set(written, o, n) {
                (0..n).for_each(|b| known[to + b] = is_set(written, o + b, 1));
            }
        }
        Ok((data, known))
    }

    /// One row from shared memory into device memory.
    fn put(
        &mut self,
        x: &mut Context<'_>,
        j: &Job,
        cta: usize,
        shared: u64,
        address: u64,
        (skip, len): (usize, usize),
        reduce: Option<AtomOp>,
    ) -> Step<()> {
        let es = j.element;
        let mut row = vec![0u8; len * es];
        for (e, to) in row.chunks_mut(es).enumerate() {
            let from = j.swizzle.place(shared + ((skip + e) * es) as u64) as usize;
            to.copy_from_slice(&self.ctas[cta].shared[from..from + es]);
        }
        let at = address + (skip * es) as u64;
        let found = region(&mut self.ctas, x, Home::Global, at).and_then(|r| inside(&r, at, row.len()).map(|o| (r, o)));
        let Some((mut r, o)) = found else {
            return Err(Stop::new(j.lane, outside(x, Home::Global, at, row.len() as u32, WHAT)));
        };
        let to = &mut r.data[o..o + row.len()];
        let Some(written) = r.written.as_deref_mut() else { return Ok(()) };
        let Some(op) = reduce else {
            to.copy_from_slice(&row);
            set(written, o, row.len(), true);
            return Ok(());
        };
        if !is_set(written, o, row.len()) {
            let kind =
                FaultKind::Unwritten { what: "bulk reduction", space: "global", address: at, bytes: row.len() as u32 };
            return Err(Stop::new(j.lane, kind));
        }
        let word = |b: &[u8]| {
            let mut w = [0u8; 8];
            w[..b.len()].copy_from_slice(b);
            u64::from_le_bytes(w)
        };
        for (to, from) in to.chunks_mut(es).zip(row.chunks(es)) {
            let new = update(op, es, word(to), word(from), 0);
            to.copy_from_slice(&new.to_le_bytes()[..es]);
        }
        Ok(())
    }
}
