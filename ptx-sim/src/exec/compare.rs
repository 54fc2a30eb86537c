//! Comparisons of lanes.

use super::alu::{bits_of, combine};
use super::float::{f, is_bf, is_pair};
use super::warp::Warp;
use crate::fp;
use crate::ir::{Cmp, Float, Num, Row, Setp};

pub(super) fn setp(w: &mut Warp, m: u32, s: &Setp) {
    let (v, ordered) = compare(w, s.cmp, s.ty, s.ftz, s.a, s.b);
    let c = w.pred(s.c);
    if let Some(p) = s.p {
        let r = combine(s.bool_op, v, c);
        w.set_pred(p, m, r);
    }
    if let Some(q) = s.q {
        let r = combine(s.bool_op, ordered.unwrap_or(!v), c);
        w.set_pred(q, m, r);
    }
}

/// The comparison of each lane, and of the high halves of pairs.
#[inline(always)]
pub(super) fn compare(w: &Warp, cmp: Cmp, ty: Num, ftz: bool, a: Row, b: Row) -> (u32, Option<u32>) {
    macro_rules! ints {
        ($read:ident, $t:ty) => {{
            let (x, y) = (w.$read(a), w.$read(b));
            match cmp {
                Cmp::Eq => bits_of(|i| x[i] as $t == y[i] as $t),
                Cmp::Ne => bits_of(|i| x[i] as $t != y[i] as $t),
                Cmp::Lt => bits_of(|i| (x[i] as $t) < y[i] as $t),
                Cmp::Le => bits_of(|i| x[i] as $t <= y[i] as $t),
                Cmp::Gt => bits_of(|i| x[i] as $t > y[i] as $t),
                _ => bits_of(|i| x[i] as $t >= y[i] as $t),
            }
        }};
    }
    let v = match ty {
        Num::U(32) => ints!(r32, u32),
        Num::S(32) => ints!(r32, i32),
        Num::U(64) => ints!(r64, u64),
        Num::S(64) => ints!(r64, i64),
        Num::S(_) => ints!(r32, i16),
        Num::U(_) => ints!(r32, u16),
        Num::F(Float::F32) => {
            let (x, y) = (w.r32(a), w.r32(b));
            let v = |x: u32| if ftz { fp::flush(f(x)) } else { f(x) };
            bits_of(|i| holds(cmp, v(x[i]).into(), v(y[i]).into()))
        }
        Num::F(Float::F64) => {
            let (x, y) = (w.r64(a), w.r64(b));
            bits_of(|i| holds(cmp, f64::from_bits(x[i]), f64::from_bits(y[i])))
        }
        Num::F(t) => {
            let format = if is_bf(t) { fp::BF16 } else { fp::F16 };
            let (x, y) = (w.r32(a), w.r32(b));
            let at =
                |s: u32| bits_of(|i| holds(cmp, format.value(x[i] >> s & 0xFFFF), format.value(y[i] >> s & 0xFFFF)));
            return (at(0), is_pair(t).then(|| at(16)));
        }
        Num::Tf32 | Num::E4m3x2 | Num::E5m2x2 => unreachable!("the decoder lets no such comparison through"),
    };
    (v, None)
}

#[inline(always)]
fn holds(cmp: Cmp, x: f64, y: f64) -> bool {
    let nan = x.is_nan() || y.is_nan();
    match cmp {
        Cmp::Eq => x == y,
        Cmp::Ne => !nan && x != y,
        Cmp::Lt => x < y,
        Cmp::Le => x <= y,
        Cmp::Gt => x > y,
        Cmp::Ge => x >= y,
        Cmp::Equ => nan || x == y,
        Cmp::Neu => x != y,
        Cmp::Ltu => nan || x < y,
        Cmp::Leu => nan || x <= y,
        Cmp::Gtu => nan || x > y,
        Cmp::Geu => nan || x >= y,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}
