//! The loops over lanes, written once over [`Vector`]; `lanes.rs` compiles them for each level.
//!
//! exp(scale·s − m) is 2^(c·s − m·log₂e) with c = scale·log₂e: one multiply-add, then [`exp2`]. What the rounding of the
//! exponent x adds, |x|·2⁻²⁴, is no more than what the rounding of a score did.

use super::{
    lanes::{Also, NONE, Rows, Running, Seen},
    vector::{Vector, narrow},
};
use crate::simd::fetch_near;
use half::bf16;
use std::f32::consts::{LN_2, LOG2_E};

/// An element that a vector can be made of.
pub(super) trait Element: Copy {
    /// Safety: as [`Vector::load`].
    unsafe fn load<V: Vector>(from: *const Self) -> V;
    /// Safety: as [`Vector::load_part`].
    unsafe fn load_part<V: Vector>(from: *const Self, n: usize) -> V;
    /// Safety: as [`Vector::store`].
    unsafe fn store<V: Vector>(x: V, to: *mut Self);
    fn of(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
    #[inline(always)]
    unsafe fn load_part<V: Vector>(from: *const f32, n: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_part(from, n) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(x: V, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { x.store(to) }
    }
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const bf16) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn load_part<V: Vector>(from: *const bf16, n: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_part_bf16(from, n) }
    }
    #[inline(always)]
    unsafe fn store<V: Vector>(x: V, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { x.store_bf16(to) }
    }
    #[inline(always)]
    fn of(x: f32) -> bf16 {
        narrow(x)
    }
}

// Safety of what follows: the CPU has the level's instructions, and lengths are as the methods of `Lanes` check.

/// 2^x for x below 128, to 1.4 ulp; 0 below −126.5, where a result would be denormal. NaN stays NaN.
///
/// x = n + r with |r| ≤ 1/2; 2^r by the polynomial of degree 5 with the least largest relative error there among those
/// that begin with 1 + r·ln 2 (Lawson's weighted least squares; 0.9 ulp before rounding); 2ⁿ by its bits.
#[inline(always)]
unsafe fn exp2<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let x = V::splat(-127.0).larger(x);
        // Adding 1.5·2²³ leaves the nearest whole number in the low bits.
        let round = V::splat(12_582_912.0);
        let shifted = x.add(round);
        let r = x.sub(shifted.sub(round));
        let mut p = V::splat(1.330_138_2e-3);
        for c in [9.669_731e-3, 0.055_505_566, 0.240_222_81, LN_2, 1.0] {
            p = p.multiply_add(r, V::splat(c));
        }
        p.mul(shifted.power())
    }
}

/// Rows that a write asks for ahead; see [`COPY_AHEAD`].
const WRITE_AHEAD: usize = 4;

#[inline(always)]
pub(super) unsafe fn write<V: Vector, T: Element>(from: &[f32], by: &[f32], width: usize, to: *mut T, ld: usize) {
    let whole = width / V::LANES * V::LANES;
    for (r, (from, &by)) in from.chunks_exact(from.len() / by.len()).zip(by).enumerate() {
        // SAFETY: the caller's promise: row r of `to` is this thread's.
        unsafe {
            let to = to.add(r * ld);
            for c in (0..whole).step_by(V::LANES) {
                fetch_near(to.wrapping_add(WRITE_AHEAD * ld + c));
                T::store(V::load(from.as_ptr().add(c)).mul(V::splat(by)), to.add(c));
            }
            for c in whole..width {
                *to.add(c) = T::of(from[c] * by);
            }
        }
    }
}

/// 0, 1, 2, .. in the lanes of `W` vectors.
#[inline(always)]
unsafe fn count<V: Vector, const W: usize>() -> [V; W] {
    let numbers: [f32; 32] = std::array::from_fn(|i| i as f32);
    // SAFETY: no level has more than 32 lanes in a row.
    std::array::from_fn(|w| unsafe { V::load(numbers.as_ptr().add(w * V::LANES)) })
}

