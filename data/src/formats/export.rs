//! From a folder of our shards to another program's files.
//!
//! Each split with documents is written apart: `train.bin` and `val.bin` where a format is a file,
//! `train/` and `val/` where it is a folder. Files grow under another name and take their own
//! when they are whole; none is ever replaced.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::out::Out;
use super::{Format, FormatError, Int, datatrove, llmc, mds, megatron, npy, olmo, templar, tokshuf};
use crate::pack::{Manifest, PackError, Split, hex};
use crate::shard::{Check, Shard};

/// How shards are exported.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    pub format: Format,
    /// This split alone.
    pub split: Option<Split>,
    /// Tokens of a sample, context, window or row; needed where a format has them. npy is a
    /// stream without it.
    pub seq_len: Option<usize>,
    /// What a context of tokshuf is filled up with.
    pub pad: Option<u32>,
    /// How ids are stored; the narrowest that the format's own tools would choose.
    pub int: Option<Int>,
    /// A sample or context is a document, not a window of the stream (MDS, tokshuf).
    pub records: bool,
    /// MDS: samples are `bytes` of this type, as llm-foundry writes them, not arrays.
    pub bytes_column: bool,
    /// MDS: shards are compressed.
    pub zstd: bool,
    /// MDS: bytes of a shard, 2^26 where it is not given.
    pub file_bytes: Option<u64>,
    /// tokshuf: contexts of a tar, 8192 where it is not given.
    pub samples_per_file: Option<u64>,
}

impl ExportOptions {
    /// The choices of the format's own tools.
    pub fn new(format: Format) -> ExportOptions {
        ExportOptions {
            format,
            split: None,
            seq_len: None,
            pad: None,
            int: None,
            records: false,
            bytes_column: false,
            zstd: false,
            file_bytes: None,
            samples_per_file: None,
        }
    }
}

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    pub format: &'static str,
    pub documents: u64,
    /// Tokens of the shards.
    pub tokens: u64,
    /// Of these, tokens that fill no whole window and were left out.
    pub dropped_tokens: u64,
    /// Ids that were added to fill a context up.
    pub padded_tokens: u64,
    /// Files and their bytes.
    pub files: Vec<(PathBuf, u64)>,
}

/// What one split became.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub files: Vec<(PathBuf, u64)>,
    pub dropped_tokens: u64,
    pub padded_tokens: u64,
}

impl Written {
    pub fn add(&mut self, file: (PathBuf, u64)) {
        self.files.push(file);
    }
}

/// Writes the shards of folder `shards` into folder `out`. `progress` hears of tokens done and of
/// all.
pub fn export(
    shards: &Path,
    out: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ExportReport, FormatError> {
    let manifest = Manifest::load(shards)?;
    if options.seq_len == Some(0) || options.samples_per_file == Some(0) || options.file_bytes == Some(0) {
        return Err(FormatError::refused(out, "a length of 0 was asked for; expected 1 or more"));
    }
    if options.records && !matches!(options.format, Format::Mds | Format::Tokshuf) {
        return Err(FormatError::refused(out, format!("{} has no records; mds and tokshuf have", options.format)));
    }
    let wanted = [Split::Train, Split::Val].into_iter().filter(|&s| options.split.is_none_or(|only| s == only));
    let splits: Vec<Split> = wanted.filter(|&s| manifest.split(s).documents > 0).collect();
    let total = splits.iter().map(|&s| manifest.split(s).tokens).sum();
    let mut report = ExportReport {
        format: options.format.name(),
        documents: 0,
        tokens: 0,
        dropped_tokens: 0,
        padded_tokens: 0,
        files: Vec::new(),
    };
    if splits.is_empty() {
        return Err(FormatError::refused(shards, "has no documents in the split asked for"));
    }
    for split in splits {
        let entry = manifest.split(split);
        let before = report.tokens;
        let job = Job {
            out,
            stem: split.to_string(),
            vocab_size: manifest.vocab_size,
            eos: manifest.eos,
            tokenizer_hash: &manifest.tokenizer_hash,
            options,
            shards: &open(&manifest, shards, split)?,
            progress: RefCell::new(Box::new(|done| progress(before + done, total))),
        };
        let written = match options.format {
            Format::Megatron => megatron::write(&job),
            Format::Llmc => llmc::write(&job),
            Format::Nanogpt => nanogpt(&job),
            Format::Olmo => olmo::write(&job),
            Format::Datatrove => datatrove::write(&job),
            Format::Mds => mds::write(&job),
            Format::Tokshuf => tokshuf::write(&job),
            Format::Templar => templar::write(&job),
            Format::Npy => npy::write(&job),
        }?;
        report.documents += entry.documents;
        report.tokens += entry.tokens;
        report.dropped_tokens += written.dropped_tokens;
        report.padded_tokens += written.padded_tokens;
        report.files.extend(written.files);
    }
    Ok(report)
}

fn open(manifest: &Manifest, dir: &Path, split: Split) -> Result<Vec<Shard>, FormatError> {
    let mut shards = Vec::new();
    for entry in &manifest.split(split).shards {
        let path = dir.join(&entry.file);
        let shard = Shard::open(&path, Check::Everything)?;
        if hex(&shard.header().digest()) != entry.header_blake3 {
            return Err(PackError::Changed { path, what: "the digest" }.into());
        }
        shards.push(shard);
    }
    Ok(shards)
}

/// Writes STEM.bin: ids alone.
fn nanogpt(job: &Job<'_>) -> Result<Written, FormatError> {
    let mut file = job.create(".bin")?;
    let int = job.options.int.unwrap_or(Int::U16);
    job.documents(|ids| file.ids(int, ids))?;
    let mut written = Written::default();
    written.add(file.finish()?);
    Ok(written)
}

/// One split on its way out.
pub(super) struct Job<'a> {
    pub out: &'a Path,
    /// Name of the split.
    pub stem: String,
    pub vocab_size: u32,
    pub eos: u32,
    /// In hex.
    pub tokenizer_hash: &'a str,
    pub options: &'a ExportOptions,
    shards: &'a [Shard],
    progress: RefCell<Box<dyn FnMut(u64) + 'a>>,
}

