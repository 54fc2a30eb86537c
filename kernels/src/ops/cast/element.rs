//! How the host reads and writes elements: f32 and bf16 alike, and one loop compiled for each set of instructions.
//!
//! Ops bound by memory are written once, as loops over slices that the compiler turns into vectors. They use plain IEEE
//! additions, multiplications, divisions and square roots, each rounded apart, and fixed lanes for sums; so each
//! [`Level`](crate::simd::Level) gives the same bits, and tests hold them equal.

use crate::tensor::{DType, Tensor};
use half::bf16;

/// A dtype of activations, as the loops see it: everything is computed in f32.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// The tensor's elements, which must be of this dtype.
    fn of(t: &Tensor) -> &[Self];
    /// The same, to write.
    fn of_mut(t: &mut Tensor) -> &mut [Self];
    /// Exact.
    fn wide(self) -> f32;
    /// To nearest, ties to even; NaN stays NaN.
    fn narrow(x: f32) -> Self;
}

impl Element for f32 {
    fn of(t: &Tensor) -> &[f32] {
        t.f32()
    }
    fn of_mut(t: &mut Tensor) -> &mut [f32] {
        t.f32_mut()
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    fn of(t: &Tensor) -> &[bf16] {
        t.bf16()
    }
    fn of_mut(t: &mut Tensor) -> &mut [bf16] {
        t.bf16_mut()
    }
    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        // Half a step less one, and one more where the kept half is odd: ties go to even. A carry out of the mantissa
        // lands in the exponent, as it should. A NaN could carry into infinity, so it is cut off and made quiet.
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
}

/// Whether `t` holds `D`.
pub(crate) fn holds<D: Element>(t: &Tensor) -> bool {
    t.dtype() == if size_of::<D>() == 2 { DType::Bf16 } else { DType::F32 }
}

/// Defines a function that takes a [`Level`](crate::simd::Level) first and runs the body compiled for it.
///
/// The body is inlined into one function for each level, with that level's instructions switched on.
macro_rules! per_level {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident [$($gen:ident: $bound:ident),*] ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$meta])*
        $vis fn $name<$($gen: $bound),*>(level: $crate::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($gen: $bound),*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512<$($gen: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2<$($gen: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                assert!(level <= $crate::simd::detected(), "{} asked for on a lesser CPU", level.name());
                match level {
                    // SAFETY: the CPU has what the level names, by the check above.
                    $crate::simd::Level::Avx512 | $crate::simd::Level::Avx512Bf16 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Portable => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            body($($arg),*)
        }
    )*};
}
pub(crate) use per_level;
