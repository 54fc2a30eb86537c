//! One process of a run: opens what there is, starts the node, and tells what it sees, a line a round.

use super::events::EventLog;
use super::lock::Lock;
use super::work::OwnerWork;
use super::{PeersError, Route, spec};
use crate::config::Run;
use crate::folder::FolderError;
use crate::live::{Live, Tells};
use crate::outer::Owner;
use crate::source;
use esker_comms::blob::bucket;
use esker_comms::net::Config;
use esker_comms::node::{Node, Setup, Snapshot, Way, metrics_text, role, status_json};
use esker_comms::{Hash, Key, PeerId, RunSpec, Signature};
use esker_kernels::device::Stream;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Name of the key inside a peer's folder.
pub const KEY: &str = "key";
/// Bytes that updates and checkpoints of others may take on the disk.
const QUOTA: u64 = 64 << 30;
/// A run that has not begun by then waits for somebody.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a process is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is trained.
    pub run: Run,
    /// Its folder: key, owner's state, journal, updates. No other process may have it.
    pub dir: PathBuf,
    /// Where it listens.
    pub bind: SocketAddr,
    /// Whom to dial first.
    pub join: Vec<SocketAddr>,
    /// Bits of `esker_comms::node::role`.
    pub roles: u8,
    /// How long it goes on serving after the last round.
    pub linger: Duration,
    /// Where it shows its page and metrics, if anywhere.
    pub page: Option<SocketAddr>,
    /// An invitation, where the run asks for one.
    pub invite: Option<Signature>,
}

/// What it tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// It is on the network.
    Listening {
        /// Where.
        addr: SocketAddr,
        /// Its key.
        peer: PeerId,
        /// The run's id, which all owners of one run have in common.
        run: Hash,
        /// Rounds of the whole run.
        rounds: u64,
        /// Bytes of an update.
        update_bytes: u64,
        /// How many times less that is than the model in f32.
        compression: f64,
        /// Where its page is.
        page: Option<SocketAddr>,
    },
    /// A round is applied.
    Round(Line),
    /// The last round is applied.
    Done {
        /// Loss of the shared weights on the validation set, where there is one.
        nll: Option<f64>,
        /// The same in bits a byte.
        bits_per_byte: Option<f64>,
    },
}

/// A round, as one process saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Which, from 1.
    pub round: u64,
    /// Root of the weights after it.
    pub root: String,
    /// Our mean training loss in it.
    pub loss: Option<f32>,
    /// Whether our update counted.
    pub counted: Option<bool>,
    /// Updates that counted.
    pub entries: u32,
    /// Updates that did not.
    pub rejects: u32,
    /// Bytes sent since the start.
    pub up_bytes: u64,
    /// Bytes received since the start.
    pub down_bytes: u64,
    /// Milliseconds since the round before.
    pub took_ms: u64,
}

/// An owner with what all agree on, as it stands in its folder.
pub(super) struct Opened {
    pub key: Key,
    pub owner: Owner,
    pub spec: RunSpec,
}

/// Opens the folder, tokens and weights of `run`, and makes the key at the first start.
pub(super) fn open(run: &Run, dir: &Path) -> Result<Opened, PeersError> {
    std::fs::create_dir_all(dir).map_err(|source| FolderError::Io { path: dir.into(), action: "create", source })?;
    let key = Key::load_or_create(&dir.join(KEY))?;
    let opened = source::open(run, dir)?;
    let stream = Stream::cpu(run.train.threads).map_err(crate::outer::OuterError::from)?;
    let mut owner = Owner::open(Arc::new(stream), run.clone(), &opened)?;
    let spec = spec::spec(run, &owner, &opened.identity, key.id())?;
    owner.name_run(spec.id().0);
    Ok(Opened { key, owner, spec })
}

