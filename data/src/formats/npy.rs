//! NumPy's .npy: a header that is a Python literal, then one array.
//!
//! ```text
//! "\x93NUMPY"   u8 major 1, 2 or 3   u8 minor 0   u16 (major 1) or u32 length of the literal
//! {'descr': '<u4', 'fortran_order': False, 'shape': (26624,), }   spaces, newline
//! ```
//!
//! One dimension is a stream of ids with end marks; of two dimensions the rows are documents.
//! There and back the bytes are equal where the source was written by NumPy in C order; an array
//! of floats, of big-endian integers, or in Fortran order is refused.
//!
//! Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use std::path::Path;

use super::export::{Job, Written};
use super::raw::{Array, Bounds, Raw, map};
use super::{Division, Format, FormatError, Int, Options, marks};

/// First bytes of every .npy file.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";
/// NumPy itself refuses longer ones unless told otherwise.
const HEADER_MAX: usize = 10_000;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The first byte of the array.
    pub at: usize,
    pub int: Int,
    /// One dimension or two.
    pub shape: Vec<u64>,
    /// The product of `shape`.
    pub tokens: u64,
}

/// Reads the header of a file that starts with [`MAGIC`], and holds it against the length.
pub(super) fn header(file: &[u8], path: &Path) -> Result<Header, FormatError> {
    let damaged = |what: &str| FormatError::damaged(path, Format::Npy, what);
    let cut = || damaged("ends inside its header");
    if !file.starts_with(MAGIC) {
        return Err(damaged("does not start with \"\\x93NUMPY\""));
    }
    let major = *file.get(6).ok_or_else(cut)?;
    let (prefix, length) = match major {
        1 => {
            let b = file.get(8..10).ok_or_else(cut)?;
            (10, u16::from_le_bytes([b[0], b[1]]) as usize)
        }
        2 | 3 => {
            let b = file.get(8..12).ok_or_else(cut)?;
            (12, u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)
        }
        major => return Err(FormatError::field(path, "major version", major, "1, 2 or 3")),
    };
    if length > HEADER_MAX {
        return Err(FormatError::field(path, "length of the header", length, format!("at most {HEADER_MAX}")));
    }
    let text = file.get(prefix..prefix + length).ok_or_else(cut)?;
    let text = std::str::from_utf8(text).map_err(|_| damaged("has a header that is not UTF-8"))?;
    let (descr, fortran, shape) = literal(text).ok_or_else(|| {
        FormatError::field(
            path,
            "header",
            format!("{text:?}"),
            "{'descr': '<u2', 'fortran_order': False, 'shape': (9,), }",
        )
    })?;
    let int = match descr {
        "|u1" => Int::U8,
        "|i1" => Int::I8,
        "<u2" => Int::U16,
        "<i2" => Int::I16,
        "<u4" => Int::U32,
        "<i4" => Int::I32,
        "<u8" => Int::U64,
        "<i8" => Int::I64,
        other => {
            return Err(FormatError::field(path, "descr", other, "a little-endian integer such as <u2, <u4 or <i8"));
        }
    };
    if fortran {
        return Err(FormatError::field(path, "fortran_order", "True", "False; save np.ascontiguousarray(a)"));
    }
    if !(1..=2).contains(&shape.len()) {
        return Err(FormatError::field(path, "dimensions", shape.len(), "1 or 2"));
    }
    let at = prefix + length;
    let room = (file.len() - at) as u64;
    let tokens = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    match tokens.and_then(|tokens| tokens.checked_mul(int.bytes() as u64)) {
        Some(bytes) if bytes == room => {}
        _ => {
            let want = format!("{} ids of {int}, which fill the file", room / int.bytes() as u64);
            return Err(FormatError::field(path, "shape", format!("{shape:?}"), want));
        }
    }
    Ok(Header { at, int, tokens: tokens.expect("checked above"), shape })
}

