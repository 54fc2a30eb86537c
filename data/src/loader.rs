//! Rows for training and for validation.
//!
//! A *window* is T + 1 tokens of one part: T inputs, and the same one place on as targets.
//! Windows follow one another every T tokens, so each target is a target once; what is left at
//! the end of a part, fewer than T targets, is dropped and counted.
//!
//! ```text
//! position                                      one counter since the start of the run
//! source, row = Mix(position)                   which source, and its how-manieth row ([`Mix`])
//! row      = epoch * windows + index            windows: those of the source
//! window   = Order(seed, source, epoch, windows)(index)        nothing stored
//! ```
//!
//! What a row holds is a function of its position alone. A resume is a number, and neither
//! ranks, nor rows a call, nor threads can change what is trained on. Nothing is padded: every
//! row is full.
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

use crate::mix::Mix;
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
    #[error(transparent)]
    Foreign(#[from] Box<crate::formats::FormatError>),
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
        "{}: {tokens} tokens hold no window of seq_len {seq_len} + 1; give more text or a shorter \
         seq_len", of.display()
    )]
    TooFewTokens {
        /// The first part of the set.
        of: PathBuf,
        tokens: u64,
        seq_len: usize,
    },
    #[error("{windows} windows are more than 2^48; give a longer seq_len")]
    TooManyWindows { windows: u64 },
    #[error("{}: token {at} is {id}, outside the vocabulary of {vocab_size}; the file is damaged: \
             tokenize the text again", part.display())]
    Token { part: PathBuf, at: u64, id: u32, vocab_size: u32 },
    #[error("cannot start the thread that reads ahead: {source}")]
    Thread { source: std::io::Error },
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

/// Shuffled windows of one set, or of a mixture of sets, for ever. Thread-safe: `fill` takes
/// `&self` and keeps nothing.
#[derive(Debug, Clone)]
pub struct Loader {
    sources: Vec<Source>,
    mix: Arc<Mix>,
    config: LoaderConfig,
}

/// A set and its windows.
#[derive(Debug, Clone)]
struct Source {
    set: Arc<TokenSet>,
    cuts: Cuts,
}

/// What a row is: [`Loader::place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which set of the mixture; 0 where there is one.
    pub source: usize,
    /// Pass over this source.
    pub epoch: u64,
    /// Part of the set, as a shard.
    pub part: usize,
    /// Window of the part.
    pub window: u64,
    /// Token of the part that is the row's first input. Its inputs are this one and the
    /// `seq_len - 1` after it, its targets one further on.
    pub start: u64,
}

impl Loader {
    /// Rows of one set.
    pub fn new(set: impl Into<Arc<TokenSet>>, config: LoaderConfig) -> Result<Loader, LoaderError> {
        Loader::mixed(vec![set.into()], Mix::single(), config)
    }

    /// Rows of several sets, `mix` saying how many of each. All come from one tokenizer.
    ///
    /// # Panics
    /// If `mix` is of another number of sources.
    pub fn mixed(sets: Vec<Arc<TokenSet>>, mix: Mix, config: LoaderConfig) -> Result<Loader, LoaderError> {
        assert_eq!(sets.len(), mix.weights().len(), "loader: sets and weights");
        let t = config.seq_len as u64;
        let mut sources: Vec<Source> = Vec::with_capacity(sets.len());
        for set in sets {
            // One token is only ever an input, so a part of n tokens has n - 1 targets.
            let cuts = Cuts::new(&set, config.seq_len, |tokens| tokens.saturating_sub(1) / t)?;
            if cuts.windows() == 0 {
                let (tokens, seq_len) = (set.tokens(), config.seq_len);
                let of = set.parts().first().map_or_else(PathBuf::new, Part::name);
                return Err(LoaderError::TooFewTokens { of, tokens, seq_len });
            }
            if let Some(first) = sources.first() {
                set.agrees_with(&first.set)?;
            }
            sources.push(Source { set, cuts });
        }
        Ok(Loader { sources, mix: Arc::new(mix), config })
    }

    /// Writes rows `position .. position + rows`. A function of its arguments; takes no memory.
    ///
    /// # Panics
    /// If a slice of `batch` is not rows x seq_len long.
    pub fn fill(&self, position: u64, rows: usize, batch: Batch<'_>) -> Result<(), LoaderError> {
        let mut orders = Orders::default();
        for_rows(batch, rows, self.config.seq_len, |r, row| {
            self.fill_window(self.place_with(position + r as u64, &mut orders), row)
        })
    }

