//! Pipes: bulk connections, and the streams in them.
//!
//! Either side of a pipe may open streams, so a peer that can only dial out serves as well as it fetches. A stream is
//! one request and its answer; the answer's length is known to who asked, never read from the wire.
//!
//! Bytes move in pieces of 64 KiB. Each piece waits its turn under the owner's caps; then the other end's patience
//! counts: it may keep us waiting 10 seconds in all, plus one for each 64 KiB that it moved, and never 10 seconds at
//! a stretch. Waiting for our own turn is not held against it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::{Connection, PathStats, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, timeout};

use super::link::{STALL, code, dial};
use super::tls::ALPN_BULK;
use super::{NetError, Shared, State, windows};
use crate::key::PeerId;

/// Bytes that move in one turn.
const PIECE: usize = 64 * 1024;
/// The slowest that a stream may be, bytes a second, once its first 10 seconds are used up.
const RATE_MIN: f64 = 65_536.0;
/// Pipes to one peer at most.
pub(super) const PIPES_MAX: usize = 8;

struct Pipe {
    id: u64,
    conn: Connection,
    dialed: bool,
    begun: Instant,
    streams: Arc<AtomicUsize>,
}

/// The pipes of one peer.
pub(crate) struct Pipes {
    list: Vec<Pipe>,
    want: usize,
    /// No further pipe is dialled beside a working one before this.
    grows_at: Instant,
    /// One dial at a time.
    dialing: Arc<tokio::sync::Mutex<()>>,
}

impl Default for Pipes {
    fn default() -> Pipes {
        Pipes { list: Vec::new(), want: 1, grows_at: Instant::now(), dialing: Arc::default() }
    }
}

impl Pipes {
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The pipes that the peer opened.
    fn accepted(&self) -> impl Iterator<Item = &Pipe> {
        self.list.iter().filter(|p| !p.dialed)
    }

    /// Ends the pipes that stood before `begun`, when the peer's process began anew: nobody is at their other end, and
    /// what was asked through them would wait until it is given up.
    pub fn end_before(&self, begun: Instant) {
        for pipe in self.list.iter().filter(|p| p.begun < begun) {
            pipe.conn.close(VarInt::from_u32(code::DONE), b"another process took your place");
        }
    }

    pub fn paths(&self) -> impl Iterator<Item = PathStats> + '_ {
        self.list.iter().map(|p| p.conn.stats().path)
    }
}

/// Why a stream failed. All but `Local` are the other end's doing, or the path's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamFault {
    /// It stopped, or is slower than 64 KiB a second.
    #[error("{moved} bytes in {waited_ms} ms of waiting: too slow")]
    Slow {
        /// Bytes that it moved.
        moved: u64,
        /// How long we waited for it.
        waited_ms: u64,
    },
    /// The stream or its connection ended early.
    #[error("the stream ended early: {why}")]
    Ended {
        /// Why, for people.
        why: String,
    },
    /// More came than was asked for.
    #[error("more bytes than were asked for")]
    Surplus,
}

