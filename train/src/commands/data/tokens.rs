//! The tokens that `inspect` and `mix` are asked about: those of a config or a run, or shards alone.

use crate::{
    commands::Failure,
    config::{self, Run, Source},
    folder,
    source::{self, Opened},
};
use esker_data::{
    mix::Mix,
    pack::{MANIFEST, Manifest, Split},
    shard::Check,
    tokenizer::Tokenizer,
    tokens::TokenSet,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens, and what is known of them.
pub struct Tokens {
    /// The configuration that reads them; none for shards alone.
    pub run: Option<Run>,
    /// The sources with their names.
    pub sources: Vec<(String, Arc<TokenSet>)>,
    /// What turns them into text, where it is known.
    pub tokenizer: Option<Tokenizer>,
}

impl Tokens {
    /// Opens a config, a run's folder, a folder of shards (its training set) or a shard.
    pub fn open(path: &Path, sets: &[String]) -> Result<Tokens, Failure> {
        let meta = std::fs::metadata(path).map_err(|e| Failure::file(path, &e))?;
        if meta.is_dir() && path.join(folder::CONFIG).exists() {
            return Tokens::of_run(config::load(&path.join(folder::CONFIG), sets)?, Some(path));
        }
        if path.extension().is_some_and(|e| e == "toml") {
            return Tokens::of_run(config::load(path, sets)?, None);
        }
        if !sets.is_empty() {
            return Err(Failure::input(format!("{}: --set needs a config, and these are shards", path.display())));
        }
        if !meta.is_dir() {
            let set = TokenSet::open(&[path.to_path_buf()], Check::Lazy)?;
            return Tokens::alone(set, path.parent().unwrap_or(Path::new(".")));
        }
        let set = match path.join(MANIFEST).exists() {
            true => Manifest::load(path)?.open(path, Split::Train, Check::Lazy)?,
            false => TokenSet::open(&shards_in(path)?, Check::Lazy)?,
        };
        Tokens::alone(set, path)
    }

    fn of_run(run: Run, folder: Option<&Path>) -> Result<Tokens, Failure> {
        // The embedded corpus is packed into the run's folder, or, without one, aside.
        let aside = Aside(std::env::temp_dir().join(format!("esker-data-{}", std::process::id())));
        let Opened { sources, tokenizer, .. } = match folder {
            Some(folder) => source::open(&run, folder)?,
            None => source::open(&run, &aside.0)?,
        };
        let names: Vec<String> = run.sources().iter().map(|(name, _)| name.to_string()).collect();
        Ok(Tokens { run: Some(run), sources: names.into_iter().zip(sources).collect(), tokenizer })
    }

    /// Shards whose tokenizer, if it is to be had, lies beside them.
    fn alone(set: TokenSet, folder: &Path) -> Result<Tokens, Failure> {
        let beside = folder.join("tokenizer.json");
        let tokenizer = if beside.exists() { Some(Tokenizer::from_file(&beside)?) } else { None };
        let tokenizer = tokenizer.filter(|t| set.tokenizer_hash() == Some(t.hash()));
        Ok(Tokens { run: None, sources: vec![("shards".into(), Arc::new(set))], tokenizer })
    }

    /// How the sources take turns.
    pub fn mix(&self) -> Mix {
        self.run.as_ref().map_or_else(Mix::single, Run::mix)
    }
}

/// Opens the training tokens of `run`, shards by their headers alone: enough to count them.
pub fn counted(run: &Run) -> Result<Vec<Arc<TokenSet>>, Failure> {
    if run.data.source != Source::Shards {
        return Ok(Tokens::of_run(run.clone(), None)?.sources.into_iter().map(|(_, set)| set).collect());
    }
    let open = |(_, paths): (&str, &[PathBuf])| TokenSet::open(paths, Check::Header).map(Arc::new);
    Ok(run.sources().into_iter().map(open).collect::<Result<_, _>>()?)
}

/// The .shard files of a folder, by name.
pub fn shards_in(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| Failure::file(folder, &e))? {
        let file = entry.map_err(|e| Failure::file(folder, &e))?.path();
        if file.extension().is_some_and(|e| e == "shard") {
            shards.push(file);
        }
    }
    shards.sort();
    if shards.is_empty() {
        return Err(Failure::input(format!("{}: holds no {MANIFEST} and no .shard file", folder.display()))
            .help("name the shards, or a folder that `esker tokenize` made"));
    }
    Ok(shards)
}

/// A folder that is removed when it is done with; what is mapped from it stays readable.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        // Mostly it was never made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
