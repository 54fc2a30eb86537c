//! Races, found by order and not by luck.
//!
//! Two accesses of one byte by two threads, at least one a write, race unless the earlier is known to the thread that
//! makes the later one (see `clock`). Every cell of memory remembers its last write and the reads since: a write must
//! know all of them, a read the write. This finds a missing barrier on every run that makes both accesses, whichever
//! came first.
//!
//! A cell is as wide as the narrowest access the kernel makes to that memory. Strong accesses (atomics, volatile,
//! relaxed and the like) do not race with each other. Lanes that store the same value to the same place in one
//! instruction do not race. A `cp.async` writes from its issue until its own thread's wait: whoever touches its bytes
//! in between races with it.
//!
//! Of device memory's reads each cell keeps one only, so that a write that races with several is found and one that
//! races with an older read by a third thread may not be. Blocks of different clusters know each other's accesses
//! through atomics and fences alone.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::clock::{Clocks, Known};

/// The last write of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrote {
    Nothing,
    Plain,
    Strong,
    /// A `cp.async` that its thread has not waited for.
    Copying,
    /// An engine: a TMA load.
    Engine,
}

/// Reads of a cell by lanes of one warp at one clock, or by an engine.
#[derive(Clone, Copy, Debug)]
struct Reader {
    /// The warp, or an engine with [`ENGINE`] set.
    who: u32,
    clock: u32,
    mask: u32,
    pc: u32,
    strong: bool,
}

const ENGINE: u32 = 1 << 31;

#[derive(Clone, Copy, Debug)]
struct Cell {
    who: u32,
    clock: u32,
    pc: u32,
    wrote: Wrote,
    read: Reader,
    /// More readers, in the pool; 0 for none.
    more: u32,
}

const EMPTY: Cell = Cell {
    who: 0,
    clock: 0,
    pc: 0,
    wrote: Wrote::Nothing,
    read: Reader { who: 0, clock: 0, mask: 0, pc: 0, strong: false },
    more: 0,
};

/// Who makes an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    /// The warp of the cluster and its lane, whose knowledge counts.
    pub warp: usize,
    pub lane: usize,
    pub pc: u32,
    pub strong: bool,
    /// The engine that makes the access for it, and its clock.
    pub engine: Option<(usize, u32)>,
}

/// An access that has no order with another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Clash {
    pub address: u64,
    pub pc: u32,
    pub other: &'static str,
    pub who: Who,
    /// In order, but without the proxy fence the async proxy needs.
    pub proxy: bool,
}

/// The other side of a clash.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Who {
    /// A thread of the cluster, counted through its warps.
    Thread(usize),
    Engine,
    /// A thread of another cluster.
    Elsewhere,
}

/// What happened to device memory, by page.
#[derive(Debug)]
pub(crate) struct GlobalShadow {
    pages: HashMap<u64, Box<[GlobalCell]>>,
    shift: u32,
    releases: HashMap<u64, Release>,
}

/// What a location hands on: by cluster, what was known when it was released.
type Release = BTreeMap<u64, Rc<Vec<u32>>>;

#[derive(Clone, Copy, Debug)]
struct GlobalCell {
    cell: Cell,
    writer: u64,
    reader: u64,
}

const PAGE: u64 = 256;

impl GlobalShadow {
    /// For accesses of at least `grain` bytes.
    pub fn new(grain: u32) -> GlobalShadow {
        GlobalShadow { pages: HashMap::new(), shift: grain.trailing_zeros(), releases: HashMap::new() }
    }
}

