//! How the numbers of one chunk are written: a record of fixed size, with one valid form for each content.
//!
//! A record holds k places (below n, ascending) and k values. Bits are packed from the lowest of the first byte on.
//!
//! ```text
//! Compact    places     Elias-Fano, l = ⌊log2(n / k)⌋:
//!                       k + ((n − 1) >> l) bits, of which bit (place >> l) + i is set for the i-th place;
//!                       then the l low bits of each place. Nothing where k = n.
//!            signs      one bit a value, set: negative
//!            levels     for each group of 64 values, h = ⌊size / 4⌋ of them the larger ones:
//!                       which, as their rank among all such sets; level of the others; level of these (a byte each)
//! Reference  places     12 bits each
//!            codes      2 bits a value: an entry of the table at the head of the tensor's part,
//!                       shift and four levels, f32
//! Exact      places     as in Compact, then up to a whole byte
//!            values     f32
//! ```
//!
//! A level byte b stands for (8 + b mod 8) · 2^(⌊b/8⌋ − 32), and 0 for 0. With n = 4096 and k = 64 a compact record is
//! 127 + 384 + 64 + 49 + 8 + 8 = 640 bits: ten bits a value, 204.8 times less than f32.
//!
//! *Compact* is ours: two magnitudes a group, each the mean of those it stands for. *Reference* is Templar's quantiser,
//! whose levels belong to a whole tensor: with v the values sent, shift = mean v, sd their deviation,
//! code = clamp(round((v − shift) / 1.5 sd + 2), 0, 3), level = mean of v − shift over those of the code. *Exact* loses
//! nothing.
//!
//! Records come from strangers: [`check`] takes any bytes, and says what is wrong. Sources: Elias 1974 and Fano 1971
//! (places); Cover 1973 (rank of a set); the quantiser as `one-covenant/templar` 2.1.28 has it.

mod bits;
mod decode;
mod encode;
mod levels;
mod rank;
#[cfg(target_arch = "x86_64")]
mod whole;

use super::{CHUNK, Grid};
use crate::simd;
pub(crate) use decode::{TOGETHER, decode, decode_all, sum_squares};
pub(crate) use encode::encode;
pub(super) use rank::CHOOSE;
use rank::rank_bits;

/// Values that share two levels.
const GROUP: usize = 64;
/// One of so many is a larger one.
const LARGER: usize = 4;
/// Bytes of shift and levels before a tensor's records, in [`Codec::Reference`].
const TABLE_BYTES: usize = 20;

/// How values and places are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Ten bits a value at k = 64; levels for each 64 values.
    Compact,
    /// Fourteen bits a value; levels for each tensor.
    Reference,
    /// f32.
    Exact,
}

/// What is sent of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Values of a whole chunk of 4096, from 1 to 4096.
    pub k: usize,
    pub codec: Codec,
}

/// Bytes that no honest peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {chunk}: {what}")]
pub struct Malformed {
    /// Which chunk of the tensor.
    pub chunk: usize,
    pub what: Fault,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    #[error("its bits do not mark exactly k places")]
    Places,
    #[error("its places do not ascend")]
    Order,
    #[error("a place lies outside the chunk")]
    Range,
    #[error("the set of larger values has no such rank")]
    Rank,
    #[error("its levels are not in order")]
    Levels,
    #[error("bits past its end are not zero")]
    Padding,
    #[error("a number is not finite")]
    NotFinite,
}

impl Spec {
    /// Values sent of a chunk of n elements.
    pub fn kept(self, n: usize) -> usize {
        (self.k * n).div_ceil(CHUNK).clamp(1, n)
    }

    /// Bytes of the record of a chunk of n elements.
    pub fn record_bytes(self, n: usize) -> usize {
        let k = self.kept(n);
        match self.codec {
            Codec::Compact => {
                let levels: usize = groups(k).map(|(_, size)| rank_bits(size) + 16).sum();
                (place_bits(n, k) + k + levels).div_ceil(8)
            }
            Codec::Reference => (12 * k + 2 * k).div_ceil(8),
            Codec::Exact => place_bits(n, k).div_ceil(8) + 4 * k,
        }
    }

    /// Bytes before a tensor's records.
    pub(crate) fn head_bytes(self) -> usize {
        if self.codec == Codec::Reference { TABLE_BYTES } else { 0 }
    }
}

