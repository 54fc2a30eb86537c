//! What conformance checks and the bench times.

use super::{AddForward, Backward, Dims, Forward, add_forward, backward, forward, reference};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as, wide},
    ops::matmul::Put,
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct RmsNorm;

/// A door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// y = norm(x)
    Forward,
    /// sum = x + delta, y = norm(sum)
    AddForward,
    /// dx and dw
    Backward,
}

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Which door.
    pub door: Door,
    /// Dtype of x and dx.
    pub x: DType,
    /// Dtype of y, dy and delta.
    pub y: DType,
    /// What happens to dx.
    pub put: Put,
    /// Sizes.
    pub d: Dims,
    /// Rows that dw takes together.
    pub grain: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { door, x, y, put, d, grain } = self;
        write!(f, "{door:?} x {x} y {y} rows {} cols {}", d.rows, d.cols)?;
        if *door == Door::Backward {
            write!(f, " grain {grain} {put:?}")?;
        }
        Ok(())
    }
}

/// Tensors of a case; those that a door does not use stay as drawn.
#[derive(Debug)]
pub struct Ready {
    x: Tensor,
    w: Tensor,
    r: Tensor,
    delta: Tensor,
    sum: Tensor,
    y: Tensor,
    dx: Tensor,
    dw: Tensor,
    put: Put,
}

const EPS: f32 = 1e-3;

impl Ready {
    fn forward(&mut self) -> Forward<'_> {
        Forward { x: &self.x, w: &self.w, y: &mut self.y, r: &mut self.r, eps: EPS }
    }

    fn add_forward(&mut self) -> AddForward<'_> {
        let Ready { x, w, r, delta, sum, y, .. } = self;
        AddForward { x, delta, sum, w, y, r, eps: EPS }
    }

    /// `y` stands for dy.
    fn backward(&mut self) -> Backward<'_> {
        let Ready { x, w, r, y, dx, dw, put, .. } = self;
        Backward { x, w, r, dy: y, dx, dw, put: *put }
    }
}

