//! Nothing allocates in a step or in generation. A process of its own, so that nothing else does meanwhile.

use esker_kernels::{
    device::Stream,
    tensor::{Arena, Class, DType},
};
use esker_model::{Buffers, Config, Decoder, Family, Grads, Recompute, Rope, Shape, Weights, init, score, train_micro};
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

#[test]
fn a_step_allocates_nothing() {
    // Pools that outlive what is counted: the threads of a pool allocate when they end.
    let streams = [1, 2].map(|threads| Stream::cpu(threads).unwrap());
    for s in &streams {
        for (family, tied) in [(Family::Llama, false), (Family::Qwen3, true)] {
            for dtype in [DType::F32, DType::Bf16] {
                allocates_nothing(s, &config(family, tied), dtype);
            }
        }
    }
}

fn config(family: Family, tied: bool) -> Config {
    let rope = Rope { theta: 10000.0, scaling: None };
    let (vocab, context, hidden, layers, heads, kv_heads, head_dim, ffn) = (71, 64, 33, 3, 4, 2, 14, 45);
    let (norm_eps, init_std) = (1e-5, 0.02);
    Config { family, vocab, context, hidden, layers, heads, kv_heads, head_dim, ffn, norm_eps, tied, init_std, rope }
}

fn allocates_nothing(s: &Stream, cfg: &Config, dtype: DType) {
    let backward = Some(Recompute::Block);
    let shape = Shape { micro_rows: 2, seq: 37, grain_rows: 1, dtype, documents: false, backward };
    let ((mut master, mut w, mut g, mut b, mut d), _) = Arena::build(s, |arena| {
        let master = Weights::layout(arena.class(Class::Weights), cfg, DType::F32);
        let w = Weights::layout(arena, cfg, dtype);
        let g = Grads::layout(arena.class(Class::Gradients), cfg);
        (master, w, g, Buffers::layout(arena, cfg, shape), Decoder::layout(arena, cfg, dtype, 64, 8))
    })
    .unwrap();
    init::draw(s, cfg, &mut master, 5).unwrap();
    b.ready(s, cfg).unwrap();
    d.ready(s, cfg).unwrap();
    let prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    s.enter(|| {
        let mut step = || {
            w.convert_from(s, &master).unwrap();
            g.zero(s).unwrap();
            train_micro(s, cfg, &w, &mut g, &mut b, 2, 0.1).unwrap();
            score(s, cfg, &w, &mut b, 2).unwrap();
            g.join(s).unwrap();
            assert_eq!(master.each_mut().zip(g.sum.each_mut()).count(), w.each().count());
            d.reset();
            d.prefill(s, cfg, &w, &prompt).unwrap();
            d.step(s, cfg, &w, 11).unwrap();
        };
        // What is made once, on first use, is no part of a step.
        step();
        let mut ten_steps = || {
            let before = ASKED.load(Ordering::Relaxed);
            (0..10).for_each(|_| step());
            ASKED.load(Ordering::Relaxed) - before
        };
        // A thread of the pool that the system starts late allocates once, and so does the test's harness when a minute
        // is over; a step would in all of these.
        let mut asked = ten_steps();
        for _ in 0..4 {
            asked = if asked > 0 { asked.min(ten_steps()) } else { 0 };
        }
        assert_eq!(asked, 0, "allocations in ten steps, {dtype}, {} threads", s.threads());
    });
}
