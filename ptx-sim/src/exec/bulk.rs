//! The TMA: boxes of tensors and plain bytes between device memory and shared memory, while threads go on.
//!
//! A copy inwards completes on an mbarrier, as late as the seed says or as nothing else can run. A copy or reduction
//! outwards belongs to a group of its thread and takes place by the time the thread waits for the group. What it reads
//! and writes is checked for races at its issue, as an access of an engine: of the mbarrier, or of the thread.

use super::memory::{Home, addresses, inside, outside, place, region};
use super::warp::LANES;
use super::{Cluster, Context, watch};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{AtomOp, Bulk, Num, Reduce, Space, Way};
use crate::memory::{is_set, set};
use crate::race::Actor;
use crate::tensor_map::{Swizzle, TensorMap};

/// A copy on its way.
#[derive(Debug)]
pub(crate) struct Job {
    /// When it takes place, at the latest when nothing else can.
    pub due: u64,
    /// The warp and lane that issued it, and the instruction.
    pub warp: usize,
    pub lane: u32,
    pub pc: u32,
    /// The pieces: offset in the box, address, elements skipped, elements copied.
    pub(super) rows: Vec<(usize, u64, usize, usize)>,
    pub(super) bytes: usize,
    pub(super) element: usize,
    pub(super) swizzle: Swizzle,
    pub(super) end: End,
}

#[derive(Debug)]
pub(super) enum End {
    /// Into these blocks at an offset, completing on the mbarrier at another.
    In { blocks: Vec<usize>, offset: u64, mbar: u64 },
    /// From shared memory of one block to that of another.
    Across { from: (usize, u64), to: (usize, u64), mbar: (usize, u64) },
    /// From the offset in the own block's shared memory; of the lane's group.
    Out { offset: u64, group: u32, reduce: Option<AtomOp> },
}

/// Bulk groups of a warp's lanes.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub(super) commits: [u32; LANES],
    /// Engines of the lanes that made copies outwards, for the race check.
    pub(super) engines: Vec<(u32, usize)>,
    /// Copies outwards not waited for, by lane.
    pub(super) open: Vec<(u32, u32)>,
}

impl Groups {
    pub fn commit(&mut self, m: u32) {
        for i in 0..LANES {
            self.commits[i] += m >> i & 1;
        }
    }
}

/// One copy being issued.
struct Issue<'a> {
    i: usize,
    lane: usize,
    bulk: &'a Bulk,
    shared: (usize, u64),
    map: Option<TensorMap>,
    rows: Vec<(usize, u64, usize, usize)>,
    bytes: usize,
}

pub(super) const WHAT: &str = "bulk copy";

impl Cluster {
    pub(super) fn bulk(&mut self, x: &mut Context<'_>, i: usize, b: &Bulk, m: u32) -> Step<()> {
        for lane in (0..LANES).filter(|l| m >> l & 1 == 1) {
            self.bulk_lane(x, i, b, lane)?;
        }
        Ok(())
    }

