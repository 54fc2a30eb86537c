//! Whole training steps.

use super::{ModelRow, Row, llama, median_and_min};
use crate::{
    bare,
    config::{Optim, OptimKind, Run},
    masters::Masters,
    optim,
    state::State,
};
use esker_kernels::{
    Result,
    device::Stream,
    peak::Peaks,
    tensor::{Arena, DType},
};
use esker_model::Config;
use std::time::Instant;

/// Fewest steps that a median is taken of.
const STEPS_MIN: usize = 3;

/// A shape, rows and tokens of a row.
fn cases() -> [(&'static str, Config, usize, usize); 4] {
    [
        ("stories15M B8 T256", llama(32_000, 256, 288, 6, 6, 768), 8, 256),
        ("stories110M B1 T1024", llama(32_000, 1024, 768, 12, 12, 2048), 1, 1024),
        ("gpt2-124M B1 T1024", llama(50_257, 1024, 768, 12, 12, 2048), 1, 1024),
        ("gpt2-124M B4 T64", llama(50_257, 1024, 768, 12, 12, 2048), 4, 64),
    ]
}

/// Times the cases whose name contains `filter`, about `seconds` each; `each` sees a row and may end it by saying false.
pub fn steps(
    s: &Stream,
    peaks: &Peaks,
    filter: &str,
    dtypes: &[DType],
    seconds: f64,
    each: &mut dyn FnMut(Row) -> bool,
) -> Result<()> {
    for (name, config, rows, seq) in cases() {
        for &dtype in dtypes.iter().filter(|_| name.contains(filter)) {
            let row = case(s, peaks, (name, &config), (rows, seq), dtype, seconds)?;
            if !each(Row::Model(row)) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Steps of 124M parameters on `rows` rows of 1024 tokens.
pub(super) fn of_124m(s: &Stream, peaks: &Peaks, rows: usize, dtype: DType, seconds: f64) -> Result<ModelRow> {
    let config = llama(50_257, 1024, 768, 12, 12, 2048);
    case(s, peaks, (&format!("gpt2-124M B{rows} T1024"), &config), (rows, 1024), dtype, seconds)
}

/// Steps of two layers of next to nothing: a test of the bench.
pub(super) fn of_nothing(s: &Stream, peaks: &Peaks, dtype: DType) -> Result<ModelRow> {
    case(s, peaks, ("nothing B2 T16", &llama(64, 16, 32, 2, 4, 48)), (2, 16), dtype, 0.0)
}

fn case(
    s: &Stream,
    peaks: &Peaks,
    (name, config): (&str, &Config),
    (rows, seq): (usize, usize),
    dtype: DType,
    seconds: f64,
) -> Result<ModelRow> {
    let sizes = bare::Sizes { rows, seq, steps: 1, dtype };
    let optim = Optim {
        kind: OptimKind::Adamw,
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        clip_norm: 0.0,
    };
    let run = bare::run(config.clone(), &sizes, optim).expect("bench: a case of ours is a run");
    let masters = Masters::of(&run, matches!(s, Stream::Gpu(_)));
    let mut state = Arena::build(s, |arena| State::layout_as(arena, &run, masters))?.0;
    state.buffers.ready(s, config)?;
    state.draw(s, &run)?;
    state.refresh(s)?;
    let mut times = Vec::new();
    let begin = Instant::now();
    // The first step is not counted: it brings caches, pages and the clock up.
    for t in 1.. {
        let start = Instant::now();
        let (inputs, targets) = tokens(&run, t);
        s.enter(|| step(s, &run, &mut state, (&inputs, &targets), t))?;
        s.synchronise()?;
        if t > 1 {
            times.push(start.elapsed().as_secs_f64());
        }
        if times.len() >= STEPS_MIN && begin.elapsed().as_secs_f64() >= seconds {
            break;
        }
    }
    let runs = times.len();
    let (median, min) = median_and_min(times);
    let tokens_per_s = (rows * seq) as f64 / median;
    let flops_per_token = config.flops_per_token(seq);
    let rate = flops_per_token * tokens_per_s;
    Ok(ModelRow {
        bench: "step",
        case: name.into(),
        dtype,
        threads: s.threads(),
        params: config.params().total(),
        runs,
        median_ms: median * 1e3,
        min_ms: min * 1e3,
        tokens_per_s,
        flops_per_token,
        gflop_per_s: rate / 1e9,
        share_of_peak: rate / peaks.flops(dtype),
        bytes_per_token: None,
        share_of_bandwidth: None,
    })
}

/// Random inputs and targets of step `t`.
fn tokens(run: &Run, t: u64) -> (Vec<u32>, Vec<u32>) {
    let (tokens, vocab) = (run.batch.micro_rows * run.batch.seq_len, run.model.vocab as u64);
    let mut x = t.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = || {
        // Knuth's MMIX generator; only that no two steps see the same tokens matters.
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((x >> 33) % vocab) as u32
    };
    let mut row = || (0..tokens).map(|_| draw()).collect();
    (row(), row())
}

/// Tokens over, forward, backward, AdamW.
fn step(s: &Stream, run: &Run, state: &mut State, (inputs, targets): (&[u32], &[u32]), t: u64) -> Result<()> {
    s.upload_u32(inputs, &mut state.buffers.inputs)?;
    s.upload_u32(targets, &mut state.buffers.targets)?;
    s.graph("step", 0, || {
        let State { master, compute, grads, buffers, .. } = &mut *state;
        let (rows, scale) = (run.batch.micro_rows, 1.0 / inputs.len() as f32);
        esker_model::train_micro(s, &run.model, compute.as_ref().unwrap_or(master), grads, buffers, rows, scale)?;
        grads.join(s)?;
        optim::update(s, run, state, run.optim.lr, t, 1.0)
    })
}
