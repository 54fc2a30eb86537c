//! The element-wise part of attention, written once as plain loops and compiled for each set of vector instructions.
//!
//! A tile of scores is `[rows][nr]`: `nr` is the width of the matmul kernel's panels, so that a finished tile is already
//! packed as the right operand of the next product. Loops run over the `nr` lanes of a row; no value passes from one
//! lane to another, and each element sees one sequence of operations wherever it stands.

use crate::{ops::matmul::tile::In, simd::Level};
use half::bf16;

/// Below any score, and finite: a running maximum starts here, and `NONE − NONE` is 0.
pub(super) const NONE: f32 = -1e30;

/// Sums of a dot product that run side by side.
const SIDE: usize = 16;

/// The routines of one level. Fields are for `lanes`; the methods check lengths.
pub(super) struct Lanes {
    /// Lanes of a row of scores.
    pub nr: usize,
    mask: unsafe fn(&mut [f32], &Seen<'_>),
    softmax: unsafe fn(&mut [f32], f32, Running<'_>),
    rescale: unsafe fn(&mut [f32], &[f32]),
    gradients: unsafe fn(&mut [f32], &mut [f32], f32, &Rows<'_>),
    scaled: unsafe fn(&[f32], f32, &mut [f32]),
    narrowed: unsafe fn(&[f32], f32, &mut [bf16]),
    widened: unsafe fn(&[bf16], &mut [f32]),
    dots: unsafe fn(&[f32], &[f32], usize, &mut [f32]),
    dots_bf16: unsafe fn(&[f32], &[bf16], usize, &mut [f32]),
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
    /// First key that each lane sees, `nr` of them.
    pub first: &'a [u32],
}

/// The online softmax of `nr` queries.
#[derive(Debug)]
pub(super) struct Running<'a> {
    /// Largest scaled score so far.
    pub max: &'a mut [f32],
    /// Σ exp(s − max) so far.
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
        // SAFETY: `lanes` gave this table for a level that the CPU has.
        unsafe { (self.mask)(s, seen) }
    }

    /// Scores become exp(scale·s − max), with the maximum brought up to date.
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

    /// s becomes p, and dp becomes ds.
    pub(super) fn gradients(&self, s: &mut [f32], dp: &mut [f32], scale: f32, rows: &Rows<'_>) {
        let n = s.len() / self.nr;
        assert!(n * self.nr == s.len() && s.len() == dp.len(), "attention: gradients");
        assert!(rows.lse.len() == n && rows.delta.len() == n, "attention: gradients");
        assert!(rows.first.is_empty() || rows.first.len() == n, "attention: gradients");
        // SAFETY: as above.
        unsafe { (self.gradients)(s, dp, scale, rows) }
    }

    /// to = by·from
    pub(super) fn scaled(&self, from: &[f32], by: f32, to: &mut [f32]) {
        // SAFETY: as above.
        unsafe { (self.scaled)(from, by, to) }
    }

    /// to = bf16(by·from)
    pub(super) fn narrowed(&self, from: &[f32], by: f32, to: &mut [bf16]) {
        // SAFETY: as above.
        unsafe { (self.narrowed)(from, by, to) }
    }

    /// to = the head of `from`
    pub(super) fn widened(&self, from: In<'_>, to: &mut [f32]) {
        match from {
            In::F32(from) => to.copy_from_slice(&from[..to.len()]),
            // SAFETY: as above.
            In::Bf16(from) => unsafe { (self.widened)(&from[..to.len()], to) },
        }
    }

    /// s_j = Σ_c q_c · b_jc; rows of b are `ld` apart.
    pub(super) fn dots(&self, q: &[f32], b: In<'_>, ld: usize, s: &mut [f32]) {
        // SAFETY: as above.
        unsafe {
            match b {
                In::F32(b) => (self.dots)(q, b, ld, s),
                In::Bf16(b) => (self.dots_bf16)(q, b, ld, s),
            }
        }
    }

    /// to += Σ_j p_j · row j of v, in order of j; rows are `ld` apart.
    pub(super) fn add_rows(&self, p: &[f32], v: In<'_>, ld: usize, to: &mut [f32]) {
        // SAFETY: as above.
        unsafe {
            match v {
                In::F32(v) => (self.add_rows)(p, v, ld, to),
                In::Bf16(v) => (self.add_rows_bf16)(p, v, ld, to),
            }
        }
    }

    /// A whole row of scores becomes exp(scale·s − max); returns max and the sum.
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

/// Compiles every routine with `$features` for rows of `$nr` lanes.
macro_rules! compile {
    ($level:ident, $nr:literal, $fused:literal $(, $features:literal)?) => {
        mod $level {
            use super::*;

            pub(super) static LANES: Lanes = Lanes {
                nr: $nr,
                mask,
                softmax,
                rescale,
                gradients,
                scaled,
                narrowed,
                widened,
                dots,
                dots_bf16,
                add_rows,
                add_rows_bf16,
                exp_row,
            };

            $(#[target_feature(enable = $features)])?
            unsafe fn mask(s: &mut [f32], seen: &Seen<'_>) {
                super::mask::<$nr>(s, seen)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn softmax(s: &mut [f32], scale: f32, run: Running<'_>) {
                super::softmax::<$nr, $fused>(s, scale, run)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn rescale(acc: &mut [f32], fade: &[f32]) {
                super::rescale::<$nr>(acc, fade)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gradients(s: &mut [f32], dp: &mut [f32], scale: f32, rows: &Rows<'_>) {
                super::gradients::<$nr, $fused>(s, dp, scale, rows)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn scaled(from: &[f32], by: f32, to: &mut [f32]) {
                from.iter().zip(to).for_each(|(x, to)| *to = by * x);
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn narrowed(from: &[f32], by: f32, to: &mut [bf16]) {
                from.iter().zip(to).for_each(|(x, to)| *to = narrow(by * x));
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn widened(from: &[bf16], to: &mut [f32]) {
                from.iter().zip(to).for_each(|(&x, to)| *to = widen(x));
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots(q: &[f32], b: &[f32], ld: usize, s: &mut [f32]) {
                super::dots::<f32, $fused>(q, b, ld, s, |x| x)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots_bf16(q: &[f32], b: &[bf16], ld: usize, s: &mut [f32]) {
                super::dots::<bf16, $fused>(q, b, ld, s, widen)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_rows(p: &[f32], v: &[f32], ld: usize, to: &mut [f32]) {
                super::add_rows::<f32, $fused>(p, v, ld, to, |x| x)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_rows_bf16(p: &[f32], v: &[bf16], ld: usize, to: &mut [f32]) {
                super::add_rows::<bf16, $fused>(p, v, ld, to, widen)
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn exp_row(s: &mut [f32], scale: f32) -> (f32, f32) {
                super::exp_row::<$fused>(s, scale)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compile!(avx512, 32, true, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
#[cfg(target_arch = "x86_64")]
compile!(avx2, 16, true, "avx2,fma");
compile!(portable, 8, false);

/// a·b + c; with `FUSED`, in one instruction.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// exp(x) for x up to 88, within 2 ulp; 0 below −87.3, where a result would be denormal. NaN stays NaN.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; exp(r) by the polynomial of Cephes' `expf` (Moshier), 2ⁿ by its bits.
#[inline(always)]
pub(super) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts; n times the first is exact.
    let r = multiply_add::<FUSED>(n, -0.693_359_4, x);
    let r = multiply_add::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        p = multiply_add::<FUSED>(p, r, c);
    }
    let p = multiply_add::<FUSED>(p, r * r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.3 { 0.0 } else { p * power }
}

/// The larger; `b` where `a` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// To nearest, ties to even; a NaN stays one.
#[inline(always)]
fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let near = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    bf16::from_bits(if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { near })
}

#[inline(always)]
fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

#[inline(always)]
fn mask<const NR: usize>(s: &mut [f32], seen: &Seen<'_>) {
    let first: &[u32; NR] = seen.first.try_into().expect("one a lane");
    let (s, _) = s.as_chunks_mut::<NR>();
    for (r, s) in s.iter_mut().enumerate() {
        // Row r counts in lane j from first_j <= key and query + j >= key on.
        let key = (seen.key + r) as u32;
        let from = (seen.key + r) as i32 - seen.query as i32;
        for j in 0..NR {
            s[j] = if first[j] <= key && from <= j as i32 { s[j] } else { f32::NEG_INFINITY };
        }
    }
}

#[inline(always)]
fn softmax<const NR: usize, const FUSED: bool>(s: &mut [f32], scale: f32, run: Running<'_>) {
    let max: &mut [f32; NR] = run.max.try_into().expect("one a lane");
    let sum: &mut [f32; NR] = run.sum.try_into().expect("one a lane");
    let fade: &mut [f32; NR] = run.fade.try_into().expect("one a lane");
    let (s, _) = s.as_chunks_mut::<NR>();
    let mut top = [f32::NEG_INFINITY; NR];
    for s in s.iter() {
        for j in 0..NR {
            top[j] = larger(s[j], top[j]);
        }
    }
    let mut minus = [0.0; NR];
    for j in 0..NR {
        let new = larger(top[j] * scale, max[j]);
        fade[j] = exp::<FUSED>(max[j] - new);
        max[j] = new;
        minus[j] = -new;
    }
    let mut added = [0.0; NR];
    for s in s.iter_mut() {
        for j in 0..NR {
            s[j] = exp::<FUSED>(multiply_add::<FUSED>(s[j], scale, minus[j]));
            added[j] += s[j];
        }
    }
    for j in 0..NR {
        sum[j] = sum[j] * fade[j] + added[j];
    }
}

#[inline(always)]
fn rescale<const NR: usize>(acc: &mut [f32], fade: &[f32]) {
    let fade: &[f32; NR] = fade.try_into().expect("one a lane");
    let (acc, _) = acc.as_chunks_mut::<NR>();
    for acc in acc {
        for j in 0..NR {
            acc[j] *= fade[j];
        }
    }
}

#[inline(always)]
fn gradients<const NR: usize, const FUSED: bool>(s: &mut [f32], dp: &mut [f32], scale: f32, rows: &Rows<'_>) {
    let ((s, _), (dp, _)) = (s.as_chunks_mut::<NR>(), dp.as_chunks_mut::<NR>());
    for (r, (s, dp)) in s.iter_mut().zip(dp).enumerate() {
        let (minus, delta) = (-rows.lse[r], rows.delta[r]);
        for j in 0..NR {
            s[j] = exp::<FUSED>(multiply_add::<FUSED>(s[j], scale, minus));
            dp[j] = s[j] * (dp[j] - delta) * scale;
        }
        let first = rows.first.get(r).map_or(0, |&f| f as i32) - rows.key as i32;
        let last = (rows.query + r) as i32 - rows.key as i32;
        if first > 0 || last < NR as i32 - 1 {
            for j in 0..NR {
                let seen = first <= j as i32 && j as i32 <= last;
                s[j] = if seen { s[j] } else { 0.0 };
                dp[j] = if seen { dp[j] } else { 0.0 };
            }
        }
    }
}

/// `SIDE` sums side by side, then these by halves.
#[inline(always)]
fn dots<T: Copy, const FUSED: bool>(q: &[f32], b: &[T], ld: usize, s: &mut [f32], f32_of: impl Fn(T) -> f32 + Copy) {
    let (q, q_rest) = q.as_chunks::<SIDE>();
    for (row, s) in s.iter_mut().enumerate() {
        let (b, b_rest) = b[row * ld..][..q.len() * SIDE + q_rest.len()].as_chunks::<SIDE>();
        let mut sums = [0.0; SIDE];
        for (q, b) in q.iter().zip(b) {
            for j in 0..SIDE {
                sums[j] = multiply_add::<FUSED>(q[j], f32_of(b[j]), sums[j]);
            }
        }
        for (j, (&q, &b)) in q_rest.iter().zip(b_rest).enumerate() {
            sums[j] = multiply_add::<FUSED>(q, f32_of(b), sums[j]);
        }
        *s = halves(sums);
    }
}

#[inline(always)]
fn halves(mut sums: [f32; SIDE]) -> f32 {
    let mut half = SIDE / 2;
    while half > 0 {
        for j in 0..half {
            sums[j] += sums[j + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn add_rows<T: Copy, const FUSED: bool>(
    p: &[f32],
    v: &[T],
    ld: usize,
    to: &mut [f32],
    f32_of: impl Fn(T) -> f32 + Copy,
) {
    let width = to.len();
    let row = |j: usize| &v[j * ld..][..width];
    // Four rows at a time: `to` is read and written a quarter as often.
    let fours = p.len() / 4 * 4;
    for j in (0..fours).step_by(4) {
        let (p, v) = ([p[j], p[j + 1], p[j + 2], p[j + 3]], [row(j), row(j + 1), row(j + 2), row(j + 3)]);
        for c in 0..width {
            let mut sum = to[c];
            for i in 0..4 {
                sum = multiply_add::<FUSED>(p[i], f32_of(v[i][c]), sum);
            }
            to[c] = sum;
        }
    }
    for j in fours..p.len() {
        for (to, &v) in to.iter_mut().zip(row(j)) {
            *to = multiply_add::<FUSED>(p[j], f32_of(v), *to);
        }
    }
}

#[inline(always)]
fn exp_row<const FUSED: bool>(s: &mut [f32], scale: f32) -> (f32, f32) {
    let (wide, rest) = s.as_chunks_mut::<SIDE>();
    let mut top = [NONE; SIDE];
    for s in wide.iter() {
        for j in 0..SIDE {
            top[j] = larger(s[j], top[j]);
        }
    }
    for (j, &s) in rest.iter().enumerate() {
        top[j] = larger(s, top[j]);
    }
    let max = top.into_iter().fold(NONE, |a, b| larger(b, a)) * scale;
    let mut sums = [0.0; SIDE];
    for s in wide {
        for j in 0..SIDE {
            s[j] = exp::<FUSED>(multiply_add::<FUSED>(s[j], scale, -max));
            sums[j] += s[j];
        }
    }
    for (j, s) in rest.iter_mut().enumerate() {
        *s = exp::<FUSED>(multiply_add::<FUSED>(*s, scale, -max));
        sums[j] += *s;
    }
    (max, halves(sums))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        fn check<const FUSED: bool>() {
            let mut worst = 0.0f64;
            for i in 0..2_000_000 {
                let x = -87.0 + i as f32 * (90.0 / 2e6);
                let (got, want) = (f64::from(exp::<FUSED>(x)), f64::from(x).exp());
                worst = worst.max((got - want).abs() / (want * f64::from(f32::EPSILON)));
            }
            assert!(worst < 2.0, "{worst} ulp");
        }
        check::<true>();
        check::<false>();
        for x in [-87.4, -88.0, -1e4, NONE, f32::NEG_INFINITY] {
            assert_eq!(exp::<true>(x), 0.0, "{x}");
        }
        assert_eq!((exp::<true>(0.0), exp::<false>(0.0)), (1.0, 1.0));
        assert!(exp::<true>(f32::NAN).is_nan());
    }
}
