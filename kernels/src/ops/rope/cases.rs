//! What conformance checks and the bench times.

use super::{Dims, Rope, Rotate, Scaling, Table, backward, forward, reference, table};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as, wide},
    tensor::{DType, Tensor},
};

/// The rotation, for the harness.
#[derive(Debug)]
pub struct Rotation;

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Whether backward.
    pub backward: bool,
    /// Dtype of x.
    pub dtype: DType,
    /// Sizes.
    pub d: Dims,
    /// Position of the first token of each sequence.
    pub start: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { backward, dtype, d: Dims { rows, seq, heads, head_dim }, start } = self;
        let direction = if *backward { "backward" } else { "forward" };
        write!(f, "{direction} {dtype} rows {rows} seq {seq} heads {heads} head_dim {head_dim} start {start}")
    }
}

/// Tensors of a case.
#[derive(Debug)]
pub struct Ready {
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: usize,
}

impl Ready {
    fn rotate(&mut self) -> Rotate<'_> {
        Rotate { x: &mut self.x, cos: &self.cos, sin: &self.sin, start: self.start }
    }
}

/// Of Llama 3.1, so that the scaled table is conformed to as well.
const ROPE: Rope = Rope {
    theta: 500_000.0,
    scaling: Scaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    },
};

impl Op for Rotation {
    const NAME: &'static str = "rope";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (rows, seq, heads, head_dim, start) in [
            (1, 1, 1, 2, 0),
            (6, 3, 3, 6, 2),
            (20, 5, 2, 40, 0),
            (10, 10, 3, 48, 7),
            (130, 65, 5, 64, 0),
            (9, 9, 2, 128, 1),
        ] {
            cases.extend(every(Dims { rows, seq, heads, head_dim }, start));
        }
        cases
    }

    fn bench_cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for (rows, seq, heads, head_dim) in [(2048, 256, 6, 48), (1024, 1024, 12, 64), (2048, 2048, 32, 128)] {
            cases.extend(every(Dims { rows, seq, heads, head_dim }, 0));
        }
        cases
    }

    fn work(case: &Case) -> Work {
        let elements = (case.d.rows * case.d.heads * case.d.head_dim) as f64;
        let bytes = 2.0 * case.dtype.bytes() as f64;
        Work { flops: 3.0 * elements, bytes: bytes * elements, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let Dims { rows, seq, heads, head_dim } = case.d;
        let positions = case.start + seq;
        let mut ready = Ready {
            x: Tensor::alone(s, case.dtype, [rows, heads, head_dim])?,
            cos: Tensor::alone(s, DType::F32, [positions, head_dim / 2])?,
            sin: Tensor::alone(s, DType::F32, [positions, head_dim / 2])?,
            start: case.start,
        };
        ready.x.set(&draw(seed, rows * heads * head_dim));
        table(s, &ROPE, positions, head_dim, Table { cos: &mut ready.cos, sin: &mut ready.sin })?;
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.backward {
            true => backward(s, case.d, r.rotate()),
            false => forward(s, case.d, r.rotate()),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        Ok(vec![Output { name: if case.backward { "dx" } else { "y" }, values: wide(&r.x.to_f32()) }])
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let d = case.d;
        let (cos, sin) = reference::table(&ROPE, case.start + d.seq, d.head_dim);
        let x = wide(&draw_as(case.dtype, seed, d.rows * d.heads * d.head_dim));
        vec![match case.backward {
            true => Output { name: "dx", values: reference::backward(d, &x, &cos, &sin, case.start) },
            false => Output { name: "y", values: reference::forward(d, &x, &cos, &sin, case.start) },
        }]
    }

    fn tolerance(case: &Case) -> f64 {
        if case.dtype == DType::Bf16 { 2e-2 } else { 1e-6 }
    }
}

/// Both directions in both dtypes.
fn every(d: Dims, start: usize) -> Vec<Case> {
    let case = |backward, dtype| Case { backward, dtype, d, start };
    vec![case(false, DType::F32), case(false, DType::Bf16), case(true, DType::F32), case(true, DType::Bf16)]
}

#[cfg(test)]
mod tests {
    use super::super::cpu;
    use super::*;
    use crate::{harness, simd};
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<Rotation>();
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in Rotation::conform_cases() {
            let at = |level| {
                let mut r = Rotation::prepare(&s, &case, 5).unwrap();
                cpu::rotate(pool, level, case.d, r.rotate(), if case.backward { -1.0 } else { 1.0 });
                r.x.bytes().to_vec()
            };
            let portable = at(simd::Level::Portable);
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                assert!(at(level) == portable, "{case:?}: {} differs from portable", level.name());
            }
        }
    }

    /// Decoding turns one token at its position as a whole sequence does.
    #[test]
    fn a_token_alone_turns_as_in_its_sequence() {
        let s = Stream::cpu(1).unwrap();
        let case =
            Case { backward: false, dtype: DType::F32, d: Dims { rows: 9, seq: 9, heads: 2, head_dim: 20 }, start: 0 };
        let mut whole = Rotation::prepare(&s, &case, 1).unwrap();
        let before = whole.x.to_f32();
        Rotation::run(&s, &case, &mut whole).unwrap();
        for t in 0..9 {
            let mut x = Tensor::alone(&s, DType::F32, [1, 2, 20]).unwrap();
            x.set(&before[t * 40..][..40]);
            let a = Rotate { x: &mut x, cos: &whole.cos, sin: &whole.sin, start: t };
            forward(&s, Dims { rows: 1, seq: 1, heads: 2, head_dim: 20 }, a).unwrap();
            assert_eq!(x.f32(), &whole.x.f32()[t * 40..][..40]);
        }
    }

    #[derive(Deserialize)]
    struct Golden {
        frequencies: Vec<Frequencies>,
        tokens: usize,
        heads: usize,
        head_dim: usize,
        x: Vec<f64>,
        y: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Frequencies {
        scaling: String,
        theta: f64,
        head_dim: usize,
        #[serde(default)]
        factor: f64,
        #[serde(default)]
        low_freq_factor: f64,
        #[serde(default)]
        high_freq_factor: f64,
        #[serde(default)]
        original_max_position_embeddings: usize,
        frequencies: Vec<f64>,
    }

    #[test]
    fn the_reference_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        for f in &g.frequencies {
            let scaling = match f.scaling.as_str() {
                "none" => Scaling::None,
                "linear" => Scaling::Linear { factor: f.factor },
                _ => Scaling::Llama3 {
                    factor: f.factor,
                    low_freq_factor: f.low_freq_factor,
                    high_freq_factor: f.high_freq_factor,
                    original_max_position_embeddings: f.original_max_position_embeddings,
                },
            };
            let rope = Rope { theta: f.theta, scaling };
            let plain = reference::frequencies(&rope, f.head_dim);
            let fast: Vec<f64> = rope.frequencies(f.head_dim).collect();
            assert_eq!((plain.len(), fast.len()), (f.frequencies.len(), f.frequencies.len()));
            for ((want, plain), fast) in f.frequencies.iter().zip(plain).zip(fast) {
                assert!((plain / want - 1.0).abs() < 2e-6, "{}: {plain}, golden {want}", f.scaling);
                assert!((fast / plain - 1.0).abs() < 1e-13, "{}: {fast}, reference {plain}", f.scaling);
            }
        }
        let d = Dims { rows: g.tokens, seq: g.tokens, heads: g.heads, head_dim: g.head_dim };
        let rope = Rope { theta: 10000.0, scaling: Scaling::None };
        let (cos, sin) = reference::table(&rope, g.tokens, g.head_dim);
        assert!(harness::distance(&reference::forward(d, &g.x, &cos, &sin, 0), &g.y).0 < 1e-13);
    }
}
