//! Which checkpoints stay, and how one goes.

use super::{CheckpointError, io_error, listed};
use std::fs;
use std::path::{Path, PathBuf};

/// Removes what `keep_last` and `keep_every` do not keep, after the one of step `newest` was written whole; gives the
/// folders that went. One newer than `newest` is damaged, since this run went back behind it: it is left for a person to look at.
pub fn prune(dir: &Path, newest: u64, keep_last: usize, keep_every: u64) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut all = listed(dir)?;
    all.retain(|&(step, _)| step <= newest);
    let mut gone = Vec::new();
    for (step, path) in &all[..all.len().saturating_sub(keep_last.max(1))] {
        if keep_every > 0 && step.is_multiple_of(keep_every) {
            continue;
        }
        remove(path)?;
        gone.push(path.clone());
    }
    Ok(gone)
}

/// Removes what a killed process left aside: half-written and half-deleted folders.
pub fn clean(dir: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(dir).map_err(io_error(dir, "list"))? {
        let entry = entry.map_err(io_error(dir, "list"))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(".tmp-step-") || n.starts_with(".old-step-")) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io_error(&path, "remove"))?;
        }
    }
    Ok(())
}

/// Renames a checkpoint away, then deletes it: it never has its name without being whole.
pub(super) fn remove(path: &Path) -> Result<(), CheckpointError> {
    if !path.exists() {
        return Ok(());
    }
    let name = path.file_name().and_then(|n| n.to_str()).expect("checkpoint: all names are ours");
    let old = path.with_file_name(format!(".old-{name}"));
    if old.exists() {
        fs::remove_dir_all(&old).map_err(io_error(&old, "remove"))?;
    }
    fs::rename(path, &old).map_err(io_error(path, "rename"))?;
    fs::remove_dir_all(&old).map_err(io_error(&old, "remove"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(have: &[u64], newest: u64, keep_last: usize, keep_every: u64, want: &[u64]) {
        let dir = tempfile::tempdir().unwrap();
        for step in have {
            fs::create_dir_all(dir.path().join(super::super::name_of(*step)).join("inside")).unwrap();
        }
        prune(dir.path(), newest, keep_last, keep_every).unwrap();
        let left: Vec<u64> = listed(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(left, want, "of {have:?}, newest {newest}, last {keep_last}, every {keep_every}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), want.len());
    }

    #[test]
    fn the_last_and_the_round_ones_stay() {
        check(&[1, 2, 3, 4], 4, 2, 0, &[3, 4]);
        check(&[1, 2, 3, 4], 4, 1, 2, &[2, 4]);
        check(&[5, 10, 15, 20, 25], 25, 1, 10, &[10, 20, 25]);
        check(&[1], 1, 1, 0, &[1]);
        check(&[1, 2, 9], 2, 1, 0, &[2, 9]);
        check(&[999_999, 1_000_000, 1_000_001], 1_000_001, 2, 0, &[1_000_000, 1_000_001]);
    }

    #[test]
    fn what_was_left_aside_goes() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".tmp-step-000003", ".old-step-000001", "step-000002"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        clean(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
