//! MosaicML's MDS: an index, and shards of samples with named columns.
//!
//! ```text
//! index.json     {"version": 2, "shards": [{"format": "mds", "samples": n, "compression": null,
//!                "column_names": ["tokens"], "column_encodings": ["ndarray:int32"],
//!                "column_sizes": [null], "raw_data": {"basename", "bytes", "hashes"},
//!                "zip_data": null or the same of the compressed file}, ...]}
//! shard          u32 n   u32 offsets[n + 1] from the start of the file   JSON of the columns
//!                samples: u32 size of each column of no fixed size, then the columns' bytes
//! bytes          ids as integers of a type that stands nowhere; llm-foundry: i64
//! ndarray:T      u8 (dimensions << 2 | log2 of the bytes of a dimension), dimensions, ids
//! ndarray:T:S    ids alone
//! ndarray        u8 type (8 u8, 9 i8, 16 u16, 17 i16, 32 u32, 33 i32, 64 u64, 65 i64), then as above
//! ```
//!
//! A shard is held against the sha1 and xxh64 that the index gives, the file on disk before it is
//! used, the bytes in a compressed one as they are read; zstd is the compression that is read.
//!
//! There and back raw shards and index are equal byte for byte, given the same length of samples
//! and limit of shards. Compressed, the JSON in a shard names another level (`zstd:1`) and so its
//! bytes and those around it differ; samples are equal. Columns other than the tokens are left
//! out, and so is what does not fill the last sample.
//!
//! Source: <https://github.com/mosaicml/streaming>, streaming/base/format/mds; columns by
//! <https://github.com/mosaicml/llm-foundry>, llmfoundry/data/text_data.py.

mod write;

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Component, Path, PathBuf};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use serde::Deserialize;
use sha1::{Digest, Sha1};
use xxhash_rust::xxh64::Xxh64;

use super::sniff::{name, small};
use super::{Format, FormatError, Input, Int, Options};

pub(super) use write::write;

/// The name of the index.
pub(super) const INDEX: &str = "index.json";
const INDEX_MAX: u64 = 64 << 20;
/// JSON inside a shard.
const CONFIG_MAX: u64 = 1 << 20;
/// Samples of a shard, whose offsets are kept while it is read.
const SAMPLES_MAX: u64 = 1 << 22;
/// The window of a frame, which is memory: what zstd itself takes unless told otherwise.
const WINDOW_MAX: u64 = 128 << 20;
/// A window that any frame may have, however short its content.
const WINDOW_FREE: u64 = 8 << 20;
/// Bytes of a shard that streaming writes unless told otherwise.
const FILE_BYTES: u64 = 1 << 26;

#[derive(Debug, Deserialize)]
struct Index {
    version: u64,
    shards: Vec<Shard>,
}

#[derive(Debug, Deserialize)]
struct Shard {
    format: String,
    samples: u64,
    #[serde(flatten)]
    columns: Columns,
    compression: Option<String>,
    raw_data: FileEntry,
    zip_data: Option<FileEntry>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Columns {
    column_names: Vec<String>,
    column_encodings: Vec<String>,
    column_sizes: Vec<Option<u64>>,
}

#[derive(Debug, Deserialize)]
struct FileEntry {
    basename: String,
    bytes: u64,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Debug, Default, Deserialize)]
struct Hashes {
    sha1: Option<String>,
    xxh64: Option<String>,
}

