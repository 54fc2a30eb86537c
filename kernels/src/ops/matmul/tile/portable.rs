//! The kernel that every machine has: plain loops that the compiler turns into vectors.

use super::{Dest, In, Kernel, Major, Operand, store};
use half::bf16;

const MR: usize = 6;
const NR: usize = 8;

pub(super) static F32: Kernel = Kernel {
    mr: MR,
    nr: NR,
    pair: 1,
    block: 256,
    pack_a: pack::<MR, false>,
    pack_b: pack::<NR, false>,
    tile,
};

pub(super) static WIDENED: Kernel = Kernel { pack_a: pack::<MR, true>, pack_b: pack::<NR, true>, ..F32 };

/// Panels of `W` rows or columns, as f32; `ROUND` rounds an f32 source to bf16 first.
#[inline(always)]
pub(super) fn pack<const W: usize, const ROUND: bool>(src: Operand<'_>, outer: usize, k: usize, out: &mut [u32]) {
    match src.data {
        In::F32(x) if ROUND => copy::<W, f32>(x, src, outer, k, out, |v| bf16::from_f32(v).to_f32().to_bits()),
        In::F32(x) => copy::<W, f32>(x, src, outer, k, out, f32::to_bits),
        In::Bf16(x) => copy::<W, bf16>(x, src, outer, k, out, |v| u32::from(v.to_bits()) << 16),
    }
}

#[inline(always)]
fn copy<const W: usize, T: Copy>(
    x: &[T],
    src: Operand<'_>,
    outer: usize,
    k: usize,
    out: &mut [u32],
    word: impl Fn(T) -> u32,
) {
    for (p, panel) in out.chunks_exact_mut(W * k).enumerate() {
        let first = p * W;
        let width = W.min(outer - first);
        if width < W {
            panel.fill(0);
        }
        match src.major {
            Major::K => {
                for i in 0..width {
                    let row = &x[(first + i) * src.ld..][..k];
                    for (&v, to) in row.iter().zip(panel.chunks_exact_mut(W)) {
                        to[i] = word(v);
                    }
                }
            }
            Major::Outer => {
                for (kk, to) in panel.chunks_exact_mut(W).enumerate() {
                    let row = &x[kk * src.ld + first..][..width];
                    for (&v, to) in row.iter().zip(to) {
                        *to = word(v);
                    }
                }
            }
        }
    }
}

/// Safety: see [`super::Tile`].
unsafe fn tile(steps: usize, a: *const u32, b: *const u32, dest: Dest, ldc: usize, rows: usize, cols: usize) {
    // SAFETY: the panels hold that many words, and dest as stated, by the caller's promise.
    unsafe {
        let a = std::slice::from_raw_parts(a.cast::<[f32; MR]>(), steps);
        let b = std::slice::from_raw_parts(b.cast::<[f32; NR]>(), steps);
        let mut sums = [[0.0; NR]; MR];
        for (a, b) in a.iter().zip(b) {
            for i in 0..MR {
                for j in 0..NR {
                    sums[i][j] = multiply_add(a[i], b[j], sums[i][j]);
                }
            }
        }
        store(&sums[..rows], dest, ldc, cols);
    }
}

/// a·b + c, fused where the machine does so in one instruction.
#[inline(always)]
pub(crate) fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}
