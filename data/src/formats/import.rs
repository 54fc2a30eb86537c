//! From another program's files to a folder of our shards.
//!
//! The folder is the one that `tokenize` makes: shards, manifest.json, and tokenizer.json where
//! the tokenizer is known. Documents keep the order of the files, and the result is a function of
//! files and options.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::{Documents, FormatError, Options, open};
use crate::order::mix;
use crate::pack::{MANIFEST, Manifest, PackError, PackOptions, ShardEntry, Split, SplitEntry, hex};
use crate::shard::{Header, ShardSpec, ShardWriter, sync_parent};
use crate::tokenizer::Tokenizer;

/// Documents of a shard; its index is in memory while it is written.
const MAX_SHARD_DOCUMENTS: u64 = 1 << 20;
/// Documents between two calls of `progress`.
const PROGRESS_DOCUMENTS: u64 = 256;

/// How foreign files become shards.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportOptions {
    pub read: Options,
    /// Ids are below it; needed where no tokenizer is given.
    pub vocab_size: Option<u32>,
    /// Share of documents held out, 0 to below 1.
    pub val_fraction: f64,
    /// Key of the choice which.
    pub seed: u64,
    /// A shard is closed once it has this many tokens; the last document may exceed it.
    pub shard_tokens: u64,
    /// Replace a data set that is there.
    pub overwrite: bool,
}

impl Default for ImportOptions {
    /// Nothing held out: who has token files has those for validation too.
    fn default() -> ImportOptions {
        let PackOptions { seed, shard_tokens, .. } = PackOptions::default();
        let read = Options::default();
        ImportOptions { read, vocab_size: None, val_fraction: 0.0, seed, shard_tokens, overwrite: false }
    }
}

/// What an import made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportReport {
    pub format: &'static str,
    pub documents: u64,
    pub tokens: u64,
    /// Documents whose last token is not the end mark: cut by a window, or written without one.
    pub unclosed_documents: u64,
    pub manifest: Manifest,
}

/// Reads `inputs`, files and folders of one format, and writes folder `out`. With the tokenizer
/// that made the ids, vocabulary, end mark and bytes of text come from it, and tokenizer.json is
/// kept; without, bytes of text are 0. `progress` hears of bytes read and of all.
pub fn import(
    inputs: &[PathBuf],
    tokenizer: Option<&Tokenizer>,
    out: &Path,
    options: &ImportOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<ImportReport, FormatError> {
    let missing = |what, why: &str| FormatError::Missing { path: out.into(), what, why: why.into() };
    if !(0.0..1.0).contains(&options.val_fraction) {
        return Err(PackError::ValFraction { got: options.val_fraction }.into());
    }
    if options.shard_tokens == 0 {
        return Err(PackError::Zero { key: "shard_tokens" }.into());
    }
    let mut documents = open(inputs, &options.read)?;
    // The mark of llm.c may be another than the tokenizer's: Llama 3 files have that of the beginning.
    let eos = documents.eos().or_else(|| tokenizer.and_then(Tokenizer::eos));
    let eos = eos.ok_or_else(|| missing("--eos ID", "the id that ends a document, or a tokenizer that has one"))?;
    documents.set_eos(eos);
    let vocab_size = options.vocab_size.or(tokenizer.map(Tokenizer::vocab_size));
    let vocab_size = vocab_size
        .ok_or_else(|| missing("--tokenizer FILE or --vocab-size N", "ids must be below the size of the vocabulary"))?;
    if eos >= vocab_size {
        return Err(FormatError::field(
            out,
            "the end mark",
            eos,
            format!("an id below the vocabulary of {vocab_size}"),
        ));
    }
    clear(out, options.overwrite)?;
    let hash = tokenizer.map_or([0; 32], Tokenizer::hash);
    let spec = ShardSpec { vocab_size, eos: Some(eos), tokenizer_hash: hash };
    let mut splits = Splits::new(out, spec, options);
    let (mut ids, mut number, mut unclosed) = (Vec::new(), 0u64, 0u64);
    while documents.next_document(&mut ids)? {
        check(&ids, vocab_size, number, &documents)?;
        let text_bytes = match tokenizer {
            Some(tokenizer) => tokenizer.bytes_of(&ids)?,
            None => 0,
        };
        unclosed += u64::from(ids.last() != Some(&eos));
        splits.push(number, &ids, text_bytes)?;
        number += 1;
        if number.is_multiple_of(PROGRESS_DOCUMENTS) {
            let (done, total) = documents.position();
            progress(done, total);
        }
    }
    let (_, total) = documents.position();
    progress(total, total);
    if number == 0 {
        return Err(PackError::NoText.into());
    }
    let [train, val] = splits.finish()?;
    if let Some(tokenizer) = tokenizer {
        write_aside(&out.join("tokenizer.json"), tokenizer.json())?;
    }
    let json = json!({
        "format": "esker-shards",
        "version": 1,
        "vocab_size": vocab_size,
        "eos": eos,
        "tokenizer_hash": hex(&hash),
        "train": train,
        "val": val,
    });
    // Through the reader: what is written is what it takes.
    let path = out.join(MANIFEST);
    let manifest = Manifest::parse(&serde_json::to_vec(&json).expect("plain values"), &path)?;
    let mut bytes = serde_json::to_vec_pretty(&manifest).expect("plain values");
    bytes.push(b'\n');
    write_aside(&path, &bytes)?;
    let tokens = manifest.train.tokens + manifest.val.tokens;
    let format = documents.format().name();
    Ok(ImportReport { format, documents: number, tokens, unclosed_documents: unclosed, manifest })
}

fn check(ids: &[u32], vocab_size: u32, number: u64, documents: &Documents) -> Result<(), FormatError> {
    let Some(at) = ids.iter().position(|&id| id >= vocab_size) else { return Ok(()) };
    let want = format!(
        "an id below the vocabulary of {vocab_size}; give the tokenizer that made the ids, or a larger --vocab-size"
    );
    Err(FormatError::field(documents.path(), format!("token {at} of document {number}"), ids[at], want))
}

/// Makes the folder, or takes the manifest away: from then on the folder is no data set until
/// the new manifest stands.
fn clear(out: &Path, overwrite: bool) -> Result<(), FormatError> {
    std::fs::create_dir_all(out).map_err(FormatError::io(out, "create"))?;
    let manifest = out.join(MANIFEST);
    if !manifest.exists() {
        return Ok(());
    }
    if !overwrite {
        return Err(PackError::Exists { path: out.into() }.into());
    }
    std::fs::remove_file(&manifest).map_err(FormatError::io(&manifest, "remove"))
}

/// The shards of both splits, each closed when it is full.
struct Splits<'a> {
    out: &'a Path,
    spec: ShardSpec,
    shard_tokens: u64,
    seed: u64,
    /// Keys below it go to validation; of 2^53.
    below: u64,
    open: [Option<(String, ShardWriter)>; 2],
    entries: [SplitEntry; 2],
}

