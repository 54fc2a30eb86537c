//! Tokens that lie in a file as one array of integers: mapped and read in place.
//!
//! ```text
//! file   | `at` bytes of header | token 0 | token 1 | ... | the rest
//! ```
//!
//! What divides them into documents stands apart ([`Bounds`]): a table of ends, records of one
//! length, or the end mark itself.
//!
//! A map shows what the file holds at the time of reading; whoever truncates a file that is in
//! use kills the process, and whoever rewrites one changes what is read.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{FormatError, Int, Options, megatron};

/// Ids of a scan widened at a time.
const CHUNK: usize = 1 << 13;
/// Bytes of a stretch that a fingerprint takes of a large file, and how many of them.
const STRETCH_BYTES: usize = 64 << 10;
const STRETCHES: usize = 4096;

/// One array of ids in a mapped file.
#[derive(Debug)]
pub(super) struct Array {
    pub path: PathBuf,
    map: Mmap,
    at: usize,
    pub int: Int,
    pub tokens: u64,
}

impl Array {
    /// The ids from byte `at` on: `tokens` of them, or all that the file holds.
    pub fn new(path: &Path, map: Mmap, at: usize, int: Int, tokens: Option<u64>) -> Result<Array, FormatError> {
        let room = (map.len() as u64).checked_sub(at as u64).ok_or_else(|| {
            FormatError::field(path, "length in bytes", map.len(), format!("at least the header's {at}"))
        })?;
        let width = int.bytes() as u64;
        let tokens = match tokens {
            Some(tokens) if tokens > room / width => {
                let want = format!("at most the {} {int} that the file has room for", room / width);
                return Err(FormatError::field(path, "tokens", tokens, want));
            }
            Some(tokens) => tokens,
            None if room % width != 0 => {
                let want = format!("a multiple of {width}, the bytes of {int}");
                return Err(FormatError::field(path, "bytes of tokens", room, want));
            }
            None => room / width,
        };
        Ok(Array { path: path.into(), map, at, int, tokens })
    }

    /// Copies ids `start..start + out.len()`, which must lie inside.
    pub fn slice(&self, start: u64, out: &mut [u32]) -> Result<(), FormatError> {
        assert!(start + out.len() as u64 <= self.tokens, "formats: a slice inside the array");
        let width = self.int.bytes();
        let at = self.at + start as usize * width;
        let read = self.int.read(&self.map[at..at + out.len() * width], out);
        read.map_err(|(i, value)| FormatError::Id { path: self.path.clone(), at: start + i as u64, value })
    }

    /// The bytes of ids `ids`.
    pub fn bytes(&self, ids: Range<u64>) -> &[u8] {
        let width = self.int.bytes();
        &self.map[self.at + ids.start as usize * width..self.at + ids.end as usize * width]
    }

