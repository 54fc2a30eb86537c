//! The two magnitudes of a group, a byte each.

use crate::simd::Level;

/// The level byte of a magnitude, to nearest, ties to even.
fn level_byte(magnitude: f32) -> u8 {
    let bits = magnitude.to_bits();
    // Three bits of the mantissa stay: half of what falls away is added, less one where the kept part is even.
    let rounded = (bits + (1 << 19) - 1 + (bits >> 20 & 1)) >> 20;
    // (8 + m) · 2^(e − 32) is (1 + m/8) · 2^(e − 29), whose exponent field is e + 98.
    rounded.saturating_sub(98 << 3).min(255) as u8
}

/// What a level byte stands for.
pub(super) fn level(byte: u8) -> f32 {
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
pub(super) fn level_bytes(level: Level, values: &[f32], larger: u64) -> (u8, u8) {
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

/// The signs of up to 64 values, a bit each, set: negative.
pub(super) fn signs(level: Level, values: &[f32]) -> u64 {
    match values.as_chunks::<16>() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the CPU has the instructions.
        (blocks, []) if level >= Level::Avx512 => unsafe { signs_avx512(blocks) },
        _ => {
            let _ = level;
            values.iter().enumerate().fold(0, |bits, (i, v)| bits | u64::from(v.to_bits() >> 31) << i)
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn signs_avx512(values: &[[f32; 16]]) -> u64 {
    use std::arch::x86_64::*;
    values.iter().enumerate().fold(0, |bits, (i, block)| {
        // SAFETY: sixteen values.
        let x = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
        bits | u64::from(_mm512_movepi32_mask(x)) << (16 * i)
    })
}

/// Sets up to 64 values to the second level where `larger` has a bit, else to the first, with these signs.
pub(super) fn spread(level: Level, values: &mut [f32], larger: u64, signs: u64, levels: [f32; 2]) {
    match values.as_chunks_mut::<16>() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the CPU has the instructions.
        (blocks, []) if level >= Level::Avx512 => unsafe { spread_avx512(blocks, larger, signs, levels) },
        _ => {
            let _ = level;
            for (i, value) in values.iter_mut().enumerate() {
                let magnitude = levels[(larger >> i & 1) as usize];
                *value = f32::from_bits(magnitude.to_bits() | ((signs >> i & 1) as u32) << 31);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn spread_avx512(values: &mut [[f32; 16]], larger: u64, signs: u64, levels: [f32; 2]) {
    use std::arch::x86_64::*;
    let [low, high] = levels.map(|level| _mm512_set1_epi32(level.to_bits() as i32));
    let negative = _mm512_set1_epi32(i32::MIN);
    for (i, block) in values.iter_mut().enumerate() {
        let at = |bits: u64| (bits >> (16 * i)) as u16;
        let x = _mm512_mask_blend_epi32(at(larger), low, high);
        let x = _mm512_mask_or_epi32(x, at(signs), x, negative);
        // SAFETY: sixteen values.
        unsafe { _mm512_storeu_si512(block.as_mut_ptr().cast(), x) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_is_spread_has_these_signs() {
        let (larger, set) = (0x00f3_5a00_0001_8003, 0x8123_4567_89ab_cdef);
        for size in [1, 15, 16, 33, 64] {
            let known = u64::MAX >> (64 - size);
            for simd in crate::simd::Level::ALL.into_iter().filter(|&l| l <= crate::simd::detected()) {
                let mut values = vec![7.0; size];
                spread(simd, &mut values, larger, set, [0.5, 2.0]);
                assert_eq!(signs(simd, &values), set & known);
                let of = |i: usize| if larger >> i & 1 == 1 { 2.0 } else { 0.5 };
                assert!(values.iter().enumerate().all(|(i, v)| v.abs() == of(i)), "{size} at {}", simd.name());
            }
        }
    }
}
