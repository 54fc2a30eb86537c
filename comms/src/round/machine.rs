//! One process: its parts, and the order in which they see what happens.

use super::admit::Admit;
use super::core::Core;
use super::follow::Follow;
use super::peer::Peer;
use super::validate::Validator;
use super::{Event, Fact, Order, Record, Time};
use crate::wire::{Body, Commit, Message, Msg};
use crate::{Hash, Key, PeerId, RunSpec, Signature};
use std::sync::Arc;

/// What a process found on its disk: nothing at its first start.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The round whose state is held; 0 is the genesis, which everybody can make.
    pub applied: u64,
    /// The root of that state.
    pub root: Hash,
    /// The journal's records, in order.
    pub records: Vec<Record>,
    /// Blobs in the store, whole.
    pub held: Vec<Hash>,
}

impl Recovered {
    /// A first start.
    pub fn nothing(spec: &RunSpec) -> Recovered {
        Recovered { applied: 0, root: spec.genesis, records: Vec::new(), held: Vec::new() }
    }
}

/// One process of a run.
pub struct Machine {
    core: Core,
    follow: Follow,
    peer: Option<Peer>,
    validator: Option<Validator>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Machine({:?}, round {}, applied {})", self.core.me, self.follow.next(), self.follow.applied)
    }
}

impl Machine {
    /// A process with this key. It validates where its key is a validator's, under `rule`; it trains where `train` holds,
    /// with the invitation `token` where the run asks for one; it follows in any case.
    pub fn new(
        spec: Arc<RunSpec>,
        key: Key,
        train: bool,
        token: Option<Signature>,
        rule: Box<dyn Admit>,
        recovered: Recovered,
        now: Time,
        out: &mut Vec<Order>,
    ) -> Machine {
        let mut core = Core::new(spec, key);
        let chain = recovered.records.iter().filter_map(|r| match r {
            Record::Sealed(sealed) => Some(sealed.clone()),
            _ => None,
        });
        let chain = chain.collect();
        let mut follow = Follow::new(&core.spec, (recovered.applied, recovered.root), chain, now);
        follow.held.extend(recovered.held);
        let mut peer = train.then(|| Peer::new(token));
        if let Some(peer) = &mut peer {
            for record in &recovered.records {
                if let Record::Commit(bytes) = record
                    && let Ok(msg) = Message::open(&core.spec, &core.run, bytes.clone())
                {
                    peer.recall(msg, now);
                }
            }
            peer.start(&mut core, &mut follow, out);
        }
        let mut validator = core.is_validator().then(|| Validator::new(rule, now));
        if let Some(validator) = &mut validator {
            validator.start(&core, &follow, &recovered.records, now);
        }
        follow.attest(&mut core, out);
        let mut machine = Machine { core, follow, peer, validator };
        machine.follow.advance(&mut machine.core, now, out);
        machine.settle(now, out);
        machine
    }

    /// Takes a fact at a time not before the last one's, and appends what is to be done about it.
    pub fn step(&mut self, now: Time, fact: Fact, out: &mut Vec<Order>) {
        let (core, follow) = (&mut self.core, &mut self.follow);
        match fact {
            Fact::Tick => {}
            Fact::Up(peer) => self.up(peer, out),
            Fact::Down(peer) => {
                core.up.remove(&peer);
                follow.down(&peer);
                if let Some(v) = &mut self.validator {
                    v.down(&peer);
                }
            }
            Fact::Message { from, msg } => {
                if core.hears(from, out) {
                    self.message(now, from, &msg, out);
                }
            }
            Fact::Babble { from } => _ = core.hears(from, out),
            Fact::Trained { round, blob, bytes, tokens, steps } => {
                if let Some(peer) = &mut self.peer {
                    let commit = Commit { round, after: Hash::NONE, blob, bytes, tokens, steps };
                    peer.on_trained(core, follow, now, commit, out);
                }
            }
            Fact::Held(blobs) => {
                follow.on_held(core, now, &blobs, out);
                if let Some(v) = &mut self.validator {
                    v.on_held(&blobs);
                }
            }
            Fact::Lacking(blobs) => {
                if let Some(v) = &mut self.validator {
                    v.on_lacking(&blobs);
                }
            }
            Fact::Checked { blob, peer, verdict } => {
                if let Some(v) = &mut self.validator {
                    v.on_checked(blob, peer, verdict);
                }
            }
            Fact::Missing { round, blobs } => follow.on_missing(core, now, round, &blobs, out),
            Fact::Folded { round, root } => follow.on_folded(core, now, round, root, out),
            Fact::Synced { round, root } => follow.on_synced(core, now, round, root, out),
            Fact::Unsynced { round } => follow.on_unsynced(core, now, round, out),
            Fact::Rated { peer, rating } => {
                if let Some(v) = &mut self.validator {
                    v.rate(peer, rating);
                }
            }
        }
        self.settle(now, out);
    }

