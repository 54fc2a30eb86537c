//! Connections with bounds: how many there are, and how long one may wait for its peer. What listens for others than its
//! owner comes through here.
//!
//! A peer that sends no byte for [`PATIENCE`] while a request of its is due, or takes none of an answer, loses its
//! connection. While a request is being answered nothing is due from the peer, however long that takes.

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// Most connections at once; more wait to be accepted.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// How long a peer may keep a connection waiting.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Accepts connections within bounds.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Door {
    /// At most so many `connections` at once; more wait to be accepted.
    pub fn new(listener: TcpListener, connections: usize) -> Door {
        Door { listener, places: Arc::new(Semaphore::new(connections)) }
    }
}

/// Requests of one connection that are being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<AtomicUsize>);

/// Counts a request for as long as it lives.
#[derive(Debug)]
pub(super) struct Answering(Busy);

impl Busy {
    pub fn answering(&self) -> Answering {
        self.0.fetch_add(1, Relaxed);
        Answering(self.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// A connection that does not wait for ever.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    busy: Busy,
    patience: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Listener for Door {
    type Io = Wire;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Wire, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("serve: places are never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let patience = Box::pin(sleep(PATIENCE));
                    return (Wire { stream, busy: Busy::default(), patience, _place: place }, peer);
                }
                // The peer left already, or descriptors have run out: a little later it may go better.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Door>> for Busy {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Busy {
        stream.io().busy.clone()
    }
}

impl Wire {
    /// Passes on what is ready; what is not may be waited for until patience ends.
    fn within<T>(
        &mut self,
        cx: &mut Context<'_>,
        due: bool,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match poll(Pin::new(&mut self.stream), cx) {
            Poll::Ready(outcome) => {
                self.patience.as_mut().reset(Instant::now() + PATIENCE);
                Poll::Ready(outcome)
            }
            Poll::Pending if due => {
                self.patience.as_mut().poll(cx).map(|()| Err(io::Error::from(io::ErrorKind::TimedOut)))
            }
            Poll::Pending => {
                self.patience.as_mut().reset(Instant::now() + PATIENCE);
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let due = this.busy.0.load(Relaxed) == 0;
        this.within(cx, due, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().within(cx, true, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
