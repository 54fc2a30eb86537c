//! Taking over or mending a state: pages first, then the leaves that differ, each as a blob of its own, from several
//! holders, kept in the store until all are there. Only then is the state touched; a sync that fails leaves it as it
//! was, and one that is killed goes on with the leaves it had.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::drive::News;
use crate::blob::{Fetcher, Priority, Store};
use crate::round::Fact;
use crate::state::{Tree, Walk};
use crate::{Hash, PeerId, RunSpec};

/// No leaf for this long, and the sync has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Leaves asked for at once.
const AT_ONCE: usize = 64;

pub(super) struct Job {
    pub spec: Arc<RunSpec>,
    pub store: Arc<Store>,
    pub fetcher: Fetcher,
    pub news: mpsc::UnboundedSender<News>,
    pub own: Option<Arc<Tree>>,
    pub round: u64,
    pub root: Hash,
    pub from: Vec<PeerId>,
    pub keep: u64,
}

pub(super) async fn run(job: Job) {
    let round = job.round;
    let news = job.news.clone();
    let word = match job.walk().await {
        Some(leaves) => News::Fetched { round, root: job.root, leaves },
        None => News::Fact(Fact::Unsynced { round }),
    };
    let _ = news.send(word);
}

impl Job {
    /// The leaves that differ, all in the store; `None` when nobody gives them.
    async fn walk(&self) -> Option<Vec<(u64, Hash)>> {
        let mut walk = Walk::new(&self.spec, self.own.as_deref(), self.root);
        while walk.differing().is_none() {
            for (name, bytes) in walk.wanted() {
                self.get(name, bytes).await?;
                let page = self.store.read_all(&name).ok()??;
                if let Err(e) = walk.give(&page) {
                    tracing::warn!(target: "esker::peer", error = %e, "sync");
                    return None;
                }
            }
        }
        let leaves: Vec<(u64, Hash)> = walk.differing()?.iter().map(|(i, h)| (*i, *h)).collect();
        for some in leaves.chunks(AT_ONCE) {
            // All of a group are wanted at once; each is waited for in turn.
            let (tx, mut rx) = mpsc::channel(AT_ONCE);
            for (index, name) in some {
                let (fetcher, from, keep, tx) = (self.fetcher.clone(), self.from.clone(), self.keep, tx.clone());
                let (name, bytes) = (*name, self.spec.leaf_bytes(*index)?);
                tokio::spawn(async move {
                    let got = fetcher.fetch(name, bytes, keep, Priority::Checkpoint, from).await;
                    let _ = tx.send(got.is_ok()).await;
                });
            }
            drop(tx);
            for _ in some {
                if timeout(PATIENCE, rx.recv()).await != Ok(Some(true)) {
                    some.iter().for_each(|(_, name)| self.fetcher.drop_want(*name));
                    return None;
                }
            }
        }
        Some(leaves)
    }

    async fn get(&self, name: Hash, bytes: u64) -> Option<()> {
        let come = self.fetcher.fetch(name, bytes, self.keep, Priority::Checkpoint, self.from.clone());
        match timeout(PATIENCE, come).await {
            Ok(Ok(())) => Some(()),
            _ => {
                self.fetcher.drop_want(name);
                None
            }
        }
    }
}
