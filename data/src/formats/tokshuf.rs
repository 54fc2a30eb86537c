//! DCLM's tokenize-shuffle: tar files of gzipped JSON lists, each a context of ids.
//!
//! ```text
//! shard_00000000.tar   members CHUNK_INDEX_UUID.json.gz: [2738,273,...], all of one length
//! manifest.jsonl       {"shard":"shard_00000000","num_sequences":7}, a line a tar; the last has
//!                      no newline
//! ```
//!
//! The text of an input file, its documents each closed by EOT, was cut into contexts of 2049
//! ids, the last filled up with PAD; then all contexts were shuffled. EOT is 0 and PAD the
//! vocabulary and two (50256 for GPT-NeoX); neither stands in the files, so both are asked for.
//!
//! There and back the lists are equal byte for byte when contexts are kept whole
//! ([`Division::Records`](super::Division) and `records` of export). Otherwise documents are
//! divided at EOT and PAD is left out, so the contexts of an export are cut anew. gzip, tar and
//! UUID bytes differ always: compressors differ, and UUIDs are drawn at random there and are a
//! digest of the context here.
//!
//! Source: <https://github.com/mlfoundations/dclm>, rust_processing/tokshuf-rs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use serde::Deserialize;

use super::export::{Job, Written};
use super::out::Out;
use super::sniff::{entries, name, small};
use super::{Format, FormatError, Input, Options};

/// The table of tar files.
pub(super) const MANIFEST: &str = "manifest.jsonl";
const MANIFEST_MAX: u64 = 16 << 20;
const BLOCK: usize = 512;
/// Contexts of a tar that export writes.
const CONTEXTS: u64 = 8192;

#[derive(Deserialize)]
struct Line {
    shard: String,
    num_sequences: u64,
}

/// The tars of a folder: those of its manifest, in that order, else all.
pub(super) fn inputs(path: &Path) -> Result<Vec<Input>, FormatError> {
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let manifest = dir.join(MANIFEST);
    let length = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(FormatError::io(path, "find"));
    let mut inputs = Vec::new();
    if manifest.is_file() {
        for (i, line) in small(&manifest, MANIFEST_MAX)?.split(|&b| b == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let bad = |got: String| {
                FormatError::field(
                    &manifest,
                    format!("line {}", i + 1),
                    got,
                    "{\"shard\": a plain name, \"num_sequences\": a number}",
                )
            };
            let line: Line = serde_json::from_slice(line).map_err(|e| bad(e.to_string()))?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if line.shard.is_empty() || line.shard.starts_with('.') || !line.shard.chars().all(plain) {
                return Err(bad(format!("{:?}", line.shard)));
            }
            let stem = line.shard.strip_suffix(".tar").unwrap_or(&line.shard);
            let path = dir.join(format!("{stem}.tar"));
            inputs.push(Input { bytes: length(&path)?, path, contexts: Some(line.num_sequences) });
        }
    } else {
        for path in entries(dir)?.into_iter().filter(|p| name(p).ends_with(".tar")) {
            inputs.push(Input { bytes: length(&path)?, path, contexts: None });
        }
    }
    if inputs.is_empty() {
        return Err(FormatError::refused(path, "names no .tar file"));
    }
    Ok(inputs)
}

/// Reads the contexts of one tar.
#[derive(Debug)]
pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    at: u64,
    contexts: u64,
    promised: Option<u64>,
    longest: usize,
    /// Ids of the first context, which all have.
    length: Option<usize>,
    /// What the last context of all is filled up with.
    pad: u32,
    ended: bool,
}

