//! Attention on the host: tiles of scores made and used by matmul's single-thread kernels.
//!
//! The kernels multiply a left operand in panels of `mr` rows by a right operand in panels of `nr` columns, into rows of
//! `nr` f32. A tile of scores `[k][nr]` is therefore, as it lies, the right operand of the product that sums over its
//! rows (in bf16, after packing it into pairs), and the softmax in between works down the lanes.
//!
//! | pass     | rows of a tile | lanes   | products |
//! | -------- | -------------- | ------- | -------- |
//! | forward  | keys           | queries | Sᵀ = K·Qᵀ, Oᵀ += Vᵀ·Pᵀ |
//! | backward | queries        | keys    | S = Q·Kᵀ, dP = dO·Vᵀ, dVᵀ += dOᵀ·P, dKᵀ += Qᵀ·dS, dQ += dS·K |
//!
//! Where the kernels read a left operand as it lies (AVX-512; in bf16 by rows only), rows are not packed but copied, from
//! tokens whole heads apart to an odd number of cache lines apart: one copy of Q serves S and dK, one of dO serves dP and
//! dV, and dS is written a second time as rows for dQ. Then a tile also starts at the very row that sees its first
//! key. Elsewhere all of these are packed into panels. The next tile's rows, and those that results go to, are asked for
//! between products (`cpu/ahead.rs`).
//!
//! Forward runs a piece for each head and 256 queries, the longest first. It takes, in words of 32 bits with
//! D' = D + 31 at most: q and the sums of o 256·D each, a tile of 112 keys and values 2·112·D', scores and their
//! packed form 2·112·32: 1.5 MiB for D = 512, 235 KiB for D = 64, which stays in L2.
//!
//! GFLOP/s of the bench's cases on one thread of an AMD Zen 4 (AVX-512 with BF16), fastest run by thread CPU time, where
//! multiply-adds on registers alone reach 118 in f32 and 236 in bf16; behind the comma, in the same minutes, what it was
//! when every operand was packed and nothing asked for ahead; in brackets, of slower minutes in which a product of
//! 1536³ reached 90 and 202 there, PyTorch 2.15's scaled_dot_product_attention:
//!
//! | case                 | f32 forward  | f32 backward | bf16 forward  | bf16 backward |
//! | -------------------- | ------------ | ------------ | ------------- | ------------- |
//! | B8 T256 H6 D48       | 72, 64 (33)  | 75, 59 (32)  | 116, 106 (31) | 116, 104 (25) |
//! | B1 T1024 H12 D64     | 91, 85 (51)  | 99, 88 (47)  | 157, 144 (49) | 165, 152 (66) |
//! | B1 T4096 H12 D64     | 97, 89 (62)  | 103, 97 (57) | 163, 151 (55) | 179, 168 (90) |
//! | B1 T2048 H32 K8 D128 | 99, 95 (55)  | 105, 98 (57) | 179, 172 (67) | 191, 184 (79) |

mod ahead;
mod backward;
mod decode;
mod forward;
mod lanes;
mod loops;
mod vector;

pub(super) use backward::backward;
pub(super) use decode::decode;
pub(super) use forward::{forward, tree};

use super::Dims;
use crate::{
    ops::matmul::{
        Put,
        tile::{In, Kernel, Left, Major, Operand, Precision, kernel},
    },
    pool::Parts,
    simd::Level,
    tensor::{DType, Tensor},
};
use ahead::Ahead;
use half::bf16;
use lanes::{Lanes, lanes};

/// Rows of a tile of scores, cut to whole panels: 112 with panels of 14 rows, 108 with 6.
const TILE_ROWS: usize = 112;

/// How a level computes in a run's precision.
#[derive(Clone, Copy)]
struct Arithmetic {
    /// Products.
    kernel: &'static Kernel,
    /// Turns rows into columns: packing in f32 is just that.
    turner: &'static Kernel,
    /// Softmax.
    lanes: &'static Lanes,
    /// Rows of a tile of scores.
    rows: usize,
    /// Whether a tile of f32 is a packed operand as it lies.
    packed: bool,
}

