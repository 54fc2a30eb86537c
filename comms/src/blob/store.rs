//! Blobs on disk, by name.
//!
//! | file | |
//! | --- | --- |
//! | `NAME.part` | a blob on its way, full length from the start, with holes |
//! | `NAME.blob` | a whole blob: the part, synced and renamed |
//! | `NAME.map` | its journal (`map.rs`), kept while either is there |
//!
//! A process may die at any byte. `open` takes up what is there: whole blobs by their name and length, parts chunk by
//! chunk against their outlines. The quota counts a blob's full size from `begin` on, so a transfer that has started
//! never ends for want of room that the store itself has given away.
//!
//! Calls block on the disk, for a chunk at a time; the async side calls them off its thread. A store in memory does
//! the same for tests and for processes that hold little.

mod take_up;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::map::{self, Map};
use super::tree::{self, BLOB_MAX, Bits, CHUNK, Outline, chunk_len, chunks};
use crate::hash::Hash;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The owner's quota is used up.
    #[error("{need} bytes do not fit: {used} of {quota} are used in {place}; raise the quota or keep fewer rounds")]
    Quota {
        /// Bytes wanted.
        need: u64,
        /// Bytes used.
        used: u64,
        /// The quota.
        quota: u64,
        /// The folder.
        place: String,
    },
    /// The disk is full though the quota is not.
    #[error("the disk under {place} is full; free some of it or lower the quota below what it has")]
    DiskFull {
        /// The folder.
        place: String,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A blob beyond 32 GiB.
    #[error("a blob of {size} bytes; at most {BLOB_MAX} are allowed: cut it")]
    Long {
        /// Its size.
        size: u64,
    },
    /// The same name with two sizes: one of the callers is wrong.
    #[error("{name} is held with {held} bytes, not with {asked}")]
    Size {
        /// The blob.
        name: Hash,
        /// Its size here.
        held: u64,
        /// The size asked for.
        asked: u64,
    },
    /// The blob was never begun, or has been pruned.
    #[error("{name} is not in the store")]
    Absent {
        /// The blob.
        name: Hash,
    },
}

/// What `put` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The bytes are not that chunk.
    Lie,
    /// It was there.
    Had,
    /// Written; more are missing.
    More,
    /// Written, and the blob is whole.
    Whole,
}

/// What `open` found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole blobs.
    pub blobs: usize,
    /// Parts taken up.
    pub parts: usize,
    /// Chunks of parts that passed.
    pub chunks: u64,
    /// Files that were nothing, and are deleted.
    pub dropped: usize,
}

struct Entry {
    size: u64,
    keep: u64,
    outline: Option<Arc<Outline>>,
    have: Bits,
    whole: bool,
    /// Only in memory.
    bytes: Vec<u8>,
}

struct Inner {
    blobs: BTreeMap<Hash, Entry>,
    used: u64,
}

/// The store. Shared by reference.
pub struct Store {
    dir: Option<PathBuf>,
    quota: u64,
    inner: Mutex<Inner>,
}

impl Store {
    /// A store in memory.
    pub fn memory(quota: u64) -> Store {
        Store { dir: None, quota, inner: Mutex::new(Inner { blobs: BTreeMap::new(), used: 0 }) }
    }

    /// Whether calls touch a disk.
    pub fn on_disk(&self) -> bool {
        self.dir.is_some()
    }

    fn enter(&self, name: Hash, entry: Entry) {
        let mut inner = self.lock();
        inner.used += entry.size;
        inner.blobs.insert(name, entry);
    }

