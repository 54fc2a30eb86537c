//! `esker data verify`: every byte of shards against their digests, and a folder against its manifest.

use super::tokens;
use crate::{
    cli::data::Verify,
    commands::{Failure, print, print_json},
    plan::grouped,
};
use esker_data::{
    pack::{MANIFEST, Manifest, hex},
    shard::{Check, Shard},
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A file to look at.
enum Target {
    Shard {
        path: PathBuf,
        /// Digest of the header, in hex, as the manifest of its folder has it.
        header: Option<String>,
    },
    Tokenizer {
        path: PathBuf,
        /// blake3 of the file, in hex, as the manifest of its folder has it.
        hash: String,
    },
}

/// What was found of one file.
#[derive(Debug, Serialize)]
struct Verdict {
    file: PathBuf,
    bytes: u64,
    tokens: u64,
    documents: u64,
    /// What is wrong with it; null where nothing is.
    damage: Option<String>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    files: Vec<Verdict>,
    damaged: usize,
    seconds: f64,
}

pub fn run(args: Verify) -> Result<(), Failure> {
    let begin = std::time::Instant::now();
    let mut targets = Vec::new();
    for path in &args.paths {
        targets.extend(within(path)?);
    }
    let mut files = Vec::new();
    for target in &targets {
        let verdict = target.verify();
        if !args.json {
            print(&verdict.to_string())?;
        }
        files.push(verdict);
    }
    let damaged = files.iter().filter(|v| v.damage.is_some()).count();
    let (bytes, seconds) = (files.iter().map(|v| v.bytes).sum::<u64>(), begin.elapsed().as_secs_f64());
    let all = files.len();
    if args.json {
        print_json(&Answer { files, damaged, seconds })?;
    } else {
        let rate = bytes as f64 / seconds.max(1e-9) / 1e9;
        print(&format!("{all} files, {} bytes, {seconds:.1} s, {rate:.2} GB/s\n", grouped(bytes)))?;
    }
    match damaged {
        0 => Ok(()),
        n => Err(Failure::check(format!("{n} of {all} files are damaged"))
            .help("copy them again, or make them again from the text")),
    }
}

/// The files that `path` stands for.
fn within(path: &Path) -> Result<Vec<Target>, Failure> {
    let meta = std::fs::metadata(path).map_err(|e| Failure::file(path, &e))?;
    if !meta.is_dir() {
        return Ok(vec![Target::Shard { path: path.into(), header: None }]);
    }
    if path.join(MANIFEST).exists() {
        let manifest = Manifest::load(path)?;
        let entries = manifest.train.shards.iter().chain(&manifest.val.shards);
        let shard = entries.map(|e| Target::Shard { path: path.join(&e.file), header: Some(e.header_blake3.clone()) });
        let tokenizer = Target::Tokenizer { path: path.join("tokenizer.json"), hash: manifest.tokenizer_hash.clone() };
        return Ok(shard.chain([tokenizer]).collect());
    }
    Ok(tokens::shards_in(path)?.into_iter().map(|path| Target::Shard { path, header: None }).collect())
}

impl Target {
    fn verify(&self) -> Verdict {
        let (Target::Shard { path, .. } | Target::Tokenizer { path, .. }) = self;
        let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
        let mut verdict = Verdict { file: path.clone(), bytes, tokens: 0, documents: 0, damage: None };
        match self {
            Target::Shard { path, header } => match Shard::open(path, Check::Everything) {
                Err(e) => verdict.damage = Some(e.to_string()),
                Ok(shard) => {
                    let h = shard.header();
                    (verdict.tokens, verdict.documents) = (h.tokens, h.documents);
                    if header.as_ref().is_some_and(|want| *want != hex(&h.digest())) {
                        verdict.damage = Some(format!("{}: not the shard that {MANIFEST} lists", path.display()));
                    }
                }
            },
            Target::Tokenizer { path, hash } => match blake3_of(path) {
                Err(e) => verdict.damage = Some(format!("{}: cannot be read: {e}", path.display())),
                Ok(got) if got != *hash => {
                    verdict.damage = Some(format!("{}: digest {got}, {MANIFEST} says {hash}", path.display()));
                }
                Ok(_) => {}
            },
        }
        verdict
    }
}

fn blake3_of(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(std::fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.damage {
            Some(why) => writeln!(f, "DAMAGED  {why}"),
            None if self.tokens == 0 => writeln!(f, "ok       {}", self.file.display()),
            None => {
                let (tokens, documents) = (grouped(self.tokens), grouped(self.documents));
                writeln!(f, "ok       {}  {tokens} tokens, {documents} documents", self.file.display())
            }
        }
    }
}
