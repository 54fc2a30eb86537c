//! Documents from files of text, one at a time.
//!
//! - `.txt`: UTF-8. One document, or several where [`TextOptions::separator`] names a line that
//!   stands between two.
//! - `.jsonl`: a JSON object a line, its text in the key `text`; other keys are passed over,
//!   blank lines too.
//! - a folder: its `.txt` and `.jsonl` files, by name; folders inside are not entered.
//!
//! A mark of byte order at the start of a file is skipped. Memory: two documents, bounded by
//! [`TextOptions::max_document_bytes`] whatever a file says.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::brief;

/// Why text could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    #[error("{path}: cannot {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error("{path}: neither .txt nor .jsonl; rename or convert it (compressed files: unpack them first)")]
    Kind { path: PathBuf },
    #[error("{path}: no .txt or .jsonl file in this folder; name files, or a folder that holds some")]
    EmptyFolder { path: PathBuf },
    #[error("{path}, line {line}: {reason}; expected a JSON object with a string under \"text\"")]
    Json { path: PathBuf, line: u64, reason: String },
    #[error("{path}, line {line}: not UTF-8 from byte {byte} of the line on; convert the file to UTF-8")]
    Utf8 { path: PathBuf, line: u64, byte: usize },
    #[error(
        "{path}, line {line}: a document of more than {max} bytes; split it, name a separator line, \
         or raise max_document_bytes"
    )]
    TooLong { path: PathBuf, line: u64, max: usize },
}

/// One text; an end mark will follow its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub text: String,
}

/// How files are cut into documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextOptions {
    /// In .txt: the line that stands between two documents, without its end. None: a file is a
    /// document.
    pub separator: Option<String>,
    /// Longest document, and longest line of .jsonl.
    pub max_document_bytes: usize,
}

impl Default for TextOptions {
    /// A .txt file is a document; 16 MiB at most, since encoding takes a large multiple of that.
    fn default() -> TextOptions {
        TextOptions { separator: None, max_document_bytes: 16 << 20 }
    }
}

/// All documents of `inputs`, in that order. Files are looked for now, and opened one by one.
/// After an error nothing follows.
pub fn documents(inputs: &[PathBuf], options: &TextOptions) -> Result<Documents, TextError> {
    let mut files = Vec::new();
    for input in inputs {
        let io = |action| move |source| TextError::Io { path: input.clone(), action, source };
        if std::fs::metadata(input).map_err(io("find"))?.is_dir() {
            let before = files.len();
            for entry in std::fs::read_dir(input).map_err(io("list"))? {
                let path = entry.map_err(io("list"))?.path();
                if path.is_file() && Kind::of(&path).is_some() {
                    files.push(path);
                }
            }
            if files.len() == before {
                return Err(TextError::EmptyFolder { path: input.clone() });
            }
            files[before..].sort();
        } else if Kind::of(input).is_some() {
            files.push(input.clone());
        } else {
            return Err(TextError::Kind { path: input.clone() });
        }
    }
    Ok(Documents { files: files.into_iter(), options: options.clone(), open: None, done: false })
}

/// Iterator over documents; made by [`documents`].
#[derive(Debug)]
pub struct Documents {
    files: std::vec::IntoIter<PathBuf>,
    options: TextOptions,
    open: Option<Reader<BufReader<File>>>,
    done: bool,
}

