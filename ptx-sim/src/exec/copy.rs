//! `cp.async`: copies that each thread issues, commits in groups, and waits for.
//!
//! When a copy really takes place is drawn from the seed: at once, or as late as its thread's wait. A thread that reads
//! too early therefore sees stale bytes on some seeds. Bytes that nobody wrote stay unwritten where they are copied to.

use super::memory::{Home, addresses, count, inside, outside, place, region};
use super::warp::{LANES, Warp};
use super::watch::{self, Kind};
use super::{Context, Cta};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{CpAsync, Space};
use crate::memory::{is_set, set};
use crate::race::Actor;

/// The copies of a warp that have not taken place.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    list: Vec<Copy>,
    /// Groups each lane has committed.
    commits: [u32; LANES],
}

#[derive(Debug)]
struct Copy {
    lane: u32,
    /// The number of its lane's group.
    group: u32,
    dst: u64,
    src: u64,
    bytes: u32,
    /// Bytes read; the rest is zero.
    read: u32,
    done: bool,
}

impl Copies {
    pub fn commit(&mut self, m: u32) {
        for i in 0..LANES {
            self.commits[i] += m >> i & 1;
        }
    }
}

pub(super) fn issue(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &CpAsync, m: u32, pc: u32) -> Step<()> {
    let (dst, src) = (addresses(w, &a.dst), addresses(w, &a.src));
    let read = a.src_bytes.map_or([a.bytes; LANES], |r| w.r32(r).map(|n| n.min(a.bytes)));
    count(x, Space::Shared, &dst, m, a.bytes as usize, pc, true);
    let reads = (0..LANES).fold(0, |m, i| m | u32::from(read[i] > 0) << i) & m;
    if reads != 0 {
        count(x, Space::Global, &src, reads, a.bytes as usize, pc, false);
    }
    // One draw for all lanes: hardware moves a warp's copies together.
    let late = x.rng.next() & 1 == 1;
    for lane in 0..LANES {
        if m >> lane & 1 == 0 {
            continue;
        }
        let group = w.copies.commits[lane];
        let mut c = Copy {
            lane: lane as u32,
            group,
            dst: dst[lane],
            src: src[lane],
            bytes: a.bytes,
            read: read[lane],
            done: false,
        };
        check(w, ctas, x, &c)?;
        watch_copy(w, x, &c)?;
        if !late {
            perform(w, ctas, x, &c)?;
            c.done = true;
        }
        w.copies.list.push(c);
    }
    Ok(())
}

/// Bounds and alignment of both sides, at the instruction rather than when the copy takes place.
fn check(w: &Warp, ctas: &mut [Cta], x: &mut Context<'_>, c: &Copy) -> Step<()> {
    let sides =
        [(Space::Shared, c.dst, c.bytes, "asynchronous copy"), (Space::Global, c.src, c.read, "asynchronous copy")];
    for (space, address, bytes, what) in sides {
        let blocks = ctas.len();
        let Some((home, at)) = place(space, address, w.cta, blocks).filter(|_| bytes > 0) else { continue };
        let fits = region(ctas, x, home, at).is_some_and(|r| inside(&r, at, bytes as usize).is_some());
        if !fits {
            return Err(Stop::new(c.lane, outside(x, home, at, bytes, what)));
        }
        if at % u64::from(c.bytes) != 0 {
            let kind = FaultKind::Misaligned { what, space: home.name(), address: at, bytes: c.bytes };
            return Err(Stop::new(c.lane, kind));
        }
    }
    Ok(())
}

/// The copy reads now and writes from now on.
fn watch_copy(w: &Warp, x: &mut Context<'_>, c: &Copy) -> Step<()> {
    let what = "asynchronous copy";
    if c.read > 0 {
        let at = [c.src; LANES];
        watch::lanes(w, x, Space::Global, &at, 1 << c.lane, c.read as usize, Kind::read(what), |_, _| false)?;
    }
    let Some(races) = &mut x.races else { return Ok(()) };
    let actor = Actor { warp: watch::index(&x.plan, w), lane: c.lane as usize, pc: x.pc, strong: false, engine: None };
    let found = races.copying(w.cta, c.dst, c.bytes as usize, &actor);
    found.map_err(|clash| watch::fault(x, Home::Shared(w.cta), what, c.lane, clash))
}

fn perform(w: &Warp, ctas: &mut [Cta], x: &mut Context<'_>, c: &Copy) -> Step<()> {
    let (n, read) = (c.bytes as usize, c.read as usize);
    let (mut data, mut known) = ([0u8; 16], [true; 16]);
    if read > 0 {
        let gone = |x: &Context<'_>| Stop::new(c.lane, outside(x, Home::Global, c.src, c.read, "asynchronous copy"));
        let Some(r) = region(ctas, x, Home::Global, c.src) else { return Err(gone(x)) };
        let Some(offset) = inside(&r, c.src, read) else { return Err(gone(x)) };
        data[..read].copy_from_slice(&r.data[offset..offset + read]);
        let written = r.written.as_deref().unwrap_or(&[]);
        if !is_set(written, offset, read) {
            (0..read).for_each(|i| known[i] = is_set(written, offset + i, 1));
        }
    }
    let cta = &mut ctas[w.cta];
    let at = c.dst as usize;
    cta.shared[at..at + n].copy_from_slice(&data[..n]);
    if known == [true; 16] {
        set(&mut cta.written, at, n, true);
    } else {
        (0..n).for_each(|i| set(&mut cta.written, at + i, 1, known[i]));
    }
    Ok(())
}

/// Lanes `m` wait until at most `left` of their groups have not taken place.
pub(super) fn wait(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, m: u32, left: u32) -> Step<()> {
    let mut list = std::mem::take(&mut w.copies.list);
    let mut rest = Vec::new();
    for c in list.drain(..) {
        // `wait_all` also waits for copies not committed yet, which `left` of 0 then covers as well.
        let over = m >> c.lane & 1 == 1 && c.group + left < w.copies.commits[c.lane as usize];
        if !over {
            rest.push(c);
            continue;
        }
        if !c.done {
            perform(w, ctas, x, &c)?;
        }
        let at = watch::index(&x.plan, w);
        if let Some(r) = &mut x.races {
            r.copied(w.cta, c.dst, c.bytes as usize, at);
        }
    }
    w.copies.list = rest;
    Ok(())
}
