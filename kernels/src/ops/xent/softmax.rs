//! The softmax of one row, on the row's own memory.
//!
//! Three passes: the largest logit; exp(z − max) in place and its sum; a product with scale / sum. A row of a usual
//! vocabulary stays in the second-level cache between them, and the second pass costs about as much as the others
//! together. The row is taken in blocks of 64, the last filled up with −∞, so that every element sees the same
//! operations; 64 sums run side by side and meet in a fixed tree.
//!
//! exp(x) = 2^k · exp(r), k = round(x / ln 2), |r| ≤ ln 2 / 2, exp(r) a polynomial of degree 5 fitted to the least
//! relative error (1.1e-7); 0 below −87. NaN stays NaN.

use super::IGNORE;
use crate::simd::{self, Level};

/// Elements of a block: four vectors of [`WIDTH`].
const BLOCK: usize = 4 * WIDTH;
/// Elements of a [`Lanes`].
const WIDTH: usize = 16;

/// Loss of a row of logits, which are left as they were.
pub(super) fn loss(z: &mut [f32], target: u32) -> f32 {
    if target == IGNORE {
        return 0.0;
    }
    let (max, sum) = stats::<false>(simd::level(), z);
    nll(max, sum, z[target as usize])
}

/// log Σ exp of a row of logits, which are left as they were, and the index of the largest, the lowest of equals.
pub(super) fn rank(z: &mut [f32]) -> (f32, u32) {
    let (max, sum) = stats::<false>(simd::level(), z);
    let best = z.iter().position(|&z| z == max).unwrap_or(0);
    ((f64::from(sum).ln() + f64::from(max)) as f32, best as u32)
}

/// Loss of a row of logits, which become their gradient times `scale`.
pub(super) fn gradient(z: &mut [f32], target: u32, scale: f32) -> f32 {
    if target == IGNORE {
        z.fill(0.0);
        return 0.0;
    }
    let hit = z[target as usize];
    let (max, sum) = stats::<true>(simd::level(), z);
    let factor = scale / sum;
    for z in z.iter_mut() {
        *z *= factor;
    }
    z[target as usize] -= scale;
    nll(max, sum, hit)
}

fn nll(max: f32, sum: f32, hit: f32) -> f32 {
    (f64::from(sum).ln() + f64::from(max) - f64::from(hit)) as f32
}

/// The largest of `z` (not empty), and the sum of exp(z − max), which `KEEP` leaves in `z`.
fn stats<const KEEP: bool>(level: Level, z: &mut [f32]) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the CPU has the instructions of `level` and of those below it.
    unsafe {
        if level >= Level::Avx512 {
            return x86::stats_avx512::<KEEP>(z);
        }
        if level >= Level::Avx2 {
            return x86::stats_avx2::<KEEP>(z);
        }
    }
    let _ = level;
    // SAFETY: `Portable` asks for nothing.
    unsafe { stats_of::<Portable, KEEP>(z) }
}

