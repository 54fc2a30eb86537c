//! What survives a crash: a folder a step, published by one rename.
//!
//! ```text
//! ckpt/step-000123/
//!   model.safetensors  config.json  generation_config.json  tokenizer.json    a Hugging Face folder, f32 master weights
//!   state.safetensors   m.NAME and v.NAME, f32; its metadata holds the position (below) as JSON
//!   manifest.json       name, bytes and blake3 of every other file
//! ```
//!
//! It is written as `.tmp-step-000123`: each file is brought to the disk, then the folder, then the folder is renamed and
//! its parent brought to the disk. So a `step-` folder is whole, or its disk was damaged later; [`newest_valid`] reads
//! every byte against the manifest, newest first, and says which folders it refused and why. Old ones are renamed away
//! before they are deleted, so that half a folder never has the name of a whole one.
//!
//! In a bf16 run the copies that the ops read follow from the f32 weights, so they are not kept; halves of masters are
//! joined, so a checkpoint does not know on which device it was made.

mod manifest;
mod prune;

pub use manifest::{Entry, Manifest};
pub use prune::{clean, prune};

use crate::config::{self, Run};
use crate::folder::{CHECKPOINTS, FolderError, sync_dir, write};
use crate::guard;
use crate::masters;
use crate::state::State;
use esker_data::tokenizer::Tokenizer;
use esker_kernels::DeviceError;
use esker_kernels::tensor::{DType, Tensor};
use esker_model::hf::{self, Card, HfError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The layout of `state.safetensors` that this build writes, and the only one it reads.
pub const VERSION: u32 = 1;
/// Name of the optimiser's file.
pub const STATE: &str = "state.safetensors";
/// Key of the position in that file's metadata.
const METADATA: &str = "esker";

/// Where a run stands, besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// [`VERSION`].
    pub version: u32,
    /// Steps done.
    pub step: u64,
    /// Of them, those that changed the weights.
    pub updates: u64,
    /// Row that the next step begins with.
    pub position: u64,
    /// Digest of the training tokens.
    pub tokens: String,
    /// Digest of `config`.
    pub config_hash: String,
    /// The keys that change a result, see [`Run::canonical`].
    pub config: serde_json::Value,
    /// The spike guard's window.
    pub guard: guard::Kept,
}

/// Why a checkpoint could not be written, or was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// As above, from the writer of small files.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The weights or the optimiser's tensors were refused, or could not be written.
    #[error(transparent)]
    Weights(#[from] HfError),
    /// There is no memory for whole masters.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file is not what it should be.
    #[error("{file}: {field}: {why}; the checkpoint is damaged: resume from another one")]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it.
        field: String,
        /// What was found and what was expected.
        why: String,
    },
    /// The checkpoint belongs to another configuration.
    #[error(
        "{folder}: was made under another configuration: {}; give it the same values, or start a new run",
        list(.differences)
    )]
    OtherConfig {
        /// The checkpoint.
        folder: PathBuf,
        /// The keys that change a result and differ.
        differences: Vec<config::Difference>,
    },
    /// The checkpoint belongs to other tokens.
    #[error(
        "{folder}: was made from other training tokens: their digest was {was} and is now {is}; give it the same shards in the same order"
    )]
    OtherTokens {
        /// The checkpoint.
        folder: PathBuf,
        /// The digest in the checkpoint.
        was: String,
        /// The digest now.
        is: String,
    },
}

fn list(differences: &[config::Difference]) -> String {
    let said: Vec<String> = differences.iter().map(|d| d.to_string()).collect();
    said.join("; ")
}

/// A checkpoint on disk that has just been written.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Writes the checkpoint of `at.step` into `dir`, a run's folder of checkpoints.
pub fn save(
    dir: &Path,
    run: &Run,
    state: &State,
    at: &Position,
    tokenizer: Option<&Tokenizer>,
) -> Result<Written, CheckpointError> {
    let name = name_of(at.step);
    let (aside, path) = (dir.join(format!(".tmp-{name}")), dir.join(&name));
    let result = write_aside(&aside, run, state, at, tokenizer).and_then(|bytes| {
        // A damaged one of this step may lie there: this run resumed from an older one.
        prune::remove(&path)?;
        fs::rename(&aside, &path).map_err(io_error(&path, "put into place"))?;
        sync_dir(dir)?;
        Ok(Written { path: path.clone(), bytes })
    });
    if result.is_err() {
        // A full disk should not stay full of a half-written folder; the error that counts is the first.
        let _ = fs::remove_dir_all(&aside);
    }
    result
}

