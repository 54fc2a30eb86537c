//! What conformance checks and the bench times.

use super::{Backward, Dims, Forward, backward, forward, reference};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as, wide},
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct SwiGlu;

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Whether backward.
    pub backward: bool,
    /// Dtype of all tensors.
    pub dtype: DType,
    /// Sizes.
    pub d: Dims,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { backward, dtype, d: Dims { rows, cols } } = self;
        write!(f, "{} {dtype} rows {rows} cols {cols}", if *backward { "backward" } else { "forward" })
    }
}

/// Tensors of a case: `h` stands for h and dh.
#[derive(Debug)]
pub struct Ready {
    g: Tensor,
    u: Tensor,
    h: Tensor,
    dg: Tensor,
    du: Tensor,
}

impl Ready {
    fn forward(&mut self) -> Forward<'_> {
        Forward { g: &self.g, u: &self.u, h: &mut self.h }
    }

    fn backward(&mut self) -> Backward<'_> {
        Backward { g: &self.g, u: &self.u, dh: &self.h, dg: &mut self.dg, du: &mut self.du }
    }
}

impl Op for SwiGlu {
    const NAME: &'static str = "swiglu";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        every(&[(1, 1), (3, 5), (7, 33), (2, 1031), (33, 1000)])
    }

    fn bench_cases() -> Vec<Case> {
        every(&[(2048, 768), (1024, 2048), (2048, 2048), (2048, 11008)])
    }

    fn work(case: &Case) -> Work {
        let elements = (case.d.rows * case.d.cols) as f64;
        // exp is 16 operations, the rest what the page shows.
        let (moved, flops) = if case.backward { (5, 27.0) } else { (3, 21.0) };
        let bytes = (moved * case.dtype.bytes()) as f64;
        Work { flops: flops * elements, bytes: bytes * elements, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let n = case.d.rows * case.d.cols;
        let mut ready = Ready {
            g: Tensor::alone(s, case.dtype, [n])?,
            u: Tensor::alone(s, case.dtype, [n])?,
            h: Tensor::alone(s, case.dtype, [n])?,
            dg: Tensor::alone(s, case.dtype, [n])?,
            du: Tensor::alone(s, case.dtype, [n])?,
        };
        ready.g.set(&gate(case.dtype, seed, n));
        ready.u.set(&draw(seed + 1, n));
        match case.backward {
            true => ready.h.set(&draw(seed + 2, n)),
            false => ready.h.poison(),
        }
        ready.dg.poison();
        ready.du.poison();
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.backward {
            true => backward(s, case.d, r.backward()),
            false => forward(s, case.d, r.forward()),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        let values = |t: &Tensor| wide(&t.to_f32());
        Ok(match case.backward {
            true => vec![Output { name: "dg", values: values(&r.dg) }, Output { name: "du", values: values(&r.du) }],
            false => vec![Output { name: "h", values: values(&r.h) }],
        })
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let n = case.d.rows * case.d.cols;
        let (g, u) = (wide(&gate(case.dtype, seed, n)), wide(&draw_as(case.dtype, seed + 1, n)));
        match case.backward {
            true => {
                let (dg, du) = reference::backward(&g, &u, &wide(&draw_as(case.dtype, seed + 2, n)));
                vec![Output { name: "dg", values: dg }, Output { name: "du", values: du }]
            }
            false => vec![Output { name: "h", values: reference::forward(&g, &u) }],
        }
    }

    fn tolerance(case: &Case) -> f64 {
        if case.dtype == DType::Bf16 { 6e-2 } else { 5e-6 }
    }
}

/// Both directions at each of `sizes` (rows, cols), in both dtypes.
fn every(sizes: &[(usize, usize)]) -> Vec<Case> {
    let kinds = [(false, DType::F32), (false, DType::Bf16), (true, DType::F32), (true, DType::Bf16)];
    let cases = sizes
        .iter()
        .flat_map(|&(rows, cols)| kinds.map(|(backward, dtype)| Case { backward, dtype, d: Dims { rows, cols } }));
    cases.collect()
}

/// Wider than what is drawn elsewhere, so that both tails of the sigmoid are met.
fn gate(dtype: DType, seed: u64, n: usize) -> Vec<f32> {
    // Four times a bf16 is a bf16.
    draw_as(dtype, seed, n).iter().map(|x| 4.0 * x).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::{harness, simd};
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<SwiGlu>();
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in SwiGlu::conform_cases() {
            let at = |level| {
                let mut r = SwiGlu::prepare(&s, &case, 5).unwrap();
                match case.backward {
                    true => cpu::backward(pool, level, case.d, r.backward()),
                    false => cpu::forward(pool, level, case.d, r.forward()),
                }
                [&r.h, &r.dg, &r.du].map(|t| t.bytes().to_vec())
            };
            let portable = at(simd::Level::Portable);
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                assert!(at(level) == portable, "{case:?}: {} differs from portable", level.name());
            }
        }
    }

    /// One element through the doors, f32.
    fn at(g: f32) -> (f32, f32) {
        let s = Stream::cpu(1).unwrap();
        let case = Case { backward: false, dtype: DType::F32, d: Dims { rows: 1, cols: 1 } };
        let mut r = SwiGlu::prepare(&s, &case, 1).unwrap();
        r.g.set(&[g]);
        r.u.set(&[1.0]);
        forward(&s, case.d, r.forward()).unwrap();
        let h = r.h.f32()[0];
        r.h.set(&[1.0]);
        backward(&s, case.d, r.backward()).unwrap();
        (h, r.dg.f32()[0])
    }

    #[test]
    fn far_out_the_gate_is_open_or_shut_and_nan_stays() {
        for g in [100.0, 1e4, 1e30] {
            assert_eq!(at(g), (g, 1.0));
            let (h, dg) = at(-g);
            assert!(h.abs() <= 1e-37 * g && dg.abs() <= 1e-37 * g, "at -{g}: {h} {dg}");
        }
        assert!(at(f32::NAN).0.is_nan() && at(f32::NAN).1.is_nan());
    }

    #[derive(Deserialize)]
    struct Golden {
        g: Vec<f64>,
        u: Vec<f64>,
        dh: Vec<f64>,
        h: Vec<f64>,
        dg: Vec<f64>,
        du: Vec<f64>,
    }

    #[test]
    fn the_reference_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let h = reference::forward(&g.g, &g.u);
        let (dg, du) = reference::backward(&g.g, &g.u, &g.dh);
        for (got, want) in [(h, g.h), (dg, g.dg), (du, g.du)] {
            assert!(harness::distance(&got, &want).0 < 1e-13);
        }
    }
}
