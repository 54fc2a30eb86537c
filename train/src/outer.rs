//! One owner's part of a training run that many owners share: SparseLoCo, with no network in it.
//!
//! ```text
//! a: the weights that all owners share (anchor)    θ: this owner's    e: its error feedback    R owners, round t
//!
//! θ   ← a;  H steps of AdamW on the rows of (t, slot); the moments stay with the owner from round to round
//! e   ← β·e + (a − θ);  d = decode(the k largest of each tile of e, quantised);  e ← e − d       [`owner`]
//! all owners' d, each no longer than the median one: f = min(1, median ‖d‖ / ‖d_r‖), tensor by tensor
//! a   ← a − α_t · mean_r f_r·d_r                      over all R, or over those that sent a coordinate
//! ```
//!
//! [`Owner::prepare`] gives the round's update as bytes, [`Owner::apply`] takes those that count, in the order that all
//! owners agree on, and everybody has the same bits afterwards: [`leaves`] are what proves it. What others send is
//! hostile until [`blob::check`] and [`judge`] have seen it. [`keep`] is what survives a crash.
//!
//! Source: Sarfi et al. 2025, arXiv:2508.15706 (SparseLoCo); the clip to the median norm and the staged α are those of
//! Covenant-72B, arXiv:2603.08163.

pub mod blob;
pub mod inner;
pub mod judge;
pub mod keep;
pub mod leaves;
pub mod owner;

pub use blob::{BlobFault, Header, Layout};
pub use owner::{Owner, Prepared};

use crate::checkpoint::CheckpointError;
use crate::config::Run;
use crate::source::SourceError;
use crate::step::StepError;
use esker_data::loader::LoaderError;
use esker_kernels::DeviceError;
use esker_kernels::ops::chunk_topk::{Codec, Mean, Spec};
use esker_model::hf::HfError;
use serde::{Deserialize, Serialize};

/// The section `[outer]`: what the owners of a run exchange, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outer {
    /// Places for owners in a round: rows are dealt out to so many, and no round has more updates.
    pub slots: u64,
    /// H: steps of AdamW between two exchanges.
    pub inner_steps: u64,
    /// How an update is written.
    pub codec: Codec,
    /// Values sent of a tile of 4096, from 1 to 4096.
    pub k: usize,
    /// β: how much of the error feedback lives on into the next round.
    pub beta: f64,
    /// Over whom the mean of a coordinate runs.
    pub mean: Mean,
    /// How long an update may be.
    pub clip: Clip,
    /// α over the rounds: straight lines between these, level before the first and after the last.
    pub alpha: Vec<Knot>,
}

/// How long an update may be beside the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// As long as the median of them; of an even number, the lower of the two in the middle.
    Median,
    /// As long as it is.
    None,
}

/// A value of α and its round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knot {
    /// Which round, from 0.
    pub round: u64,
    /// α there.
    pub value: f64,
}

impl Outer {
    /// How the kernels write an update.
    pub fn spec(&self) -> Spec {
        Spec { k: self.k, codec: self.codec }
    }

    /// α of `round`: in f64 between the knots, rounded once.
    pub fn alpha(&self, round: u64) -> f32 {
        let after = self.alpha.partition_point(|knot| knot.round <= round);
        match (self.alpha[..after].last(), self.alpha.get(after)) {
            (Some(a), Some(b)) => {
                let share = (round - a.round) as f64 / (b.round - a.round) as f64;
                (a.value + share * (b.value - a.value)) as f32
            }
            (Some(knot), None) | (None, Some(knot)) => knot.value as f32,
            (None, None) => unreachable!("outer: a checked section has a knot"),
        }
    }

    /// A key of the section, and what is wrong with its value.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |good: bool, key, why: String| if good { Ok(()) } else { Err((key, why)) };
        within((1..=SLOTS_MAX).contains(&self.slots), "slots", format!("{}; from 1 to {SLOTS_MAX}", self.slots))?;
        let h = self.inner_steps;
        within((1..=INNER_STEPS_MAX).contains(&h), "inner_steps", format!("{h}; from 1 to {INNER_STEPS_MAX}"))?;
        within((1..=4096).contains(&self.k), "k", format!("{}; from 1 to 4096, of a tile of 4096", self.k))?;
        within((0.0..=1.0).contains(&self.beta), "beta", format!("{} is outside of [0, 1]", self.beta))?;
        let ascend = self.alpha.windows(2).all(|pair| pair[0].round < pair[1].round);
        within(!self.alpha.is_empty() && ascend, "alpha", "at least one knot, in ascending rounds".into())?;
        self.alpha.iter().try_for_each(|knot| {
            let good = (0.0..=ALPHA_MAX).contains(&knot.value);
            within(good, "alpha", format!("{} is outside of [0, {ALPHA_MAX}]", knot.value))
        })
    }
}

