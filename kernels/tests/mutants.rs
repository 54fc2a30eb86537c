//! Planted bugs: the simulator with the cases must catch them, and must say nothing of the kernels as they are.
//!
//! The list and the code of each are in `tests/mutants`, for every family of kernels; `build-kernels` makes them. A bug counts as
//! caught if, under one of the seeds, a run stops at a fault, or its numbers differ from the reference or between runs.

use esker_kernels::{
    device::Stream,
    gpu::{
        Gpu,
        images::{self, Mutant},
    },
    harness::{self, Op},
    ops::{
        adamw, attention, cast, chunk_topk, embedding, global_norm,
        matmul::{self, Put},
        rmsnorm, rope, swiglu, xent,
    },
    tensor::{
        DType::{self, Bf16, F32, U32},
        Tensor,
    },
};
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS: [u64; 3] = [1, 2, 3];
/// Of a hundred.
const CAUGHT_MIN: usize = 90;

fn products() -> Vec<matmul::cases::Case> {
    use matmul::cases::{Case, Form};
    let case =
        |form, (m, n, k), c, put| Case { form, dims: matmul::Dims { m, n, k }, dtypes: [Bf16, Bf16, c], put, grain: k };
    vec![
        case(Form::Nt, (40, 136, 264), Bf16, Put::Set),
        case(Form::Nn, (24, 72, 200), F32, Put::Set),
        case(Form::Tn, (72, 40, 232), F32, Put::Add),
    ]
}

/// What tensor cores cannot take: f32, and rows that are no multiple of 16 bytes.
fn plain_products() -> Vec<matmul::cases::Case> {
    use matmul::cases::{Case, Form};
    let case =
        |form, (m, n, k), c, put, grain| Case { form, dims: matmul::Dims { m, n, k }, dtypes: [c, c, c], put, grain };
    vec![
        case(Form::Nt, (20, 70, 37), F32, Put::Set, 37),
        case(Form::Tn, (9, 5, 50), F32, Put::Add, 25),
        case(Form::Nn, (5, 7, 19), Bf16, Put::Set, 19),
    ]
}

fn heads(dtype: DType, head_dim: usize) -> Vec<attention::cases::Case> {
    use attention::cases::{Case, Door};
    let d = |seq| attention::Dims { batch: 1, seq, heads: 2, kv_heads: 1, head_dim };
    let case = |door, seq, document| Case { door, dtype, d: d(seq), document };
    vec![
        case(Door::Forward, 140, 0),
        case(Door::Forward, 100, 30),
        case(Door::Backward, 140, 0),
        case(Door::Backward, 100, 30),
    ]
}

/// Gate and up in one pass, against the host.
fn gated(s: &Stream) {
    let d = matmul::Dims { m: 21, n: 40, k: 56 };
    let on = |s: &Stream| {
        let t = |seed, rows, cols| {
            let mut t = Tensor::alone(s, Bf16, [rows, cols]).unwrap();
            t.set(&harness::draw(seed, rows * cols));
            t
        };
        let (a, gate, up) = (t(1, d.m, d.k), t(2, d.n, d.k), t(3, d.n, d.k));
        let (mut g, mut u, mut h) = (t(4, d.m, d.n), t(5, d.m, d.n), t(6, d.m, d.n));
        let all = matmul::Gated { a: &a, gate: &gate, up: &up, g: &mut g, u: &mut u, h: &mut h };
        matmul::gated(s, d, all, matmul::nt).unwrap();
        [g, u, h].map(|t| harness::wide(&t.to_f32()))
    };
    for (got, want) in on(s).iter().zip(&on(&Stream::cpu(1).unwrap())) {
        let (error, at) = harness::distance(got, want);
        assert!(error < 0.05, "gated: [{at}] is off by {error}");
    }
}

/// Cases of the op that cost at most so much.
fn small<O: Op>(most: f64) -> Vec<O::Case> {
    let cases = O::conform_cases();
    cases.into_iter().filter(|case| O::work(case).flops.max(O::work(case).bytes) <= most).collect()
}

fn check<O: Op>(s: &Stream, cases: &[O::Case]) {
    for (i, case) in cases.iter().enumerate() {
        harness::conform_case::<O>(s, &[], case, 3000 + i as u64);
    }
}

