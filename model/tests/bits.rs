//! The same bits: whatever the threads, the micro-batch and the recompute; and nothing allocates on the way.

mod common;

use common::*;
use esker_kernels::{device::Stream, tensor::DType};
use esker_model::{Config, Family, Recompute, Shape, init, score, train_micro};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

/// The system's allocator, counting what this process asks for.
struct Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, so that nothing else allocates while it counts.
#[test]
fn a_step_has_the_same_bits_however_it_is_run_and_allocates_nothing() {
    let configs = [odd(Family::Llama, false), odd(Family::Qwen3, true)];
    let each = || configs.iter().flat_map(|cfg| [(cfg, DType::F32), (cfg, DType::Bf16)]);
    // First, and in pools that outlive it: the threads of a pool allocate when they end.
    let streams = [1, 2].map(|threads| Stream::cpu(threads).unwrap());
    for s in &streams {
        each().for_each(|(cfg, dtype)| allocates_nothing(s, cfg, dtype));
    }
    each().for_each(|(cfg, dtype)| same_bits(cfg, dtype));
    documents_do_not_meet();
}

fn drawn(s: &Stream, cfg: &Config, dtype: DType) -> esker_model::Weights {
    let mut master = weights(s, cfg, DType::F32);
    init::draw(s, cfg, &mut master, 5).unwrap();
    let mut w = weights(s, cfg, dtype);
    w.convert_from(s, &master).unwrap();
    w
}

fn same_bits(cfg: &Config, dtype: DType) {
    let w = drawn(&Stream::cpu(2).unwrap(), cfg, dtype);
    let rows = ids(1, 8, 38, cfg.vocab);
    for grain_rows in [1, 2] {
        let run = |threads, micro_rows, recompute| {
            step(cfg, &w, &rows, None, How { threads, micro_rows, grain_rows, dtype, recompute })
        };
        let want = run(1, 8, Recompute::None);
        assert!(
            want.nll.iter().all(|x| x.is_finite()) && want.grads.iter().all(|(_, g)| g.iter().all(|x| x.is_finite()))
        );
        for (threads, micro_rows, recompute) in [
            (1, 8, Recompute::None),
            (1, grain_rows, Recompute::None),
            (2, 4, Recompute::None),
            (3, 2, Recompute::None),
            (3, 8, Recompute::Block),
            (2, 2, Recompute::Block),
        ] {
            let got = run(threads, micro_rows, recompute);
            for ((name, got), (_, want)) in got.grads.iter().zip(&want.grads) {
                let same = got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits());
                assert!(
                    same,
                    "{name}: {threads} threads, {micro_rows} rows, {recompute:?}, {dtype}, off by {}",
                    relative(got, want)
                );
            }
            assert_eq!(got.bits(), want.bits());
        }
    }
}

fn allocates_nothing(s: &Stream, cfg: &Config, dtype: DType) {
    let w = drawn(s, cfg, dtype);
    let backward = Some(Recompute::Block);
    let mut b = buffers(s, cfg, Shape { micro_rows: 2, seq: 37, grain_rows: 1, dtype, documents: false, backward });
    let mut g = grads(s, cfg);
    upload(s, &mut b, &ids(2, 2, 38, cfg.vocab));
    s.enter(|| {
        let mut step = || {
            train_micro(s, cfg, &w, &mut g, &mut b, 2, 0.1).unwrap();
            score(s, cfg, &w, &mut b, 2).unwrap();
            g.join(s).unwrap();
        };
        // What is made once, on first use, is no part of a step.
        step();
        let before = ASKED.load(Ordering::Relaxed);
        (0..10).for_each(|_| step());
        let asked = ASKED.load(Ordering::Relaxed) - before;
        assert_eq!(asked, 0, "allocations in ten steps, {dtype}, {} threads", s.threads());
    });
}

/// Two documents in one row see nothing of each other: the losses of the second are those it has alone.
fn documents_do_not_meet() {
    let cfg = odd(Family::Llama, true);
    let w = drawn(&Stream::cpu(2).unwrap(), &cfg, DType::F32);
    let row = ids(3, 1, 38, cfg.vocab);
    let alone = vec![row[0][16..].to_vec()];
    let first = vec![(0..37).map(|i| if i < 16 { 0 } else { 16 }).collect()];
    let together = step(&cfg, &w, &row, Some(&first), How::PLAIN).nll;
    let alone = step(&cfg, &w, &alone, None, How::PLAIN).nll;
    assert!(relative(&together[16..], &alone) < 1e-5);
    let unmarked = step(&cfg, &w, &row, None, How::PLAIN).nll;
    assert!(relative(&unmarked[16..], &alone) > 1e-3);
}
