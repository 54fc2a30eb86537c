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

use super::{
    CHUNK, Grid,
    select::{kth, magnitude, reaching},
};
use crate::simd::Level;

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

/// Places and values of one record.
pub(crate) struct Picks {
    pub places: [u16; CHUNK],
    pub values: [f32; CHUNK],
    pub len: usize,
}

impl Picks {
    pub fn new() -> Picks {
        Picks { places: [0; CHUNK], values: [0.0; CHUNK], len: 0 }
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
    visit(grid, spec, bytes, |_, _| ())
}

/// As [`check`], and calls `each(element, value)` for all that is sent, chunk after chunk; an element is counted row by
/// row through the whole tensor. Where it fails, some have been seen.
pub fn visit(grid: Grid, spec: Spec, bytes: &[u8], mut each: impl FnMut(usize, f32)) -> Result<(), Malformed> {
    assert_eq!(bytes.len(), grid.update_bytes(spec), "chunk_topk: bytes of an update");
    let fault = |chunk| move |what| Malformed { chunk, what };
    let mut table = Table::default();
    if spec.codec == Codec::Reference {
        table = Table::read(bytes);
        if !(0..4).all(|code| table.value(code).is_finite() && table.levels[code].is_finite()) {
            return Err(fault(0)(Fault::NotFinite));
        }
    }
    let mut picks = Picks::new();
    let mut at = spec.head_bytes();
    for chunk in 0..grid.chunks() {
        let tile = grid.tile(chunk);
        let end = at + spec.record_bytes(tile.len());
        decode(spec, tile.len(), table, &bytes[at..end], &mut picks).map_err(fault(chunk))?;
        at = end;
        for (i, value) in picks.iter() {
            each((tile.row + i / tile.cols) * grid.stride() + tile.col + i % tile.cols, value);
        }
    }
    Ok(())
}

/// Reads a record of a chunk of n elements.
pub(crate) fn decode(spec: Spec, n: usize, table: Table, bytes: &[u8], to: &mut Picks) -> Result<(), Fault> {
    let k = spec.kept(n);
    to.len = k;
    let mut from = Reader { bytes, at: 0 };
    match spec.codec {
        Codec::Compact => {
            read_places(n, k, &mut from, &mut to.places[..k])?;
            let mut signs = [0u64; CHUNK / 64];
            for (start, size) in groups(k) {
                signs[start / GROUP] = from.take(size);
            }
            for (start, size) in groups(k) {
                let larger = unrank(size, size / LARGER, from.take(rank_bits(size))).ok_or(Fault::Rank)?;
                let (low, high) = (from.take(8) as u8, from.take(8) as u8);
                let levels_agree = if size < LARGER { high == 0 } else { high >= low };
                if !levels_agree {
                    return Err(Fault::Levels);
                }
                let levels = [level(low), level(high)];
                for (i, value) in to.values[start..start + size].iter_mut().enumerate() {
                    let magnitude = levels[(larger >> i & 1) as usize];
                    let sign = (signs[start / GROUP] >> i & 1) as u32;
                    *value = f32::from_bits(magnitude.to_bits() | sign << 31);
                }
            }
        }
        Codec::Reference => {
            for place in &mut to.places[..k] {
                *place = from.take(12) as u16;
            }
            ascending_below(n, &to.places[..k])?;
            for value in &mut to.values[..k] {
                *value = table.value(from.take(2) as usize);
            }
        }
        Codec::Exact => {
            read_places(n, k, &mut from, &mut to.places[..k])?;
            from.finish_byte()?;
            let values = &bytes[from.at / 8..];
            for (value, four) in to.values[..k].iter_mut().zip(values.chunks_exact(4)) {
                *value = f32::from_le_bytes(four.try_into().expect("four bytes"));
                if !value.is_finite() {
                    return Err(Fault::NotFinite);
                }
            }
            return Ok(());
        }
    }
    from.finish_byte()
}

/// Writes a record of a chunk of n elements and puts what it decodes to into `picks.values`.
pub(crate) fn encode(simd: Level, spec: Spec, n: usize, table: Table, picks: &mut Picks, bytes: &mut [u8]) {
    let k = picks.len;
    let mut to = Writer { bytes, at: 0, word: 0, held: 0 };
    match spec.codec {
        Codec::Compact => {
            write_places(n, &picks.places[..k], &mut to);
            for (start, size) in groups(k) {
                let signs = picks.values[start..start + size].iter().enumerate();
                to.put(signs.fold(0, |bits, (i, v)| bits | u64::from(v.to_bits() >> 31) << i), size);
            }
            for (start, size) in groups(k) {
                let values = &mut picks.values[start..start + size];
                let larger = largest(simd, values, size / LARGER);
                let (low, high) = level_bytes(simd, values, larger);
                to.put(rank(larger), rank_bits(size));
                to.put(u64::from(low), 8);
                to.put(u64::from(high), 8);
                let levels = [level(low), level(high)];
                for (i, v) in values.iter_mut().enumerate() {
                    let magnitude = levels[(larger >> i & 1) as usize];
                    *v = f32::from_bits(magnitude.to_bits() | v.to_bits() & 1 << 31);
                }
            }
        }
        Codec::Reference => {
            for &place in &picks.places[..k] {
                to.put(u64::from(place), 12);
            }
            for v in &mut picks.values[..k] {
                let code = table.code(*v);
                to.put(code as u64, 2);
                *v = table.value(code);
            }
        }
        Codec::Exact => {
            write_places(n, &picks.places[..k], &mut to);
            to.flush();
            for v in &picks.values[..k] {
                to.put(u64::from(v.to_bits()), 32);
            }
        }
    }
    to.flush();
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

fn write_places(n: usize, places: &[u16], to: &mut Writer<'_>) {
    let k = places.len();
    if k == n {
        return;
    }
    let (l, bits) = (low_bits(n, k), mark_bits(n, k));
    let (mut word, mut start) = (0, 0);
    for (i, &place) in places.iter().enumerate() {
        let mark = usize::from(place >> l) + i;
        while mark >= start + 64 {
            to.put(word, 64);
            (word, start) = (0, start + 64);
        }
        word |= 1 << (mark % 64);
    }
    while start < bits {
        to.put(word, 64.min(bits - start));
        (word, start) = (0, start + 64);
    }
    let low = |place: u16| u64::from(place) & ((1 << l) - 1);
    let mut fours = places.chunks_exact(4);
    for four in &mut fours {
        let [a, b, c, d] = [low(four[0]), low(four[1]), low(four[2]), low(four[3])];
        to.put(a | b << l | c << (2 * l) | d << (3 * l), 4 * l);
    }
    for &place in fours.remainder() {
        to.put(low(place), l);
    }
}

fn read_places(n: usize, k: usize, from: &mut Reader<'_>, places: &mut [u16]) -> Result<(), Fault> {
    if k == n {
        for (i, place) in places.iter_mut().enumerate() {
            *place = i as u16;
        }
        return Ok(());
    }
    let (l, bits) = (low_bits(n, k), mark_bits(n, k));
    let mut found = 0;
    for first in (0..bits).step_by(64) {
        let mut word = from.take(64.min(bits - first));
        if found + word.count_ones() as usize > k {
            return Err(Fault::Places);
        }
        while word != 0 {
            let high = first + word.trailing_zeros() as usize - found;
            places[found] = (high << l) as u16;
            found += 1;
            word &= word - 1;
        }
    }
    if found != k {
        return Err(Fault::Places);
    }
    for place in places.iter_mut() {
        *place |= from.take(l) as u16;
    }
    ascending_below(n, places)
}

fn ascending_below(n: usize, places: &[u16]) -> Result<(), Fault> {
    if places.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Err(Fault::Order);
    }
    if places.last().is_some_and(|&last| usize::from(last) >= n) {
        return Err(Fault::Range);
    }
    Ok(())
}

/// The level byte of a magnitude, to nearest, ties to even.
fn level_byte(magnitude: f32) -> u8 {
    let bits = magnitude.to_bits();
    // Three bits of the mantissa stay: half of what falls away is added, less one where the kept part is even.
    let rounded = (bits + (1 << 19) - 1 + (bits >> 20 & 1)) >> 20;
    // (8 + m) · 2^(e − 32) is (1 + m/8) · 2^(e − 29), whose exponent field is e + 98.
    rounded.saturating_sub(98 << 3).min(255) as u8
}

/// What a level byte stands for.
fn level(byte: u8) -> f32 {
    if byte == 0 { 0.0 } else { f32::from_bits((u32::from(byte) + (98 << 3)) << 20) }
}

/// Sums of the magnitudes outside and inside of the set: value i goes to lane i mod 8, lanes are added in pairs.
fn level_sums(level: Level, values: &[f32], larger: u64) -> [f32; 2] {
    let mut sums = [[0.0f32; 8]; 2];
    match values.as_chunks::<8>() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the CPU has the instructions.
        (eights, []) if level >= Level::Avx512 => unsafe { add_avx512(eights, larger, &mut sums) },
        _ => {
            let _ = level;
            for (i, v) in values.iter().enumerate() {
                sums[(larger >> i & 1) as usize][i % 8] += v.abs();
            }
        }
    }
    sums.map(|s| {
        let four = [s[0] + s[4], s[1] + s[5], s[2] + s[6], s[3] + s[7]];
        (four[0] + four[2]) + (four[1] + four[3])
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn add_avx512(values: &[[f32; 8]], larger: u64, sums: &mut [[f32; 8]; 2]) {
    use std::arch::x86_64::*;
    let (mut outside, mut inside) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for (i, eight) in values.iter().enumerate() {
        let larger = (larger >> (8 * i)) as u8;
        // SAFETY: eight values.
        let v = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
        let v = _mm256_andnot_ps(_mm256_set1_ps(-0.0), v);
        outside = _mm256_mask_add_ps(outside, !larger, outside, v);
        inside = _mm256_mask_add_ps(inside, larger, inside, v);
    }
    // SAFETY: eight sums each.
    unsafe {
        _mm256_storeu_ps(sums[0].as_mut_ptr(), outside);
        _mm256_storeu_ps(sums[1].as_mut_ptr(), inside);
    }
}

/// The bytes of the two levels of a group: the means of the magnitudes outside and inside of the set.
fn level_bytes(level: Level, values: &[f32], larger: u64) -> (u8, u8) {
    let sums = level_sums(level, values, larger);
    let within = larger.count_ones() as usize;
    let mean = |sum: f32, count: usize| {
        // NaN and infinity are caught before anything is sent; here they only must not stop.
        if count == 0 || !sum.is_finite() { 0.0 } else { sum / count as f32 }
    };
    let low = level_byte(mean(sums[0], values.len() - within));
    let high = level_byte(mean(sums[1], within));
    // Two rounded means of ordered magnitudes are ordered; `max` says so for sums that overflowed.
    (low, if within == 0 { 0 } else { high.max(low) })
}

/// The `h` largest magnitudes of up to 64 values, as a set of bits; of equals the first.
fn largest(level: Level, values: &[f32], h: usize) -> u64 {
    if h == 0 {
        return 0;
    }
    let mut bits = [0u32; GROUP];
    for (b, &v) in bits.iter_mut().zip(values) {
        *b = magnitude(v);
    }
    let bits = &bits[..values.len()];
    let kth = kth(level, bits, h);
    let reached = reaching(level, bits, kth);
    if reached.count_ones() as usize == h {
        return reached;
    }
    // Magnitudes have no top bit, so one more is a number.
    let mut set = reaching(level, bits, kth + 1);
    let mut equal = reached & !set;
    while (set.count_ones() as usize) < h {
        set |= equal & equal.wrapping_neg();
        equal &= equal - 1;
    }
    set
}

/// C(n, r) for n to 64 and r to 16.
pub(super) static CHOOSE: [[u64; GROUP / LARGER + 1]; GROUP + 1] = {
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
fn rank_bits(size: usize) -> usize {
    (64 - (CHOOSE[size][size / LARGER] - 1).leading_zeros()) as usize
}

/// Place of a set among all sets of its size, by colexicographic order.
fn rank(set: u64) -> u64 {
    let (mut rank, mut rest, mut r) = (0, set, 1);
    while rest != 0 {
        rank += CHOOSE[rest.trailing_zeros() as usize][r];
        rest &= rest - 1;
        r += 1;
    }
    rank
}

/// The set of `h` of `size` with that rank, if there is one.
fn unrank(size: usize, h: usize, mut rank: u64) -> Option<u64> {
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

/// Takes bits, the lowest of the first byte first.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next `count` bits, at most 64.
    fn take(&mut self, count: usize) -> u64 {
        if count == 0 {
            return 0;
        }
        let (byte, shift) = (self.at / 8, self.at % 8);
        self.at += count;
        let word = |from: usize| match self.bytes.get(from..from + 8) {
            Some(eight) => u64::from_le_bytes(eight.try_into().expect("eight bytes")),
            None => {
                let rest = self.bytes.get(from..).unwrap_or_default();
                rest.iter().rev().fold(0, |bits, &b| bits << 8 | u64::from(b))
            }
        };
        let mut bits = word(byte) >> shift;
        if shift + count > 64 {
            bits |= u64::from(self.bytes[byte + 8]) << (64 - shift);
        }
        if count == 64 { bits } else { bits & ((1 << count) - 1) }
    }

    /// Passes over what fills the byte up, which must be zero.
    fn finish_byte(&mut self) -> Result<(), Fault> {
        let rest = self.at.next_multiple_of(8) - self.at;
        if self.take(rest) == 0 { Ok(()) } else { Err(Fault::Padding) }
    }
}

/// Puts bits, the lowest of the first byte first.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
    word: u64,
    held: usize,
}

impl Writer<'_> {
    /// The low `count` bits of `bits`, which has no others; at most 64.
    fn put(&mut self, bits: u64, count: usize) {
        if count == 0 {
            return;
        }
        self.word |= bits << self.held;
        if self.held + count < 64 {
            self.held += count;
            return;
        }
        self.bytes[self.at..self.at + 8].copy_from_slice(&self.word.to_le_bytes());
        self.at += 8;
        let written = 64 - self.held;
        self.word = if written == 64 { 0 } else { bits >> written };
        self.held = count - written;
    }

    /// Fills the byte up with zeros.
    fn flush(&mut self) {
        let bytes = self.held.div_ceil(8);
        self.bytes[self.at..self.at + bytes].copy_from_slice(&self.word.to_le_bytes()[..bytes]);
        self.at += bytes;
        (self.word, self.held) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                    let mut bytes = vec![0xaa; spec.record_bytes(n)];
                    encode(Level::Portable, spec, n, table(), &mut picks, &mut bytes);
                    let mut back = Picks::new();
                    decode(spec, n, table(), &bytes, &mut back).unwrap();
                    assert!(picks.iter().eq(back.iter()), "n {n} k {per} {codec:?}");
                }
            }
        }
    }

    #[test]
    fn levels_round_to_nearest() {
        for byte in 1..=255u8 {
            assert_eq!(level_byte(level(byte)), byte);
            let up = level(byte.saturating_add(1));
            assert_eq!(level_byte(level(byte) + (up - level(byte)) * 0.49), byte);
        }
        assert_eq!([0.0, 1e-12, 7.5, 1e9].map(level_byte), [0, 0, 255, 255]);
        assert_eq!(level(255), 7.5);
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
                let mut back = Picks::new();
                if decode(spec, n, table(), &bytes, &mut back).is_ok() {
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
        let mut to = Writer { bytes: out, at: 0, word: 0, held: 0 };
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
                write_places(n, &picks.places[..k], &mut to);
                to.flush();
                for v in &picks.values[..k] {
                    to.put(u64::from(v.to_bits()), 32);
                }
            }
            Codec::Compact => {
                write_places(n, &picks.places[..k], &mut to);
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
