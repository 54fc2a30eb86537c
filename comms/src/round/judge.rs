//! Which of a round's sound updates count.
//!
//! ```text
//! zero      norm = 0
//! overlap   share of picks in common with another's of this round or of the one before, above overlap_max
//! norm      above norm_ratio · median of the norms, until nothing more falls out
//! rank      rating, higher first; equal ratings by blake3(seed, round, key); the first `contributors` count
//! ```
//!
//! Norms are f64 from the codec's codes, so all validators compute the same; the median is the lower middle. Sound
//! lists pass [`sound_list`] again, which is what a voter asks of another's proposal: it holds of every list that
//! [`judge`] makes. Source of the overlap's share: Templar's copy detection, threshold 0.4; the sketch is one-permutation
//! min-hash (Li, Owen, Zhang 2012).

use crate::wire::Reason;
use crate::{Hash, PeerId, RunSpec};
use std::collections::{BTreeMap, BTreeSet};

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

/// What a check found of an update that decodes, is finite and was made from the round's state.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// L2 norm of the decoded values: finite, from the codes by a fixed reduction, equal on all machines.
    pub norm: f64,
    /// Where its values are.
    pub picks: Picks,
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

/// The last round's updates that counted: copying one of them is copying too.
pub type Last = BTreeMap<PeerId, Picks>;

/// Judges the candidates of a round.
pub fn judge(spec: &RunSpec, round: u64, candidates: &[Candidate<'_>], last: &Last) -> Verdicts {
    let mut rejects = BTreeMap::new();
    let tie = |peer: &PeerId| Hash::of_parts(&[&spec.seed.to_le_bytes(), &round.to_le_bytes(), &peer.0]);
    let mut ranked: Vec<&Candidate<'_>> = Vec::with_capacity(candidates.len());
    for c in candidates {
        match c.sound.norm > 0.0 {
            true => ranked.push(c),
            false => _ = rejects.insert(c.peer, Reason::Zero),
        }
    }
    ranked.sort_by_cached_key(|c| (std::cmp::Reverse(c.rating), tie(&c.peer)));

    let picks: Vec<(PeerId, &Picks)> = ranked.iter().map(|c| (c.peer, &c.sound.picks)).collect();
    for peer in copies(&picks, last, f64::from(spec.limits.overlap_max)) {
        rejects.insert(peer, Reason::Overlap);
    }
    ranked.retain(|c| !rejects.contains_key(&c.peer));
    let cut = |ranked: &mut Vec<&Candidate<'_>>, rejects: &mut BTreeMap<PeerId, Reason>| loop {
        let norms: Vec<f64> = ranked.iter().map(|c| c.sound.norm).collect();
        let Some(most) = norm_most(spec, norms) else { return };
        let before = ranked.len();
        ranked.retain(|c| c.sound.norm <= most || rejects.insert(c.peer, Reason::Norm).is_some());
        if ranked.len() == before {
            return;
        }
    };
    cut(&mut ranked, &mut rejects);
    for reserve in ranked.drain(ranked.len().min(spec.limits.contributors as usize)..) {
        rejects.insert(reserve.peer, Reason::Reserve);
    }
    cut(&mut ranked, &mut rejects);
    Verdicts { count: ranked.iter().map(|c| c.peer).collect(), rejects }
}

/// Whether a list that another judged is one that this validator can sign: no norm, no overlap that falls out.
pub fn sound_list(spec: &RunSpec, listed: &[(PeerId, &Sound)], last: &Last) -> bool {
    let picks: Vec<(PeerId, &Picks)> = listed.iter().map(|(peer, s)| (*peer, &s.picks)).collect();
    let most = norm_most(spec, listed.iter().map(|(_, s)| s.norm).collect());
    listed.iter().all(|(_, s)| s.norm > 0.0 && most.is_some_and(|most| s.norm <= most))
        && copies(&picks, last, f64::from(spec.limits.overlap_max)).is_empty()
}

/// The largest norm that counts beside these.
fn norm_most(spec: &RunSpec, mut norms: Vec<f64>) -> Option<f64> {
    norms.sort_by(f64::total_cmp);
    let median = *norms.get(norms.len().checked_sub(1)? / 2)?;
    Some(median * f64::from(spec.limits.norm_ratio))
}

