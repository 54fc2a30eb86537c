//! What peers may have of us, and what we keep for them.
//!
//! Our own update is hidden from its making to its reveal: then nobody can copy it in time. Parts of the state, pages
//! and leaves, are served from memory by their hash. A seeder keeps updates that peers push: of the run's size, from who
//! holds a slot, and six a peer at most, until the rounds that may list them are over. What is kept is never dropped for
//! what comes later: a manifest may name it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::Work;
use crate::blob::serve::Policy;
use crate::blob::{Fetcher, Priority, Store};
use crate::net::Net;
use crate::state::{Part, Tree};
use crate::{Hash, PeerId};

/// Rounds for which a pushed update is kept.
const PUSHED_ROUNDS: u64 = 4;
/// Updates of one peer that are kept at once: one a round, and some that overlap.
const PUSHED_MAX: usize = PUSHED_ROUNDS as usize + 2;

/// A push that takes longer is given up.
const PUSHED_WITHIN: Duration = Duration::from_secs(600);

/// A push that was taken.
pub(super) struct Offer {
    pub peer: PeerId,
    pub name: Hash,
    pub size: u64,
}

pub(super) struct Rules {
    update_bytes: u64,
    seeds: bool,
    net: Net,
    store: Arc<Store>,
    hidden: Mutex<BTreeSet<Hash>>,
    /// Pushes by who made them; true once they are here.
    pushed: Mutex<BTreeMap<PeerId, BTreeMap<Hash, bool>>>,
    offers: mpsc::UnboundedSender<Offer>,
    tree: Mutex<Option<Arc<Tree>>>,
    work: Arc<dyn Work>,
}

impl Rules {
    pub fn new(
        update_bytes: u64,
        seeds: bool,
        (net, store): (Net, Arc<Store>),
        offers: mpsc::UnboundedSender<Offer>,
        work: Arc<dyn Work>,
    ) -> Rules {
        let (hidden, pushed, tree) = (Mutex::default(), Mutex::default(), Mutex::default());
        Rules { update_bytes, seeds, net, store, hidden, pushed, offers, tree, work }
    }

    /// A push is here, or came to nothing.
    pub fn pushed(&self, peer: &PeerId, name: Hash, here: bool) {
        if let Some(list) = self.pushed.lock().expect("no panic under this lock").get_mut(peer) {
            match here {
                true => _ = list.insert(name, true),
                false => _ = list.remove(&name),
            }
        }
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
        if !self.seeds || size != self.update_bytes || !self.net.favours(peer) {
            return false;
        }
        let mut pushed = self.pushed.lock().expect("no panic under this lock");
        // What was pruned counts no more, nor who has nothing here.
        pushed.retain(|_, list| {
            list.retain(|name, here| !*here || self.store.size(name).is_some());
            !list.is_empty()
        });
        let list = pushed.entry(*peer).or_default();
        if list.contains_key(name) {
            return true;
        }
        let takes = list.len() < PUSHED_MAX;
        if takes {
            list.insert(*name, false);
            let _ = self.offers.send(Offer { peer: *peer, name: *name, size });
        }
        takes
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

/// Fetches what peers push to a seeder, from who pushed it.
pub(super) async fn keep_offers(
    mut offers: mpsc::UnboundedReceiver<Offer>,
    fetcher: Fetcher,
    rules: Arc<Rules>,
    applied: Arc<AtomicU64>,
) {
    while let Some(Offer { peer, name, size }) = offers.recv().await {
        let keep = applied.load(Ordering::Relaxed) + PUSHED_ROUNDS;
        let (fetcher, rules) = (fetcher.clone(), rules.clone());
        tokio::spawn(async move {
            let come = fetcher.fetch(name, size, keep, Priority::Seeding, vec![peer]);
            match timeout(PUSHED_WITHIN, come).await {
                Ok(Ok(())) => return rules.pushed(&peer, name, true),
                Ok(Err(e)) => tracing::warn!(target: "esker::peer", error = %e, "seeding"),
                Err(_) => fetcher.drop_want(name),
            }
            rules.pushed(&peer, name, false);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;
    use crate::net::Config;
    use crate::node::{Made, TrainJob};
    use crate::round::{Expect, Part as Counted, Sound};
    use crate::wire::Reason;

    struct Idle;

    impl Work for Idle {
        fn settled(&self) -> (u64, Hash) {
            (0, Hash::NONE)
        }
        fn train(&self, _: &TrainJob, _: &dyn Fn() -> bool) -> Result<Made, String> {
            Err("idle".into())
        }
        fn check(&self, _: &Hash, _: &[u8], _: &Expect) -> Result<Sound, Reason> {
            Err(Reason::Malformed)
        }
        fn fold(&self, _: u64, _: &[Counted], _: &dyn Fn(&Hash) -> Result<Vec<u8>, String>) -> Result<(), String> {
            Ok(())
        }
        fn leaf(&self, _: u64, _: &mut Vec<u8>) {}
        fn mend(&self, _: u64, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
        fn settle(&self, _: u64, _: Hash) -> Result<(), String> {
            Ok(())
        }
    }

    /// Anybody could once fill a seeder's disk, and push out an update that a manifest was about to list.
    #[tokio::test]
    async fn a_seeder_keeps_what_slot_holders_push_and_drops_none_of_it_for_more() {
        let bind = "127.0.0.1:0".parse().unwrap();
        let (net, _inbox) = Net::bind(Config::new(bind, 1000), Key::from_seed([1; 32])).unwrap();
        let store = Arc::new(Store::memory(1 << 20));
        let (tx, mut offers) = mpsc::unbounded_channel();
        let bytes = crate::sim::spec(&[PeerId([1; 32])]).blob_bytes;
        let rules = Rules::new(bytes, true, (net.clone(), store.clone()), tx, Arc::new(Idle));
        let (ours, stranger) = (PeerId([2; 32]), PeerId([3; 32]));
        net.favour(BTreeSet::from([ours]));
        let update = |n: u8| vec![n; bytes as usize];
        let name = |n: u8| Hash::of(&update(n));
        assert!(!rules.offered(&stranger, &name(0), bytes));
        assert!(!rules.offered(&ours, &name(0), bytes - 1));
        for n in 0..PUSHED_MAX as u8 {
            assert!(rules.offered(&ours, &name(n), bytes) && rules.offered(&ours, &name(n), bytes));
        }
        // None of those under way makes room, none of those here goes.
        assert!(!rules.offered(&ours, &name(100), bytes));
        for n in 0..PUSHED_MAX as u8 {
            store.insert(&update(n), 4).unwrap();
            rules.pushed(&ours, name(n), true);
        }
        assert!(!rules.offered(&ours, &name(100), bytes));
        assert!((0..PUSHED_MAX as u8).all(|n| store.is_whole(&name(n))));
        // What was pruned, or never came, does.
        store.remove(&name(0)).unwrap();
        assert!(rules.offered(&ours, &name(100), bytes) && !rules.offered(&ours, &name(101), bytes));
        rules.pushed(&ours, name(100), false);
        assert!(rules.offered(&ours, &name(101), bytes));
        assert_eq!(std::iter::from_fn(|| offers.try_recv().ok()).count(), PUSHED_MAX + 2);
    }
}
