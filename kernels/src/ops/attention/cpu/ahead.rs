//! Asking memory for rows while products are made.
//!
//! Rows of one head lie whole tokens apart: the machine's own guesses do not follow, each row would be waited for when it
//! is copied, and each line of a result when it is written. So lines are asked for a few rows at a time between products,
//! which take longer than memory does. Nothing is read here, and where a row lies past the end nothing happens.

use crate::{ops::matmul::tile::In, simd::fetch_far};

/// Rows still to be asked for, of several tensors that are cut alike.
pub(super) struct Ahead {
    /// The next row of each.
    next: [*const u8; 4],
    tensors: usize,
    rows: usize,
    /// Rows at a time.
    share: usize,
    /// Bytes from a row to the next, and of a row.
    apart: usize,
    width: usize,
}

impl Ahead {
    /// `rows` rows of `width` bytes, `apart` bytes apart, from each of the addresses on.
    pub(super) fn new(from: &[*const u8], rows: usize, apart: usize, width: usize) -> Ahead {
        let mut next = [std::ptr::null(); 4];
        next[..from.len()].copy_from_slice(from);
        Ahead { next, tensors: from.len(), rows, share: rows, apart, width }
    }

    /// They will be asked for in so many turns.
    pub(super) fn turns(&mut self, turns: usize) {
        self.share = self.rows.div_ceil(turns);
    }

    /// Asks for the next rows, if any are left.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        if self.rows > 0 {
            self.ask_some();
        }
    }

    #[inline(never)]
    fn ask_some(&mut self) {
        let rows = self.share.min(self.rows);
        self.rows -= rows;
        for next in &mut self.next[..self.tensors] {
            for _ in 0..rows {
                for line in (0..self.width).step_by(64) {
                    fetch_far(next.wrapping_add(line));
                }
                *next = next.wrapping_add(self.apart);
            }
        }
    }
}

/// The address of element `at`, or of the end.
pub(super) fn address(x: In<'_>, at: usize) -> *const u8 {
    match x {
        In::F32(x) => x.as_ptr().wrapping_add(at.min(x.len())).cast(),
        In::Bf16(x) => x.as_ptr().wrapping_add(at.min(x.len())).cast(),
    }
}
