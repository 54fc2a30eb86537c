//! From text to a folder of shards.
//!
//! ```text
//! manifest.json      what is in the folder, written last: without it there is no data set
//! tokenizer.json     the tokenizer, byte for byte
//! train-00000.shard  train-00001.shard ...
//! val-00000.shard    ...
//! ```
//!
//! Documents keep their order. Each is encoded apart, on all cores in fixed batches, and closed
//! with the end mark; the result is the same bytes on any number of threads. A document goes to
//! validation when `mix(seed, its number)` falls below the fraction asked for: which ones does
//! not depend on the text, on the tokenizer, or on how many documents follow.

use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::loader::LoaderError;
use crate::order::mix;
use crate::shard::{Check, Header, Shard, ShardError, ShardSpec, ShardWriter, sync_parent};
use crate::text::{TextError, TextOptions, documents};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::tokens::TokenSet;
use crate::{brief, corpus};

/// Name of the manifest in a folder of shards.
pub const MANIFEST: &str = "manifest.json";
/// A manifest names each shard in about 200 bytes.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;
/// Text encoded at a time.
const BATCH_BYTES: usize = 8 << 20;
/// Documents of a shard; its index is in memory while it is written.
const MAX_SHARD_DOCUMENTS: u64 = 1 << 20;

/// Why a folder of shards could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
    #[error("{path}: cannot {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("{path}: holds a data set already; choose another folder, or allow overwriting it")]
    Exists { path: PathBuf },
    #[error("{tokenizer}: has no end mark for documents; name one of its tokens as eos")]
    NoEos { tokenizer: String },
    #[error("val_fraction is {got}, expected 0 or more and less than 1")]
    ValFraction { got: f64 },
    #[error("shard_tokens is 0, expected 1 or more")]
    ShardTokens,
    #[error("the inputs hold no text; give files with at least one document")]
    NoText,
    #[error("{path}: {reason}; make the folder again with `esker tokenize`")]
    Manifest { path: PathBuf, reason: String },
    #[error(
        "{path}: no document fell into {split}; hold out another share (val_fraction), or give more documents: \
         a .txt file is one unless a separator line is named"
    )]
    EmptySplit { path: PathBuf, split: Split },
    #[error("{path}: {what} is not what the manifest says; copy the file again, or tokenize the text again")]
    Changed { path: PathBuf, what: &'static str },
}

/// What a document is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Val,
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Val => "val",
        })
    }
}

/// How text becomes shards.
#[derive(Debug, Clone, PartialEq)]
pub struct PackOptions {
    /// Share of documents held out, 0 to below 1.
    pub val_fraction: f64,
    /// Key of the choice which.
    pub seed: u64,
    /// A shard is closed once it has this many tokens; the last document may exceed it.
    pub shard_tokens: u64,
    /// Replace a data set that is there.
    pub overwrite: bool,
    pub text: TextOptions,
}

impl Default for PackOptions {
    /// One document of a hundred held out, shards of 2^27 tokens.
    fn default() -> PackOptions {
        PackOptions {
            val_fraction: 0.01,
            seed: 0,
            shard_tokens: 1 << 27,
            overwrite: false,
            text: TextOptions::default(),
        }
    }
}

/// What a folder of shards holds: manifest.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Reads `inputs`, encodes, and writes `out_dir`: see the head of this page.
pub fn tokenize(
    inputs: &[PathBuf],
    tokenizer: &Tokenizer,
    out_dir: &Path,
    options: &PackOptions,
) -> Result<Manifest, PackError> {
    let fraction = options.val_fraction;
    if !(0.0..1.0).contains(&fraction) {
        return Err(PackError::ValFraction { got: fraction });
    }
    // Of 2^53 equally likely keys, so that the product is exact.
    let below = (fraction * (1u64 << 53) as f64) as u64;
    let split = |number: usize| {
        let key = mix(mix(options.seed).wrapping_add(number as u64 + 1)) >> 11;
        if key < below { Split::Val } else { Split::Train }
    };
    let all = documents(inputs, &options.text)?.enumerate();
    pack(all.map(|(i, d)| d.map(|d| (split(i), d.text))), tokenizer, out_dir, options)
}

/// Packs the embedded corpus with its own split.
pub fn pack_embedded(tokenizer: &Tokenizer, out_dir: &Path, options: &PackOptions) -> Result<Manifest, PackError> {
    pack(corpus::embedded().map(|a| Ok((a.split, a.text))), tokenizer, out_dir, options)
}

