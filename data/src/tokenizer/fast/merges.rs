//! Byte-pair merges of one piece (Sennrich, Haddow & Birch 2016).
//!
//! ```text
//! repeat: of all neighbours (a, b) that have a merge, take the one of lowest rank, the
//! leftmost of equals, and put its product in their place
//! ```
//!
//! Short pieces look through all neighbours each time, which for a dozen symbols beats anything
//! clever. Longer ones keep neighbours in a heap by (rank, place) and symbols in a linked list:
//! O(n log n). Both give what the crate's heap gives, as long as no two texts share an id (an
//! entry that a merge has made stale could not be told from a fresh one there), which
//! `recognise.rs` sees to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::secret;

/// Symbols that are merged by looking through all.
const SHORT: usize = 32;
/// No merge: above every rank.
const NONE: u32 = u32::MAX;
/// Two ids below this have their rank in a plain table: bytes, mostly.
const LOW: usize = 512;

/// The merges by rank, and where to find the one of a pair.
///
/// Looking a pair up is nearly all the work, and most pairs have no merge. So what is looked at
/// first is small: 4 bytes a slot, a few bits of the pair's hash above the rank. Only where those
/// bits agree the merge itself is read, and the merges that text needs most lie first.
#[derive(Debug)]
pub struct Merges {
    list: Vec<Merge>,
    /// Rank and one, below the tag; 0 is free. Never more than half full.
    slots: Vec<u32>,
    rank_bits: u32,
    factor: u64,
    /// `[left][right]`: ranks of pairs of low ids.
    low: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Merge {
    left: u32,
    right: u32,
    product: u32,
}

/// Memory of the heap, kept from piece to piece.
#[derive(Debug, Default)]
pub struct Heap {
    /// Rank above place.
    queue: BinaryHeap<Reverse<u64>>,
    symbols: Vec<Symbol>,
}

#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    /// Places of the neighbours.
    prev: u32,
    next: u32,
    /// Of the merge with the next one.
    rank: u32,
}

/// No neighbour.
const EDGE: u32 = u32::MAX;

impl Merges {
    /// `merges` by rank as (left, right, product); of two for the same pair the later counts.
    pub fn new(merges: &[(u32, u32, u32)]) -> Merges {
        let slots = (2 * merges.len()).next_power_of_two().max(4);
        let mut new = Merges {
            list: merges.iter().map(|&(left, right, product)| Merge { left, right, product }).collect(),
            slots: vec![0; slots],
            rank_bits: usize::BITS - merges.len().leading_zeros(),
            factor: secret(),
            low: vec![NONE; LOW * LOW],
        };
        assert!(new.rank_bits < 32, "merges of a file of at most 128 MB");
        for (rank, m) in (0u32..).zip(merges) {
            let (mut at, tag) = new.place(m.0, m.1);
            while let Some(old) = new.slots[at].checked_sub(1) {
                let old = &new.list[old as usize & ((1 << new.rank_bits) - 1)];
                if (old.left, old.right) == (m.0, m.1) {
                    break;
                }
                at = (at + 1) & (slots - 1);
            }
            new.slots[at] = tag << new.rank_bits | (rank + 1);
            if (m.0 as usize) < LOW && (m.1 as usize) < LOW {
                new.low[m.0 as usize * LOW + m.1 as usize] = rank;
            }
        }
        new
    }

    /// Slot and tag of a pair.
    #[inline]
    fn place(&self, left: u32, right: u32) -> (usize, u32) {
        let key = u64::from(left) << 32 | u64::from(right);
        // The left id lies far up; folding brings both into the product's top.
        let hash = (key ^ key >> 29).wrapping_mul(self.factor);
        let place_bits = self.slots.len().trailing_zeros();
        let tag = (hash << place_bits) >> 32;
        ((hash >> (64 - place_bits)) as usize, tag as u32 >> self.rank_bits)
    }

