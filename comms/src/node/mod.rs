//! A process of a run: the machine of `round`, the network, the blobs and the work, joined.
//!
//! ```text
//! network ─ events, streams ─┐                        ┌─ train: one thread
//! timers ────────────────────┼─ driver: one thread ───┤
//! fetches, syncs ─ facts ────┘   Machine::step        └─ state: one thread (check, fold, snapshot, mend)
//! ```
//!
//! The driver never waits for the work and the work never for the wire: they talk through channels, and the driver's
//! thread does nothing that takes long. The work is what another crate brings ([`Work`]); this one knows bytes.
//!
//! On disk, under one folder: `journal` (what the machine must not forget, synced before anybody hears of it), `blobs/`
//! (updates, and the leaves of checkpoints). The state itself is the work's to keep. A process that is killed at any
//! moment starts again from these.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use tokio::sync::Notify;

use crate::blob::bucket::Objects;
use crate::blob::{BLOB_MAX, StoreError};
use crate::net::NetError;
use crate::round::log::Timed;
use crate::round::{Expect, Part, Sound};
use crate::wire::Reason;
use crate::{Hash, Key, PeerId, RunSpec, Signature};

pub mod doctor;
mod drive;
mod journal;
mod policy;
pub mod status;
mod sync;
mod threads;

pub use drive::run;
pub use status::{Snapshot, metrics_text, status_json};

/// What a process may be, as bits; several at once.
pub mod role {
    /// Trains.
    pub const PEER: u8 = 1;
    /// Has a validator's key: collects, checks, signs.
    pub const VALIDATOR: u8 = 1 << 1;
    /// Keeps and serves what peers push to it.
    pub const SEEDER: u8 = 1 << 2;
    /// Brings others together.
    pub const BOOTSTRAP: u8 = crate::net::ROLE_BOOTSTRAP;
    /// Follows.
    pub const OBSERVER: u8 = 1 << 4;
    /// All of them, for a first run on one machine.
    pub const ALL: u8 = PEER | VALIDATOR | SEEDER | BOOTSTRAP;

    /// The bits of names joined by commas.
    ///
    /// # Errors
    /// The name that is none.
    pub fn parse(text: &str) -> Result<u8, String> {
        text.split(',').try_fold(0, |bits, name| {
            Ok(bits
                | match name.trim() {
                    "peer" => PEER,
                    "validator" => VALIDATOR,
                    "seeder" => SEEDER,
                    "bootstrap" => BOOTSTRAP,
                    "observer" => OBSERVER,
                    "all" => ALL,
                    other => {
                        let all = "peer, validator, seeder, bootstrap, observer, all";
                        return Err(format!("role {other:?} is none of {all}"));
                    }
                })
        })
    }
}

/// One order to train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainJob {
    /// The run, for the update's header.
    pub run: Hash,
    /// The round.
    pub round: u64,
    /// Whose update it is.
    pub peer: PeerId,
    /// The place in the round: with the round it says which interval of the data's order is ours.
    pub slot: u32,
    /// Places of a round.
    pub slots: u32,
    /// The round whose state is the start.
    pub base: u64,
    /// Its root, for the update's header.
    pub base_root: Hash,
    /// Milliseconds from now until validators wait no longer. What is not done by then is left out: an update tells of how
    /// many steps it is, and counts by its tokens.
    pub budget_ms: u64,
}

/// What training made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The update: exactly the spec's `blob_bytes`.
    pub update: Vec<u8>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Steps made; fewer than H where the time or a stop came first.
    pub steps: u32,
    /// The mean training loss, for people.
    pub loss: Option<f32>,
}

/// What a run is about: weights, data, an optimiser. Brought by the crate that trains.
///
/// `train` runs on one thread; `check`, `fold`, `mend` and `settle` on another, one at a time; `leaf` is called from
/// any. An error's text stops the process, save that of `train`, which costs the round.
pub trait Work: Send + Sync + 'static {
    /// The round and root of the state on disk: (0, genesis) at a first start.
    fn settled(&self) -> (u64, Hash);

    /// Trains from the state of `job.base` and makes an update. Ends early, with what it has, once `stop` says so.
    ///
    /// # Errors
    /// Why there is no update.
    fn train(&self, job: &TrainJob, stop: &dyn Fn() -> bool) -> Result<Made, String>;

    /// Decodes an update and holds its header against what it must be.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, run: &Hash, update: &[u8], expect: &Expect) -> Result<Sound, Reason>;

    /// Applies updates, in this order, to the state in memory. `read` gives an update's bytes, as often as asked.
    ///
    /// # Errors
    /// Why the state cannot be made.
    fn fold(&self, round: u64, parts: &[Part], read: &dyn Fn(&Hash) -> Result<Vec<u8>, String>) -> Result<(), String>;

    /// Puts leaf `index` of the state in memory into `into`, which is empty: little-endian f32.
    fn leaf(&self, index: u64, into: &mut Vec<u8>);

    /// Replaces leaf `index` of the state in memory.
    ///
    /// # Errors
    /// Why not.
    fn mend(&self, index: u64, bytes: &[u8]) -> Result<(), String>;

    /// Makes the state in memory that on disk, with its round and root, in one step: a kill leaves this or the last.
    ///
    /// # Errors
    /// Why not.
    fn settle(&self, round: u64, root: Hash) -> Result<(), String>;
}

