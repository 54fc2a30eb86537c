//! Where peers were last seen: addresses by id, learnt from connections, from configuration and from others.
//!
//! An address from another peer is a hint: a dial compares keys, so a lie costs one failed dial. What was seen to work
//! stands before what was heard, and is never pushed out by it. The book has a bound on peers and on addresses of one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::frame::{ADDRS_MAX, Place, WHERE_MAX};
use crate::key::PeerId;

/// Peers in a book at most.
pub const BOOK_MAX: usize = 4096;

#[derive(Debug, Clone, Default)]
struct Entry {
    /// Addresses at which the peer answered, newest first.
    seen: Vec<SocketAddr>,
    /// Addresses that others told.
    heard: Vec<SocketAddr>,
}

/// Addresses by peer.
#[derive(Debug, Clone, Default)]
pub struct Book {
    entries: BTreeMap<PeerId, Entry>,
}

fn front(list: &mut Vec<SocketAddr>, addr: SocketAddr) {
    list.retain(|a| *a != addr);
    list.insert(0, addr);
    list.truncate(ADDRS_MAX);
}

/// Whether an address can be dialled at all.
fn dialable(addr: &SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

impl Book {
    /// The peer answered at `addr`.
    pub fn saw(&mut self, id: PeerId, addr: SocketAddr) {
        if !self.entries.contains_key(&id) && self.entries.len() >= BOOK_MAX {
            // Room is made by who was only ever heard of; a book full of peers that answered stays as it is.
            let Some(victim) = self.entries.iter().find(|(_, e)| e.seen.is_empty()).map(|(id, _)| *id) else { return };
            self.entries.remove(&victim);
        }
        front(&mut self.entries.entry(id).or_default().seen, addr);
    }

    /// Somebody says that the peer is at `addrs`.
    pub fn heard(&mut self, id: PeerId, addrs: &[SocketAddr]) {
        if !self.entries.contains_key(&id) && self.entries.len() >= BOOK_MAX {
            return;
        }
        let entry = self.entries.entry(id).or_default();
        for addr in addrs.iter().take(ADDRS_MAX).rev().filter(|a| dialable(a)) {
            front(&mut entry.heard, *addr);
        }
    }

    /// Where to try a peer, the likeliest first.
    pub fn addrs(&self, id: &PeerId) -> Vec<SocketAddr> {
        let Some(e) = self.entries.get(id) else { return Vec::new() };
        let mut out = e.seen.clone();
        out.extend(e.heard.iter().filter(|a| !e.seen.contains(a)));
        out
    }

    /// Peers with an address, in order of id.
    pub fn ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.entries.keys().copied()
    }

    /// Up to [`WHERE_MAX`] peers that answered here, to tell to `asker`; from `turn` on round the book, so that all
    /// are told in time.
    pub fn tell(&self, asker: &PeerId, turn: u64) -> Vec<Place> {
        let known: Vec<_> = self.entries.iter().filter(|(id, e)| *id != asker && !e.seen.is_empty()).collect();
        if known.is_empty() {
            return Vec::new();
        }
        let first = (turn as usize).wrapping_mul(WHERE_MAX) % known.len();
        let mut out: Vec<Place> = (0..known.len().min(WHERE_MAX))
            .map(|n| known[(first + n) % known.len()])
            .map(|(id, e)| Place { id: *id, addrs: e.seen.clone() })
            .collect();
        out.sort_by_key(|p| p.id);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> PeerId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        PeerId(id)
    }

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn what_worked_stands_first_and_stays() {
        let mut b = Book::default();
        b.saw(id(1), addr(1));
        for port in 2..100 {
            b.heard(id(1), &[addr(port)]);
        }
        assert_eq!(b.addrs(&id(1))[0], addr(1));
        assert_eq!(b.addrs(&id(1)).len(), 1 + ADDRS_MAX);
        b.heard(id(2), &[addr(0)]);
        assert!(b.addrs(&id(2)).is_empty());
        assert_eq!(b.tell(&id(9), 0), [Place { id: id(1), addrs: vec![addr(1)] }]);
        assert!(b.tell(&id(1), 0).is_empty());
    }

    #[test]
    fn the_book_has_a_bound_that_liars_cannot_use() {
        let mut b = Book::default();
        for n in 0..20_000 {
            b.heard(id(n), &[addr(1)]);
        }
        assert_eq!(b.ids().count(), BOOK_MAX);
        b.saw(id(1 << 40), addr(7));
        assert_eq!(b.addrs(&id(1 << 40)), [addr(7)]);
        assert_eq!(b.ids().count(), BOOK_MAX);
    }
}
