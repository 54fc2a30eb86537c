//! What a process finds in its store when it starts: whole blobs by name and length, parts chunk by chunk.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use super::{Entry, Found, Store, StoreError};
use crate::blob::map::{self, Map};
use crate::blob::tree::{self, BLOB_MAX, Bits, CHUNK, Namer, Outline, chunk_len, chunks};
use crate::hash::Hash;

impl Store {
    /// The store in `dir`, made if it is not there.
    ///
    /// # Errors
    /// When the disk fails. What it holds that makes no sense is deleted, not an error.
    pub fn open(dir: &Path, quota: u64) -> Result<(Store, Found), StoreError> {
        let store = Store { dir: Some(dir.into()), ..Store::memory(quota) };
        let mut found = Found::default();
        fs::create_dir_all(dir).map_err(|e| store.fault(dir, e))?;
        let mut names: BTreeMap<Hash, [bool; 3]> = BTreeMap::new();
        for file in fs::read_dir(dir).map_err(|e| store.fault(dir, e))? {
            let path = file.map_err(|e| store.fault(dir, e))?.path();
            let stem = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<Hash>().ok());
            let kind = ["blob", "part", "map"].iter().position(|k| path.extension().is_some_and(|e| e == *k));
            match (stem, kind) {
                (Some(name), Some(kind)) => names.entry(name).or_default()[kind] = true,
                _ => {
                    fs::remove_file(&path).map_err(|e| store.fault(&path, e))?;
                    found.dropped += 1;
                }
            }
        }
        for (name, [blob, part, map]) in names {
            store.take_up(name, blob, part, map, &mut found)?;
        }
        Ok((store, found))
    }

    /// Takes up the files of one name, or deletes them.
    fn take_up(&self, name: Hash, blob: bool, part: bool, map: bool, found: &mut Found) -> Result<(), StoreError> {
        let journal = if map { self.read_map(name)? } else { None };
        if blob {
            let path = self.path(&name, "blob");
            let size = fs::metadata(&path).map_err(|e| self.fault(&path, e))?.len();
            let known = journal.filter(|j| j.size == size && j.outline.is_some());
            let entry = match known {
                Some(j) => Some((j.keep, j.outline.expect("just seen"))),
                // Without a journal the blob must prove its name anew.
                None => match File::open(&path).and_then(name_of) {
                    Ok((n, _, outline)) if n == name => Some((0, outline)),
                    Ok(_) => None,
                    Err(e) => return Err(self.fault(&path, e)),
                },
            };
            if let Some((keep, outline)) = entry {
                let have = Bits::all(chunks(size));
                let map = Map { name, size, keep, outline: Some(outline.clone()), have: have.clone() };
                self.write_file(&self.path(&name, "map"), &map.to_bytes())?;
                let entry =
                    Entry { size, keep, outline: Some(Arc::new(outline)), have, whole: true, bytes: Vec::new() };
                self.enter(name, entry);
                found.blobs += 1;
                return Ok(());
            }
        } else if part && let Some(journal) = journal {
            let entry = self.check_part(journal)?;
            found.parts += 1;
            found.chunks += u64::from(entry.have.count());
            let full = entry.have.is_full();
            self.enter(name, entry);
            return if full { self.complete(name) } else { Ok(()) };
        }
        found.dropped += 1;
        self.delete(&name)
    }

    /// Keeps of a part what its outline confirms.
    fn check_part(&self, journal: Map) -> Result<Entry, StoreError> {
        let Map { name, size, keep, outline, mut have } = journal;
        let path = self.path(&name, "part");
        let mut file = File::open(&path).map_err(|e| self.fault(&path, e))?;
        for i in 0..have.len() {
            if have.get(i) {
                let mut chunk = vec![0; chunk_len(size, i)];
                let read =
                    file.seek(SeekFrom::Start(u64::from(i) * CHUNK as u64)).and_then(|_| file.read_exact(&mut chunk));
                let good = read.is_ok() && outline.as_ref().is_some_and(|o| o.holds(&name, size, i, &chunk));
                if !good {
                    have.clear(i);
                }
            }
        }
        let map = Map { name, size, keep, outline: outline.clone(), have: have.clone() };
        self.write_file(&self.path(&name, "map"), &map.to_bytes())?;
        self.resize(&path, size)?;
        Ok(Entry { size, keep, outline: outline.map(Arc::new), have, whole: false, bytes: Vec::new() })
    }

    fn read_map(&self, name: Hash) -> Result<Option<Map>, StoreError> {
        let path = self.path(&name, "map");
        let len = fs::metadata(&path).map_err(|e| self.fault(&path, e))?.len();
        if len > map::len_for(BLOB_MAX) as u64 {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(|e| self.fault(&path, e))?;
        Ok(Map::parse(&bytes).ok().filter(|m| m.name == name))
    }
}

/// Names what a file holds.
fn name_of(mut from: File) -> io::Result<(Hash, u64, Outline)> {
    let mut namer = Namer::default();
    let mut chunk = vec![0; CHUNK];
    for i in 0..=tree::CHUNKS_MAX {
        let mut filled = 0;
        while filled < CHUNK {
            match from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if filled == 0 {
            return Ok(namer.done());
        }
        if i == tree::CHUNKS_MAX {
            break;
        }
        namer.push(&chunk[..filled]);
        if filled < CHUNK {
            return Ok(namer.done());
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a blob above 32 GiB"))
}
