//! The digest of a shard's body, so that a piece of it can be checked alone.
//!
//! blake3 is a tree over chunks of 1024 bytes: a node's left part is the largest power of two of
//! chunks that leaves something for the right. A *leaf* here is a subtree of 2^20 bytes (the last
//! perhaps shorter), and the file keeps the chaining value of each. Joining them by the same rule
//! gives the plain blake3 of the body, so the root is what any b3sum says of those bytes:
//!
//! ```text
//! leaf_k = chaining value of bytes k * 2^20 .. (k + 1) * 2^20
//! node(leaves) = parent(node(the first 2^j), node(the rest)),  2^j < their number <= 2^(j + 1)
//! ```
//!
//! A body that fits one leaf is a root itself, and has no table.
//!
//! Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020, BLAKE3, section 2.1.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use rayon::prelude::*;

/// Bytes of a leaf.
pub const LEAF_BYTES: u64 = 1 << 20;
/// Bytes of an entry in the table.
pub(super) const DIGEST_BYTES: u64 = 32;

/// Entries of the table of a body of `bytes` bytes.
pub(super) fn table_len(bytes: u64) -> u64 {
    if bytes <= LEAF_BYTES { 0 } else { bytes.div_ceil(LEAF_BYTES) }
}

/// The chaining value of leaf `k` of a body of more than one.
pub(super) fn leaf(k: u64, bytes: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(k * LEAF_BYTES).update(bytes).finalize_non_root()
}

/// The digest of a body from its leaves, of which there are two or more.
pub(super) fn root(leaves: &[ChainingValue]) -> [u8; 32] {
    let (left, right) = leaves.split_at(left_len(leaves.len()));
    merge_subtrees_root(&node(left), &node(right), Mode::Hash).into()
}

/// The digest of a whole body, its leaves hashed on all cores.
pub(super) fn digest(body: &[u8]) -> [u8; 32] {
    if table_len(body.len() as u64) == 0 {
        return blake3::hash(body).into();
    }
    let leaves = body.par_chunks(LEAF_BYTES as usize).enumerate().map(|(k, bytes)| leaf(k as u64, bytes));
    root(&leaves.collect::<Vec<_>>())
}

fn node(leaves: &[ChainingValue]) -> ChainingValue {
    if let [one] = leaves {
        return *one;
    }
    let (left, right) = leaves.split_at(left_len(leaves.len()));
    merge_subtrees_non_root(&node(left), &node(right), Mode::Hash)
}

/// The largest power of two below `n`, which is at least 2.
fn left_len(n: usize) -> usize {
    n.next_power_of_two() / 2
}

/// Hashes a body as it is written.
#[derive(Debug)]
pub(super) struct Tree {
    hasher: Hasher,
    /// Bytes in `hasher`.
    filled: u64,
    leaves: Vec<ChainingValue>,
}

impl Tree {
    pub(super) fn new() -> Tree {
        Tree { hasher: Hasher::new(), filled: 0, leaves: Vec::new() }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            // A full leaf is closed only when more comes: alone, it is the root.
            if self.filled == LEAF_BYTES {
                self.leaves.push(self.hasher.finalize_non_root());
                self.hasher = Hasher::new();
                self.hasher.set_input_offset(self.leaves.len() as u64 * LEAF_BYTES);
                self.filled = 0;
            }
            let room = (LEAF_BYTES - self.filled) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.filled += now.len() as u64;
            bytes = later;
        }
    }

    /// The digest of all that came, and the table of leaves.
    pub(super) fn finish(mut self) -> ([u8; 32], Vec<ChainingValue>) {
        if self.leaves.is_empty() {
            return (self.hasher.finalize().into(), Vec::new());
        }
        self.leaves.push(self.hasher.finalize_non_root());
        (root(&self.leaves), self.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_plain_digest_of_the_body() {
        let leaf_bytes = LEAF_BYTES as usize;
        let body: Vec<u8> = (0..6 * leaf_bytes + 5).map(|i| (i * 31 + (i >> 9)) as u8).collect();
        for n in [0, 1, 1024, leaf_bytes - 1, leaf_bytes, leaf_bytes + 1, 2 * leaf_bytes, 5 * leaf_bytes, body.len()] {
            let body = &body[..n];
            let plain: [u8; 32] = blake3::hash(body).into();
            let mut tree = Tree::new();
            body.chunks(100_003).for_each(|piece| tree.update(piece));
            let (streamed, leaves) = tree.finish();
            assert_eq!((streamed, digest(body)), (plain, plain), "{n} bytes");
            assert_eq!(leaves.len() as u64, table_len(n as u64));
            for (k, (want, bytes)) in leaves.iter().zip(body.chunks(leaf_bytes)).enumerate() {
                assert_eq!(*want, leaf(k as u64, bytes));
            }
        }
    }
}
