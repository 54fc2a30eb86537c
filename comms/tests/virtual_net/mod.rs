//! A network in memory and in virtual time, under real quinn: rates, queues, delay, loss, reordering, duplication and
//! translators, all from one seed.
//!
//! Each host has an up-link and a down-link: a packet leaves when the bytes before it have left, waits `delay`, and
//! arrives when the bytes before it have arrived; either queue drops what would wait longer than `queue`. The clock is
//! tokio's, which stands still while anybody has work. Every packet goes into a running hash of the trace, so that two
//! runs can be compared to the packet.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use esker_comms::Key;
use esker_comms::net::backoff::Jitter;
use esker_comms::net::{Config, Inbox, Net};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, TokioRuntime, UdpPoller};
use tokio::time::{Instant, Sleep, sleep_until};

/// How a host hangs on the network.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub up_mbit: f64,
    pub down_mbit: f64,
    /// Half of it on the way from here, half on the way to here.
    pub rtt: Duration,
    pub queue: Duration,
    pub loss: f64,
    pub reorder: f64,
    pub duplicate: f64,
    /// Lets in only what comes from where it has sent to.
    pub filtered: bool,
}

impl Line {
    pub fn of(mbit: f64, rtt_ms: u64) -> Line {
        let ms = Duration::from_millis;
        let (queue, rtt) = (ms(100), ms(rtt_ms));
        Line { up_mbit: mbit, down_mbit: mbit, rtt, queue, loss: 0.0, reorder: 0.0, duplicate: 0.0, filtered: false }
    }
}

struct Host {
    line: Line,
    up_free: Instant,
    down_free: Instant,
    inbox: BTreeMap<(Instant, u64), (SocketAddr, Vec<u8>)>,
    waker: Option<Waker>,
    sent_to: BTreeSet<SocketAddr>,
    down: bool,
    life: u64,
}

struct State {
    hosts: BTreeMap<SocketAddr, Host>,
    dice: Jitter,
    start: Instant,
    packets: u64,
    lost: u64,
    trace: u64,
    log: Option<Vec<(u64, SocketAddr, SocketAddr, usize)>>,
}

/// The network.
#[derive(Clone)]
pub struct Wire(Arc<Mutex<State>>);

impl Wire {
    pub fn new(seed: u64) -> Wire {
        Wire(Arc::new(Mutex::new(State {
            hosts: BTreeMap::new(),
            dice: Jitter::new(seed),
            start: Instant::now(),
            packets: 0,
            lost: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            log: None,
        })))
    }

    /// Packets sent, packets lost, hash of all of them with their times.
    pub fn trace(&self) -> (u64, u64, u64) {
        let s = self.0.lock().unwrap();
        (s.packets, s.lost, s.trace)
    }

    pub fn record(&self) {
        self.0.lock().unwrap().log = Some(Vec::new());
    }

    pub fn log(&self) -> Vec<(u64, SocketAddr, SocketAddr, usize)> {
        self.0.lock().unwrap().log.clone().unwrap_or_default()
    }

    pub fn addr(n: u16) -> SocketAddr {
        let [a, b] = n.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, 1)), 4000)
    }

    /// The socket of a new process at host `n`. That of its predecessor is dead from now on: what it sends is lost.
    pub fn socket(&self, n: u16, line: Line) -> Arc<Socket> {
        let addr = Wire::addr(n);
        let now = Instant::now();
        let host = Host {
            line,
            up_free: now,
            down_free: now,
            inbox: BTreeMap::new(),
            waker: None,
            sent_to: BTreeSet::new(),
            down: false,
            life: 0,
        };
        let mut state = self.0.lock().unwrap();
        let life = state.hosts.get(&addr).map_or(0, |h| h.life + 1);
        state.hosts.insert(addr, Host { life, ..host });
        Arc::new(Socket { addr, life, wire: self.clone(), sleep: Mutex::new(Box::pin(sleep_until(now))) })
    }

    /// A process at host `n`; its key and QUIC's draws follow from `n`.
    pub fn net(&self, n: u16, line: Line, tune: impl FnOnce(&mut Config)) -> (Net, Inbox) {
        let mut config = Config::new(Wire::addr(n), 64 << 10);
        config.rng_seed = Some([n as u8 ^ 0x5a; 32]);
        config.seed = u64::from(n);
        config.bulk_peers_max = 256;
        tune(&mut config);
        Net::over(config, key(n), self.socket(n, line), Arc::new(TokioRuntime)).unwrap()
    }

    /// Cuts a host off, or joins it again.
    pub fn cut(&self, n: u16, down: bool) {
        self.0.lock().unwrap().hosts.get_mut(&Wire::addr(n)).unwrap().down = down;
    }

    pub fn inject(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.0.lock().unwrap().send(from, to, bytes);
    }
}

