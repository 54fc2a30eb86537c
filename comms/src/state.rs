//! A state's name, and how two states are compared and mended.
//!
//! ```text
//! leaf   up to 1 MiB of little-endian f32 of one tensor; tensors in the spec's order
//! page   hashes of up to 1024 children laid end to end; pages of leaves, pages of pages, up to one top page
//! root   blake3 of the root record:  "ESKSTAT1" | leaves u64 | hash of the top page
//! ```
//!
//! Root record, pages and leaves are each known by the blake3 of their bytes, so all three travel as blobs from
//! anybody at all. How many leaves there are follows from the spec, hence which hash names a page and which a leaf.
//! A walk fetches the record and the pages that differ (32 KiB for a gigabyte of state), then the leaves that differ:
//! one flipped bit costs one leaf and one page a level. A checkpoint is the same walk from nothing.

use crate::{Hash, LEAF_BYTES, RunSpec};
use std::collections::{BTreeMap, BTreeSet};

/// Children of a page, at most.
pub const PAGE_CHILDREN: usize = 1024;
const MAGIC: &[u8; 8] = b"ESKSTAT1";

/// Why bytes are not the part of a state that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateFault {
    /// The bytes have another hash.
    #[error("a part of the state hashes to {got}, {want} was asked for")]
    Hash {
        /// Hash of what came.
        got: Hash,
        /// What was asked for.
        want: Hash,
    },
    /// Nobody asked.
    #[error("part {got} of the state was not asked for")]
    Unasked {
        /// Hash of what came.
        got: Hash,
    },
    /// A signed root whose record does not fit this run.
    #[error("root {root} does not name a state of {leaves} leaves: {why}")]
    Shape {
        /// The root.
        root: Hash,
        /// Leaves of this run's state.
        leaves: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// Bytes of a state, leaf by leaf: what a device or a file gives.
pub trait Leaves {
    /// Puts leaf `index` into `into`, which is empty.
    fn leaf(&self, index: u64, into: &mut Vec<u8>);
}

/// The hashes of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Level 0: leaves. Level l + 1: pages over level l. The last has one hash.
    levels: Vec<Vec<Hash>>,
}

/// A part of a state that has a name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The root record or a page: its bytes.
    Page(Vec<u8>),
    /// The leaf of this index.
    Leaf(u64),
}

fn page(children: &[Hash]) -> Vec<u8> {
    children.iter().flat_map(|h| h.0).collect()
}

fn record(leaves: u64, top: &Hash) -> Vec<u8> {
    [&MAGIC[..], &leaves.to_le_bytes(), &top.0].concat()
}

impl Tree {
    /// The tree over the hashes of all leaves.
    pub fn new(leaves: Vec<Hash>) -> Tree {
        assert!(!leaves.is_empty(), "state: a tree over at least one leaf");
        let mut levels = vec![leaves];
        while levels.len() == 1 || levels[levels.len() - 1].len() > 1 {
            let below = &levels[levels.len() - 1];
            levels.push(below.chunks(PAGE_CHILDREN).map(|c| Hash::of(&page(c))).collect());
        }
        Tree { levels }
    }

    /// Reads and hashes all leaves of a state of this run.
    pub fn of(spec: &RunSpec, state: &impl Leaves) -> Tree {
        let mut bytes = Vec::with_capacity(LEAF_BYTES as usize);
        let hashes = (0..spec.leaves()).map(|index| {
            bytes.clear();
            state.leaf(index, &mut bytes);
            assert_eq!(Some(bytes.len() as u64), spec.leaf_bytes(index), "state: bytes of leaf {index}");
            Hash::of(&bytes)
        });
        Tree::new(hashes.collect())
    }

    /// The state's root.
    pub fn root(&self) -> Hash {
        Hash::of(&self.record())
    }

    fn record(&self) -> Vec<u8> {
        record(self.levels[0].len() as u64, &self.levels[self.levels.len() - 1][0])
    }

    /// Hashes of the leaves.
    pub fn leaves(&self) -> &[Hash] {
        &self.levels[0]
    }

    /// Puts another leaf in, and the pages above it right.
    pub fn set(&mut self, index: u64, leaf: Hash) {
        let mut at = index as usize;
        self.levels[0][at] = leaf;
        for level in 1..self.levels.len() {
            at /= PAGE_CHILDREN;
            let below = &self.levels[level - 1];
            let end = below.len().min((at + 1) * PAGE_CHILDREN);
            self.levels[level][at] = Hash::of(&page(&below[at * PAGE_CHILDREN..end]));
        }
    }

