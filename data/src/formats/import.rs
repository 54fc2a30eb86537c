//! From another program's files to a folder of our shards.
//!
//! The folder is the one that `tokenize` makes: shards, manifest.json, and tokenizer.json where
//! the tokenizer is known. Documents keep the order of the files, and the result is a function of
//! files and options.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Documents, FormatError, Options, open};
use crate::pack::{Holdout, Manifest, PackError, PackOptions, Writers, claim};
use crate::shard::ShardSpec;
use crate::tokenizer::Tokenizer;

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
    let holdout = Holdout::new(options.val_fraction, options.seed)?;
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
    claim(out, options.overwrite)?;
    let hash = tokenizer.map_or([0; 32], Tokenizer::hash);
    let spec = ShardSpec { vocab_size, eos: Some(eos), tokenizer_hash: hash };
    let pack = PackOptions { shard_tokens: options.shard_tokens, ..PackOptions::default() };
    let mut writers = Writers::new(out, spec, &pack)?;
    let (mut ids, mut number, mut unclosed) = (Vec::new(), 0u64, 0u64);
    while documents.next_document(&mut ids)? {
        check(&ids, vocab_size, number, &documents)?;
        let text_bytes = match tokenizer {
            Some(tokenizer) => tokenizer.bytes_of(&ids)?,
            None => 0,
        };
        unclosed += u64::from(ids.last() != Some(&eos));
        writers.push(holdout.split(number), &ids, text_bytes)?;
        number += 1;
        if number.is_multiple_of(PROGRESS_DOCUMENTS) {
            let (done, total) = documents.position();
            progress(done, total);
        }
    }
    let (_, total) = documents.position();
    progress(total, total);
    let manifest = writers.finish(tokenizer, None)?;
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
