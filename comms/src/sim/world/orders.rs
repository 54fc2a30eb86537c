//! What a host does for each order: messages over links, updates made and carried, states folded and walked.

use super::{Sim, What};
use crate::round::journal::compact;
use crate::round::{Fact, Machine, Order, Part as Counted, Record, Time, Want, Whom};
use crate::sim::host::{Script, State};
use crate::sim::work::{Head, How, UPDATE_BYTES, Work, forge};
use crate::state::{Part, Walk};
use crate::wire::{Body, Commit, Message, Msg, Reason};
use crate::{Hash, PeerId};
use std::sync::Arc;

/// Bytes of an update as the links see it.
const WIRE_BYTES: u64 = 256 << 10;

impl<W: Work> Sim<W> {
    pub(super) fn carry_out(&mut self, i: usize, order: Order) {
        match order {
            Order::Send { to, msg } => {
                if let Some(&j) = self.names.get(&to) {
                    self.transmit(i, j, &msg);
                }
            }
            Order::Flood { to, msg } => self.flood(i, to, &msg),
            Order::Train { round, deadline, .. } => self.train(i, round, deadline),
            Order::Stop { .. } => {}
            Order::Serve { blob } => {
                if self.nodes[i].liar != Some(Script::Withhold) {
                    self.nodes[i].hidden.remove(&blob);
                }
            }
            Order::Fetch { wants, .. } => self.fetch(i, &wants),
            Order::Check { blob, expect } => {
                let verdict = match self.blobs.get(&blob) {
                    Some(bytes) => self.work.check(&self.run, bytes, &expect),
                    None => Err(Reason::Malformed),
                };
                self.push(self.now + 5, i, What::Give(Fact::Checked { blob, peer: expect.peer, verdict }));
            }
            Order::Fold { round, parts } => self.fold(i, round, &parts),
            Order::Snapshot { round, .. } => {
                let disk = &mut self.nodes[i].disk;
                disk.snapshots.insert(round, disk.state.clone());
                while disk.snapshots.len() > 2 {
                    disk.snapshots.pop_first();
                }
            }
            Order::Sync { round, root, from } => self.sync(i, round, root, &from),
            Order::Forget { blobs } => {
                for blob in blobs {
                    self.nodes[i].disk.blobs.remove(&blob);
                    self.nodes[i].hidden.remove(&blob);
                }
            }
            Order::Persist(record) => {
                let journal = &mut self.nodes[i].disk.journal;
                let short = match &record {
                    Record::Sealed(s) if s.manifest.round.is_multiple_of(16) => {
                        Some(s.manifest.round.saturating_sub(14))
                    }
                    _ => None,
                };
                journal.push(record);
                if let Some(round) = short {
                    *journal = compact(&self.spec, std::mem::take(journal), round);
                }
            }
            Order::Wake(at) => {
                let at = at.saturating_sub(self.nodes[i].offset).max(self.now + 1);
                self.push(at, i, What::Wake);
            }
            Order::Log(event) => self.log(i, event),
        }
    }

    /// Opens a message as any receiver would, once for all of them.
    pub(super) fn open(&mut self, msg: &Msg) -> Option<Msg> {
        let known = self.opened.iter().find_map(|o| o.get(&msg.id()).cloned());
        known.unwrap_or_else(|| {
            let opened = Message::open(&self.spec, &self.run, msg.bytes().to_vec()).ok();
            self.report.signatures += u64::from(msg.signer().is_some());
            self.report.refused += u64::from(opened.is_none());
            self.opened[0].insert(msg.id(), opened.clone());
            opened
        })
    }

    pub(super) fn transmit(&mut self, i: usize, j: usize, msg: &Msg) {
        if self.nodes[j].machine.is_none() || !self.hears(j, i) {
            return;
        }
        let Some(msg) = self.open(msg) else { return };
        let mut ms = self.nodes[i].latency + self.nodes[j].latency + self.rng.below(10);
        if self.rng.chance(self.config.loss) {
            ms += 200 + 2 * ms;
        }
        let from = self.nodes[i].id;
        self.push(self.now + ms, j, What::Deliver { from, msg });
    }

