//! The shared weights as leaves: what a round's root is made of, and what is fetched where two owners differ.
//!
//! A leaf is 1 MiB of little-endian f32 of one tensor, the last of a tensor perhaps shorter; tensors in the order of
//! `Weights::each`, leaves of a tensor in the order of its elements. So a flipped bit costs one leaf to repair.

use esker_comms::Hash;
use esker_comms::state::Tree;
use esker_kernels::tensor::Tensor;
use esker_model::Weights;

/// Bytes of a whole leaf.
pub const LEAF_BYTES: usize = 1 << 20;

/// Number of leaves.
pub fn count(w: &Weights) -> usize {
    w.each().map(|(_, t)| of(t)).sum()
}

/// The leaves in order.
pub fn each(w: &Weights) -> impl Iterator<Item = &[u8]> {
    w.each().flat_map(|(_, t)| little_endian(t).chunks(LEAF_BYTES))
}

/// Digest of each leaf, in order.
pub fn digests(w: &Weights) -> Vec<[u8; 32]> {
    each(w).map(|leaf| *blake3::hash(leaf).as_bytes()).collect()
}

/// The name of all leaves together, as `esker_comms::state` makes it.
pub fn root(w: &Weights) -> [u8; 32] {
    Tree::new(digests(w).into_iter().map(Hash).collect()).root().0
}

/// Leaf `i`; none where there are fewer.
pub fn get(w: &Weights, i: usize) -> Option<&[u8]> {
    each(w).nth(i)
}

/// Replaces leaf `i`. False where there is no such leaf, or `bytes` is not as long.
pub fn set(w: &mut Weights, mut i: usize, bytes: &[u8]) -> bool {
    for (_, t) in w.each_mut() {
        let here = of(t);
        if i < here {
            let leaf = t.bytes_mut().chunks_mut(LEAF_BYTES).nth(i).expect("leaves: counted");
            let fits = leaf.len() == bytes.len();
            if fits {
                leaf.copy_from_slice(bytes);
            }
            return fits;
        }
        i -= here;
    }
    false
}

fn of(t: &Tensor) -> usize {
    t.size_bytes().div_ceil(LEAF_BYTES)
}

/// Host memory as it lies: this crate runs on little-endian machines, as its shards and checkpoints do.
fn little_endian(t: &Tensor) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "leaves: bytes of f32 are taken as they lie") };
    t.bytes()
}
