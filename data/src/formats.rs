//! Token files of other programs: read as documents, imported into our shards, exported again.
//!
//! | name        | files                                   | documents            | ids            |
//! | ----------- | --------------------------------------- | -------------------- | -------------- |
//! | `megatron`  | NAME.bin, NAME.idx                      | table in .idx        | any integer    |
//! | `llmc`      | *.bin with a header of 1024 bytes       | mark before each     | u16, u32       |
//! | `nanogpt`   | *.bin, nothing but tokens               | mark after each      | u16            |
//! | `olmo`      | *.npy without npy header, *.csv.gz      | table in .csv.gz     | u16, u32       |
//! | `datatrove` | *.ds, *.ds.index, .ds.loss, .ds.metadata| table in .ds.index   | u16, u32       |
//! | `mds`       | index.json and shards, raw or zstd      | samples, and marks   | any integer    |
//! | `tokshuf`   | *.tar of .json.gz, manifest.jsonl       | contexts, and marks  | JSON           |
//! | `templar`   | train_N.npy, sample_ids_N.bin           | mark after each      | u32            |
//! | `npy`       | *.npy, one or two dimensions            | rows, or marks       | any integer    |
//!
//! [`open`] streams the documents of files and folders in bounded memory; [`InPlace`] reads
//! those that are one array of integers without any copy. [`import`](fn@import) and
//! [`export`](fn@export) turn them into our shards and back. Each format has its page, with the
//! layout, the source of our knowledge, and what does not survive there and back.
//!
//! Files are hostile: every length is held against the size of the file before it is used,
//! memory follows what was read and never what a header claims, and names inside archives and
//! indices cannot leave their folder.

mod datatrove;
mod export;
mod import;
mod int;
mod llmc;
mod mds;
mod megatron;
mod npy;
mod olmo;
mod out;
mod raw;
mod sniff;
mod templar;
mod tokshuf;

use std::path::{Path, PathBuf};

pub use export::{ExportOptions, ExportReport, export};
pub use import::{ImportOptions, ImportReport, import};
pub use int::Int;
pub use raw::InPlace;

use raw::{Array, Bounds, Raw, RawStream, map};
use serde::{Deserialize, Serialize};

/// The formats of the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Megatron,
    Llmc,
    Nanogpt,
    Olmo,
    Datatrove,
    Mds,
    Tokshuf,
    Templar,
    Npy,
}

impl Format {
    /// All of them, with the names users type.
    pub const ALL: [(Format, &'static str); 9] = [
        (Format::Megatron, "megatron"),
        (Format::Llmc, "llmc"),
        (Format::Nanogpt, "nanogpt"),
        (Format::Olmo, "olmo"),
        (Format::Datatrove, "datatrove"),
        (Format::Mds, "mds"),
        (Format::Tokshuf, "tokshuf"),
        (Format::Templar, "templar"),
        (Format::Npy, "npy"),
    ];

    pub fn name(self) -> &'static str {
        Format::ALL.iter().find(|(format, _)| *format == self).expect("all are listed").1
    }

    /// Finds the format of this file or folder by name and content; the error lists what was considered.
    pub fn of(path: &Path) -> Result<Format, FormatError> {
        sniff::sniff(path)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        Format::ALL.iter().find(|(_, n)| *n == name).map(|(format, _)| *format).ok_or_else(|| {
            let names: Vec<&str> = Format::ALL.iter().map(|(_, n)| *n).collect();
            format!("{name:?} is no format; expected {}", names.join(", "))
        })
    }
}

/// What counts as a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Division {
    /// The format's table of documents; else whatever ends with the end mark. A sample of MDS and
    /// a context of tokshuf also end where they end, since their neighbours are others' text.
    #[default]
    Auto,
    /// Whatever ends with the end mark; tables are not looked at.
    Marks,
    /// What the format keeps apart: documents of a table, samples, contexts, windows, rows of an array.
    Records,
}

