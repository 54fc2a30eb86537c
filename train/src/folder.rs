//! The folder of a run: its name, what lies where, and who may write it.
//!
//! ```text
//! <out>/<name>-001/
//!   config.toml     the effective configuration
//!   plan.json       what was planned
//!   steps.jsonl     one line a step         evals.jsonl   one a validation
//!   data/           the packed corpus, when it is the embedded one
//!   ckpt/           checkpoints
//!   lock            held by the process that trains
//! ```
//!
//! A folder appears whole, by one rename, so there is none without a configuration.

use crate::config::Run;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Name of the effective configuration inside a run's folder.
pub const CONFIG: &str = "config.toml";
/// Name of the folder of checkpoints inside a run's folder.
pub const CHECKPOINTS: &str = "ckpt";

/// Why a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
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
    /// Another process trains in it.
    #[error("{folder}: another process trains in this folder; wait for it, or stop it with Ctrl-C")]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder is not a run's.
    #[error("{folder}: not the folder of a run: it has no {CONFIG}{}", near(.folder))]
    NoRun {
        /// The folder.
        folder: PathBuf,
    },
}

/// A checkpoint's folder handed in for its run's is a likely mistake.
fn near(folder: &Path) -> String {
    let run = folder.ancestors().skip(1).take(2).find(|dir| !dir.as_os_str().is_empty() && dir.join(CONFIG).exists());
    run.map_or(String::new(), |dir| format!(" (did you mean {}?)", dir.display()))
}

/// A folder that this process alone may write, until dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the next free folder for `run` in `out`.
    pub fn create(out: &Path, run: &Run) -> Result<Folder, FolderError> {
        fs::create_dir_all(out).map_err(io_error(out, "create"))?;
        let aside = out.join(format!(".new-{}-{}", run.name, std::process::id()));
        fs::create_dir_all(aside.join(CHECKPOINTS)).map_err(io_error(&aside, "create"))?;
        write(&aside.join(CONFIG), run.to_toml().as_bytes())?;
        sync_dir(&aside)?;
        let taken = numbered(out, &run.name).last().map_or(0, |&(number, _)| number);
        for number in taken + 1.. {
            let path = out.join(format!("{}-{number:03}", run.name));
            match fs::rename(&aside, &path) {
                Ok(()) => {
                    sync_dir(out)?;
                    return Folder::open(&path);
                }
                // Another run took the number in between.
                Err(_) if path.exists() => continue,
                Err(e) => return Err(io_error(&path, "create")(e)),
            }
        }
        unreachable!("folder: the numbers of runs are endless")
    }

    /// Takes a run's folder that is there.
    pub fn open(path: &Path) -> Result<Folder, FolderError> {
        if !path.join(CONFIG).is_file() {
            return Err(FolderError::NoRun { folder: path.into() });
        }
        let lock_path = path.join("lock");
        let mut options = File::options();
        let lock = options.create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(io_error(&lock_path, "open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path: path.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::Locked { folder: path.into() }),
            Err(TryLockError::Error(e)) => Err(io_error(&lock_path, "lock")(e)),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its checkpoints lie.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }
}

/// The newest run of `name` in `out`.
pub fn latest(out: &Path, name: &str) -> Option<PathBuf> {
    numbered(out, name).pop().map(|(_, path)| path)
}

/// The runs of `name` in `out`, by number.
fn numbered(out: &Path, name: &str) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(out).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| {
            let file_name = e.file_name();
            let number = file_name.to_str()?.strip_prefix(name)?.strip_prefix('-')?.parse().ok()?;
            Some((number, e.path()))
        })
        .collect();
    found.sort();
    found
}

/// Writes a file aside, brings it to the disk, and renames it into its place.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = PathBuf::from(aside);
    let mut file = File::create(&aside).map_err(io_error(&aside, "create"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error(&aside, "write"))?;
    fs::rename(&aside, path).map_err(io_error(path, "put into place"))
}

/// Brings a folder's entries to the disk.
pub fn sync_dir(path: &Path) -> Result<(), FolderError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error(path, "sync"))
}

fn io_error(path: &Path, action: &'static str) -> impl Fn(io::Error) -> FolderError {
    move |source| FolderError::Io { path: path.into(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn folders_are_numbered_and_held() {
        let dir = tempfile::tempdir().unwrap();
        let run = config::parse(include_str!("../../configs/quickstart.toml"), "quickstart.toml", &[]).unwrap();
        let first = Folder::create(dir.path(), &run).unwrap();
        let second = Folder::create(dir.path(), &run).unwrap();
        assert!(first.path().ends_with("quickstart-001") && second.path().ends_with("quickstart-002"));
        assert!(matches!(Folder::open(first.path()), Err(FolderError::Locked { .. })));
        assert_eq!(latest(dir.path(), "quickstart").unwrap(), second.path());
        let path = first.path().to_path_buf();
        drop(first);
        Folder::open(&path).unwrap();
        let error = Folder::open(&path.join(CHECKPOINTS)).unwrap_err().to_string();
        assert!(error.contains("did you mean"), "{error}");
        assert_eq!(config::load(&path.join(CONFIG), &[]).unwrap(), run);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left aside");
    }
}
