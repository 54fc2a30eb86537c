//! An update as bytes: a header and, tensor after tensor, records of a fixed size.
//!
//! ```text
//!   0  magic         "ESKERUPD"
//!   8  version       u32, 1
//!  12  inner steps   u32
//!  16  run           32 bytes        which run
//!  48  peer          32 bytes        whose update: its key
//!  80  base          32 bytes        root of the weights that it moves from
//! 112  round         u64
//! 120  tokens        u64             inputs it was trained on
//! 128  records of each tensor in the order of `Weights::each`, as `chunk_topk::record` writes them
//! ```
//!
//! Numbers are little-endian. The length follows from the run alone ([`Layout`]), so no length is read from a stranger;
//! whoever knows the run knows every field but the records. [`check`] takes any bytes, takes no memory, and names the
//! first thing that is wrong. A blob that passes has one meaning, and no other bytes have it.

use esker_kernels::ops::chunk_topk::{Grid, Malformed, Spec, record};
use esker_kernels::tensor::{Arena, DType};
use esker_model::{Config, Weights};
use std::ops::Range;

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 128;
const MAGIC: &[u8; 8] = b"ESKERUPD";
const VERSION: u32 = 1;

/// What stands before the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which run.
    pub run: [u8; 32],
    /// Whose update.
    pub peer: [u8; 32],
    /// Root of the weights that it moves from.
    pub base: [u8; 32],
    /// Which round.
    pub round: u64,
    /// Inputs it was trained on.
    pub tokens: u64,
    /// Steps it was trained for.
    pub inner_steps: u32,
}

impl Header {
    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.inner_steps.to_le_bytes());
        out[16..48].copy_from_slice(&self.run);
        out[48..80].copy_from_slice(&self.peer);
        out[80..112].copy_from_slice(&self.base);
        out[112..120].copy_from_slice(&self.round.to_le_bytes());
        out[120..128].copy_from_slice(&self.tokens.to_le_bytes());
        out
    }

    /// What `bytes` begin with, if they are an update of this version.
    pub fn read(bytes: &[u8]) -> Result<Header, BlobFault> {
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(BlobFault::Short { got: bytes.len() })?;
        if head[..8] != *MAGIC {
            return Err(BlobFault::Magic);
        }
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let key = |at: usize| head[at..at + 32].try_into().expect("32 bytes");
        if word(8) != VERSION {
            return Err(BlobFault::Version { got: word(8) });
        }
        Ok(Header {
            run: key(16),
            peer: key(48),
            base: key(80),
            round: long(112),
            tokens: long(120),
            inner_steps: word(12),
        })
    }
}

/// What is wrong with an update. Each is its sender's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlobFault {
    /// Not even a header.
    #[error("{got} bytes are no update; a header has {HEADER_BYTES}")]
    Short {
        /// Its bytes.
        got: usize,
    },
    /// Not an update.
    #[error("does not begin as an update does")]
    Magic,
    /// Of another version.
    #[error("is of version {got}; this build reads {VERSION}")]
    Version {
        /// Which.
        got: u32,
    },
    /// Longer or shorter than the run's updates are.
    #[error("has {got} bytes; the run's updates have {want}")]
    Length {
        /// Its bytes.
        got: usize,
        /// What they should be.
        want: usize,
    },
    /// Of another run.
    #[error("is of another run")]
    OtherRun,
    /// Another's.
    #[error("names another peer than the one that sent it")]
    OtherPeer,
    /// For another round.
    #[error("is of round {got}; this is round {want}")]
    WrongRound {
        /// Its round.
        got: u64,
        /// The round.
        want: u64,
    },
    /// Trained from other weights.
    #[error("moves from other weights than the round begins with")]
    StaleBase,
    /// Trained for more steps than the round has, for none, on another number of tokens, or not as committed.
    #[error("tells of {got_steps} steps and {got_tokens} tokens, beside {steps} and {tokens}")]
    Work {
        /// Steps it tells of.
        got_steps: u32,
        /// Tokens it tells of.
        got_tokens: u64,
        /// Steps of the round, or of the commit.
        steps: u32,
        /// Its tokens.
        tokens: u64,
    },
    /// A record that no honest owner writes.
    #[error("{tensor}: {what}")]
    Record {
        /// Which tensor.
        tensor: String,
        /// Where in it, and what.
        what: Malformed,
    },
}

/// Where the records of each tensor lie.
#[derive(Clone, Debug)]
pub struct Layout {
    spec: Spec,
    tensors: Vec<Part>,
}

/// One tensor's part of an update.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name in Hugging Face's files.
    pub name: String,
    /// How it is cut.
    pub grid: Grid,
    /// Its bytes in the update.
    pub bytes: Range<usize>,
}

impl Layout {
    /// Of the updates of a model.
    pub fn new(model: &Config, spec: Spec) -> Layout {
        let shapes = Weights::layout(&mut Arena::measure(), model, DType::F32);
        let mut at = HEADER_BYTES;
        let part = |(name, t): (esker_model::Name, &esker_kernels::tensor::Tensor)| {
            let grid = Grid::of(t.shape());
            let bytes = at..at + grid.update_bytes(spec);
            at = bytes.end;
            Part { name: name.to_string(), grid, bytes }
        };
        Layout { spec, tensors: shapes.each().map(part).collect() }
    }

    /// Its tensors, in order.
    pub fn parts(&self) -> &[Part] {
        &self.tensors
    }

    /// How records are written.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Bytes of an update.
    pub fn bytes(&self) -> usize {
        self.tensors.last().map_or(HEADER_BYTES, |part| part.bytes.end)
    }

    /// Elements of the model.
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(|part| part.grid.len()).sum()
    }

    /// How many times shorter an update is than the model in f32.
    pub fn compression(&self) -> f64 {
        4.0 * self.elements() as f64 / self.bytes() as f64
    }

    /// Words of the longest part.
    pub fn words_max(&self) -> usize {
        self.tensors.iter().map(|part| part.grid.update_words(self.spec)).max().unwrap_or(0)
    }
}

/// Whether `bytes` are an update with just this header. The cheap questions come first.
pub fn check(layout: &Layout, want: &Header, bytes: &[u8]) -> Result<(), BlobFault> {
    let got = Header::read(bytes)?;
    holds(got.run == want.run, BlobFault::OtherRun)?;
    holds(bytes.len() == layout.bytes(), BlobFault::Length { got: bytes.len(), want: layout.bytes() })?;
    holds(got.peer == want.peer, BlobFault::OtherPeer)?;
    holds(got.round == want.round, BlobFault::WrongRound { got: got.round, want: want.round })?;
    holds(got.base == want.base, BlobFault::StaleBase)?;
    let (steps, tokens) = (want.inner_steps, want.tokens);
    let fault = BlobFault::Work { got_steps: got.inner_steps, got_tokens: got.tokens, steps, tokens };
    holds(got.inner_steps == steps && got.tokens == tokens, fault)?;
    records(layout, bytes)
}

/// Whether the records of `bytes`, of the right length, are well formed.
pub fn records(layout: &Layout, bytes: &[u8]) -> Result<(), BlobFault> {
    for part in layout.parts() {
        record::check(part.grid, layout.spec(), &bytes[part.bytes.clone()])
            .map_err(|what| BlobFault::Record { tensor: part.name.clone(), what })?;
    }
    Ok(())
}

fn holds(good: bool, fault: BlobFault) -> Result<(), BlobFault> {
    if good { Ok(()) } else { Err(fault) }
}
