//! Following the chain of manifests: accept, fetch what is listed, fold, compare roots; and catching up.
//!
//! A process that lacks a listed update is late, not lost: it fetches it from anybody and folds then. One that is more
//! than `behind_rounds` behind asks for the newest manifest, takes the checkpoint named there and replays from it. One
//! whose root is not the one that a quorum attests mends its state leaf by leaf. A manifest's prev_root stands for the
//! state before it, so no wrong state lasts a round.

mod pull;

use super::core::Core;
use super::{Event, Order, Part, Record, Time, Urgency, Want, Whom};
use crate::wire::{Attest, Body, Msg, Sealed, Status};
use crate::{Hash, PeerId, RunSpec};
use pull::Claim;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Manifests kept that cannot be linked yet.
const AHEAD: usize = 64;
/// Peers named as sources of a state.
const SOURCES: usize = 8;

/// Rounds of which a validator's roots are kept.
const ATTESTS: usize = 8;

/// The follower's part of a process.
pub(super) struct Follow {
    /// Manifests without a gap, up to the newest.
    pub chain: BTreeMap<u64, Arc<Sealed>>,
    /// The round from which the chain goes on where it is empty: 0, or a checkpoint's.
    anchor: u64,
    /// When the newest manifest was received.
    pub received: Time,
    /// The round whose state is held, and its root.
    pub applied: u64,
    pub root: Hash,
    /// Roots of the rounds applied lately.
    pub roots: BTreeMap<u64, Hash>,
    pub held: BTreeSet<Hash>,
    /// Manifests as messages, made when somebody first pulls them.
    told: BTreeMap<u64, Msg>,
    ahead: BTreeMap<u64, Msg>,
    fetching: Option<(u64, Time)>,
    folding: Option<u64>,
    pub syncing: Option<(u64, Hash)>,
    /// A sync that failed is tried again at this time, elsewhere.
    resync: Option<Time>,
    /// Roots that validators attest, of the latest rounds.
    attests: BTreeMap<u64, BTreeMap<PeerId, Hash>>,
    claims: BTreeMap<PeerId, Claim>,
    pulled: Option<Time>,
    /// Whom the last pull asked, until it answers.
    asked: Option<PeerId>,
    /// The last pull brings manifests up to here.
    pull_end: u64,
    /// Turns of whom to ask.
    turn: usize,
    /// The newest statement of one's own state, for validators that come up.
    pub last_attest: Option<Msg>,
}

impl Follow {
    pub fn new(spec: &RunSpec, applied: (u64, Hash), chain: Vec<Arc<Sealed>>, now: Time) -> Follow {
        let mut whole: BTreeMap<u64, Arc<Sealed>> = BTreeMap::new();
        for sealed in chain {
            let round = sealed.manifest.round;
            if whole.last_key_value().is_some_and(|(r, s)| r + 1 != round || s.hash != sealed.manifest.prev) {
                whole.clear();
            }
            whole.insert(round, sealed);
        }
        // A chain that does not reach the state that is held cannot be gone on with.
        let first = whole.keys().next().copied().unwrap_or(0);
        if applied.0 + 1 < first || whole.last_key_value().is_some_and(|(r, _)| *r < applied.0) {
            whole.clear();
        }
        let anchor = applied.0.saturating_sub(u64::from(spec.delay));
        Follow {
            chain: whole,
            anchor,
            received: now,
            applied: applied.0,
            root: applied.1,
            roots: BTreeMap::from([applied]),
            held: BTreeSet::new(),
            told: BTreeMap::new(),
            ahead: BTreeMap::new(),
            fetching: None,
            folding: None,
            syncing: None,
            resync: None,
            attests: BTreeMap::new(),
            claims: BTreeMap::new(),
            pulled: None,
            asked: None,
            pull_end: 0,
            turn: 0,
            last_attest: None,
        }
    }

    /// The newest manifest.
    pub fn tip(&self) -> Option<&Arc<Sealed>> {
        self.chain.last_key_value().map(|(_, s)| s)
    }

    /// The round that is being decided.
    pub fn next(&self) -> u64 {
        self.chain.last_key_value().map_or(self.anchor, |(r, _)| r + 1)
    }

    /// Whether the state is the newest one.
    pub fn level(&self) -> bool {
        self.syncing.is_none() && self.chain.last_key_value().is_some_and(|(r, _)| *r == self.applied)
    }

    fn status(&self) -> Option<Status> {
        let tip = self.tip()?;
        Some(Status { round: tip.manifest.round, manifest: tip.hash, applied: self.applied })
    }

    pub fn up(&mut self, core: &mut Core, peer: PeerId, out: &mut Vec<Order>) {
        if let Some(status) = self.status() {
            core.send(peer, Body::Status(status), out);
        }
        if core.spec.is_validator(&peer)
            && let Some(msg) = &self.last_attest
        {
            out.push(Order::Send { to: peer, msg: msg.clone() });
        }
    }

