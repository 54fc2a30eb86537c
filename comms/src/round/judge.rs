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
        Picks::sketch(&mut positions.into_iter())
    }

    fn sketch(positions: &mut dyn Iterator<Item = u64>) -> Picks {
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
        Signs::sorted(sample.into_iter().map(|(at, negative)| at << 1 | u64::from(negative)).collect())
    }

    fn sorted(mut all: Vec<u64>) -> Signs {
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

/// How many updates of a list push a position up, less how many push it down.
#[derive(Debug, Clone, Default)]
struct Votes {
    at: Vec<u64>,
    sums: Vec<i32>,
    /// Updates that vote.
    of: usize,
}

impl Votes {
    fn of<'a>(list: impl IntoIterator<Item = &'a Signs>) -> Votes {
        let (mut all, mut of): (Vec<u64>, usize) = (Vec::new(), 0);
        for signs in list {
            all.extend_from_slice(&signs.0);
            of += usize::from(!signs.0.is_empty());
        }
        all.sort_unstable();
        let mut votes = Votes { of, ..Votes::default() };
        for here in all.chunk_by(|a, b| a >> 1 == b >> 1) {
            votes.at.push(here[0] >> 1);
            votes.sums.push(here.iter().map(|s| side(*s)).sum());
        }
        votes
    }

    /// For each position of `signs` that was voted on: the side it pushes to, and the sum of the votes there without
    /// those of `own`.
    fn meet<'a>(&'a self, signs: &'a Signs, own: &'a Signs) -> impl Iterator<Item = (i32, i32)> + 'a {
        let (mut next, mut next_own) = (0, 0);
        signs.0.iter().filter_map(move |s| {
            next = seek(&self.at, next, s >> 1);
            next_own = seek(&own.0, next_own, s >> 1 << 1);
            let sum = *self.sums.get(next).filter(|_| self.at[next] == s >> 1)?;
            let mine = own.0.get(next_own).filter(|o| **o >> 1 == s >> 1).map_or(0, |o| side(*o));
            Some((side(*s), sum - mine))
        })
    }

    /// How much `signs` share with one of the others in the mean.
    fn fit(&self, signs: &Signs, own: &Signs) -> Option<Fit> {
        let others = self.of - usize::from(!own.0.is_empty());
        let (mut shared, mut squares) = (0i64, 0i64);
        for (side, sum) in self.meet(signs, own) {
            shared += i64::from(side * sum);
            squares += i64::from(sum) * i64::from(sum);
        }
        let others = others as f64;
        // One other is no measure of a round.
        (others >= 2.0).then(|| Fit { shared: shared as f64 / others, variance: squares as f64 / (others * others) })
    }
}

fn side(sign: u64) -> i32 {
    1 - 2 * (sign & 1) as i32
}

/// The first index from `from` on whose value is at least `value`: by steps that double, for the next is seldom far.
fn seek(sorted: &[u64], from: usize, value: u64) -> usize {
    let (mut low, mut step) = (from, 1);
    while sorted.get(low + step - 1).is_some_and(|v| *v < value) {
        low += step;
        step *= 2;
    }
    let high = sorted.len().min(low + step - 1);
    low + sorted[low..high].partition_point(|v| *v < value)
}

/// How much an update shares with the others of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fit {
    /// Positions that both push to one side less those that they push apart, of another in the mean.
    shared: f64,
    /// Of `shared`, if every sign were chance.
    variance: f64,
}

/// The agreement of each update with all others of the list.
pub fn agreements(list: &[&Signs]) -> Vec<Agreement> {
    let votes = Votes::of(list.iter().copied());
    list.iter().map(|signs| agreement(&votes, signs)).collect()
}

fn agreement(votes: &Votes, signs: &Signs) -> Agreement {
    let (mut same, mut positions) = (0i64, 0u32);
    for (side, others) in votes.meet(signs, signs).filter(|(_, others)| *others != 0) {
        same += i64::from(side * others.signum());
        positions += 1;
    }
    Agreement { share: if positions == 0 { 0.0 } else { same as f64 / f64::from(positions) }, positions }
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
        last.add(1, [(key(0).id(), sounds[0].clone()), (key(99).id(), sounds[5].clone())]);
        last.add(2, []);
        let verdicts = judged(&sounds, &last);
        assert_eq!([0, 5].map(|i| verdicts.rejects.get(&key(i).id())), [Some(&Reason::Overlap); 2]);
        last.add(7, []);
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

    #[test]
    fn votes_are_met_in_one_walk() {
        let of = |list: &[(u64, bool)]| Signs::of(list.iter().copied());
        let lists = [of(&[(1, true), (5, false), (900, true)]), of(&[(5, false), (6, true), (900, false)]), of(&[])];
        let votes = Votes::of(&lists);
        assert_eq!((&votes.at[..], &votes.sums[..], votes.of), (&[1, 5, 6, 900][..], &[-1, 2, -1, 0][..], 2));
        let met = |signs: &Signs, own: &Signs| votes.meet(signs, own).collect::<Vec<_>>();
        assert_eq!(met(&lists[0], &lists[0]), [(-1, 0), (1, 1), (-1, 1)]);
        assert_eq!(met(&of(&[(0, false), (6, false), (899, true), (901, true)]), &lists[2]), [(1, -1)]);
        let sorted: Vec<u64> = (0..100).map(|i| 3 * i).collect();
        for value in 0..310 {
            for from in [0, 1, 7, 40] {
                let want = sorted.partition_point(|v| *v < value).max(from);
                assert_eq!(seek(&sorted, from, value), want, "{value} from {from}");
            }
        }
    }
}
