//! What conformance checks and the bench times.

use super::{Backward, Decode, Dims, Forward, Tree, backward, decode, forward, reference, tree};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as, wide},
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct Attention;

/// Which door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// o and lse.
    Forward,
    /// dq, dk and dv.
    Backward,
    /// o of branches that share trunks: every other document is one, split in four.
    Tree,
    /// o of the last tokens of a cache with so many keys.
    Decode(usize),
}

/// One call.
#[derive(Clone, Copy)]
pub struct Case {
    /// Which door.
    pub door: Door,
    /// Dtype of all but lse.
    pub dtype: DType,
    /// Sizes.
    pub d: Dims,
    /// Documents are about so many tokens long; 0: one document.
    pub document: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Dims { batch, seq, heads, kv_heads, head_dim } = self.d;
        write!(f, "{:?} {} B{batch} T{seq} H{heads} K{kv_heads} D{head_dim}", self.door, self.dtype)?;
        if self.document != 0 {
            write!(f, " document {}", self.document)?;
        }
        Ok(())
    }
}

/// Tensors of a case.
#[derive(Debug)]
pub struct Ready {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) first: Option<Tensor>,
    pub(super) trunk: Option<Tensor>,
    pub(super) o: Tensor,
    pub(super) lse: Tensor,
    pub(super) do_: Tensor,
    pub(super) delta: Tensor,
    pub(super) dq: Tensor,
    pub(super) dk: Tensor,
    pub(super) dv: Tensor,
}

impl Ready {
    /// The arguments of forward.
    pub(super) fn forward(&mut self) -> Forward<'_> {
        let Ready { q, k, v, first, o, lse, .. } = self;
        Forward { q, k, v, first: first.as_ref(), o, lse }
    }

    /// The arguments of backward.
    pub(super) fn backward(&mut self) -> Backward<'_> {
        let Ready { q, k, v, first, o, lse, do_, delta, dq, dk, dv, .. } = self;
        Backward { q, k, v, first: first.as_ref(), o, lse, do_, delta, dq, dk, dv }
    }

    /// The arguments of tree.
    pub(super) fn tree(&mut self) -> Tree<'_> {
        let Ready { q, k, v, first, trunk, o, .. } = self;
        let no = "a case of tree has documents";
        Tree { q, k, v, first: first.as_ref().expect(no), trunk: trunk.as_ref().expect(no), o }
    }

    /// The arguments of decode.
    pub(super) fn decode(&mut self, len: usize) -> Decode<'_> {
        let Ready { q, k, v, o, .. } = self;
        Decode { q, k_cache: k, v_cache: v, len, o }
    }
}

