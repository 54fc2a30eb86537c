//! manifest.json: what a folder of shards holds, and what it was made from.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{PackError, Split, hex, unhex};
use crate::brief;
use crate::shard::{Check, Shard};
use crate::tokens::TokenSet;

/// Name of the manifest in a folder of shards.
pub const MANIFEST: &str = "manifest.json";
/// A manifest names each shard and each input in about 200 bytes.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// What a folder of shards holds: manifest.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `"esker-shards"`.
    pub format: String,
    /// 1.
    pub version: u32,
    pub vocab_size: u32,
    /// The id that closes each document.
    pub eos: u32,
    /// blake3 of tokenizer.json, in hex.
    pub tokenizer_hash: String,
    pub train: SplitEntry,
    pub val: SplitEntry,
    /// What the shards were made from; nothing where the documents came from memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Prepared>,
}

/// One split of a [`Manifest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitEntry {
    pub documents: u64,
    /// End marks counted.
    pub tokens: u64,
    /// UTF-8 bytes of the text.
    pub text_bytes: u64,
    pub shards: Vec<ShardEntry>,
}

/// One shard of a [`SplitEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// A name in the same folder.
    pub file: String,
    pub documents: u64,
    pub tokens: u64,
    pub text_bytes: u64,
    /// blake3 of the shard's header in hex, which holds the digest of all the rest.
    pub header_blake3: String,
}

/// From what, and how, the shards of a [`Manifest`] were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepared {
    /// Version of the program.
    pub esker: String,
    pub options: Chosen,
    /// Documents read; those dropped count.
    pub documents: u64,
    pub dropped: Dropped,
    /// The first few dropped documents.
    pub dropped_first: Vec<DroppedDocument>,
    /// The files, in the order in which they were read.
    pub inputs: Vec<InputEntry>,
}

/// The options in effect; [`PackOptions`](super::PackOptions) tells what they mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    pub val_fraction: f64,
    pub seed: u64,
    pub shard_tokens: u64,
    pub text_key: String,
    pub id_key: Option<String>,
    pub separator: Option<String>,
    pub max_document_bytes: u64,
    pub bad: Bad,
    pub keep_empty: bool,
}

/// What to do with a document that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bad {
    /// Stop, and name it.
    Error,
    /// Count it, and go on.
    Drop,
}

/// How many documents were dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Text of no bytes.
    pub empty: u64,
    /// No text under the key, or in the column.
    pub no_text: u64,
    /// More than `max_document_bytes`.
    pub too_long: u64,
    pub bad_utf8: u64,
    /// A line that is no JSON object with a string as its text.
    pub bad_json: u64,
}

impl Dropped {
    /// Dropped documents, whatever the reason.
    pub fn total(&self) -> u64 {
        let Dropped { empty, no_text, too_long, bad_utf8, bad_json } = self;
        empty + no_text + too_long + bad_utf8 + bad_json
    }

    pub(crate) fn slot(&mut self, why: Why) -> &mut u64 {
        match why {
            Why::Empty => &mut self.empty,
            Why::NoText => &mut self.no_text,
            Why::TooLong => &mut self.too_long,
            Why::BadUtf8 => &mut self.bad_utf8,
            Why::BadJson => &mut self.bad_json,
        }
    }

    pub(crate) fn add(&mut self, other: &Dropped) {
        self.empty += other.empty;
        self.no_text += other.no_text;
        self.too_long += other.too_long;
        self.bad_utf8 += other.bad_utf8;
        self.bad_json += other.bad_json;
    }
}

/// Why a document was dropped: a field of [`Dropped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Empty,
    NoText,
    TooLong,
    BadUtf8,
    BadJson,
}

/// A document that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DroppedDocument {
    /// As in [`InputEntry::path`].
    pub path: String,
    /// Its line, or its row in parquet, from 1.
    pub line: u64,
    /// What stood under the id key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub why: Why,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputEntry {
    /// As it was given, or as the folder that was given leads to it.
    pub path: String,
    /// Size on disk.
    pub bytes: u64,
    /// blake3 of what is on disk, in hex.
    pub blake3: String,
    /// Documents in it; those dropped count.
    pub documents: u64,
}

