//! Two peers that cannot be dialled reach each other.
//!
//! Each stands behind a translator that lets in only what answers its own packets. Both have a link to a bootstrap,
//! which therefore knows the address that each shows outside. It tells each the other's address and a wait, so that
//! both send their first packet at one instant:
//!
//! wait_x = lead + (max rtt − rtt_x) / 2,   lead = 50 ms
//!
//! Each first packet opens its sender's translator for the other; whichever handshake comes through makes the link,
//! and if both do, the rule of `link.rs` keeps one. A dial ends after 5 seconds. Where translators give every target
//! a new port this fails; such a peer is served by seeders, which it dials itself. Nothing is relayed.
//!
//! Source: Ford, Srisuresh & Kegel 2005, "Peer-to-peer communication across network address translators".

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::frame::Frame;
use super::{ROLE_BOOTSTRAP, Shared, link};
use crate::key::PeerId;

const LEAD: Duration = Duration::from_millis(50);
/// A wait above this is nobody's honest wish.
const WAIT_MAX_MS: u16 = 2000;

/// How long each side waits, from receipt, so that both start together. Round trips are those to the bootstrap.
pub(super) fn waits(rtt_a: Duration, rtt_b: Duration) -> (u16, u16) {
    let most = rtt_a.max(rtt_b);
    let wait = |rtt: Duration| (LEAD + (most - rtt) / 2).as_millis().min(u128::from(WAIT_MAX_MS)) as u16;
    (wait(rtt_a), wait(rtt_b))
}

/// A peer asks to be brought together with another. Only a bootstrap does that, and only for peers that it holds.
pub(super) fn asked(net: &Arc<Shared>, asker: PeerId, target: PeerId) {
    if net.config.roles & ROLE_BOOTSTRAP == 0 || asker == target {
        return;
    }
    let (mut state, now) = (net.state(), net.start.elapsed());
    let asks = state.links.get_mut(&asker).is_some_and(|link| link.may_ask(now));
    if !asks || !state.links.get_mut(&target).is_some_and(|link| link.may_be_called(now)) {
        return;
    }
    let (Some(a), Some(b)) = (state.links.get(&asker), state.links.get(&target)) else { return };
    let (wait_a, wait_b) = waits(a.conn.rtt(), b.conn.rtt());
    let go = |id, at: &link::Link, wait_ms| Frame::PunchGo { id, addr: at.conn.remote_address(), wait_ms }.to_wire();
    // A full queue means that the link is about to end; the asker tries again.
    let _ = a.queue(go(target, b, wait_a));
    let _ = b.queue(go(asker, a, wait_b));
}

/// A bootstrap says when and where to dial. It could send us against a stranger, so that it must be one, and we follow
/// at most 16 such words at once and one a second.
pub(super) fn go(net: &Arc<Shared>, from: PeerId, id: PeerId, addr: SocketAddr, wait_ms: u16) {
    {
        let mut state = net.state();
        let bootstrap = state.links.get(&from).is_some_and(|l| l.roles() & ROLE_BOOTSTRAP != 0);
        let now = net.start.elapsed();
        if !bootstrap || wait_ms > WAIT_MAX_MS || state.links.contains_key(&id) || !state.punches.try_take(now, 1.0) {
            return;
        }
        let favoured = state.favoured.contains(&id);
        state.book.heard(id, &[addr], favoured);
    }
    let net = net.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(u64::from(wait_ms))).await;
        if let Err(e) = link::connect(&net, addr, Some(id)).await {
            tracing::debug!(target: "esker::net", peer = %id, error = %e, "punch");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_start_together() {
        let ms = Duration::from_millis;
        let (a, b) = waits(ms(20), ms(300));
        assert_eq!(u64::from(a) + 10, u64::from(b) + 150);
        assert_eq!(b, 50);
        assert_eq!(waits(ms(0), ms(60_000)).0, WAIT_MAX_MS);
    }
}