/// A round has at most so many updates.
const SLOTS_MAX: u64 = 4096;
/// The most steps between two exchanges for which the method was ever tried.
const INNER_STEPS_MAX: u64 = 250;
/// An outer step longer than this overshoots whatever the mean.
const ALPHA_MAX: f64 = 4.0;

/// Rounds and rows of a run of many owners.
impl Run {
    /// Its section `[outer]`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn shared(&self) -> Result<&Outer, OuterError> {
        self.outer.as_ref().ok_or_else(|| OuterError::NotShared { name: self.name.clone() })
    }

    /// Rounds of a run of `train.steps` steps an owner; the last may be shorter.
    pub fn rounds(&self, outer: &Outer) -> u64 {
        self.train.steps.div_ceil(outer.inner_steps)
    }

    /// Inner steps of `round`.
    pub fn steps_of(&self, outer: &Outer, round: u64) -> u64 {
        self.train.steps.saturating_sub(round.saturating_mul(outer.inner_steps)).min(outer.inner_steps)
    }

    /// The position of the first row of `slot` in `round`; none where there is no such slot.
    pub fn rows_of(&self, outer: &Outer, round: u64, slot: u64) -> Option<u64> {
        let windows = outer.inner_steps * self.rows_per_step() as u64;
        esker_data::order::interval(round, slot, outer.slots, windows).map(|rows| rows.start)
    }

    /// What the run is called between owners: a digest of the keys that change a result and of the training tokens.
    pub fn id(&self, tokens: &str) -> [u8; 32] {
        *blake3::hash(format!("esker run 1 {} {tokens}", self.hash()).as_bytes()).as_bytes()
    }
}

/// Why an owner cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OuterError {
    /// The configuration is of a run with one owner.
    #[error("{name}: has no section [outer], so it is a run of one owner: train it with `esker train`")]
    NotShared {
        /// The run.
        name: String,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A step could not be computed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The tokens cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What was kept could not be written, or was refused.
    #[error(transparent)]
    Kept(#[from] CheckpointError),
    /// As above, the tensors.
    #[error(transparent)]
    Tensors(#[from] HfError),
    /// No such place in the round.
    #[error("slot {slot} of round {round}: the run has {slots} slots and {rounds} rounds")]
    NoSuchRows {
        /// Which round.
        round: u64,
        /// Which slot.
        slot: u64,
        /// How many slots there are.
        slots: u64,
        /// How many rounds there are.
        rounds: u64,
    },
    /// The owner's own training ran away; it contributes nothing to this round and is back at the shared weights.
    #[error("round {round}, step {step}: the loss or the gradient is no number; this round goes on without this owner")]
    Diverged {
        /// Which round.
        round: u64,
        /// Which step of it.
        step: u64,
    },
    /// The training was asked to end before the round did.
    #[error("round {round}: ended before its last step, as it was asked to")]
    Stopped {
        /// Which round.
        round: u64,
    },
    /// A round out of its turn.
    #[error("round {got} cannot be applied to weights that wait for round {want}")]
    OutOfTurn {
        /// The round that was handed in.
        got: u64,
        /// The next one.
        want: u64,
    },
    /// More updates than places.
    #[error("{got} updates for a round of {slots} slots")]
    TooMany {
        /// How many there are.
        got: usize,
        /// How many there may be.
        slots: u64,
    },
    /// An update that should have been refused before.
    #[error("update {index}: {fault}")]
    Refused {
        /// Which of those handed in.
        index: usize,
        /// What is wrong with it.
        fault: BlobFault,
    },
}

impl From<LoaderError> for OuterError {
    fn from(e: LoaderError) -> OuterError {
        OuterError::Source(e.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_a_function_of_the_round() {
        let knots = |knots: &[(u64, f64)]| Outer {
            slots: 1,
            inner_steps: 1,
            codec: Codec::Compact,
            k: 64,
            beta: 0.95,
            mean: Mean::Senders,
            clip: Clip::Median,
            alpha: knots.iter().map(|&(round, value)| Knot { round, value }).collect(),
        };
        let falling = knots(&[(2, 1.0), (6, 0.5), (7, 0.25)]);
        assert_eq!([0, 2, 3, 4, 6, 7, 900].map(|r| falling.alpha(r)), [1.0, 1.0, 0.875, 0.75, 0.5, 0.25, 0.25]);
        falling.check().unwrap();
        for bad in [&[][..], &[(1, 1.0), (1, 0.5)], &[(0, f64::NAN)], &[(0, 9.0)]] {
            assert_eq!(knots(bad).check().unwrap_err().0, "alpha");
        }
    }
}
