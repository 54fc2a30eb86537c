//! Documents in a parquet file: one column of text, row group after row group.
//!
//! The `parquet` crate reads footer and pages. It believes what a file says of sizes, so each
//! column chunk is walked first: every page's header must lie in the chunk, unpack to no more
//! than [`PAGE_FACTOR`] longest documents, and name no more values than can be there. Text in
//! the encodings plain and dictionary is read, which is what writers choose for text unless told
//! otherwise; the delta encodings are refused, since their lengths are only known once unpacked.
//! A nested column is named by its path, as `metadata.url`; repeated ones are no text.
//!
//! Memory: a page of each column, and what the dictionary holds.
//! Source of the format: github.com/apache/parquet-format, Thrift's compact protocol.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::basic::Type;
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::stream::{Packing, Stream};
use crate::brief;
use crate::text::{Fault, Raw, TextError, TextOptions, short};

/// Largest footer: it is read whole.
const FOOTER_BYTES_MAX: u64 = 64 << 20;
/// A page unpacks to at most this many longest documents.
const PAGE_FACTOR: u64 = 16;
/// Rows decoded at a time.
const ROWS: usize = 64;

/// The rows of one file.
pub(crate) struct Rows {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    max: usize,
    text: usize,
    id: Option<usize>,
    /// Row group to open next.
    next_group: usize,
    /// Rows of the open row group that were not decoded yet.
    left: u64,
    open: Option<(Column, Option<Column>)>,
    ready: VecDeque<(Option<ByteArray>, Option<ByteArray>)>,
    /// Rows handed out.
    row: u64,
    file_bytes: u64,
    meter: Arc<AtomicU64>,
    metered: u64,
}

/// One column of the open row group.
struct Column {
    reader: ColumnReaderImpl<ByteArrayType>,
    /// Definition level of a value that is there.
    present: i16,
}

impl Rows {
    /// Reads the footer and finds the columns; `meter` grows as row groups are opened.
    pub(crate) fn open(path: &Path, options: &TextOptions, meter: Arc<AtomicU64>) -> Result<Rows, TextError> {
        let io = |action| move |source| TextError::Io { path: path.into(), action, source };
        let bad = |reason: String| TextError::Parquet { path: path.into(), reason };
        let mut file = File::open(path).map_err(io("open"))?;
        let file_bytes = file.metadata().map_err(io("read"))?.len();
        let mut tail = [0; 8];
        if file_bytes < 12 {
            return Err(bad(format!("{file_bytes} bytes are too few for a parquet file")));
        }
        file.seek(SeekFrom::End(-8)).map_err(io("read"))?;
        file.read_exact(&mut tail).map_err(io("read"))?;
        let footer = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
        if &tail[4..] != b"PAR1" {
            return Err(bad("does not end as a parquet file does; the file was cut short, or is none".into()));
        }
        if footer > FOOTER_BYTES_MAX.min(file_bytes - 12) {
            return Err(bad(format!("a footer of {footer} bytes in a file of {file_bytes}")));
        }
        let reader = caught(|| SerializedFileReader::new(file)).map_err(bad)?;
        let (text, id) = columns(&reader, path, options)?;
        Ok(Rows {
            path: path.into(),
            reader,
            max: options.max_document_bytes,
            text,
            id,
            next_group: 0,
            left: 0,
            open: None,
            ready: VecDeque::new(),
            row: 0,
            file_bytes,
            meter,
            metered: 0,
        })
    }

    /// The next row, its text put behind what `buffer` holds; nothing at the end.
    pub(crate) fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Raw>, TextError> {
        while self.ready.is_empty() {
            if !self.decode()? {
                return Ok(None);
            }
        }
        let (text, id) = self.ready.pop_front().expect("not empty");
        self.row += 1;
        let start = buffer.len();
        let fault = match &text {
            None => Some(Fault::NoText),
            Some(text) if text.len() > self.max => Some(Fault::TooLong),
            Some(text) => {
                buffer.extend_from_slice(text.data());
                None
            }
        };
        let id = id.map(|id| short(&String::from_utf8_lossy(&id.data()[..id.len().min(800)])));
        Ok(Some(Raw { bytes: start..buffer.len(), line: self.row, id, fault }))
    }

    /// Rows handed out so far.
    pub(crate) fn row(&self) -> u64 {
        self.row
    }

    /// Goes on behind row `row`.
    pub(crate) fn skip_to(&mut self, row: u64) -> Result<(), TextError> {
        let mut buffer = Vec::new();
        while self.row < row {
            buffer.clear();
            if self.next(&mut buffer)?.is_none() {
                return Err(TextError::Changed { path: self.path.clone() });
            }
        }
        Ok(())
    }

    /// Size and blake3 of the file, which is read once more for it.
    pub(crate) fn finish(self) -> Result<(u64, [u8; 32]), TextError> {
        let io = |source| TextError::Io { path: self.path.clone(), action: "read", source };
        let mut stream = Stream::new(File::open(&self.path).map_err(io)?, Packing::Plain, Arc::default());
        std::io::copy(&mut stream, &mut std::io::sink()).map_err(io)?;
        Ok(stream.finish())
    }

