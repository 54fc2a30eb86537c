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
pub struct Embedding;

/// One call.
#[derive(Clone)]
pub struct Case {
    /// Whether backward, which does not depend on `dtype`.
    pub backward: bool,
    /// Dtype of the table in forward.
    pub dtype: DType,
    /// Sizes.
    pub d: Dims,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Dims { rows, cols, vocab } = self.d;
        match self.backward {
            true => write!(f, "backward rows {rows} cols {cols} vocab {vocab}"),
            false => write!(f, "forward {} rows {rows} cols {cols} vocab {vocab}", self.dtype),
        }
    }
}

/// Tensors of a case: the table or its gradient, and the tokens' rows or theirs.
#[derive(Debug)]
pub struct Ready {
    ids: Tensor,
    table: Tensor,
    rows: Tensor,
}

impl Op for Embedding {
    const NAME: &'static str = "embedding";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        let sizes = [(1, 1, 1), (7, 3, 5), (33, 129, 17), (64, 128, 1), (100, 257, 300), (40, 1031, 9)];
        every(&sizes)
    }

    fn bench_cases() -> Vec<Case> {
        every(&[(2048, 288, 32000), (1024, 768, 32000), (2048, 768, 32000), (2048, 4096, 128256)])
    }

    fn work(case: &Case) -> Work {
        let elements = (case.d.rows * case.d.cols) as f64;
        let bytes = match (case.backward, case.dtype) {
            (true, _) => 12.0,
            (false, DType::Bf16) => 6.0,
            (false, _) => 8.0,
        };
        let flops = if case.backward { elements } else { 0.0 };
        Work { flops, bytes: bytes * elements, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let Dims { rows, cols, vocab } = case.d;
        let table_dtype = if case.backward { DType::F32 } else { case.dtype };
        let mut ready = Ready {
            ids: Tensor::alone(s, DType::U32, [rows])?,
            table: Tensor::alone(s, table_dtype, [vocab, cols])?,
            rows: Tensor::alone(s, DType::F32, [rows, cols])?,
        };
        s.upload_u32(&ids(case, seed), &mut ready.ids)?;
        ready.table.set(&draw(seed + 1, vocab * cols));
        match case.backward {
            true => ready.rows.set(&draw(seed + 2, rows * cols)),
            false => ready.rows.poison(),
        }
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.backward {
            true => backward(s, case.d, Backward { ids: &r.ids, dx: &r.rows, dw: &mut r.table }),
            false => forward(s, case.d, Forward { ids: &r.ids, w: &r.table, x: &mut r.rows }),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        let (name, t) = if case.backward { ("dw", &r.table) } else { ("x", &r.rows) };
        Ok(vec![Output { name, values: wide(&t.to_f32()) }])
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let (d, ids) = (case.d, ids(case, seed));
        let dtype = if case.backward { DType::F32 } else { case.dtype };
        let mut table = wide(&draw_as(dtype, seed + 1, d.vocab * d.cols));
        if case.backward {
            reference::backward(d, &ids, &wide(&draw(seed + 2, d.rows * d.cols)), &mut table);
            return vec![Output { name: "dw", values: table }];
        }
        vec![Output { name: "x", values: reference::forward(d, &ids, &table) }]
    }

    fn tolerance(case: &Case) -> f64 {
        if case.backward { 1e-5 } else { 0.0 }
    }
}

/// Both directions at each of `sizes` (rows, cols, vocab), forward in both dtypes.
fn every(sizes: &[(usize, usize, usize)]) -> Vec<Case> {
    let kinds = [(false, DType::F32), (false, DType::Bf16), (true, DType::F32)];
    let cases = sizes.iter().flat_map(|&(rows, cols, vocab)| {
        kinds.map(|(backward, dtype)| Case { backward, dtype, d: Dims { rows, cols, vocab } })
    });
    cases.collect()
}

/// Token ids with repeats, small ids more often than large ones, the last of the table among them.
fn ids(case: &Case, seed: u64) -> Vec<u32> {
    let vocab = case.d.vocab;
    let mut ids: Vec<u32> = draw(seed, case.d.rows)
        .iter()
        .map(|x| ((x.abs() / 4.0).powi(2) * vocab as f32) as u32 % vocab as u32)
        .collect();
    ids[case.d.rows / 2] = vocab as u32 - 1;
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness;
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<Embedding>();
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let d = Dims { rows: 9, cols: 4, vocab: 5 };
        let ids = [0, 4, 2, 2, 4, 1, 0, 0, 4];
        let w = wide(&draw(1, d.vocab * d.cols));
        let dx = wide(&draw(2, d.rows * d.cols));
        let loss = |w: &[f64]| reference::forward(d, &ids, w).iter().zip(&dx).map(|(x, dx)| x * dx).sum();
        let mut dw = vec![0.0; w.len()];
        reference::backward(d, &ids, &dx, &mut dw);
        harness::slope(loss, &w, &dw, 8, 1e-6);
    }

    #[derive(Deserialize)]
    struct Golden {
        ids: Vec<u32>,
        w: Vec<f64>,
        dx: Vec<f64>,
        x: Vec<f64>,
        dw: Vec<f64>,
    }

    #[test]
    fn the_reference_agrees_with_the_golden() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let cols = g.x.len() / g.ids.len();
        let d = Dims { rows: g.ids.len(), cols, vocab: g.w.len() / cols };
        assert_eq!(reference::forward(d, &g.ids, &g.w), g.x);
        let mut dw = vec![0.0; g.w.len()];
        reference::backward(d, &g.ids, &g.dx, &mut dw);
        assert!(harness::distance(&dw, &g.dw).0 < 1e-14);
    }

    #[test]
    fn two_micro_batches_give_the_bits_of_one() {
        let s = Stream::cpu(2).unwrap();
        let case = Case { backward: true, dtype: DType::F32, d: Dims { rows: 40, cols: 37, vocab: 6 } };
        let mut whole = Embedding::prepare(&s, &case, 3).unwrap();
        let mut parts = Embedding::prepare(&s, &case, 3).unwrap();
        Embedding::run(&s, &case, &mut whole).unwrap();
        let half = Dims { rows: 20, ..case.d };
        for at in [0, 20] {
            let mut ids = Tensor::alone(&s, DType::U32, [20]).unwrap();
            s.upload_u32(&parts.ids.u32()[at..at + 20], &mut ids).unwrap();
            let mut dx = Tensor::alone(&s, DType::F32, [20, 37]).unwrap();
            dx.set(&parts.rows.f32()[at * 37..][..20 * 37]);
            backward(&s, half, Backward { ids: &ids, dx: &dx, dw: &mut parts.table }).unwrap();
        }
        assert_eq!(whole.table.bytes(), parts.table.bytes());
    }

    #[test]
    #[should_panic(expected = "embedding: id 5 at row 1")]
    fn an_id_outside_the_table_is_our_bug() {
        let s = Stream::cpu(1).unwrap();
        let mut ids = Tensor::alone(&s, DType::U32, [2]).unwrap();
        s.upload_u32(&[0, 5], &mut ids).unwrap();
        let w = Tensor::alone(&s, DType::F32, [5, 3]).unwrap();
        let mut x = Tensor::alone(&s, DType::F32, [2, 3]).unwrap();
        let _ = forward(&s, Dims { rows: 2, cols: 3, vocab: 5 }, Forward { ids: &ids, w: &w, x: &mut x });
    }
}
