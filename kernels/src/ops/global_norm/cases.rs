//! What conformance checks and the bench times.

use super::{reference, sum_squares};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw},
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct GlobalNorm;

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Elements.
    pub len: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "len {}", self.len)
    }
}

/// Tensors of a case, and the result.
#[derive(Debug)]
pub struct Ready {
    t: Tensor,
    sum: f64,
}

impl Op for GlobalNorm {
    const NAME: &'static str = "global_norm";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        [0, 1, 31, 33, 65_535, 65_537, 300_001].map(|len| Case { len }).into()
    }

    fn bench_cases() -> Vec<Case> {
        [1 << 20, 1 << 26].map(|len| Case { len }).into()
    }

    fn work(case: &Case) -> Work {
        Work { flops: 2.0 * case.len as f64, bytes: 4.0 * case.len as f64, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let mut t = Tensor::alone(s, DType::F32, [case.len])?;
        t.set(&draw(seed, case.len));
        Ok(Ready { t, sum: f64::NAN })
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        r.sum = sum_squares(s, &r.t, case.len)?;
        Ok(())
    }

    fn outputs(_: &Stream, _: &Case, r: &Ready) -> Result<Vec<Output>> {
        Ok(vec![Output { name: "sum", values: vec![r.sum] }])
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let t: Vec<f64> = draw(seed, case.len).into_iter().map(f64::from).collect();
        vec![Output { name: "sum", values: vec![reference::sum_squares(&t)] }]
    }

    fn tolerance(_: &Case) -> f64 {
        // The reference adds one by one, and is the less exact of the two.
        1e-12
    }
}

#[cfg(test)]
mod tests {
    use super::super::{clip_scale, cpu};
    use super::*;
    use crate::{harness, simd};
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<GlobalNorm>();
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in GlobalNorm::conform_cases() {
            let r = GlobalNorm::prepare(&s, &case, 5).unwrap();
            let portable = cpu::sum_squares(pool, simd::Level::Portable, r.t.f32());
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                let sum = cpu::sum_squares(pool, level, r.t.f32());
                assert_eq!(sum.to_bits(), portable.to_bits(), "{case:?}: {} differs from portable", level.name());
            }
        }
    }

    #[test]
    fn huge_gradients_do_not_overflow_and_nan_is_not_clipped_away() {
        let s = Stream::cpu(1).unwrap();
        let mut t = Tensor::alone(&s, DType::F32, [100]).unwrap();
        t.set(&[f32::MAX; 100]);
        let norm = sum_squares(&s, &t, 100).unwrap().sqrt();
        assert_eq!(norm, 10.0 * f64::from(f32::MAX));
        assert!(clip_scale(norm, 1.0) > 0.0);
        t.f32_mut()[50] = f32::NAN;
        let norm = sum_squares(&s, &t, 100).unwrap().sqrt();
        assert!(norm.is_nan() && clip_scale(norm, 1.0).is_nan());
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
    }

    #[derive(Deserialize)]
    struct Golden {
        max: f64,
        grads: Vec<Vec<f64>>,
        norm: f64,
        clipped: Vec<Vec<f64>>,
    }

    #[test]
    fn the_clip_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let norm = g.grads.iter().map(|t| reference::sum_squares(t)).sum::<f64>().sqrt();
        assert!((norm / g.norm - 1.0).abs() < 1e-14);
        let scale = reference::clip_scale(norm, g.max);
        assert!((f64::from(clip_scale(norm, g.max)) / scale - 1.0).abs() < 1e-7);
        for (before, after) in g.grads.iter().zip(&g.clipped) {
            let clipped: Vec<f64> = before.iter().map(|x| x * scale).collect();
            assert!(harness::distance(&clipped, after).0 < 1e-13);
        }
    }
}
