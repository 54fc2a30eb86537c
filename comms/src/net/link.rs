//! Links: accepting and dialling, the first frames, messages both ways, and which of two links stays.
//!
//! A link is usable once both `Hello`s are read. If a peer already has one, then
//!
//! - a `Hello` of another session is from a successor of that process: the new link stays;
//! - else, if the two were dialled from different ends, the one dialled by the smaller key stays;
//! - else the newer one stays.
//!
//! Both ends come to the same answer, in whatever order they see the two. The loser is ended gently: its queue is
//! sent and acknowledged while the other end still reads it, so that no message is lost.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connecting, Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::frame::{Frame, Hello, PROTOCOL};
use super::gate::Verdict;
use super::pace::Bucket;
use super::tls::{self, ALPN_BULK, ALPN_CONTROL};
use super::{Event, NetError, PeerNow, Shared, clock_ms, keeper, pipe, punch, windows};
use crate::key::PeerId;

/// Codes with which connections are closed, for the other end's log.
pub(super) mod code {
    pub const DONE: u32 = 0;
    pub const LEAVING: u32 = 1;
    pub const BUSY: u32 = 2;
    pub const NOT_ADMITTED: u32 = 3;
    pub const PROTOCOL: u32 = 4;
    pub const STALLED: u32 = 5;
}

/// No byte for this long, and the other end counts as gone for that purpose.
pub(super) const STALL: Duration = Duration::from_secs(10);
/// A dial that takes longer has failed.
pub(super) const DIAL: Duration = Duration::from_secs(5);
/// Frames and bytes that may wait for one peer.
const QUEUE_FRAMES: usize = 1024;
const QUEUE_BYTES: usize = 8 << 20;

pub(crate) struct Link {
    generation: u64,
    dialed: bool,
    hello: Hello,
    skew_ms: i64,
    tx: mpsc::Sender<Vec<u8>>,
    queued: Arc<AtomicUsize>,
    pub conn: Connection,
    /// What the peer may ask of the network itself: who is where, and to be brought together with others.
    asks: Bucket,
    /// What others may have it told, when they ask for it.
    calls: Bucket,
}

impl Link {
    pub fn now(&self, peer: PeerId, pipes: usize) -> PeerNow {
        let addr = self.conn.remote_address();
        PeerNow { peer, addr, rtt: self.conn.rtt(), hello: self.hello.clone(), pipes, skew_ms: self.skew_ms }
    }

    pub fn roles(&self) -> u8 {
        self.hello.roles
    }

    /// Whether the peer may ask now. An answer may be a thousand times as long as its question.
    pub fn may_ask(&mut self, now: Duration) -> bool {
        self.asks.try_take(now, 1.0)
    }

    /// Whether the peer may be called on another's behalf now: strangers together cannot fill its queue.
    pub fn may_be_called(&mut self, now: Duration) -> bool {
        self.calls.try_take(now, 1.0)
    }

    /// Queues a frame; false when the peer does not take what it is sent.
    pub fn queue(&self, frame: Vec<u8>) -> bool {
        let len = frame.len();
        if self.queued.load(Ordering::Relaxed) > QUEUE_BYTES {
            return false;
        }
        let queued = self.tx.try_send(frame).is_ok();
        if queued {
            self.queued.fetch_add(len, Ordering::Relaxed);
        }
        queued
    }
}

pub(super) fn send(net: &Arc<Shared>, peer: PeerId, bytes: &[u8]) -> Result<(), NetError> {
    let max = net.config.message_bytes_max;
    if bytes.len() > max {
        return Err(NetError::Long { got: bytes.len(), max });
    }
    queue(net, peer, Frame::App(bytes.to_vec()).to_wire())
}

/// Queues a frame for a peer; ends the link of one that takes nothing.
pub(super) fn queue(net: &Arc<Shared>, peer: PeerId, frame: Vec<u8>) -> Result<(), NetError> {
    let len = frame.len() as u64;
    let stalled = {
        let state = net.state();
        let link = state.links.get(&peer).ok_or(NetError::NoLink { peer })?;
        if link.queue(frame) {
            net.up_bytes.fetch_add(len, Ordering::Relaxed);
            return Ok(());
        }
        (link.generation, link.conn.clone(), link.queued.load(Ordering::Relaxed))
    };
    let (generation, conn, queued) = stalled;
    conn.close(VarInt::from_u32(code::STALLED), b"you read too slowly");
    tokio::spawn(unlink(net.clone(), peer, generation, "it reads too slowly".into()));
    Err(NetError::Stalled { peer, queued })
}

