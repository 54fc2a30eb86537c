//! What a loader reads: the parts of one split, each a shard on disk, a file of
//! another program read in place, or documents in memory.
//!
//! All parts share tokenizer, vocabulary and end mark. Parts stay apart: no window crosses from
//! one into the next.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::formats::InPlace;
use crate::loader::LoaderError;
use crate::shard::{Check, Shard};

/// Tokens of one split. Reading is thread-safe.
#[derive(Debug)]
pub struct TokenSet {
    parts: Vec<Part>,
    vocab_size: u32,
    eos: Option<u32>,
    tokenizer_hash: Option<[u8; 32]>,
}

/// A run of tokens with its documents.
#[derive(Debug)]
pub(crate) enum Part {
    Shard(Shard),
    /// A file of another program, read in place.
    Foreign(InPlace),
    Memory(Memory),
}

#[derive(Debug)]
pub(crate) struct Memory {
    tokens: Vec<u32>,
    /// Per document: tokens and bytes of text up to and with it.
    ends: Vec<(u64, u64)>,
}

impl TokenSet {
    /// Opens shards, in the order given.
    pub fn open(paths: &[PathBuf], check: Check) -> Result<TokenSet, LoaderError> {
        let shards: Result<Vec<Shard>, _> = paths.iter().map(|p| Shard::open(p, check)).collect();
        TokenSet::from_shards(shards?)
    }

    /// Takes open shards, which must agree on tokenizer, vocabulary and end mark.
    pub fn from_shards(shards: Vec<Shard>) -> Result<TokenSet, LoaderError> {
        let alone = |shard: Shard| {
            let h = shard.header();
            let (vocab_size, eos, tokenizer_hash) = (h.vocab_size, h.eos, Some(h.tokenizer_hash));
            TokenSet { parts: vec![Part::Shard(shard)], vocab_size, eos, tokenizer_hash }
        };
        let mut sets = shards.into_iter().map(alone);
        let mut all = sets.next().ok_or(LoaderError::NoShards)?;
        for set in sets {
            set.agrees_with(&all)?;
            all.parts.extend(set.parts);
        }
        Ok(all)
    }

    /// Whether ids of this set and of `first` mean the same; documents in memory, which know no
    /// tokenizer, are taken at their word.
    pub(crate) fn agrees_with(&self, first: &TokenSet) -> Result<(), LoaderError> {
        let hashes = self.tokenizer_hash.zip(first.tokenizer_hash);
        let field = if hashes.is_some_and(|(ours, theirs)| ours != theirs) {
            "tokenizer hash"
        } else if self.vocab_size != first.vocab_size {
            "vocabulary"
        } else if self.eos != first.eos {
            "end mark"
        } else {
            return Ok(());
        };
        let path = |set: &TokenSet| set.parts.first().map_or_else(PathBuf::new, Part::name);
        Err(LoaderError::Mixed { path: path(self), field, first: path(first) })
    }

    /// Files of other programs, in the order given, each a part. Nobody knows the bytes of text
    /// behind their tokens, nor the tokenizer: the caller says what vocabulary and end mark are.
    pub fn from_foreign(files: Vec<InPlace>, vocab_size: u32, eos: Option<u32>) -> Result<TokenSet, LoaderError> {
        if files.is_empty() {
            return Err(LoaderError::NoShards);
        }
        let parts = files.into_iter().map(Part::Foreign).collect();
        Ok(TokenSet { parts, vocab_size, eos, tokenizer_hash: None })
    }

    /// One part in memory, from `(tokens, bytes of text)` of each document. The end mark, if
    /// there is one, is put after each document here.
    pub fn from_documents(
        documents: impl IntoIterator<Item = (Vec<u32>, u64)>,
        vocab_size: u32,
        eos: Option<u32>,
    ) -> Result<TokenSet, LoaderError> {
        let (mut tokens, mut ends, mut text_bytes) = (Vec::new(), Vec::new(), 0);
        for (document, bytes) in documents {
            tokens.extend(document);
            tokens.extend(eos);
            text_bytes += bytes;
            if ends.last().map_or(0, |&(end, _)| end) < tokens.len() as u64 {
                ends.push((tokens.len() as u64, text_bytes));
            }
        }
        if let Some(at) = tokens.iter().position(|&id| id >= vocab_size) {
            let (part, id) = ("memory".into(), tokens[at]);
            return Err(LoaderError::Token { part, at: at as u64, id, vocab_size });
        }
        let parts = vec![Part::Memory(Memory { tokens, ends })];
        Ok(TokenSet { parts, vocab_size, eos, tokenizer_hash: None })
    }

