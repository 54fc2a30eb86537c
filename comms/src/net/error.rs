//! What can go wrong between two peers.

use super::frame;
use crate::key::PeerId;
use std::net::SocketAddr;

/// Why something on the network did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The socket could not be had.
    #[error("cannot bind UDP {addr}: {source}; is another process using the port?")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A dial failed.
    #[error("cannot reach {addr}: {why}")]
    Dial {
        /// Where.
        addr: SocketAddr,
        /// What went wrong, for people.
        why: String,
    },
    /// Somebody else answers there.
    #[error("{addr} is held by {got}, not by {want}; the address is old, or somebody is in between")]
    WrongKey {
        /// Where.
        addr: SocketAddr,
        /// The expected peer.
        want: PeerId,
        /// Who answered.
        got: PeerId,
    },
    /// The address leads back here.
    #[error("{addr} is this process itself")]
    Own {
        /// Where.
        addr: SocketAddr,
    },
    /// The versions do not meet.
    #[error("{peer} speaks protocol {oldest} to {newest}, this build {} to {}; the older one must be upgraded",
        frame::PROTOCOL.0, frame::PROTOCOL.1)]
    Version {
        /// Who.
        peer: PeerId,
        /// The oldest protocol it speaks.
        oldest: u16,
        /// The newest.
        newest: u16,
    },
    /// No address of the peer is known and nobody can bring us together.
    #[error("no address of {peer} is known")]
    NoAddress {
        /// Who.
        peer: PeerId,
    },
    /// There is no link to the peer.
    #[error("{peer} is not connected")]
    NoLink {
        /// Who.
        peer: PeerId,
    },
    /// The peer takes in nothing; its link was ended.
    #[error("{peer} reads too slowly: {queued} bytes wait for it")]
    Stalled {
        /// Who.
        peer: PeerId,
        /// Bytes in its queue.
        queued: usize,
    },
    /// A message beyond the bound: our own mistake, told before it is sent.
    #[error("a message of {got} bytes; at most {max} are allowed")]
    Long {
        /// Its length.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// The process is leaving the network.
    #[error("this process is leaving the network")]
    Closing,
}