/// How a run's blobs travel.
#[derive(Clone)]
pub enum Way {
    /// From their makers and from each other.
    Mesh,
    /// Pushed once to a seeder. Validators and whoever says that it seeds count as seeders.
    Seeded,
    /// By way of a bucket.
    Bucket(Arc<dyn Objects>),
}

/// Takes what happens, a line each, with the time in milliseconds since 1970. It is called on the driver's thread.
pub type Log = Box<dyn FnMut(&Timed) + Send>;

/// What a process is told at its start.
pub struct Setup {
    /// The run.
    pub spec: Arc<RunSpec>,
    /// Who we are.
    pub key: Key,
    /// Bits of [`role`]. Who has a validator's key validates whatever they say.
    pub roles: u8,
    /// Where the journal and the blobs are.
    pub dir: PathBuf,
    /// Bytes that blobs may take.
    pub quota: u64,
    /// Whom to dial first.
    pub join: Vec<SocketAddr>,
    /// The invitation, where the run asks for one.
    pub token: Option<Signature>,
    /// How blobs travel.
    pub way: Way,
    /// Takes the event log.
    pub log: Log,
}

/// Why a process ended or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The blobs.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error("journal {path}: {source}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The journal is not what was written.
    #[error(
        "journal {path} is damaged at byte {at}: whole records stand behind what is none; bring back a copy, or move it away, but \
         a validator without it may contradict what it has signed"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the first record begins that is none.
        at: usize,
    },
    /// The work's error.
    #[error("{what}: {why}")]
    Work {
        /// What it was doing.
        what: &'static str,
        /// What it said.
        why: String,
    },
    /// The state at hand is not the run's.
    #[error("the weights at round 0 have root {got}, the run starts from {want}; is the model the run's own?")]
    Genesis {
        /// The work's root.
        got: Hash,
        /// The spec's.
        want: Hash,
    },
    /// Updates beyond what a blob may be.
    #[error("updates of {bytes} bytes; at most {BLOB_MAX} are possible")]
    Updates {
        /// Their size.
        bytes: u64,
    },
    /// A thread could not be had.
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// How a process shall end.
#[derive(Debug, Default)]
pub struct Stop {
    how: AtomicU8,
    told: Notify,
}

impl Stop {
    /// A process that shall go on.
    pub fn new() -> Arc<Stop> {
        Arc::default()
    }

    /// Leaves in good order: says goodbye, ends the training under way.
    pub fn gently(&self) {
        self.how.store(1, Ordering::Release);
        self.told.notify_one();
    }

    /// Ends as a crash would: for tests.
    pub fn at_once(&self) {
        self.how.store(2, Ordering::Release);
        self.told.notify_one();
    }

    fn asked(&self) -> u8 {
        self.how.load(Ordering::Acquire)
    }
}

/// A running process.
pub struct Node {
    thread: JoinHandle<Result<(), NodeError>>,
    stop: Arc<Stop>,
    board: Arc<status::Board>,
    addr: SocketAddr,
}

impl Node {
    /// Starts the driver on a thread of its own. `net` gives the address to bind and the owner's caps; message size,
    /// roles and seed are set here.
    ///
    /// # Errors
    /// When the address is taken, the disk fails, or the work is not the run's.
    pub fn start(setup: Setup, mut net: crate::net::Config, work: Arc<dyn Work>) -> Result<Node, NodeError> {
        net.message_bytes_max = setup.spec.message_bytes_max();
        net.roles = setup.roles;
        let me = setup.key.id();
        net.seed = u64::from_le_bytes(me.0[..8].try_into().expect("8 of 32 bytes"));
        let (stop, board) = (Stop::new(), Arc::new(status::Board::new(&setup)));
        let (up, is_up) = std::sync::mpsc::sync_channel(1);
        let (stop2, board2) = (stop.clone(), board.clone());
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(NodeError::Thread)?;
            runtime.block_on(async move {
                let (net, inbox) = match crate::net::Net::bind(net, setup.key.clone()) {
                    Ok(bound) => bound,
                    Err(e) => return Err(e.into()),
                };
                let addr = net.local_addr();
                run(setup, net, inbox, work, stop2, board2, move || {
                    let _ = up.send(addr);
                })
                .await
            })
        };
        let thread = std::thread::Builder::new().name("esker-peer".into()).spawn(body).map_err(NodeError::Thread)?;
        match is_up.recv() {
            Ok(addr) => Ok(Node { thread, stop, board, addr }),
            // The thread ended before it was up: its error says why.
            Err(_) => match join(thread) {
                Err(e) => Err(e),
                Ok(()) => unreachable!("node: it ends well only after it was up"),
            },
        }
    }

    /// Where it is bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it is doing.
    pub fn snapshot(&self) -> Snapshot {
        self.board.snapshot()
    }

    /// What others may hold to watch it.
    pub fn board(&self) -> Arc<status::Board> {
        self.board.clone()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it in good order and waits.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(self) -> Result<(), NodeError> {
        self.stop.gently();
        join(self.thread)
    }

    /// Ends it as a crash would and waits: for tests.
    ///
    /// # Errors
    /// What ended it before.
    pub fn kill(self) -> Result<(), NodeError> {
        self.stop.at_once();
        join(self.thread)
    }
}

fn join(thread: JoinHandle<Result<(), NodeError>>) -> Result<(), NodeError> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
