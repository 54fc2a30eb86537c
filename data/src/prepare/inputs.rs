//! Which files are read, in which order, and what each holds.
//!
//! | name ends in | holds |
//! | --- | --- |
//! | `.jsonl` | a JSON object a line |
//! | `.txt` | text |
//! | `.jsonl` or `.txt` and `.gz`, `.zst` or `.zstd` | the same, packed |
//! | `.json.gz`, `.json.zst`, `.json.zstd` | JSON lines, as some corpora call them |
//! | `.parquet` | rows, in builds with the feature `parquet` |
//!
//! A folder stands for all such files in it and in its folders, by name: names are compared as
//! bytes, one level after the other, so that DCLM's
//! `global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst` come in their
//! order. Other files and names that start with a dot are passed over. Inputs keep the order in
//! which they were given.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::stream::{Packing, Stream};
use crate::text::{Document, Kind, Raw, Records, TextError, TextOptions, parse};

#[cfg(feature = "parquet")]
use super::parquet::Rows;

/// What a file's name says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub kind: Kind,
    pub packing: Packing,
}

impl Format {
    /// By the end of the name; nothing where the file is not text.
    pub fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?;
        let (stem, last) = name.rsplit_once('.')?;
        let packing = match last {
            "gz" => Packing::Gzip,
            "zst" | "zstd" => Packing::Zstd,
            _ => Packing::Plain,
        };
        let inner = if packing == Packing::Plain { last } else { stem.rsplit_once('.')?.1 };
        let kind = match inner {
            "jsonl" => Kind::Jsonl,
            "json" if packing != Packing::Plain => Kind::Jsonl,
            "txt" => Kind::Txt,
            "parquet" if packing == Packing::Plain => Kind::Parquet,
            _ => return None,
        };
        Some(Format { kind, packing })
    }
}

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub path: PathBuf,
    pub format: Format,
    /// Size on disk.
    pub bytes: u64,
    /// Time of the last change, in nanoseconds of the system's clock; 0 where it has none.
    pub modified: u128,
}

/// The files that `inputs` stand for, in their order.
pub fn list(inputs: &[PathBuf]) -> Result<Vec<Input>, TextError> {
    let mut files = Vec::new();
    for input in inputs {
        let before = files.len();
        let found = std::fs::metadata(input);
        let found = found.map_err(|source| TextError::Io { path: input.clone(), action: "find", source })?;
        if found.is_dir() {
            walk(input, &mut Vec::new(), &mut files)?;
            if files.len() == before {
                return Err(TextError::EmptyFolder { path: input.clone() });
            }
        } else {
            let format = Format::of(input).ok_or_else(|| TextError::Kind { path: input.clone() })?;
            files.push(describe(input, format)?);
        }
    }
    Ok(files)
}

/// `above` holds the true paths of the folders that led here, so that links in a circle end.
fn walk(folder: &Path, above: &mut Vec<PathBuf>, files: &mut Vec<Input>) -> Result<(), TextError> {
    let io = |source| TextError::Io { path: folder.into(), action: "list", source };
    let real = folder.canonicalize().map_err(io)?;
    if above.contains(&real) {
        return Err(TextError::Circle { path: folder.into() });
    }
    above.push(real);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.push(entry.map_err(io)?.file_name());
    }
    names.sort();
    for name in names {
        let path = folder.join(&name);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        // A link that leads nowhere is no file.
        let Ok(found) = std::fs::metadata(&path) else { continue };
        if found.is_dir() {
            walk(&path, above, files)?;
        } else if let Some(format) = Format::of(&path).filter(|_| found.is_file()) {
            files.push(describe(&path, format)?);
        }
    }
    above.pop();
    Ok(())
}

fn describe(path: &Path, format: Format) -> Result<Input, TextError> {
    if format.kind == Kind::Parquet && cfg!(not(feature = "parquet")) {
        return Err(TextError::NoParquet { path: path.into() });
    }
    let found = std::fs::metadata(path);
    let found = found.map_err(|source| TextError::Io { path: path.into(), action: "find", source })?;
    let since = found.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    let modified = since.map_or(0, |t| t.as_nanos());
    Ok(Input { path: path.into(), format, bytes: found.len(), modified })
}

/// The documents of one file.
pub(crate) enum Source {
    Text(Kind, Box<Records<Stream>>),
    #[cfg(feature = "parquet")]
    Rows(Box<Rows>),
}

impl Source {
    /// Opens `input`; the bytes read are added to `meter`.
    pub(crate) fn open(input: &Input, options: &TextOptions, meter: &Arc<AtomicU64>) -> Result<Source, TextError> {
        let Input { path, format, .. } = input;
        #[cfg(feature = "parquet")]
        if format.kind == Kind::Parquet {
            return Ok(Source::Rows(Box::new(Rows::open(path, options, meter.clone())?)));
        }
        let file = File::open(path).map_err(|source| TextError::Io { path: path.clone(), action: "open", source })?;
        let stream = Stream::new(file, format.packing, meter.clone());
        let records = Records::new(stream, format.kind, path.clone(), options);
        Ok(Source::Text(format.kind, Box::new(records)))
    }