    fn bulk_lane(&mut self, x: &mut Context<'_>, i: usize, b: &Bulk, lane: usize) -> Step<()> {
        let misuse = |what: String| Err(Stop::misuse(lane as u32, what));
        let w = &self.warps[i];
        let global = addresses(w, &b.global)[lane];
        let coords: Vec<i32> = b.coords.iter().map(|&c| w.r32(c)[lane] as i32).collect();
        let bytes = b.bytes.map(|r| w.r32(r)[lane] as usize);
        let at = addresses(w, &b.shared)[lane];
        let space = if matches!(b.way, Way::Out { .. }) { Space::Shared } else { Space::Cluster };
        let Some((Home::Shared(cta), offset)) = place(space, at, w.cta, self.ctas.len()) else {
            return misuse(format!("a bulk copy at shared address {at:#x}"));
        };
        if let Way::Across { mbar } = b.way {
            let mbar = addresses(w, &mbar)[lane];
            return self.across(x, i, lane, (cta, offset), global, bytes.unwrap_or(0), mbar);
        }
        let map = if coords.is_empty() { None } else { Some(self.tensor_map(x, i, lane, global, coords.len())?) };
        let (rows, total) = match (&map, bytes) {
            (Some(t), _) => (t.rows(&coords), t.box_bytes()),
            (None, n) => (vec![(0, global, 0, n.unwrap_or(0))], n.unwrap_or(0)),
        };
        let align = if map.is_some() { 128 } else { 16 };
        if total % 16 != 0 || total == 0 || offset % align != 0 || map.is_none() && !global.is_multiple_of(16) {
            return misuse(format!(
                "a bulk copy of {total} bytes between {global:#x} and shared {offset:#x}: multiples of 16 expected, in \
                 shared memory of {align}"
            ));
        }
        let fits = |me: &mut Self, x: &mut Context<'_>, cta: usize| {
            region(&mut me.ctas, x, Home::Shared(cta), offset).is_some_and(|r| inside(&r, offset, total).is_some())
        };
        if !fits(self, x, cta) {
            return Err(Stop::new(lane as u32, outside(x, Home::Shared(cta), offset, total as u32, WHAT)));
        }
        let issue = Issue { i, lane, bulk: b, shared: (cta, offset), map, rows, bytes: total };
        self.check_global(x, &issue)?;
        match b.way {
            Way::Out { .. } => self.issue_out(x, issue),
            _ => self.issue_in(x, issue),
        }
    }

    /// The map a kernel was given, from parameters or device memory.
    fn tensor_map(&mut self, x: &mut Context<'_>, i: usize, lane: usize, at: u64, rank: usize) -> Step<TensorMap> {
        let misuse = |what: String| Err(Stop::misuse(lane as u32, what));
        let w = &self.warps[i];
        let bytes: Option<Vec<u8>> = match place(Space::Generic, at, w.cta, self.ctas.len()) {
            Some((Home::Param, o)) => x.params.get(o as usize..o as usize + 128).map(<[u8]>::to_vec),
            Some((Home::Global, a)) => x.memory.slice(a, 128).ok().map(<[u8]>::to_vec),
            _ => None,
        };
        if !at.is_multiple_of(64) {
            return misuse(format!("a tensor map at {at:#x}, no multiple of 64"));
        }
        match bytes.and_then(|b| TensorMap::decode(&b)) {
            Some(map) if map.dims.len() == rank => Ok(map),
            Some(map) => misuse(format!("{rank} coordinates for a tensor of {} dimensions", map.dims.len())),
            None => misuse(format!("no tensor map at {at:#x}; TensorMap::encode makes them")),
        }
    }

    /// Bounds, and the race check, of the side in device memory.
    fn check_global(&mut self, x: &mut Context<'_>, s: &Issue<'_>) -> Step<()> {
        let es = s.map.as_ref().map_or(1, |m| m.element.bytes());
        let write = matches!(s.bulk.way, Way::Out { .. });
        let strong = matches!(s.bulk.way, Way::Out { reduce: Some(_) });
        let engine = if x.races.is_some() { Some(self.engine(x, s)) } else { None };
        let warp = watch::index(&x.plan, &self.warps[s.i]);
        for &(_, address, skip, len) in s.rows.iter().filter(|r| r.3 > 0) {
            let (at, n) = (address + (skip * es) as u64, len * es);
            let fits = region(&mut self.ctas, x, Home::Global, at).is_some_and(|r| inside(&r, at, n).is_some());
            if !fits {
                return Err(Stop::new(s.lane as u32, outside(x, Home::Global, at, n as u32, WHAT)));
            }
            let Some(races) = x.races.as_deref_mut() else { continue };
            let actor = Actor { strong, engine, ..Actor::lane(warp, s.lane, x.pc) };
            let found = races.global(&mut x.shadow, at, n, write, &actor, &|_| false);
            found.map_err(|c| watch::fault(x, Home::Global, WHAT, s.lane as u32, c))?;
        }
        Ok(())
    }

    /// The engine that makes the copy's accesses, and its clock: the phase it completes, or its thread's group.
    fn engine(&mut self, x: &mut Context<'_>, s: &Issue<'_>) -> (usize, u32) {
        let w = &mut self.warps[s.i];
        match s.bulk.way {
            Way::In { mbar, .. } => {
                let at = addresses(w, &mbar)[s.lane];
                let blocks = self.ctas.len();
                match place(Space::Cluster, at, w.cta, blocks) {
                    Some((Home::Shared(cta), o)) => {
                        self.ctas[cta].mbars.get(&o).map_or((usize::MAX >> 33, 0), |b| (b.engine, b.phase as u32 + 1))
                    }
                    _ => (usize::MAX >> 33, 0),
                }
            }
            _ => {
                let lane = s.lane as u32;
                let found = w.groups.engines.iter().find(|e| e.0 == lane).map(|e| e.1);
                let engine = found.unwrap_or_else(|| {
                    let e = x.races.as_mut().map_or(0, |r| r.clocks.engine());
                    w.groups.engines.push((lane, e));
                    e
                });
                (engine, w.groups.commits[s.lane] + 1)
            }
        }
    }

    fn check_shared(
        &mut self,
        x: &mut Context<'_>,
        s: &Issue<'_>,
        cta: usize,
        write: bool,
        engine: (usize, u32),
    ) -> Step<()> {
        let warp = watch::index(&x.plan, &self.warps[s.i]);
        let Some(races) = x.races.as_deref_mut() else { return Ok(()) };
        let actor = Actor { engine: Some(engine), ..Actor::lane(warp, s.lane, x.pc) };
        let found = races.shared(cta, s.shared.1, s.bytes, write, &actor, &|_| false);
        found.map_err(|c| watch::fault(x, Home::Shared(cta), WHAT, s.lane as u32, c))
    }

    fn issue_in(&mut self, x: &mut Context<'_>, s: Issue<'_>) -> Step<()> {
        let Way::In { mbar, mask } = s.bulk.way else { return Ok(()) };
        let w = &self.warps[s.i];
        let at = addresses(w, &mbar)[s.lane];
        let target = place(Space::Cluster, at, w.cta, self.ctas.len());
        let mask = mask.map(|r| w.r32(r)[s.lane]);
        let blocks: Vec<usize> = match mask {
            Some(mask) => (0..16).filter(|b| mask >> b & 1 == 1).collect(),
            None => vec![s.shared.0],
        };
        let offset = match target {
            Some((Home::Shared(c), o)) if mask.is_some() || c == s.shared.0 => o,
            _ => return Err(Stop::misuse(s.lane as u32, "the mbarrier lies in another block than the copy goes to")),
        };
        for &cta in &blocks {
            if cta >= self.ctas.len() {
                let what = format!("a multicast to block {cta} of a cluster of {}", self.ctas.len());
                return Err(Stop::misuse(s.lane as u32, what));
            }
            let Some(bar) = self.ctas[cta].mbars.get(&offset) else {
                let what = format!("no mbarrier was made at {offset:#x} of block {cta} of the cluster");
                return Err(Stop::misuse(s.lane as u32, what));
            };
            let engine = (bar.engine, bar.phase as u32 + 1);
            self.check_shared(x, &s, cta, true, engine)?;
            // Until it has come, the bytes are nobody's.
            let c = &mut self.ctas[cta];
            set(&mut c.written, s.shared.1 as usize, s.bytes, false);
        }
        let end = End::In { blocks, offset: s.shared.1, mbar: offset };
        self.push_job(x, &s, end);
        Ok(())
    }

    fn issue_out(&mut self, x: &mut Context<'_>, s: Issue<'_>) -> Step<()> {
        let Way::Out { reduce } = s.bulk.way else { return Ok(()) };
        let cta = s.shared.0;
        if x.races.is_some() {
            let engine = self.engine(x, &s);
            self.check_shared(x, &s, cta, false, engine)?;
        }
        if !is_set(&self.ctas[cta].written, s.shared.1 as usize, s.bytes) {
            let (address, bytes) = (s.shared.1, s.bytes as u32);
            let kind = FaultKind::Unwritten { what: WHAT, space: "shared", address, bytes };
            return Err(Stop::new(s.lane as u32, kind));
        }
        let reduce = match reduce {
            None => None,
            Some((op, t)) => {
                let t = t.or(s.map.as_ref().map(|m| m.element.num()));
                let op = t.and_then(|t| atom_of(op, t).map(|op| (op, t)));
                let Some((op, t)) = op else {
                    return Err(Stop::misuse(s.lane as u32, "a reduction its type does not have"));
                };
                if let AtomOp::AddFloat(_) = op {
                    x.report.float_atomics += s.bytes as u64 / width(t) as u64;
                }
                Some(op)
            }
        };
        let w = &mut self.warps[s.i];
        let group = w.groups.commits[s.lane];
        w.groups.open.push((s.lane as u32, group));
        let end = End::Out { offset: s.shared.1, group, reduce };
        self.push_job(x, &s, end);
        Ok(())
    }

    fn push_job(&mut self, x: &mut Context<'_>, s: &Issue<'_>, end: End) {
        let out = matches!(end, End::Out { .. });
        let element = match (&s.map, s.bulk.way) {
            (Some(m), _) => m.element.bytes(),
            (None, Way::Out { reduce: Some((_, Some(t))) }) => width(t),
            _ => 1,
        };
        // Plain bytes are one row of them.
        let rows = if s.map.is_none() { vec![(0, s.rows[0].1, 0, s.bytes / element)] } else { s.rows.clone() };
        let job = Job {
            due: self.tick + x.delay(if out { 1 } else { 0 }),
            warp: s.i,
            lane: s.lane as u32,
            pc: x.pc,
            rows,
            bytes: s.bytes,
            element,
            swizzle: s.map.as_ref().map_or(Swizzle::None, |m| m.swizzle),
            end,
        };
        self.jobs.push(job);
    }

    /// From shared memory of this block to that of another.
    fn across(
        &mut self,
        x: &mut Context<'_>,
        i: usize,
        lane: usize,
        to: (usize, u64),
        from: u64,
        bytes: usize,
        mbar: u64,
    ) -> Step<()> {
        let misuse = |what: &str| Err(Stop::misuse(lane as u32, what));
        let (own, blocks) = (self.warps[i].cta, self.ctas.len());
        let (Some((Home::Shared(c), source)), Some((Home::Shared(b), bar))) =
            (place(Space::Shared, from, own, blocks), place(Space::Cluster, mbar, own, blocks))
        else {
            return misuse("a copy between blocks outside of shared memory");
        };
        if bytes == 0 || ![bytes as u64, source, to.1].iter().all(|n| n.is_multiple_of(16)) || b != to.0 {
            return misuse(
                "a copy between blocks: multiples of 16, and the mbarrier in the block it goes to, expected",
            );
        }
        for (cta, offset) in [(c, source), to] {
            let fits = region(&mut self.ctas, x, Home::Shared(cta), offset)
                .is_some_and(|r| inside(&r, offset, bytes).is_some());
            if !fits {
                return Err(Stop::new(lane as u32, outside(x, Home::Shared(cta), offset, bytes as u32, WHAT)));
            }
        }
        let Some(state) = self.ctas[b].mbars.get(&bar) else { return misuse("no mbarrier was made there") };
        let engine = Some((state.engine, state.phase as u32 + 1));
        let warp = watch::index(&x.plan, &self.warps[i]);
        if let Some(r) = x.races.as_deref_mut() {
            let actor = Actor { engine, ..Actor::lane(warp, lane, x.pc) };
            let first = r.shared(c, source, bytes, false, &actor, &|_| false);
            let found = first.and_then(|()| r.shared(to.0, to.1, bytes, true, &actor, &|_| false));
            found.map_err(|clash| watch::fault(x, Home::Shared(to.0), WHAT, lane as u32, clash))?;
        }
        let due = self.tick + x.delay(0);
        let end = End::Across { from: (c, source), to, mbar: (b, bar) };
        let pc = x.pc;
        let (rows, swizzle) = (Vec::new(), Swizzle::None);
        self.jobs.push(Job { due, warp: i, lane: lane as u32, pc, rows, bytes, element: 1, swizzle, end });
        Ok(())
    }
}