    /// Decodes a few rows more; false at the end.
    fn decode(&mut self) -> Result<bool, TextError> {
        if self.left == 0 && !self.open_group()? {
            return Ok(false);
        }
        let rows = self.left.min(ROWS as u64) as usize;
        let Some((text, id)) = &mut self.open else { return Ok(false) };
        let texts = text.read(rows);
        let ids = id.as_mut().map_or_else(|| Ok(vec![None; rows]), |id| id.read(rows));
        let (texts, ids) = (texts.map_err(|e| self.bad(e))?, ids.map_err(|e| self.bad(e))?);
        self.left -= rows as u64;
        self.ready.extend(texts.into_iter().zip(ids));
        Ok(true)
    }

    /// Opens the next row group that has rows; false when there is none.
    fn open_group(&mut self) -> Result<bool, TextError> {
        let groups = self.reader.num_row_groups();
        let done = self.file_bytes * self.next_group as u64 / groups.max(1) as u64;
        self.meter.fetch_add(done - self.metered, Ordering::Relaxed);
        self.metered = done;
        self.open = None;
        if self.next_group == groups {
            return Ok(false);
        }
        let group = self.next_group;
        self.next_group += 1;
        let rows = self.reader.metadata().row_group(group).num_rows();
        self.left = u64::try_from(rows).map_err(|_| self.bad(format!("row group {group} has {rows} rows")))?;
        let text = self.column(group, self.text).map_err(|e| self.bad(e))?;
        let id = self.id.map(|id| self.column(group, id)).transpose().map_err(|e| self.bad(e))?;
        self.open = Some((text, id));
        Ok(true)
    }

    fn column(&self, group: usize, column: usize) -> Result<Column, String> {
        let about = |e: String| format!("row group {group}, column {column}: {e}");
        let meta = self.reader.metadata().row_group(group);
        if column >= meta.num_columns() {
            return Err(about("is missing".into()));
        }
        let chunk = meta.column(column);
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        let (start, bytes) = match (u64::try_from(start), u64::try_from(chunk.compressed_size())) {
            (Ok(start), Ok(bytes)) if start.checked_add(bytes).is_some_and(|end| end <= self.file_bytes) => {
                (start, bytes)
            }
            _ => return Err(about(format!("lies outside the file's {} bytes", self.file_bytes))),
        };
        let unpacked_max = PAGE_FACTOR * self.max as u64;
        check_pages(&self.path, start, bytes, unpacked_max, self.left).map_err(about)?;
        let present = chunk.column_descr().max_def_level();
        let reader = caught(|| self.reader.get_row_group(group)?.get_column_reader(column)).map_err(about)?;
        Ok(Column { reader: get_typed_column_reader(reader), present })
    }

    fn bad(&self, reason: String) -> TextError {
        TextError::Parquet { path: self.path.clone(), reason }
    }
}

impl Column {
    /// Exactly `rows` values, nulls included.
    fn read(&mut self, rows: usize) -> Result<Vec<Option<ByteArray>>, String> {
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let (mut records, mut all) = (0, Vec::with_capacity(rows));
        while records < rows {
            let n = caught(|| self.reader.read_records(rows - records, Some(&mut levels), None, &mut values))?.0;
            if n == 0 {
                return Err(format!("ends {} rows early", rows - records));
            }
            records += n;
        }
        let mut values = values.into_iter();
        if self.present == 0 {
            all.extend(values.by_ref().map(Some));
        } else {
            all.extend(levels.iter().map(|&l| (l == self.present).then(|| values.next()).flatten()));
        }
        if all.len() != rows {
            return Err(format!("{} values for {rows} rows", all.len()));
        }
        Ok(all)
    }
}

/// The numbers of the columns of text and of ids.
fn columns(
    reader: &SerializedFileReader<File>,
    path: &Path,
    options: &TextOptions,
) -> Result<(usize, Option<usize>), TextError> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let fits =
        |c: &parquet::schema::types::ColumnDescriptor| c.physical_type() == Type::BYTE_ARRAY && c.max_rep_level() == 0;
    let find = |name: &str| {
        let at = schema.columns().iter().position(|c| fits(c) && c.path().string() == name);
        at.ok_or_else(|| {
            let names: Vec<String> =
                schema.columns().iter().filter(|c| fits(c)).take(20).map(|c| brief(c.path().string())).collect();
            let found = if names.is_empty() { "none".into() } else { brief(names.join(", ")) };
            TextError::Column { path: path.into(), column: name.into(), found }
        })
    };
    Ok((find(&options.text_key)?, options.id_key.as_deref().map(find).transpose()?))
}

/// Calls into the `parquet` crate; a panic in there becomes an error, since the files are other
/// people's and the crate indexes by what they say. What it leaves is not used again.
fn caught<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(done) => done.map_err(brief),
        Err(_) => Err("the parquet crate gave up".into()),
    }
}

