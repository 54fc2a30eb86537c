//! The manifest of a round: which updates count, who was turned away and why, who trains next and on what.
//!
//! It is what makes all peers hold the same bits: nobody folds what he happened to download, everybody folds this
//! list, in its order. Its name is the blake3 of its bytes; a quorum signs the name.

use super::codec::{Canonical, Malformed, Reader, codes, put_list, record, rising};
use super::{Ballot, Body, Kind, Phase, WireFault, to_sign};
use crate::{Hash, PeerId, RunSpec, Signature};
use std::sync::Arc;

/// What a round came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The run's id.
    pub run: Hash,
    /// The round; 0 is the gathering before the first.
    pub round: u64,
    /// Hash of the manifest before; none before round 0.
    pub prev: Hash,
    /// Root of the state before this manifest is applied.
    pub prev_root: Hash,
    /// The newest checkpoint whose root is settled.
    pub checkpoint: Option<Checkpoint>,
    /// Time for training in the next round, from this manifest's receipt, ms.
    pub train_ms: u64,
    /// Time for collecting in the next round, from the end of commits, ms.
    pub collect_ms: u64,
    /// The updates that count, by rising key.
    pub entries: Vec<Entry>,
    /// The updates that do not, by rising key.
    pub rejects: Vec<Reject>,
    /// Who trains in round `round + 1 + delay`, by rising key: the place in this list is the slot. The list of round 0
    /// holds for the rounds up to `1 + delay`.
    pub slots: Vec<Slot>,
}

/// An update that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub peer: PeerId,
    /// blake3 of the update, whose length is the spec's.
    pub blob: Hash,
    /// Tokens it was trained on, as the peer says.
    pub tokens: u64,
    /// Its weight in units of 2^-16: the share of a whole round's tokens; 0 on probation.
    pub weight: u32,
}
record!(Entry { peer: PeerId, blob: Hash, tokens: u64, weight: u32 });

/// An update that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Whose.
    pub peer: PeerId,
    /// Why.
    pub reason: Reason,
}
record!(Reject { peer: PeerId, reason: Reason });

/// A place in a coming round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Whose.
    pub peer: PeerId,
    /// The first round of its unbroken presence, from which probation counts.
    pub since: u64,
}
record!(Slot { peer: PeerId, since: u64 });

/// A state that newcomers may start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The round after which it stands.
    pub round: u64,
    /// Its root.
    pub root: Hash,
}
record!(Checkpoint { round: u64, root: Hash });

/// A validator's signature under a manifest's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// Who.
    pub validator: PeerId,
    /// Over the [`Ballot`] that signs.
    pub signature: Signature,
}
record!(Vote { validator: PeerId, signature: Signature });

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why an update, or a peer, was turned away.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name = $code,)*
        }

        codes!(Reason, "a reason" { $($name = $code),* });

        impl std::fmt::Display for Reason {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Reason::$name => $text,)*
                })
            }
        }
    };
}

reasons! {
    /// The commit came after the deadline.
    Late = 1, "the commit came after the deadline";
    /// Committed, but fewer than a quorum of validators could fetch it.
    Withheld = 2, "fewer than a quorum of validators could fetch the update";
    /// Not decodable as an update of this run, round and peer.
    Malformed = 3, "the update does not decode";
    /// A value that is not a finite number.
    NotFinite = 4, "the update holds a value that is not finite";
    /// Too large against the median of the round.
    Norm = 5, "the update's norm is too far above the round's median";
    /// Nothing in it.
    Zero = 6, "the update is zero";
    /// Picks too much like another's.
    Overlap = 7, "the update's picks are too much like another's";
    /// Made from another state than the round's.
    StaleBase = 8, "the update was made from another state than this round's";
    /// Two different commits for one round.
    Equivocation = 9, "two different commits were signed for one round";
    /// More tokens or steps than a round has.
    Tokens = 10, "the commit claims more than a round's tokens or steps";
    /// Sound, but the round had enough with a better rating.
    Reserve = 11, "the update is sound; the round had enough of a higher rating";
    /// Not on the list, or no valid invitation.
    NotAdmitted = 12, "the run's admission does not let this key in";
    /// No common version of the protocol.
    Version = 13, "no common version of the protocol";
    /// Too many messages.
    Quota = 14, "more messages than a peer may send in a round";
    /// Too small against the median of the round.
    Short = 15, "the update's norm is too far below the round's median";
    /// Pushes the other way than the others.
    Signs = 16, "the update's signs agree too little with those of the others";
    /// Made in an earlier round.
    Old = 17, "the update fits an earlier round better than this one";
}

