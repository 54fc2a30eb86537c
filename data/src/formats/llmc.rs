//! llm.c: a header of 256 i32, then tokens; the mark stands *before* each document.
//!
//! ```text
//! [0] magic      [1] version      [2] tokens     [3..256] zero
//! 20240520       1                               u16 ids (GPT-2; modded-nanogpt too)
//! 20240801       7                               u32 ids (Llama 3)
//! 20240522                                       no token stream: items of an evaluation
//! ```
//!
//! Ours end with their mark, so import turns the marks by one: the first is left out, and the
//! last document gets one. `D a b D c` becomes `a b D`, `c D`. Export turns them back, and there
//! and back the bytes are equal. A file that does not start with the mark goes on with the
//! document at the end of the one before it (files are cut at 100 million tokens); read in
//! order, such a document is not closed in between.
//!
//! Source: <https://github.com/karpathy/llm.c>, dev/data/data_common.py, llmc/dataloader.h.

use std::path::Path;

use super::export::{Job, Written};
use super::raw::{Array, Bounds, Raw, map};
use super::{Division, FormatError, Int, Options};

const HEADER: usize = 1024;
const U16: (i32, i32) = (20240520, 1);
const U32: (i32, i32) = (20240801, 7);
const EVAL: i32 = 20240522;
/// Tokens of a file beyond which export begins another; the header counts in 31 bits.
const FILE_TOKENS: u64 = 1 << 30;

fn number(bytes: &[u8], i: usize) -> i32 {
    i32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("4 bytes"))
}

/// Whether these are the first bytes of such a file, or of one of its evaluations.
pub(super) fn is_header(start: &[u8]) -> bool {
    start.len() >= 8 && [U16.0, U32.0, EVAL].contains(&number(start, 0))
}

fn array(path: &Path) -> Result<Array, FormatError> {
    let map = map(path)?;
    if map.len() < HEADER {
        return Err(FormatError::field(path, "length in bytes", map.len(), format!("at least {HEADER}, the header")));
    }
    let (magic, version, tokens) = (number(&map, 0), number(&map, 1), number(&map, 2));
    let (int, want) = match magic {
        m if m == U16.0 => (Int::U16, U16.1),
        m if m == U32.0 => (Int::U32, U32.1),
        EVAL => {
            let what = "holds items of a multiple-choice evaluation (magic 20240522), not a stream of tokens";
            return Err(FormatError::refused(path, what));
        }
        magic => return Err(FormatError::field(path, "magic", magic, "20240520 (u16) or 20240801 (u32)")),
    };
    if version != want {
        return Err(FormatError::field(path, "version", version, want.to_string()));
    }
    let room = (map.len() - HEADER) as u64;
    if tokens < 0 || tokens as u64 * int.bytes() as u64 != room {
        let want = format!("{}, which fill the file", room / int.bytes() as u64);
        return Err(FormatError::field(path, "tokens", tokens, want));
    }
    Array::new(path, map, HEADER, int, Some(tokens as u64))
}

/// The first id of a file, if it has one.
pub(super) fn first(path: &Path) -> Result<Option<u32>, FormatError> {
    let (array, mut id) = (array(path)?, [0]);
    if array.tokens == 0 {
        return Ok(None);
    }
    array.slice(0, &mut id)?;
    Ok(Some(id[0]))
}

/// Without `options.eos` the mark is the file's first id.
pub(super) fn open(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    if options.division == Division::Records {
        return Err(FormatError::refused(path, "llm.c has no table of documents; divide by end marks"));
    }
    let (array, first) = (array(path)?, first(path)?);
    let mark = options.eos.or(first).unwrap_or(0);
    let rotated = first == Some(mark);
    let Array { int, tokens, .. } = array;
    let skip = usize::from(rotated);
    let array = Array::new(path, map(path)?, HEADER + skip * int.bytes(), int, Some(tokens - skip as u64))?;
    Ok(Raw { array, bounds: Bounds::Mark(mark), rotated })
}

/// Writes STEM.bin, or STEM_000000.bin and so on where it would be too long.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let int = job.options.int.unwrap_or(if job.vocab_size <= 1 << 16 { Int::U16 } else { Int::U32 });
    let (magic, version) = match int {
        Int::U16 => U16,
        Int::U32 => U32,
        _ => return Err(FormatError::refused(job.out, format!("llm.c has u16 and u32, not {int}"))),
    };
    let one = job.lengths().sum::<u64>() <= FILE_TOKENS;
    let mut written = Written::default();
    let mut open = None;
    let mut tokens = 0u64;
    let mut finish = |open: &mut Option<super::out::Out>, tokens: &mut u64| -> Result<(), FormatError> {
        let Some(mut file) = open.take() else { return Ok(()) };
        let count = i32::try_from(std::mem::take(tokens)).map_err(|_| {
            FormatError::refused(job.out, "a document is longer than the 2^31 tokens that llm.c counts to")
        })?;
        file.at(0, &[magic, version, count].map(i32::to_le_bytes).concat())?;
        written.add(file.finish()?);
        Ok(())
    };
    let mut files = 0;
    let mut create = || {
        let name = if one { ".bin".into() } else { format!("_{files:06}.bin") };
        files += 1;
        let mut file = job.create(&name)?;
        file.bytes(&[0; HEADER])?;
        Ok::<_, FormatError>(file)
    };
    job.documents(|ids| {
        if tokens >= FILE_TOKENS {
            finish(&mut open, &mut tokens)?;
        }
        let file = match &mut open {
            Some(file) => file,
            None => open.insert(create()?),
        };
        let body = ids.strip_suffix(&[job.eos]).unwrap_or(ids);
        file.ids(int, &[job.eos])?;
        file.ids(int, body)?;
        tokens += 1 + body.len() as u64;
        Ok(())
    })?;
    finish(&mut open, &mut tokens)?;
    Ok(written)
}
