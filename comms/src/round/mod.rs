//! A round as machines that take facts and give orders: no socket, no clock, no thread, no chance.
//!
//! ```text
//! train → commit → close → reveal → collect → manifest → apply → attest → train ...
//! ```
//!
//! [`Machine`] is one process: it follows the chain of manifests (`follow`), may train (`peer`) and, where its key is
//! one of the run's validators, collects, judges and signs (`validate`, `agree`, [`judge`]). The host calls
//! [`Machine::step`] with what happened and carries the orders out in the order given; an [`Order::Persist`] must be
//! durable before the orders behind it are begun. Everything the host does for an order comes back as a fact. The
//! protocol's page is `comms/README.md`.

pub mod admit;
mod agree;
mod core;
mod follow;
pub mod journal;
pub mod judge;
pub mod log;
mod machine;
mod peer;
mod validate;

pub use journal::Record;
pub use judge::{Picks, Signs, Sound};
pub use machine::{Machine, Recovered};

use crate::wire::{Msg, Reason};
use crate::{Hash, PeerId};

/// Milliseconds of the host's own clock, which only runs forward. No two hosts' clocks need agree.
pub type Time = u64;

/// What happened.
#[derive(Debug, Clone)]
pub enum Fact {
    /// Time passed; at the latest when an [`Order::Wake`] asked for it.
    Tick,
    /// A connection to this peer stands.
    Up(PeerId),
    /// The last connection to this peer is gone.
    Down(PeerId),
    /// A message came over the connection to `from`, opened by [`crate::wire::Message::open`].
    Message {
        /// Who sent it, not who signed it.
        from: PeerId,
        /// The message.
        msg: Msg,
    },
    /// What came over the connection to `from` is no message: it does not decode, or its signature does not hold. It counts
    /// against what `from` may say in a round, as verifying it cost the same.
    Babble {
        /// Who sent it.
        from: PeerId,
    },
    /// [`Order::Train`] is done, and the update is in the store.
    Trained {
        /// The round.
        round: u64,
        /// blake3 of the update.
        blob: Hash,
        /// Its bytes.
        bytes: u64,
        /// Tokens trained on.
        tokens: u64,
        /// Steps made.
        steps: u32,
    },
    /// These blobs are in the store, verified.
    Held(Vec<Hash>),
    /// None of those named in [`Order::Fetch`] gave these blobs.
    Lacking(Vec<Hash>),
    /// [`Order::Check`] is done.
    Checked {
        /// The update.
        blob: Hash,
        /// Whose it was said to be.
        peer: PeerId,
        /// What it is like, or what is wrong with it.
        verdict: Result<Sound, Reason>,
    },
    /// [`Order::Fold`] is done.
    Folded {
        /// The round.
        round: u64,
        /// Root of the state after it.
        root: Hash,
    },
    /// [`Order::Fold`] was not begun: these updates are not in the store any more.
    Missing {
        /// The round.
        round: u64,
        /// Which.
        blobs: Vec<Hash>,
    },
    /// [`Order::Sync`] is done: the state is that of this round, leaves verified.
    Synced {
        /// The round.
        round: u64,
        /// Root of the state.
        root: Hash,
    },
    /// [`Order::Sync`] failed: none of those named could give the state; one's own is as it was.
    Unsynced {
        /// The round.
        round: u64,
    },
    /// The scoring of contributions rates a peer; 0 at first. Higher comes first where there are more updates than count.
    Rated {
        /// Who.
        peer: PeerId,
        /// The rating.
        rating: i64,
    },
}

/// To whom a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// Every connected peer.
    All,
    /// Every connected validator.
    Validators,
    /// Every connected peer that is not a validator.
    Mesh,
}

/// Why a blob is fetched: what bulk traffic gives way to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A manifest lists it, and the state waits for it.
    Listed,
    /// A validator collects it.
    Collect,
    /// It is needed to catch up.
    CatchUp,
}

/// A blob wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Its name.
    pub blob: Hash,
    /// Its bytes, from the run's spec.
    pub bytes: u64,
    /// Who made it, and so the first to ask.
    pub from: PeerId,
}

/// An update to fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Whose.
    pub peer: PeerId,
    /// The update.
    pub blob: Hash,
    /// Its weight in units of 2^-16.
    pub weight: u32,
}

/// What an update must be: held against its header by [`Order::Check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// The round.
    pub round: u64,
    /// Whose.
    pub peer: PeerId,
    /// Its bytes.
    pub bytes: u64,
    /// Tokens that its commit tells of.
    pub tokens: u64,
    /// Steps that its commit tells of.
    pub steps: u32,
    /// Roots of the states from which it may have been made: one, or two with `delay = 1`.
    pub bases: Vec<Hash>,
}

