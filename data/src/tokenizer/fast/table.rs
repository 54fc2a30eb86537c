//! A flat hash table from u64 to u64: open addressing, linear steps, never more than half full.
//!
//! Hashing multiplies by an odd number drawn when the table is made, so that nobody can write a
//! file whose keys meet in one place. What the table answers does not depend on that number.

use std::hash::{BuildHasher, RandomState};

/// No key has this value: keys are characters, two of them, or a place and a byte.
const FREE: u64 = u64::MAX;

/// A number that differs from one process to the next.
pub fn secret() -> u64 {
    RandomState::new().hash_one(0u8) | 1
}

/// Made once, then read.
#[derive(Debug)]
pub struct Table {
    slots: Vec<[u64; 2]>,
    factor: u64,
    shift: u32,
}

impl Table {
    /// Room for `len` keys.
    pub fn with_room(len: usize) -> Table {
        let slots = (2 * len).next_power_of_two().max(4);
        Table { slots: vec![[FREE, 0]; slots], factor: secret(), shift: 64 - slots.trailing_zeros() }
    }

    #[inline]
    fn place(&self, key: u64) -> usize {
        // The first of two lies far up; folding brings both into the product's top.
        ((key ^ key >> 29).wrapping_mul(self.factor) >> self.shift) as usize
    }

    /// Puts `value` in, over an older one of the same key. The caller keeps to the room.
    pub fn insert(&mut self, key: u64, value: u64) {
        let mut at = self.place(key);
        while self.slots[at][0] != FREE && self.slots[at][0] != key {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = [key, value];
    }

    #[inline]
    pub fn get(&self, key: u64) -> Option<u64> {
        let mut at = self.place(key);
        loop {
            let [found, value] = self.slots[at & (self.slots.len() - 1)];
            if found == key {
                return Some(value);
            }
            if found == FREE {
                return None;
            }
            at += 1;
        }
    }
}
