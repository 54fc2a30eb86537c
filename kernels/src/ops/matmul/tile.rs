//! Products inside one thread: operands packed into panels, panels multiplied into a tile.
//!
//! A *panel* holds `mr` rows of A (or `nr` columns of B) for a run of k, one *step* after another: `[steps][mr]` words
//! of 32 bits. A step is one k and a word an f32; or, where the CPU multiplies pairs of bf16, a step is two k and a
//! word such a pair (an odd last k is paired with zero). Panels of one operand follow each other; what a last panel
//! lacks in rows or columns is zero there and never stored.
//!
//! Which level packs and multiplies how: [`kernel`]. [`Kernel::block`] makes a whole product of packed operands that
//! fit in the caches; `cpu.rs` builds the large ones.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Put;
use crate::simd::Level;
use half::bf16;

/// An operand's elements.
#[derive(Clone, Copy, Debug)]
pub(crate) enum In<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> In<'a> {
    /// What follows the first `at` elements.
    pub(crate) fn from(self, at: usize) -> In<'a> {
        match self {
            In::F32(x) => In::F32(&x[at..]),
            In::Bf16(x) => In::Bf16(&x[at..]),
        }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            In::F32(x) => x.len(),
            In::Bf16(x) => x.len(),
        }
    }
}

/// A result's elements.
#[derive(Debug)]
pub(crate) enum Out<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

/// Which way an operand lies in memory: the index that runs fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Major {
    /// The k of one row of A, or of one column of B, are neighbours: element `(i, k)` is at `i * ld + k`.
    K,
    /// The rows of A, or the columns of B, of one k are neighbours: element `(i, k)` is at `k * ld + i`.
    Outer,
}

/// A matrix in memory; `i` counts the rows of A or the columns of B.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub data: In<'a>,
    pub ld: usize,
    pub major: Major,
}

impl<'a> Operand<'a> {
    /// The part that starts at `(i, k)`.
    pub(crate) fn from(self, i: usize, k: usize) -> Operand<'a> {
        let at = match self.major {
            Major::K => i * self.ld + k,
            Major::Outer => k * self.ld + i,
        };
        Operand { data: self.data.from(at), ..self }
    }

    /// Panics unless `width` by `k` elements are there, `width` and `k` not 0.
    fn check(self, width: usize, k: usize) {
        let (slow, fast) = match self.major {
            Major::K => (width, k),
            Major::Outer => (k, width),
        };
        assert!(slow == 1 || fast <= self.ld, "matmul: rows of {fast} elements at a distance of {}", self.ld);
        let needed = (slow - 1) * self.ld + fast;
        assert!(needed <= self.data.len(), "matmul: an operand of {} elements, {needed} needed", self.data.len());
    }
}

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32 in, f32 sums.
    F32,
    /// bf16 in (f32 inputs are rounded), f32 sums.
    Bf16,
}

impl Precision {
    /// That of a product of `a` and `b`.
    pub(crate) fn of(a: In<'_>, b: In<'_>) -> Precision {
        match (a, b) {
            (In::F32(_), In::F32(_)) => Precision::F32,
            _ => Precision::Bf16,
        }
    }
}

/// Where the sums of one tile go; rows of c are `ldc` elements apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dest {
    /// c = sum
    Set(*mut f32),
    /// c += sum
    Add(*mut f32),
    /// c = bf16(sum)
    SetBf16(*mut bf16),
    /// c = bf16(partial + sum); rows of the partial sums are `.1` elements apart
    FinishBf16(*const f32, usize, *mut bf16),
}

/// What a tile may fetch into L2 while it sums: a line a step, the first at `from`, each `advance` bytes after the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    from: *const u8,
    advance: usize,
}

