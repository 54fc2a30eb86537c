//! Writing a record.

use super::{
    super::select::{key, kth},
    Codec, GROUP, LARGER, Picks, Spec, Table,
    bits::Writer,
    groups,
    levels::{level, level_bytes, signs, spread},
    low_bits, mark_bits,
    rank::{rank, rank_bits},
};
use crate::simd::Level;

/// Writes a record of a chunk of n elements and puts what it decodes to into `picks.values`.
pub(crate) fn encode(simd: Level, spec: Spec, n: usize, table: Table, picks: &mut Picks, bytes: &mut [u8]) {
    let k = picks.len;
    let mut to = Writer::new(bytes);
    match spec.codec {
        Codec::Compact => {
            write_places(simd, n, &picks.places[..k], &mut to);
            write_values(simd, picks, &mut to);
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
            write_places(simd, n, &picks.places[..k], &mut to);
            to.flush();
            for v in &picks.values[..k] {
                to.put(u64::from(v.to_bits()), 32);
            }
        }
    }
    to.flush();
}

/// Signs, then for each group the set of larger values and both levels.
fn write_values(simd: Level, picks: &mut Picks, to: &mut Writer<'_>) {
    let k = picks.len;
    for (start, size) in groups(k) {
        to.put(signs(simd, &picks.values[start..start + size]), size);
    }
    for (start, size) in groups(k) {
        let values = &mut picks.values[start..start + size];
        let larger = largest(simd, values, size / LARGER, picks.least, &mut picks.larger);
        let (low, high) = level_bytes(simd, values, larger);
        to.put(rank(larger), rank_bits(size));
        to.put(u64::from(low), 8);
        to.put(u64::from(high), 8);
        let signs = signs(simd, values);
        spread(simd, values, larger, signs, [level(low), level(high)]);
    }
}

/// The `h` largest magnitudes of up to 64 values, as a set of bits; of equals the first. All reach `least`; the one
/// sought is thought to lie `above` that, and where it did is left there.
fn largest(level: Level, values: &[f32], h: usize, least: u32, above: &mut u32) -> u64 {
    if h == 0 {
        return 0;
    }
    let mut keys = [0u32; GROUP];
    for (to, &v) in keys.iter_mut().zip(values) {
        *to = key(v);
    }
    let kth = kth(level, &keys, values.len(), h, least, least.saturating_add(*above));
    *above = kth - least;
    let there = u64::MAX >> (GROUP - values.len());
    let reached = reaching(level, &keys, kth << 1) & there;
    if reached.count_ones() as usize == h {
        return reached;
    }
    // Of those that equal it, the first: keys differ in their signs.
    let more = if kth << 1 == u32::MAX - 1 { 0 } else { reaching(level, &keys, (kth + 1) << 1) };
    let (mut set, mut equal) = (more, reached & !more);
    while (set.count_ones() as usize) < h {
        set |= equal & equal.wrapping_neg();
        equal &= equal - 1;
    }
    set
}

/// Which keys are at least `least`, a bit each.
fn reaching(level: Level, keys: &[u32; GROUP], least: u32) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        return unsafe { reaching_avx512(keys, least) };
    }
    let _ = level;
    keys.iter().enumerate().fold(0, |set, (i, &key)| set | u64::from(key >= least) << i)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn reaching_avx512(keys: &[u32; GROUP], least: u32) -> u64 {
    use std::arch::x86_64::*;
    keys.as_chunks::<16>().0.iter().enumerate().fold(0, |set, (i, block)| {
        // SAFETY: sixteen keys.
        let keys = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        set | u64::from(_mm512_cmpge_epu32_mask(keys, _mm512_set1_epi32(least as i32))) << (16 * i)
    })
}

/// Elias-Fano: the high bits of places as marks, then their low bits.
pub(super) fn write_places(simd: Level, n: usize, places: &[u16], to: &mut Writer<'_>) {
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
    let (fours, rest) = places.as_chunks::<4>();
    #[cfg(target_arch = "x86_64")]
    let packed = simd >= Level::Avx512 && {
        // SAFETY: the level says that the CPU has the instructions.
        unsafe { put_low_bmi2(fours, l, to) };
        true
    };
    #[cfg(not(target_arch = "x86_64"))]
    let packed = false;
    let _ = simd;
    let low = |place: u16| u64::from(place) & ((1 << l) - 1);
    if !packed {
        for four in fours {
            let [a, b, c, d] = four.map(low);
            to.put(a | b << l | c << (2 * l) | d << (3 * l), 4 * l);
        }
    }
    for &place in rest {
        to.put(low(place), l);
    }
}

/// Puts the low `l` bits of each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn put_low_bmi2(fours: &[[u16; 4]], l: usize, to: &mut Writer<'_>) {
    use std::arch::x86_64::_pext_u64;
    let low = ((1u64 << l) - 1) * 0x0001_0001_0001_0001;
    for &[a, b, c, d] in fours {
        let four = u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48;
        to.put(_pext_u64(four, low), 4 * l);
    }
}