impl Arithmetic {
    fn new(level: Level, dtype: DType) -> Arithmetic {
        let precision = if dtype == DType::Bf16 { Precision::Bf16 } else { Precision::F32 };
        let (kernel, turner, lanes) = (kernel(level, precision), kernel(level, Precision::F32), lanes(level));
        assert!(kernel.nr == lanes.nr && turner.nr == lanes.nr, "attention: panels of {}", kernel.nr);
        let rows = TILE_ROWS / kernel.mr * kernel.mr;
        Arithmetic { kernel, turner, lanes, rows, packed: precision == Precision::F32 }
    }

    /// Bytes of an element of q, k, v and the rest.
    fn bytes(&self) -> usize {
        if self.packed { 4 } else { 2 }
    }

    /// How many words after one another's start rows of `width` words are put: an odd number of cache lines, so that those
    /// of a tile meet in no set of L1.
    fn distance(width: usize) -> usize {
        width.next_multiple_of(16) | 16
    }

    /// Whether tiles read such rows of f32 where they lie, whichever way the operand lies.
    fn reads_rows(&self) -> bool {
        let x = Operand { data: In::F32(&[]), ld: Arithmetic::distance(1), major: Major::K };
        self.kernel.lies_ready(x, 1) && self.kernel.lies_ready(Operand { major: Major::Outer, ..x }, 1)
    }

    /// Words that [`Arithmetic::near`] takes for m rows by k.
    fn near_words(&self, x: Major, m: usize, k: usize) -> usize {
        let (rows, width) = if x == Major::K { (m, k) } else { (k, m) };
        self.kernel.a_words(m, k).max(rows * Arithmetic::distance(width))
    }