fn width(t: Num) -> usize {
    match t {
        Num::U(b) | Num::S(b) => usize::from(b) / 8,
        Num::F(f) => f.bits() as usize / 8,
        Num::Tf32 | Num::E4m3x2 | Num::E5m2x2 => 4,
    }
}

fn atom_of(op: Reduce, t: Num) -> Option<AtomOp> {
    Some(match (op, t) {
        (Reduce::Add, Num::F(f)) => AtomOp::AddFloat(f),
        (Reduce::Min, Num::F(f)) => AtomOp::MinFloat(f),
        (Reduce::Max, Num::F(f)) => AtomOp::MaxFloat(f),
        (_, Num::F(_) | Num::Tf32 | Num::E4m3x2 | Num::E5m2x2) => return None,
        (Reduce::Add, _) => AtomOp::AddInt,
        (Reduce::Min, Num::S(_)) => AtomOp::MinS,
        (Reduce::Min, _) => AtomOp::MinU,
        (Reduce::Max, Num::S(_)) => AtomOp::MaxS,
        (Reduce::Max, _) => AtomOp::MaxU,
        (Reduce::And, _) => AtomOp::And,
        (Reduce::Or, _) => AtomOp::Or,
        (Reduce::Xor, _) => AtomOp::Xor,
        (Reduce::Inc, _) => AtomOp::Inc,
        (Reduce::Dec, _) => AtomOp::Dec,
    })
}