impl Op for Attention {
    const NAME: &'static str = "attention";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        // B, T, H, K, D, document
        let sizes = [
            (1, 1, 1, 1, 1, 0),
            (1, 2, 3, 1, 7, 0),
            (2, 5, 4, 2, 3, 2),
            (1, 33, 2, 2, 48, 0),
            (1, 113, 1, 1, 65, 40),
            (1, 130, 4, 1, 16, 7),
            (2, 97, 6, 3, 33, 0),
            (1, 257, 2, 1, 24, 0),
            (1, 300, 1, 1, 129, 150),
            (1, 40, 1, 1, 512, 0),
            (1, 531, 2, 2, 5, 100),
        ];
        let mut cases = Vec::new();
        for (batch, seq, heads, kv_heads, head_dim, document) in sizes {
            for dtype in [DType::F32, DType::Bf16] {
                for door in [Door::Forward, Door::Backward] {
                    cases.push(Case { door, dtype, d: Dims { batch, seq, heads, kv_heads, head_dim }, document });
                }
            }
        }
        for (batch, seq, heads, kv_heads, head_dim, document) in sizes.into_iter().filter(|size| size.5 > 0) {
            for dtype in [DType::F32, DType::Bf16] {
                let d = Dims { batch, seq, heads, kv_heads, head_dim };
                cases.push(Case { door: Door::Tree, dtype, d, document });
            }
        }
        // new tokens, keys, H, K, D
        let decodes = [
            (1, 1, 1, 1, 1),
            (2, 7, 6, 2, 5),
            (1, 255, 4, 4, 48),
            (3, 258, 4, 1, 64),
            (8, 1030, 2, 1, 33),
            (9, 120, 3, 3, 20),
            (1, 9000, 1, 1, 3),
        ];
        for (seq, len, heads, kv_heads, head_dim) in decodes {
            for dtype in [DType::F32, DType::Bf16] {
                let d = Dims { batch: 1, seq, heads, kv_heads, head_dim };
                cases.push(Case { door: Door::Decode(len), dtype, d, document: 0 });
            }
        }
        cases
    }

    fn bench_cases() -> Vec<Case> {
        // stories15M, stories110M and GPT-2, the same with a long row, Llama-3.1-8B's grouping
        let sizes = [(8, 256, 6, 6, 48), (1, 1024, 12, 12, 64), (1, 4096, 12, 12, 64), (1, 2048, 32, 8, 128)];
        let mut cases = Vec::new();
        for (batch, seq, heads, kv_heads, head_dim) in sizes {
            for dtype in [DType::F32, DType::Bf16] {
                for door in [Door::Forward, Door::Backward] {
                    cases.push(Case { door, dtype, d: Dims { batch, seq, heads, kv_heads, head_dim }, document: 0 });
                }
            }
        }
        for dtype in [DType::F32, DType::Bf16] {
            let d = Dims { batch: 1, seq: 2048, heads: 9, kv_heads: 3, head_dim: 64 };
            cases.push(Case { door: Door::Tree, dtype, d, document: 54 });
        }
        for (len, heads, kv_heads, head_dim) in [(1024, 12, 12, 64), (8192, 32, 8, 128)] {
            for dtype in [DType::F32, DType::Bf16] {
                let d = Dims { batch: 1, seq: 1, heads, kv_heads, head_dim };
                cases.push(Case { door: Door::Decode(len), dtype, d, document: 0 });
            }
        }
        cases
    }

    fn work(case: &Case) -> Work {
        let Dims { batch, seq, heads, kv_heads, head_dim } = case.d;
        let (products, pairs, keys) = match case.door {
            Door::Forward => (2, seq * (seq + 1) / 2, batch * seq),
            Door::Backward => (5, seq * (seq + 1) / 2, batch * seq),
            Door::Tree => (2, seq * (case.document + 1) / 2, batch * seq),
            Door::Decode(len) => (2, seq * len, len),
        };
        let (queries, keys) = (batch * seq * heads * head_dim, keys * kv_heads * head_dim);
        // q and o, k and v; and in backward the gradients of all four.
        let elements = 2 * (queries + keys) * if case.door == Door::Backward { 2 } else { 1 };
        Work {
            flops: (2 * products * batch * heads * pairs * head_dim) as f64,
            bytes: (elements * case.dtype.bytes()) as f64,
            arithmetic: case.dtype,
        }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let Dims { batch, seq, heads, kv_heads, head_dim } = case.d;
        let keys = if let Door::Decode(len) = case.door { len } else { seq };
        let queries = || Tensor::alone(s, case.dtype, [batch, seq, heads, head_dim]);
        let keys = || Tensor::alone(s, case.dtype, [batch, keys, kv_heads, head_dim]);
        let rows = || Tensor::alone(s, DType::F32, [batch, heads, seq]);
        let (lse, delta) = (rows()?, rows()?);
        let (dq, dk, dv) = (queries()?, keys()?, keys()?);
        let (q, k, v, o, do_) = (queries()?, keys()?, keys()?, queries()?, queries()?);
        let mut r = Ready { q, k, v, first: None, trunk: None, o, lse, do_, delta, dq, dk, dv };
        let inputs = Inputs::draw(case, seed);
        for (t, values) in
            [(&mut r.q, &inputs.q), (&mut r.k, &inputs.k), (&mut r.v, &inputs.v), (&mut r.do_, &inputs.do_)]
        {
            t.set(values);
        }
        if let Some(first) = &inputs.first {
            let mut t = Tensor::alone(s, DType::U32, [batch, seq])?;
            s.upload_u32(first, &mut t)?;
            r.first = Some(t);
        }
        if case.door == Door::Tree {
            let mut t = Tensor::alone(s, DType::U32, [batch, seq, 2])?;
            s.upload_u32(&inputs.trunk, &mut t)?;
            r.trunk = Some(t);
        }
        for t in [&mut r.o, &mut r.lse, &mut r.delta, &mut r.dq, &mut r.dk, &mut r.dv] {
            t.poison();
        }
        if case.door == Door::Backward {
            forward(s, case.d, r.forward())?;
        }
        Ok(r)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.door {
            Door::Forward => forward(s, case.d, r.forward()),
            Door::Backward => backward(s, case.d, r.backward()),
            Door::Tree => tree(s, case.d, r.tree()),
            Door::Decode(len) => decode(s, case.d, r.decode(len)),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        let output = |name, t: &Tensor| Output { name, values: wide(&t.to_f32()) };
        Ok(match case.door {
            Door::Forward => vec![output("o", &r.o), output("lse", &r.lse)],
            Door::Backward => vec![output("dq", &r.dq), output("dk", &r.dk), output("dv", &r.dv)],
            Door::Tree | Door::Decode(_) => vec![output("o", &r.o)],
        })
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let inputs = Inputs::draw(case, seed);
        let (q, k, v) = (wide(&inputs.q), wide(&inputs.k), wide(&inputs.v));
        let x = reference::Inputs { q: &q, k: &k, v: &v, first: inputs.first.as_deref() };
        match case.door {
            Door::Forward => {
                let (o, lse) = reference::forward(case.d, x);
                vec![Output { name: "o", values: o }, Output { name: "lse", values: lse }]
            }
            Door::Backward => {
                let (dq, dk, dv) = reference::backward(case.d, x, &wide(&inputs.do_));
                [("dq", dq), ("dk", dk), ("dv", dv)].map(|(name, values)| Output { name, values }).into()
            }
            Door::Tree => vec![Output { name: "o", values: reference::tree(case.d, x, &inputs.trunk) }],
            Door::Decode(len) => vec![Output { name: "o", values: reference::decode(case.d, x, len) }],
        }
    }

    fn tolerance(case: &Case) -> f64 {
        match case.dtype {
            // p, ds and the results are rounded to bf16, half of 2^-8 each, of values up to ten times the mean: those of
            // the first queries, which see few keys.
            DType::Bf16 => 6e-2,
            _ => 2e-5,
        }
    }
}