fn write_aside(
    aside: &Path,
    run: &Run,
    state: &State,
    at: &Position,
    tokenizer: Option<&Tokenizer>,
) -> Result<u64, CheckpointError> {
    if aside.exists() {
        fs::remove_dir_all(aside).map_err(io_error(aside, "remove"))?;
    }
    fs::create_dir_all(aside).map_err(io_error(aside, "create"))?;
    let card = Card {
        config: run.model.clone(),
        bos: tokenizer.and_then(Tokenizer::bos),
        eos: tokenizer.and_then(Tokenizer::eos).into_iter().collect(),
    };
    let whole = masters::join(run, state)?;
    hf::save(aside, &card, whole.as_ref().unwrap_or(&state.master), DType::F32)?;
    if let Some(tokenizer) = tokenizer {
        write(&aside.join("tokenizer.json"), tokenizer.json())?;
    }
    let m = state.m.each().map(|(name, t)| (format!("m.{name}"), t));
    let v = state.v.each().map(|(name, t)| (format!("v.{name}"), t));
    let tensors: Vec<(String, &Tensor)> = m.chain(v).collect();
    let position = serde_json::to_string(at).expect("checkpoint: a position is always JSON");
    hf::save_file(&aside.join(STATE), &tensors, None, &[(METADATA, &position)])?;
    let manifest = Manifest::of_files(aside, at.step)?;
    write(&aside.join(manifest::MANIFEST), manifest.to_json().as_bytes())?;
    sync_dir(aside)?;
    Ok(manifest.files.iter().map(|f| f.bytes).sum())
}

/// A checkpoint whose every byte is what its manifest says.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Steps done.
    pub step: u64,
}

/// What a search came to.
#[derive(Debug)]
pub struct Newest {
    /// The newest that is whole.
    pub found: Option<Found>,
    /// Newer ones, and why they were refused.
    pub refused: Vec<(PathBuf, CheckpointError)>,
}

/// The newest whole checkpoint of the run in `folder`; reads all of it, and of those that it refuses what is needed.
pub fn newest_valid(folder: &Path) -> Result<Newest, CheckpointError> {
    let mut refused = Vec::new();
    for (step, path) in listed(&folder.join(CHECKPOINTS))?.into_iter().rev() {
        match Manifest::verify(&path, step) {
            Ok(_) => return Ok(Newest { found: Some(Found { path, step }), refused }),
            Err(why) => refused.push((path, why)),
        }
    }
    Ok(Newest { found: None, refused })
}

/// The `step-` folders in `dir`, by step.
pub fn listed(dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error(dir, "list")(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error(dir, "list"))?;
        let step = entry.file_name().to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        found.extend(step.map(|step: u64| (step, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// Loads the checkpoint in `path` into `state`, whose tensors have the run's shapes, and gives its position.
///
/// The position is compared with the run's configuration and `tokens`, the digest of its training tokens, before any
/// tensor with the shapes of the run: of another configuration its keys say more than a shape.
pub fn load(path: &Path, run: &Run, state: &mut State, tokens: &str) -> Result<Position, CheckpointError> {
    let file = path.join(STATE);
    let position = position(&file, &hf::read_metadata(&file)?)?;
    let now = run.canonical();
    if position.config != now {
        let differences = config::differences(&position.config, &now);
        return Err(CheckpointError::OtherConfig { folder: path.into(), differences });
    }
    if position.tokens != tokens {
        let (was, is) = (position.tokens, tokens.to_string());
        return Err(CheckpointError::OtherTokens { folder: path.into(), was, is });
    }
    if state.low.is_some() {
        let mut whole = masters::room(run)?;
        hf::load(path, &mut whole)?;
        masters::part(&whole, state);
    } else {
        hf::load(path, &mut state.master)?;
    }
    let State { m, v, .. } = &mut *state;
    let m = m.each_mut().map(|(name, t)| (format!("m.{name}"), t));
    let v = v.each_mut().map(|(name, t)| (format!("v.{name}"), t));
    let mut tensors: Vec<(String, &mut Tensor)> = m.chain(v).collect();
    hf::load_tensors(&file, &mut tensors)?;
    let damaged = |field: &str, why: String| CheckpointError::Damaged { file: file.clone(), field: field.into(), why };
    let rows = position.step.checked_mul(run.rows_per_step() as u64);
    if rows != Some(position.position) {
        let why = format!("{} after {} steps of {} rows", position.position, position.step, run.rows_per_step());
        return Err(damaged("position", why));
    }
    if position.updates > position.step {
        return Err(damaged("updates", format!("{} in {} steps", position.updates, position.step)));
    }
    guard::Guard::restore(&run.guard, &position.guard).map_err(|why| damaged("guard", why))?;
    Ok(position)
}

/// The position in the metadata of a state file.
fn position(file: &Path, metadata: &[(String, String)]) -> Result<Position, CheckpointError> {
    let damaged = |field: &str, why: String| CheckpointError::Damaged { file: file.into(), field: field.into(), why };
    let found = metadata.iter().find(|(key, _)| key == METADATA);
    let (_, text) = found.ok_or_else(|| damaged("metadata", format!("no entry {METADATA:?}")))?;
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| damaged(METADATA, e.to_string()))?;
    // Before the rest: a later layout may have other fields.
    let version = value.get("version").and_then(|v| v.as_u64());
    if version != Some(VERSION.into()) {
        let got = version.map_or("none".into(), |v| v.to_string());
        return Err(damaged("version", format!("{got}, but this build reads {VERSION}")));
    }
    serde_path_to_error::deserialize(value).map_err(|e| damaged(&e.path().to_string(), e.inner().to_string()))
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

fn io_error(path: &Path, action: &'static str) -> impl Fn(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io { path: path.into(), action, source }
}
