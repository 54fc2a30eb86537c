//! The world: a heap of events, links and queues between hosts, and what fate does to them.

use super::check::{Report, Row};
use super::host::{Disk, Node, Script, State};
use super::work::{Head, How, Rng, UPDATE_BYTES, View, Work, distance, forge};
use super::{Config, spec};
use crate::round::admit::BySpec;
use crate::round::journal::{compact, recover};
use crate::round::{Event, Expect, Fact, Machine, Order, Record, Recovered, Time, Want, Whom};
use crate::state::{Part, Tree, Walk};
use crate::wire::{Body, Commit, Manifest, Message, Msg, Reason};
use crate::{Hash, Key, PeerId, RunSpec};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

/// Bytes of an update as the links see it.
const WIRE_BYTES: u64 = 256 << 10;
/// Links of a peer beside those to validators, in a run too large for a mesh.
const NEIGHBOURS: usize = 8;
/// Below this, everybody is linked to everybody.
const MESH: usize = 64;
/// From a crash to the moment when the other end knows: 3 s and up to 7 s more.
const DETECT_MS: (Time, Time) = (3_000, 7_000);

enum What {
    Deliver { from: PeerId, msg: Msg },
    Give(Fact),
    Wake,
    Train { round: u64, base: State, tokens: u64 },
    Arrive { blobs: Vec<(Hash, usize, u32)> },
    Folded { round: u64, state: State },
    Synced { round: u64, state: State, bytes: u64 },
    Lost { peer: usize, life: u32 },
    Start,
    Kill { forever: bool },
    Join,
}

struct Entry {
    at: Time,
    seq: u64,
    node: usize,
    life: u32,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// A world at play.
pub struct Sim<W: Work> {
    config: Config,
    work: W,
    spec: Arc<RunSpec>,
    run: Hash,
    now: Time,
    seq: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    nodes: Vec<Node>,
    names: BTreeMap<PeerId, usize>,
    alive: BTreeSet<usize>,
    rng: Rng,
    blobs: BTreeMap<Hash, Arc<Vec<u8>>>,
    born: VecDeque<(u64, Hash)>,
    opened: [BTreeMap<Hash, Option<Msg>>; 2],
    best: Option<u64>,
    best_at: Time,
    split: bool,
    healed_at: Option<u64>,
    /// A quorum could not meet at some moment since the last manifest.
    no_quorum: bool,
    flipped: Option<usize>,
    report: Report,
    digest: blake3::Hasher,
}

impl<W: Work> Sim<W> {
    /// The world of `config` at its first moment.
    pub fn new(config: Config, work: W) -> Sim<W> {
        let seed = config.seed;
        let key = |i: u64| Key::from_seed(Hash::of_parts(&[b"sim", &seed.to_le_bytes(), &i.to_le_bytes()]).0);
        let mut validators: Vec<Key> = (0..config.validators as u64).map(key).collect();
        validators.sort_by_key(Key::id);
        let mut spec = spec(&validators.iter().map(Key::id).collect::<Vec<_>>());
        spec.delay = config.delay;
        spec.seed = config.seed;
        spec.limits.rounds = config.rounds;
        spec.limits.contributors = config.contributors;
        spec.limits.checkpoint_rounds = config.checkpoint_rounds;
        spec.limits.peers_min = (config.peers as u32 * 3 / 4).max(1);
        let rng = Rng(config.seed ^ 0x5eed);
        let report = Report { seed: config.seed, ..Report::default() };
        let mut sim = Sim {
            work,
            run: spec.id(),
            spec: Arc::new(spec),
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            nodes: Vec::new(),
            names: BTreeMap::new(),
            alive: BTreeSet::new(),
            rng,
            blobs: BTreeMap::new(),
            born: VecDeque::new(),
            opened: [BTreeMap::new(), BTreeMap::new()],
            best: None,
            best_at: 0,
            split: false,
            healed_at: None,
            no_quorum: false,
            flipped: None,
            report,
            digest: blake3::Hasher::new(),
            config,
        };
        let first = distance(&sim.work.genesis());
        sim.report.distance = (first, first);
        for validator in validators {
            sim.spawn(validator, false);
        }
        for i in 0..sim.config.peers as u64 {
            sim.spawn(key((1 << 32) + i), true);
        }
        for dead in 0..sim.config.dead_validators {
            sim.kill(dead, true);
        }
        sim
    }

