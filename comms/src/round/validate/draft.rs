//! What a manifest says: its parts that follow from the chain, whose updates count, who trains next; and whether one that
//! another puts forward can be signed.

use super::Validator;
use super::exchange::Stage;
use crate::round::core::Core;
use crate::round::follow::Follow;
use crate::round::judge::{Candidate, judge, sound_list};
use crate::wire::{Checkpoint, Entry, Manifest, Reason, Reject, Slot};
use crate::{Hash, PeerId, RunSpec};
use std::collections::BTreeMap;

impl Validator {
    /// Who may train after this round: admitted, there, and on the right state.
    pub(super) fn candidates(&self, core: &Core, follow: &Follow, round: u64) -> impl Iterator<Item = PeerId> {
        let delay = u64::from(core.spec.delay);
        let exchange = self.exchanges.get(&round);
        let right = move |attest: &(u64, Hash)| {
            attest.0.saturating_add(1 + delay) >= round
                && follow.roots.get(&attest.0).is_some_and(|root| *root == attest.1)
        };
        let here = move |peer: &PeerId| {
            core.up.contains(peer) || *peer == core.me || exchange.is_some_and(|e| e.updates.contains_key(peer))
        };
        let list = self.members.iter().filter(move |(_, m)| m.admitted && m.attest.as_ref().is_some_and(right));
        list.map(|(p, _)| *p).filter(here)
    }

    /// The manifest that this validator puts forward.
    pub(super) fn manifest(&self, core: &Core, follow: &Follow) -> Option<Manifest> {
        let (spec, round) = (&core.spec, self.agree.round);
        let mut manifest = frame(core, follow, round)?;
        let mut faults = BTreeMap::new();
        if let Some(exchange) = self.exchanges.get(&round) {
            faults = exchange.faults.clone();
            let mut candidates = Vec::new();
            for (peer, update) in &exchange.updates {
                let holders = exchange.holders(peer);
                match &update.stage {
                    _ if faults.contains_key(peer) => {}
                    Stage::Bad(reason) => _ = faults.insert(*peer, *reason),
                    Stage::Sound(sound) if holders >= core.quorum() => {
                        let rating = self.members.get(peer).map_or(0, |m| m.rating);
                        candidates.push(Candidate { peer: *peer, sound, rating });
                    }
                    _ => _ = faults.insert(*peer, Reason::Withheld),
                }
            }
            let verdicts = judge(&spec.limits, spec.seed, round, &candidates, &self.last);
            faults.extend(verdicts.rejects);
            let entry = |peer: &PeerId| {
                let commit = &exchange.updates[peer].commit;
                let weight = weight(spec, &exchange.after.manifest, round, peer, commit.tokens);
                Entry { peer: *peer, blob: commit.blob, tokens: commit.tokens, weight }
            };
            manifest.entries = verdicts.count.iter().map(entry).collect();
        }
        manifest.rejects = faults.into_iter().map(|(peer, reason)| Reject { peer, reason }).collect();
        manifest.rejects.truncate(spec.limits.slots as usize);
        manifest.slots = self.slots(core, follow, &manifest);
        Some(manifest)
    }

    /// Who trains next: first those who did, then newcomers, in an order that nobody can choose.
    pub(super) fn slots(&self, core: &Core, follow: &Follow, manifest: &Manifest) -> Vec<Slot> {
        let before = follow.tip().map(|s| &s.manifest);
        let tie = |p: &PeerId| Hash::of_parts(&[&core.spec.seed.to_le_bytes(), &manifest.prev.0, &p.0]);
        let mut peers: Vec<PeerId> = self.candidates(core, follow, manifest.round).collect();
        let most = core.spec.limits.slots as usize;
        if peers.len() > most {
            peers.sort_by_cached_key(|p| (before.is_none_or(|m| m.slot(p).is_none()), tie(p)));
            peers.truncate(most);
            peers.sort_unstable();
        }
        let slot = |peer| Slot { peer, since: since(&core.spec, before, manifest, &peer) };
        peers.into_iter().map(slot).collect()
    }