/// A row of `W` vectors.
#[inline(always)]
unsafe fn row<V: Vector, const W: usize>(from: *const f32) -> [V; W] {
    // SAFETY: the caller's promise.
    std::array::from_fn(|w| unsafe { V::load(from.add(w * V::LANES)) })
}

#[inline(always)]
unsafe fn put<V: Vector, const W: usize>(row: [V; W], to: *mut f32) {
    for w in 0..W {
        // SAFETY: the caller's promise.
        unsafe { row[w].store(to.add(w * V::LANES)) }
    }
}

#[inline(always)]
pub(super) unsafe fn mask<V: Vector, const W: usize>(s: &mut [f32], seen: &Seen<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        let (lane, first) = (count::<V, W>(), row::<V, W>(seen.first.as_ptr()));
        let none = V::splat(f32::NEG_INFINITY);
        let trunk = seen.trunk.map(|[begin, end]| (row::<V, W>(begin.as_ptr()), row::<V, W>(end.as_ptr())));
        for (r, s) in s.chunks_exact_mut(W * V::LANES).enumerate() {
            let mut x = row::<V, W>(s.as_ptr());
            // Lane j sees key from first_j on, and up to query + j.
            let key = V::splat((seen.key + r) as f32);
            let from = V::splat((seen.key + r) as f32 - seen.query as f32);
            for w in 0..W {
                let before = match &trunk {
                    None => none,
                    Some((begin, end)) => key.if_less(begin[w], none, key.if_less(end[w], x[w], none)),
                };
                x[w] = key.if_less(first[w], before, lane[w].if_less(from, none, x[w]));
            }
            put(x, s.as_mut_ptr());
        }
    }
}

#[inline(always)]
pub(super) unsafe fn softmax<V: Vector, const W: usize>(s: &mut [f32], scale: f32, run: Running<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut top = [V::splat(f32::NEG_INFINITY); W];
        for s in s.chunks_exact(W * V::LANES) {
            let x = row::<V, W>(s.as_ptr());
            for w in 0..W {
                top[w] = x[w].larger(top[w]);
            }
        }
        let scale = V::splat(scale * LOG2_E);
        let old = row::<V, W>(run.max.as_ptr());
        let (mut new, mut fade) = (old, old);
        for w in 0..W {
            new[w] = top[w].mul(scale).larger(old[w]);
            fade[w] = exp2(old[w].sub(new[w]));
        }
        put(new, run.max.as_mut_ptr());
        put(fade, run.fade.as_mut_ptr());
        let minus = new.map(|x| V::splat(0.0).sub(x));
        let mut added = [V::splat(0.0); W];
        for s in s.chunks_exact_mut(W * V::LANES) {
            let mut x = row::<V, W>(s.as_ptr());
            for w in 0..W {
                x[w] = exp2(x[w].multiply_add(scale, minus[w]));
                added[w] = added[w].add(x[w]);
            }
            put(x, s.as_mut_ptr());
        }
        let mut sum = row::<V, W>(run.sum.as_ptr());
        for w in 0..W {
            sum[w] = sum[w].mul(fade[w]).add(added[w]);
        }
        put(sum, run.sum.as_mut_ptr());
    }
}

#[inline(always)]
pub(super) unsafe fn rescale<V: Vector, const W: usize>(acc: &mut [f32], fade: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let fade = row::<V, W>(fade.as_ptr());
        for acc in acc.chunks_exact_mut(W * V::LANES) {
            let mut x = row::<V, W>(acc.as_ptr());
            for w in 0..W {
                x[w] = x[w].mul(fade[w]);
            }
            put(x, acc.as_mut_ptr());
        }
    }
}

