//! What the machines tell, held against the promises as it happens; and the judgement at the end.

use super::{DETECT_MS, Sim};
use crate::round::{Event, Expect, Machine};
use crate::sim::check::{Report, Row};
use crate::sim::work::{Work, distance};
use crate::wire::{Manifest, Reason};
use crate::{Hash, PeerId};
use std::sync::Arc;

impl<W: Work> Sim<W> {
    pub(super) fn log(&mut self, i: usize, event: Event) {
        match event {
            Event::Accepted { round, manifest, .. } => self.accepted(i, round, manifest),
            Event::Applied { round, root } => self.applied(i, round, root),
            Event::Synced { round, .. } => self.nodes[i].last_applied = round,
            Event::Mismatch { .. } => self.report.mismatches += 1,
            Event::Equivocation { .. } => self.report.equivocations += 1,
            Event::Fork { round, .. } => self.report.faults.push(format!("two final manifests of round {round}")),
            Event::Counted { round } | Event::TurnedAway { round, reason: Some(Reason::Reserve) } => {
                let node = &mut self.nodes[i];
                if !std::mem::replace(&mut node.counted, true)
                    && node.liar.is_none()
                    && let Some(level) = node.level_at.filter(|l| *l > 0)
                {
                    self.report.newcomer_rounds = self.report.newcomer_rounds.max(round.saturating_sub(level));
                }
            }
            _ => {}
        }
    }

    pub(super) fn applied(&mut self, i: usize, round: u64, root: Hash) {
        self.digest.update(&self.now.to_le_bytes());
        self.digest.update(&root.0);
        let Some(row) = self.report.rows.get_mut(&round) else { return };
        let same = *row.root.get_or_insert(root) == root;
        if !same && self.flipped != Some(i) {
            self.report.faults.push(format!("node {i} has another root after round {round}"));
        }
        let node = &mut self.nodes[i];
        if round != node.last_applied + 1 {
            self.report.faults.push(format!("node {i} applied round {round} after {}", node.last_applied));
        }
        node.last_applied = round;
        let level = node.machine.as_ref().is_some_and(Machine::level);
        if level && node.level_at.is_none() {
            // The round that goes on at this moment is the first that the newcomer sees.
            node.level_at = Some(round + 1);
        }
        if self.config.flip == Some(round) && i == self.config.validators {
            self.flipped = Some(i);
            let values = Arc::make_mut(&mut self.nodes[i].disk.state.values);
            values[100] = f32::from_bits(values[100].to_bits() ^ (1 << 20));
        }
    }

    pub(super) fn accepted(&mut self, i: usize, round: u64, manifest: Hash) {
        if let Some(row) = self.report.rows.get(&round) {
            if row.manifest != manifest {
                self.report.faults.push(format!("node {i} has another manifest of round {round}"));
            }
            return;
        }
        let Some(sealed) = self.nodes[i].machine.as_ref().and_then(|m| m.manifest(round)).cloned() else { return };
        let m = &sealed.manifest;
        let liar = |p: &PeerId| self.names.get(p).is_some_and(|j| self.nodes[*j].liar.is_some());
        let row = Row {
            at: self.now,
            manifest,
            root: None,
            peers: (self.alive.len() - self.alive.range(..self.config.validators).count()) as u32,
            slots: m.slots.len() as u32,
            entries: m.entries.len() as u32,
            rejects: m.rejects.len() as u32,
            lies: m.entries.iter().filter(|e| liar(&e.peer)).count() as u32,
        };
        self.listed(m);
        let (lived, took) = (!self.no_quorum, self.now - self.best_at);
        if round > 0 && lived {
            self.report.missed += u64::from(row.entries == 0);
            self.report.longest_ms = self.report.longest_ms.max(took);
            let t = &self.spec.times;
            if took > t.train_ms + t.grace_ms + t.collect_ms + 6 * t.attempt_ms + DETECT_MS.0 + DETECT_MS.1 {
                self.report.faults.push(format!("round {round} took {took} ms although a quorum lived"));
            }
        }
        self.report.rows.insert(round, row);
        (self.best, self.best_at) = (Some(round), self.now);
        self.no_quorum = !self.quorum_lives();
        self.opened.swap(0, 1);
        self.opened[0].clear();
        while self.born.front().is_some_and(|(r, _)| r + 4 * u64::from(self.config.checkpoint_rounds) + 8 < round) {
            let (_, blob) = self.born.pop_front().expect("sim: a front");
            self.blobs.remove(&blob);
        }
        self.fate(round);
    }

    /// What a manifest lists must be sound and held, whoever signed it.
    pub(super) fn listed(&mut self, m: &Manifest) {
        let delay = u64::from(self.config.delay);
        let first = m.round.saturating_sub(1 + delay);
        let mut bases = vec![m.prev_root];
        bases.extend(self.report.rows.range(first..m.round).filter_map(|(_, r)| r.root));
        bases.extend((first == 0).then_some(self.spec.genesis));
        for e in &m.entries {
            let (bytes, tokens, steps) = (self.spec.blob_bytes, e.tokens, self.spec.inner.steps);
            let expect = Expect { round: m.round, peer: e.peer, bytes, tokens, steps, bases: bases.clone() };
            let sound = self.blobs.get(&e.blob).is_some_and(|b| self.work.check(&self.run, b, &expect).is_ok());
            if !sound {
                self.report.faults.push(format!("round {} lists an update that is not sound", m.round));
            }
            let holders = (0..self.config.validators).filter(|v| self.nodes[*v].disk.blobs.contains(&e.blob)).count();
            if holders < usize::from(self.spec.quorum) {
                self.report.faults.push(format!("round {} lists an update that {holders} validators hold", m.round));
            }
        }
    }

    /// The history's judgement.
    pub fn report(mut self) -> Report {
        let last = self.best.unwrap_or(0);
        self.report.behind = self
            .alive
            .iter()
            .filter(|i| self.nodes[**i].machine.as_ref().is_some_and(|m| m.applied().0 < last))
            .count() as u64;
        if self.report.behind > 0 {
            let who: Vec<String> = self
                .alive
                .iter()
                .filter_map(|i| Some((i, self.nodes[*i].machine.as_ref()?)))
                .filter(|(_, m)| m.applied().0 < last)
                .take(5)
                .map(|(i, m)| format!("{i} {m:?}"))
                .collect();
            self.report.faults.push(format!("{} machines are behind at the end: {who:?}", self.report.behind));
        }
        if last < self.config.rounds {
            self.report.faults.push(format!("ended at round {last} of {}", self.config.rounds));
        }
        if let Some(state) = self.alive.iter().next().map(|i| &self.nodes[*i].disk.state) {
            self.report.distance.1 = distance(&state.values);
        }
        self.report.digest = Hash(*self.digest.finalize().as_bytes());
        self.report
    }
}