/// Sixteen f32 and what the softmax does with them.
///
/// Safety of all methods: the CPU has the instructions that the implementation names; pointers are good for `WIDTH`.
trait Lanes: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self · b + c`; whether rounded once is the implementation's.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The larger; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// To the nearest whole number; |self| < 2^22, or anything at all where the result is not used.
    unsafe fn round(self) -> Self;
    /// `self · 2^k`, but 0 where x < −87; −126 ≤ k ≤ 127 where the result is used.
    unsafe fn times_power(self, k: Self, x: Self) -> Self;
}

/// exp(x), x ≤ 0 or NaN.
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: as the caller's.
    unsafe {
        let k = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first exact in few bits, so that r loses nothing when k is large.
        let r = k.mul_add(L::splat(-0.693_359_4), x);
        let r = k.mul_add(L::splat(2.121_944_4e-4), r);
        let q = r.mul_add(L::splat(0.008_312_502), L::splat(0.041_890_33));
        let q = r.mul_add(q, L::splat(0.166_671_16));
        let q = r.mul_add(q, L::splat(0.499_992_3));
        let q = r.mul_add(q, L::splat(1.0));
        let q = r.mul_add(q, L::splat(1.0));
        q.times_power(k, x)
    }
}

/// [`stats`] by one implementation of [`Lanes`].
///
/// # Safety
/// The CPU has the instructions that `L` names.
#[inline(always)]
unsafe fn stats_of<L: Lanes, const KEEP: bool>(z: &mut [f32]) -> (f32, f32) {
    let whole = z.len() / BLOCK * BLOCK;
    let mut last = [f32::NEG_INFINITY; BLOCK];
    last[..z.len() - whole].copy_from_slice(&z[whole..]);
    // SAFETY: every block lies inside `z` or is `last`; the instructions by the caller's promise.
    unsafe {
        let mut tops = [L::splat(f32::NEG_INFINITY); 4];
        for block in z[..whole].chunks_exact(BLOCK) {
            raise(&mut tops, block.as_ptr());
        }
        raise(&mut tops, last.as_ptr());
        let max = lanes(tops).into_iter().fold(f32::NEG_INFINITY, f32::max);

        let mut sums = [L::splat(0.0); 4];
        let shift = L::splat(max);
        for block in z[..whole].chunks_exact_mut(BLOCK) {
            powers::<L, KEEP>(&mut sums, shift, block.as_mut_ptr());
        }
        powers::<L, KEEP>(&mut sums, shift, last.as_mut_ptr());
        if KEEP {
            let rest = z.len() - whole;
            z[whole..].copy_from_slice(&last[..rest]);
        }
        let mut tree = lanes(sums);
        let mut half = BLOCK / 2;
        while half > 0 {
            for i in 0..half {
                tree[i] += tree[i + half];
            }
            half /= 2;
        }
        (max, tree[0])
    }
}

/// Each of `tops` becomes the larger of itself and its vector of the block.
#[inline(always)]
unsafe fn raise<L: Lanes>(tops: &mut [L; 4], block: *const f32) {
    for (i, top) in tops.iter_mut().enumerate() {
        // SAFETY: a block holds four vectors; the instructions by the caller's promise.
        *top = unsafe { L::load(block.add(i * WIDTH)).max(*top) };
    }
}

/// Adds exp(z − shift) of the block to `sums`; `KEEP` leaves it in the block.
#[inline(always)]
unsafe fn powers<L: Lanes, const KEEP: bool>(sums: &mut [L; 4], shift: L, block: *mut f32) {
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: as in `raise`.
        unsafe {
            let e = exp(L::load(block.add(i * WIDTH)).sub(shift));
            if KEEP {
                e.store(block.add(i * WIDTH));
            }
            *sum = sum.add(e);
        }
    }
}

/// The elements of four vectors.
#[inline(always)]
unsafe fn lanes<L: Lanes>(vectors: [L; 4]) -> [f32; BLOCK] {
    let mut out = [0.0; BLOCK];
    for (i, v) in vectors.into_iter().enumerate() {
        // SAFETY: `out` has room for four; the instructions by the caller's promise.
        unsafe { v.store(out.as_mut_ptr().add(i * WIDTH)) };
    }
    out
}

/// What the language gives: multiplies and adds are rounded apart.
#[derive(Clone, Copy)]
struct Portable([f32; WIDTH]);

impl Portable {
    #[inline(always)]
    fn each(self, f: impl Fn(usize, f32) -> f32) -> Portable {
        Portable(std::array::from_fn(|i| f(i, self.0[i])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; WIDTH])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: good for `WIDTH` by the caller's promise; an array of f32 needs no more alignment than an f32.
        Portable(unsafe { from.cast::<[f32; WIDTH]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as in `load`.
        unsafe { to.cast::<[f32; WIDTH]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(|i, x| x + other.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.each(|i, x| x - other.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.each(|i, x| x * other.0[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        self.each(|i, x| x * b.0[i] + c.0[i])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.each(|i, x| if x > other.0[i] { x } else { other.0[i] })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Between 2^23 and 2^24 an f32 has no fraction.
        let shift = 1.5 * (1u32 << 23) as f32;
        self.each(|_, x| (x + shift) - shift)
    }
    #[inline(always)]
    unsafe fn times_power(self, k: Self, x: Self) -> Self {
        // k + 1.5 · 2^23 holds k in its low bits.
        let shift = 1.5 * (1u32 << 23) as f32;
        self.each(|i, e| {
            let power = f32::from_bits((k.0[i] + shift).to_bits().wrapping_add(127) << 23);
            if x.0[i] < -87.0 { 0.0 } else { e * power }
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, stats_of};
    use std::arch::x86_64::*;

    /// # Safety
    /// The CPU has AVX-512 F.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn stats_avx512<const KEEP: bool>(z: &mut [f32]) -> (f32, f32) {
        // SAFETY: by the caller's promise.
        unsafe { stats_of::<Avx512, KEEP>(z) }
    }

    /// # Safety
    /// The CPU has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn stats_avx2<const KEEP: bool>(z: &mut [f32]) -> (f32, f32) {
        // SAFETY: by the caller's promise.
        unsafe { stats_of::<Avx2, KEEP>(z) }
    }

    /// AVX-512 F.
    #[derive(Clone, Copy)]
    struct Avx512(__m512);

    /// AVX2 and FMA.
    #[derive(Clone, Copy)]
    struct Avx2(__m256, __m256);

    /// Methods of [`Lanes`], each made of intrinsics of the implementation.
    macro_rules! methods {
        ($($name:ident($($arg:ident $(: $of:ty)?),*) -> $out:ty = $body:expr;)*) => {$(
            #[inline(always)]
            unsafe fn $name($($arg $(: $of)?),*) -> $out {
                // SAFETY: the caller has the instructions, and its pointers are good for sixteen f32.
                unsafe { $body }
            }
        )*};
    }

    impl Lanes for Avx512 {
        methods! {
            splat(x: f32) -> Self = Avx512(_mm512_set1_ps(x));
            load(from: *const f32) -> Self = Avx512(_mm512_loadu_ps(from));
            store(self, to: *mut f32) -> () = _mm512_storeu_ps(to, self.0);
            add(self, other: Self) -> Self = Avx512(_mm512_add_ps(self.0, other.0));
            sub(self, other: Self) -> Self = Avx512(_mm512_sub_ps(self.0, other.0));
            mul(self, other: Self) -> Self = Avx512(_mm512_mul_ps(self.0, other.0));
            mul_add(self, b: Self, c: Self) -> Self = Avx512(_mm512_fmadd_ps(self.0, b.0, c.0));
            max(self, other: Self) -> Self = Avx512(_mm512_max_ps(self.0, other.0));
            round(self) -> Self = Avx512(_mm512_roundscale_ps::<0>(self.0));
            times_power(self, k: Self, x: Self) -> Self = {
                let wanted = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, _mm512_set1_ps(-87.0));
                Avx512(_mm512_maskz_scalef_ps(wanted, self.0, k.0))
            };
        }
    }

    impl Lanes for Avx2 {
        methods! {
            splat(x: f32) -> Self = Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x));
            load(from: *const f32) -> Self = Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)));
            store(self, to: *mut f32) -> () = {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            };
            add(self, other: Self) -> Self = Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1));
            sub(self, other: Self) -> Self = Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1));
            mul(self, other: Self) -> Self = Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1));
            mul_add(self, b: Self, c: Self) -> Self =
                Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1));
            max(self, other: Self) -> Self = Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1));
            round(self) -> Self = Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1));
            times_power(self, k: Self, x: Self) -> Self =
                Avx2(times_power(self.0, k.0, x.0), times_power(self.1, k.1, x.1));
        }
    }

    /// Rounding to nearest, ties to even, without a flag.
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

    /// [`Lanes::times_power`] of half the elements.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn times_power(e: __m256, k: __m256, x: __m256) -> __m256 {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127));
        let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased));
        let wanted = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(-87.0));
        _mm256_and_ps(_mm256_mul_ps(e, power), wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::draw;

    fn levels() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|&l| l <= simd::detected())
    }

    #[test]
    fn every_level_agrees_with_f64() {
        for level in levels() {
            for len in [1, 2, 15, 16, 63, 64, 65, 128, 1000, 4133] {
                let z: Vec<f32> = draw(len as u64, len).iter().map(|z| z * 9.0).collect();
                let mut e = z.clone();
                let (max, sum) = stats::<true>(level, &mut e);
                assert_eq!(max, z.iter().copied().fold(f32::MIN, f32::max));
                let mut want = 0.0;
                for (&z, &e) in z.iter().zip(&e) {
                    let exact = f64::from(z - max).exp();
                    assert!((f64::from(e) - exact).abs() <= 2.5e-7 * exact, "{level:?} exp({z} - {max}) = {e}");
                    want += exact;
                }
                assert!((f64::from(sum) - want).abs() <= 1e-6 * want, "{level:?} sum of {len}: {sum}, {want}");
                let mut same = z.clone();
                assert_eq!((max.to_bits(), sum.to_bits()), {
                    let (max, sum) = stats::<false>(level, &mut same);
                    (max.to_bits(), sum.to_bits())
                });
                assert_eq!(same, z);
            }
        }
    }

    #[test]
    fn an_element_has_one_value_wherever_it_stands() {
        for level in levels() {
            let z: Vec<f32> = draw(3, 67).iter().map(|z| z * 5.0 - 30.0).collect();
            let mut whole = z.clone();
            whole.push(0.0);
            stats::<true>(level, &mut whole);
            for (i, &z) in z.iter().enumerate() {
                let mut alone = [z, 0.0];
                stats::<true>(level, &mut alone);
                assert_eq!(alone[0].to_bits(), whole[i].to_bits(), "{level:?} {z}");
            }
        }
    }

    #[test]
    fn far_below_is_zero_and_what_is_no_number_stays() {
        for level in levels() {
            let mut z = [0.0, -86.9, -87.1, -1e4, -3e38, f32::NEG_INFINITY, 0.0];
            let (_, sum) = stats::<true>(level, &mut z);
            assert!(z[1] > 0.0 && z[2..6] == [0.0; 4] && sum >= 2.0, "{level:?} {z:?}");
            for odd in [f32::NAN, f32::INFINITY] {
                let mut z = [1.0, odd, -5.0];
                assert!(stats::<true>(level, &mut z).1.is_nan(), "{level:?} {odd}");
            }
        }
    }
}