fn read_index(path: &Path) -> Result<(PathBuf, Index), FormatError> {
    let dir = if name(path) == INDEX { path.parent().unwrap_or(Path::new("")) } else { path };
    let path = dir.join(INDEX);
    let index: Index =
        serde_json::from_slice(&small(&path, INDEX_MAX)?).map_err(|e| FormatError::damaged(&path, Format::Mds, e))?;
    if index.version != 2 {
        return Err(FormatError::field(&path, "version", index.version, "2"));
    }
    for (i, shard) in index.shards.iter().enumerate() {
        let field = |name: &str, got: &str, want: &str| {
            FormatError::field(&path, format!("shards[{i}].{name}"), format!("{got:?}"), want)
        };
        if shard.format != "mds" {
            return Err(field("format", &shard.format, "\"mds\""));
        }
        for file in [Some(&shard.raw_data), shard.zip_data.as_ref()].into_iter().flatten() {
            let inside = Path::new(&file.basename).components().all(|c| matches!(c, Component::Normal(_)));
            if !inside || file.basename.is_empty() || file.basename.contains(['\\', '\0']) {
                return Err(field("basename", &file.basename, "a name inside the folder"));
            }
        }
        if let (Some(_), Some(other)) = (&shard.zip_data, shard.compression.as_ref().filter(|c| !c.starts_with("zstd")))
        {
            return Err(field("compression", other, "zstd; unpack the shards, or write them anew"));
        }
    }
    Ok((dir.into(), index))
}

/// The folder of an index, and the bytes that the index speaks of.
pub(super) fn input(path: &Path) -> Result<Input, FormatError> {
    let (path, index) = read_index(path)?;
    let bytes = |shard: &Shard| shard.zip_data.as_ref().unwrap_or(&shard.raw_data).bytes;
    let bytes = index.shards.iter().fold(0u64, |sum, shard| sum.saturating_add(bytes(shard)));
    Ok(Input { path, bytes, contexts: None })
}

/// Reads the samples of a folder.
#[derive(Debug)]
pub(super) struct Reader {
    dir: PathBuf,
    shards: Vec<Shard>,
    next: usize,
    open: Option<OpenShard>,
    options: Options,
    /// Bytes of the shards before, and of the open one.
    read: u64,
    here: u64,
}

impl Reader {
    pub fn open(path: &Path, options: &Options) -> Result<Reader, FormatError> {
        let (dir, index) = read_index(path)?;
        let options = options.clone();
        Ok(Reader { dir, shards: index.shards, next: 0, open: None, options, read: 0, here: 0 })
    }

    pub fn position(&self) -> u64 {
        let share = |open: &OpenShard| (open.sample as u128 * self.here as u128 / open.offsets.len() as u128) as u64;
        self.read.saturating_add(self.open.as_ref().map_or(0, share))
    }

    /// The ids of the next sample; false at the end.
    pub fn next(&mut self, out: &mut Vec<u32>) -> Result<bool, FormatError> {
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => {
                    self.read = self.read.saturating_add(self.here);
                    let Some(shard) = self.shards.get(self.next) else { return Ok(false) };
                    self.next += 1;
                    self.here = shard.zip_data.as_ref().unwrap_or(&shard.raw_data).bytes;
                    self.open.insert(OpenShard::open(&self.dir, shard, &self.options)?)
                }
            };
            if open.next(out)? {
                return Ok(true);
            }
            self.open = None;
        }
    }
}

/// How the ids of a sample are packed.
#[derive(Debug, Clone, Copy)]
enum Packing {
    Bytes(Int),
    Array { int: Option<Int>, shaped: bool },
}

/// A shard that is being read, from its first byte to its last.
#[derive(Debug)]
struct OpenShard {
    path: PathBuf,
    input: Hashing,
    offsets: Vec<u32>,
    sample: usize,
    buffer: Vec<u8>,
    /// Fixed sizes of the columns.
    sizes: Vec<Option<u64>>,
    column: usize,
    packing: Packing,
    longest: u64,
}

