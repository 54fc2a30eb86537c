//! The host's threads, and how work is cut for them.
//!
//! An op cuts its work into pieces whose bounds depend on sizes alone, never on the number of threads; the *lanes* of
//! the pool (one a thread) then take pieces from a counter until none is left. Which lane runs a piece cannot change
//! its result, so one thread and two give the same bits, and a lane that the system has put to sleep delays only the
//! piece it holds. Nothing here allocates once the pool stands.

use crate::{DeviceError, Result, tensor::HostMem};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Bytes of scratch that each lane owns: packed panels, tiles of scores.
pub const LANE_BYTES: usize = 4 << 20;
/// Bytes of scratch that all lanes share: the packed operand of a product.
pub const SHARED_BYTES: usize = 16 << 20;

/// Most streams of pieces side by side; further lanes share them.
const STREAMS: usize = 32;

/// A counter with a cache line to itself.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicUsize);

/// Threads with scratch memory.
#[derive(Debug)]
pub struct Pool {
    threads: rayon::ThreadPool,
    lanes: usize,
    scratch: HostMem,
    running: AtomicBool,
    shared_taken: AtomicBool,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The most threads that a pool of this machine takes. What waits for all of them grows with each one beside the cores:
/// a thousand on two cores make a step two hundred times slower, and more could not be stopped any more.
pub fn threads_max() -> usize {
    (4 * cores()).max(256)
}

/// What a piece of work may use besides its arguments: the scratch of the lane that runs it.
#[derive(Debug)]
pub struct Lane<'a> {
    /// Which lane, from 0.
    pub index: usize,
    /// [`LANE_BYTES`] bytes on a page boundary; holds whatever the last piece left.
    pub scratch: &'a mut [u8],
}

impl Pool {
    /// A pool of `threads` threads; 0 takes every core.
    pub fn new(threads: usize) -> Result<Pool> {
        let (cores, most) = (cores(), threads_max());
        if threads > most {
            let why = format!("{cores} cores take {most} at most; 0 is one a core");
            return Err(DeviceError::Threads { threads, why });
        }
        let lanes = if threads == 0 { cores } else { threads };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(lanes)
            .thread_name(|i| format!("esker-cpu-{i}"))
            .build()
            .map_err(|e| DeviceError::Threads { threads: lanes, why: e.to_string() })?;
        let scratch = HostMem::map(SHARED_BYTES + lanes * LANE_BYTES)?;
        Ok(Pool {
            threads: pool,
            lanes,
            scratch,
            running: AtomicBool::new(false),
            shared_taken: AtomicBool::new(false),
        })
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Bytes of scratch, shared and of all lanes.
    pub fn own_bytes(&self) -> usize {
        self.scratch.len()
    }

    /// Runs `f` on a thread of the pool: inside, [`Pool::run`] costs under a microsecond.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.threads.install(f)
    }