/// All that is asked of a module's kernels here.
fn check_module(s: &Stream, module: &str) {
    match module {
        "matmul_mma" => {
            check::<matmul::cases::Matmul>(s, &products());
            gated(s);
        }
        "matmul_plain" => check::<matmul::cases::Matmul>(s, &plain_products()),
        "attention_mma_64" => check::<attention::cases::Attention>(s, &heads(Bf16, 64)),
        "attention_plain_64" => check::<attention::cases::Attention>(s, &heads(F32, 9)),
        "attention_delta" => check::<attention::cases::Attention>(s, &short(heads(F32, 9))[2..3]),
        "cast" => check::<cast::cases::Cast>(s, &small::<cast::cases::Cast>(1e3)),
        "rope" => check::<rope::cases::Rotation>(s, &small::<rope::cases::Rotation>(1e4)),
        "swiglu" => {
            check::<swiglu::cases::SwiGlu>(s, &small::<swiglu::cases::SwiGlu>(1e5));
            gate_of_a_head(s);
        }
        "adamw" => {
            check::<adamw::cases::AdamW>(s, &small::<adamw::cases::AdamW>(1e4));
            updates_of_a_head(s);
        }
        "rmsnorm" => check::<rmsnorm::cases::RmsNorm>(s, &small::<rmsnorm::cases::RmsNorm>(2e5)),
        "xent" => check::<xent::cases::Xent>(s, &small::<xent::cases::Xent>(2e5)),
        "embedding" => check::<embedding::cases::Embedding>(s, &small::<embedding::cases::Embedding>(1e5)),
        "global_norm" => {
            check::<global_norm::cases::GlobalNorm>(s, &small::<global_norm::cases::GlobalNorm>(1e5));
            head_of_a_tensor(s);
        }
        "chunk_topk" => {
            check::<chunk_topk::cases::ChunkTopk>(s, &small::<chunk_topk::cases::ChunkTopk>(2e5));
            equal_magnitudes(s);
        }
        _ => panic!("{module}: no cases"),
    }
}

/// An op takes the head of a longer tensor, and not a number more.
fn head_of_a_tensor(s: &Stream) {
    let mut t = Tensor::alone(s, F32, [64]).unwrap();
    t.set(&[1.0; 64]);
    assert_eq!(global_norm::sum_squares(s, &t, 13).unwrap(), 13.0);
}

fn gate_of_a_head(s: &Stream) {
    let t = |seed| {
        let mut t = Tensor::alone(s, F32, [64]).unwrap();
        t.set(&harness::draw(seed, 64));
        t
    };
    let (g, u, mut h) = (t(1), t(2), t(3));
    swiglu::forward(s, swiglu::Dims { rows: 1, cols: 13 }, swiglu::Forward { g: &g, u: &u, h: &mut h }).unwrap();
    assert_eq!(h.to_f32()[13..], harness::draw(3, 64)[13..]);
}

/// Updates of the head of longer tensors, whole and in halves: the bits of the host, and the rest is left alone.
fn updates_of_a_head(s: &Stream) {
    use adamw::{Hyper, split};
    let h =
        Hyper { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t: 1, scale: 0.5, zero_grad: true };
    let on = |s: &Stream| {
        let t = |seed, dtype| {
            let mut t = Tensor::alone(s, dtype, [64]).unwrap();
            t.set(&harness::draw(seed, 64).iter().map(|x| x.abs()).collect::<Vec<f32>>());
            t
        };
        let (mut w, mut g, mut m, mut v, mut out) = (t(1, F32), t(2, F32), t(3, F32), t(4, F32), t(5, Bf16));
        let all = adamw::Step { w: &mut w, g: &mut g, m: &mut m, v: &mut v, out: Some(&mut out) };
        adamw::step(s, 21, all, h).unwrap();
        let (mut high, mut low) = (t(6, Bf16), t(7, Bf16));
        split::part_all(&harness::draw(6, 64), &mut high, &mut low);
        let (mut g2, mut m2, mut v2) = (t(2, F32), t(3, F32), t(4, F32));
        let all = split::Step { high: &mut high, low: &mut low, g: &mut g2, m: &mut m2, v: &mut v2 };
        split::step(s, 21, all, h).unwrap();
        [w, g, m, v, out, high, low, g2, m2, v2].map(|t| t.bytes().to_vec())
    };
    assert_eq!(on(s), on(&Stream::cpu(1).unwrap()));
}

