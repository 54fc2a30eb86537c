//! `manifest.json`: what a checkpoint's files must be, to the byte.

use super::{CheckpointError, STATE, io_error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Its name.
pub(super) const MANIFEST: &str = "manifest.json";
/// A checkpoint has half a dozen files, and each entry takes about 120 bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 14;
const VERSION: u32 = 1;
/// Without these it is no checkpoint, whatever the manifest says.
const REQUIRED: [&str; 3] = ["config.json", "model.safetensors", STATE];

/// The files of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub version: u32,
    /// Steps done.
    pub step: u64,
    /// All files but this one, by name.
    pub files: Vec<Entry>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest, in hex.
    pub blake3: String,
}

impl Manifest {
    /// The manifest that every file now in `folder`, but for a manifest, would pass.
    pub fn of_files(folder: &Path, step: u64) -> Result<Manifest, CheckpointError> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(folder).map_err(io_error(folder, "list"))? {
            let name = entry.map_err(io_error(folder, "list"))?.file_name();
            if name != MANIFEST {
                names.insert(name.into_string().expect("checkpoint: all names are ours"));
            }
        }
        let files = names.into_iter().map(|name| {
            let (bytes, blake3) = digest(&folder.join(&name))?;
            Ok(Entry { name, bytes, blake3 })
        });
        Ok(Manifest { version: VERSION, step, files: files.collect::<Result<_, CheckpointError>>()? })
    }

    /// As it stands in the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("checkpoint: a manifest is always JSON")
    }

    /// Reads the manifest in `folder` and holds every file against it.
    pub fn verify(folder: &Path, step: u64) -> Result<Manifest, CheckpointError> {
        let path = folder.join(MANIFEST);
        let manifest = Manifest::read(&path)?;
        let damaged = |field: String, why: String| CheckpointError::Damaged { file: path.clone(), field, why };
        if manifest.step != step {
            return Err(damaged("step".into(), format!("{}, but the folder is {}", manifest.step, folder.display())));
        }
        for name in REQUIRED {
            if !manifest.files.iter().any(|f| f.name == name) {
                return Err(damaged("files".into(), format!("no entry for {name}")));
            }
        }
        for (i, entry) in manifest.files.iter().enumerate() {
            if manifest.files[..i].iter().any(|before| before.name == entry.name) {
                return Err(damaged(format!("files[{i}].name"), format!("{:?} for the second time", entry.name)));
            }
            if entry.name.is_empty() || entry.name.starts_with('.') || entry.name.contains(['/', '\\']) {
                let why = format!("{:?} is no name of a file in the folder", entry.name);
                return Err(damaged(format!("files[{i}].name"), why));
            }
            let file = folder.join(&entry.name);
            // The length first: it costs nothing.
            let length = fs::metadata(&file).map_err(io_error(&file, "read"))?.len();
            let wrong =
                |field: &str, why: String| CheckpointError::Damaged { file: file.clone(), field: field.into(), why };
            if length != entry.bytes {
                return Err(wrong("length", format!("{length} bytes, but the manifest says {}", entry.bytes)));
            }
            let (_, blake3) = digest(&file)?;
            if blake3 != entry.blake3 {
                return Err(wrong("digest", format!("blake3 is {blake3}, but the manifest says {}", entry.blake3)));
            }
        }
        Ok(manifest)
    }

    fn read(path: &PathBuf) -> Result<Manifest, CheckpointError> {
        let file = File::open(path).map_err(io_error(path, "open"))?;
        let mut text = Vec::new();
        file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut text).map_err(io_error(path, "read"))?;
        let damaged =
            |field: &str, why: String| CheckpointError::Damaged { file: path.clone(), field: field.into(), why };
        if text.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(damaged("length", format!("longer than {MANIFEST_BYTES_MAX} bytes")));
        }
        let mut json = serde_json::Deserializer::from_slice(&text);
        let manifest: Manifest = serde_path_to_error::deserialize(&mut json)
            .map_err(|e| damaged(&e.path().to_string(), e.inner().to_string()))?;
        json.end().map_err(|e| damaged("end", e.to_string()))?;
        match manifest.version {
            VERSION => Ok(manifest),
            got => Err(damaged("version", format!("{got}, but this build reads {VERSION}"))),
        }
    }
}

/// Length and blake3 of a file, read in pieces.
fn digest(path: &Path) -> Result<(u64, String), CheckpointError> {
    let mut file = File::open(path).map_err(io_error(path, "open"))?;
    let (mut hasher, mut bytes, mut piece) = (blake3::Hasher::new(), 0, vec![0; 1 << 18]);
    loop {
        match file.read(&mut piece).map_err(io_error(path, "read"))? {
            0 => return Ok((bytes, hasher.finalize().to_hex().to_string())),
            n => {
                hasher.update(&piece[..n]);
                bytes += n as u64;
            }
        }
    }
}
