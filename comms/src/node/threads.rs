//! The two threads of the work. Each takes its tasks from a channel and ends with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use super::drive::News;
use super::policy::Rules;
use super::{NodeError, TrainJob, Work};
use crate::blob::Store;
use crate::round::{Expect, Fact, Part};
use crate::state::{Leaves, PAGE_CHILDREN, Tree};
use crate::wire::Reason;
use crate::{Hash, RunSpec};

/// The work's state, as `Tree` reads it.
pub(super) struct View<'a>(pub &'a dyn Work);

impl Leaves for View<'_> {
    fn leaf(&self, index: u64, into: &mut Vec<u8>) {
        self.0.leaf(index, into);
    }
}

/// What both threads hold.
#[derive(Clone)]
pub(super) struct Hands {
    pub spec: Arc<RunSpec>,
    pub work: Arc<dyn Work>,
    pub store: Arc<Store>,
    pub rules: Arc<Rules>,
    pub news: mpsc::UnboundedSender<News>,
    /// Training for rounds up to this one may end.
    pub stop_to: Arc<AtomicU64>,
}

impl Hands {
    /// The last round in which a blob of `round` may be asked for.
    pub fn keep(&self, round: u64) -> u64 {
        round + 2 * u64::from(self.spec.limits.checkpoint_rounds) + 4
    }

    fn fail(&self, what: &'static str, why: String) {
        let _ = self.news.send(News::Broken(NodeError::Work { what, why }));
    }
}

/// How to reach them, and what to wait for at the end.
pub(super) type Threads = (std_mpsc::Sender<TrainJob>, std_mpsc::Sender<Task>, Vec<JoinHandle<()>>);

/// Starts both; they end when their channels do.
pub(super) fn start(hands: &Hands) -> Result<Threads, NodeError> {
    let (to_train, one) = spawn(hands, "esker-train", train)?;
    let (to_state, two) = spawn(hands, "esker-state", state)?;
    Ok((to_train, to_state, vec![one, two]))
}

fn spawn<T: Send + 'static>(
    hands: &Hands,
    name: &'static str,
    body: fn(&Hands, &std_mpsc::Receiver<T>),
) -> Result<(std_mpsc::Sender<T>, JoinHandle<()>), NodeError> {
    let (tasks, taken) = std_mpsc::channel();
    let hands = hands.clone();
    let run = move || {
        let _last = Last(&hands.news, name);
        body(&hands, &taken);
    };
    let thread = std::thread::Builder::new().name(name.into()).spawn(run).map_err(NodeError::Thread)?;
    Ok((tasks, thread))
}

/// The last word of a thread that panics: the process ends with it, and does not go on as if it had a slow one.
struct Last<'a>(&'a mpsc::UnboundedSender<News>, &'static str);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(News::Broken(NodeError::Work { what: self.1, why: "the thread panicked".into() }));
        }
    }
}

fn train(hands: &Hands, jobs: &std_mpsc::Receiver<TrainJob>) {
    for job in jobs.iter() {
        let round = job.round;
        let stop = || hands.stop_to.load(Ordering::Acquire) >= round;
        if stop() {
            continue;
        }
        let made = match hands.work.train(&job, &stop) {
            Ok(made) => made,
            // It ended before its last step because it was asked to.
            Err(_) if stop() => continue,
            Err(why) => {
                // Not fatal: the machine waits for no update, and the next round may go better.
                tracing::error!(target: "esker::peer", round, why, "no update");
                continue;
            }
        };
        if hands.stop_to.load(Ordering::Acquire) == u64::MAX {
            return; // the process is leaving
        }
        let want = hands.spec.blob_bytes;
        if made.update.len() as u64 != want {
            hands.fail("an update", format!("{} bytes, the run's spec says {want}", made.update.len()));
            return;
        }
        // Hidden before it is in the store: nobody may see it early.
        let blob = Hash::of(&made.update);
        hands.rules.hide(blob);
        if let Err(e) = hands.store.insert(&made.update, hands.keep(round)) {
            let _ = hands.news.send(News::Broken(e.into()));
            return;
        }
        let fact = Fact::Trained { round, blob, bytes: want, tokens: made.tokens, steps: made.steps };
        let _ = hands.news.send(News::Trained { fact, loss: made.loss });
    }
}