    /// x as a left operand of m rows by k, in `space`: copied if tiles read it as it lies there, else packed. Also, where x
    /// is best read from now on.
    fn near<'a>(&self, x: Operand<'a>, m: usize, k: usize, space: &'a mut [u32]) -> (Operand<'a>, Left<'a>) {
        let (rows, width) = if x.major == Major::K { (m, k) } else { (k, m) };
        let per_word = if matches!(x.data, In::F32(_)) { 1 } else { 2 };
        let words = width.div_ceil(per_word);
        let ld = Arithmetic::distance(words);
        if !self.kernel.lies_ready(Operand { ld: ld * per_word, ..x }, k) {
            return (x, self.packed(x, m, k, space));
        }
        assert!((rows - 1) * x.ld + words * per_word <= x.data.len(), "attention: {rows} rows of {width}");
        let from = match x.data {
            In::F32(x) => x.as_ptr(),
            In::Bf16(x) => x.as_ptr().cast(),
        };
        let space = &mut space[..rows * ld];
        // SAFETY: the rows are in `x.data`, by the assert.
        unsafe { self.lanes.copied(from, x.ld / per_word, rows, words, bytemuck::cast_slice_mut(space), ld) }
        let data = match x.data {
            In::F32(_) => In::F32(bytemuck::cast_slice(space)),
            In::Bf16(_) => In::Bf16(bytemuck::cast_slice(space)),
        };
        let x = Operand { data, ld: ld * per_word, ..x };
        (x, Left::Lying(x))
    }

    /// x as a left operand of m rows by k, packed into `space`.
    fn packed<'a>(&self, x: Operand<'a>, m: usize, k: usize, space: &'a mut [u32]) -> Left<'a> {
        self.kernel.pack_a(x, m, k, space);
        Left::Panels(space)
    }

    /// What of a left operand of `k` elements a row starts at row i, the first of a panel, and element t, the first of a
    /// step.
    fn part<'a>(&self, x: Left<'a>, k: usize, i: usize, t: usize) -> Left<'a> {
        let kernel = self.kernel;
        match x {
            Left::Panels(x) => Left::Panels(&x[i * kernel.steps(k) + t / kernel.pair * kernel.mr..]),
            Left::Lying(x) => Left::Lying(x.from(i, t)),
        }
    }

    /// c (+)= a·b, `m` by `n`; a is [`Arithmetic::part`] of an operand, whose panels are of `a_k` elements a row. Rows are
    /// asked for between its tiles.
    fn product(
        &self,
        [m, n, k]: [usize; 3],
        (a, a_k): (Left<'_>, usize),
        b: &[u32],
        (c, ldc): (&mut [f32], usize),
        put: Put,
        ahead: &mut Ahead,
    ) {
        let mr = self.kernel.mr;
        // Panels that are longer than the sum are taken one by one.
        let rows = if matches!(a, Left::Panels(_)) && a_k != k { mr } else { 4 * mr };
        for i in (0..m).step_by(rows) {
            self.kernel.block(rows.min(m - i), n, k, self.part(a, a_k, i, 0), b, &mut c[i * ldc..], ldc, put);
            ahead.ask();
        }
    }

    /// How often [`Arithmetic::product`] asks for rows, where there are `m`.
    fn asks(&self, m: usize) -> usize {
        m.div_ceil(4 * self.kernel.mr)
    }

    /// A tile of `rows` rows as a right operand: itself, or packed into `space`.
    fn right<'a>(&self, tile: &'a [f32], rows: usize, space: &'a mut [u32]) -> &'a [u32] {
        if self.packed {
            return bytemuck::cast_slice(tile);
        }
        let nr = self.kernel.nr;
        let source = Operand { data: In::F32(tile), ld: nr, major: Major::Outer };
        self.kernel.pack_b(source, nr, rows, space);
        space
    }

    /// Writes the sums `[D][nr]`, turned: lane r, times by_r, becomes D elements of `to` from `at + r·ld` on.
    ///
    /// # Safety
    /// Nobody else touches these elements of `to` meanwhile.
    unsafe fn turn_out(&self, sums: &[f32], by: &[f32], to: &Sink<'_>, at: usize, ld: usize, space: &mut [u32]) {
        let (nr, head_dim) = (self.kernel.nr, sums.len() / self.kernel.nr);
        for c in (0..head_dim).step_by(nr) {
            let width = nr.min(head_dim - c);
            let source = Operand { data: In::F32(&sums[c * nr..]), ld: nr, major: Major::K };
            self.turner.pack_b(source, width, by.len(), space);
            let turned = &bytemuck::cast_slice(space)[..by.len() * nr];
            // SAFETY: the caller's promise.
            unsafe { self.lanes.write(turned, by, width, to, at + c, ld) }
        }
    }
}

/// A tensor that pieces write, each its own elements.
enum Sink<'a> {
    F32(Parts<'a, f32>),
    Bf16(Parts<'a, bf16>),
}

impl<'a> Sink<'a> {
    fn new(t: &'a mut Tensor) -> Sink<'a> {
        match t.dtype() {
            DType::Bf16 => Sink::Bf16(Parts::new(t.bf16_mut())),
            _ => Sink::F32(Parts::new(t.f32_mut())),
        }
    }

    /// The address of element `at`.
    fn address(&self, at: usize) -> *const u8 {
        match self {
            Sink::F32(to) => to.at(at).cast_const().cast(),
            Sink::Bf16(to) => to.at(at).cast_const().cast(),
        }
    }
}

fn input(t: &Tensor) -> In<'_> {
    match t.dtype() {
        DType::Bf16 => In::Bf16(t.bf16()),
        _ => In::F32(t.f32()),
    }
}

/// The next `words` of `rest`, whole cache lines.
fn take<'a>(rest: &mut &'a mut [u32], words: usize) -> &'a mut [u32] {
    let (head, tail) = std::mem::take(rest).split_at_mut(words.next_multiple_of(16));
    *rest = tail;
    &mut head[..words]
}