/// Encodes documents that already know their split, and writes `out_dir`. Of the options it
/// uses `shard_tokens` and `overwrite`.
pub fn pack(
    documents: impl Iterator<Item = Result<(Split, String), TextError>>,
    tokenizer: &Tokenizer,
    out_dir: &Path,
    options: &PackOptions,
) -> Result<Manifest, PackError> {
    if options.shard_tokens == 0 {
        return Err(PackError::ShardTokens);
    }
    let eos = tokenizer.eos().ok_or_else(|| PackError::NoEos { tokenizer: tokenizer.name().into() })?;
    let io = |path: &Path, action| {
        let path = path.to_path_buf();
        move |source| PackError::Io { path, action, source }
    };
    std::fs::create_dir_all(out_dir).map_err(io(out_dir, "create"))?;
    let manifest_path = out_dir.join(MANIFEST);
    if manifest_path.exists() {
        if !options.overwrite {
            return Err(PackError::Exists { path: out_dir.to_path_buf() });
        }
        // From here on the folder is no data set until the new manifest stands.
        std::fs::remove_file(&manifest_path).map_err(io(&manifest_path, "remove"))?;
    }
    let spec = ShardSpec { vocab_size: tokenizer.vocab_size(), eos: Some(eos), tokenizer_hash: tokenizer.hash() };
    let new = |split| SplitWriter {
        dir: out_dir,
        split,
        spec,
        max_tokens: options.shard_tokens,
        open: None,
        entry: SplitEntry::default(),
    };
    let (mut train, mut val) = (new(Split::Train), new(Split::Val));

    let mut documents = documents.peekable();
    while documents.peek().is_some() {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(document) = documents.next()
        {
            let (split, text) = document?;
            bytes += text.len() + 64; // a document is never free, or empty ones would not be bounded
            batch.push((split, text));
        }
        let encoded: Vec<_> = batch.par_iter().map(|(_, text)| tokenizer.encode(text)).collect();
        for ((split, text), ids) in batch.iter().zip(encoded) {
            let mut ids = ids?;
            ids.push(eos);
            let writer = if *split == Split::Train { &mut train } else { &mut val };
            writer.push(&ids, text.len() as u64)?;
        }
    }
    let manifest = Manifest {
        format: FORMAT.into(),
        version: FORMAT_VERSION,
        vocab_size: spec.vocab_size,
        eos,
        tokenizer_hash: hex(&spec.tokenizer_hash),
        train: train.finish()?,
        val: val.finish()?,
    };
    if manifest.train.documents + manifest.val.documents == 0 {
        return Err(PackError::NoText);
    }
    write_aside(&out_dir.join("tokenizer.json"), tokenizer.json())?;
    let mut json = serde_json::to_vec_pretty(&manifest).expect("plain values");
    json.push(b'\n');
    write_aside(&manifest_path, &json)?;
    Ok(manifest)
}

const FORMAT: &str = "esker-shards";
const FORMAT_VERSION: u32 = 1;

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

/// Writes the shards of one split, closing each when it is full.
struct SplitWriter<'a> {
    dir: &'a Path,
    split: Split,
    spec: ShardSpec,
    max_tokens: u64,
    open: Option<(String, ShardWriter)>,
    entry: SplitEntry,
}

impl SplitWriter<'_> {
    fn push(&mut self, ids: &[u32], text_bytes: u64) -> Result<(), ShardError> {
        let (_, writer) = match &mut self.open {
            Some(open) => open,
            None => {
                let file = format!("{}-{:05}.shard", self.split, self.entry.shards.len());
                let writer = ShardWriter::create(&self.dir.join(&file), self.spec)?;
                self.open.insert((file, writer))
            }
        };
        writer.push(ids, text_bytes)?;
        if writer.tokens() >= self.max_tokens || writer.documents() >= MAX_SHARD_DOCUMENTS {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), ShardError> {
        let Some((file, writer)) = self.open.take() else { return Ok(()) };
        let header = writer.finish()?;
        let digest = header.digest();
        let Header { documents, tokens, text_bytes, .. } = header;
        self.entry.documents += documents;
        self.entry.tokens += tokens;
        self.entry.text_bytes += text_bytes;
        self.entry.shards.push(ShardEntry { file, documents, tokens, text_bytes, header_blake3: hex(&digest) });
        Ok(())
    }

    fn finish(mut self) -> Result<SplitEntry, ShardError> {
        self.close()?;
        Ok(self.entry)
    }
}

/// A file that is either the old one or the whole new one.
fn write_aside(path: &Path, bytes: &[u8]) -> Result<(), PackError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = PathBuf::from(aside);
    let write = || {
        std::fs::write(&aside, bytes)?;
        std::fs::File::open(&aside)?.sync_all()?;
        std::fs::rename(&aside, path)?;
        sync_parent(path)
    };
    write().map_err(|source| PackError::Io { path: path.to_path_buf(), action: "write", source })
}

/// Lower-case hex of a digest.
pub fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    blake3::Hash::from_hex(text).ok().map(|h| *h.as_bytes())
}
