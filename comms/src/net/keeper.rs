//! Keeps links alive: dials who should be linked and is not, with back-off, and learns of others.
//!
//! Up to `links_max` links are opened from here; preferred peers (the validators) come first, then the rest of the
//! book in an order that the seed turns, so that in a large run each process keeps others than its neighbour does. Of
//! a pair that both want the link, both dial: `link.rs` keeps one. A peer that does not answer is tried again after a
//! wait that grows to a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::backoff::{Backoff, Jitter};
use super::frame::{Frame, Place};
use super::{NetError, ROLE_BOOTSTRAP, Shared, State, link};
use crate::key::PeerId;

const TURN: Duration = Duration::from_millis(500);
/// Dials started in one turn at most.
const DIALS_PER_TURN: usize = 8;
const ASK_EVERY: Duration = Duration::from_secs(15);

struct Wait {
    backoff: Backoff,
    until: Instant,
}

impl Wait {
    fn new(seed: u64) -> Wait {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60), seed);
        Wait { backoff, until: Instant::now() }
    }
}

/// An address to be linked to, whoever is there.
struct Join {
    addr: SocketAddr,
    known: Option<PeerId>,
    dialing: bool,
    /// Dials in a row that failed.
    failed: u32,
    wait: Wait,
}

impl Join {
    fn new(addr: SocketAddr, seed: u64) -> Join {
        Join { addr, known: None, dialing: false, failed: 0, wait: Wait::new(seed) }
    }

    /// A dial has ended.
    fn ended(&mut self, outcome: Result<PeerId, NetError>) {
        self.dialing = false;
        match outcome {
            Ok(id) => {
                self.known = Some(id);
                self.failed = 0;
                self.wait.backoff.clear();
            }
            Err(NetError::Own { .. }) => self.wait.until = Instant::now() + Duration::from_secs(3600),
            Err(e) => {
                // Who typed an address waits for it: told at once, and then ever more seldom.
                self.failed = self.failed.saturating_add(1);
                if self.failed.is_power_of_two() {
                    tracing::warn!(target: "esker::net", error = %e, dials = self.failed, "cannot join yet, trying on");
                }
                self.wait.until = Instant::now() + self.wait.backoff.fail();
            }
        }
    }
}

/// Asks a peer whom it knows.
pub(super) fn ask(net: &Arc<Shared>, peer: PeerId) {
    // A link that ends meanwhile is asked again when it comes back.
    let _ = link::queue(net, peer, Frame::WhoIsWhere.to_wire());
}

/// Answers such a question.
pub(super) fn tell(net: &Arc<Shared>, asker: PeerId) {
    let mut guard = net.state();
    let state = &mut *guard;
    let Some(link) = state.links.get_mut(&asker) else { return };
    if link.may_ask(net.start.elapsed()) {
        let places = state.book.tell(&asker, &state.favoured, state.generation);
        let _ = link.queue(Frame::Where(places).to_wire());
    }
}

/// Takes such an answer: hints, no more.
pub(super) fn heard(net: &Arc<Shared>, places: Vec<Place>) {
    let mut state = net.state();
    for place in places.into_iter().filter(|p| p.id != net.me) {
        let favoured = state.favoured.contains(&place.id);
        state.book.heard(place.id, &place.addrs, favoured);
    }
}