/// What a cluster did and knows.
#[derive(Debug)]
pub(crate) struct Races {
    pub clocks: Clocks,
    /// Its number in the grid.
    cluster: u64,
    shared: Vec<Vec<Cell>>,
    shift: u32,
    pool: Vec<Vec<Reader>>,
    /// What has come to each barrier of each block.
    bars: Vec<[Option<Known>; 16]>,
    releases: HashMap<(usize, u64), Release>,
    /// By warp: what its last fence made ready to hand on, and for which lanes.
    fenced: Vec<Option<(u32, Rc<Known>)>>,
    /// By warp: what its strong reads have met and its next fence will make known.
    met: Vec<Option<Known>>,
    /// The engines of warpgroups, by block and group.
    groups: HashMap<(usize, usize), usize>,
    /// By block: accesses of its shared memory by threads of others, which none of its threads that ended knew. Each is
    /// a thread, a clock, an instruction.
    remote: Vec<Vec<(usize, u32, u32)>>,
    /// What has come to the cluster's barrier, and what it told when it last opened.
    coming: Known,
    cluster_open: Rc<Known>,
}

impl Races {
    /// A cluster of `blocks` blocks of `warps` warps; shared memory is accessed by at least `grain` bytes.
    pub fn new(blocks: usize, warps: usize, shared: usize, grain: u32, cluster: u64) -> Races {
        let shift = grain.trailing_zeros();
        Races {
            clocks: Clocks::new(blocks * warps),
            cluster,
            shared: vec![vec![EMPTY; (shared >> shift) + 1]; blocks],
            shift,
            pool: vec![Vec::new()],
            bars: (0..blocks).map(|_| Default::default()).collect(),
            releases: HashMap::new(),
            fenced: vec![None; blocks * warps],
            met: vec![None; blocks * warps],
            groups: HashMap::new(),
            remote: vec![Vec::new(); blocks],
            coming: Known::default(),
            cluster_open: Rc::default(),
        }
    }

    /// An access of `bytes` at `address` of block `cta`'s shared memory. `same` tells whether a lane of this very
    /// instruction stores the same bytes.
    #[inline]
    pub fn shared(
        &mut self,
        cta: usize,
        address: u64,
        bytes: usize,
        write: bool,
        a: &Actor,
        same: &dyn Fn(usize) -> bool,
    ) -> Result<(), Clash> {
        let stamp = self.stamp(a);
        let (first, last) = (address >> self.shift, (address + bytes as u64 - 1) >> self.shift);
        for at in first..=last {
            let Some(c) = self.shared[cta].get_mut(at as usize) else { break };
            let mut ctx = Look { clocks: &self.clocks, pool: Some(&mut self.pool), a, stamp, foreign: None, same };
            ctx.go(c, write).map_err(|c| Clash { address: at << self.shift, ..c })?;
        }
        Ok(())
    }

    /// The same of device memory.
    #[inline]
    pub fn global(
        &mut self,
        g: &mut GlobalShadow,
        address: u64,
        bytes: usize,
        write: bool,
        a: &Actor,
        same: &dyn Fn(usize) -> bool,
    ) -> Result<(), Clash> {
        let stamp = self.stamp(a);
        let (first, last) = (address >> g.shift, (address + bytes as u64 - 1) >> g.shift);
        for at in first..=last {
            let fresh = || vec![GlobalCell { cell: EMPTY, writer: 0, reader: 0 }; PAGE as usize].into_boxed_slice();
            let page = g.pages.entry(at / PAGE).or_insert_with(fresh);
            let c = &mut page[(at % PAGE) as usize];
            let foreign = Some((self.cluster, c.writer, c.reader));
            let mut ctx = Look { clocks: &self.clocks, pool: None, a, stamp, foreign, same };
            ctx.go(&mut c.cell, write).map_err(|c| Clash { address: at << g.shift, ..c })?;
            if write {
                c.writer = self.cluster;
            } else {
                c.reader = self.cluster;
            }
        }
        Ok(())
    }

    fn stamp(&mut self, a: &Actor) -> (u32, u32) {
        match a.engine {
            Some((engine, clock)) => (engine as u32, clock),
            None => ((a.warp * 32 + a.lane) as u32, self.clocks.stamp(a.warp)),
        }
    }