#[inline(always)]
pub(super) unsafe fn gradients<V: Vector, const W: usize>(
    s: &mut [f32],
    dp: &mut [f32],
    mut also: Also<'_>,
    scale: f32,
    rows: &Rows<'_>,
) {
    let width = W * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let (lane, scale, zero) = (count::<V, W>(), V::splat(scale * LOG2_E), V::splat(0.0));
        for (r, (s, dp)) in s.chunks_exact_mut(width).zip(dp.chunks_exact_mut(width)).enumerate() {
            let (minus, delta) = (V::splat(-rows.lse[r] * LOG2_E), V::splat(rows.delta[r]));
            let (mut p, mut ds) = (row::<V, W>(s.as_ptr()), row::<V, W>(dp.as_ptr()));
            for w in 0..W {
                p[w] = exp2(p[w].multiply_add(scale, minus));
                ds[w] = p[w].mul(ds[w].sub(delta));
            }
            let first = rows.first.get(r).map_or(0, |&f| f as usize);
            let last = rows.query + r;
            if first > rows.key || last < rows.key + width - 1 {
                let from = V::splat(first as f32 - rows.key as f32);
                let to = V::splat(last as f32 - rows.key as f32);
                for w in 0..W {
                    let seen = |x: V| lane[w].if_less(from, zero, to.if_less(lane[w], zero, x));
                    (p[w], ds[w]) = (seen(p[w]), seen(ds[w]));
                }
            }
            put(p, s.as_mut_ptr());
            put(ds, dp.as_mut_ptr());
            if let Some((to, ld)) = &mut also {
                put(ds, to.as_mut_ptr().add(r * *ld));
            }
        }
    }
}

/// Rows that a copy asks for ahead: a store waits for its line when that is in L2, and those behind it wait too.
const COPY_AHEAD: usize = 6;

#[inline(always)]
pub(super) unsafe fn copied<V: Vector>(
    from: *const f32,
    ld: usize,
    rows: usize,
    width: usize,
    to: &mut [f32],
    to_ld: usize,
) {
    let (whole, rest) = (width / V::LANES * V::LANES, width % V::LANES);
    // Two rows side by side, the last perhaps twice: short rows one by one would each be a call of memcpy.
    for r in (0..rows).step_by(2) {
        let second = (r + 1).min(rows - 1);
        // SAFETY: the caller's promise.
        unsafe {
            let from = [from.add(r * ld), from.add(second * ld)];
            let to = [to.as_mut_ptr().add(r * to_ld), to.as_mut_ptr().add(second * to_ld)];
            for c in (0..whole).step_by(V::LANES) {
                fetch_near(to[0].wrapping_add(COPY_AHEAD * to_ld + c));
                fetch_near(to[1].wrapping_add(COPY_AHEAD * to_ld + c));
                fetch_near(from[0].wrapping_add(COPY_AHEAD * ld + c));
                fetch_near(from[1].wrapping_add(COPY_AHEAD * ld + c));
                let (x, y) = (V::load(from[0].add(c)), V::load(from[1].add(c)));
                x.store(to[0].add(c));
                y.store(to[1].add(c));
            }
            if rest > 0 {
                for i in 0..2 {
                    V::load_part(from[i].add(whole), rest).store_part(to[i].add(whole), rest);
                }
            }
        }
    }
}

/// Rows of b of which dot products are made side by side.
const SIDE: usize = 4;

#[inline(always)]
pub(super) unsafe fn dots<V: Vector, T: Element>(q: &[T], b: &[T], ld: usize, s: &mut [f32]) {
    for (n, s) in s.chunks_mut(SIDE).enumerate() {
        let b = b[n * SIDE * ld..].as_ptr();
        // SAFETY: the caller's promise: `s.len()` rows of b from here on hold `q.len()` elements.
        unsafe {
            match s.len() {
                1 => dots_of::<V, T, 1>(q, b, ld, s),
                2 => dots_of::<V, T, 2>(q, b, ld, s),
                3 => dots_of::<V, T, 3>(q, b, ld, s),
                _ => dots_of::<V, T, SIDE>(q, b, ld, s),
            }
        }
    }
}

