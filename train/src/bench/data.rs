//! How fast rows come from shards in random order.
//!
//! Four shards of 512 MiB of 16-bit tokens are written into the system's folder for temporary files, read, and removed.
//! *cold*: the system is asked to forget them first, and each page comes from the disk. *read ahead*: through the one
//! thread that a run has for it. *mixture*: the shards as four sources. Rows of 256 tokens with document starts, 8 a
//! request, are what the 15M shape trains on; the last column is how many such runs, at 8,000 tokens a second each, the
//! rate would feed.

use super::{DataRow, Row};
use esker_data::{
    loader::{Batch, Loader, LoaderConfig, LoaderError},
    mix::Mix,
    prefetch::{Ahead, Prefetch, Request},
    shard::{Check, ShardError, ShardSpec, ShardWriter},
    tokens::TokenSet,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const SHARDS: usize = 4;
/// Tokens of a shard, about.
const SHARD_TOKENS: u64 = 1 << 28;
const VOCAB: u32 = 50_257;
const SEQ: usize = 256;
const ROWS: usize = 8;
/// Tokens a second that the 15M shape trains on with two cores of a server.
const TAKEN_PER_S: f64 = 8_000.0;

/// One way of reading.
struct Case {
    name: &'static str,
    cold: bool,
    check: Check,
    mixed: bool,
    ahead: bool,
}

const CASES: [Case; 5] = [
    Case { name: "2 GiB T256 cold, read ahead", cold: true, check: Check::Header, mixed: false, ahead: true },
    Case { name: "2 GiB T256 cold, read ahead, checked", cold: true, check: Check::Lazy, mixed: false, ahead: true },
    Case { name: "2 GiB T256 warm, read ahead", cold: false, check: Check::Header, mixed: false, ahead: true },
    Case {
        name: "2 GiB T256 warm, mixture of 4, read ahead",
        cold: false,
        check: Check::Header,
        mixed: true,
        ahead: true,
    },
    Case { name: "2 GiB T256 warm, all threads", cold: false, check: Check::Header, mixed: false, ahead: false },
];
const VERIFY: &str = "2 GiB warm, every digest";

/// Times the cases whose name contains `filter`, `seconds` each; `each` sees a row and may end it by saying false.
pub fn data(threads: usize, filter: &str, seconds: f64, each: &mut dyn FnMut(Row) -> bool) -> Result<(), LoaderError> {
    if !CASES.iter().any(|c| c.name.contains(filter)) && !VERIFY.contains(filter) {
        return Ok(());
    }
    let dir = Aside(std::env::temp_dir().join(format!("esker-bench-data-{}", std::process::id())));
    let paths = write(&dir.0)?;
    for case in CASES.iter().filter(|c| c.name.contains(filter)) {
        let row = read(case, &paths, if case.ahead { 1 } else { threads }, seconds)?;
        if !each(Row::Data(row)) {
            return Ok(());
        }
    }
    if VERIFY.contains(filter) {
        let (start, set) = (Instant::now(), TokenSet::open(&paths, Check::Header)?);
        let open_ms = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        TokenSet::open(&paths, Check::Everything)?;
        each(Row::Data(DataRow::new(
            VERIFY,
            threads,
            open_ms,
            set.tokens(),
            start.elapsed().as_secs_f64(),
            TAKEN_PER_S,
        )));
    }
    Ok(())
}

fn read(case: &Case, paths: &[PathBuf], threads: usize, seconds: f64) -> Result<DataRow, LoaderError> {
    if case.cold {
        paths.iter().for_each(|path| forget(path));
    }
    let begin = Instant::now();
    let (sets, mix) = match case.mixed {
        false => (vec![Arc::new(TokenSet::open(paths, case.check)?)], Mix::single()),
        true => {
            let open = |path: &PathBuf| TokenSet::open(std::slice::from_ref(path), case.check).map(Arc::new);
            let sets = paths.iter().map(open).collect::<Result<_, LoaderError>>()?;
            (sets, Mix::of_decimals(&[0.55, 0.25, 0.15, 0.05]).expect("bench: weights of ours"))
        }
    };
    let open_ms = begin.elapsed().as_secs_f64() * 1e3;
    let loader = Loader::mixed(sets, mix, LoaderConfig { seq_len: SEQ, seed: 1, ignore_boundary: true })?;
    let start = Instant::now();
    let rows = match case.ahead {
        true => ahead(loader, start, seconds)?,
        false => at_once(&loader, threads, start, seconds)?,
    };
    let tokens = rows * SEQ as u64;
    Ok(DataRow::new(case.name, threads, open_ms, tokens, start.elapsed().as_secs_f64(), TAKEN_PER_S))
}

/// Rows that come from the thread of a run.
fn ahead(loader: Loader, start: Instant, seconds: f64) -> Result<u64, LoaderError> {
    let requests = (0..).map(|i| Request { position: i * ROWS as u64, rows: ROWS, count_rows: ROWS });
    let mut feed = Prefetch::start(loader, Ahead { buffers: 16, rows: ROWS, documents: true }, requests)?;
    let mut rows = 0;
    while start.elapsed().as_secs_f64() < seconds {
        rows += feed.wait()?.request().rows as u64;
    }
    Ok(rows)
}

/// Rows that `threads` threads make, each the next few that nobody has made.
fn at_once(loader: &Loader, threads: usize, start: Instant, seconds: f64) -> Result<u64, LoaderError> {
    let next = AtomicU64::new(0);
    let work = || -> Result<(), LoaderError> {
        let mut buffers = [vec![0; ROWS * SEQ], vec![0; ROWS * SEQ], vec![0; ROWS * SEQ]];
        while start.elapsed().as_secs_f64() < seconds {
            let [inputs, targets, first] = &mut buffers;
            let position = next.fetch_add(ROWS as u64, Ordering::Relaxed);
            loader.fill(position, ROWS, Batch { inputs, targets, doc_first: Some(first) })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().try_for_each(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(next.load(Ordering::Relaxed))
}

/// Documents of 100 to 2,000 made-up tokens.
fn write(dir: &Path) -> Result<Vec<PathBuf>, ShardError> {
    let failed = |source| ShardError::Io { path: dir.to_path_buf(), action: "create", source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let spec = ShardSpec { vocab_size: VOCAB, eos: Some(VOCAB - 1), tokenizer_hash: [0; 32] };
    let (mut x, mut document, mut paths) = (1u64, Vec::new(), Vec::new());
    for i in 0..SHARDS {
        let path = dir.join(format!("train-{i:05}.shard"));
        let mut writer = ShardWriter::create(&path, spec)?;
        while writer.tokens() < SHARD_TOKENS {
            document.clear();
            let len = 100 + (x >> 33) as usize % 1900;
            document.extend((0..len).map(|_| {
                // Knuth's MMIX generator: any tokens will do.
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((x >> 33) % u64::from(VOCAB - 1)) as u32
            }));
            document.push(VOCAB - 1);
            writer.push(&document, 4 * len as u64)?;
        }
        writer.finish()?;
        paths.push(path);
    }
    Ok(paths)
}

/// Asks the system to keep nothing of a file in memory.
fn forget(path: &Path) {
    #[cfg(target_os = "linux")]
    if let Ok(file) = std::fs::File::open(path) {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open until the end of this block, and the call reads and writes no memory of ours.
        unsafe {
            libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = path;
}

/// A folder that goes away with this value.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
