//! The event log: what a process saw and did, appended as it happens, to be walked through afterwards.
//!
//! ```text
//! file     lines end to end, framed as a journal's records are
//! line     time u64 (ms of the process's clock) | kind u8 | fields
//! ```
//!
//! Facts and orders are kept by what they are about (peers, rounds, blobs), messages by kind and signer; proofs of a lie
//! are kept whole. A log cut by a kill ends at the last whole line. [`walk`] gives line after line, [`replay`] a whole
//! [`History`].

use super::journal::{frame, unframe};
use super::{Event, Fact, Order, Time};
use crate::wire::codec::{Reader, bad, put_list, record};
use crate::wire::{Canonical, Kind, Malformed, Reason};
use crate::{Hash, PeerId};
use serde::Serialize;
use std::collections::BTreeMap;

/// Bytes of a line, at most: a proof holds two messages of a manifest's size.
const LINE_BYTES_MAX: usize = 64 << 20;

macro_rules! lines {
    ($($(#[$doc:meta])* $name:ident = $code:literal { $($(#[$fdoc:meta])* $field:ident: $kind:ty),* $(,)? })*) => {
        /// One line.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(tag = "line", rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Line {
            $($(#[$doc])* $name { $($(#[$fdoc])* $field: $kind),* },)*
        }

        impl Canonical for Line {
            const BYTES_MIN: usize = 1;
            fn put(&self, to: &mut Vec<u8>) {
                match self {
                    $(Line::$name { $($field),* } => {
                        to.push($code);
                        $($field.put(to);)*
                    })*
                }
            }
            fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                match u8::take(from)? {
                    $($code => Ok(Line::$name { $($field: <$kind as Canonical>::take(from)?),* }),)*
                    _ => bad("a line's kind", "not one that this build knows"),
                }
            }
        }
    };
}

/// Bytes kept whole; hex where a line is written for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&crate::hash::hex(&self.0))
    }
}

impl Canonical for Bytes {
    const BYTES_MIN: usize = 4;
    fn put(&self, to: &mut Vec<u8>) {
        put_list(&self.0, to);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.list(LINE_BYTES_MAX, "bytes").map(Bytes)
    }
}

lines! {
    /// A connection stands.
    Up = 1 { /// To whom.
        peer: PeerId }
    /// A connection is gone.
    Down = 2 { /// To whom.
        peer: PeerId }
    /// A message was heard.
    Heard = 3 { /// From whom.
        from: PeerId, /// What.
        kind: Kind, /// Hash of its bytes.
        id: Hash }
    /// A message was said to one peer, or to all of a kind (none).
    Said = 4 { /// To whom.
        to: Option<PeerId>, /// What.
        kind: Kind, /// Hash of its bytes.
        id: Hash }
    /// Training was ordered.
    Train = 5 { /// For which round.
        round: u64, /// In which slot.
        slot: u32, /// From which state.
        base_root: Hash }
    /// Training is done.
    Trained = 6 { /// For which round.
        round: u64, /// The update.
        blob: Hash, /// Tokens.
        tokens: u64 }
    /// The own update may be had.
    Served = 7 { /// Which.
        blob: Hash }
    /// Blobs were asked for.
    Fetch = 8 { /// How many.
        blobs: u32 }
    /// Blobs came.
    Held = 9 { /// How many.
        blobs: u32 }
    /// An update was checked.
    Checked = 10 { /// Whose.
        peer: PeerId, /// Which.
        blob: Hash, /// What is wrong with it, if anything.
        fault: Option<Reason> }
    /// A manifest was accepted.
    Accepted = 11 { /// Its round.
        round: u64, /// Its name.
        manifest: Hash, /// Updates that count.
        entries: u32, /// Updates that do not.
        rejects: u32, /// Peers that train next.
        slots: u32 }
    /// A manifest was applied.
    Applied = 12 { /// Its round.
        round: u64, /// Root after it.
        root: Hash }
    /// The own state differs.
    Mismatch = 13 { /// After which round.
        round: u64, /// One's own root.
        own: Hash, /// The majority's.
        theirs: Hash }
    /// The state was mended or taken over.
    Synced = 14 { /// Its round.
        round: u64, /// Its root.
        root: Hash }
    /// The own update counted.
    Counted = 15 { /// In which round.
        round: u64 }
    /// The own update did not count.
    TurnedAway = 16 { /// In which round.
        round: u64, /// Why, if the manifest says.
        reason: Option<Reason> }
    /// A validator refused this peer or its commit.
    Refused = 17 { /// Which validator.
        by: PeerId, /// Why.
        reason: Reason }
    /// Proof of a lie.
    Equivocation = 18 { /// Who lied.
        signer: PeerId, /// The one message.
        first: Bytes, /// The other.
        second: Bytes }
    /// A sender was too loud.
    Quota = 19 { /// Who.
        peer: PeerId }
    /// Two final manifests.
    Fork = 20 { /// Of which round.
        round: u64, /// The one followed.
        ours: Hash, /// The other.
        theirs: Hash }
}

