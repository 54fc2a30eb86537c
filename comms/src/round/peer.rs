//! Taking part as one who trains: join, train, commit, reveal.
//!
//! An update of round t is made from the state after round t - 1 - delay (or a newer one), in the slot that the manifest
//! of that round gives. Its commit is kept before it is sent, so a restart cannot commit to another. The update itself
//! stays back until a quorum of validators has closed the round to commits: then nobody can copy it in time.

use super::core::Core;
use super::follow::Follow;
use super::{Event, Order, Record, Time, Whom};
use crate::wire::{Body, Close, Commit, Join, Message, Msg, Reveal, Sealed};
use crate::{Hash, PROTOCOL, PeerId, Protocol, Signature};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One's own update, from its commit to the manifest that settles it.
struct Mine {
    msg: Msg,
    blob: Hash,
    closed_by: BTreeSet<PeerId>,
    revealed: bool,
    /// When it was last said.
    said: Time,
}

impl Mine {
    fn new(msg: Msg, blob: Hash, now: Time) -> Mine {
        Mine { msg, blob, closed_by: BTreeSet::new(), revealed: false, said: now }
    }
}

/// A commit is said again after so many times `retry_ms`, to validators that were away and have not closed.
const PATIENCE: Time = 4;

/// The trainer's part of a process.
pub(super) struct Peer {
    join: Join,
    joined: Option<Msg>,
    training: Option<u64>,
    /// The last round trained in or given up.
    last: u64,
    mine: BTreeMap<u64, Mine>,
}

impl Peer {
    pub fn new(token: Option<Signature>) -> Peer {
        let join = Join { protocol: Protocol { min: PROTOCOL, max: PROTOCOL }, token };
        Peer { join, joined: None, training: None, last: 0, mine: BTreeMap::new() }
    }

    /// Takes up a commit that was made before a restart.
    pub fn recall(&mut self, msg: Msg, now: Time) {
        if let Body::Commit(commit) = msg.body() {
            self.last = self.last.max(commit.round);
            self.mine.insert(commit.round, Mine::new(msg.clone(), commit.blob, now));
        }
    }

    pub fn start(&mut self, core: &mut Core, follow: &mut Follow, out: &mut Vec<Order>) {
        let next = follow.next();
        self.mine.retain(|round, _| *round >= next);
        follow.held.extend(self.mine.values().map(|m| m.blob));
        let joined = core.flood(Whom::Validators, Body::Join(self.join.clone()), out);
        self.joined = Some(joined);
        for mine in self.mine.values() {
            core.again(Whom::Validators, mine.msg.clone(), out);
        }
    }

    /// A validator came up: it is told what it may have missed.
    pub fn up(&mut self, core: &mut Core, peer: PeerId, out: &mut Vec<Order>) {
        if !core.spec.is_validator(&peer) {
            return;
        }
        out.extend(self.joined.iter().map(|msg| Order::Send { to: peer, msg: msg.clone() }));
        for (round, mine) in &self.mine {
            out.push(Order::Send { to: peer, msg: mine.msg.clone() });
            if mine.revealed {
                core.send(peer, Body::Reveal(Reveal { round: *round, blob: mine.blob }), out);
            }
        }
    }

    /// The manifest that gives the slots of `round`.
    pub fn gives(follow: &Follow, delay: u8, round: u64) -> Option<&Arc<Sealed>> {
        follow.chain.get(&round.saturating_sub(1 + u64::from(delay)))
    }

    /// Begins to train where there is a slot and a state to begin with.
    pub fn poll(&mut self, core: &mut Core, follow: &Follow, now: Time, out: &mut Vec<Order>) {
        let (all, patience) = (core.spec.validators.len(), PATIENCE * core.spec.times.retry_ms);
        for mine in self.mine.values_mut().filter(|m| m.closed_by.len() < all) {
            if now >= mine.said + patience {
                mine.said = now;
                core.again(Whom::Validators, mine.msg.clone(), out);
            }
            core.wake(now, mine.said + patience, out);
        }
        if self.training.is_some() || follow.syncing.is_some() || core.halted {
            return;
        }
        let delay = core.spec.delay;
        let last = (follow.applied + 1 + u64::from(delay)).min(core.spec.limits.rounds);
        for round in follow.next().max(self.last + 1).max(1)..=last {
            let Some(gives) = Peer::gives(follow, delay, round) else { continue };
            let Some((slot, _)) = gives.manifest.slot(&core.me) else { continue };
            let train_ms = follow.tip().map_or(0, |s| s.manifest.train_ms);
            let from = if round == follow.next() && delay == 0 { follow.received } else { now };
            self.training = Some(round);
            out.push(Order::Train {
                round,
                slot,
                slots: core.spec.limits.slots,
                base: follow.applied,
                base_root: follow.root,
                deadline: from + train_ms,
            });
            return;
        }
    }

    pub fn on_trained(
        &mut self,
        core: &mut Core,
        follow: &mut Follow,
        now: Time,
        commit: Commit,
        out: &mut Vec<Order>,
    ) {
        if self.training != Some(commit.round) {
            return;
        }
        self.training = None;
        self.last = commit.round;
        let Some(gives) = Peer::gives(follow, core.spec.delay, commit.round).cloned() else { return };
        let (round, blob) = (commit.round, commit.blob);
        follow.held.insert(blob);
        let msg = Message::new(&core.key, &core.run, Body::Commit(Commit { after: gives.hash, ..commit }));
        out.push(Order::Persist(Record::Commit(msg.bytes().to_vec())));
        core.again(Whom::Validators, msg.clone(), out);
        self.mine.insert(round, Mine::new(msg, blob, now));
    }

    pub fn on_close(&mut self, core: &mut Core, close: &Close, signer: PeerId, out: &mut Vec<Order>) {
        let quorum = core.quorum();
        let Some(mine) = self.mine.get_mut(&close.round) else { return };
        let after = |msg: &Msg| matches!(msg.body(), Body::Commit(c) if c.after == close.after);
        if !after(&mine.msg) {
            return;
        }
        mine.closed_by.insert(signer);
        if mine.closed_by.len() >= quorum && !mine.revealed {
            mine.revealed = true;
            let blob = mine.blob;
            out.push(Order::Serve { blob });
            core.flood(Whom::Validators, Body::Reveal(Reveal { round: close.round, blob }), out);
        }
    }

    /// A manifest was accepted: what became of one's own update, and of the training under way.
    pub fn on_tip(&mut self, core: &Core, follow: &mut Follow, sealed: &Sealed, out: &mut Vec<Order>) {
        let round = sealed.manifest.round;
        if let Some(training) = self.training.filter(|t| *t <= round) {
            self.training = None;
            self.last = training;
            out.push(Order::Stop { round: training });
        }
        let later = self.mine.split_off(&(round + 1));
        let settled = std::mem::replace(&mut self.mine, later);
        if let Some(mine) = settled.get(&round) {
            let counts = sealed.manifest.entries.iter().any(|e| e.peer == core.me && e.blob == mine.blob);
            out.push(Order::Log(match counts {
                true => Event::Counted { round },
                false => Event::TurnedAway { round, reason: sealed.manifest.reject(&core.me) },
            }));
            if !counts {
                follow.release(vec![mine.blob], out);
            }
        }
    }
}