    /// Which tokens the row at `position` holds.
    pub fn place(&self, position: u64) -> Place {
        self.place_with(position, &mut Orders::default())
    }

    /// Targets that count in rows `position .. position + rows`: all, or all that do not follow
    /// an end mark. Takes no memory.
    pub fn targets(&self, position: u64, rows: usize) -> Result<u64, LoaderError> {
        let t = self.config.seq_len as u64;
        let mut count = rows as u64 * t;
        let Some(eos) = self.sources[0].set.eos().filter(|_| self.config.ignore_boundary) else { return Ok(count) };
        let (mut orders, mut piece) = (Orders::default(), [0; 1024]);
        for position in position..position + rows as u64 {
            let Place { source, part, start, .. } = self.place_with(position, &mut orders);
            let mut at = start;
            while at < start + t {
                let piece = &mut piece[..(start + t - at).min(1024) as usize];
                self.sources[source].set.copy(part, at, piece)?;
                count -= piece.iter().filter(|&&id| id == eos).count() as u64;
                at += piece.len() as u64;
            }
        }
        Ok(count)
    }

    /// Asks the system to bring these rows into memory, without waiting for it.
    pub fn advise(&self, position: u64, rows: usize) {
        let mut orders = Orders::default();
        for position in position..position + rows as u64 {
            let Place { source, part, start, .. } = self.place_with(position, &mut orders);
            self.sources[source].set.advise(part, start..start + self.config.seq_len as u64 + 1);
        }
    }

    /// Windows of all sources.
    pub fn windows(&self) -> u64 {
        self.sources.iter().map(|s| s.cuts.windows()).sum()
    }

    /// Windows of an epoch of source `source`.
    pub fn windows_of(&self, source: usize) -> u64 {
        self.sources[source].cuts.windows()
    }

    /// How the sources are mixed.
    pub fn mix(&self) -> &Mix {
        &self.mix
    }

    /// Tokens that are never a target, the first of each part aside: ends shorter than a window.
    pub fn dropped_tokens(&self) -> u64 {
        let t = self.config.seq_len as u64;
        let left = |(part, windows): (&Part, u64)| part.tokens().saturating_sub(1 + windows * t);
        self.sources.iter().flat_map(|s| s.set.parts().iter().zip(s.cuts.per_part())).map(left).sum()
    }

    /// The sets, in the order of the mixture.
    pub fn sets(&self) -> impl Iterator<Item = &TokenSet> {
        self.sources.iter().map(|s| &*s.set)
    }

    pub fn config(&self) -> LoaderConfig {
        self.config
    }

    fn place_with(&self, position: u64, orders: &mut Orders) -> Place {
        let (source, row) = self.mix.at(position);
        let cuts = &self.sources[source].cuts;
        let (epoch, index) = (row / cuts.windows(), row % cuts.windows());
        let order = orders.get(self.config.seed, source, epoch, cuts.windows());
        let (part, window) = cuts.locate(order.at(index));
        Place { source, epoch, part, window, start: window * self.config.seq_len as u64 }
    }

    fn fill_window(&self, at: Place, row: Row<'_>) -> Result<(), LoaderError> {
        let (t, Place { part, start, .. }) = (self.config.seq_len, at);
        let set = &self.sources[at.source].set;
        set.copy(part, start, row.inputs)?;
        row.targets[..t - 1].copy_from_slice(&row.inputs[1..]);
        set.copy(part, start + t as u64, &mut row.targets[t - 1..])?;
        if let Some(doc_first) = row.doc_first {
            documents(set, part, start as i64, row.inputs, doc_first);
        }
        if self.config.ignore_boundary
            && let Some(eos) = set.eos()
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
            let of = set.parts().first().map_or_else(PathBuf::new, Part::name);
            return Err(LoaderError::TooFewTokens { of, tokens: 0, seq_len });
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

/// The order last asked for: rows that follow one another mostly share it.
#[derive(Default)]
struct Orders {
    last: Option<((usize, u64), Order)>,
}

impl Orders {
    fn get(&mut self, seed: u64, source: usize, epoch: u64, windows: u64) -> Order {
        match self.last {
            Some((of, order)) if of == (source, epoch) => order,
            _ => self.last.insert(((source, epoch), Order::of_source(seed, source, epoch, windows))).1,
        }
    }
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