/// A line and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Timed {
    /// When, by the process's own clock, ms.
    pub at: Time,
    /// What.
    #[serde(flatten)]
    pub line: Line,
}
record!(Timed { at: Time, line: Line });

impl Timed {
    /// The line's bytes, framed, to be appended.
    pub fn encode_framed(&self) -> Vec<u8> {
        frame(&self.encode())
    }
}

/// What a log keeps of a fact, if anything.
pub fn of_fact(fact: &Fact) -> Option<Line> {
    Some(match fact {
        Fact::Up(peer) => Line::Up { peer: *peer },
        Fact::Down(peer) => Line::Down { peer: *peer },
        Fact::Message { from, msg } => Line::Heard { from: *from, kind: msg.body().kind(), id: msg.id() },
        Fact::Trained { round, blob, tokens, .. } => Line::Trained { round: *round, blob: *blob, tokens: *tokens },
        Fact::Held(blobs) => Line::Held { blobs: blobs.len() as u32 },
        Fact::Checked { blob, peer, verdict } => {
            Line::Checked { peer: *peer, blob: *blob, fault: verdict.as_ref().err().copied() }
        }
        _ => return None,
    })
}

/// What a log keeps of an order, if anything.
pub fn of_order(order: &Order) -> Option<Line> {
    Some(match order {
        Order::Send { to, msg } => Line::Said { to: Some(*to), kind: msg.body().kind(), id: msg.id() },
        Order::Flood { msg, .. } => Line::Said { to: None, kind: msg.body().kind(), id: msg.id() },
        Order::Train { round, slot, base_root, .. } => {
            Line::Train { round: *round, slot: *slot, base_root: *base_root }
        }
        Order::Serve { blob } => Line::Served { blob: *blob },
        Order::Fetch { wants, .. } => Line::Fetch { blobs: wants.len() as u32 },
        Order::Log(event) => of_event(event),
        _ => return None,
    })
}

fn of_event(event: &Event) -> Line {
    match event.clone() {
        Event::Accepted { round, manifest, entries, rejects, slots } => {
            Line::Accepted { round, manifest, entries, rejects, slots }
        }
        Event::Applied { round, root } => Line::Applied { round, root },
        Event::Mismatch { round, own, theirs } => Line::Mismatch { round, own, theirs },
        Event::Synced { round, root } => Line::Synced { round, root },
        Event::Counted { round } => Line::Counted { round },
        Event::TurnedAway { round, reason } => Line::TurnedAway { round, reason },
        Event::Refused { by, reason } => Line::Refused { by, reason },
        Event::Equivocation { signer, first, second } => {
            Line::Equivocation { signer, first: Bytes(first), second: Bytes(second) }
        }
        Event::Quota { peer } => Line::Quota { peer },
        Event::Fork { round, ours, theirs } => Line::Fork { round, ours, theirs },
    }
}