impl Job<'_> {
    /// OUT/STEM and an ending.
    pub fn create(&self, ending: &str) -> Result<Out, FormatError> {
        Out::create(&self.out.join(format!("{}{ending}", self.stem)))
    }

    /// A file in the folder OUT/STEM.
    pub fn create_in(&self, name: &str) -> Result<Out, FormatError> {
        Out::create(&self.out.join(&self.stem).join(name))
    }

    /// The length that a format's windows must be given.
    pub fn seq_len(&self, why: &str) -> Result<usize, FormatError> {
        let missing = || FormatError::Missing { path: self.out.into(), what: "--seq-len N", why: why.into() };
        self.options.seq_len.ok_or_else(missing)
    }

    /// Tokens of each document.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        let lengths = |shard: &Shard, d: u64| {
            let (tokens, _) = shard.document(d);
            tokens.end - tokens.start
        };
        self.shards.iter().flat_map(move |shard| (0..shard.header().documents).map(move |d| lengths(shard, d)))
    }

    /// Every document in order.
    pub fn documents(&self, mut each: impl FnMut(&[u32]) -> Result<(), FormatError>) -> Result<(), FormatError> {
        let (mut ids, mut done) = (Vec::new(), 0);
        for shard in self.shards {
            for d in 0..shard.header().documents {
                let (tokens, _) = shard.document(d);
                ids.resize((tokens.end - tokens.start) as usize, 0);
                shard.tokens(tokens.start, &mut ids)?;
                each(&ids)?;
                done += ids.len() as u64;
                if d % 256 == 0 {
                    (self.progress.borrow_mut())(done);
                }
            }
        }
        (self.progress.borrow_mut())(done);
        Ok(())
    }

    /// The stream of all documents in windows of `length`; what fills none is returned.
    pub fn windows(
        &self,
        length: usize,
        mut each: impl FnMut(&[u32]) -> Result<(), FormatError>,
    ) -> Result<Vec<u32>, FormatError> {
        let mut open: Vec<u32> = Vec::with_capacity(length);
        self.documents(|mut ids| {
            while open.len() + ids.len() >= length {
                let (fill, rest) = ids.split_at(length - open.len());
                open.extend_from_slice(fill);
                each(&open)?;
                open.clear();
                ids = rest;
            }
            open.extend_from_slice(ids);
            Ok(())
        })?;
        Ok(open)
    }

    /// Documents where records were asked for, else windows; what fills none is returned.
    pub fn samples(
        &self,
        length: usize,
        each: impl FnMut(&[u32]) -> Result<(), FormatError>,
    ) -> Result<Vec<u32>, FormatError> {
        match self.options.records {
            true => self.documents(each).map(|()| Vec::new()),
            false => self.windows(length, each),
        }
    }
}
