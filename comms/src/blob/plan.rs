//! Which chunk to ask of whom: a pure part, without clock or socket.
//!
//! Wants are served by priority, then in the order in which they came. Within a want the rarest chunk goes first, from
//! a place that the seed turns, so that many peers who fetch one blob begin in different places and then have
//! something to give each other. Of the holders who have it, the one goes first that should be done first:
//!
//! cost(p) = (requests at p + 1) · seconds a chunk of p takes        (1 s until it is known)
//!
//! Requests at once, over all: 32 at first, then 2 s of what has come lately, between 4 and 32, and a quarter less when
//! one fails. Over one holder: its share of those, 2
//! at least. When nothing is left but chunks that somebody is late with, a second holder is asked too, once.
//!
//! | outcome | what follows |
//! | --- | --- |
//! | a lie | the holder serves no blob for ten minutes: chunks are checked, so this is no accident of the path |
//! | absent | the holder is not asked for that again until it says that it has it |
//! | busy | the holder rests 0.2 to 5 s |
//! | failed, slow | the holder rests 0.5 to 10 s, doubled each time, and others are asked at once |

use std::collections::BTreeMap;
use std::time::Duration;

use super::tree::{Bits, CHUNK, Outline, chunks};
use crate::hash::Hash;
use crate::key::PeerId;
use crate::net::backoff::{Backoff, Jitter};

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A manifest lists it: the round waits.
    Manifest,
    /// This round may need it.
    Round,
    /// Somebody asked us to keep it.
    Seeding,
    /// A past round.
    CatchUp,
    /// A checkpoint.
    Checkpoint,
}

/// What to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Piece {
    /// The outline.
    Outline,
    /// What the holder has.
    Have,
    /// A chunk.
    Chunk(u32),
}

/// One request to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Job {
    /// The blob.
    pub name: Hash,
    /// Of whom.
    pub peer: PeerId,
    /// What.
    pub piece: Piece,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It came and is true.
    Got,
    /// The holder's chunks.
    Has(Bits),
    /// It is not held there.
    Absent,
    /// Later.
    Busy,
    /// The path or the peer failed.
    Failed,
    /// It came and is false.
    Lie,
}

#[derive(Debug)]
enum Holding {
    All,
    /// `later`: it may come to have more, so that it is worth waiting for.
    Some {
        bits: Bits,
        asked: Option<Duration>,
        later: bool,
    },
}

impl Holding {
    fn has(&self, i: u32) -> bool {
        match self {
            Holding::All => true,
            Holding::Some { bits, .. } => bits.get(i),
        }
    }
}

#[derive(Debug)]
struct Want {
    size: u64,
    priority: Priority,
    turn: u32,
    missing: Bits,
    outline: bool,
    holders: BTreeMap<PeerId, Holding>,
    /// Who is asked for what, since when.
    asked: BTreeMap<Piece, Vec<(PeerId, Duration)>>,
}

#[derive(Debug)]
struct Holder {
    at_once: usize,
    secs: f64,
    known: bool,
    lied: bool,
    rests_until: Duration,
    fails: Backoff,
    busy: Backoff,
}

/// How often a holder of part of a blob is asked what it has by now.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(3);
const LIAR_RESTS: Duration = Duration::from_secs(600);
/// Requests at once at most. A process that dies loses no more than these.
const SLOTS_MAX: usize = 32;
/// Chunks looked at when the rarest is sought.
const LOOK: u32 = 256;

/// The plan.
#[derive(Debug)]
pub struct Plan {
    wants: BTreeMap<Hash, Want>,
    order: Vec<(Priority, u64, Hash)>,
    holders: BTreeMap<PeerId, Holder>,
    at_once: usize,
    slots: usize,
    window: (Duration, u64),
    jitter: Jitter,
    count: u64,
}

impl Plan {
    /// A plan that wants nothing.
    pub fn new(seed: u64) -> Plan {
        Plan {
            wants: BTreeMap::new(),
            order: Vec::new(),
            holders: BTreeMap::new(),
            at_once: 0,
            slots: SLOTS_MAX,
            window: (Duration::ZERO, 0),
            jitter: Jitter::new(seed),
            count: 0,
        }
    }