/// What the header of a page says.
#[derive(Debug, Default)]
struct Page {
    kind: i64,
    unpacked: i64,
    packed: i64,
    values: i64,
    encoding: i64,
}

/// Walks the pages of a column chunk and holds what their headers say against what can be.
fn check_pages(path: &Path, start: u64, bytes: u64, unpacked_max: u64, rows: u64) -> Result<(), String> {
    const DATA: i64 = 0;
    const DICTIONARY: i64 = 2;
    const DATA_V2: i64 = 3;
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let (mut at, end) = (start, start + bytes);
    while at < end {
        file.seek(SeekFrom::Start(at)).map_err(|e| e.to_string())?;
        let mut thrift = Thrift { input: BufReader::new((&mut file).take(end - at)), read: 0 };
        let page = thrift.page().map_err(|e| format!("the page at byte {at}: {e}"))?;
        let begin = at;
        let fault = |what: String| Err(format!("the page at byte {begin} {what}"));
        at += thrift.read;
        if u64::try_from(page.packed).map_or(true, |packed| packed > end - at) {
            return fault(format!("takes {} bytes and its chunk has {}", page.packed, end - at));
        }
        if u64::try_from(page.unpacked).map_or(true, |unpacked| unpacked > unpacked_max) {
            return fault(format!("unpacks to {} bytes; at most {unpacked_max} are read", page.unpacked));
        }
        // Each value of a plain dictionary has a length of four bytes.
        let most = if page.kind == DICTIONARY { page.unpacked as u64 / 4 } else { rows };
        if u64::try_from(page.values).map_or(true, |values| values > most) {
            return fault(format!("names {} values where at most {most} can be", page.values));
        }
        // Plain, and the two names of a dictionary's indices.
        if matches!(page.kind, DATA | DATA_V2) && !matches!(page.encoding, 0 | 2 | 8) {
            return fault(format!(
                "has encoding {}; text is read from plain and dictionary pages: write the file again with those",
                page.encoding
            ));
        }
        at += page.packed as u64;
    }
    Ok(())
}

/// Thrift's compact protocol, as far as a page header needs it.
struct Thrift<R> {
    input: R,
    /// Bytes taken.
    read: u64,
}

/// Structs inside each other.
const DEPTH_MAX: usize = 8;

impl<R: Read> Thrift<R> {
    /// PageHeader: 1 type, 2 unpacked, 3 packed size; 5, 7, 8 the header of the kind, in which 1
    /// is the number of values and the encoding is 2, or 4 in a data page of version 2.
    fn page(&mut self) -> Result<Page, String> {
        let mut page = Page::default();
        let mut last = 0;
        while let Some((field, kind)) = self.field(&mut last)? {
            match (field, kind) {
                (1, 5) => page.kind = self.zigzag()?,
                (2, 5) => page.unpacked = self.zigzag()?,
                (3, 5) => page.packed = self.zigzag()?,
                (5 | 7 | 8, 12) => {
                    let mut last = 0;
                    while let Some((inner, kind)) = self.field(&mut last)? {
                        match (inner, kind) {
                            (1, 5) => page.values = self.zigzag()?,
                            (2, 5) if field != 8 => page.encoding = self.zigzag()?,
                            (4, 5) if field == 8 => page.encoding = self.zigzag()?,
                            _ => self.skip(kind, 0)?,
                        }
                    }
                }
                _ => self.skip(kind, 0)?,
            }
        }
        Ok(page)
    }

    /// Number and type of the next field of a struct; nothing at its end.
    fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, String> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let delta = i64::from(byte >> 4);
        *last = if delta == 0 { self.zigzag()? } else { last.saturating_add(delta) };
        Ok(Some((*last, byte & 15)))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err("structs too deep inside each other".into());
        }
        match kind {
            1 | 2 => {}
            3 => {
                self.byte()?;
            }
            4..=6 => {
                self.varint()?;
            }
            7 => self.pass(8)?,
            8 => {
                let bytes = self.varint()?;
                self.pass(bytes)?;
            }
            9 | 10 => {
                let byte = self.byte()?;
                let items = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                for _ in 0..items {
                    // A truth value takes a byte in a list.
                    let kind = if byte & 15 <= 2 { 3 } else { byte & 15 };
                    self.skip(kind, depth + 1)?;
                }
            }
            12 => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            other => return Err(format!("a field of unknown type {other}")),
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, String> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(|e| format!("its header is cut short: {e}"))?;
        self.read += 1;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("a number too long".into())
    }

    fn zigzag(&mut self) -> Result<i64, String> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn pass(&mut self, bytes: u64) -> Result<(), String> {
        let passed = std::io::copy(&mut (&mut self.input).take(bytes), &mut std::io::sink());
        self.read += bytes;
        if passed.map_err(|e| e.to_string())? == bytes { Ok(()) } else { Err("its header is cut short".into()) }
    }
}
