//! What all peers of a run agree on before it starts. Its blake3 is the run's id, and stands under every signature.
//!
//! Nothing that bounds memory or decides a result is taken from the wire: sizes of updates, manifests and messages all
//! follow from here. The bytes are those of [`crate::wire::codec`], fields in the order below, behind the magic
//! `ESKRUN1\n`; [`RunSpec::check`] says what a spec that can run looks like, and the decoder calls it.

mod bytes;

use crate::wire::codec::{Canonical, Malformed, bad, record, rising};
use crate::{Hash, PeerId};
use serde::{Deserialize, Serialize};

/// The protocol that this build speaks. It changes when messages or rules do, not with the software's version.
pub const PROTOCOL: u16 = 1;

/// Bytes of a leaf of the state: 262144 f32 of one tensor, the last leaf of a tensor shorter.
pub const LEAF_BYTES: u64 = 1 << 20;

/// Bytes of a control message, at most; messages that hold lists of peers have [`RunSpec::manifest_bytes_max`].
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Bytes of a spec, at most.
pub const SPEC_BYTES_MAX: usize = 4 << 20;

const TENSORS_MAX: usize = 1 << 16;
const VALIDATORS_MAX: usize = 64;
const ALLOWED_MAX: usize = 1 << 16;
const KNOTS_MAX: usize = 64;
const SLOTS_MAX: u32 = 1 << 14;

/// A run, as agreed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// For people: 1 to 64 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// Versions of the protocol with which one may take part.
    pub protocol: Protocol,
    /// Hash of the model's canonical config.
    pub model: Hash,
    /// Hash of the token set's manifest.
    pub data: Hash,
    /// Root of the state at the start: all peers hold these weights before round 1.
    pub genesis: Hash,
    /// Shapes of the state's tensors, in the state's order.
    pub tensors: Vec<Shape>,
    /// What a peer does between two exchanges.
    pub inner: Inner,
    /// How an update is made and applied.
    pub outer: Outer,
    /// Bytes of every update, computed from shapes and codec by whoever writes the spec and checked by whoever reads it.
    pub blob_bytes: u64,
    /// 0: training waits for the exchange. 1: it goes on meanwhile, and an update is applied one round late.
    pub delay: u8,
    /// How long the parts of a round last.
    pub times: Times,
    /// Who checks and signs, in rising order. One is allowed: a plain coordinator.
    pub validators: Vec<PeerId>,
    /// How many of them a manifest needs: more than two thirds of them.
    pub quorum: u16,
    /// Who may take part.
    pub admission: Admission,
    /// How many, how often, how far.
    pub limits: Limits,
    /// Seed of the order of data, and of ties.
    pub seed: u64,
}

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}
record!(Protocol { min: u16, max: u16 });

/// A tensor of the state: `[rows, cols]`; a vector has one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Rows, at least 1.
    pub rows: u32,
    /// Columns, at least 1.
    pub cols: u32,
}
record!(Shape { rows: u32, cols: u32 });

impl Shape {
    /// How many values.
    pub fn values(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols)
    }

    /// How many leaves of the state.
    pub fn leaves(&self) -> u64 {
        (self.values() * 4).div_ceil(LEAF_BYTES)
    }
}

/// What a peer does between two exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inner {
    /// Steps of the inner optimiser, 1 to 250.
    pub steps: u32,
    /// Rows of tokens that a peer takes in a round: the length of its interval of the data's order.
    pub windows: u64,
    /// Tokens of a round, at most; an update that claims more is refused.
    pub tokens: u64,
}
record!(Inner { steps: u32, windows: u64, tokens: u64 });

/// How an update is made and applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outer {
    /// Values of a tile.
    pub tile: u32,
    /// Values of a tile that are sent.
    pub k: u32,
    /// The form of an update.
    pub codec: Codec,
    /// Over whom the mean is taken.
    pub mean: Mean,
    /// Decay of the error feedback.
    pub beta: f32,
    /// The outer learning rate over rounds: straight lines between knots, flat before the first and after the last.
    pub alpha: Vec<Knot>,
}

