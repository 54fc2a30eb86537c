//! What conformance checks and the bench times.

use super::{Dims, IGNORE, Logits, Rank, Score, Train, chunk_rows, logits, rank, reference, score, train};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as, wide},
    tensor::{DType, Tensor},
};
use half::bf16;

/// The op, for the harness.
#[derive(Debug)]
pub struct Xent;

/// Which door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Loss and gradients.
    Train,
    /// Loss alone.
    Score,
    /// Logits alone.
    Logits,
    /// Logits, their log Σ exp and the largest.
    Rank,
}

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Which door.
    pub door: Door,
    /// Dtype of `n`, `w` and `dn`.
    pub dtype: DType,
    /// Sizes.
    pub d: Dims,
    /// Rows summed together; divides `d.rows`.
    pub grain: usize,
    /// Every how many rows one has no target; 0: none, 1: all.
    pub ignored: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Dims { rows, cols, vocab, chunk } = self.d;
        write!(f, "{:?} {} rows {rows} cols {cols} vocab {vocab} chunk {chunk}", self.door, self.dtype)?;
        if self.grain != rows {
            write!(f, " grain {}", self.grain)?;
        }
        if self.ignored != 0 {
            write!(f, " ignored 1/{}", self.ignored)?;
        }
        Ok(())
    }
}

/// Tensors of a case.
#[derive(Debug)]
pub struct Ready {
    n: Tensor,
    w: Tensor,
    targets: Tensor,
    nll: Tensor,
    dn: Tensor,
    dw: Tensor,
    logits: Tensor,
    best: Tensor,
    scale: f32,
}

