//! What a process of a shared run is doing, over HTTP: a page for people, JSON for programs, Prometheus text for alarms.
//!
//! | path              | what |
//! | ----------------- | ---- |
//! | GET /             | the page: round, peers, loss, bytes, roots; one file that loads nothing from elsewhere |
//! | GET /status.json  | the snapshot behind it |
//! | GET /metrics      | Prometheus text, version 0.0.4 |
//! | GET /healthz      | 200 while the process lives |
//!
//! It only tells, and takes nothing: no path changes the run, and connections have the bounds of [`esker_eval::serve::wire`].
//! Still it is meant for one's own network, so commands listen on the loopback unless told otherwise. [`watch`] is the same
//! in a terminal.

pub mod watch;

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use esker_eval::serve::wire::Door;
use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
};
use tokio::sync::Notify;

/// Connections at once: descriptors are what blobs and journal need too.
const CONNECTIONS_MAX: usize = 32;
const PAGE: &str = include_str!("live/page.html");
/// The page may run its own script and style and ask this server, nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

/// Text made when somebody asks.
pub type Telling = Arc<dyn Fn() -> String + Send + Sync>;

/// What the server tells.
#[derive(Clone)]
pub struct Tells {
    /// The snapshot as JSON.
    pub status: Telling,
    /// The snapshot as Prometheus text.
    pub metrics: Telling,
}

impl std::fmt::Debug for Tells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tells")
    }
}

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The address cannot be used.
    #[error("cannot listen on {addr} for the page: {source}; choose another address, or port 0 for any")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Its thread could not begin.
    #[error("the page's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// A server on a thread of its own; it ends when this is dropped.
#[derive(Debug)]
pub struct Live {
    addr: SocketAddr,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Listens on `addr` (port 0 is any) and tells what `tells` says.
    ///
    /// # Errors
    /// [`LiveError`] where the address or a thread cannot be had.
    pub fn start(addr: SocketAddr, tells: Tells) -> Result<Live, LiveError> {
        let listen = |source| LiveError::Listen { addr, source };
        let listener = TcpListener::bind(addr).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LiveError::Thread)?;
        let stop = Arc::new(Notify::new());
        let told = stop.clone();
        let serve = move || {
            runtime.block_on(async {
                let outcome = async {
                    let listener = tokio::net::TcpListener::from_std(listener)?;
                    axum::serve(Door::new(listener, CONNECTIONS_MAX), router(tells)).await
                };
                tokio::select! {
                    ended = outcome => if let Err(e) = ended { tracing::warn!("the page's server ended: {e}") },
                    () = told.notified() => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("live".into()).spawn(serve).map_err(LiveError::Thread)?;
        Ok(Live { addr, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed already; there is nothing to save.
            let _ = thread.join();
        }
    }
}

fn router(tells: Tells) -> Router {
    let Tells { status, metrics } = tells;
    let text = |kind: &'static str, tell: Telling| {
        get(async move || ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], tell()))
    };
    let page = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Router::new()
        .route("/", get(async move || (page, PAGE)))
        .route("/status.json", text("application/json", status))
        .route("/metrics", text("text/plain; version=0.0.4; charset=utf-8", metrics))
        .route("/healthz", get(async || "ok\n"))
        .fallback(async || (StatusCode::NOT_FOUND, "GET /, /status.json, /metrics or /healthz\n").into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::TcpStream,
        time::Duration,
    };

    fn serving(status: &'static str) -> Live {
        let tells = Tells {
            status: Arc::new(move || status.to_owned()),
            metrics: Arc::new(|| "# TYPE esker_round gauge\nesker_round 3\n".to_owned()),
        };
        Live::start("127.0.0.1:0".parse().unwrap(), tells).unwrap()
    }

    #[test]
    fn every_path_answers_and_others_are_named() {
        let live = serving("{\"tip\": 3}");
        // A machine that stands still for longer than `get` is patient is asked again.
        let ask = |path: &str| (0..100).find_map(|_| watch::get(live.addr(), path).ok()).unwrap();
        assert!(ask("/").1.contains("<title>"));
        assert_eq!(ask("/status.json"), (200, "{\"tip\": 3}".to_owned()));
        assert!(ask("/metrics").1.ends_with("esker_round 3\n"));
        assert_eq!(ask("/healthz").0, 200);
        assert_eq!(ask("/x").0, 404);
    }

    /// Whoever opened connections without end once took a process's descriptors, and a process that cannot open a blob ends.
    #[test]
    fn connections_have_a_bound() {
        let live = serving("{}");
        let connect = || TcpStream::connect(live.addr()).unwrap();
        let silent: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
        let mut one_more = connect();
        one_more.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
        one_more.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(one_more.read(&mut [0]).is_err(), "answered beside {} others", silent.len());
        drop(silent);
        one_more.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = String::new();
        one_more.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ok\n"), "{answer}");
    }

    #[test]
    fn a_taken_address_is_named() {
        let live = serving("{}");
        let tells = Tells { status: Arc::new(String::new), metrics: Arc::new(String::new) };
        let text = Live::start(live.addr(), tells).unwrap_err().to_string();
        assert!(text.contains(&live.addr().to_string()), "{text}");
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains("src="));
    }
}
