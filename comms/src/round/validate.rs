//! A validator's part: take commits, close, collect, check, tell the others, put a manifest forward, sign.
//!
//! ```text
//! open     commits of slot holders come in; each is passed on to the other validators once
//! closed   all who are connected have committed, or the deadline and its grace are over; no commit counts from here
//! collect  revealed updates are fetched and checked; Have says which are held and sound
//! agree    who has the turn lists what a quorum holds; see agree and draft
//! ```

mod decide;
mod draft;
mod exchange;

use super::admit::Admit;
use super::agree::Agree;
use super::core::Core;
use super::follow::Follow;
use super::judge::{Last, Sound};
use super::peer::Peer;
use super::{Event, Order, Record, Time, Whom};
use crate::wire::{Attest, Body, Close, Commit, Have, Join, Msg, Reason, Refuse, Sealed};
use crate::{Hash, PeerId};
use decide::liars;
use exchange::{Exchange, Stage, Update, bit};
use std::collections::BTreeMap;

/// What is known of a peer.
#[derive(Default)]
struct Member {
    admitted: bool,
    attest: Option<(u64, Hash)>,
    rating: i64,
}

/// The validator's part of a process.
pub(super) struct Validator {
    rule: Box<dyn Admit>,
    members: BTreeMap<PeerId, Member>,
    exchanges: BTreeMap<u64, Exchange>,
    agree: Agree,
    last: Last,
    /// From when on this process knows a round's beginning: after a restart, those who were connected before it have had
    /// the time to come back.
    settled: Time,
    /// When round 0 had enough peers.
    gathered: Option<Time>,
    last_closed: Time,
    repeat: Time,
}

/// Members kept; those without a connection go first, though never this process itself.
const MEMBERS_MAX: usize = 1 << 15;

impl Validator {
    pub fn new(rule: Box<dyn Admit>, now: Time) -> Validator {
        Validator {
            rule,
            members: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            agree: Agree::new(0),
            last: Last::default(),
            settled: now,
            gathered: None,
            last_closed: 0,
            repeat: now,
        }
    }

    /// Begins with the round that the chain leaves open, and what was said in it before a restart.
    pub fn start(&mut self, core: &Core, follow: &Follow, records: &[Record], now: Time) {
        self.settled = now + core.spec.times.grace_ms.max(2 * core.spec.times.retry_ms);
        self.agree = Agree::new(follow.next());
        let round = self.agree.round;
        for record in records {
            match record {
                Record::Ballot(ballot) if ballot.round == round => {
                    self.agree.recall(ballot);
                    let msg = crate::wire::Message::new(&core.key, &core.run, Body::Ballot(ballot.clone()));
                    self.agree.ballot(&msg, &mut Vec::new());
                }
                Record::Lock(attempt, manifest) if manifest.round == round => {
                    self.agree.recall_lock(*attempt, (**manifest).clone());
                }
                Record::Propose(bytes) => {
                    if let Ok(msg) = crate::wire::Message::open(&core.spec, &core.run, bytes.clone()) {
                        self.agree.propose(&core.spec, &msg, &mut Vec::new());
                    }
                }
                _ => {}
            }
        }
        if self.agree.started() {
            self.agree.start(now, &core.spec, &core.me, &mut Vec::new());
        }
    }

    pub fn rate(&mut self, peer: PeerId, rating: i64) {
        self.members.entry(peer).or_default().rating = rating;
    }

    pub fn on_join(&mut self, core: &mut Core, from: PeerId, msg: &Msg, join: &Join, out: &mut Vec<Order>) {
        let Some(peer) = msg.signer() else { return };
        let round = self.agree.round;
        if let Err(reason) = self.rule.admit(&core.spec, &core.run, &peer, join) {
            if from == peer && peer != core.me {
                core.send(peer, Body::Refuse(Refuse { round, peer, reason }), out);
            }
            return;
        }
        let member = self.member(core, peer);
        if !member.admitted && from == peer && peer != core.me {
            out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
        }
        member.admitted = true;
    }

    fn member(&mut self, core: &Core, peer: PeerId) -> &mut Member {
        if self.members.len() >= MEMBERS_MAX {
            self.members.retain(|p, _| core.up.contains(p) || *p == core.me);
        }
        self.members.entry(peer).or_default()
    }

    /// May come before the wish to take part.
    pub fn on_attest(&mut self, core: &Core, attest: &Attest, signer: PeerId) {
        let member = self.member(core, signer);
        if member.attest.is_none_or(|(round, _)| round <= attest.round) {
            member.attest = Some((attest.round, attest.root));
        }
    }

