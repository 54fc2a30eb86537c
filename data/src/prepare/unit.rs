//! Units of input, and how one becomes pieces.
//!
//! A *unit* is one large file, or several small ones in a row; units are worked on side by side.
//! A *piece* is a stretch of documents within a unit, of about `piece_bytes` of unpacked input;
//! it is what a killed process loses. Where both are cut follows from the inputs alone.
//!
//! Each lane has a thread that reads ahead, while the lane itself has batches encoded by all
//! threads and writes them. Memory a lane: three batches with their ids, a line, a window of zstd.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;

use rayon::prelude::*;

use super::inputs::{Input, Source};
use super::journal::{Journal, Note, Place};
use crate::pack::{Bad, Dropped, DroppedDocument, InputEntry, PackError, PackOptions, Why, hex};
use crate::shard::{ShardSpec, ShardWriter};
use crate::text::{Fault, Raw, TextError, TextOptions, parse};
use crate::tokenizer::Tokenizer;

/// Unpacked input read at a time.
const BATCH_BYTES: usize = 4 << 20;
/// Input that one task encodes.
const GROUP_BYTES: usize = 64 << 10;
/// A document is never free, or empty ones would not be bounded.
const DOCUMENT_BYTES: u64 = 64;
/// Dropped documents that are named.
pub(crate) const NAMED: usize = 20;

/// Files that are read one after the other.
pub(crate) struct Unit {
    pub files: Vec<Input>,
    /// Digest of what decides the pieces: see [`Journal`].
    pub key: String,
}

/// Cuts the inputs into units, each of `piece_bytes` on disk or more where enough follows.
pub(crate) fn units(inputs: Vec<Input>, spec: &ShardSpec, options: &PackOptions) -> Vec<Unit> {
    let mut units = Vec::new();
    let (mut files, mut bytes) = (Vec::new(), 0);
    for input in inputs {
        bytes += input.bytes;
        files.push(input);
        if bytes >= options.piece_bytes {
            units.push(Unit::new(std::mem::take(&mut files), spec, options));
            bytes = 0;
        }
    }
    if !files.is_empty() {
        units.push(Unit::new(files, spec, options));
    }
    units
}

impl Unit {
    fn new(files: Vec<Input>, spec: &ShardSpec, options: &PackOptions) -> Unit {
        let PackOptions { text, bad, keep_empty, piece_bytes, .. } = options;
        let TextOptions { separator, max_document_bytes, text_key, id_key } = text;
        let about = (text_key, id_key, separator, max_document_bytes, bad, keep_empty, piece_bytes);
        let named: Vec<_> =
            files.iter().map(|f| (f.path.as_os_str().as_encoded_bytes(), f.bytes, f.modified.to_string())).collect();
        let all = (env!("CARGO_PKG_VERSION"), spec.tokenizer_hash, spec.eos, about, named);
        let key = blake3::hash(&serde_json::to_vec(&all).expect("plain values")).to_hex();
        Unit { files, key: key[..16].into() }
    }
}

/// What all lanes share.
pub(crate) struct Work<'a> {
    pub units: &'a [Unit],
    pub journal: &'a Journal,
    pub tokenizer: &'a Tokenizer,
    pub spec: ShardSpec,
    pub options: &'a PackOptions,
    pub pool: &'a rayon::ThreadPool,
    /// Unit that the next free lane takes.
    pub next: AtomicUsize,
    /// Units from this one on are not worth going on with: an earlier one failed.
    pub limit: AtomicUsize,
    /// Bytes of the inputs read, those of earlier processes among them.
    pub bytes: Arc<AtomicU64>,
    pub documents: AtomicU64,
    pub tokens: AtomicU64,
}

/// A piece is done, or its unit cannot go on.
pub(crate) struct Report {
    pub unit: usize,
    pub piece: usize,
    pub outcome: Result<Note, PackError>,
}

/// Works on units until none is left.
pub(crate) fn lane(work: &Work<'_>, reports: &mpsc::Sender<Report>) {
    loop {
        let unit = work.next.fetch_add(1, Relaxed);
        if unit >= work.units.len() || unit >= work.limit.load(Relaxed) {
            return;
        }
        let mut piece = 0;
        let report = |piece, outcome| {
            // Whoever assembled has left with an error of its own.
            let _ = reports.send(Report { unit, piece, outcome });
        };
        let outcome = run(work, unit, |note| {
            report(piece, Ok(note));
            piece += 1;
        });
        if let Err(error) = outcome {
            work.limit.fetch_min(unit + 1, Relaxed);
            report(piece, Err(error));
        }
    }
}

