//! The first 4096 bytes of a shard: written, and read with distrust. The table at the head of
//! [`super`] says which byte is what.

use std::path::Path;

use super::{ShardError, VERSION, tree};

/// First bytes of every shard.
pub const MAGIC: [u8; 8] = *b"ESKRSHRD";
/// Bytes before the first token: one page, so that tokens are aligned in the map.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a document in the index.
pub(super) const INDEX_ENTRY_BYTES: u64 = 16;

const NO_EOS: u32 = u32::MAX;
const HEADER_DIGEST_AT: usize = HEADER_BYTES - 32;

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

/// What a shard says about itself. The table at the head of this page gives the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Layout of the file, 1 or 2.
    pub version: u32,
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
    /// blake3 of the body: tokens and index.
    pub body_digest: [u8; 32],
}

impl Header {
    pub(super) fn index_at(&self) -> u64 {
        // No overflow: `parse` bounds the token count by the size of a file.
        HEADER_BYTES as u64 + (self.tokens * self.token_type.bytes()).next_multiple_of(8)
    }

    /// Where the table of leaves starts, and the body ends.
    pub(super) fn table_at(&self) -> u64 {
        self.index_at() + self.documents * INDEX_ENTRY_BYTES
    }

    /// Entries of the table of leaves.
    pub(super) fn table_len(&self) -> u64 {
        if self.version == 1 { 0 } else { tree::table_len(self.table_at() - HEADER_BYTES as u64) }
    }

    fn file_bytes(&self) -> u64 {
        self.table_at() + self.table_len() * tree::DIGEST_BYTES
    }

    /// The 4096 bytes at the start of the file.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0u8; HEADER_BYTES];
        b[0..8].copy_from_slice(&MAGIC);
        let mut put32 = |at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_le_bytes());
        put32(8, self.version);
        put32(12, self.token_type.bytes() as u32);
        put32(16, self.vocab_size);
        put32(20, self.max_token);
        put32(24, self.eos.unwrap_or(NO_EOS));
        put32(28, if self.version == 1 { 0 } else { tree::LEAF_BYTES as u32 });
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
        let version = get32(8);
        if !(1..=VERSION).contains(&version) {
            return Err(ShardError::Version { path: named(), got: version });
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
        let leaf_bytes = if version == 1 { 0 } else { tree::LEAF_BYTES as u32 };
        if get32(28) != leaf_bytes {
            return Err(field("leaf bytes", get32(28).into(), leaf_bytes.to_string()));
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
            version,
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
