//! Which format a file or folder has, by its name and first bytes, and which files of a folder
//! are data rather than tables beside them.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Format, FormatError, Input, beside, llmc, mds, megatron, npy, templar, tokshuf};

/// Entries of a folder that are looked at.
const ENTRIES_MAX: usize = 1 << 20;

/// The format of one file or folder.
pub(super) fn sniff(path: &Path) -> Result<Format, FormatError> {
    let meta = std::fs::metadata(path).map_err(FormatError::io(path, "find"))?;
    if !meta.is_dir() {
        return file(path);
    }
    if path.join(mds::INDEX).is_file() {
        return Ok(Format::Mds);
    }
    if path.join(tokshuf::MANIFEST).is_file() {
        return Ok(Format::Tokshuf);
    }
    let mut found: Option<(Format, PathBuf)> = None;
    for entry in entries(path)? {
        let Ok(format) = file(&entry) else { continue };
        if let Some((other, first)) = found.as_ref().filter(|(other, _)| *other != format) {
            let considered = format!("{} is {other}, {} is {format}", first.display(), entry.display());
            return Err(FormatError::Unknown { path: path.into(), considered });
        }
        found = Some((format, entry));
    }
    found.map(|(format, _)| format).ok_or_else(|| FormatError::Unknown {
        path: path.into(),
        considered: "looked for index.json (mds), manifest.jsonl or *.tar (tokshuf), *.bin, *.ds, *.npy; none is there"
            .into(),
    })
}

fn file(path: &Path) -> Result<Format, FormatError> {
    let name = name(path);
    let start = start(path)?;
    let unknown = |considered: String| FormatError::Unknown { path: path.into(), considered };
    let is = |ending: &str| name.ends_with(ending);
    if name == mds::INDEX {
        return Ok(Format::Mds);
    }
    if is(".tar") || name == tokshuf::MANIFEST {
        return Ok(Format::Tokshuf);
    }
    if templar::is_ids(path) {
        return Err(unknown("by its name it holds the sample ids of a Templar file; give train_N.npy".into()));
    }
    if start.starts_with(megatron::MAGIC) || is(".bin") && megatron::index_of(path).is_file() {
        return Ok(Format::Megatron);
    }
    if llmc::is_header(&start) {
        return Ok(Format::Llmc);
    }
    if is(".ds") {
        return Ok(Format::Datatrove);
    }
    if is(".npy") {
        let header = start.starts_with(npy::MAGIC);
        return Ok(match (templar::ids_of(path).is_some_and(|ids| ids.is_file()), header) {
            (true, _) => Format::Templar,
            (false, true) => Format::Npy,
            (false, false) => Format::Olmo,
        });
    }
    if is(".bin") {
        return Ok(Format::Nanogpt);
    }
    let ending = match name.rsplit_once('.') {
        Some((_, ending)) => format!("names that end in .{}", crate::brief(ending)),
        None => "names without an ending".into(),
    };
    Err(unknown(format!(
        "no format has {ending}, and it starts with none of the marks of megatron (MMIDIDX), llmc (20240520, 20240801) \
         and npy (\\x93NUMPY)"
    )))
}

/// The data files of an input of this format.
pub(super) fn files(path: &Path, format: Format) -> Result<Vec<Input>, FormatError> {
    let meta = std::fs::metadata(path).map_err(FormatError::io(path, "find"))?;
    let plain = |path: PathBuf| {
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        Input { path, bytes, contexts: None }
    };
    match format {
        Format::Mds => return Ok(vec![mds::input(path)?]),
        Format::Tokshuf if meta.is_dir() || name(path) == tokshuf::MANIFEST => return tokshuf::inputs(path),
        Format::Megatron if !meta.is_dir() => return Ok(vec![plain(megatron::data_of(path))]),
        _ => {}
    }
    if !meta.is_dir() {
        return Ok(vec![plain(path.into())]);
    }
    let ending = match format {
        Format::Megatron | Format::Llmc | Format::Nanogpt => ".bin",
        Format::Olmo | Format::Templar | Format::Npy => ".npy",
        Format::Datatrove => ".ds",
        Format::Mds | Format::Tokshuf => unreachable!("formats: taken care of above"),
    };
    let data = |p: &PathBuf| name(p).ends_with(ending) && !templar::is_ids(p);
    let files: Vec<Input> = entries(path)?.into_iter().filter(data).map(plain).collect();
    if files.is_empty() {
        return Err(FormatError::refused(path, format!("the folder has no *{ending} file, which {format} needs")));
    }
    Ok(files)
}

/// Files of a folder, by name.
pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>, FormatError> {
    let io = || FormatError::io(path, "list");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io())? {
        let entry = entry.map_err(io())?.path();
        if entry.is_file() {
            all.push(entry);
        }
        if all.len() > ENTRIES_MAX {
            return Err(FormatError::refused(path, format!("holds more than {ENTRIES_MAX} files; give some of them")));
        }
    }
    all.sort();
    Ok(all)
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The first bytes, sixteen at most.
fn start(path: &Path) -> Result<Vec<u8>, FormatError> {
    if !path.is_file() {
        return Err(FormatError::refused(path, "is no regular file"));
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(FormatError::io(path, "open"))?;
    file.take(16).read_to_end(&mut start).map_err(FormatError::io(path, "read"))?;
    Ok(start)
}

/// Reads a small file whole, such as an index or a manifest.
pub(super) fn small(path: &Path, max: u64) -> Result<Vec<u8>, FormatError> {
    if !path.is_file() {
        return Err(FormatError::io(path, "find")(std::io::ErrorKind::NotFound.into()));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(FormatError::io(path, "open"))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(FormatError::io(path, "read"))?;
    if bytes.len() as u64 > max {
        return Err(FormatError::field(path, "length in bytes", format!("more than {max}"), format!("at most {max}")));
    }
    Ok(bytes)
}

/// A table beside a data file, where there is one.
pub(super) fn table(path: &Path, ending: &str) -> Option<PathBuf> {
    Some(beside(path, ending)).filter(|table| table.is_file())
}