impl Reader {
    pub fn open(path: &Path, promised: Option<u64>, options: &Options) -> Result<Reader, FormatError> {
        let missing = |what, why: &str| FormatError::Missing { path: path.into(), what, why: why.into() };
        if options.eos.is_none() {
            return Err(missing("--eos ID", "the id that DCLM calls EOT, 0 in its published data"));
        }
        let why = "the id that fills up the last context of a file, 50256 for the tokenizer of GPT-NeoX, so that it \
                   is not trained on; where nothing was filled up, any id that does not occur";
        let pad = options.pad.ok_or_else(|| missing("--pad ID", why))?;
        if !std::fs::metadata(path).map_err(FormatError::io(path, "find"))?.is_file() {
            return Err(FormatError::refused(path, "is no regular file"));
        }
        let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(FormatError::io(path, "open"))?);
        let longest = options.max_document_tokens;
        let path = path.to_path_buf();
        Ok(Reader { path, file, at: 0, contexts: 0, promised, longest, length: None, pad, ended: false })
    }

    pub fn position(&self) -> u64 {
        self.at
    }

    fn damaged(&self, what: impl std::fmt::Display) -> FormatError {
        FormatError::damaged(&self.path, Format::Tokshuf, what)
    }

    /// The next context, PAD and all; false at the end.
    pub fn next(&mut self, out: &mut Vec<u32>) -> Result<bool, FormatError> {
        out.clear();
        while !self.ended {
            let mut block = [0; BLOCK];
            self.file.read_exact(&mut block).map_err(|_| {
                self.damaged(format!("is cut at byte {}: tar files end with a block of zeros", self.at))
            })?;
            self.at += BLOCK as u64;
            if block.iter().all(|&b| b == 0) {
                self.ended = true;
                break;
            }
            if self.member(&block, out)? {
                self.contexts += 1;
                return Ok(true);
            }
        }
        match self.promised {
            Some(want) if want != self.contexts => {
                let want = format!("the {want} of {MANIFEST}");
                Err(FormatError::field(&self.path, "number of contexts", self.contexts, want))
            }
            _ => Ok(false),
        }
    }

    /// Reads the member behind a header; false where it is no context.
    fn member(&mut self, block: &[u8; BLOCK], out: &mut Vec<u32>) -> Result<bool, FormatError> {
        let header = tar::Header::from_byte_slice(block);
        let start = self.at - BLOCK as u64;
        // The sum is over all bytes of the header, those of the field itself as spaces.
        let field = 148..156;
        let sum: u32 = block.iter().enumerate().map(|(i, &b)| if field.contains(&i) { 32 } else { b.into() }).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.damaged(format!("has a wrong checksum in the tar header at byte {start}")));
        }
        let size = header.entry_size().map_err(|e| self.damaged(e))?;
        let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        let kind = header.entry_type();
        // Names are not followed, yet one that would leave a folder speaks of a hostile file.
        if name.starts_with('/') || name.split(['/', '\\']).any(|part| part == "..") {
            return Err(self.damaged(format!("has a member {name:?}, which would leave its folder")));
        }
        let skip = kind.is_dir()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
            || kind.is_gnu_longname();
        if !skip && !kind.is_file() {
            return Err(
                self.damaged(format!("has a member {name:?} that is no file (tar type {:?})", kind.as_byte() as char))
            );
        }
        if !skip {
            let longest = self.longest;
            let mut data = (&mut self.file).take(size);
            let read = context(&mut data, longest, out);
            let left = data.limit();
            if left > 0 && read.is_ok() {
                let cut = self.file.fill_buf().map_or(true, <[u8]>::is_empty);
                let what = if cut { "is cut short" } else { "has bytes after its gzip stream" };
                return Err(self.damaged(format!("member {name:?} {what}")));
            }
            read.map_err(|what| self.damaged(format!("member {name:?} {what}")))?;
            self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        } else {
            self.skip(
                size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| self.damaged("has a member past 2^64"))?,
            )?;
        }
        self.at += size.next_multiple_of(BLOCK as u64);
        if skip {
            return Ok(false);
        }
        let length = *self.length.get_or_insert(out.len());
        if out.len() != length || length == 0 {
            let want = format!("{length}, as the first has, and more than 0");
            return Err(FormatError::field(&self.path, format!("length of context {name:?}"), out.len(), want));
        }
        if out.iter().all(|&id| id == self.pad) {
            return Err(self.damaged(format!("member {name:?} holds nothing but PAD")));
        }
        Ok(true)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), FormatError> {
        let copied = std::io::copy(&mut (&mut self.file).take(bytes), &mut std::io::sink());
        match copied {
            Ok(n) if n == bytes => Ok(()),
            Ok(_) => Err(self.damaged("is cut short inside a member")),
            Err(e) => Err(FormatError::io(&self.path, "read")(e)),
        }
    }
}

