//! The element-wise part of attention, written once over [`Vector`] and compiled for each set of vector instructions.
//!
//! A tile of scores is `[rows][nr]`: `nr` is the width of the matmul kernel's panels, so that a finished tile is already
//! packed as the right operand of the next product. No value passes from one lane to another, and each element sees one
//! sequence of operations wherever it stands. Positions are compared as f32, exact up to 2²⁴.
//!
//! exp(scale·s − m) is 2^(c·s − m·log₂e) with c = scale·log₂e: one multiply-add, then [`exp2`]. What the rounding of the
//! exponent x adds, |x|·2⁻²⁴, is no more than what the rounding of a score did.

use super::{
    Sink,
    ahead::fetch_near,
    vector::{Plain, Vector, narrow},
};
use crate::{ops::matmul::tile::In, simd::Level};
use half::bf16;
use std::f32::consts::LOG2_E;

/// Below any score, and finite: a running maximum starts here, and `NONE − NONE` is 0.
pub(super) const NONE: f32 = -1e30;

/// The routines of one level. Fields are for `lanes`; the methods check lengths.
pub(super) struct Lanes {
    /// Lanes of a row of scores.
    pub nr: usize,
    mask: unsafe fn(&mut [f32], &Seen<'_>),
    softmax: unsafe fn(&mut [f32], f32, Running<'_>),
    rescale: unsafe fn(&mut [f32], &[f32]),
    gradients: unsafe fn(&mut [f32], &mut [f32], Option<(&mut [f32], usize)>, f32, &Rows<'_>),
    copied: unsafe fn(*const f32, usize, usize, usize, &mut [f32], usize),
    scaled: unsafe fn(&[f32], &[f32], usize, *mut f32, usize),
    narrowed: unsafe fn(&[f32], &[f32], usize, *mut bf16, usize),
    dots: unsafe fn(&[f32], &[f32], usize, &mut [f32]),
    dots_bf16: unsafe fn(&[bf16], &[bf16], usize, &mut [f32]),
    add_rows: unsafe fn(&[f32], &[f32], usize, &mut [f32]),
    add_rows_bf16: unsafe fn(&[f32], &[bf16], usize, &mut [f32]),
    exp_row: unsafe fn(&mut [f32], f32) -> (f32, f32),
}

/// Which of a tile's pairs count: row r is key `key + r`, lane j is query `query + j`.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    /// Key of row 0.
    pub key: usize,
    /// Query of lane 0.
    pub query: usize,
    /// First key of its own that each lane sees, `nr` of them.
    pub first: &'a [f32],
    /// Begin and end of the other keys that each lane sees, `nr` of them.
    pub trunk: Option<[&'a [f32]; 2]>,
}

/// The online softmax of `nr` queries.
#[derive(Debug)]
pub(super) struct Running<'a> {
    /// Largest score so far, times scale·log₂e.
    pub max: &'a mut [f32],
    /// Σ 2^(scale·log₂e·s − max) so far.
    pub sum: &'a mut [f32],
    /// Set: what older sums are to be multiplied with.
    pub fade: &'a mut [f32],
}

/// The queries of a tile whose rows are queries and whose lanes are keys.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    /// Query of row 0.
    pub query: usize,
    /// Key of lane 0.
    pub key: usize,
    /// First key that each row sees; empty: 0 for all.
    pub first: &'a [u32],
    /// lse of each row.
    pub lse: &'a [f32],
    /// δ of each row.
    pub delta: &'a [f32],
}

impl Lanes {
    /// Sets scores of pairs that do not count to −∞.
    pub(super) fn mask(&self, s: &mut [f32], seen: &Seen<'_>) {
        assert!(s.len().is_multiple_of(self.nr) && seen.first.len() == self.nr, "attention: mask");
        assert!(seen.trunk.iter().flatten().all(|t| t.len() == self.nr), "attention: mask");
        // SAFETY: `lanes` gave this table for a level that the CPU has.
        unsafe { (self.mask)(s, seen) }
    }

    /// Scores become 2^(scale·log₂e·s − max), with the maximum brought up to date.
    pub(super) fn softmax(&self, s: &mut [f32], scale: f32, run: Running<'_>) {
        let n = self.nr;
        assert!(s.len().is_multiple_of(n), "attention: softmax");
        assert!(run.max.len() == n && run.sum.len() == n && run.fade.len() == n, "attention: softmax");
        // SAFETY: as above.
        unsafe { (self.softmax)(s, scale, run) }
    }

