//! What the machines of one process share: the spec, the key, who is connected, and what is said to oneself.

use super::{Event, Order, Time, Whom};
use crate::wire::{Body, Message, Msg};
use crate::{Hash, Key, PeerId, RunSpec};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// What the machines share.
pub(super) struct Core {
    pub spec: Arc<RunSpec>,
    pub run: Hash,
    pub key: Key,
    pub me: PeerId,
    pub up: BTreeSet<PeerId>,
    /// Messages that this process says to validators, itself being one.
    pub to_self: VecDeque<Msg>,
    /// The wake that the host was asked for, if any.
    wake: Option<Time>,
    /// Messages of each sender in this round.
    heard: BTreeMap<PeerId, u32>,
    /// After a fork nothing more is signed.
    pub halted: bool,
}

/// Messages that a peer may send in a round, validators eight times as many and two for each slot.
const QUOTA: u32 = 256;

impl Core {
    pub fn new(spec: Arc<RunSpec>, key: Key) -> Core {
        let (run, me) = (spec.id(), key.id());
        Core {
            spec,
            run,
            key,
            me,
            up: BTreeSet::new(),
            to_self: VecDeque::new(),
            wake: None,
            heard: BTreeMap::new(),
            halted: false,
        }
    }

    pub fn quorum(&self) -> usize {
        usize::from(self.spec.quorum)
    }

    pub fn is_validator(&self) -> bool {
        self.spec.is_validator(&self.me)
    }

    /// Makes, signs and sends; validators hear themselves.
    pub fn flood(&mut self, to: Whom, body: Body, out: &mut Vec<Order>) -> Msg {
        let msg = Message::new(&self.key, &self.run, body);
        self.again(to, msg.clone(), out);
        msg
    }

    /// Sends what was made before.
    pub fn again(&mut self, to: Whom, msg: Msg, out: &mut Vec<Order>) {
        if to != Whom::Mesh && self.is_validator() {
            self.to_self.push_back(msg.clone());
        }
        out.push(Order::Flood { to, msg });
    }

    pub fn send(&mut self, to: PeerId, body: Body, out: &mut Vec<Order>) {
        out.push(Order::Send { to, msg: Message::new(&self.key, &self.run, body) });
    }

    /// Asks for a fact at `at`, unless one comes before.
    pub fn wake(&mut self, now: Time, at: Time, out: &mut Vec<Order>) {
        let at = at.max(now + 1);
        if self.wake.is_none_or(|w| w <= now || at < w) {
            self.wake = Some(at);
            out.push(Order::Wake(at));
        }
    }

    fn quota(&self, peer: &PeerId) -> u32 {
        match self.spec.is_validator(peer) {
            true => QUOTA * 8 + 2 * self.spec.limits.slots,
            false => QUOTA,
        }
    }

    /// Whether `peer` has not used up what it may say in this round, and one message more, at which that is told.
    pub fn listens(&self, peer: &PeerId) -> bool {
        self.heard.get(peer).is_none_or(|heard| *heard <= self.quota(peer))
    }

    /// Whether one more message of `peer` is heard in this round.
    pub fn hears(&mut self, peer: PeerId, out: &mut Vec<Order>) -> bool {
        let most = self.quota(&peer);
        let heard = self.heard.entry(peer).or_default();
        *heard = heard.saturating_add(1);
        if *heard == most + 1 {
            out.push(Order::Log(Event::Quota { peer }));
        }
        *heard <= most
    }

    /// A round is over: everybody is heard again.
    pub fn round_over(&mut self) {
        self.heard.clear();
    }
}
