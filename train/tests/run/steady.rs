//! Nothing allocates inside a step: a counting allocator watches from one step's event to another's, lines included.

use crate::tiny;
use esker_kernels::device::Kind;
use esker_train::run::{self, Event, Options, Start};
use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Set in the child process.
const CHILD: &str = "ESKER_STEADY_CHILD";

/// In a process of its own, since the allocator counts for all threads.
#[test]
fn steps_allocate_nothing() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "steady::child", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("counted"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn child() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let place = tiny::Place::new();
    for sets in [
        ["train.dtype=f32", "batch.virtual_ranks=1", "train.threads=1", "train.recompute=none"],
        ["train.dtype=bf16", "batch.virtual_ranks=4", "train.threads=2", "train.recompute=block"],
    ] {
        let sets = [sets.as_slice(), &["validation.every_steps=0", "train.steps=39"]].concat();
        let start = Start::New { run: place.run(&sets), out: place.out() };
        let flag = AtomicBool::new(false);
        let options = Options { stop: &flag, peaks: None, device: Kind::Cpu };
        let mut seen = [0; 40];
        run::train(start, &options, &mut |event: Event<'_>| {
            if let Event::Step(row) = event {
                seen[row.step as usize] = CALLS.load(Ordering::Relaxed);
            }
        })
        .unwrap();
        // A thread that the system starts late, of the pool or of the loader, allocates once; a step would in each of
        // these stretches.
        let still = [4, 12, 20, 28].iter().any(|&from| seen[from] == seen[from + 7]);
        assert!(still, "{sets:?}: calls of the allocator after each step: {seen:?}");
    }
    println!("counted");
}
