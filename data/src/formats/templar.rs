//! Templar: one stream of u32 ids in train_N.npy, and an id of each window in sample_ids_N.bin.
//!
//! ```text
//! train_N.npy        npy header (or none), u32 ids, the end mark after each document
//! sample_ids_N.bin   u64 of each window: the first 8 bytes, little endian, of BLAKE2b with a
//!                    digest of 8 bytes over the window's bytes; windows follow each other
//! ```
//!
//! Two slips of the published scripts are in the wild and read here: sample_ids_N.bin may be an
//! .npy file under that name, and the windows may have been hashed from the start of the token
//! file, header and all, which shifts them by 32 ids. Import holds every window against its id.
//!
//! There and back both files are equal (ids without npy header, windows hashed as defined). What
//! does not fill a window is left out.
//!
//! Source: <https://github.com/one-covenant/templar> at c2397ac, src/tplr/sharded_dataset.py.

use std::path::{Path, PathBuf};

use blake2::digest::consts::U8;
use blake2::{Blake2b, Digest};
use rayon::prelude::*;

use super::export::{Job, Written};
use super::raw::{Array, Bounds, Raw, map, word};
use super::{Division, Format, FormatError, Int, Options, marks, npy, sniff};

/// sample_ids_N.bin of train_N.npy.
pub(super) fn ids_of(path: &Path) -> Option<PathBuf> {
    let stem = path.file_stem()?.to_str()?;
    let (_, number) = stem.rsplit_once('_')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| path.with_file_name(format!("sample_ids_{number}.bin")))
}

/// Whether a file is a table of ids by its name.
pub(super) fn is_ids(path: &Path) -> bool {
    let name = sniff::name(path);
    name.starts_with("sample_ids_") && name.ends_with(".bin")
}

/// The id of a window.
pub(super) fn sample_id(window: &[u8]) -> u64 {
    u64::from_le_bytes(Blake2b::<U8>::digest(window).into())
}

fn array(path: &Path) -> Result<Array, FormatError> {
    let map = map(path)?;
    if !map.starts_with(npy::MAGIC) {
        return Array::new(path, map, 0, Int::U32, None);
    }
    let header = npy::header(&map, path)?;
    if (header.int, header.shape.len()) != (Int::U32, 1) {
        let got = format!("{} in {} dimensions", header.int, header.shape.len());
        return Err(FormatError::field(path, "array", got, "u32 in one dimension"));
    }
    Array::new(path, map, header.at, Int::U32, Some(header.tokens))
}

pub(super) fn open(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let array = array(path)?;
    let bounds = match options.division {
        Division::Records => match ids(&array)? {
            Some((_, window)) => Bounds::Every(window),
            None => {
                let why = "the length of a window follows from it".into();
                return Err(FormatError::Missing { path: path.into(), what: "sample_ids_N.bin beside the file", why });
            }
        },
        Division::Auto | Division::Marks => marks(path, options, "Templar's files hold nothing but tokens")?,
    };
    Ok(Raw { array, bounds, rotated: false })
}

/// The ids beside a token file, and the tokens of a window.
fn ids(array: &Array) -> Result<Option<(Vec<u64>, u64)>, FormatError> {
    let Some(path) = ids_of(&array.path).filter(|path| path.is_file()) else { return Ok(None) };
    let map = map(&path)?;
    let bytes = if map.starts_with(npy::MAGIC) {
        let header = npy::header(&map, &path)?;
        if (header.int, header.shape.len()) != (Int::U64, 1) {
            let got = format!("{} in {} dimensions", header.int, header.shape.len());
            return Err(FormatError::field(&path, "array", got, "u64 in one dimension"));
        }
        &map[header.at..]
    } else {
        &map[..]
    };
    let count = bytes.len() as u64 / 8;
    if bytes.len() % 8 != 0 || count == 0 || array.tokens == 0 || !array.tokens.is_multiple_of(count) {
        let want = format!("8 for each window of the {} tokens of {}", array.tokens, array.path.display());
        return Err(FormatError::field(&path, "bytes of ids", bytes.len(), want));
    }
    let ids = (0..count as usize).map(|i| word(bytes, 8 * i)).collect();
    Ok(Some((ids, array.tokens / count)))
}

/// Holds every window against its id, on all cores; reads the whole file.
pub(super) fn verify(array: &Array) -> Result<(), FormatError> {
    let Some((ids, window)) = ids(array)? else { return Ok(()) };
    let plain = |i: u64| sample_id(array.bytes(i * window..(i + 1) * window));
    let shifted = |i: u64| {
        let at = (i * window * 4) as usize;
        sample_id(&array.file()[at..at + window as usize * 4])
    };
    // Which of the two it is, the first window tells; a file without header has no shift.
    let id: &(dyn Fn(u64) -> u64 + Sync) = if plain(0) != ids[0] && shifted(0) == ids[0] { &shifted } else { &plain };
    let wrong = (0..ids.len()).into_par_iter().find_first(|&i| id(i as u64) != ids[i]);
    match wrong {
        None => Ok(()),
        Some(i) => {
            let what =
                format!("window {i} of {window} tokens has id {:016x}, sample_ids says {:016x}", id(i as u64), ids[i]);
            Err(FormatError::damaged(&array.path, Format::Templar, what))
        }
    }
}

/// Writes SPLIT/train_000000.npy and SPLIT/sample_ids_000000.bin.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let length = job.seq_len("the tokens of a window (Templar trains on 2048)")?;
    let tokens: u64 = job.lengths().sum();
    let mut data = job.create_in("train_000000.npy")?;
    data.bytes(&npy::header_bytes("<u4", &[tokens / length as u64 * length as u64]))?;
    let mut ids = job.create_in("sample_ids_000000.bin")?;
    let mut bytes = Vec::new();
    let rest = job.windows(length, |window| {
        bytes.clear();
        Int::U32.write(window, &mut bytes).expect("every id fits u32");
        ids.bytes(&sample_id(&bytes).to_le_bytes())?;
        data.bytes(&bytes)
    })?;
    let mut written = Written { dropped_tokens: rest.len() as u64, ..Written::default() };
    written.add(data.finish()?);
    written.add(ids.finish()?);
    Ok(written)
}
