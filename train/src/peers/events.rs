//! The event log of a process on disk: what it saw and did, appended as it happens, never changed.
//!
//! ```text
//! <folder>/events/00001.log    lines as esker_comms::round::log frames them
//! <folder>/events/00002.log    a file for each start, and a new one where one has 64 MiB
//! ```
//!
//! A kill cuts at most the last line of a file, and since each start has its own, nothing behind the cut is lost. Old
//! files may be deleted at any time: nothing reads them but [`crate::peers::replay`].

use crate::folder::FolderError;
use esker_comms::round::log::Timed;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the logs' folder inside a peer's.
pub const EVENTS: &str = "events";
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The log of a process that runs.
#[derive(Debug)]
pub struct EventLog {
    dir: PathBuf,
    number: u32,
    file: File,
    bytes: u64,
    failed: bool,
}

impl EventLog {
    /// Begins a file behind those in `folder`, a peer's.
    ///
    /// # Errors
    /// Where the folder or the file cannot be had.
    pub fn open(folder: &Path) -> Result<EventLog, FolderError> {
        let dir = folder.join(EVENTS);
        fs::create_dir_all(&dir).map_err(fault(&dir, "create"))?;
        let number = files(&dir)?.last().and_then(|last| number(last)).map_or(1, |n| n + 1);
        Ok(EventLog { file: create(&dir, number)?, dir, number, bytes: 0, failed: false })
    }

    /// Appends a line. A disk that fails costs the log, not the run: it is said once.
    pub fn put(&mut self, line: &Timed) {
        if self.failed {
            return;
        }
        if let Err(error) = self.append(&line.encode_framed()) {
            tracing::warn!(target: "esker::peer", %error, "the event log ends here");
            self.failed = true;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FolderError> {
        if self.bytes >= FILE_BYTES_MAX {
            self.number += 1;
            (self.file, self.bytes) = (create(&self.dir, self.number)?, 0);
        }
        self.file.write_all(bytes).map_err(fault(&self.dir, "append to"))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn create(dir: &Path, number: u32) -> Result<File, FolderError> {
    let path = dir.join(format!("{number:05}.log"));
    File::options().append(true).create_new(true).open(&path).map_err(fault(&path, "create"))
}

fn number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()
}

fn fault(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { path, action, source }
}

/// The files of a log in their order: `path` is one of them, their folder, or a peer's.
///
/// # Errors
/// Where it cannot be read.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, FolderError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let inner = path.join(EVENTS);
    let dir = if inner.is_dir() { inner } else { path.to_owned() };
    let entries = fs::read_dir(&dir).map_err(fault(&dir, "list"))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| number(p).is_some()).collect();
    found.sort_by_key(|p| number(p));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use esker_comms::round::log::{Line, walk};

    #[test]
    fn each_start_has_its_file_and_a_cut_costs_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let line = |at| Timed { at, line: Line::Counted { round: at } };
        for start in 0..2 {
            let mut log = EventLog::open(dir.path()).unwrap();
            (0..3).for_each(|i| log.put(&line(10 * start + i)));
        }
        let found = files(dir.path()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(files(&dir.path().join(EVENTS)).unwrap(), found);
        let first = fs::read(&found[0]).unwrap();
        fs::write(&found[0], &first[..first.len() - 1]).unwrap();
        let mut times = Vec::new();
        for file in found {
            walk(&fs::read(file).unwrap(), |timed| times.push(timed.at));
        }
        assert_eq!(times, [0, 1, 10, 11, 12]);
    }
}
