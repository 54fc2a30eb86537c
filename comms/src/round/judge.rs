//! Which of a round's sound updates count.
//!
//! ```text
//! zero      norm = 0
//! overlap   share of picks in common with another's of this round, or anybody's of the rounds before, above overlap_max
//! norm      above norm_ratio · median of the norms, or as much below it
//! signs     a = Σ_i sign(d_i · o_i) / n,  o_i = Σ sign of the others there,  n: picks of the sample where o_i is not 0;
//!           a + 2/√n below agreement_min · median of the a
//! age       p_t = Σ_i Σ_o sign(d_i · o_i) / others, with the updates o of round t; r = max p_t / p_now over the rounds
//!           before where p_t is above p_now by four deviations; r above age_ratio · max(1, median of the r)
//! rank      rating, higher first; equal ratings by blake3(seed, round, key); the first `contributors` count
//! ```
//!
//! Norm, signs and age are asked again and again of those that are left, until nobody more falls out.
//!
//! Where others send the same position, an honest update pushes to the same side far more often than not, for its rows
//! are drawn from the same text; noise does as often as not, a turned sign hardly ever. 2/√n is two deviations of what
//! chance does to n signs, so that few common positions accuse nobody.
//!
//! An update shares most with those that were made from the same weights, and the less the longer ago theirs were made,
//! for what was asked for has been given since. One that was kept back and comes in a later round's name shares more with
//! the rounds before: the age tells it, however well its signs agree with the present. Owners who were late, whose
//! feedback holds some of what they could not send, stay below 1.3; newcomers share nothing with the past.
//!
//! Norms are f64 from the codec's codes and signs are counted, so all validators compute the same; the median is the
//! lower middle. Sound lists pass [`sound_list`] again, which is what a voter asks of another's proposal: it holds of
//! every list that [`judge`] makes. Source of the overlap's share: Templar's copy detection, threshold 0.4; the sketch is
//! one-permutation min-hash (Li, Owen, Zhang 2012). The signs and the age are ours.

mod picks;
mod signs;

use crate::wire::Reason;
use crate::{Hash, Limits, PeerId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use picks::share;
pub use picks::{BINS, Picks};
pub use signs::{Agreement, Signs, agreements};
use signs::{Fit, Votes, agreement};

/// What a check found of an update that decodes, is finite and was made from the round's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// L2 norm of the decoded values: finite, from the codes by a fixed reduction, equal on all machines.
    pub norm: f64,
    /// Where its values are.
    pub picks: Picks,
    /// To which side they push; empty where the run's work knows of none, and then nothing is asked of it.
    pub signs: Signs,
}

/// A sound update that a quorum of validators holds.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Whose.
    pub peer: PeerId,
    /// What the check found.
    pub sound: &'a Sound,
    /// The scoring's rating.
    pub rating: i64,
}

/// What [`judge`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdicts {
    /// Who counts.
    pub count: BTreeSet<PeerId>,
    /// Who does not, and why.
    pub rejects: BTreeMap<PeerId, Reason>,
}

/// What counted in the rounds before, of the last few: repeating one is copying too, even one's own.
#[derive(Debug, Clone, Default)]
pub struct Last(VecDeque<Old>);

/// What counted in a round.
#[derive(Debug, Clone)]
struct Old {
    round: u64,
    counted: BTreeMap<PeerId, Sound>,
    votes: Votes,
}

impl Last {
    /// Rounds that are remembered.
    const ROUNDS: u64 = 6;

    /// Takes in what counted in `round`, and forgets what is too old.
    pub fn add(&mut self, round: u64, counted: impl IntoIterator<Item = (PeerId, Sound)>) {
        self.keep(round, counted.into_iter().collect());
    }

    fn keep(&mut self, round: u64, counted: BTreeMap<PeerId, Sound>) {
        let votes = Votes::of(counted.values().map(|s| &s.signs));
        self.0.push_back(Old { round, counted, votes });
        let oldest = (round + 1).saturating_sub(Last::ROUNDS);
        self.0.retain(|old| old.round >= oldest);
    }

    fn each(&self) -> impl Iterator<Item = (PeerId, &Picks)> {
        self.0.iter().flat_map(|old| &old.counted).map(|(peer, sound)| (*peer, &sound.picks))
    }

    /// How much an update of `peer` shares with what others sent in each of the rounds.
    fn fits(&self, peer: &PeerId, signs: &Signs) -> Vec<Fit> {
        let none = Signs::default();
        let fit = |old: &Old| old.votes.fit(signs, old.counted.get(peer).map_or(&none, |own| &own.signs));
        self.0.iter().filter_map(fit).collect()
    }
}

