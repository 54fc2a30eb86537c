//! The record of a whole chunk of which 64 values are sent in the compact form, as nearly all are: each part of its 640
//! bits is taken at once from where it always lies.
//!
//! ```text
//! bit  0 marks   127 low bits   511 signs   575 rank of the larger ones   624 two levels
//! ```

use super::{super::scan::LANES, Fault, GROUP};
use crate::simd::Level;

/// Bytes of a record.
pub(super) const BYTES: usize = 80;

/// Whether the CPU has what [`read_places`] takes.
pub(super) fn readable(level: Level) -> bool {
    level >= Level::Avx512 && is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512vbmi2")
}

fn word(bytes: &[u8; BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The signs, a bit each.
pub(super) fn signs(bytes: &[u8; BYTES]) -> u64 {
    word(bytes, 63) >> 7 | u64::from(bytes[71]) << 57
}

/// The rank of the larger values' set, which may be none.
pub(super) fn rank(bytes: &[u8; BYTES]) -> u64 {
    word(bytes, 71) >> 7 & ((1 << 49) - 1)
}

/// The places: 127 bits of marks, then 64 times six bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2,popcnt")]
pub(super) fn read_places(bytes: &[u8; BYTES], places: &mut [u16; GROUP]) -> Result<(), Fault> {
    use std::arch::x86_64::*;
    const MARKS: usize = 2 * GROUP - 1;
    // Of each six bytes, these and the two after.
    const SIXES: [u8; GROUP] = {
        let (mut sixes, mut i) = ([0; GROUP], 0);
        while i < GROUP {
            sixes[i] = (i / 8 * 6 + i % 8) as u8;
            i += 1;
        }
        sixes
    };
    let (first, second) = (word(bytes, 0), word(bytes, 8) & u64::MAX >> 1);
    if first.count_ones() + second.count_ones() != GROUP as u32 {
        return Err(Fault::Places);
    }
    // SAFETY: each load and store is of 64 bytes that are there.
    unsafe {
        let lanes = _mm512_loadu_si512(LANES.as_ptr().cast());
        let past = _mm512_add_epi8(lanes, _mm512_set1_epi8(GROUP as i8));
        // Marks of the second word go behind those of the first, of which there may be 64.
        let found = first.count_ones();
        let behind = _mm512_sub_epi8(lanes, _mm512_set1_epi8(found as i8));
        let rest = u64::MAX.checked_shl(found).unwrap_or(0);
        let marks = _mm512_maskz_compress_epi8(first, lanes);
        let second = _mm512_maskz_compress_epi8(second, past);
        let marks = _mm512_mask_permutexvar_epi8(marks, rest, behind, second);
        let high = _mm512_sub_epi8(marks, lanes);

        // Eight places to a word, from the byte in which the first begins; bit 0 of all is bit 7 of a byte.
        let packed = _mm512_loadu_si512(bytes[MARKS / 8..].as_ptr().cast());
        let words = _mm512_permutexvar_epi8(_mm512_loadu_si512(SIXES.as_ptr().cast()), packed);
        let shifts = _mm512_set1_epi64(i64::from_le_bytes([7, 13, 19, 25, 31, 37, 43, 49]));
        let low = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, words), _mm512_set1_epi8(0x3f));

        // High bits cannot descend; where two are equal, low ones must ascend.
        let next = _mm512_add_epi8(lanes, _mm512_set1_epi8(1));
        let same = _mm512_cmpeq_epi8_mask(high, _mm512_permutexvar_epi8(next, high));
        let wrong = _mm512_mask_cmpge_epu8_mask(same, low, _mm512_permutexvar_epi8(next, low));
        if wrong & u64::MAX >> 1 != 0 {
            return Err(Fault::Order);
        }
        let wide = |high: __m256i, low: __m256i| {
            _mm512_or_si512(_mm512_slli_epi16::<6>(_mm512_cvtepu8_epi16(high)), _mm512_cvtepu8_epi16(low))
        };
        let halves = [
            wide(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low)),
            wide(_mm512_extracti64x4_epi64::<1>(high), _mm512_extracti64x4_epi64::<1>(low)),
        ];
        for (half, to) in halves.into_iter().zip(places.as_chunks_mut::<32>().0) {
            _mm512_storeu_si512(to.as_mut_ptr().cast(), half);
        }
    }
    Ok(())
}
