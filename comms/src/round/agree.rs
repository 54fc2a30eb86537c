//! How validators agree on one manifest a round, although some may be dead, slow or lying.
//!
//! ```text
//! attempt a   the proposer of (round, a) puts a manifest forward
//! ready       each validator says whether it is sound, or that nothing sound came in time
//! sign        on a quorum of ready: locks it and signs; a quorum of signatures of one attempt makes it final
//! a + 1       where neither came in time; who is locked stays with its manifest until a quorum is ready, in a later
//!             attempt, for another
//! ```
//!
//! With quorums above two thirds, two final manifests need more than a third of validators to sign twice in one
//! attempt, and such signatures are kept as proof. These are Tendermint's rules (Buchman, Kwon, Milosevic 2018,
//! arXiv:1807.04938, algorithm 1). A rule of one signature a round for ever would be simpler and would stop for ever
//! once a split vote and a dead validator meet.
//!
//! Every ballot is kept in the journal before it is sent: a validator that was killed says the same again.

use super::Time;
use crate::wire::{Ballot, Manifest, Msg, Phase};
use crate::{Hash, PeerId, RunSpec, Signature};
use std::collections::{BTreeMap, BTreeSet};

/// What the agreement asks of its owner.
#[derive(Debug)]
pub(super) enum Act {
    /// It is this validator's turn: make a manifest, or take this one again, ready since the attempt given.
    Propose { attempt: u32, again: Option<(u32, Manifest)> },
    /// Keep and send a ballot.
    Cast(Ballot),
    /// Keep what this validator is locked on, before its ballot.
    Lock { attempt: u32, manifest: Manifest },
    /// Final.
    Decide { attempt: u32, manifest: Manifest, votes: Vec<(PeerId, Signature)> },
    /// Two messages of one validator that exclude each other.
    Liar { signer: PeerId, first: Msg, second: Msg },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Propose,
    Ready,
    Sign,
}

/// What each validator said in one phase of one attempt: its first word counts.
type Ballots = BTreeMap<PeerId, (Option<Hash>, Msg)>;

/// The agreement on one round's manifest.
pub(super) struct Agree {
    pub round: u64,
    pub attempt: u32,
    step: Step,
    started: bool,
    decided: bool,
    /// When the present step gives up.
    timer: Option<Time>,
    /// Proposals by attempt.
    proposals: BTreeMap<u32, (Hash, Option<u32>, Msg)>,
    manifests: BTreeMap<Hash, Manifest>,
    ballots: BTreeMap<(u32, Phase), Ballots>,
    locked: Option<(u32, Hash)>,
    valid: Option<(u32, Hash)>,
    /// What this validator said, for ever.
    cast: BTreeMap<(u32, Phase), Option<Hash>>,
    /// Whose lies were told: one proof is enough, and anybody who has it could have it told without end.
    liars: BTreeSet<PeerId>,
}

/// Attempts further ahead than this are not kept: a liar may not fill memory.
const AHEAD: u32 = 64;

impl Agree {
    pub fn new(round: u64) -> Agree {
        Agree {
            round,
            attempt: 0,
            step: Step::Propose,
            started: false,
            decided: false,
            timer: None,
            proposals: BTreeMap::new(),
            manifests: BTreeMap::new(),
            ballots: BTreeMap::new(),
            locked: None,
            valid: None,
            cast: BTreeMap::new(),
            liars: BTreeSet::new(),
        }
    }

    /// Takes up a ballot that was cast before a restart.
    pub fn recall(&mut self, ballot: &Ballot) {
        self.cast.insert((ballot.attempt, ballot.phase), ballot.manifest);
        let step = match ballot.phase {
            Phase::Ready => Step::Ready,
            Phase::Sign => Step::Sign,
        };
        if !self.started || (ballot.attempt, step) > (self.attempt, self.step) {
            (self.attempt, self.step) = (ballot.attempt, step);
        }
        self.started = true;
    }

    /// Takes up the lock that was held before a restart.
    pub fn recall_lock(&mut self, attempt: u32, manifest: Manifest) {
        let hash = manifest.hash();
        self.manifests.insert(hash, manifest);
        if self.locked.is_none_or(|(a, _)| a < attempt) {
            self.locked = Some((attempt, hash));
            self.valid = Some((attempt, hash));
        }
    }

    pub fn started(&self) -> bool {
        self.started
    }

    /// Begins with attempt 0, or goes on with the attempt in which a restart found it.
    pub fn start(&mut self, now: Time, spec: &RunSpec, me: &PeerId, acts: &mut Vec<Act>) {
        if !self.started {
            self.enter(0, now, spec, me, acts);
        } else if self.timer.is_none() {
            self.timer = Some(now + self.patience(spec));
        }
    }

    /// Ballots and proposals of the present attempt, to be said again to who was away.
    pub fn mine(&self, me: &PeerId) -> Vec<Msg> {
        let proposal = self.proposals.get(&self.attempt).map(|(_, _, msg)| msg).filter(|m| m.signer() == Some(*me));
        let ballots = self.ballots.values().filter_map(|b| b.get(me)).map(|(_, msg)| msg);
        // All ballots count: a locked one of an early attempt may be what others lack.
        proposal.into_iter().chain(ballots).cloned().collect()
    }

