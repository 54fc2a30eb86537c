//! Sets as numbers: the place of a set among all sets of its size, by colexicographic order.
//!
//! rank = Σ C(n_i, i)   over the members n_1 < n_2 < ... of a set. Source: Cover 1973.

use super::{GROUP, LARGER};

/// C(n, r) for n to 64 and r to 16.
pub(in super::super) static CHOOSE: [[u64; GROUP / LARGER + 1]; GROUP + 1] = {
    let mut c = [[0; GROUP / LARGER + 1]; GROUP + 1];
    let mut n = 0;
    while n <= GROUP {
        c[n][0] = 1;
        let mut r = 1;
        while r <= GROUP / LARGER && n > 0 {
            c[n][r] = c[n - 1][r - 1] + c[n - 1][r];
            r += 1;
        }
        n += 1;
    }
    c
};

/// Bits of the rank of a group's larger values.
pub(super) fn rank_bits(size: usize) -> usize {
    (64 - (CHOOSE[size][size / LARGER] - 1).leading_zeros()) as usize
}

/// Place of a set among all sets of its size, by colexicographic order.
pub(super) fn rank(set: u64) -> u64 {
    let (mut rank, mut rest, mut r) = (0, set, 1);
    while rest != 0 {
        rank += CHOOSE[rest.trailing_zeros() as usize][r];
        rest &= rest - 1;
        r += 1;
    }
    rank
}

/// The set of `h` of `size` with that rank, if there is one.
pub(super) fn unrank(size: usize, h: usize, mut rank: u64) -> Option<u64> {
    if rank >= CHOOSE[size][h] {
        return None;
    }
    let (mut set, mut r) = (0, h);
    for n in (0..size).rev() {
        let below = CHOOSE[n][r];
        let take = u64::from(rank >= below && r > 0);
        rank -= below * take;
        r -= take as usize;
        set |= take << n;
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_every_set_once() {
        let mut sets: Vec<u64> = (0..CHOOSE[16][4]).map(|r| unrank(16, 4, r).unwrap()).collect();
        for (r, &set) in sets.iter().enumerate() {
            assert_eq!((set.count_ones(), rank(set)), (4, r as u64));
        }
        sets.dedup();
        assert_eq!(sets.len(), 1820);
        assert_eq!(unrank(16, 4, 1820), None);
        assert_eq!(unrank(64, 16, rank(0xffff << 48)), Some(0xffff << 48));
    }
}
