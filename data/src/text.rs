//! Documents in a stream of text, one at a time.
//!
//! - *text* (.txt): UTF-8. One document, or several where [`TextOptions::separator`] names a line
//!   that stands between two.
//! - *lines* (.jsonl): a JSON object a line, its text under [`TextOptions::text_key`]; other keys
//!   are passed over, blank lines too.
//!
//! Reading has two halves, so that the second can run on many threads. [`Records`] cuts a stream
//! into the bytes of documents; [`parse`] makes text of such bytes. A fault of one document
//! ([`Fault`]) leaves the stream usable behind it.
//!
//! A mark of byte order at the start of a stream is skipped. Memory: one document, bounded by
//! [`TextOptions::max_document_bytes`] whatever a file says. [`documents`] reads whole files and
//! folders, packed or not: `prepare/inputs.rs` says which.

use std::borrow::Cow;
use std::io::BufRead;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::brief;

pub use crate::prepare::inputs::{Documents, documents};

/// Why text could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    #[error("{path}: cannot {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },
    #[error(
        "{path}: no kind of text this build reads; expected .jsonl or .txt, plain or with .gz, .zst or .zstd behind, \
         .json.gz, .json.zst, or .parquet: rename or convert it"
    )]
    Kind { path: PathBuf },
    #[error("{path}: this build reads no parquet; build esker with `--features parquet`")]
    NoParquet { path: PathBuf },
    #[error("{path}: holds no file of text; name files, or a folder that holds some (.jsonl, .txt, packed or not)")]
    EmptyFolder { path: PathBuf },
    #[error("{path}: is a link back to a folder above it; take the link away, or name the folders one by one")]
    Circle { path: PathBuf },
    #[error("{path}, line {line}: {reason}; expected a JSON object with a string under {key:?}")]
    Json { path: PathBuf, line: u64, reason: String, key: String },
    #[error("{path}, line {line}: not UTF-8 from byte {byte} of the line on; convert the file to UTF-8")]
    Utf8 { path: PathBuf, line: u64, byte: usize },
    #[error(
        "{path}, line {line}: a document of more than {max} bytes; split it, name a separator line, \
         or raise max_document_bytes"
    )]
    TooLong { path: PathBuf, line: u64, max: usize },
    #[error("{path}, row {row}: {reason}; expected UTF-8 text of at most {max} bytes")]
    Row { path: PathBuf, row: u64, reason: String, max: usize },
    #[error("{path}: {reason}; copy or convert the file again")]
    Parquet { path: PathBuf, reason: String },
    #[error("{path}: no column {column:?} of text; it has {found}: name one with text_key")]
    Column { path: PathBuf, column: String, found: String },
    #[error("{path}: is shorter than when part of it was read; it was changed: prepare it again from the start")]
    Changed { path: PathBuf },
}

/// One text; an end mark will follow its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub text: String,
    /// What stands under [`TextOptions::id_key`], where that is named and there.
    pub id: Option<String>,
}

/// How files are cut into documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextOptions {
    /// In text: the line that stands between two documents, without its end. None: a file is a
    /// document.
    pub separator: Option<String>,
    /// Longest document, and longest line of JSON, in bytes.
    pub max_document_bytes: usize,
    /// Key, or column, of the text.
    pub text_key: String,
    /// Key, or column, of a document's name; reports of dropped documents show it.
    pub id_key: Option<String>,
}

impl Default for TextOptions {
    /// A file of text is a document; text stands under `text`; 16 MiB at most, since encoding
    /// takes a large multiple of that.
    fn default() -> TextOptions {
        TextOptions { separator: None, max_document_bytes: 16 << 20, text_key: "text".into(), id_key: None }
    }
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text alone.
    Txt,
    /// A JSON object a line.
    Jsonl,
    /// Rows of a parquet file; [`Records`] does not read these.
    Parquet,
}