    /// Wants a blob of which `have` is there. Again, it raises the priority.
    pub fn want(&mut self, name: Hash, size: u64, priority: Priority, have: &Bits, outline: bool) {
        self.count += 1;
        if let Some(want) = self.wants.get_mut(&name) {
            want.priority = want.priority.min(priority);
        } else {
            let len = chunks(size);
            let mut missing = Bits::all(len);
            (0..len).filter(|i| have.get(*i)).for_each(|i| missing.clear(i));
            let turn = if len == 0 { 0 } else { (self.jitter.draw() % u64::from(len)) as u32 };
            let outline = outline || Outline::len_for(size) == 0;
            let want =
                Want { size, priority, turn, missing, outline, holders: BTreeMap::new(), asked: BTreeMap::new() };
            self.wants.insert(name, want);
        }
        let priority = self.wants[&name].priority;
        let since = self.order.iter().find(|o| o.2 == name).map_or(self.count, |o| o.1);
        self.order.retain(|o| o.2 != name);
        self.order.push((priority, since, name));
        self.order.sort_unstable();
    }

    /// Wants it no more. Requests under way are the driver's to stop.
    pub fn drop_want(&mut self, name: &Hash) {
        if let Some(want) = self.wants.remove(name) {
            for (peer, _) in want.asked.into_values().flatten() {
                self.give_back(&peer);
            }
        }
        self.order.retain(|o| o.2 != *name);
    }

    /// A peer holds all of a blob, or may hold some of it and shall be asked.
    pub fn holds(&mut self, name: &Hash, peer: PeerId, all: bool) {
        let seed = self.jitter.draw();
        let Some(want) = self.wants.get_mut(name) else { return };
        let len = chunks(want.size);
        if all {
            want.holders.insert(peer, Holding::All);
        } else {
            want.holders.entry(peer).or_insert_with(|| Holding::Some {
                bits: Bits::none(len),
                asked: None,
                later: true,
            });
        }
        let (s, ms) = (Duration::from_secs, Duration::from_millis);
        self.holders.entry(peer).or_insert_with(|| Holder {
            at_once: 0,
            secs: 1.0,
            known: false,
            lied: false,
            rests_until: Duration::ZERO,
            fails: Backoff::new(ms(500), s(10), seed),
            busy: Backoff::new(ms(200), s(5), !seed),
        });
    }

    /// A peer is gone: it holds nothing until somebody says so again, and then begins afresh, unless it lied.
    pub fn gone(&mut self, peer: &PeerId) {
        self.wants.values_mut().for_each(|w| drop(w.holders.remove(peer)));
        match self.holders.get_mut(peer) {
            // A request of its that is under way will end yet.
            Some(h) if !h.lied && h.at_once > 0 => {
                h.rests_until = Duration::ZERO;
                h.fails.clear();
            }
            Some(h) if !h.lied => _ = self.holders.remove(peer),
            _ => {}
        }
    }

    /// What is wanted.
    pub fn names(&self) -> Vec<Hash> {
        self.wants.keys().copied().collect()
    }

    /// Whether anything of the blob is missing here.
    pub fn wants(&self, name: &Hash) -> bool {
        self.wants.contains_key(name)
    }

    /// Holders of a want, and chunks missing.
    pub fn progress(&self, name: &Hash) -> Option<(usize, u32)> {
        self.wants.get(name).map(|w| (w.holders.len(), w.missing.count()))
    }

    /// Whether nobody is known who has what is missing, and nobody who may yet come to have it.
    pub fn hopeless(&self, name: &Hash) -> bool {
        let Some(want) = self.wants.get(name) else { return false };
        let helps = |h: &Holding| match h {
            Holding::All => true,
            Holding::Some { bits, later, .. } => *later || (0..bits.len()).any(|i| bits.get(i) && want.missing.get(i)),
        };
        want.asked.is_empty() && !want.holders.values().any(helps)
    }

    /// The next request, if one can be made now.
    pub fn next(&mut self, now: Duration) -> Option<Job> {
        if self.at_once >= self.slots {
            return None;
        }
        let job = self.pick(now, false).or_else(|| self.pick(now, true))?;
        let want = self.wants.get_mut(&job.name).expect("picked from the wants");
        want.asked.entry(job.piece).or_default().push((job.peer, now));
        if let (Piece::Have, Some(Holding::Some { asked, .. })) = (job.piece, want.holders.get_mut(&job.peer)) {
            *asked = Some(now);
        }
        self.holders.get_mut(&job.peer).expect("a holder").at_once += 1;
        self.at_once += 1;
        Some(job)
    }