/// A stream to a peer in one of its pipes.
pub struct Stream {
    /// Who is at the other end.
    pub peer: PeerId,
    net: Arc<Shared>,
    conn: Connection,
    streams: Arc<AtomicUsize>,
    tx: SendStream,
    rx: RecvStream,
    waited: Duration,
    moved: u64,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // quinn finishes a dropped sender; the other end knows by the length that it is short.
        let _ = self.rx.stop(VarInt::from_u32(0));
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream {
    fn new(
        net: Arc<Shared>,
        peer: PeerId,
        pipe: (Connection, Arc<AtomicUsize>),
        halves: (SendStream, RecvStream),
    ) -> Stream {
        let (conn, streams) = pipe;
        streams.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = halves;
        Stream { peer, net, conn, streams, tx, rx, waited: Duration::ZERO, moved: 0 }
    }

    /// Counts a wait for the other end.
    fn note(&mut self, since: Instant, moved: usize) -> Result<(), StreamFault> {
        let wait = since.elapsed();
        self.waited += wait;
        self.moved += moved as u64;
        let allowed = STALL + Duration::from_secs_f64(self.moved as f64 / RATE_MIN);
        if wait >= STALL || self.waited > allowed {
            return Err(StreamFault::Slow { moved: self.moved, waited_ms: self.waited.as_millis() as u64 });
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When the other end stops taking them.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StreamFault> {
        for piece in bytes.chunks(PIECE) {
            self.net.up.acquire(self.peer, piece.len()).await;
            let mut rest = piece;
            while !rest.is_empty() {
                let since = Instant::now();
                let n = match timeout(STALL, self.tx.write(rest)).await {
                    Ok(Ok(n)) => n,
                    Ok(Err(e)) => return Err(StreamFault::Ended { why: e.to_string() }),
                    Err(_) => 0,
                };
                rest = &rest[n..];
                self.note(since, n)?;
            }
            self.net.up_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// No more will be written.
    pub fn finish(&mut self) {
        // An error means that the connection ended, which the next read tells.
        let _ = self.tx.finish();
    }

    /// Waits until what was written has arrived, so that a slot is held for as long as its bytes are.
    ///
    /// # Errors
    /// When the other end stops taking them.
    pub async fn sent(&mut self) -> Result<(), StreamFault> {
        let since = Instant::now();
        match timeout(STALL, self.tx.stopped()).await {
            Ok(Ok(None)) => Ok(()),
            // It has what it wanted, or wants no more of it.
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Err(e)) => Err(StreamFault::Ended { why: e.to_string() }),
            Err(_) => self.note(since, 0),
        }
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// When the other end sends less, or too slowly.
    pub async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), StreamFault> {
        for piece in buf.chunks_mut(PIECE) {
            self.net.down.acquire(self.peer, piece.len()).await;
            let mut filled = 0;
            while filled < piece.len() {
                let since = Instant::now();
                let n = match timeout(STALL, self.rx.read(&mut piece[filled..])).await {
                    Ok(Ok(Some(n))) => n,
                    Ok(Ok(None)) => return Err(StreamFault::Ended { why: "fewer bytes than were asked for".into() }),
                    Ok(Err(e)) => return Err(StreamFault::Ended { why: e.to_string() }),
                    Err(_) => 0,
                };
                filled += n;
                self.net.down_bytes.fetch_add(n as u64, Ordering::Relaxed);
                self.note(since, n)?;
            }
        }
        Ok(())
    }

    /// Makes sure that nothing follows.
    ///
    /// # Errors
    /// When something does.
    pub async fn end(&mut self) -> Result<(), StreamFault> {
        let since = Instant::now();
        match timeout(STALL, self.rx.read(&mut [0])).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(_))) => Err(StreamFault::Surplus),
            Ok(Err(e)) => Err(StreamFault::Ended { why: e.to_string() }),
            Err(_) => self.note(since, 0),
        }
    }

    /// Packets of this connection that we sent and that were lost, in units of 1 in 10 000, at most 255. Below 1000
    /// packets it is 0: too few to say.
    pub fn loss_e4(&self) -> u8 {
        let path = self.conn.stats().path;
        if path.sent_packets < 1000 { 0 } else { (path.lost_packets * 10_000 / path.sent_packets).min(255) as u8 }
    }
}

/// Paths shorter than this recover from a loss so soon that one pipe does.
const SHORT: Duration = Duration::from_millis(10);
const GROW_EVERY: Duration = Duration::from_secs(2);
/// A pipe that ends sooner was turned away; another is tried after `GROW_AGAIN`.
const TURNED_AWAY: Duration = Duration::from_secs(5);
const GROW_AGAIN: Duration = Duration::from_secs(60);

/// Holds from now on `count` pipes to `peer`, as they are needed.
pub(super) fn want(net: &Arc<Shared>, peer: PeerId, count: usize) {
    if let Some(pipes) = net.state().pipes.get_mut(&peer) {
        let long = pipes.list.iter().any(|p| p.conn.rtt() >= SHORT);
        pipes.want = if long { count.clamp(1, PIPES_MAX) } else { 1 };
    }
}

/// The pipe with the fewest streams; and whether another should be dialled beside it.
fn pick(net: &Arc<Shared>, peer: PeerId) -> Option<((Connection, Arc<AtomicUsize>), bool)> {
    let mut state = net.state();
    let pipes = state.pipes.get_mut(&peer)?;
    pipes.list.retain(|p| p.conn.close_reason().is_none());
    let pipe = pipes.list.iter().min_by_key(|p| (p.streams.load(Ordering::Relaxed), p.id))?;
    let found = (pipe.conn.clone(), pipe.streams.clone());
    let now = Instant::now();
    let grows = pipes.list.len() < pipes.want && now >= pipes.grows_at;
    if grows {
        pipes.grows_at = now + GROW_EVERY;
    }
    Some((found, grows))
}

pub(super) async fn open(net: &Arc<Shared>, peer: PeerId) -> Result<Stream, NetError> {
    let (pipe, grows) = match pick(net, peer) {
        Some(found) => found,
        None => {
            let lock = net.state().pipes.entry(peer).or_default().dialing.clone();
            let one = lock.lock().await;
            let found = match pick(net, peer) {
                Some(found) => Ok(found),
                None => dial_pipe(net, peer).await.map(|pipe| (pipe, false)),
            };
            drop(one);
            drop(lock);
            forget_empty(&mut net.state(), &peer);
            found?
        }
    };
    if grows {
        // A request waits for no further pipe: the other end may turn it away, and this one works.
        let net = net.clone();
        tokio::spawn(async move {
            if let Err(e) = dial_pipe(&net, peer).await {
                tracing::debug!(target: "esker::net", %peer, error = %e, "another pipe");
            }
        });
    }
    let addr = pipe.0.remote_address();
    let fail = |why: String| NetError::Dial { addr, why };
    match timeout(STALL, pipe.0.open_bi()).await {
        Ok(Ok(halves)) => Ok(Stream::new(net.clone(), peer, pipe, halves)),
        Ok(Err(e)) => Err(fail(e.to_string())),
        Err(_) => Err(fail("it allows no more streams".into())),
    }
}

/// Drops the entry of a peer without a pipe. It stays while a task holds its lock, or waits for it.
fn forget_empty(state: &mut State, peer: &PeerId) {
    if state.pipes.get(peer).is_some_and(|p| p.list.is_empty() && Arc::strong_count(&p.dialing) == 1) {
        state.pipes.remove(peer);
    }
}

/// Dials where the peer's link comes from, since that path is open in both directions whatever stands between; without
/// a link, where the book says.
async fn dial_pipe(net: &Arc<Shared>, peer: PeerId) -> Result<(Connection, Arc<AtomicUsize>), NetError> {
    let addrs: Vec<SocketAddr> = {
        let state = net.state();
        if state.closing {
            return Err(NetError::Closing);
        }
        match state.links.get(&peer) {
            Some(link) => vec![link.conn.remote_address()],
            None => state.book.addrs(&peer),
        }
    };
    let mut last = NetError::NoAddress { peer };
    for addr in addrs {
        match dial(net, addr, Some(peer), ALPN_BULK).await {
            Ok((conn, _)) => return Ok(adopt(net, conn, peer, true)),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Whether one more peer may hold pipes into this process. A peer of the run takes the place of the stranger with the
/// fewest streams.
fn makes_room(state: &State, most: usize, peer: &PeerId) -> bool {
    let holders = || state.pipes.iter().filter(|(_, p)| p.accepted().next().is_some());
    if holders().count() < most {
        return true;
    }
    let strangers = holders().filter(|(id, _)| !state.favoured.contains(id));
    let streams = |pipes: &Pipes| pipes.accepted().map(|p| p.streams.load(Ordering::Relaxed)).sum::<usize>();
    let Some((_, pipes)) = strangers.min_by_key(|(_, p)| streams(p)).filter(|_| state.favoured.contains(peer)) else {
        return false;
    };
    for pipe in pipes.accepted() {
        pipe.conn.close(VarInt::from_u32(code::BUSY), b"your place was needed by a peer of the run");
    }
    true
}

/// A peer has opened a pipe into this process.
pub(super) fn accepted(net: Arc<Shared>, conn: Connection, peer: PeerId) {
    let room = {
        let state = net.state();
        let own = state.pipes.get(&peer).map_or(0, |p| p.accepted().count());
        !state.closing && own < PIPES_MAX && (own > 0 || makes_room(&state, net.config.bulk_peers_max, &peer))
    };
    if !room {
        net.refused.fetch_add(1, Ordering::Relaxed);
        return conn.close(VarInt::from_u32(code::BUSY), b"too many pipes");
    }
    windows::widen(&conn);
    adopt(&net, conn, peer, false);
}

/// Enters a pipe and takes the streams that the peer opens in it.
fn adopt(net: &Arc<Shared>, conn: Connection, peer: PeerId, dialed: bool) -> (Connection, Arc<AtomicUsize>) {
    let (streams, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let id = {
        let mut guard = net.state();
        let state = &mut *guard;
        state.generation += 1;
        let id = state.generation;
        let pipe = Pipe { id, conn: conn.clone(), dialed, begun, streams: streams.clone() };
        state.pipes.entry(peer).or_default().list.push(pipe);
        if dialed {
            state.book.saw(peer, conn.remote_address(), &state.favoured);
        }
        id
    };
    let (net, pipe) = (net.clone(), (conn.clone(), streams.clone()));
    tokio::spawn(async move {
        while let Ok(halves) = pipe.0.accept_bi().await {
            let stream = Stream::new(net.clone(), peer, pipe.clone(), halves);
            if net.streams.send(stream).await.is_err() {
                break;
            }
        }
        let mut state = net.state();
        if let Some(pipes) = state.pipes.get_mut(&peer) {
            pipes.list.retain(|p| p.id != id);
            if dialed && begun.elapsed() < TURNED_AWAY {
                pipes.grows_at = Instant::now() + GROW_AGAIN;
            }
        }
        forget_empty(&mut state, &peer);
    });
    (conn, streams)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;
    use crate::net::{Config, Net};

    /// Whoever could not be dialled once left an entry behind for ever.
    #[tokio::test]
    async fn who_cannot_be_dialled_leaves_nothing_behind() {
        let bind = "127.0.0.1:0".parse().unwrap();
        let (net, _inbox) = Net::bind(Config::new(bind, 1000), Key::from_seed([1; 32])).unwrap();
        for n in 0..10 {
            assert!(matches!(net.open(PeerId([n; 32])).await, Err(NetError::NoAddress { .. })));
        }
        assert_eq!(net.0.state().pipes.len(), 0);
    }
}