/// Packs the panels of `outer` rows or columns of `k` elements; `out` is just as long as they are.
///
/// Safety: the CPU has the level's instructions, and `src` holds that much.
type Pack = unsafe fn(src: Operand<'_>, outer: usize, k: usize, out: &mut [u32]);

/// Multiplies a panel of A by a panel of B into `rows` by `cols` elements, and may fetch what comes later.
///
/// Safety: the CPU has the level's instructions; the panels hold `steps` steps; `rows` is `1..=mr` and `cols`
/// `1..=nr`; that many elements may be written (and read, where `Dest` says so), by this thread alone.
type Tile = unsafe fn(
    steps: usize,
    a: *const u32,
    b: *const u32,
    dest: Dest,
    ldc: usize,
    rows: usize,
    cols: usize,
    fetch: Fetch,
);

/// As [`Tile`], but A is not packed: word `t` of its row `i` lies at `i * a.1 + t` from `a.0` on. May fetch ahead, but
/// not read, what follows those rows.
///
/// Safety: as for [`Tile`]; `rows` rows hold `steps` words each.
type TileRows = unsafe fn(
    steps: usize,
    a: (*const u32, usize),
    b: *const u32,
    dest: Dest,
    ldc: usize,
    rows: usize,
    cols: usize,
    fetch: Fetch,
);

/// As [`TileRows`], but word `i` of step `t` lies at `t * a.1 + i` from `a.0` on.
type TileAcross = TileRows;

/// Multiplies up to four rows of A by up to four columns of B, both with k fast: `sums[i][j]` for the first rows and
/// columns asked for. The k are dealt out to the lanes of a vector, and the lanes added at the end.
///
/// Safety: the CPU has the level's instructions, and the operands hold that much.
type Dots = unsafe fn(a: Operand<'_>, rows: usize, b: Operand<'_>, cols: usize, k: usize) -> [[f32; 4]; 4];

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// One way to multiply.
pub(crate) struct Kernel {
    /// Rows of a tile.
    pub mr: usize,
    /// Columns of a tile.
    pub nr: usize,
    /// How many k a step holds.
    pub pair: usize,
    /// Most steps that are summed before c is touched.
    pub block: usize,
    pack_a: Pack,
    pack_b: Pack,
    tile: Tile,
    tile_rows: Option<TileRows>,
    tile_across: Option<TileAcross>,
    dots: Dots,
}

/// The left operand of [`Kernel::block_to`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left<'a> {
    Panels(&'a [u32]),
    /// Where it lies; see [`Kernel::lies_ready`].
    Lying(Operand<'a>),
}

/// A for the block of k that [`Kernel::block_to`] is asked for next, so that its tiles can fetch it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    /// The first word of the first row.
    pub start: *const u32,
    /// Words from a row to the next.
    pub row: usize,
    /// Bytes from what a tile reads in one step to what it reads in the next.
    pub advance: usize,
}

/// The kernel that `level` uses for products in `precision`. The CPU must have that level.
///
/// | level      | precision | tile   | a step            | steps in a block |
/// | ---------- | --------- | ------ | ----------------- | ---------------- |
/// | portable   | both      | 6 x 8  | one k, f32        | 256 |
/// | AVX2       | both      | 6 x 16 | one k, f32        | 256 |
/// | AVX-512    | both      | 14 x 32 | one k, f32       | 384 |
/// | AVX512-BF16 | bf16     | 14 x 32 | two k, bf16 pairs | 384 |
pub(crate) fn kernel(level: Level, precision: Precision) -> &'static Kernel {
    match (level, precision) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Precision::Bf16) => &avx512::PAIRS,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512 | Level::Avx512Bf16, Precision::F32) => &avx512::F32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, Precision::Bf16) => &avx512::WIDENED,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Precision::F32) => &avx2::F32,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, Precision::Bf16) => &avx2::WIDENED,
        (_, Precision::F32) => &portable::F32,
        (_, Precision::Bf16) => &portable::WIDENED,
    }
}

impl Kernel {
    /// Steps that `k` elements take.
    pub(crate) fn steps(&self, k: usize) -> usize {
        k.div_ceil(self.pair)
    }

    /// Words that `m` rows of A by `k` take when packed.
    pub(crate) fn a_words(&self, m: usize, k: usize) -> usize {
        m.next_multiple_of(self.mr) * self.steps(k)
    }

    /// Words that `n` columns of B by `k` take when packed.
    pub(crate) fn b_words(&self, n: usize, k: usize) -> usize {
        n.next_multiple_of(self.nr) * self.steps(k)
    }