/// What a case starts from, already rounded to its dtype.
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    do_: Vec<f32>,
    first: Option<Vec<u32>>,
    trunk: Vec<u32>,
}

impl Inputs {
    fn draw(case: &Case, seed: u64) -> Inputs {
        let Dims { batch, seq, heads, kv_heads, head_dim } = case.d;
        let keys = if let Door::Decode(len) = case.door { len } else { seq };
        let values = |n, len: usize| draw_as(case.dtype, seed + n, len);
        let (queries, keys) = (batch * seq * heads * head_dim, batch * keys * kv_heads * head_dim);
        let mut first = (case.document > 0).then(|| documents(case, seed + 4));
        let trunk = match &mut first {
            Some(first) if case.door == Door::Tree => grow(seq, first),
            _ => Vec::new(),
        };
        Inputs { q: values(0, queries), k: values(1, keys), v: values(2, keys), do_: values(3, queries), first, trunk }
    }
}

/// Makes each document with an odd start a trunk and three branches, of a quarter each; returns the trunks.
fn grow(seq: usize, first: &mut [u32]) -> Vec<u32> {
    let mut trunk = vec![0; 2 * first.len()];
    for row in 0..first.len() / seq {
        let (begin, end) = (row * seq, (row + 1) * seq);
        let mut at = begin;
        while at < end {
            let start = first[at];
            let len = first[at..end].iter().take_while(|&&f| f == start).count();
            let quarter = len / 4;
            for i in (at..at + len).filter(|_| start % 2 == 1 && quarter > 0) {
                let branch = ((i - at) / quarter).min(3);
                if branch > 0 {
                    first[i] = start + (branch * quarter) as u32;
                    trunk[2 * i..2 * i + 2].copy_from_slice(&[start, start + quarter as u32]);
                }
            }
            at += len;
        }
    }
    trunk
}