    /// Calls `f(piece, lane)` once for each piece in `0..pieces`, on all lanes; returns when all are done.
    ///
    /// Pieces start in order. `f` must not call `run` again.
    pub fn run(&self, pieces: usize, f: impl Fn(usize, &mut Lane<'_>) + Sync) {
        assert!(!self.running.swap(true, Ordering::Acquire), "pool: a piece of work started more work");
        let _done = Lower(&self.running);
        let next = AtomicUsize::new(0);
        let lanes = self.lanes.min(pieces).max(1);
        let work = |index: usize| {
            // SAFETY: the windows of different lanes are disjoint, each index is handed out once by `fan`, and
            // `running` lets in one `run` at a time.
            let scratch = unsafe { self.scratch.window(SHARED_BYTES + index * LANE_BYTES, LANE_BYTES) };
            let mut lane = Lane { index, scratch };
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return;
                }
                f(piece, &mut lane);
            }
        };
        if lanes == 1 {
            work(0);
        } else {
            self.threads.install(|| fan(0, lanes, &work));
        }
    }

    /// As [`Pool::run`], but each lane goes through pieces that lie side by side, for work that reads memory once: what
    /// a lane fetches ahead it then uses itself. A lane that is through helps with what is left of the others' pieces.
    pub fn run_streams(&self, pieces: usize, f: impl Fn(usize, &mut Lane<'_>) + Sync) {
        let streams = self.lanes.min(pieces).min(STREAMS);
        let next: [Line; STREAMS] = Default::default();
        let start = |stream: usize| stream * pieces / streams;
        self.run(self.lanes.min(pieces), |first, lane| {
            for turn in 0..streams {
                let stream = (first + turn) % streams;
                let (from, to) = (start(stream), start(stream + 1));
                loop {
                    let piece = from + next[stream].0.fetch_add(1, Ordering::Relaxed);
                    if piece >= to {
                        break;
                    }
                    f(piece, lane);
                }
            }
        });
    }

    /// Cuts `out` into pieces of `len` elements (the last may be shorter) and calls `f(index, piece, lane)` on each.
    pub fn chunks<T: Send>(&self, out: &mut [T], len: usize, f: impl Fn(usize, &mut [T], &mut Lane<'_>) + Sync) {
        let total = out.len();
        let parts = Parts::new(out);
        self.run(total.div_ceil(len), |i, lane| {
            let (from, to) = (i * len, ((i + 1) * len).min(total));
            // SAFETY: windows of different pieces are disjoint and each piece runs once.
            f(i, unsafe { parts.window(from, to - from) }, lane);
        });
    }

    /// Hands the shared scratch, [`SHARED_BYTES`] bytes on a page boundary, to `f`; one taker at a time.
    pub fn with_shared<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        assert!(!self.shared_taken.swap(true, Ordering::Acquire), "pool: the shared scratch is in use");
        let _done = Lower(&self.shared_taken);
        // SAFETY: `shared_taken` lets in one taker at a time, and lanes have windows of their own.
        f(unsafe { self.scratch.window(0, SHARED_BYTES) })
    }
}

/// Lowers a flag when dropped, also on unwinding.
struct Lower<'a>(&'a AtomicBool);

impl Drop for Lower<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Calls `work` once for each lane of `from..to`, by halves; on a thread of the pool it does not allocate.
fn fan(from: usize, to: usize, work: &(impl Fn(usize) + Sync)) {
    if to - from == 1 {
        return work(from);
    }
    let middle = from + (to - from) / 2;
    rayon::join(|| fan(from, middle, work), || fan(middle, to, work));
}

/// A slice that several pieces of work write, each its own window.
#[derive(Debug)]
pub struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    _life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: a `Parts` is only a way to reach disjoint windows of a slice that it borrows mutably; `window` states the rule.
unsafe impl<T: Send> Sync for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// Borrows `all` for as long as the pieces run.
    pub fn new(all: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: all.as_mut_ptr(), len: all.len(), _life: std::marker::PhantomData }
    }

    /// The window `at..at + len`.
    ///
    /// # Safety
    /// Windows that are alive at the same time must not overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn window(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "parts: window {at}+{len} of {}", self.len);
        // SAFETY: inside the borrowed slice, by the check above; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// The address of element `at`, for kernels that write strided tiles.
    pub fn at(&self, at: usize) -> *mut T {
        assert!(at <= self.len, "parts: {at} of {}", self.len);
        self.start.wrapping_add(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_on_any_number_of_lanes() {
        for lanes in [1, 2, 3, 40] {
            let pool = Pool::new(lanes).unwrap();
            for pieces in [0, 1, 2, 7, 1000] {
                let mut seen = vec![0u32; pieces];
                pool.chunks(&mut seen, 1, |i, piece, lane| {
                    assert!(lane.index < lanes);
                    lane.scratch[0] = i as u8;
                    piece[0] += 1 + i as u32;
                });
                assert!(seen.iter().enumerate().all(|(i, &n)| n == 1 + i as u32));
                let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                pool.run_streams(pieces, |i, _| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                assert!(counts.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    #[should_panic(expected = "started more work")]
    fn work_inside_work_is_refused() {
        let pool = Pool::new(1).unwrap();
        pool.run(1, |_, _| pool.run(1, |_, _| {}));
    }

    #[test]
    fn the_pool_survives_a_panic_in_a_piece() {
        let pool = Pool::new(2).unwrap();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.run(4, |i, _| assert!(i != 2))));
        assert!(caught.is_err());
        pool.run(4, |_, _| {});
    }
}
