//! Bytes between peers over QUIC.
//!
//! This is the one module that knows quinn. Above it there are peers, messages and streams:
//!
//! - a *link* to a peer is a control connection: ordered messages both ways, each within a bound that the caller sets
//!   (`link.rs`, `frame.rs`);
//! - *pipes* to a peer are bulk connections, one at first and up to eight over a lossy path; a stream in a pipe asks
//!   for one thing and brings it (`pipe.rs`);
//! - one UDP socket dials and accepts, so that a hole punched for one is a hole for all (`punch.rs`);
//! - who is at the other end is proven by its key (`tls.rs`), who may come in is decided by the gate (`gate.rs`), how
//!   fast bytes move by the owner's caps (`pace.rs`).
//!
//! Windows and limits, with what they are for:
//!
//! | | control | bulk |
//! | --- | --- | --- |
//! | receive window of a stream | 256 KiB | 2 MiB: at 1200 bytes a packet it cannot hold the 1024 gaps that end a connection |
//! | receive window of a connection | 256 KiB | 32 MiB |
//! | send window | 1 MiB | 32 MiB |
//! | streams a side may open | 1 one-way | 64 two-way, one chunk of 1 MiB on each |
//! | keep-alive, idle | 5 s, 15 s: a round waits for a peer that died until its link is gone | none, 45 s: a pipe that nobody uses goes away |
//!
//! Memory at worst is 64 MiB a pipe, so at most `bulk_peers_max` peers hold pipes into this process at once.
//! Congestion control is `loss.rs`. Sources: RFC 9000, RFC 9002; quinn's advisory GHSA-4w2j-m93h-cj5j for the bound
//! on gaps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, TokioRuntime, VarInt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::key::{Key, PeerId};

pub mod backoff;
pub mod book;
mod error;
pub mod frame;
pub mod gate;
mod keeper;
mod link;
pub mod loss;
pub mod pace;
mod pipe;
mod punch;
mod tls;
mod windows;

pub use error::NetError;
pub use pipe::{Stream, StreamFault};
pub use tls::{ALPN_BULK, ALPN_CONTROL, peer_of_spki, spki};

/// Whom a process lets in, by key.
pub type Admit = Arc<dyn Fn(&PeerId) -> bool + Send + Sync>;

/// The role bit of a peer that brings others together.
pub const ROLE_BOOTSTRAP: u8 = 1 << 3;

/// What a process says about its place in the network.
#[derive(Clone)]
pub struct Config {
    /// The one address at which it dials and accepts; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Bytes of the longest message, from the run's spec.
    pub message_bytes_max: usize,
    /// Role bits told to others.
    pub roles: u8,
    /// Mbit/s that bulk may send, over all peers; `None` is no cap.
    pub up_mbit: Option<f64>,
    /// Mbit/s that bulk may receive.
    pub down_mbit: Option<f64>,
    /// Mbit/s that bulk may send to one peer.
    pub peer_up_mbit: Option<f64>,
    /// Mbit/s that bulk may receive from one peer.
    pub peer_down_mbit: Option<f64>,
    /// Links that the keeper opens of itself; peers may open more, up to twice as many.
    pub links_max: usize,
    /// Peers that may hold pipes into this process at once.
    pub bulk_peers_max: usize,
    /// Messages a second that one peer may send; more are read later, not lost.
    pub messages_per_s: f64,
    /// The numbers of the gate.
    pub gate: gate::Limits,
    /// Who may come in; `None` is everybody.
    pub admit: Option<Admit>,
    /// Seed of jitter.
    pub seed: u64,
    /// Seed of QUIC's own draws. Only a test sets it: it makes connection ids and timers a function of the seed.
    pub rng_seed: Option<[u8; 32]>,
}

impl Config {
    /// Usual numbers for a process that binds `bind` and whose messages have at most `message_bytes_max` bytes.
    pub fn new(bind: SocketAddr, message_bytes_max: usize) -> Config {
        Config {
            bind,
            message_bytes_max,
            roles: 0,
            up_mbit: None,
            down_mbit: None,
            peer_up_mbit: None,
            peer_down_mbit: None,
            links_max: 64,
            bulk_peers_max: 16,
            messages_per_s: 500.0,
            gate: gate::Limits::default(),
            admit: None,
            seed: 0,
            rng_seed: None,
        }
    }
}

/// What happened on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer can be spoken to.
    Up {
        /// Who.
        peer: PeerId,
        /// What it said of itself.
        hello: frame::Hello,
        /// Our clock when its first frame came, milliseconds since 1970.
        at_ms: u64,
    },
    /// A peer is gone; it may come back.
    Down {
        /// Who.
        peer: PeerId,
        /// Why, for people.
        why: String,
    },
    /// A message.
    Message {
        /// From whom.
        peer: PeerId,
        /// At most `message_bytes_max` bytes, otherwise unchecked.
        bytes: Vec<u8>,
    },
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of messages and streams sent.
    pub up_bytes: u64,
    /// Bytes of messages and streams received.
    pub down_bytes: u64,
    /// Links at present.
    pub links: usize,
    /// Pipes at present.
    pub pipes: usize,
    /// Handshakes that the gate turned away.
    pub refused: u64,
}