    fn patience(&self, spec: &RunSpec) -> Time {
        spec.times.attempt_ms.saturating_mul(u64::from(self.attempt) + 1)
    }

    fn enter(&mut self, attempt: u32, now: Time, spec: &RunSpec, me: &PeerId, acts: &mut Vec<Act>) {
        self.started = true;
        (self.attempt, self.step) = (attempt, Step::Propose);
        self.timer = Some(now + self.patience(spec));
        if spec.proposer(self.round, attempt) == *me && !self.proposals.contains_key(&attempt) {
            let again = self.valid.map(|(a, hash)| (a, self.manifests[&hash].clone()));
            acts.push(Act::Propose { attempt, again });
        }
    }

    /// A proposal, whose signer is a validator.
    pub fn propose(&mut self, spec: &RunSpec, msg: &Msg, acts: &mut Vec<Act>) {
        let (crate::wire::Body::Propose(p), Some(signer)) = (msg.body(), msg.signer()) else { return };
        if p.manifest.round != self.round || p.attempt > self.attempt.saturating_add(AHEAD) {
            return;
        }
        if spec.proposer(self.round, p.attempt) != signer || p.ready.is_some_and(|r| r >= p.attempt) {
            return;
        }
        let hash = p.manifest.hash();
        match self.proposals.get(&p.attempt) {
            None => {
                self.manifests.insert(hash, p.manifest.clone());
                self.proposals.insert(p.attempt, (hash, p.ready, msg.clone()));
            }
            Some((known, ready, first)) if (*known, *ready) != (hash, p.ready) && self.liars.insert(signer) => {
                acts.push(Act::Liar { signer, first: first.clone(), second: msg.clone() });
            }
            Some(_) => {}
        }
    }

    /// A ballot, whose signer is a validator.
    pub fn ballot(&mut self, msg: &Msg, acts: &mut Vec<Act>) {
        let (crate::wire::Body::Ballot(b), Some(signer)) = (msg.body(), msg.signer()) else { return };
        if b.round != self.round || b.attempt > self.attempt.saturating_add(AHEAD) {
            return;
        }
        let known = self.ballots.entry((b.attempt, b.phase)).or_default();
        match known.get(&signer) {
            None => _ = known.insert(signer, (b.manifest, msg.clone())),
            Some((manifest, first)) if *manifest != b.manifest && self.liars.insert(signer) => {
                acts.push(Act::Liar { signer, first: first.clone(), second: msg.clone() });
            }
            Some(_) => {}
        }
    }

    fn votes(&self, attempt: u32, phase: Phase, hash: Option<Hash>) -> usize {
        self.ballots.get(&(attempt, phase)).map_or(0, |b| b.values().filter(|(h, _)| *h == hash).count())
    }

    fn any(&self, attempt: u32, phase: Phase) -> usize {
        self.ballots.get(&(attempt, phase)).map_or(0, BTreeMap::len)
    }

    fn cast(&mut self, phase: Phase, manifest: Option<Hash>, now: Time, spec: &RunSpec, acts: &mut Vec<Act>) {
        self.step = if phase == Phase::Ready { Step::Ready } else { Step::Sign };
        self.timer = Some(now + self.patience(spec));
        // What was said before a restart stands.
        let manifest = *self.cast.entry((self.attempt, phase)).or_insert(manifest);
        acts.push(Act::Cast(Ballot { round: self.round, attempt: self.attempt, phase, manifest }));
    }

    /// Applies the rules until none applies. `sound` says whether a manifest can be signed, none while that is not known.
    pub fn advance(
        &mut self,
        now: Time,
        spec: &RunSpec,
        me: &PeerId,
        sound: &mut dyn FnMut(&Manifest) -> Option<bool>,
        acts: &mut Vec<Act>,
    ) {
        if self.decide(spec, acts) || !self.started {
            return;
        }
        self.skip(now, spec, me, acts);
        let quorum = usize::from(spec.quorum);
        if self.step == Step::Propose {
            self.answer(now, spec, quorum, sound, acts);
        }
        if self.step == Step::Ready {
            self.sign(now, spec, quorum, acts);
        }
        if self.step == Step::Sign {
            self.learn(quorum);
        }
        if self.timer.is_some_and(|t| t <= now) || self.step == Step::Sign && self.hopeless(Phase::Sign, spec, quorum) {
            self.give_up(now, spec, me, quorum, acts);
        }
    }

