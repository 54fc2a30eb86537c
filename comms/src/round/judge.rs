//! Which of a round's sound updates count.
//!
//! ```text
//! zero      norm = 0
//! overlap   share of picks in common with another's of this round, or anybody's of the rounds before, above overlap_max
//! norm      above norm_ratio · median of the norms, or as much below it
//! signs     a = Σ_i sign(d_i · o_i) / n,  o_i = Σ sign of the others there,  n: picks of the sample where o_i is not 0;
//!           a + 2/√n below agreement_min · median of the a
//! rank      rating, higher first; equal ratings by blake3(seed, round, key); the first `contributors` count
//! ```
//!
//! Norm and signs are asked again and again of those that are left, until nobody more falls out.
//!
//! Where others send the same position, an honest update pushes to the same side far more often than not, for its rows
//! are drawn from the same text; noise does as often as not, a turned sign hardly ever. 2/√n is two deviations of what
//! chance does to n signs, so that few common positions accuse nobody.
//!
//! Norms are f64 from the codec's codes and signs are counted, so all validators compute the same; the median is the
//! lower middle. Sound lists pass [`sound_list`] again, which is what a voter asks of another's proposal: it holds of
//! every list that [`judge`] makes. Source of the overlap's share: Templar's copy detection, threshold 0.4; the sketch is
//! one-permutation min-hash (Li, Owen, Zhang 2012). The signs are ours.

use crate::wire::Reason;
use crate::{Hash, Limits, PeerId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Bins of a sketch.
pub const BINS: usize = 64;

/// A small sketch of the positions that an update picks: in each of 64 bins the smallest hash that falls into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picks(Box<[u32; BINS]>);

impl Picks {
    /// A bin into which nothing fell.
    const EMPTY: u32 = u32::MAX;

    /// The sketch of a set of positions, in any order; repeats change nothing.
    pub fn of(positions: impl IntoIterator<Item = u64>) -> Picks {
        let mut bins = Box::new([Picks::EMPTY; BINS]);
        for position in positions {
            // The finaliser of SplitMix64: bins from the high bits, values from the low.
            let mut z = position.wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let bin = &mut bins[(z >> 58) as usize];
            *bin = (*bin).min(z as u32);
        }
        Picks(bins)
    }

    fn filled(&self) -> usize {
        self.0.iter().filter(|b| **b != Picks::EMPTY).count()
    }

    /// The share of an update's picks that another has too, estimated: 2 J / (1 + J) of the bins' Jaccard index J.
    pub fn overlap(&self, other: &Picks) -> f64 {
        let equal = self.0.iter().zip(other.0.iter()).filter(|(a, b)| a == b && **a != Picks::EMPTY).count();
        share(equal, self.filled().max(other.filled()))
    }
}

fn share(equal: usize, filled: usize) -> f64 {
    let jaccard = equal as f64 / filled.max(1) as f64;
    2.0 * jaccard / (1.0 + jaccard)
}

/// To which side an update moves a sample of the state's positions, the same sample in every update.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signs(Arc<[u64]>);

impl Signs {
    /// Of (position, whether its value is negative), in any order; positions are below 2^63, and none comes twice.
    pub fn of(sample: impl IntoIterator<Item = (u64, bool)>) -> Signs {
        let mut all: Vec<u64> = sample.into_iter().map(|(at, negative)| at << 1 | u64::from(negative)).collect();
        all.sort_unstable();
        Signs(all.into())
    }
}

/// How far an update pushes to where the others of a list do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// From −1 to 1; 0 where there are no `positions`.
    pub share: f64,
    /// Positions of its sample at which the others push to a side.
    pub positions: u32,
}

/// The agreement of each update with all others of the list.
pub fn agreements(list: &[&Signs]) -> Vec<Agreement> {
    let each = |(i, signs): (usize, &&Signs)| {
        signs.0.iter().map(move |s| (s >> 1, i as u32, 1 - 2 * (s & 1) as i32)).collect::<Vec<_>>()
    };
    let mut all: Vec<(u64, u32, i32)> = list.iter().enumerate().flat_map(each).collect();
    all.sort_unstable();
    let mut found = vec![(0i64, 0u32); list.len()];
    for here in all.chunk_by(|a, b| a.0 == b.0) {
        let sum: i32 = here.iter().map(|(.., sign)| sign).sum();
        for (_, i, sign) in here {
            let (same, positions) = &mut found[*i as usize];
            let others = sum - sign;
            if others != 0 {
                *same += i64::from(sign * others.signum());
                *positions += 1;
            }
        }
    }
    let share = |same, positions| if positions == 0 { 0.0 } else { same as f64 / f64::from(positions) };
    found.into_iter().map(|(same, positions)| Agreement { share: share(same, positions), positions }).collect()
}

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
pub struct Last(VecDeque<(u64, Vec<(PeerId, Picks)>)>);

impl Last {
    /// Rounds that are remembered.
    const ROUNDS: usize = 4;

    /// Takes in what counted in `round`, and forgets what is too old.
    pub fn add(&mut self, round: u64, counted: Vec<(PeerId, Picks)>) {
        self.0.push_back((round, counted));
        let oldest = (round + 1).saturating_sub(Last::ROUNDS as u64);
        self.0.retain(|(round, _)| *round >= oldest);
    }