    fn push(&mut self, at: Time, node: usize, what: What) {
        self.seq += 1;
        let life = self.nodes.get(node).map_or(0, |n| n.life);
        self.queue.push(Reverse(Entry { at, seq: self.seq, node, life, what }));
    }

    fn state(&self, values: Vec<f32>) -> State {
        let tree = Tree::of(&self.spec, &View(&values));
        State { root: tree.root(), values: Arc::new(values), tree: Arc::new(tree) }
    }

    /// A new process with an empty disk.
    fn spawn(&mut self, key: Key, train: bool) {
        let i = self.nodes.len();
        let state = self.state(self.work.genesis());
        let liar = train && self.rng.chance(self.config.liars);
        let script = Script::ALL[self.rng.below(Script::ALL.len() as u64) as usize];
        let offset = self.rng.below(self.config.skew_ms + 1);
        let (latency, train_ms) = (5 + self.rng.below(60), 20_000 + self.rng.below(20_000));
        let rng = Rng(self.rng.bits());
        let id = key.id();
        self.names.insert(id, i);
        let disk = Disk { journal: vec![], round: 0, state, snapshots: BTreeMap::new(), blobs: BTreeSet::new() };
        self.nodes.push(Node {
            key,
            id,
            machine: None,
            disk,
            train,
            liar: liar.then_some(script),
            life: 0,
            gone: false,
            offset,
            latency,
            train_ms,
            up_free: 0,
            down_free: 0,
            links: BTreeSet::new(),
            hidden: BTreeSet::new(),
            orders: 0,
            level_at: None,
            counted: false,
            last_applied: 0,
            rng,
        });
        // Validators are known from the spec, alive or not; peers are met as they live.
        let first = self.config.validators;
        let mut links: Vec<usize> = (0..first.min(i)).collect();
        let peers: Vec<usize> = self.alive.range(first..).copied().collect();
        if self.config.peers <= MESH || !train {
            links.extend(peers);
        } else if !peers.is_empty() {
            links.extend((0..NEIGHBOURS).map(|_| peers[self.rng.below(peers.len() as u64) as usize]));
        }
        for j in links {
            self.nodes[i].links.insert(j);
            self.nodes[j].links.insert(i);
        }
        self.start(i);
    }

    /// Starts a process from its disk, through the journal's own bytes.
    fn start(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        node.life += 1;
        let bytes: Vec<u8> = node.disk.journal.iter().flat_map(Record::encode).collect();
        let (records, whole) = recover(&self.spec, &bytes);
        assert_eq!(whole, bytes.len(), "sim: a journal that does not recover");
        let held = node.disk.blobs.iter().copied().collect();
        let recovered = Recovered { applied: node.disk.round, root: node.disk.state.root, records, held };
        let mut out = Vec::new();
        let (spec, key, now) = (self.spec.clone(), node.key.clone(), self.now + node.offset);
        let machine = Machine::new(spec, key, node.train, None, Box::new(BySpec), recovered, now, &mut out);
        node.machine = Some(machine);
        self.alive.insert(i);
        self.obey(i, out);
        let links: Vec<usize> = self.nodes[i].links.iter().copied().collect();
        for j in links {
            if self.nodes[j].machine.is_some() && self.reach(i, j) {
                self.connect(i, j);
            }
        }
    }

    fn connect(&mut self, i: usize, j: usize) {
        let (a, b) = (self.nodes[i].id, self.nodes[j].id);
        // Whoever still believed in an older connection learns that it is gone.
        self.push(self.now + 50, j, What::Give(Fact::Down(a)));
        self.push(self.now + 100, i, What::Give(Fact::Up(b)));
        self.push(self.now + 100, j, What::Give(Fact::Up(a)));
    }