    /// Whether tiles may read A where it lies, k being summed in runs of a multiple of eight from the start on: elements
    /// need no rounding, no k is left without its pair, and what a tile reads does not meet in a few sets of the L1
    /// cache, as it does when rows lie a multiple of 2 KiB apart.
    pub(crate) fn lies_ready(&self, a: Operand<'_>, k: usize) -> bool {
        let bytes = match a.data {
            In::F32(_) if self.pair == 1 => 4,
            In::Bf16(_) if self.pair == 2 => 2,
            _ => return false,
        };
        let can = match a.major {
            Major::K => self.tile_rows.is_some() && k.is_multiple_of(self.pair) && a.ld.is_multiple_of(self.pair),
            Major::Outer => self.tile_across.is_some(),
        };
        can && !(a.ld * bytes).is_multiple_of(2048)
    }

    /// Packs `m` rows of A into the head of `out`.
    pub(crate) fn pack_a(&self, a: Operand<'_>, m: usize, k: usize, out: &mut [u32]) {
        let out = &mut out[..self.a_words(m, k)];
        if !out.is_empty() {
            a.check(m, k);
            // SAFETY: `kernel` gave this table for a level that the CPU has; lengths as just checked.
            unsafe { (self.pack_a)(a, m, k, out) }
        }
    }

    /// Packs `n` columns of B into the head of `out`.
    pub(crate) fn pack_b(&self, b: Operand<'_>, n: usize, k: usize, out: &mut [u32]) {
        let out = &mut out[..self.b_words(n, k)];
        if !out.is_empty() {
            b.check(n, k);
            // SAFETY: `kernel` gave this table for a level that the CPU has; lengths as just checked.
            unsafe { (self.pack_b)(b, n, k, out) }
        }
    }

    /// c (+)= the product of A, packed or [`Kernel::lies_ready`], and packed B, `m` by `n`; k is summed in one go. Rows of
    /// c are `ldc` apart.
    pub(crate) fn block(
        &self,
        m: usize,
        n: usize,
        k: usize,
        a: Left<'_>,
        b: &[u32],
        c: &mut [f32],
        ldc: usize,
        put: Put,
    ) {
        if m == 0 || n == 0 {
            return;
        }
        let there = match a {
            Left::Panels(a) => a.len() >= self.a_words(m, k),
            Left::Lying(a) => self.lies_ready(a, k),
        };
        assert!(there && b.len() >= self.b_words(n, k), "matmul: operands of {m} by {k} and {n}");
        assert!((m == 1 || n <= ldc) && (m - 1) * ldc + n <= c.len(), "matmul: a tile of {m} by {n}, rows of {ldc}");
        let dest = match put {
            Put::Set => Dest::Set(c.as_mut_ptr()),
            Put::Add => Dest::Add(c.as_mut_ptr()),
        };
        // SAFETY: lengths by the asserts above, those of an A that lies by the callee's; `c` is borrowed mutably.
        unsafe { self.block_to(m, n, self.steps(k), a, b, dest, ldc, None) }
    }

    /// Products of up to four rows of A and up to four columns of B, read where they lie, for `matvec`.
    pub(crate) fn dots(&self, a: Operand<'_>, rows: usize, b: Operand<'_>, cols: usize, k: usize) -> [[f32; 4]; 4] {
        assert!((1..=4).contains(&rows) && (1..=4).contains(&cols) && k > 0, "matmul: {rows} by {cols} dots of {k}");
        assert!(a.major == Major::K && b.major == Major::K, "matmul: dots of rows");
        a.check(rows, k);
        b.check(cols, k);
        // SAFETY: `kernel` gave this table for a level that the CPU has; lengths as just checked.
        unsafe { (self.dots)(a, rows, b, cols, k) }
    }