/// How foreign files are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Which format; found by name and content where it is not given.
    pub format: Option<Format>,
    /// The id that ends (llm.c: opens) a document. Needed wherever documents are found by it.
    pub eos: Option<u32>,
    /// The id that fills contexts up; runs of it at the end of a sample or context are left out.
    /// tokshuf needs it (the vocabulary and two: 50256 for the tokenizer of GPT-NeoX).
    pub pad: Option<u32>,
    /// How ids are stored, where the files do not say.
    pub int: Option<Int>,
    pub division: Division,
    /// The column of MDS with the tokens; `tokens` or `input_ids` where it is not given.
    pub column: Option<String>,
    /// Read datatrove files with masked tokens as if nothing were masked.
    pub drop_loss_mask: bool,
    /// A longer document is an error. This bounds the memory of reading.
    pub max_document_tokens: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            format: None,
            eos: None,
            pad: None,
            int: None,
            division: Division::Auto,
            column: None,
            drop_loss_mask: false,
            max_document_tokens: 1 << 24,
        }
    }
}

/// Why foreign files could not be read, or ours not be written in their format.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    #[error("{path}: cannot {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("{path}: {field} is {got}; expected {want}")]
    Field { path: PathBuf, field: String, got: String, want: String },
    #[error("{path}: {what}; the file is damaged or is no {format} file")]
    Damaged { path: PathBuf, format: Format, what: String },
    #[error("{path}: token {at} is {value}, which is no id: ids are 0 to 4294967295")]
    Id { path: PathBuf, at: u64, value: i128 },
    #[error("{path}: the document at token {at} is longer than {max} tokens{why}")]
    LongDocument { path: PathBuf, at: u64, max: u64, why: &'static str },
    #[error("{path}: {what} must be given: {why}")]
    Missing { path: PathBuf, what: &'static str, why: String },
    #[error("{path}: no known format; {considered}. Name it with --format")]
    Unknown { path: PathBuf, considered: String },
    #[error("{path}: the {algorithm} digest of its bytes is {got}, {named_in} says {want}; copy the file again")]
    Digest { path: PathBuf, algorithm: &'static str, got: String, want: String, named_in: &'static str },
    #[error("{path}: {refused}")]
    Refused { path: PathBuf, refused: String },
    #[error("{path}: id {id} does not fit {int}, which ends at {}; choose a wider type with --dtype", .int.max())]
    Wide { path: PathBuf, id: u32, int: Int },
    #[error(transparent)]
    Shard(#[from] crate::shard::ShardError),
    #[error(transparent)]
    Pack(#[from] crate::pack::PackError),
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
}

impl FormatError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FormatError + use<> {
        let path = path.to_path_buf();
        move |source| FormatError::Io { path, action, source }
    }

    fn field(path: &Path, field: impl Into<String>, got: impl ToString, want: impl Into<String>) -> FormatError {
        let got = crate::brief(got.to_string());
        FormatError::Field { path: path.into(), field: field.into(), got, want: want.into() }
    }

    fn damaged(path: &Path, format: Format, what: impl std::fmt::Display) -> FormatError {
        FormatError::Damaged { path: path.into(), format, what: crate::brief(what) }
    }

    fn refused(path: &Path, refused: impl std::fmt::Display) -> FormatError {
        FormatError::Refused { path: path.into(), refused: refused.to_string() }
    }
}

/// Opens files and folders, which must be of one format, for reading one document after another.
pub fn open(inputs: &[PathBuf], options: &Options) -> Result<Documents, FormatError> {
    let mut files = Vec::new();
    let mut found: Option<(Format, &PathBuf)> = None;
    for input in inputs {
        let format = match options.format {
            Some(format) => format,
            None => sniff::sniff(input)?,
        };
        if let Some((other, first)) = found.filter(|(other, _)| *other != format) {
            let refused = format!("is {format}, but {} is {other}; give files of one format", first.display());
            return Err(FormatError::refused(input, refused));
        }
        found = Some((format, input));
        files.extend(sniff::files(input, format)?);
    }
    let Some((format, _)) = found else {
        return Err(FormatError::refused(Path::new("inputs"), "there are none; give at least one file or folder"));
    };
    let total = files.iter().fold(0u64, |sum, f| sum.saturating_add(f.bytes));
    let mut options = Options { format: Some(format), ..options.clone() };
    if format == Format::Llmc && options.eos.is_none() {
        // What the first file starts with; later ones may start inside a document.
        options.eos = llmc::first(&files[0].path)?;
    }
    Ok(Documents {
        format,
        options,
        files,
        next: 0,
        open: None,
        sample: Vec::new(),
        at: 0,
        read: 0,
        total,
        owed: false,
        failed: false,
    })
}

/// One file, or one folder where the format is a folder (MDS).
#[derive(Debug)]
struct Input {
    path: PathBuf,
    bytes: u64,
    /// Contexts that a manifest promises.
    contexts: Option<u64>,
}

/// Documents of foreign files, in the order of the files. An [`Iterator`] too; a document never
/// is without tokens.
#[derive(Debug)]
pub struct Documents {
    format: Format,
    options: Options,
    files: Vec<Input>,
    next: usize,
    open: Option<Open>,
    /// A sample or context on its way to be divided, and how far it is.
    sample: Vec<u32>,
    at: usize,
    read: u64,
    total: u64,
    /// llm.c: a first mark was left out, and the last document is not closed yet.
    owed: bool,
    failed: bool,
}

#[derive(Debug)]
enum Open {
    Raw(RawStream),
    Mds(Box<mds::Reader>),
    Tokshuf(tokshuf::Reader),
}

impl Documents {
    pub fn format(&self) -> Format {
        self.format
    }

    /// The end mark: that of the options, or the one that llm.c's first file starts with.
    pub fn eos(&self) -> Option<u32> {
        self.options.eos
    }

    /// Before the first document is read.
    fn set_eos(&mut self, eos: u32) {
        self.options.eos = Some(eos);
    }

    /// The file that is being read, or was last.
    pub fn path(&self) -> &Path {
        &self.files[self.next.max(1) - 1].path
    }

    /// Bytes read, and of all files; for a bar, so close rather than exact.
    pub fn position(&self) -> (u64, u64) {
        let here = match &self.open {
            Some(Open::Raw(raw)) => raw.position().0,
            Some(Open::Mds(mds)) => mds.position(),
            Some(Open::Tokshuf(tar)) => tar.position(),
            None => 0,
        };
        ((self.read + here).min(self.total), self.total)
    }

    /// The next document into `out`; false after the last.
    pub fn next_document(&mut self, out: &mut Vec<u32>) -> Result<bool, FormatError> {
        loop {
            if self.at < self.sample.len() {
                self.divide(out);
                return Ok(true);
            }
            match &mut self.open {
                None if self.next == self.files.len() => return Ok(false),
                None => {
                    self.open = Some(self.open_next()?);
                    continue;
                }
                Some(Open::Raw(raw)) => {
                    if raw.next(out)? {
                        return Ok(true);
                    }
                }
                Some(Open::Mds(mds)) => {
                    if mds.next(&mut self.sample)? {
                        self.strip();
                        continue;
                    }
                }
                Some(Open::Tokshuf(tar)) => {
                    if tar.next(&mut self.sample)? {
                        self.strip();
                        continue;
                    }
                }
            }
            self.open = None;
            self.read += self.files[self.next - 1].bytes;
        }
    }

    fn open_next(&mut self) -> Result<Open, FormatError> {
        let input = &self.files[self.next];
        self.next += 1;
        Ok(match self.format {
            Format::Mds => Open::Mds(Box::new(mds::Reader::open(&input.path, &self.options)?)),
            Format::Tokshuf => Open::Tokshuf(tokshuf::Reader::open(&input.path, input.contexts, &self.options)?),
            Format::Llmc => {
                let mut raw = llmc::open(&input.path, &self.options)?;
                // A document that goes on in the next file is not closed here.
                let goes_on = match (self.files.get(self.next), &raw.bounds) {
                    (Some(next), Bounds::Mark(mark)) => llmc::first(&next.path)?.is_some_and(|id| id != *mark),
                    _ => false,
                };
                // A mark that was left out comes back at the end of the files that belong together.
                self.owed |= raw.rotated;
                raw.rotated = !goes_on && std::mem::take(&mut self.owed);
                Open::Raw(RawStream::new(raw, !goes_on, &self.options))
            }
            Format::Templar => {
                let raw = templar::open(&input.path, &self.options)?;
                templar::verify(&raw.array)?;
                Open::Raw(RawStream::new(raw, false, &self.options))
            }
            _ => Open::Raw(RawStream::new(open_raw(&input.path, &self.options)?, false, &self.options)),
        })
    }

    /// Leaves out what fills a sample up.
    fn strip(&mut self) {
        self.at = 0;
        if let Some(pad) = self.options.pad {
            let used = self.sample.iter().rposition(|&id| id != pad).map_or(0, |i| i + 1);
            self.sample.truncate(used);
        }
    }

    fn divide(&mut self, out: &mut Vec<u32>) {
        let rest = &self.sample[self.at..];
        let marks = self.options.division != Division::Records;
        let mark = self.options.eos.filter(|_| marks);
        let found = mark.and_then(|mark| rest.iter().position(|&id| id == mark));
        let take = found.map_or(rest.len(), |i| i + 1);
        out.clear();
        out.extend_from_slice(&rest[..take]);
        self.at += take;
    }
}

impl Iterator for Documents {
    type Item = Result<Vec<u32>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut out = Vec::new();
        if self.failed {
            return None;
        }
        match self.next_document(&mut out) {
            Ok(true) => Some(Ok(out)),
            Ok(false) => None,
            Err(e) => {
                self.failed = true;
                Some(Err(e))
            }
        }
    }
}

/// Opens one file that is an array of integers.
fn open_raw(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let format = match options.format {
        Some(format) => format,
        None => sniff::sniff(path)?,
    };
    match format {
        Format::Megatron => megatron::open(path, options),
        Format::Llmc => llmc::open(path, options),
        Format::Nanogpt => nanogpt(path, options),
        Format::Olmo => olmo::open(path, options),
        Format::Datatrove => datatrove::open(path, options),
        Format::Templar => templar::open(path, options),
        Format::Npy => npy::open(path, options),
        Format::Mds | Format::Tokshuf => {
            Err(FormatError::refused(path, format!("{format} is packed and cannot be read in place; import it")))
        }
    }
}

/// nanoGPT: u16 ids from the first byte to the last, the end mark (50256) after each document.
///
/// There and back the bytes are equal.
/// Source: <https://github.com/karpathy/nanoGPT>, data/openwebtext/prepare.py.
fn nanogpt(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let bounds = marks(path, options, "nanoGPT's files hold nothing but tokens")?;
    let array = Array::new(path, map(path)?, 0, options.int.unwrap_or(Int::U16), None)?;
    Ok(Raw { array, bounds, rotated: false })
}

/// Documents by their end mark, which must be known.
fn marks(path: &Path, options: &Options, why: &str) -> Result<Bounds, FormatError> {
    if options.division == Division::Records {
        return Err(FormatError::refused(path, format!("has no records: {why}; divide by end marks")));
    }
    let why = || format!("{why}, and documents are found by their end mark (GPT-2: 50256)");
    let mark = options.eos.ok_or_else(|| FormatError::Missing { path: path.into(), what: "--eos ID", why: why() })?;
    Ok(Bounds::Mark(mark))
}

/// A file beside `path`, its name that of `path` with `ending` added.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