    pub fn up(&mut self, core: &mut Core, follow: &Follow, peer: PeerId, out: &mut Vec<Order>) {
        for exchange in self.exchanges.values_mut() {
            let holds = exchange.after.manifest.slot(&peer).is_some();
            if exchange.closed.is_none() && holds && !exchange.updates.contains_key(&peer) {
                exchange.awaited.insert(peer);
            }
            let said = exchange.close_msg.iter().chain(exchange.said.as_ref().map(|(_, msg)| msg));
            if holds || core.spec.is_validator(&peer) {
                out.extend(said.map(|msg| Order::Send { to: peer, msg: msg.clone() }));
            }
            if core.spec.is_validator(&peer) {
                // It may have been away, and the authors may be gone.
                let commits = exchange.updates.values().map(|update| update.msg.clone());
                out.extend(commits.map(|msg| Order::Send { to: peer, msg }));
            }
        }
        if core.spec.is_validator(&peer) && follow.next() == self.agree.round {
            out.extend(self.agree.mine(&core.me).into_iter().map(|msg| Order::Send { to: peer, msg }));
        }
    }

    pub fn down(&mut self, peer: &PeerId) {
        for exchange in self.exchanges.values_mut() {
            exchange.awaited.remove(peer);
            if exchange.updates.get(peer).is_some_and(|u| matches!(u.stage, Stage::Hidden | Stage::Fetching)) {
                exchange.open.remove(peer);
            }
        }
    }