    /// The rank of a pair, or [`NONE`].
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        if (left as usize) < LOW && (right as usize) < LOW {
            return self.low[left as usize * LOW + right as usize];
        }
        let (mut at, tag) = self.place(left, right);
        loop {
            let slot = self.slots[at & (self.slots.len() - 1)];
            if slot == 0 {
                return NONE;
            }
            if slot >> self.rank_bits == tag {
                let rank = (slot & ((1 << self.rank_bits) - 1)) - 1;
                let m = &self.list[rank as usize];
                if m.left == left && m.right == right {
                    return rank;
                }
            }
            at += 1;
        }
    }

    fn product(&self, rank: u32) -> u32 {
        self.list[rank as usize].product
    }

    /// Merges `symbols` in place, as far as it goes.
    pub fn apply(&self, symbols: &mut Vec<u32>, heap: &mut Heap) {
        if symbols.len() <= SHORT {
            let len = self.apply_short(symbols);
            symbols.truncate(len);
        } else if symbols.len() < EDGE as usize {
            self.apply_long(symbols, heap);
        } else {
            unreachable!("a text of 4 GiB is not given to the fast path");
        }
    }

    /// Returns how many symbols are left.
    fn apply_short(&self, symbols: &mut [u32]) -> usize {
        let mut len = symbols.len();
        // ranks[i]: of symbols i and i + 1.
        let mut ranks = [NONE; SHORT];
        for i in 1..len {
            ranks[i - 1] = self.rank(symbols[i - 1], symbols[i]);
        }
        loop {
            let (mut at, mut best) = (0, NONE);
            for (i, &rank) in ranks[..len.saturating_sub(1)].iter().enumerate() {
                if rank < best {
                    (at, best) = (i, rank);
                }
            }
            if best == NONE {
                return len;
            }
            symbols[at] = self.product(best);
            symbols.copy_within(at + 2..len, at + 1);
            ranks.copy_within(at + 1..len - 1, at);
            len -= 1;
            if at > 0 {
                ranks[at - 1] = self.rank(symbols[at - 1], symbols[at]);
            }
            ranks[at] = if at + 1 < len { self.rank(symbols[at], symbols[at + 1]) } else { NONE };
        }
    }

    fn apply_long(&self, ids: &mut Vec<u32>, heap: &mut Heap) {
        let Heap { queue, symbols } = heap;
        let last = ids.len() - 1;
        symbols.clear();
        symbols.extend(ids.iter().enumerate().map(|(i, &id)| Symbol {
            id,
            prev: if i == 0 { EDGE } else { i as u32 - 1 },
            next: if i == last { EDGE } else { i as u32 + 1 },
            rank: ids.get(i + 1).map_or(NONE, |&next| self.rank(id, next)),
        }));
        let entry = |at: usize, rank: u32| Reverse(u64::from(rank) << 32 | at as u64);
        let mut first = std::mem::take(queue).into_vec();
        first.clear();
        first.extend(symbols.iter().enumerate().filter(|(_, s)| s.rank != NONE).map(|(i, s)| entry(i, s.rank)));
        *queue = BinaryHeap::from(first);
        while let Some(Reverse(top)) = queue.pop() {
            let at = top as u32 as usize;
            // Stale: this symbol is gone, or has another neighbour by now.
            if symbols[at].rank == NONE || u64::from(symbols[at].rank) != top >> 32 {
                continue;
            }
            let gone = symbols[at].next as usize;
            let right = symbols[gone];
            symbols[gone].rank = NONE;
            symbols[at].id = self.product(symbols[at].rank);
            symbols[at].next = right.next;
            if right.next != EDGE {
                symbols[right.next as usize].prev = at as u32;
            }
            for left in [symbols[at].prev, at as u32] {
                if left == EDGE {
                    continue;
                }
                let s = symbols[left as usize];
                let rank = if s.next == EDGE { NONE } else { self.rank(s.id, symbols[s.next as usize].id) };
                symbols[left as usize].rank = rank;
                if rank != NONE {
                    queue.push(entry(left as usize, rank));
                }
            }
        }
        ids.clear();
        let mut at = 0;
        while at != EDGE {
            ids.push(symbols[at as usize].id);
            at = symbols[at as usize].next;
        }
        if symbols.len() > super::KEEP {
            *heap = Heap::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The heap and the search give the same, whatever the merges.
        #[test]
        fn heap_and_search_agree(
            merges in prop::collection::vec((0u32..12, 0u32..12), 0..40),
            ids in prop::collection::vec(0u32..6, 0..SHORT),
        ) {
            let merges: Vec<_> = merges.iter().enumerate().map(|(i, &(a, b))| (a, b, 6 + i as u32 % 20)).collect();
            let merges = Merges::new(&merges);
            let (mut short, mut long) = (ids.clone(), ids.clone());
            let len = merges.apply_short(&mut short);
            short.truncate(len);
            if !ids.is_empty() {
                merges.apply_long(&mut long, &mut Heap::default());
            }
            prop_assert_eq!(short, long);
        }
    }
}
