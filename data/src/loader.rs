//! Rows for training and for validation.
//!
//! A *window* is T + 1 tokens of one part: T inputs, and the same one place on as targets.
//! Windows follow one another every T tokens, so each target is a target once; what is left at
//! the end of a part, fewer than T targets, is dropped and counted.
//!
//! ```text
//! position = epoch * windows + index            one counter since the start of the run
//! window   = Order(seed, epoch, windows)(index) nothing stored
//! ```
//!
//! What a row holds is a function of its position alone. A resume is a number, and neither
//! ranks, nor rows a call, nor threads can change what is trained on.
//!
//! **Documents.** `doc_first[i]` is the place in the row, 0..T, where the document of input i
//! begins: attention may look back that far. An end mark closes a document as a target and opens
//! the next one as an input; so the first token of a document is predicted from the end mark
//! alone, and generation from nothing starts with it. [`LoaderConfig::ignore_boundary`] leaves
//! that prediction out.
//!
//! **Validation** ([`Scan`]) makes every token a target exactly once, in order: the first input
//! of a part is an end mark that is not there, and the last row is filled up with ignored
//! targets. The sum of losses over all windows, over the bytes of text, is bits per byte.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::order::{MAX_N, Order};
use crate::shard::ShardError;
use crate::tokens::{Part, TokenSet};

/// A target that counts for nothing.
pub const IGNORED: u32 = u32::MAX;

/// Why rows could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("no shards were given; name at least one")]
    NoShards,
    #[error(
        "{path}: header field `{field}` differs from that of {first}; shards of one set come \
         from one tokenizer: tokenize them together"
    )]
    Mixed { path: PathBuf, field: &'static str, first: PathBuf },
    #[error("seq_len is {got}, expected 1 to {max}")]
    SeqLen { got: usize, max: usize },
    #[error(
        "{tokens} tokens hold no window of seq_len {seq_len} + 1; give more text or a shorter \
         seq_len"
    )]
    TooFewTokens { tokens: u64, seq_len: usize },
    #[error("{windows} windows are more than 2^48; give a longer seq_len")]
    TooManyWindows { windows: u64 },
    #[error("{}: token {at} is {id}, outside the vocabulary of {vocab_size}; the file is damaged: \
             tokenize the text again", part.display())]
    Token { part: PathBuf, at: u64, id: u32, vocab_size: u32 },
}

/// How rows are cut and ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderConfig {
    /// T: inputs of a row.
    pub seq_len: usize,
    /// Key of the order.
    pub seed: u64,
    /// The target after an end mark, first token of the next document, is [`IGNORED`].
    pub ignore_boundary: bool,
}

/// Where rows go. Each slice has exactly rows x seq_len places, row after row.
#[derive(Debug)]
pub struct Batch<'a> {
    pub inputs: &'a mut [u32],
    /// What comes next, or [`IGNORED`].
    pub targets: &'a mut [u32],
    /// Place in its row where the document of each input begins.
    pub doc_first: Option<&'a mut [u32]>,
}

/// One row of a [`Batch`].
struct Row<'a> {
    inputs: &'a mut [u32],
    targets: &'a mut [u32],
    doc_first: Option<&'a mut [u32]>,
}

/// Shuffled windows of a set, for ever. Thread-safe: `fill` takes `&self` and keeps nothing.
#[derive(Debug, Clone)]
pub struct Loader {
    set: Arc<TokenSet>,
    config: LoaderConfig,
    cuts: Cuts,
}

impl Loader {
    pub fn new(set: impl Into<Arc<TokenSet>>, config: LoaderConfig) -> Result<Loader, LoaderError> {
        let set = set.into();
        // One token is only ever an input, so a part of n tokens has n - 1 targets.
        let t = config.seq_len as u64;
        let cuts = Cuts::new(&set, config.seq_len, |tokens| tokens.saturating_sub(1) / t)?;
        if cuts.windows() == 0 {
            let (tokens, seq_len) = (set.tokens(), config.seq_len);
            return Err(LoaderError::TooFewTokens { tokens, seq_len });
        }
        Ok(Loader { set, config, cuts })
    }

    /// Writes rows `position .. position + rows`. A function of its arguments; takes no memory.
    ///
    /// # Panics
    /// If a slice of `batch` is not rows x seq_len long.
    pub fn fill(&self, position: u64, rows: usize, batch: Batch<'_>) -> Result<(), LoaderError> {
        let mut order: Option<(u64, Order)> = None;
        for_rows(batch, rows, self.config.seq_len, |r, row| {
            let (epoch, index) = self.epoch_of(position + r as u64);
            let order = match order {
                Some((e, order)) if e == epoch => order,
                _ => order.insert((epoch, Order::new(self.config.seed, epoch, self.windows()))).1,
            };
            let (part, window) = self.cuts.locate(order.at(index));
            self.fill_window(part, window, row)
        })
    }

