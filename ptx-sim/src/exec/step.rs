//! One warp's turn: instruction after instruction, each to the part of the simulator that knows it.

use super::warp::{LANES, Warp};
use super::{Cluster, Context, access, address, alu, atomic, collective, copy, matrix, watch};
use crate::fault::{Fault, FaultKind, Step, Stop};
use crate::ir::{Inst, Op, Width};

impl Cluster {
    /// Runs warp `i` for at most `turn` instructions.
    pub(super) fn turn(&mut self, x: &mut Context<'_>, i: usize, turn: u64) -> Result<u64, Fault> {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both features, as has just been asked.
            return unsafe { self.turn_wide(x, i, turn) };
        }
        self.turn_plain(x, i, turn)
    }

    /// As `turn_plain`, with arithmetic on vectors of eight lanes.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn turn_wide(&mut self, x: &mut Context<'_>, i: usize, turn: u64) -> Result<u64, Fault> {
        self.turn_plain(x, i, turn)
    }

    #[inline(always)]
    fn turn_plain(&mut self, x: &mut Context<'_>, i: usize, turn: u64) -> Result<u64, Fault> {
        let kernel = x.kernel;
        let mut ran = 0;
        while ran < turn {
            let w = &mut self.warps[i];
            if (w.mask == 0 || w.pc >= w.limit) && !w.regroup() {
                break;
            }
            let pc = w.pc;
            let inst = &kernel.code[pc as usize];
            let m = w.mask & w.pred(inst.guard);
            w.pc = pc + 1;
            x.counts[pc as usize] += 1;
            x.pc = pc;
            ran += 1;
            if m == 0 || alu::run(w, &inst.op, m) {
                continue;
            }
            match self.step(x, i, pc, inst, m) {
                Ok(true) => {}
                Ok(false) => break,
                Err(stop) => return Err(self.fault(x, i, pc, *stop)),
            }
        }
        Ok(ran)
    }

    /// Runs one instruction that is more than arithmetic; false ends the warp's turn.
    fn step(&mut self, x: &mut Context<'_>, i: usize, pc: u32, inst: &Inst, m: u32) -> Step<bool> {
        let w = &mut self.warps[i];
        match &inst.op {
            Op::Bra { target } => branch(w, x, pc, m, *target),
            Op::Ld(a) => access::load(w, &mut self.ctas, x, a, m, pc)?,
            Op::St(a) => access::store(w, &mut self.ctas, x, a, m, pc)?,
            Op::Warp { op, mask } => return collective::run(w, x, op, *mask, m, pc),
            Op::LdMatrix(a) => matrix::load(w, &mut self.ctas, x, a, m, pc)?,
            Op::StMatrix(a) => matrix::store(w, &mut self.ctas, x, a, m, pc)?,
            Op::Mma(a) => matrix::multiply(w, a, m)?,
            Op::MovMatrix { d, a } => matrix::transpose(w, *d, *a, m)?,
            Op::Atom(a) => atomic::atomic(w, &mut self.ctas, x, a, m, pc)?,
            Op::CpAsync(a) => copy::issue(w, &mut self.ctas, x, a, m, pc)?,
            Op::CpCommit => w.copies.commit(m),
            Op::CpWait { left } => {
                // Waiting for all is to commit and wait for every group.
                if left.is_none() {
                    w.copies.commit(m);
                }
                copy::wait(w, &mut self.ctas, x, m, left.unwrap_or(0))?;
            }
            Op::Bar(b) => return self.bar(x, i, pc, b, m),
            Op::Brx { idx, targets } => branch_table(w, *idx, targets, m)?,
            Op::Cvta { space, to, wide, d, a } => address::cvta(w, m, *space, *to, *wide, *d, *a)?,
            Op::IsSpace { space, d, a } => address::is_space(w, m, *space, *d, a)?,
            Op::Clock { w: width, d } => {
                // A clock that only counts up: nothing here takes time.
                let now = x.rng.next() & 0xFF;
                let v = x.counts[pc as usize] * 256 + now;
                match width {
                    Width::W64 => w.set64(*d, m, &[v; LANES]),
                    _ => w.set32(*d, m, &[v as u32; LANES]),
                }
            }
            Op::ActiveMask { d } => {
                let active = w.mask;
                w.set32(*d, m, &[active; LANES]);
            }
            Op::Mbar(b) => return self.mbarrier(x, i, pc, b, m),
            Op::Bulk(b) => self.bulk(x, i, b, m)?,
            Op::BulkCommit => w.groups.commit(m),
            Op::BulkWait { left } => self.bulk_wait(x, i, m, *left)?,
            Op::Wgmma(g) => self.wgmma(x, i, pc, g, m)?,
            Op::WgFence => w.products.fenced = true,
            Op::WgCommit => self.wg_commit(i, m)?,
            Op::WgWait { left } => return self.wg_wait(x, i, pc, *left, m),
            Op::ClusterArrive { release } => self.cluster_arrive(x, i, m, *release)?,
            Op::ClusterWait => return self.cluster_wait(x, i, pc, m),
            Op::Mapa { wide, generic, d, a, rank } => address::mapa(w, x, m, *wide, *generic, *d, a, *rank)?,
            Op::GetRank { generic, d, a } => address::rank_of(w, m, *generic, *d, a),
            Op::Exit => {
                self.bulk_exit(i, m)?;
                self.end(x, i, m);
                let w = &mut self.warps[i];
                w.exit(m);
                self.exited(x, i)?;
            }
            Op::Trap => return Err(Stop::new(m.trailing_zeros(), FaultKind::Trap)),
            Op::Nanosleep => return Ok(false),
            Op::Fence { proxy } => {
                let (at, live) = (watch::index(&x.plan, w), w.live);
                match (&mut x.races, proxy) {
                    (Some(r), false) => r.fence(at, m, live),
                    (Some(r), true) => r.clocks.proxy_fence(at, m, live),
                    (None, _) => {}
                }
            }
            _ => {}
        }
        Ok(true)
    }

    /// Tells the race check that lanes `m` of warp `i` end.
    fn end(&self, x: &mut Context<'_>, i: usize, m: u32) {
        let w = &self.warps[i];
        let at = watch::index(&x.plan, w);
        if let Some(r) = &mut x.races {
            (0..LANES).filter(|l| m >> l & 1 == 1).for_each(|lane| r.end(w.cta, at, lane));
        }
    }
}

fn branch(w: &mut Warp, x: &mut Context<'_>, pc: u32, m: u32, target: u32) {
    if m == w.mask {
        w.pc = target;
        return;
    }
    x.report.divergent += 1;
    for i in 0..LANES {
        if w.mask >> i & 1 == 1 {
            w.pcs[i] = if m >> i & 1 == 1 { target } else { pc + 1 };
        }
    }
    w.mask = 0;
    w.regroup();
}

fn branch_table(w: &mut Warp, idx: u32, targets: &[u32], m: u32) -> Step<()> {
    let at = *w.r32(idx);
    for i in 0..LANES {
        if m >> i & 1 == 1 {
            let Some(&t) = targets.get(at[i] as usize) else {
                return Err(Stop::misuse(i as u32, format!("target {} of {}", at[i], targets.len())));
            };
            w.pcs[i] = t;
        } else if w.mask >> i & 1 == 1 {
            w.pcs[i] = w.pc;
        }
    }
    w.mask = 0;
    w.regroup();
    Ok(())
}
