//! What peers may have of us, and what we keep for them.
//!
//! Our own update is hidden from its making to its reveal: then nobody can copy it in time. Parts of the state, pages
//! and leaves, are served from memory by their hash. A seeder keeps updates that peers push, of the run's size and at
//! most four a peer at a time; the oldest goes when a fifth comes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::Work;
use crate::blob::serve::Policy;
use crate::state::{Part, Tree};
use crate::{Hash, PeerId};

const PUSHED_MAX: usize = 4;
/// Peers whose pushes are counted at most.
const PUSHERS_MAX: usize = 1024;

/// A push that was taken.
pub(super) struct Offer {
    pub peer: PeerId,
    pub name: Hash,
    pub size: u64,
    /// What has to go for it.
    pub drop: Option<Hash>,
}

pub(super) struct Rules {
    update_bytes: u64,
    seeds: bool,
    hidden: Mutex<BTreeSet<Hash>>,
    pushed: Mutex<BTreeMap<PeerId, VecDeque<Hash>>>,
    offers: mpsc::UnboundedSender<Offer>,
    tree: Mutex<Option<Arc<Tree>>>,
    work: Arc<dyn Work>,
}

impl Rules {
    pub fn new(update_bytes: u64, seeds: bool, offers: mpsc::UnboundedSender<Offer>, work: Arc<dyn Work>) -> Rules {
        let (hidden, pushed, tree) = (Mutex::default(), Mutex::default(), Mutex::default());
        Rules { update_bytes, seeds, hidden, pushed, offers, tree, work }
    }

    pub fn hide(&self, name: Hash) {
        self.hidden.lock().expect("no panic under this lock").insert(name);
    }

    pub fn show(&self, name: &Hash) {
        self.hidden.lock().expect("no panic under this lock").remove(name);
    }

    pub fn set_tree(&self, tree: Arc<Tree>) {
        *self.tree.lock().expect("no panic under this lock") = Some(tree);
    }

    pub fn tree(&self) -> Option<Arc<Tree>> {
        self.tree.lock().expect("no panic under this lock").clone()
    }
}

impl Policy for Rules {
    fn may_have(&self, _: &PeerId, name: &Hash) -> bool {
        !self.hidden.lock().expect("no panic under this lock").contains(name)
    }

    fn offered(&self, peer: &PeerId, name: &Hash, size: u64) -> bool {
        if !self.seeds || size != self.update_bytes {
            return false;
        }
        let mut pushed = self.pushed.lock().expect("no panic under this lock");
        if !pushed.contains_key(peer) && pushed.len() >= PUSHERS_MAX {
            return false;
        }
        let list = pushed.entry(*peer).or_default();
        if !list.contains(name) {
            list.push_back(*name);
            let drop = if list.len() > PUSHED_MAX { list.pop_front() } else { None };
            let _ = self.offers.send(Offer { peer: *peer, name: *name, size, drop });
        }
        true
    }

    fn part(&self, name: &Hash) -> Option<Vec<u8>> {
        match self.tree()?.find(name)? {
            Part::Page(bytes) => Some(bytes),
            Part::Leaf(index) => {
                let mut bytes = Vec::new();
                self.work.leaf(index, &mut bytes);
                // The state may have moved on since the tree was made; then this is not the leaf any more.
                (Hash::of(&bytes) == *name).then_some(bytes)
            }
        }
    }
}