    /// Bytes that a `cp.async` of this thread will write, from now until [`Races::copied`].
    pub fn copying(&mut self, cta: usize, address: u64, bytes: usize, a: &Actor) -> Result<(), Clash> {
        self.shared(cta, address, bytes, true, a, &|_| false)?;
        for at in address >> self.shift..=(address + bytes as u64 - 1) >> self.shift {
            if let Some(c) = self.shared[cta].get_mut(at as usize) {
                c.wrote = Wrote::Copying;
            }
        }
        Ok(())
    }

    /// Its thread has waited for the copy: it is a write of that thread, now.
    pub fn copied(&mut self, cta: usize, address: u64, bytes: usize, warp: usize) {
        let clock = self.clocks.stamp(warp);
        for at in address >> self.shift..=(address + bytes as u64 - 1) >> self.shift {
            if let Some(c) = self.shared[cta].get_mut(at as usize) {
                (c.wrote, c.clock) = (Wrote::Plain, clock);
            }
        }
    }

    /// Lanes `m` of `warp`, those awaited at a barrier, tell what they know.
    pub fn arrive(&mut self, cta: usize, id: usize, warp: usize, live: u32) {
        // Strictly an atomic's news need a fence to be known; a barrier after it is how programs have long been written.
        if let Some(met) = self.met[warp].take() {
            self.clocks.acquire(warp, live, live, &Rc::new(met));
        }
        let known = self.clocks.publish(warp, live);
        match &mut self.bars[cta][id] {
            Some(sum) => sum.join(&known),
            none => *none = Some(known),
        }
    }

    /// The barrier opens: what all told, for [`Clocks::acquire`].
    pub fn open(&mut self, cta: usize, id: usize) -> Option<Rc<Known>> {
        self.bars[cta][id].take().map(Rc::new)
    }

    /// A thread accesses shared memory of another block, which must not end before.
    pub fn remote(&mut self, cta: usize, a: &Actor) {
        let (who, clock) = (a.warp * 32 + a.lane, self.clocks.stamp(a.warp));
        let list = &mut self.remote[cta];
        list.retain(|r| r.0 != who);
        list.push((who, clock, a.pc));
    }

    /// A thread of block `cta` ends: the accesses it knows are over.
    pub fn end(&mut self, cta: usize, warp: usize, lane: usize) {
        let clocks = &self.clocks;
        self.remote[cta].retain(|&(who, clock, _)| !clocks.knows(warp, lane, who, clock));
    }

    /// Of a block that has ended: an access by another block's thread that may come later, and its instruction.
    pub fn unended(&self, cta: usize) -> Option<(usize, u32)> {
        self.remote[cta].first().map(|&(who, _, pc)| (who, pc))
    }

    /// The engine that makes the products of a warpgroup.
    pub fn group_engine(&mut self, cta: usize, group: usize) -> usize {
        let clocks = &mut self.clocks;
        *self.groups.entry((cta, group)).or_insert_with(|| clocks.engine())
    }

    /// Lanes come to the cluster's barrier and tell what they know.
    pub fn cluster_arrive(&mut self, warp: usize, m: u32) {
        let known = self.clocks.publish(warp, m);
        self.coming.join(&known);
    }

    /// The cluster's barrier opens.
    pub fn cluster_open(&mut self) {
        let mut known = std::mem::take(&mut self.coming);
        known.join(&self.cluster_open);
        self.cluster_open = Rc::new(known);
    }

    /// Lanes have waited at the cluster's barrier.
    pub fn cluster_pass(&mut self, warp: usize, m: u32, live: u32) {
        let known = self.cluster_open.clone();
        self.clocks.acquire(warp, m, live, &known);
    }

    /// A fence of lanes `m`.
    pub fn fence(&mut self, warp: usize, m: u32, live: u32) {
        if let Some(met) = self.met[warp].take() {
            self.clocks.acquire(warp, m, live, &Rc::new(met));
        }
        self.fenced[warp] = Some((m, Rc::new(self.clocks.publish(warp, m))));
    }