/// The form of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Templar's four bins a tensor and 12-bit indices.
    Reference,
    /// Elias-Fano indices, symmetric levels, a byte of scale a tile.
    Ours,
    /// Every value as f32: plain averaging, for comparison.
    Dense,
}

/// Over whom the mean of a coordinate is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mean {
    /// All contributors.
    Peers,
    /// Those who sent the coordinate.
    Senders,
}

/// A point of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knot {
    /// The round.
    pub round: u64,
    /// The value there.
    pub alpha: f32,
}
record!(Knot { round: u64, alpha: f32 });

/// How long the parts of a round last, in milliseconds. A deadline counts from the receipt of a manifest, so no clock
/// need agree with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// From a manifest to the end of commits.
    pub train_ms: u64,
    /// How much longer to wait for a connected peer that is expected and has not committed.
    pub grace_ms: u64,
    /// From the end of commits to the proposal, while blobs are fetched and checked.
    pub collect_ms: u64,
    /// How long a proposer has, for the first attempt; each later attempt has as much more.
    pub attempt_ms: u64,
    /// After how long an answer is asked for again, or something else is tried.
    pub retry_ms: u64,
}
record!(Times { train_ms: u64, grace_ms: u64, collect_ms: u64, attempt_ms: u64, retry_ms: u64 });

/// Who may take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Admission {
    /// Anybody, up to the slots.
    Open,
    /// Whoever shows a token signed by this owner.
    Invite(PeerId),
    /// These, in rising order.
    Allow(Vec<PeerId>),
}

/// How many, how often, how far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Rounds of the run.
    pub rounds: u64,
    /// Peers that may train in one round. Also what cuts the data's order into intervals.
    pub slots: u32,
    /// Updates that count in one round.
    pub contributors: u32,
    /// Peers to wait for before round 1.
    pub peers_min: u32,
    /// Rounds in which a newcomer's update is checked and listed with weight 0.
    pub probation_rounds: u32,
    /// A peer further behind than this takes a checkpoint instead of replaying.
    pub behind_rounds: u32,
    /// A checkpoint every so many rounds.
    pub checkpoint_rounds: u32,
    /// How many times the median norm of the round an update's may be, or the median the update's.
    pub norm_ratio: f32,
    /// The share of picks that two updates may have in common.
    pub overlap_max: f32,
    /// How far an update's signs must agree with the others', as a share of the round's median; 0 asks nothing.
    pub agreement_min: f32,
    /// How many times more an update may share with those of an earlier round than with its own round's; 0 asks nothing.
    pub age_ratio: f32,
}
record!(Limits {
    rounds: u64,
    slots: u32,
    contributors: u32,
    peers_min: u32,
    probation_rounds: u32,
    behind_rounds: u32,
    checkpoint_rounds: u32,
    norm_ratio: f32,
    overlap_max: f32,
    agreement_min: f32,
    age_ratio: f32,
});

/// `Ok` where `holds`.
fn need(holds: bool, what: &'static str, why: &'static str) -> Result<(), Malformed> {
    if holds { Ok(()) } else { bad(what, why) }
}

impl RunSpec {
    /// The run's id: blake3 of the canonical bytes.
    pub fn id(&self) -> Hash {
        Hash::of(&self.encode())
    }

    /// Reads a spec; `bytes` past [`SPEC_BYTES_MAX`] are refused unread.
    pub fn read(bytes: &[u8]) -> Result<RunSpec, Malformed> {
        if bytes.len() > SPEC_BYTES_MAX {
            return Err(Malformed::Long { what: "a spec", got: bytes.len() as u64, max: SPEC_BYTES_MAX as u64 });
        }
        RunSpec::decode(bytes)
    }