    /// What `name` names in this state: how a peer serves it. Looks through all hashes.
    pub fn find(&self, name: &Hash) -> Option<Part> {
        if *name == self.root() {
            return Some(Part::Page(self.record()));
        }
        for level in (1..self.levels.len()).rev() {
            if let Some(at) = self.levels[level].iter().position(|h| h == name) {
                let below = &self.levels[level - 1];
                let end = below.len().min((at + 1) * PAGE_CHILDREN);
                return Some(Part::Page(page(&below[at * PAGE_CHILDREN..end])));
            }
        }
        self.levels[0].iter().position(|h| h == name).map(|at| Part::Leaf(at as u64))
    }
}

/// Finds the leaves in which one's own state differs from another whose root is known.
#[derive(Debug)]
pub struct Walk {
    root: Hash,
    leaves: u64,
    /// Length of each level of the tree.
    lengths: Vec<u64>,
    own: Option<Tree>,
    /// Pages asked for: their hash, and each place (level, index) where it stands.
    asked: BTreeMap<Hash, BTreeSet<(usize, u64)>>,
    differing: BTreeMap<u64, Hash>,
}

/// The root record's place stands above all levels.
const RECORD: usize = usize::MAX;

impl Walk {
    /// From one's own tree (or nothing) to the state of this run whose root is `root`.
    pub fn new(spec: &RunSpec, own: Option<&Tree>, root: Hash) -> Walk {
        let leaves = spec.leaves();
        let mut lengths = vec![leaves];
        while lengths.len() == 1 || lengths[lengths.len() - 1] > 1 {
            lengths.push(lengths[lengths.len() - 1].div_ceil(PAGE_CHILDREN as u64));
        }
        let mut walk = Walk {
            root,
            leaves,
            lengths,
            own: own.filter(|t| t.leaves().len() as u64 == leaves).cloned(),
            asked: BTreeMap::new(),
            differing: BTreeMap::new(),
        };
        if walk.own.as_ref().is_none_or(|t| t.root() != root) {
            walk.asked.insert(root, BTreeSet::from([(RECORD, 0)]));
        }
        walk
    }

    /// Children of page `index` of `level`.
    fn children(&self, level: usize, index: u64) -> u64 {
        (self.lengths[level - 1] - index * PAGE_CHILDREN as u64).min(PAGE_CHILDREN as u64)
    }

    /// The pages still needed, with their bytes.
    pub fn wanted(&self) -> Vec<(Hash, u64)> {
        let bytes = |places: &BTreeSet<(usize, u64)>| match places.first() {
            Some(&(RECORD, _)) | None => 48,
            Some(&(level, index)) => self.children(level, index) * 32,
        };
        self.asked.iter().map(|(hash, places)| (*hash, bytes(places))).collect()
    }

    /// Takes a page that was asked for.
    pub fn give(&mut self, bytes: &[u8]) -> Result<(), StateFault> {
        let got = Hash::of(bytes);
        let Some(places) = self.asked.get(&got).cloned() else { return Err(StateFault::Unasked { got }) };
        let (root, leaves) = (self.root, self.leaves);
        let shape = |why| StateFault::Shape { root, leaves, why };
        for &(level, index) in &places {
            if level == RECORD {
                let top = bytes.last_chunk::<32>().copied().map(Hash).unwrap_or(Hash::NONE);
                if bytes != record(leaves, &top) {
                    return Err(shape("its record is of another shape"));
                }
                self.ask(self.lengths.len() - 1, 0, top);
                continue;
            }
            if bytes.len() as u64 != self.children(level, index) * 32 {
                return Err(shape("a page has another number of children"));
            }
            for (i, child) in bytes.chunks_exact(32).enumerate() {
                let child = Hash(child.try_into().expect("state: 32 bytes"));
                self.ask(level - 1, index * PAGE_CHILDREN as u64 + i as u64, child);
            }
        }
        self.asked.remove(&got);
        Ok(())
    }

    /// The place (level, index) should hold `want`: nothing to do, a leaf that differs, or a page to fetch.
    fn ask(&mut self, level: usize, index: u64, want: Hash) {
        if self.own.as_ref().is_some_and(|t| t.levels[level][index as usize] == want) {
            return;
        }
        if level == 0 {
            self.differing.insert(index, want);
        } else {
            self.asked.entry(want).or_default().insert((level, index));
        }
    }

    /// The leaves that differ and what they should be, once no page is wanted.
    pub fn differing(&self) -> Option<&BTreeMap<u64, Hash>> {
        self.asked.is_empty().then_some(&self.differing)
    }
}