    /// A strong access: what it hands on at its location, and what it takes from there.
    pub fn strong(&mut self, g: &mut GlobalShadow, cta: Option<usize>, address: u64, a: &Actor, live: u32, s: Strong) {
        let one = 1 << a.lane;
        let told = if s.release {
            Some(Rc::new(self.clocks.publish(a.warp, one)))
        } else {
            self.fenced[a.warp].as_ref().filter(|(m, _)| m & one != 0).map(|(_, k)| k.clone())
        };
        let cluster = self.cluster;
        let slot = match cta {
            Some(cta) => self.releases.entry((cta, address)).or_default(),
            None => g.releases.entry(address).or_default(),
        };
        if s.reads && !slot.is_empty() {
            let mut others = slot.clone();
            let own = others.remove(&cluster).map_or(Vec::new(), |v| (*v).clone());
            let foreign = if others.is_empty() { None } else { Some(Rc::new(others)) };
            let known = Known { own, proxy: Vec::new(), foreign };
            if s.acquire {
                self.clocks.acquire(a.warp, one, live, &Rc::new(known));
            } else {
                self.met[a.warp].get_or_insert_default().join(&known);
            }
        }
        if let (true, Some(told)) = (s.writes, told) {
            let mut merge = |cluster: u64, clocks: &[u32]| {
                let v = Rc::make_mut(slot.entry(cluster).or_default());
                if v.len() < clocks.len() {
                    v.resize(clocks.len(), 0);
                }
                v.iter_mut().zip(clocks).for_each(|(v, c)| *v = (*v).max(*c));
            };
            merge(cluster, &told.own);
            for (other, clocks) in told.foreign.iter().flat_map(|f| f.iter()) {
                merge(*other, clocks);
            }
        }
    }
}

/// What a strong access does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strong {
    pub reads: bool,
    pub writes: bool,
    pub acquire: bool,
    pub release: bool,
}

/// One look at one cell.
struct Look<'a> {
    clocks: &'a Clocks,
    pool: Option<&'a mut Vec<Vec<Reader>>>,
    a: &'a Actor,
    /// Who and when, to remember.
    stamp: (u32, u32),
    /// Of device memory: the clusters of the actor, the last writer and the last reader.
    foreign: Option<(u64, u64, u64)>,
    same: &'a dyn Fn(usize) -> bool,
}

