//! The judge of a run with liars: that of the network, and what it saw.

use super::Seen;
use crate::config::Run;
use crate::outer::{Layout, judge};
use esker_comms::round::judge::{Candidate, Last, agreements, judge as decide};
use esker_comms::round::{Picks, Sound};
use esker_comms::{Limits, PeerId};

/// Judges, and remembers what it saw.
pub(super) struct Validator {
    limits: Limits,
    seed: u64,
    last: Last,
    /// Of honest owners, in the round before.
    before: Vec<Picks>,
    agreements: Vec<f64>,
    seen: Seen,
}

impl Validator {
    /// One with the limits that a run over the network has.
    pub fn new(run: &Run) -> Validator {
        let outer = run.shared().expect("study: an outer section");
        let limits = Limits {
            rounds: run.rounds(outer),
            slots: outer.slots as u32,
            contributors: outer.slots as u32,
            peers_min: 1,
            probation_rounds: 0,
            behind_rounds: 1,
            checkpoint_rounds: 1,
            norm_ratio: judge::NORM_RATIO,
            overlap_max: judge::overlap_max(outer.spec()),
            agreement_min: judge::AGREEMENT_MIN,
            age_ratio: judge::AGE_RATIO,
        };
        let seen = Seen {
            agreement_min: f64::MAX,
            agreement: 0.0,
            overlap_max: 0.0,
            norm_min: f64::MAX,
            norm_max: 0.0,
            honest_rejected: 0,
            honest: 0,
            lies_counted: 0,
            lies: 0,
        };
        Validator { limits, seed: run.seed, last: Last::default(), before: Vec::new(), agreements: Vec::new(), seen }
    }

    /// The updates that count; the first `honest` are.
    pub fn choose<'a>(&mut self, layout: &Layout, round: u64, all: &[&'a [u8]], honest: usize) -> Vec<&'a [u8]> {
        let sounds: Vec<Sound> = all.iter().map(|blob| judge::sound(layout, blob)).collect();
        self.note(round, &sounds, honest);
        let peer = |slot: usize| PeerId([slot as u8; 32]);
        let candidate = |(slot, sound)| Candidate { peer: peer(slot), sound, rating: 0 };
        let candidates: Vec<Candidate<'_>> = sounds.iter().enumerate().map(candidate).collect();
        let verdicts = decide(&self.limits, self.seed, round, &candidates, &self.last);
        let counting = (0..all.len()).filter(|slot| verdicts.count.contains(&peer(*slot)));
        let counting: Vec<usize> = counting.collect();
        let good = counting.iter().filter(|slot| **slot < honest).count();
        self.seen.honest += honest as u64;
        self.seen.lies += (all.len() - honest) as u64;
        self.seen.honest_rejected += (honest - good) as u64;
        self.seen.lies_counted += (counting.len() - good) as u64;
        self.last.add(round, counting.iter().map(|slot| (peer(*slot), sounds[*slot].clone())));
        counting.into_iter().map(|slot| all[slot]).collect()
    }

    /// How far honest updates are from each other.
    fn note(&mut self, round: u64, sounds: &[Sound], honest: usize) {
        let agreements: Vec<f64> =
            agreements(&sounds.iter().map(|s| &s.signs).collect::<Vec<_>>()).iter().map(|a| a.share).collect();
        let (agreements, sounds) = (&agreements[..honest], &sounds[..honest]);
        let (norm, agreement) = (middle(sounds.iter().map(|s| s.norm)), middle(agreements.iter().copied()));
        self.agreements.push(agreement);
        let seen = &mut self.seen;
        seen.agreement = middle(self.agreements.iter().copied());
        let old = std::mem::replace(&mut self.before, sounds.iter().map(|s| s.picks.clone()).collect());
        // The first round begins at random weights: all push alike, and there is none before it.
        for (i, s) in sounds.iter().enumerate().filter(|_| round > 0) {
            let others = sounds[..i].iter().map(|s| &s.picks).chain(&old);
            seen.overlap_max = others.map(|other| s.picks.overlap(other)).fold(seen.overlap_max, f64::max);
            seen.agreement_min = seen.agreement_min.min(agreements[i] / agreement);
            seen.norm_min = seen.norm_min.min(s.norm / norm);
            seen.norm_max = seen.norm_max.max(s.norm / norm);
        }
    }

    /// What it saw.
    pub fn seen(self) -> Seen {
        self.seen
    }
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