/// A document as it lies in a stream, not looked at yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// Where its bytes stand in the buffer given to [`Records::next`].
    pub bytes: Range<usize>,
    /// Its first line, from 1; where it is too long, the line at which it became so. In parquet
    /// the row, from 1.
    pub line: u64,
    /// Known without parsing (parquet).
    pub id: Option<String>,
    /// What is wrong with it already; then it has no bytes.
    pub fault: Option<Fault>,
}

/// Why one document cannot be used. The stream goes on behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No JSON object, or none with a string as its text.
    Json(String),
    /// No text under the key, or in the column.
    NoText,
    /// From byte `byte` (from 1) of line `line` (from 0, within the document) on.
    Utf8 { line: u64, byte: usize },
    /// Longer than [`TextOptions::max_document_bytes`].
    TooLong,
}

impl Fault {
    /// The error for the document of `kind` that starts at `line` of `path`.
    pub fn at(self, kind: Kind, path: &Path, line: u64, options: &TextOptions) -> TextError {
        let (path, max) = (path.to_path_buf(), options.max_document_bytes);
        if kind == Kind::Parquet {
            let reason = match self {
                Fault::Json(reason) => reason,
                Fault::NoText => "no text (null)".into(),
                Fault::Utf8 { .. } => "not UTF-8".into(),
                Fault::TooLong => "too long".into(),
            };
            return TextError::Row { path, row: line, reason, max };
        }
        let key = options.text_key.clone();
        match self {
            Fault::Json(reason) => TextError::Json { path, line, reason, key },
            Fault::NoText => TextError::Json { path, line, reason: format!("missing field `{key}`"), key },
            Fault::Utf8 { line: below, byte } => TextError::Utf8 { path, line: line + below, byte },
            Fault::TooLong => TextError::TooLong { path, line, max },
        }
    }
}

/// Makes text of the bytes of one document, and its id where that is asked for and there.
pub fn parse<'a>(kind: Kind, bytes: &'a [u8], options: &TextOptions) -> Result<(Cow<'a, str>, Option<String>), Fault> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = before.iter().filter(|&&b| b == b'\n').count() as u64;
        let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        Fault::Utf8 { line, byte: before.len() - start + 1 }
    })?;
    if kind != Kind::Jsonl {
        return Ok((Cow::Borrowed(text), None));
    }
    let fault = |e: serde_json::Error| Fault::Json(brief(e).replace(" at line 1", ""));
    let mut json = serde_json::Deserializer::from_str(text);
    let (text, id) = Line(options).deserialize(&mut json).map_err(fault)?;
    json.end().map_err(fault)?;
    Ok((text.ok_or(Fault::NoText)?, id))
}

/// A line of JSON: the text and the id by the names in the options.
struct Line<'o>(&'o TextOptions);

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = (Option<Cow<'de, str>>, Option<String>);

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Line<'_> {
    type Value = (Option<Cow<'de, str>>, Option<String>);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut text, mut id) = (None, None);
        while let Some(key) = map.next_key_seed(Str)? {
            if key == self.0.text_key.as_str() {
                if text.is_some() {
                    return Err(serde::de::Error::custom(format_args!("duplicate field `{key}`")));
                }
                text = Some(map.next_value_seed(Str)?);
                // One key may be both.
                if self.0.id_key.as_deref() == Some(&key) {
                    id = text.as_deref().map(short);
                }
            } else if self.0.id_key.as_deref() == Some(&key) {
                id = match map.next_value::<serde_json::Value>()? {
                    serde_json::Value::Null => None,
                    serde_json::Value::String(s) => Some(short(&s)),
                    other => Some(short(&other.to_string())),
                };
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok((text, id))
    }
}

/// An id as reports show it.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(200).collect()
}

/// A JSON string, borrowed where it holds no escape.
struct Str;

impl<'de> DeserializeSeed<'de> for Str {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Str {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(v.into()))
    }

    fn visit_string<E>(self, v: String) -> Result<Self::Value, E> {
        Ok(Cow::Owned(v))
    }
}