    /// See [`Records::next`].
    pub(crate) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Raw>, TextError> {
        match self {
            Source::Text(_, records) => records.next(buffer),
            #[cfg(feature = "parquet")]
            Source::Rows(rows) => rows.next(buffer),
        }
    }

    /// See [`Records::place`]; of rows it is the number of those read, twice.
    pub(crate) fn place(&self) -> (u64, u64) {
        match self {
            Source::Text(_, records) => records.place(),
            #[cfg(feature = "parquet")]
            Source::Rows(rows) => (rows.row(), rows.row()),
        }
    }

    /// See [`Records::skip_to`].
    pub(crate) fn skip_to(&mut self, place: (u64, u64)) -> Result<(), TextError> {
        match self {
            Source::Text(_, records) => records.skip_to(place),
            #[cfg(feature = "parquet")]
            Source::Rows(rows) => rows.skip_to(place.0),
        }
    }

    /// Size and blake3 of the file, of which all was read.
    pub(crate) fn finish(self) -> Result<(u64, [u8; 32]), TextError> {
        match self {
            Source::Text(_, records) => Ok(records.into_inner().finish()),
            #[cfg(feature = "parquet")]
            Source::Rows(rows) => rows.finish(),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Source::Text(kind, _) => *kind,
            #[cfg(feature = "parquet")]
            Source::Rows(_) => Kind::Parquet,
        }
    }
}

/// All documents of `inputs`, in that order. Files are looked for now, and opened one by one.
/// After an error nothing follows.
pub fn documents(inputs: &[PathBuf], options: &TextOptions) -> Result<Documents, TextError> {
    let files = list(inputs)?.into_iter();
    Ok(Documents { files, options: options.clone(), open: None, buffer: Vec::new(), done: false })
}

/// Iterator over documents; made by [`documents`].
pub struct Documents {
    files: std::vec::IntoIter<Input>,
    options: TextOptions,
    open: Option<(PathBuf, Source)>,
    buffer: Vec<u8>,
    done: bool,
}

impl Documents {
    fn advance(&mut self) -> Result<Option<Document>, TextError> {
        loop {
            self.buffer.clear();
            if let Some((path, source)) = &mut self.open
                && let Some(raw) = source.next(&mut self.buffer)?
            {
                let kind = source.kind();
                let read = match raw.fault {
                    Some(fault) => Err(fault),
                    None => parse(kind, &self.buffer[raw.bytes], &self.options),
                };
                let (text, id) = read.map_err(|fault| fault.at(kind, path, raw.line, &self.options))?;
                return Ok(Some(Document { text: text.into_owned(), id: raw.id.or(id) }));
            }
            let Some(input) = self.files.next() else { return Ok(None) };
            let source = Source::open(&input, &self.options, &Arc::default())?;
            self.open = Some((input.path, source));
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_holds() {
        let of = |name: &str| Format::of(Path::new(name)).map(|f| (f.kind, f.packing));
        assert_eq!(of("a.jsonl"), Some((Kind::Jsonl, Packing::Plain)));
        assert_eq!(of("x/shard_00000000_processed.jsonl.zst"), Some((Kind::Jsonl, Packing::Zstd)));
        assert_eq!(of("a.jsonl.zstd"), Some((Kind::Jsonl, Packing::Zstd)));
        assert_eq!(of("c4-train.00000-of-01024.json.gz"), Some((Kind::Jsonl, Packing::Gzip)));
        assert_eq!(of("a.txt.gz"), Some((Kind::Txt, Packing::Gzip)));
        assert_eq!(of("a.parquet"), Some((Kind::Parquet, Packing::Plain)));
        for none in ["a.json", "a.parquet.gz", "a.gz", "txt", "a.tar.gz", "a.md", "a.shard", "gz"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn folders_are_walked_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (name, text) in [
            ("g_02/l_0/a.txt", "5"),
            ("g_01/l_1/b.txt", "4"),
            ("g_01/l_1/a.txt", "3"),
            ("g_01/l_0/z.txt", "2"),
            ("a.jsonl", "{\"text\":\"1\"}"),
            ("h.txt", "6"),
            ("c.md", "no"),
            (".hidden/a.txt", "no"),
        ] {
            write(name, text);
        }
        let read = |inputs: &[PathBuf]| -> Vec<String> {
            documents(inputs, &TextOptions::default()).unwrap().map(|d| d.unwrap().text).collect()
        };
        assert_eq!(read(&[dir.path().into()]), ["1", "2", "3", "4", "5", "6"]);
        assert_eq!(read(&[dir.path().join("h.txt"), dir.path().join("g_01")]), ["6", "2", "3", "4"]);
        let fails = |name: &str| list(&[dir.path().join(name)]).unwrap_err();
        assert!(matches!(fails("c.md"), TextError::Kind { .. }));
        assert!(fails("none.txt").to_string().contains("none.txt: cannot find"));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(matches!(fails("empty"), TextError::EmptyFolder { .. }));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(dir.path().join("empty"), dir.path().join("empty/self")).unwrap();
            assert!(matches!(fails("empty"), TextError::Circle { .. }));
        }
        #[cfg(not(feature = "parquet"))]
        {
            write("p/a.parquet", "PAR1");
            assert!(fails("p").to_string().contains("--features parquet"));
        }
    }
}