    fn pick(&self, now: Duration, late: bool) -> Option<Job> {
        self.order.iter().find_map(|(_, _, name)| {
            let want = &self.wants[name];
            let share = (self.slots / want.holders.len().max(1)).max(2);
            let free = |peer: &PeerId| {
                let h = &self.holders[peer];
                h.rests_until <= now && h.at_once < share
            };
            let job = |(piece, peer): (Piece, PeerId)| Job { name: *name, peer, piece };
            if late {
                return self.pick_late(want, now, &free).map(job);
            }
            self.pick_have(want, now, &free).or_else(|| self.pick_piece(want, &free)).map(job)
        })
    }

    /// Who should be asked what it has.
    fn pick_have(&self, want: &Want, now: Duration, free: &dyn Fn(&PeerId) -> bool) -> Option<(Piece, PeerId)> {
        let busy = |p: &PeerId| want.asked.get(&Piece::Have).is_some_and(|a| a.iter().any(|(q, _)| q == p));
        want.holders
            .iter()
            .filter(|(peer, _)| free(peer) && !busy(peer))
            .find(|(_, h)| match h {
                Holding::All => false,
                Holding::Some { bits, asked, .. } => !bits.is_full() && asked.is_none_or(|t| now >= t + ASK_AGAIN),
            })
            .map(|(peer, _)| (Piece::Have, *peer))
    }