/// As [`take`], for f32.
fn take_f32<'a>(rest: &mut &'a mut [u32], words: usize) -> &'a mut [f32] {
    bytemuck::cast_slice_mut(take(rest, words))
}

/// Where things lie in `[B, T, heads, D]`.
impl Dims {
    /// Token i of row b, head h, in q.
    fn query(self, b: usize, i: usize, h: usize) -> usize {
        ((b * self.seq + i) * self.heads + h) * self.head_dim
    }

    /// Token j of row b, key head h, in k.
    fn key(self, b: usize, j: usize, h: usize) -> usize {
        ((b * self.seq + j) * self.kv_heads + h) * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::{
        backward::{Plan, backward_at},
        decode::decode_at,
        forward::{Source, forward_at},
        *,
    };
    use crate::{
        device::Stream,
        harness::{self, Op},
        ops::attention::cases::{Attention, Case, Door, Ready},
        pool::Pool,
        simd,
    };

    fn run(pool: &Pool, level: Level, plan: Plan, case: &Case, r: &mut Ready) {
        match case.door {
            Door::Forward => {
                let a = r.forward();
                let first = a.first.map(Tensor::u32);
                let x = Source { q: input(a.q), k: input(a.k), v: input(a.v), first, trunk: None, start: 0 };
                forward_at(pool, level, case.d, &x, a.o, Some(a.lse));
            }
            Door::Backward => backward_at(pool, level, Some(plan), case.d, r.backward()),
            Door::Tree => {
                let a = r.tree();
                let (first, trunk) = (Some(a.first.u32()), Some(a.trunk.u32()));
                let x = Source { q: input(a.q), k: input(a.k), v: input(a.v), first, trunk, start: 0 };
                forward_at(pool, level, case.d, &x, a.o, None);
            }
            Door::Decode(len) => decode_at(pool, level, case.d, r.decode(len)),
        }
    }

    #[test]
    fn every_level_and_plan_conforms() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in Attention::conform_cases() {
            let want = Attention::reference(&case, 5);
            for level in Level::ALL.into_iter().filter(|&level| level <= simd::detected()) {
                let mut before: Option<Vec<harness::Output>> = None;
                for plan in [Plan::Fused, Plan::FusedShared, Plan::Split] {
                    if case.door != Door::Backward && plan != Plan::Fused {
                        continue;
                    }
                    let mut r = Attention::prepare(&s, &case, 5).unwrap();
                    run(pool, level, plan, &case, &mut r);
                    let got = Attention::outputs(&s, &case, &r).unwrap();
                    for (got, want) in got.iter().zip(&want) {
                        let (error, at) = harness::distance(&got.values, &want.values);
                        assert!(
                            error <= Attention::tolerance(&case),
                            "{case:?} {level:?} {plan:?}: {}[{at}] is {}, {} wanted",
                            got.name,
                            got.values[at],
                            want.values[at]
                        );
                    }
                    for (got, before) in got.iter().zip(before.iter().flatten()) {
                        assert_eq!(got.values, before.values, "{case:?} {level:?} {plan:?}: {}", got.name);
                    }
                    before = Some(got);
                }
            }
        }
    }

    #[test]
    fn scratch_suffices_for_the_largest_head() {
        for level in Level::ALL.into_iter().filter(|&level| level <= simd::detected()) {
            for dtype in [DType::F32, DType::Bf16] {
                let with = Arithmetic::new(level, dtype);
                for head_dim in [1, 31, 64, 128, 129, crate::ops::attention::HEAD_DIM_MAX] {
                    let d = Dims { batch: 1, seq: 1, heads: 1, kv_heads: 1, head_dim };
                    assert!(backward::split_fits(&with, d), "{level:?} {dtype} {head_dim}");
                }
            }
        }
    }
}
