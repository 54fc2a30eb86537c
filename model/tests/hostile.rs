//! Hostile files: the corpora of `fuzz/`, and some thousand more made here from valid ones, cut, flipped and lying, through
//! the functions that the fuzz targets call. None may panic, none may take memory that it has no reason to take, and a
//! refusal names its file in a message that fits a screen. A process of its own, so that memory can be counted.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

#[path = "../fuzz/entries"]
mod entries {
    pub mod config;
    pub mod gguf;
    pub mod index;
    pub mod network;
    pub mod safetensors;
}

/// Memory that no file of this test may make a reader exceed: a pool's threads, a piece of a file, a few messages.
const MEMORY_MAX: usize = 8 << 20;

/// The system's allocator, with the bytes in use and the most there were.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), SeqCst) + layout.size(), SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Entry = fn(&[u8]) -> Result<(), String>;

const TARGETS: [(&str, Entry); 4] = [
    ("safetensors", entries::safetensors::run),
    ("config", entries::config::run),
    ("index", entries::index::run),
    ("gguf", entries::gguf::run),
];

/// One test, since what it counts is of the whole process.
#[test]
fn hostile_files_are_refused() {
    let mut cases = 0;
    for (target, entry) in TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> = fs::read_dir(corpus).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        for file in files {
            let (name, bytes) = (file.file_name().unwrap().to_str().unwrap(), fs::read(&file).unwrap());
            let outcome = run(&format!("{target}/{name}"), &bytes, entry);
            assert_eq!(outcome.is_ok(), name.starts_with("valid"), "{target}/{name}: {outcome:?}");
            cases += 1;
            if !name.starts_with("valid") {
                continue;
            }
            // Cut at every few bytes, bits flipped, bytes drawn.
            let tensors = target == "safetensors" || target == "gguf";
            let (cut, flip) = match target {
                "safetensors" => (7, 9),
                "gguf" => (31, 37),
                _ => (13, 9),
            };
            for n in (0..bytes.len() - 1).step_by(cut) {
                // A text without the spaces at its end is still whole.
                if tensors || !bytes[n..].trim_ascii().is_empty() {
                    run(&format!("{target}/{name} cut to {n}"), &bytes[..n], entry).expect_err("a cut file");
                    cases += 1;
                }
            }
            for at in (0..bytes.len()).step_by(flip) {
                for byte in [bytes[at] ^ (1 << (at % 8)), b'9', 0xff] {
                    let mut bytes = bytes.clone();
                    bytes[at] = byte;
                    // Another digit may be another model, and no lie.
                    let _ = run(&format!("{target}/{name} with {byte} at {at}"), &bytes, entry);
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 5000, "{cases} cases");
}

fn run(name: &str, bytes: &[u8], entry: Entry) -> Result<(), String> {
    let live = LIVE.load(SeqCst);
    PEAK.store(live, SeqCst);
    let outcome = entry(bytes);
    let took = PEAK.load(SeqCst).saturating_sub(live);
    assert!(took < MEMORY_MAX, "{name} took {took} bytes");
    if let Err(message) = &outcome {
        // The folder's name, so the file's path.
        assert!(message.contains(".tmp"), "{name}: {message}");
        assert!((20..1000).contains(&message.len()), "{name}: {message}");
    }
    outcome
}
