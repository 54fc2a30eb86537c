//! Reading a record, which may hold anything.

use super::{
    Codec, Fault, GROUP, LARGER, Picks, Spec, Table,
    bits::Reader,
    groups,
    levels::{level, spread},
    low_bits, mark_bits, place_bits,
    rank::{rank_bits, unrank, unrank_all},
};
use crate::simd::Level;

#[cfg(target_arch = "x86_64")]
use super::{super::CHUNK, whole};

/// Records that are read together.
pub(crate) const TOGETHER: usize = 32;
/// Groups of a record up to which its sets are made together with other records'.
const GROUPS: usize = 4;

/// Reads a record of a chunk of n elements.
pub(crate) fn decode(
    simd: Level,
    spec: Spec,
    n: usize,
    table: Table,
    bytes: &[u8],
    to: &mut Picks,
) -> Result<(), Fault> {
    decode_with(simd, spec, n, table, bytes, to, |_, size, rank| unrank(size, size / LARGER, rank))
}

/// Reads up to [`TOGETHER`] records of chunks of n elements, and calls `each(nth, picks)` after each; at a fault says where it
/// is.
pub(crate) fn decode_all(
    simd: Level,
    spec: Spec,
    n: usize,
    records: &[(&[u8], Table)],
    to: &mut Picks,
    mut each: impl FnMut(usize, &Picks),
) -> Result<(), (usize, Fault)> {
    let (k, mut sets) = (spec.kept(n), [[0; TOGETHER]; GROUPS]);
    let together = spec.codec == Codec::Compact && k <= GROUPS * GROUP && {
        let mut at = place_bits(n, k) + k;
        groups(k).zip(&mut sets).all(|((_, size), sets)| {
            let sets = &mut sets[..records.len()];
            for (set, (bytes, _)) in sets.iter_mut().zip(records) {
                *set = Reader { bytes, at }.take(rank_bits(size));
            }
            at += rank_bits(size) + 16;
            unrank_all(simd, size, size / LARGER, sets)
        })
    };
    for (nth, &(bytes, table)) in records.iter().enumerate() {
        // Where one has no such rank, each is read by itself, to name the first fault of the first.
        let set = |group: usize, size, rank| {
            if together { Some(sets[group][nth]) } else { unrank(size, size / LARGER, rank) }
        };
        decode_with(simd, spec, n, table, bytes, to, set).map_err(|fault| (nth, fault))?;
        each(nth, to);
    }
    Ok(())
}

