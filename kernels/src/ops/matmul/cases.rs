//! Sizes, tolerances and costs of the products.

use super::{Dims, Product, Put, matvec, nn, nt, reference, tn};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, draw_as},
    tensor::{DType, Tensor},
};

/// Which product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// [`super::nt`]
    Nt,
    /// [`super::nn`]
    Nn,
    /// [`super::tn`]
    Tn,
    /// [`super::matvec()`]
    Matvec,
}

/// One product; prints as `nt 512 x 768 x 3072 bf16 bf16 -> f32 add`.
#[derive(Clone)]
pub struct Case {
    /// Which of the four.
    pub form: Form,
    /// m, n and k.
    pub dims: Dims,
    /// How a, b and c are stored.
    pub dtypes: [DType; 3],
    /// Whether c is added to.
    pub put: Put,
    /// Tokens summed together; k but for tn.
    pub grain: usize,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Dims { m, n, k } = self.dims;
        let [a, b, c] = self.dtypes;
        let form = match self.form {
            Form::Nt => "nt",
            Form::Nn => "nn",
            Form::Tn => "tn",
            Form::Matvec => "matvec",
        };
        write!(f, "{form} {m} x {n} x {k} {a} {b} -> {c}")?;
        if self.put == Put::Add {
            write!(f, " add")?;
        }
        if self.grain != k {
            write!(f, " grain {}", self.grain)?;
        }
        Ok(())
    }
}

/// The three tensors of a case.
#[derive(Debug)]
pub struct Ready {
    a: Tensor,
    b: Tensor,
    c: Tensor,
}

/// Matrix products.
#[derive(Debug)]
pub struct Matmul;

const F: DType = DType::F32;
const H: DType = DType::Bf16;