    /// Whether the run can start: every value in its range, lists sorted, a quorum that two manifests cannot share.
    pub fn check(&self) -> Result<(), Malformed> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        need((1..=64).contains(&self.name.len()), "name", "1 to 64 characters are allowed")?;
        need(self.name.bytes().all(plain), "name", "only letters, digits, dot, dash and underscore are allowed")?;
        need(self.protocol.min <= self.protocol.max, "protocol", "min is above max")?;
        need((1..=TENSORS_MAX).contains(&self.tensors.len()), "tensors", "1 to 65536 are allowed")?;
        need(self.tensors.iter().all(|t| t.rows > 0 && t.cols > 0), "tensors", "a side is 0")?;
        need(self.tensors.iter().all(|t| t.values() < 1 << 40), "tensors", "one has 2^40 values or more")?;
        need((1..=250).contains(&self.inner.steps), "inner.steps", "1 to 250 are allowed")?;
        need(self.inner.windows > 0, "inner.windows", "must be at least 1")?;
        need(self.inner.tokens > 0, "inner.tokens", "must be at least 1")?;
        let outer = &self.outer;
        need((1..=1 << 16).contains(&outer.tile), "outer.tile", "1 to 65536 are allowed")?;
        need((1..=outer.tile).contains(&outer.k), "outer.k", "1 to the tile are allowed")?;
        need((0.0..=1.0).contains(&outer.beta), "outer.beta", "0 to 1 is allowed")?;
        need((1..=KNOTS_MAX).contains(&outer.alpha.len()), "outer.alpha", "1 to 64 knots are allowed")?;
        need(outer.alpha.iter().all(|k| k.alpha >= 0.0), "outer.alpha", "must not be negative")?;
        rising(outer.alpha.iter().map(|k| k.round), "outer.alpha")?;
        need((1..1 << 50).contains(&self.blob_bytes), "blob_bytes", "1 to 2^50 are allowed")?;
        need(self.delay <= 1, "delay", "0 or 1 is allowed")?;
        self.check_people()?;
        self.check_limits()?;
        self.check_numbers()
    }

    /// What no reader takes, no writer may send.
    fn check_numbers(&self) -> Result<(), Malformed> {
        let l = &self.limits;
        let alpha = self.outer.alpha.iter().map(|k| ("outer.alpha", k.alpha));
        let numbers = [
            ("outer.beta", self.outer.beta),
            ("limits.norm_ratio", l.norm_ratio),
            ("limits.overlap_max", l.overlap_max),
            ("limits.agreement_min", l.agreement_min),
            ("limits.age_ratio", l.age_ratio),
        ];
        let plain = |x: f32| x.is_finite() && x.to_bits() != (-0.0f32).to_bits();
        alpha.chain(numbers).try_for_each(|(what, x)| need(plain(x), what, "must be finite, and zero without a sign"))
    }

    fn check_people(&self) -> Result<(), Malformed> {
        let n = self.validators.len();
        need((1..=VALIDATORS_MAX).contains(&n), "validators", "1 to 64 are allowed")?;
        rising(self.validators.iter(), "validators")?;
        let quorum = usize::from(self.quorum);
        need(
            quorum <= n && 3 * quorum > 2 * n,
            "quorum",
            "must be above two thirds of the validators, and at most all",
        )?;
        if let Admission::Allow(peers) = &self.admission {
            need((1..=ALLOWED_MAX).contains(&peers.len()), "admission.allow", "1 to 65536 are allowed")?;
            rising(peers.iter(), "admission.allow")?;
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Malformed> {
        let day = 1..=24 * 3600 * 1000;
        let (t, l) = (&self.times, &self.limits);
        need(day.contains(&t.train_ms), "times.train_ms", "1 ms to a day is allowed")?;
        need(t.grace_ms <= *day.end(), "times.grace_ms", "at most a day is allowed")?;
        need(day.contains(&t.collect_ms), "times.collect_ms", "1 ms to a day is allowed")?;
        need(day.contains(&t.attempt_ms), "times.attempt_ms", "1 ms to a day is allowed")?;
        need(day.contains(&t.retry_ms), "times.retry_ms", "1 ms to a day is allowed")?;
        need((1..1 << 40).contains(&l.rounds), "limits.rounds", "1 to 2^40 are allowed")?;
        need((1..=SLOTS_MAX).contains(&l.slots), "limits.slots", "1 to 16384 are allowed")?;
        need((1..=l.slots).contains(&l.contributors), "limits.contributors", "1 to the slots are allowed")?;
        need((1..=l.slots).contains(&l.peers_min), "limits.peers_min", "1 to the slots are allowed")?;
        need(l.behind_rounds >= 1, "limits.behind_rounds", "must be at least 1")?;
        need(l.checkpoint_rounds >= 1, "limits.checkpoint_rounds", "must be at least 1")?;
        need(l.norm_ratio > 1.0, "limits.norm_ratio", "must be above 1")?;
        need((0.0..=1.0).contains(&l.overlap_max), "limits.overlap_max", "0 to 1 is allowed")?;
        need((0.0..1.0).contains(&l.agreement_min), "limits.agreement_min", "from 0 to below 1 is allowed")?;
        need(l.age_ratio == 0.0 || l.age_ratio > 1.0, "limits.age_ratio", "0 or a number above 1 is allowed")
    }

    /// Whether `peer` is a validator.
    pub fn is_validator(&self, peer: &PeerId) -> bool {
        self.validators.binary_search(peer).is_ok()
    }

    /// Who proposes in `attempt` of `round`: they take turns, so a dead one costs one attempt in as many rounds as
    /// there are validators.
    pub fn proposer(&self, round: u64, attempt: u32) -> PeerId {
        let turn = (round % self.validators.len() as u64 + u64::from(attempt)) % self.validators.len() as u64;
        self.validators[turn as usize]
    }

    /// The outer learning rate of a round: in f64 between the knots, rounded once.
    pub fn alpha(&self, round: u64) -> f32 {
        let knots = &self.outer.alpha;
        match knots.iter().position(|k| k.round > round) {
            None => knots[knots.len() - 1].alpha,
            Some(0) => knots[0].alpha,
            Some(i) => {
                let (a, b) = (knots[i - 1], knots[i]);
                let part = (round - a.round) as f64 / (b.round - a.round) as f64;
                (f64::from(a.alpha) + part * (f64::from(b.alpha) - f64::from(a.alpha))) as f32
            }
        }
    }

    /// Whether a checkpoint is made of the state after `round`.
    pub fn checkpoint_due(&self, round: u64) -> bool {
        round > 0 && round.is_multiple_of(u64::from(self.limits.checkpoint_rounds))
    }

    /// Leaves of the state.
    pub fn leaves(&self) -> u64 {
        self.tensors.iter().map(Shape::leaves).sum()
    }

    /// Bytes of the state: its values as f32.
    pub fn state_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.values() * 4).sum()
    }

    /// Bytes of leaf `index`, where there is such a leaf.
    pub fn leaf_bytes(&self, index: u64) -> Option<u64> {
        let mut first = 0;
        for tensor in &self.tensors {
            if index < first + tensor.leaves() {
                return Some(LEAF_BYTES.min(tensor.values() * 4 - (index - first) * LEAF_BYTES));
            }
            first += tensor.leaves();
        }
        None
    }

    /// Bytes of a manifest with its signatures, at most: what its lists can hold.
    pub fn manifest_bytes_max(&self) -> usize {
        use crate::wire::{Entry, Reject, Slot, Vote};
        let slots = self.limits.slots as usize;
        let lists =
            slots * (Slot::BYTES_MIN + Reject::BYTES_MIN) + self.limits.contributors as usize * Entry::BYTES_MIN;
        2048 + lists + self.validators.len() * Vote::BYTES_MIN
    }

    /// Bytes of any message of this run, at most.
    pub fn message_bytes_max(&self) -> usize {
        MESSAGE_BYTES_MAX.max(self.manifest_bytes_max())
    }
}

#[cfg(test)]
pub(crate) mod tests;