#[inline(always)]
unsafe fn dots_of<V: Vector, T: Element, const R: usize>(q: &[T], b: *const T, ld: usize, s: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (whole, rest) = (q.len() / V::LANES * V::LANES, q.len() % V::LANES);
        let mut sums = [V::splat(0.0); R];
        for c in (0..whole).step_by(V::LANES) {
            let x: V = T::load(q.as_ptr().add(c));
            for r in 0..R {
                sums[r] = x.multiply_add(T::load(b.add(r * ld + c)), sums[r]);
            }
        }
        if rest > 0 {
            let x: V = T::load_part(q.as_ptr().add(whole), rest);
            for r in 0..R {
                sums[r] = x.multiply_add(T::load_part(b.add(r * ld + whole), rest), sums[r]);
            }
        }
        for r in 0..R {
            s[r] = sums[r].sum();
        }
    }
}

#[inline(always)]
pub(super) unsafe fn add_rows<V: Vector, T: Element>(p: &[f32], v: &[T], ld: usize, to: &mut [f32]) {
    let (v, width, mut c) = (v.as_ptr(), to.len(), 0);
    // SAFETY: the caller's promise: `p.len()` rows of v hold `width` elements.
    unsafe {
        while c < width {
            let (left, to, v) = (width - c, to.as_mut_ptr().add(c), v.add(c));
            c += match left / V::LANES {
                0 => add_rest::<V, T>(p, v, ld, to, left),
                1 => add_vectors::<V, T, 1>(p, v, ld, to),
                2 | 3 => add_vectors::<V, T, 2>(p, v, ld, to),
                4..=7 => add_vectors::<V, T, 4>(p, v, ld, to),
                _ => add_vectors::<V, T, 8>(p, v, ld, to),
            };
        }
    }
}

/// The next `N` vectors of every row; returns how many columns that is.
#[inline(always)]
unsafe fn add_vectors<V: Vector, T: Element, const N: usize>(p: &[f32], v: *const T, ld: usize, to: *mut f32) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = row::<V, N>(to);
        for (j, &p) in p.iter().enumerate() {
            let p = V::splat(p);
            for n in 0..N {
                sums[n] = p.multiply_add(T::load(v.add(j * ld + n * V::LANES)), sums[n]);
            }
        }
        put(sums, to);
    }
    N * V::LANES
}

/// The last `n` columns, less than a vector.
#[inline(always)]
unsafe fn add_rest<V: Vector, T: Element>(p: &[f32], v: *const T, ld: usize, to: *mut f32, n: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = V::load_part(to, n);
        for (j, &p) in p.iter().enumerate() {
            sum = V::splat(p).multiply_add(T::load_part(v.add(j * ld), n), sum);
        }
        sum.store_part(to, n);
    }
    n
}

#[inline(always)]
pub(super) unsafe fn exp_row<V: Vector>(s: &mut [f32], scale: f32) -> (f32, f32) {
    // SAFETY: all loads and stores are of chunks of `s`.
    unsafe {
        let mut top = V::splat(NONE);
        let whole = s.len() / V::LANES * V::LANES;
        for s in s.chunks_exact(V::LANES) {
            top = V::load(s.as_ptr()).larger(top);
        }
        let scale = scale * LOG2_E;
        let max = s[whole..].iter().fold(top.max(), |a, &b| if b > a { b } else { a }) * scale;
        let (by, minus) = (V::splat(scale), V::splat(-max));
        let mut sum = V::splat(0.0);
        for s in s.chunks_exact_mut(V::LANES) {
            let x = exp2(V::load(s.as_ptr()).multiply_add(by, minus));
            x.store(s.as_mut_ptr());
            sum = sum.add(x);
        }
        let rest = &mut s[whole..];
        if !rest.is_empty() {
            // Lanes past the end get −∞, and so add 2^−∞ = 0.
            let n = rest.len();
            let (x, lane) = (V::load_part(rest.as_ptr(), n), count::<V, 1>()[0]);
            let x = lane.if_less(V::splat(n as f32), x, V::splat(f32::NEG_INFINITY));
            let x = exp2(x.multiply_add(by, minus));
            x.store_part(rest.as_mut_ptr(), n);
            sum = sum.add(x);
        }
        (max, sum.sum())
    }
}