impl<'a> Splits<'a> {
    fn new(out: &'a Path, spec: ShardSpec, options: &ImportOptions) -> Splits<'a> {
        let below = (options.val_fraction * (1u64 << 53) as f64) as u64;
        let (shard_tokens, seed) = (options.shard_tokens, options.seed);
        Splits { out, spec, shard_tokens, seed, below, open: [None, None], entries: Default::default() }
    }

    /// The same choice as that of `tokenize`: of the seed and the document's number.
    fn push(&mut self, number: u64, ids: &[u32], text_bytes: u64) -> Result<(), FormatError> {
        let key = mix(mix(self.seed).wrapping_add(number + 1)) >> 11;
        let split = usize::from(key < self.below);
        let name = [Split::Train, Split::Val][split];
        let (_, writer) = match &mut self.open[split] {
            Some(open) => open,
            None => {
                let file = format!("{name}-{:05}.shard", self.entries[split].shards.len());
                let writer = ShardWriter::create(&self.out.join(&file), self.spec)?;
                self.open[split].insert((file, writer))
            }
        };
        writer.push(ids, text_bytes)?;
        if writer.tokens() >= self.shard_tokens || writer.documents() >= MAX_SHARD_DOCUMENTS {
            self.close(split)?;
        }
        Ok(())
    }

    fn close(&mut self, split: usize) -> Result<(), FormatError> {
        let Some((file, writer)) = self.open[split].take() else { return Ok(()) };
        let header = writer.finish()?;
        let header_blake3 = hex(&header.digest());
        let Header { documents, tokens, text_bytes, .. } = header;
        let entry = &mut self.entries[split];
        entry.documents += documents;
        entry.tokens += tokens;
        entry.text_bytes += text_bytes;
        entry.shards.push(ShardEntry { file, documents, tokens, text_bytes, header_blake3 });
        Ok(())
    }

    fn finish(mut self) -> Result<[SplitEntry; 2], FormatError> {
        self.close(0)?;
        self.close(1)?;
        Ok(self.entries)
    }
}

/// A file that is either the old one or the whole new one.
fn write_aside(path: &Path, bytes: &[u8]) -> Result<(), FormatError> {
    let aside = super::beside(path, ".tmp");
    let write = || {
        std::fs::write(&aside, bytes)?;
        std::fs::File::open(&aside)?.sync_all()?;
        std::fs::rename(&aside, path)?;
        sync_parent(path)
    };
    write().map_err(FormatError::io(path, "write"))
}