pub(super) async fn keep(net: Arc<Shared>, join: Vec<SocketAddr>, prefer: BTreeSet<PeerId>) {
    let mut order = Jitter::new(net.config.seed ^ u64::from_le_bytes(net.me.0[..8].try_into().expect("8 of 32 bytes")));
    let turn_of_book = order.draw();
    let mut joins: Vec<Join> = join.into_iter().map(|addr| Join::new(addr, order.draw())).collect();
    let (told, mut ended) = mpsc::unbounded_channel::<(usize, Result<PeerId, NetError>)>();
    let mut peers: BTreeMap<PeerId, Wait> = BTreeMap::new();
    let mut asked = Instant::now();
    loop {
        if net.state().closing {
            return;
        }
        while let Ok((at, outcome)) = ended.try_recv() {
            joins[at].ended(outcome);
        }
        for (at, join) in joins.iter_mut().enumerate() {
            let linked = join.known.is_some_and(|id| net.state().links.contains_key(&id));
            if linked || join.dialing || join.wait.until > Instant::now() {
                continue;
            }
            // Beside each other: one that is dead keeps nobody from the others.
            join.dialing = true;
            let (net, told, addr) = (net.clone(), told.clone(), join.addr);
            tokio::spawn(async move { drop(told.send((at, link::connect(&net, addr, None).await))) });
        }
        for id in candidates(&net, &prefer, turn_of_book, &peers) {
            let wait = peers.entry(id).or_insert_with(|| Wait::new(order.draw()));
            // The wait is set before the dial, which runs beside this loop, and forgotten once there is a link.
            wait.until = Instant::now() + wait.backoff.fail();
            let net = net.clone();
            tokio::spawn(async move {
                if let Err(e) = reach(&net, id).await {
                    tracing::debug!(target: "esker::net", peer = %id, error = %e, "dial");
                }
            });
        }
        forget(&mut peers, &net.state(), &prefer);
        if asked.elapsed() >= ASK_EVERY {
            asked = Instant::now();
            let linked: Vec<PeerId> = net.state().links.keys().copied().collect();
            linked.into_iter().for_each(|id| ask(&net, id));
        }
        tokio::time::sleep(TURN).await;
    }
}

/// Drops the waits of who is linked, and of who is known no more: strangers come under ever new keys.
fn forget(waits: &mut BTreeMap<PeerId, Wait>, state: &State, prefer: &BTreeSet<PeerId>) {
    waits.retain(|id, _| !state.links.contains_key(id) && (prefer.contains(id) || state.book.knows(id)));
}

/// Whom to dial in this turn.
fn candidates(net: &Arc<Shared>, prefer: &BTreeSet<PeerId>, turn: u64, waits: &BTreeMap<PeerId, Wait>) -> Vec<PeerId> {
    let now = Instant::now();
    let state = net.state();
    let free = |id: &PeerId| {
        *id != net.me
            && !state.links.contains_key(id)
            && !state.dialing.contains(id)
            && waits.get(id).is_none_or(|w| w.until <= now)
    };
    let mut out: Vec<PeerId> = prefer.iter().copied().filter(free).take(DIALS_PER_TURN).collect();
    let ours = |id: &PeerId| state.favoured.contains(id);
    let (run, strangers): (Vec<PeerId>, Vec<PeerId>) = state.book.ids().partition(ours);
    // Links that strangers hold are no reason to leave out a peer of the run.
    let held = [state.links.keys().filter(|id| ours(id)).count(), state.links.len()];
    for (known, held) in [run, strangers].into_iter().zip(held) {
        let room = net.config.links_max.saturating_sub(held).min(DIALS_PER_TURN);
        let first = if known.is_empty() { 0 } else { (turn % known.len() as u64) as usize };
        let turned = known[first..].iter().chain(&known[..first]);
        let some = turned.filter(|id| free(id) && !prefer.contains(id)).take(room.saturating_sub(out.len()));
        out.extend(some.copied().collect::<Vec<_>>());
    }
    out
}

/// Marks a peer as being dialled until it is dropped, also when the dial is given up.
struct Dialing<'a>(&'a Shared, PeerId);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.state().dialing.remove(&self.1);
    }
}