    /// Whether this validator can sign a manifest; none while it still lacks what it needs to say.
    pub(super) fn sound(&self, core: &Core, follow: &Follow, m: &Manifest) -> Option<bool> {
        let spec = &core.spec;
        if m.round > 0 && !follow.roots.contains_key(&(m.round - 1)) {
            return None;
        }
        let frame = frame(core, follow, m.round)?;
        let same = (m.run, m.prev, m.prev_root, m.checkpoint)
            == (frame.run, frame.prev, frame.prev_root, frame.checkpoint)
            && (m.train_ms, m.collect_ms) == (frame.train_ms, frame.collect_ms);
        let before = follow.tip().map(|s| &s.manifest);
        let listed = |p: &PeerId| match &spec.admission {
            crate::Admission::Allow(peers) => peers.binary_search(p).is_ok(),
            crate::Admission::Invite(_) => self.members.get(p).is_some_and(|m| m.admitted),
            crate::Admission::Open => true,
        };
        let slots = m.slots.len() <= spec.limits.slots as usize
            && m.slots.iter().all(|s| listed(&s.peer) && s.since == since(spec, before, m, &s.peer));
        if !same || !slots || m.entries.len() > spec.limits.contributors as usize {
            return Some(false);
        }
        let Some(exchange) = self.exchanges.get(&m.round) else { return Some(m.entries.is_empty()) };
        let mut sounds = Vec::with_capacity(m.entries.len());
        for entry in &m.entries {
            // What is not known or not held yet may still come; the attempt's time ends the wait.
            let update = exchange.updates.get(&entry.peer)?;
            let weight = weight(spec, &exchange.after.manifest, m.round, &entry.peer, update.commit.tokens);
            let as_committed =
                (entry.blob, entry.tokens, entry.weight) == (update.commit.blob, update.commit.tokens, weight);
            if !as_committed || exchange.faults.contains_key(&entry.peer) {
                return Some(false);
            }
            match &update.stage {
                Stage::Sound(sound) => sounds.push((entry.peer, sound)),
                Stage::Bad(_) => return Some(false),
                _ => return None,
            }
        }
        Some(sound_list(&spec.limits, &sounds, &self.last))
    }
}

/// The parts of a round's manifest that follow from the chain.
fn frame(core: &Core, follow: &Follow, round: u64) -> Option<Manifest> {
    let (spec, tip) = (&core.spec, follow.tip().map(|s| &**s));
    let before = round.checked_sub(1);
    let prev_root = match before {
        None => spec.genesis,
        Some(before) => *follow.roots.get(&before)?,
    };
    let due = before.filter(|b| spec.checkpoint_due(*b));
    let checkpoint = match due {
        Some(round) => Some(Checkpoint { round, root: prev_root }),
        None => tip.and_then(|s| s.manifest.checkpoint),
    };
    Some(Manifest {
        run: core.run,
        round,
        prev: tip.map_or(Hash::NONE, |s| s.hash),
        prev_root,
        checkpoint,
        train_ms: spec.times.train_ms,
        collect_ms: spec.times.collect_ms,
        entries: Vec::new(),
        rejects: Vec::new(),
        slots: Vec::new(),
    })
}

/// The share of a whole round's tokens in units of 2^-16; 0 on probation.
fn weight(spec: &RunSpec, gives: &Manifest, round: u64, peer: &PeerId, tokens: u64) -> u32 {
    let since = gives.slot(peer).map_or(round, |(_, s)| s.since);
    if round < since.saturating_add(u64::from(spec.limits.probation_rounds)) {
        return 0;
    }
    (u128::from(tokens.min(spec.inner.tokens)) * 65536 / u128::from(spec.inner.tokens)) as u32
}

/// From when a peer's presence counts: unbroken, and without a fault of its own.
fn since(spec: &RunSpec, before: Option<&Manifest>, manifest: &Manifest, peer: &PeerId) -> u64 {
    let next = match manifest.round {
        0 => 1,
        round => round + 1 + u64::from(spec.delay),
    };
    let blameless = matches!(manifest.reject(peer), None | Some(Reason::Late | Reason::Reserve));
    match before.and_then(|m| m.slot(peer)) {
        Some((_, slot)) if blameless => slot.since,
        // Those of the beginning are nobody's newcomers.
        None if manifest.round == 0 => next.saturating_sub(u64::from(spec.limits.probation_rounds)),
        _ => next,
    }
}
