//! What a memory remembers of its accesses, and what an access must know of them.
//!
//! A cell remembers its last write and the reads since. Cells are as wide as the kernel's widest access to that memory,
//! 16 bytes at most, so that an access is one look at one cell. A cell that is touched in part is *split*: each of its
//! parts, as wide as the narrowest access, then remembers for itself, until one write covers all of them again.

use crate::clock::Clocks;

use super::{Actor, Clash, Who};

/// The last write of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrote {
    Nothing,
    Plain,
    Strong,
    /// A `cp.async` that its thread has not waited for.
    Copying,
    /// An engine: a TMA load.
    Engine,
    /// The parts know.
    Split,
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
pub(super) struct Cell {
    who: u32,
    clock: u32,
    pc: u32,
    wrote: Wrote,
    read: Reader,
    /// More readers, in the pool, or 0 for none. Of a split cell, its parts.
    more: u32,
    /// Of device memory: the clusters of the last write and the last read.
    writer: u32,
    reader: u32,
}

pub(super) const EMPTY: Cell = Cell {
    who: 0,
    clock: 0,
    pc: 0,
    wrote: Wrote::Nothing,
    read: Reader { who: 0, clock: 0, mask: 0, pc: 0, strong: false },
    more: 0,
    writer: 0,
    reader: 0,
};

/// The narrowest and the widest access a kernel makes to a memory, in bytes: 1 to 4, and up to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grain {
    pub part: u32,
    pub cell: u32,
}

/// The parts and readers of a memory's cells.
#[derive(Debug)]
pub(super) struct Shadow {
    /// Bits of an address within a part, and within a cell.
    part: u32,
    cell: u32,
    parts: Vec<Cell>,
    /// Parts that belong to no cell now.
    free: Vec<u32>,
    /// Readers beyond the first. Device memory keeps none.
    pool: Option<Vec<Vec<Reader>>>,
}

impl Shadow {
    pub fn new(grain: Grain, pool: bool) -> Shadow {
        let pool = pool.then(|| vec![Vec::new()]);
        let (part, cell) = (grain.part.trailing_zeros(), grain.cell.max(grain.part).trailing_zeros());
        Shadow { part, cell, parts: Vec::new(), free: Vec::new(), pool }
    }

    /// Bits of an address within a cell.
    #[inline]
    pub fn cell_bits(&self) -> u32 {
        self.cell
    }

    /// An access of bytes `from .. to`, which lie in cell `c`.
    #[inline]
    pub fn access(&mut self, c: &mut Cell, from: u64, to: u64, write: bool, look: &Look<'_>) -> Result<(), Clash> {
        let width = 1 << self.cell;
        let whole = to - from == width;
        if c.wrote != Wrote::Split && (whole || self.part == self.cell) {
            return look.go(c, &mut self.pool, write).map_err(|e| Clash { address: from & !(width - 1), ..e });
        }
        self.access_parts(c, from, to, write, look)?;
        if write && whole {
            self.join(c);
        }
        Ok(())
    }

    /// Whether all lanes of the actor's group would find and leave the same in bytes `from .. to` of the cell.
    #[inline]
    pub fn agrees(&self, c: &Cell, from: u64, to: u64, look: &Look<'_>) -> bool {
        if c.wrote != Wrote::Split {
            return look.agrees(c);
        }
        self.parts[self.range_of(c, from, to)].iter().all(|c| look.agrees(c))
    }

    fn access_parts(&mut self, c: &mut Cell, from: u64, to: u64, write: bool, look: &Look<'_>) -> Result<(), Clash> {
        let start = from >> self.cell << self.cell;
        let (part, range) = (self.part, self.parts_of(c, from, to));
        for i in range {
            let at = start + (((i & ((1 << (self.cell - part)) - 1)) as u64) << part);
            look.go(&mut self.parts[i], &mut self.pool, write).map_err(|e| Clash { address: at, ..e })?;
        }
        Ok(())
    }