    fn kill(&mut self, i: usize, forever: bool) {
        let node = &mut self.nodes[i];
        if node.machine.take().is_none() {
            return;
        }
        node.life += 1;
        node.gone = forever;
        let (id_life, links) = (node.life, node.links.clone());
        self.alive.remove(&i);
        for j in links {
            let after = DETECT_MS.0 + self.rng.below(DETECT_MS.1);
            self.push(self.now + after, j, What::Lost { peer: i, life: id_life });
            if forever {
                self.nodes[j].links.remove(&i);
            }
        }
        if forever {
            self.report.left += 1;
            let node = &mut self.nodes[i];
            (node.disk.journal, node.disk.snapshots, node.disk.blobs) = (vec![], BTreeMap::new(), BTreeSet::new());
        } else {
            self.report.kills += 1;
            let back = self.now + 1_000 + self.rng.below(15_000);
            self.push(back, i, What::Start);
        }
        self.no_quorum |= !self.quorum_lives();
    }

    fn quorum_lives(&self) -> bool {
        let side = |i: &usize| !self.split || *i < self.config.partition_validators;
        let live = (0..self.config.validators.min(self.nodes.len())).filter(|i| self.nodes[*i].machine.is_some());
        live.filter(side).count() >= usize::from(self.spec.quorum)
    }

    /// Which side of a partition a node is on.
    fn side(&self, i: usize) -> bool {
        if i < self.config.validators { i < self.config.partition_validators } else { i.is_multiple_of(2) }
    }

    fn reach(&self, i: usize, j: usize) -> bool {
        !self.split || self.side(i) == self.side(j)
    }

    /// Plays until the last round is over and everybody had time to see it.
    pub fn play(&mut self) {
        let mut end = None;
        while let Some(Reverse(entry)) = self.queue.pop() {
            self.now = entry.at;
            self.report.events += 1;
            let done = self.best.is_some_and(|b| b >= self.config.rounds);
            let stuck = self.now > self.best_at + 3_600_000;
            if stuck {
                self.report.faults.push(format!("nothing was decided for an hour after round {:?}", self.best));
                return;
            }
            if done && self.now > *end.get_or_insert(self.now + 90_000) {
                return;
            }
            self.happen(entry);
        }
    }

    fn happen(&mut self, entry: Entry) {
        let i = entry.node;
        match entry.what {
            What::Join => {
                let seed = [b"new".as_slice(), &self.config.seed.to_le_bytes(), &self.nodes.len().to_le_bytes()];
                self.report.joined += 1;
                self.spawn(Key::from_seed(Hash::of_parts(&seed).0), true);
                return;
            }
            What::Start if !self.nodes[i].gone && self.nodes[i].machine.is_none() => return self.start(i),
            What::Kill { forever } => return self.kill(i, forever),
            _ => {}
        }
        if entry.life != self.nodes[i].life || self.nodes[i].machine.is_none() {
            return;
        }
        match entry.what {
            What::Deliver { from, msg } => self.give(i, Fact::Message { from, msg }),
            What::Give(fact) => self.give(i, fact),
            What::Wake => self.give(i, Fact::Tick),
            What::Train { round, base, tokens } => self.trained(i, round, &base, tokens),
            What::Arrive { blobs } => self.arrived(i, blobs),
            What::Folded { round, state } => {
                let root = state.root;
                (self.nodes[i].disk.round, self.nodes[i].disk.state) = (round, state);
                self.give(i, Fact::Folded { round, root });
            }
            What::Synced { round, state, bytes } => {
                let root = state.root;
                (self.nodes[i].disk.round, self.nodes[i].disk.state) = (round, state);
                self.report.synced += 1;
                self.report.synced_bytes += bytes;
                self.give(i, Fact::Synced { round, root });
            }
            What::Lost { peer, life } => {
                if self.nodes[peer].life == life || !self.reach(i, peer) {
                    let id = self.nodes[peer].id;
                    self.give(i, Fact::Down(id));
                }
            }
            What::Start | What::Kill { .. } | What::Join => {}
        }
    }

    fn give(&mut self, i: usize, fact: Fact) {
        let node = &mut self.nodes[i];
        let Some(machine) = &mut node.machine else { return };
        let mut out = Vec::new();
        machine.step(self.now + node.offset, fact, &mut out);
        self.obey(i, out);
    }

