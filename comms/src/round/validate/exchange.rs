//! One round's commits, and how far their updates are: asked for, held, checked, told to the other validators.

use crate::round::core::Core;
use crate::round::follow::Follow;
use crate::round::judge::Sound;
use crate::round::{Expect, Order, Time, Urgency, Want, Whom};
use crate::wire::{Body, Commit, Have, Msg, Reason, Sealed};
use crate::{Hash, PeerId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How far a committed update is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Not to be had yet.
    Hidden,
    /// Asked for.
    Fetching,
    /// Held, and waiting for its check.
    Held,
    /// Sound.
    Sound(Sound),
    /// Not sound.
    Bad(Reason),
}

pub(super) struct Update {
    pub(super) commit: Commit,
    pub(super) msg: Msg,
    pub(super) stage: Stage,
}

/// One round's commits, and how far they are.
pub(super) struct Exchange {
    pub(super) round: u64,
    pub(super) after: Arc<Sealed>,
    pub(super) updates: BTreeMap<PeerId, Update>,
    /// Who committed to which; more than one only where somebody lies, whom the header gives away.
    pub(super) blobs: BTreeMap<Hash, Vec<PeerId>>,
    /// Held, and not given to be checked yet.
    pub(super) to_check: Vec<PeerId>,
    /// Turned away for what they did, not for what they sent.
    pub(super) faults: BTreeMap<PeerId, Reason>,
    /// Slot holders that are connected and have not committed.
    pub(super) awaited: BTreeSet<PeerId>,
    /// Updates neither sound nor bad, of peers who can still give them.
    pub(super) open: BTreeSet<PeerId>,
    pub(super) closed: Option<Time>,
    /// The other validators that closed, and when more had than can be liars.
    pub(super) others: BTreeSet<PeerId>,
    pub(super) others_closed: Option<Time>,
    pub(super) close_msg: Option<Msg>,
    pub(super) haves: BTreeMap<PeerId, Have>,
    pub(super) said: Option<(Have, Msg)>,
    pub(super) asked: Option<Time>,
}

impl Exchange {
    /// The exchange of `round`, whose slots `after` gives; `awaited` holds one and is connected.
    pub(super) fn new(round: u64, after: Arc<Sealed>, awaited: BTreeSet<PeerId>) -> Exchange {
        Exchange {
            round,
            after,
            updates: BTreeMap::new(),
            blobs: BTreeMap::new(),
            to_check: Vec::new(),
            faults: BTreeMap::new(),
            awaited,
            open: BTreeSet::new(),
            closed: None,
            others: BTreeSet::new(),
            others_closed: None,
            close_msg: None,
            haves: BTreeMap::new(),
            said: None,
            asked: None,
        }
    }

    /// Whether nobody who holds a slot can still commit.
    pub(super) fn full(&self) -> bool {
        let settled = |p: &PeerId| self.updates.contains_key(p) || self.faults.contains_key(p);
        self.after.manifest.slots.iter().all(|slot| settled(&slot.peer))
    }

    /// Asks for updates: (whose, from whom).
    pub(super) fn fetch(&mut self, core: &Core, which: &[(PeerId, PeerId)], out: &mut Vec<Order>) {
        let mut wants = Vec::new();
        for (peer, from) in which {
            let Some(update) = self.updates.get_mut(peer) else { continue };
            if matches!(update.stage, Stage::Hidden) {
                update.stage = Stage::Fetching;
                wants.push(Want { blob: update.commit.blob, bytes: core.spec.blob_bytes, from: *from });
            }
        }
        if !wants.is_empty() {
            out.push(Order::Fetch { wants, urgency: Urgency::Collect });
        }
    }

    /// Asks once in a while for what is neither here nor said to be on its way.
    pub(super) fn ask_again(&mut self, core: &Core, now: Time, out: &mut Vec<Order>) {
        let retry = core.spec.times.retry_ms;
        if now < *self.asked.get_or_insert(now) + retry {
            return;
        }
        self.asked = Some(now);
        let hidden = self.open.iter().filter(|p| matches!(self.updates[p].stage, Stage::Hidden));
        let which: Vec<(PeerId, PeerId)> = hidden.map(|p| (*p, *p)).collect();
        self.fetch(core, &which, out);
    }

    /// Orders the checks that wait, once the states are known from which updates may have been made.
    pub(super) fn check(&mut self, core: &Core, follow: &Follow, out: &mut Vec<Order>) {
        let first = self.round.saturating_sub(1 + u64::from(core.spec.delay));
        if self.to_check.is_empty() || !follow.roots.contains_key(&(self.round - 1)) {
            return;
        }
        let bases: Vec<Hash> = follow.roots.range(first..self.round).map(|(_, root)| *root).collect();
        for peer in std::mem::take(&mut self.to_check) {
            let Commit { blob, tokens, steps, .. } = self.updates[&peer].commit;
            let (round, bytes, bases) = (self.round, core.spec.blob_bytes, bases.clone());
            out.push(Order::Check { blob, expect: Expect { round, peer, bytes, tokens, steps, bases } });
        }
    }

    /// Tells the validators what is held, when all is, when time is up, and when more came after that.
    pub(super) fn say(&mut self, core: &mut Core, whole: bool, late: bool, out: &mut Vec<Order>) {
        if !late && (!whole || self.said.as_ref().is_some_and(|(have, _)| have.whole)) {
            return;
        }
        let mut slots = vec![0u8; self.after.manifest.slots.len().div_ceil(8)];
        for (peer, update) in &self.updates {
            if matches!(update.stage, Stage::Sound(_))
                && let Some((slot, _)) = self.after.manifest.slot(peer)
            {
                slots[slot as usize / 8] |= 1 << (slot % 8);
            }
        }
        while slots.last() == Some(&0) {
            slots.pop();
        }
        let have = Have { round: self.round, after: self.after.hash, whole, slots };
        if self.said.as_ref().is_none_or(|(h, _)| *h != have) {
            self.haves.insert(core.me, have.clone());
            let msg = core.flood(Whom::Validators, Body::Have(have.clone()), out);
            self.said = Some((have, msg));
        }
    }

    /// How many validators hold `peer`'s update and found it sound.
    pub(super) fn holders(&self, peer: &PeerId) -> usize {
        let Some((slot, _)) = self.after.manifest.slot(peer) else { return 0 };
        self.haves.values().filter(|h| bit(&h.slots, slot)).count()
    }
}

pub(super) fn bit(slots: &[u8], slot: u32) -> bool {
    slots.get(slot as usize / 8).is_some_and(|byte| byte >> (slot % 8) & 1 == 1)
}