pub(super) const FORMAT: &str = "esker-shards";
pub(super) const FORMAT_VERSION: u32 = 1;

impl Manifest {
    /// Reads a manifest.json, or that of a folder.
    pub fn load(path: &Path) -> Result<Manifest, PackError> {
        let path = if path.is_dir() { path.join(MANIFEST) } else { path.to_path_buf() };
        let io = |source| PackError::Io { path: path.clone(), action: "read", source };
        let file = std::fs::File::open(&path).map_err(io)?;
        let mut json = Vec::new();
        file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut json).map_err(io)?;
        Manifest::parse(&json, &path)
    }

    /// Reads the bytes of a manifest.json; `path` is named in errors.
    pub fn parse(json: &[u8], path: &Path) -> Result<Manifest, PackError> {
        let bad = |reason: String| PackError::Manifest { path: path.to_path_buf(), reason: brief(reason) };
        if json.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(bad(format!("more than the {MAX_MANIFEST_BYTES} bytes a manifest may have")));
        }
        let m: Manifest = serde_json::from_slice(json).map_err(|e| bad(e.to_string()))?;
        if m.format != FORMAT || m.version != FORMAT_VERSION {
            return Err(bad(format!(
                "format {:?}, version {}; this build reads {FORMAT:?}, version {FORMAT_VERSION}",
                m.format, m.version
            )));
        }
        if m.vocab_size == 0 || m.eos >= m.vocab_size {
            return Err(bad(format!("eos {} is not below vocab_size {}", m.eos, m.vocab_size)));
        }
        if unhex(&m.tokenizer_hash).is_none() {
            return Err(bad("`tokenizer_hash` is not 64 hex digits".into()));
        }
        for (name, split) in [("train", &m.train), ("val", &m.val)] {
            let sum = |f: fn(&ShardEntry) -> u64| split.shards.iter().try_fold(0u64, |a, s| a.checked_add(f(s)));
            let sums = [sum(|s| s.documents), sum(|s| s.tokens), sum(|s| s.text_bytes)];
            if sums != [Some(split.documents), Some(split.tokens), Some(split.text_bytes)] {
                return Err(bad(format!("the counts of `{name}` are not the sums over its shards")));
            }
            for shard in &split.shards {
                // A name, never a way out of the folder.
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if !shard.file.chars().all(plain) || shard.file.starts_with('.') || shard.file.is_empty() {
                    return Err(bad(format!("{:?} is not a plain file name", shard.file)));
                }
                if unhex(&shard.header_blake3).is_none() {
                    return Err(bad(format!("`header_blake3` of {:?} is not 64 hex digits", shard.file)));
                }
            }
        }
        Ok(m)
    }

    pub fn split(&self, split: Split) -> &SplitEntry {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    /// Opens the shards of a split in folder `dir` and holds each against this manifest.
    pub fn open(&self, dir: &Path, split: Split, check: Check) -> Result<TokenSet, PackError> {
        let mut shards = Vec::new();
        for entry in &self.split(split).shards {
            let path = dir.join(&entry.file);
            let shard = Shard::open(&path, check)?;
            let h = shard.header();
            let what = if hex(&h.tokenizer_hash) != self.tokenizer_hash {
                "the tokenizer hash"
            } else if (h.vocab_size, h.eos) != (self.vocab_size, Some(self.eos)) {
                "the vocabulary or the end mark"
            } else if (h.documents, h.tokens, h.text_bytes) != (entry.documents, entry.tokens, entry.text_bytes) {
                "a count"
            } else if hex(&h.digest()) != entry.header_blake3 {
                "the digest"
            } else {
                shards.push(shard);
                continue;
            };
            return Err(PackError::Changed { path, what });
        }
        if shards.is_empty() {
            return Err(PackError::EmptySplit { path: dir.to_path_buf(), split });
        }
        Ok(TokenSet::from_shards(shards)?)
    }
}
