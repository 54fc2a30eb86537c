//! Who knows of whose accesses: vector clocks of the threads of a cluster.
//!
//! Each warp has a clock, the same for its lanes, that goes on whenever a lane tells others what it did. An access is
//! stamped with its thread and its warp's clock. A thread *knows* an access when a chain of synchronisation leads from
//! the access to it: barriers, mbarriers, warp barriers and shuffles, fences with atomics, waits for engines. What a
//! thread knows is a vector with one clock for each thread of the cluster, and one for each *engine*: what copies or
//! multiplies on its own, such as the copies that complete on one mbarrier or the products of one warpgroup.
//!
//! Lanes of a warp nearly always know the same, so that a warp keeps one vector for all (and one clock up to which its
//! lanes know each other) until they part. This makes a shuffle cost nothing and a barrier one pass over the vector.
//!
//! `proxy` is a second vector along the same chains: the accesses known *and* followed by a `fence.proxy.async`, which
//! are those the async proxy may read.
//!
//! Source: Flanagan & Freund 2009, "FastTrack: efficient and precise dynamic race detection"; PTX ISA 9.0, chapter 8.

use std::collections::BTreeMap;
use std::rc::Rc;

/// What a thread knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    /// By thread of the cluster, then by engine; missing entries are 0.
    pub own: Vec<u32>,
    pub proxy: Vec<u32>,
    /// What it knows of threads of other clusters, by the cluster's number.
    pub foreign: Option<Rc<BTreeMap<u64, Rc<Vec<u32>>>>>,
}

fn raise(to: &mut Vec<u32>, from: &[u32]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    for (t, f) in to.iter_mut().zip(from) {
        *t = (*t).max(*f);
    }
}

fn raise_at(to: &mut Vec<u32>, at: usize, clock: u32) {
    if to.len() <= at {
        to.resize(at + 1, 0);
    }
    to[at] = to[at].max(clock);
}

impl Known {
    pub fn join(&mut self, other: &Known) {
        raise(&mut self.own, &other.own);
        raise(&mut self.proxy, &other.proxy);
        match (&mut self.foreign, &other.foreign) {
            (_, None) => {}
            (mine @ None, theirs) => *mine = theirs.clone(),
            (Some(mine), Some(theirs)) if Rc::ptr_eq(mine, theirs) => {}
            (Some(mine), Some(theirs)) => {
                let mine = Rc::make_mut(mine);
                for (cluster, known) in theirs.iter() {
                    let slot = mine.entry(*cluster).or_default();
                    if !Rc::ptr_eq(slot, known) {
                        raise(Rc::make_mut(slot), known);
                    }
                }
            }
        }
    }

    fn at(&self, who: usize) -> u32 {
        self.own.get(who).copied().unwrap_or(0)
    }
}

/// The clock of one warp and what its lanes know.
#[derive(Clone, Debug)]
struct WarpClock {
    now: u32,
    /// Accesses of any lane of the warp up to this clock are known to all its lanes.
    synced: u32,
    /// Whether an access was stamped with `now`.
    used: bool,
    /// Up to which clock each lane's own accesses are proxy-fenced; and those of all lanes, to all lanes.
    fenced: u32,
    fenced_synced: u32,
    /// One for all lanes, or one a lane.
    base: Vec<Rc<Known>>,
}

/// The clocks of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    warps: Vec<WarpClock>,
    engines: usize,
}

const LANES: usize = 32;

fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |i| m >> i & 1 == 1)
}

impl Clocks {
    pub fn new(warps: usize) -> Clocks {
        let none = Rc::new(Known::default());
        let warp = WarpClock { now: 1, synced: 0, used: false, fenced: 0, fenced_synced: 0, base: vec![none] };
        Clocks { warps: vec![warp; warps], engines: 0 }
    }

    /// Threads of the cluster; engines count from here.
    pub fn threads(&self) -> usize {
        self.warps.len() * LANES
    }

    /// A new engine's number among those a vector has.
    pub fn engine(&mut self) -> usize {
        self.engines += 1;
        self.threads() + self.engines - 1
    }

    /// The clock to stamp an access of warp `w` with.
    #[inline]
    pub fn stamp(&mut self, w: usize) -> u32 {
        self.warps[w].used = true;
        self.warps[w].now
    }

    #[inline]
    fn base(&self, w: usize, lane: usize) -> &Known {
        let b = &self.warps[w].base;
        if b.len() == 1 { &b[0] } else { &b[lane] }
    }

