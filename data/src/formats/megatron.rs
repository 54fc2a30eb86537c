//! Megatron-LM: tokens in NAME.bin, everything else in NAME.idx.
//!
//! ```text
//! .idx    "MMIDIDX\0\0"   u64 version = 1   u8 type   u64 S sequences   u64 D + 1
//!         i32 lengths[S]    tokens of a sequence
//!         i64 pointers[S]   its first byte in .bin
//!         i64 documents[D + 1]   the first sequence of each document, and S
//!         i8  modes[S]      only in files of several modes
//! type    1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16
//! ```
//!
//! There and back both files are equal when each document is one sequence, which is how
//! Megatron's preprocessing writes text. Sequences of one document are joined by import, and
//! documents without tokens are left out: the tokens stay equal, the tables get shorter. Modes
//! tell text from images; a file where one is not 0 is refused.
//!
//! Source: <https://github.com/NVIDIA/Megatron-LM>, megatron/core/datasets/indexed_dataset.py.

use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::export::{Job, Written};
use super::raw::{Array, Bounds, Raw, map, word};
use super::{Division, Format, FormatError, Int, Options, marks};

/// First bytes of an .idx file.
pub(super) const MAGIC: &[u8] = b"MMIDIDX\0\0";
const HEADER: usize = 34;
/// Below this size of vocabulary Megatron itself writes u16.
const U16_VOCAB: u32 = 65500;

/// A checked .idx file.
#[derive(Debug)]
pub(super) struct Index {
    map: Mmap,
    sequences: u64,
    documents: u64,
    int: Int,
}

impl Index {
    fn open(path: &Path) -> Result<Index, FormatError> {
        let map = map(path)?;
        let field = |name: &str, got: &dyn std::fmt::Display, want: String| FormatError::field(path, name, got, want);
        if map.len() < HEADER {
            return Err(field("length in bytes", &map.len(), format!("at least {HEADER}, the header")));
        }
        if !map.starts_with(MAGIC) {
            return Err(FormatError::damaged(path, Format::Megatron, "does not start with \"MMIDIDX\\0\\0\""));
        }
        if word(&map, 9) != 1 {
            return Err(field("version", &word(&map, 9), "1".into()));
        }
        let int = match map[17] {
            1 => Int::U8,
            2 => Int::I8,
            3 => Int::I16,
            4 => Int::I32,
            5 => Int::I64,
            8 => Int::U16,
            code @ (6 | 7) => return Err(field("type", &code, "an integer type, not f64 (6) or f32 (7)".into())),
            code => return Err(field("type", &code, "1 to 8".into())),
        };
        let (sequences, entries) = (word(&map, 18), word(&map, 26));
        // Held against the file in wide arithmetic before anything is computed from them.
        let want = HEADER as u128 + u128::from(sequences) * 12 + u128::from(entries) * 8;
        let length = map.len() as u128;
        if entries == 0 || length != want && length != want + u128::from(sequences) {
            let want = format!(
                "{want} for {sequences} sequences and {entries} document entries, or {} with modes",
                want + u128::from(sequences)
            );
            return Err(field("length in bytes", &length, want));
        }
        let index = Index { sequences, documents: entries - 1, int, map };
        if length != want && index.map[want as usize..].iter().any(|&mode| mode != 0) {
            return Err(FormatError::refused(path, "some sequences have a mode other than 0, so are no text"));
        }
        Ok(index)
    }