    pub(super) fn flood(&mut self, i: usize, to: Whom, msg: &Msg) {
        let links = &self.nodes[i].links;
        let (validators, mesh) = links.split_at(links.partition_point(|j| *j < self.config.validators));
        let targets = match to {
            Whom::All => links,
            Whom::Validators => validators,
            Whom::Mesh => mesh,
        }
        .to_vec();
        let second = match (self.nodes[i].liar, msg.body()) {
            (Some(Script::Equivocate), Body::Commit(commit)) => {
                let other = Commit { blob: Hash::of(&commit.blob.0), ..commit.clone() };
                Some(Message::new(&self.nodes[i].key, &self.run, Body::Commit(other)))
            }
            (Some(Script::Garbage), _) => {
                let mut noise = vec![0u8; 200];
                noise.fill_with(|| self.nodes[i].rng.bits() as u8);
                assert!(Message::open(&self.spec, &self.run, noise).is_err(), "sim: noise was taken for a message");
                self.report.refused += 1;
                None
            }
            _ => None,
        };
        for j in targets {
            match &second {
                Some(second) if j % 2 == 1 => self.transmit(i, j, second),
                _ => self.transmit(i, j, msg),
            }
        }
    }

    pub(super) fn train(&mut self, i: usize, round: u64, deadline: Time) {
        let node = &mut self.nodes[i];
        let wish = node.train_ms * (80 + node.rng.below(40)) / 100;
        let most = deadline.saturating_sub(self.now + node.offset).saturating_sub(500).max(1);
        let ms = wish.min(most);
        let tokens = self.spec.inner.tokens * ms / wish;
        let base = node.disk.state.clone();
        self.push(self.now + ms, i, What::Train { round, base, tokens });
    }

    pub(super) fn trained(&mut self, i: usize, round: u64, base: &State, tokens: u64) {
        let node = &self.nodes[i];
        let mut head = Head { run: self.run, round, peer: node.id, base_root: base.root };
        let bytes = match node.liar {
            Some(Script::Twin) => match self.born.iter().rev().find(|(r, _)| *r == round) {
                Some((_, blob)) => self.blobs[blob].to_vec(),
                None => self.work.update(&base.values, &head, How::Honest),
            },
            None | Some(Script::Equivocate | Script::Withhold) => self.work.update(&base.values, &head, How::Honest),
            Some(Script::Update(how)) => self.work.update(&base.values, &head, how),
            Some(Script::Stale) => {
                head.base_root = self.spec.genesis;
                self.work.update(&base.values, &head, How::Honest)
            }
            Some(Script::Copy) => {
                let tip = node.machine.as_ref().and_then(Machine::tip);
                let other = tip.and_then(|s| s.manifest.entries.iter().find(|e| e.peer != node.id));
                match other.and_then(|e| self.blobs.get(&e.blob)) {
                    Some(other) => forge(&head, other),
                    None => self.work.update(&base.values, &head, How::Honest),
                }
            }
            Some(Script::Garbage) => {
                let mut rng = node.rng.clone();
                (0..UPDATE_BYTES).map(|_| rng.bits() as u8).collect()
            }
        };
        let (blob, len) = (Hash::of(&bytes), bytes.len() as u64);
        self.blobs.insert(blob, Arc::new(bytes));
        self.born.push_back((round, blob));
        self.nodes[i].disk.blobs.insert(blob);
        self.nodes[i].hidden.insert(blob);
        let steps = self.spec.inner.steps;
        self.give(i, Fact::Trained { round, blob, bytes: len, tokens, steps });
    }

    /// Microseconds that an update takes on a node's link, up and down.
    pub(super) fn wire_us(&self, i: usize) -> (u64, u64) {
        let (up, down) = if i < self.config.validators { (10_000, 10_000) } else { (110, 500) };
        (WIRE_BYTES * 8 / up, WIRE_BYTES * 8 / down)
    }