    /// Holds bytes that this process made, until `keep`.
    ///
    /// # Errors
    /// When they do not fit or the disk fails.
    pub fn insert(&self, bytes: &[u8], keep: u64) -> Result<Hash, StoreError> {
        let (name, size, outline) = tree::name(bytes);
        self.begin(name, size, keep)?;
        if self.is_whole(&name) {
            return Ok(name);
        }
        self.put_outline(&name, outline.bytes())?;
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            if self.put_checked(&name, i as u32, chunk)? == Put::Whole {
                break;
            }
        }
        Ok(name)
    }

    /// Makes room for a blob that is to come, until `keep`. Once is enough; again raises `keep`.
    ///
    /// # Errors
    /// When it does not fit, is held with another size, or the disk fails.
    pub fn begin(&self, name: Hash, size: u64, keep: u64) -> Result<(), StoreError> {
        if size > BLOB_MAX {
            return Err(StoreError::Long { size });
        }
        let mut inner = self.lock();
        if let Some(entry) = inner.blobs.get(&name) {
            if entry.size != size {
                return Err(StoreError::Size { name, held: entry.size, asked: size });
            }
            drop(inner);
            return self.keep(&name, keep);
        }
        if inner.used + size > self.quota {
            let place = self.place();
            return Err(StoreError::Quota { need: size, used: inner.used, quota: self.quota, place });
        }
        let outline = (Outline::len_for(size) == 0)
            .then(|| Outline::checked(&[], &name, size).expect("one chunk has an empty outline"));
        let have = Bits::none(chunks(size));
        if self.dir.is_some() {
            let map = Map { name, size, keep, outline: outline.clone(), have: have.clone() };
            self.write_file(&self.path(&name, "map"), &map.to_bytes())?;
            self.resize(&self.path(&name, "part"), size)?;
        }
        let bytes = if self.dir.is_none() { vec![0; size as usize] } else { Vec::new() };
        inner.used += size;
        let outline = outline.map(Arc::new);
        inner.blobs.insert(name, Entry { size, keep, outline, have, whole: false, bytes });
        drop(inner);
        if size == 0 { self.complete(name) } else { Ok(()) }
    }

    /// Takes an outline that came from anywhere. False if it is not the blob's.
    ///
    /// # Errors
    /// When the blob is not here or the disk fails.
    pub fn put_outline(&self, name: &Hash, bytes: &[u8]) -> Result<bool, StoreError> {
        let size = self.size(name).ok_or(StoreError::Absent { name: *name })?;
        let Some(outline) = Outline::checked(bytes, name, size) else { return Ok(false) };
        if self.dir.is_some() {
            let path = self.path(name, "map");
            self.write_at(&path, map::HEAD as u64, outline.bytes())?;
            self.write_at(&path, map::KNOWN_AT, &1u32.to_le_bytes())?;
        }
        if let Some(entry) = self.lock().blobs.get_mut(name) {
            entry.outline = Some(Arc::new(outline));
        }
        Ok(true)
    }

    /// Takes a chunk that came from anywhere.
    ///
    /// # Errors
    /// When the blob is not here or the disk fails.
    pub fn put(&self, name: &Hash, index: u32, bytes: &[u8]) -> Result<Put, StoreError> {
        let (size, outline, had) = {
            let inner = self.lock();
            let entry = inner.blobs.get(name).ok_or(StoreError::Absent { name: *name })?;
            (entry.size, entry.outline.clone(), entry.whole || entry.have.get(index))
        };
        if had {
            return Ok(Put::Had);
        }
        let good = index < chunks(size) && outline.is_some_and(|o| o.holds(name, size, index, bytes));
        if good { self.put_checked(name, index, bytes) } else { Ok(Put::Lie) }
    }

    fn put_checked(&self, name: &Hash, index: u32, bytes: &[u8]) -> Result<Put, StoreError> {
        let at = u64::from(index) * CHUNK as u64;
        if self.dir.is_some() {
            match self.write_at(&self.path(name, "part"), at, bytes) {
                // Another task has just brought the same last chunk.
                Err(_) if self.is_whole(name) => return Ok(Put::Had),
                other => other?,
            }
        }
        let full = {
            let mut inner = self.lock();
            let Some(entry) = inner.blobs.get_mut(name) else { return Err(StoreError::Absent { name: *name }) };
            if entry.have.get(index) {
                return Ok(Put::Had);
            }
            entry.have.set(index);
            if self.dir.is_none() {
                entry.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
            } else {
                let byte = index as usize / 8;
                let place = (map::bits_at(entry.size) + byte) as u64;
                self.write_at(&self.path(name, "map"), place, &entry.have.bytes()[byte..=byte])?;
            }
            entry.have.is_full()
        };
        if full {
            self.complete(*name)?;
            return Ok(Put::Whole);
        }
        Ok(Put::More)
    }

    fn complete(&self, name: Hash) -> Result<(), StoreError> {
        if self.dir.is_some() {
            let (part, blob) = (self.path(&name, "part"), self.path(&name, "blob"));
            let sync = OpenOptions::new().write(true).open(&part).and_then(|f| f.sync_all());
            sync.and_then(|()| fs::rename(&part, &blob)).map_err(|e| self.fault(&part, e))?;
        }
        if let Some(entry) = self.lock().blobs.get_mut(&name) {
            entry.whole = true;
        }
        Ok(())
    }

    /// Chunk `index`, if it is here. It was checked when it came; who gets it checks it again.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&self, name: &Hash, index: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let (len, kind) = {
            let inner = self.lock();
            let Some(entry) = inner.blobs.get(name).filter(|e| e.have.get(index)) else { return Ok(None) };
            let len = chunk_len(entry.size, index);
            if self.dir.is_none() {
                return Ok(Some(entry.bytes[index as usize * CHUNK..][..len].to_vec()));
            }
            (len, if entry.whole { "blob" } else { "part" })
        };
        let mut bytes = vec![0; len];
        let read = |kind| {
            let mut file = File::open(self.path(name, kind))?;
            file.seek(SeekFrom::Start(u64::from(index) * CHUNK as u64))?;
            file.read_exact(&mut bytes)
        };
        let mut read = read;
        // A part may become a blob between the two lines above, and either may be deleted by another thread.
        let result = match read(kind) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && kind == "part" => read("blob"),
            other => other,
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.size(name).is_none() => Ok(None),
            Err(e) => Err(self.fault(&self.path(name, kind), e)),
            Ok(()) => Ok(Some(bytes)),
        }
    }

    /// A whole blob, if it is whole. For updates and manifests; a checkpoint is read by chunks.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read_all(&self, name: &Hash) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(size) = self.size(name).filter(|_| self.is_whole(name)) else { return Ok(None) };
        let mut out = Vec::with_capacity(size as usize);
        for i in 0..chunks(size) {
            match self.read(name, i)? {
                Some(chunk) => out.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
        Ok(Some(out))
    }

    /// The file of a whole blob; none in memory.
    pub fn file(&self, name: &Hash) -> Option<PathBuf> {
        (self.dir.is_some() && self.is_whole(name)).then(|| self.path(name, "blob"))
    }

    /// Whether all of the blob is here.
    pub fn is_whole(&self, name: &Hash) -> bool {
        self.lock().blobs.get(name).is_some_and(|e| e.whole)
    }

    /// The blob's size, if it was begun.
    pub fn size(&self, name: &Hash) -> Option<u64> {
        self.lock().blobs.get(name).map(|e| e.size)
    }

    /// Which chunks are here.
    pub fn have(&self, name: &Hash) -> Option<Bits> {
        self.lock().blobs.get(name).map(|e| e.have.clone())
    }

    /// The blob's outline, if it is known.
    pub fn outline(&self, name: &Hash) -> Option<Arc<Outline>> {
        self.lock().blobs.get(name).and_then(|e| e.outline.clone())
    }

    /// Keeps the blob until `round` at least.
    ///
    /// # Errors
    /// When it is not here or the disk fails.
    pub fn keep(&self, name: &Hash, round: u64) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let entry = inner.blobs.get_mut(name).ok_or(StoreError::Absent { name: *name })?;
        if round <= entry.keep {
            return Ok(());
        }
        entry.keep = round;
        if self.dir.is_some() {
            self.write_at(&self.path(name, "map"), map::KEEP_AT, &round.to_le_bytes())?;
        }
        Ok(())
    }

    /// Deletes what no round from `round` on needs, parts too.
    ///
    /// # Errors
    /// When the disk fails; the rest is deleted at the next call.
    pub fn prune(&self, round: u64) -> Result<Vec<Hash>, StoreError> {
        let old = |e: &Entry| e.keep < round;
        let names: Vec<Hash> = self.lock().blobs.iter().filter(|(_, e)| old(e)).map(|(n, _)| *n).collect();
        let mut gone = Vec::new();
        for name in names {
            // Looked at again: another thread may want it kept by now.
            if self.delete_where(&name, old)? {
                gone.push(name);
            }
        }
        Ok(gone)
    }

    /// Deletes one blob.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, name: &Hash) -> Result<(), StoreError> {
        self.delete_where(name, |_| true).map(drop)
    }

    /// Deletes a blob of which `goes` holds. Entry and files go under one lock: who begins the same blob in between would
    /// else have its files deleted.
    fn delete_where(&self, name: &Hash, goes: impl Fn(&Entry) -> bool) -> Result<bool, StoreError> {
        let mut inner = self.lock();
        let Some(entry) = inner.blobs.get(name).filter(|e| goes(e)) else { return Ok(false) };
        inner.used -= entry.size;
        inner.blobs.remove(name);
        if self.dir.is_some() {
            self.delete(name)?;
        }
        Ok(true)
    }

    /// Bytes held or promised.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// The quota.
    pub fn quota(&self) -> u64 {
        self.quota
    }

    /// All names, with size and whether whole.
    pub fn list(&self) -> Vec<(Hash, u64, bool)> {
        self.lock().blobs.iter().map(|(n, e)| (*n, e.size, e.whole)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic under the store's lock")
    }

    fn place(&self) -> String {
        self.dir.as_ref().map_or("memory".into(), |d| d.display().to_string())
    }

    fn path(&self, name: &Hash, kind: &str) -> PathBuf {
        self.dir.as_ref().expect("paths are of stores on disk").join(format!("{name}.{kind}"))
    }

    fn fault(&self, path: &Path, source: io::Error) -> StoreError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull { place: self.place() },
            _ => StoreError::Io { path: path.into(), source },
        }
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        fs::write(path, bytes).map_err(|e| self.fault(path, e))
    }

    fn write_at(&self, path: &Path, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let write = || {
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(bytes)
        };
        write().map_err(|e| self.fault(path, e))
    }

    fn resize(&self, path: &Path, size: u64) -> Result<(), StoreError> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        file.and_then(|f| f.set_len(size)).map_err(|e| self.fault(path, e))
    }

    fn delete(&self, name: &Hash) -> Result<(), StoreError> {
        for kind in ["part", "blob", "map"] {
            let path = self.path(name, kind);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.fault(&path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
