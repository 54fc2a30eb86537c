//! Fetches what is wanted: the plan, the pipes and the store, driven by one task.
//!
//! Each request runs as a task of its own, so a slow holder holds nobody else; what it brings is checked and written
//! before the plan learns of it. A want ends when the blob is whole, when nobody waits for it any more, or when the
//! store cannot take it; never because of one holder; but when all
//! who were said to have the blob deny it, who waits is told so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::ask::{Ask, Request, Status};
use super::off;
use super::plan::{Job, Outcome, Piece, Plan, Priority};
use super::store::{Put, Store, StoreError};
use super::tree::{Bits, Outline, chunk_len, chunks};
use crate::hash::Hash;
use crate::key::PeerId;
use crate::net::{Net, StreamFault};

/// Why a blob did not come.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The store cannot take it.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The fetcher has ended, with the process.
    #[error("the process is leaving")]
    Closing,
    /// All who were said to have it have said that they do not.
    #[error("nobody has {name}")]
    Nobody {
        /// The blob.
        name: Hash,
    },
    /// The want was dropped.
    #[error("{name} is not wanted any more")]
    Dropped {
        /// The blob.
        name: Hash,
    },
}

type Reply = oneshot::Sender<Result<(), FetchError>>;

enum Command {
    Want { name: Hash, size: u64, keep: u64, priority: Priority, holders: Vec<PeerId>, reply: Reply },
    Holds { name: Hash, peer: PeerId, all: bool },
    Gone { peer: PeerId },
    Drop { name: Hash },
    Done { job: Job, outcome: Outcome, loss_e4: u8 },
    Broken { name: Hash, fault: StoreError },
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Chunks that came and were true.
    pub chunks: AtomicU64,
    /// Answers that were false.
    pub lies: AtomicU64,
    /// Requests that failed or were too slow.
    pub failed: AtomicU64,
}

/// Fetches blobs. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    commands: mpsc::UnboundedSender<Command>,
    counts: Arc<Counts>,
}

impl Fetcher {
    /// Starts the task. Liars are told to `liars`, for the layer above to judge.
    pub fn start(net: Net, store: Arc<Store>, seed: u64, liars: mpsc::UnboundedSender<(PeerId, Hash)>) -> Fetcher {
        // Callers are parts of this process and as many as blobs; what peers send never lands here.
        let (commands, rx) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let driver = Driver {
            net,
            store,
            plan: Plan::new(seed),
            start: Instant::now(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            commands: commands.downgrade(),
            counts: counts.clone(),
            liars,
        };
        tokio::spawn(driver.run(rx));
        Fetcher { commands, counts }
    }

    /// Fetches a blob of `size` bytes from `holders` and whoever else turns out to have it; returns when it is whole.
    /// Dropping the future does not end the want: others may wait for it; see [`Fetcher::drop_want`].
    ///
    /// # Errors
    /// When the store cannot take it or the want is dropped.
    pub async fn fetch(
        &self,
        name: Hash,
        size: u64,
        keep: u64,
        priority: Priority,
        holders: Vec<PeerId>,
    ) -> Result<(), FetchError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Want { name, size, keep, priority, holders, reply });
        answer.await.unwrap_or(Err(FetchError::Closing))
    }

    /// Says that a peer holds all of a blob, or may hold some of it and shall be asked. Counts only while the blob is
    /// wanted.
    pub fn holds(&self, name: Hash, peer: PeerId, all: bool) {
        let _ = self.commands.send(Command::Holds { name, peer, all });
    }

    /// Says that a peer is gone.
    pub fn gone(&self, peer: PeerId) {
        let _ = self.commands.send(Command::Gone { peer });
    }

    /// Ends a want. What came stays in the store until it is pruned.
    pub fn drop_want(&self, name: Hash) {
        let _ = self.commands.send(Command::Drop { name });
    }

    /// Counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

struct Driver {
    net: Net,
    store: Arc<Store>,
    plan: Plan,
    start: Instant,
    waiting: BTreeMap<Hash, Vec<Reply>>,
    running: BTreeMap<Job, AbortHandle>,
    commands: mpsc::WeakUnboundedSender<Command>,
    counts: Arc<Counts>,
    liars: mpsc::UnboundedSender<(PeerId, Hash)>,
}