/// Places and values of one record, with room for a whole vector past the end.
pub(crate) struct Picks {
    pub places: [u16; CHUNK + 16],
    pub values: [f32; CHUNK + 16],
    pub len: usize,
    /// Bits of a magnitude that all values reach.
    pub least: u32,
    /// How far above lay those that the larger values of the last group reach: where to look next.
    pub larger: u32,
}

impl Picks {
    pub fn new() -> Picks {
        Picks { places: [0; CHUNK + 16], values: [0.0; CHUNK + 16], len: 0, least: 0, larger: 0 }
    }

    /// Places with their values.
    pub fn iter(&self) -> impl Iterator<Item = (usize, f32)> {
        self.places[..self.len].iter().map(|&p| usize::from(p)).zip(self.values[..self.len].iter().copied())
    }
}

/// Levels that a whole tensor shares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Table {
    pub shift: f32,
    pub levels: [f32; 4],
    /// Distance between two codes; only who encodes needs it, so it is not written.
    pub scale: f32,
}

impl Table {
    pub fn read(head: &[u8]) -> Table {
        let at = |i: usize| f32::from_le_bytes(head[4 * i..4 * i + 4].try_into().expect("four bytes"));
        Table { shift: at(0), levels: [at(1), at(2), at(3), at(4)], scale: 0.0 }
    }

    pub fn write(self, head: &mut [u8]) {
        for (i, x) in [self.shift].into_iter().chain(self.levels).enumerate() {
            head[4 * i..4 * i + 4].copy_from_slice(&x.to_le_bytes());
        }
    }

    pub fn value(self, code: usize) -> f32 {
        self.levels[code] + self.shift
    }

    /// The code of a value.
    pub fn code(self, v: f32) -> usize {
        ((v - self.shift) / self.scale + 2.0).round_ties_even().clamp(0.0, 3.0) as usize
    }
}

/// Whether these bytes are one tensor's part of an honest update. Takes any bytes of the right number.
pub fn check(grid: Grid, spec: Spec, bytes: &[u8]) -> Result<(), Malformed> {
    walk(grid, spec, bytes, None)
}

/// As [`check`], and calls `each(element, value)` for all that is sent, chunk after chunk; an element is counted row by
/// row through the whole tensor. Where it fails, some have been seen.
pub fn visit(grid: Grid, spec: Spec, bytes: &[u8], mut each: impl FnMut(usize, f32)) -> Result<(), Malformed> {
    walk(grid, spec, bytes, Some(&mut each))
}

/// [`visit`], compiled here once, as fast as this crate is, whoever calls it.
fn walk(grid: Grid, spec: Spec, bytes: &[u8], mut each: Option<&mut dyn FnMut(usize, f32)>) -> Result<(), Malformed> {
    assert_eq!(bytes.len(), grid.update_bytes(spec), "chunk_topk: bytes of an update");
    let mut table = Table::default();
    if spec.codec == Codec::Reference {
        table = Table::read(bytes);
        if !(0..4).all(|code| table.value(code).is_finite() && table.levels[code].is_finite()) {
            return Err(Malformed { chunk: 0, what: Fault::NotFinite });
        }
    }
    let (level, mut picks) = (simd::level(), Picks::new());
    let (mut at, mut chunk) = (spec.head_bytes(), 0);
    while chunk < grid.chunks() {
        // Neighbours of one size are read together.
        let n = grid.tile(chunk).len();
        let (mut records, mut count) = ([(&[][..], table); TOGETHER], 0);
        while count < TOGETHER && chunk + count < grid.chunks() && grid.tile(chunk + count).len() == n {
            let end = at + spec.record_bytes(n);
            records[count] = (&bytes[at..end], table);
            (at, count) = (end, count + 1);
        }
        decode_all(level, spec, n, &records[..count], &mut picks, |nth, picks| {
            let Some(each) = &mut each else { return };
            let tile = grid.tile(chunk + nth);
            picks.iter().for_each(|(i, value)| each(tile.place(grid.stride(), i), value));
        })
        .map_err(|(nth, what)| Malformed { chunk: chunk + nth, what })?;
        chunk += count;
    }
    Ok(())
}

/// Starts and sizes of the groups of k values.
fn groups(k: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..k).step_by(GROUP).map(move |start| (start, GROUP.min(k - start)))
}

/// Low bits of a place.
fn low_bits(n: usize, k: usize) -> usize {
    (n / k).ilog2() as usize
}

/// Bits of the part that marks the places' high bits.
fn mark_bits(n: usize, k: usize) -> usize {
    k + ((n - 1) >> low_bits(n, k))
}