    /// Fluid queues: a transfer ends when both its source's uplink and the receiver's downlink are through with it.
    pub(super) fn fetch(&mut self, i: usize, wants: &[Want]) {
        let now_us = self.now * 1000;
        let (mut got, mut lacking, mut last) = (Vec::new(), Vec::new(), now_us);
        let mut asked = Vec::with_capacity(4);
        for want in wants {
            if self.nodes[i].disk.blobs.contains(&want.blob) {
                got.push((want.blob, i, self.nodes[i].life));
                continue;
            }
            // Who made it, two validators and a neighbour: the least busy of those who have it.
            asked.clear();
            asked.extend((0..2).map(|_| self.rng.below(self.config.validators as u64) as usize));
            asked.extend(self.names.get(&want.from));
            let links = &self.nodes[i].links;
            if !links.is_empty() {
                asked.push(links[self.rng.below(links.len() as u64) as usize]);
            }
            asked.retain(|j| *j != i && self.nodes[*j].gives(&want.blob) && self.reach(i, *j));
            let Some(&from) = asked.iter().min_by_key(|j| (self.nodes[**j].up_free.max(now_us), **j)) else {
                lacking.push(want.blob);
                continue;
            };
            let (up, down) = (self.wire_us(from).0, self.wire_us(i).1);
            self.nodes[from].up_free = self.nodes[from].up_free.max(now_us) + up;
            self.nodes[i].down_free = self.nodes[i].down_free.max(now_us) + down;
            last = last.max(self.nodes[from].up_free).max(self.nodes[i].down_free);
            got.push((want.blob, from, self.nodes[from].life));
        }
        let ms = 2 * self.nodes[i].latency + 40;
        if !got.is_empty() {
            self.push(last / 1000 + ms, i, What::Arrive { blobs: got });
        }
        if !lacking.is_empty() {
            self.push(self.now + ms, i, What::Give(Fact::Lacking(lacking)));
        }
    }

    /// A transfer whose source died on the way brought nothing.
    pub(super) fn arrived(&mut self, i: usize, blobs: Vec<(Hash, usize, u32)>) {
        let whole = |(_, from, life): &(Hash, usize, u32)| self.nodes[*from].life == *life;
        let (whole, cut): (Vec<_>, Vec<_>) = blobs.into_iter().partition(whole);
        let names = |list: Vec<(Hash, usize, u32)>| list.into_iter().map(|(blob, ..)| blob).collect::<Vec<Hash>>();
        let (whole, cut) = (names(whole), names(cut));
        if !whole.is_empty() {
            self.nodes[i].disk.blobs.extend(&whole);
            self.give(i, Fact::Held(whole));
        }
        if !cut.is_empty() {
            self.give(i, Fact::Lacking(cut));
        }
    }

    pub(super) fn fold(&mut self, i: usize, round: u64, parts: &[Counted]) {
        let mut values = self.nodes[i].disk.state.values.to_vec();
        let held: Vec<(u32, Arc<Vec<u8>>)> = parts
            .iter()
            .map(|p| {
                assert!(self.nodes[i].disk.blobs.contains(&p.blob), "sim: a fold of what is not held");
                (p.weight, self.blobs[&p.blob].clone())
            })
            .collect();
        let parts: Vec<(u32, &[u8])> = held.iter().map(|(w, b)| (*w, b.as_slice())).collect();
        self.work.fold(&mut values, &parts, self.spec.alpha(round));
        let state = self.state(values);
        self.push(self.now + 200, i, What::Folded { round, state });
    }

    /// Walks the tree with whoever has that state.
    pub(super) fn sync(&mut self, i: usize, round: u64, root: Hash, from: &[PeerId]) {
        let asked = from.iter().filter_map(|p| self.names.get(p)).copied();
        let theirs = asked.filter(|j| self.reach(i, *j)).find_map(|j| self.nodes[j].state_of(&root));
        let Some(theirs) = theirs.cloned() else {
            self.push(self.now + 300, i, What::Give(Fact::Unsynced { round }));
            return;
        };
        let own = self.state(self.nodes[i].disk.state.values.to_vec());
        let mut walk = Walk::new(&self.spec, Some(&*own.tree), root);
        let mut bytes = 0;
        while walk.differing().is_none() {
            for (name, len) in walk.wanted() {
                let Some(Part::Page(page)) = theirs.tree.find(&name) else { panic!("sim: a state lacks its page") };
                bytes += len;
                walk.give(&page).expect("sim: a page of an honest state");
            }
        }
        for index in walk.differing().into_iter().flatten().map(|(index, _)| *index) {
            bytes += self.spec.leaf_bytes(index).expect("sim: a leaf of the state");
        }
        self.push(self.now + 2_000, i, What::Synced { round, state: theirs, bytes });
    }
}
