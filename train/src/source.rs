//! The tokens of a run: the embedded corpus, packed once into the run's folder, or shards on disk.
//!
//! A resumed run reads the very tokens it began with: the packed corpus lies in `data/` of the run's folder, and
//! [`Opened::identity`], a digest over the shards' digests, stands in every checkpoint. A start that was cut short while
//! packing leaves no manifest, and packs again; the result is a function of the configuration.

use crate::config::{Run, Source, TokenizerChoice};
use esker_data::corpus;
use esker_data::loader::LoaderError;
use esker_data::pack::{self, Manifest, PackError, PackOptions, Split};
use esker_data::shard::{Check, Shard, ShardError};
use esker_data::tokenizer::{Tokenizer, TokenizerError};
use esker_data::tokens::TokenSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shards of more bytes than this, all together, are opened by header alone: a digest over all would take minutes. Every
/// token is still held against the vocabulary when it is read.
const CHECKED_BYTES_MAX: u64 = 4 << 30;

/// The tokens and what made them.
#[derive(Debug)]
pub struct Opened {
    /// Training tokens.
    pub train: Arc<TokenSet>,
    /// Validation tokens, where there are any.
    pub validation: Option<Arc<TokenSet>>,
    /// What turns them into text, where it is known.
    pub tokenizer: Option<Tokenizer>,
    /// Digest of the training tokens, in hex.
    pub identity: String,
}

/// Why a run's tokens cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A shard was refused.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The shards do not make a set.
    #[error(transparent)]
    Set(#[from] LoaderError),
    /// The tokenizer was refused.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The embedded corpus could not be packed, or its packed form was damaged.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Tokens the embedding has no row for.
    #[error("{what} has {tokens} tokens, but model.vocab is {vocab}; set model.vocab to at least {tokens}")]
    Vocabulary {
        /// Which tokens.
        what: String,
        /// Tokens there are.
        tokens: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// Shards made with another tokenizer than the one named.
    #[error(
        "data.tokenizer ({tokenizer}) is not the one that made {shards}: digests {ours} and {theirs}; name the tokenizer.json beside the shards, or tokenize the text again"
    )]
    OtherTokenizer {
        /// The tokenizer that was named.
        tokenizer: String,
        /// Which shards.
        shards: &'static str,
        /// The digest of the one named.
        ours: String,
        /// The digest in the shards.
        theirs: String,
    },
}

/// Opens the tokens of `run`; the embedded corpus is packed into `folder`/data on the first call.
pub fn open(run: &Run, folder: &Path) -> Result<Opened, SourceError> {
    let opened = match run.data.source {
        Source::Embedded => embedded(run, &folder.join("data"))?,
        Source::Shards => shards(run)?,
    };
    let fits = |set: &TokenSet, what: &str| match set.vocab_size() as usize <= run.model.vocab {
        true => Ok(()),
        false => {
            let (what, tokens) = (what.to_string(), set.vocab_size());
            Err(SourceError::Vocabulary { what, tokens, vocab: run.model.vocab })
        }
    };
    fits(&opened.train, "the training set")?;
    opened.validation.as_ref().map_or(Ok(()), |set| fits(set, "the validation set"))?;
    Ok(opened)
}

fn embedded(run: &Run, dir: &Path) -> Result<Opened, SourceError> {
    let manifest = dir.join("manifest.json");
    if !manifest.exists() {
        let tokenizer = match &run.data.tokenizer {
            TokenizerChoice::Bytes {} => Tokenizer::bytes(),
            TokenizerChoice::File { path } => Tokenizer::from_file(path)?,
            TokenizerChoice::Bpe { vocab } => {
                let train = corpus::embedded().filter(|address| address.split == Split::Train);
                Tokenizer::train_bpe(train.map(|address| address.text), *vocab)?
            }
        };
        let (tokens, vocab) = (tokenizer.vocab_size(), run.model.vocab);
        if tokens as usize > vocab {
            return Err(SourceError::Vocabulary { what: "data.tokenizer".into(), tokens, vocab });
        }
        pack::pack_embedded(&tokenizer, dir, &PackOptions { overwrite: true, ..PackOptions::default() })?;
        drop(tokenizer);
        give_back();
    }
    let manifest = Manifest::load(&manifest)?;
    let tokenizer = match &run.data.tokenizer {
        TokenizerChoice::Bytes {} => Tokenizer::bytes(),
        _ => Tokenizer::from_file(&dir.join("tokenizer.json"))?,
    };
    let train = manifest.open(dir, Split::Train, Check::Everything)?;
    let validation = manifest.open(dir, Split::Val, Check::Everything)?;
    let identity = identity(manifest.train.shards.iter().map(|shard| dir.join(&shard.file)))?;
    Ok(Opened { train: Arc::new(train), validation: Some(Arc::new(validation)), tokenizer: Some(tokenizer), identity })
}

/// Training a tokenizer leaves tens of megabytes of free pages with the allocator, which the run, planned to the byte,
/// would carry to its end. Only glibc keeps them, and only it can be told.
fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` gives free pages back to the system; it takes no pointer and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn shards(run: &Run) -> Result<Opened, SourceError> {
    let train = set(&run.data.train)?;
    let validation = match run.data.validation.is_empty() {
        true => None,
        false => Some(set(&run.data.validation)?),
    };
    let tokenizer = match &run.data.tokenizer {
        TokenizerChoice::File { path } => Tokenizer::from_file(path)?,
        // A bpe tokenizer for shards does not pass the check of the configuration.
        TokenizerChoice::Bytes {} | TokenizerChoice::Bpe { .. } => Tokenizer::bytes(),
    };
    for (set, shards) in [(Some(&train), "data.train"), (validation.as_ref(), "data.validation")] {
        let Some(theirs) = set.and_then(TokenSet::tokenizer_hash) else { continue };
        if theirs != tokenizer.hash() {
            let hex = |hash: [u8; 32]| blake3::Hash::from_bytes(hash).to_hex().to_string();
            let named = match &run.data.tokenizer {
                TokenizerChoice::File { path } => path.display().to_string(),
                _ => "bytes".into(),
            };
            let (ours, theirs) = (hex(tokenizer.hash()), hex(theirs));
            return Err(SourceError::OtherTokenizer { tokenizer: named, shards, ours, theirs });
        }
    }
    let identity = identity(run.data.train.iter().cloned())?;
    Ok(Opened { train: Arc::new(train), validation: validation.map(Arc::new), tokenizer: Some(tokenizer), identity })
}

fn set(paths: &[PathBuf]) -> Result<TokenSet, SourceError> {
    let bytes: u64 = paths.iter().filter_map(|p| std::fs::metadata(p).ok()).map(|m| m.len()).sum();
    let check = if bytes <= CHECKED_BYTES_MAX { Check::Everything } else { Check::Header };
    Ok(TokenSet::open(paths, check)?)
}

/// blake3 over the digests of the shards' headers, each of which holds the digest of its tokens.
fn identity(paths: impl Iterator<Item = PathBuf>) -> Result<String, SourceError> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update(&Shard::open(&path, Check::Header)?.header().digest());
    }
    Ok(hasher.finalize().to_hex().to_string())
}
