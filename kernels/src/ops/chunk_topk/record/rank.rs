//! Sets as numbers: the place of a set among all sets of its size, by colexicographic order.
//!
//! rank = Σ C(n_i, i)   over the members n_1 < n_2 < ... of a set. Source: Cover 1973.

use super::{GROUP, LARGER};
use crate::simd::Level;

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

/// Puts sets of `h` of `size` in place of their ranks; says whether all are ranks. Where not, they are as they were.
pub(super) fn unrank_all(level: Level, size: usize, h: usize, ranks: &mut [u64]) -> bool {
    if ranks.iter().any(|&rank| rank >= CHOOSE[size][h]) {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    // Eight at once take as long as two by themselves, and two or four times eight little longer.
    if level >= Level::Avx512 && (size, h) == (GROUP, GROUP / LARGER) && ranks.len() > 2 {
        for some in ranks.chunks_mut(32) {
            let mut all = [[0; 8]; 4];
            all.as_flattened_mut()[..some.len()].copy_from_slice(some);
            // SAFETY: the level says that the CPU has the instructions.
            unsafe {
                match some.len() {
                    ..=8 => unrank_avx512::<1>(all.first_chunk_mut().expect("four")),
                    9..=16 => unrank_avx512::<2>(all.first_chunk_mut().expect("four")),
                    _ => unrank_avx512::<4>(&mut all),
                }
            }
            some.copy_from_slice(&all.as_flattened()[..some.len()]);
        }
        return true;
    }
    let _ = level;
    ranks.iter_mut().for_each(|rank| *rank = unrank(size, h, *rank).expect("a rank"));
    true
}

/// Puts the sets of 16 of 64 in place of these ranks, each of which there is.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn unrank_avx512<const EIGHTS: usize>(ranks: &mut [[u64; 8]; EIGHTS]) {
    use std::arch::x86_64::*;
    let one = _mm512_set1_epi64(1);
    // SAFETY: eight ranks.
    let mut rank = ranks.each_ref().map(|eight| unsafe { _mm512_loadu_si512(eight.as_ptr().cast()) });
    let (mut set, mut r) = ([_mm512_setzero_si512(); EIGHTS], [_mm512_set1_epi64(16); EIGHTS]);
    // Takes `n` where the rank reaches the entry that `r` less `first` picks of a row of sixteen.
    let mut step = |n: usize, row: &[u64; 16], first: __m512i, r: &mut [__m512i; EIGHTS]| {
        // SAFETY: twice eight entries.
        let (low, high) =
            unsafe { (_mm512_loadu_si512(row.as_ptr().cast()), _mm512_loadu_si512(row[8..].as_ptr().cast())) };
        let bit = _mm512_set1_epi64((1u64 << n) as i64);
        for i in 0..EIGHTS {
            let below = _mm512_permutex2var_epi64(low, _mm512_sub_epi64(r[i], first), high);
            let take = _mm512_cmpge_epu64_mask(rank[i], below);
            rank[i] = _mm512_mask_sub_epi64(rank[i], take, rank[i], below);
            r[i] = _mm512_mask_sub_epi64(r[i], take, r[i], one);
            set[i] = _mm512_mask_or_epi64(set[i], take, set[i], bit);
        }
    };
    // Who has all sixteen is left with rank 0, which an entry for sixteen more never lets take.
    for n in (16..GROUP).rev() {
        step(n, CHOOSE[n][1..].try_into().expect("sixteen entries"), one, &mut r);
    }
    // Who has none yet takes all that is left.
    let none = r.map(|r| _mm512_cmpeq_epi64_mask(r, _mm512_set1_epi64(16)));
    for i in 0..EIGHTS {
        r[i] = _mm512_mask_mov_epi64(r[i], none[i], _mm512_setzero_si512());
    }
    for n in (0..16).rev() {
        step(n, CHOOSE[n][..16].try_into().expect("sixteen entries"), _mm512_setzero_si512(), &mut r);
    }
    for i in 0..EIGHTS {
        let set = _mm512_mask_or_epi64(set[i], none[i], set[i], _mm512_set1_epi64(0xffff));
        // SAFETY: eight sets.
        unsafe { _mm512_storeu_si512(ranks[i].as_mut_ptr().cast(), set) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_unranked_as_one_is() {
        let most = CHOOSE[GROUP][16];
        let mut ranks: Vec<u64> = (0..300).map(|i| most / 300 * i + i * i).collect();
        ranks.extend([0, 1, 2, 15, 16, 17, 152, 153, most - 1, most - 2, CHOOSE[63][16], CHOOSE[63][16] - 1]);
        let want: Vec<u64> = ranks.iter().map(|&r| unrank(GROUP, 16, r).unwrap()).collect();
        for level in Level::ALL.into_iter().filter(|&l| l <= crate::simd::detected()) {
            let mut sets = ranks.clone();
            assert!(unrank_all(level, GROUP, 16, &mut sets) && sets == want, "{}", level.name());
            assert!(!unrank_all(level, GROUP, 16, &mut [0, most, 5]));
        }
    }

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
