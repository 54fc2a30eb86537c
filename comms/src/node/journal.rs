//! The journal as a file: read, cut where a kill cut it, kept short, appended to and synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::NodeError;
use crate::RunSpec;
use crate::round::Record;
use crate::round::journal::{compact, recover};

pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal in `dir` and gives its records. Those that no longer matter, before `round`, are left out of
    /// the file; the new file takes the old one's place in one step.
    pub fn open(dir: &Path, spec: &RunSpec, round: u64) -> Result<(Journal, Vec<Record>), NodeError> {
        let path = dir.join("journal");
        let fault = |source| NodeError::Journal { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(fault)?;
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(fault)?,
        };
        let (records, _) = recover(spec, &bytes);
        let records = compact(spec, records, round);
        let aside = dir.join("journal.new");
        let write = || {
            let mut file = File::create(&aside)?;
            for record in &records {
                file.write_all(&record.encode())?;
            }
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(dir)?.sync_all()?;
            OpenOptions::new().append(true).open(&path)
        };
        let file = write().map_err(fault)?;
        Ok((Journal { path, file }, records))
    }

    /// Appends a record; it is durable when this returns.
    pub fn append(&mut self, record: &Record) -> Result<(), NodeError> {
        let write = self.file.write_all(&record.encode()).and_then(|()| self.file.sync_data());
        write.map_err(|source| NodeError::Journal { path: self.path.clone(), source })
    }
}