    /// The exchange of `round`, once the manifest that gives its slots is known.
    fn exchange<'a>(
        exchanges: &'a mut BTreeMap<u64, Exchange>,
        core: &Core,
        follow: &Follow,
        round: u64,
    ) -> Option<&'a mut Exchange> {
        if round == 0 || !(follow.next()..=follow.next() + u64::from(core.spec.delay)).contains(&round) {
            return None;
        }
        if let std::collections::btree_map::Entry::Vacant(place) = exchanges.entry(round) {
            let after = Peer::gives(follow, core.spec.delay, round)?.clone();
            let here = |p: &PeerId| core.up.contains(p) || *p == core.me;
            let awaited = after.manifest.slots.iter().map(|s| s.peer).filter(here).collect();
            place.insert(Exchange::new(round, after, awaited));
        }
        exchanges.get_mut(&round)
    }

    pub fn on_commit(
        &mut self,
        core: &mut Core,
        follow: &Follow,
        from: PeerId,
        msg: &Msg,
        commit: &Commit,
        out: &mut Vec<Order>,
    ) {
        let Some(peer) = msg.signer() else { return };
        // Who was away when the round began cannot call a commit late; those who were there do, and where none was, copies
        // are still found by their picks.
        let judges = follow.received >= self.settled;
        let Some(exchange) = Validator::exchange(&mut self.exchanges, core, follow, commit.round) else { return };
        if exchange.after.hash != commit.after || exchange.after.manifest.slot(&peer).is_none() {
            return;
        }
        match exchange.updates.get(&peer) {
            Some(known) if known.commit == *commit => return,
            Some(known) => {
                if exchange.faults.insert(peer, Reason::Equivocation).is_none() {
                    let (first, second) = (known.msg.bytes().to_vec(), msg.bytes().to_vec());
                    out.push(Order::Log(Event::Equivocation { signer: peer, first, second }));
                    // The others need both to see it.
                    out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
                }
                exchange.open.remove(&peer);
                return;
            }
            None => {}
        }
        let fault = if exchange.closed.is_some() && judges {
            Some(Reason::Late)
        } else if commit.bytes != core.spec.blob_bytes {
            Some(Reason::Malformed)
        } else if commit.tokens > core.spec.inner.tokens || commit.steps > core.spec.inner.steps {
            Some(Reason::Tokens)
        } else {
            None
        };
        exchange.awaited.remove(&peer);
        if let Some(reason) = fault {
            exchange.faults.insert(peer, reason);
            let round = commit.round;
            if from == peer {
                core.send(peer, Body::Refuse(Refuse { round, peer, reason }), out);
            }
            return;
        }
        let stage = if follow.held.contains(&commit.blob) { Stage::Held } else { Stage::Hidden };
        if matches!(stage, Stage::Held) {
            exchange.to_check.push(peer);
        }
        exchange.open.insert(peer);
        exchange.blobs.entry(commit.blob).or_default().push(peer);
        exchange.updates.insert(peer, Update { commit: commit.clone(), msg: msg.clone(), stage });
        if from == peer {
            out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
        }
    }

    /// Another validator closed. Where more have than can be liars, this one does not wait for its own deadline long:
    /// it may have been away when the round began.
    pub fn on_close(&mut self, core: &Core, follow: &Follow, now: Time, close: &Close, signer: PeerId) {
        let Some(exchange) = Validator::exchange(&mut self.exchanges, core, follow, close.round) else { return };
        if exchange.after.hash == close.after && signer != core.me {
            exchange.others.insert(signer);
            if exchange.others.len() > core.spec.validators.len() - core.quorum() {
                exchange.others_closed.get_or_insert(now);
            }
        }
    }

    /// The author says that its update may be had.
    pub fn on_reveal(&mut self, core: &Core, round: u64, blob: Hash, out: &mut Vec<Order>) {
        let Some(exchange) = self.exchanges.get_mut(&round) else { return };
        let Some(peers) = exchange.blobs.get(&blob) else { return };
        let which: Vec<(PeerId, PeerId)> = peers.iter().map(|p| (*p, *p)).collect();
        exchange.fetch(core, &which, out);
    }

    pub fn on_have(&mut self, core: &Core, have: &Have, signer: PeerId, out: &mut Vec<Order>) {
        let Some(exchange) = self.exchanges.get_mut(&have.round) else { return };
        if exchange.after.hash != have.after {
            return;
        }
        // Another validator has what its author did not give to this one.
        let hidden = exchange.updates.iter().filter(|(_, u)| matches!(u.stage, Stage::Hidden | Stage::Fetching));
        let slots = &exchange.after.manifest;
        let there = |p: &PeerId| slots.slot(p).is_some_and(|(slot, _)| bit(&have.slots, slot));
        let lacking: Vec<PeerId> = hidden.map(|(p, _)| *p).filter(|p| there(p)).collect();
        for peer in &lacking {
            exchange.open.insert(*peer);
            exchange.updates.get_mut(peer).expect("validate: a known update").stage = Stage::Hidden;
        }
        exchange.haves.insert(signer, have.clone());
        if !lacking.is_empty() && signer != core.me {
            let ask: Vec<(PeerId, PeerId)> = lacking.into_iter().map(|p| (p, signer)).collect();
            exchange.fetch(core, &ask, out);
        }
    }

    pub fn on_held(&mut self, blobs: &[Hash]) {
        for exchange in self.exchanges.values_mut() {
            for peer in blobs.iter().filter_map(|b| exchange.blobs.get(b)).flatten() {
                let update = exchange.updates.get_mut(peer).expect("validate: a known update");
                if matches!(update.stage, Stage::Hidden | Stage::Fetching) {
                    update.stage = Stage::Held;
                    exchange.open.insert(*peer);
                    exchange.to_check.push(*peer);
                }
            }
        }
    }

    pub fn on_lacking(&mut self, blobs: &[Hash]) {
        for exchange in self.exchanges.values_mut() {
            for peer in blobs.iter().filter_map(|b| exchange.blobs.get(b)).flatten() {
                let update = exchange.updates.get_mut(peer).expect("validate: a known update");
                if matches!(update.stage, Stage::Fetching) {
                    update.stage = Stage::Hidden;
                }
            }
        }
    }

    pub fn on_checked(&mut self, blob: Hash, peer: PeerId, verdict: Result<Sound, Reason>) {
        for exchange in self.exchanges.values_mut() {
            let Some(update) = exchange.updates.get_mut(&peer).filter(|u| u.commit.blob == blob) else { continue };
            update.stage = match verdict.clone() {
                Ok(sound) if sound.norm.is_finite() => Stage::Sound(sound),
                Ok(_) => Stage::Bad(Reason::NotFinite),
                Err(reason) => Stage::Bad(reason),
            };
            exchange.open.remove(&peer);
        }
    }

    pub fn on_propose(&mut self, core: &Core, msg: &Msg, out: &mut Vec<Order>) {
        let mut acts = Vec::new();
        self.agree.propose(&core.spec, msg, &mut acts);
        liars(&acts, out);
    }

    pub fn on_ballot(&mut self, msg: &Msg, out: &mut Vec<Order>) {
        let mut acts = Vec::new();
        self.agree.ballot(msg, &mut acts);
        liars(&acts, out);
    }

    /// A manifest was accepted: its exchange is over, and the next round's agreement begins.
    pub fn on_tip(&mut self, core: &Core, follow: &mut Follow, sealed: &Sealed, out: &mut Vec<Order>) {
        let round = sealed.manifest.round;
        if round == 0 && self.gathered.is_some() {
            // Here from the run's beginning.
            self.settled = 0;
        }
        let later = self.exchanges.split_off(&(round + 1));
        let over = std::mem::replace(&mut self.exchanges, later);
        if let Some(mut exchange) = over.into_iter().find(|(r, _)| *r == round).map(|(_, e)| e) {
            self.last_closed = exchange.closed.unwrap_or(follow.received);
            let mut counted = Vec::with_capacity(sealed.manifest.entries.len());
            for entry in &sealed.manifest.entries {
                if let Some(Update { stage: Stage::Sound(sound), .. }) = exchange.updates.remove(&entry.peer) {
                    counted.push((entry.peer, sound));
                }
            }
            // A restart leaves it short, never wrong.
            self.last.add(round, counted);
            follow.release(exchange.updates.values().map(|u| u.commit.blob).collect(), out);
        }
        self.agree = Agree::new(follow.next());
        let newest = &follow.tip().expect("validate: a tip").manifest;
        for slot in &newest.slots {
            // The chain speaks for whom this validator has not met.
            self.members.entry(slot.peer).or_default().admitted = true;
        }
        self.repeat = follow.received + core.spec.times.retry_ms;
    }

    /// Everything that time and what came together allow.
    pub fn poll(&mut self, core: &mut Core, follow: &mut Follow, now: Time, out: &mut Vec<Order>) -> Option<Msg> {
        if core.halted || self.agree.round != follow.next() || self.agree.round > core.spec.limits.rounds {
            return None;
        }
        let round = self.agree.round;
        let ready = if round == 0 { self.gather(core, follow, now, out) } else { self.collect(core, follow, now, out) };
        let mut acts = Vec::new();
        if ready {
            self.agree.start(now, &core.spec, &core.me, &mut acts);
        }
        let sealed = self.agreement(core, follow, now, acts, out);
        if now >= self.repeat && sealed.is_none() {
            self.repeat = now + core.spec.times.retry_ms;
            out.extend(self.agree.mine(&core.me).into_iter().map(|msg| Order::Flood { to: Whom::Validators, msg }));
            if let Some(exchange) = self.exchanges.get(&round) {
                let said = exchange.said.iter().map(|(_, msg)| msg.clone());
                out.extend(said.map(|msg| Order::Flood { to: Whom::Validators, msg }));
            }
        }
        if self.agree.started() {
            core.wake(now, self.agree.timer().unwrap_or(self.repeat).min(self.repeat), out);
        }
        sealed
    }

    /// Round 0: until enough peers are there, and a little longer.
    fn gather(&mut self, core: &mut Core, follow: &Follow, now: Time, out: &mut Vec<Order>) -> bool {
        // Asked after every message: no further than needed.
        let least = core.spec.limits.peers_min as usize;
        if self.candidates(core, follow, 0).take(least).count() < least {
            self.gathered = None;
            return self.agree.started();
        }
        let at = *self.gathered.get_or_insert(now) + core.spec.times.retry_ms;
        core.wake(now, at, out);
        now >= at
    }

    /// Takes the open round's exchange on, and says whether it is time for a manifest.
    fn collect(&mut self, core: &mut Core, follow: &mut Follow, now: Time, out: &mut Vec<Order>) -> bool {
        let (round, times) = (self.agree.round, core.spec.times);
        let (settled, last_closed) = (self.settled, self.last_closed);
        let Some(tip) = follow.tip().map(|s| (s.manifest.train_ms, s.manifest.collect_ms)) else { return false };
        let Some(exchange) = Validator::exchange(&mut self.exchanges, core, follow, round) else { return false };
        let from = if core.spec.delay == 0 { follow.received } else { follow.received.max(last_closed) };
        let Some(closed) = exchange.closed else {
            let deadline = from + tip.0;
            let all =
                exchange.awaited.is_empty() && !exchange.updates.is_empty() && (now >= settled || exchange.full());
            let over = now >= deadline && (exchange.awaited.is_empty() || now >= deadline + times.grace_ms);
            let led = exchange.others_closed.map(|at| at + times.retry_ms);
            if all || over || led.is_some_and(|at| now >= at) {
                exchange.closed = Some(now);
                let close = Close { round, after: exchange.after.hash };
                exchange.close_msg = Some(core.flood(Whom::All, Body::Close(close), out));
                core.wake(now, now + times.retry_ms, out);
            } else {
                let at = if now >= deadline { deadline + times.grace_ms } else { deadline };
                let at = if now < settled { at.min(settled) } else { at };
                core.wake(now, led.map_or(at, |led| led.min(at)), out);
            }
            return false;
        };
        let deadline = closed + tip.1;
        exchange.check(core, follow, out);
        exchange.ask_again(core, now, out);
        let whole = exchange.open.is_empty();
        exchange.say(core, whole, now >= deadline, out);
        let quorum = exchange.haves.len() >= core.quorum() && exchange.said.is_some();
        let all = exchange.haves.values().all(|h| h.whole)
            && core
                .spec
                .validators
                .iter()
                .all(|v| exchange.haves.contains_key(v) || !core.up.contains(v) && *v != core.me);
        core.wake(now, if now < deadline { deadline.min(now + times.retry_ms) } else { now + times.retry_ms }, out);
        quorum && (all || now >= deadline) && follow.roots.contains_key(&(round - 1))
    }
}