/// One peer as the network sees it.
#[derive(Debug, Clone)]
pub struct PeerNow {
    /// Who.
    pub peer: PeerId,
    /// Where its packets come from.
    pub addr: SocketAddr,
    /// The round trip, at present.
    pub rtt: Duration,
    /// What it said of itself.
    pub hello: frame::Hello,
    /// Pipes open to it.
    pub pipes: usize,
    /// Its clock less ours when it came, milliseconds, half a round trip allowed for.
    pub skew_ms: i64,
}

/// What the network brings; each channel has a bound and pushes back.
pub struct Inbox {
    /// Links and messages.
    pub events: mpsc::Receiver<Event>,
    /// Streams that peers opened.
    pub streams: mpsc::Receiver<Stream>,
}

pub(crate) struct Shared {
    pub me: PeerId,
    pub session: u64,
    pub config: Config,
    pub endpoint: Endpoint,
    pub tls: tls::Tls,
    pub start: Instant,
    pub up: pace::Pacer,
    pub down: pace::Pacer,
    pub events: mpsc::Sender<Event>,
    pub streams: mpsc::Sender<Stream>,
    pub up_bytes: AtomicU64,
    pub down_bytes: AtomicU64,
    pub refused: AtomicU64,
    pub state: Mutex<State>,
}

pub(crate) struct State {
    pub gate: gate::Gate,
    pub book: book::Book,
    pub links: BTreeMap<PeerId, link::Link>,
    pub pipes: BTreeMap<PeerId, pipe::Pipes>,
    /// Where others see us, by who says so.
    pub observed: BTreeMap<PeerId, SocketAddr>,
    /// Peers that a task is dialling.
    pub dialing: BTreeSet<PeerId>,
    /// Who goes before strangers where there is not room for all.
    pub favoured: BTreeSet<PeerId>,
    pub punches: pace::Bucket,
    pub generation: u64,
    pub closing: bool,
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock of the network's state")
    }

    pub fn admits(&self, peer: &PeerId) -> bool {
        self.config.admit.as_ref().is_none_or(|f| f(peer))
    }
}

/// Milliseconds since 1970 by the system's clock.
pub fn clock_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

/// A process on the network. Cheap to clone.
#[derive(Clone)]
pub struct Net(pub(crate) Arc<Shared>);

