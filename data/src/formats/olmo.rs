//! OLMo and Dolma: u16 or u32 ids from the first byte to the last, in a file called .npy that has
//! no npy header; the end mark after each document. Beside it, where it was kept, a table:
//!
//! ```text
//! NAME.csv.gz    start,end,id,source,line     a row for each document, tokens start..end
//! ```
//!
//! There and back the .npy is equal, and so are `start` and `end` of each row. The rest of a row
//! says where the text was found, which our shards do not keep: export writes the number of the
//! document, the name of the split, and that number again. Compressed bytes of course differ.
//!
//! Source: <https://github.com/allenai/dolma>, python/dolma/tokenizer/memmap_writer.py; the reader
//! is <https://github.com/allenai/OLMo>, olmo/data/memmap_dataset.py.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::export::{Job, Written};
use super::raw::{Array, Bounds, Raw, check_ends, map};
use super::{Division, Format, FormatError, Int, Options, marks};

/// Bytes of one row at most: four short fields and a name.
const ROW_MAX: usize = 1 << 16;

fn table_of(path: &Path) -> PathBuf {
    path.with_extension("csv.gz")
}

pub(super) fn open(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let map = map(path)?;
    if map.starts_with(super::npy::MAGIC) {
        return Err(FormatError::refused(path, "has an npy header, which OLMo's files lack; it is a plain npy file"));
    }
    let table = Some(table_of(path)).filter(|table| table.is_file());
    let ends = match &table {
        Some(table) => Some(ends(table, map.len() as u64)?),
        None => None,
    };
    let int = match (options.int, ends.as_ref().and_then(|ends| ends.last())) {
        (Some(int), _) => int,
        // The table ends with the last token, which tells how wide one is.
        (None, Some(last)) if last * 2 == map.len() as u64 => Int::U16,
        (None, Some(last)) if last * 4 == map.len() as u64 => Int::U32,
        (None, Some(last)) => {
            let want = format!("half or a quarter of the {} bytes of {}", map.len(), path.display());
            let table = table.as_deref().unwrap_or(path);
            return Err(FormatError::field(table, "end of the last document", last, want));
        }
        (None, None) => {
            let why = "the file has neither a header nor a .csv.gz beside it that would tell u16 from u32".into();
            return Err(FormatError::Missing { path: path.into(), what: "--dtype u16 or u32", why });
        }
    };
    let array = Array::new(path, map, 0, int, None)?;
    let bounds = match (ends, options.division) {
        (Some(ends), Division::Auto | Division::Records) => {
            check_ends(table.as_deref().unwrap_or(path), ends.iter().copied(), array.tokens)?;
            Bounds::Ends(ends)
        }
        _ => marks(path, options, "no table of documents is read")?,
    };
    Ok(Raw { array, bounds, rotated: false })
}

/// The `end` of each row. Rows without tokens are refused: the tokens then bound their number.
fn ends(path: &Path, data_bytes: u64) -> Result<Vec<u64>, FormatError> {
    let file = std::fs::File::open(path).map_err(FormatError::io(path, "open"))?;
    let mut rows = BufReader::new(MultiGzDecoder::new(BufReader::new(file)));
    let (mut ends, mut row, mut last) = (Vec::new(), Vec::new(), 0u64);
    while read_row(&mut rows, &mut row, path)? {
        let line = ends.len() as u64 + 1;
        let mut numbers = row.split(|&b| b == b',').map(|field| std::str::from_utf8(field).ok()?.parse::<u64>().ok());
        let (start, end) = (numbers.next().flatten(), numbers.next().flatten());
        let (Some(start), Some(end)) = (start, end) else {
            let row = String::from_utf8_lossy(&row).into_owned();
            return Err(FormatError::field(
                path,
                format!("row {line}"),
                format!("{row:?}"),
                "start,end,id,source,line",
            ));
        };
        if start != last || end <= start || end > data_bytes {
            let want = format!("from {last}, where the row before it ends, to more than that, inside the tokens");
            return Err(FormatError::field(path, format!("row {line}"), format!("{start} to {end}"), want));
        }
        ends.push(end);
        last = end;
    }
    Ok(ends)
}

/// One row without its line end; line ends inside quotes belong to the row.
fn read_row(rows: &mut impl BufRead, row: &mut Vec<u8>, path: &Path) -> Result<bool, FormatError> {
    row.clear();
    let mut quoted = false;
    loop {
        let buffer = rows
            .fill_buf()
            .map_err(|e| FormatError::damaged(path, Format::Olmo, format!("cannot be unpacked: {e}")))?;
        if buffer.is_empty() {
            if quoted {
                return Err(FormatError::damaged(path, Format::Olmo, "ends inside a quoted field"));
            }
            break;
        }
        let stop = buffer.iter().position(|&b| {
            quoted ^= b == b'"';
            b == b'\n' && !quoted
        });
        let take = stop.map_or(buffer.len(), |i| i + 1);
        if row.len() + take > ROW_MAX {
            return Err(FormatError::damaged(path, Format::Olmo, format!("has a row of more than {ROW_MAX} bytes")));
        }
        row.extend_from_slice(&buffer[..take]);
        rows.consume(take);
        if stop.is_some() {
            break;
        }
    }
    let any = !row.is_empty();
    while row.last().is_some_and(|b| b"\r\n".contains(b)) {
        row.pop();
    }
    Ok(any)
}

/// Writes STEM.npy and STEM.csv.gz.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let int = job.options.int.unwrap_or(if job.vocab_size <= 1 << 16 { Int::U16 } else { Int::U32 });
    if !matches!(int, Int::U16 | Int::U32) {
        return Err(FormatError::refused(job.out, format!("OLMo reads u16 and u32, not {int}")));
    }
    let mut data = job.create(".npy")?;
    job.documents(|ids| data.ids(int, ids))?;
    let mut table = job.create(".csv.gz")?;
    let mut start = 0u64;
    table.gz(|gz| {
        for (d, length) in job.lengths().enumerate() {
            let end = start + length;
            write!(gz, "{start},{end},{d},{},{d}\r\n", job.stem)?;
            start = end;
        }
        Ok(())
    })?;
    let mut written = Written::default();
    written.add(data.finish()?);
    written.add(table.finish()?);
    Ok(written)
}
