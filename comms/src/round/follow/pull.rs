//! What others say of how far they are, and the manifests that they are asked for.
//!
//! A status is an unsigned hint. It costs a few pulls if it is a lie: who does not show what it claims is believed no more,
//! and what is told to the mesh waits for no claim but those of more validators than can be liars.

use super::Follow;
use crate::PeerId;
use crate::round::core::Core;
use crate::round::{Order, Time, Whom};
use crate::wire::{Body, Message, Pull, Status};

/// Manifests sent for one pull, and their bytes: well below what may wait for one peer.
const PULL: u64 = 16;
const PULL_BYTES: usize = 4 << 20;
/// Pulls without an answer after which a peer's claim is believed no more, until it claims more.
const UNMET_MAX: u8 = 8;

/// How far a peer says that it is: an unsigned hint, which costs a few pulls if it is a lie.
pub(super) struct Claim {
    pub(super) status: Status,
    /// Pulls in a row that it did not answer.
    pub(super) unmet: u8,
}

impl Follow {
    /// Manifests exist up to here, by those that wait for a gap to close and by who has not failed to show what it claims.
    pub(super) fn goal(&self) -> u64 {
        let claims = self.claims.values().filter(|c| c.unmet < UNMET_MAX).map(|c| c.status.round);
        claims.chain(self.ahead.keys().next_back().copied()).max().unwrap_or(0)
    }

    /// Manifests exist up to here, as more validators claim than can be liars.
    fn settled_goal(&self, core: &Core) -> u64 {
        let claim = |v: &PeerId| self.claims.get(v).map(|c| c.status.round);
        let mut claims: Vec<u64> = core.spec.validators.iter().filter_map(claim).collect();
        claims.sort_unstable_by(|a, b| b.cmp(a));
        claims.get(core.spec.validators.len() - core.quorum()).copied().unwrap_or(0)
    }

    pub fn on_status(&mut self, core: &mut Core, now: Time, from: PeerId, status: &Status, out: &mut Vec<Order>) {
        let before = self.claims.get(&from).filter(|c| status.round <= c.status.round);
        let unmet = before.map_or(0, |c| c.unmet);
        self.claims.insert(from, Claim { status: status.clone(), unmet });
        if unmet >= UNMET_MAX {
            return;
        }
        if status.round >= self.next() {
            // A validator's own manifest is usually on its way; who is far behind does not wait for it.
            let late = status.round > self.next();
            self.pull(core, now, from, late, out);
        }
    }

    /// Asks `from` for what is missing, at most once in a while.
    pub(super) fn pull(&mut self, core: &mut Core, now: Time, from: PeerId, at_once: bool, out: &mut Vec<Order>) {
        let retry = core.spec.times.retry_ms;
        let due = match (self.pulled, at_once) {
            (None, true) => true,
            (None, false) => {
                self.pulled = Some(now);
                false
            }
            (Some(at), _) => now >= at + retry,
        };
        if due {
            self.pulled = Some(now);
            self.asked = Some(from);
            let far = self.goal() > self.applied + u64::from(core.spec.limits.behind_rounds) && self.syncing.is_none();
            // Only the newest manifest names the newest checkpoint; where it was no help, the way is link by link.
            let want = if far && self.ahead.is_empty() { Pull::NEWEST } else { self.next() };
            self.pull_end = self.next().saturating_add(PULL);
            core.send(from, Body::Pull(Pull { from: want }), out);
        }
        core.wake(now, self.pulled.unwrap_or(now) + retry, out);
    }

    pub fn on_pull(&mut self, core: &mut Core, from: PeerId, pull: &Pull, out: &mut Vec<Order>) {
        let Some(newest) = self.tip() else { return };
        let newest = newest.manifest.round;
        let first = if pull.from == Pull::NEWEST || !self.chain.contains_key(&pull.from) { newest } else { pull.from };
        let mut bytes = 0;
        for (round, sealed) in self.chain.range(first..first.saturating_add(PULL)) {
            let make = || Message::new(&core.key, &core.run, Body::Sealed(sealed.clone()));
            let msg = self.told.entry(*round).or_insert_with(make).clone();
            bytes += msg.bytes().len();
            if bytes > PULL_BYTES && *round > first {
                break;
            }
            out.push(Order::Send { to: from, msg });
        }
    }

    /// Asks again, and somebody else, where a pull brought nothing.
    pub(super) fn pull_again(&mut self, core: &mut Core, now: Time, out: &mut Vec<Order>) {
        let due = self.pulled.is_some_and(|at| now >= at + core.spec.times.retry_ms);
        // The goal looks through all claims, so it comes last: this is asked at every step.
        if !due || core.up.is_empty() || self.goal() < self.next() {
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        if let Some(claim) = self.asked.take().and_then(|peer| self.claims.get_mut(&peer)) {
            claim.unmet = claim.unmet.saturating_add(1);
        }
        let ahead = |c: &Claim| c.unmet < UNMET_MAX && c.status.round >= self.next();
        let ahead: Vec<PeerId> = self.claims.iter().filter(|(_, c)| ahead(c)).map(|(p, _)| *p).collect();
        let ask = if ahead.is_empty() { core.up.iter().copied().collect() } else { ahead };
        let from = ask[self.turn % ask.len()];
        self.pull(core, now, from, true, out);
    }

    /// Tells the mesh of a new tip, when all news of a step are in.
    pub fn tell(&mut self, core: &mut Core, out: &mut Vec<Order>) {
        if let Some(status) = self.status().filter(|s| s.round >= self.settled_goal(core)) {
            let to = if core.is_validator() { Whom::All } else { Whom::Mesh };
            core.flood(to, Body::Status(status), out);
        }
    }
}