    /// Every entry; afterwards `end` cannot leave the array.
    fn check(&self, path: &Path, data: &Path, tokens: u64) -> Result<(), FormatError> {
        let mut sum = 0u64;
        for s in 0..self.sequences {
            let length = self.length(s);
            let pointer = self.pointer(s);
            if length < 0 {
                return Err(FormatError::field(path, format!("length of sequence {s}"), length, "0 or more"));
            }
            let want = sum * self.int.bytes() as u64;
            if pointer != want {
                let want = format!("{want}, where the sequence before it ends");
                return Err(FormatError::field(path, format!("pointer of sequence {s}"), pointer as i64, want));
            }
            sum += length as u64;
        }
        if sum != tokens {
            let want = format!("the {tokens} tokens of {}", data.display());
            return Err(FormatError::field(path, "sum of lengths", sum, want));
        }
        let mut last = 0;
        for d in 0..=self.documents {
            let first = self.first(d);
            let whole = (d > 0 || first == 0) && (d < self.documents || first == self.sequences);
            if first < last || first > self.sequences || !whole {
                let want = format!("0 at first, then at least {last}, and {} at last", self.sequences);
                return Err(FormatError::field(path, format!("document entry {d}"), first as i64, want));
            }
            last = first;
        }
        Ok(())
    }

    fn length(&self, s: u64) -> i32 {
        let at = HEADER + s as usize * 4;
        i32::from_le_bytes(self.map[at..at + 4].try_into().expect("4 bytes"))
    }

    fn pointer(&self, s: u64) -> u64 {
        word(&self.map, HEADER + self.sequences as usize * 4 + s as usize * 8)
    }

    /// The first sequence of document `d`.
    fn first(&self, d: u64) -> u64 {
        word(&self.map, HEADER + self.sequences as usize * 12 + d as usize * 8)
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// Tokens up to and with document `d`.
    pub fn end(&self, d: u64) -> u64 {
        match self.first(d + 1).min(self.sequences) {
            0 => 0,
            s => self.pointer(s - 1) / self.int.bytes() as u64 + self.length(s - 1).max(0) as u64,
        }
    }
}

/// NAME.idx of NAME.bin.
pub(super) fn index_of(path: &Path) -> PathBuf {
    path.with_extension("idx")
}

/// NAME.bin of either.
pub(super) fn data_of(path: &Path) -> PathBuf {
    path.with_extension("bin")
}

pub(super) fn open(path: &Path, options: &Options) -> Result<Raw, FormatError> {
    let (data, index_path) = (data_of(path), index_of(path));
    let index = Index::open(&index_path)?;
    let array = Array::new(&data, map(&data)?, 0, index.int, None)?;
    index.check(&index_path, &data, array.tokens)?;
    let bounds = match options.division {
        Division::Marks => marks(&data, options, "the table was not asked for")?,
        Division::Auto | Division::Records => Bounds::Megatron(index),
    };
    Ok(Raw { array, bounds, rotated: false })
}

/// Writes STEM.bin and STEM.idx.
pub(super) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let int = job.options.int.unwrap_or(if job.vocab_size < U16_VOCAB { Int::U16 } else { Int::I32 });
    let code: u8 = match int {
        Int::U8 => 1,
        Int::I8 => 2,
        Int::I16 => 3,
        Int::I32 => 4,
        Int::I64 => 5,
        Int::U16 => 8,
        Int::U32 | Int::U64 => {
            return Err(FormatError::refused(
                job.out,
                format!("Megatron has no {int}; its wide types are i32 and i64"),
            ));
        }
    };
    let mut data = job.create(".bin")?;
    job.documents(|ids| data.ids(int, ids))?;
    let mut index = job.create(".idx")?;
    index.bytes(MAGIC)?;
    index.bytes(&1u64.to_le_bytes())?;
    index.bytes(&[code])?;
    let documents = job.lengths().count() as u64;
    index.bytes(&documents.to_le_bytes())?;
    index.bytes(&(documents + 1).to_le_bytes())?;
    for length in job.lengths() {
        let length = i32::try_from(length).map_err(|_| {
            FormatError::refused(job.out, format!("a document has {length} tokens; Megatron counts to {}", i32::MAX))
        })?;
        index.bytes(&length.to_le_bytes())?;
    }
    let mut pointer = 0u64;
    for length in job.lengths() {
        index.bytes(&pointer.to_le_bytes())?;
        pointer += length * int.bytes() as u64;
    }
    for d in 0..=documents {
        index.bytes(&d.to_le_bytes())?;
    }
    let mut written = Written::default();
    written.add(data.finish()?);
    written.add(index.finish()?);
    Ok(written)
}
