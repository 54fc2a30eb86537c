//! AVX2 and FMA: a tile of 6 by 16 in twelve accumulators.

use super::{Dest, Fetch, Kernel, Operand, portable, store};
use std::arch::x86_64::*;

const MR: usize = 6;
const NR: usize = 16;

pub(super) static F32: Kernel = Kernel {
    mr: MR,
    nr: NR,
    pair: 1,
    block: 256,
    pack_a: pack::<MR, false>,
    pack_b: pack::<NR, false>,
    tile,
    tile_rows: None,
    tile_across: None,
    dots: dots::<false>,
};

pub(super) static WIDENED: Kernel =
    Kernel { pack_a: pack::<MR, true>, pack_b: pack::<NR, true>, dots: dots::<true>, ..F32 };

/// Safety: see [`super::Pack`].
#[target_feature(enable = "avx2,fma")]
unsafe fn pack<const W: usize, const ROUND: bool>(src: Operand<'_>, outer: usize, k: usize, out: &mut [u32]) {
    portable::pack::<W, ROUND>(src, outer, k, out);
}

/// Safety: see [`super::Dots`].
#[target_feature(enable = "avx2,fma")]
unsafe fn dots<const ROUND: bool>(a: Operand<'_>, rows: usize, b: Operand<'_>, cols: usize, k: usize) -> [[f32; 4]; 4] {
    portable::dots::<ROUND, true>(a, rows, b, cols, k)
}

/// Safety: see [`super::Tile`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile(steps: usize, a: *const u32, b: *const u32, dest: Dest, ldc: usize, rows: usize, cols: usize, _: Fetch) {
    // SAFETY: passed on as promised by the caller; `rows` picks the version for that many.
    unsafe {
        match rows {
            1 => rows_of::<1>(steps, a, b, dest, ldc, cols),
            2 => rows_of::<2>(steps, a, b, dest, ldc, cols),
            3 => rows_of::<3>(steps, a, b, dest, ldc, cols),
            4 => rows_of::<4>(steps, a, b, dest, ldc, cols),
            5 => rows_of::<5>(steps, a, b, dest, ldc, cols),
            _ => rows_of::<6>(steps, a, b, dest, ldc, cols),
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn rows_of<const R: usize>(steps: usize, a: *const u32, b: *const u32, dest: Dest, ldc: usize, cols: usize) {
    let (mut a, mut b) = (a.cast::<f32>(), b.cast::<f32>());
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for _ in 0..steps {
        // SAFETY: the panels hold `steps` steps of MR and NR words.
        unsafe {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for i in 0..R {
                let x = _mm256_broadcast_ss(&*a.add(i));
                sums[i][0] = _mm256_fmadd_ps(x, b0, sums[i][0]);
                sums[i][1] = _mm256_fmadd_ps(x, b1, sums[i][1]);
            }
            (a, b) = (a.add(MR), b.add(NR));
        }
    }
    let mut spilt = [[0.0; NR]; R];
    for i in 0..R {
        // SAFETY: a row of `spilt` has 16 elements; `store` as promised by the caller.
        unsafe {
            _mm256_storeu_ps(spilt[i].as_mut_ptr(), sums[i][0]);
            _mm256_storeu_ps(spilt[i].as_mut_ptr().add(8), sums[i][1]);
        }
    }
    // SAFETY: as promised by the caller.
    unsafe { store(&spilt, dest, ldc, cols) }
}
