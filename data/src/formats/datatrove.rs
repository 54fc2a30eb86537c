//! datatrove: u16 or u32 ids from the first byte to the last, the end mark after each document.
//!
//! ```text
//! NAME.ds            the ids
//! NAME.ds.index      u64: the end of each document, in tokens
//! NAME.ds.loss       a byte a token: 0 keeps it out of the loss
//! NAME.ds.metadata   text: tokenizer|bytes of an id, tokens, the same for people
//! ```
//!
//! There and back .ds and .ds.index are equal, save for documents without tokens, which are left
//! out. Our shards have no mask: a .loss that masks anything is refused unless dropping it is
//! asked for, one of ones alone is left out. Export writes .metadata, with our tokenizer hash in
//! place of a name.
//!
//! Source: <https://github.com/huggingface/datatrove>, src/datatrove/pipeline/tokens/tokenizer.py.

use std::path::Path;

use super::export::{Job, Written};
use super::raw::{Array, Bounds, Raw, check_ends, map, word};
use super::sniff::{small, table};
use super::{Division, Format, FormatError, Int, Options, marks};

const METADATA_MAX: u64 = 1 << 16;

pub(super) fn open(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let data = map(path)?;
    let bytes = data.len() as u64;
    let index = table(path, ".index");
    let ends = match &index {
        Some(index) => Some(map(index)?),
        None => None,
    };
    if let (Some(index), Some(ends)) = (&index, &ends)
        && ends.len() % 8 != 0
    {
        return Err(FormatError::field(index, "length in bytes", ends.len(), "a multiple of 8"));
    }
    let last = ends.as_ref().map(|ends| if ends.is_empty() { 0 } else { word(ends, ends.len() - 8) });
    let metadata = metadata(path)?;
    let fits = |tokens: u64| {
        [Int::U16, Int::U32].into_iter().find(|int| tokens.checked_mul(int.bytes() as u64) == Some(bytes))
    };
    let int = match (options.int, last, metadata) {
        (Some(int), ..) => int,
        (None, Some(last), _) => fits(last).ok_or_else(|| {
            let want = format!("half or a quarter of the {bytes} bytes of {}", path.display());
            FormatError::field(index.as_deref().unwrap_or(path), "end of the last document", last, want)
        })?,
        (None, None, Some(tokens)) => fits(tokens).ok_or_else(|| {
            FormatError::field(
                path,
                "length in bytes",
                bytes,
                format!("2 or 4 for each of the {tokens} tokens of .metadata"),
            )
        })?,
        (None, None, None) => {
            let why = "neither .ds.index nor .ds.metadata is there to tell u16 from u32".into();
            return Err(FormatError::Missing { path: path.into(), what: "--dtype u16 or u32", why });
        }
    };
    let array = Array::new(path, data, 0, int, None)?;
    if let Some(tokens) = metadata.filter(|&tokens| tokens != array.tokens) {
        let want = format!("the {} of the file", array.tokens);
        return Err(FormatError::field(&super::beside(path, ".metadata"), "tokens", tokens, want));
    }
    check_loss(path, array.tokens, options)?;
    let bounds = match (index, ends, options.division) {
        (Some(index), Some(ends), Division::Auto | Division::Records) => {
            check_ends(&index, (0..ends.len() / 8).map(|d| word(&ends, d * 8)), array.tokens)?;
            Bounds::Mapped(ends)
        }
        _ => marks(path, options, "no .ds.index is read")?,
    };
    Ok(Raw { array, bounds, rotated: false })
}

/// The count of tokens that .metadata gives.
fn metadata(path: &Path) -> Result<Option<u64>, FormatError> {
    let Some(path) = table(path, ".metadata") else { return Ok(None) };
    let text = String::from_utf8(small(&path, METADATA_MAX)?)
        .map_err(|_| FormatError::damaged(&path, Format::Datatrove, "is not UTF-8"))?;
    let tokens = text.lines().nth(1).unwrap_or_default();
    match tokens.trim().parse() {
        Ok(tokens) => Ok(Some(tokens)),
        Err(_) => Err(FormatError::field(&path, "second line", format!("{tokens:?}"), "the count of tokens")),
    }
}

fn check_loss(path: &Path, tokens: u64, options: &Options) -> Result<(), FormatError> {
    let Some(path) = table(path, ".loss") else { return Ok(()) };
    let mask = map(&path)?;
    if mask.len() as u64 != tokens {
        return Err(FormatError::field(&path, "length in bytes", mask.len(), format!("{tokens}, one a token")));
    }
    if let Some((at, &byte)) = mask.iter().enumerate().find(|(_, b)| **b > 1) {
        return Err(FormatError::field(&path, format!("byte {at}"), byte, "0 or 1"));
    }
    let masked = mask.iter().filter(|&&b| b == 0).count();
    if masked > 0 && !options.drop_loss_mask {
        let refused = format!(
            "keeps {masked} of {tokens} tokens out of the loss, which our shards cannot; read all as targets with \
             --drop-loss-mask, or remove the file"
        );
        return Err(FormatError::refused(&path, refused));
    }
    Ok(())
}

/// Writes STEM.ds, its .index and its .metadata.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let int = job.options.int.unwrap_or(if job.vocab_size <= 1 << 16 { Int::U16 } else { Int::U32 });
    if !matches!(int, Int::U16 | Int::U32) {
        return Err(FormatError::refused(job.out, format!("datatrove has u16 and u32, not {int}")));
    }
    let mut data = job.create(".ds")?;
    job.documents(|ids| data.ids(int, ids))?;
    let mut index = job.create(".ds.index")?;
    let mut end = 0u64;
    for length in job.lengths() {
        end += length;
        index.bytes(&end.to_le_bytes())?;
    }
    let mut metadata = job.create(".ds.metadata")?;
    metadata.bytes(format!("blake3:{}|{}\n{end}\n{end} T", job.tokenizer_hash, int.bytes()).as_bytes())?;
    let mut written = Written::default();
    written.add(data.finish()?);
    written.add(index.finish()?);
    written.add(metadata.finish()?);
    Ok(written)
}