impl OpenShard {
    fn open(dir: &Path, shard: &Shard, options: &Options) -> Result<OpenShard, FormatError> {
        let raw = dir.join(&shard.raw_data.basename);
        // As streaming does: the compressed file where it is there, else the raw one.
        let zip = shard.zip_data.as_ref().map(|zip| (dir.join(&zip.basename), zip)).filter(|(path, _)| path.is_file());
        let (path, entry) = zip.as_ref().map_or((&raw, &shard.raw_data), |(path, entry)| (path, *entry));
        check_file(path, entry)?;
        let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(FormatError::io(path, "open"))?);
        let source = match zip.is_some() {
            false => Source::Raw(file),
            true => {
                let window = shard.raw_data.bytes.clamp(WINDOW_FREE, WINDOW_MAX).next_power_of_two();
                let decoder = StreamingDecoder::new_with_max_window_size(file, window)
                    .map_err(|e| FormatError::damaged(path, Format::Mds, e))?;
                Source::Zstd(Box::new(decoder))
            }
        };
        let mut input = Hashing::new(source, &shard.raw_data, zip.is_some());
        let path = path.clone();
        let cut =
            |e: std::io::Error| FormatError::damaged(&path, Format::Mds, format!("cannot be read to its end: {e}"));
        let field = |name: &str, got: u64, want: String| FormatError::field(&path, name, got, want);
        let (bytes, samples) = (shard.raw_data.bytes, shard.samples);
        let mut head = [0; 4];
        input.read_exact(&mut head).map_err(cut)?;
        let count = u64::from(u32::from_le_bytes(head));
        if count != samples {
            return Err(field("number of samples", count, format!("the {samples} of {INDEX}")));
        }
        if count > SAMPLES_MAX || 8 + 4 * count > bytes {
            let want = format!("at most {SAMPLES_MAX}, and what {bytes} bytes have room for");
            return Err(field("number of samples", count, want));
        }
        let table = input.exactly(4 * (count + 1)).map_err(cut)?;
        let offsets: Vec<u32> =
            table.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
        let (first, last) = (u64::from(offsets[0]), u64::from(offsets[count as usize]));
        let config_at = 4 + 4 * (count + 1);
        if first < config_at || first - config_at > CONFIG_MAX || last != bytes || !offsets.is_sorted() {
            let what = format!("has offsets that are not a rising list from {config_at} or a little more to {bytes}");
            return Err(FormatError::damaged(&path, Format::Mds, what));
        }
        let config = input.exactly(first - config_at).map_err(cut)?;
        let columns: Columns = serde_json::from_slice(&config)
            .map_err(|e| FormatError::damaged(&path, Format::Mds, format!("has no JSON of its columns: {e}")))?;
        if columns != shard.columns {
            return Err(FormatError::damaged(&path, Format::Mds, format!("has other columns than {INDEX} says")));
        }
        let (column, packing) = choose(&path, &columns, options)?;
        let longest = options.max_document_tokens as u64;
        let sizes = columns.column_sizes;
        Ok(OpenShard { path, input, offsets, sample: 0, buffer: Vec::new(), sizes, column, packing, longest })
    }

    fn next(&mut self, out: &mut Vec<u32>) -> Result<bool, FormatError> {
        let damaged = |path: &Path, what: String| FormatError::damaged(path, Format::Mds, what);
        let i = self.sample;
        if i + 1 >= self.offsets.len() {
            return self.input.finish(&self.path).map(|()| false);
        }
        let size = u64::from(self.offsets[i + 1] - self.offsets[i]);
        if size > self.longest * 8 + 1024 {
            let (path, max) = (self.path.clone(), self.longest);
            return Err(FormatError::LongDocument { path, at: i as u64, max, why: ", as a sample" });
        }
        self.input
            .fill(size, &mut self.buffer)
            .map_err(|e| damaged(&self.path, format!("sample {i} cannot be read: {e}")))?;
        self.sample += 1;
        let ids = column_of(&self.buffer, &self.sizes, self.column)
            .and_then(|column| unpack(self.packing, column, out))
            .map_err(|what| damaged(&self.path, format!("sample {i} {what}")));
        ids.map(|()| true)
    }
}

/// The bytes of one column of a sample.
fn column_of<'a>(sample: &'a [u8], sizes: &[Option<u64>], column: usize) -> Result<&'a [u8], String> {
    let variable = sizes.iter().filter(|size| size.is_none()).count();
    let (mut heads, mut rest) =
        sample.split_at_checked(4 * variable).ok_or_else(|| "is shorter than the sizes of its columns".to_string())?;
    let mut found: &[u8] = &[];
    for (i, size) in sizes.iter().enumerate() {
        let size = match size {
            Some(size) => *size,
            None => {
                let (head, after) = heads.split_at(4);
                heads = after;
                u32::from_le_bytes(head.try_into().expect("4 bytes")).into()
            }
        };
        let split = usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size));
        let (bytes, after) = split.ok_or_else(|| format!("has a column of {size} bytes with {} left", rest.len()))?;
        if i == column {
            found = bytes;
        }
        rest = after;
    }
    match rest.len() {
        0 => Ok(found),
        n => Err(format!("has {n} bytes after its columns")),
    }
}

