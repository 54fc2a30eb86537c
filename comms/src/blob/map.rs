//! The journal of a blob on disk, `NAME.map`: which chunks are there, and against what they were checked.
//!
//! | bytes | |
//! | --- | --- |
//! | 0..8 | `eskermap` |
//! | 8..12 | version, 1 |
//! | 12..44 | the blob's name |
//! | 44..52 | its size |
//! | 52..60 | the last round that needs it |
//! | 60..64 | 1 if the outline is known, else 0 |
//! | 64.. | the outline (zeros until it is known), then one bit a chunk |
//!
//! Integers are little-endian. A chunk's bit is written after the chunk. Neither is synced, so that after a loss of
//! power either may be missing: at the next start each chunk whose bit is set is read and checked against the outline,
//! and the outline against the name. What the journal says therefore costs at most a re-fetch, whatever is in it.

use super::tree::{BLOB_MAX, Bits, Outline, chunks};
use crate::hash::Hash;
use crate::wire::codec::{Canonical, Malformed, Reader};

/// Where the outline begins.
pub(super) const HEAD: usize = 64;
/// Where the round is.
pub(super) const KEEP_AT: u64 = 52;
/// Where it says whether the outline is known.
pub(super) const KNOWN_AT: u64 = 60;

/// What a journal says. Not to be trusted before the chunks are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// The blob's name.
    pub name: Hash,
    /// Its size.
    pub size: u64,
    /// The last round that needs it.
    pub keep: u64,
    /// The outline, checked against the name, if it was known.
    pub outline: Option<Outline>,
    /// Chunks written.
    pub have: Bits,
}

/// Where the bits begin in the journal of a blob of `size` bytes.
pub(super) fn bits_at(size: u64) -> usize {
    HEAD + Outline::len_for(size)
}

/// Bytes of the journal of a blob of `size` bytes.
pub fn len_for(size: u64) -> usize {
    bits_at(size) + Bits::bytes_for(chunks(size))
}

impl Map {
    /// The journal's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = b"eskermap".to_vec();
        1u32.put(&mut out);
        self.name.put(&mut out);
        self.size.put(&mut out);
        self.keep.put(&mut out);
        u32::from(self.outline.is_some()).put(&mut out);
        match &self.outline {
            Some(outline) => out.extend_from_slice(outline.bytes()),
            None => out.resize(bits_at(self.size), 0),
        }
        out.extend_from_slice(self.have.bytes());
        out
    }

    /// Reads a journal.
    ///
    /// # Errors
    /// On any bytes that `to_bytes` does not write, and on an outline that is not the name's.
    pub fn parse(bytes: &[u8]) -> Result<Map, Malformed> {
        let what = "a blob's journal";
        let bad = |why| Err(Malformed::Value { what, why });
        let mut r = Reader::new(bytes);
        if r.array::<8>(what)? != *b"eskermap" || u32::take(&mut r)? != 1 {
            return bad("not one of version 1");
        }
        let name = Hash::take(&mut r)?;
        let size = u64::take(&mut r)?;
        if size > BLOB_MAX {
            return bad("a size above 32 GiB");
        }
        let keep = u64::take(&mut r)?;
        let known = u32::take(&mut r)?;
        let leaves = r.bytes(Outline::len_for(size), what)?;
        let bits = r.bytes(Bits::bytes_for(chunks(size)), what)?;
        r.end(what)?;
        let outline = match known {
            0 if leaves.iter().all(|b| *b == 0) => None,
            1 => match Outline::checked(leaves, &name, size) {
                Some(outline) => Some(outline),
                None => return bad("an outline that is not the name's"),
            },
            _ => return bad("neither known nor unknown"),
        };
        let Some(have) = Bits::checked(bits, chunks(size)) else { return bad("bits behind the last chunk") };
        if outline.is_none() && have.count() > 0 {
            return bad("chunks without an outline");
        }
        Ok(Map { name, size, keep, outline, have })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::{CHUNK, name};
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Map {
        let (name, size, outline) = name(&vec![7; 3 * CHUNK + 1]);
        let mut have = Bits::none(4);
        have.set(2);
        Map { name, size, keep: 9, outline: Some(outline), have }
    }

    #[test]
    fn goes_round_and_has_its_length() {
        let map = sample();
        let bytes = map.to_bytes();
        assert_eq!(bytes.len(), len_for(map.size));
        assert_eq!(Map::parse(&bytes), Ok(map.clone()));
        let fresh = Map { outline: None, have: Bits::none(4), ..map };
        assert_eq!(Map::parse(&fresh.to_bytes()), Ok(fresh));
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_another_map_or_none(at in 0usize..193, flip in 1u8..) {
            let map = sample();
            let mut bytes = map.to_bytes();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Ok(other) = Map::parse(&bytes) {
                prop_assert_ne!(&other, &map);
                prop_assert_eq!(other.to_bytes(), bytes);
            }
        }
    }
}
