//! The shape of a blob: chunks of 1 MiB, and blake3's own tree over them.
//!
//! A blob's name is the plain blake3 of its bytes. blake3 hashes by a binary tree over 1 KiB, whose left part is the
//! largest power of two that is less than the whole; cut at 1 MiB that tree has one leaf a chunk, so
//!
//! cv_i  = chaining value of chunk i, hashed at offset i·2²⁰
//! name  = root of the tree over cv_0 .. cv_n−1          (n ≥ 2; one chunk has no leaf but the name itself)
//!
//! The list of leaves is the blob's *outline*: 32 bytes a chunk, checked against the name as a whole. With it each
//! chunk is checked alone, so any source may be a liar and costs at most the chunk it lied about. A blob has at most
//! 32 768 chunks (32 GiB), so that an outline fits in a chunk. Sizes come from who wants the blob, never from a source.
//!
//! Source: O'Connor et al. 2020, BLAKE3, section 2.1; the idea of coarser leaves is Bao's.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::hash::Hash;

/// Bytes of a chunk, the last of a blob excepted.
pub const CHUNK: usize = 1 << 20;
/// Chunks of a blob at most.
pub const CHUNKS_MAX: u32 = 32_768;
/// Bytes of a blob at most.
pub const BLOB_MAX: u64 = CHUNK as u64 * CHUNKS_MAX as u64;

/// Chunks of a blob of `size` bytes. None for none.
pub fn chunks(size: u64) -> u32 {
    assert!(size <= BLOB_MAX, "blob: {size} bytes, at most {BLOB_MAX}");
    size.div_ceil(CHUNK as u64) as u32
}

/// Bytes of chunk `index` of a blob of `size` bytes.
pub fn chunk_len(size: u64, index: u32) -> usize {
    assert!(index < chunks(size), "blob: chunk {index} of {}", chunks(size));
    (size - u64::from(index) * CHUNK as u64).min(CHUNK as u64) as usize
}

fn leaf(index: u32, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(u64::from(index) * CHUNK as u64);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Where blake3 cuts `n` leaves: the largest power of two below `n`.
fn cut(n: usize) -> usize {
    n.div_ceil(2).next_power_of_two()
}

fn merge(leaves: &[ChainingValue]) -> ChainingValue {
    match leaves {
        [one] => *one,
        _ => {
            let (l, r) = leaves.split_at(cut(leaves.len()));
            merge_subtrees_non_root(&merge(l), &merge(r), Mode::Hash)
        }
    }
}

/// The leaves of a blob; empty for a blob of at most one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline(Vec<ChainingValue>);

impl Outline {
    /// Bytes of the outline of a blob of `size` bytes.
    pub fn len_for(size: u64) -> usize {
        match chunks(size) {
            0 | 1 => 0,
            n => 32 * n as usize,
        }
    }

    /// The outline in `bytes`, if it is that of the blob `name` of `size` bytes.
    pub fn checked(bytes: &[u8], name: &Hash, size: u64) -> Option<Outline> {
        if bytes.len() != Outline::len_for(size) {
            return None;
        }
        let leaves: Vec<ChainingValue> = bytes.as_chunks::<32>().0.to_vec();
        let outline = Outline(leaves);
        match outline.root() {
            Some(root) => (root == *name).then_some(outline),
            None => Some(outline),
        }
    }

    fn root(&self) -> Option<Hash> {
        if self.0.len() < 2 {
            return None;
        }
        let (l, r) = self.0.split_at(cut(self.0.len()));
        Some(Hash(*merge_subtrees_root(&merge(l), &merge(r), Mode::Hash).as_bytes()))
    }

    /// Whether `bytes` are chunk `index` of the blob `name`.
    pub fn holds(&self, name: &Hash, size: u64, index: u32, bytes: &[u8]) -> bool {
        bytes.len() == chunk_len(size, index)
            && match self.0.get(index as usize) {
                Some(cv) => *cv == leaf(index, bytes),
                None => Hash::of(bytes) == *name,
            }
    }

    /// The outline's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

/// Names a blob as its chunks go by, each whole but the last.
#[derive(Debug, Default)]
pub struct Namer {
    leaves: Vec<ChainingValue>,
    only: Option<Hash>,
    size: u64,
}

impl Namer {
    /// The next chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        assert!(!chunk.is_empty() && chunk.len() <= CHUNK, "blob: a chunk of {} bytes", chunk.len());
        assert!(self.size.is_multiple_of(CHUNK as u64), "blob: a chunk after a short one");
        if self.leaves.is_empty() {
            self.only = Some(Hash::of(chunk));
        }
        self.leaves.push(leaf(self.leaves.len() as u32, chunk));
        self.size += chunk.len() as u64;
    }

    /// Name, size and outline.
    pub fn done(mut self) -> (Hash, u64, Outline) {
        if self.leaves.len() < 2 {
            self.leaves.clear();
        }
        let outline = Outline(self.leaves);
        let name = outline.root().or(self.only).unwrap_or_else(|| Hash::of(&[]));
        (name, self.size, outline)
    }
}

/// Name, size and outline of bytes in memory.
pub fn name(bytes: &[u8]) -> (Hash, u64, Outline) {
    let mut namer = Namer::default();
    bytes.chunks(CHUNK).for_each(|c| namer.push(c));
    namer.done()
}

/// Which chunks are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
    len: u32,
}

