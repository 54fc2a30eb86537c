//! Ids of pieces seen before.
//!
//! *Short* pieces, up to 15 bytes and 4 ids, are nearly all there are: two of them share a line
//! of 64 bytes, the piece itself being the key, so that a hit costs one line of memory. A line
//! keeps in front what was hit last; a new piece takes the place behind. Lines grow fourfold
//! while new pieces keep coming, up to [`LINES_MAX`].
//!
//! *Long* pieces, or many ids, lie one after another behind a table of their hashes; when that
//! is full it is emptied. So memory is bounded: 8 MB and 5 MB a thread.

use super::table::secret;

/// Bytes of a short piece at most.
pub const SHORT_BYTES: usize = 15;
/// Ids of a short piece at most.
pub const SHORT_IDS: usize = 4;
const LINES_MIN: usize = 1 << 10;
const LINES_MAX: usize = 1 << 17;

/// Bytes of a long piece at most; beyond, no piece is likely to come again.
const LONG_BYTES: usize = 255;
/// Slots of the long ones, at most half of them full.
const LONG_SLOTS: usize = 1 << 16;
/// Bytes of text and ids that the long ones may take.
const LONG_ROOM: usize = 3 << 20;

/// Ids of a short piece; the first carries their number in its upper byte.
pub type Packed = [u32; SHORT_IDS];

/// The number of ids in `packed`; above [`SHORT_IDS`] they are with the long ones.
#[inline]
pub fn count(packed: &Packed) -> usize {
    (packed[0] >> 24) as usize
}

/// Stands for more ids than fit.
const MANY: Packed = [0xff << 24, 0, 0, 0];

/// An id without the number above it.
pub const ID: u32 = 0x00ff_ffff;

#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line {
    keys: [u128; 2],
    ids: [Packed; 2],
}

#[derive(Debug)]
pub struct Cache {
    lines: Vec<Line>,
    /// Pieces that came new since the lines last grew.
    fresh: usize,
    secret: [u64; 2],
    long: Long,
}

/// A piece as a key: its bytes, zeros behind, and its length on top. Never 0.
#[inline]
pub fn key(text: &[u8], from: usize, to: usize) -> Option<u128> {
    let len = to - from;
    if len > SHORT_BYTES {
        return None;
    }
    let word = match text.get(from..from + 16) {
        Some(bytes) => u128::from_le_bytes(bytes.try_into().expect("16 bytes")),
        None => {
            let mut bytes = [0; 16];
            bytes[..len].copy_from_slice(&text[from..to]);
            u128::from_le_bytes(bytes)
        }
    };
    Some(word & ((1 << (8 * len)) - 1) | (len as u128) << 120)
}

impl Cache {
    pub fn new() -> Cache {
        Cache {
            lines: vec![Line::default(); LINES_MIN],
            fresh: 0,
            secret: [secret(), secret()],
            long: Long { slots: Vec::new(), used: 0, bytes: Vec::new(), ids: Vec::new() },
        }
    }

    /// Both halves through one wide product, as wyhash mixes (Wang Yi, public domain).
    #[inline]
    pub fn hash(&self, key: u128) -> u64 {
        let (a, b) = (key as u64 ^ self.secret[0], (key >> 64) as u64 ^ self.secret[1]);
        let wide = u128::from(a) * u128::from(b);
        wide as u64 ^ (wide >> 64) as u64
    }

    #[inline]
    fn place(&self, hash: u64) -> usize {
        hash as usize & (self.lines.len() - 1)
    }

    /// Has the line of a key brought near, for a look at it soon.
    #[inline]
    pub fn fetch(&self, hash: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line: *const Line = &self.lines[self.place(hash)];
            // SAFETY: a hint, which reads nothing; the line is there anyway.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = hash;
    }

    /// `hash` is [`Cache::hash`] of `key`.
    #[inline]
    pub fn get(&mut self, hash: u64, key: u128) -> Option<Packed> {
        let place = self.place(hash);
        let line = &mut self.lines[place];
        if line.keys[0] == key {
            return Some(line.ids[0]);
        }
        if line.keys[1] == key {
            line.keys.swap(0, 1);
            line.ids.swap(0, 1);
            return Some(line.ids[0]);
        }
        None
    }

    /// Keeps the ids of a short piece that is not there. False: they are too many, and only this
    /// is kept; [`Cache::insert_long`] takes them.
    pub fn insert(&mut self, key: u128, ids: &[u32]) -> bool {
        let mut packed = MANY;
        if ids.len() <= SHORT_IDS {
            packed[..ids.len()].copy_from_slice(ids);
            packed[0] = packed[0] & ID | (ids.len() as u32) << 24;
        }
        self.fresh += 1;
        if self.fresh > self.lines.len() && self.lines.len() < LINES_MAX {
            self.grow();
        }
        self.put(key, packed);
        ids.len() <= SHORT_IDS
    }

