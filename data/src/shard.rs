//! A shard: the tokens of many documents in one file, read through a memory map.
//!
//! ```text
//! byte 0     header, 4096 bytes, little endian
//!   0  [8]  magic "ESKRSHRD"           8 u32 version = 1
//!  12 u32   bytes of a token, 2 or 4  16 u32 vocabulary: every id is below it
//!  20 u32   largest id in the file    24 u32 end mark of documents, 2^32-1: none
//!  28 u32   zero                      32 u64 tokens
//!  40 u64   documents                 48 u64 UTF-8 bytes of text behind the tokens
//!  56 u64   byte where the index starts
//!  64 [32]  blake3 of tokenizer.json  96 [32] blake3 of everything after the header
//! 128 ..    zero
//! 4064 [32] blake3 of bytes 0..4064
//! byte 4096  tokens, then zeros up to a multiple of 8
//! index      documents x { u64 end, u64 text_end }: sums up to and with each document
//! ```
//!
//! The file ends where the index ends: [`Shard::open`] compares every length with the size of
//! the file before it uses one, and always checks the digest of the header. The digest of the
//! rest costs a read of the whole file (about 1 GB/s), so it is a choice: [`Check`].
//! An end mark belongs to the document it closes and counts as one of its tokens.
//!
//! A map shows what the file holds at the time of reading. Shards are therefore written aside
//! and renamed, never changed in place; whoever truncates one under a running process kills it.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

/// First bytes of every shard.
pub const MAGIC: [u8; 8] = *b"ESKRSHRD";
/// Layout that this build writes, and the only one it reads.
pub const VERSION: u32 = 1;
/// Bytes before the first token: one page, so that tokens are aligned in the map.
pub const HEADER_BYTES: usize = 4096;

const NO_EOS: u32 = u32::MAX;
const HEADER_DIGEST_AT: usize = HEADER_BYTES - 32;
const INDEX_ENTRY_BYTES: u64 = 16;

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
        "{path}: header field `version` is {got}, this build reads {VERSION}; tokenize the text \
         again with this build"
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
        "{path}: tokens or index do not match the digest in the header: the file was damaged; \
         copy it again or tokenize the text again"
    )]
    BodyDigest { path: PathBuf },
    #[error("{path}: token {at} is {id}, but the header promises ids of at most {max}")]
    Token { path: PathBuf, at: u64, id: u32, max: u32 },
    #[error("{path}: the index entry of document {document} is {got}, expected {want}")]
    Index { path: PathBuf, document: u64, got: u64, want: String },
    #[error("{path}: tokens {start}..{end} lie outside the {tokens} tokens of this shard")]
    Range { path: PathBuf, start: u64, end: u64, tokens: u64 },
}

/// How a token lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    U16,
    U32,
}

impl TokenType {
    /// The smaller type that holds every id below `vocab_size`.
    pub fn for_vocab(vocab_size: u32) -> TokenType {
        if vocab_size <= 1 << 16 { TokenType::U16 } else { TokenType::U32 }
    }

    /// Bytes of one token.
    pub fn bytes(self) -> u64 {
        match self {
            TokenType::U16 => 2,
            TokenType::U32 => 4,
        }
    }
}

/// How much of a shard [`Shard::open`] reads before it trusts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Header, its digest, and all lengths: microseconds.
    Header,
    /// Also every token and the whole index, against the digest and the header's promises.
    Everything,
}

/// What a shard says about itself. The table at the head of this page gives the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub token_type: TokenType,
    /// Every id is below it.
    pub vocab_size: u32,
    /// The largest id in the file; 0 when there is none.
    pub max_token: u32,
    /// The id that closes each document, if one does.
    pub eos: Option<u32>,
    pub tokens: u64,
    pub documents: u64,
    /// UTF-8 bytes of the text the tokens stand for: the denominator of bits per byte.
    pub text_bytes: u64,
    /// blake3 of the tokenizer.json that made the ids.
    pub tokenizer_hash: [u8; 32],
    /// blake3 of all bytes after the header.
    pub body_digest: [u8; 32],
}

impl Header {
    fn index_at(&self) -> u64 {
        // No overflow: `parse` bounds the token count by the size of a file.
        HEADER_BYTES as u64 + (self.tokens * self.token_type.bytes()).next_multiple_of(8)
    }