    pub fn down(&mut self, peer: &PeerId) {
        self.claims.remove(peer);
    }

    /// A manifest that a quorum signed. Says whether it is the new tip.
    pub fn on_sealed(&mut self, core: &mut Core, now: Time, from: PeerId, msg: &Msg, out: &mut Vec<Order>) -> bool {
        let Body::Sealed(sealed) = msg.body() else { return false };
        let (round, next) = (sealed.manifest.round, self.next());
        if let Some(ours) = self.chain.get(&round) {
            if ours.hash != sealed.hash && !core.halted {
                core.halted = true;
                out.push(Order::Log(Event::Fork { round, ours: ours.hash, theirs: sealed.hash }));
            }
            return false;
        }
        if round < next {
            return false;
        }
        if self.asked == Some(from) {
            self.asked = None;
        }
        if let Some(claim) = self.claims.get_mut(&from) {
            claim.unmet = 0;
        }
        if round > next {
            self.ahead.insert(round, msg.clone());
            while self.ahead.len() > AHEAD {
                // The newest names the checkpoint; those that come soonest link first.
                let middle = *self.ahead.keys().nth(AHEAD / 2).expect("follow: more than half");
                self.ahead.remove(&middle);
            }
            if self.far(core, now, sealed, out) {
                self.pulled = None;
            }
            self.pull(core, now, from, true, out);
            return false;
        }
        if !self.link(core, now, sealed.clone(), out) {
            return false;
        }
        while let Some(msg) = self.ahead.remove(&self.next()) {
            let Body::Sealed(sealed) = msg.body() else { continue };
            if !self.link(core, now, sealed.clone(), out) {
                break;
            }
        }
        self.ahead = self.ahead.split_off(&self.next());
        if self.goal() >= self.next() {
            // A pull brings so many; the next are asked for when they are through.
            let at_end = self.next() >= self.pull_end;
            if at_end {
                self.pulled = None;
            }
            self.pull(core, now, from, at_end, out);
        } else {
            self.pulled = None;
        }
        true
    }

    /// Whether the checkpoint of a manifest far ahead is the way to go; begins with it.
    fn far(&mut self, core: &mut Core, now: Time, sealed: &Sealed, out: &mut Vec<Order>) -> bool {
        let behind = u64::from(core.spec.limits.behind_rounds);
        let Some(checkpoint) = sealed.manifest.checkpoint else { return false };
        if sealed.manifest.round <= self.applied + behind || checkpoint.round <= self.applied {
            return false;
        }
        if self.syncing.is_some_and(|(r, _)| r >= checkpoint.round) {
            return false;
        }
        self.chain.clear();
        self.anchor = checkpoint.round.saturating_sub(u64::from(core.spec.delay));
        self.ahead.retain(|r, _| *r >= checkpoint.round);
        self.sync(core, now, checkpoint.round, checkpoint.root, out);
        true
    }

    fn sync(&mut self, core: &mut Core, now: Time, round: u64, root: Hash, out: &mut Vec<Order>) {
        self.syncing = Some((round, root));
        self.resync = None;
        (self.folding, self.fetching) = (None, None);
        // First those whose state that is at this moment, then any: they may have a snapshot.
        let at = |p: &&PeerId| self.claims.get(p).is_some_and(|c| c.status.applied == round);
        let mut from: Vec<PeerId> = core.up.iter().filter(at).copied().collect();
        let others: Vec<PeerId> = core.up.iter().filter(|p| !at(p)).copied().collect();
        self.turn = self.turn.wrapping_add(1);
        let start = self.turn.wrapping_mul(SOURCES);
        if !from.is_empty() {
            let len = from.len();
            from.rotate_left(start % len);
        }
        from.truncate(SOURCES);
        if !others.is_empty() {
            let rest = others.len().min(SOURCES - from.len().min(SOURCES / 2));
            from.extend((0..rest).map(|i| others[(start + i) % others.len()]));
        }
        if from.is_empty() {
            self.resync = Some(now + core.spec.times.retry_ms);
            core.wake(now, now + core.spec.times.retry_ms, out);
            return;
        }
        out.push(Order::Sync { round, root, from });
    }

    fn link(&mut self, core: &mut Core, now: Time, sealed: Arc<Sealed>, out: &mut Vec<Order>) -> bool {
        let manifest = &sealed.manifest;
        if let Some(tip) = self.tip()
            && tip.hash != manifest.prev
        {
            if !core.halted {
                core.halted = true;
                out.push(Order::Log(Event::Fork { round: tip.manifest.round, ours: tip.hash, theirs: manifest.prev }));
            }
            return false;
        }
        out.push(Order::Persist(Record::Sealed(sealed.clone())));
        out.push(Order::Log(Event::Accepted {
            round: manifest.round,
            manifest: sealed.hash,
            entries: manifest.entries.len() as u32,
            rejects: manifest.rejects.len() as u32,
            slots: manifest.slots.len() as u32,
        }));
        self.received = now;
        self.chain.insert(manifest.round, sealed);
        core.round_over();
        true
    }