    pub fn tokens(&self) -> u64 {
        self.parts.iter().map(Part::tokens).sum()
    }

    pub fn documents(&self) -> u64 {
        self.parts.iter().map(Part::documents).sum()
    }

    /// UTF-8 bytes of text behind the tokens.
    pub fn text_bytes(&self) -> u64 {
        self.parts.iter().map(Part::text_bytes).sum()
    }

    /// Every id handed out is below it.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Of the shards; documents in memory have none.
    pub fn tokenizer_hash(&self) -> Option<[u8; 32]> {
        self.tokenizer_hash
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Names of the parts: files, or `memory`.
    pub fn names(&self) -> impl Iterator<Item = PathBuf> {
        self.parts.iter().map(Part::name)
    }

    /// Tokens of each part.
    pub fn part_tokens(&self) -> impl Iterator<Item = u64> {
        self.parts.iter().map(Part::tokens)
    }

    /// Documents of part `part`.
    pub fn documents_of(&self, part: usize) -> u64 {
        self.parts[part].documents()
    }

    /// Tokens of document `document` of part `part`, its end mark among them.
    pub fn document(&self, part: usize, document: u64) -> Range<u64> {
        self.parts[part].document(document).0
    }

    /// The document that token `at` of part `part` belongs to.
    pub fn document_of(&self, part: usize, at: u64) -> u64 {
        self.parts[part].document_of(at)
    }

    /// Asks the system to bring tokens of a part into memory.
    pub(crate) fn advise(&self, part: usize, tokens: Range<u64>) {
        match &self.parts[part] {
            Part::Shard(shard) => shard.advise(tokens),
            Part::Foreign(file) => file.advise(tokens),
            Part::Memory(_) => {}
        }
    }

    /// Copies the tokens of part `part` from `start` on and checks every id. They must lie in the
    /// part.
    pub fn copy(&self, part: usize, start: u64, out: &mut [u32]) -> Result<(), LoaderError> {
        let from = &self.parts[part];
        match from {
            Part::Shard(shard) => shard.tokens(start, out)?,
            Part::Foreign(file) => file.slice(start, out).map_err(Box::new)?,
            Part::Memory(m) => {
                let start = start as usize;
                out.copy_from_slice(&m.tokens[start..start + out.len()]);
            }
        }
        // An unverified shard may lie; a row of an embedding that is not there may not be asked
        // for. One pass over tokens just copied costs nothing beside a training step.
        match out.iter().position(|&id| id >= self.vocab_size) {
            None => Ok(()),
            Some(i) => Err(LoaderError::Token {
                part: from.name(),
                at: start + i as u64,
                id: out[i],
                vocab_size: self.vocab_size,
            }),
        }
    }
}

impl Part {
    pub(crate) fn tokens(&self) -> u64 {
        match self {
            Part::Shard(s) => s.header().tokens,
            Part::Foreign(f) => f.tokens(),
            Part::Memory(m) => m.tokens.len() as u64,
        }
    }

    pub(crate) fn documents(&self) -> u64 {
        match self {
            Part::Shard(s) => s.header().documents,
            Part::Foreign(f) => f.documents(),
            Part::Memory(m) => m.ends.len() as u64,
        }
    }

    pub(crate) fn text_bytes(&self) -> u64 {
        match self {
            Part::Shard(s) => s.header().text_bytes,
            Part::Foreign(_) => 0,
            Part::Memory(m) => m.ends.last().map_or(0, |&(_, bytes)| bytes),
        }
    }

    /// Tokens and bytes of text of document `d`.
    pub(crate) fn document(&self, d: u64) -> (Range<u64>, Range<u64>) {
        match self {
            Part::Shard(s) => s.document(d),
            Part::Foreign(f) => (f.document(d), 0..0),
            Part::Memory(m) => {
                let d = d as usize;
                let (start, text_start) = if d == 0 { (0, 0) } else { m.ends[d - 1] };
                (start..m.ends[d].0, text_start..m.ends[d].1)
            }
        }
    }

    /// The document of token `at`; the count of documents where there is none.
    pub(crate) fn document_of(&self, at: u64) -> u64 {
        match self {
            Part::Shard(s) => s.document_of(at),
            Part::Foreign(f) => f.document_of(at),
            Part::Memory(m) => m.ends.partition_point(|&(end, _)| end <= at) as u64,
        }
    }

    pub(crate) fn name(&self) -> PathBuf {
        match self {
            Part::Shard(s) => s.path().to_path_buf(),
            Part::Foreign(f) => f.path().to_path_buf(),
            Part::Memory(_) => Path::new("memory").to_path_buf(),
        }
    }
}
