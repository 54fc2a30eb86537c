//! The rounds in virtual time: the same machines, in a world of discrete events.
//!
//! A heap of events is all there is: messages with latency, bandwidth and loss, transfers through fluid queues at both
//! ends, training, folding, crashes, churn, partitions, clocks that differ, liars. Every draw comes from the seed, so a
//! history repeats to the event. Signatures are real Ed25519; each distinct message is opened (decoded and verified)
//! once, and the result is shared by all who receive it, which no receiver can tell from opening it himself. States,
//! folds, roots and updates are real and tiny ([`work`]). [`check`] holds the history against what the protocol promises.

pub mod check;
mod host;
pub mod work;
mod world;

pub use check::{Report, Row};
pub use host::Script;
pub use world::Sim;

use crate::{
    Admission, Codec, Hash, Inner, Knot, Limits, Mean, Outer, PROTOCOL, PeerId, Protocol, RunSpec, Shape, Times,
};
use work::{Tiny, UPDATE_BYTES, View, Work};

/// What world to play.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Peers that train, kept at about this number.
    pub peers: usize,
    /// Validators beside them.
    pub validators: usize,
    /// Rounds to play.
    pub rounds: u64,
    /// Share of peers that leave for ever in each round, and are replaced by newcomers.
    pub churn: f64,
    /// Share of peers that lie.
    pub liars: f64,
    /// How all liars lie; each in its own way where there is none.
    pub script: Option<Script>,
    /// Kills a round, over peers and validators alike, each followed by a start from disk.
    pub kills: f64,
    /// Of all chance.
    pub seed: u64,
    /// The run's delay.
    pub delay: u8,
    /// Messages that are lost once and sent again.
    pub loss: f64,
    /// Clocks differ by up to this.
    pub skew_ms: u64,
    /// Two halves that cannot reach each other: from the beginning of the first round to that of the second.
    pub partition: Option<(u64, u64)>,
    /// The side with the first validators is heard by the other and does not hear it.
    pub one_way: bool,
    /// Share of the validators on the larger side of the partition; peers are halved.
    pub partition_validators: usize,
    /// Validators that are dead from the start.
    pub dead_validators: usize,
    /// Flips one bit of one peer's state after this round.
    pub flip: Option<u64>,
    /// Kills the node after it carried out so many orders, once: (node, orders); validators come first.
    pub kill_at: Option<(usize, u64)>,
    /// Updates that count in a round.
    pub contributors: u32,
    /// Rounds between checkpoints.
    pub checkpoint_rounds: u32,
}

impl Config {
    /// So many peers for so many rounds, four validators, nothing going wrong.
    pub fn calm(peers: usize, rounds: u64, seed: u64) -> Config {
        Config {
            peers,
            validators: 4,
            rounds,
            churn: 0.0,
            liars: 0.0,
            script: None,
            kills: 0.0,
            seed,
            delay: 0,
            loss: 0.001,
            skew_ms: 30_000,
            partition: None,
            one_way: false,
            partition_validators: 3,
            dead_validators: 0,
            flip: None,
            kill_at: None,
            contributors: 64,
            checkpoint_rounds: 5,
        }
    }
}

/// A run of the tiny work with these validators.
pub fn spec(validators: &[PeerId]) -> RunSpec {
    let mut validators = validators.to_vec();
    validators.sort_unstable();
    let mut spec = RunSpec {
        name: "sim".into(),
        protocol: Protocol { min: PROTOCOL, max: PROTOCOL },
        model: Hash::of(b"model"),
        data: Hash::of(b"data"),
        genesis: Hash::NONE,
        tensors: vec![Shape { rows: 2, cols: 1024 }, Shape { rows: 1, cols: 1024 }],
        inner: Inner { steps: 30, windows: 8, tokens: 1 << 16 },
        outer: Outer {
            tile: 1024,
            k: 16,
            codec: Codec::Ours,
            mean: Mean::Peers,
            beta: 0.95,
            alpha: vec![Knot { round: 0, alpha: 1.0 }],
        },
        blob_bytes: UPDATE_BYTES as u64,
        delay: 0,
        times: Times { train_ms: 60_000, grace_ms: 5_000, collect_ms: 20_000, attempt_ms: 5_000, retry_ms: 2_000 },
        quorum: (validators.len() * 2 / 3 + 1) as u16,
        validators,
        admission: Admission::Open,
        limits: Limits {
            rounds: 1 << 30,
            slots: 2048,
            contributors: 64,
            peers_min: 1,
            probation_rounds: 0,
            behind_rounds: 8,
            checkpoint_rounds: 5,
            norm_ratio: 10.0,
            overlap_max: 0.4,
            agreement_min: 0.0,
            age_ratio: 0.0,
        },
        seed: 1,
    };
    spec.genesis = crate::state::Tree::of(&spec, &View(&Tiny.genesis())).root();
    spec
}

/// Plays a world to its end and judges it.
pub fn run(config: &Config) -> Report {
    let mut sim = Sim::new(config.clone(), Tiny);
    sim.play();
    sim.report()
}

#[cfg(test)]
mod tests;
