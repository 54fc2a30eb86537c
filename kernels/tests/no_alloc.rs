//! House rule: nothing allocates inside a step, so no op does.
//!
//! The first run of a case may: a thread that waits for the first time sets up what it waits on. Others may during any
//! run: a thread of the pool that the system starts late, the test's harness when a minute is over. An op would in all.

use esker_kernels::{bench, device::Stream};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting calls that take memory.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, SeqCst);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(start, layout, size) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(start, layout) }
    }
}

/// Runs of a case at most; the first that takes no memory is the last.
const RUNS: usize = 5;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_op_allocates_inside_enter() {
    let before = CALLS.load(SeqCst);
    drop(std::hint::black_box(Box::new(1)));
    assert!(CALLS.load(SeqCst) > before, "the counter counts");

    let s = Stream::cpu(2).unwrap();
    for op in bench::OPS {
        let each = |case: &str, run: &mut (dyn FnMut() -> esker_kernels::Result<()> + Send)| {
            let calls = s.enter(|| {
                run().unwrap();
                let mut fewest = usize::MAX;
                for _ in 0..RUNS {
                    let before = CALLS.load(SeqCst);
                    run().unwrap();
                    fewest = fewest.min(CALLS.load(SeqCst) - before);
                    if fewest == 0 {
                        break;
                    }
                }
                fewest
            });
            assert_eq!(calls, 0, "{} {case} takes memory {calls} times a call", op.name);
        };
        op.cases(&s, each).unwrap();
    }
}