/// The three values of the literal, whatever their order.
fn literal(text: &str) -> Option<(&str, bool, Vec<u64>)> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = rest.strip_prefix('\'')?.split_once('\'')?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        rest = match key {
            "descr" => {
                let (value, after) = value.strip_prefix('\'')?.split_once('\'')?;
                descr = Some(value);
                after
            }
            "fortran_order" => match (value.strip_prefix("False"), value.strip_prefix("True")) {
                (Some(after), _) => {
                    fortran = Some(false);
                    after
                }
                (None, after) => {
                    fortran = Some(true);
                    after?
                }
            },
            "shape" => {
                let (numbers, after) = value.strip_prefix('(')?.split_once(')')?;
                let numbers = numbers.trim().trim_end_matches(',');
                let parsed: Option<Vec<u64>> = match numbers {
                    "" => Some(Vec::new()),
                    numbers => numbers.split(',').map(|n| n.trim().parse().ok()).collect(),
                };
                shape = Some(parsed?);
                after
            }
            _ => return None,
        };
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some((descr?, fortran?, shape?))
}

pub(super) fn open(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let map = map(path)?;
    let header = header(&map, path)?;
    let bounds = match (options.division, header.shape[..].len()) {
        (Division::Auto | Division::Records, 2) => Bounds::Every(header.shape[1].max(1)),
        _ => marks(path, options, "an array of one dimension has no table of documents")?,
    };
    let array = Array::new(path, map, header.at, header.int, Some(header.tokens))?;
    Ok(Raw { array, bounds, rotated: false })
}

/// A header as NumPy writes it: what follows is aligned to 64 bytes.
pub(super) fn header_bytes(descr: &str, shape: &[u64]) -> Vec<u8> {
    let shape = match shape {
        [n] => format!("({n},)"),
        shape => format!("({})", shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.extend(std::iter::repeat_n(' ', length - 1 - text.len()));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Writes STEM.npy: a stream, or rows of `seq_len` ids without what does not fill the last.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let int = job.options.int.unwrap_or(if job.vocab_size <= 1 << 16 { Int::U16 } else { Int::U32 });
    let descr = match int.bytes() {
        1 => format!("|{}", int.name().replace('8', "1")),
        bytes => format!("<{}{bytes}", &int.name()[..1]),
    };
    let tokens: u64 = job.lengths().sum();
    let mut file = job.create(".npy")?;
    let mut written = Written::default();
    match job.options.seq_len {
        None => {
            file.bytes(&header_bytes(&descr, &[tokens]))?;
            job.documents(|ids| file.ids(int, ids))?;
        }
        Some(length) => {
            file.bytes(&header_bytes(&descr, &[tokens / length as u64, length as u64]))?;
            let rest = job.windows(length, |ids| file.ids(int, ids))?;
            written.dropped_tokens = rest.len() as u64;
        }
    }
    written.add(file.finish()?);
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_written_and_nothing_else() {
        let path = Path::new("a.npy");
        let file = [header_bytes("<u4", &[3]), vec![0; 12]].concat();
        assert_eq!(file.len() % 64, 12);
        assert_eq!(header(&file, path).unwrap(), Header { at: 128, int: Int::U32, shape: vec![3], tokens: 3 });
        let file = [header_bytes("|u1", &[2, 3]), vec![0; 6]].concat();
        assert_eq!(header(&file, path).unwrap().shape, [2, 3]);
        for text in [
            "",
            "{}",
            "{'descr': '<u4', 'fortran_order': False}",
            "{'descr': '<u4', 'fortran_order': Maybe, 'shape': (1,)}",
            "{'descr': '<u4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<u4', 'fortran_order': False, 'shape': (1,), 'more': 1}",
            "{'descr': [('a', '<u4')], 'fortran_order': False, 'shape': (1,)}",
        ] {
            assert_eq!(literal(text), None, "{text}");
        }
    }
}