/// An update beside the others, and how much it shares with what came before.
struct Listed<'a> {
    peer: PeerId,
    sound: &'a Sound,
    before: Vec<Fit>,
}

/// Judges the candidates of a round, in a run with these limits and this seed.
pub fn judge(limits: &Limits, seed: u64, round: u64, candidates: &[Candidate<'_>], last: &Last) -> Verdicts {
    let mut rejects = BTreeMap::new();
    let tie = |peer: &PeerId| Hash::of_parts(&[&seed.to_le_bytes(), &round.to_le_bytes(), &peer.0]);
    let mut ranked: Vec<&Candidate<'_>> = Vec::with_capacity(candidates.len());
    for c in candidates {
        match c.sound.norm > 0.0 {
            true => ranked.push(c),
            false => _ = rejects.insert(c.peer, Reason::Zero),
        }
    }
    ranked.sort_by_cached_key(|c| (std::cmp::Reverse(c.rating), tie(&c.peer)));

    let picks: Vec<(PeerId, &Picks)> = ranked.iter().map(|c| (c.peer, &c.sound.picks)).collect();
    for peer in copies(&picks, last, f64::from(limits.overlap_max)) {
        rejects.insert(peer, Reason::Overlap);
    }
    ranked.retain(|c| !rejects.contains_key(&c.peer));
    let mut ranked = listed(limits, ranked.iter().map(|c| (c.peer, c.sound)), last);
    let cut = |ranked: &mut Vec<Listed<'_>>, rejects: &mut BTreeMap<PeerId, Reason>| loop {
        let faults = beside(limits, ranked);
        if faults.iter().all(Option::is_none) {
            return;
        }
        let mut faults = faults.into_iter();
        ranked.retain(|c| match faults.next().flatten() {
            None => true,
            Some(reason) => rejects.insert(c.peer, reason).is_some(),
        });
    };
    cut(&mut ranked, &mut rejects);
    for reserve in ranked.drain(ranked.len().min(limits.contributors as usize)..) {
        rejects.insert(reserve.peer, Reason::Reserve);
    }
    cut(&mut ranked, &mut rejects);
    Verdicts { count: ranked.iter().map(|c| c.peer).collect(), rejects }
}

/// Whether a list that another judged is one that this validator can sign: nothing in it falls out.
pub fn sound_list(limits: &Limits, list: &[(PeerId, &Sound)], last: &Last) -> bool {
    let picks: Vec<(PeerId, &Picks)> = list.iter().map(|(peer, s)| (*peer, &s.picks)).collect();
    list.iter().all(|(_, s)| s.norm > 0.0)
        && beside(limits, &listed(limits, list.iter().copied(), last)).iter().all(Option::is_none)
        && copies(&picks, last, f64::from(limits.overlap_max)).is_empty()
}

fn listed<'a>(limits: &Limits, list: impl Iterator<Item = (PeerId, &'a Sound)>, last: &Last) -> Vec<Listed<'a>> {
    let fits = |peer: PeerId, sound: &Sound| match limits.age_ratio > 0.0 {
        true => last.fits(&peer, &sound.signs),
        false => Vec::new(),
    };
    list.map(|(peer, sound)| Listed { peer, sound, before: fits(peer, sound) }).collect()
}

/// What is wrong with each beside the others: lengths first, and signs once all lengths are good, for a sign weighs as
/// much in a long update as in a short one; the age of those whose signs are good.
fn beside(limits: &Limits, list: &[Listed<'_>]) -> Vec<Option<Reason>> {
    let Some(middle) = median(list.iter().map(|c| c.sound.norm)) else { return Vec::new() };
    let ratio = f64::from(limits.norm_ratio);
    let length = |c: &Listed<'_>| match c.sound.norm {
        norm if norm > middle * ratio => Some(Reason::Norm),
        norm if norm < middle / ratio => Some(Reason::Short),
        _ => None,
    };
    let mut faults: Vec<Option<Reason>> = list.iter().map(length).collect();
    // Of two that disagree nobody knows which is right.
    let asked = limits.agreement_min > 0.0 || limits.age_ratio > 0.0;
    if !asked || list.len() < 3 || faults.iter().any(Option::is_some) {
        return faults;
    }
    let votes = Votes::of(list.iter().map(|c| &c.sound.signs));
    let agreements: Vec<Agreement> = list.iter().map(|c| agreement(&votes, &c.sound.signs)).collect();
    let least = f64::from(limits.agreement_min) * median(agreements.iter().map(|a| a.share)).unwrap_or(0.0);
    for ((fault, c), a) in faults.iter_mut().zip(list).zip(agreements) {
        let chance = 2.0 / f64::from(a.positions.max(1)).sqrt();
        let against = !c.sound.signs.0.is_empty() && a.share + chance < least;
        *fault = (limits.agreement_min > 0.0 && against).then_some(Reason::Signs);
    }
    if limits.age_ratio == 0.0 || faults.iter().any(Option::is_some) {
        return faults;
    }
    let ages: Vec<f64> = list.iter().map(|c| age(&votes, c)).collect();
    let most = f64::from(limits.age_ratio) * median(ages.iter().copied()).unwrap_or(1.0).max(1.0);
    ages.into_iter().map(|age| (age > most).then_some(Reason::Old)).collect()
}