/// Makes the pieces of a unit that do not stand yet, telling of each.
fn run(work: &Work<'_>, unit: usize, mut done: impl FnMut(Note)) -> Result<(), PackError> {
    let this = &work.units[unit];
    let (mut piece, mut at) = (0, Place::default());
    while let Some(note) = work.journal.load(&this.key, piece) {
        (at, piece) = (note.end, piece + 1);
        work.documents.fetch_add(note.documents, Relaxed);
        work.tokens.fetch_add(note.tokens, Relaxed);
        let last = note.last;
        done(note);
        if last {
            work.bytes.fetch_add(this.files.iter().map(|f| f.bytes).sum(), Relaxed);
            return Ok(());
        }
    }
    work.bytes.fetch_add(this.files[..at.file].iter().map(|f| f.bytes).sum(), Relaxed);
    let mut reader = Reader { unit: this, options: work.options, meter: &work.bytes, at, open: None, used: 0 };
    std::thread::scope(|scope| {
        let (send, batches) = mpsc::sync_channel(1);
        scope.spawn(move || {
            loop {
                let batch = reader.batch();
                let end = batch.last || batch.fault.is_some();
                if send.send(batch).is_err() || end {
                    return;
                }
            }
        });
        let mut writer = Piece::default();
        for batch in batches {
            if unit >= work.limit.load(Relaxed) {
                return Ok(());
            }
            let groups = batch.groups();
            let encoded: Vec<Result<Group, PackError>> =
                work.pool.install(|| groups.into_par_iter().map(|g| encode(work, this, &batch, g)).collect());
            for group in encoded {
                writer.push(work, &work.journal.shard(&this.key, piece), group?)?;
            }
            writer.note.files.extend(batch.files);
            if let Some(fault) = batch.fault {
                return Err(fault.into());
            }
            if batch.cut {
                let note = std::mem::take(&mut writer).finish(batch.end, batch.last)?;
                work.journal.save(&this.key, piece, &note)?;
                done(note);
                piece += 1;
            }
        }
        Ok(())
    })
}

/// Reads the documents of a unit, one file after the other.
struct Reader<'a> {
    unit: &'a Unit,
    options: &'a PackOptions,
    meter: &'a Arc<AtomicU64>,
    at: Place,
    open: Option<Source>,
    /// Input that the open piece holds.
    used: u64,
}

/// Documents that are encoded together. None reaches into the next piece.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Each with the number of its file.
    records: Vec<(usize, Raw)>,
    /// Files that end here.
    files: Vec<InputEntry>,
    end: Place,
    /// The piece ends here.
    cut: bool,
    /// The unit ends here.
    last: bool,
    /// What is wrong behind the last document.
    fault: Option<TextError>,
}

impl Reader<'_> {
    fn batch(&mut self) -> Batch {
        let mut batch = Batch { bytes: Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 4), ..Batch::default() };
        while batch.bytes.len() + batch.records.len() * DOCUMENT_BYTES as usize <= BATCH_BYTES && !batch.cut {
            if let Err(fault) = self.step(&mut batch) {
                batch.fault = Some(fault);
                break;
            }
        }
        batch.end = self.at;
        batch
    }

    fn step(&mut self, batch: &mut Batch) -> Result<(), TextError> {
        let Some(input) = self.unit.files.get(self.at.file) else {
            (batch.cut, batch.last) = (true, true);
            return Ok(());
        };
        let source = match &mut self.open {
            Some(source) => source,
            None => {
                let mut source = Source::open(input, &self.options.text, self.meter)?;
                if self.at.offset > 0 {
                    source.skip_to((self.at.offset, self.at.line))?;
                }
                self.open.insert(source)
            }
        };
        if let Some(raw) = source.next(&mut batch.bytes)? {
            (self.at.offset, self.at.line) = source.place();
            self.at.documents += 1;
            self.used += raw.bytes.len() as u64 + DOCUMENT_BYTES;
            batch.records.push((self.at.file, raw));
            if self.used >= self.options.piece_bytes {
                (self.used, batch.cut) = (0, true);
            }
            return Ok(());
        }
        let (bytes, digest) = self.open.take().expect("just read from").finish()?;
        let (path, documents) = (shown(&input.path), self.at.documents);
        batch.files.push(InputEntry { path, bytes, blake3: hex(&digest), documents });
        self.at = Place { file: self.at.file + 1, ..Place::default() };
        Ok(())
    }
}