/// Whether `bytes` are the leaf of this name: to be asked before they are written into a state.
pub fn check_leaf(want: &Hash, bytes: &[u8]) -> Result<(), StateFault> {
    match Hash::of(bytes) {
        got if got == *want => Ok(()),
        got => Err(StateFault::Hash { got, want: *want }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;
    use crate::spec::tests::spec;

    struct Bytes(Vec<Vec<u8>>);
    impl Leaves for Bytes {
        fn leaf(&self, index: u64, into: &mut Vec<u8>) {
            into.extend_from_slice(&self.0[index as usize]);
        }
    }

    fn state(spec: &RunSpec) -> Bytes {
        let leaf = |i| vec![i as u8; spec.leaf_bytes(i).unwrap() as usize];
        Bytes((0..spec.leaves()).map(leaf).collect())
    }

    /// Walks from `own` to `theirs`; gives the differing leaves and the bytes of pages moved.
    fn walk(spec: &RunSpec, own: Option<&Tree>, theirs: &Tree) -> (BTreeMap<u64, Hash>, u64) {
        let mut walk = Walk::new(spec, own, theirs.root());
        let mut moved = 0;
        while walk.differing().is_none() {
            for (hash, bytes) in walk.wanted() {
                let Some(Part::Page(page)) = theirs.find(&hash) else { panic!("no page {hash}") };
                assert_eq!(page.len() as u64, bytes);
                moved += bytes;
                walk.give(&page).unwrap();
            }
        }
        (walk.differing().unwrap().clone(), moved)
    }

    #[test]
    fn one_flipped_bit_is_found_and_costs_one_leaf() {
        let mut spec = spec(1);
        spec.tensors =
            vec![Shape { rows: 1, cols: 300_000 }, Shape { rows: 7, cols: 5 }, Shape { rows: 3, cols: 262_144 }];
        let whole = state(&spec);
        let good = Tree::of(&spec, &whole);
        assert_eq!(good.leaves().len(), 2 + 1 + 3);
        let mut broken = state(&spec);
        broken.0[3][77] ^= 4;
        let mut bad = Tree::of(&spec, &broken);
        assert_ne!(bad.root(), good.root());
        let (differing, pages) = walk(&spec, Some(&bad), &good);
        assert_eq!(differing.keys().copied().collect::<Vec<_>>(), [3]);
        let moved = pages + differing.keys().map(|i| spec.leaf_bytes(*i).unwrap()).sum::<u64>();
        assert!(moved <= 2 << 20, "{moved} bytes re-fetched for one bit");
        assert!(check_leaf(&differing[&3], &broken.0[3]).is_err());
        check_leaf(&differing[&3], &whole.0[3]).unwrap();
        bad.set(3, differing[&3]);
        assert_eq!(bad, good);
        assert!(walk(&spec, Some(&bad), &good).0.is_empty());
        // From nothing: every leaf.
        assert_eq!(walk(&spec, None, &good).0.len(), 6);
    }

    #[test]
    fn a_state_of_three_levels() {
        let mut spec = spec(1);
        spec.tensors = vec![Shape { rows: 2_000, cols: 262_144 }];
        let good = Tree::new((0..2000u64).map(|i| Hash::of(&i.to_le_bytes())).collect());
        let mut bad = good.clone();
        bad.set(1999, Hash::of(b"x"));
        let (differing, pages) = walk(&spec, Some(&bad), &good);
        assert_eq!(differing.keys().copied().collect::<Vec<_>>(), [1999]);
        assert!(pages < 40_000);
        // Leaves that are all alike share one page hash, at two places.
        let alike = Tree::new(vec![Hash::of(b"a"); 2000]);
        assert_eq!(walk(&spec, Some(&good), &alike).0.len(), 2000);
    }

    #[test]
    fn lies_are_refused() {
        let spec = spec(1);
        let tree = Tree::of(&spec, &state(&spec));
        let mut walk = Walk::new(&spec, None, tree.root());
        assert!(matches!(walk.give(b"lie"), Err(StateFault::Unasked { .. })));
        let mut walk = Walk::new(&spec, None, Hash::of(b"not a record"));
        assert!(matches!(walk.give(b"not a record"), Err(StateFault::Shape { .. })));
        let far = record(u64::MAX, &Hash::NONE);
        let mut walk = Walk::new(&spec, None, Hash::of(&far));
        assert!(matches!(walk.give(&far), Err(StateFault::Shape { .. })));
    }
}