pub(super) async fn reach(net: &Arc<Shared>, peer: PeerId) -> Result<(), NetError> {
    let addrs = {
        let mut state = net.state();
        if state.links.contains_key(&peer) {
            return Ok(());
        }
        if state.closing {
            return Err(NetError::Closing);
        }
        state.dialing.insert(peer);
        state.book.addrs(&peer)
    };
    let _dialing = Dialing(net, peer);
    let mut last = NetError::NoAddress { peer };
    for addr in addrs {
        let may = {
            let mut state = net.state();
            state.book.answered(&peer, &addr) || state.gate.may_dial(net.start.elapsed(), addr.ip())
        };
        if !may {
            last = NetError::Dial { addr, why: "too much that was only heard of is dialled there".into() };
            continue;
        }
        match link::connect(net, addr, Some(peer)).await {
            Ok(_) => return Ok(()),
            Err(e) => last = e,
        }
    }
    let via: Vec<PeerId> = {
        let state = net.state();
        state.links.iter().filter(|(_, l)| l.roles() & ROLE_BOOTSTRAP != 0).map(|(id, _)| *id).collect()
    };
    for bootstrap in via {
        if link::queue(net, bootstrap, Frame::PunchAsk { target: peer }.to_wire()).is_err() {
            continue;
        }
        let until = Instant::now() + link::DIAL;
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if net.state().links.contains_key(&peer) {
                return Ok(());
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;
    use crate::net::{Config, Event, Inbox, Net};

    fn net(n: u8) -> (Net, Inbox) {
        let bind = "127.0.0.1:0".parse().unwrap();
        Net::bind(Config { roles: ROLE_BOOTSTRAP, ..Config::new(bind, 1000) }, Key::from_seed([n; 32])).unwrap()
    }

    /// Waits for the next message.
    async fn message(inbox: &mut Inbox) {
        while !matches!(inbox.events.recv().await.expect("the network runs"), Event::Message { .. }) {}
    }

    /// Five bytes ask for thirty thousand, and a punch is told to a third: neither may be asked for at a flood's rate.
    #[tokio::test]
    async fn questions_to_the_network_have_a_rate() {
        let ((a, mut from_a), (b, mut from_b), (c, mut from_c)) = (net(1), net(2), net(3));
        for net in [&a, &c] {
            net.connect(b.local_addr(), None).await.unwrap();
            while !b.linked(&net.me()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        {
            let mut state = b.0.state();
            for n in 0..300u16 {
                let id = PeerId(std::array::from_fn(|i| if i < 2 { n.to_le_bytes()[i] } else { 9 }));
                state.book.saw(id, SocketAddr::from(([192, 0, 2, 1], n + 1)), &BTreeSet::new());
            }
        }
        let sent = |peer: &Net| b.0.state().links[&peer.me()].conn.stats().udp_tx.bytes;
        let (before, began) = ((sent(&a), sent(&c)), b.0.start.elapsed());
        for _ in 0..400 {
            ask(&a.0, b.me());
            link::queue(&a.0, b.me(), Frame::PunchAsk { target: c.me() }.to_wire()).unwrap();
        }
        // A link keeps the order: this comes behind all questions, and what is then sent back behind all answers.
        link::send(&a.0, b.me(), b"asked").unwrap();
        message(&mut from_b).await;
        for (net, inbox) in [(&a, &mut from_a), (&c, &mut from_c)] {
            link::send(&b.0, net.me(), b"answered").unwrap();
            message(inbox).await;
        }
        let (after, spent) = ((sent(&a), sent(&c)), (b.0.start.elapsed() - began).as_secs_f64());
        // What the buckets hold, and what they gained meanwhile: answers of 11 KB, and calls of a hundred bytes, which
        // both hear. Twice that, as a packet may be sent again.
        let (answers, calls) = (16.0 + spent, 16.0 + 4.0 * spent);
        let (to_asker, to_third) = ((after.0 - before.0) as f64, (after.1 - before.1) as f64);
        assert!((10_000.0..22_000.0 * answers + 1000.0 * calls).contains(&to_asker), "{to_asker} bytes in {spent} s");
        assert!(to_third < 1000.0 * calls, "{to_third} bytes to the third in {spent} s");
        assert!(b.linked(&a.me()) && b.linked(&c.me()));
    }

    /// Whoever answered once and left was waited for until the process ended, under each key it had come by.
    #[tokio::test]
    async fn waits_are_for_who_is_known() {
        let (net, _inbox) = net(7);
        let id = |n: u32| PeerId(std::array::from_fn(|i| n.to_be_bytes().get(i).copied().unwrap_or(5)));
        let (prefer, mut waits) = (BTreeSet::from([id(u32::MAX)]), BTreeMap::from([(id(u32::MAX), Wait::new(1))]));
        let mut state = net.0.state();
        for n in 0..20_000 {
            state.book.saw(id(n), SocketAddr::from(([192, 0, 2, 1], 9)), &prefer);
            waits.insert(id(n), Wait::new(1));
            if n % 1000 == 999 {
                forget(&mut waits, &state, &prefer);
            }
        }
        assert_eq!(waits.len(), crate::net::book::BOOK_MAX + 1);
        assert!(waits.contains_key(&id(u32::MAX)) && waits.contains_key(&id(19_999)));
    }
}