    fn each(&self) -> impl Iterator<Item = (PeerId, &Picks)> {
        self.0.iter().flat_map(|(_, counted)| counted).map(|(peer, picks)| (*peer, picks))
    }
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
    let cut = |ranked: &mut Vec<&Candidate<'_>>, rejects: &mut BTreeMap<PeerId, Reason>| loop {
        let sounds: Vec<&Sound> = ranked.iter().map(|c| c.sound).collect();
        let faults = beside(limits, &sounds);
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

/// Whether a list that another judged is one that this validator can sign: no norm, no sign, no overlap that falls out.
pub fn sound_list(limits: &Limits, listed: &[(PeerId, &Sound)], last: &Last) -> bool {
    let picks: Vec<(PeerId, &Picks)> = listed.iter().map(|(peer, s)| (*peer, &s.picks)).collect();
    let sounds: Vec<&Sound> = listed.iter().map(|(_, s)| *s).collect();
    sounds.iter().all(|s| s.norm > 0.0)
        && beside(limits, &sounds).iter().all(Option::is_none)
        && copies(&picks, last, f64::from(limits.overlap_max)).is_empty()
}

/// What is wrong with each beside the others: lengths first, and signs once all lengths are good, for a sign weighs as
/// much in a long update as in a short one.
fn beside(limits: &Limits, sounds: &[&Sound]) -> Vec<Option<Reason>> {
    let Some(middle) = median(sounds.iter().map(|s| s.norm)) else { return Vec::new() };
    let ratio = f64::from(limits.norm_ratio);
    let length = |s: &&Sound| match s.norm {
        norm if norm > middle * ratio => Some(Reason::Norm),
        norm if norm < middle / ratio => Some(Reason::Short),
        _ => None,
    };
    let lengths: Vec<Option<Reason>> = sounds.iter().map(length).collect();
    let least = f64::from(limits.agreement_min);
    // Of two that disagree nobody knows which is right.
    if least == 0.0 || sounds.len() < 3 || lengths.iter().any(Option::is_some) {
        return lengths;
    }
    let agreements = agreements(&sounds.iter().map(|s| &s.signs).collect::<Vec<_>>());
    let middle = median(agreements.iter().map(|a| a.share)).unwrap_or(0.0);
    let against = |(a, s): (&Agreement, &&Sound)| {
        let chance = 2.0 / f64::from(a.positions.max(1)).sqrt();
        (!s.signs.0.is_empty() && a.share + chance < least * middle).then_some(Reason::Signs)
    };
    agreements.iter().zip(sounds).map(against).collect()
}

/// The lower of the two in the middle, of an even number.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Those whose picks are too much like those of somebody before them in the list, or of what counted lately.
///
/// Equal (bin, value) pairs are found by sorting, so honest updates cost n log n and only copies are compared.
fn copies(picks: &[(PeerId, &Picks)], last: &Last, most: f64) -> BTreeSet<PeerId> {
    let old: Vec<(PeerId, &Picks)> = last.each().collect();
    let all: Vec<(PeerId, &Picks)> = old.iter().chain(picks).copied().collect();
    let mut bins: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    let mut equal: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for bin in 0..BINS {
        bins.clear();
        bins.extend(all.iter().enumerate().map(|(i, (_, p))| (p.0[bin], i as u32)).filter(|b| b.0 != Picks::EMPTY));
        bins.sort_unstable();
        for group in bins.chunk_by(|a, b| a.0 == b.0) {
            for (i, (_, a)) in group.iter().enumerate() {
                // Two of old rounds are nobody's business now.
                for (_, b) in group[i + 1..].iter().filter(|(_, b)| *b as usize >= old.len()) {
                    *equal.entry((*a, *b)).or_default() += 1;
                }
            }
        }
    }
    let mut out = BTreeSet::new();
    for ((a, b), equal) in equal {
        let ((first, p), (second, q)) = (all[a as usize], all[b as usize]);
        let out_of = p.filled().max(q.filled());
        let stands = (a as usize) < old.len() || !out.contains(&first);
        if stands && share(equal, out_of) > most {
            out.insert(second);
        }
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
        last.add(1, vec![(key(0).id(), sounds[0].picks.clone()), (key(99).id(), sounds[5].picks.clone())]);
        last.add(2, vec![]);
        let verdicts = judged(&sounds, &last);
        assert_eq!([0, 5].map(|i| verdicts.rejects.get(&key(i).id())), [Some(&Reason::Overlap); 2]);
        last.add(5, vec![]);
        let verdicts = judged(&sounds, &last);
        assert!(verdicts.count.contains(&key(0).id()), "too old to be remembered");
    }

    #[test]
    fn the_better_rated_count_and_the_rest_wait() {
        let sounds: Vec<Sound> = (0..9).map(|i| update(i, 1.0)).collect();
        let verdicts = judged(&sounds, &Last::default());
        assert_eq!(verdicts.count, (0..6).map(|i| key(i).id()).collect());
        assert_eq!(verdicts.rejects.values().filter(|r| **r == Reason::Reserve).count(), 3);
        assert_eq!(judged(&[], &Last::default()), Verdicts::default());
    }

    #[test]
    fn a_sketch_tells_shares_apart() {
        let a = Picks::of(0..2000);
        assert_eq!(a.overlap(&Picks::of((0..2000).rev())), 1.0);
        assert!(a.overlap(&Picks::of(1000..3000)) > 0.3);
        assert!(a.overlap(&Picks::of(1980..3980)) < 0.15);
        assert_eq!(Picks::of([]).overlap(&Picks::of([])), 0.0);
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
}