    fn best<'a>(&self, of: impl Iterator<Item = &'a PeerId>) -> Option<PeerId> {
        let cost = |p: &PeerId| {
            let h = &self.holders[p];
            (h.at_once + 1) as f64 * h.secs
        };
        of.min_by(|a, b| cost(a).total_cmp(&cost(b))).copied()
    }

    fn pick_piece(&self, want: &Want, free: &dyn Fn(&PeerId) -> bool) -> Option<(Piece, PeerId)> {
        if !want.outline {
            // Whoever has a chunk has the outline.
            let able = want.holders.iter().filter(|(p, h)| {
                let some = match h {
                    Holding::All => true,
                    Holding::Some { bits, .. } => bits.count() > 0,
                };
                some && free(p)
            });
            let asked = want.asked.contains_key(&Piece::Outline);
            return if asked { None } else { self.best(able.map(|(p, _)| p)).map(|p| (Piece::Outline, p)) };
        }
        let len = want.missing.len();
        let open = (0..len)
            .map(|n| (want.turn + n) % len.max(1))
            .filter(|i| want.missing.get(*i) && !want.asked.contains_key(&Piece::Chunk(*i)));
        let mut best: Option<(usize, u32)> = None;
        let all = want.holders.values().all(|h| matches!(h, Holding::All));
        for i in open.take(LOOK as usize) {
            let holders = want.holders.iter().filter(|(p, h)| h.has(i) && free(p)).count();
            if holders == 0 {
                if all {
                    break; // nobody is free, for this chunk as for the others
                }
                continue;
            }
            let rare = want.holders.values().filter(|h| h.has(i)).count();
            if best.is_none_or(|(r, _)| rare < r) {
                best = Some((rare, i));
            }
            if all {
                break; // all chunks are equally rare: the first will do
            }
        }
        let (_, i) = best?;
        let able = want.holders.iter().filter(|(p, h)| h.has(i) && free(p)).map(|(p, _)| p);
        self.best(able).map(|p| (Piece::Chunk(i), p))
    }

    /// A chunk that one holder is late with, from another that is expected to be quicker.
    fn pick_late(&self, want: &Want, now: Duration, free: &dyn Fn(&PeerId) -> bool) -> Option<(Piece, PeerId)> {
        want.asked.iter().find_map(|(piece, asked)| {
            let ([(slow, since)], Piece::Chunk(i)) = (&asked[..], piece) else { return None };
            if now < *since + LATE {
                return None;
            }
            let spent = (now - *since).as_secs_f64();
            let able = want.holders.iter().filter(|(p, h)| {
                *p != slow && h.has(*i) && free(p) && self.holders[p].known && self.holders[p].secs * 2.0 < spent
            });
            self.best(able.map(|(p, _)| p)).map(|p| (*piece, p))
        })
    }

    fn give_back(&mut self, peer: &PeerId) {
        self.at_once = self.at_once.saturating_sub(1);
        if let Some(h) = self.holders.get_mut(peer) {
            h.at_once = h.at_once.saturating_sub(1);
        }
    }

    /// A request has ended. Returns the others who are asked for the same, whose requests are to be stopped; they
    /// count as ended.
    pub fn done(&mut self, now: Duration, job: Job, outcome: Outcome) -> Vec<Job> {
        let Some(want) = self.wants.get_mut(&job.name) else { return Vec::new() };
        let Some(asked) = want.asked.get_mut(&job.piece) else { return Vec::new() };
        let Some(at) = asked.iter().position(|(p, _)| *p == job.peer) else { return Vec::new() };
        let (_, since) = asked.remove(at);
        let mut stop = Vec::new();
        if asked.is_empty() || (outcome == Outcome::Got && matches!(job.piece, Piece::Chunk(_))) {
            stop = want.asked.remove(&job.piece).unwrap_or_default();
        }
        let holder = self.holders.get_mut(&job.peer).expect("who was asked is a holder");
        match &outcome {
            Outcome::Got => {
                holder.fails.clear();
                holder.busy.clear();
                match job.piece {
                    Piece::Outline => want.outline = true,
                    Piece::Chunk(i) => {
                        let secs = now.saturating_sub(since).as_secs_f64().max(1e-3);
                        holder.secs = if holder.known { 0.7 * holder.secs + 0.3 * secs } else { secs };
                        holder.known = true;
                        want.missing.clear(i);
                        self.window.1 += CHUNK as u64;
                    }
                    Piece::Have => {}
                }
            }
            Outcome::Has(bits) => {
                holder.busy.clear();
                if let Some(Holding::Some { bits: known, .. }) = want.holders.get_mut(&job.peer) {
                    *known = bits.clone();
                }
            }
            Outcome::Absent => match (job.piece, want.holders.get_mut(&job.peer)) {
                (Piece::Chunk(i), Some(holding)) => {
                    if let Holding::All = holding {
                        *holding = Holding::Some { bits: Bits::all(chunks(want.size)), asked: Some(now), later: false };
                    }
                    if let Holding::Some { bits, .. } = holding {
                        bits.clear(i);
                    }
                }
                (Piece::Outline, Some(holding)) => {
                    let later = matches!(holding, Holding::Some { later: true, .. });
                    *holding = Holding::Some { bits: Bits::none(chunks(want.size)), asked: Some(now), later };
                }
                _ => {}
            },
            Outcome::Busy => holder.rests_until = now + holder.busy.fail(),
            Outcome::Failed => {
                holder.rests_until = now + holder.fails.fail();
                self.slots = (self.slots * 3 / 4).max(4);
            }
            Outcome::Lie => {
                holder.rests_until = now + LIAR_RESTS;
                holder.lied = true;
                want.holders.remove(&job.peer);
            }
        }
        self.give_back(&job.peer);
        let others: Vec<Job> = stop.into_iter().map(|(peer, _)| Job { peer, ..job }).collect();
        others.iter().for_each(|j| self.give_back(&j.peer));
        if self.wants[&job.name].missing.count() == 0 {
            self.drop_want(&job.name);
        }
        self.measure(now);
        others
    }

    /// Sets the requests at once by what came in the last second or more.
    fn measure(&mut self, now: Duration) {
        let (since, bytes) = self.window;
        let secs = now.saturating_sub(since).as_secs_f64();
        if secs >= 1.0 {
            let rate = bytes as f64 / secs.min(5.0);
            self.slots =
                ((2.0 * rate / CHUNK as f64) as usize + 4).clamp(self.slots / 2, self.slots * 2).clamp(4, SLOTS_MAX);
            self.window = (now, 0);
        }
    }

    /// When something may change without an event: a rest ends, somebody is to be asked again, or becomes late.
    pub fn wake(&self, now: Duration) -> Option<Duration> {
        if self.wants.is_empty() {
            return None;
        }
        let rests = self.holders.values().map(|h| h.rests_until);
        let asks = self.wants.values().flat_map(|w| {
            let late = w.asked.values().flatten().map(|(_, t)| *t + LATE);
            let have = w.holders.values().filter_map(|h| match h {
                Holding::Some { asked: Some(t), .. } => Some(*t + ASK_AGAIN),
                _ => None,
            });
            late.chain(have)
        });
        rests.chain(asks).filter(|t| *t > now).min()
    }
}

#[cfg(test)]
mod tests;