/// Cuts a stream of text or of lines into documents.
#[derive(Debug)]
pub struct Records<R> {
    input: R,
    kind: Kind,
    path: PathBuf,
    separator: Option<String>,
    max_document_bytes: usize,
    /// Lines read.
    line: u64,
    /// Bytes read.
    offset: u64,
}

/// What [`Records::line`] found.
enum Found {
    Line,
    TooLong,
    End,
}

impl<R: BufRead> Records<R> {
    /// `path` is named in errors. `kind` is [`Kind::Txt`] or [`Kind::Jsonl`].
    pub fn new(input: R, kind: Kind, path: PathBuf, options: &TextOptions) -> Records<R> {
        assert!(kind != Kind::Parquet, "records: parquet has a reader of its own");
        let (separator, max_document_bytes) = (options.separator.clone(), options.max_document_bytes);
        Records { input, kind, path, separator, max_document_bytes, line: 0, offset: 0 }
    }

    /// The next document, its bytes put behind those in `buffer`; nothing at the end. Empty
    /// documents of text and blank lines of JSON are passed over.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Raw>, TextError> {
        match self.kind {
            Kind::Txt => self.next_txt(buffer),
            _ => self.next_jsonl(buffer),
        }
    }

    /// Bytes read and lines read: where the next document starts.
    pub fn place(&self) -> (u64, u64) {
        (self.offset, self.line)
    }

    /// Goes on at a place that [`Records::place`] named, by reading up to it.
    pub fn skip_to(&mut self, (offset, line): (u64, u64)) -> Result<(), TextError> {
        let io = |source| TextError::Io { path: self.path.clone(), action: "read", source };
        let ahead = offset - self.offset;
        let skipped = std::io::copy(&mut (&mut self.input).take(ahead), &mut std::io::sink()).map_err(io)?;
        if skipped != ahead {
            return Err(TextError::Changed { path: self.path.clone() });
        }
        (self.offset, self.line) = (offset, line);
        Ok(())
    }

    /// The stream.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn next_jsonl(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Raw>, TextError> {
        let start = buffer.len();
        loop {
            match self.line(buffer)? {
                Found::End => return Ok(None),
                Found::TooLong => return Ok(Some(self.too_long(start))),
                Found::Line if buffer[start..].trim_ascii().is_empty() => buffer.truncate(start),
                Found::Line => break,
            }
        }
        let bytes = start..buffer.len();
        Ok(Some(Raw { bytes, line: self.line, id: None, fault: None }))
    }

    fn next_txt(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Raw>, TextError> {
        let start = buffer.len();
        let (mut first, mut long) = (self.line + 1, None);
        loop {
            let at = buffer.len();
            match self.line(buffer)? {
                Found::End => break,
                Found::TooLong => {
                    long = long.or_else(|| Some(self.too_long(start)));
                    continue;
                }
                Found::Line => {}
            }
            let bare = buffer[at..].strip_suffix(b"\n").unwrap_or(&buffer[at..]);
            let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
            if self.separator.as_ref().is_some_and(|s| s.as_bytes() == bare) {
                buffer.truncate(at);
                if long.is_none() && at == start {
                    first = self.line + 1;
                    continue;
                }
                break;
            }
            if long.is_none() && buffer.len() - start > self.max_document_bytes {
                long = Some(self.too_long(start));
            }
            if long.is_some() {
                buffer.truncate(start);
            }
        }
        if let Some(long) = long {
            buffer.truncate(start);
            return Ok(Some(long));
        }
        let bytes = start..buffer.len();
        Ok((!bytes.is_empty()).then_some(Raw { bytes, line: first, id: None, fault: None }))
    }

    /// Puts a line with its end behind what `buffer` holds; one that is too long is passed over.
    fn line(&mut self, buffer: &mut Vec<u8>) -> Result<Found, TextError> {
        let start = buffer.len();
        let max = self.max_document_bytes;
        let mut read = || -> std::io::Result<(u64, bool)> {
            let bytes = (&mut self.input).take(max as u64 + 1).read_until(b'\n', buffer)?;
            let long = buffer.len() - start > max;
            let rest = if long && buffer.last() != Some(&b'\n') { self.input.skip_until(b'\n')? } else { 0 };
            Ok((bytes as u64 + rest as u64, long))
        };
        let read = read().map_err(|source| TextError::Io { path: self.path.clone(), action: "read", source });
        let (bytes, long) = read?;
        self.offset += bytes;
        if bytes == 0 {
            return Ok(Found::End);
        }
        self.line += 1;
        if long {
            buffer.truncate(start);
            return Ok(Found::TooLong);
        }
        if self.line == 1 && buffer[start..].starts_with("\u{feff}".as_bytes()) {
            buffer.drain(start..start + 3);
        }
        Ok(Found::Line)
    }

    fn too_long(&self, start: usize) -> Raw {
        Raw { bytes: start..start, line: self.line, id: None, fault: Some(Fault::TooLong) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts and faults of a stream, in order.
    fn all(kind: Kind, bytes: &[u8], options: &TextOptions) -> Vec<Result<String, TextError>> {
        let mut records = Records::new(bytes, kind, "in".into(), options);
        let (mut all, mut buffer) = (Vec::new(), b"before".to_vec());
        while let Some(raw) = records.next(&mut buffer).unwrap() {
            let text = match raw.fault {
                Some(fault) => Err(fault),
                None => parse(kind, &buffer[raw.bytes], options).map(|(text, _)| text.into_owned()),
            };
            all.push(text.map_err(|fault| fault.at(kind, Path::new("in"), raw.line, options)));
        }
        assert!(buffer.starts_with(b"before"));
        assert_eq!(records.place().0, bytes.len() as u64);
        all
    }

    fn read(kind: Kind, bytes: &[u8], options: &TextOptions) -> Vec<String> {
        all(kind, bytes, options).into_iter().map(|d| d.unwrap()).collect()
    }

    #[test]
    fn txt_is_one_document_unless_a_line_separates() {
        let text = "\u{feff}one\r\ntwo\n---\n---\nthree";
        let whole = read(Kind::Txt, text.as_bytes(), &TextOptions::default());
        assert_eq!(whole, ["one\r\ntwo\n---\n---\nthree"]);
        let options = TextOptions { separator: Some("---".into()), ..TextOptions::default() };
        assert_eq!(read(Kind::Txt, text.as_bytes(), &options), ["one\r\ntwo\n", "three"]);
        assert!(read(Kind::Txt, b"", &options).is_empty());
        assert!(read(Kind::Txt, "\u{feff}".as_bytes(), &options).is_empty());
        assert_eq!(read(Kind::Txt, b"---\na\n---\n", &options), ["a\n"]);
    }

    #[test]
    fn jsonl_reads_text_and_passes_over_the_rest() {
        let lines = "{\"id\": [1, {\"text\": 2}], \"text\": \"a\\u00e9\\n\"}\n\n  {\"text\":\"b\",\"z\":null}";
        assert_eq!(read(Kind::Jsonl, lines.as_bytes(), &TextOptions::default()), ["aé\n", "b"]);
        let options = TextOptions { text_key: "z".into(), id_key: Some("id".into()), ..TextOptions::default() };
        for (line, want, id) in [
            ("{\"id\":\"x\\u0031\",\"text\":1,\"z\":\"t\"}", "t", Some("x1")),
            ("{\"\\u007a\":\"t\\n\",\"id\":[7]}", "t\n", Some("[7]")),
            ("{\"id\":null,\"z\":\"t\"}", "t", None),
        ] {
            let (text, got) = parse(Kind::Jsonl, line.as_bytes(), &options).unwrap();
            assert_eq!((text.as_ref(), got.as_deref()), (want, id));
        }
    }

    #[test]
    fn faults_name_the_line() {
        let options = TextOptions { max_document_bytes: 40, ..TextOptions::default() };
        for (kind, bytes, want) in [
            (Kind::Jsonl, &b"{\"text\":\"a\"}\n{\"txt\":\"a\"}\n"[..], "in, line 2: missing field `text`"),
            (Kind::Jsonl, b"{\"text\":\"a\"}\n{\"text\":1}\n", "in, line 2: invalid type"),
            (Kind::Jsonl, b"{\"text\":\"a\"", "in, line 1: EOF"),
            (Kind::Jsonl, b"{\"text\":\"a\"} x", "in, line 1: trailing"),
            (Kind::Jsonl, b"{\"text\":\"a\",\"text\":\"b\"}", "in, line 1: duplicate field `text`"),
            (Kind::Jsonl, b"{\"text\":\"\\ud800\"}", "in, line 1: "),
            (Kind::Jsonl, b"[1]", "in, line 1: invalid"),
            (Kind::Jsonl, b"\n\n{\"text\":\"\xff\"}", "in, line 3: not UTF-8 from byte 10"),
            (Kind::Jsonl, &[b' '; 41], "in, line 1: a document of more than 40 bytes"),
            (Kind::Txt, b"ok\n\xc3(", "in, line 2: not UTF-8 from byte 1"),
            (Kind::Txt, b"twenty bytes of text\ntwenty bytes of text\n", "in, line 2: a document of more"),
        ] {
            let got = all(kind, bytes, &options).pop().unwrap().unwrap_err().to_string();
            assert!(got.starts_with(want), "{got:?} should start with {want:?}");
        }
        let deep = "[".repeat(100_000);
        let deep = format!("{{\"x\":{deep}");
        let got = parse(Kind::Jsonl, deep.as_bytes(), &TextOptions::default()).unwrap_err();
        assert!(matches!(got, Fault::Json(_)), "{got:?}");
    }

    /// What is wrong with a document does not end the stream.
    #[test]
    fn a_stream_goes_on_behind_a_fault() {
        let options = TextOptions { max_document_bytes: 20, separator: Some("--".into()), ..TextOptions::default() };
        let long = "x".repeat(50);
        let lines = format!("{{\"text\":\"a\"}}\n{long}\nno\n{{\"text\":\"b\"}}\n{long}");
        let got = all(Kind::Jsonl, lines.as_bytes(), &options);
        let kept: Vec<&str> = got.iter().flatten().map(String::as_str).collect();
        assert_eq!((got.len(), kept), (5, vec!["a", "b"]));
        let text = format!("a\n--\n{long}\nb\n--\nten bytes.\nten bytes.\n\n--\nc\n--\n\n{long}");
        let got = all(Kind::Txt, text.as_bytes(), &options);
        let kept: Vec<&str> = got.iter().flatten().map(String::as_str).collect();
        assert_eq!((got.len(), kept), (5, vec!["a\n", "c\n"]));
    }

    #[test]
    fn a_stream_goes_on_at_any_place() {
        let options = TextOptions { separator: Some("--".into()), ..TextOptions::default() };
        for (kind, bytes) in [
            (Kind::Jsonl, &b"\xef\xbb\xbf{\"text\":\"a\"}\n\n{\"text\":\"b\"}\n{\"text\":\"c\"}"[..]),
            (Kind::Txt, b"\xef\xbb\xbfa\n--\n--\nb\nb\n--\nc"),
        ] {
            let (mut records, mut buffer) = (Records::new(bytes, kind, "in".into(), &options), Vec::new());
            let mut rest = read(kind, bytes, &options);
            assert_eq!(rest.len(), 3);
            while records.next(&mut buffer).unwrap().is_some() {
                rest.remove(0);
                let mut again = Records::new(bytes, kind, "in".into(), &options);
                again.skip_to(records.place()).unwrap();
                let (mut left, mut buffer) = (Vec::new(), Vec::new());
                while let Some(raw) = again.next(&mut buffer).unwrap() {
                    left.push(parse(kind, &buffer[raw.bytes], &options).unwrap().0.into_owned());
                }
                assert_eq!(left, rest);
                assert_eq!(again.place().0, bytes.len() as u64);
            }
            let far = records.place().0 + 1;
            assert!(matches!(records.skip_to((far, 1)), Err(TextError::Changed { .. })));
        }
    }
}