impl Op for Xent {
    const NAME: &'static str = "xent";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        // rows, cols, vocab, chunk, grain, ignored
        let sizes = [
            (1, 1, 1, 1, 1, 0),
            (3, 5, 2, 2, 3, 2),
            (6, 17, 63, 4, 3, 0),
            (10, 33, 65, 3, 10, 3),
            (8, 16, 64, 8, 4, 1),
            (24, 40, 257, 5, 12, 5),
            (66, 31, 1000, 64, 66, 7),
            (36, 70, 517, 16, 12, 12),
        ];
        let mut cases = Vec::new();
        for (rows, cols, vocab, chunk, grain, ignored) in sizes {
            for dtype in [DType::F32, DType::Bf16] {
                for door in [Door::Train, Door::Score, Door::Logits, Door::Rank] {
                    cases.push(Case { door, dtype, d: Dims { rows, cols, vocab, chunk }, grain, ignored });
                }
            }
        }
        cases
    }

    fn bench_cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (rows, cols, vocab, grain) in [(2048, 288, 32000, 256), (1024, 768, 32000, 1024), (1024, 768, 50257, 1024)]
        {
            for dtype in [DType::F32, DType::Bf16] {
                for door in [Door::Train, Door::Score] {
                    let d = Dims { rows, cols, vocab, chunk: chunk_rows(vocab, grain) };
                    cases.push(Case { door, dtype, d, grain, ignored: 0 });
                }
            }
        }
        for dtype in [DType::F32, DType::Bf16] {
            let d = Dims { rows: 256, cols: 576, vocab: 49152, chunk: 256 };
            cases.push(Case { door: Door::Rank, dtype, d, grain: 256, ignored: 0 });
            let d = Dims { rows: 1, cols: 768, vocab: 32000, chunk: 1 };
            cases.push(Case { door: Door::Logits, dtype, d, grain: 1, ignored: 0 });
        }
        cases
    }

    fn work(case: &Case) -> Work {
        let Dims { rows, cols, vocab, .. } = case.d;
        let product = 2.0 * (rows * cols * vocab) as f64;
        let element = case.dtype.bytes() as f64;
        let n = (rows * cols) as f64 * element;
        let w = (vocab * cols) as f64;
        let (products, bytes) = match case.door {
            Door::Train => (3.0, 2.0 * n + w * (element + 8.0)),
            Door::Score => (1.0, n + w * element),
            Door::Logits | Door::Rank => (1.0, n + w * element + 4.0 * (rows * vocab) as f64),
        };
        Work { flops: products * product, bytes, arithmetic: case.dtype }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let Dims { rows, cols, vocab, chunk } = case.d;
        let z_rows = if matches!(case.door, Door::Logits | Door::Rank) { rows } else { chunk };
        let mut r = Ready {
            n: Tensor::alone(s, case.dtype, [rows, cols])?,
            w: Tensor::alone(s, case.dtype, [vocab, cols])?,
            targets: Tensor::alone(s, DType::U32, [rows])?,
            nll: Tensor::alone(s, DType::F32, [rows])?,
            dn: Tensor::alone(s, case.dtype, [rows, cols])?,
            dw: Tensor::alone(s, DType::F32, [vocab, cols])?,
            logits: Tensor::alone(s, DType::F32, [z_rows, vocab])?,
            best: Tensor::alone(s, DType::U32, [rows])?,
            scale: scale(case),
        };
        let inputs = Inputs::draw(case, seed);
        r.n.set(&inputs.n);
        r.w.set(&inputs.w);
        r.dw.set(&inputs.dw);
        s.upload_u32(&inputs.targets, &mut r.targets)?;
        for t in [&mut r.nll, &mut r.dn, &mut r.logits, &mut r.best] {
            t.poison();
        }
        Ok(r)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        let Ready { n, w, targets, nll, dn, dw, logits: z, best, scale } = r;
        match case.door {
            Door::Train => train(s, case.d, Train { n, w, targets, nll, dn, dw, scale: *scale, logits: z }, case.grain),
            Door::Score => score(s, case.d, Score { n, w, targets, nll, logits: z }),
            Door::Logits => logits(s, case.d, Logits { n, w, logits: z }),
            Door::Rank => rank(s, case.d, Rank { n, w, logits: z, lse: nll, best }),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        let output = |name, t: &Tensor| Output { name, values: wide(&t.to_f32()) };
        Ok(match case.door {
            Door::Train => vec![output("nll", &r.nll), output("dn", &r.dn), output("dw", &r.dw)],
            Door::Score => vec![output("nll", &r.nll)],
            Door::Logits => vec![output("logits", &r.logits)],
            Door::Rank => {
                let best = r.best.u32().iter().map(|&v| f64::from(v)).collect();
                let best = Output { name: "best", values: best };
                vec![output("logits", &r.logits), output("lse", &r.nll), best]
            }
        })
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let inputs = Inputs::draw(case, seed);
        let (d, targets) = (case.d, &inputs.targets);
        let (n, w, mut dw) = (wide(&inputs.n), wide(&inputs.w), wide(&inputs.dw));
        if case.door == Door::Logits {
            return vec![Output { name: "logits", values: reference::logits(d, &n, &w) }];
        }
        if case.door == Door::Rank {
            let (lse, best) = reference::rank(d, &n, &w);
            let best = best.iter().map(|&v| v as f64).collect();
            return vec![
                Output { name: "logits", values: reference::logits(d, &n, &w) },
                Output { name: "lse", values: lse },
                Output { name: "best", values: best },
            ];
        }
        let mut outputs = vec![Output { name: "nll", values: reference::forward(d, &n, &w, targets) }];
        if case.door == Door::Train {
            let dn = reference::backward(d, &n, &w, targets, f64::from(scale(case)), &mut dw);
            outputs.push(Output { name: "dn", values: dn });
            outputs.push(Output { name: "dw", values: dw });
        }
        outputs
    }

    fn tolerance(case: &Case) -> f64 {
        match (case.door, case.dtype) {
            // The gradient of the logits and `dn` are rounded to bf16: half of 2^-8 each, of values some times the mean.
            (Door::Train, DType::Bf16) => 3e-2,
            _ => 2e-5,
        }
    }
}

/// What a case starts from, already rounded to its dtype.
struct Inputs {
    n: Vec<f32>,
    w: Vec<f32>,
    dw: Vec<f32>,
    targets: Vec<u32>,
}