/// What the host shall do.
#[derive(Debug, Clone)]
pub enum Order {
    /// Send to a connected peer.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        msg: Msg,
    },
    /// Send to each connected peer of a kind.
    Flood {
        /// To whom.
        to: Whom,
        /// What.
        msg: Msg,
    },
    /// Train from the state after `base`, on the interval of (round, slot) of the data's order; answer with
    /// [`Fact::Trained`]. Stop with fewer steps where the deadline comes first.
    Train {
        /// The round.
        round: u64,
        /// The place in the round.
        slot: u32,
        /// Places of a round in this run.
        slots: u32,
        /// The round whose state is the start.
        base: u64,
        /// Its root, which stands in the update's header.
        base_root: Hash,
        /// When to be done.
        deadline: Time,
    },
    /// The round went on without this update: training for it may end. No fact is expected.
    Stop {
        /// The round.
        round: u64,
    },
    /// From now on anybody may have one's own update, which was kept back until here.
    Serve {
        /// The update.
        blob: Hash,
    },
    /// Get these blobs, from whom they are said to be or from anybody else; answer with [`Fact::Held`] or
    /// [`Fact::Lacking`]. Asked again for a blob under way, nothing changes.
    Fetch {
        /// Which.
        wants: Vec<Want>,
        /// What else gives way.
        urgency: Urgency,
    },
    /// Decode an update that is held and hold its header against what it must be; answer with [`Fact::Checked`].
    Check {
        /// The update.
        blob: Hash,
        /// What it must be.
        expect: Expect,
    },
    /// Apply the round's updates, all held, to the state before it, in this order; answer with [`Fact::Folded`], or
    /// with [`Fact::Missing`] and leave the state as it is. The state, its round and its root are replaced in one step, so
    /// that a kill leaves the one or the other.
    Fold {
        /// The round, whose alpha the spec gives.
        round: u64,
        /// What to fold, in canonical order; may be empty.
        parts: Vec<Part>,
    },
    /// Keep the state after this round, and serve its record, pages and leaves until two checkpoints later.
    Snapshot {
        /// The round.
        round: u64,
        /// The state's root.
        root: Hash,
    },
    /// Make one's own state that of `root` by a [`crate::state::Walk`]; answer with [`Fact::Synced`] or
    /// [`Fact::Unsynced`].
    Sync {
        /// The round of that state.
        round: u64,
        /// Its root, which a quorum stands for.
        root: Hash,
        /// Who may have it.
        from: Vec<PeerId>,
    },
    /// These blobs will not be asked for again.
    Forget {
        /// Which.
        blobs: Vec<Hash>,
    },
    /// Append to the journal and make durable, before anything behind this order is begun.
    Persist(Record),
    /// Give a fact (a tick, if nothing else) at this time.
    Wake(Time),
    /// For the event log and for people.
    Log(Event),
}

/// What is worth knowing afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A manifest was accepted.
    Accepted {
        /// Its round.
        round: u64,
        /// Its name.
        manifest: Hash,
        /// Updates that count.
        entries: u32,
        /// Updates that do not.
        rejects: u32,
        /// Peers that may train next.
        slots: u32,
    },
    /// A manifest was applied.
    Applied {
        /// Its round.
        round: u64,
        /// Root of the state after it.
        root: Hash,
    },
    /// One's own state is not the majority's.
    Mismatch {
        /// After which round.
        round: u64,
        /// One's own root.
        own: Hash,
        /// The majority's.
        theirs: Hash,
    },
    /// The state was taken over or mended.
    Synced {
        /// Its round.
        round: u64,
        /// Its root.
        root: Hash,
    },
    /// One's own update counted.
    Counted {
        /// The round.
        round: u64,
    },
    /// One's own update did not count.
    TurnedAway {
        /// The round.
        round: u64,
        /// Why, as the manifest says; none where it does not know of the update.
        reason: Option<Reason>,
    },
    /// A validator turned this peer away.
    Refused {
        /// Which validator.
        by: PeerId,
        /// Why.
        reason: Reason,
    },
    /// Two signed statements that exclude each other: the messages are the proof.
    Equivocation {
        /// Who signed both.
        signer: PeerId,
        /// The one message.
        first: Vec<u8>,
        /// The other.
        second: Vec<u8>,
    },
    /// A sender's messages are dropped for the rest of this round.
    Quota {
        /// Who.
        peer: PeerId,
    },
    /// Two final manifests for one round: more validators lie than the quorum allows. Nothing is signed from here on.
    Fork {
        /// The round.
        round: u64,
        /// The manifest followed.
        ours: Hash,
        /// The other.
        theirs: Hash,
    },
}

#[cfg(test)]
mod tests;