    /// Whether all lanes of warp `w` know the same of other warps.
    #[inline]
    pub fn is_uniform(&self, w: usize) -> bool {
        self.warps[w].base.len() == 1
    }

    /// Whether all lanes of warp `w` know what any of them did at `clock`.
    #[inline]
    pub fn is_synced(&self, w: usize, clock: u32) -> bool {
        clock <= self.warps[w].synced
    }

    /// Whether lane `lane` of warp `w` knows what `who` did at `clock`.
    #[inline]
    pub fn knows(&self, w: usize, lane: usize, who: usize, clock: u32) -> bool {
        if who / LANES == w && (who % LANES == lane || clock <= self.warps[w].synced) {
            return true;
        }
        self.base(w, lane).at(who) >= clock
    }

    /// As `knows`, of all lanes `mask` of warp `other`.
    #[inline]
    pub fn knows_all(&self, w: usize, lane: usize, other: usize, mask: u32, clock: u32) -> bool {
        if other == w && clock <= self.warps[w].synced {
            return true;
        }
        let known = self.base(w, lane);
        let mut left = if other == w { mask & !(1 << lane) } else { mask };
        if let (u32::MAX, Some(all)) = (left, known.own.get(other * LANES..(other + 1) * LANES)) {
            return all.iter().fold(true, |k, &c| k & (c >= clock));
        }
        while left != 0 {
            if known.at(other * LANES + left.trailing_zeros() as usize) < clock {
                return false;
            }
            left &= left - 1;
        }
        true
    }

    /// Whether what `who` did at `clock` was followed by a proxy fence, as far as the lane knows.
    pub fn fenced(&self, w: usize, lane: usize, who: usize, clock: u32) -> bool {
        let c = &self.warps[w];
        if who / LANES == w && (clock <= c.fenced_synced || who % LANES == lane && clock <= c.fenced) {
            return true;
        }
        self.base(w, lane).proxy.get(who).copied().unwrap_or(0) >= clock
    }

    /// Whether the lane knows what thread `who` of another cluster did at `clock`.
    pub fn knows_foreign(&self, w: usize, lane: usize, cluster: u64, who: usize, clock: u32) -> bool {
        let foreign = self.base(w, lane).foreign.as_ref().and_then(|f| f.get(&cluster));
        foreign.and_then(|v| v.get(who)).is_some_and(|&c| c >= clock)
    }

    /// What the lanes `m` of warp `w` know together, their own accesses with it; later accesses are stamped later.
    pub fn publish(&mut self, w: usize, m: u32) -> Known {
        let c = &self.warps[w];
        let mut known = Known::default();
        let mut last: Option<&Rc<Known>> = None;
        for i in lanes(m) {
            let b = if c.base.len() == 1 { &c.base[0] } else { &c.base[i] };
            if !last.is_some_and(|l| Rc::ptr_eq(l, b)) {
                if last.is_none() {
                    known = (**b).clone();
                } else {
                    known.join(b);
                }
                last = Some(b);
            }
        }
        for j in 0..LANES {
            let own = m >> j & 1 == 1;
            // Without an access the clock stays, and what is stamped with it later is not told yet.
            let told = if own { c.now - u32::from(!c.used) } else { c.synced };
            raise_at(&mut known.own, w * LANES + j, told.max(c.synced));
            let fenced = if own { c.fenced } else { c.fenced_synced };
            if fenced > 0 {
                raise_at(&mut known.proxy, w * LANES + j, fenced);
            }
        }
        let c = &mut self.warps[w];
        if c.used {
            (c.now, c.used) = (c.now + 1, false);
        }
        known
    }

    /// The lanes `m` of warp `w` learn what `known` says. `live` are the warp's lanes that have not ended.
    pub fn acquire(&mut self, w: usize, m: u32, live: u32, known: &Rc<Known>) {
        let c = &mut self.warps[w];
        let whole = m & live == live;
        if whole && c.base.len() == 1 {
            let mut new = (**known).clone();
            new.join(&c.base[0]);
            c.base[0] = Rc::new(new);
            return;
        }
        if c.base.len() == 1 {
            c.base = vec![c.base[0].clone(); LANES];
        }
        let mut last: Option<(Rc<Known>, Rc<Known>)> = None;
        for i in lanes(m) {
            // Lanes that knew the same know the same again.
            if let Some((old, new)) = &last
                && Rc::ptr_eq(old, &c.base[i])
            {
                c.base[i] = new.clone();
                continue;
            }
            let mut new = (**known).clone();
            new.join(&c.base[i]);
            let new = Rc::new(new);
            last = Some((std::mem::replace(&mut c.base[i], new.clone()), new));
        }
    }

