//! A validator's part: take commits, close, collect, check, tell the others, put a manifest forward, sign.
//!
//! ```text
//! open     commits of slot holders come in; each is passed on to the other validators once
//! closed   all who are connected have committed, or the deadline and its grace are over; no commit counts from here
//! collect  revealed updates are fetched and checked; Have says which are held and sound
//! agree    who has the turn lists what a quorum holds; see agree
//! ```

use super::admit::Admit;
use super::agree::{Act, Agree};
use super::core::Core;
use super::follow::Follow;
use super::judge::{Candidate, Last, Sound, judge, sound_list};
use super::peer::Peer;
use super::{Event, Expect, Order, Record, Time, Urgency, Want, Whom};
use crate::wire::{
    Attest, Ballot, Body, Checkpoint, Close, Commit, Entry, Have, Join, Manifest, Msg, Propose, Reason, Refuse, Reject,
    Sealed, Slot, Vote,
};
use crate::{Hash, PeerId, RunSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How far a committed update is.
#[derive(Debug)]
enum Stage {
    /// Not to be had yet.
    Hidden,
    /// Asked for.
    Fetching,
    /// Held, and waiting for its check.
    Held,
    /// Sound.
    Sound(Sound),
    /// Not sound.
    Bad(Reason),
}

struct Update {
    commit: Commit,
    msg: Msg,
    stage: Stage,
}

/// One round's commits, and how far they are.
struct Exchange {
    round: u64,
    after: Arc<Sealed>,
    updates: BTreeMap<PeerId, Update>,
    /// Who committed to which; more than one only where somebody lies, whom the header gives away.
    blobs: BTreeMap<Hash, Vec<PeerId>>,
    /// Held, and not given to be checked yet.
    to_check: Vec<PeerId>,
    /// Turned away for what they did, not for what they sent.
    faults: BTreeMap<PeerId, Reason>,
    /// Slot holders that are connected and have not committed.
    awaited: BTreeSet<PeerId>,
    /// Updates neither sound nor bad, of peers who can still give them.
    open: BTreeSet<PeerId>,
    closed: Option<Time>,
    /// The other validators that closed, and when more had than can be liars.
    others: BTreeSet<PeerId>,
    others_closed: Option<Time>,
    close_msg: Option<Msg>,
    haves: BTreeMap<PeerId, Have>,
    said: Option<(Have, Msg)>,
    asked: Option<Time>,
}

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
    /// When this process began: who was connected before must have time to come back.
    began: Time,
    /// When round 0 had enough peers.
    gathered: Option<Time>,
    last_closed: Time,
    repeat: Time,
}

/// Members kept; those without a connection go first.
const MEMBERS_MAX: usize = 1 << 15;

impl Validator {
    pub fn new(rule: Box<dyn Admit>, now: Time) -> Validator {
        Validator {
            rule,
            members: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            agree: Agree::new(0),
            last: Last::default(),
            began: now,
            gathered: None,
            last_closed: 0,
            repeat: now,
        }
    }