/// Those whose picks are too much like those of somebody before them in the list, or of another in the last round.
///
/// Equal (bin, value) pairs are found by sorting, so honest updates cost n log n and only copies are compared.
fn copies(picks: &[(PeerId, &Picks)], last: &Last, most: f64) -> BTreeSet<PeerId> {
    let old: Vec<(PeerId, &Picks)> = last.iter().map(|(peer, p)| (*peer, p)).collect();
    let all: Vec<(PeerId, &Picks)> = old.iter().chain(picks).copied().collect();
    let mut bins: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    let mut equal: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    for bin in 0..BINS {
        bins.clear();
        bins.extend(all.iter().enumerate().map(|(i, (_, p))| (p.0[bin], i as u32)).filter(|b| b.0 != Picks::EMPTY));
        bins.sort_unstable();
        for group in bins.chunk_by(|a, b| a.0 == b.0) {
            for (i, (_, a)) in group.iter().enumerate() {
                // Two of the last round are nobody's business now.
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
        if first != second && !out.contains(&first) && share(equal, out_of) > most {
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
        Sound { norm, picks: Picks::of((0..500).map(|j| i * 1000 + j)) }
    }

    fn judged(sounds: &[Sound], last: &Last) -> Verdicts {
        let mut spec = spec(1);
        spec.limits.contributors = 6;
        let candidate = |(i, sound)| Candidate { peer: key(i as u64).id(), sound, rating: -(i as i64) };
        let list: Vec<_> = sounds.iter().enumerate().map(candidate).collect();
        let verdicts = judge(&spec, 3, &list, last);
        let listed: Vec<_> =
            list.iter().filter(|c| verdicts.count.contains(&c.peer)).map(|c| (c.peer, c.sound)).collect();
        assert!(listed.is_empty() || sound_list(&spec, &listed, last), "a list that its own judge would not sign");
        verdicts
    }

    #[test]
    fn what_falls_out_and_why() {
        let mut sounds: Vec<Sound> = (0..9).map(|i| update(i, 1.0 + 0.01 * i as f64)).collect();
        sounds[1].norm = 1e6;
        sounds[2].norm = 0.0;
        sounds[4].picks = sounds[3].picks.clone();
        let verdicts = judged(&sounds, &Last::new());
        let of = |i: u64| verdicts.rejects.get(&key(i).id()).copied();
        assert_eq!(
            [of(0), of(1), of(2), of(3), of(4)],
            [None, Some(Reason::Norm), Some(Reason::Zero), None, Some(Reason::Overlap)]
        );
        assert_eq!(verdicts.count.len(), 6);
        // The last round's updates may be repeated by those who made them, not by others.
        let last = Last::from([(key(0).id(), sounds[0].picks.clone()), (key(99).id(), sounds[5].picks.clone())]);
        let verdicts = judged(&sounds, &last);
        assert_eq!(verdicts.rejects.get(&key(5).id()), Some(&Reason::Overlap));
        assert!(verdicts.count.contains(&key(0).id()));
    }

    #[test]
    fn the_better_rated_count_and_the_rest_wait() {
        let sounds: Vec<Sound> = (0..9).map(|i| update(i, 1.0)).collect();
        let verdicts = judged(&sounds, &Last::new());
        assert_eq!(verdicts.count, (0..6).map(|i| key(i).id()).collect());
        assert_eq!(verdicts.rejects.values().filter(|r| **r == Reason::Reserve).count(), 3);
        assert_eq!(judged(&[], &Last::new()), Verdicts::default());
    }

    #[test]
    fn a_sketch_tells_shares_apart() {
        let a = Picks::of(0..2000);
        assert_eq!(a.overlap(&Picks::of((0..2000).rev())), 1.0);
        assert!(a.overlap(&Picks::of(1000..3000)) > 0.3);
        assert!(a.overlap(&Picks::of(1980..3980)) < 0.15);
        assert_eq!(Picks::of([]).overlap(&Picks::of([])), 0.0);
    }
}
