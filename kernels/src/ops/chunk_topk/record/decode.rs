//! Reading a record, which may hold anything.

use super::{
    super::CHUNK,
    Codec, Fault, GROUP, LARGER, Picks, Spec, Table,
    bits::Reader,
    groups,
    levels::{level, spread},
    low_bits, mark_bits,
    rank::{rank_bits, unrank},
};
use crate::simd::Level;

/// Reads a record of a chunk of n elements.
pub(crate) fn decode(
    simd: Level,
    spec: Spec,
    n: usize,
    table: Table,
    bytes: &[u8],
    to: &mut Picks,
) -> Result<(), Fault> {
    let k = spec.kept(n);
    to.len = k;
    let mut from = Reader { bytes, at: 0 };
    match spec.codec {
        Codec::Compact => {
            read_places(simd, n, k, &mut from, &mut to.places[..k])?;
            read_values(simd, &mut from, &mut to.values[..k])?;
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

fn read_values(simd: Level, from: &mut Reader<'_>, values: &mut [f32]) -> Result<(), Fault> {
    let mut signs = [0u64; CHUNK / GROUP];
    for (start, size) in groups(values.len()) {
        signs[start / GROUP] = from.take(size);
    }
    for (start, size) in groups(values.len()) {
        let larger = unrank(size, size / LARGER, from.take(rank_bits(size))).ok_or(Fault::Rank)?;
        let (low, high) = (from.take(8) as u8, from.take(8) as u8);
        let levels_agree = if size < LARGER { high == 0 } else { high >= low };
        if !levels_agree {
            return Err(Fault::Levels);
        }
        let levels = [level(low), level(high)];
        spread(simd, &mut values[start..start + size], larger, signs[start / GROUP], levels);
    }
    Ok(())
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
    let (fours, rest) = places.as_chunks_mut::<4>();
    #[cfg(target_arch = "x86_64")]
    let unpacked = simd >= Level::Avx512 && {
        // SAFETY: the level says that the CPU has the instructions.
        unsafe { take_low_bmi2(fours, l, from) };
        true
    };
    #[cfg(not(target_arch = "x86_64"))]
    let unpacked = false;
    let _ = simd;
    if !unpacked {
        fours.as_flattened_mut().iter_mut().for_each(|place| *place |= from.take(l) as u16);
    }
    rest.iter_mut().for_each(|place| *place |= from.take(l) as u16);
    ascending_below(n, places)
}

/// Takes the low `l` bits of each.
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