fn place_bits(n: usize, k: usize) -> usize {
    if k == n { 0 } else { mark_bits(n, k) + k * low_bits(n, k) }
}

#[cfg(test)]
mod tests {
    use super::{
        bits::{Reader, Writer},
        rank::{rank, unrank},
        *,
    };
    use crate::simd::Level;
    use proptest::prelude::*;

    /// n, k and k values with their places, drawn from a seed.
    fn drawn(n: usize, k: usize, seed: u64) -> Picks {
        let mut picks = Picks::new();
        let order = crate::harness::draw(seed, n);
        let mut places: Vec<usize> = (0..n).collect();
        places.sort_by(|&a, &b| order[a].total_cmp(&order[b]));
        places.truncate(k);
        places.sort();
        for (i, p) in places.into_iter().enumerate() {
            picks.places[i] = p as u16;
        }
        picks.values[..k].copy_from_slice(&crate::harness::draw(seed + 1, k));
        picks.len = k;
        picks
    }

    fn table() -> Table {
        Table { shift: 0.125, levels: [-1.5, -0.5, 0.25, 1.0], scale: 0.75 }
    }

    #[test]
    fn sizes_are_as_the_page_says() {
        let bytes = |k, codec| Spec { k, codec }.record_bytes(CHUNK);
        assert_eq!(bytes(64, Codec::Compact), 80);
        assert_eq!(bytes(128, Codec::Compact), 145);
        assert_eq!(bytes(64, Codec::Reference), 112);
        assert_eq!(bytes(4096, Codec::Exact), 4 * 4096);
    }