/// A path as the manifest and reports show it.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl Batch {
    /// Its documents in stretches of about [`GROUP_BYTES`].
    fn groups(&self) -> Vec<Range<usize>> {
        let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0);
        for (i, (_, raw)) in self.records.iter().enumerate() {
            bytes += raw.bytes.len() + DOCUMENT_BYTES as usize;
            if bytes >= GROUP_BYTES || i + 1 == self.records.len() {
                groups.push(start..i + 1);
                (start, bytes) = (i + 1, 0);
            }
        }
        groups
    }
}

/// Encoded documents.
#[derive(Default)]
struct Group {
    ids: Vec<u32>,
    /// Tokens and bytes of text of each document.
    kept: Vec<(usize, u64)>,
    documents: u64,
    dropped: Dropped,
    dropped_first: Vec<DroppedDocument>,
}

fn encode(work: &Work<'_>, unit: &Unit, batch: &Batch, records: Range<usize>) -> Result<Group, PackError> {
    let options = work.options;
    let mut group = Group { documents: records.len() as u64, ..Group::default() };
    for (file, raw) in &batch.records[records] {
        let input = &unit.files[*file];
        let kind = input.format.kind;
        let read = match &raw.fault {
            Some(fault) => Err(fault.clone()),
            None => parse(kind, &batch.bytes[raw.bytes.clone()], &options.text),
        };
        let mut drop = |id: Option<String>, why| {
            *group.dropped.slot(why) += 1;
            if group.dropped_first.len() < NAMED {
                let id = raw.id.clone().or(id);
                group.dropped_first.push(DroppedDocument { path: shown(&input.path), line: raw.line, id, why });
            }
        };
        match read {
            Ok((text, id)) if text.is_empty() && !options.keep_empty => drop(id, Why::Empty),
            Ok((text, _)) => {
                let before = group.ids.len();
                work.tokenizer.encode_document(&text, &mut group.ids)?;
                group.ids.extend(work.spec.eos);
                group.kept.push((group.ids.len() - before, text.len() as u64));
            }
            Err(fault) if options.bad == Bad::Error => {
                return Err(fault.at(kind, &input.path, raw.line, &options.text).into());
            }
            Err(fault) => drop(None, why(&fault)),
        }
    }
    Ok(group)
}

fn why(fault: &Fault) -> Why {
    match fault {
        Fault::Json(_) => Why::BadJson,
        Fault::NoText => Why::NoText,
        Fault::Utf8 { .. } => Why::BadUtf8,
        Fault::TooLong => Why::TooLong,
    }
}

/// The piece being written.
#[derive(Default)]
struct Piece {
    writer: Option<ShardWriter>,
    note: Note,
}

impl Piece {
    fn push(&mut self, work: &Work<'_>, path: &Path, group: Group) -> Result<(), PackError> {
        let mut ids = &group.ids[..];
        for &(tokens, text_bytes) in &group.kept {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                None => self.writer.insert(ShardWriter::create(path, work.spec)?),
            };
            let (document, rest) = ids.split_at(tokens);
            writer.push(document, text_bytes)?;
            ids = rest;
        }
        work.documents.fetch_add(group.documents, Relaxed);
        work.tokens.fetch_add(group.ids.len() as u64, Relaxed);
        self.note.kept += group.kept.len() as u64;
        self.note.tokens += group.ids.len() as u64;
        self.note.documents += group.documents;
        self.note.dropped.add(&group.dropped);
        let room = NAMED - self.note.dropped_first.len();
        self.note.dropped_first.extend(group.dropped_first.into_iter().take(room));
        Ok(())
    }

    fn finish(mut self, end: Place, last: bool) -> Result<Note, PackError> {
        if let Some(writer) = self.writer {
            self.note.shard = Some(hex(&writer.finish()?.digest()));
        }
        (self.note.end, self.note.last) = (end, last);
        Ok(self.note)
    }
}
