//! How a large product is cut: k into blocks, rows and columns into phases, c into pieces. All of it follows from sizes
//! alone, never from threads, so that each element is always the same sum.

use super::{cpu::How, tile::Kernel};
use std::ops::Range;

/// How k is cut: each grain into blocks of equal length, so that a short last block is rare.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    grain: usize,
    /// Length of a block; the last of a grain may be shorter.
    len: usize,
    in_grain: usize,
    pub count: usize,
    /// k in a step.
    pair: usize,
}

impl Blocks {
    pub fn new(kern: &Kernel, k: usize, grain: usize) -> Blocks {
        assert!(grain > 0 && k.is_multiple_of(grain), "matmul: {k} tokens in grains of {grain}");
        let in_grain = grain.div_ceil(kern.block * kern.pair);
        let len = grain.div_ceil(in_grain).next_multiple_of(8).min(grain);
        let in_grain = grain.div_ceil(len);
        Blocks { grain, len, in_grain, count: k / grain * in_grain, pair: kern.pair }
    }

    /// Where block `i` lies in k.
    pub fn range(&self, i: usize) -> Range<usize> {
        let (grain, part) = (i / self.in_grain, i % self.in_grain);
        let start = part * self.len;
        grain * self.grain + start..grain * self.grain + (start + self.len).min(self.grain)
    }

    pub fn steps(&self, i: usize) -> usize {
        self.range(i).len().div_ceil(self.pair)
    }

    /// Steps of the blocks before block `i`.
    pub fn steps_before(&self, i: usize) -> usize {
        let whole = |blocks: usize| blocks * self.len.div_ceil(self.pair);
        let last = self.steps(self.in_grain - 1);
        i / self.in_grain * (whole(self.in_grain - 1) + last) + whole(i % self.in_grain)
    }
}

/// Cuts `0..len` into ranges of at most `most` and nearly equal length, all but the last a multiple of `unit`.
pub(super) fn even(len: usize, most: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = len.div_ceil(most.max(unit));
    let step = len.div_ceil(parts).next_multiple_of(unit);
    (0..len.div_ceil(step)).map(move |i| i * step..((i + 1) * step).min(len))
}

/// Most panels of A in a large piece: 172 KB of packed f32, which stay in L2 while panels of B go by.
const HIGH: usize = 8;
/// Least number of large pieces, as far as c has the columns.
const HEAD_PIECES: usize = 16;
/// Panels of A, and of B, in a small piece.
const SMALL: usize = 4;

/// How c is cut into pieces: most rows into large ones, so that little is packed twice; the last rows into small ones,
/// so that threads end together.
#[derive(Debug)]
pub(super) struct Cut {
    head: Grid,
    tail: Grid,
}

impl Cut {
    pub fn new(kern: &Kernel, m: usize, n: usize, how: How) -> Cut {
        let (mr, nr) = (kern.mr, kern.nr);
        let panels = m.div_ceil(mr);
        if how == How::Own {
            // As wide as c.
            let high = (panels / 16).clamp(2, 10);
            let head = panels.saturating_sub((panels / 3).clamp(2, 24)) / high * high * mr;
            let (width, tail) = (n.div_ceil(1024), head..m);
            return Cut { head: Grid::new(0..head, n, high * mr, width, nr), tail: Grid::new(tail, n, mr, 1, nr) };
        }
        // A piece brings each panel of B from afar once, so it is as high as L2 allows; its width follows.
        let most = panels - (panels / 7).max(2).min(panels);
        let high = (most / most.div_ceil(HIGH).max(1)).max(1);
        let down = most / high;
        let head = down * high * mr;
        let across = HEAD_PIECES.div_ceil(down.max(1)).max(n.div_ceil(1024));
        Cut {
            head: Grid::new(0..head, n, high * mr, across, nr),
            tail: Grid::new(head..m, n, SMALL * mr, n.div_ceil(SMALL * nr), nr),
        }
    }

    pub fn count(&self) -> usize {
        self.head.count() + self.tail.count()
    }

    /// Rows and columns of piece `i`.
    pub fn piece(&self, i: usize) -> (Range<usize>, Range<usize>) {
        if i < self.head.count() { self.head.piece(i) } else { self.tail.piece(i - self.head.count()) }
    }
}

/// Some rows and all `n` columns, in pieces of `height` by `width`.
#[derive(Debug)]
struct Grid {
    rows: Range<usize>,
    n: usize,
    height: usize,
    width: usize,
}

impl Grid {
    fn new(rows: Range<usize>, n: usize, height: usize, across: usize, nr: usize) -> Grid {
        Grid { rows, n, height, width: n.div_ceil(across).next_multiple_of(nr) }
    }

    fn count(&self) -> usize {
        self.rows.len().div_ceil(self.height) * self.n.div_ceil(self.width)
    }

    /// Pieces go down first: neighbours in time share columns of B.
    fn piece(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let down = self.rows.len().div_ceil(self.height);
        let (r, c) = (self.rows.start + i % down * self.height, i / down * self.width);
        (r..(r + self.height).min(self.rows.end), c..(c + self.width).min(self.n))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tile::{Precision, kernel},
        *,
    };
    use crate::simd::{self, Level};

    #[test]
    fn blocks_cover_every_grain() {
        for level in Level::ALL {
            if level > simd::detected() {
                continue;
            }
            let kern = kernel(level, Precision::Bf16);
            for (k, grain) in [(1, 1), (7, 7), (800, 800), (801, 801), (3000, 1000), (2310, 770), (12, 4)] {
                let blocks = Blocks::new(kern, k, grain);
                let mut end = 0;
                for i in 0..blocks.count {
                    let range = blocks.range(i);
                    assert_eq!((range.start, blocks.steps_before(i)), (end, (0..i).map(|i| blocks.steps(i)).sum()));
                    assert!(!range.is_empty() && blocks.steps(i) <= kern.block, "{k} {grain} {range:?}");
                    assert_eq!(range.start / grain, (range.end - 1) / grain);
                    end = range.end;
                }
                assert_eq!(end, k);
            }
        }
    }

    #[test]
    fn pieces_cover_every_element_once() {
        let kern = kernel(Level::Portable, Precision::F32);
        for (m, n) in [(1, 1), (5, 3000), (13, 7), (100, 100), (300, 700), (901, 9)] {
            for how in [How::Lie, How::Own, How::Shared] {
                let cut = Cut::new(kern, m, n, how);
                let mut seen = vec![0; m * n];
                for (r, c) in (0..cut.count()).map(|i| cut.piece(i)) {
                    r.for_each(|i| c.clone().for_each(|j| seen[i * n + j] += 1));
                }
                assert!(seen.iter().all(|&s| s == 1), "{m} x {n}");
            }
        }
    }
}