/// A round as one process saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// When its manifest came.
    pub accepted: Option<Time>,
    /// The manifest.
    pub manifest: Option<Hash>,
    /// Updates that count, updates that do not, peers that train next.
    pub counts: (u32, u32, u32),
    /// When the process began to train for it, and when it was done.
    pub trained: (Option<Time>, Option<Time>),
    /// When the manifest was applied, and the root after it.
    pub applied: Option<(Time, Hash)>,
    /// Whether the own update counted, and why not.
    pub own: Option<Result<(), Option<Reason>>>,
}

/// What a log says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// All lines.
    pub lines: Vec<Timed>,
    /// Rounds by number.
    pub rounds: BTreeMap<u64, Seen>,
    /// Messages heard and said, by kind.
    pub messages: BTreeMap<Kind, (u64, u64)>,
    /// Bytes of whole lines; the rest was cut by a kill, or is damaged.
    pub bytes_whole: u64,
}

/// Gives each line of a log as far as it is whole, and says how many bytes that is.
pub fn walk(bytes: &[u8], mut each: impl FnMut(Timed)) -> usize {
    let mut left = bytes;
    while let Some((body, rest)) = unframe(left, LINE_BYTES_MAX)
        && let Ok(timed) = Timed::decode(body)
    {
        each(timed);
        left = rest;
    }
    bytes.len() - left.len()
}

/// Reads a log as far as it is whole.
pub fn replay(bytes: &[u8]) -> History {
    let mut history = History::default();
    let whole = walk(bytes, |timed| {
        history.see(&timed);
        history.lines.push(timed);
    });
    history.bytes_whole = whole as u64;
    history
}

impl History {
    /// Takes one more line into the rounds and counts; `lines` is left to who reads.
    pub fn see(&mut self, timed: &Timed) {
        let at = timed.at;
        match &timed.line {
            Line::Heard { kind, .. } => self.messages.entry(*kind).or_default().0 += 1,
            Line::Said { kind, .. } => self.messages.entry(*kind).or_default().1 += 1,
            Line::Train { round, .. } => self.rounds.entry(*round).or_default().trained.0 = Some(at),
            Line::Trained { round, .. } => self.rounds.entry(*round).or_default().trained.1 = Some(at),
            Line::Accepted { round, manifest, entries, rejects, slots } => {
                let seen = self.rounds.entry(*round).or_default();
                (seen.accepted, seen.manifest) = (Some(at), Some(*manifest));
                seen.counts = (*entries, *rejects, *slots);
            }
            Line::Applied { round, root } => {
                self.rounds.entry(*round).or_default().applied = Some((at, *root));
            }
            Line::Counted { round } => self.rounds.entry(*round).or_default().own = Some(Ok(())),
            Line::TurnedAway { round, reason } => {
                self.rounds.entry(*round).or_default().own = Some(Err(*reason));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_logged_is_replayed_up_to_the_cut() {
        let root = Hash::of(b"root");
        let lines = [
            Line::Train { round: 3, slot: 1, base_root: root },
            Line::Trained { round: 3, blob: root, tokens: 5 },
            Line::Accepted { round: 3, manifest: root, entries: 2, rejects: 1, slots: 4 },
            Line::TurnedAway { round: 3, reason: Some(Reason::Norm) },
            Line::Applied { round: 3, root },
        ];
        let timed = lines.into_iter().zip(10..).map(|(line, at)| Timed { at, line });
        let mut bytes: Vec<u8> = timed.flat_map(|t| t.encode_framed()).collect();
        let history = replay(&bytes);
        let seen = &history.rounds[&3];
        assert_eq!((seen.trained, seen.applied), ((Some(10), Some(11)), Some((14, root))));
        assert_eq!((seen.counts, seen.own), ((2, 1, 4), Some(Err(Some(Reason::Norm)))));
        assert_eq!(history.bytes_whole as usize, bytes.len());
        bytes.pop();
        assert_eq!(replay(&bytes).lines.len(), 4);
    }
}
