//! nt for few rows, as in decoding: b is read once, at the speed of memory.

use super::{
    Dims, Put,
    cpu::product,
    tile::{In, Major, Operand, Out},
};
use crate::{pool::Pool, simd::Level};

/// See [`super::matvec`].
pub(super) fn nt(pool: &Pool, level: Level, d: Dims, a: In<'_>, b: In<'_>, c: Out<'_>, put: Put) {
    let a = Operand { data: a, ld: d.k, major: Major::K };
    let b = Operand { data: b, ld: d.k, major: Major::K };
    product(pool, level, d, a, b, c, put, d.k);
}