    /// Windows of an epoch.
    pub fn windows(&self) -> u64 {
        self.cuts.windows()
    }

    /// Epoch of a position, and the place in it.
    pub fn epoch_of(&self, position: u64) -> (u64, u64) {
        (position / self.windows(), position % self.windows())
    }

    /// Tokens that are never a target, the first of each part aside: ends shorter than a window.
    pub fn dropped_tokens(&self) -> u64 {
        let t = self.config.seq_len as u64;
        let left = |(part, windows): (&Part, u64)| part.tokens().saturating_sub(1 + windows * t);
        self.set.parts().iter().zip(self.cuts.per_part()).map(left).sum()
    }

    pub fn set(&self) -> &TokenSet {
        &self.set
    }

    pub fn config(&self) -> LoaderConfig {
        self.config
    }

    fn fill_window(&self, part: usize, window: u64, row: Row<'_>) -> Result<(), LoaderError> {
        let t = self.config.seq_len;
        let start = window * t as u64;
        self.set.copy(part, start, row.inputs)?;
        row.targets[..t - 1].copy_from_slice(&row.inputs[1..]);
        self.set.copy(part, start + t as u64, &mut row.targets[t - 1..])?;
        if let Some(doc_first) = row.doc_first {
            documents(&self.set, part, start as i64, row.inputs, doc_first);
        }
        if self.config.ignore_boundary
            && let Some(eos) = self.set.eos()
        {
            for (target, _) in row.targets.iter_mut().zip(&*row.inputs).filter(|(_, i)| **i == eos) {
                *target = IGNORED;
            }
        }
        Ok(())
    }
}

/// Tokens and text of some windows of a [`Scan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scored {
    /// Targets that count.
    pub tokens: u64,
    /// Bytes of text behind them; the denominator of bits per byte. Where windows cut a document
    /// its bytes are shared out by tokens, so that disjoint ranges add up exactly.
    pub bytes: u64,
}

/// Windows in order, each token a target once.
#[derive(Debug, Clone)]
pub struct Scan {
    set: Arc<TokenSet>,
    seq_len: usize,
    cuts: Cuts,
}

impl Scan {
    pub fn new(set: impl Into<Arc<TokenSet>>, seq_len: usize) -> Result<Scan, LoaderError> {
        let set = set.into();
        let cuts = Cuts::new(&set, seq_len, |tokens| tokens.div_ceil(seq_len as u64))?;
        if cuts.windows() == 0 {
            return Err(LoaderError::TooFewTokens { tokens: 0, seq_len });
        }
        Ok(Scan { set, seq_len, cuts })
    }

    /// Windows of the whole set.
    pub fn windows(&self) -> u64 {
        self.cuts.windows()
    }

    /// Writes windows `window .. window + rows`; rows past the last have only ignored targets.
    /// Where the set has no end mark, the first token of a part is an input of the first window
    /// and its target is ignored, since nothing comes before it.
    ///
    /// # Panics
    /// If a slice of `batch` is not rows x seq_len long.
    pub fn fill(&self, window: u64, rows: usize, batch: Batch<'_>) -> Result<(), LoaderError> {
        for_rows(batch, rows, self.seq_len, |r, row| {
            let w = window.saturating_add(r as u64);
            if w < self.windows() {
                let (part, w) = self.cuts.locate(w);
                return self.fill_window(part, w, row);
            }
            row.inputs.fill(self.set.eos().unwrap_or(0));
            row.targets.fill(IGNORED);
            if let Some(doc_first) = row.doc_first {
                doc_first.fill(0);
            }
            Ok(())
        })
    }

    /// What the losses of these windows are a sum over.
    pub fn scored(&self, windows: Range<u64>) -> Scored {
        let (a, b) = (self.scored_before(windows.start), self.scored_before(windows.end));
        Scored { tokens: b.tokens.saturating_sub(a.tokens), bytes: b.bytes.saturating_sub(a.bytes) }
    }

    pub fn set(&self) -> &TokenSet {
        &self.set
    }

    /// Row inputs are tokens start - 1 .. start + n - 1, targets start .. start + n.
    fn fill_window(&self, part: usize, window: u64, row: Row<'_>) -> Result<(), LoaderError> {
        let t = self.seq_len as u64;
        let start = window * t;
        let n = (self.set.parts()[part].tokens() - start).min(t) as usize;
        self.set.copy(part, start, &mut row.targets[..n])?;
        let pad = self.set.eos().unwrap_or(0);
        row.inputs[n..].fill(pad);
        row.inputs[1..n].copy_from_slice(&row.targets[..n - 1]);
        if start > 0 {
            self.set.copy(part, start - 1, &mut row.inputs[..1])?;
        } else {
            row.inputs[0] = pad;
            if self.set.eos().is_none() {
                row.targets[0] = IGNORED;
            }
        }
        row.targets[n..].fill(IGNORED);
        if let Some(doc_first) = row.doc_first {
            documents(&self.set, part, start as i64 - 1, row.inputs, doc_first);
        }
        Ok(())
    }

