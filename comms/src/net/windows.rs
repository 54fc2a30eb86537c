//! Windows and timers of connections; the table is at the head of the module.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, IdleTimeout, ServerConfig, TimeSource, TransportConfig, VarInt};
use tokio::time::Instant;

use super::loss::TolerantConfig;

/// Streams that a side may open in a pipe.
pub(super) const PIPE_STREAMS: u32 = 64;

/// Of a pipe, and of what may become one: the shorter of both ends' counts.
const IDLE: Duration = Duration::from_secs(45);
const LINK_IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KIB: u32 = 1024;
const MIB: u32 = 1024 * 1024;

/// The clock by which a proof of an address grows old: the one that all else here goes by. The system's may be set while a
/// proof is on its way, which would turn its owner away; and in virtual time, which a slow machine does not stretch, it
/// would be the only one that runs.
struct Steady(Instant);

impl TimeSource for Steady {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

fn idle(time: Duration) -> IdleTimeout {
    IdleTimeout::try_from(time).expect("under 2^62 ms")
}

fn common() -> TransportConfig {
    let mut t = TransportConfig::default();
    t.max_idle_timeout(Some(idle(IDLE)))
        // The first guess of a round trip sets the first retransmission; most paths are under 100 ms.
        .initial_rtt(Duration::from_millis(100))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .allow_spin(false)
        .congestion_controller_factory(Arc::new(TolerantConfig::default()));
    t
}

/// What an accepted connection starts with, before it is known what it is for: the windows of a link, save that of a
/// stream, which cannot be changed later.
pub(super) fn server(crypto: Arc<QuicServerConfig>) -> ServerConfig {
    let mut t = common();
    t.keep_alive_interval(None)
        .stream_receive_window(VarInt::from_u32(2 * MIB))
        .receive_window(VarInt::from_u32(256 * KIB))
        .send_window(u64::from(MIB))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    let mut config = ServerConfig::with_crypto(crypto);
    config
        .transport_config(Arc::new(t))
        .time_source(Arc::new(Steady(Instant::now())))
        // The gate takes each handshake at once; what waits for it is bounded here.
        .max_incoming(1024)
        .incoming_buffer_size(64 * u64::from(KIB))
        .incoming_buffer_size_total(4 * u64::from(MIB));
    config
}

/// A dialled link.
pub(super) fn link(crypto: Arc<QuicClientConfig>) -> ClientConfig {
    let mut t = common();
    t.max_idle_timeout(Some(idle(LINK_IDLE)))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(256 * KIB))
        .receive_window(VarInt::from_u32(256 * KIB))
        .send_window(u64::from(MIB))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    let mut config = ClientConfig::new(crypto);
    config.transport_config(Arc::new(t));
    config
}

/// A dialled pipe.
pub(super) fn pipe(crypto: Arc<QuicClientConfig>) -> ClientConfig {
    let mut t = common();
    t.keep_alive_interval(None)
        .stream_receive_window(VarInt::from_u32(2 * MIB))
        .receive_window(VarInt::from_u32(32 * MIB))
        .send_window(32 * u64::from(MIB))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(PIPE_STREAMS));
    let mut config = ClientConfig::new(crypto);
    config.transport_config(Arc::new(t));
    config
}

/// An accepted connection turns out to be a pipe.
pub(super) fn widen(conn: &Connection) {
    conn.set_receive_window(VarInt::from_u32(32 * MIB));
    conn.set_send_window(32 * u64::from(MIB));
    conn.set_max_concurrent_bi_streams(VarInt::from_u32(PIPE_STREAMS));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn proofs_grow_old_by_the_runtimes_clock() {
        let clock = Steady(Instant::now());
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(clock.now(), SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    }
}