    fn file_bytes(&self) -> u64 {
        self.index_at() + self.documents * INDEX_ENTRY_BYTES
    }

    /// The 4096 bytes at the start of the file.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0u8; HEADER_BYTES];
        b[0..8].copy_from_slice(&MAGIC);
        let mut put32 = |at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_le_bytes());
        put32(8, VERSION);
        put32(12, self.token_type.bytes() as u32);
        put32(16, self.vocab_size);
        put32(20, self.max_token);
        put32(24, self.eos.unwrap_or(NO_EOS));
        let mut put64 = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
        put64(32, self.tokens);
        put64(40, self.documents);
        put64(48, self.text_bytes);
        put64(56, self.index_at());
        b[64..96].copy_from_slice(&self.tokenizer_hash);
        b[96..128].copy_from_slice(&self.body_digest);
        let digest = blake3::hash(&b[..HEADER_DIGEST_AT]);
        b[HEADER_DIGEST_AT..].copy_from_slice(digest.as_bytes());
        b
    }

    /// Digest of the header. Since the header holds the digest of the rest, this names the
    /// whole content of the shard.
    pub fn digest(&self) -> [u8; 32] {
        let b = self.to_bytes();
        b[HEADER_DIGEST_AT..].try_into().expect("32 bytes")
    }

    /// Reads the start of a file of `file_bytes` bytes. `start` holds its first bytes, at least
    /// [`HEADER_BYTES`] where the file has them; `path` is named in errors only.
    pub fn parse(start: &[u8], file_bytes: u64, path: &Path) -> Result<Header, ShardError> {
        let named = || path.to_path_buf();
        if start.len() < HEADER_BYTES {
            return Err(ShardError::TooShort { path: named(), bytes: file_bytes });
        }
        let b = &start[..HEADER_BYTES];
        let bytes32 = |at: usize| -> [u8; 32] { b[at..at + 32].try_into().expect("32 bytes") };
        let get32 = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("4 bytes"));
        let get64 = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("8 bytes"));
        let field = |field, got, want: String| ShardError::Field { path: named(), field, got, want };

        if b[..8] != MAGIC {
            let got = b[..8].try_into().expect("8 bytes");
            return Err(ShardError::Magic { path: named(), got });
        }
        // Before the digest: a later layout may keep its digest elsewhere.
        if get32(8) != VERSION {
            return Err(ShardError::Version { path: named(), got: get32(8) });
        }
        if blake3::hash(&b[..HEADER_DIGEST_AT]) != bytes32(HEADER_DIGEST_AT) {
            return Err(ShardError::HeaderDigest { path: named() });
        }
        let token_type = match get32(12) {
            2 => TokenType::U16,
            4 => TokenType::U32,
            got => return Err(field("token bytes", got.into(), "2 or 4".into())),
        };
        let vocab_size = get32(16);
        if vocab_size == 0 || (token_type == TokenType::U16 && vocab_size > 1 << 16) {
            let want = "1 or more, at most 65536 where a token has 2 bytes";
            return Err(field("vocabulary", vocab_size.into(), want.into()));
        }
        let max_token = get32(20);
        if max_token >= vocab_size {
            let want = format!("an id below the vocabulary of {vocab_size}");
            return Err(field("largest id", max_token.into(), want));
        }
        let eos = Some(get32(24)).filter(|&id| id != NO_EOS);
        if let Some(id) = eos.filter(|&id| id >= vocab_size) {
            let want = format!("an id below the vocabulary of {vocab_size}, or 2^32-1 for none");
            return Err(field("end mark", id.into(), want));
        }
        // Counts are held against the file's size before anything is computed from them.
        let room = file_bytes - HEADER_BYTES as u64;
        let tokens = get64(32);
        if tokens > room / token_type.bytes() {
            let want = format!("at most {} in a file of this size", room / token_type.bytes());
            return Err(field("tokens", tokens, want));
        }
        let documents = get64(40);
        if documents > room / INDEX_ENTRY_BYTES {
            let want = format!("at most {} in a file of this size", room / INDEX_ENTRY_BYTES);
            return Err(field("documents", documents, want));
        }
        if (documents == 0) != (tokens == 0) || documents > tokens {
            let want = format!("between 1 and the {tokens} tokens, or 0 of both");
            return Err(field("documents", documents, want));
        }
        let header = Header {
            token_type,
            vocab_size,
            max_token,
            eos,
            tokens,
            documents,
            text_bytes: get64(48),
            tokenizer_hash: bytes32(64),
            body_digest: bytes32(96),
        };
        if get64(56) != header.index_at() {
            return Err(field("index start", get64(56), header.index_at().to_string()));
        }
        if file_bytes != header.file_bytes() {
            let want = header.file_bytes();
            return Err(ShardError::Length { path: named(), got: file_bytes, want });
        }
        if header.to_bytes() != b[..] {
            return Err(field("reserved bytes", 1, "zeros".into()));
        }
        Ok(header)
    }
}