/// How many times more an update shares with an earlier round than with its own, where that is no chance; 0 where it
/// shares no more with any.
fn age(votes: &Votes, c: &Listed<'_>) -> f64 {
    let Some(now) = votes.fit(&c.sound.signs, &c.sound.signs) else { return 0.0 };
    let surely = |then: &&Fit| then.shared - now.shared > 4.0 * (then.variance + now.variance).sqrt();
    let ratio = |then: &Fit| if now.shared > 0.0 { then.shared / now.shared } else { f64::INFINITY };
    c.before.iter().filter(surely).map(ratio).fold(0.0, f64::max)
}

/// The lower of the two in the middle, of an even number.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Those whose picks are too much like those of somebody before them in the list who is none of those, or of what counted
/// lately.
///
/// Equal (bin, value) pairs are found by sorting, so honest updates cost n log n. A copy is held against those that stand
/// alone, and does not stand itself: a crowd of copies costs no more than a crowd.
fn copies(picks: &[(PeerId, &Picks)], last: &Last, most: f64) -> BTreeSet<PeerId> {
    let old: Vec<(PeerId, &Picks)> = last.each().collect();
    let all: Vec<(PeerId, &Picks)> = old.iter().chain(picks).copied().collect();
    // Of each bin's value that several have: those of them that stand. And for each, the values that it shares.
    let (mut standing, mut shared) = (Vec::<Vec<usize>>::new(), vec![Vec::new(); all.len()]);
    let mut bins: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    for bin in 0..BINS {
        bins.clear();
        bins.extend(all.iter().enumerate().map(|(i, (_, p))| (p.0[bin], i as u32)).filter(|b| b.0 != Picks::EMPTY));
        bins.sort_unstable();
        for group in bins.chunk_by(|a, b| a.0 == b.0).filter(|group| group.len() > 1) {
            group.iter().for_each(|(_, i)| shared[*i as usize].push(standing.len()));
            standing.push(Vec::new());
        }
    }
    let (mut equal, mut met, mut out) = (vec![0; all.len()], Vec::new(), BTreeSet::new());
    for (i, (peer, p)) in all.iter().enumerate() {
        // Those of old rounds are nobody's business among each other.
        if i >= old.len() {
            for &other in shared[i].iter().flat_map(|value| &standing[*value]) {
                if equal[other] == 0 {
                    met.push(other);
                }
                equal[other] += 1;
            }
            let mut alike = false;
            for other in met.drain(..) {
                let equal = std::mem::take(&mut equal[other]);
                alike |= share(equal, p.filled().max(all[other].1.filled())) > most;
            }
            if alike {
                out.insert(*peer);
                continue;
            }
        }
        shared[i].iter().for_each(|value| standing[*value].push(i));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::{key, spec};

    fn update(i: u64, norm: f64) -> Sound {
        Sound { norm, picks: Picks::of((0..500).map(|j| i * 1000 + j)), signs: Signs::default() }
    }

    fn judged(sounds: &[Sound], last: &Last) -> Verdicts {
        let mut spec = spec(1);
        spec.limits.contributors = 6;
        let candidate = |(i, sound)| Candidate { peer: key(i as u64).id(), sound, rating: -(i as i64) };
        let list: Vec<_> = sounds.iter().enumerate().map(candidate).collect();
        let verdicts = judge(&spec.limits, spec.seed, 3, &list, last);
        let listed: Vec<_> =
            list.iter().filter(|c| verdicts.count.contains(&c.peer)).map(|c| (c.peer, c.sound)).collect();
        assert!(
            listed.is_empty() || sound_list(&spec.limits, &listed, last),
            "a list that its own judge would not sign"
        );
        verdicts
    }

    #[test]
    fn what_falls_out_and_why() {
        let mut sounds: Vec<Sound> = (0..9).map(|i| update(i, 1.0 + 0.01 * i as f64)).collect();
        sounds[1].norm = 1e6;
        sounds[2].norm = 0.0;
        sounds[6].norm = 0.05;
        sounds[4].picks = sounds[3].picks.clone();
        let verdicts = judged(&sounds, &Last::default());
        let of = |i: u64| verdicts.rejects.get(&key(i).id()).copied();
        assert_eq!(
            [of(0), of(1), of(2), of(3), of(4), of(6)],
            [None, Some(Reason::Norm), Some(Reason::Zero), None, Some(Reason::Overlap), Some(Reason::Short)]
        );
        assert_eq!(verdicts.count.len(), 5);
        // What counted lately may be repeated by nobody, not even by those who made it.
        let mut last = Last::default();
        last.add(1, [(key(0).id(), sounds[0].clone()), (key(99).id(), sounds[5].clone())]);
        last.add(2, []);
        let verdicts = judged(&sounds, &last);
        assert_eq!([0, 5].map(|i| verdicts.rejects.get(&key(i).id())), [Some(&Reason::Overlap); 2]);
        last.add(7, []);
        let verdicts = judged(&sounds, &last);
        assert!(verdicts.count.contains(&key(0).id()), "too old to be remembered");
    }

    /// Copies were once held against each other, all pairs of them: a crowd of them took a validator's memory.
    #[test]
    fn copies_are_those_that_a_look_at_each_pair_finds() {
        let naive = |picks: &[(PeerId, &Picks)], last: &Last| {
            let mut stand: Vec<&Picks> = last.each().map(|(_, p)| p).collect();
            let alike = |p: &Picks, stand: &[&Picks]| stand.iter().any(|q| p.overlap(q) > 0.4);
            let out = picks.iter().filter(|(_, p)| {
                let out = alike(p, &stand);
                stand.extend((!out).then_some(*p));
                out
            });
            out.map(|(peer, _)| *peer).collect::<BTreeSet<_>>()
        };
        for seed in 0..40 {
            let mut rng = crate::sim::work::Rng(seed);
            // Of four sources, each seen through a window of its own: from next to nothing in common to all of it.
            let mut draw = || {
                let (source, from) = (rng.below(4), rng.below(12) * 40);
                Sound { picks: Picks::of((from..from + 500).map(|j| source * 10_000 + j)), ..update(0, 1.0) }
            };
            let sounds: Vec<Sound> = (0..30).map(|_| draw()).collect();
            let mut last = Last::default();
            last.add(1, [(key(90).id(), draw()), (key(91).id(), draw())]);
            let picks: Vec<_> = sounds.iter().enumerate().map(|(i, s)| (key(i as u64).id(), &s.picks)).collect();
            let found = copies(&picks, &last, 0.4);
            assert_eq!(found, naive(&picks, &last), "seed {seed}");
            assert!((5..30).contains(&found.len()), "seed {seed}: {}", found.len());
        }
        let one = Picks::of(0..500);
        let crowd: Vec<_> =
            (0..4000u32).map(|n| (PeerId([n.to_be_bytes(); 8].concat().try_into().unwrap()), &one)).collect();
        assert_eq!(copies(&crowd, &Last::default(), 0.4).len(), 3999);
    }

    #[test]
    fn the_better_rated_count_and_the_rest_wait() {
        let sounds: Vec<Sound> = (0..9).map(|i| update(i, 1.0)).collect();
        let verdicts = judged(&sounds, &Last::default());
        assert_eq!(verdicts.count, (0..6).map(|i| key(i).id()).collect());
        assert_eq!(verdicts.rejects.values().filter(|r| **r == Reason::Reserve).count(), 3);
        assert_eq!(judged(&[], &Last::default()), Verdicts::default());
    }

    /// Nine updates of 400 positions out of 2000, that push down where the position is odd, save `against` of a hundred.
    fn pushing(against: impl Fn(u64) -> u64) -> Vec<Sound> {
        let drawn = |i: u64, j: u64| crate::sim::work::Rng(i * 400 + j).bits() >> 1;
        let of = |i: u64| {
            let at = |j: u64| j * 5 + drawn(i, j) % 5;
            let sign = |j: u64| (at(j), (at(j) % 2 == 1) != (drawn(i, j) / 5 % 100 < against(i)));
            Sound { signs: Signs::of((0..400).map(sign)), ..update(i, 1.0) }
        };
        (0..9).map(of).collect()
    }

    #[test]
    fn who_pushes_against_the_others_falls_out() {
        let with = |against: &dyn Fn(u64) -> u64| {
            let sounds = pushing(against);
            let mut spec = spec(1);
            spec.limits.agreement_min = 0.4;
            let candidate = |(i, sound)| Candidate { peer: key(i as u64).id(), sound, rating: 0 };
            let list: Vec<_> = sounds.iter().enumerate().map(candidate).collect();
            let verdicts = judge(&spec.limits, spec.seed, 3, &list, &Last::default());
            let all: Vec<(PeerId, &Sound)> = list.iter().map(|c| (c.peer, c.sound)).collect();
            let listed: Vec<_> = all.iter().filter(|(peer, _)| verdicts.count.contains(peer)).copied().collect();
            assert!(sound_list(&spec.limits, &listed, &Last::default()));
            assert_eq!(sound_list(&spec.limits, &all, &Last::default()), verdicts.rejects.is_empty());
            (0..9).filter(|i| verdicts.rejects.get(&key(*i).id()) == Some(&Reason::Signs)).collect::<Vec<u64>>()
        };
        assert!(with(&|_| 15).is_empty());
        assert_eq!(with(&|i| if i == 4 { 85 } else { 15 }), [4], "a turned sign");
        assert_eq!(with(&|i| if i == 4 { 50 } else { 15 }), [4], "noise");
        assert_eq!(with(&|i| if i % 3 == 1 { 85 } else { 15 }), [1, 4, 7], "three of nine");
        assert!(with(&|_| 50).is_empty(), "where nobody agrees, nobody is accused");
        let two = pushing(|i| 100 * i);
        let two: Vec<(PeerId, &Sound)> = two[..2].iter().enumerate().map(|(i, s)| (key(i as u64).id(), s)).collect();
        assert!(sound_list(&spec(1).limits, &two, &Last::default()), "of two nobody knows which is right");
    }

    /// What owner `i` sends who trains in `round`: 4000 of the 20,000 positions that this round asks for. Each round 2000
    /// more are given and 2000 others asked for.
    fn asked(i: u64, round: u64) -> Sound {
        let drawn = |j: u64| crate::sim::work::Rng((round * 100 + i) * 4000 + j).bits() >> 1;
        let at = |j: u64| round * 2000 + j * 5 + drawn(j) % 5;
        let sign = |j: u64| (at(j), (at(j) % 2 == 1) != (drawn(j) / 5 % 100 < 15));
        Sound { signs: Signs::of((0..4000).map(sign)), ..update(round * 100 + i, 1.0) }
    }

    #[test]
    fn what_was_kept_back_for_rounds_falls_out() {
        let mut spec = spec(1);
        spec.limits.contributors = 9;
        (spec.limits.agreement_min, spec.limits.age_ratio) = (0.4, 1.4);
        let judged = |late: &dyn Fn(u64) -> u64, last: &Last| {
            let sounds: Vec<Sound> = (0..9).map(|i| asked(i, 20 - late(i))).collect();
            let candidate = |(i, sound)| Candidate { peer: key(i as u64).id(), sound, rating: 0 };
            let list: Vec<_> = sounds.iter().enumerate().map(candidate).collect();
            let verdicts = judge(&spec.limits, spec.seed, 20, &list, last);
            let all: Vec<(PeerId, &Sound)> = list.iter().map(|c| (c.peer, c.sound)).collect();
            let counted: Vec<_> = all.iter().filter(|(peer, _)| verdicts.count.contains(peer)).copied().collect();
            assert!(sound_list(&spec.limits, &counted, last));
            assert_eq!(sound_list(&spec.limits, &all, last), verdicts.rejects.is_empty());
            (0..9).filter(|i| verdicts.rejects.get(&key(*i).id()) == Some(&Reason::Old)).collect::<Vec<u64>>()
        };
        // Before, the liars sent nothing.
        let mut last = Last::default();
        for round in 12..20 {
            last.add(round, (0..7).map(|i| (key(i).id(), asked(i, round))));
        }
        assert_eq!(last.0.len() as u64, Last::ROUNDS);
        assert!(judged(&|_| 0, &last).is_empty());
        assert_eq!(judged(&|i| if i >= 7 { 4 } else { 0 }, &last), [7, 8]);
        assert_eq!(judged(&|i| if i == 8 { 3 } else { 0 }, &last), [8]);
        assert!(judged(&|i| if i == 8 { 4 } else { 0 }, &Last::default()).is_empty(), "nobody remembers");
        // Fewer counted in an earlier round, or more: what one other shares is compared.
        let mut thin = Last::default();
        thin.add(18, (0..7).map(|i| (key(i).id(), asked(i, 18))));
        thin.add(19, (0..2).map(|i| (key(i).id(), asked(i, 19))));
        assert!(judged(&|_| 0, &thin).is_empty());
    }
}