/// A gzipped JSON list of ids, to its last byte.
fn context(data: &mut impl BufRead, longest: usize, out: &mut Vec<u32>) -> Result<(), String> {
    let mut json = BufReader::with_capacity(1 << 14, GzDecoder::new(data));
    // Ten digits, a comma and a space an id.
    let bytes_max = longest as u64 * 12 + 64;
    let (mut bytes, mut number, mut state) = (0u64, None::<u64>, State::Start);
    loop {
        let buffer = json.fill_buf().map_err(|e| format!("cannot be unpacked: {e}"))?;
        if buffer.is_empty() {
            break;
        }
        let n = buffer.len();
        bytes += n as u64;
        if bytes > bytes_max || out.len() > longest {
            return Err(format!("is longer than {longest} ids"));
        }
        for &b in buffer {
            state = match (state, b) {
                (
                    state @ (State::Start | State::Open | State::Comma | State::After | State::Done),
                    b' ' | b'\n' | b'\r' | b'\t',
                ) => state,
                (State::Number, b' ' | b'\n' | b'\r' | b'\t') => {
                    out.push(id(number.take())?);
                    State::After
                }
                (State::Start, b'[') => State::Open,
                (State::Open | State::Comma | State::Number, b'0'..=b'9') => {
                    if number == Some(0) {
                        return Err("is no JSON list of ids: a number starts with 0".into());
                    }
                    let digit = u64::from(b - b'0');
                    number = Some(number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
                    State::Number
                }
                (State::Number, b',') => {
                    out.push(id(number.take())?);
                    State::Comma
                }
                (State::After, b',') => State::Comma,
                (State::Number, b']') => {
                    out.push(id(number.take())?);
                    State::Done
                }
                (State::Open | State::After, b']') => State::Done,
                (_, b) => return Err(format!("is no JSON list of ids: {:?} at place {}", b as char, out.len())),
            };
        }
        json.consume(n);
    }
    match state {
        State::Done => Ok(()),
        _ => Err("is no JSON list of ids: it ends early".into()),
    }
}

#[derive(Clone, Copy)]
enum State {
    Start,
    Open,
    Number,
    After,
    Comma,
    Done,
}

fn id(number: Option<u64>) -> Result<u32, String> {
    let number = number.expect("a digit was read");
    u32::try_from(number).map_err(|_| format!("holds {number}, which is no id"))
}

/// Writes SPLIT/shard_00000000.tar and so on, and SPLIT/manifest.jsonl.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let length = job.seq_len("the ids of a context (DCLM: 2049)")?;
    let mut written = Written::default();
    let mut tar: Option<Out> = None;
    let (mut in_tar, mut tars) = (0u64, 0u64);
    let mut manifest = Vec::new();
    let mut close = |tar: &mut Option<Out>, in_tar: &mut u64, tars: &mut u64| -> Result<(), FormatError> {
        let Some(mut file) = tar.take() else { return Ok(()) };
        file.bytes(&[0; 2 * BLOCK])?;
        written.add(file.finish()?);
        manifest.push(format!("{{\"shard\":\"shard_{tars:08}\",\"num_sequences\":{in_tar}}}"));
        (*in_tar, *tars) = (0, *tars + 1);
        Ok(())
    };
    let mut padded_tokens = 0;
    let mut full = Vec::with_capacity(length);
    let mut push = |ids: &[u32]| -> Result<(), FormatError> {
        if ids.len() > length {
            let refused = format!("a document has {} ids and no context of {length} holds it", ids.len());
            return Err(FormatError::refused(job.out, refused));
        }
        full.clear();
        full.extend_from_slice(ids);
        if ids.len() < length {
            let why = format!("a context has {} ids of {length}", ids.len());
            let missing = || FormatError::Missing { path: job.out.into(), what: "--pad ID", why };
            full.resize(length, job.options.pad.ok_or_else(missing)?);
            padded_tokens += (length - ids.len()) as u64;
        }
        let file = match &mut tar {
            Some(file) => file,
            None => tar.insert(job.create_in(&format!("shard_{tars:08}.tar"))?),
        };
        let text: Vec<String> = full.iter().map(u32::to_string).collect();
        append(file, tars, in_tar, format!("[{}]", text.join(",")).as_bytes())?;
        in_tar += 1;
        if in_tar == job.options.samples_per_file.unwrap_or(CONTEXTS) {
            close(&mut tar, &mut in_tar, &mut tars)?;
        }
        Ok(())
    };
    let rest = job.samples(length, &mut push)?;
    if !rest.is_empty() {
        push(&rest)?;
    }
    close(&mut tar, &mut in_tar, &mut tars)?;
    let mut table = job.create_in(MANIFEST)?;
    table.bytes(manifest.join("\n").as_bytes())?;
    written.add(table.finish()?);
    written.padded_tokens = padded_tokens;
    Ok(written)
}

fn append(file: &mut Out, tar: u64, index: u64, json: &[u8]) -> Result<(), FormatError> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let packed = gz.write_all(json).and_then(|()| gz.finish()).expect("writing to memory");
    let digest = blake3::hash(json).to_hex();
    let part = |from: usize, to: usize| &digest.as_str()[from..to];
    let uuid = format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32));
    let mut header = tar::Header::new_gnu();
    header.set_path(format!("{tar:08}_{index:08}_{uuid}.json.gz")).expect("a short name");
    header.set_size(packed.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    file.bytes(header.as_bytes())?;
    file.bytes(&packed)?;
    file.bytes(&[0; BLOCK][..packed.len().next_multiple_of(BLOCK) - packed.len()])
}