fn unpack(packing: Packing, mut bytes: &[u8], out: &mut Vec<u32>) -> Result<(), String> {
    let short = || "ends inside the head of its array".to_string();
    let int = match packing {
        Packing::Bytes(int) => int,
        Packing::Array { int, shaped } => {
            let int = match int {
                Some(int) => int,
                None => {
                    let (&code, rest) = bytes.split_first().ok_or_else(short)?;
                    bytes = rest;
                    let codes = [
                        (8, Int::U8),
                        (9, Int::I8),
                        (16, Int::U16),
                        (17, Int::I16),
                        (32, Int::U32),
                        (33, Int::I32),
                        (64, Int::U64),
                        (65, Int::I64),
                    ];
                    let found = codes.iter().find(|(c, _)| *c == code);
                    found.ok_or_else(|| format!("has type {code}, which is no integer"))?.1
                }
            };
            if !shaped {
                let (&head, rest) = bytes.split_first().ok_or_else(short)?;
                let (dimensions, width) = (usize::from(head >> 2), 1usize << (head & 3));
                let (shape, rest) = rest.split_at_checked(dimensions * width).ok_or_else(short)?;
                let product = shape.chunks_exact(width).try_fold(1u64, |product, b| {
                    let mut word = [0; 8];
                    word[..width].copy_from_slice(b);
                    product.checked_mul(u64::from_le_bytes(word))
                });
                if dimensions == 0 || product.and_then(|n| n.checked_mul(int.bytes() as u64)) != Some(rest.len() as u64)
                {
                    return Err(format!("has {} bytes of {int}, which is not its shape", rest.len()));
                }
                bytes = rest;
            }
            int
        }
    };
    if !bytes.len().is_multiple_of(int.bytes()) {
        return Err(format!(
            "has {} bytes, no multiple of {}, the bytes of {int}; name the type with --dtype",
            bytes.len(),
            int.bytes()
        ));
    }
    out.clear();
    out.resize(bytes.len() / int.bytes(), 0);
    int.read(bytes, out).map_err(|(at, value)| {
        format!("has {value} at place {at} as {int}, which is no id; is another type right (--dtype)?")
    })
}

/// The column of tokens and how it is packed.
fn choose(path: &Path, columns: &Columns, options: &Options) -> Result<(usize, Packing), FormatError> {
    let Columns { column_names: names, column_encodings: encodings, column_sizes: sizes } = columns;
    if names.len() != encodings.len() || names.len() != sizes.len() {
        return Err(FormatError::damaged(path, Format::Mds, "has names, encodings and sizes of different counts"));
    }
    let find = |wanted: &str| names.iter().position(|name| name == wanted);
    let found = match &options.column {
        Some(column) => find(column),
        None => find("tokens").or_else(|| find("input_ids")),
    };
    let Some(i) = found else {
        let wanted = options.column.as_deref().unwrap_or("tokens or input_ids");
        return Err(FormatError::field(path, "columns", names.join(", "), format!("{wanted}; name one with --column")));
    };
    let want = "bytes, ndarray, or ndarray of an integer type and perhaps a shape";
    let bad = || FormatError::field(path, format!("encoding of column {}", names[i]), &encodings[i], want);
    let mut parts = encodings[i].split(':');
    let packing = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("bytes"), None, ..) => Packing::Bytes(options.int.unwrap_or(Int::I64)),
        (Some("ndarray"), None, ..) => Packing::Array { int: None, shaped: false },
        (Some("ndarray"), Some(int), shape, None) => {
            let int = Some(Int::from_name(int).ok_or_else(bad)?);
            Packing::Array { int, shaped: shape.is_some() }
        }
        _ => return Err(bad()),
    };
    Ok((i, packing))
}