    fn up(&mut self, peer: PeerId, out: &mut Vec<Order>) {
        self.core.up.insert(peer);
        // The wish to take part comes before the state that one is in.
        if let Some(p) = &mut self.peer {
            p.up(&mut self.core, peer, out);
        }
        self.follow.up(&mut self.core, peer, out);
        if let Some(v) = &mut self.validator {
            v.up(&mut self.core, &self.follow, peer, out);
        }
    }

    fn message(&mut self, now: Time, from: PeerId, msg: &Msg, out: &mut Vec<Order>) {
        let (core, follow) = (&mut self.core, &mut self.follow);
        let signer = msg.signer().unwrap_or(from);
        match msg.body() {
            Body::Sealed(_) => self.sealed(now, from, msg, out),
            Body::Status(status) => follow.on_status(core, now, from, status, out),
            Body::Pull(pull) => follow.on_pull(core, from, pull, out),
            Body::Attest(attest) => {
                follow.on_attest(core, now, attest, signer, out);
                if let Some(v) = &mut self.validator {
                    v.on_attest(core, attest, signer);
                }
            }
            Body::Close(close) => {
                if let Some(p) = &mut self.peer {
                    p.on_close(core, close, signer, out);
                }
                if let Some(v) = &mut self.validator {
                    v.on_close(core, follow, now, close, signer);
                }
            }
            Body::Refuse(refuse) => {
                if refuse.peer == core.me {
                    out.push(Order::Log(Event::Refused { by: signer, reason: refuse.reason }));
                }
            }
            _ => {
                let Some(v) = &mut self.validator else { return };
                match msg.body() {
                    Body::Join(join) => v.on_join(core, from, msg, join, out),
                    Body::Commit(commit) => v.on_commit(core, follow, from, msg, commit, out),
                    Body::Reveal(reveal) => v.on_reveal(core, reveal.round, reveal.blob, out),
                    Body::Have(have) => v.on_have(core, have, signer, out),
                    Body::Propose(_) => v.on_propose(core, msg, out),
                    Body::Ballot(_) => v.on_ballot(msg, out),
                    _ => {}
                }
            }
        }
    }

    fn sealed(&mut self, now: Time, from: PeerId, msg: &Msg, out: &mut Vec<Order>) {
        let before = self.follow.next();
        if !self.follow.on_sealed(&mut self.core, now, from, msg, out) {
            return;
        }
        let news: Vec<_> = self.follow.chain.range(before..).map(|(_, s)| s.clone()).collect();
        for sealed in news {
            if let Some(p) = &mut self.peer {
                p.on_tip(&self.core, &mut self.follow, &sealed, out);
            }
            if let Some(v) = &mut self.validator {
                v.on_tip(&self.core, &mut self.follow, &sealed, out);
            }
        }
        self.follow.tell(&mut self.core, out);
        self.follow.advance(&mut self.core, now, out);
    }

    /// Hears what was said to oneself, and does what time allows, until nothing more follows.
    fn settle(&mut self, now: Time, out: &mut Vec<Order>) {
        loop {
            while let Some(msg) = self.core.to_self.pop_front() {
                self.message(now, self.core.me, &msg, out);
            }
            self.follow.poll(&mut self.core, now, out);
            if let Some(p) = &mut self.peer {
                p.poll(&mut self.core, &self.follow, now, out);
            }
            let sealed = match &mut self.validator {
                Some(v) => v.poll(&mut self.core, &mut self.follow, now, out),
                None => None,
            };
            match sealed {
                Some(msg) => self.sealed(now, self.core.me, &msg, out),
                None if self.core.to_self.is_empty() => return,
                None => {}
            }
        }
    }

    /// Who this process is.
    pub fn id(&self) -> PeerId {
        self.core.me
    }

    /// The round whose state is held, and its root.
    pub fn applied(&self) -> (u64, Hash) {
        (self.follow.applied, self.follow.root)
    }

    /// The newest manifest that was accepted.
    pub fn tip(&self) -> Option<&Arc<crate::wire::Sealed>> {
        self.follow.tip()
    }

    /// The manifest of a round, where it is kept.
    pub fn manifest(&self, round: u64) -> Option<&Arc<crate::wire::Sealed>> {
        self.follow.chain.get(&round)
    }

    /// Whether the state is that of the newest manifest known.
    pub fn level(&self) -> bool {
        self.follow.level()
    }

    /// Whether a message of `peer` would be heard now. Asked before a signature is verified, which costs more than all
    /// that a flood costs its sender.
    pub fn listens(&self, peer: &PeerId) -> bool {
        self.core.listens(peer)
    }

    /// Who is connected.
    pub fn connected(&self) -> impl Iterator<Item = &PeerId> {
        self.core.up.iter()
    }
}