impl Op for Matmul {
    const NAME: &'static str = "matmul";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        // Odd sizes first; then each side of the edges of the tiles (6, 14; 8, 16, 32), of vectors, of pairs and of
        // blocks of k (256, 384, 768); then more than a phase holds.
        let sizes = [
            (1, 1, 1),
            (3, 5, 7),
            (1, 33, 129),
            (37, 1, 31),
            (5, 7, 1),
            (6, 8, 16),
            (7, 9, 17),
            (13, 15, 32),
            (14, 32, 33),
            (15, 31, 48),
            (29, 65, 257),
            (100, 70, 385),
            (43, 97, 769),
            (2, 800, 2800),
        ];
        let mut cases = Vec::new();
        for (i, (m, n, k)) in sizes.into_iter().enumerate() {
            let dims = Dims { m, n, k };
            for form in [Form::Nt, Form::Nn, Form::Tn, Form::Matvec] {
                let mut add = |dtypes, put, grain| cases.push(Case { form, dims, dtypes, put, grain });
                add([F, F, F], Put::Set, k);
                add([H, H, F], Put::Add, k);
                if form != Form::Tn {
                    add([H, H, H], Put::Set, k);
                }
                if i < 10 {
                    add([H, F, F], Put::Set, k);
                    add([F, H, F], Put::Add, k);
                }
            }
            for grain in [k / 7, k / 4, k / 2] {
                if grain > 0 && k.is_multiple_of(grain) {
                    for a in [F, H] {
                        cases.push(Case { form: Form::Tn, dims, dtypes: [a, a, F], put: Put::Add, grain });
                    }
                }
            }
        }
        cases
    }

    fn bench_cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for dtype in [F, H] {
            for form in [Form::Nt, Form::Nn, Form::Tn] {
                for (tokens, input, output) in shapes() {
                    let (m, n, k) = match form {
                        Form::Nt | Form::Matvec => (tokens, output, input),
                        Form::Nn => (tokens, input, output),
                        Form::Tn => (output, input, tokens),
                    };
                    let (c, put) = if form == Form::Tn { (F, Put::Add) } else { (dtype, Put::Set) };
                    let dims = Dims { m, n, k };
                    cases.push(Case { form, dims, dtypes: [dtype, dtype, c], put, grain: k.min(1024) });
                    if form != Form::Tn {
                        cases.last_mut().expect("just pushed").grain = k;
                    }
                }
            }
            for m in [1, 4] {
                for (n, k) in [(768, 768), (2048, 768), (768, 2048), (32000, 768)] {
                    let dims = Dims { m, n, k };
                    let dtypes = [dtype, dtype, dtype];
                    cases.push(Case { form: Form::Matvec, dims, dtypes, put: Put::Set, grain: k });
                }
            }
        }
        cases
    }

    fn work(case: &Case) -> Work {
        let Dims { m, n, k } = case.dims;
        let [a, b, c] = case.dtypes;
        let c_bytes = m * n * c.bytes() * if case.put == Put::Add { 2 } else { 1 };
        Work {
            flops: 2.0 * (m * n * k) as f64,
            bytes: (m * k * a.bytes() + n * k * b.bytes() + c_bytes) as f64,
            arithmetic: arithmetic(case),
        }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let Dims { m, n, k } = case.dims;
        let tensor = |dtype, len: usize, seed| -> Result<Tensor> {
            let mut t = Tensor::alone(s, dtype, [len])?;
            t.set(&draw(seed, len));
            Ok(t)
        };
        let [a, b, c] = case.dtypes;
        let mut ready = Ready {
            a: tensor(a, m * k, seed)?,
            b: tensor(b, n * k, seed + 7919)?,
            c: tensor(c, m * n, seed + 2 * 7919)?,
        };
        if case.put == Put::Set {
            ready.c.poison();
        }
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, ready: &mut Ready) -> Result<()> {
        let product = Product { a: &ready.a, b: &ready.b, c: &mut ready.c, put: case.put };
        match case.form {
            Form::Nt => nt(s, case.dims, product),
            Form::Nn => nn(s, case.dims, product),
            Form::Tn => tn(s, case.dims, product, case.grain),
            Form::Matvec => matvec(s, case.dims, product),
        }
    }

    fn outputs(_: &Stream, _: &Case, ready: &Ready) -> Result<Vec<Output>> {
        Ok(vec![Output { name: "c", values: ready.c.to_f32().into_iter().map(f64::from).collect() }])
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let Dims { m, n, k } = case.dims;
        let values = |dtype, len, seed| -> Vec<f64> { draw_as(dtype, seed, len).into_iter().map(f64::from).collect() };
        let (a, b) = (values(arithmetic(case), m * k, seed), values(arithmetic(case), n * k, seed + 7919));
        let mut c = match case.form {
            Form::Nt | Form::Matvec => reference::nt(case.dims, &a, &b),
            Form::Nn => reference::nn(case.dims, &a, &b),
            Form::Tn => reference::tn(case.dims, &a, &b),
        };
        if case.put == Put::Add {
            for (c, before) in c.iter_mut().zip(values(F, m * n, seed + 2 * 7919)) {
                *c += before;
            }
        }
        vec![Output { name: "c", values: c }]
    }

    fn tolerance(case: &Case) -> f64 {
        // A bf16 result is off by up to 2^-8 of itself, and a value may be five times the root mean square.
        if case.dtypes[2] == H { 2e-2 } else { 1e-5 }
    }
}

/// One bf16 input makes it a bf16 product.
fn arithmetic(case: &Case) -> DType {
    if case.dtypes[..2].contains(&H) { H } else { F }
}