impl Op for RmsNorm {
    const NAME: &'static str = "rmsnorm";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        // rows, cols, grain: one element, less than the lanes, just over them, a head, a grain of several blocks.
        let sizes =
            [(1, 1, 1), (6, 8, 3), (5, 33, 5), (300, 64, 150), (200, 129, 50), (4100, 16, 2050), (66, 1100, 33)];
        let mut cases: Vec<Case> = sizes.into_iter().flat_map(every).collect();
        cases.extend(every((3, 8200, 3)));
        cases
    }

    fn bench_cases() -> Vec<Case> {
        let streams = [(2048, 288, 256), (1024, 768, 1024), (2048, 768, 2048), (2048, 4096, 2048), (512, 8192, 512)];
        let heads = [(2048 * 12, 64, 2048 * 12), (2048 * 16, 128, 2048 * 16)];
        streams.into_iter().chain(heads).flat_map(every).filter(|c| c.x == DType::F32 || c.d.cols <= 128).collect()
    }

    fn work(case: &Case) -> Work {
        let (x, y) = (case.x.bytes(), case.y.bytes());
        let (bytes, flops) = match case.door {
            Door::Forward => (x + y, 4),
            Door::AddForward => (4 + y + 4 + y, 5),
            Door::Backward => (x + y + x + if case.put == Put::Add { x } else { 0 }, 11),
        };
        let elements = (case.d.rows * case.d.cols) as f64;
        Work { flops: flops as f64 * elements, bytes: bytes as f64 * elements, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let Dims { rows, cols } = case.d;
        let mut ready = Ready {
            x: Tensor::alone(s, case.x, [rows, cols])?,
            w: Tensor::alone(s, DType::F32, [cols])?,
            r: Tensor::alone(s, DType::F32, [rows])?,
            delta: Tensor::alone(s, case.y, [rows, cols])?,
            sum: Tensor::alone(s, DType::F32, [rows, cols])?,
            y: Tensor::alone(s, case.y, [rows, cols])?,
            dx: Tensor::alone(s, case.x, [rows, cols])?,
            dw: Tensor::alone(s, DType::F32, [cols])?,
            put: case.put,
        };
        ready.x.set(&draw(seed, rows * cols));
        ready.w.set(&draw(seed + 1, cols));
        ready.delta.set(&draw(seed + 2, rows * cols));
        ready.dw.set(&draw(seed + 3, cols));
        if case.door == Door::Backward {
            ready.y.set(&draw(seed + 4, rows * cols));
            ready.r.set(&rounded(&scales(case, seed)));
        } else {
            ready.y.poison();
            ready.r.poison();
        }
        match case.put {
            Put::Add => ready.dx.set(&draw(seed + 5, rows * cols)),
            Put::Set => ready.dx.poison(),
        }
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.door {
            Door::Forward => forward(s, case.d, r.forward()),
            Door::AddForward => add_forward(s, case.d, r.add_forward()),
            Door::Backward => backward(s, case.d, r.backward(), case.grain),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        let named: &[(&'static str, &Tensor)] = match case.door {
            Door::Forward => &[("y", &r.y), ("r", &r.r)],
            Door::AddForward => &[("sum", &r.sum), ("y", &r.y), ("r", &r.r)],
            Door::Backward => &[("dx", &r.dx), ("dw", &r.dw)],
        };
        Ok(named.iter().map(|(name, t)| Output { name, values: wide(&t.to_f32()) }).collect())
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let n = case.d.rows * case.d.cols;
        let mut x = wide(&draw_as(case.x, seed, n));
        let w = wide(&draw(seed + 1, case.d.cols));
        if case.door == Door::Backward {
            let r = wide(&rounded(&scales(case, seed)));
            let dy = wide(&draw_as(case.y, seed + 4, n));
            let mut dw = wide(&draw(seed + 3, case.d.cols));
            let mut dx = reference::backward(case.d, &x, &w, &r, &dy, &mut dw);
            if case.put == Put::Add {
                for (dx, was) in dx.iter_mut().zip(draw(seed + 5, n)) {
                    *dx += f64::from(was);
                }
            }
            return vec![Output { name: "dx", values: dx }, Output { name: "dw", values: dw }];
        }
        let mut outputs = Vec::new();
        if case.door == Door::AddForward {
            for (x, delta) in x.iter_mut().zip(draw_as(case.y, seed + 2, n)) {
                *x += f64::from(delta);
            }
            outputs.push(Output { name: "sum", values: x.clone() });
        }
        let (y, r) = reference::forward(case.d, &x, &w, f64::from(EPS));
        outputs.extend([Output { name: "y", values: y }, Output { name: "r", values: r }]);
        outputs
    }

    fn tolerance(case: &Case) -> f64 {
        let rounds = match case.door {
            Door::Backward => case.x,
            _ => case.y,
        };
        // A rounding to bf16 is off by up to 2^-9 of a value, and values lie up to some five times their root mean square.
        match rounds {
            DType::Bf16 => 4e-2,
            // The gradient of a norm of one number cancels but for eps.
            _ if case.d.cols == 1 => 1e-3,
            _ => 2e-5,
        }
    }
}

/// Each door in each set of dtypes.
fn every((rows, cols, grain): (usize, usize, usize)) -> Vec<Case> {
    let (f32, bf16) = (DType::F32, DType::Bf16);
    let case = |door, x, y, put| Case { door, x, y, put, d: Dims { rows, cols }, grain };
    vec![
        case(Door::Forward, f32, f32, Put::Set),
        case(Door::Forward, f32, bf16, Put::Set),
        case(Door::Forward, bf16, bf16, Put::Set),
        case(Door::AddForward, f32, f32, Put::Set),
        case(Door::AddForward, f32, bf16, Put::Set),
        case(Door::Backward, f32, f32, Put::Add),
        case(Door::Backward, f32, bf16, Put::Add),
        case(Door::Backward, f32, f32, Put::Set),
        case(Door::Backward, bf16, bf16, Put::Set),
    ]
}

/// r of the case's x.
fn scales(case: &Case, seed: u64) -> Vec<f64> {
    let x = wide(&draw_as(case.x, seed, case.d.rows * case.d.cols));
    reference::forward(case.d, &x, &vec![1.0; case.d.cols], f64::from(EPS)).1
}

fn rounded(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::{harness, simd};
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<RmsNorm>();
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in RmsNorm::conform_cases() {
            let at = |level| {
                let mut r = RmsNorm::prepare(&s, &case, 5).unwrap();
                match case.door {
                    Door::Forward => cpu::forward(pool, level, case.d, r.forward()),
                    Door::AddForward => cpu::add_forward(pool, level, case.d, r.add_forward()),
                    Door::Backward => cpu::backward(pool, level, case.d, r.backward(), case.grain),
                }
                [&r.sum, &r.y, &r.r, &r.dx, &r.dw].map(|t| t.bytes().to_vec())
            };
            let portable = at(simd::Level::Portable);
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                assert!(at(level) == portable, "{case:?}: {} differs from portable", level.name());
            }
        }
    }

    /// A call over three grains gives the bits of three calls over one: what makes micro-batches invisible.
    #[test]
    fn grains_may_come_in_any_number_of_calls() {
        let s = Stream::cpu(2).unwrap();
        // Blocks of 993 rows, of 32 (the least), and one.
        for (grain, cols) in [(1500, 33), (40, 1100), (3, 200)] {
            let case = &every((3 * grain, cols, grain))[5];
            let mut whole = RmsNorm::prepare(&s, case, 9).unwrap();
            RmsNorm::run(&s, case, &mut whole).unwrap();
            let start = RmsNorm::prepare(&s, case, 9).unwrap();
            let mut dw = Tensor::alone(&s, DType::F32, [cols]).unwrap();
            dw.set(start.dw.f32());
            for i in 0..3 {
                let part = |t: &Tensor, each: usize| {
                    let mut part = Tensor::alone(&s, DType::F32, [grain * each]).unwrap();
                    part.set(&t.f32()[i * grain * each..][..grain * each]);
                    part
                };
                let (x, r, dy, mut dx) =
                    (part(&start.x, cols), part(&start.r, 1), part(&start.y, cols), part(&start.dx, cols));
                let a = Backward { x: &x, w: &start.w, r: &r, dy: &dy, dx: &mut dx, dw: &mut dw, put: Put::Add };
                backward(&s, Dims { rows: grain, cols }, a, grain).unwrap();
                assert_eq!(dx.f32(), &whole.dx.f32()[i * grain * cols..][..grain * cols]);
            }
            assert_eq!(dw.f32(), whole.dw.f32(), "grain {grain} cols {cols}");
        }
    }

    /// More blocks than the shared scratch holds at a time.
    #[test]
    fn dw_of_many_short_grains_is_whole() {
        let s = Stream::cpu(2).unwrap();
        let case = &every((6000, 1024, 1))[5];
        let mut ready = RmsNorm::prepare(&s, case, 3).unwrap();
        RmsNorm::run(&s, case, &mut ready).unwrap();
        let want = RmsNorm::reference(case, 3);
        let got = RmsNorm::outputs(&s, case, &ready).unwrap();
        assert!(harness::distance(&got[1].values, &want[1].values).0 < 1e-5);
    }

    #[derive(Deserialize)]
    struct Golden {
        rows: usize,
        cols: usize,
        eps: f64,
        x: Vec<f64>,
        delta: Vec<f64>,
        w: Vec<f64>,
        dy: Vec<f64>,
        y: Vec<f64>,
        dx: Vec<f64>,
        dw: Vec<f64>,
    }

    #[test]
    fn the_reference_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let d = Dims { rows: g.rows, cols: g.cols };
        let sum: Vec<f64> = g.x.iter().zip(&g.delta).map(|(x, delta)| x + delta).collect();
        let (y, r) = reference::forward(d, &sum, &g.w, g.eps);
        let mut dw = vec![0.0; g.cols];
        let dx = reference::backward(d, &sum, &g.w, &r, &g.dy, &mut dw);
        for (got, want) in [(y, g.y), (dx, g.dx), (dw, g.dw)] {
            assert!(harness::distance(&got, &want).0 < 1e-13);
        }
    }
}
