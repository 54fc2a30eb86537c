//! What two peers say on a control connection.
//!
//! Each side opens one stream and writes frames: a length (u32, little-endian), then that many bytes, the first of
//! which is the kind. The first frame is `Hello`. A frame of kind `App` belongs to the layer above, which gave the
//! bound on its length; the other kinds have bounds of their own. A length beyond the bound ends the connection before
//! any memory is taken for it.
//!
//! | kind | | bytes |
//! | --- | --- | --- |
//! | 0 | `App` | any |
//! | 1 | `Hello` | versions u16 u16, clock u64 (ms since 1970), the address the other is seen at, roles u8, session u64 |
//! | 2 | `WhoIsWhere` | none |
//! | 3 | `Where` | count u32, then id, addresses of each, ids rising |
//! | 4 | `PunchAsk` | id of the peer to reach |
//! | 5 | `PunchGo` | id, address, wait u16 (ms) |
//!
//! An address is a byte 4 or 6, its octets, its port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::key::PeerId;
use crate::wire::codec::{Canonical, Malformed, Reader, put_list, rising};

/// The oldest and the newest protocol spoken here.
pub const PROTOCOL: (u16, u16) = (1, crate::PROTOCOL);
/// Peers in one `Where` at most.
pub const WHERE_MAX: usize = 256;
/// Addresses of one peer at most.
pub const ADDRS_MAX: usize = 4;
/// Bytes of any frame that is not `App`, at most: a full `Where`.
pub const OWN_FRAME_MAX: usize = 1 + 4 + WHERE_MAX * (32 + 4 + ADDRS_MAX * 19);

impl Canonical for SocketAddr {
    const BYTES_MIN: usize = 7;

    fn put(&self, to: &mut Vec<u8>) {
        match self.ip().to_canonical() {
            IpAddr::V4(ip) => {
                to.push(4);
                to.extend_from_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                to.push(6);
                to.extend_from_slice(&ip.octets());
            }
        }
        self.port().put(to);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let what = "an address";
        let ip = match u8::take(from)? {
            4 => IpAddr::from(Ipv4Addr::from(from.array::<4>(what)?)),
            6 => IpAddr::from(Ipv6Addr::from(from.array::<16>(what)?)),
            _ => return Err(Malformed::Value { what, why: "a family that is neither 4 nor 6" }),
        };
        if ip.is_ipv6() && ip.to_canonical().is_ipv4() {
            return Err(Malformed::Value { what, why: "an IPv4 address written as IPv6" });
        }
        Ok(SocketAddr::new(ip, u16::take(from)?))
    }
}

/// Where a peer may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Who.
    pub id: PeerId,
    /// At most [`ADDRS_MAX`] addresses, the likeliest first.
    pub addrs: Vec<SocketAddr>,
}

impl Canonical for Place {
    const BYTES_MIN: usize = 36;

    fn put(&self, to: &mut Vec<u8>) {
        self.id.put(to);
        put_list(&self.addrs, to);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Place { id: PeerId::take(from)?, addrs: from.list(ADDRS_MAX, "addresses of a peer")? })
    }
}

/// The first frame of each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest protocol the sender speaks.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
    /// The sender's clock, milliseconds since 1970.
    pub clock_ms: u64,
    /// Where the sender sees the receiver: its address after any translation.
    pub observed: SocketAddr,
    /// The sender's roles, bits that the layer above defines.
    pub roles: u8,
    /// Drawn at each start of a process: tells a second connection of one process from one of its successor.
    pub session: u64,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of the layer above.
    App(Vec<u8>),
    /// Who the sender is, and what it sees.
    Hello(Hello),
    /// Asks for a `Where`.
    WhoIsWhere,
    /// Addresses that the sender knows. Nothing is believed of it: a dial compares keys.
    Where(Vec<Place>),
    /// Asks the receiver to bring the sender and `target` together.
    PunchAsk {
        /// Who is to be reached.
        target: PeerId,
    },
    /// Tells the receiver to dial `place` after `wait_ms`, while the other does the same.
    PunchGo {
        /// Who, and the one address at which it was seen.
        id: PeerId,
        /// Where the bootstrap sees it.
        addr: SocketAddr,
        /// When, in milliseconds from receipt.
        wait_ms: u16,
    },
}

