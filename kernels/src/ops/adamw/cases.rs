//! What conformance checks and the bench times.

use super::{Hyper, Step, reference, step};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, wide},
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct AdamW;

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Whether a bf16 copy is written.
    pub copy: bool,
    /// Elements.
    pub len: usize,
    /// Its numbers.
    pub h: Hyper,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { copy, len, h } = self;
        write!(f, "len {len} t {} copy {copy} zero_grad {}", h.t, h.zero_grad)
    }
}

/// Tensors of a case.
#[derive(Debug)]
pub struct Ready {
    w: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    out: Option<Tensor>,
}

impl Ready {
    fn step(&mut self) -> Step<'_> {
        Step { w: &mut self.w, g: &mut self.g, m: &mut self.m, v: &mut self.v, out: self.out.as_mut() }
    }
}

impl Op for AdamW {
    const NAME: &'static str = "adamw";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        [(1, 1), (7, 2), (33, 10), (100_001, 1000)].into_iter().flat_map(every).collect()
    }

    fn bench_cases() -> Vec<Case> {
        [(1 << 20, 10), (1 << 25, 10)].into_iter().flat_map(every).collect()
    }

    fn work(case: &Case) -> Work {
        let moved = 28 + if case.copy { 2 } else { 0 } + if case.h.zero_grad { 4 } else { 0 };
        Work { flops: 15.0 * case.len as f64, bytes: (moved * case.len) as f64, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let f32 = || Tensor::alone(s, DType::F32, [case.len]);
        let mut ready = Ready { w: f32()?, g: f32()?, m: f32()?, v: f32()?, out: None };
        let [w, g, m, v] = drawn(case, seed);
        for (t, values) in [(&mut ready.w, w), (&mut ready.g, g), (&mut ready.m, m), (&mut ready.v, v)] {
            t.set(&values);
        }
        if case.copy {
            ready.out = Some(Tensor::alone(s, DType::Bf16, [case.len])?);
        }
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        step(s, case.len, r.step(), case.h)
    }

    fn outputs(_: &Stream, _: &Case, r: &Ready) -> Result<Vec<Output>> {
        let named = [("w", &r.w), ("g", &r.g), ("m", &r.m), ("v", &r.v)];
        let mut outputs: Vec<Output> =
            named.into_iter().map(|(name, t)| Output { name, values: wide(&t.to_f32()) }).collect();
        if let Some(out) = &r.out {
            // The copy is w rounded, to the bit; the reference's own w may round the other way.
            let rounded = r.w.f32().iter().map(|&w| half::bf16::from_f32(w).to_f32());
            let off = out.to_f32().iter().zip(rounded).filter(|(out, w)| out.to_bits() != w.to_bits()).count();
            outputs.push(Output { name: "elements of the copy that are not w rounded", values: vec![off as f64] });
        }
        Ok(outputs)
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let [mut w, mut g, mut m, mut v] = drawn(case, seed).map(|values| wide(&values));
        reference::step(&mut w, &g, &mut m, &mut v, &case.h);
        if case.h.zero_grad {
            g.fill(0.0);
        }
        let mut outputs: Vec<Output> =
            [("w", w), ("g", g), ("m", m), ("v", v)].map(|(name, values)| Output { name, values }).into();
        if case.copy {
            outputs.push(Output { name: "elements of the copy that are not w rounded", values: vec![0.0] });
        }
        outputs
    }

    fn tolerance(_: &Case) -> f64 {
        2e-6
    }
}

/// With the copy and without, the gradient zeroed and kept.
fn every((len, t): (usize, u64)) -> Vec<Case> {
    let (lr, beta1, beta2, eps, weight_decay, scale) = (3e-2, 0.9, 0.95, 1e-8, 0.1, 0.7);
    let case =
        |copy, zero_grad| Case { copy, len, h: Hyper { lr, beta1, beta2, eps, weight_decay, t, scale, zero_grad } };
    vec![case(false, false), case(false, true), case(true, false), case(true, true)]
}