    /// The lanes `m` of warp `w` meet: each knows what all did before.
    pub fn meet(&mut self, w: usize, m: u32, live: u32) {
        if m & live != live {
            let known = Rc::new(self.publish(w, m));
            self.acquire(w, m, live, &known);
            return;
        }
        if self.warps[w].base.len() > 1 {
            let known = Rc::new(self.publish(w, live));
            self.warps[w].base = vec![known];
        }
        let c = &mut self.warps[w];
        if c.used {
            (c.synced, c.now, c.used) = (c.now, c.now + 1, false);
        } else {
            c.synced = c.now - 1;
        }
        c.fenced_synced = c.fenced;
    }

    /// A `fence.proxy.async` of lanes `m`.
    pub fn proxy_fence(&mut self, w: usize, m: u32, live: u32) {
        if m & live == live && self.warps[w].base.len() == 1 {
            let synced = self.warps[w].synced;
            let mut known = (*self.warps[w].base[0]).clone();
            known.proxy = known.own.clone();
            for j in 0..LANES {
                raise_at(&mut known.proxy, w * LANES + j, synced);
            }
            let c = &mut self.warps[w];
            c.base[0] = Rc::new(known);
            c.fenced = c.now;
            (c.now, c.used) = (c.now + 1, false);
            return;
        }
        for i in lanes(m) {
            let mut known = self.publish(w, 1 << i);
            known.proxy = known.own.clone();
            self.acquire(w, 1 << i, live, &Rc::new(known));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = u32::MAX;

    #[test]
    fn lanes_know_each_other_once_they_met() {
        let mut c = Clocks::new(2);
        let t = c.stamp(0);
        assert!(c.knows(0, 5, 5, t) && !c.knows(0, 5, 6, t) && !c.knows(1, 0, 5, t));
        c.meet(0, ALL, ALL);
        assert!(c.knows(0, 5, 6, t) && !c.knows(1, 0, 6, t) && c.knows_all(0, 3, 0, ALL, t));
        let t = c.stamp(0);
        c.meet(0, 0b11, ALL);
        assert!(c.knows(0, 0, 1, t) && c.knows(0, 1, 0, t) && !c.knows(0, 0, 2, t) && !c.knows(0, 2, 0, t));
    }

    #[test]
    fn a_barrier_tells_what_came_before_it_only() {
        let mut c = Clocks::new(2);
        let before = c.stamp(0);
        let mut sum = c.publish(0, ALL);
        sum.join(&c.publish(1, ALL));
        let after = c.stamp(0);
        c.acquire(1, ALL, ALL, &Rc::new(sum));
        assert!(c.knows(1, 9, 3, before) && !c.knows(1, 9, 3, after));
    }

    #[test]
    fn one_lane_learns_and_tells() {
        let mut c = Clocks::new(2);
        let t = c.stamp(0);
        let known = Rc::new(c.publish(0, 1 << 4));
        c.acquire(1, 1, ALL, &known);
        assert!(c.knows(1, 0, 4, t) && !c.knows(1, 1, 4, t) && !c.knows(1, 0, 5, t));
        c.meet(1, ALL, ALL);
        assert!(c.knows(1, 31, 4, t));
    }

    #[test]
    fn proxy_fences_travel() {
        let mut c = Clocks::new(2);
        let (x, e) = (c.stamp(0), c.engine());
        assert_eq!(e, 64);
        let unfenced = Rc::new(c.publish(0, ALL));
        c.acquire(1, ALL, ALL, &unfenced);
        assert!(c.knows(1, 0, 3, x) && !c.fenced(1, 0, 3, x));
        // The reader's own fence serves as well as the writer's.
        let mut other = c.clone();
        other.proxy_fence(1, 1, ALL);
        assert!(other.fenced(1, 0, 3, x) && !other.fenced(1, 1, 3, x));
        c.proxy_fence(0, ALL, ALL);
        let y = c.stamp(0);
        let known = Rc::new(c.publish(0, ALL));
        c.acquire(1, ALL, ALL, &known);
        assert!(c.fenced(1, 7, 3, x) && !c.fenced(1, 7, 3, y));
    }
}