impl Frame {
    /// The frame with its length before it.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        match self {
            Frame::App(bytes) => {
                out.push(0);
                out.extend_from_slice(bytes);
            }
            Frame::Hello(h) => {
                out.push(1);
                h.oldest.put(&mut out);
                h.newest.put(&mut out);
                h.clock_ms.put(&mut out);
                h.observed.put(&mut out);
                h.roles.put(&mut out);
                h.session.put(&mut out);
            }
            Frame::WhoIsWhere => out.push(2),
            Frame::Where(places) => {
                out.push(3);
                put_list(places, &mut out);
            }
            Frame::PunchAsk { target } => {
                out.push(4);
                target.put(&mut out);
            }
            Frame::PunchGo { id, addr, wait_ms } => {
                out.push(5);
                id.put(&mut out);
                addr.put(&mut out);
                wait_ms.put(&mut out);
            }
        }
        let len = u32::try_from(out.len() - 4).expect("frame: under 4 GiB");
        out[..4].copy_from_slice(&len.to_le_bytes());
        out
    }

    /// The frame in `bytes`, which are those behind the length.
    ///
    /// # Errors
    /// On anything that `to_wire` does not write.
    pub fn parse(bytes: &[u8]) -> Result<Frame, Malformed> {
        let mut from = Reader::new(bytes);
        let r = &mut from;
        let frame = match u8::take(r)? {
            0 => Frame::App(r.bytes(r.left(), "a message")?.to_vec()),
            1 => Frame::Hello(Hello {
                oldest: u16::take(r)?,
                newest: u16::take(r)?,
                clock_ms: u64::take(r)?,
                observed: SocketAddr::take(r)?,
                roles: u8::take(r)?,
                session: u64::take(r)?,
            }),
            2 => Frame::WhoIsWhere,
            3 => {
                let places: Vec<Place> = r.list(WHERE_MAX, "peers")?;
                rising(places.iter().map(|p| p.id), "peers by id")?;
                Frame::Where(places)
            }
            4 => Frame::PunchAsk { target: PeerId::take(r)? },
            5 => Frame::PunchGo { id: PeerId::take(r)?, addr: SocketAddr::take(r)?, wait_ms: u16::take(r)? },
            _ => return Err(Malformed::Value { what: "the kind of a frame", why: "not one of 0 to 5" }),
        };
        from.end("a frame")?;
        Ok(frame)
    }

    /// Whether a frame of `len` bytes whose first is `kind` is within bounds, where `app_max` bounds messages.
    pub fn allowed(len: usize, kind: u8, app_max: usize) -> bool {
        let max = if kind == 0 { app_max + 1 } else { OWN_FRAME_MAX };
        (1..=max).contains(&len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> Vec<Frame> {
        let v4 = "203.0.113.7:9".parse().unwrap();
        let v6 = "[2001:db8::1]:65535".parse().unwrap();
        vec![
            Frame::App(vec![1, 2, 3]),
            Frame::App(vec![]),
            Frame::Hello(Hello { oldest: 1, newest: 3, clock_ms: 5, observed: v4, roles: 1, session: 8 }),
            Frame::WhoIsWhere,
            Frame::Where(vec![
                Place { id: PeerId([1; 32]), addrs: vec![v4, v6] },
                Place { id: PeerId([2; 32]), addrs: vec![] },
            ]),
            Frame::PunchAsk { target: PeerId([9; 32]) },
            Frame::PunchGo { id: PeerId([9; 32]), addr: v6, wait_ms: 300 },
        ]
    }

    #[test]
    fn frames_go_round() {
        for frame in samples() {
            let wire = frame.to_wire();
            assert_eq!(u32::from_le_bytes(wire[..4].try_into().unwrap()) as usize, wire.len() - 4);
            assert_eq!(Frame::parse(&wire[4..]), Ok(frame));
        }
    }

    #[test]
    fn the_largest_own_frame_is_within_its_bound() {
        let v6 = "[2001:db8::1]:65535".parse().unwrap();
        let place = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(n as u64).to_be_bytes());
            Place { id: PeerId(id), addrs: vec![v6; ADDRS_MAX] }
        };
        let wire = Frame::Where((0..WHERE_MAX).map(place).collect()).to_wire();
        assert_eq!(wire.len() - 4, OWN_FRAME_MAX);
        assert!(Frame::parse(&wire[4..]).is_ok());
    }

    #[test]
    fn other_forms_are_refused() {
        let mapped = [&[5u8][..], &[9; 32], &[6], &[0; 10], &[255, 255, 1, 2, 3, 4], &[0, 0], &[0, 0]].concat();
        assert!(matches!(Frame::parse(&mapped), Err(Malformed::Value { .. })));
        let mut twice = Frame::Where(vec![Place { id: PeerId([1; 32]), addrs: vec![] }; 2]).to_wire();
        assert!(Frame::parse(&twice[4..]).is_err());
        twice.truncate(9);
        assert!(Frame::parse(&twice[4..]).is_err());
        assert!(Frame::parse(&[]).is_err());
        assert!(Frame::parse(&[2, 0]).is_err());
    }

    proptest! {
        #[test]
        fn what_parses_is_what_is_written(mut bytes in proptest::collection::vec(any::<u8>(), 1..200), kind in 0u8..7) {
            bytes[0] = kind;
            if let Ok(frame) = Frame::parse(&bytes) {
                prop_assert_eq!(&frame.to_wire()[4..], &bytes[..]);
            }
        }
    }
}