    /// Multiplies each row by `fade`.
    pub(super) fn rescale(&self, acc: &mut [f32], fade: &[f32]) {
        assert!(acc.len().is_multiple_of(self.nr) && fade.len() == self.nr, "attention: rescale");
        // SAFETY: as above.
        unsafe { (self.rescale)(acc, fade) }
    }

    /// s becomes p, and dp becomes ds / scale; `also`, where there is one, gets the rows of ds / scale too, that many
    /// elements apart.
    pub(super) fn gradients(
        &self,
        s: &mut [f32],
        dp: &mut [f32],
        also: Option<(&mut [f32], usize)>,
        scale: f32,
        rows: &Rows<'_>,
    ) {
        let n = s.len() / self.nr;
        assert!(n * self.nr == s.len() && s.len() == dp.len(), "attention: gradients");
        assert!(rows.lse.len() == n && rows.delta.len() == n, "attention: gradients");
        assert!(rows.first.is_empty() || rows.first.len() == n, "attention: gradients");
        assert!(also.iter().all(|(to, ld)| n == 0 || (n - 1) * ld + self.nr <= to.len()), "attention: gradients");
        // SAFETY: as above.
        unsafe { (self.gradients)(s, dp, also, scale, rows) }
    }

    /// Row r of `to` = by_r · row r of `from`: the first `width` of its elements. `from` holds
    /// as many rows as `by`; those of `to` are `ld` apart.
    ///
    /// # Safety
    /// Nobody else touches these elements meanwhile.
    pub(super) unsafe fn write(&self, from: &[f32], by: &[f32], width: usize, to: &Sink<'_>, at: usize, ld: usize) {
        assert!(!by.is_empty() && width <= from.len() / by.len(), "attention: {} rows out", by.len());
        let end = at + (by.len() - 1) * ld + width;
        // SAFETY: `at` checks that the last row ends inside `to`; the rest is the caller's promise.
        unsafe {
            match to {
                Sink::F32(to) => {
                    to.at(end);
                    (self.scaled)(from, by, width, to.at(at), ld);
                }
                Sink::Bf16(to) => {
                    to.at(end);
                    (self.narrowed)(from, by, width, to.at(at), ld);
                }
            }
        }
    }

    /// Copies `rows` rows of `width` words of 32 bits, `ld` words apart, to rows `to_ld` words apart.
    ///
    /// # Safety
    /// They can be read.
    pub(super) unsafe fn copied(
        &self,
        from: *const f32,
        ld: usize,
        rows: usize,
        width: usize,
        to: &mut [f32],
        to_ld: usize,
    ) {
        assert!(rows == 0 || width <= to_ld && (rows - 1) * to_ld + width <= to.len(), "attention: {rows} rows");
        // SAFETY: as above; reading is the caller's promise.
        unsafe { (self.copied)(from, ld, rows, width, to, to_ld) }
    }

    /// s_j = Σ_c q_c · b_jc; q is `width` long, rows of b are `ld` apart.
    pub(super) fn dots(&self, q: In<'_>, b: In<'_>, width: usize, ld: usize, s: &mut [f32]) {
        assert!(s.is_empty() || (s.len() - 1) * ld + width <= b.len(), "attention: rows of {width}");
        // SAFETY: as above; rows end inside b.
        unsafe {
            match (q, b) {
                (In::F32(q), In::F32(b)) => (self.dots)(&q[..width], b, ld, s),
                (In::Bf16(q), In::Bf16(b)) => (self.dots_bf16)(&q[..width], b, ld, s),
                _ => unreachable!("attention: the door checks that dtypes agree"),
            }
        }
    }

    /// to += Σ_j p_j · row j of v, in order of j; rows are `ld` apart.
    pub(super) fn add_rows(&self, p: &[f32], v: In<'_>, ld: usize, to: &mut [f32]) {
        assert!(p.is_empty() || (p.len() - 1) * ld + to.len() <= v.len(), "attention: rows of {}", to.len());
        // SAFETY: as above; rows end inside v.
        unsafe {
            match v {
                In::F32(v) => (self.add_rows)(p, v, ld, to),
                In::Bf16(v) => (self.add_rows_bf16)(p, v, ld, to),
            }
        }
    }

    /// A whole row of scores becomes 2^(scale·log₂e·s − max); returns max and the sum.
    pub(super) fn exp_row(&self, s: &mut [f32], scale: f32) -> (f32, f32) {
        // SAFETY: as above.
        unsafe { (self.exp_row)(s, scale) }
    }
}

/// The routines of `level`, which the CPU must have.
pub(super) fn lanes(level: Level) -> &'static Lanes {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => &avx512::LANES,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &avx2::LANES,
        _ => &portable::LANES,
    }
}

