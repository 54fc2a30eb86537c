//! A warp: the registers of 32 lanes, and where each lane stands.
//!
//! Lanes that stand at one place run together. After a branch that splits them, those at the lowest place run first, so
//! that they meet again where their paths join; the others wait in `pcs`. Lanes that wait for something (a barrier, a
//! lane of their warp) are *blocked*, and the others of their warp go on: threads of a warp make progress on their own,
//! as since Volta.

use super::barrier::Wait;
use super::bulk::Groups;
use super::copy::Copies;
use super::wgmma::Products;
use crate::ir::{PSrc, Row};

pub(crate) const LANES: usize = 32;

pub(crate) struct Warp {
    /// Its block, counted in its cluster.
    pub cta: usize,
    /// Its number in the block.
    pub id: u32,
    file: Vec<u64>,
    /// The registers a thread starts with, once they were filled.
    fresh: Vec<u64>,
    pub preds: Vec<u32>,
    /// `.local` memory, one lane after the other.
    pub local: Vec<u8>,
    /// Where the lanes of `mask` stand.
    pub pc: u32,
    /// The lanes that run together now.
    pub mask: u32,
    /// The lowest place where another lane stands: from there on the lanes may meet.
    pub limit: u32,
    /// Where the lanes outside of `mask` stand.
    pub pcs: [u32; LANES],
    /// Lanes that have not ended.
    pub live: u32,
    /// Lanes that wait, and for what.
    pub waits: Vec<(u32, Wait)>,
    pub blocked: u32,
    pub copies: Copies,
    pub groups: Groups,
    pub products: Products,
    /// How often each lane has come to the cluster's barrier.
    pub cluster_arrivals: [u64; LANES],
}

impl Warp {
    pub fn new(rows: u32, preds: u16, local: usize) -> Warp {
        Warp {
            cta: 0,
            id: 0,
            file: vec![0; rows as usize * 16],
            fresh: Vec::new(),
            preds: vec![0; preds as usize],
            local: vec![0xFF; local * LANES],
            pc: 0,
            mask: 0,
            limit: u32::MAX,
            pcs: [0; LANES],
            live: 0,
            waits: Vec::new(),
            blocked: 0,
            copies: Copies::default(),
            groups: Groups::default(),
            products: Products::default(),
            cluster_arrivals: [0; LANES],
        }
    }

    /// Makes it the warp `id` of block `cta`, with `live` lanes at the kernel's first instruction. Registers read as
    /// ones until they are written.
    pub fn start(&mut self, cta: usize, id: u32, live: u32) {
        match self.fresh.len() {
            0 => self.file.fill(u64::MAX),
            _ => self.file.copy_from_slice(&self.fresh),
        }
        self.preds.fill(0);
        self.preds[0] = u32::MAX;
        self.local.fill(0xFF);
        (self.cta, self.id, self.pc, self.mask, self.live, self.limit) = (cta, id, 0, live, live, u32::MAX);
        self.pcs = [0; LANES];
        self.blocked = 0;
        self.waits.clear();
        self.copies = Copies::default();
        self.groups = Groups::default();
        self.products = Products::default();
        self.cluster_arrivals = [0; LANES];
    }

    /// Keeps the registers as they are, for the next start.
    pub fn keep(&mut self) {
        self.fresh.clone_from(&self.file);
    }

    pub fn is_kept(&self) -> bool {
        !self.fresh.is_empty()
    }

    #[inline(always)]
    pub fn r32(&self, r: Row) -> &[u32; LANES] {
        let at = r as usize * 16;
        let row: &[u64; 16] = self.file[at..at + 16].try_into().expect("16 of 16");
        bytemuck::cast_ref(row)
    }

    #[inline(always)]
    pub fn r64(&self, r: Row) -> &[u64; LANES] {
        let at = r as usize * 16;
        self.file[at..at + 32].try_into().expect("32 of 32")
    }

    #[inline(always)]
    pub fn set32(&mut self, r: Row, mask: u32, v: &[u32; LANES]) {
        let at = r as usize * 16;
        let row: &mut [u64; 16] = (&mut self.file[at..at + 16]).try_into().expect("16 of 16");
        let row: &mut [u32; LANES] = bytemuck::cast_mut(row);
        if mask == u32::MAX {
            *row = *v;
        } else {
            for i in 0..LANES {
                row[i] = if mask >> i & 1 == 1 { v[i] } else { row[i] };
            }
        }
    }

    #[inline(always)]
    pub fn set64(&mut self, r: Row, mask: u32, v: &[u64; LANES]) {
        let at = r as usize * 16;
        let row: &mut [u64; LANES] = (&mut self.file[at..at + 32]).try_into().expect("32 of 32");
        if mask == u32::MAX {
            *row = *v;
        } else {
            for i in 0..LANES {
                row[i] = if mask >> i & 1 == 1 { v[i] } else { row[i] };
            }
        }
    }

    #[inline(always)]
    pub fn pred(&self, p: PSrc) -> u32 {
        let v = self.preds[p.pred as usize];
        if p.negate { !v } else { v }
    }

    #[inline(always)]
    pub fn set_pred(&mut self, p: u16, mask: u32, v: u32) {
        let slot = &mut self.preds[p as usize];
        *slot = *slot & !mask | v & mask;
    }

    /// Whether any lane can go on.
    pub fn runnable(&self) -> bool {
        self.live & !self.blocked != 0
    }

    /// Picks the lanes to run: those at the lowest place of all that are not blocked. False if none is left.
    pub fn regroup(&mut self) -> bool {
        for i in 0..LANES {
            if self.mask >> i & 1 == 1 {
                self.pcs[i] = self.pc;
            }
        }
        let ready = self.live & !self.blocked;
        (self.mask, self.limit, self.pc) = (0, u32::MAX, u32::MAX);
        if ready == 0 {
            return false;
        }
        for i in 0..LANES {
            if ready >> i & 1 == 0 {
                continue;
            }
            match self.pcs[i].cmp(&self.pc) {
                std::cmp::Ordering::Less => {
                    (self.limit, self.pc, self.mask) = (self.pc, self.pcs[i], 1 << i);
                }
                std::cmp::Ordering::Equal => self.mask |= 1 << i,
                std::cmp::Ordering::Greater => self.limit = self.limit.min(self.pcs[i]),
            }
        }
        true
    }

    /// Stops the lanes of `mask`, which stand at `at`, until `wait` is over.
    pub fn block(&mut self, mask: u32, at: u32, wait: Wait) {
        for i in 0..LANES {
            if mask >> i & 1 == 1 {
                self.pcs[i] = at;
            }
        }
        self.mask &= !mask;
        self.blocked |= mask;
        self.waits.push((mask, wait));
    }

    /// Lets the lanes of waits that `over` accepts go on.
    pub fn unblock(&mut self, mut over: impl FnMut(&Wait) -> bool) {
        let mut freed = 0;
        self.waits.retain(|(mask, w)| {
            let end = over(w);
            if end {
                freed |= mask;
            }
            !end
        });
        if freed != 0 {
            self.blocked &= !freed;
            self.regroup();
        }
    }

    /// Ends the lanes of `mask`.
    pub fn exit(&mut self, mask: u32) {
        self.live &= !mask;
        self.mask &= !mask;
    }
}
