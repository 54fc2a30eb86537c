//! A folder of shards.
//!
//! ```text
//! manifest.json      what is in the folder, written last: without it there is no data set
//! tokenizer.json     the tokenizer, byte for byte
//! train-00000.shard  train-00001.shard ...
//! val-00000.shard    ...
//! ```
//!
//! Documents keep their order. Each is encoded apart and closed with the end mark; the result is
//! the same bytes on any number of threads. A document goes to validation when `mix(seed, its
//! number)` falls below the fraction asked for; documents that were dropped have no number.
//! Which ones go does not depend on the text, on the tokenizer, or on how many documents follow.
//!
//! [`pack`] takes documents from memory; [`prepare`](crate::prepare::prepare) takes files.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::corpus;
use crate::loader::LoaderError;
use crate::order::mix;
use crate::shard::{Header, ShardError, ShardSpec, ShardWriter, sync_parent};
use crate::text::{TextError, TextOptions};
use crate::tokenizer::{Tokenizer, TokenizerError};

mod manifest;

pub use manifest::{
    Bad, Chosen, Dropped, DroppedDocument, InputEntry, MANIFEST, Manifest, Prepared, ShardEntry, SplitEntry, Why,
};

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
    #[error("{path}: another process is writing this data set; wait for it, or choose another folder")]
    Busy { path: PathBuf },
    #[error("{tokenizer}: has no end mark for documents; name one of its tokens as eos")]
    NoEos { tokenizer: String },
    #[error("val_fraction is {got}, expected 0 or more and less than 1")]
    ValFraction { got: f64 },
    #[error("{key} is 0, expected 1 or more")]
    Zero { key: &'static str },
    #[error("cannot start {threads} threads: {reason}; ask for fewer")]
    Threads { threads: usize, reason: String },
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
    /// What to do with a document that cannot be used.
    pub bad: Bad,
    /// Make of a document without text an end mark alone; else it is dropped.
    pub keep_empty: bool,
    /// Work is kept, should the process end, after about this many bytes of unpacked input.
    pub piece_bytes: u64,
    /// Threads that encode; 0 takes every core.
    pub threads: usize,
}

impl Default for PackOptions {
    /// One document of a hundred held out, shards of 2^29 tokens (1 or 2 GiB), a faulty document is an error.
    fn default() -> PackOptions {
        PackOptions {
            val_fraction: 0.01,
            seed: 0,
            shard_tokens: 1 << 29,
            overwrite: false,
            text: TextOptions::default(),
            bad: Bad::Error,
            keep_empty: false,
            piece_bytes: 64 << 20,
            threads: 0,
        }
    }
}

/// Which documents are held out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holdout {
    seed: u64,
    /// Of 2^53 equally likely keys, so that the product with a fraction is exact.
    below: u64,
}

impl Holdout {
    pub(crate) fn new(fraction: f64, seed: u64) -> Result<Holdout, PackError> {
        if !(0.0..1.0).contains(&fraction) {
            return Err(PackError::ValFraction { got: fraction });
        }
        Ok(Holdout { seed, below: (fraction * (1u64 << 53) as f64) as u64 })
    }

    /// The split of document `number`, counted from 0 over those that were not dropped.
    pub(crate) fn split(&self, number: u64) -> Split {
        let key = mix(mix(self.seed).wrapping_add(number + 1)) >> 11;
        if key < self.below { Split::Val } else { Split::Train }
    }
}

/// Packs the embedded corpus with its own split.
pub fn pack_embedded(tokenizer: &Tokenizer, out_dir: &Path, options: &PackOptions) -> Result<Manifest, PackError> {
    pack(corpus::embedded().map(|a| Ok((a.split, a.text))), tokenizer, out_dir, options)
}