impl Driver {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            while let Some(job) = self.plan.next(self.start.elapsed()) {
                self.begin(job);
            }
            let wake = self.plan.wake(self.start.elapsed()).unwrap_or(Duration::from_secs(3600));
            let command = tokio::select! {
                biased;
                command = commands.recv() => command,
                () = sleep_until(self.start + wake) => continue,
            };
            match command {
                Some(command) => self.take(command).await,
                None => break,
            }
        }
        self.running.values().for_each(AbortHandle::abort);
    }

    async fn take(&mut self, command: Command) {
        match command {
            Command::Want { name, size, keep, priority, holders, reply } => {
                match off(&self.store, move |s| s.begin(name, size, keep)).await {
                    Err(e) => return drop(reply.send(Err(Arc::new(e).into()))),
                    Ok(()) if self.store.is_whole(&name) => return drop(reply.send(Ok(()))),
                    Ok(()) => {}
                }
                let have = self.store.have(&name).unwrap_or_else(|| Bits::none(chunks(size)));
                self.plan.want(name, size, priority, &have, self.store.outline(&name).is_some());
                holders.into_iter().filter(|p| *p != self.net.me()).for_each(|p| self.plan.holds(&name, p, true));
                self.waiting.entry(name).or_default().push(reply);
            }
            Command::Holds { name, peer, all } if peer != self.net.me() => self.plan.holds(&name, peer, all),
            Command::Holds { .. } => {}
            Command::Gone { peer } => {
                self.plan.gone(&peer);
                // Who waits for what only this peer had is told, and may know of others.
                for name in self.plan.names() {
                    if self.plan.hopeless(&name) {
                        self.end(name, Err(FetchError::Nobody { name }));
                    }
                }
            }
            Command::Drop { name } => self.end(name, Err(FetchError::Dropped { name })),
            Command::Broken { name, fault } => self.end(name, Err(Arc::new(fault).into())),
            Command::Done { job, outcome, loss_e4 } => self.done(job, outcome, loss_e4),
        }
    }

    fn end(&mut self, name: Hash, result: Result<(), FetchError>) {
        self.plan.drop_want(&name);
        self.running.retain(|job, task| {
            if job.name == name {
                task.abort();
            }
            job.name != name
        });
        for reply in self.waiting.remove(&name).unwrap_or_default() {
            let _ = reply.send(result.clone());
        }
    }

    fn done(&mut self, job: Job, outcome: Outcome, loss_e4: u8) {
        self.running.remove(&job);
        let absent = matches!(outcome, Outcome::Absent | Outcome::Lie);
        match outcome {
            Outcome::Got => drop(self.counts.chunks.fetch_add(1, Ordering::Relaxed)),
            Outcome::Failed => drop(self.counts.failed.fetch_add(1, Ordering::Relaxed)),
            Outcome::Lie => {
                self.counts.lies.fetch_add(1, Ordering::Relaxed);
                let _ = self.liars.send((job.peer, job.name));
            }
            _ => {}
        }
        if let Some((holders, _)) = self.plan.progress(&job.name)
            && loss_e4 > 0
        {
            self.net.want_pipes(job.peer, 16 / holders.max(1));
        }
        for late in self.plan.done(self.start.elapsed(), job, outcome) {
            if let Some(task) = self.running.remove(&late) {
                task.abort();
            }
        }
        let name = job.name;
        if self.store.is_whole(&name) {
            self.end(name, Ok(()));
        } else if absent && self.plan.hopeless(&name) {
            self.end(name, Err(FetchError::Nobody { name }));
        }
    }

    fn begin(&mut self, job: Job) {
        let (net, store, commands) = (self.net.clone(), self.store.clone(), self.commands.clone());
        let task = tokio::spawn(async move {
            let command = match request(&net, &store, job).await {
                Ok((outcome, loss_e4)) => Command::Done { job, outcome, loss_e4 },
                Err(fault) => Command::Broken { name: job.name, fault },
            };
            if let Some(commands) = commands.upgrade() {
                let _ = commands.send(command);
            }
        });
        self.running.insert(job, task.abort_handle());
    }
}

/// Makes a request and puts what comes into the store.
async fn request(net: &Net, store: &Arc<Store>, job: Job) -> Result<(Outcome, u8), StoreError> {
    let Some(size) = store.size(&job.name) else { return Err(StoreError::Absent { name: job.name }) };
    let (what, len) = match job.piece {
        Piece::Chunk(i) => (Ask::Chunk(i), chunk_len(size, i)),
        Piece::Outline => (Ask::Outline(size), Outline::len_for(size)),
        Piece::Have => (Ask::Have(size), Bits::bytes_for(chunks(size))),
    };
    let (body, loss) = match ask(net, job.peer, Request { name: job.name, what }, len).await {
        Ok(Answer { status: Status::Here, body, loss_e4 }) => (body, loss_e4),
        Ok(Answer { status: Status::Absent, loss_e4, .. }) => return Ok((Outcome::Absent, loss_e4)),
        Ok(Answer { status: Status::Busy, loss_e4, .. }) => return Ok((Outcome::Busy, loss_e4)),
        Err(fault) => {
            tracing::debug!(target: "esker::blob", peer = %job.peer, error = fault, "request");
            return Ok((Outcome::Failed, 0));
        }
    };
    let name = job.name;
    let outcome = match job.piece {
        Piece::Chunk(i) => match off(store, move |s| s.put(&name, i, &body)).await? {
            Put::Lie => Outcome::Lie,
            Put::Had | Put::More | Put::Whole => Outcome::Got,
        },
        Piece::Outline => match off(store, move |s| s.put_outline(&name, &body)).await? {
            true => Outcome::Got,
            false => Outcome::Lie,
        },
        Piece::Have => Bits::checked(&body, chunks(size)).map_or(Outcome::Lie, Outcome::Has),
    };
    Ok((outcome, loss))
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The first byte.
    pub status: Status,
    /// The body, of the length that was asked for; empty unless `Here`.
    pub body: Vec<u8>,
    /// What the holder loses on this path.
    pub loss_e4: u8,
}

/// Asks a peer and reads `len` bytes if it has them.
///
/// # Errors
/// When the peer cannot be reached, is too slow, or says something that is not an answer.
pub async fn ask(net: &Net, peer: PeerId, request: Request, len: usize) -> Result<Answer, String> {
    let text = |e: StreamFault| e.to_string();
    let mut stream = net.open(peer).await.map_err(|e| e.to_string())?;
    stream.write(&request.to_bytes()).await.map_err(text)?;
    stream.finish();
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.map_err(text)?;
    let status = Status::of(head[0]).ok_or("an answer that is none")?;
    let mut body = vec![0; if status == Status::Here { len } else { 0 }];
    stream.read_exact(&mut body).await.map_err(text)?;
    stream.end().await.map_err(text)?;
    Ok(Answer { status, body, loss_e4: head[1] })
}
