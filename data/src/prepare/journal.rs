//! What a preparation has done so far, so that the next process goes on where one ended.
//!
//! ```text
//! OUT/.prepare/lock                   held by the process at work
//! OUT/.prepare/UNIT-PIECE.shard       documents of a piece, encoded, as a shard of their own
//! OUT/.prepare/UNIT-PIECE.json        the note: where the piece ends, what it dropped, its digest
//! OUT/.prepare/done                   key of the job; the shards stand, the manifest is next
//! ```
//!
//! UNIT is a digest of all that decides what a piece holds: the tokenizer, the options that
//! matter, and name, size and time of the files. So a piece of other inputs or options is never
//! taken for one of these. A note is written after its shard, whole or not at all; at a restart
//! each shard is read again and held against its digest before it counts.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pack::{Dropped, DroppedDocument, InputEntry, PackError, hex, write_aside};
use crate::shard::{Check, Shard};

/// A place between two documents of a unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Files of the unit that are done with.
    pub file: usize,
    /// Unpacked bytes read of the next, or its rows.
    pub offset: u64,
    /// Lines read of it.
    pub line: u64,
    /// Documents read of it.
    pub documents: u64,
}

/// What is known of a finished piece.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Where the next piece starts.
    pub end: Place,
    /// No piece follows in this unit.
    pub last: bool,
    /// Digest of the shard's header; nothing where no document was kept.
    pub shard: Option<String>,
    /// Documents kept, and their tokens.
    pub kept: u64,
    pub tokens: u64,
    /// Documents read.
    pub documents: u64,
    pub dropped: Dropped,
    pub dropped_first: Vec<DroppedDocument>,
    /// Files that end in this piece.
    pub files: Vec<InputEntry>,
}

/// The folder of pieces.
pub(crate) struct Journal {
    dir: PathBuf,
    /// Locked for as long as it is open.
    _lock: File,
}

/// Name of the folder of pieces in the folder of shards.
const FOLDER: &str = ".prepare";
const DONE: &str = "done";

impl Journal {
    /// Opens the journal in `out`, which exists, or begins one.
    pub(crate) fn open(out: &Path) -> Result<Journal, PackError> {
        let dir = out.join(FOLDER);
        let io = |action| {
            let path = dir.clone();
            move |source| PackError::Io { path, action, source }
        };
        std::fs::create_dir_all(&dir).map_err(io("create"))?;
        let lock = File::create(dir.join("lock")).map_err(io("create a lock in"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Journal { dir, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(PackError::Busy { path: out.into() }),
            Err(TryLockError::Error(source)) => Err(io("lock")(source)),
        }
    }

    /// Whether there is one in `out`.
    pub(crate) fn exists(out: &Path) -> bool {
        out.join(FOLDER).is_dir()
    }

    /// Whether `out` holds the journal of this very job, all of whose shards stand.
    pub(crate) fn is_done(out: &Path, job: &str) -> bool {
        std::fs::read_to_string(out.join(FOLDER).join(DONE)).is_ok_and(|key| key == job)
    }

    pub(crate) fn set_done(&self, job: &str) -> Result<(), PackError> {
        write_aside(&self.dir.join(DONE), job.as_bytes())
    }

    /// Where the shard of a piece stands.
    pub(crate) fn shard(&self, unit: &str, piece: usize) -> PathBuf {
        self.dir.join(format!("{unit}-{piece:05}.shard"))
    }

    fn note(&self, unit: &str, piece: usize) -> PathBuf {
        self.dir.join(format!("{unit}-{piece:05}.json"))
    }

    /// The note of a piece that stands whole; nothing where the piece must be made.
    pub(crate) fn load(&self, unit: &str, piece: usize) -> Option<Note> {
        let note: Note = serde_json::from_slice(&std::fs::read(self.note(unit, piece)).ok()?).ok()?;
        if let Some(want) = &note.shard {
            let shard = Shard::open(&self.shard(unit, piece), Check::Everything).ok()?;
            let h = shard.header();
            if (hex(&h.digest()), h.documents, h.tokens) != (want.clone(), note.kept, note.tokens) {
                return None;
            }
        }
        Some(note)
    }

    /// Writes the note of a piece whose shard stands.
    pub(crate) fn save(&self, unit: &str, piece: usize, note: &Note) -> Result<(), PackError> {
        let json = serde_json::to_vec(note).expect("plain values");
        write_aside(&self.note(unit, piece), &json)
    }

    /// Removes the pieces, and then the rest: a process that ends in between leaves a folder that
    /// says it is done, or holds nothing.
    pub(crate) fn remove(self) -> Result<(), PackError> {
        let remove = || {
            for entry in std::fs::read_dir(&self.dir)? {
                let path = entry?.path();
                if path.extension().is_some() {
                    std::fs::remove_file(path)?;
                }
            }
            std::fs::remove_dir_all(&self.dir)
        };
        remove().map_err(|source| PackError::Io { path: self.dir.clone(), action: "remove", source })
    }

    /// Removes the folder unless it holds a piece worth keeping.
    pub(crate) fn remove_if_idle(self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let worth = |e: std::fs::DirEntry| e.path().extension().is_some_and(|x| x == "shard");
        if !entries.flatten().any(worth) {
            // A folder that stays does no harm.
            let _ = self.remove();
        }
    }
}