/// Reads a record; `set(group, size, rank)` makes sets.
#[inline(always)]
fn decode_with(
    simd: Level,
    spec: Spec,
    n: usize,
    table: Table,
    bytes: &[u8],
    to: &mut Picks,
    set: impl Fn(usize, usize, u64) -> Option<u64>,
) -> Result<(), Fault> {
    let k = spec.kept(n);
    to.len = k;
    #[cfg(target_arch = "x86_64")]
    if (spec.codec, n, k) == (Codec::Compact, CHUNK, GROUP)
        && whole::readable(simd)
        && let Ok(bytes) = bytes.try_into()
    {
        // SAFETY: the CPU has the instructions.
        unsafe { whole::read_places(bytes, to.places.first_chunk_mut().expect("64 places")) }?;
        let larger = set(0, GROUP, whole::rank(bytes)).ok_or(Fault::Rank)?;
        let levels = levels(GROUP, [bytes[78], bytes[79]])?;
        spread(simd, &mut to.values[..GROUP], larger, whole::signs(bytes), levels);
        return Ok(());
    }
    let mut from = Reader { bytes, at: 0 };
    match spec.codec {
        Codec::Compact => {
            read_places(simd, n, k, &mut from, &mut to.places[..k])?;
            read_values(simd, &mut from, &mut to.values[..k], set)?;
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
            read_places(simd, n, k, &mut from, &mut to.places[..k])?;
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

#[inline(always)]
fn read_values(
    simd: Level,
    from: &mut Reader<'_>,
    values: &mut [f32],
    set: impl Fn(usize, usize, u64) -> Option<u64>,
) -> Result<(), Fault> {
    // Signs of all groups lie before the first set.
    let mut signs = Reader { bytes: from.bytes, at: from.at };
    from.at += values.len();
    for (start, size) in groups(values.len()) {
        let larger = set(start / GROUP, size, from.take(rank_bits(size))).ok_or(Fault::Rank)?;
        let levels = read_levels(size, from)?;
        spread(simd, &mut values[start..start + size], larger, signs.take(size), levels);
    }
    Ok(())
}

/// Levels of a group of `size`.
#[inline(always)]
fn read_levels(size: usize, from: &mut Reader<'_>) -> Result<[f32; 2], Fault> {
    let bytes = from.take(16);
    levels(size, [bytes as u8, (bytes >> 8) as u8])
}

/// What these level bytes of a group of `size` stand for.
#[inline(always)]
fn levels(size: usize, [low, high]: [u8; 2]) -> Result<[f32; 2], Fault> {
    let levels_agree = if size < LARGER { high == 0 } else { high >= low };
    if levels_agree { Ok([level(low), level(high)]) } else { Err(Fault::Levels) }
}

/// Σ d² of a record of a chunk of n elements that was checked, added up in f64 one after another.
pub(crate) fn sum_squares(simd: Level, spec: Spec, n: usize, table: Table, bytes: &[u8], picks: &mut Picks) -> f64 {
    let k = spec.kept(n);
    if spec.codec == Codec::Compact {
        let mut from = Reader { bytes, at: place_bits(n, k) + k };
        let (mut least, mut most, mut sum) = (f32::INFINITY, 0.0f32, 0.0);
        for (_, size) in groups(k) {
            from.at += rank_bits(size);
            let [low, high] = read_levels(size, &mut from).expect("chunk_topk: an update that was checked");
            for (level, count) in [(low, size - size / LARGER), (high, size / LARGER)] {
                if level > 0.0 {
                    (least, most) = (least.min(level), most.max(level));
                    sum += count as f64 * (f64::from(level) * f64::from(level));
                }
            }
        }
        // A square has eight bits, of which 4096 are added: between levels less than 2^15 apart no sum is rounded, and
        // it is all the same in which order it is made.
        if most <= least * 32768.0 {
            return sum;
        }
    }
    decode(simd, spec, n, table, bytes, picks).expect("chunk_topk: an update that was checked");
    picks.values[..k].iter().map(|&d| f64::from(d) * f64::from(d)).sum()
}

fn read_places(simd: Level, n: usize, k: usize, from: &mut Reader<'_>, places: &mut [u16]) -> Result<(), Fault> {
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
    take_low(simd, l, from, places);
    ascending_below(n, places)
}

/// Takes the low `l` bits of each place.
fn take_low(simd: Level, l: usize, from: &mut Reader<'_>, places: &mut [u16]) {
    let (fours, rest) = places.as_chunks_mut::<4>();
    #[cfg(target_arch = "x86_64")]
    if simd >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        unsafe { take_low_bmi2(fours, l, from) };
        rest.iter_mut().for_each(|place| *place |= from.take(l) as u16);
        return;
    }
    let _ = simd;
    fours.as_flattened_mut().iter_mut().chain(rest).for_each(|place| *place |= from.take(l) as u16);
}

/// As [`take_low`], four at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn take_low_bmi2(fours: &mut [[u16; 4]], l: usize, from: &mut Reader<'_>) {
    use std::arch::x86_64::_pdep_u64;
    let low = ((1u64 << l) - 1) * 0x0001_0001_0001_0001;
    for four in fours {
        let bits = _pdep_u64(from.take(4 * l), low);
        for (i, place) in four.iter_mut().enumerate() {
            *place |= (bits >> (16 * i)) as u16;
        }
    }
}

fn ascending_below(n: usize, places: &[u16]) -> Result<(), Fault> {
    // All are looked at, so that several are at once.
    if places.iter().zip(&places[1..]).fold(false, |wrong, (a, b)| wrong | (a >= b)) {
        return Err(Fault::Order);
    }
    if places.last().is_some_and(|&last| usize::from(last) >= n) {
        return Err(Fault::Range);
    }
    Ok(())
}