    pub fn on_attest(&mut self, core: &mut Core, now: Time, attest: &Attest, signer: PeerId, out: &mut Vec<Order>) {
        if !core.spec.is_validator(&signer) || attest.round.saturating_add(4) < self.applied {
            return;
        }
        self.attests.entry(attest.round).or_default().insert(signer, attest.root);
        // Each validator's oldest goes, never another's: a liar far ahead would push out all that count.
        let its = |said: &BTreeMap<PeerId, Hash>| said.contains_key(&signer);
        if self.attests.values().filter(|said| its(said)).count() > ATTESTS {
            let oldest = self.attests.iter_mut().find(|(_, said)| its(said));
            _ = oldest.expect("follow: just counted").1.remove(&signer);
            self.attests.retain(|_, said| !said.is_empty());
        }
        self.compare(core, now, out);
    }

    /// The root that a quorum attests for a round.
    fn majority(&self, core: &Core, round: u64) -> Option<Hash> {
        let attests = self.attests.get(&round)?;
        let same = |root: &Hash| attests.values().filter(|r| *r == root).count() >= core.quorum();
        attests.values().find(|r| same(r)).copied()
    }

    /// Holds one's root against what a quorum says of the same state.
    fn compare(&mut self, core: &mut Core, now: Time, out: &mut Vec<Order>) {
        if self.syncing.is_some() {
            return;
        }
        let said = self.chain.get(&(self.applied + 1)).map(|s| s.manifest.prev_root);
        let Some(theirs) = said.or_else(|| self.majority(core, self.applied)) else { return };
        if theirs == self.root {
            return;
        }
        out.push(Order::Log(Event::Mismatch { round: self.applied, own: self.root, theirs }));
        self.folding = None;
        // The newest state that is settled: others may have left the one that differs.
        let newest = self.attests.keys().rev().find_map(|r| Some((*r, self.majority(core, *r)?)));
        let (round, root) =
            newest.filter(|(r, _)| *r > self.applied && *r < self.next()).unwrap_or((self.applied, theirs));
        self.sync(core, now, round, root, out);
    }

    pub fn on_synced(&mut self, core: &mut Core, now: Time, round: u64, root: Hash, out: &mut Vec<Order>) {
        if self.syncing != Some((round, root)) {
            return;
        }
        self.syncing = None;
        out.push(Order::Log(Event::Synced { round, root }));
        self.stands(core, round, root, out);
        self.advance(core, now, out);
    }

    pub fn on_unsynced(&mut self, core: &mut Core, now: Time, round: u64, out: &mut Vec<Order>) {
        if self.syncing.is_some_and(|(r, _)| r == round) {
            self.resync = Some(now + core.spec.times.retry_ms);
            core.wake(now, now + core.spec.times.retry_ms, out);
        }
    }

    /// The state is that of `round` now.
    fn stands(&mut self, core: &mut Core, round: u64, root: Hash, out: &mut Vec<Order>) {
        (self.applied, self.root) = (round, root);
        self.roots.insert(round, root);
        while self.roots.len() > 4 {
            self.roots.pop_first();
        }
        // Whoever is catching up speaks when it is through: nobody can use an old state's root.
        if self.next() <= round + 1 {
            self.attest(core, out);
        }
    }

    /// Says which state is held.
    pub fn attest(&mut self, core: &mut Core, out: &mut Vec<Order>) {
        let manifest = self.chain.get(&self.applied).map_or(Hash::NONE, |s| s.hash);
        let to = if core.is_validator() { Whom::All } else { Whom::Validators };
        let attest = Attest { round: self.applied, manifest, root: self.root };
        self.last_attest = Some(core.flood(to, Body::Attest(attest), out));
    }

    pub fn on_folded(&mut self, core: &mut Core, now: Time, round: u64, root: Hash, out: &mut Vec<Order>) {
        if self.folding != Some(round) {
            return;
        }
        self.folding = None;
        out.push(Order::Log(Event::Applied { round, root }));
        self.stands(core, round, root, out);
        if core.spec.checkpoint_due(round) {
            out.push(Order::Snapshot { round, root });
        }
        self.forget(core, out);
        self.compare(core, now, out);
        self.advance(core, now, out);
    }