/// What the state's thread does.
pub(super) enum Task {
    Check { blob: Hash, expect: Expect },
    Fold { round: u64, parts: Vec<Part> },
    Snapshot { round: u64 },
    Mend { round: u64, root: Hash, leaves: Vec<(u64, Hash)> },
}

fn state(hands: &Hands, tasks: &std_mpsc::Receiver<Task>) {
    for task in tasks.iter() {
        let done = match task {
            Task::Check { blob, expect } => check(hands, blob, &expect),
            Task::Fold { round, parts } => fold(hands, round, &parts),
            Task::Snapshot { round } => snapshot(hands, round),
            Task::Mend { round, root, leaves } => mend(hands, round, root, &leaves),
        };
        if let Err(e) = done {
            let _ = hands.news.send(News::Broken(e));
            return;
        }
    }
}

fn check(hands: &Hands, blob: Hash, expect: &Expect) -> Result<(), NodeError> {
    let verdict = match hands.store.read_all(&blob)? {
        Some(bytes) if bytes.len() as u64 == expect.bytes => hands.work.check(&hands.spec.id(), &bytes, expect),
        _ => Err(Reason::Malformed),
    };
    let _ = hands.news.send(News::Fact(Fact::Checked { blob, peer: expect.peer, verdict }));
    Ok(())
}

fn fold(hands: &Hands, round: u64, parts: &[Part]) -> Result<(), NodeError> {
    let what = "folding a round";
    let gone = parts.iter().map(|part| part.blob).filter(|blob| !hands.store.is_whole(blob));
    let blobs: Vec<Hash> = gone.collect();
    if !blobs.is_empty() {
        let _ = hands.news.send(News::Fact(Fact::Missing { round, blobs }));
        return Ok(());
    }
    let read = |name: &Hash| match hands.store.read_all(name) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(format!("update {name} went from the store while it was folded")),
        Err(e) => Err(e.to_string()),
    };
    let fault = |why| NodeError::Work { what, why };
    hands.work.fold(round, parts, &read).map_err(fault)?;
    let tree = Tree::of(&hands.spec, &View(&*hands.work));
    let root = tree.root();
    hands.work.settle(round, root).map_err(fault)?;
    hands.rules.set_tree(Arc::new(tree));
    let _ = hands.news.send(News::Fact(Fact::Folded { round, root }));
    Ok(())
}

/// Puts record, pages and leaves of the state into the store, where they are served until two checkpoints later.
fn snapshot(hands: &Hands, round: u64) -> Result<(), NodeError> {
    let Some(tree) = hands.rules.tree() else { return Ok(()) };
    let keep = hands.keep(round);
    let mut bytes = Vec::new();
    for (index, want) in tree.leaves().iter().enumerate() {
        bytes.clear();
        hands.work.leaf(index as u64, &mut bytes);
        assert_eq!(Hash::of(&bytes), *want, "node: the state changed under a snapshot");
        hands.store.insert(&bytes, keep)?;
    }
    let mut level: Vec<Hash> = tree.leaves().to_vec();
    let mut first = true;
    while first || level.len() > 1 {
        first = false;
        let mut above = Vec::new();
        for children in level.chunks(PAGE_CHILDREN) {
            let page: Vec<u8> = children.iter().flat_map(|h| h.0).collect();
            above.push(hands.store.insert(&page, keep)?);
        }
        level = above;
    }
    if let Some(crate::state::Part::Page(record)) = tree.find(&tree.root()) {
        hands.store.insert(&record, keep)?;
    }
    Ok(())
}

/// Makes the state that of `root`, from leaves that are all in the store.
fn mend(hands: &Hands, round: u64, root: Hash, leaves: &[(u64, Hash)]) -> Result<(), NodeError> {
    let fault = |why| NodeError::Work { what: "mending the state", why };
    for (index, name) in leaves {
        let Some(bytes) = hands.store.read_all(name)? else {
            return Err(fault(format!("leaf {name} is gone from the store")));
        };
        hands.work.mend(*index, &bytes).map_err(fault)?;
    }
    let tree = Tree::of(&hands.spec, &View(&*hands.work));
    if tree.root() != root {
        return Err(fault(format!("root {} after it, not {root}", tree.root())));
    }
    hands.work.settle(round, root).map_err(fault)?;
    hands.rules.set_tree(Arc::new(tree));
    let _ = hands.news.send(News::Fact(Fact::Synced { round, root }));
    Ok(())
}