    /// Begins with the round that the chain leaves open, and what was said in it before a restart.
    pub fn start(&mut self, core: &Core, follow: &Follow, records: &[Record], now: Time) {
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
            self.members.retain(|p, _| core.up.contains(p));
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
            place.insert(Exchange {
                round,
                after,
                updates: BTreeMap::new(),
                blobs: BTreeMap::new(),
                to_check: Vec::new(),
                faults: BTreeMap::new(),
                awaited,
                open: BTreeSet::new(),
                closed: None,
                others: BTreeSet::new(),
                others_closed: None,
                close_msg: None,
                haves: BTreeMap::new(),
                said: None,
                asked: None,
            });
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
        let fault = if exchange.closed.is_some() {
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
    pub fn on_tip(&mut self, core: &Core, follow: &Follow, sealed: &Sealed, out: &mut Vec<Order>) {
        let round = sealed.manifest.round;
        let later = self.exchanges.split_off(&(round + 1));
        let over = std::mem::replace(&mut self.exchanges, later);
        if let Some(mut exchange) = over.into_iter().find(|(r, _)| *r == round).map(|(_, e)| e) {
            self.last_closed = exchange.closed.unwrap_or(follow.received);
            let mut counted = Vec::with_capacity(sealed.manifest.entries.len());
            for entry in &sealed.manifest.entries {
                if let Some(Update { stage: Stage::Sound(sound), .. }) = exchange.updates.remove(&entry.peer) {
                    counted.push((entry.peer, sound.picks));
                }
            }
            // A restart leaves it short, never wrong.
            self.last.add(round, counted);
            let gone: Vec<Hash> = exchange.updates.values().map(|u| u.commit.blob).collect();
            let gone: Vec<Hash> = gone.into_iter().filter(|b| follow.held.contains(b)).collect();
            if !gone.is_empty() {
                out.push(Order::Forget { blobs: gone });
            }
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
        if self.candidates(core, follow, 0).len() < core.spec.limits.peers_min as usize {
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
        let (began, last_closed) = (self.began, self.last_closed);
        let Some(tip) = follow.tip().map(|s| (s.manifest.train_ms, s.manifest.collect_ms)) else { return false };
        let Some(exchange) = Validator::exchange(&mut self.exchanges, core, follow, round) else { return false };
        let from = if core.spec.delay == 0 { follow.received } else { follow.received.max(last_closed) };
        let Some(closed) = exchange.closed else {
            let deadline = from + tip.0;
            let all = exchange.awaited.is_empty() && !exchange.updates.is_empty() && now >= began + 2 * times.retry_ms;
            let over = now >= deadline && (exchange.awaited.is_empty() || now >= deadline + times.grace_ms);
            let led = exchange.others_closed.map(|at| at + times.retry_ms);
            if all || over || led.is_some_and(|at| now >= at) {
                exchange.closed = Some(now);
                let close = Close { round, after: exchange.after.hash };
                exchange.close_msg = Some(core.flood(Whom::All, Body::Close(close), out));
                core.wake(now, now + times.retry_ms, out);
            } else {
                let at = if now >= deadline { deadline + times.grace_ms } else { deadline };
                let settle = began + 2 * times.retry_ms;
                let at = if now < settle { at.min(settle) } else { at };
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

    /// Lets the agreement go as far as it goes; gives the manifest that became final.
    fn agreement(
        &mut self,
        core: &mut Core,
        follow: &Follow,
        now: Time,
        mut acts: Vec<Act>,
        out: &mut Vec<Order>,
    ) -> Option<Msg> {
        loop {
            let mut agree = std::mem::replace(&mut self.agree, Agree::new(0));
            let mut sound = |m: &Manifest| self.sound(core, follow, m);
            agree.advance(now, &core.spec, &core.me, &mut sound, &mut acts);
            self.agree = agree;
            if acts.is_empty() {
                return None;
            }
            for act in std::mem::take(&mut acts) {
                match act {
                    Act::Propose { attempt, again } => {
                        let (ready, manifest) = match again {
                            Some((ready, manifest)) => (Some(ready), manifest),
                            None => match self.manifest(core, follow) {
                                Some(manifest) => (None, manifest),
                                None => continue,
                            },
                        };
                        let body = Body::Propose(Box::new(Propose { attempt, ready, manifest }));
                        let msg = crate::wire::Message::new(&core.key, &core.run, body);
                        out.push(Order::Persist(Record::Propose(msg.bytes().to_vec())));
                        out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
                        self.agree.propose(&core.spec, &msg, &mut acts);
                    }
                    Act::Cast(ballot) => self.cast(core, ballot, &mut acts, out),
                    Act::Lock { attempt, manifest } => {
                        out.push(Order::Persist(Record::Lock(attempt, Box::new(manifest))));
                    }
                    Act::Decide { attempt, manifest, votes } => return Some(seal(core, attempt, manifest, votes, out)),
                    Act::Liar { .. } => liars(&[act], out),
                }
            }
        }
    }

    fn cast(&mut self, core: &Core, ballot: Ballot, acts: &mut Vec<Act>, out: &mut Vec<Order>) {
        out.push(Order::Persist(Record::Ballot(ballot.clone())));
        let msg = crate::wire::Message::new(&core.key, &core.run, Body::Ballot(ballot));
        out.push(Order::Flood { to: Whom::Validators, msg: msg.clone() });
        self.agree.ballot(&msg, acts);
    }

    /// Who may train after this round: admitted, there, and on the right state.
    fn candidates(&self, core: &Core, follow: &Follow, round: u64) -> Vec<PeerId> {
        let delay = u64::from(core.spec.delay);
        let exchange = self.exchanges.get(&round);
        let right = |attest: &(u64, Hash)| {
            attest.0 + 1 + delay >= round && follow.roots.get(&attest.0).is_some_and(|root| *root == attest.1)
        };
        let here = |peer: &PeerId| {
            core.up.contains(peer) || *peer == core.me || exchange.is_some_and(|e| e.updates.contains_key(peer))
        };
        let list = self.members.iter().filter(|(_, m)| m.admitted && m.attest.as_ref().is_some_and(right));
        list.map(|(p, _)| *p).filter(here).collect()
    }

    /// The manifest that this validator puts forward.
    fn manifest(&self, core: &Core, follow: &Follow) -> Option<Manifest> {
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
    fn slots(&self, core: &Core, follow: &Follow, manifest: &Manifest) -> Vec<Slot> {
        let before = follow.tip().map(|s| &s.manifest);
        let tie = |p: &PeerId| Hash::of_parts(&[&core.spec.seed.to_le_bytes(), &manifest.prev.0, &p.0]);
        let mut peers = self.candidates(core, follow, manifest.round);
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
    fn sound(&self, core: &Core, follow: &Follow, m: &Manifest) -> Option<bool> {
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
    let blameless = matches!(manifest.reject(peer), None | Some(Reason::Late | Reason::Withheld | Reason::Reserve));
    match before.and_then(|m| m.slot(peer)) {
        Some((_, slot)) if blameless => slot.since,
        // Those of the beginning are nobody's newcomers.
        None if manifest.round == 0 => next.saturating_sub(u64::from(spec.limits.probation_rounds)),
        _ => next,
    }
}

fn bit(slots: &[u8], slot: u32) -> bool {
    slots.get(slot as usize / 8).is_some_and(|byte| byte >> (slot % 8) & 1 == 1)
}

fn liars(acts: &[Act], out: &mut Vec<Order>) {
    for act in acts {
        if let Act::Liar { signer, first, second } = act {
            let (first, second) = (first.bytes().to_vec(), second.bytes().to_vec());
            out.push(Order::Log(Event::Equivocation { signer: *signer, first, second }));
        }
    }
}

/// Puts a manifest and its signatures together; who had the turn sends it to all.
fn seal(
    core: &Core,
    attempt: u32,
    manifest: Manifest,
    votes: Vec<(PeerId, crate::Signature)>,
    out: &mut Vec<Order>,
) -> Msg {
    let votes = votes.into_iter().map(|(validator, signature)| Vote { validator, signature }).collect();
    let turn = core.spec.proposer(manifest.round, attempt) == core.me;
    let sealed = Sealed { hash: manifest.hash(), manifest, attempt, votes };
    let msg = crate::wire::Message::new(&core.key, &core.run, Body::Sealed(Arc::new(sealed)));
    if turn {
        out.push(Order::Flood { to: Whom::All, msg: msg.clone() });
    }
    msg
}

impl Exchange {
    /// Asks for updates: (whose, from whom).
    fn fetch(&mut self, core: &Core, which: &[(PeerId, PeerId)], out: &mut Vec<Order>) {
        let mut wants = Vec::new();
        for (peer, from) in which {
            let Some(update) = self.updates.get_mut(peer) else { continue };
            if matches!(update.stage, Stage::Hidden) {
                update.stage = Stage::Fetching;
                wants.push(Want { blob: update.commit.blob, bytes: core.spec.blob_bytes, from: *from });
            }
        }
        if !wants.is_empty() {
            out.push(Order::Fetch { wants, urgency: Urgency::Collect });
        }
    }

    /// Asks once in a while for what is neither here nor said to be on its way.
    fn ask_again(&mut self, core: &Core, now: Time, out: &mut Vec<Order>) {
        let retry = core.spec.times.retry_ms;
        if now < *self.asked.get_or_insert(now) + retry {
            return;
        }
        self.asked = Some(now);
        let hidden = self.open.iter().filter(|p| matches!(self.updates[p].stage, Stage::Hidden));
        let which: Vec<(PeerId, PeerId)> = hidden.map(|p| (*p, *p)).collect();
        self.fetch(core, &which, out);
    }

    /// Orders the checks that wait, once the states are known from which updates may have been made.
    fn check(&mut self, core: &Core, follow: &Follow, out: &mut Vec<Order>) {
        let first = self.round.saturating_sub(1 + u64::from(core.spec.delay));
        if self.to_check.is_empty() || !follow.roots.contains_key(&(self.round - 1)) {
            return;
        }
        let bases: Vec<Hash> = follow.roots.range(first..self.round).map(|(_, root)| *root).collect();
        for peer in std::mem::take(&mut self.to_check) {
            let expect = Expect { round: self.round, peer, bytes: core.spec.blob_bytes, bases: bases.clone() };
            out.push(Order::Check { blob: self.updates[&peer].commit.blob, expect });
        }
    }

    /// Tells the validators what is held, when all is, when time is up, and when more came after that.
    fn say(&mut self, core: &mut Core, whole: bool, late: bool, out: &mut Vec<Order>) {
        if !late && (!whole || self.said.as_ref().is_some_and(|(have, _)| have.whole)) {
            return;
        }
        let mut slots = vec![0u8; self.after.manifest.slots.len().div_ceil(8)];
        for (peer, update) in &self.updates {
            if matches!(update.stage, Stage::Sound(_))
                && let Some((slot, _)) = self.after.manifest.slot(peer)
            {
                slots[slot as usize / 8] |= 1 << (slot % 8);
            }
        }
        while slots.last() == Some(&0) {
            slots.pop();
        }
        let have = Have { round: self.round, after: self.after.hash, whole, slots };
        if self.said.as_ref().is_none_or(|(h, _)| *h != have) {
            self.haves.insert(core.me, have.clone());
            let msg = core.flood(Whom::Validators, Body::Have(have.clone()), out);
            self.said = Some((have, msg));
        }
    }

    /// How many validators hold `peer`'s update and found it sound.
    fn holders(&self, peer: &PeerId) -> usize {
        let Some((slot, _)) = self.after.manifest.slot(peer) else { return 0 };
        self.haves.values().filter(|h| bit(&h.slots, slot)).count()
    }
}
