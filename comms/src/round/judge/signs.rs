//! To which sides updates push, and how much one has in common with many: everything is counted, so all validators come
//! to the same.

use std::sync::Arc;

/// To which side an update moves a sample of the state's positions, the same sample in every update.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signs(pub(super) Arc<[u64]>);

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
pub(super) struct Votes {
    at: Vec<u64>,
    sums: Vec<i32>,
    /// Updates that vote.
    of: usize,
}

impl Votes {
    pub(super) fn of<'a>(list: impl IntoIterator<Item = &'a Signs>) -> Votes {
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
    pub(super) fn fit(&self, signs: &Signs, own: &Signs) -> Option<Fit> {
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
pub(super) struct Fit {
    /// Positions that both push to one side less those that they push apart, of another in the mean.
    pub(super) shared: f64,
    /// Of `shared`, if every sign were chance.
    pub(super) variance: f64,
}

/// The agreement of each update with all others of the list.
pub fn agreements(list: &[&Signs]) -> Vec<Agreement> {
    let votes = Votes::of(list.iter().copied());
    list.iter().map(|signs| agreement(&votes, signs)).collect()
}

pub(super) fn agreement(votes: &Votes, signs: &Signs) -> Agreement {
    let (mut same, mut positions) = (0i64, 0u32);
    for (side, others) in votes.meet(signs, signs).filter(|(_, others)| *others != 0) {
        same += i64::from(side * others.signum());
        positions += 1;
    }
    Agreement { share: if positions == 0 { 0.0 } else { same as f64 / f64::from(positions) }, positions }
}

#[cfg(test)]
mod tests {
    use super::*;

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
