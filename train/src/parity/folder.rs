//! The files of a parity folder, checked.

use crate::config::{Optim, OptimKind};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A file of the folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The system refused.
    #[error("{}: {source}; a parity folder has config.json, model.safetensors, tokens.json, expected.json, grads.safetensors, train.json and trained.safetensors", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// Its content is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
}

/// tokens.json.
#[derive(Debug)]
pub struct Tokens {
    /// `[step][row]` of `seq + 1` ids.
    pub steps: Vec<Vec<Vec<u32>>>,
    /// Rows of a step.
    pub rows: usize,
    /// Inputs of a row.
    pub seq: usize,
}

/// expected.json.
#[derive(Debug, Deserialize)]
pub struct Expected {
    /// Of the first step's rows.
    pub mean_nll: f64,
    /// `[row][place]`.
    pub logprob: Vec<Vec<f64>>,
    /// Of the whole gradient, where it was written.
    pub grad_norm: Option<f64>,
}

/// train.json.
#[derive(Debug)]
pub struct Training {
    /// AdamW's settings; `clip_norm` 0 where nothing was clipped.
    pub optim: Optim,
    /// One entry a step.
    pub steps: Vec<TrainingStep>,
}

/// A step of train.json.
#[derive(Debug, Deserialize)]
pub struct TrainingStep {
    /// Mean over the rows, before the update.
    pub loss: f64,
    /// Where the rate changes from step to step.
    pub lr: Option<f64>,
    /// Norm of the gradient before the clip, where it was written.
    #[serde(alias = "grad_norm")]
    pub grad_norm_before_clip: Option<f64>,
}

/// Reads tokens.json; ids lie below `vocab`.
pub fn tokens(dir: &Path, vocab: usize) -> Result<Tokens, FolderError> {
    #[derive(Deserialize)]
    struct Raw {
        rows: Vec<Vec<Vec<u32>>>,
    }
    let path = dir.join("tokens.json");
    let raw: Raw = read(&path)?;
    let first = raw.rows.first().and_then(|step| step.first()).map_or(0, Vec::len);
    let rows = raw.rows.first().map_or(0, Vec::len);
    if first < 2 {
        return Err(content(&path, "rows is empty; expected [steps][rows][at least 2 ids]"));
    }
    for (s, step) in raw.rows.iter().enumerate() {
        if step.len() != rows || step.iter().any(|row| row.len() != first) {
            return Err(content(&path, &format!("rows[{s}] is not {rows} rows of {first} ids like rows[0]")));
        }
        if let Some(id) = step.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(content(&path, &format!("rows[{s}] has id {id}, the model's vocabulary is {vocab}")));
        }
    }
    Ok(Tokens { steps: raw.rows, rows, seq: first - 1 })
}

/// Reads expected.json for `tokens`.
pub fn expected(dir: &Path, tokens: &Tokens) -> Result<Expected, FolderError> {
    let path = dir.join("expected.json");
    let expected: Expected = read(&path)?;
    let shape = expected.logprob.len() == tokens.rows && expected.logprob.iter().all(|row| row.len() == tokens.seq);
    if !shape {
        let (b, t) = (tokens.rows, tokens.seq);
        return Err(content(&path, &format!("logprob is not {b} rows of {t} numbers, one a target of tokens.rows[0]")));
    }
    Ok(expected)
}

/// Reads train.json, whose settings have names of PyTorch or of ours.
pub fn training(dir: &Path, tokens: &Tokens) -> Result<Training, FolderError> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(alias = "optimiser")]
        optimizer: Value,
        steps: Vec<TrainingStep>,
    }
    let path = dir.join("train.json");
    let raw: Raw = read(&path)?;
    let number = |names: &[&str]| {
        let found = names.iter().find_map(|name| match name.split_once('/') {
            Some((list, index)) => raw.optimizer.get(list)?.get(index.parse::<usize>().ok()?),
            None => raw.optimizer.get(name),
        });
        match found {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| content(&path, &format!("optimizer.{} is {value}; expected a number", names[0]))),
        }
    };
    let needed = |names: &[&str]| {
        number(names)?.ok_or_else(|| content(&path, &format!("optimizer has no {}", names.join(" or "))))
    };
    if let Some(kind) = raw.optimizer.get("kind").and_then(Value::as_str)
        && !kind.eq_ignore_ascii_case("adamw")
    {
        return Err(content(&path, &format!("optimizer.kind is {kind:?}; expected AdamW")));
    }
    if let Some(schedule) = raw.optimizer.get("schedule").and_then(Value::as_str)
        && schedule != "constant"
        && raw.steps.iter().any(|step| step.lr.is_none())
    {
        return Err(content(
            &path,
            &format!("optimizer.schedule is {schedule:?}; expected \"constant\", or lr in each step"),
        ));
    }
    if raw.steps.is_empty() || raw.steps.len() > tokens.steps.len() {
        let (n, has) = (raw.steps.len(), tokens.steps.len());
        return Err(content(&path, &format!("{n} steps; expected 1 to {has}, as many as tokens.json has batches")));
    }
    let optim = Optim {
        kind: OptimKind::Adamw,
        lr: needed(&["lr", "learning_rate"])?,
        beta1: needed(&["beta1", "betas/0"])?,
        beta2: needed(&["beta2", "betas/1"])?,
        eps: needed(&["eps", "epsilon"])?,
        weight_decay: needed(&["weight_decay"])?,
        clip_norm: number(&["clip_global_norm", "clip_norm", "max_grad_norm", "grad_clip"])?.unwrap_or(0.0),
    };
    Ok(Training { optim, steps: raw.steps })
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let bytes = std::fs::read(path).map_err(|source| FolderError::Read { path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| content(path, &e.to_string()))
}

fn content(path: &Path, what: &str) -> FolderError {
    FolderError::Content { path: path.into(), what: what.into() }
}