impl Canonical for Manifest {
    const BYTES_MIN: usize = 32 * 3 + 8 * 3 + 1 + 12;

    fn put(&self, to: &mut Vec<u8>) {
        self.run.put(to);
        self.round.put(to);
        self.prev.put(to);
        self.prev_root.put(to);
        self.checkpoint.put(to);
        self.train_ms.put(to);
        self.collect_ms.put(to);
        put_list(&self.entries, to);
        put_list(&self.rejects, to);
        put_list(&self.slots, to);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        // The counts are held against the bytes left, and the bytes against the run's bound.
        let max = u32::MAX as usize;
        let manifest = Manifest {
            run: Hash::take(from)?,
            round: u64::take(from)?,
            prev: Hash::take(from)?,
            prev_root: Hash::take(from)?,
            checkpoint: <Option<Checkpoint> as Canonical>::take(from)?,
            train_ms: u64::take(from)?,
            collect_ms: u64::take(from)?,
            entries: from.list(max, "entries")?,
            rejects: from.list(max, "rejects")?,
            slots: from.list(max, "slots")?,
        };
        rising(manifest.entries.iter().map(|e| e.peer), "entries")?;
        rising(manifest.rejects.iter().map(|r| r.peer), "rejects")?;
        rising(manifest.slots.iter().map(|s| s.peer), "slots")?;
        Ok(manifest)
    }
}

impl Manifest {
    /// The manifest's name.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.encode())
    }

    /// The slot of `peer` in the round that this manifest fills.
    pub fn slot(&self, peer: &PeerId) -> Option<(u32, Slot)> {
        let at = self.slots.binary_search_by_key(peer, |s| s.peer).ok()?;
        Some((at as u32, self.slots[at]))
    }

    /// Why `peer`'s update did not count, where it was turned away.
    pub fn reject(&self, peer: &PeerId) -> Option<Reason> {
        let at = self.rejects.binary_search_by_key(peer, |r| r.peer).ok()?;
        Some(self.rejects[at].reason)
    }
}

/// A manifest with the signatures of a quorum: final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The manifest.
    pub manifest: Manifest,
    /// Its name.
    pub hash: Hash,
    /// The attempt in which it was signed.
    pub attempt: u32,
    /// Who signed, by rising key.
    pub votes: Vec<Vote>,
}

impl Canonical for Sealed {
    const BYTES_MIN: usize = Manifest::BYTES_MIN + 8;

    fn put(&self, to: &mut Vec<u8>) {
        self.manifest.put(to);
        self.attempt.put(to);
        put_list(&self.votes, to);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let manifest = Manifest::take(from)?;
        let attempt = u32::take(from)?;
        let votes: Vec<Vote> = from.list(64, "votes")?;
        rising(votes.iter().map(|v| v.validator), "votes")?;
        Ok(Sealed { hash: manifest.hash(), manifest, attempt, votes })
    }
}

impl Sealed {
    /// Whether a quorum of the run's validators signed this manifest of this run.
    pub fn verify(&self, spec: &RunSpec, run: &Hash) -> Result<(), WireFault> {
        if self.manifest.run != *run {
            return Err(WireFault::OtherRun { got: self.manifest.run });
        }
        let ballot =
            Ballot { round: self.manifest.round, attempt: self.attempt, phase: Phase::Sign, manifest: Some(self.hash) };
        let mut body = Vec::new();
        Body::Ballot(ballot).put(&mut body);
        let message = to_sign(run, Kind::Ballot, &body);
        let want = usize::from(spec.quorum);
        let fault = |got| Err(WireFault::Quorum { round: self.manifest.round, got, want });
        // The cheap questions first: whoever makes up a manifest shall not have sixty signatures verified for it.
        let named = self.votes.iter().filter(|v| spec.is_validator(&v.validator)).count();
        if named < want || named != self.votes.len() {
            return fault(named);
        }
        // A signature that does not hold is refused even beside a quorum: a sealed manifest has no slack to hide in.
        match self.votes.iter().position(|v| !v.validator.verify(&message, &v.signature)) {
            Some(got) => fault(got),
            None => Ok(()),
        }
    }

    /// Reads a sealed manifest from a file or a peer, bounded by the run's spec, and verifies it.
    pub fn open(spec: &RunSpec, run: &Hash, bytes: &[u8]) -> Result<Arc<Sealed>, WireFault> {
        let max = spec.manifest_bytes_max();
        if bytes.len() > max {
            return Err(Malformed::Long { what: "a manifest", got: bytes.len() as u64, max: max as u64 }.into());
        }
        let sealed = Sealed::decode(bytes)?;
        sealed.verify(spec, run)?;
        Ok(Arc::new(sealed))
    }
}
