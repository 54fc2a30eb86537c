//! Tests of whole networks; here what they share: a network with its buffers, run in any way.

mod bits;
mod golden;
mod hf;

use esker_kernels::{
    device::Stream,
    tensor::{Arena, Class, DType},
};
use esker_model::{Buffers, Config, Family, Grads, Recompute, Rope, Shape, Weights, score, train_micro};
use std::path::{Path, PathBuf};

/// How to run a step.
#[derive(Clone, Copy, Debug)]
struct How {
    threads: usize,
    micro_rows: usize,
    grain_rows: usize,
    dtype: DType,
    recompute: Recompute,
}

impl How {
    const PLAIN: How = How { threads: 2, micro_rows: 1, grain_rows: 1, dtype: DType::F32, recompute: Recompute::None };
}

/// Loss of each target, and the gradients by name.
#[derive(Debug, PartialEq)]
struct Step {
    nll: Vec<f32>,
    grads: Vec<(String, Vec<f32>)>,
}

impl Step {
    fn bits(&self) -> Vec<u32> {
        let grads = self.grads.iter().flat_map(|(_, g)| g);
        self.nll.iter().chain(grads).map(|x| x.to_bits()).collect()
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn rows(of: &serde_json::Value) -> Vec<Vec<u32>> {
    serde_json::from_value(of.clone()).unwrap()
}

/// Weights in an arena of their own.
fn weights(s: &Stream, cfg: &Config, dtype: DType) -> Weights {
    Arena::build(s, |arena| Weights::layout(arena.class(Class::Weights), cfg, dtype)).unwrap().0
}

fn grads(s: &Stream, cfg: &Config) -> Grads {
    Arena::build(s, |arena| Grads::layout(arena.class(Class::Gradients), cfg)).unwrap().0
}

fn buffers(s: &Stream, cfg: &Config, shape: Shape) -> Buffers {
    let (mut b, table) = Arena::build(s, |arena| Buffers::layout(arena, cfg, shape)).unwrap();
    let mut measured = Arena::measure();
    Buffers::layout(&mut measured, cfg, shape);
    assert_eq!(&table, measured.table());
    b.ready(s, cfg).unwrap();
    b
}

/// The network of a golden folder.
fn load(s: &Stream, name: &str, dtype: DType) -> (Config, Weights) {
    let cfg = esker_model::hf::read_card(&folder(name)).unwrap().config;
    let mut w = weights(s, &cfg, dtype);
    esker_model::hf::load(&folder(name), &mut w).unwrap();
    (cfg, w)
}

/// A small network with everything odd, drawn from a seed.
fn odd(family: Family, tied: bool) -> Config {
    let rope = Rope { theta: 10000.0, scaling: None };
    let (vocab, context, hidden, layers, heads, kv_heads, head_dim, ffn) = (71, 64, 33, 3, 4, 2, 14, 45);
    let (norm_eps, init_std) = (1e-5, 0.3);
    let cfg = Config {
        family,
        vocab,
        context,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn,
        norm_eps,
        tied,
        init_std,
        rope,
    };
    cfg.check().unwrap();
    cfg
}

/// Forward and backward of `rows` (ids; inputs but the last, targets but the first), `micro_rows` at a time.
fn step(cfg: &Config, w: &Weights, rows: &[Vec<u32>], first: Option<&[Vec<u32>]>, how: How) -> Step {
    let s = &Stream::cpu(how.threads).unwrap();
    let How { micro_rows, grain_rows, dtype, recompute, .. } = how;
    let seq = rows[0].len() - 1;
    let shape = Shape { micro_rows, seq, grain_rows, dtype, documents: first.is_some(), backward: Some(recompute) };
    let mut b = buffers(s, cfg, shape);
    let mut g = grads(s, cfg);
    let scale = 1.0 / (rows.len() * seq) as f32;
    let mut nll = Vec::new();
    for (i, rows) in rows.chunks(micro_rows).enumerate() {
        upload(s, &mut b, rows);
        if let (Some(first), Some(to)) = (first, &mut b.first) {
            s.upload_u32(&first[i * micro_rows..][..rows.len()].concat(), to).unwrap();
        }
        train_micro(s, cfg, w, &mut g, &mut b, rows.len(), scale).unwrap();
        let trained = b.nll.f32()[..rows.len() * seq].to_vec();
        score(s, cfg, w, &mut b, rows.len()).unwrap();
        assert_eq!(trained, &b.nll.f32()[..rows.len() * seq], "score and train_micro");
        nll.extend(trained);
    }
    g.join(s).unwrap();
    Step { nll, grads: g.sum.each().map(|(name, t)| (name.to_string(), t.f32().to_vec())).collect() }
}

fn upload(s: &Stream, b: &mut Buffers, rows: &[Vec<u32>]) {
    let inputs: Vec<u32> = rows.iter().flat_map(|r| &r[..r.len() - 1]).copied().collect();
    let targets: Vec<u32> = rows.iter().flat_map(|r| &r[1..]).copied().collect();
    s.upload_u32(&inputs, &mut b.inputs).unwrap();
    s.upload_u32(&targets, &mut b.targets).unwrap();
}

/// Ids from a seed.
fn ids(seed: u32, rows: usize, len: usize, vocab: usize) -> Vec<Vec<u32>> {
    let id = |r: usize, i: usize| esker_model::init::philox([i as u32, r as u32, seed, 9], [0, 0])[0] % vocab as u32;
    (0..rows).map(|r| (0..len).map(|i| id(r, i)).collect()).collect()
}

/// |got - want| / |want|
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(g, w)| f64::from(g - w))) / norm(&mut want.iter().map(|&w| f64::from(w)))
}

/// log softmax(logits) at `id`
fn logprob(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - max).exp()).sum();
    f64::from(logits[id as usize] - max) - sum.ln()
}
