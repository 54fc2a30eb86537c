//! The tokens of a run: the embedded corpus, packed once into the run's folder, or shards on disk, of one source or of
//! several.
//!
//! A resumed run reads the very tokens it began with: the packed corpus lies in `data/` of the run's folder, and
//! [`Opened::identity`], a digest over the shards' digests, stands in every checkpoint. A start that was cut short while
//! packing leaves no manifest, and packs again; the result is a function of the configuration.

use crate::config::{Run, Source, TokenizerChoice};
use esker_data::corpus;
use esker_data::loader::{Loader, LoaderError};
use esker_data::pack::{self, Manifest, PackError, PackOptions, Split};
use esker_data::shard::{Check, Shard, ShardError};
use esker_data::tokenizer::{Tokenizer, TokenizerError};
use esker_data::tokens::TokenSet;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shards of more bytes than this, all together, are not read through before the first step, which would take a while:
/// each piece of them is held against its digest when it is first read.
const CHECKED_BYTES_MAX: u64 = 4 << 30;

/// The tokens and what made them.
#[derive(Debug)]
pub struct Opened {
    /// Training tokens of each source.
    pub sources: Vec<Arc<TokenSet>>,
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
        shards: String,
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
    for (set, (name, _)) in opened.sources.iter().zip(run.sources()) {
        fits(set, &format!("the training set ({name})"))?;
    }
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
    let sources = vec![Arc::new(train)];
    Ok(Opened { sources, validation: Some(Arc::new(validation)), tokenizer: Some(tokenizer), identity })
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
    let named = run.sources();
    let all = || named.iter().flat_map(|(_, paths)| *paths);
    let check = check_of(all());
    let sources: Vec<TokenSet> =
        named.iter().map(|(_, paths)| TokenSet::open(paths, check)).collect::<Result<_, _>>()?;
    let validation = match run.data.validation.is_empty() {
        true => None,
        false => Some(TokenSet::open(&run.data.validation, check_of(run.data.validation.iter()))?),
    };
    let tokenizer = match &run.data.tokenizer {
        TokenizerChoice::File { path } => Tokenizer::from_file(path)?,
        // A bpe tokenizer for shards does not pass the check of the configuration.
        TokenizerChoice::Bytes {} | TokenizerChoice::Bpe { .. } => Tokenizer::bytes(),
    };
    let training = sources.iter().zip(named.iter().map(|(name, _)| format!("data.train ({name})")));
    for (set, shards) in training.chain(validation.iter().zip(["data.validation".to_string()])) {
        let Some(theirs) = set.tokenizer_hash() else { continue };
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
    let mut identity = identity(all().cloned())?;
    if named.len() > 1 {
        // Which source a shard belongs to is part of what is trained on.
        let counts: Vec<usize> = named.iter().map(|(_, paths)| paths.len()).collect();
        identity = blake3::hash(format!("{identity} {counts:?}").as_bytes()).to_hex().to_string();
    }
    let sources = sources.into_iter().map(Arc::new).collect();
    Ok(Opened { sources, validation: validation.map(Arc::new), tokenizer: Some(tokenizer), identity })
}

fn check_of<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Check {
    let bytes: u64 = paths.filter_map(|p| std::fs::metadata(p).ok()).map(|m| m.len()).sum();
    if bytes <= CHECKED_BYTES_MAX { Check::Everything } else { Check::Lazy }
}

/// What a run takes of one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The source.
    pub name: String,
    /// Its part of all rows.
    pub share: f64,
    /// Tokens it has.
    pub tokens: u64,
    /// Rows of an epoch of it.
    pub windows: u64,
    /// Tokens that its share of the run would be.
    pub expected_tokens: f64,
    /// Tokens that the run reads of it.
    pub realised_tokens: u64,
    /// Passes over it.
    pub epochs: f64,
}

/// What `run` takes of each source of `loader`, from its first step to its last.
pub fn shares(run: &Run, loader: &Loader) -> Vec<Share> {
    let rows = run.train.steps * run.rows_per_step() as u64;
    let (mix, seq) = (loader.mix(), run.batch.seq_len as u64);
    let of = |(i, ((name, _), set)): (usize, ((&str, &[PathBuf]), &TokenSet))| {
        let (windows, taken) = (loader.windows_of(i), mix.counts(rows)[i]);
        Share {
            name: name.into(),
            share: mix.share(i),
            tokens: set.tokens(),
            windows,
            expected_tokens: mix.share(i) * rows as f64 * seq as f64,
            realised_tokens: taken * seq,
            epochs: taken as f64 / windows as f64,
        }
    };
    run.sources().into_iter().zip(loader.sets()).enumerate().map(of).collect()
}

/// blake3 over the digests of the shards' headers, each of which holds the digest of its tokens.
fn identity(paths: impl Iterator<Item = PathBuf>) -> Result<String, SourceError> {
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update(&Shard::open(&path, Check::Header)?.header().digest());
    }
    Ok(hasher.finalize().to_hex().to_string())
}
