//! Where peers were last seen: addresses by id, learnt from connections, from configuration and from others.
//!
//! An address from another peer is a hint: a dial compares keys, so a lie costs one failed dial. What was seen to work
//! stands before what was heard, and is never pushed out by it. The book has a bound on peers and on addresses of one;
//! where it is full, who was only heard of gives way to who answered, and strangers to the peers of the run.

use std::collections::{BTreeMap, BTreeSet};
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
    /// When it answered last, counted in answers.
    turn: u64,
}

/// Addresses by peer.
#[derive(Debug, Clone, Default)]
pub struct Book {
    entries: BTreeMap<PeerId, Entry>,
    turns: u64,
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
    /// The peer answered at `addr`. In a full book it takes the place of who was only ever heard of, else of the stranger
    /// that answered longest ago.
    pub fn saw(&mut self, id: PeerId, addr: SocketAddr, favoured: &BTreeSet<PeerId>) {
        if !self.entries.contains_key(&id) && self.entries.len() >= BOOK_MAX {
            let strangers = self.entries.iter().filter(|(id, _)| !favoured.contains(id));
            let Some(victim) = strangers.min_by_key(|(_, e)| e.turn).map(|(id, _)| *id) else { return };
            self.entries.remove(&victim);
        }
        self.turns += 1;
        let entry = self.entries.entry(id).or_default();
        entry.turn = self.turns;
        front(&mut entry.seen, addr);
    }

    /// Somebody says that the peer is at `addrs`. A full book takes only peers of the run, in the place of somebody else who
    /// was only heard of.
    pub fn heard(&mut self, id: PeerId, addrs: &[SocketAddr], favoured: bool) {
        if !self.entries.contains_key(&id) && self.entries.len() >= BOOK_MAX {
            let hearsay = self.entries.iter().find(|(_, e)| e.seen.is_empty()).map(|(id, _)| *id);
            let Some(victim) = hearsay.filter(|_| favoured) else { return };
            self.entries.remove(&victim);
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

    /// Whether anything is known of the peer.
    pub fn knows(&self, id: &PeerId) -> bool {
        self.entries.contains_key(id)
    }

    /// Whether the peer itself answered at `addr`; else that is hearsay.
    pub fn answered(&self, id: &PeerId, addr: &SocketAddr) -> bool {
        self.entries.get(id).is_some_and(|e| e.seen.contains(addr))
    }

    /// Peers with an address, in order of id.
    pub fn ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.entries.keys().copied()
    }

    /// Up to [`WHERE_MAX`] peers that answered here, to tell to `asker`: half of them peers of the run, if there are so many,
    /// the rest others; from `turn` on round either, so that all are told in time.
    pub fn tell(&self, asker: &PeerId, favoured: &BTreeSet<PeerId>, turn: u64) -> Vec<Place> {
        let known = self.entries.iter().filter(|(id, e)| *id != asker && !e.seen.is_empty());
        let (ours, others): (Vec<_>, Vec<_>) = known.partition(|(id, _)| favoured.contains(id));
        let half = (WHERE_MAX - others.len().min(WHERE_MAX)).max(WHERE_MAX / 2);
        let mut out = Vec::new();
        for (list, most) in [(ours, half), (others, WHERE_MAX)] {
            let first = (turn as usize).wrapping_mul(WHERE_MAX / 2) % list.len().max(1);
            let most = most.min(WHERE_MAX - out.len()).min(list.len());
            let some = list.iter().cycle().skip(first).take(most);
            out.extend(some.map(|(id, e)| Place { id: **id, addrs: e.seen.clone() }));
        }
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
        let nobody = BTreeSet::new();
        b.saw(id(1), addr(1), &nobody);
        for port in 2..100 {
            b.heard(id(1), &[addr(port)], false);
        }
        assert_eq!(b.addrs(&id(1))[0], addr(1));
        assert_eq!(b.addrs(&id(1)).len(), 1 + ADDRS_MAX);
        b.heard(id(2), &[addr(0)], false);
        assert!(b.addrs(&id(2)).is_empty());
        assert_eq!(b.tell(&id(9), &nobody, 0), [Place { id: id(1), addrs: vec![addr(1)] }]);
        assert!(b.tell(&id(1), &nobody, 0).is_empty());
    }

    #[test]
    fn the_book_has_a_bound_that_liars_cannot_use() {
        let mut b = Book::default();
        for n in 0..20_000 {
            b.heard(id(n), &[addr(1)], false);
        }
        assert_eq!(b.ids().count(), BOOK_MAX);
        let ours = BTreeSet::from([id(1 << 40), id(2 << 40)]);
        b.saw(id(1 << 40), addr(7), &ours);
        assert_eq!(b.addrs(&id(1 << 40)), [addr(7)]);
        b.heard(id(2 << 40), &[addr(8)], true);
        assert_eq!(b.addrs(&id(2 << 40)), [addr(8)]);
        assert_eq!(b.ids().count(), BOOK_MAX);
        // Strangers who answer under ever new keys push out each other, and are told behind the peers of the run.
        for n in 0..20_000u64 {
            b.saw(id((3 << 40) + n), addr(9), &ours);
        }
        assert_eq!(b.ids().count(), BOOK_MAX);
        b.saw(id(2 << 40), addr(8), &ours);
        for turn in 0..40 {
            let told = b.tell(&id(9), &ours, turn);
            assert_eq!(told.len(), WHERE_MAX);
            assert!(ours.iter().all(|id| told.iter().any(|p| p.id == *id)));
            assert!(told.is_sorted_by(|a, b| a.id < b.id));
        }
        // A run larger than an answer is told in turns too.
        let many: BTreeSet<PeerId> = (0..1000).map(id).collect();
        let mut b = Book::default();
        many.iter().for_each(|id| b.saw(*id, addr(1), &many));
        let told: BTreeSet<PeerId> = (0..8).flat_map(|turn| b.tell(&id(5000), &many, turn)).map(|p| p.id).collect();
        assert_eq!(told, many);
    }
}