/// Tokens, inputs and outputs of the layers that the bench times: those of the 15M, 110M and larger models.
pub fn shapes() -> Vec<(usize, usize, usize)> {
    let layers = [(288, 288), (288, 768), (768, 768), (768, 3072), (3072, 768), (1024, 4096), (2048, 2048)];
    let mut shapes: Vec<_> =
        [512, 2048].into_iter().flat_map(|tokens| layers.map(|(input, output)| (tokens, input, output))).collect();
    shapes.push((512, 768, 32000));
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        harness,
        ops::matmul::{
            cpu::product,
            matvec as dots,
            tile::{In, Major, Operand, Out},
        },
        pool::Pool,
        simd::{self, Level},
    };
    use half::bf16;

    #[test]
    fn conforms() {
        harness::conform_on_host::<Matmul>();
    }

    fn levels() -> impl Iterator<Item = Level> {
        Level::ALL.into_iter().filter(|&l| l <= simd::detected())
    }

    /// Values in the dtype of a tensor.
    enum Values {
        F(Vec<f32>),
        H(Vec<bf16>),
    }

    impl Values {
        fn new(dtype: DType, values: &[f32]) -> Values {
            match dtype {
                DType::Bf16 => Values::H(values.iter().map(|&x| bf16::from_f32(x)).collect()),
                _ => Values::F(values.to_vec()),
            }
        }

        fn input(&self) -> In<'_> {
            match self {
                Values::F(x) => In::F32(x),
                Values::H(x) => In::Bf16(x),
            }
        }

        fn output(&mut self) -> Out<'_> {
            match self {
                Values::F(x) => Out::F32(x),
                Values::H(x) => Out::Bf16(x),
            }
        }

        fn to_f32(&self) -> Vec<f32> {
            match self {
                Values::F(x) => x.clone(),
                Values::H(x) => x.iter().map(|x| x.to_f32()).collect(),
            }
        }
    }

    /// Runs a case at one level on values of our own.
    fn at_level(pool: &Pool, level: Level, case: &Case, a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
        let Dims { m, n, k } = case.dims;
        let [at, bt, ct] = case.dtypes;
        let (a, b, mut c) = (Values::new(at, a), Values::new(bt, b), Values::new(ct, c));
        let by_k = |data| Operand { data, ld: k, major: Major::K };
        let by_outer = |data, ld| Operand { data, ld, major: Major::Outer };
        let (a, b, out) = (a.input(), b.input(), c.output());
        match case.form {
            Form::Nt => product(pool, level, case.dims, by_k(a), by_k(b), out, case.put, k),
            Form::Nn => product(pool, level, case.dims, by_k(a), by_outer(b, n), out, case.put, k),
            Form::Tn => product(pool, level, case.dims, by_outer(a, m), by_outer(b, n), out, case.put, case.grain),
            Form::Matvec => dots::nt(pool, level, case.dims, a, b, out, case.put),
        }
        c.to_f32()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_level_conforms_on_any_number_of_threads() {
        let pools = [1, 2, 3].map(|threads| Pool::new(threads).unwrap());
        for (i, case) in Matmul::conform_cases().iter().enumerate() {
            let seed = 5000 + i as u64;
            let Dims { m, n, k } = case.dims;
            let (a, b, c) = (draw(seed, m * k), draw(seed + 7919, n * k), draw(seed + 2 * 7919, m * n));
            let want = Matmul::reference(case, seed).remove(0).values;
            for level in levels() {
                let got = at_level(&pools[0], level, case, &a, &b, &c);
                for pool in &pools[1..] {
                    assert_eq!(bits(&got), bits(&at_level(pool, level, case, &a, &b, &c)), "{level:?} {case:?}");
                }
                let got: Vec<f64> = got.into_iter().map(f64::from).collect();
                let (error, at) = harness::distance(&got, &want);
                assert!(error <= Matmul::tolerance(case), "{level:?} {case:?} [{at}]: {} {}", got[at], want[at]);
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_any_product() {
        let pool = Pool::new(2).unwrap();
        let (m, n, k) = (61, 77, 801);
        let (a, b) = (draw(1, m * k), draw(2, n * k));
        for (level, form, dtype) in levels()
            .flat_map(|l| [Form::Nt, Form::Matvec].into_iter().flat_map(move |f| [F, H].map(|dtype| (l, f, dtype))))
        {
            let case = |m, n| Case { form, dims: Dims { m, n, k }, dtypes: [dtype, dtype, F], put: Put::Set, grain: k };
            let run = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
                let (m, n) = (rows.len(), cols.len());
                let (a, b) = (&a[rows.start * k..rows.end * k], &b[cols.start * k..cols.end * k]);
                at_level(&pool, level, &case(m, n), a, b, &vec![f32::NAN; m * n])
            };
            let whole = run(0..m, 0..n);
            for (rows, cols) in
                [(0..1, 0..n), (5..6, 0..n), (3..17, 0..n), (14..61, 2..3), (60..61, 76..77), (1..30, 40..77)]
            {
                let part = run(rows.clone(), cols.clone());
                for (i, row) in rows.clone().enumerate() {
                    let (got, want) = (&part[i * cols.len()..][..cols.len()], &whole[row * n..][cols.clone()]);
                    assert_eq!(bits(got), bits(want), "{level:?} {form:?} {dtype} rows {rows:?} columns {cols:?}");
                }
            }
        }
    }

    #[test]
    fn grains_are_summed_as_by_so_many_calls() {
        let pool = Pool::new(2).unwrap();
        let (m, n) = (19, 35);
        for (level, grain, dtype) in
            levels().flat_map(|l| [5, 64, 775].into_iter().flat_map(move |g| [F, H].map(|dtype| (l, g, dtype))))
        {
            let (a, b, c) = (draw(1, 3 * grain * m), draw(2, 3 * grain * n), draw(3, m * n));
            let case = |grains| {
                let dims = Dims { m, n, k: grains * grain };
                Case { form: Form::Tn, dims, dtypes: [dtype, dtype, F], put: Put::Add, grain }
            };
            let whole = at_level(&pool, level, &case(3), &a, &b, &c);
            let by_call = (0..3).fold(c, |c, g| {
                at_level(&pool, level, &case(1), &a[g * grain * m..][..grain * m], &b[g * grain * n..][..grain * n], &c)
            });
            assert_eq!(bits(&whole), bits(&by_call), "{level:?} grain {grain} {dtype}");
        }
    }

    #[test]
    fn nothing_is_skipped_and_edges_stay_clean() {
        let pool = Pool::new(1).unwrap();
        let (m, n, k) = (15, 33, 19);
        for (level, form, dtype) in levels().flat_map(|l| {
            [Form::Nt, Form::Nn, Form::Tn, Form::Matvec]
                .into_iter()
                .flat_map(move |f| [F, H].map(|dtype| (l, f, dtype)))
        }) {
            for (bad, other) in [(f32::NAN, 0.0), (f32::INFINITY, 0.0), (f32::INFINITY, 1.0)] {
                let (mut a, mut b) = (vec![1.0; m * k], vec![1.0; n * k]);
                // Row 14 of a meets column 32 of b at k = 18.
                a[if form == Form::Tn { 18 * m + 14 } else { 14 * k + 18 }] = other;
                b[if matches!(form, Form::Nt | Form::Matvec) { 32 * k + 18 } else { 18 * n + 32 }] = bad;
                let dims = Dims { m, n, k };
                let case = Case { form, dims, dtypes: [dtype, dtype, F], put: Put::Set, grain: k };
                let c = at_level(&pool, level, &case, &a, &b, &vec![f32::NAN; m * n]);
                for i in 0..m {
                    for j in 0..n {
                        let (got, what) = (c[i * n + j], format!("{level:?} {case:?} {bad} {other} ({i}, {j})"));
                        match (i, j) {
                            (14, 32) if other == 0.0 => assert!(got.is_nan(), "{what}: {got}"),
                            (_, 32) => assert_eq!(bits(&[got.abs()]), bits(&[bad.abs()]), "{what}"),
                            (14, _) => assert_eq!(got, 18.0 + other, "{what}"),
                            _ => assert_eq!(got, 19.0, "{what}"),
                        }
                    }
                }
            }
        }
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        m: usize,
        n: usize,
        k: usize,
        a: Vec<f32>,
        b: Vec<f32>,
        nt: Vec<f64>,
        nn: Vec<f64>,
        tn: Vec<f64>,
    }

    #[test]
    fn small_whole_numbers_are_exact() {
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let dims = Dims { m: g.m, n: g.n, k: g.k };
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        assert_eq!(reference::nt(dims, &wide(&g.a), &wide(&g.b)), g.nt);
        assert_eq!(reference::nn(dims, &wide(&g.a), &wide(&g.b)), g.nn);
        assert_eq!(reference::tn(dims, &wide(&g.a), &wide(&g.b)), g.tn);
        let pool = Pool::new(2).unwrap();
        for (form, want) in [(Form::Nt, &g.nt), (Form::Nn, &g.nn), (Form::Tn, &g.tn), (Form::Matvec, &g.nt)] {
            for level in levels() {
                for dtypes in [[F, F, F], [H, H, F]] {
                    let case = Case { form, dims, dtypes, put: Put::Set, grain: g.k };
                    let got = at_level(&pool, level, &case, &g.a, &g.b, &vec![f32::NAN; g.m * g.n]);
                    assert_eq!(&wide(&got), want, "{level:?} {case:?}");
                }
            }
        }
    }

    #[test]
    fn empty_sums_are_zero() {
        let pool = Pool::new(1).unwrap();
        let dims = Dims { m: 2, n: 3, k: 0 };
        for form in [Form::Nt, Form::Nn, Form::Tn, Form::Matvec] {
            for (put, want) in [(Put::Set, 0.0), (Put::Add, 5.0)] {
                let case = Case { form, dims, dtypes: [F, F, F], put, grain: 1 };
                assert_eq!(at_level(&pool, simd::level(), &case, &[], &[], &[5.0; 6]), [want; 6], "{case:?}");
            }
        }
    }
}