impl Inputs {
    /// Normed rows have deviation 1; weights are such that logits have 2; `dw` holds what other grains left there.
    fn draw(case: &Case, seed: u64) -> Inputs {
        let Dims { rows, cols, vocab, .. } = case.d;
        let deviation = 2.0 / (cols as f32).sqrt();
        let w = draw(seed + 1, vocab * cols).into_iter().map(|x| match case.dtype {
            DType::Bf16 => bf16::from_f32(x * deviation).to_f32(),
            _ => x * deviation,
        });
        let targets = draw(seed + 3, rows).into_iter().enumerate().map(|(i, x)| match case.ignored {
            k if k > 0 && i % k == k - 1 => IGNORE,
            _ => ((x.abs() * 1e6) as usize % vocab) as u32,
        });
        Inputs {
            n: draw_as(case.dtype, seed, rows * cols),
            w: w.collect(),
            dw: draw(seed + 2, vocab * cols).iter().map(|x| x * 0.1 * scale(case)).collect(),
            targets: targets.collect(),
        }
    }
}

fn scale(case: &Case) -> f32 {
    1.0 / case.d.rows as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness;
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<Xent>();
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let d = Dims { rows: 5, cols: 6, vocab: 7, chunk: 2 };
        let targets = [3, IGNORE, 0, 6, 3];
        let (n, w) = (wide(&draw(1, d.rows * d.cols)), wide(&draw(2, d.vocab * d.cols)));
        let loss = |n: &[f64], w: &[f64]| 0.25 * reference::forward(d, n, w, &targets).iter().sum::<f64>();
        let mut dw = vec![0.0; w.len()];
        let dn = reference::backward(d, &n, &w, &targets, 0.25, &mut dw);
        harness::slope(|n| loss(n, &w), &n, &dn, 8, 1e-6);
        harness::slope(|w| loss(&n, w), &w, &dw, 8, 1e-6);
    }

    #[derive(Deserialize)]
    struct Golden {
        targets: Vec<i64>,
        n: Vec<f64>,
        w: Vec<f64>,
        nll: Vec<f64>,
        dn: Vec<f64>,
        dw: Vec<f64>,
    }

    #[test]
    fn the_reference_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let targets: Vec<u32> = g.targets.iter().map(|&t| u32::try_from(t).unwrap_or(IGNORE)).collect();
        let (rows, cols) = (targets.len(), g.n.len() / targets.len());
        let d = Dims { rows, cols, vocab: g.w.len() / cols, chunk: rows };
        let counted = targets.iter().filter(|&&t| t != IGNORE).count();
        let nll = reference::forward(d, &g.n, &g.w, &targets);
        let mut dw = vec![0.0; g.w.len()];
        let dn = reference::backward(d, &g.n, &g.w, &targets, 1.0 / counted as f64, &mut dw);
        for (got, want) in [(nll, g.nll), (dn, g.dn), (dw, g.dw)] {
            assert!(harness::distance(&got, &want).0 < 1e-12);
        }
    }

    /// Runs the rows `rows` of `from` as a call of their own, into a `dw` that goes on.
    fn part(s: &Stream, case: &Case, from: &Ready, rows: std::ops::Range<usize>, dw: &mut Tensor) -> (Tensor, Tensor) {
        let d = Dims { rows: rows.len(), ..case.d };
        let mut n = Tensor::alone(s, case.dtype, [d.rows, d.cols]).unwrap();
        n.set(&from.n.to_f32()[rows.start * d.cols..rows.end * d.cols]);
        let mut targets = Tensor::alone(s, DType::U32, [d.rows]).unwrap();
        s.upload_u32(&from.targets.u32()[rows], &mut targets).unwrap();
        let mut nll = Tensor::alone(s, DType::F32, [d.rows]).unwrap();
        let mut dn = Tensor::alone(s, case.dtype, [d.rows, d.cols]).unwrap();
        let mut z = Tensor::alone(s, DType::F32, [d.chunk, d.vocab]).unwrap();
        let (n, w, targets, logits) = (&n, &from.w, &targets, &mut z);
        let a = Train { n, w, targets, nll: &mut nll, dn: &mut dn, dw, scale: from.scale, logits };
        train(s, d, a, case.grain).unwrap();
        (nll, dn)
    }

    #[test]
    fn grains_apart_give_the_bits_of_one_call() {
        let s = Stream::cpu(2).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let d = Dims { rows: 57, cols: 50, vocab: 333, chunk: 8 };
            let case = Case { door: Door::Train, dtype, d, grain: 19, ignored: 4 };
            let mut whole = Xent::prepare(&s, &case, 5).unwrap();
            let Ready { mut dw, .. } = Xent::prepare(&s, &case, 5).unwrap();
            Xent::run(&s, &case, &mut whole).unwrap();
            for g in 0..3 {
                let rows = g * 19..(g + 1) * 19;
                let (nll, dn) = part(&s, &case, &whole, rows.clone(), &mut dw);
                let bytes = |t: &Tensor, cols: usize| {
                    let row = cols * t.dtype().bytes();
                    t.bytes()[rows.start * row..rows.end * row].to_vec()
                };
                assert_eq!(nll.bytes(), bytes(&whole.nll, 1));
                assert_eq!(dn.bytes(), bytes(&whole.dn, d.cols));
            }
            assert_eq!(dw.bytes(), whole.dw.bytes());
        }
    }

    #[test]
    fn a_score_has_the_bits_of_the_loss_in_training_whatever_the_chunk() {
        let s = Stream::cpu(2).unwrap();
        let d = Dims { rows: 37, cols: 48, vocab: 700, chunk: 37 };
        let case = Case { door: Door::Train, dtype: DType::F32, d, grain: 37, ignored: 6 };
        let mut trained = Xent::prepare(&s, &case, 6).unwrap();
        Xent::run(&s, &case, &mut trained).unwrap();
        let case = Case { door: Door::Score, d: Dims { chunk: 5, ..d }, ..case };
        let mut scored = Xent::prepare(&s, &case, 6).unwrap();
        Xent::run(&s, &case, &mut scored).unwrap();
        assert_eq!(trained.nll.bytes(), scored.nll.bytes());
    }

    #[test]
    fn a_loss_that_is_not_a_number_shows() {
        let s = Stream::cpu(1).unwrap();
        let d = Dims { rows: 2, cols: 3, vocab: 70, chunk: 2 };
        let case = Case { door: Door::Train, dtype: DType::F32, d, grain: 2, ignored: 0 };
        let mut r = Xent::prepare(&s, &case, 7).unwrap();
        r.n.f32_mut()[1] = f32::NAN;
        Xent::run(&s, &case, &mut r).unwrap();
        assert!(r.nll.f32()[0].is_nan() && r.nll.f32()[1].is_finite());
        assert!(r.dn.f32()[..3].iter().all(|x| x.is_nan()) && r.dn.f32()[3..].iter().all(|x| x.is_finite()));
    }

    #[test]
    #[should_panic(expected = "xent: target 70 at row 1")]
    fn a_target_outside_the_vocabulary_is_our_bug() {
        let s = Stream::cpu(1).unwrap();
        let d = Dims { rows: 2, cols: 3, vocab: 70, chunk: 2 };
        let case = Case { door: Door::Score, dtype: DType::F32, d, grain: 2, ignored: 0 };
        let mut r = Xent::prepare(&s, &case, 8).unwrap();
        r.targets.u32_mut()[1] = 70;
        let _ = Xent::run(&s, &case, &mut r);
    }

    #[test]
    fn chunks_are_even_and_inside_the_grain() {
        assert_eq!(chunk_rows(32000, 256), 256);
        assert_eq!(chunk_rows(32000, 1024), 512);
        assert_eq!(chunk_rows(262_144, 2048), 128);
        assert_eq!(chunk_rows(32000, 7), 7);
        assert_eq!(chunk_rows(1, 1), 1);
        assert_eq!(chunk_rows(256, 1 << 20), 1 << 16);
    }
}