/// Holds a file against the index: its length and its hashes.
fn check_file(path: &Path, entry: &FileEntry) -> Result<(), FormatError> {
    let meta = std::fs::metadata(path).map_err(FormatError::io(path, "find"))?;
    if !meta.is_file() {
        return Err(FormatError::refused(path, "is no regular file"));
    }
    if meta.len() != entry.bytes {
        return Err(FormatError::field(path, "length in bytes", meta.len(), format!("the {} of {INDEX}", entry.bytes)));
    }
    let file = BufReader::new(File::open(path).map_err(FormatError::io(path, "open"))?);
    let mut input = Hashing::new(Source::Raw(file), entry, true);
    let mut buffer = vec![0; 1 << 16];
    while input.read(&mut buffer).map_err(FormatError::io(path, "read"))? > 0 {}
    input.finish(path)
}

enum Source {
    Raw(BufReader<File>),
    Zstd(Box<StreamingDecoder<BufReader<File>, FrameDecoder>>),
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Source::Raw(file) => file.read(buffer),
            Source::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Counts and digests what is read, and gives no byte more than the index promises.
struct Hashing {
    source: Source,
    left: u64,
    sha1: Option<(Sha1, String)>,
    xxh64: Option<(Xxh64, String)>,
}

impl std::fmt::Debug for Hashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hashing").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Hashing {
    fn new(source: Source, entry: &FileEntry, digest: bool) -> Hashing {
        let sha1 = entry.hashes.sha1.clone().filter(|_| digest).map(|want| (Sha1::new(), want));
        let xxh64 = entry.hashes.xxh64.clone().filter(|_| digest).map(|want| (Xxh64::new(0), want));
        Hashing { source, left: entry.bytes, sha1, xxh64 }
    }

    fn exactly(&mut self, bytes: u64) -> std::io::Result<Vec<u8>> {
        let mut buffer = Vec::new();
        self.fill(bytes, &mut buffer).map(|()| buffer)
    }

    /// Memory follows what is there, not what is asked for.
    fn fill(&mut self, bytes: u64, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        buffer.clear();
        self.by_ref().take(bytes).read_to_end(buffer)?;
        match buffer.len() as u64 == bytes {
            true => Ok(()),
            false => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// At the end: nothing is left over, and the digests are those of the index.
    fn finish(&mut self, path: &Path) -> Result<(), FormatError> {
        let more = self.source.read(&mut [0]).map_err(|e| FormatError::damaged(path, Format::Mds, e))? > 0;
        if self.left > 0 || more {
            let what = if more { "more bytes than" } else { "fewer bytes than" };
            return Err(FormatError::damaged(path, Format::Mds, format!("has {what} {INDEX} says")));
        }
        if let Source::Zstd(decoder) = &mut self.source {
            let sums = (decoder.decoder.get_checksum_from_data(), decoder.decoder.get_calculated_checksum());
            if sums.0.is_some() && sums.0 != sums.1 {
                return Err(FormatError::damaged(path, Format::Mds, "has a zstd frame with a wrong checksum"));
            }
            let behind = decoder.get_mut().read(&mut [0]).map_err(FormatError::io(path, "read"))?;
            if behind > 0 {
                return Err(FormatError::damaged(path, Format::Mds, "has bytes after its zstd frame"));
            }
        }
        let differs = |algorithm, got: String, want: &String| match got == want.to_ascii_lowercase() {
            true => Ok(()),
            false => {
                let (path, want) = (path.into(), crate::brief(want));
                Err(FormatError::Digest { path, algorithm, got, want, named_in: INDEX })
            }
        };
        if let Some((digest, want)) = self.sha1.take() {
            differs("sha1", sha1_hex(digest), &want)?;
        }
        if let Some((digest, want)) = self.xxh64.take() {
            differs("xxh64", format!("{:016x}", digest.digest()), &want)?;
        }
        Ok(())
    }
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.source.read(&mut buffer[..room])?;
        self.left -= n as u64;
        if let Some((digest, _)) = &mut self.sha1 {
            digest.update(&buffer[..n]);
        }
        if let Some((digest, _)) = &mut self.xxh64 {
            digest.update(&buffer[..n]);
        }
        Ok(n)
    }
}

fn sha1_hex(digest: Sha1) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
