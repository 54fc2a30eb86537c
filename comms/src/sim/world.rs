//! The world: a heap of events, and hosts that start, are linked, and are killed. What a host does for its machine's orders
//! is in `orders`, what befalls it in `fate`, what is made of all that in `history`.

mod fate;
mod history;
mod orders;

use super::check::Report;
use super::host::{Disk, Named, Names, Node, Script, State};
use super::work::{Rng, View, Work, distance};
use super::{Config, spec};
use crate::round::admit::BySpec;
use crate::round::journal::recover;
use crate::round::{Fact, Machine, Order, Record, Recovered, Time};
use crate::state::Tree;
use crate::wire::Msg;
use crate::{Hash, Key, PeerId, RunSpec};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

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
    names: Named<PeerId, usize>,
    alive: BTreeSet<usize>,
    rng: Rng,
    blobs: Named<Hash, Arc<Vec<u8>>>,
    born: VecDeque<(u64, Hash)>,
    opened: [Named<Hash, Option<Msg>>; 2],
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
            names: Named::default(),
            alive: BTreeSet::new(),
            rng,
            blobs: Named::default(),
            born: VecDeque::new(),
            opened: [Named::default(), Named::default()],
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
        let drawn = Script::ALL[self.rng.below(Script::ALL.len() as u64) as usize];
        let script = self.config.script.unwrap_or(drawn);
        let offset = self.rng.below(self.config.skew_ms + 1);
        let (latency, train_ms) = (5 + self.rng.below(60), 20_000 + self.rng.below(20_000));
        let rng = Rng(self.rng.bits());
        let id = key.id();
        self.names.insert(id, i);
        let disk = Disk { journal: vec![], round: 0, state, snapshots: BTreeMap::new(), blobs: Names::default() };
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
            links: Vec::new(),
            hidden: Names::default(),
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
            self.nodes[i].link(j);
            self.nodes[j].link(i);
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
        for j in self.nodes[i].links.clone() {
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
                self.nodes[j].unlink(i);
            }
        }
        if forever {
            self.report.left += 1;
            let node = &mut self.nodes[i];
            (node.disk.journal, node.disk.snapshots, node.disk.blobs) = (vec![], BTreeMap::new(), Names::default());
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

    /// Whether two nodes reach each other.
    fn reach(&self, i: usize, j: usize) -> bool {
        !self.split || self.side(i) == self.side(j)
    }

    /// Whether what `i` sends comes to `j`: one side of a one-way partition is heard and does not hear.
    fn hears(&self, j: usize, i: usize) -> bool {
        self.reach(i, j) || self.config.one_way && self.side(i)
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
}
