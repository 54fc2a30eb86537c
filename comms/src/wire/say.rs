//! The bodies of messages.

use super::codec::{Canonical, Malformed, Reader, bad, codes, record};
use super::{Manifest, Reason, Sealed, to_sign};
use crate::{Hash, Key, PeerId, Protocol, RunSpec, Signature};
use std::sync::Arc;

macro_rules! kinds {
    ($($name:ident = $code:literal, $signed:literal, $validators:literal, $lists:literal;)*) => {
        /// What a message is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind {
            $($name = $code,)*
        }

        impl Kind {
            /// All of them, with their codes.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];

            /// Whether the body is signed by its author.
            pub fn signed(self) -> bool {
                match self { $(Kind::$name => $signed,)* }
            }

            /// Whether only validators say it.
            pub fn by_validators(self) -> bool {
                match self { $(Kind::$name => $validators,)* }
            }

            /// Whether it lists peers, and so may be as long as a manifest.
            pub fn lists_peers(self) -> bool {
                match self { $(Kind::$name => $lists,)* }
            }
        }

        codes!(Kind, "a message's kind" { $($name = $code),* });
    };
}

// kind = code, signed, by validators alone, lists peers
kinds! {
    Join = 1, true, false, false;
    Commit = 2, true, false, false;
    Reveal = 3, false, false, false;
    Close = 4, true, true, false;
    Have = 5, true, true, false;
    Propose = 6, true, true, true;
    Ballot = 7, true, true, false;
    Sealed = 8, false, false, true;
    Attest = 9, true, false, false;
    Refuse = 10, true, true, false;
    Status = 11, false, false, false;
    Pull = 12, false, false, false;
}

/// A peer wants to take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Versions of the protocol that it speaks.
    pub protocol: Protocol,
    /// The owner's signature over [`invite`], where the run asks for one.
    pub token: Option<Signature>,
}
record!(Join { protocol: Protocol, token: Option<Signature> });

/// A peer binds itself to an update before anybody can see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The round.
    pub round: u64,
    /// The manifest that gave the slot: that of round `round - 1 - delay`, or 0.
    pub after: Hash,
    /// blake3 of the update, header included.
    pub blob: Hash,
    /// Its bytes; must be the spec's.
    pub bytes: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps of the inner optimiser; fewer than H where the deadline came first.
    pub steps: u32,
}
record!(Commit { round: u64, after: Hash, blob: Hash, bytes: u64, tokens: u64, steps: u32 });

/// The author's update may be fetched now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reveal {
    /// The round.
    pub round: u64,
    /// The update.
    pub blob: Hash,
}
record!(Reveal { round: u64, blob: Hash });

/// A validator takes no more commits for a round. A quorum of these, and updates may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The round.
    pub round: u64,
    /// The manifest that gave the slots.
    pub after: Hash,
}
record!(Close { round: u64, after: Hash });

/// Which updates of a round a validator holds and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// The round.
    pub round: u64,
    /// The manifest that gave the slots.
    pub after: Hash,
    /// Whether every commit known to the validator is settled, held or judged.
    pub whole: bool,
    /// Bit `slot % 8` of byte `slot / 8`; no zero byte at the end.
    pub slots: Vec<u8>,
}

impl Canonical for Have {
    const BYTES_MIN: usize = 45;
    fn put(&self, to: &mut Vec<u8>) {
        self.round.put(to);
        self.after.put(to);
        to.push(u8::from(self.whole));
        super::codec::put_list(&self.slots, to);
    }
    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let have = Have {
            round: u64::take(from)?,
            after: Hash::take(from)?,
            whole: match u8::take(from)? {
                0 => false,
                1 => true,
                _ => return bad("have.whole", "neither 0 nor 1"),
            },
            slots: from.list(2048, "have.slots")?,
        };
        if have.slots.last() == Some(&0) { bad("have.slots", "a zero byte at the end") } else { Ok(have) }
    }
}

/// The proposer of an attempt puts a manifest forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propose {
    /// The attempt.
    pub attempt: u32,
    /// The earlier attempt in which a quorum was ready for this manifest, where there was one.
    pub ready: Option<u32>,
    /// The manifest.
    pub manifest: Manifest,
}
record!(Propose { attempt: u32, ready: Option<u32>, manifest: Manifest });

/// The two steps of agreement: ready to sign, and signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The manifest is sound.
    Ready = 1,
    /// A quorum is ready for it; a quorum of these makes it final.
    Sign = 2,
}

codes!(Phase, "a phase" { Ready = 1, Sign = 2 });

/// A validator's word on a manifest. One for each (round, attempt, phase), for ever: two are proof of a lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ballot {
    /// The round.
    pub round: u64,
    /// The attempt.
    pub attempt: u32,
    /// Ready, or signed.
    pub phase: Phase,
    /// The manifest; none says that this attempt came to nothing.
    pub manifest: Option<Hash>,
}
record!(Ballot { round: u64, attempt: u32, phase: Phase, manifest: Option<Hash> });

