//! Rows of a benchmark, from files that others made.
//!
//! A file is JSON lines, an object a row in UTF-8, plain or gzipped (`.jsonl`, `.jsonl.gz`); blank lines are passed over.
//! It is found by name: `STEM.SPLIT.jsonl`. Examples to show may also come from a part of their split,
//! `STEM.SPLIT-anything.jsonl`; then others are drawn than from the whole, which [`Found::whole`] says.
//!
//! What a file says is not trusted: a line and what a file unpacks to are bounded, a key that is missing or of another
//! type is refused with file, line and key.

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// No row of a benchmark is longer.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// No file of a benchmark unpacks to more.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Why a benchmark's rows cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// No file of that name.
    #[error(
        "{dir}: no {name}.jsonl or {name}.jsonl.gz, which {task} needs; a row is {fields}. Its source: {source_of}"
    )]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
        /// The file's name, without its ending.
        name: String,
        /// Who needs it.
        task: String,
        /// The keys of a row.
        fields: &'static str,
        /// Where a user gets it.
        source_of: &'static str,
    },
    /// The system refused.
    #[error("{path}: cannot be read: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A line that is no row.
    #[error("{path}:{line}: {why}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What was found and what was expected.
        why: String,
    },
    /// A file without a row that the task could use.
    #[error("{path}: has no row{of}; is it the right file?")]
    Empty {
        /// The file.
        path: PathBuf,
        /// Which rows were looked for, as " with subject \"anatomy\"".
        of: String,
    },
}

/// A key of a row that is missing, or not what it should be.
#[derive(Debug, PartialEq)]
pub(super) struct Fault(pub String);

/// A row and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub line: usize,
    pub fields: Map<String, Value>,
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    pub path: PathBuf,
    /// The split itself, not a part of it.
    pub whole: bool,
}

/// The file of `stem` and `split` in `dir`; `parts`: a part of the split will do.
pub(super) fn find(dir: &Path, stems: &[&str], split: &str, parts: bool) -> Result<Option<Found>, RowError> {
    let listed = std::fs::read_dir(dir).map_err(|source| RowError::Io { path: dir.into(), source })?;
    let mut names: Vec<String> = listed.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let bare = |name: &str| name.strip_suffix(".gz").unwrap_or(name).strip_suffix(".jsonl").map(str::to_owned);
    let wanted: Vec<String> =
        stems.iter().map(|stem| if split.is_empty() { stem.to_string() } else { format!("{stem}.{split}") }).collect();
    let is = |whole: bool| {
        wanted.iter().find_map(|want| {
            let fits = |name: &&String| match bare(name) {
                Some(bare) if whole => bare == *want,
                Some(bare) => bare.strip_prefix(want.as_str()).is_some_and(|rest| rest.starts_with('-')),
                None => false,
            };
            names.iter().find(fits).map(|name| Found { path: dir.join(name), whole })
        })
    };
    Ok(is(true).or_else(|| if parts { is(false) } else { None }))
}

/// All rows of a file.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, RowError> {
    let io = |source| RowError::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    let zipped = path.extension().is_some_and(|e| e == "gz");
    let plain: Box<dyn Read> =
        if zipped { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) };
    let mut lines = BufReader::new(plain.take(FILE_BYTES_MAX + 1));
    let (mut rows, mut text, mut line, mut bytes) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        text.clear();
        line += 1;
        let got = (&mut lines).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut text);
        let bad = |why: String| RowError::Line { path: path.into(), line, why };
        let got = got.map_err(|e| bad(format!("cannot be read: {e}; is the file cut short or damaged?")))? as u64;
        bytes += got;
        if got > LINE_BYTES_MAX || bytes > FILE_BYTES_MAX {
            return Err(bad("longer than any row or file of a benchmark: is it JSON lines?".into()));
        }
        if got == 0 {
            return Ok(rows);
        }
        let row = std::str::from_utf8(&text)
            .map_err(|e| bad(format!("not UTF-8 at byte {} of the line", e.valid_up_to())))?;
        if row.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(row) {
            Ok(Value::Object(fields)) => rows.push(Row { line, fields }),
            Ok(other) => return Err(bad(format!("expected an object, found {}", kind(&other)))),
            Err(e) => return Err(bad(format!("not JSON: {e}"))),
        }
    }
}

