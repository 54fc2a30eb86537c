//! What all owners of a run agree on, from its configuration: the spec whose digest is the run's id.

use super::{Peers, PeersError};
use crate::config::Run;
use crate::outer::{Owner, judge};
use esker_comms::{
    Admission, Codec, Hash, Inner, Knot, Limits, Mean, Outer, PROTOCOL, PeerId, Protocol, RunSpec, Shape, Times,
};
use esker_kernels::ops::chunk_topk::{CHUNK, Codec as Written, Mean as Over};

/// Rounds between two checkpoints that a newcomer may start from.
const CHECKPOINT_ROUNDS: u32 = 10;

/// The spec of `run`, whose tokens have the digest `tokens` and whose weights `owner` has drawn.
///
/// # Errors
/// Where the configuration is none of a shared run, or the protocol refuses what it says.
pub fn spec(run: &Run, owner: &Owner, tokens: &str, ours: PeerId) -> Result<RunSpec, PeersError> {
    let (outer, peers) = (run.shared()?, peers(run)?);
    if peers.validators.is_empty() {
        return Err(PeersError::NoValidators { name: run.name.clone(), ours });
    }
    let shape = |shape: &[usize]| match *shape {
        [cols] => Shape { rows: 1, cols: cols as u32 },
        [rows, cols] => Shape { rows: rows as u32, cols: cols as u32 },
        _ => unreachable!("spec: weights have one dimension or two"),
    };
    let inner_tokens = outer.inner_steps * run.batch.tokens_per_step as u64;
    let spec = RunSpec {
        name: run.name.clone(),
        protocol: Protocol { min: PROTOCOL, max: PROTOCOL },
        model: Hash::of(run.canonical().to_string().as_bytes()),
        data: Hash::of(tokens.as_bytes()),
        genesis: Hash(owner.genesis()),
        tensors: owner.anchor().each().map(|(_, t)| shape(t.shape())).collect(),
        inner: Inner {
            steps: outer.inner_steps as u32,
            windows: outer.inner_steps * run.rows_per_step() as u64,
            tokens: inner_tokens,
        },
        outer: Outer {
            tile: CHUNK as u32,
            k: outer.k as u32,
            codec: match outer.codec {
                Written::Compact => Codec::Ours,
                Written::Reference => Codec::Reference,
                Written::Exact => Codec::Dense,
            },
            mean: match outer.mean {
                Over::Peers => Mean::Peers,
                Over::Senders => Mean::Senders,
            },
            beta: outer.beta as f32,
            alpha: outer.alpha.iter().map(|k| Knot { round: k.round, alpha: k.value as f32 }).collect(),
        },
        blob_bytes: owner.layout().bytes() as u64,
        delay: peers.delay,
        times: times(peers),
        quorum: (peers.validators.len() * 2 / 3 + 1) as u16,
        validators: peers.validators.clone(),
        admission: admission(&peers.admission),
        limits: Limits {
            rounds: run.rounds(outer),
            slots: outer.slots as u32,
            contributors: outer.slots as u32,
            peers_min: peers.owners_min,
            probation_rounds: 0,
            behind_rounds: 2 * CHECKPOINT_ROUNDS,
            checkpoint_rounds: CHECKPOINT_ROUNDS,
            norm_ratio: judge::NORM_RATIO,
            overlap_max: judge::overlap_max(outer.spec()),
            agreement_min: judge::AGREEMENT_MIN,
            age_ratio: judge::AGE_RATIO,
        },
        seed: run.seed,
    };
    spec.check().map_err(|e| PeersError::Spec { name: run.name.clone(), why: e.to_string() })?;
    Ok(spec)
}

/// The section `[peers]` of `run`.
pub fn peers(run: &Run) -> Result<&Peers, PeersError> {
    run.peers.as_ref().ok_or_else(|| PeersError::NoPeers { name: run.name.clone() })
}

fn admission(asked: &super::Admission) -> Admission {
    match asked {
        super::Admission::Open => Admission::Open,
        super::Admission::Invite(owner) => Admission::Invite(*owner),
        super::Admission::Allow(peers) => Admission::Allow(peers.clone()),
    }
}

fn times(peers: &Peers) -> Times {
    let ms = |seconds: f64| (seconds * 1e3).round() as u64;
    Times {
        train_ms: ms(peers.train_s),
        grace_ms: ms(peers.grace_s),
        collect_ms: ms(peers.collect_s),
        // A proposer that is dead costs a few round trips, not the time of a transfer; each further attempt has more.
        attempt_ms: ms(peers.collect_s).min(ms(10.0 * peers.retry_s).max(1000)),
        retry_ms: ms(peers.retry_s),
    }
}