/// Where the document of each token starts, with documents of 1 to 2·`document` tokens.
fn documents(case: &Case, seed: u64) -> Vec<u32> {
    let Dims { batch, seq, .. } = case.d;
    let mut first = 0;
    let ends = draw(seed, batch * seq);
    (0..batch * seq)
        .map(|i| {
            // Half of a normal distribution lies within two thirds of its deviation.
            let p = ends[i].abs() / 0.67 * case.document as f32;
            if i % seq == 0 || p < 1.0 || i % seq - first >= 2 * case.document {
                first = i % seq;
            }
            first as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness;
    use serde::Deserialize;

    #[test]
    fn conforms() {
        harness::conform_on_host::<Attention>();
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let firsts: [Option<&[u32]>; 2] = [None, Some(&[0, 0, 2, 2, 2, 5, 0, 1, 1, 1, 4, 4])];
        for (heads, kv_heads, first) in [(1, 1, firsts[0]), (4, 2, firsts[1]), (3, 1, firsts[1])] {
            let d = Dims { batch: 2, seq: 6, heads, kv_heads, head_dim: 3 };
            let (queries, keys) = (2 * 6 * heads * 3, 2 * 6 * kv_heads * 3);
            let (q, k, v) = (wide(&draw(1, queries)), wide(&draw(2, keys)), wide(&draw(3, keys)));
            let do_ = wide(&draw(4, queries));
            let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
                let (o, _) = reference::forward(d, reference::Inputs { q, k, v, first });
                o.iter().zip(&do_).map(|(o, g)| o * g).sum()
            };
            let x = reference::Inputs { q: &q, k: &k, v: &v, first };
            let (dq, dk, dv) = reference::backward(d, x, &do_);
            harness::slope(|q| loss(q, &k, &v), &q, &dq, 8, 1e-6);
            harness::slope(|k| loss(&q, k, &v), &k, &dk, 8, 1e-6);
            harness::slope(|v| loss(&q, &k, v), &v, &dv, 8, 1e-6);
        }
    }

    #[derive(Deserialize)]
    struct Goldens {
        cases: Vec<Golden>,
    }

    #[derive(Deserialize)]
    struct Golden {
        batch: usize,
        seq: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        first: Option<Vec<u32>>,
        q: Vec<f64>,
        k: Vec<f64>,
        v: Vec<f64>,
        do_: Vec<f64>,
        o: Vec<f64>,
        dq: Vec<f64>,
        dk: Vec<f64>,
        dv: Vec<f64>,
    }

    #[test]
    fn the_reference_agrees_with_the_goldens() {
        let g: Goldens = serde_json::from_str(include_str!("golden.json")).unwrap();
        for g in g.cases {
            let Golden { batch, seq, heads, kv_heads, head_dim, .. } = g;
            let d = Dims { batch, seq, heads, kv_heads, head_dim };
            let x = reference::Inputs { q: &g.q, k: &g.k, v: &g.v, first: g.first.as_deref() };
            let (o, _) = reference::forward(d, x);
            let (dq, dk, dv) = reference::backward(d, x, &g.do_);
            for (got, want) in [(o, g.o), (dq, g.dq), (dk, g.dk), (dv, g.dv)] {
                assert!(harness::distance(&got, &want).0 < 1e-12);
            }
        }
    }

    /// All results of forward and backward on `r`, as bytes.
    fn results(s: &Stream, d: Dims, r: &mut Ready) -> Vec<Vec<u8>> {
        forward(s, d, r.forward()).unwrap();
        backward(s, d, r.backward()).unwrap();
        [&r.o, &r.lse, &r.dq, &r.dk, &r.dv].map(|t| t.bytes().to_vec()).into()
    }

    fn ready(s: &Stream, dtype: DType, d: Dims, document: usize) -> Ready {
        Attention::prepare(s, &Case { door: Door::Forward, dtype, d, document }, 9).unwrap()
    }

    /// Row `b` of every input of `r` (sizes `d`) as a batch of its own.
    fn row(s: &Stream, dtype: DType, d: Dims, r: &Ready, b: usize) -> Ready {
        let one = Dims { batch: 1, ..d };
        let mut alone = ready(s, dtype, one, usize::from(r.first.is_some()));
        for (to, from) in [(&mut alone.q, &r.q), (&mut alone.k, &r.k), (&mut alone.v, &r.v), (&mut alone.do_, &r.do_)] {
            let n = to.bytes().len();
            to.bytes_mut().copy_from_slice(&from.bytes()[b * n..][..n]);
        }
        if let (Some(to), Some(from)) = (&mut alone.first, &r.first) {
            to.u32_mut().copy_from_slice(&from.u32()[b * d.seq..][..d.seq]);
        }
        alone
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_batch() {
        let s = Stream::cpu(2).unwrap();
        for (dtype, document) in [(DType::F32, 0), (DType::Bf16, 50)] {
            let d = Dims { batch: 3, seq: 150, heads: 4, kv_heads: 2, head_dim: 20 };
            let mut all = ready(&s, dtype, d, document);
            let whole = results(&s, d, &mut all);
            for b in 0..3 {
                let apart = results(&s, Dims { batch: 1, ..d }, &mut row(&s, dtype, d, &all, b));
                for (apart, whole) in apart.iter().zip(&whole) {
                    assert_eq!(apart[..], whole[b * apart.len()..][..apart.len()], "row {b}");
                }
            }
        }
    }

    #[test]
    fn one_document_is_no_documents() {
        let s = Stream::cpu(2).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let d = Dims { batch: 2, seq: 270, heads: 2, kv_heads: 1, head_dim: 31 };
            let mut r = ready(&s, dtype, d, 0);
            let without = results(&s, d, &mut r);
            r.first = Some(Tensor::alone(&s, DType::U32, [2, 270]).unwrap());
            assert_eq!(results(&s, d, &mut r), without);
        }
    }

    #[test]
    fn other_documents_do_not_change_a_bit() {
        let s = Stream::cpu(1).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let d = Dims { batch: 1, seq: 500, heads: 2, kv_heads: 1, head_dim: 19 };
            let (from, to) = (131, 391);
            let mut r = ready(&s, dtype, d, 1);
            let first = r.first.as_mut().unwrap().u32_mut();
            first
                .iter_mut()
                .enumerate()
                .for_each(|(i, f)| *f = [0, from, to][usize::from(i >= 131) + usize::from(i >= 391)]);
            let before = results(&s, d, &mut r);
            // Other values, and other bounds, all around the document.
            for (t, heads) in [(&mut r.q, 2), (&mut r.k, 1), (&mut r.v, 1), (&mut r.do_, 2)] {
                let other = draw(77, t.len());
                let mut values = t.to_f32();
                let inside = from as usize * heads * 19..to as usize * heads * 19;
                for (i, v) in values.iter_mut().enumerate() {
                    *v = if inside.contains(&i) { *v } else { 3.0 * other[i] };
                }
                t.set(&values);
            }
            r.first.as_mut().unwrap().u32_mut()[60..131].fill(60);
            let after = results(&s, d, &mut r);
            for (n, heads) in [(0, 2), (2, 2), (3, 1), (4, 1)] {
                let token = heads * 19 * dtype.bytes();
                let inside = from as usize * token..to as usize * token;
                assert_eq!(before[n][inside.clone()], after[n][inside], "output {n}");
            }
        }
    }

    #[test]
    fn what_follows_changes_no_bit_of_forward() {
        let s = Stream::cpu(1).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let long = Dims { batch: 1, seq: 400, heads: 2, kv_heads: 2, head_dim: 24 };
            let short = Dims { seq: 301, ..long };
            let mut r = ready(&s, dtype, long, 0);
            let all = results(&s, long, &mut r);
            forward(&s, short, r.forward()).unwrap();
            let n = 301 * 48 * dtype.bytes();
            assert_eq!(r.o.bytes()[..n], all[0][..n]);
        }
    }

    #[test]
    fn a_long_row_agrees_with_the_reference_where_it_is_sampled() {
        let s = Stream::cpu(2).unwrap();
        let d = Dims { batch: 1, seq: 8200, heads: 1, kv_heads: 1, head_dim: 2 };
        let mut r = ready(&s, DType::F32, d, 0);
        forward(&s, d, r.forward()).unwrap();
        backward(&s, d, r.backward()).unwrap();
        let f64s = |t: &Tensor| wide(t.f32());
        let (q, k, v, do_) = (f64s(&r.q), f64s(&r.k), f64s(&r.v), f64s(&r.do_));
        let x = reference::Inputs { q: &q, k: &k, v: &v, first: None };
        for i in [0, 1, 111, 112, 255, 256, 4095, 4096, 8191, 8199] {
            let (o, lse) = reference::forward_row(d, x, 0, 0, i);
            assert!((f64::from(r.lse.f32()[i]) - lse).abs() < 1e-5, "lse {i}");
            for c in 0..2 {
                assert!((f64::from(r.o.f32()[2 * i + c]) - o[c]).abs() < 1e-5, "o {i}");
            }
        }
        // dq of the last query, and from all queries together Σ_j dv_j = Σ_i do_i, since each row of p adds up to 1.
        let last = d.seq - 1;
        let (o, lse) = reference::forward_row(d, x, 0, 0, last);
        let delta: f64 = (0..2).map(|c| do_[2 * last + c] * o[c]).sum();
        let mut dq = [0.0; 2];
        for j in 0..d.seq {
            let dots = |a: &[f64], b: &[f64]| -> f64 { (0..2).map(|c| a[2 * last + c] * b[2 * j + c]).sum() };
            let p = (d.scale() * dots(&q, &k) - lse).exp();
            (0..2).for_each(|c| dq[c] += p * (dots(&do_, &v) - delta) * d.scale() * k[2 * j + c]);
        }
        for c in 0..2 {
            assert!((f64::from(r.dq.f32()[2 * last + c]) - dq[c]).abs() < 1e-5, "dq");
            let total = |t: &[f64]| t.iter().skip(c).step_by(2).sum::<f64>();
            assert!((total(&f64s(&r.dv)) - total(&do_)).abs() < 1e-2, "dv");
        }
    }

    #[test]
    fn decoding_a_token_alone_or_among_others_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let d = Dims { batch: 1, seq: 5, heads: 4, kv_heads: 2, head_dim: 40 };
            let len = 8194;
            let case = Case { door: Door::Decode(len), dtype, d, document: 0 };
            let mut r = Attention::prepare(&s, &case, 3).unwrap();
            Attention::run(&s, &case, &mut r).unwrap();
            let (all, q) = (r.o.bytes().to_vec(), r.q.to_f32());
            for j in 0..5 {
                r.q.set(&q[j * 160..][..160]);
                decode(&s, Dims { seq: 1, ..d }, r.decode(len - 4 + j)).unwrap();
                let n = 160 * dtype.bytes();
                assert_eq!(r.o.bytes()[..n], all[j * n..][..n], "token {j}");
            }
        }
    }

    #[test]
    fn a_prefill_against_a_cache_has_the_bits_of_forward() {
        let s = Stream::cpu(2).unwrap();
        let d = Dims { batch: 1, seq: 300, heads: 4, kv_heads: 2, head_dim: 24 };
        let mut r = ready(&s, DType::Bf16, d, 0);
        forward(&s, d, r.forward()).unwrap();
        let (whole, q) = (r.o.bytes().to_vec(), r.q.to_f32());
        r.q.set(&q[200 * 96..]);
        decode(&s, Dims { seq: 100, ..d }, r.decode(300)).unwrap();
        assert_eq!(r.o.bytes()[..100 * 192], whole[200 * 192..]);
    }

    #[test]
    fn a_number_that_is_none_shows() {
        let s = Stream::cpu(1).unwrap();
        let d = Dims { batch: 1, seq: 10, heads: 1, kv_heads: 1, head_dim: 4 };
        let mut r = ready(&s, DType::F32, d, 0);
        r.k.f32_mut()[5 * 4] = f32::NAN;
        results(&s, d, &mut r);
        assert!(r.o.f32()[5 * 4..].iter().all(|x| x.is_nan()));
        assert!(r.dq.f32()[5 * 4..].iter().all(|x| x.is_nan()));
    }

    #[test]
    #[should_panic(expected = "token 1 of a row says that its document starts at 2")]
    fn a_document_that_starts_later_is_our_bug() {
        let s = Stream::cpu(1).unwrap();
        let d = Dims { batch: 1, seq: 3, heads: 1, kv_heads: 1, head_dim: 4 };
        let mut r = ready(&s, DType::F32, d, 1);
        r.first.as_mut().unwrap().u32_mut()[1] = 2;
        let _ = forward(&s, d, r.forward());
    }
}