/// What a value is, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value of `key`.
fn get<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a Value, Fault> {
    fields.get(key).ok_or_else(|| {
        let known: Vec<&str> = fields.keys().map(String::as_str).take(12).collect();
        Fault(format!("{key} is missing; the row has {}", known.join(", ")))
    })
}

fn wrong(key: &str, want: &str, got: &Value) -> Fault {
    let shown: String = got.to_string().chars().take(60).collect();
    Fault(format!("{key}: expected {want}, found {shown}"))
}

/// A text.
pub(super) fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a str, Fault> {
    let value = get(fields, key)?;
    value.as_str().ok_or_else(|| wrong(key, "a text", value))
}

/// Texts, at least two.
pub(super) fn texts(fields: &Map<String, Value>, key: &str) -> Result<Vec<String>, Fault> {
    let value = get(fields, key)?;
    let all =
        value.as_array().and_then(|a| a.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
    all.filter(|all| all.len() > 1).ok_or_else(|| wrong(key, "a list of two or more texts", value))
}

/// A list.
pub(super) fn list<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], Fault> {
    let value = get(fields, key)?;
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, "a list", value))
}

/// An object.
pub(super) fn object<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<&'a Map<String, Value>, Fault> {
    let value = get(fields, key)?;
    value.as_object().ok_or_else(|| wrong(key, "an object", value))
}

/// The number of a choice, below `end`; also as a text of digits, or as false and true.
pub(super) fn choice(fields: &Map<String, Value>, key: &str, end: usize) -> Result<usize, Fault> {
    let value = get(fields, key)?;
    let number = match value {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.parse().ok(),
        Value::Bool(b) => Some(u64::from(*b)),
        _ => None,
    };
    let number = number.and_then(|n| usize::try_from(n).ok()).filter(|&n| n < end);
    number.ok_or_else(|| wrong(key, &format!("a number from 0 to {}", end - 1), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_name_and_the_whole_split_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["a.train-first9.query_form.jsonl.gz", "a.test.jsonl", "b_xl.train.jsonl.gz", "b.train-1.jsonl", "c.jsonl"]
        {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let got = |stems: &[&str], split, parts| {
            let found = find(dir.path(), stems, split, parts).unwrap()?;
            Some((found.path.file_name().unwrap().to_str().unwrap().to_owned(), found.whole))
        };
        assert_eq!(got(&["a"], "test", false), Some(("a.test.jsonl".into(), true)));
        assert_eq!(got(&["a"], "train", false), None);
        assert_eq!(got(&["a"], "train", true), Some(("a.train-first9.query_form.jsonl.gz".into(), false)));
        assert_eq!(got(&["b", "b_xl"], "train", true), Some(("b_xl.train.jsonl.gz".into(), true)));
        assert_eq!(got(&["c"], "", false), Some(("c.jsonl".into(), true)));
        assert!(matches!(find(&dir.path().join("no"), &["a"], "test", false), Err(RowError::Io { .. })));
    }

    #[test]
    fn rows_and_refusals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        let got = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path).map(|rows| rows.len()).map_err(|e| e.to_string().split_once("jsonl:").unwrap().1.to_owned())
        };
        assert_eq!(got(b"{\"a\": 1}\r\n\n {\"a\": 2}"), Ok(2));
        assert_eq!(got(b""), Ok(0));
        assert_eq!(got(b"{}\n[1]"), Err("2: expected an object, found a list".into()));
        assert_eq!(got(b"{\"a\": \"\xff\"}"), Err("1: not UTF-8 at byte 7 of the line".into()));
        assert!(got(b"{}\n{").unwrap_err().starts_with("2: not JSON: EOF"));
    }
}