    /// A `cp.async` to bytes `from .. to` of the cell has been awaited: it is a plain write at `clock`.
    #[inline]
    pub fn copied(&mut self, c: &mut Cell, from: u64, to: u64, clock: u32) {
        let set = |c: &mut Cell| (c.wrote, c.clock) = (Wrote::Plain, clock);
        if c.wrote != Wrote::Split && to - from == 1 << self.cell {
            return set(c);
        }
        let range = self.parts_of(c, from, to);
        self.parts[range].iter_mut().for_each(set);
    }

    /// The parts that hold bytes `from .. to` of the cell, which is split if it was not.
    fn parts_of(&mut self, c: &mut Cell, from: u64, to: u64) -> std::ops::Range<usize> {
        let count = 1 << (self.cell - self.part);
        if c.wrote != Wrote::Split {
            let at = self.free.pop().unwrap_or_else(|| {
                self.parts.resize(self.parts.len() + count, EMPTY);
                (self.parts.len() / count - 1) as u32
            });
            for i in 0..count {
                let mut part = *c;
                if let (Some(pool), true) = (&mut self.pool, i > 0 && c.more != 0) {
                    pool.push(pool[c.more as usize].clone());
                    part.more = pool.len() as u32 - 1;
                }
                self.parts[at as usize * count + i] = part;
            }
            (c.wrote, c.more) = (Wrote::Split, at);
        }
        self.range_of(c, from, to)
    }

    #[inline]
    fn range_of(&self, split: &Cell, from: u64, to: u64) -> std::ops::Range<usize> {
        let within = |at: u64| (at as usize & ((1 << self.cell) - 1)) >> self.part;
        let first = (split.more as usize) << (self.cell - self.part);
        first + within(from)..first + within(to - 1) + 1
    }

    /// One write has covered all parts: the cell remembers it for them.
    fn join(&mut self, c: &mut Cell) {
        self.free.push(c.more);
        *c = self.parts[(c.more as usize) << (self.cell - self.part)];
    }
}

/// One look at one cell.
pub(super) struct Look<'a> {
    pub clocks: &'a Clocks,
    pub a: &'a Actor,
    /// Who and when, to remember.
    pub stamp: (u32, u32),
    /// Of device memory: the actor's cluster.
    pub cluster: Option<u32>,
    /// Whether it is the write of a `cp.async`, which goes on.
    pub copying: bool,
    pub same: &'a dyn Fn(usize) -> bool,
}

