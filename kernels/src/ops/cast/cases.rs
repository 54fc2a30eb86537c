//! What conformance checks and the bench times.

use super::{add, convert, reference};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as, wide},
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct Cast;

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Whether added instead of converted.
    pub add: bool,
    /// Dtype read.
    pub from: DType,
    /// Dtype written.
    pub to: DType,
    /// Elements.
    pub len: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { add, from, to, len } = self;
        write!(f, "{} {from} to {to} len {len}", if *add { "add" } else { "convert" })
    }
}

/// Tensors of a case.
#[derive(Debug)]
pub struct Ready {
    from: Tensor,
    to: Tensor,
}

impl Op for Cast {
    const NAME: &'static str = "cast";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        [1, 7, 33, 100_001].into_iter().flat_map(every).collect()
    }

    fn bench_cases() -> Vec<Case> {
        [1 << 20, 1 << 26].into_iter().flat_map(every).filter(|c| c.add || c.from != c.to).collect()
    }

    fn work(case: &Case) -> Work {
        let moved = case.from.bytes() + case.to.bytes() * if case.add { 2 } else { 1 };
        let flops = if case.add { case.len as f64 } else { 0.0 };
        Work { flops, bytes: (moved * case.len) as f64, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let mut ready =
            Ready { from: Tensor::alone(s, case.from, [case.len])?, to: Tensor::alone(s, case.to, [case.len])? };
        ready.from.set(&draw(seed, case.len));
        match case.add {
            true => ready.to.set(&draw(seed + 1, case.len)),
            false => ready.to.poison(),
        }
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.add {
            true => add(s, case.len, &r.from, &mut r.to),
            false => convert(s, case.len, &r.from, &mut r.to),
        }
    }

    fn outputs(_: &Stream, _: &Case, r: &Ready) -> Result<Vec<Output>> {
        Ok(vec![Output { name: "to", values: wide(&r.to.to_f32()) }])
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let from = draw_as(case.from, seed, case.len);
        let values = match (case.add, case.to) {
            (true, _) => {
                let mut to = wide(&draw(seed + 1, case.len));
                reference::add(&wide(&from), &mut to);
                to
            }
            (false, DType::Bf16) => from.into_iter().map(reference::round).collect(),
            (false, _) => wide(&from),
        };
        vec![Output { name: "to", values }]
    }

    fn tolerance(case: &Case) -> f64 {
        if case.add { 1e-6 } else { 0.0 }
    }
}

/// Each pair of dtypes, and the sum.
fn every(len: usize) -> Vec<Case> {
    let (f32, bf16) = (DType::F32, DType::Bf16);
    let case = |add, from, to| Case { add, from, to, len };
    vec![
        case(false, f32, bf16),
        case(false, bf16, f32),
        case(false, f32, f32),
        case(false, bf16, bf16),
        case(true, f32, f32),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::{harness, simd};
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<Cast>();
    }

    /// The bits of `from`, converted at `level`.
    fn bf16_bits(level: simd::Level, from: &[u32]) -> Vec<u16> {
        let s = Stream::cpu(1).unwrap();
        let pool = s.host();
        let mut f = Tensor::alone(&s, DType::F32, [from.len()]).unwrap();
        let mut t = Tensor::alone(&s, DType::Bf16, [from.len()]).unwrap();
        bytemuck::cast_slice_mut(f.bytes_mut()).copy_from_slice(from);
        cpu::convert(pool, level, from.len(), &f, &mut t);
        bytemuck::cast_slice(t.bytes()).to_vec()
    }

    fn levels() -> impl Iterator<Item = simd::Level> {
        simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected())
    }

    /// Every upper half with the lower halves at which rounding turns, at each level, against the definition.
    #[test]
    fn every_number_rounds_to_the_nearest_and_nan_stays_nan() {
        let lower = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let from: Vec<u32> = (0..=0xffffu32).flat_map(|upper| lower.map(|lower| upper << 16 | lower)).collect();
        let portable = bf16_bits(simd::Level::Portable, &from);
        for (&from, &to) in from.iter().zip(&portable) {
            let (x, got) = (f32::from_bits(from), f32::from_bits(u32::from(to) << 16));
            if x.is_nan() {
                assert!(
                    got.is_nan() && got.is_sign_negative() == x.is_sign_negative(),
                    "{from:#010x} became {to:#06x}"
                );
            } else {
                assert_eq!(f64::from(got).to_bits(), reference::round(x).to_bits(), "{from:#010x} became {to:#06x}");
            }
        }
        for level in levels() {
            assert!(bf16_bits(level, &from) == portable, "{} differs from portable", level.name());
        }
    }

    #[test]
    fn every_bf16_survives_the_way_there_and_back() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        let all: Vec<u16> = (0..=0xffff).collect();
        let mut from = Tensor::alone(&s, DType::Bf16, [all.len()]).unwrap();
        let mut wide = Tensor::alone(&s, DType::F32, [all.len()]).unwrap();
        bytemuck::cast_slice_mut(from.bytes_mut()).copy_from_slice(&all);
        for level in levels() {
            cpu::convert(pool, level, all.len(), &from, &mut wide);
            let back = bf16_bits(level, bytemuck::cast_slice(wide.bytes()));
            for (&was, &is) in all.iter().zip(&back) {
                let signalling = was & 0x7f80 == 0x7f80 && was & 0x7f != 0 && was & 0x40 == 0;
                assert_eq!(is, if signalling { was | 0x40 } else { was }, "{}", level.name());
            }
        }
    }

    #[derive(Deserialize)]
    struct Golden {
        f32: Vec<u32>,
        bf16: Vec<u16>,
    }

    #[test]
    fn rounding_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        assert_eq!(bf16_bits(simd::level(), &g.f32), g.bf16);
        for (&from, &to) in g.f32.iter().zip(&g.bf16) {
            let golden = f64::from(f32::from_bits(u32::from(to) << 16));
            assert_eq!(reference::round(f32::from_bits(from)).to_bits(), golden.to_bits(), "{from:#010x}");
        }
    }
}