    /// Everything before window `w`.
    fn scored_before(&self, w: u64) -> Scored {
        let mut sum = Scored { tokens: 0, bytes: 0 };
        let mut before = 0;
        for (part, windows) in self.set.parts().iter().zip(self.cuts.per_part()) {
            let at = (w.saturating_sub(before).saturating_mul(self.seq_len as u64)).min(part.tokens());
            sum.bytes += bytes_before(part, at);
            // The first token of a part has nothing before it unless an end mark stands in.
            sum.tokens += if self.set.eos().is_none() { at.saturating_sub(1) } else { at };
            before += windows;
            if w <= before {
                break;
            }
        }
        sum
    }
}

/// Bytes of text before token `at` of a part.
fn bytes_before(part: &Part, at: u64) -> u64 {
    if at >= part.tokens() {
        return part.text_bytes();
    }
    let d = part.document_of(at);
    if d >= part.documents() {
        return part.text_bytes();
    }
    let (tokens, text) = part.document(d);
    let len = u128::from((tokens.end - tokens.start).max(1));
    let inside = u128::from(at.saturating_sub(tokens.start)).min(len);
    let bytes = u128::from(text.end - text.start) * inside / len;
    // Not above the document's bytes, since inside <= len.
    text.start + bytes as u64
}

/// `doc_first` of a row whose first input is token `start` of the part (-1: the end mark that
/// stands before it).
fn documents(set: &TokenSet, part: usize, start: i64, inputs: &[u32], doc_first: &mut [u32]) {
    let from = &set.parts()[part];
    let mut d = from.document_of(start.max(0) as u64);
    let mut first = 0; // where the document of what is filled next begins
    while d < from.documents() {
        // The first token that is not of document d, as a place in the row.
        let end = from.document(d).0.end as i64 - start;
        // Its end mark opens the next one.
        let closed = 0 < end && end <= inputs.len() as i64 && Some(inputs[end as usize - 1]) == set.eos();
        let next = if closed { end - 1 } else { end };
        if next >= doc_first.len() as i64 {
            break;
        }
        let next = (next.max(0) as usize).max(first);
        doc_first[first..next].fill(first as u32);
        first = next;
        d += 1;
    }
    doc_first[first..].fill(first as u32);
}

/// How many windows each part has, as running sums.
#[derive(Debug, Clone)]
struct Cuts {
    ends: Vec<u64>,
}

impl Cuts {
    fn new(set: &TokenSet, seq_len: usize, count: impl Fn(u64) -> u64) -> Result<Cuts, LoaderError> {
        let max = 1 << 24;
        if !(1 <= seq_len && seq_len <= max) {
            return Err(LoaderError::SeqLen { got: seq_len, max });
        }
        let mut sum = 0u64;
        let mut ends = Vec::with_capacity(set.parts().len());
        for part in set.parts() {
            sum = sum.saturating_add(count(part.tokens()));
            ends.push(sum);
        }
        if sum > MAX_N {
            return Err(LoaderError::TooManyWindows { windows: sum });
        }
        Ok(Cuts { ends })
    }

    fn windows(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn per_part(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.ends.len()).map(|i| self.ends[i] - if i == 0 { 0 } else { self.ends[i - 1] })
    }

    /// Part of a window, and its number in there.
    fn locate(&self, window: u64) -> (usize, u64) {
        let part = self.ends.partition_point(|&end| end <= window);
        (part, window - if part == 0 { 0 } else { self.ends[part - 1] })
    }
}

fn for_rows(
    batch: Batch<'_>,
    rows: usize,
    seq_len: usize,
    mut each: impl FnMut(usize, Row<'_>) -> Result<(), LoaderError>,
) -> Result<(), LoaderError> {
    assert_eq!(batch.inputs.len(), rows * seq_len, "loader: inputs");
    assert_eq!(batch.targets.len(), rows * seq_len, "loader: targets");
    let mut doc_first = batch.doc_first;
    if let Some(d) = &doc_first {
        assert_eq!(d.len(), rows * seq_len, "loader: doc_first");
    }
    let inputs = batch.inputs.chunks_exact_mut(seq_len);
    for (r, (inputs, targets)) in inputs.zip(batch.targets.chunks_exact_mut(seq_len)).enumerate() {
        let doc_first = doc_first.as_mut().map(|d| &mut d[r * seq_len..(r + 1) * seq_len]);
        each(r, Row { inputs, targets, doc_first })?;
    }
    Ok(())
}
