//! Whether what the host and the three queues do to a slot is in an order that waits make, and not by luck.
//!
//! The simulator makes every copy at once, so its results cannot show a wait that is missing. This can: each actor (the
//! host, compute, in, out) has a vector clock. A copy starts after everything the host had seen when it was handed over;
//! a fence carries the clock of its queue to who waits for it. An access to a slot must come after the last write there,
//! and a write after all reads since, or the device could do them in another order.
//! Source: vector clocks of Fidge and Mattern 1988, as race detectors use them.

use crate::gpu::Lane;
use std::collections::HashMap;

/// The host, then the lanes.
const ACTORS: usize = 4;
const HOST: usize = 0;

type Clock = [u64; ACTORS];

/// A slot's memory, by its first byte: on the host or on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Host(usize),
    Device(u64),
}

/// Clocks, fences, and who last touched what.
#[derive(Debug, Default)]
pub(super) struct Order {
    now: [Clock; ACTORS],
    fences: Vec<Clock>,
    touched: HashMap<Place, Touched>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Touched {
    /// Who wrote last, and when.
    wrote: (usize, u64),
    /// When each read since.
    read: Clock,
}

fn actor(lane: Lane) -> usize {
    lane as usize + 1
}

fn join(to: &mut Clock, from: Clock) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.max(*to));
}

impl Order {
    pub fn fence(&mut self) -> usize {
        self.fences.push(Clock::default());
        self.fences.len() - 1
    }

    pub fn record(&mut self, lane: Lane, fence: usize) {
        self.handed(lane);
        self.fences[fence] = self.now[actor(lane)];
    }

    pub fn wait(&mut self, lane: Lane, fence: usize) {
        self.handed(lane);
        join(&mut self.now[actor(lane)], self.fences[fence]);
    }

    pub fn finish(&mut self, fence: usize) {
        join(&mut self.now[HOST], self.fences[fence]);
    }

    /// The host touches a place; `Err` says what it may collide with.
    pub fn host(&mut self, place: Place, write: bool) -> Result<(), String> {
        self.touch(HOST, place, write)
    }

    /// A lane is handed a copy that reads one place or none, and writes one or none, of the slots.
    pub fn copy(&mut self, lane: Lane, from: Option<Place>, to: Option<Place>) -> Result<(), String> {
        self.handed(lane);
        let by = actor(lane);
        from.map_or(Ok(()), |place| self.touch(by, place, false))?;
        to.map_or(Ok(()), |place| self.touch(by, place, true))
    }

    /// What a lane is handed begins after what the host has done.
    fn handed(&mut self, lane: Lane) {
        let host = self.now[HOST];
        join(&mut self.now[actor(lane)], host);
    }

    fn touch(&mut self, by: usize, place: Place, write: bool) -> Result<(), String> {
        self.now[by][by] += 1;
        let now = self.now[by];
        let touched = self.touched.entry(place).or_default();
        let (writer, at) = touched.wrote;
        let unread = (0..ACTORS).find(|&reader| write && touched.read[reader] > now[reader]);
        let other = if at > now[writer] { Some((writer, "writes")) } else { unread.map(|reader| (reader, "reads")) };
        if let Some((other, does)) = other {
            let name = ["the host", "compute", "in", "out"];
            let verb = if write { "writes" } else { "reads" };
            return Err(format!("{} {verb} {place:x?} while {} {does} it: a wait is missing", name[by], name[other]));
        }
        if write {
            *touched = Touched { wrote: (by, now[by]), read: Clock::default() };
        } else {
            touched.read[by] = now[by];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINNED: Place = Place::Host(1);
    const SLOT: Place = Place::Device(1);

    /// The way in, with the wait of one step left out: `None` leaves out none.
    fn way_in(without: Option<usize>) -> Result<(), String> {
        let mut order = Order::default();
        let (moved, hopped) = (order.fence(), order.fence());
        for _ in 0..2 {
            if without != Some(0) {
                order.finish(hopped);
            }
            order.host(PINNED, true)?;
            order.copy(Lane::In, Some(PINNED), Some(SLOT))?;
            order.record(Lane::In, moved);
            if without != Some(1) {
                order.wait(Lane::Compute, moved);
            }
            order.copy(Lane::Compute, Some(SLOT), None)?;
            order.record(Lane::Compute, hopped);
        }
        Ok(())
    }

    #[test]
    fn a_wait_that_is_missing_is_found() {
        way_in(None).unwrap();
        for (step, said) in [(0, "the host writes"), (1, "compute reads")] {
            let why = way_in(Some(step)).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }
}
