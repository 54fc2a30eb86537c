//! Which keys change a result, as one value and its digest.
//!
//! A checkpoint keeps the canonical form: the file as sorted JSON without the keys that can change no weight. A run
//! resumes only under an equal one, and the keys that differ are named. Harmless, and so left out: names, paths (the
//! tokens themselves are compared by digest), `batch.micro_rows`, `train.threads`, `train.recompute`, `[peers]`,
//! `[validation]`, `[checkpoint]`, `[eval]`, `[sample]`, and `train.steps` under a constant schedule; under the others the number of steps
//! shapes the learning rate from the start.

use super::{File, Run, Schedule};
use serde_json::Value;

/// A key whose value is not what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The whole key.
    pub key: String,
    /// The value in the checkpoint.
    pub was: String,
    /// The value now.
    pub is: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {} and is now {}", self.key, self.was, self.is)
    }
}

impl Run {
    /// The keys that change a result, sorted.
    pub fn canonical(&self) -> Value {
        canonical(self)
    }

    /// blake3 of [`Run::canonical`], in hex.
    pub fn hash(&self) -> String {
        blake3::hash(self.canonical().to_string().as_bytes()).to_hex().to_string()
    }
}

fn canonical(file: &File) -> Value {
    let mut all = serde_json::to_value(file).expect("config: a File is always JSON");
    for key in ["name", "peers", "validation", "checkpoint", "eval", "sample"] {
        drop_key(&mut all, &[key]);
    }
    for key in [
        ["data", "train"],
        ["data", "validation"],
        ["batch", "micro_rows"],
        ["train", "threads"],
        ["train", "recompute"],
    ] {
        drop_key(&mut all, &key);
    }
    drop_key(&mut all, &["data", "tokenizer", "path"]);
    for source in all.pointer_mut("/data/mixture").and_then(Value::as_array_mut).into_iter().flatten() {
        drop_key(source, &["name"]);
        drop_key(source, &["train"]);
    }
    // Written out or left out, the same rows.
    if file.data.boundary_loss == Some(!file.data.document_mask) {
        drop_key(&mut all, &["data", "boundary_loss"]);
    }
    if let Schedule::Constant { .. } = file.schedule {
        drop_key(&mut all, &["train", "steps"]);
    }
    all
}

fn drop_key(value: &mut Value, key: &[&str]) {
    let Some((last, sections)) = key.split_last() else { return };
    let mut at = value;
    for section in sections {
        let Some(next) = at.get_mut(*section) else { return };
        at = next;
    }
    if let Some(map) = at.as_object_mut() {
        map.remove(*last);
    }
}

/// The keys in which two canonical forms differ.
pub fn differences(was: &Value, is: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", was, is, &mut found);
    found
}

fn compare(key: &str, was: &Value, is: &Value, found: &mut Vec<Difference>) {
    if let (Value::Object(a), Value::Object(b)) = (was, is) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for k in keys {
            let inner = if key.is_empty() { k.clone() } else { format!("{key}.{k}") };
            compare(&inner, a.get(k).unwrap_or(&Value::Null), b.get(k).unwrap_or(&Value::Null), found);
        }
    } else if was != is {
        let say = |v: &Value| if v.is_null() { "absent".to_string() } else { v.to_string() };
        found.push(Difference { key: key.into(), was: say(was), is: say(is) });
    }
}