impl Net {
    /// Binds the socket and starts to accept. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(config: Config, key: Key) -> Result<(Net, Inbox), NetError> {
        let addr = config.bind;
        let fault = |source| NetError::Bind { addr, source };
        let socket = std::net::UdpSocket::bind(addr).map_err(fault)?;
        let runtime = Arc::new(TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket).map_err(fault)?;
        Net::over(config, key, socket, runtime)
    }

    /// The same over any socket: tests give one in memory.
    ///
    /// # Errors
    /// When the socket has no address.
    pub fn over(
        config: Config,
        key: Key,
        socket: Arc<dyn AsyncUdpSocket>,
        runtime: Arc<dyn Runtime>,
    ) -> Result<(Net, Inbox), NetError> {
        let key = Arc::new(key);
        let tls = tls::Tls::new(key.clone());
        let mut endpoint_config = EndpointConfig::default();
        endpoint_config.rng_seed(config.rng_seed);
        let server = windows::server(tls.server());
        let addr = config.bind;
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config, Some(server), socket, runtime)
            .map_err(|source| NetError::Bind { addr, source })?;
        let (events, events_rx) = mpsc::channel(256);
        let (streams, streams_rx) = mpsc::channel(64);
        let mut session = [0; 8];
        rustls::crypto::ring::default_provider().secure_random.fill(&mut session).expect("the system draws numbers");
        let shared = Shared {
            me: key.id(),
            session: u64::from_le_bytes(session),
            endpoint,
            tls,
            start: Instant::now(),
            up: pace::Pacer::new(config.up_mbit, config.peer_up_mbit),
            down: pace::Pacer::new(config.down_mbit, config.peer_down_mbit),
            events,
            streams,
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            state: Mutex::new(State {
                gate: gate::Gate::new(config.gate.clone()),
                book: book::Book::default(),
                links: BTreeMap::new(),
                pipes: BTreeMap::new(),
                observed: BTreeMap::new(),
                dialing: BTreeSet::new(),
                favoured: BTreeSet::new(),
                punches: pace::Bucket::new(1.0, 16.0),
                generation: 0,
                closing: false,
            }),
            config,
        };
        let shared = Arc::new(shared);
        tokio::spawn(link::accept(shared.clone()));
        Ok((Net(shared), Inbox { events: events_rx, streams: streams_rx }))
    }

    /// This process's id.
    pub fn me(&self) -> PeerId {
        self.0.me
    }

    /// Where it is bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.endpoint.local_addr().unwrap_or(self.0.config.bind)
    }

    /// Dials an address and waits for the link. With `expect` nobody else is accepted there.
    ///
    /// # Errors
    /// When nobody answers, the key is another, or the versions do not meet.
    pub async fn connect(&self, addr: SocketAddr, expect: Option<PeerId>) -> Result<PeerId, NetError> {
        link::connect(&self.0, addr, expect).await
    }

    /// A link to a peer: the one there is, else by its known addresses, else by a punch through a bootstrap.
    ///
    /// # Errors
    /// When none of these works.
    pub async fn reach(&self, peer: PeerId) -> Result<(), NetError> {
        keeper::reach(&self.0, peer).await
    }

    /// Keeps links: to the addresses of `join` and to peers heard of, `prefer`red ones first, up to `links_max`.
    /// Runs until the process leaves the network.
    pub fn keep(&self, join: Vec<SocketAddr>, prefer: BTreeSet<PeerId>) {
        tokio::spawn(keeper::keep(self.0.clone(), join, prefer));
    }

    /// Queues a message. It arrives unless the link ends before.
    ///
    /// # Errors
    /// When there is no link, the message is too long, or the peer's queue is full; the link is then ended.
    pub fn send(&self, peer: PeerId, bytes: &[u8]) -> Result<(), NetError> {
        link::send(&self.0, peer, bytes)
    }

    /// Opens a stream in a pipe to the peer; makes a pipe when there is none.
    ///
    /// # Errors
    /// When the peer cannot be reached.
    pub async fn open(&self, peer: PeerId) -> Result<Stream, NetError> {
        pipe::open(&self.0, peer).await
    }

    /// How many pipes to hold to a peer, 1 to 8: more than one when its path loses packets.
    pub fn want_pipes(&self, peer: PeerId, count: usize) {
        pipe::want(&self.0, peer, count);
    }

    /// Peers with a link, in order of id.
    pub fn peers(&self) -> Vec<PeerNow> {
        let state = self.0.state();
        let pipes = |id: &PeerId| state.pipes.get(id).map_or(0, |p| p.len());
        state.links.iter().map(|(id, l)| l.now(*id, pipes(id))).collect()
    }

    /// Whether there is a link to the peer.
    pub fn linked(&self, peer: &PeerId) -> bool {
        self.0.state().links.contains_key(peer)
    }

    /// Says who goes before strangers: in a run, its validators and who holds a slot. Where links, pipes, places in the
    /// book or turns to be served are short, a stranger gives way to one of these, so that nobody can crowd a run out of
    /// its own processes by coming under many keys.
    pub fn favour(&self, peers: BTreeSet<PeerId>) {
        self.0.state().favoured = peers;
    }

    /// Whether a peer goes before strangers.
    pub fn favours(&self, peer: &PeerId) -> bool {
        self.0.state().favoured.contains(peer)
    }

    /// Tells the book where a peer is said to be.
    pub fn hint(&self, peer: PeerId, addrs: &[SocketAddr]) {
        let mut state = self.0.state();
        let favoured = state.favoured.contains(&peer);
        state.book.heard(peer, addrs, favoured);
    }

    /// Where others see this process, by who says so.
    pub fn observed(&self) -> BTreeMap<PeerId, SocketAddr> {
        self.0.state().observed.clone()
    }

    /// Counters.
    pub fn traffic(&self) -> Traffic {
        let state = self.0.state();
        Traffic {
            up_bytes: self.0.up_bytes.load(Ordering::Relaxed),
            down_bytes: self.0.down_bytes.load(Ordering::Relaxed),
            links: state.links.len(),
            pipes: state.pipes.values().map(pipe::Pipes::len).sum(),
            refused: self.0.refused.load(Ordering::Relaxed),
        }
    }

    /// Packets that quinn sent and lost on all open connections.
    pub fn packets(&self) -> (u64, u64) {
        let state = self.0.state();
        let links = state.links.values().map(|l| l.conn.stats().path);
        let pipes = state.pipes.values().flat_map(|p| p.paths());
        links.chain(pipes).fold((0, 0), |(s, l), p| (s + p.sent_packets, l + p.lost_packets))
    }

    /// Streams that may be served at once under the cap: each gets at least 128 KiB a second.
    pub fn serve_slots(&self) -> usize {
        self.0.config.up_mbit.map_or(64, |m| ((m * 125_000.0 / 131_072.0) as usize).clamp(2, 64))
    }

    /// Leaves: queued messages are sent and acknowledged, for 2 seconds at most, then all connections end.
    pub async fn close(&self) {
        {
            let mut state = self.0.state();
            state.closing = true;
            // A link whose queue is closed sends what is in it and ends.
            state.links.clear();
        }
        let idle = self.0.endpoint.wait_idle();
        let _ = tokio::time::timeout(Duration::from_secs(2), async {
            while self.0.endpoint.open_connections() > self.0.state().pipes.values().map(pipe::Pipes::len).sum() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.0.endpoint.close(VarInt::from_u32(link::code::LEAVING), b"leaving");
        let _ = tokio::time::timeout(Duration::from_secs(1), idle).await;
    }
}
