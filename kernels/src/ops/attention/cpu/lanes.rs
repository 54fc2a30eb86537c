//! The element-wise part of attention: the loops of `loops.rs`, compiled for each set of vector instructions.
//!
//! A tile of scores is `[rows][nr]`: `nr` is the width of the matmul kernel's panels, so that a finished tile is already
//! packed as the right operand of the next product. No value passes from one lane to another, and each element sees one
//! sequence of operations wherever it stands. Positions are compared as f32, exact up to 2²⁴.

use super::{
    Sink, loops,
    vector::{Plain, Vector},
};
use crate::{ops::matmul::tile::In, simd::Level};
use half::bf16;

/// Below any score, and finite: a running maximum starts here, and `NONE − NONE` is 0.
pub(super) const NONE: f32 = -1e30;

/// Where rows go a second time, and how many elements apart; or nowhere.
pub(super) type Also<'a> = Option<(&'a mut [f32], usize)>;

/// The routines of one level. Fields are for `lanes`; the methods check lengths.
pub(super) struct Lanes {
    /// Lanes of a row of scores.
    pub nr: usize,
    mask: unsafe fn(&mut [f32], &Seen<'_>),
    softmax: unsafe fn(&mut [f32], f32, Running<'_>),
    rescale: unsafe fn(&mut [f32], &[f32]),
    gradients: unsafe fn(&mut [f32], &mut [f32], Also<'_>, f32, &Rows<'_>),
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
    pub(super) fn gradients(&self, s: &mut [f32], dp: &mut [f32], also: Also<'_>, scale: f32, rows: &Rows<'_>) {
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
                unsafe { loops::mask::<$vector, $wide>(s, seen) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn softmax(s: &mut [f32], scale: f32, run: Running<'_>) {
                // SAFETY: as above.
                unsafe { loops::softmax::<$vector, $wide>(s, scale, run) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn rescale(acc: &mut [f32], fade: &[f32]) {
                // SAFETY: as above.
                unsafe { loops::rescale::<$vector, $wide>(acc, fade) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gradients(
                s: &mut [f32],
                dp: &mut [f32],
                also: Also<'_>,
                scale: f32,
                rows: &Rows<'_>,
            ) {
                // SAFETY: as above.
                unsafe { loops::gradients::<$vector, $wide>(s, dp, also, scale, rows) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn copied(from: *const f32, ld: usize, rows: usize, width: usize, to: &mut [f32], to_ld: usize) {
                // SAFETY: as above.
                unsafe { loops::copied::<$vector>(from, ld, rows, width, to, to_ld) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn scaled(from: &[f32], by: &[f32], width: usize, to: *mut f32, ld: usize) {
                // SAFETY: as above.
                unsafe { loops::write::<$vector, f32>(from, by, width, to, ld) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn narrowed(from: &[f32], by: &[f32], width: usize, to: *mut bf16, ld: usize) {
                // SAFETY: as above.
                unsafe { loops::write::<$vector, bf16>(from, by, width, to, ld) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots(q: &[f32], b: &[f32], ld: usize, s: &mut [f32]) {
                // SAFETY: as above.
                unsafe { loops::dots::<$vector, f32>(q, b, ld, s) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn dots_bf16(q: &[bf16], b: &[bf16], ld: usize, s: &mut [f32]) {
                // SAFETY: as above.
                unsafe { loops::dots::<$vector, bf16>(q, b, ld, s) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_rows(p: &[f32], v: &[f32], ld: usize, to: &mut [f32]) {
                // SAFETY: as above.
                unsafe { loops::add_rows::<$vector, f32>(p, v, ld, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn add_rows_bf16(p: &[f32], v: &[bf16], ld: usize, to: &mut [f32]) {
                // SAFETY: as above.
                unsafe { loops::add_rows::<$vector, bf16>(p, v, ld, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn exp_row(s: &mut [f32], scale: f32) -> (f32, f32) {
                // SAFETY: as above.
                unsafe { loops::exp_row::<$vector>(s, scale) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compile!(avx512, std::arch::x86_64::__m512, 2, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");
#[cfg(target_arch = "x86_64")]
compile!(avx2, std::arch::x86_64::__m256, 2, "avx2,fma");
compile!(portable, Plain, 1);

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
