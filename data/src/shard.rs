//! A shard: the tokens of many documents in one file, read through a memory map.
//!
//! ```text
//! byte 0     header, 4096 bytes, little endian
//!   0  [8]  magic "ESKRSHRD"           8 u32 version = 2
//!  12 u32   bytes of a token, 2 or 4  16 u32 vocabulary: every id is below it
//!  20 u32   largest id in the file    24 u32 end mark of documents, 2^32-1: none
//!  28 u32   bytes of a leaf, 2^20     32 u64 tokens
//!  40 u64   documents                 48 u64 UTF-8 bytes of text behind the tokens
//!  56 u64   byte where the index starts
//!  64 [32]  blake3 of tokenizer.json  96 [32] blake3 of the body
//! 128 ..    zero
//! 4064 [32] blake3 of bytes 0..4064
//! byte 4096  body: tokens, then zeros up to a multiple of 8, then the
//! index      documents x { u64 end, u64 text_end }: sums up to and with each document
//! table      a digest of 32 bytes for each leaf of the body, where it has more than one
//! ```
//!
//! The file ends where the table ends: [`Shard::open`] compares every length with the size of
//! the file before it uses one, always checks the digest of the header, and that the table joins
//! to the digest of the body ([`tree`]): under a millisecond for 4 GB. What it reads of the body
//! itself is a choice, [`Check`]. Version 1 had no table, and so can only be checked as a whole;
//! it is still read.
//!
//! An end mark belongs to the document it closes and counts as one of its tokens.
//!
//! A map shows what the file holds at the time of reading. Shards are therefore written aside
//! and renamed, never changed in place; whoever truncates one under a running process kills it.

mod header;
pub mod tree;
mod write;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;
use rayon::prelude::*;

use header::INDEX_ENTRY_BYTES;
pub use header::{HEADER_BYTES, Header, MAGIC, TokenType};
pub(crate) use write::sync_parent;
pub use write::{ShardSpec, ShardWriter};

/// Layout that this build writes; it reads those from 1 on.
pub const VERSION: u32 = 2;

/// Why a shard was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    #[error("{path}: cannot {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error(
        "{path}: {bytes} bytes are too few for a shard, whose header alone takes {HEADER_BYTES}; \
         the file was cut short or is no shard: tokenize the text again"
    )]
    TooShort { path: PathBuf, bytes: u64 },
    #[error(
        "{path}: the first 8 bytes are {got:02x?}, a shard starts with {MAGIC:02x?} (\"ESKRSHRD\"); \
         make shards with `esker tokenize`"
    )]
    Magic { path: PathBuf, got: [u8; 8] },
    #[error(
        "{path}: header field `version` is {got}, this build reads 1 to {VERSION}; tokenize the \
         text again with this build"
    )]
    Version { path: PathBuf, got: u32 },
    #[error(
        "{path}: the header's digest does not match its bytes: the header was damaged or changed; \
         copy the file again or tokenize the text again"
    )]
    HeaderDigest { path: PathBuf },
    #[error(
        "{path}: header field `{field}` is {got}, expected {want}; the file was not written by \
         esker or was changed: tokenize the text again"
    )]
    Field { path: PathBuf, field: &'static str, got: u64, want: String },
    #[error(
        "{path}: the file has {got} bytes, its header speaks of {want}; the copy is incomplete or \
         has bytes added: copy it again or tokenize the text again"
    )]
    Length { path: PathBuf, got: u64, want: u64 },
    #[error(
        "{path}: {} do not match their digest: the file was damaged; copy it again or tokenize \
         the text again", named(.damaged)
    )]
    BodyDigest {
        path: PathBuf,
        /// Bytes of the file, at least one range, as narrow as the digests allow.
        damaged: Vec<Range<u64>>,
    },
    #[error(
        "{path}: the table of digests, bytes {} to {}, does not match the header: the file was \
         damaged; copy it again or tokenize the text again", .at.start, .at.end
    )]
    TableDigest { path: PathBuf, at: Range<u64> },
    #[error("{path}: token {at} is {id}, but the header promises ids of at most {max}")]
    Token { path: PathBuf, at: u64, id: u32, max: u32 },
    #[error("{path}: the index entry of document {document} is {got}, expected {want}")]
    Index { path: PathBuf, document: u64, got: u64, want: String },
    #[error("{path}: tokens {start}..{end} lie outside the {tokens} tokens of this shard")]
    Range { path: PathBuf, start: u64, end: u64, tokens: u64 },
}

