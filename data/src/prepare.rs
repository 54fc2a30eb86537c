//! From files of text to a folder of shards.
//!
//! ```text
//! inputs -> units -> lanes: read ahead, encode on all threads -> pieces -> shards, manifest
//! ```
//!
//! Files are listed ([`inputs`]) and cut into units and pieces where the inputs alone say
//! (`unit.rs`). Lanes work on units side by side and leave each piece in the journal
//! (`journal.rs`); this thread puts the pieces together in their order, splits the documents
//! between training and validation, and writes the folder that [`pack`](crate::pack) describes.
//! So the output does not depend on threads, nor on how often the work was stopped and taken up.
//!
//! Memory: per lane three batches of 4 MiB with their ids, a line of at most
//! `max_document_bytes`, a zstd window of at most 128 MiB; lanes are half the threads, 16 at
//! most. While it works the folder takes its final size twice: the pieces, and the shards.

pub mod inputs;
mod journal;
#[cfg(feature = "parquet")]
mod parquet;
mod stream;
mod unit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use crate::pack::{
    Chosen, Dropped, Holdout, MANIFEST, Manifest, PackError, PackOptions, Prepared, Writers, claim, hex, spec_of,
};
use crate::shard::{Check, Shard, ShardSpec};
use crate::tokenizer::Tokenizer;

use journal::{Journal, Note};
use unit::{NAMED, Unit, Work, lane, units};

pub use stream::{Packing, Stream};

/// More lanes read no faster.
const LANES_MAX: usize = 16;
/// Between two calls of the progress function, at most.
const TICK: Duration = Duration::from_millis(200);

/// How far a preparation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the inputs, packed as they are, that were read; what earlier processes finished
    /// counts.
    pub bytes: u64,
    pub bytes_total: u64,
    /// Documents read, and tokens made of them; those of earlier processes count.
    pub documents: u64,
    pub tokens: u64,
}

/// Reads `inputs`, encodes, and writes `out`: see the head of this page. `progress` is called a
/// few times a second. A process that ends early leaves what it finished in `out`; the same call
/// goes on from there.
pub fn prepare(
    inputs: &[PathBuf],
    tokenizer: &Tokenizer,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PackError> {
    for (key, value) in [("piece_bytes", options.piece_bytes), ("shard_tokens", options.shard_tokens)] {
        if value == 0 {
            return Err(PackError::Zero { key });
        }
    }
    let holdout = Holdout::new(options.val_fraction, options.seed)?;
    let spec = spec_of(tokenizer)?;
    let units = units(inputs::list(inputs)?, &spec, options);
    let job = job(&units, options);
    if out.join(MANIFEST).exists() && Journal::exists(out) {
        // An earlier process wrote its manifest, and ended while it tidied up.
        let done = Journal::is_done(out, &job);
        let journal = Journal::open(out)?;
        if done {
            journal.remove()?;
            return Manifest::load(out);
        }
        journal.remove_if_idle();
    }
    claim(out, options.overwrite)?;
    let journal = Journal::open(out)?;
    match run(&units, &journal, tokenizer, spec, out, options, holdout, progress) {
        Ok((writers, prepared)) => {
            journal.set_done(&job)?;
            let manifest = writers.finish(Some(tokenizer), Some(prepared))?;
            journal.remove()?;
            Ok(manifest)
        }
        Err(error) => {
            journal.remove_if_idle();
            Err(error)
        }
    }
}

/// What decides every byte of the output, in short.
fn job(units: &[Unit], options: &PackOptions) -> String {
    let keys: Vec<&str> = units.iter().map(|u| u.key.as_str()).collect();
    let all = (keys, options.seed, options.val_fraction, options.shard_tokens);
    blake3::hash(&serde_json::to_vec(&all).expect("plain values")).to_hex().to_string()
}

/// Starts the lanes and assembles what they make.
fn run<'a>(
    units: &[Unit],
    journal: &Journal,
    tokenizer: &Tokenizer,
    spec: ShardSpec,
    out: &'a Path,
    options: &PackOptions,
    holdout: Holdout,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Writers<'a>, Prepared), PackError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build();
    let pool = pool.map_err(|e| PackError::Threads { threads: options.threads, reason: crate::brief(e) })?;
    let bytes_total = units.iter().flat_map(|u| &u.files).map(|f| f.bytes).sum();
    let work = Work {
        units,
        journal,
        tokenizer,
        spec,
        options,
        pool: &pool,
        next: AtomicUsize::new(0),
        limit: AtomicUsize::new(usize::MAX),
        bytes: Arc::new(AtomicU64::new(0)),
        documents: AtomicU64::new(0),
        tokens: AtomicU64::new(0),
    };
    let lanes = pool.current_num_threads().div_ceil(2).min(LANES_MAX).min(units.len());
    let mut assembly = Assembly {
        writers: Writers::new(out, spec, options)?,
        holdout,
        number: 0,
        ids: Vec::new(),
        prepared: Prepared {
            esker: env!("CARGO_PKG_VERSION").into(),
            options: chosen(options),
            documents: 0,
            dropped: Dropped::default(),
            dropped_first: Vec::new(),
            inputs: Vec::new(),
        },
    };
    std::thread::scope(|scope| {
        let (send, reports) = mpsc::channel();
        for _ in 0..lanes {
            let (send, work) = (send.clone(), &work);
            scope.spawn(move || lane(work, &send));
        }
        drop(send);
        let mut tell = || {
            let bytes = work.bytes.load(Relaxed).min(bytes_total);
            let (documents, tokens) = (work.documents.load(Relaxed), work.tokens.load(Relaxed));
            progress(Progress { bytes, bytes_total, documents, tokens });
        };
        let outcome = assemble(units, journal, &reports, &mut assembly, &mut tell);
        if outcome.is_err() {
            work.limit.store(0, Relaxed);
        }
        outcome
    })?;
    Ok((assembly.writers, assembly.prepared))
}

