//! Every kernel against the reference on the simulator of a GPU: all cases of the CPU, and those that only tensor cores
//! and their tiles make interesting.

use esker_kernels::{
    device::Stream,
    gpu::Gpu,
    harness::{self, Op},
    ops::{
        adamw, attention, cast, chunk_topk, embedding, global_norm, matmul, matmul::Put, rmsnorm, rope, swiglu, xent,
    },
    tensor::DType::{Bf16, F32},
};

/// Runs all of the op's own cases.
fn conform<O: Op>() {
    conform_part::<O>(0, 1);
}

/// Every `of`-th of them from `part` on: tests run beside each other.
fn conform_part<O: Op>(part: usize, of: usize) {
    let s = Stream::sim(1).unwrap();
    for (i, case) in O::conform_cases().iter().enumerate().filter(|(i, _)| i % of == part) {
        let start = std::time::Instant::now();
        harness::conform_case::<O>(&s, &[], case, 1000 + i as u64);
        println!("{} {case:?}: {:.2} s", O::NAME, start.elapsed().as_secs_f64());
    }
}

/// Runs cases of its own, on two seeds of the simulator, which must give the same bits.
fn also<O: Op>(cases: Vec<O::Case>) {
    let s = Stream::sim(1).unwrap();
    let other = [Stream::Gpu(Gpu::sim(7, false, 1).unwrap())];
    for (i, case) in cases.iter().enumerate() {
        harness::conform_case::<O>(&s, &other, case, 2000 + i as u64);
    }
}

#[test]
fn cast() {
    conform::<cast::cases::Cast>();
}

#[test]
fn rmsnorm() {
    conform::<rmsnorm::cases::RmsNorm>();
}

#[test]
fn rope() {
    conform::<rope::cases::Rotation>();
}

#[test]
fn swiglu() {
    conform::<swiglu::cases::SwiGlu>();
}

#[test]
fn embedding() {
    conform::<embedding::cases::Embedding>();
}

#[test]
fn global_norm() {
    conform::<global_norm::cases::GlobalNorm>();
}

#[test]
fn adamw() {
    conform::<adamw::cases::AdamW>();
}

#[test]
fn chunk_topk() {
    conform::<chunk_topk::cases::ChunkTopk>();
}

#[test]
fn xent() {
    conform::<xent::cases::Xent>();
}

#[test]
fn matmul_of_any_shape() {
    conform_part::<matmul::cases::Matmul>(0, 2);
}

#[test]
fn matmul_of_any_shape_the_other_half() {
    conform_part::<matmul::cases::Matmul>(1, 2);
}

/// Every form with and without its tails, in the dtypes of a step.
#[test]
fn matmul_on_tensor_cores() {
    use matmul::cases::{Case, Form, Matmul};
    let mut cases = Vec::new();
    // m, n, k: less than a tile; a tile; just past it with odd ends; past the stages.
    for (m, n, k) in [(8, 8, 8), (128, 128, 64), (136, 144, 40), (72, 264, 200)] {
        let dims = matmul::Dims { m, n, k };
        for (form, dtypes, put, grain) in [
            (Form::Nt, [Bf16, Bf16, Bf16], Put::Set, k),
            (Form::Nt, [Bf16, Bf16, F32], Put::Add, k),
            (Form::Nn, [Bf16, Bf16, F32], Put::Set, k),
            (Form::Nn, [F32, Bf16, Bf16], Put::Set, k),
            (Form::Tn, [Bf16, Bf16, F32], Put::Add, k / 2),
            (Form::Tn, [F32, Bf16, F32], Put::Set, k / 4),
        ] {
            cases.push(Case { form, dims, dtypes, put, grain });
        }
    }
    // Rows of c of odd length, as the logits of an odd vocabulary.
    let dims = matmul::Dims { m: 9, n: 131, k: 72 };
    for (c, put) in [(F32, Put::Set), (F32, Put::Add), (Bf16, Put::Set)] {
        cases.push(Case { form: Form::Nt, dims, dtypes: [Bf16, Bf16, c], put, grain: 72 });
    }
    also::<Matmul>(cases);
}

#[test]
fn attention_of_any_shape() {
    conform_part::<attention::cases::Attention>(0, 2);
}

#[test]
fn attention_of_any_shape_the_other_half() {
    conform_part::<attention::cases::Attention>(1, 2);
}

