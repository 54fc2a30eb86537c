//! Writing a record.

use super::{
    super::select::{magnitude, search},
    Codec, LARGER, Picks, Spec, Table,
    bits::Writer,
    groups,
    levels::{level, level_bytes, signs, spread},
    low_bits, mark_bits,
    rank::{rank, rank_bits},
};
use crate::simd::Level;

#[cfg(target_arch = "x86_64")]
use super::GROUP;

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
    let guess = least.saturating_add(*above);
    #[cfg(target_arch = "x86_64")]
    if let (true, Ok(values)) = (level >= Level::Avx512, values.try_into()) {
        // SAFETY: the level says that the CPU has the instructions.
        let (kth, reached, more) = unsafe { largest_avx512(values, h, least, guess) };
        *above = kth - least;
        return first_of(reached, more, h);
    }
    let _ = level;
    let count = |m: u32| values.iter().map(|&v| u32::from(magnitude(v) >= m)).sum::<u32>() as usize;
    let kth = search(values.len(), h, least, guess, count);
    *above = kth - least;
    let set = |wanted: &dyn Fn(u32) -> bool| {
        values.iter().enumerate().fold(0, |set, (i, &v)| set | u64::from(wanted(magnitude(v))) << i)
    };
    first_of(set(&|m| m >= kth), set(&|m| m > kth), h)
}

/// `h` members: all of `more`, and the first others that are `reached`.
fn first_of(reached: u64, more: u64, h: usize) -> u64 {
    if reached.count_ones() as usize == h {
        return reached;
    }
    let (mut set, mut equal) = (more, reached & !more);
    while (set.count_ones() as usize) < h {
        set |= equal & equal.wrapping_neg();
        equal &= equal - 1;
    }
    set
}

/// The `h`-th largest magnitude as [`search`] gives it, which values reach it, and which exceed it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,popcnt")]
fn largest_avx512(values: &[f32; GROUP], h: usize, least: u32, guess: u32) -> (u32, u64, u64) {
    use std::arch::x86_64::*;
    let blocks = values.as_chunks::<16>().0;
    let magnitudes: [__m512i; 4] = std::array::from_fn(|i| {
        // SAFETY: sixteen values.
        let x = unsafe { _mm512_loadu_si512(blocks[i].as_ptr().cast()) };
        _mm512_and_si512(x, _mm512_set1_epi32(i32::MAX))
    });
    let reaching = |m: u32| {
        let m = _mm512_set1_epi32(m as i32);
        let [a, b, c, d] = magnitudes.map(|x| u64::from(_mm512_cmpge_epu32_mask(x, m)));
        (a | b << 16) | (c | d << 16) << 32
    };
    let kth = search(GROUP, h, least, guess, |m| reaching(m).count_ones() as usize);
    (kth, reaching(kth), reaching(kth + 1))
}

/// Elias-Fano: the high bits of places as marks, then their low bits.
pub(super) fn write_places(simd: Level, n: usize, places: &[u16], to: &mut Writer<'_>) {
    let k = places.len();
    if k == n {
        return;
    }
    let (l, bits) = (low_bits(n, k), mark_bits(n, k));
    put_marks(simd, places, l, bits, to);
    put_low(simd, l, places, to);
}

/// Of `bits` bits, sets one for each place.
fn put_marks(simd: Level, places: &[u16], l: usize, bits: usize, to: &mut Writer<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let (true, Ok(places)) = (simd >= Level::Avx512 && bits <= 128, places.try_into()) {
        // SAFETY: the level says that the CPU has the instructions.
        let [low, high] = unsafe { marks_avx512(places, l) };
        to.put(low, bits.min(64));
        return to.put(high, bits.saturating_sub(64));
    }
    let _ = simd;
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
}

/// The marks of 64 places, of which none is past the 128th bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn marks_avx512(places: &[u16; GROUP], l: usize) -> [u64; 2] {
    use std::arch::x86_64::*;
    let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let (one, mut nth) = (_mm512_set1_epi64(1), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    let l = _mm_cvtsi64_si128(l as i64);
    for eight in places.as_chunks::<8>().0 {
        // SAFETY: eight places.
        let places = unsafe { _mm_loadu_si128(eight.as_ptr().cast()) };
        let mark = _mm512_add_epi64(_mm512_cvtepu16_epi64(_mm_srl_epi16(places, l)), nth);
        // To shift by more than a word has, or by less than nothing, leaves nothing.
        low = _mm512_or_si512(low, _mm512_sllv_epi64(one, mark));
        high = _mm512_or_si512(high, _mm512_sllv_epi64(one, _mm512_sub_epi64(mark, _mm512_set1_epi64(64))));
        nth = _mm512_add_epi64(nth, _mm512_set1_epi64(8));
    }
    [low, high].map(|word| _mm512_reduce_or_epi64(word) as u64)
}

/// Puts the low `l` bits of each place.
fn put_low(simd: Level, l: usize, places: &[u16], to: &mut Writer<'_>) {
    let (fours, rest) = places.as_chunks::<4>();
    let low = |place: u16| u64::from(place) & ((1 << l) - 1);
    #[cfg(target_arch = "x86_64")]
    if simd >= Level::Avx512 {
        // SAFETY: the level says that the CPU has the instructions.
        unsafe { put_low_bmi2(fours, l, to) };
        rest.iter().for_each(|&place| to.put(low(place), l));
        return;
    }
    let _ = simd;
    for four in fours {
        let [a, b, c, d] = four.map(low);
        to.put(a | b << l | c << (2 * l) | d << (3 * l), 4 * l);
    }
    rest.iter().for_each(|&place| to.put(low(place), l));
}

/// As [`put_low`], four at a time.
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