fn chosen(options: &PackOptions) -> Chosen {
    let text = options.text.clone();
    Chosen {
        val_fraction: options.val_fraction,
        seed: options.seed,
        shard_tokens: options.shard_tokens,
        text_key: text.text_key,
        id_key: text.id_key,
        separator: text.separator,
        max_document_bytes: text.max_document_bytes as u64,
        bad: options.bad,
        keep_empty: options.keep_empty,
    }
}

/// Takes the pieces in their order, whatever the order in which they come.
fn assemble(
    units: &[Unit],
    journal: &Journal,
    reports: &mpsc::Receiver<unit::Report>,
    assembly: &mut Assembly<'_>,
    tell: &mut dyn FnMut(),
) -> Result<(), PackError> {
    let mut waiting = BTreeMap::new();
    let mut next = (0, 0);
    while next.0 < units.len() {
        match reports.recv_timeout(TICK) {
            Ok(report) => drop(waiting.insert((report.unit, report.piece), report.outcome)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("prepare: the lanes left before unit {next:?}"),
        }
        while let Some(outcome) = waiting.remove(&next) {
            let note: Note = outcome?;
            let (unit, piece) = next;
            next = if note.last { (unit + 1, 0) } else { (unit, piece + 1) };
            assembly.take(&journal.shard(&units[unit].key, piece), note)?;
        }
        tell();
    }
    Ok(())
}

/// The shards, and what is said of them.
struct Assembly<'a> {
    writers: Writers<'a>,
    holdout: Holdout,
    /// Documents so far.
    number: u64,
    ids: Vec<u32>,
    prepared: Prepared,
}

impl Assembly<'_> {
    /// Appends the documents of a piece.
    fn take(&mut self, path: &Path, note: Note) -> Result<(), PackError> {
        let p = &mut self.prepared;
        p.documents += note.documents;
        p.dropped.add(&note.dropped);
        let room = NAMED - p.dropped_first.len();
        p.dropped_first.extend(note.dropped_first.into_iter().take(room));
        p.inputs.extend(note.files);
        let Some(digest) = note.shard else { return Ok(()) };
        let shard = Shard::open(path, Check::Header)?;
        if hex(&shard.header().digest()) != digest {
            return Err(PackError::Changed { path: path.into(), what: "the digest" });
        }
        for d in 0..shard.header().documents {
            let (tokens, text) = shard.document(d);
            self.ids.resize((tokens.end - tokens.start) as usize, 0);
            shard.tokens(tokens.start, &mut self.ids)?;
            self.writers.push(self.holdout.split(self.number), &self.ids, text.end - text.start)?;
            self.number += 1;
        }
        Ok(())
    }
}
