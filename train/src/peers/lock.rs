//! One process a folder: a lock on the file `lock` in it, held for the process's life.
//!
//! The lock is the system's (`flock`), so it goes with the process that holds it, however that ends: a peer that was killed
//! starts again at once. What is in the file, the number of the process, is for people. The file itself stays.

use super::PeersError;
use crate::folder::FolderError;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

/// Name of the file inside a peer's folder.
pub const LOCK: &str = "lock";

/// A folder that nobody else can take while this lives.
#[derive(Debug)]
pub struct Lock {
    /// Closed with this, which ends the lock.
    _file: File,
}

impl Lock {
    /// Takes `dir`, which is there.
    ///
    /// # Errors
    /// [`PeersError::Taken`] while another process has it.
    pub fn take(dir: &Path) -> Result<Lock, PeersError> {
        let path = dir.join(LOCK);
        let fault = |source| FolderError::Io { path: path.clone(), action: "lock", source };
        // Its content belongs to whoever holds the lock, so it is cut only behind that.
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(fault)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut by = String::new();
                // Where it cannot be read, the folder is taken all the same.
                let _ = file.take(32).read_to_string(&mut by);
                return Err(PeersError::Taken { dir: dir.into(), by: by.trim().into() });
            }
            Err(TryLockError::Error(source)) => return Err(fault(source).into()),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(fault)?;
        Ok(Lock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder_and_is_free_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let text = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
        assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("--dir"), "{text}");
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