/// Many equal magnitudes: of those the first are sent, as on the host.
fn equal_magnitudes(s: &Stream) {
    use chunk_topk::{Codec, Compress, Grid, Spec};
    let (grid, spec) = (Grid::matrix(64, 70), Spec { k: 64, codec: Codec::Compact });
    let on = |s: &Stream| {
        let mut e = Tensor::alone(s, F32, [grid.len()]).unwrap();
        let values: Vec<f32> = harness::draw(5, grid.len()).iter().map(|x| (2.0 * x).round()).collect();
        e.set(&values);
        let mut update = Tensor::alone(s, U32, [grid.update_words(spec)]).unwrap();
        let all = Compress { e: &mut e, delta: None, update: &mut update, beta: 1.0 };
        assert!(chunk_topk::compress(s, grid, spec, all).unwrap());
        (e.bytes().to_vec(), update.bytes().to_vec())
    };
    assert_eq!(on(s), on(&Stream::cpu(1).unwrap()));
}

fn is_caught(mutant: &Mutant) -> bool {
    let path = format!("{}/tests/mutants/{}.ptx.z", env!("CARGO_MANIFEST_DIR"), mutant.name);
    let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}; run build-kernels"));
    let ptx = String::from_utf8(images::unpack(&packed).unwrap()).unwrap();
    SEEDS.iter().any(|&seed| {
        let s = Stream::Gpu(Gpu::sim_with(seed, true, mutant.module.name, &ptx).unwrap());
        catch_unwind(AssertUnwindSafe(|| check_module(&s, mutant.module.name))).is_err()
    })
}

#[test]
fn planted_bugs_are_caught() {
    let mutants = images::mutants(include_str!("mutants/list"));
    assert!(mutants.len() >= 20);
    let hook = std::panic::take_hook();
    // What a bug makes of a case is no news here.
    let here = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != here {
            hook(info);
        }
    }));
    let missed: Vec<&str> = mutants.iter().filter(|m| !is_caught(m)).map(|m| m.name.as_str()).collect();
    println!("caught {} of {}; missed: {missed:?}", mutants.len() - missed.len(), mutants.len());
    assert!(100 * (mutants.len() - missed.len()) >= CAUGHT_MIN * mutants.len(), "missed {missed:?}");
}

/// The kernels as they are, under many orders of warps and delays of copies: no fault, and always the same numbers.
/// Every module runs on every seed, the heads and forms of a family by turns.
fn nothing_is_said(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let s = Stream::Gpu(Gpu::sim(seed, true, 1).unwrap());
        let turn = seed as usize;
        check::<matmul::cases::Matmul>(&s, &products()[turn % 3..][..1]);
        check::<matmul::cases::Matmul>(&s, &plain_products()[turn % 3..][..1]);
        let head = [64, 80, 96, 128, 256][turn % 5];
        check::<attention::cases::Attention>(&s, &heads(Bf16, head)[1 + 2 * (turn % 2)..][..1]);
        let head = [9, 65, 129, 257][turn % 4];
        check::<attention::cases::Attention>(&s, &short(heads(F32, head))[1 + 2 * (turn / 4 % 2)..][..1]);
        check::<rmsnorm::cases::RmsNorm>(&s, &small::<rmsnorm::cases::RmsNorm>(3e3));
        check::<xent::cases::Xent>(&s, &small::<xent::cases::Xent>(1e4));
        check::<embedding::cases::Embedding>(&s, &small::<embedding::cases::Embedding>(1e4));
        check::<cast::cases::Cast>(&s, &small::<cast::cases::Cast>(1e3));
        check::<rope::cases::Rotation>(&s, &small::<rope::cases::Rotation>(1e4));
        check::<swiglu::cases::SwiGlu>(&s, &small::<swiglu::cases::SwiGlu>(1e4));
        check::<adamw::cases::AdamW>(&s, &small::<adamw::cases::AdamW>(1e4));
        check::<chunk_topk::cases::ChunkTopk>(&s, &small::<chunk_topk::cases::ChunkTopk>(1e3));
        gated(&s);
        gate_of_a_head(&s);
        updates_of_a_head(&s);
        head_of_a_tensor(&s);
        equal_magnitudes(&s);
    }
}

/// The same with fewer tokens.
fn short(mut cases: Vec<attention::cases::Case>) -> Vec<attention::cases::Case> {
    cases.iter_mut().for_each(|c| c.d.seq = 37);
    cases
}

#[test]
fn nothing_is_said_of_sound_kernels() {
    nothing_is_said(100..125);
}

#[test]
fn nothing_is_said_of_sound_kernels_on_other_seeds() {
    nothing_is_said(125..150);
}