/// w, g, m and v; the first two moments start at nothing, as in a run.
fn drawn(case: &Case, seed: u64) -> [Vec<f32>; 4] {
    let draw = |i| draw(seed + i, case.len);
    let mut m = draw(2);
    let mut v: Vec<f32> = draw(3).iter().map(|x| 0.5 + x * x).collect();
    if case.h.t == 1 {
        m.fill(0.0);
        v.fill(0.0);
    }
    [draw(0), draw(1), m, v]
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::{harness, simd};
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<AdamW>();
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in AdamW::conform_cases() {
            let at = |level| {
                let mut r = AdamW::prepare(&s, &case, 5).unwrap();
                for _ in 0..3 {
                    r.g.set(&draw(8, case.len));
                    cpu::step(pool, level, case.len, r.step(), case.h);
                }
                let out = r.out.as_ref().map(|t| t.bytes().to_vec());
                ([&r.w, &r.g, &r.m, &r.v].map(|t| t.bytes().to_vec()), out)
            };
            let portable = at(simd::Level::Portable);
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                assert!(at(level) == portable, "{case:?}: {} differs from portable", level.name());
            }
        }
    }

    /// A slice updated alone gets the bits it gets in the whole: what sharding the optimiser needs.
    #[test]
    fn a_share_updates_as_in_the_whole() {
        let s = Stream::cpu(2).unwrap();
        let case = &every((70_001, 10))[0];
        let mut whole = AdamW::prepare(&s, case, 5).unwrap();
        step(&s, case.len, whole.step(), case.h).unwrap();
        let start = AdamW::prepare(&s, case, 5).unwrap();
        let share = 33_333..50_000;
        let cut = |t: &Tensor| {
            let mut part = Tensor::alone(&s, DType::F32, [share.len()]).unwrap();
            part.set(&t.f32()[share.clone()]);
            part
        };
        let mut part = Ready { w: cut(&start.w), g: cut(&start.g), m: cut(&start.m), v: cut(&start.v), out: None };
        step(&s, share.len(), part.step(), case.h).unwrap();
        assert_eq!(part.w.f32(), &whole.w.f32()[share]);
    }

    #[derive(Deserialize)]
    struct Golden {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        w: Vec<f64>,
        steps: Vec<After>,
    }

    #[derive(Deserialize)]
    struct After {
        g: Vec<f64>,
        w: Vec<f64>,
        m: Vec<f64>,
        v: Vec<f64>,
    }

    #[test]
    fn five_steps_agree_with_the_golden() {
        let golden: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let Golden { lr, beta1, beta2, eps, weight_decay, .. } = golden;
        let s = Stream::cpu(1).unwrap();
        let n = golden.w.len();
        let f32 = || Tensor::alone(&s, DType::F32, [n]).unwrap();
        let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<_>>();
        let mut fast = Ready { w: f32(), g: f32(), m: f32(), v: f32(), out: None };
        fast.w.set(&narrow(&golden.w));
        let (mut w, mut m, mut v) = (golden.w.clone(), vec![0.0; n], vec![0.0; n]);
        for (i, after) in golden.steps.iter().enumerate() {
            let h = Hyper { lr, beta1, beta2, eps, weight_decay, t: i as u64 + 1, scale: 1.0, zero_grad: true };
            reference::step(&mut w, &after.g, &mut m, &mut v, &h);
            for (got, want) in [(&w, &after.w), (&m, &after.m), (&v, &after.v)] {
                assert!(harness::distance(got, want).0 < 1e-13, "step {}", i + 1);
            }
            fast.g.set(&narrow(&after.g));
            step(&s, n, fast.step(), h).unwrap();
            assert!(harness::distance(&wide(fast.w.f32()), &after.w).0 < 1e-6, "step {}", i + 1);
        }
    }
}