    /// Asks the system to bring ids into memory.
    fn advise(&self, ids: Range<u64>) {
        let width = self.int.bytes();
        let (start, end) = (ids.start.min(self.tokens) as usize, ids.end.min(self.tokens) as usize);
        #[cfg(unix)]
        if start < end {
            // Advice that is not taken costs time, nothing else.
            let at = self.at + start * width;
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, at, (end - start) * width);
        }
        #[cfg(not(unix))]
        let _ = (start, end, width);
    }

    /// The whole file.
    pub fn file(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a regular file for reading.
pub(super) fn map(path: &Path) -> Result<Mmap, FormatError> {
    let io = |action| FormatError::io(path, action);
    // Before it is opened: that would wait for ever on a pipe.
    if !std::fs::metadata(path).map_err(io("find"))?.is_file() {
        return Err(io("map")(std::io::Error::other("not a regular file")));
    }
    let file = File::open(path).map_err(io("open"))?;
    // SAFETY: the map is only ever read, and what is read is checked; the head of this page says
    // what happens to a file that is changed meanwhile.
    unsafe { Mmap::map(&file) }.map_err(io("map"))
}

/// What divides an array into documents.
#[derive(Debug)]
pub(super) enum Bounds {
    /// Up to and with each document, in tokens.
    Ends(Vec<u64>),
    /// The same as u64 in a mapped file.
    Mapped(Mmap),
    Megatron(megatron::Index),
    /// Documents of one length; the last may be shorter.
    Every(u64),
    /// After each of this id; known once the tokens were read.
    Mark(u32),
}

impl Bounds {
    fn documents(&self, tokens: u64) -> u64 {
        match self {
            Bounds::Ends(ends) => ends.len() as u64,
            Bounds::Mapped(map) => map.len() as u64 / 8,
            Bounds::Megatron(index) => index.documents(),
            Bounds::Every(length) => tokens.div_ceil(*length),
            Bounds::Mark(_) => unreachable!("formats: marks are resolved before they are counted"),
        }
    }

    fn end(&self, d: u64, tokens: u64) -> u64 {
        match self {
            Bounds::Ends(ends) => ends[d as usize],
            Bounds::Mapped(map) => word(map, d as usize * 8),
            Bounds::Megatron(index) => index.end(d),
            Bounds::Every(length) => ((d + 1) * length).min(tokens),
            Bounds::Mark(_) => unreachable!("formats: marks are resolved before they are asked for"),
        }
    }
}

/// The u64 at byte `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Holds ends of documents against the tokens: they never fall, and the last is the end.
pub(super) fn check_ends(path: &Path, ends: impl Iterator<Item = u64>, tokens: u64) -> Result<(), FormatError> {
    let mut last = 0;
    for (d, end) in ends.enumerate() {
        if end < last || end > tokens {
            let want = format!("between {last} and the {tokens} tokens");
            return Err(FormatError::field(path, format!("end of document {d}"), end, want));
        }
        last = end;
    }
    if last != tokens {
        return Err(FormatError::field(path, "end of the last document", last, format!("the {tokens} tokens")));
    }
    Ok(())
}

/// An array with its bounds, as a format's reader opens it.
#[derive(Debug)]
pub(super) struct Raw {
    pub array: Array,
    pub bounds: Bounds,
    /// The mark stood before the first token and was left out: it is owed to the end, even where
    /// nothing follows the last mark.
    pub rotated: bool,
}

/// A foreign file of tokens, read in place: no copy, no conversion. Reading is thread-safe.
///
/// Opening reads tables of documents, and where there are none (nanoGPT, llm.c, Templar, plain
/// .npy) all tokens once, to find the end marks; that takes 8 bytes of memory a document.
#[derive(Debug)]
pub struct InPlace {
    array: Array,
    bounds: Bounds,
    documents: u64,
}

impl InPlace {
    /// Opens one file. `options.format` and the rest mean what they mean for
    /// [`open`](super::open); formats that are packed (MDS, tokshuf) are refused.
    ///
    /// llm.c puts its mark before each document; the first is left out here, so that documents
    /// end with their mark as everywhere else, save the last, which has none.
    pub fn open(path: &Path, options: &Options) -> Result<InPlace, FormatError> {
        let Raw { array, bounds, .. } = super::open_raw(path, options)?;
        let bounds = match bounds {
            Bounds::Mark(mark) => Bounds::Ends(ends_of_marks(&array, mark)?),
            // Documents without tokens are none.
            bounds => {
                let ends = |d| bounds.end(d, array.tokens);
                let empty = |d| ends(d) == if d == 0 { 0 } else { ends(d - 1) };
                let count = bounds.documents(array.tokens);
                if (0..count).any(empty) {
                    Bounds::Ends((0..count).filter(|&d| !empty(d)).map(ends).collect())
                } else {
                    bounds
                }
            }
        };
        let documents = bounds.documents(array.tokens);
        Ok(InPlace { array, bounds, documents })
    }

    pub fn path(&self) -> &Path {
        &self.array.path
    }

    /// How ids are stored.
    pub fn int(&self) -> Int {
        self.array.int
    }

    pub fn tokens(&self) -> u64 {
        self.array.tokens
    }

    /// Documents with at least one token.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Digest of what is read from the file: its kind of integer, its tokens and where its documents end. Of tokens
    /// that take more than 256 MiB it sees 4096 stretches of 64 KiB, the first and the last among them: a file of a
    /// terabyte is told from another one in a second, and not from one that differs in a few places.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let bytes = self.array.bytes(0..self.array.tokens);
        for number in [self.int().bytes() as u64, self.tokens(), self.documents] {
            hasher.update(&number.to_le_bytes());
        }
        if bytes.len() <= STRETCHES * STRETCH_BYTES {
            hasher.update(bytes);
        } else {
            for i in 0..STRETCHES {
                let last = (bytes.len() - STRETCH_BYTES) as u128;
                let at = (last * i as u128 / (STRETCHES as u128 - 1)) as usize;
                hasher.update(&bytes[at..at + STRETCH_BYTES]);
            }
        }
        for d in 0..self.documents {
            hasher.update(&self.document(d).end.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Copies tokens `start..start + out.len()`; panics where there are none. The error is of an
    /// id that is negative or does not fit 32 bits; the caller holds ids against the vocabulary.
    pub fn slice(&self, start: u64, out: &mut [u32]) -> Result<(), FormatError> {
        self.array.slice(start, out)
    }

    /// Asks the system to bring tokens into memory, without waiting for it.
    pub fn advise(&self, tokens: Range<u64>) {
        self.array.advise(tokens);
    }

    /// Tokens of document `d`, which must be below [`InPlace::documents`].
    pub fn document(&self, d: u64) -> Range<u64> {
        assert!(d < self.documents, "formats: a document that is there");
        // Clipped, so that a table changed on disk after the check is no way out of the array.
        let end = |d| self.bounds.end(d, self.array.tokens).min(self.array.tokens);
        let start = if d == 0 { 0 } else { end(d - 1) };
        start..end(d).max(start)
    }

    /// The document of token `at`, by binary search; the count of documents where there is none.
    pub fn document_of(&self, at: u64) -> u64 {
        let (mut lo, mut hi) = (0, self.documents);
        while lo < hi {
            let mid = lo + (hi - lo) / 2;
            if self.bounds.end(mid, self.array.tokens) <= at { lo = mid + 1 } else { hi = mid }
        }
        lo
    }
}

fn ends_of_marks(array: &Array, mark: u32) -> Result<Vec<u64>, FormatError> {
    let (mut ends, mut chunk, mut at) = (Vec::new(), vec![0; CHUNK], 0);
    while at < array.tokens {
        let n = (array.tokens - at).min(CHUNK as u64) as usize;
        array.slice(at, &mut chunk[..n])?;
        let marks = chunk[..n].iter().enumerate().filter(|&(_, &id)| id == mark);
        ends.extend(marks.map(|(i, _)| at + i as u64 + 1));
        at += n as u64;
    }
    if ends.last().copied().unwrap_or(0) < array.tokens {
        ends.push(array.tokens);
    }
    Ok(ends)
}

/// Gives out the documents of a [`Raw`] one after another.
#[derive(Debug)]
pub(super) struct RawStream {
    raw: Raw,
    /// Closes what follows the last mark.
    close_tail: bool,
    /// Of tables: the next document.
    document: u64,
    /// The first token not yet given out.
    at: u64,
    /// Ids widened ahead, from `at` on.
    chunk: Vec<u32>,
    used: usize,
    longest: u64,
}

impl RawStream {
    pub fn new(raw: Raw, close_tail: bool, options: &Options) -> RawStream {
        let longest = options.max_document_tokens as u64;
        RawStream { raw, close_tail, document: 0, at: 0, chunk: Vec::new(), used: 0, longest }
    }

    /// Bytes of tokens read, and of all.
    pub fn position(&self) -> (u64, u64) {
        let width = self.raw.array.int.bytes() as u64;
        (self.at * width, self.raw.array.tokens * width)
    }

    /// The next document with at least one token, into `out`; false at the end.
    pub fn next(&mut self, out: &mut Vec<u32>) -> Result<bool, FormatError> {
        if let Bounds::Mark(mark) = self.raw.bounds {
            return self.next_marked(mark, out);
        }
        let tokens = self.raw.array.tokens;
        while self.document < self.raw.bounds.documents(tokens) {
            let end = self.raw.bounds.end(self.document, tokens).min(tokens);
            self.document += 1;
            if end <= self.at {
                continue;
            }
            if end - self.at > self.longest {
                let path = self.raw.array.path.clone();
                return Err(FormatError::LongDocument { path, at: self.at, max: self.longest, why: "" });
            }
            out.resize((end - self.at) as usize, 0);
            self.raw.array.slice(self.at, out)?;
            self.at = end;
            return Ok(true);
        }
        Ok(false)
    }

    fn next_marked(&mut self, mark: u32, out: &mut Vec<u32>) -> Result<bool, FormatError> {
        out.clear();
        let start = self.at;
        loop {
            let ahead = &self.chunk[self.used..];
            let found = ahead.iter().position(|&id| id == mark);
            let take = found.map_or(ahead.len(), |i| i + 1);
            out.extend_from_slice(&ahead[..take]);
            self.used += take;
            self.at += take as u64;
            if out.len() as u64 > self.longest {
                let path = self.raw.array.path.clone();
                let why = "; is the end mark (--eos) the right one?";
                return Err(FormatError::LongDocument { path, at: start, max: self.longest, why });
            }
            if found.is_some() {
                return Ok(true);
            }
            let left = self.raw.array.tokens - self.at;
            if left == 0 {
                break;
            }
            self.chunk.resize(left.min(CHUNK as u64) as usize, 0);
            self.raw.array.slice(self.at, &mut self.chunk)?;
            self.used = 0;
        }
        // llm.c: a last document without tokens is a mark alone.
        if self.close_tail && (!out.is_empty() || std::mem::take(&mut self.raw.rotated)) {
            self.close_tail = false;
            out.push(mark);
        }
        Ok(!out.is_empty())
    }
}