/// Encodes documents that already know their split, and writes `out_dir`. Of the options it
/// uses `shard_tokens` and `overwrite`; an empty document becomes an end mark.
pub fn pack(
    documents: impl Iterator<Item = Result<(Split, String), TextError>>,
    tokenizer: &Tokenizer,
    out_dir: &Path,
    options: &PackOptions,
) -> Result<Manifest, PackError> {
    let spec = spec_of(tokenizer)?;
    claim(out_dir, options.overwrite)?;
    let mut writers = Writers::new(out_dir, spec, options)?;
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
        let encode = |(_, text): &(Split, String)| {
            let mut ids = Vec::new();
            tokenizer.encode_document(text, &mut ids).map(|()| ids)
        };
        let encoded: Vec<_> = batch.par_iter().map(encode).collect();
        for ((split, text), ids) in batch.iter().zip(encoded) {
            let mut ids = ids?;
            ids.extend(spec.eos);
            writers.push(*split, &ids, text.len() as u64)?;
        }
    }
    writers.finish(Some(tokenizer), None)
}

/// What all shards of a tokenizer share.
pub(crate) fn spec_of(tokenizer: &Tokenizer) -> Result<ShardSpec, PackError> {
    let eos = tokenizer.eos().ok_or_else(|| PackError::NoEos { tokenizer: tokenizer.name().into() })?;
    Ok(ShardSpec { vocab_size: tokenizer.vocab_size(), eos: Some(eos), tokenizer_hash: tokenizer.hash() })
}

/// Makes the folder. From here on it is no data set until a manifest stands in it.
pub(crate) fn claim(dir: &Path, overwrite: bool) -> Result<(), PackError> {
    let io = |path: &Path, action| {
        let path = path.to_path_buf();
        move |source| PackError::Io { path, action, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir, "create"))?;
    let manifest = dir.join(MANIFEST);
    if manifest.exists() {
        if !overwrite {
            return Err(PackError::Exists { path: dir.to_path_buf() });
        }
        std::fs::remove_file(&manifest).map_err(io(&manifest, "remove"))?;
    }
    Ok(())
}

/// The shards of both splits, being written.
pub(crate) struct Writers<'a> {
    dir: &'a Path,
    spec: ShardSpec,
    train: SplitWriter<'a>,
    val: SplitWriter<'a>,
}

impl<'a> Writers<'a> {
    pub(crate) fn new(dir: &'a Path, spec: ShardSpec, options: &PackOptions) -> Result<Writers<'a>, PackError> {
        if options.shard_tokens == 0 {
            return Err(PackError::Zero { key: "shard_tokens" });
        }
        let max_tokens = options.shard_tokens;
        let new = |split| SplitWriter { dir, split, spec, max_tokens, open: None, entry: SplitEntry::default() };
        Ok(Writers { dir, spec, train: new(Split::Train), val: new(Split::Val) })
    }

    /// Appends a document, its end mark with it.
    pub(crate) fn push(&mut self, split: Split, ids: &[u32], text_bytes: u64) -> Result<(), ShardError> {
        let writer = if split == Split::Train { &mut self.train } else { &mut self.val };
        writer.push(ids, text_bytes)
    }

    /// Closes the shards and writes the tokenizer, where it is known, and the manifest.
    pub(crate) fn finish(
        self,
        tokenizer: Option<&Tokenizer>,
        prepared: Option<Prepared>,
    ) -> Result<Manifest, PackError> {
        let manifest = Manifest {
            format: manifest::FORMAT.into(),
            version: manifest::FORMAT_VERSION,
            vocab_size: self.spec.vocab_size,
            eos: self.spec.eos.expect("shards of text have an end mark"),
            tokenizer_hash: hex(&self.spec.tokenizer_hash),
            train: self.train.finish()?,
            val: self.val.finish()?,
            prepared,
        };
        if manifest.train.documents + manifest.val.documents == 0 {
            return Err(PackError::NoText);
        }
        if let Some(tokenizer) = tokenizer {
            write_aside(&self.dir.join("tokenizer.json"), tokenizer.json())?;
        }
        let mut json = serde_json::to_vec_pretty(&manifest).expect("plain values");
        json.push(b'\n');
        write_aside(&self.dir.join(MANIFEST), &json)?;
        Ok(manifest)
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
pub(crate) fn write_aside(path: &Path, bytes: &[u8]) -> Result<(), PackError> {
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