impl Bits {
    /// None of `len`.
    pub fn none(len: u32) -> Bits {
        Bits { bytes: vec![0; Bits::bytes_for(len)], len }
    }

    /// All of `len`.
    pub fn all(len: u32) -> Bits {
        let mut bits = Bits::none(len);
        (0..len).for_each(|i| bits.set(i));
        bits
    }

    /// Bytes that `len` bits take.
    pub fn bytes_for(len: u32) -> usize {
        len.div_ceil(8) as usize
    }

    /// `len` bits from bytes: exactly as many as they take, those behind the last bit zero.
    pub fn checked(bytes: &[u8], len: u32) -> Option<Bits> {
        let spare = Bits::bytes_for(len) * 8 - len as usize;
        let clean = bytes.last().is_none_or(|b| spare == 0 || b >> (8 - spare) == 0);
        (bytes.len() == Bits::bytes_for(len) && clean).then(|| Bits { bytes: bytes.to_vec(), len })
    }

    /// Whether bit `i` is set.
    pub fn get(&self, i: u32) -> bool {
        i < self.len && self.bytes[i as usize / 8] >> (i % 8) & 1 == 1
    }

    /// Sets bit `i`.
    pub fn set(&mut self, i: u32) {
        assert!(i < self.len, "bits: {i} of {}", self.len);
        self.bytes[i as usize / 8] |= 1 << (i % 8);
    }

    /// Clears bit `i`.
    pub fn clear(&mut self, i: u32) {
        assert!(i < self.len, "bits: {i} of {}", self.len);
        self.bytes[i as usize / 8] &= !(1 << (i % 8));
    }

    /// How many are set.
    pub fn count(&self) -> u32 {
        self.bytes.iter().map(|b| b.count_ones()).sum()
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether all are set.
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 1u64;
        let draw = |_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (x >> 56) as u8
        };
        (0..len).map(draw).collect()
    }

    #[test]
    fn the_root_of_the_outline_is_blake3_of_the_bytes() {
        let bytes = noise(9 * CHUNK + 77);
        for len in
            [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK - 5, 4 * CHUNK, 5 * CHUNK + 1, 9 * CHUNK + 77]
        {
            let (hash, size, outline) = name(&bytes[..len]);
            assert_eq!(hash, Hash::of(&bytes[..len]), "{len} bytes");
            assert_eq!(size, len as u64);
            assert_eq!(Outline::checked(outline.bytes(), &hash, size), Some(outline.clone()));
            for i in 0..chunks(size) {
                let at = i as usize * CHUNK;
                let chunk = &bytes[at..at + chunk_len(size, i)];
                assert!(outline.holds(&hash, size, i, chunk));
                let mut lie = chunk.to_vec();
                lie[chunk.len() / 2] ^= 1;
                assert!(!outline.holds(&hash, size, i, &lie));
                assert!(!outline.holds(&hash, size, i, &chunk[1..]));
            }
        }
    }

    #[test]
    fn another_outline_is_refused() {
        let bytes = noise(3 * CHUNK);
        let (hash, size, outline) = name(&bytes);
        let mut lie = outline.bytes().to_vec();
        lie[40] ^= 1;
        assert_eq!(Outline::checked(&lie, &hash, size), None);
        assert_eq!(Outline::checked(&outline.bytes()[..64], &hash, size), None);
        assert_eq!(Outline::checked(&outline.bytes()[..64], &hash, 2 * CHUNK as u64), None);
    }

    #[test]
    fn bits_have_one_form() {
        let mut b = Bits::none(11);
        b.set(10);
        assert_eq!(Bits::checked(b.bytes(), 11), Some(b.clone()));
        assert_eq!(Bits::checked(&[0, 8], 11), None);
        assert_eq!(Bits::checked(&[0], 11), None);
        assert!(Bits::all(11).is_full() && !b.is_full());
        assert_eq!(Bits::checked(&[], 0), Some(Bits::none(0)));
    }
}
