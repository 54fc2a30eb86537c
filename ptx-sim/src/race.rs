//! Races, found by order and not by luck.
//!
//! Two accesses of one byte by two threads, at least one a write, race unless the earlier is known to the thread that
//! makes the later one (see `clock`). Every cell of memory remembers its last write and the reads since: a write must
//! know all of them, a read the write. This finds a missing barrier on every run that makes both accesses, whichever
//! came first.
//!
//! Bytes that the kernel never accesses apart share a cell (see `shadow`). Strong accesses (atomics, volatile,
//! relaxed and the like) do not race with each other. Lanes that store the same value to the same place in one
//! instruction do not race. A `cp.async` writes from its issue until its own thread's wait: whoever touches its bytes
//! in between races with it.
//!
//! Of device memory's reads each cell keeps one only, so that a write that races with several is found and one that
//! races with an older read by a third thread may not be. Blocks of different clusters know each other's accesses
//! through atomics and fences alone.

mod shadow;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::clock::{Clocks, Known};
pub(crate) use shadow::Grain;
use shadow::{Cell, EMPTY, Look, Shadow};

/// Who makes an access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Actor {
    /// The warp of the cluster and its lane, whose knowledge counts.
    pub warp: usize,
    pub lane: usize,
    /// All lanes that read this in one instruction, the lowest of which is `lane`; else only its own bit.
    pub lanes: u32,
    pub pc: u32,
    pub strong: bool,
    /// The engine that makes the access for it, and its clock.
    pub engine: Option<(usize, u32)>,
}

impl Actor {
    /// A plain access of one lane.
    pub fn lane(warp: usize, lane: usize, pc: u32) -> Actor {
        Actor { warp, lane, lanes: 1 << lane, pc, strong: false, engine: None }
    }
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
    pages: Vec<Box<[Cell]>>,
    /// Where each page stands in `pages`, by its number; and the pages looked for last, by the low bits of theirs.
    numbers: HashMap<usize, usize>,
    recent: Box<[(usize, usize); 256]>,
    shadow: Shadow,
    releases: HashMap<u64, Release>,
}

/// What a location hands on: by cluster, what was known when it was released.
type Release = BTreeMap<u64, Rc<Vec<u32>>>;

/// Cells of a page.
const PAGE: usize = 256;

impl GlobalShadow {
    /// For accesses of such widths.
    pub fn new(grain: Grain) -> GlobalShadow {
        GlobalShadow {
            pages: Vec::new(),
            numbers: HashMap::new(),
            recent: Box::new([(usize::MAX, 0); 256]),
            shadow: Shadow::new(grain, false),
            releases: HashMap::new(),
        }
    }

    /// The place of page `n` in `pages`.
    #[inline]
    fn page(&mut self, n: usize) -> usize {
        let (page, at) = self.recent[n % 256];
        if page == n {
            return at;
        }
        let at = *self.numbers.entry(n).or_insert_with(|| {
            self.pages.push(vec![EMPTY; PAGE].into_boxed_slice());
            self.pages.len() - 1
        });
        self.recent[n % 256] = (n, at);
        at
    }
}