    fn put(&mut self, key: u128, packed: Packed) {
        let place = self.place(self.hash(key));
        let line = &mut self.lines[place];
        let at = usize::from(line.keys[0] != 0);
        line.keys[at] = key;
        line.ids[at] = packed;
    }

    #[cold]
    fn grow(&mut self) {
        let lines = (4 * self.lines.len()).min(LINES_MAX);
        let old = std::mem::replace(&mut self.lines, vec![Line::default(); lines]);
        self.fresh = 0;
        for line in old {
            for (key, ids) in line.keys.into_iter().zip(line.ids).filter(|(key, _)| *key != 0) {
                self.put(key, ids);
            }
        }
    }

    /// Hash of any piece.
    fn hash_long(&self, piece: &[u8]) -> u64 {
        let mut h = self.secret[0] ^ piece.len() as u64;
        for chunk in piece.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let wide = u128::from(h ^ u64::from_le_bytes(word)) * u128::from(self.secret[1]);
            h = wide as u64 ^ (wide >> 64) as u64;
        }
        h
    }

    pub fn get_long(&self, piece: &[u8]) -> Option<&[u32]> {
        if piece.len() > LONG_BYTES || self.long.slots.is_empty() {
            return None;
        }
        self.long.get(self.hash_long(piece), piece)
    }

    pub fn insert_long(&mut self, piece: &[u8], ids: &[u32]) {
        if piece.len() <= LONG_BYTES && ids.len() <= LONG_BYTES {
            let hash = self.hash_long(piece);
            self.long.insert(hash, piece, ids);
        }
    }
}

/// One after another, behind a table.
#[derive(Debug)]
struct Long {
    slots: Vec<Slot>,
    used: usize,
    bytes: Vec<u8>,
    ids: Vec<u32>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    hash: u64,
    bytes_at: u32,
    ids_at: u32,
    /// 0: free.
    bytes: u16,
    ids: u16,
}

impl Long {
    fn get(&self, hash: u64, piece: &[u8]) -> Option<&[u32]> {
        let mut at = hash as usize;
        loop {
            let s = &self.slots[at & (LONG_SLOTS - 1)];
            if s.bytes == 0 {
                return None;
            }
            let from = s.bytes_at as usize;
            if s.hash == hash && self.bytes[from..from + usize::from(s.bytes)] == *piece {
                return Some(&self.ids[s.ids_at as usize..][..usize::from(s.ids)]);
            }
            at += 1;
        }
    }

    fn insert(&mut self, hash: u64, piece: &[u8], ids: &[u32]) {
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); LONG_SLOTS];
        }
        if 2 * self.used >= LONG_SLOTS || self.bytes.len() + 4 * self.ids.len() > LONG_ROOM {
            self.slots.fill(Slot::default());
            self.bytes.clear();
            self.ids.clear();
            self.used = 0;
        }
        let mut at = hash as usize & (LONG_SLOTS - 1);
        while self.slots[at].bytes != 0 {
            at = (at + 1) & (LONG_SLOTS - 1);
        }
        self.slots[at] = Slot {
            hash,
            bytes_at: self.bytes.len() as u32,
            ids_at: self.ids.len() as u32,
            bytes: piece.len() as u16,
            ids: ids.len() as u16,
        };
        self.bytes.extend_from_slice(piece);
        self.ids.extend_from_slice(ids);
        self.used += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far more pieces than fit: what is found is right, and memory stays within its bound.
    #[test]
    fn a_full_cache_forgets_and_never_lies() {
        let mut cache = Cache::new();
        let ids_of = |i: u32| -> Vec<u32> { (0..i % 7).map(|k| (i ^ k) & ID).collect() };
        let mut found = 0;
        for i in (0..600_000).chain(0..600_000u32) {
            let piece = if i % 2 == 0 { format!("{i}") } else { format!("{i:030}") };
            let bytes = piece.as_bytes();
            let ids = ids_of(i);
            let key = key(bytes, 0, bytes.len());
            let hit = key.and_then(|k| cache.get(cache.hash(k), k));
            let hit = match hit {
                Some(p) if count(&p) <= SHORT_IDS => {
                    let mut ids = p[..count(&p)].to_vec();
                    ids.first_mut().into_iter().for_each(|id| *id &= ID);
                    Some(ids)
                }
                Some(_) => cache.get_long(bytes).map(<[u32]>::to_vec),
                None if key.is_none() => cache.get_long(bytes).map(<[u32]>::to_vec),
                None => None,
            };
            match hit {
                Some(hit) => {
                    found += 1;
                    assert_eq!(hit, ids, "{piece}");
                }
                None => {
                    if !key.is_some_and(|k| cache.insert(k, &ids)) {
                        cache.insert_long(bytes, &ids);
                    }
                }
            }
        }
        assert!(found > 10_000, "{found}");
        assert!(cache.lines.len() == LINES_MAX && cache.long.bytes.len() <= LONG_ROOM + LONG_BYTES);
    }
}