    #[test]
    fn what_is_written_is_read() {
        for n in [1, 2, 3, 63, 64, 100, 1000, 4095, 4096] {
            for per in [1, 2, 32, 63, 64, 65, 128, 200, 1024, 4096] {
                for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
                    let spec = Spec { k: per, codec };
                    let mut picks = drawn(n, spec.kept(n), 7);
                    let plain = picks.values;
                    let mut bytes = vec![0xaa; spec.record_bytes(n)];
                    encode(Level::Portable, spec, n, table(), &mut picks, &mut bytes);
                    for level in Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                        let mut back = Picks::new();
                        decode(level, spec, n, table(), &bytes, &mut back).unwrap();
                        assert!(picks.iter().eq(back.iter()), "n {n} k {per} {codec:?}");
                        let mut again = vec![0x55; bytes.len()];
                        back.values = plain;
                        encode(level, spec, n, table(), &mut back, &mut again);
                        assert!(again == bytes && picks.iter().eq(back.iter()), "n {n} k {per} {codec:?}");
                    }
                }
            }
        }
    }

    /// `count` records of chunks of n elements.
    fn written(spec: Spec, n: usize, count: usize) -> Vec<Vec<u8>> {
        let one = |i: usize| {
            let (mut picks, mut bytes) = (drawn(n, spec.kept(n), 90 + i as u64), vec![0; spec.record_bytes(n)]);
            encode(Level::Portable, spec, n, table(), &mut picks, &mut bytes);
            bytes
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn records_read_together_are_as_read_apart() {
        for (n, k) in [(CHUNK, 64), (CHUNK, 100), (CHUNK, 700), (333, 64)] {
            for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
                let spec = Spec { k, codec };
                for count in [1, 3, TOGETHER] {
                    let mut all = written(spec, n, count);
                    let together = |all: &[Vec<u8>]| {
                        let records: Vec<(&[u8], Table)> = all.iter().map(|bytes| (&bytes[..], table())).collect();
                        let (mut picks, mut seen) = (Picks::new(), Vec::new());
                        let got = decode_all(simd::detected(), spec, n, &records, &mut picks, |nth, picks| {
                            assert_eq!(nth, seen.len());
                            seen.push(picks.iter().collect::<Vec<_>>());
                        });
                        (got, seen)
                    };
                    let mut apart = Picks::new();
                    let (got, seen) = together(&all);
                    assert_eq!(got, Ok(()));
                    for (bytes, seen) in all.iter().zip(&seen) {
                        decode(Level::Portable, spec, n, table(), bytes, &mut apart).unwrap();
                        assert!(apart.iter().eq(seen.iter().copied()), "n {n} k {k} {codec:?}");
                    }
                    // The last has no such rank, among other faults.
                    all.last_mut().unwrap().fill(0xff);
                    let fault = decode(Level::Portable, spec, n, table(), &all[count - 1], &mut apart).err();
                    let (got, seen) = together(&all);
                    assert_eq!(got.err(), fault.map(|fault| (count - 1, fault)));
                    assert_eq!(seen.len(), if fault.is_some() { count - 1 } else { count });
                }
            }
        }
    }

    #[test]
    fn squares_are_those_of_the_values() {
        for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
            for (n, k) in [(CHUNK, 64), (CHUNK, 4096), (1000, 130), (3, 64)] {
                let spec = Spec { k, codec };
                for scale in [1.0, 0.0, 1e-3, 1e-6, f32::NAN] {
                    let mut picks = drawn(n, spec.kept(n), 5);
                    // With no scale given, small ones between large ones: no sum of their squares is exact.
                    let odd = |i: usize| if i.is_multiple_of(7) { 1.0 } else { 1.1e-8 };
                    let scale = |i: usize| if scale.is_nan() { odd(i) } else { scale };
                    (0..picks.len).for_each(|i| picks.values[i] *= scale(i));
                    let mut bytes = vec![0; spec.record_bytes(n)];
                    encode(Level::Portable, spec, n, table(), &mut picks, &mut bytes);
                    let want: f64 = picks.iter().map(|(_, d)| f64::from(d) * f64::from(d)).sum();
                    let got = sum_squares(simd::detected(), spec, n, table(), &bytes, &mut Picks::new());
                    assert_eq!(got.to_bits(), want.to_bits(), "n {n} k {k} {codec:?}");
                }
            }
        }
    }

    proptest! {
        // Whatever decodes is the one form of what it decodes to; everything else is named as a fault.
        #[test]
        fn a_record_has_one_form(mut seed: u64, flips in proptest::collection::vec(any::<u16>(), 0..4), odd: bool) {
            seed >>= 1;
            let n = if odd { 64 * 37 } else { CHUNK };
            for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
                let spec = Spec { k: 64, codec };
                let mut picks = drawn(n, spec.kept(n), seed);
                let mut bytes = vec![0; spec.record_bytes(n)];
                encode(Level::Portable, spec, n, table(), &mut picks, &mut bytes);
                for flip in &flips {
                    let bit = usize::from(*flip) % (8 * bytes.len());
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                let (mut back, mut plain) = (Picks::new(), Picks::new());
                let got = decode(simd::detected(), spec, n, table(), &bytes, &mut back);
                prop_assert_eq!(got, decode(Level::Portable, spec, n, table(), &bytes, &mut plain));
                if got.is_ok() {
                    prop_assert!(back.iter().eq(plain.iter()));
                    let mut again = vec![0; bytes.len()];
                    rewrite(spec, n, &back, &bytes, &mut again);
                    prop_assert_eq!(&again, &bytes);
                }
            }
        }

        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 80)) {
            let grid = Grid::matrix(64, 64);
            let _ = check(grid, Spec { k: 64, codec: Codec::Compact }, &bytes);
        }
    }

    /// Writes decoded places, signs, sets, levels and codes back bit by bit, without choosing anything anew.
    fn rewrite(spec: Spec, n: usize, picks: &Picks, source: &[u8], out: &mut [u8]) {
        let k = picks.len;
        let mut to = Writer::new(out);
        match spec.codec {
            Codec::Reference => {
                for &p in &picks.places[..k] {
                    to.put(u64::from(p), 12);
                }
                let mut from = Reader { bytes: source, at: 12 * k };
                for v in &picks.values[..k] {
                    let code = from.take(2);
                    assert_eq!(table().value(code as usize), *v);
                    to.put(code, 2);
                }
            }
            Codec::Exact => {
                encode::write_places(Level::Portable, n, &picks.places[..k], &mut to);
                to.flush();
                for v in &picks.values[..k] {
                    to.put(u64::from(v.to_bits()), 32);
                }
            }
            Codec::Compact => {
                encode::write_places(Level::Portable, n, &picks.places[..k], &mut to);
                for (start, size) in groups(k) {
                    let signs = picks.values[start..start + size].iter().enumerate();
                    to.put(signs.fold(0, |bits, (i, v)| bits | u64::from(v.to_bits() >> 31) << i), size);
                }
                let mut from = Reader { bytes: source, at: place_bits(n, k) + k };
                for (_, size) in groups(k) {
                    let set = unrank(size, size / LARGER, from.take(rank_bits(size))).unwrap();
                    to.put(rank(set), rank_bits(size));
                    to.put(from.take(16), 16);
                }
            }
        }
        to.flush();
    }
}