/// Runs until all rounds are applied and `linger` is over, or `stop` is raised.
pub fn run(options: Options, stop: &AtomicBool, sink: &mut dyn FnMut(Event)) -> Result<(), PeersError> {
    let Options { run, dir, bind, join, roles, linger, page, invite } = options;
    std::fs::create_dir_all(&dir).map_err(|source| FolderError::Io { path: dir.clone(), action: "create", source })?;
    let _lock = Lock::take(&dir)?;
    let Opened { key, mut owner, spec } = open(&run, &dir)?;
    owner.restore(&dir)?;
    let way = match &spec::peers(&run)?.route {
        Route::Mesh => Way::Mesh,
        Route::Seeded => Way::Seeded,
        Route::Bucket(url) => Way::Bucket(bucket::open(url)?),
    };
    let mut events = EventLog::open(&dir)?;
    let log = Box::new(move |line: &_| events.put(line));
    let (me, run_id, owners_min) = (key.id(), spec.id(), spec::peers(&run)?.owners_min);
    let (rounds, update_bytes, compression) = (spec.limits.rounds, spec.blob_bytes, owner.layout().compression());
    let work = Arc::new(OwnerWork::new(owner, me, dir.clone()));
    // Who observes makes no update; who trains may do all the rest besides.
    let roles = if roles == 0 { role::PEER } else { roles };
    let setup = Setup { spec: Arc::new(spec), key, roles, dir, quota: QUOTA, join, token: invite, way, log };
    let node = Node::start(setup, Config::new(bind, 0), Arc::clone(&work) as Arc<dyn esker_comms::node::Work>)?;
    let live = page.map(|addr| show(addr, &node)).transpose()?;
    let page = live.as_ref().map(Live::addr);
    sink(Event::Listening { addr: node.addr(), peer: me, run: run_id, rounds, update_bytes, compression, page });
    let (mut told, start, mut waits) = (0, Instant::now(), true);
    let mut end: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) && node.is_running() && end.is_none_or(|end| Instant::now() < end) {
        let now = node.snapshot();
        tell(&now, &mut told, sink);
        // Once: who waits for others, or for ever, is told what for.
        if waits && start.elapsed() > PATIENCE {
            waits = false;
            if now.tip == 0 && now.training.is_none() {
                let linked = now.peers.len();
                tracing::warn!(target: "esker::peer", linked, owners_min, run = %run_id, "no round has begun: it waits for peers.owners_min owners and a quorum of validators, all with this run's id");
            }
        }
        if now.applied >= rounds && end.is_none() {
            let validated = work.score()?;
            let (nll, bits_per_byte) = (validated.map(|v| v.nll), validated.map(|v| v.bits_per_byte));
            sink(Event::Done { nll, bits_per_byte });
            end = Some(Instant::now() + linger);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    node.stop()?;
    match end {
        None => Err(PeersError::Stopped),
        Some(_) => Ok(()),
    }
}

/// Tells the rounds after `told` that are applied.
fn tell(now: &Snapshot, told: &mut u64, sink: &mut dyn FnMut(Event)) {
    let before = *told;
    for line in now.rounds.iter().filter(|line| line.round > before) {
        let Some(root) = line.root else {
            // What a checkpoint took the state past was never applied here.
            if line.round < now.applied {
                continue;
            }
            break;
        };
        *told = line.round;
        sink(Event::Round(Line {
            round: line.round,
            root: root.to_string(),
            loss: line.loss,
            counted: line.counted,
            entries: line.entries,
            rejects: line.rejects,
            up_bytes: line.up_bytes,
            down_bytes: line.down_bytes,
            took_ms: line.took_ms,
        }));
    }
}

/// The page of what `node` does; it is gone with what this returns.
fn show(addr: SocketAddr, node: &Node) -> Result<Live, PeersError> {
    let (status, metrics) = (node.board(), node.board());
    let tells = Tells {
        status: Arc::new(move || status_json(&status.snapshot())),
        metrics: Arc::new(move || metrics_text(&metrics.snapshot())),
    };
    Ok(Live::start(addr, tells)?)
}