    fn decide(&mut self, spec: &RunSpec, acts: &mut Vec<Act>) -> bool {
        if self.decided {
            return true;
        }
        for (attempt, phase) in self.ballots.keys().copied().collect::<Vec<_>>() {
            if phase != Phase::Sign {
                continue;
            }
            let ballots = &self.ballots[&(attempt, phase)];
            for (hash, _) in ballots.values() {
                let Some(hash) = hash else { continue };
                let Some(manifest) = self.manifests.get(hash) else { continue };
                let signed: Vec<(PeerId, Signature)> = ballots
                    .iter()
                    .filter(|(_, (h, _))| h == &Some(*hash))
                    .filter_map(|(v, (_, msg))| Some((*v, msg.signature()?)))
                    .collect();
                if signed.len() >= usize::from(spec.quorum) {
                    self.decided = true;
                    acts.push(Act::Decide { attempt, manifest: manifest.clone(), votes: signed });
                    return true;
                }
            }
        }
        false
    }

    /// Goes to a later attempt in which more validators are than can be liars.
    fn skip(&mut self, now: Time, spec: &RunSpec, me: &PeerId, acts: &mut Vec<Act>) {
        let liars = spec.validators.len() - usize::from(spec.quorum);
        let later = self.ballots.keys().map(|(a, _)| *a).filter(|a| *a > self.attempt).max();
        if let Some(later) = later {
            let mut there: Vec<PeerId> =
                self.ballots.iter().filter(|((a, _), _)| *a >= later).flat_map(|(_, b)| b.keys().copied()).collect();
            there.sort_unstable();
            there.dedup();
            if there.len() > liars {
                self.enter(later, now, spec, me, acts);
            }
        }
    }

    /// The first step: says whether the proposal is sound.
    fn answer(
        &mut self,
        now: Time,
        spec: &RunSpec,
        quorum: usize,
        sound: &mut dyn FnMut(&Manifest) -> Option<bool>,
        acts: &mut Vec<Act>,
    ) {
        let Some((hash, ready, _)) = self.proposals.get(&self.attempt) else { return };
        let (hash, ready) = (*hash, *ready);
        let free = match (self.locked, ready) {
            (None, None) => true,
            (Some((_, locked)), None) => locked == hash,
            (locked, Some(ready)) => {
                if self.votes(ready, Phase::Ready, Some(hash)) < quorum {
                    return;
                }
                locked.is_none_or(|(at, locked)| at <= ready || locked == hash)
            }
        };
        let verdict = match free {
            true => sound(&self.manifests[&hash]),
            false => Some(false),
        };
        if let Some(verdict) = verdict {
            self.cast(Phase::Ready, verdict.then_some(hash), now, spec, acts);
        }
    }

    /// The second step: signs what a quorum is ready for.
    fn sign(&mut self, now: Time, spec: &RunSpec, quorum: usize, acts: &mut Vec<Act>) {
        if let Some((hash, ..)) = self.proposals.get(&self.attempt).cloned()
            && self.votes(self.attempt, Phase::Ready, Some(hash)) >= quorum
        {
            self.locked = Some((self.attempt, hash));
            self.valid = Some((self.attempt, hash));
            acts.push(Act::Lock { attempt: self.attempt, manifest: self.manifests[&hash].clone() });
            self.cast(Phase::Sign, Some(hash), now, spec, acts);
        } else if self.votes(self.attempt, Phase::Ready, None) >= quorum || self.hopeless(Phase::Ready, spec, quorum) {
            self.cast(Phase::Sign, None, now, spec, acts);
        }
    }

    /// Whether a quorum has spoken, and no manifest can come to one any more, whatever the others say: no time can help.
    fn hopeless(&self, phase: Phase, spec: &RunSpec, quorum: usize) -> bool {
        let Some(ballots) = self.ballots.get(&(self.attempt, phase)) else { return false };
        let silent = spec.validators.len() - ballots.len();
        let most = ballots.values().filter_map(|(h, _)| *h).map(|h| self.votes(self.attempt, phase, Some(h))).max();
        ballots.len() >= quorum && most.unwrap_or(0) + silent < quorum
    }

    /// A quorum that became ready after this validator signed nothing: what to propose next.
    fn learn(&mut self, quorum: usize) {
        if let Some((hash, ..)) = self.proposals.get(&self.attempt)
            && self.valid.is_none_or(|(a, _)| a < self.attempt)
            && self.votes(self.attempt, Phase::Ready, Some(*hash)) >= quorum
        {
            self.valid = Some((self.attempt, *hash));
        }
    }

    /// The step's time is over. The later two wait for a quorum's ballots first: without one there is nothing to end.
    fn give_up(&mut self, now: Time, spec: &RunSpec, me: &PeerId, quorum: usize, acts: &mut Vec<Act>) {
        match self.step {
            Step::Propose => self.cast(Phase::Ready, None, now, spec, acts),
            Step::Ready if self.any(self.attempt, Phase::Ready) >= quorum => {
                self.cast(Phase::Sign, None, now, spec, acts);
            }
            Step::Sign if self.any(self.attempt, Phase::Sign) >= quorum => {
                self.enter(self.attempt + 1, now, spec, me, acts);
            }
            _ => self.timer = Some(now + spec.times.retry_ms),
        }
    }

    /// When the present step gives up.
    pub fn timer(&self) -> Option<Time> {
        self.timer.filter(|_| !self.decided)
    }
}

#[cfg(test)]
mod tests;