/// Compiles every routine with `$features` for rows of `$wide` vectors.
macro_rules! compile {
    ($level:ident, $vector:ty, $wide:literal $(, $features:literal)?) => {
        mod $level {
            use super::*;

            pub(super) static LANES: Lanes = Lanes {
                nr: $wide * <$vector>::LANES,
                mask,
                softmax,
                rescale,
                gradients,
                copied,
                scaled,
                narrowed,
                dots,
                dots_bf16,
                add_rows,
                add_rows_bf16,
                exp_row,
            };

            // Safety of each: the CPU has the features, and lengths are as the methods of `Lanes` check.
            $(#[target_feature(enable = $features)])?
            unsafe fn mask(s: &mut [f32], seen: &Seen<'_>) {
                // SAFETY: the caller's promise; so below.
                unsafe { super::mask::<$vector, $wide>(s, seen) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn softmax(s: &mut [f32], scale: f32, run: Running<'_>) {
                // SAFETY: as above.
                unsafe { super::softmax::<$vector, $wide>(s, scale, run) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn rescale(acc: &mut [f32], fade: &[f32]) {
                // SAFETY: as above.
                unsafe { super::rescale::<$vector, $wide>(acc, fade) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gradients(
                s: &mut [f32],
                dp: &mut [f32],
                also: Option<(&mut [f32], usize)>,
                scale: f32,
                rows: &Rows<'_>,
            ) {
                // SAFETY: as above.
                unsafe { super::gradients::<$vector, $wide>(s, dp, also, scale, rows) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn copied(from: *const f32, ld: usize, rows: usize, width: usize, to: &mut [f32], to_ld: usize) {
                // SAFETY: as above.
                unsafe { super::copied::<$vector>(from, ld, rows, width, to, to_ld) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn scaled(from: &[f32], by: &[f32], width: usize, to: *mut f32, ld: usize) {
                // SAFETY: as above.
                unsafe { super::write::<$vector, f32>(from, by, width, to, ld) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn narrowed(from: &[f32], by: &[f32], width: usize, to: *mut bf16, ld: usize) {
                // SAFETY: as above.
                unsafe { super::write::<$vector, bf16>(from, by, width, to, ld) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots(q: &[f32], b: &[f32], ld: usize, s: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::dots::<$vector, f32>(q, b, ld, s) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots_bf16(q: &[bf16], b: &[bf16], ld: usize, s: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::dots::<$vector, bf16>(q, b, ld, s) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_rows(p: &[f32], v: &[f32], ld: usize, to: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::add_rows::<$vector, f32>(p, v, ld, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_rows_bf16(p: &[f32], v: &[bf16], ld: usize, to: &mut [f32]) {
                // SAFETY: as above.
                unsafe { super::add_rows::<$vector, bf16>(p, v, ld, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn exp_row(s: &mut [f32], scale: f32) -> (f32, f32) {
                // SAFETY: as above.
                unsafe { super::exp_row::<$vector>(s, scale) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compile!(avx512, std::arch::x86_64::__m512, 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
#[cfg(target_arch = "x86_64")]
compile!(avx2, std::arch::x86_64::__m256, 2, "avx2,fma");
compile!(portable, Plain, 1);

/// An element that a vector can be made of.
trait Element: Copy {
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

/// 2^x for x below 128, to 1.3 ulp; 0 below −126.5, where a result would be denormal. NaN stays NaN.
///
/// x = n + r with |r| ≤ 1/2; 2^r by the polynomial of degree 5 with the least largest relative error there among those
/// with 2^0 = 1 (Lawson's weighted least squares; 0.8 ulp before rounding); 2ⁿ by its bits.
#[inline(always)]
unsafe fn exp2<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let x = V::splat(-127.0).larger(x);
        // Adding 1.5·2²³ leaves the nearest whole number in the low bits.
        let round = V::splat(12_582_912.0);
        let shifted = x.add(round);
        let r = x.sub(shifted.sub(round));
        let mut p = V::splat(1.326_925_1e-3);
        for c in [9.671_297e-3, 0.055_507_116, 0.240_222_47, 0.693_147, 1.0] {
            p = p.multiply_add(r, V::splat(c));
        }
        p.mul(shifted.power())
    }
}

#[inline(always)]
unsafe fn write<V: Vector, T: Element>(from: &[f32], by: &[f32], width: usize, to: *mut T, ld: usize) {
    let whole = width / V::LANES * V::LANES;
    for (r, (from, &by)) in from.chunks_exact(from.len() / by.len()).zip(by).enumerate() {
        // SAFETY: the caller's promise: row r of `to` is this thread's.
        unsafe {
            let to = to.add(r * ld);
            for c in (0..whole).step_by(V::LANES) {
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
unsafe fn mask<V: Vector, const W: usize>(s: &mut [f32], seen: &Seen<'_>) {
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
unsafe fn softmax<V: Vector, const W: usize>(s: &mut [f32], scale: f32, run: Running<'_>) {
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
unsafe fn rescale<V: Vector, const W: usize>(acc: &mut [f32], fade: &[f32]) {
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
unsafe fn gradients<V: Vector, const W: usize>(
    s: &mut [f32],
    dp: &mut [f32],
    mut also: Option<(&mut [f32], usize)>,
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
unsafe fn copied<V: Vector>(from: *const f32, ld: usize, rows: usize, width: usize, to: &mut [f32], to_ld: usize) {
    let (whole, rest) = (width / V::LANES * V::LANES, width % V::LANES);
    // Two rows side by side, the last perhaps twice: short rows one by one would each be a call of memcpy.
    for r in (0..rows).step_by(2) {
        let second = (r + 1).min(rows - 1);
        // SAFETY: the caller's promise.
        unsafe {
            let from = [from.add(r * ld), from.add(second * ld)];
            let to = [to.as_mut_ptr().add(r * to_ld), to.as_mut_ptr().add(second * to_ld)];
            for c in (0..whole).step_by(V::LANES) {
                fetch_near(to[0].wrapping_add(COPY_AHEAD * to_ld + c).cast());
                fetch_near(to[1].wrapping_add(COPY_AHEAD * to_ld + c).cast());
                fetch_near(from[0].wrapping_add(COPY_AHEAD * ld + c).cast());
                fetch_near(from[1].wrapping_add(COPY_AHEAD * ld + c).cast());
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
unsafe fn dots<V: Vector, T: Element>(q: &[T], b: &[T], ld: usize, s: &mut [f32]) {
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
unsafe fn add_rows<V: Vector, T: Element>(p: &[f32], v: &[T], ld: usize, to: &mut [f32]) {
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
unsafe fn exp_row<V: Vector>(s: &mut [f32], scale: f32) -> (f32, f32) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// exp of one number as a level of lanes computes it.
    fn exp_at(level: Level, x: f32) -> f32 {
        let lanes = lanes(level);
        let mut s = vec![x; lanes.nr];
        let mut dp = s.clone();
        let rows = Rows { query: lanes.nr, key: 0, first: &[], lse: &[0.0], delta: &[0.0] };
        lanes.gradients(&mut s, &mut dp, None, 1.0, &rows);
        s[0]
    }

    #[test]
    fn results_are_rounded_to_bf16_as_everywhere() {
        let mut from: Vec<f32> = (0..4096u32).map(|i| f32::from_bits(0x3f80_0000 + i * 0x2001)).collect();
        from.extend([0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, -3.3e-39, 0.1]);
        let want: Vec<bf16> = from.iter().map(|&x| bf16::from_f32(x)).collect();
        from.push(f32::NAN);
        for level in Level::ALL.into_iter().filter(|&level| level <= crate::simd::detected()) {
            let mut to = vec![bf16::ZERO; from.len()];
            let sink = Sink::Bf16(crate::pool::Parts::new(&mut to));
            // SAFETY: this thread alone.
            unsafe { lanes(level).write(&from, &[1.0], from.len(), &sink, 0, 0) }
            assert_eq!(to[..want.len()], want);
            assert!(to[want.len()].is_nan());
        }
    }

    #[test]
    fn exp_is_as_exact_as_a_rounded_argument_allows() {
        for level in Level::ALL.into_iter().filter(|&level| level <= crate::simd::detected()) {
            for i in 0..200_000 {
                let x = -87.0 + i as f32 * (90.0 / 2e5);
                let (got, want) = (f64::from(exp_at(level, x)), f64::from(x).exp());
                let ulp = (got - want).abs() / (want * f64::from(f32::EPSILON));
                assert!(ulp < 2.0 + f64::from(x.abs()), "{level:?}: exp({x}) is {ulp} ulp away");
            }
            for x in [-87.8, -88.0, -1e4, NONE, f32::NEG_INFINITY] {
                assert_eq!(exp_at(level, x), 0.0, "{level:?}: {x}");
            }
            assert_eq!(exp_at(level, 0.0), 1.0);
            for nan in [f32::NAN, -f32::NAN, f32::from_bits(u32::MAX), f32::from_bits(0x7f80_0001)] {
                assert!(exp_at(level, nan).is_nan());
            }
        }
    }
}