pub fn key(n: u16) -> Key {
    let mut seed = [0; 32];
    seed[..2].copy_from_slice(&n.to_be_bytes());
    Key::from_seed(seed)
}

fn on_line(free: &mut Instant, at: Instant, len: usize, mbit: f64, queue: Duration) -> Option<Instant> {
    let start = (*free).max(at);
    if start - at > queue {
        return None;
    }
    *free = start + Duration::from_secs_f64(len as f64 * 8.0 / (mbit * 1e6));
    Some(*free)
}

impl State {
    fn note(&mut self, from: SocketAddr, to: SocketAddr, len: usize) {
        let at = self.start.elapsed().as_nanos() as u64;
        for word in [at, u64::from(from.port()), len as u64] {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01b3);
        }
        for addr in [from, to] {
            if let IpAddr::V4(ip) = addr.ip() {
                self.trace = (self.trace ^ u64::from(ip.to_bits())).wrapping_mul(0x0100_0000_01b3);
            }
        }
        self.packets += 1;
        if let Some(log) = &mut self.log {
            log.push((at, from, to, len));
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.note(from, to, bytes.len());
        let now = Instant::now();
        let dice = [self.dice.unit(), self.dice.unit(), self.dice.unit()];
        let Some(source) = self.hosts.get_mut(&from) else { return };
        let line = source.line;
        source.sent_to.insert(to);
        // 28 bytes of IP and UDP, and no path carries more than 1500.
        let len = bytes.len() + 28;
        let left = on_line(&mut source.up_free, now, len, line.up_mbit, line.queue);
        let cut = source.down || len > 1500;
        let Some(target) = self.hosts.get_mut(&to) else { return };
        let closed = target.down || target.line.filtered && !target.sent_to.contains(&from);
        let mut wait = line.rtt / 4 + target.line.rtt / 4;
        if dice[0] < line.reorder {
            wait += Duration::from_millis(3);
        }
        let there = left
            .and_then(|at| on_line(&mut target.down_free, at + wait, len, target.line.down_mbit, target.line.queue));
        let lost = dice[1] < line.loss;
        match there {
            Some(at) if !lost && !cut && !closed => {
                let seq = self.packets;
                target.inbox.insert((at, 2 * seq), (from, bytes.to_vec()));
                if dice[2] < line.duplicate {
                    target.inbox.insert((at + Duration::from_millis(1), 2 * seq + 1), (from, bytes.to_vec()));
                }
                if let Some(waker) = target.waker.take() {
                    waker.wake();
                }
            }
            _ => self.lost += 1,
        }
    }
}

pub struct Socket {
    addr: SocketAddr,
    life: u64,
    wire: Wire,
    sleep: Mutex<Pin<Box<Sleep>>>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket({})", self.addr)
    }
}

#[derive(Debug)]
struct Always;

impl UdpPoller for Always {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Always)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let mut state = self.wire.0.lock().unwrap();
        if state.hosts[&self.addr].life != self.life {
            return Ok(());
        }
        let each = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        transmit.contents.chunks(each).for_each(|packet| state.send(self.addr, transmit.destination, packet));
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.wire.0.lock().unwrap();
        let host = state.hosts.get_mut(&self.addr).unwrap();
        if host.life != self.life {
            return Poll::Pending;
        }
        let now = Instant::now();
        let mut count = 0;
        while count < bufs.len() {
            let Some(entry) = host.inbox.first_entry() else { break };
            if entry.key().0 > now {
                break;
            }
            let (from, bytes) = entry.remove();
            bufs[count][..bytes.len()].copy_from_slice(&bytes);
            meta[count] = RecvMeta { addr: from, len: bytes.len(), stride: bytes.len(), ecn: None, dst_ip: None };
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        host.waker = Some(cx.waker().clone());
        if let Some(((at, _), _)) = host.inbox.first_key_value() {
            let mut sleep = self.sleep.lock().unwrap();
            sleep.as_mut().reset(*at);
            if sleep.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

use std::future::Future;

/// A runtime in virtual time.
pub fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(test)
}

/// Bytes that do not repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Jitter::new(seed);
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&dice.draw().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Reads events and forgets them, so that nobody waits.
pub fn drain(mut events: tokio::sync::mpsc::Receiver<esker_comms::net::Event>) {
    tokio::spawn(async move { while events.recv().await.is_some() {} });
}
