//! The corpora of the transport's and the blobs' decoders, and thousands of changed copies, through the functions that
//! the fuzz targets call; and what they may take of memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use esker_comms::net::backoff::Jitter;

#[path = "../fuzz/entries/blob_map.rs"]
mod blob_map;
#[path = "../fuzz/entries/frame.rs"]
mod frame;
#[path = "../fuzz/entries/request.rs"]
mod request;

/// The largest single allocation since it was cleared.
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Watching;

// SAFETY: every call goes to the system's allocator as it came; counting touches an atomic alone.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

type Entry = fn(&[u8]) -> Result<(), String>;

#[test]
fn corpora_and_changed_copies() {
    let targets: [(&str, Entry); 3] = [("frame", frame::run), ("request", request::run), ("blob_map", blob_map::run)];
    let mut dice = Jitter::new(1);
    for (target, entry) in targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        assert!(files.len() > 5, "{target}");
        for file in files {
            let bytes = std::fs::read(&file).unwrap();
            let name = file.file_name().unwrap().to_str().unwrap();
            let outcome = entry(&bytes);
            assert_eq!(outcome.is_ok(), name.starts_with("valid"), "{target}/{name}: {outcome:?}");
            for _ in 0..2000 {
                let mut copy = bytes.clone();
                for _ in 0..=dice.draw() % 3 {
                    match dice.draw() % 4 {
                        0 => copy.push(dice.draw() as u8),
                        1 => copy.truncate((dice.draw() % (copy.len() as u64 + 1)) as usize),
                        _ if copy.is_empty() => {}
                        _ => {
                            let at = (dice.draw() % copy.len() as u64) as usize;
                            copy[at] = dice.draw() as u8;
                        }
                    }
                }
                LARGEST.store(0, Relaxed);
                let _ = entry(&copy);
                // Twice what came, and room for an error's text and a list of 256 places.
                let most = 2 * copy.len() + 16_384;
                assert!(
                    LARGEST.load(Relaxed) <= most,
                    "{target}/{name}: took {} for {}",
                    LARGEST.load(Relaxed),
                    copy.len()
                );
            }
        }
    }
}
