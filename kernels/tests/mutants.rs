//! Planted bugs: the simulator with the cases must catch them, and must say nothing of the kernels as they are.
//!
//! The list and the code of each are in `tests/mutants`; `build-kernels` makes them with the kernels. A bug counts as
//! caught if, under one of the seeds, a run stops at a fault, or its numbers differ from the reference or between runs.

use esker_kernels::{
    device::Stream,
    gpu::{
        Gpu,
        images::{self, Mutant},
    },
    harness::{self, Op},
    ops::{
        attention, chunk_topk, embedding, global_norm,
        matmul::{self, Put},
        rmsnorm, xent,
    },
    tensor::{
        DType::{Bf16, F32, U32},
        Tensor,
    },
};
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS: [u64; 3] = [1, 2, 3];
/// Of the twenty.
const CAUGHT_MIN: usize = 18;

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

fn heads() -> Vec<attention::cases::Case> {
    use attention::cases::{Case, Door};
    let d = |seq, head_dim| attention::Dims { batch: 1, seq, heads: 2, kv_heads: 1, head_dim };
    let case = |door, seq, head_dim, document| Case { door, dtype: Bf16, d: d(seq, head_dim), document };
    vec![
        case(Door::Forward, 140, 64, 0),
        case(Door::Forward, 100, 64, 30),
        case(Door::Backward, 140, 64, 0),
        case(Door::Backward, 100, 64, 30),
    ]
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
        "matmul_mma" => check::<matmul::cases::Matmul>(s, &products()),
        "attention_mma_64" => check::<attention::cases::Attention>(s, &heads()),
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
    assert_eq!(mutants.len(), 20);
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
    assert!(mutants.len() - missed.len() >= CAUGHT_MIN, "missed {missed:?}");
}

/// The kernels as they are, under many orders of warps and delays of copies: no fault, and always the same numbers.
#[test]
fn nothing_is_said_of_sound_kernels() {
    for seed in 100..150 {
        let s = Stream::Gpu(Gpu::sim(seed, true, 1).unwrap());
        check::<matmul::cases::Matmul>(&s, &products()[seed as usize % 3..][..1]);
        check::<attention::cases::Attention>(&s, &heads()[1 + 2 * (seed as usize % 2)..][..1]);
        check::<rmsnorm::cases::RmsNorm>(&s, &small::<rmsnorm::cases::RmsNorm>(3e3));
        head_of_a_tensor(&s);
        equal_magnitudes(&s);
        check::<xent::cases::Xent>(&s, &small::<xent::cases::Xent>(1e4));
    }
}
