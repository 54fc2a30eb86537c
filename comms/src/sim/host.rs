//! One simulated process: a machine, its disk, its links, and how it lies.

use super::work::{How, Rng};
use crate::round::{Machine, Record, Time};
use crate::state::Tree;
use crate::{Hash, Key, PeerId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Hashes of names, which are hashes already: the same in each play, and nearly free. Nothing may depend on the order of
/// what is kept under them.
#[derive(Default)]
pub(super) struct Own(u64);

impl Hasher for Own {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }

    // The length of a name, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A set of blobs.
pub(super) type Names = HashSet<Hash, BuildHasherDefault<Own>>;
/// What is known by a name.
pub(super) type Named<K, V> = HashMap<K, V, BuildHasherDefault<Own>>;

/// How a peer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Its updates are made so.
    Update(How),
    /// It sends another's update of the round before under its own name.
    Copy,
    /// Its updates are made from the state at the start.
    Stale,
    /// It signs two commits and tells half of the validators each.
    Equivocate,
    /// It commits and never gives.
    Withhold,
    /// It commits to the very update that another has committed to.
    Twin,
    /// Its updates are of the right length and mean nothing, and its messages do not decode.
    Garbage,
}

impl Script {
    /// All scripts, in turn.
    pub const ALL: [Script; 11] = [
        Script::Update(How::SignFlip),
        Script::Update(How::Huge),
        Script::Update(How::Noise),
        Script::Update(How::Zeros),
        Script::Update(How::Nan),
        Script::Copy,
        Script::Stale,
        Script::Equivocate,
        Script::Withhold,
        Script::Garbage,
        Script::Twin,
    ];
}

/// A state with its hashes.
#[derive(Clone)]
pub(super) struct State {
    pub values: Arc<Vec<f32>>,
    pub tree: Arc<Tree>,
    pub root: Hash,
}

/// What outlives a kill.
pub(super) struct Disk {
    pub journal: Vec<Record>,
    pub round: u64,
    pub state: State,
    pub snapshots: BTreeMap<u64, State>,
    pub blobs: Names,
}

/// A process and what is around it.
pub(super) struct Node {
    pub key: Key,
    pub id: PeerId,
    pub machine: Option<Machine>,
    pub disk: Disk,
    pub train: bool,
    pub liar: Option<Script>,
    /// Which life this is; what was meant for an earlier one is lost.
    pub life: u32,
    /// Gone for ever.
    pub gone: bool,
    /// This node's clock is ahead by so much.
    pub offset: Time,
    pub latency: Time,
    pub train_ms: Time,
    pub up_free: Time,
    pub down_free: Time,
    /// Whom it is linked to, ascending.
    pub links: Vec<usize>,
    /// One's own updates not shown yet.
    pub hidden: Names,
    pub orders: u64,
    /// The round when the state was first the newest one, for newcomers.
    pub level_at: Option<u64>,
    pub counted: bool,
    pub last_applied: u64,
    pub rng: Rng,
}

impl Node {
    pub fn link(&mut self, other: usize) {
        if let Err(at) = self.links.binary_search(&other) {
            self.links.insert(at, other);
        }
    }

    pub fn unlink(&mut self, other: usize) {
        if let Ok(at) = self.links.binary_search(&other) {
            self.links.remove(at);
        }
    }

    /// Whether this node gives that blob to anybody.
    pub fn gives(&self, blob: &Hash) -> bool {
        self.machine.is_some() && self.disk.blobs.contains(blob) && !self.hidden.contains(blob)
    }

    /// A state of this root, now or in a snapshot.
    pub fn state_of(&self, root: &Hash) -> Option<&State> {
        self.machine.as_ref()?;
        let mut states = std::iter::once(&self.disk.state).chain(self.disk.snapshots.values());
        states.find(|s| s.root == *root)
    }
}