/// How much of a shard is read before it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Header, table, their digests, and all lengths: milliseconds, whatever the size. A reader
    /// still holds every id against the vocabulary.
    Header,
    /// Also the index, and each leaf of tokens against its digest when it is first read: opening
    /// stays quick, and no damaged token is ever handed out. A shard of version 1, which has no
    /// table, is read whole.
    Lazy,
    /// Also every token and the whole index, against their digests and the header's promises, on
    /// all cores.
    Everything,
}

/// "bytes 4096 to 1052672", and how many more ranges there are.
fn named(damaged: &[Range<u64>]) -> String {
    let shown = damaged.iter().take(3).map(|r| format!("bytes {} to {}", r.start, r.end));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match damaged.len() {
        0..=3 => shown,
        n => format!("{shown} and {} more ranges", n - 3),
    }
}

/// An open shard. Reading from it is thread-safe.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Header,
    /// A bit for each piece that was found whole, under [`Check::Lazy`].
    seen: Option<Box<[AtomicU64]>>,
}

impl Shard {
    /// Maps the file, checks its header, lengths and table, and what else `check` asks for.
    pub fn open(path: &Path, check: Check) -> Result<Shard, ShardError> {
        let io = |action| move |source| ShardError::Io { path: path.to_path_buf(), action, source };
        // Before it is opened: that would wait for ever on a pipe.
        let meta = std::fs::metadata(path).map_err(io("find"))?;
        if !meta.is_file() {
            let source = std::io::Error::other("not a regular file");
            return Err(io("map")(source));
        }
        if meta.len() < HEADER_BYTES as u64 {
            return Err(ShardError::TooShort { path: path.to_path_buf(), bytes: meta.len() });
        }
        let file = File::open(path).map_err(io("open"))?;
        // SAFETY: the map is only ever read. Shards are written aside and renamed, so the bytes
        // of an opened file do not change under us; the head of this page says so to whoever
        // handles the files.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        let header = Header::parse(&map, map.len() as u64, path)?;
        let mut shard = Shard { path: path.to_path_buf(), map, header, seen: None };
        shard.check_table()?;
        shard.check_last_index_entry()?;
        match check {
            Check::Header => {}
            Check::Lazy if shard.header.version > 1 => {
                let words = shard.pieces().div_ceil(64);
                shard.seen = Some((0..words).map(|_| AtomicU64::new(0)).collect());
                shard.ensure(shard.header.index_at()..shard.header.table_at())?;
                shard.check_index()?;
            }
            Check::Lazy | Check::Everything => shard.verify()?,
        }
        Ok(shard)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole file on all cores: the digests, that no id is above the header's, that
    /// the index rises.
    pub fn verify(&self) -> Result<(), ShardError> {
        let damaged = self.damaged();
        if !damaged.is_empty() {
            return Err(ShardError::BodyDigest { path: self.path.clone(), damaged });
        }
        self.check_ids()?;
        self.check_index()
    }

    /// Copies tokens `start..start + out.len()`, widened to `u32`.
    pub fn tokens(&self, start: u64, out: &mut [u32]) -> Result<(), ShardError> {
        let end = start.saturating_add(out.len() as u64);
        if end > self.header.tokens {
            let (path, tokens) = (self.path.clone(), self.header.tokens);
            return Err(ShardError::Range { path, start, end, tokens });
        }
        let at = self.bytes_of(start..end);
        self.ensure(at.clone())?;
        let bytes = &self.map[at.start as usize..at.end as usize];
        match self.header.token_type {
            TokenType::U16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = u16::from_le_bytes(*b).into();
                }
            }
            TokenType::U32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = u32::from_le_bytes(*b);
                }
            }
        }
        Ok(())
    }

    /// Asks the system to bring tokens of `range` into memory, without waiting; clipped to the
    /// shard. Advice alone: what it does not bring is brought when it is read.
    pub fn advise(&self, range: Range<u64>) {
        let (start, end) = (range.start.min(self.header.tokens), range.end.min(self.header.tokens));
        #[cfg(unix)]
        if start < end {
            let at = self.bytes_of(start..end);
            let len = (at.end - at.start) as usize;
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, at.start as usize, len);
        }
        #[cfg(not(unix))]
        let _ = (start, end);
    }

    /// Tokens and bytes of text of document `d`; both clipped to the shard, whatever an
    /// unverified index says. `d` must be below the header's count.
    pub fn document(&self, d: u64) -> (Range<u64>, Range<u64>) {
        let (start, text_start) = if d == 0 { (0, 0) } else { self.index_entry(d - 1) };
        let (end, text_end) = self.index_entry(d);
        let clip = |a: u64, b: u64, max: u64| a.min(max)..b.clamp(a.min(max), max);
        (clip(start, end, self.header.tokens), clip(text_start, text_end, self.header.text_bytes))
    }

    /// The document that token `at` belongs to, by binary search.
    pub fn document_of(&self, at: u64) -> u64 {
        let (mut lo, mut hi) = (0, self.header.documents);
        while lo < hi {
            let mid = lo + (hi - lo) / 2;
            if self.index_entry(mid).0 <= at { lo = mid + 1 } else { hi = mid }
        }
        lo
    }

    /// Bytes of the file that hold the tokens of `range`.
    fn bytes_of(&self, range: Range<u64>) -> Range<u64> {
        let width = self.header.token_type.bytes();
        HEADER_BYTES as u64 + range.start * width..HEADER_BYTES as u64 + range.end * width
    }

    fn index_entry(&self, d: u64) -> (u64, u64) {
        let at = (self.header.index_at() + d * INDEX_ENTRY_BYTES) as usize;
        let b = &self.map[at..at + INDEX_ENTRY_BYTES as usize];
        let get = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
        (get(0), get(8))
    }

    fn body(&self) -> &[u8] {
        &self.map[HEADER_BYTES..self.header.table_at() as usize]
    }

    /// The digests of the leaves; none in version 1, and none where the body is one leaf.
    fn table(&self) -> &[[u8; 32]] {
        self.map[self.header.table_at() as usize..].as_chunks().0
    }

    /// Pieces of the body that can be checked apart: its leaves, or all of it.
    fn pieces(&self) -> usize {
        self.table().len().max(1)
    }

    /// Bytes of the body in piece `k`, counted from its start.
    fn piece(&self, k: usize) -> Range<u64> {
        let all = self.body().len() as u64;
        match self.pieces() {
            1 => 0..all,
            _ => k as u64 * tree::LEAF_BYTES..all.min((k as u64 + 1) * tree::LEAF_BYTES),
        }
    }

    /// Whether piece `k` agrees with its digest.
    fn whole(&self, k: usize) -> bool {
        let piece = self.piece(k);
        let bytes = &self.body()[piece.start as usize..piece.end as usize];
        match self.table().get(k) {
            Some(want) => tree::leaf(k as u64, bytes) == *want,
            None => tree::digest(bytes) == self.header.body_digest,
        }
    }

    /// Under [`Check::Lazy`]: holds the pieces that these bytes of the file lie in against their
    /// digests, once each.
    fn ensure(&self, at: Range<u64>) -> Result<(), ShardError> {
        let Some(seen) = &self.seen else { return Ok(()) };
        if at.is_empty() {
            return Ok(());
        }
        let last = self.pieces() - 1;
        let of = |byte: u64| ((byte - HEADER_BYTES as u64) / tree::LEAF_BYTES) as usize;
        for k in of(at.start).min(last)..=of(at.end - 1).min(last) {
            let (word, bit) = (&seen[k / 64], 1u64 << (k % 64));
            // Two threads may both check a piece; what they find is the same.
            if word.load(Ordering::Relaxed) & bit != 0 {
                continue;
            }
            if !self.whole(k) {
                return Err(ShardError::BodyDigest { path: self.path.clone(), damaged: vec![self.in_file(k)] });
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Bytes of the file in piece `k`.
    fn in_file(&self, k: usize) -> Range<u64> {
        let piece = self.piece(k);
        HEADER_BYTES as u64 + piece.start..HEADER_BYTES as u64 + piece.end
    }

    /// The ranges of the file that do not agree with their digests, in order; neighbours are one.
    fn damaged(&self) -> Vec<Range<u64>> {
        let bad: Vec<usize> = (0..self.pieces()).into_par_iter().filter(|&k| !self.whole(k)).collect();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in bad.into_iter().map(|k| self.in_file(k)) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    fn check_table(&self) -> Result<(), ShardError> {
        let table = self.table();
        if !table.is_empty() && tree::root(table) != self.header.body_digest {
            let at = self.header.table_at()..self.map.len() as u64;
            return Err(ShardError::TableDigest { path: self.path.clone(), at });
        }
        Ok(())
    }

    fn check_ids(&self) -> Result<(), ShardError> {
        let (h, step) = (&self.header, 1 << 18);
        let tokens = self.bytes_of(0..h.tokens);
        let bytes = &self.map[tokens.start as usize..tokens.end as usize];
        let width = h.token_type.bytes() as usize;
        let above = |(piece, bytes): (usize, &[u8])| {
            let found = match h.token_type {
                TokenType::U16 => {
                    bytes.as_chunks().0.iter().position(|b| u32::from(u16::from_le_bytes(*b)) > h.max_token)
                }
                TokenType::U32 => bytes.as_chunks().0.iter().position(|b| u32::from_le_bytes(*b) > h.max_token),
            };
            found.map(|i| piece * step + i)
        };
        let Some(at) = bytes.par_chunks(step * width).enumerate().find_map_first(above) else { return Ok(()) };
        let mut id = [0];
        self.tokens(at as u64, &mut id)?;
        Err(ShardError::Token { path: self.path.clone(), at: at as u64, id: id[0], max: h.max_token })
    }

    fn check_index(&self) -> Result<(), ShardError> {
        let h = &self.header;
        let (mut end, mut text_end) = (0, 0);
        for document in 0..h.documents {
            let (e, t) = self.index_entry(document);
            if !(end < e && e <= h.tokens && text_end <= t && t <= h.text_bytes) {
                let want = format!("({}..={}, {text_end}..={})", end + 1, h.tokens, h.text_bytes);
                return Err(self.bad_index(document, e, want));
            }
            (end, text_end) = (e, t);
        }
        Ok(())
    }

    fn check_last_index_entry(&self) -> Result<(), ShardError> {
        let h = &self.header;
        if h.documents == 0 {
            return Ok(());
        }
        let (end, text_end) = self.index_entry(h.documents - 1);
        if (end, text_end) != (h.tokens, h.text_bytes) {
            let want = format!("the header's token and byte counts ({}, {})", h.tokens, h.text_bytes);
            return Err(self.bad_index(h.documents - 1, end, want));
        }
        Ok(())
    }

    fn bad_index(&self, document: u64, got: u64, want: String) -> ShardError {
        ShardError::Index { path: self.path.clone(), document, got, want }
    }
}