/// An open shard. Reading from it is thread-safe.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl Shard {
    /// Maps the file and checks its header and lengths; with [`Check::Everything`] also calls
    /// [`Shard::verify`].
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
        let shard = Shard { path: path.to_path_buf(), map, header };
        shard.check_last_index_entry()?;
        if check == Check::Everything {
            shard.verify()?;
        }
        Ok(shard)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the whole file: the digest, that no id is above the header's, that the index rises.
    pub fn verify(&self) -> Result<(), ShardError> {
        let h = &self.header;
        if blake3::hash(&self.map[HEADER_BYTES..]) != h.body_digest {
            return Err(ShardError::BodyDigest { path: self.path.clone() });
        }
        for at in 0..h.tokens {
            let id = self.token(at);
            if id > h.max_token {
                let path = self.path.clone();
                return Err(ShardError::Token { path, at, id, max: h.max_token });
            }
        }
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

    /// Copies tokens `start..start + out.len()`, widened to `u32`.
    pub fn tokens(&self, start: u64, out: &mut [u32]) -> Result<(), ShardError> {
        let end = start.saturating_add(out.len() as u64);
        if end > self.header.tokens {
            let (path, tokens) = (self.path.clone(), self.header.tokens);
            return Err(ShardError::Range { path, start, end, tokens });
        }
        let width = self.header.token_type.bytes() as usize;
        let at = HEADER_BYTES + start as usize * width;
        let bytes = &self.map[at..at + out.len() * width];
        match self.header.token_type {
            TokenType::U16 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *o = u16::from_le_bytes([b[0], b[1]]).into();
                }
            }
            TokenType::U32 => {
                for (o, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *o = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
        Ok(())
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

    fn token(&self, at: u64) -> u32 {
        let mut one = [0];
        self.tokens(at, &mut one).expect("callers stay below the token count");
        one[0]
    }

    fn index_entry(&self, d: u64) -> (u64, u64) {
        let at = (self.header.index_at() + d * INDEX_ENTRY_BYTES) as usize;
        let b = &self.map[at..at + INDEX_ENTRY_BYTES as usize];
        let get = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
        (get(0), get(8))
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

/// What every shard of one packing has in common.
#[derive(Debug, Clone, Copy)]
pub struct ShardSpec {
    pub vocab_size: u32,
    /// The id that closes each document; the caller pushes it as part of the document.
    pub eos: Option<u32>,
    pub tokenizer_hash: [u8; 32],
}

/// Writes a shard document by document. Memory: 16 bytes a document and one buffer.
///
/// The file grows under `NAME.tmp`; [`ShardWriter::finish`] syncs and renames it. A writer
/// dropped before that removes what it wrote.
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    aside: PathBuf,
    file: Option<BufWriter<File>>,
    digest: blake3::Hasher,
    header: Header,
    index: Vec<(u64, u64)>,
}

impl ShardWriter {
    pub fn create(path: &Path, spec: ShardSpec) -> Result<ShardWriter, ShardError> {
        let named = path.to_path_buf();
        if spec.vocab_size == 0 {
            let want = "1 or more".into();
            return Err(ShardError::Field { path: named, field: "vocabulary", got: 0, want });
        }
        if let Some(id) = spec.eos.filter(|&id| id >= spec.vocab_size) {
            let want = format!("an id below the vocabulary of {}", spec.vocab_size);
            return Err(ShardError::Field { path: named, field: "end mark", got: id.into(), want });
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".tmp");
        let aside = PathBuf::from(aside);
        let io = |action| {
            let path = aside.clone();
            move |source| ShardError::Io { path, action, source }
        };
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&aside).map_err(io("create"))?);
        file.write_all(&[0; HEADER_BYTES]).map_err(io("write"))?;
        let header = Header {
            token_type: TokenType::for_vocab(spec.vocab_size),
            vocab_size: spec.vocab_size,
            max_token: 0,
            eos: spec.eos,
            tokens: 0,
            documents: 0,
            text_bytes: 0,
            tokenizer_hash: spec.tokenizer_hash,
            body_digest: [0; 32],
        };
        let digest = blake3::Hasher::new();
        Ok(ShardWriter { path: named, aside, file: Some(file), digest, header, index: Vec::new() })
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Documents written so far.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Appends one document with its end mark, made of `text_bytes` bytes of text. A document
    /// without tokens leaves nothing, so its text must be empty too.
    pub fn push(&mut self, tokens: &[u32], text_bytes: u64) -> Result<(), ShardError> {
        if tokens.is_empty() {
            assert_eq!(text_bytes, 0, "shard: a document with text has tokens");
            return Ok(());
        }
        let max = self.header.vocab_size - 1;
        if let Some(i) = tokens.iter().position(|&id| id > max) {
            let at = self.header.tokens + i as u64;
            return Err(ShardError::Token { path: self.path.clone(), at, id: tokens[i], max });
        }
        let mut bytes = [0u8; 4096];
        for part in tokens.chunks(1024) {
            let used = match self.header.token_type {
                TokenType::U16 => {
                    for (b, &id) in bytes.chunks_exact_mut(2).zip(part) {
                        b.copy_from_slice(&(id as u16).to_le_bytes());
                    }
                    part.len() * 2
                }
                TokenType::U32 => {
                    for (b, &id) in bytes.chunks_exact_mut(4).zip(part) {
                        b.copy_from_slice(&id.to_le_bytes());
                    }
                    part.len() * 4
                }
            };
            self.write(&bytes[..used])?;
        }
        let largest = tokens.iter().copied().max().unwrap_or(0);
        self.header.max_token = self.header.max_token.max(largest);
        self.header.tokens += tokens.len() as u64;
        self.header.documents += 1;
        self.header.text_bytes += text_bytes;
        self.index.push((self.header.tokens, self.header.text_bytes));
        Ok(())
    }

    /// Writes index and header, syncs, renames, and returns the header of the finished file.
    pub fn finish(mut self) -> Result<Header, ShardError> {
        let payload = self.header.tokens * self.header.token_type.bytes();
        let pad = (payload.next_multiple_of(8) - payload) as usize;
        self.write(&[0; 8][..pad])?;
        for (end, text_end) in std::mem::take(&mut self.index) {
            self.write(&end.to_le_bytes())?;
            self.write(&text_end.to_le_bytes())?;
        }
        self.header.body_digest = *self.digest.finalize().as_bytes();
        let io = |path: &Path, action| {
            let path = path.to_path_buf();
            move |source| ShardError::Io { path, action, source }
        };
        let file = self.file.as_mut().expect("open until finished");
        file.seek(SeekFrom::Start(0)).map_err(io(&self.aside, "seek in"))?;
        file.write_all(&self.header.to_bytes()).map_err(io(&self.aside, "write"))?;
        file.flush().map_err(io(&self.aside, "write"))?;
        file.get_ref().sync_all().map_err(io(&self.aside, "sync"))?;
        std::fs::rename(&self.aside, &self.path).map_err(io(&self.path, "rename into place"))?;
        // From here nothing is left to remove.
        self.file = None;
        sync_parent(&self.path).map_err(io(&self.path, "sync the folder of"))?;
        Ok(self.header.clone())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        self.digest.update(bytes);
        let file = self.file.as_mut().expect("open until finished");
        file.write_all(bytes).map_err(|source| ShardError::Io { path: self.aside.clone(), action: "write", source })
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody is left to hear of a failure, and a stale .tmp is overwritten next time.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}

/// Makes a rename in the folder of `path` survive a power cut.
pub(crate) fn sync_parent(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