impl Documents {
    fn advance(&mut self) -> Result<Option<Document>, TextError> {
        loop {
            if let Some(reader) = &mut self.open
                && let Some(document) = reader.next_document()?
            {
                return Ok(Some(document));
            }
            let Some(path) = self.files.next() else { return Ok(None) };
            let file =
                File::open(&path).map_err(|source| TextError::Io { path: path.clone(), action: "open", source })?;
            let kind = Kind::of(&path).expect("only such files were listed");
            self.open = Some(Reader::new(BufReader::with_capacity(1 << 18, file), kind, path, &self.options));
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

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Txt,
    Jsonl,
}

impl Kind {
    /// By the end of the name.
    pub fn of(path: &Path) -> Option<Kind> {
        match path.extension()?.to_str()? {
            "txt" => Some(Kind::Txt),
            "jsonl" => Some(Kind::Jsonl),
            _ => None,
        }
    }
}

/// The documents of one stream of bytes.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    kind: Kind,
    path: PathBuf,
    options: TextOptions,
    line: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Reader<R> {
    /// `path` is named in errors.
    pub fn new(input: R, kind: Kind, path: PathBuf, options: &TextOptions) -> Reader<R> {
        Reader { input, kind, path, options: options.clone(), line: 0, buffer: Vec::new() }
    }

    /// The next document, or nothing at the end. A .txt document may be empty; it is passed over.
    pub fn next_document(&mut self) -> Result<Option<Document>, TextError> {
        match self.kind {
            Kind::Txt => self.next_txt(),
            Kind::Jsonl => self.next_jsonl(),
        }
    }

    fn next_jsonl(&mut self) -> Result<Option<Document>, TextError> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            text: Cow<'a, str>,
        }
        while self.read_line()? {
            let line = self.utf8(&self.buffer)?.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let parsed: Line<'_> = serde_json::from_str(line).map_err(|e| TextError::Json {
                path: self.path.clone(),
                line: self.line,
                reason: brief(e).replace(" at line 1", ""),
            })?;
            return Ok(Some(Document { text: parsed.text.into_owned() }));
        }
        Ok(None)
    }

    fn next_txt(&mut self) -> Result<Option<Document>, TextError> {
        let mut text = String::new();
        while self.read_line()? {
            let line = self.utf8(&self.buffer)?;
            let bare = line.strip_suffix('\n').unwrap_or(line);
            let bare = bare.strip_suffix('\r').unwrap_or(bare);
            if self.options.separator.as_deref() == Some(bare) {
                if text.is_empty() {
                    continue;
                }
                return Ok(Some(Document { text }));
            }
            if text.len() + line.len() > self.options.max_document_bytes {
                return Err(self.too_long());
            }
            text.push_str(line);
        }
        Ok(if text.is_empty() { None } else { Some(Document { text }) })
    }

    /// Reads a line with its end into `buffer`; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, TextError> {
        self.buffer.clear();
        self.line += 1;
        let max = self.options.max_document_bytes;
        let mut bounded = (&mut self.input).take(max as u64 + 1);
        let read = bounded.read_until(b'\n', &mut self.buffer);
        read.map_err(|source| TextError::Io { path: self.path.clone(), action: "read", source })?;
        if self.buffer.len() > max {
            return Err(self.too_long());
        }
        if self.line == 1 && self.buffer.starts_with("\u{feff}".as_bytes()) {
            self.buffer.drain(..3);
            return Ok(true);
        }
        Ok(!self.buffer.is_empty())
    }

    fn utf8<'a>(&self, bytes: &'a [u8]) -> Result<&'a str, TextError> {
        std::str::from_utf8(bytes).map_err(|e| TextError::Utf8 {
            path: self.path.clone(),
            line: self.line,
            byte: e.valid_up_to() + 1,
        })
    }

    fn too_long(&self) -> TextError {
        TextError::TooLong { path: self.path.clone(), line: self.line, max: self.options.max_document_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, bytes: &[u8], options: &TextOptions) -> Result<Vec<String>, TextError> {
        let mut reader = Reader::new(bytes, kind, "in".into(), options);
        let mut all = Vec::new();
        while let Some(d) = reader.next_document()? {
            all.push(d.text);
        }
        Ok(all)
    }

    #[test]
    fn txt_is_one_document_unless_a_line_separates() {
        let text = "\u{feff}one\r\ntwo\n---\n---\nthree";
        let whole = read(Kind::Txt, text.as_bytes(), &TextOptions::default()).unwrap();
        assert_eq!(whole, ["one\r\ntwo\n---\n---\nthree"]);
        let options = TextOptions { separator: Some("---".into()), ..TextOptions::default() };
        assert_eq!(read(Kind::Txt, text.as_bytes(), &options).unwrap(), ["one\r\ntwo\n", "three"]);
        assert!(read(Kind::Txt, b"", &options).unwrap().is_empty());
        assert!(read(Kind::Txt, "\u{feff}".as_bytes(), &options).unwrap().is_empty());
    }

    #[test]
    fn jsonl_reads_text_and_passes_over_the_rest() {
        let lines = "{\"id\": [1, {\"text\": 2}], \"text\": \"a\\u00e9\\n\"}\n\n  {\"text\":\"b\",\"z\":null}";
        assert_eq!(read(Kind::Jsonl, lines.as_bytes(), &TextOptions::default()).unwrap(), ["aé\n", "b"]);
    }

    #[test]
    fn faults_name_the_line() {
        let options = TextOptions { max_document_bytes: 40, ..TextOptions::default() };
        for (kind, bytes, want) in [
            (Kind::Jsonl, &b"{\"text\":\"a\"}\n{\"txt\":\"a\"}\n"[..], "in, line 2: missing field `text`"),
            (Kind::Jsonl, b"{\"text\":\"a\"}\n{\"text\":1}\n", "in, line 2: invalid type"),
            (Kind::Jsonl, b"{\"text\":\"a\"", "in, line 1: EOF"),
            (Kind::Jsonl, b"{\"text\":\"\\ud800\"}", "in, line 1: "),
            (Kind::Jsonl, b"[1]", "in, line 1: invalid"),
            (Kind::Jsonl, b"\n\n{\"text\":\"\xff\"}", "in, line 3: not UTF-8 from byte 10"),
            (Kind::Jsonl, &[b' '; 41], "in, line 1: a document of more than 40 bytes"),
            (Kind::Txt, b"ok\n\xc3(", "in, line 2: not UTF-8 from byte 1"),
            (Kind::Txt, b"twenty bytes of text\ntwenty bytes of text\n", "in, line 2: a document of more"),
        ] {
            let got = read(kind, bytes, &options).unwrap_err().to_string();
            assert!(got.starts_with(want), "{got:?} should start with {want:?}");
        }
        let deep = "[".repeat(100_000);
        let deep = format!("{{\"x\":{deep}");
        let got = read(Kind::Jsonl, deep.as_bytes(), &TextOptions::default()).unwrap_err().to_string();
        assert!(got.starts_with("in, line 1: "), "{got}");
    }

    #[test]
    fn folders_are_read_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("b.txt", "B"), ("a.jsonl", "{\"text\":\"A\"}"), ("c.md", "C")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let all = documents(&[dir.path().to_path_buf()], &TextOptions::default()).unwrap();
        let all: Vec<String> = all.map(|d| d.unwrap().text).collect();
        assert_eq!(all, ["A", "B"]);
        let options = TextOptions::default();
        let md = documents(&[dir.path().join("c.md")], &options).unwrap_err();
        assert!(matches!(md, TextError::Kind { .. }));
        let none = documents(&[dir.path().join("none.txt")], &options).unwrap_err();
        assert!(none.to_string().contains("none.txt: cannot find"));
    }
}
