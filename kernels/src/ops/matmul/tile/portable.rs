//! The kernel that every machine has: plain loops that the compiler turns into vectors.

use super::{Dest, Fetch, In, Kernel, Major, Operand, store};
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
    tile_rows: None,
    tile_across: None,
    dots: dots::<false, false>,
};

pub(super) static WIDENED: Kernel =
    Kernel { pack_a: pack::<MR, true>, pack_b: pack::<NR, true>, dots: dots::<true, false>, ..F32 };

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
unsafe fn tile(steps: usize, a: *const u32, b: *const u32, dest: Dest, ldc: usize, rows: usize, cols: usize, _: Fetch) {
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

/// Safety: none needed; see [`super::Dots`]. `FUSED` says that the caller has enabled fused multiply-adds.
#[inline(always)]
pub(super) fn dots<const ROUND: bool, const FUSED: bool>(
    a: Operand<'_>,
    rows: usize,
    b: Operand<'_>,
    cols: usize,
    k: usize,
) -> [[f32; 4]; 4] {
    let plain = |x: f32| x;
    let rounded = |x: f32| if ROUND { bf16::from_f32(x).to_f32() } else { x };
    let mut sums = [[0.0; 4]; 4];
    for (i, sums) in sums.iter_mut().take(rows).enumerate() {
        for (j, sum) in sums.iter_mut().take(cols).enumerate() {
            *sum = match (a.data.from(i * a.ld), b.data.from(j * b.ld)) {
                (In::F32(a), In::F32(b)) => dot::<FUSED, _, _>(&a[..k], &b[..k], plain, plain),
                (In::F32(a), In::Bf16(b)) => dot::<FUSED, _, _>(&a[..k], &b[..k], rounded, bf16::to_f32),
                (In::Bf16(a), In::F32(b)) => dot::<FUSED, _, _>(&a[..k], &b[..k], bf16::to_f32, rounded),
                (In::Bf16(a), In::Bf16(b)) => dot::<FUSED, _, _>(&a[..k], &b[..k], bf16::to_f32, bf16::to_f32),
            };
        }
    }
    sums
}

/// Σ a·b in sixteen lanes.
#[inline(always)]
fn dot<const FUSED: bool, A: Copy, B: Copy>(a: &[A], b: &[B], of_a: impl Fn(A) -> f32, of_b: impl Fn(B) -> f32) -> f32 {
    const LANES: usize = 16;
    let add = |x: f32, y: f32, sum: f32| if FUSED { x.mul_add(y, sum) } else { multiply_add(x, y, sum) };
    let mut sums = [0f32; LANES];
    let (whole_a, whole_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (l, (&x, &y)) in whole_a.remainder().iter().zip(whole_b.remainder()).enumerate() {
        sums[l] = of_a(x) * of_b(y);
    }
    for (a, b) in whole_a.zip(whole_b) {
        for l in 0..LANES {
            sums[l] = add(of_a(a[l]), of_b(b[l]), sums[l]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}

/// a·b + c, fused where the machine does so in one instruction.
#[inline(always)]
pub(crate) fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}