/// Takes handshakes as they come, each through the gate.
pub(super) async fn accept(net: Arc<Shared>) {
    while let Some(incoming) = net.endpoint.accept().await {
        let from = incoming.remote_address().ip();
        // An address that may not be asked to prove itself has done so.
        let proven = incoming.remote_address_validated() || !incoming.may_retry();
        let verdict = net.state().gate.arrived(net.start.elapsed(), from, proven);
        match verdict {
            Verdict::Accept => {
                tokio::spawn(accepted(net.clone(), incoming));
                continue;
            }
            Verdict::Retry => drop(incoming.retry()),
            Verdict::Refuse => incoming.refuse(),
            Verdict::Ignore => incoming.ignore(),
        }
        net.refused.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accepted(net: Arc<Shared>, incoming: Incoming) {
    let shaken = match incoming.accept() {
        Ok(connecting) => timeout(DIAL, connecting).await,
        Err(_) => {
            net.state().gate.settled();
            return;
        }
    };
    net.state().gate.settled();
    let Ok(Ok(conn)) = shaken else { return };
    let Some(peer) = identity(&conn) else { return conn.close(VarInt::from_u32(code::PROTOCOL), b"no key") };
    let welcome = peer != net.me && net.admits(&peer) && net.state().gate.admit(net.start.elapsed(), peer);
    if !welcome {
        net.refused.fetch_add(1, Ordering::Relaxed);
        return conn.close(VarInt::from_u32(code::NOT_ADMITTED), b"not admitted, or too often");
    }
    match protocol(&conn).as_deref() {
        Some(ALPN_CONTROL) => run(net, conn, peer, false, None).await,
        Some(ALPN_BULK) => pipe::accepted(net, conn, peer),
        _ => conn.close(VarInt::from_u32(code::PROTOCOL), b"unknown protocol"),
    }
}

fn identity(conn: &Connection) -> Option<PeerId> {
    let shown = conn.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    tls::peer_of_spki(shown.first()?)
}

fn protocol(conn: &Connection) -> Option<Vec<u8>> {
    conn.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Dials and proves who answers.
pub(super) async fn dial(
    net: &Arc<Shared>,
    addr: SocketAddr,
    expect: Option<PeerId>,
    alpn: &'static [u8],
) -> Result<(Connection, PeerId), NetError> {
    let shown = Arc::new(Mutex::new(None));
    let crypto = net.tls.client(alpn, expect, &shown);
    let config = if alpn == ALPN_BULK { windows::pipe(crypto) } else { windows::link(crypto) };
    let fail = |why: String| NetError::Dial { addr, why };
    let connecting: Connecting = net.endpoint.connect_with(config, addr, tls::NAME).map_err(|e| fail(e.to_string()))?;
    let shaken = timeout(DIAL, connecting).await.map_err(|_| fail(format!("no answer within {} s", DIAL.as_secs())))?;
    let shown = *shown.lock().expect("no panic under this lock");
    match (shaken, shown, expect) {
        (_, Some(got), _) if got == net.me => Err(NetError::Own { addr }),
        (Ok(conn), Some(got), _) => Ok((conn, got)),
        (Err(_), Some(got), Some(want)) if got != want => Err(NetError::WrongKey { addr, want, got }),
        (Err(e), ..) => Err(fail(e.to_string())),
        (Ok(_), None, _) => unreachable!("link: a handshake ends without a key only when it fails"),
    }
}

pub(super) async fn connect(net: &Arc<Shared>, addr: SocketAddr, expect: Option<PeerId>) -> Result<PeerId, NetError> {
    let (conn, peer) = dial(net, addr, expect, ALPN_CONTROL).await?;
    {
        let mut guard = net.state();
        let state = &mut *guard;
        state.book.saw(peer, addr, &state.favoured);
    }
    let (ready, is_ready) = oneshot::channel();
    tokio::spawn(run(net.clone(), conn, peer, true, Some(ready)));
    match is_ready.await {
        Ok(result) => result.map(|()| peer),
        Err(_) => Err(NetError::Closing),
    }
}

type Ready = Option<oneshot::Sender<Result<(), NetError>>>;

/// The life of a link from handshake to end.
async fn run(net: Arc<Shared>, conn: Connection, peer: PeerId, dialed: bool, ready: Ready) {
    let (addr, begun) = (conn.remote_address(), Instant::now());
    let met = timeout(STALL, greet(&net, &conn)).await.unwrap_or_else(|_| Err("no greeting within 10 s".into()));
    let (hello, tx, rx) = match met {
        Ok(met) => met,
        Err(why) => {
            let why = conn.close_reason().map_or(why, |r| r.to_string());
            conn.close(VarInt::from_u32(code::PROTOCOL), why.as_bytes());
            let _ = ready.map(|r| r.send(Err(NetError::Dial { addr, why })));
            return;
        }
    };
    if hello.newest < PROTOCOL.0 || hello.oldest > PROTOCOL.1 {
        let (oldest, newest) = (hello.oldest, hello.newest);
        let fault = NetError::Version { peer, oldest, newest };
        conn.close(VarInt::from_u32(code::PROTOCOL), fault.to_string().as_bytes());
        let _ = ready.map(|r| r.send(Err(fault)));
        return;
    }
    let (queue, queued_frames) = mpsc::channel(QUEUE_FRAMES);
    let queued = Arc::new(AtomicUsize::new(0));
    let at_ms = clock_ms();
    let sent_ms = at_ms as i64 - conn.rtt().as_millis() as i64 / 2;
    let entry = Link {
        generation: 0,
        dialed,
        hello: hello.clone(),
        skew_ms: (hello.clock_ms as i64).saturating_sub(sent_ms),
        tx: queue,
        queued: queued.clone(),
        conn: conn.clone(),
        asks: Bucket::new(1.0, 16.0),
        calls: Bucket::new(4.0, 16.0),
    };
    let Some(Installed { generation, before, gone }) = install(&net, peer, entry, begun) else {
        // The other link stays; this one has nothing queued.
        let _ = ready.map(|r| r.send(Ok(())));
        let (mut tx, mut rx) = (tx, rx);
        let _ = tx.finish();
        let _ = timeout(STALL, read(&net, peer, &mut rx)).await;
        conn.close(VarInt::from_u32(code::DONE), b"another link stays");
        return;
    };
    if let Some(gone) = gone {
        let _ =
            net.events.send(Event::Down { peer: gone, why: "its place was needed by a peer of the run".into() }).await;
    }
    if before == Before::Dead {
        let _ = net.events.send(Event::Down { peer, why: "another process took its place".into() }).await;
    }
    if before != Before::Twin {
        let _ = net.events.send(Event::Up { peer, hello, at_ms }).await;
        keeper::ask(&net, peer);
    }
    let _ = ready.map(|r| r.send(Ok(())));
    let (_, why) = tokio::join!(write(&conn, tx, queued_frames, queued), async {
        let mut rx = rx;
        let why = read(&net, peer, &mut rx).await;
        if why.ends_now {
            conn.close(VarInt::from_u32(code::PROTOCOL), why.text.as_bytes());
        }
        unlink(net.clone(), peer, generation, why.text.clone()).await;
        why
    });
    tracing::debug!(target: "esker::net", %peer, why = why.text, "link ended");
}

/// Sends our `Hello` and reads theirs.
async fn greet(net: &Arc<Shared>, conn: &Connection) -> Result<(Hello, SendStream, RecvStream), String> {
    let mut tx = conn.open_uni().await.map_err(|e| e.to_string())?;
    let hello = Frame::Hello(Hello {
        oldest: PROTOCOL.0,
        newest: PROTOCOL.1,
        clock_ms: clock_ms(),
        observed: canonical(conn.remote_address()),
        roles: net.config.roles,
        session: net.session,
    });
    tx.write_all(&hello.to_wire()).await.map_err(|e| e.to_string())?;
    let mut rx = conn.accept_uni().await.map_err(|e| e.to_string())?;
    match next(&mut rx, 0).await {
        Ok(Some(Frame::Hello(hello))) => Ok((hello, tx, rx)),
        Ok(_) => Err("the first frame is not a greeting".into()),
        Err(e) => Err(e),
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// What a new link takes the place of.
#[derive(PartialEq)]
enum Before {
    Nothing,
    /// A link of the same process.
    Twin,
    /// A link of a process that is no more.
    Dead,
}

/// A link that stays.
struct Installed {
    generation: u64,
    before: Before,
    /// The stranger whose place it took.
    gone: Option<PeerId>,
}

/// Decides which link stays. On `Some` the new one does; its connection stands since `begun`.
fn install(net: &Arc<Shared>, peer: PeerId, mut link: Link, begun: Instant) -> Option<Installed> {
    let mut guard = net.state();
    let state = &mut *guard;
    let most = 2 * net.config.links_max.max(1);
    if state.closing {
        return None;
    }
    let mut gone = None;
    if !state.links.contains_key(&peer) && state.links.len() >= most && !link.dialed {
        // A peer of the run takes the place of the stranger that came last.
        let favoured = &state.favoured;
        let stranger = state.links.iter().filter(|(id, l)| !l.dialed && !favoured.contains(id));
        let last = stranger.max_by_key(|(_, l)| l.generation).map(|(id, _)| *id);
        gone = Some(last.filter(|_| favoured.contains(&peer))?);
    }
    state.generation += 1;
    link.generation = state.generation;
    let smaller_dials = if link.dialed { net.me < peer } else { peer < net.me };
    let before = match state.links.get(&peer) {
        None => Before::Nothing,
        Some(old) if old.hello.session != link.hello.session => Before::Dead,
        Some(old) if old.dialed == link.dialed || smaller_dials => Before::Twin,
        Some(_) => return None,
    };
    state.book.saw(peer, link.conn.remote_address(), &state.favoured);
    state.observed.insert(peer, link.hello.observed);
    let generation = link.generation;
    if before == Before::Dead
        && let Some(pipes) = state.pipes.get(&peer)
    {
        pipes.end_before(begun);
    }
    if let Some(gone) = gone {
        state.links.remove(&gone);
        state.observed.remove(&gone);
    }
    // Dropping the old link closes its queue: it sends the rest and ends.
    state.links.insert(peer, link);
    Some(Installed { generation, before, gone })
}

/// Forgets a link, if it is still the peer's, and says so.
async fn unlink(net: Arc<Shared>, peer: PeerId, generation: u64, why: String) {
    {
        let mut state = net.state();
        if state.links.get(&peer).is_none_or(|l| l.generation != generation) {
            return;
        }
        state.links.remove(&peer);
        state.observed.remove(&peer);
    }
    let _ = net.events.send(Event::Down { peer, why }).await;
}

/// Writes queued frames until the queue closes, then waits for their acknowledgement.
async fn write(conn: &Connection, mut tx: SendStream, mut queue: mpsc::Receiver<Vec<u8>>, queued: Arc<AtomicUsize>) {
    while let Some(frame) = queue.recv().await {
        queued.fetch_sub(frame.len().min(queued.load(Ordering::Relaxed)), Ordering::Relaxed);
        let mut rest = &frame[..];
        while !rest.is_empty() {
            match timeout(STALL, tx.write(rest)).await {
                Ok(Ok(n)) => rest = &rest[n..],
                Ok(Err(_)) => return,
                Err(_) => return conn.close(VarInt::from_u32(code::STALLED), b"you read too slowly"),
            }
        }
    }
    let _ = tx.finish();
    let _ = timeout(DIAL, tx.stopped()).await;
    conn.close(VarInt::from_u32(code::DONE), b"done");
}

struct Ended {
    text: String,
    /// The peer broke the protocol: nothing more is said to it.
    ends_now: bool,
}

/// Reads frames until the stream or the link ends.
async fn read(net: &Arc<Shared>, peer: PeerId, rx: &mut RecvStream) -> Ended {
    let mut flood = Bucket::new(net.config.messages_per_s, net.config.messages_per_s.max(64.0));
    loop {
        let frame = match next(rx, net.config.message_bytes_max).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ended { text: "it left".into(), ends_now: false },
            Err(text) => return Ended { text, ends_now: true },
        };
        // A flood waits in the sender's window, not in our memory.
        let wait = flood.wait(net.start.elapsed(), 1.0);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            flood.wait(net.start.elapsed(), 1.0);
        }
        flood.take(1.0);
        match frame {
            Frame::App(bytes) => {
                net.down_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                let _ = net.events.send(Event::Message { peer, bytes }).await;
            }
            Frame::Hello(_) => return Ended { text: "a second greeting".into(), ends_now: true },
            Frame::WhoIsWhere => keeper::tell(net, peer),
            Frame::Where(places) => keeper::heard(net, places),
            Frame::PunchAsk { target } => punch::asked(net, peer, target),
            Frame::PunchGo { id, addr, wait_ms } => punch::go(net, peer, id, addr, wait_ms),
        }
    }
}

/// The next frame; `None` at the stream's end between frames.
async fn next(rx: &mut RecvStream, app_max: usize) -> Result<Option<Frame>, String> {
    let mut head = [0; 5];
    // Between frames a peer may be silent for long; inside one it may not.
    match rx.read(&mut head[..1]).await {
        Ok(Some(1)) => {}
        Ok(_) => return Ok(None),
        Err(e) => return Err(e.to_string()),
    }
    fill(rx, &mut head[1..]).await?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if !Frame::allowed(len, head[4], app_max) {
        return Err(format!("a frame of kind {} with {len} bytes", head[4]));
    }
    let mut bytes = vec![0; len];
    bytes[0] = head[4];
    fill(rx, &mut bytes[1..]).await?;
    Frame::parse(&bytes).map(Some).map_err(|e| e.to_string())
}

async fn fill(rx: &mut RecvStream, mut buf: &mut [u8]) -> Result<(), String> {
    while !buf.is_empty() {
        match timeout(STALL, rx.read(buf)).await {
            Ok(Ok(Some(n))) => buf = &mut buf[n..],
            Ok(Ok(None)) => return Err("the stream ends inside a frame".into()),
            Ok(Err(e)) => return Err(e.to_string()),
            Err(_) => return Err("no byte for 10 s inside a frame".into()),
        }
    }
    Ok(())
}
