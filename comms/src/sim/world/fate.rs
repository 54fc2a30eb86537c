//! What befalls whom: leaving, coming, kills, partitions.

use super::{DETECT_MS, Sim, What};
use crate::sim::work::Work;

impl<W: Work> Sim<W> {
    /// What happens to whom in the next round: leaving, coming, kills, partitions.
    pub(super) fn fate(&mut self, round: u64) {
        let span = 45_000;
        if round + 2 < self.config.rounds {
            let peers: Vec<usize> = self.alive.range(self.config.validators..).copied().collect();
            let leave = (self.config.churn * self.config.peers as f64).round() as usize;
            // The number is held: who left more than came is made up for.
            let come = (leave + self.config.peers).saturating_sub(peers.len()).min(2 * leave);
            for _ in 0..leave.min(peers.len()) {
                let who = peers[self.rng.below(peers.len() as u64) as usize];
                let at = self.now + self.rng.below(span);
                self.push(at, who, What::Kill { forever: true });
            }
            for _ in 0..come {
                let at = self.now + self.rng.below(span);
                self.push(at, 0, What::Join);
            }
            let kills = self.config.kills.floor() as usize + usize::from(self.rng.chance(self.config.kills.fract()));
            let all: Vec<usize> = self.alive.iter().copied().collect();
            for _ in 0..kills {
                let who = all[self.rng.below(all.len() as u64) as usize];
                let at = self.now + self.rng.below(span);
                self.push(at, who, What::Kill { forever: false });
            }
        }
        match self.config.partition {
            Some((from, _)) if from == round => self.part(true),
            Some((_, to)) if to == round => {
                self.part(false);
                self.healed_at = Some(round);
            }
            _ => {}
        }
        if let Some(at) = self.healed_at
            && self.report.healed.is_none()
            && round > at
        {
            let level = |i: &usize| self.nodes[*i].machine.as_ref().is_some_and(|m| m.applied().0 + 1 >= round);
            if self.alive.iter().all(level) {
                self.report.healed = Some(round - at);
            }
        }
    }

    pub(super) fn part(&mut self, split: bool) {
        self.split = split;
        self.no_quorum |= !self.quorum_lives();
        for i in self.alive.clone() {
            for j in self.nodes[i].links.clone() {
                if i >= j || self.side(i) == self.side(j) || self.nodes[j].machine.is_none() {
                    continue;
                }
                if split {
                    let after = DETECT_MS.0 + self.rng.below(DETECT_MS.1);
                    let (a, b) = (self.nodes[i].life, self.nodes[j].life);
                    // Who still hears the other keeps its end of the link: the worst that a half-dead line can do.
                    if !self.hears(i, j) || !self.config.one_way {
                        self.push(self.now + after, i, What::Lost { peer: j, life: b });
                    }
                    if !self.hears(j, i) || !self.config.one_way {
                        self.push(self.now + after, j, What::Lost { peer: i, life: a });
                    }
                } else {
                    self.connect(i, j);
                }
            }
        }
    }
}