impl Look<'_> {
    #[inline]
    fn go(&mut self, c: &mut Cell, write: bool) -> Result<(), Clash> {
        if c.wrote != Wrote::Nothing {
            self.against_write(c, write)?;
        }
        if write {
            if c.read.mask != 0 {
                self.against_reads(c)?;
            }
            c.read.mask = 0;
            if c.more != 0
                && let Some(pool) = &mut self.pool
            {
                pool[c.more as usize].clear();
            }
            (c.who, c.clock) = self.stamp;
            c.pc = self.a.pc;
            c.wrote = match (self.a.engine, self.a.strong) {
                (Some(_), false) => Wrote::Engine,
                (_, true) => Wrote::Strong,
                (None, false) => Wrote::Plain,
            };
        } else {
            self.note_read(c);
        }
        Ok(())
    }

    fn against_write(&self, c: &Cell, write: bool) -> Result<(), Clash> {
        let (a, who) = (self.a, c.who as usize);
        let other = match c.wrote {
            Wrote::Copying => "asynchronous copy, which its thread has not waited for,",
            Wrote::Engine => "asynchronous write",
            Wrote::Strong => "atomic or strong store",
            _ => "store",
        };
        let clash = |who, proxy| Err(Clash { address: 0, pc: c.pc, other, who, proxy });
        if let Some((own, writer, _)) = self.foreign
            && writer != own
        {
            let known = self.clocks.knows_foreign(a.warp, a.lane, writer, who, c.clock);
            return if known || a.strong && c.wrote == Wrote::Strong { Ok(()) } else { clash(Who::Elsewhere, false) };
        }
        let party = if who >= self.clocks.threads() { Who::Engine } else { Who::Thread(who) };
        if c.wrote == Wrote::Copying {
            return clash(party, false);
        }
        if a.strong && c.wrote == Wrote::Strong {
            return Ok(());
        }
        if !self.clocks.knows(a.warp, a.lane, who, c.clock) {
            // Lanes of one instruction that agree on the value.
            let twin = write && who / 32 == a.warp && c.pc == a.pc && c.clock == self.stamp.1 && (self.same)(who % 32);
            return if twin { Ok(()) } else { clash(party, false) };
        }
        let thread = c.wrote == Wrote::Plain || c.wrote == Wrote::Strong;
        if a.engine.is_some() && !write && thread && !self.clocks.fenced(a.warp, a.lane, who, c.clock) {
            return clash(party, true);
        }
        Ok(())
    }

    fn against_reads(&self, c: &Cell) -> Result<(), Clash> {
        self.against_read(&c.read)?;
        if let (Some(pool), true) = (&self.pool, c.more != 0) {
            for r in &pool[c.more as usize] {
                self.against_read(r)?;
            }
        }
        Ok(())
    }

    fn against_read(&self, r: &Reader) -> Result<(), Clash> {
        let a = self.a;
        if a.strong && r.strong {
            return Ok(());
        }
        let clash = |who, other| Err(Clash { address: 0, pc: r.pc, other, who, proxy: false });
        if let Some((own, _, reader)) = self.foreign
            && reader != own
        {
            let known = (0..32).all(|j| {
                r.mask >> j & 1 == 0
                    || self.clocks.knows_foreign(a.warp, a.lane, reader, r.who as usize * 32 + j, r.clock)
            });
            return if known { Ok(()) } else { clash(Who::Elsewhere, "load") };
        }
        if self.known(r) {
            return Ok(());
        }
        if r.who & ENGINE != 0 {
            return clash(Who::Engine, "asynchronous read");
        }
        let lanes = (0..32).filter(|&j| r.mask >> j & 1 == 1 && !(r.who as usize == a.warp && j == a.lane));
        let lane = lanes.into_iter().next().unwrap_or(0);
        clash(Who::Thread(r.who as usize * 32 + lane), "load")
    }

    /// Whether the actor knows all of these reads.
    fn known(&self, r: &Reader) -> bool {
        let a = self.a;
        if r.who & ENGINE != 0 {
            return self.clocks.knows(a.warp, a.lane, (r.who & !ENGINE) as usize, r.clock);
        }
        self.clocks.knows_all(a.warp, a.lane, r.who as usize, r.mask, r.clock)
    }

    #[inline]
    fn note_read(&mut self, c: &mut Cell) {
        let (a, (who, clock)) = (self.a, self.stamp);
        let (who, mask) = if a.engine.is_some() { (who | ENGINE, 1) } else { (a.warp as u32, 1 << a.lane) };
        let new = Reader { who, clock, mask, pc: a.pc, strong: a.strong };
        let r = &mut c.read;
        if let Some((own, _, reader)) = self.foreign {
            let merge = r.mask != 0 && reader == own && r.who == who && r.clock == clock && r.strong == a.strong;
            *r = if merge { Reader { mask: r.mask | mask, ..new } } else { new };
            return;
        }
        if r.mask != 0 && r.who == who && r.clock == clock && r.strong == a.strong {
            r.mask |= mask;
        } else if r.mask == 0 || self.known(r) {
            *r = new;
        } else {
            self.note_more(c, new);
        }
    }

    /// A second reader that knows nothing of the first.
    fn note_more(&mut self, c: &mut Cell, new: Reader) {
        let mut list = match (&mut self.pool, c.more) {
            (None, _) => return,
            (Some(pool), 0) => {
                pool.push(Vec::new());
                c.more = pool.len() as u32 - 1;
                Vec::new()
            }
            (Some(pool), at) => std::mem::take(&mut pool[at as usize]),
        };
        let twin = list.iter_mut().find(|r| r.who == new.who && r.clock == new.clock && r.strong == new.strong);
        match twin {
            Some(r) => r.mask |= new.mask,
            None => {
                list.retain(|r| !self.known(r));
                list.push(new);
            }
        }
        if let Some(pool) = &mut self.pool {
            pool[c.more as usize] = list;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(warp: usize, lane: usize) -> Actor {
        Actor { warp, lane, pc: 7, strong: false, engine: None }
    }

    fn touch(r: &mut Races, warp: usize, lane: usize, at: u64, write: bool) -> bool {
        r.shared(0, at, 4, write, &actor(warp, lane), &|_| false).is_ok()
    }

    fn barrier(r: &mut Races, warps: usize) {
        (0..warps).for_each(|w| r.arrive(0, 0, w, u32::MAX));
        let known = r.open(0, 0).unwrap();
        (0..warps).for_each(|w| {
            r.clocks.meet(w, u32::MAX, u32::MAX);
            r.clocks.acquire(w, u32::MAX, u32::MAX, &known);
        });
    }

    #[test]
    fn barriers_order_shared_memory() {
        let mut r = Races::new(1, 2, 64, 4, 0);
        assert!(touch(&mut r, 0, 0, 0, true) && touch(&mut r, 0, 0, 0, false));
        assert!(!touch(&mut r, 1, 0, 0, false));
        barrier(&mut r, 2);
        assert!(touch(&mut r, 1, 0, 0, false) && touch(&mut r, 0, 9, 0, false) && touch(&mut r, 1, 3, 0, false));
        // A write must know every read.
        assert!(!touch(&mut r, 1, 0, 0, true));
        barrier(&mut r, 2);
        assert!(touch(&mut r, 1, 0, 0, true));
    }

    #[test]
    fn copies_are_written_until_awaited() {
        let mut r = Races::new(1, 1, 64, 4, 0);
        r.copying(0, 16, 16, &actor(0, 3)).unwrap();
        assert!(!touch(&mut r, 0, 3, 20, false));
        r.copied(0, 16, 16, 0);
        assert!(touch(&mut r, 0, 3, 20, false) && !touch(&mut r, 0, 4, 20, false));
        r.clocks.meet(0, u32::MAX, u32::MAX);
        assert!(touch(&mut r, 0, 4, 20, false));
    }

    #[test]
    fn atomics_hand_on_between_clusters() {
        let mut g = GlobalShadow::new(4);
        let mut a = Races::new(1, 1, 0, 4, 0);
        let mut b = Races::new(1, 1, 0, 4, 1);
        let no = |_: usize| false;
        a.global(&mut g, 0x1000, 4, true, &actor(0, 0), &no).unwrap();
        assert!(b.global(&mut g, 0x1000, 4, false, &actor(0, 0), &no).is_err());
        let s = Strong { reads: true, writes: true, acquire: false, release: false };
        let strong = Actor { strong: true, ..actor(0, 0) };
        a.fence(0, 1, u32::MAX);
        a.strong(&mut g, None, 0x2000, &strong, u32::MAX, s);
        b.strong(&mut g, None, 0x2000, &strong, u32::MAX, s);
        assert!(b.global(&mut g, 0x1000, 4, false, &actor(0, 0), &no).is_err());
        b.fence(0, 1, u32::MAX);
        assert!(b.global(&mut g, 0x1000, 4, false, &actor(0, 0), &no).is_ok());
        assert!(b.global(&mut g, 0x1000, 4, false, &actor(0, 1), &no).is_err());
    }
}
