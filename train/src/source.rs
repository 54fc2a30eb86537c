//! The tokens of a run: the embedded corpus, packed once into the run's folder, or shards or token files of other programs
//! on disk, of one source or of several.
//!
//! A resumed run reads the very tokens it began with: the packed corpus lies in `data/` of the run's folder, and
//! [`Opened::identity`], a digest over the digests of shards and files, stands in every checkpoint. A start that was cut short while
//! packing leaves no manifest, and packs again; the result is a function of the configuration.

use crate::config::{Run, Source, TokenizerChoice};
use esker_data::corpus;
use esker_data::formats::{self, FormatError, InPlace};
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
    /// A token file of another program was refused.
    #[error(transparent)]
    Foreign(#[from] FormatError),
    /// A tokenizer without the mark that ends the documents of token files of other programs.
    #[error(
        "data.tokenizer ({tokenizer}) has no end mark, by which documents of other programs' files are told apart; name one in a tokenizer_config.json beside it"
    )]
    NoEos {
        /// The tokenizer that was named.
        tokenizer: String,
    },
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
        Source::Foreign => foreign(run)?,
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
    let tokenizer = tokenizer(run)?;
    for (set, (name, _)) in sources.iter().zip(&named) {
        made_by(run, set, &tokenizer, &format!("data.train ({name})"))?;
    }
    let validation = validation(run, &tokenizer)?;
    let identity = of_sources(&named, identity(all().cloned())?);
    let sources = sources.into_iter().map(Arc::new).collect();
    Ok(Opened { sources, validation, tokenizer: Some(tokenizer), identity })
}

/// Files of other programs know neither tokenizer nor vocabulary: the configuration's word is taken, and each id held
/// against it when it is read.
fn foreign(run: &Run) -> Result<Opened, SourceError> {
    let (named, tokenizer) = (run.sources(), tokenizer(run)?);
    let eos = tokenizer.eos().ok_or_else(|| SourceError::NoEos { tokenizer: tokenizer.name().into() })?;
    let told = run.data.foreign.as_ref();
    let options = formats::Options {
        format: told.and_then(|f| f.format),
        int: told.and_then(|f| f.dtype),
        eos: Some(eos),
        ..formats::Options::default()
    };
    let (mut hasher, mut sources) = (blake3::Hasher::new(), Vec::new());
    for (_, paths) in &named {
        let files: Vec<InPlace> = paths.iter().map(|path| InPlace::open(path, &options)).collect::<Result<_, _>>()?;
        for file in &files {
            hasher.update(&file.fingerprint());
        }
        sources.push(Arc::new(TokenSet::from_foreign(files, tokenizer.vocab_size(), Some(eos))?));
    }
    let identity = of_sources(&named, hasher.finalize().to_hex().to_string());
    let validation = validation(run, &tokenizer)?;
    Ok(Opened { sources, validation, tokenizer: Some(tokenizer), identity })
}

/// The tokenizer that the configuration names for tokens on disk.
fn tokenizer(run: &Run) -> Result<Tokenizer, TokenizerError> {
    match &run.data.tokenizer {
        TokenizerChoice::File { path } => Tokenizer::from_file(path),
        // A bpe tokenizer for tokens on disk does not pass the check of the configuration.
        TokenizerChoice::Bytes {} | TokenizerChoice::Bpe { .. } => Ok(Tokenizer::bytes()),
    }
}

fn validation(run: &Run, tokenizer: &Tokenizer) -> Result<Option<Arc<TokenSet>>, SourceError> {
    if run.data.validation.is_empty() {
        return Ok(None);
    }
    let set = TokenSet::open(&run.data.validation, check_of(run.data.validation.iter()))?;
    made_by(run, &set, tokenizer, "data.validation")?;
    Ok(Some(Arc::new(set)))
}

/// Refuses a set of shards that another tokenizer made.
fn made_by(run: &Run, set: &TokenSet, tokenizer: &Tokenizer, shards: &str) -> Result<(), SourceError> {
    let Some(theirs) = set.tokenizer_hash().filter(|theirs| *theirs != tokenizer.hash()) else { return Ok(()) };
    let hex = |hash: [u8; 32]| blake3::Hash::from_bytes(hash).to_hex().to_string();
    let named = match &run.data.tokenizer {
        TokenizerChoice::File { path } => path.display().to_string(),
        _ => "bytes".into(),
    };
    let (ours, theirs) = (hex(tokenizer.hash()), hex(theirs));
    Err(SourceError::OtherTokenizer { tokenizer: named, shards: shards.into(), ours, theirs })
}

/// The digest of all files, with how they are shared out where there are several sources: which source a file belongs to
/// is part of what is trained on.
fn of_sources(named: &[(&str, &[PathBuf])], files: String) -> String {
    if named.len() < 2 {
        return files;
    }
    let counts: Vec<usize> = named.iter().map(|(_, paths)| paths.len()).collect();
    blake3::hash(format!("{files} {counts:?}").as_bytes()).to_hex().to_string()
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