/// What a cluster did and knows.
#[derive(Debug)]
pub(crate) struct Races {
    pub clocks: Clocks,
    /// Its number in the grid.
    cluster: u64,
    /// By block.
    shared: Vec<Vec<Cell>>,
    shadow: Shadow,
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
    /// A cluster of `blocks` blocks of `warps` warps, with so many bytes of shared memory.
    pub fn new(blocks: usize, warps: usize, shared: usize, grain: Grain, cluster: u64) -> Races {
        let shadow = Shadow::new(grain, true);
        Races {
            clocks: Clocks::new(blocks * warps),
            cluster,
            shared: vec![vec![EMPTY; (shared >> shadow.cell_bits()) + 1]; blocks],
            shadow,
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
        let look = Look { stamp: self.stamp(a), clocks: &self.clocks, a, cluster: None, copying: false, same };
        for (cell, from, to) in pieces(address, bytes, self.shadow.cell_bits()) {
            let Some(c) = self.shared[cta].get_mut(cell) else { break };
            self.shadow.access(c, from, to, write, &look)?;
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
        let cluster = Some(self.cluster as u32);
        let look = Look { stamp: self.stamp(a), clocks: &self.clocks, a, cluster, copying: false, same };
        for (cell, from, to) in pieces(address, bytes, g.shadow.cell_bits()) {
            let page = g.page(cell / PAGE);
            g.shadow.access(&mut g.pages[page][cell % PAGE], from, to, write, &look)?;
        }
        Ok(())
    }

    /// Whether the lanes of `a`, which read the same bytes, may be looked at as one: of block `cta`'s shared memory, or of
    /// device memory.
    pub fn agree(&mut self, g: &mut GlobalShadow, cta: Option<usize>, address: u64, bytes: usize, a: &Actor) -> bool {
        let cluster = cta.is_none().then_some(self.cluster as u32);
        let look = Look { stamp: self.stamp(a), clocks: &self.clocks, a, cluster, copying: false, same: &|_| false };
        let Some(cta) = cta else {
            return pieces(address, bytes, g.shadow.cell_bits()).all(|(cell, from, to)| {
                let page = g.page(cell / PAGE);
                g.shadow.agrees(&g.pages[page][cell % PAGE], from, to, &look)
            });
        };
        let cells = &self.shared[cta];
        pieces(address, bytes, self.shadow.cell_bits())
            .all(|(cell, from, to)| cells.get(cell).is_none_or(|c| self.shadow.agrees(c, from, to, &look)))
    }

    #[inline]
    fn stamp(&mut self, a: &Actor) -> (u32, u32) {
        match a.engine {
            Some((engine, clock)) => (engine as u32, clock),
            None => ((a.warp * 32 + a.lane) as u32, self.clocks.stamp(a.warp)),
        }
    }

    /// Bytes that a `cp.async` of this thread will write, from now until [`Races::copied`].
    pub fn copying(&mut self, cta: usize, address: u64, bytes: usize, a: &Actor) -> Result<(), Clash> {
        let stamp = self.stamp(a);
        let look = Look { stamp, clocks: &self.clocks, a, cluster: None, copying: true, same: &|_| false };
        for (cell, from, to) in pieces(address, bytes, self.shadow.cell_bits()) {
            let Some(c) = self.shared[cta].get_mut(cell) else { break };
            self.shadow.access(c, from, to, true, &look)?;
        }
        Ok(())
    }

    /// Its thread has waited for the copy: it is a write of that thread, now.
    pub fn copied(&mut self, cta: usize, address: u64, bytes: usize, warp: usize) {
        let clock = self.clocks.stamp(warp);
        for (cell, from, to) in pieces(address, bytes, self.shadow.cell_bits()) {
            if let Some(c) = self.shared[cta].get_mut(cell) {
                self.shadow.copied(c, from, to, clock);
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

/// The cells of `bytes` at `address`, 2^`bits` bytes each: their numbers, and from where to where in each.
#[inline(always)]
fn pieces(address: u64, bytes: usize, bits: u32) -> impl Iterator<Item = (usize, u64, u64)> {
    let end = address + bytes as u64;
    let cells = address >> bits..=(end - 1) >> bits;
    cells.map(move |cell| (cell as usize, address.max(cell << bits), end.min((cell + 1) << bits)))
}

/// What a strong access does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strong {
    pub reads: bool,
    pub writes: bool,
    pub acquire: bool,
    pub release: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAIN: Grain = Grain { part: 4, cell: 16 };

    fn actor(warp: usize, lane: usize) -> Actor {
        Actor::lane(warp, lane, 7)
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
        let mut r = Races::new(1, 2, 64, GRAIN, 0);
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
        let mut r = Races::new(1, 1, 64, GRAIN, 0);
        r.copying(0, 16, 16, &actor(0, 3)).unwrap();
        assert!(!touch(&mut r, 0, 3, 20, false));
        r.copied(0, 16, 16, 0);
        assert!(touch(&mut r, 0, 3, 20, false) && !touch(&mut r, 0, 4, 20, false));
        r.clocks.meet(0, u32::MAX, u32::MAX);
        assert!(touch(&mut r, 0, 4, 20, false));
    }

    #[test]
    fn atomics_hand_on_between_clusters() {
        let mut g = GlobalShadow::new(GRAIN);
        let mut a = Races::new(1, 1, 0, GRAIN, 0);
        let mut b = Races::new(1, 1, 0, GRAIN, 1);
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