    fn obey(&mut self, i: usize, orders: Vec<Order>) {
        for order in orders {
            self.nodes[i].orders += 1;
            self.carry_out(i, order);
            if self.config.kill_at == Some((i, self.nodes[i].orders)) {
                self.kill(i, false);
            }
            if self.nodes[i].machine.is_none() {
                return;
            }
        }
    }

    fn carry_out(&mut self, i: usize, order: Order) {
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
    fn open(&mut self, msg: &Msg) -> Option<Msg> {
        let known = self.opened.iter().find_map(|o| o.get(&msg.id()).cloned());
        known.unwrap_or_else(|| {
            let opened = Message::open(&self.spec, &self.run, msg.bytes().to_vec()).ok();
            self.report.signatures += u64::from(msg.signer().is_some());
            self.report.refused += u64::from(opened.is_none());
            self.opened[0].insert(msg.id(), opened.clone());
            opened
        })
    }

    fn transmit(&mut self, i: usize, j: usize, msg: &Msg) {
        if self.nodes[j].machine.is_none() || !self.reach(i, j) {
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

    fn flood(&mut self, i: usize, to: Whom, msg: &Msg) {
        let first = self.config.validators;
        let is = |j: &usize| match to {
            Whom::All => true,
            Whom::Validators => *j < first,
            Whom::Mesh => *j >= first,
        };
        let targets: Vec<usize> = self.nodes[i].links.iter().copied().filter(is).collect();
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

    fn train(&mut self, i: usize, round: u64, deadline: Time) {
        let node = &mut self.nodes[i];
        let wish = node.train_ms * (80 + node.rng.below(40)) / 100;
        let most = deadline.saturating_sub(self.now + node.offset).saturating_sub(500).max(1);
        let ms = wish.min(most);
        let tokens = self.spec.inner.tokens * ms / wish;
        let base = node.disk.state.clone();
        self.push(self.now + ms, i, What::Train { round, base, tokens });
    }

    fn trained(&mut self, i: usize, round: u64, base: &State, tokens: u64) {
        let node = &self.nodes[i];
        let mut head = Head { run: self.run, round, peer: node.id, base_root: base.root };
        let bytes = match node.liar {
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
    fn wire_us(&self, i: usize) -> (u64, u64) {
        let (up, down) = if i < self.config.validators { (10_000, 10_000) } else { (110, 500) };
        (WIRE_BYTES * 8 / up, WIRE_BYTES * 8 / down)
    }

    /// Fluid queues: a transfer ends when both its source's uplink and the receiver's downlink are through with it.
    fn fetch(&mut self, i: usize, wants: &[Want]) {
        let now_us = self.now * 1000;
        let (mut got, mut lacking, mut last) = (Vec::new(), Vec::new(), now_us);
        let links: Vec<usize> = self.nodes[i].links.iter().copied().collect();
        for want in wants {
            if self.nodes[i].disk.blobs.contains(&want.blob) {
                got.push((want.blob, i, self.nodes[i].life));
                continue;
            }
            // Who made it, two validators and a neighbour: the least busy of those who have it.
            let mut asked: Vec<usize> =
                (0..2).map(|_| self.rng.below(self.config.validators as u64) as usize).collect();
            asked.extend(self.names.get(&want.from));
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
    fn arrived(&mut self, i: usize, blobs: Vec<(Hash, usize, u32)>) {
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

    fn fold(&mut self, i: usize, round: u64, parts: &[crate::round::Part]) {
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
    fn sync(&mut self, i: usize, round: u64, root: Hash, from: &[PeerId]) {
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

    fn log(&mut self, i: usize, event: Event) {
        match event {
            Event::Accepted { round, manifest, .. } => self.accepted(i, round, manifest),
            Event::Applied { round, root } => self.applied(i, round, root),
            Event::Synced { round, .. } => self.nodes[i].last_applied = round,
            Event::Mismatch { .. } => self.report.mismatches += 1,
            Event::Equivocation { .. } => self.report.equivocations += 1,
            Event::Fork { round, .. } => self.report.faults.push(format!("two final manifests of round {round}")),
            Event::Counted { round } | Event::TurnedAway { round, reason: Some(Reason::Reserve) } => {
                let node = &mut self.nodes[i];
                if !std::mem::replace(&mut node.counted, true)
                    && let Some(level) = node.level_at.filter(|l| *l > 0)
                {
                    self.report.newcomer_rounds = self.report.newcomer_rounds.max(round.saturating_sub(level));
                }
            }
            _ => {}
        }
    }

    fn applied(&mut self, i: usize, round: u64, root: Hash) {
        self.digest.update(&self.now.to_le_bytes());
        self.digest.update(&root.0);
        let Some(row) = self.report.rows.get_mut(&round) else { return };
        let same = *row.root.get_or_insert(root) == root;
        if !same && self.flipped != Some(i) {
            self.report.faults.push(format!("node {i} has another root after round {round}"));
        }
        let node = &mut self.nodes[i];
        if round != node.last_applied + 1 {
            self.report.faults.push(format!("node {i} applied round {round} after {}", node.last_applied));
        }
        node.last_applied = round;
        let level = node.machine.as_ref().is_some_and(Machine::level);
        if level && node.level_at.is_none() {
            // The round that goes on at this moment is the first that the newcomer sees.
            node.level_at = Some(round + 1);
        }
        if self.config.flip == Some(round) && i == self.config.validators {
            self.flipped = Some(i);
            let values = Arc::make_mut(&mut self.nodes[i].disk.state.values);
            values[100] = f32::from_bits(values[100].to_bits() ^ (1 << 20));
        }
    }

    fn accepted(&mut self, i: usize, round: u64, manifest: Hash) {
        if let Some(row) = self.report.rows.get(&round) {
            if row.manifest != manifest {
                self.report.faults.push(format!("node {i} has another manifest of round {round}"));
            }
            return;
        }
        let Some(sealed) = self.nodes[i].machine.as_ref().and_then(|m| m.manifest(round)).cloned() else { return };
        let m = &sealed.manifest;
        let liar = |p: &PeerId| self.names.get(p).is_some_and(|j| self.nodes[*j].liar.is_some());
        let row = Row {
            at: self.now,
            manifest,
            root: None,
            peers: (self.alive.len() - self.alive.range(..self.config.validators).count()) as u32,
            slots: m.slots.len() as u32,
            entries: m.entries.len() as u32,
            rejects: m.rejects.len() as u32,
            lies: m.entries.iter().filter(|e| liar(&e.peer)).count() as u32,
        };
        self.listed(m);
        let (lived, took) = (!self.no_quorum, self.now - self.best_at);
        if round > 0 && lived {
            self.report.missed += u64::from(row.entries == 0);
            self.report.longest_ms = self.report.longest_ms.max(took);
            let t = &self.spec.times;
            if took > t.train_ms + t.grace_ms + t.collect_ms + 6 * t.attempt_ms + DETECT_MS.0 + DETECT_MS.1 {
                self.report.faults.push(format!("round {round} took {took} ms although a quorum lived"));
            }
        }
        self.report.rows.insert(round, row);
        (self.best, self.best_at) = (Some(round), self.now);
        self.no_quorum = !self.quorum_lives();
        self.opened.swap(0, 1);
        self.opened[0].clear();
        while self.born.front().is_some_and(|(r, _)| r + 4 * u64::from(self.config.checkpoint_rounds) + 8 < round) {
            let (_, blob) = self.born.pop_front().expect("sim: a front");
            self.blobs.remove(&blob);
        }
        self.fate(round);
    }

    /// What a manifest lists must be sound and held, whoever signed it.
    fn listed(&mut self, m: &Manifest) {
        let delay = u64::from(self.config.delay);
        let first = m.round.saturating_sub(1 + delay);
        let mut bases = vec![m.prev_root];
        bases.extend(self.report.rows.range(first..m.round).filter_map(|(_, r)| r.root));
        bases.extend((first == 0).then_some(self.spec.genesis));
        for e in &m.entries {
            let expect = Expect { round: m.round, peer: e.peer, bytes: self.spec.blob_bytes, bases: bases.clone() };
            let sound = self.blobs.get(&e.blob).is_some_and(|b| self.work.check(&self.run, b, &expect).is_ok());
            if !sound {
                self.report.faults.push(format!("round {} lists an update that is not sound", m.round));
            }
            let holders = (0..self.config.validators).filter(|v| self.nodes[*v].disk.blobs.contains(&e.blob)).count();
            if holders < usize::from(self.spec.quorum) {
                self.report.faults.push(format!("round {} lists an update that {holders} validators hold", m.round));
            }
        }
    }

    /// What happens to whom in the next round: leaving, coming, kills, partitions.
    fn fate(&mut self, round: u64) {
        let span = 45_000;
        if round + 2 < self.config.rounds {
            let peers: Vec<usize> = self.alive.range(self.config.validators..).copied().collect();
            let leave = (self.config.churn * self.config.peers as f64).round() as usize;
            // The number is held: who left more than came is made up for.
            let come = (leave + self.config.peers).saturating_sub(peers.len()).min(2 * leave);
            for _ in 0..leave.min(peers.len()) {
                let who = peers[self.rng.below(peers.len() as u64) as usize];
                let at = self.now + self.rng.below(span);
                self.push(at, who, What::Kill { forever: true });
            }
            for _ in 0..come {
                let at = self.now + self.rng.below(span);
                self.push(at, 0, What::Join);
            }
            let kills = self.config.kills.floor() as usize + usize::from(self.rng.chance(self.config.kills.fract()));
            let all: Vec<usize> = self.alive.iter().copied().collect();
            for _ in 0..kills {
                let who = all[self.rng.below(all.len() as u64) as usize];
                let at = self.now + self.rng.below(span);
                self.push(at, who, What::Kill { forever: false });
            }
        }
        match self.config.partition {
            Some((from, _)) if from == round => self.part(true),
            Some((_, to)) if to == round => {
                self.part(false);
                self.healed_at = Some(round);
            }
            _ => {}
        }
        if let Some(at) = self.healed_at
            && self.report.healed.is_none()
            && round > at
        {
            let level = |i: &usize| self.nodes[*i].machine.as_ref().is_some_and(|m| m.applied().0 + 1 >= round);
            if self.alive.iter().all(level) {
                self.report.healed = Some(round - at);
            }
        }
    }

    fn part(&mut self, split: bool) {
        self.split = split;
        self.no_quorum |= !self.quorum_lives();
        for i in self.alive.clone() {
            for j in self.nodes[i].links.clone() {
                if i >= j || self.side(i) == self.side(j) || self.nodes[j].machine.is_none() {
                    continue;
                }
                if split {
                    let after = DETECT_MS.0 + self.rng.below(DETECT_MS.1);
                    let (a, b) = (self.nodes[i].life, self.nodes[j].life);
                    self.push(self.now + after, i, What::Lost { peer: j, life: b });
                    self.push(self.now + after, j, What::Lost { peer: i, life: a });
                } else {
                    self.connect(i, j);
                }
            }
        }
    }

    /// The history's judgement.
    pub fn report(mut self) -> Report {
        let last = self.best.unwrap_or(0);
        self.report.behind = self
            .alive
            .iter()
            .filter(|i| self.nodes[**i].machine.as_ref().is_some_and(|m| m.applied().0 < last))
            .count() as u64;
        if self.report.behind > 0 {
            let who: Vec<String> = self
                .alive
                .iter()
                .filter_map(|i| Some((i, self.nodes[*i].machine.as_ref()?)))
                .filter(|(_, m)| m.applied().0 < last)
                .take(5)
                .map(|(i, m)| format!("{i} {m:?}"))
                .collect();
            self.report.faults.push(format!("{} machines are behind at the end: {who:?}", self.report.behind));
        }
        if last < self.config.rounds {
            self.report.faults.push(format!("ended at round {last} of {}", self.config.rounds));
        }
        if let Some(state) = self.alive.iter().next().map(|i| &self.nodes[*i].disk.state) {
            self.report.distance.1 = distance(&state.values);
        }
        self.report.digest = Hash(*self.digest.finalize().as_bytes());
        self.report
    }
}
