//! `cp.async`: copies that each thread issues, commits in groups, and waits for.
//!
//! When a copy really takes place is drawn from the seed: at once, or as late as its thread's wait. A thread that reads
//! too early therefore sees stale bytes on some seeds. Bytes that nobody wrote stay unwritten where they are copied to.

use super::memory::{Home, addresses, inside, lanes, one_region, outside, place, region};
use super::traffic::count;
use super::warp::{LANES, Warp};
use super::watch::{self, Kind};
use super::{Context, Cta};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{CpAsync, Space};
use crate::memory::set;
use crate::race::Actor;

/// The copies of a warp that no thread has waited for.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    list: Vec<Copy>,
    /// Groups each lane has committed.
    commits: [u32; LANES],
}

/// One instruction's.
#[derive(Debug)]
struct Copy {
    /// The lanes that have not waited for theirs.
    lanes: u32,
    /// The number of each lane's group.
    groups: [u32; LANES],
    dst: [u64; LANES],
    src: [u64; LANES],
    bytes: u32,
    /// Bytes read; the rest is zero.
    read: [u32; LANES],
    done: bool,
}

impl Copies {
    pub fn commit(&mut self, m: u32) {
        for i in 0..LANES {
            self.commits[i] += m >> i & 1;
        }
    }
}

const WHAT: &str = "asynchronous copy";

pub(super) fn issue(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &CpAsync, m: u32, pc: u32) -> Step<()> {
    let (dst, src) = (addresses(w, &a.dst), addresses(w, &a.src));
    let read = a.src_bytes.map_or([a.bytes; LANES], |r| w.r32(r).map(|n| n.min(a.bytes)));
    let n = a.bytes as usize;
    count(x, Space::Shared, &dst, m, n, pc, true);
    let reads = (0..LANES).fold(0, |m, i| m | u32::from(read[i] > 0) << i) & m;
    if reads != 0 {
        count(x, Space::Global, &src, reads, n, pc, false);
    }
    // One draw for all lanes: hardware moves a warp's copies together.
    let late = x.rng.next() & 1 == 1;
    let c = Copy { lanes: m, groups: w.copies.commits, dst, src, bytes: a.bytes, read, done: !late };
    let sound = one_region(w, ctas, x, Space::Shared, &dst, m, n).is_some()
        && (reads == 0 || one_region(w, ctas, x, Space::Global, &src, reads, n).is_some());
    for lane in lanes(m) {
        if !sound {
            check(w, ctas, x, &c, lane)?;
        }
        watch_copy(w, x, &c, lane)?;
        if !late {
            perform(w, ctas, x, &c, lane)?;
        }
    }
    w.copies.list.push(c);
    Ok(())
}

/// Bounds and alignment of both sides, at the instruction rather than when the copy takes place.
fn check(w: &Warp, ctas: &mut [Cta], x: &mut Context<'_>, c: &Copy, lane: usize) -> Step<()> {
    for (space, address, bytes) in [(Space::Shared, c.dst[lane], c.bytes), (Space::Global, c.src[lane], c.read[lane])] {
        let blocks = ctas.len();
        let Some((home, at)) = place(space, address, w.cta, blocks).filter(|_| bytes > 0) else { continue };
        let fits = region(ctas, x, home, at).is_some_and(|r| inside(&r, at, bytes as usize).is_some());
        if !fits {
            return Err(Stop::new(lane as u32, outside(x, home, at, bytes, WHAT)));
        }
        if at % u64::from(c.bytes) != 0 {
            let kind = FaultKind::Misaligned { what: WHAT, space: home.name(), address: at, bytes: c.bytes };
            return Err(Stop::new(lane as u32, kind));
        }
    }
    Ok(())
}

/// The copy reads now and writes from now on.
fn watch_copy(w: &Warp, x: &mut Context<'_>, c: &Copy, lane: usize) -> Step<()> {
    if c.read[lane] > 0 {
        watch::lanes(w, x, Space::Global, &c.src, 1 << lane, c.read[lane] as usize, Kind::read(WHAT), |_, _| false)?;
    }
    let Some(races) = &mut x.races else { return Ok(()) };
    let actor = Actor::lane(watch::index(&x.plan, w), lane, x.pc);
    let found = races.copying(w.cta, c.dst[lane], c.bytes as usize, &actor);
    found.map_err(|clash| watch::fault(x, Home::Shared(w.cta), WHAT, lane as u32, clash))
}

fn perform(w: &Warp, ctas: &mut [Cta], x: &mut Context<'_>, c: &Copy, lane: usize) -> Step<()> {
    let (n, read) = (c.bytes as usize, c.read[lane] as usize);
    let (mut data, mut known) = ([0u8; 16], None);
    if read > 0 {
        let src = c.src[lane];
        let found = x.memory.find_mut(src).filter(|(start, a)| read as u64 <= start + a.data.len() as u64 - src);
        let Some((start, a)) = found else {
            return Err(Stop::new(lane as u32, outside(x, Home::Global, src, c.read[lane], WHAT)));
        };
        let offset = (src - start) as usize;
        data[..read].copy_from_slice(&a.data[offset..offset + read]);
        if !a.is_written(offset, read) {
            known = Some(std::array::from_fn::<bool, 16, _>(|i| i >= read || a.is_written(offset + i, 1)));
        }
    }
    let cta = &mut ctas[w.cta];
    let at = c.dst[lane] as usize;
    cta.shared[at..at + n].copy_from_slice(&data[..n]);
    match known {
        None => set(&mut cta.written, at, n, true),
        Some(known) => (0..n).for_each(|i| set(&mut cta.written, at + i, 1, known[i])),
    }
    Ok(())
}

/// Lanes `m` wait until at most `left` of their groups have not taken place.
pub(super) fn wait(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, m: u32, left: u32) -> Step<()> {
    let mut list = std::mem::take(&mut w.copies.list);
    let warp = watch::index(&x.plan, w);
    for c in &mut list {
        let over = |i: usize| c.groups[i].saturating_add(left) < w.copies.commits[i];
        let over = (0..LANES).fold(0, |o, i| o | u32::from(over(i)) << i) & m & c.lanes;
        for lane in lanes(over) {
            if !c.done {
                perform(w, ctas, x, c, lane)?;
            }
            if let Some(r) = &mut x.races {
                r.copied(w.cta, c.dst[lane], c.bytes as usize, warp);
            }
        }
        c.lanes &= !over;
    }
    list.retain(|c| c.lanes != 0);
    w.copies.list = list;
    Ok(())
}