impl Look<'_> {
    #[inline]
    fn go(&self, c: &mut Cell, pool: &mut Option<Vec<Vec<Reader>>>, write: bool) -> Result<(), Clash> {
        if c.wrote != Wrote::Nothing && !self.own(c) {
            self.against_write(c, write)?;
        }
        if !write {
            self.note_read(c, pool);
            c.reader = self.cluster.unwrap_or(0);
            return Ok(());
        }
        if c.read.mask != 0 {
            self.against_reads(c, pool)?;
        }
        c.read.mask = 0;
        if let (Some(pool), true) = (pool, c.more != 0) {
            pool[c.more as usize].clear();
        }
        (c.who, c.clock) = self.stamp;
        c.pc = self.a.pc;
        c.wrote = match (self.a.engine, self.a.strong) {
            _ if self.copying => Wrote::Copying,
            (Some(_), false) => Wrote::Engine,
            (_, true) => Wrote::Strong,
            (None, false) => Wrote::Plain,
        };
        c.writer = self.cluster.unwrap_or(0);
        Ok(())
    }

    /// Whether the write was the actor's own.
    #[inline]
    fn own(&self, c: &Cell) -> bool {
        let by_thread = matches!(c.wrote, Wrote::Plain | Wrote::Strong) && self.a.engine.is_none();
        by_thread && c.who == self.stamp.0 && c.writer == self.cluster.unwrap_or(0)
    }

    /// Whether it is the same for all lanes of the group, which know the same but for what the others of their own warp
    /// did just now.
    #[inline]
    fn agrees(&self, c: &Cell) -> bool {
        let news = |warp: usize, clock| warp == self.a.warp && !self.clocks.is_synced(warp, clock);
        if c.wrote != Wrote::Nothing && news(c.who as usize / 32, c.clock) {
            return false;
        }
        let r = &c.read;
        let twin = r.clock == self.stamp.1 && r.strong == self.a.strong;
        self.cluster.is_some() || r.mask == 0 || twin || !news(r.who as usize, r.clock)
    }

    /// Whether the other side belongs to another cluster.
    #[inline]
    fn is_foreign(&self, cluster: u32) -> bool {
        self.cluster.is_some_and(|own| own != cluster)
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
        if self.is_foreign(c.writer) {
            let known = self.clocks.knows_foreign(a.warp, a.lane, c.writer.into(), who, c.clock);
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

    fn against_reads(&self, c: &Cell, pool: &Option<Vec<Vec<Reader>>>) -> Result<(), Clash> {
        self.against_read(&c.read, c.reader)?;
        if let (Some(pool), true) = (pool, c.more != 0) {
            for r in &pool[c.more as usize] {
                self.against_read(r, 0)?;
            }
        }
        Ok(())
    }

    /// `cluster` is the reader's, of device memory.
    fn against_read(&self, r: &Reader, cluster: u32) -> Result<(), Clash> {
        let a = self.a;
        if a.strong && r.strong {
            return Ok(());
        }
        let clash = |who, other| Err(Clash { address: 0, pc: r.pc, other, who, proxy: false });
        if self.is_foreign(cluster) {
            let knows = |j| self.clocks.knows_foreign(a.warp, a.lane, cluster.into(), r.who as usize * 32 + j, r.clock);
            let known = (0..32).all(|j| r.mask >> j & 1 == 0 || knows(j));
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
    #[inline]
    fn known(&self, r: &Reader) -> bool {
        let a = self.a;
        if r.who & ENGINE != 0 {
            return self.clocks.knows(a.warp, a.lane, (r.who & !ENGINE) as usize, r.clock);
        }
        self.clocks.knows_all(a.warp, a.lane, r.who as usize, r.mask, r.clock)
    }

    #[inline]
    fn note_read(&self, c: &mut Cell, pool: &mut Option<Vec<Vec<Reader>>>) {
        let (a, (who, clock)) = (self.a, self.stamp);
        let (who, mask) = if a.engine.is_some() { (who | ENGINE, 1) } else { (a.warp as u32, a.lanes) };
        let new = Reader { who, clock, mask, pc: a.pc, strong: a.strong };
        let r = &mut c.read;
        let twin = r.mask != 0 && r.who == who && r.clock == clock && r.strong == a.strong;
        if let Some(own) = self.cluster {
            *r = if twin && c.reader == own { Reader { mask: r.mask | mask, ..new } } else { new };
            return;
        }
        if twin {
            r.mask |= mask;
        } else if r.mask == 0 || self.known(r) {
            *r = new;
        } else if let Some(pool) = pool {
            self.note_more(c, pool, new);
        }
    }

    /// A second reader that knows nothing of the first.
    fn note_more(&self, c: &mut Cell, pool: &mut Vec<Vec<Reader>>, new: Reader) {
        if c.more == 0 {
            pool.push(Vec::new());
            c.more = pool.len() as u32 - 1;
        }
        let list = &mut pool[c.more as usize];
        let twin = list.iter_mut().find(|r| r.who == new.who && r.clock == new.clock && r.strong == new.strong);
        match twin {
            Some(r) => r.mask |= new.mask,
            None => {
                list.retain(|r| !self.known(r));
                list.push(new);
            }
        }
    }
}
