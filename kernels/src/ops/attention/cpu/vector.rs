//! A register of f32 on each level, so that a loop over lanes is written once and is sure to become vectors.
//!
//! Methods are inlined into functions that enable the level's instructions; elsewhere they must not be called.

use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// `LANES` numbers.
///
/// Safety of every method: the CPU has the level's instructions; pointers are good for `LANES` (or `n`) elements.
pub(super) trait Vector: Copy {
    const LANES: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// The first `n` elements, `0 < n < LANES`, then zeros.
    unsafe fn load_part(from: *const f32, n: usize) -> Self;
    unsafe fn load_part_bf16(from: *const bf16, n: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_part(self, to: *mut f32, n: usize);
    /// Rounded to nearest, ties to even; a NaN stays one.
    unsafe fn store_bf16(self, to: *mut bf16);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// self·b + c, in one instruction where the level has it.
    unsafe fn multiply_add(self, b: Self, c: Self) -> Self;
    /// The larger; `b` where one is NaN.
    unsafe fn larger(self, b: Self) -> Self;
    /// `yes` where self < b, `no` elsewhere.
    unsafe fn if_less(self, b: Self, yes: Self, no: Self) -> Self;
    /// 2ⁿ where self is 1.5·2²³ + n.
    unsafe fn power(self) -> Self;
    /// All lanes, added by halves.
    unsafe fn sum(self) -> f32;
    /// The largest lane.
    unsafe fn max(self) -> f32;
}

const ONE: u32 = 1.0f32.to_bits();

/// Eight numbers in plain arithmetic.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Plain {
    #[inline(always)]
    fn each(self, b: Plain, f: impl Fn(f32, f32) -> f32) -> Plain {
        Plain(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// To nearest, ties to even; a NaN stays one.
#[inline(always)]
pub(super) fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let near = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    bf16::from_bits(if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { near })
}

impl Vector for Plain {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Plain {
        Plain([x; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Plain {
        // SAFETY: the trait's contract.
        Plain(unsafe { from.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Plain {
        // SAFETY: the trait's contract.
        Plain(unsafe { from.cast::<[bf16; 8]>().read() }.map(widen))
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> Plain {
        // SAFETY: the trait's contract.
        Plain(std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn load_part_bf16(from: *const bf16, n: usize) -> Plain {
        // SAFETY: the trait's contract.
        Plain(std::array::from_fn(|i| if i < n { widen(unsafe { *from.add(i) }) } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        for i in 0..n {
            // SAFETY: the trait's contract.
            unsafe { *to.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[bf16; 8]>().write(self.0.map(narrow)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Plain) -> Plain {
        self.each(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Plain) -> Plain {
        self.each(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Plain) -> Plain {
        self.each(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn multiply_add(self, b: Plain, c: Plain) -> Plain {
        self.each(b, |a, b| a * b).each(c, |ab, c| ab + c)
    }
    #[inline(always)]
    unsafe fn larger(self, b: Plain) -> Plain {
        self.each(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn if_less(self, b: Plain, yes: Plain, no: Plain) -> Plain {
        Plain(std::array::from_fn(|i| if self.0[i] < b.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    unsafe fn power(self) -> Plain {
        Plain(self.0.map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(ONE))))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let a: [f32; 4] = std::array::from_fn(|i| self.0[i] + self.0[i + 4]);
        (a[0] + a[2]) + (a[1] + a[3])
    }
    #[inline(always)]
    unsafe fn max(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the trait's contract; so below.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { Self::load(Plain::load_part(from, n).0.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_part_bf16(from: *const bf16, n: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { Self::load(Plain::load_part_bf16(from, n).0.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        let mut whole = [0.0; 8];
        // SAFETY: as above.
        unsafe {
            self.store(whole.as_mut_ptr());
            Plain(whole).store_part(to, n);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_castps_si256(self);
            let high = _mm256_srli_epi32::<16>(x);
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let near = _mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(self, self));
            let words = _mm256_blendv_epi8(_mm256_srli_epi32::<16>(near), quiet, nan);
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_sub_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn larger(self, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_max_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn if_less(self, b: __m256, yes: __m256, no: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(self, b)) }
    }
    #[inline(always)]
    unsafe fn power(self) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(self));
            _mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(ONE as i32)))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut whole = [0.0; 8];
        // SAFETY: as above.
        unsafe {
            self.store(whole.as_mut_ptr());
            Plain(whole).sum()
        }
    }
    #[inline(always)]
    unsafe fn max(self) -> f32 {
        let mut whole = [0.0; 8];
        // SAFETY: as above.
        unsafe {
            self.store(whole.as_mut_ptr());
            Plain(whole).max()
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the trait's contract; so below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize) -> __m512 {
        // SAFETY: as above; the mask names `n` elements.
        unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, from) }
    }
    #[inline(always)]
    unsafe fn load_part_bf16(from: *const bf16, n: usize) -> __m512 {
        // SAFETY: as above; the mask names `n` elements.
        unsafe {
            let x = _mm256_maskz_loadu_epi16((1 << n) - 1, from.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, n: usize) {
        // SAFETY: as above; the mask names `n` elements.
        unsafe { _mm512_mask_storeu_ps(to, (1 << n) - 1, self) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: as above.
        unsafe {
            let x = _mm512_castps_si512(self);
            let high = _mm512_srli_epi32::<16>(x);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let near = _mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self, self);
            let words = _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(near), nan, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    #[inline(always)]
    unsafe fn add(self, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn larger(self, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(self, b) }
    }
    #[inline(always)]
    unsafe fn if_less(self, b: __m512, yes: __m512, no: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, b), no, yes) }
    }
    #[inline(always)]
    unsafe fn power(self) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(self));
            _mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(ONE as i32)))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(self) }
    }
    #[inline(always)]
    unsafe fn max(self) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(self) }
    }
}
