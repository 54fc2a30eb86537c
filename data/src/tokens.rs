//! What a loader reads: the parts of one split, each a shard on disk or documents in memory.
//!
//! All parts share tokenizer, vocabulary and end mark. Parts stay apart: no window crosses from
//! one into the next.

use std::ops::Range;
use std::path::{Path, PathBuf};

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
        let first = shards.first().ok_or(LoaderError::NoShards)?;
        let want = first.header().clone();
        for shard in &shards[1..] {
            let got = shard.header();
            let field = if got.tokenizer_hash != want.tokenizer_hash {
                "tokenizer hash"
            } else if got.vocab_size != want.vocab_size {
                "vocabulary"
            } else if got.eos != want.eos {
                "end mark"
            } else {
                continue;
            };
            let (path, first) = (shard.path().to_path_buf(), first.path().to_path_buf());
            return Err(LoaderError::Mixed { path, field, first });
        }
        Ok(TokenSet {
            parts: shards.into_iter().map(Part::Shard).collect(),
            vocab_size: want.vocab_size,
            eos: want.eos,
            tokenizer_hash: Some(want.tokenizer_hash),
        })
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

    /// Copies tokens of part `part` and checks every id.
    pub(crate) fn copy(&self, part: usize, start: u64, out: &mut [u32]) -> Result<(), LoaderError> {
        let from = &self.parts[part];
        match from {
            Part::Shard(shard) => shard.tokens(start, out)?,
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
            Part::Memory(m) => m.tokens.len() as u64,
        }
    }

    pub(crate) fn documents(&self) -> u64 {
        match self {
            Part::Shard(s) => s.header().documents,
            Part::Memory(m) => m.ends.len() as u64,
        }
    }

    pub(crate) fn text_bytes(&self) -> u64 {
        match self {
            Part::Shard(s) => s.header().text_bytes,
            Part::Memory(m) => m.ends.last().map_or(0, |&(_, bytes)| bytes),
        }
    }

    /// Tokens and bytes of text of document `d`.
    pub(crate) fn document(&self, d: u64) -> (Range<u64>, Range<u64>) {
        match self {
            Part::Shard(s) => s.document(d),
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
            Part::Memory(m) => m.ends.partition_point(|&(end, _)| end <= at) as u64,
        }
    }

    fn name(&self) -> PathBuf {
        match self {
            Part::Shard(s) => s.path().to_path_buf(),
            Part::Memory(_) => Path::new("memory").to_path_buf(),
        }
    }
}
