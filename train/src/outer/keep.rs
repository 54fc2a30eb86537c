//! What an owner keeps over a crash.
//!
//! ```text
//! sent-000012.update    an update of ours that no round has settled
//! owner.safetensors     anchor.NAME, e.NAME, m.NAME, v.NAME, f32; its metadata holds the position as JSON
//! ```
//!
//! Each is written aside, synced and renamed, the updates first: so the owner's file is whole, it is of one moment, and
//! what it names is there. Reading it holds the weights against their root and all tensors against a digest. After a
//! restore every further bit is as if nothing had happened; θ is not kept, for a round begins at the anchor.

use super::{OuterError, Owner, leaves};
use crate::checkpoint::CheckpointError;
use crate::folder::{FolderError, sync_dir, write};
use esker_kernels::tensor::Tensor;
use esker_model::{Weights, hf};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the owner's file.
pub const OWNER: &str = "owner.safetensors";
const VERSION: u32 = 1;
const METADATA: &str = "esker";

/// Where the owner stands, besides its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    version: u32,
    /// The run, in hex.
    run: String,
    /// Rounds that the anchor holds.
    round: u64,
    /// Updates of AdamW.
    updates: u64,
    /// Of the anchor, in hex.
    root: String,
    /// Over all tensors, in hex.
    digest: String,
    /// Rounds and digests of the updates that are not settled.
    sent: Vec<(u64, String)>,
}

impl Owner {
    /// Keeps everything in `dir`, which is there.
    pub fn save(&self, dir: &Path) -> Result<(), OuterError> {
        let mut sent = Vec::new();
        for (round, blob) in &self.sent {
            write(&update_path(dir, *round), blob).map_err(CheckpointError::from)?;
            sent.push((*round, hex(blake3::hash(blob).as_bytes())));
        }
        let position = Position {
            version: VERSION,
            run: hex(&self.id),
            round: self.round,
            updates: self.inner.updates,
            root: hex(&self.root),
            digest: self.digest(),
            sent,
        };
        let named = self.sets().into_iter().flat_map(|(set, w)| w.each().map(move |(n, t)| (format!("{set}.{n}"), t)));
        let tensors: Vec<(String, &Tensor)> = named.collect();
        let json = serde_json::to_string(&position).expect("keep: a position is always JSON");
        hf::save_file(&dir.join(OWNER), &tensors, None, &[(METADATA, &json)])?;
        sync_dir(dir).map_err(CheckpointError::from)?;
        self.drop_settled(dir);
        Ok(())
    }

    /// Takes up what was kept in `dir`. False where nothing is.
    pub fn restore(&mut self, dir: &Path) -> Result<bool, OuterError> {
        let file = dir.join(OWNER);
        if !file.exists() {
            return Ok(false);
        }
        let metadata = {
            let sets = [
                ("anchor", &mut self.anchor),
                ("e", &mut self.feedback),
                ("m", &mut self.inner.state.m),
                ("v", &mut self.inner.state.v),
            ];
            let each = sets.into_iter().flat_map(|(set, w)| w.each_mut().map(move |(n, t)| (format!("{set}.{n}"), t)));
            let mut tensors: Vec<(String, &mut Tensor)> = each.collect();
            hf::load_tensors(&file, &mut tensors)?
        };
        let damaged = |field: &str, why: String| {
            OuterError::from(CheckpointError::Damaged { file: file.clone(), field: field.into(), why })
        };
        let json = metadata.iter().find(|(key, _)| key == METADATA).map(|(_, json)| json.as_str());
        let json = json.ok_or_else(|| damaged("metadata", format!("no entry {METADATA:?}")))?;
        let position: Position = serde_json::from_str(json).map_err(|e| damaged(METADATA, e.to_string()))?;
        let equal = |field: &str, got: &str, want: &str| match got == want {
            true => Ok(()),
            false => Err(damaged(field, format!("{got}, expected {want}"))),
        };
        equal("version", &position.version.to_string(), &VERSION.to_string())?;
        equal("run", &position.run, &hex(&self.id))?;
        equal("root", &hex(&leaves::root(&self.anchor)), &position.root)?;
        equal("digest", &self.digest(), &position.digest)?;
        self.inner.updates = position.updates;
        self.sent = VecDeque::new();
        for (round, digest) in position.sent {
            match fs::read(update_path(dir, round)) {
                Ok(blob) if hex(blake3::hash(&blob).as_bytes()) == digest => self.sent.push_back((round, blob)),
                // Without it an update that does not count cannot be taken back: so much feedback is lost, no more.
                _ => {
                    tracing::warn!(target: "esker::round", round, "our update of this round is not on the disk any more")
                }
            }
        }
        self.round = position.round;
        self.settle_at(position.round)?;
        Ok(true)
    }

    fn sets(&self) -> [(&'static str, &Weights); 4] {
        let state = &self.inner.state;
        [("anchor", &self.anchor), ("e", &self.feedback), ("m", &state.m), ("v", &state.v)]
    }

    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (_, w) in self.sets() {
            leaves::each(w).for_each(|leaf| {
                hasher.update(leaf);
            });
        }
        hex(hasher.finalize().as_bytes())
    }

    /// Removes updates that the owner's file does not name any more. One that stays by mistake costs disk alone.
    fn drop_settled(&self, dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let round = name.to_str().and_then(|n| n.strip_prefix("sent-")?.strip_suffix(".update")?.parse().ok());
            if let Some(round) = round.filter(|round: &u64| self.sent.iter().all(|(sent, _)| sent != round))
                && let Err(source) = fs::remove_file(entry.path())
            {
                tracing::warn!(target: "esker::round", round, error = %source, "an old update stays");
            }
        }
    }
}

/// Why the folder of an owner cannot be used.
impl From<FolderError> for OuterError {
    fn from(e: FolderError) -> OuterError {
        OuterError::Kept(e.into())
    }
}

fn update_path(dir: &Path, round: u64) -> PathBuf {
    dir.join(format!("sent-{round:06}.update"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