    /// Blobs and manifests older than two checkpoints go.
    fn forget(&mut self, core: &Core, out: &mut Vec<Order>) {
        let keep = 2 * u64::from(core.spec.limits.checkpoint_rounds) + 2;
        let first = self.applied.saturating_sub(keep);
        let kept = self.chain.split_off(&first);
        let gone = std::mem::replace(&mut self.chain, kept);
        self.told = self.told.split_off(&first);
        let blobs: Vec<Hash> = gone.values().flat_map(|s| s.manifest.entries.iter().map(|e| e.blob)).collect();
        for blob in &blobs {
            self.held.remove(blob);
        }
        if !blobs.is_empty() {
            out.push(Order::Forget { blobs });
        }
    }

    /// Lets go of updates that did not count, save those that a manifest at hand lists: several may have committed to one
    /// update, and what is a lie under one name counts under another.
    pub fn release(&mut self, mut blobs: Vec<Hash>, out: &mut Vec<Order>) {
        let listed = |blob: &Hash| self.chain.values().any(|s| s.manifest.entries.iter().any(|e| e.blob == *blob));
        blobs.retain(|blob| self.held.contains(blob) && !listed(blob));
        blobs.iter().for_each(|blob| _ = self.held.remove(blob));
        if !blobs.is_empty() {
            out.push(Order::Forget { blobs });
        }
    }

    /// Updates that the next state needs are not in the store any more: they are fetched again.
    pub fn on_missing(&mut self, core: &mut Core, now: Time, round: u64, blobs: &[Hash], out: &mut Vec<Order>) {
        if self.folding != Some(round) {
            return;
        }
        self.folding = None;
        blobs.iter().for_each(|blob| _ = self.held.remove(blob));
        self.advance(core, now, out);
    }

    pub fn on_held(&mut self, core: &mut Core, now: Time, blobs: &[Hash], out: &mut Vec<Order>) {
        self.held.extend(blobs);
        if self.fetching.is_some() {
            self.advance(core, now, out);
        }
    }

    /// Takes the next step towards the newest state.
    pub fn advance(&mut self, core: &mut Core, now: Time, out: &mut Vec<Order>) {
        if self.syncing.is_some() || self.folding.is_some() {
            return;
        }
        let round = self.applied + 1;
        let Some(sealed) = self.chain.get(&round).cloned() else { return };
        if sealed.manifest.prev_root != self.root {
            return self.compare(core, now, out);
        }
        let counts = sealed.manifest.entries.iter().filter(|e| e.weight > 0);
        let lacking = counts.clone().filter(|e| !self.held.contains(&e.blob));
        let wants: Vec<Want> =
            lacking.map(|e| Want { blob: e.blob, bytes: core.spec.blob_bytes, from: e.peer }).collect();
        if wants.is_empty() {
            self.fetching = None;
            self.folding = Some(round);
            let parts = counts.map(|e| Part { peer: e.peer, blob: e.blob, weight: e.weight }).collect();
            out.push(Order::Fold { round, parts });
            return;
        }
        let retry = core.spec.times.retry_ms;
        if self.fetching.is_none_or(|(r, at)| r != round || now >= at + retry) {
            self.fetching = Some((round, now));
            let newest = self.next() == round + 1;
            let urgency = if newest { Urgency::Listed } else { Urgency::CatchUp };
            out.push(Order::Fetch { wants, urgency });
        }
    }

    /// What time alone brings: asking again.
    pub fn poll(&mut self, core: &mut Core, now: Time, out: &mut Vec<Order>) {
        let retry = core.spec.times.retry_ms;
        if self.resync.is_some_and(|t| t <= now) {
            let (mut round, mut root) = self.syncing.expect("follow: a sync to try again");
            // A newer state that a quorum attests has more holders than one that is passing.
            let newest = self.attests.keys().rev().find_map(|r| Some((*r, self.majority(core, *r)?)));
            if let Some((r, newer)) = newest.filter(|(r, _)| *r > round && *r < self.next()) {
                (round, root) = (r, newer);
            } else if let Some(checkpoint) = self.tip().and_then(|s| s.manifest.checkpoint)
                && self.turn % 2 == 1
            {
                // Nobody stands there any more: the checkpoint is kept, and the way from it can be replayed.
                (round, root) = (checkpoint.round, checkpoint.root);
                if !self.chain.contains_key(&(round + 1)) {
                    self.chain.clear();
                    self.anchor = round.saturating_sub(u64::from(core.spec.delay));
                }
            }
            self.sync(core, now, round, root, out);
        }
        self.pull_again(core, now, out);
        if self.fetching.is_some_and(|(_, at)| now >= at + retry) {
            self.advance(core, now, out);
        }
        // An earlier wake may have stood in the way of these.
        let pulled = self.pulled.filter(|_| self.goal() >= self.next()).map(|at| at + retry);
        let fetching = self.fetching.map(|(_, at)| at + retry);
        if let Some(at) = [self.resync, pulled, fetching].into_iter().flatten().min() {
            core.wake(now, at, out);
        }
    }
}