    /// As [`Kernel::block`], to any destination. Tiles fetch into L2 what later ones read: the first two of a panel of B
    /// the panel behind it, those of the last panel the `next` rows of A. Few tiles share a panel in a piece, so waiting
    /// for it cost 2 % of a product on two threads of a Zen 4.
    ///
    /// # Safety
    /// The operands hold `m` and `n` rows and columns of `steps` steps, rows of A such as [`Kernel::lies_ready`] allows;
    /// `dest` is that of element (0, 0), and all `m` by `n` elements may be written, by this thread alone.
    pub(crate) unsafe fn block_to(
        &self,
        m: usize,
        n: usize,
        steps: usize,
        a: Left<'_>,
        b: &[u32],
        dest: Dest,
        ldc: usize,
        next: Option<Next>,
    ) {
        debug_assert!(b.len() >= n.next_multiple_of(self.nr) * steps);
        let lying = match a {
            Left::Panels(a) => {
                debug_assert!(a.len() >= m.next_multiple_of(self.mr) * steps);
                None
            }
            Left::Lying(a) => {
                a.check(m, steps * self.pair);
                let start = match a.data {
                    In::F32(x) => x.as_ptr().cast::<u32>(),
                    In::Bf16(x) => x.as_ptr().cast(),
                };
                // The tile, where A starts, its words from a row (or step) to the next, and from a tile's row to the next.
                let (tile, row) = match a.major {
                    Major::K => (self.tile_rows, a.ld / self.pair),
                    Major::Outer => (self.tile_across, 1),
                };
                Some((tile.expect("matmul: A where it lies"), start, a.ld / self.pair, row))
            }
        };
        for j in (0..n).step_by(self.nr) {
            for i in (0..m).step_by(self.mr) {
                let (rows, cols) = (self.mr.min(m - i), self.nr.min(n - j));
                let fetch = match next {
                    _ if j + self.nr < n && i < 2 * self.mr => {
                        let half = self.nr / 2 * (i / self.mr);
                        Fetch { from: b.as_ptr().wrapping_add((j + self.nr + half) * steps).cast(), advance: LINE }
                    }
                    Some(Next { start, row, advance }) if j + self.nr >= n => {
                        Fetch { from: start.wrapping_add(i * row).cast(), advance }
                    }
                    // Nothing: what the tile reads anyway.
                    _ => Fetch { from: b.as_ptr().wrapping_add(j * steps).cast(), advance: 0 },
                };
                // SAFETY: `kernel` gave this table for a level that the CPU has; the rest is the caller's promise.
                unsafe {
                    let (dest, b) = (dest.at(i, j, ldc), b.as_ptr().add(j * steps));
                    match (lying, a) {
                        (Some((tile, a, lda, row)), _) => {
                            tile(steps, (a.add(i * row), lda), b, dest, ldc, rows, cols, fetch)
                        }
                        (None, Left::Panels(a)) => {
                            (self.tile)(steps, a.as_ptr().add(i * steps), b, dest, ldc, rows, cols, fetch)
                        }
                        (None, Left::Lying(_)) => unreachable!("matmul: A where it lies"),
                    }
                }
            }
        }
    }
}

impl Dest {
    /// The destination of element (i, j), when self is that of (0, 0).
    ///
    /// # Safety
    /// That element exists.
    pub(crate) unsafe fn at(self, i: usize, j: usize, ldc: usize) -> Dest {
        let at = i * ldc + j;
        // SAFETY: inside the same matrix, by the caller's promise.
        unsafe {
            match self {
                Dest::Set(c) => Dest::Set(c.add(at)),
                Dest::Add(c) => Dest::Add(c.add(at)),
                Dest::SetBf16(c) => Dest::SetBf16(c.add(at)),
                Dest::FinishBf16(p, ldp, c) => Dest::FinishBf16(p.add(i * ldp + j), ldp, c.add(at)),
            }
        }
    }
}

/// Writes the sums of a tile; the sequence of operations an element sees does not depend on where it lies.
///
/// # Safety
/// As for [`Tile`].
#[inline(always)]
unsafe fn store<const NR: usize>(sums: &[[f32; NR]], dest: Dest, ldc: usize, cols: usize) {
    for (i, sums) in sums.iter().enumerate() {
        // SAFETY: row i has `cols` elements that this thread may write, by the caller's promise.
        unsafe {
            if cols == NR {
                store_row::<NR>(sums, dest.at(i, 0, ldc), NR);
            } else {
                store_row::<NR>(sums, dest.at(i, 0, ldc), cols);
            }
        }
    }
}

#[inline(always)]
unsafe fn store_row<const NR: usize>(sums: &[f32; NR], dest: Dest, cols: usize) {
    for j in 0..cols {
        // SAFETY: as in `store`.
        unsafe {
            match dest {
                Dest::Set(c) => *c.add(j) = sums[j],
                Dest::Add(c) => *c.add(j) += sums[j],
                Dest::SetBf16(c) => *c.add(j) = bf16::from_f32(sums[j]),
                Dest::FinishBf16(p, _, c) => *c.add(j) = bf16::from_f32(*p.add(j) + sums[j]),
            }
        }
    }
}