/// A peer's state after it applied a manifest. It also says that the peer is ready for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    /// The round.
    pub round: u64,
    /// The manifest applied.
    pub manifest: Hash,
    /// Root of the state after it.
    pub root: Hash,
}
record!(Attest { round: u64, manifest: Hash, root: Hash });

/// A validator turns a peer, or its commit, away, and says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refuse {
    /// The round in which.
    pub round: u64,
    /// Whom.
    pub peer: PeerId,
    /// Why.
    pub reason: Reason,
}
record!(Refuse { round: u64, peer: PeerId, reason: Reason });

/// How far the author is. A hint: whoever is behind pulls, and believes signatures alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The newest manifest that it holds.
    pub round: u64,
    /// Its name.
    pub manifest: Hash,
    /// The newest round that it has applied.
    pub applied: u64,
}
record!(Status { round: u64, manifest: Hash, applied: u64 });

/// Asks for the manifest of a round and those behind it; [`Pull::NEWEST`] for the newest alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// The first round wanted.
    pub from: u64,
}
record!(Pull { from: u64 });

impl Pull {
    /// Asks for the newest manifest.
    pub const NEWEST: u64 = u64::MAX;
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Join(Join),
    Commit(Commit),
    Reveal(Reveal),
    Close(Close),
    Have(Have),
    Propose(Box<Propose>),
    Ballot(Ballot),
    Sealed(Arc<Sealed>),
    Attest(Attest),
    Refuse(Refuse),
    Status(Status),
    Pull(Pull),
}

macro_rules! each {
    ($body:expr, $x:ident => $do:expr) => {
        match $body {
            Body::Join($x) => $do,
            Body::Commit($x) => $do,
            Body::Reveal($x) => $do,
            Body::Close($x) => $do,
            Body::Have($x) => $do,
            Body::Propose($x) => $do,
            Body::Ballot($x) => $do,
            Body::Sealed($x) => $do,
            Body::Attest($x) => $do,
            Body::Refuse($x) => $do,
            Body::Status($x) => $do,
            Body::Pull($x) => $do,
        }
    };
}

impl Body {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Join(_) => Kind::Join,
            Body::Commit(_) => Kind::Commit,
            Body::Reveal(_) => Kind::Reveal,
            Body::Close(_) => Kind::Close,
            Body::Have(_) => Kind::Have,
            Body::Propose(_) => Kind::Propose,
            Body::Ballot(_) => Kind::Ballot,
            Body::Sealed(_) => Kind::Sealed,
            Body::Attest(_) => Kind::Attest,
            Body::Refuse(_) => Kind::Refuse,
            Body::Status(_) => Kind::Status,
            Body::Pull(_) => Kind::Pull,
        }
    }

    /// Appends the body's bytes.
    pub fn put(&self, to: &mut Vec<u8>) {
        each!(self, x => x.put(to));
    }

    /// Takes a body of `kind`, its lists bounded by the run's spec.
    pub fn take(spec: &RunSpec, kind: Kind, from: &mut Reader<'_>) -> Result<Body, Malformed> {
        let body = match kind {
            Kind::Join => Body::Join(Join::take(from)?),
            Kind::Commit => Body::Commit(Commit::take(from)?),
            Kind::Reveal => Body::Reveal(Reveal::take(from)?),
            Kind::Close => Body::Close(Close::take(from)?),
            Kind::Have => Body::Have(Have::take(from)?),
            Kind::Propose => Body::Propose(Box::new(Propose::take(from)?)),
            Kind::Ballot => Body::Ballot(Ballot::take(from)?),
            Kind::Sealed => Body::Sealed(Arc::new(Sealed::take(from)?)),
            Kind::Attest => Body::Attest(Attest::take(from)?),
            Kind::Refuse => Body::Refuse(Refuse::take(from)?),
            Kind::Status => Body::Status(Status::take(from)?),
            Kind::Pull => Body::Pull(Pull::take(from)?),
        };
        let manifest = match &body {
            Body::Propose(p) => &p.manifest,
            Body::Sealed(s) => &s.manifest,
            _ => return Ok(body),
        };
        let most = |what, got: usize, max: u32| match got as u64 > u64::from(max) {
            true => Err(Malformed::Long { what, got: got as u64, max: max.into() }),
            false => Ok(()),
        };
        most("entries", manifest.entries.len(), spec.limits.contributors)?;
        most("rejects", manifest.rejects.len(), spec.limits.slots)?;
        most("slots", manifest.slots.len(), spec.limits.slots)?;
        Ok(body)
    }
}

/// What the owner of an invitation-only run signs to let `peer` in: see [`Join::token`].
pub fn invite(owner: &Key, run: &Hash, peer: &PeerId) -> Signature {
    owner.sign(&invitation(run, peer))
}

/// The bytes under an invitation: a join's kind cannot be mistaken for it, since a join is signed with its body.
pub(crate) fn invitation(run: &Hash, peer: &PeerId) -> Vec<u8> {
    [b"esker invite 1\0".as_slice(), &to_sign(run, Kind::Join, &peer.0)].concat()
}