/// Each compiled head size, forward and backward: one document and many, grouped heads, ends of tiles.
fn heads(dims: &[usize]) {
    use attention::cases::{Attention, Case, Door};
    let mut cases = Vec::new();
    for &head_dim in dims {
        for (seq, heads, kv_heads, document) in [(65, 2, 1, 0), (130, 2, 2, 40)] {
            let d = attention::Dims { batch: 1, seq, heads, kv_heads, head_dim };
            for door in [Door::Forward, Door::Backward] {
                cases.push(Case { door, dtype: Bf16, d, document });
            }
        }
    }
    also::<Attention>(cases);
}

#[test]
fn attention_with_heads_of_64() {
    heads(&[64, 56]);
}

#[test]
fn attention_with_heads_of_80() {
    heads(&[80]);
}

#[test]
fn attention_with_heads_of_96() {
    heads(&[96]);
}

#[test]
fn attention_with_heads_of_128() {
    heads(&[128]);
}

#[test]
fn attention_with_heads_of_256() {
    heads(&[256]);
}

/// Accesses without an order between them, in the cases that cost little.
#[test]
fn no_kernel_races() {
    let s = Stream::Gpu(Gpu::sim(3, true, 1).unwrap());
    race_free::<matmul::cases::Matmul>(&s, 1e6);
    race_free::<rmsnorm::cases::RmsNorm>(&s, 4e5);
    race_free::<embedding::cases::Embedding>(&s, 1e6);
    race_free::<global_norm::cases::GlobalNorm>(&s, 1e6);
    race_free::<cast::cases::Cast>(&s, 1e6);
    race_free::<rope::cases::Rotation>(&s, 1e6);
    race_free::<swiglu::cases::SwiGlu>(&s, 1e6);
    race_free::<adamw::cases::AdamW>(&s, 1e6);
}

#[test]
fn no_kernel_of_attention_or_the_head_races() {
    let s = Stream::Gpu(Gpu::sim(3, true, 1).unwrap());
    race_free::<attention::cases::Attention>(&s, 2e6);
    race_free::<xent::cases::Xent>(&s, 1e6);
    race_free::<chunk_topk::cases::ChunkTopk>(&s, 1e6);
}

fn race_free<O: Op>(s: &Stream, most: f64) {
    for (i, case) in O::conform_cases().iter().enumerate() {
        let work = O::work(case);
        if work.flops.max(work.bytes) <= most {
            let mut ready = O::prepare(s, case, i as u64).unwrap();
            O::run(s, case, &mut ready).unwrap_or_else(|e| panic!("{} {case:?}: {e}", O::NAME));
        }
    }
}

/// Two products and their gate in one pass have the bits of three calls.
#[test]
fn a_gated_product_is_three_calls() {
    use esker_kernels::tensor::{DType, Tensor};
    let s = Stream::sim(1).unwrap();
    for (m, n, k) in [(5, 24, 40), (130, 72, 64)] {
        let d = matmul::Dims { m, n, k };
        let t = |seed, rows, cols| {
            let mut t = Tensor::alone(&s, DType::Bf16, [rows, cols]).unwrap();
            t.set(&harness::draw(seed, rows * cols));
            t
        };
        let (a, gate, up) = (t(1, m, k), t(2, n, k), t(3, n, k));
        let (mut g, mut u, mut h) = (t(4, m, n), t(5, m, n), t(6, m, n));
        let all = matmul::Gated { a: &a, gate: &gate, up: &up, g: &mut g, u: &mut u, h: &mut h };
        matmul::gated(&s, d, all, matmul::nt).unwrap();
        let (mut g3, mut u3, mut h3) = (t(7, m, n), t(8, m, n), t(9, m, n));
        matmul::nt(&s, d, matmul::Product { a: &a, b: &gate, c: &mut g3, put: Put::Set }).unwrap();
        matmul::nt(&s, d, matmul::Product { a: &a, b: &up, c: &mut u3, put: Put::Set }).unwrap();
        let forward = swiglu::Forward { g: &g3, u: &u3, h: &mut h3 };
        swiglu::forward(&s, swiglu::Dims { rows: m, cols: n }, forward).unwrap();
        assert_eq!((g.bytes(), u.bytes(), h.bytes()), (g3.bytes(), u3.bytes(), h3.bytes()), "{d:?}");
    }
}
