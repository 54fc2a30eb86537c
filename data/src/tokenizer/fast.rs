//! The fast path: byte-level BPE and Gemma's, with the ids of the `tokenizers` crate.
//!
//! ```text
//! text -> added tokens -> NFC -> added tokens -> pieces -> symbols -> merges -> ids
//! ```
//!
//! The crate does the same steps through a regular-expression engine, strings and offsets. Here
//! pieces are found by hand (`split.rs`, and `blocks.rs` for 64 bytes at once), looked up in a
//! cache of pieces seen before (`cache.rs`), and merged by rank where they are new (`merges.rs`).
//! Text is read twice, nothing is copied, and nothing is allocated a document.
//!
//! A file is recognised by what it says (`recognise.rs`); the crate has all others, and the few
//! texts that might make its engine give up. It is the oracle too: the two are held against each
//! other on random text in tests/tokenizer_fast.rs and on a corpus by `esker bench tokenize`.

use std::collections::HashMap;
use std::sync::Mutex;

mod added;
mod blocks;
mod cache;
mod classes;
mod merges;
mod nfc;
mod pairs;
mod recognise;
mod split;
mod table;

pub(super) use recognise::recognise;

use super::Reading;
use added::{Added, Part};
use cache::{Cache, ID, SHORT_IDS, count};
use classes::{Classes, decode};
use merges::{Heap, Merges};
use pairs::{BAR, Pairs};
use split::{Pattern, Splitter};
use table::Table;

/// A byte that has no id.
const NO_ID: u32 = u32::MAX;
/// Buffers above so many elements are given back after use.
const KEEP: usize = 1 << 20;
/// Scratches that are kept for the next text: as many as threads that were ever at work at once.
const IDLE_MAX: usize = 256;
/// Texts from here on are the crate's: places are u32 here.
const TEXT_MAX: usize = u32::MAX as usize;

/// A tokenizer of a known composition.
#[derive(Debug)]
pub(super) struct Fast {
    /// Added tokens found before the normalizer, and behind it.
    raw: Option<Added>,
    normal: Option<Added>,
    nfc: bool,
    cut: Cut,
    symbols: Symbols,
    /// With `ignore_merges`: pieces that are tokens as they stand.
    whole: Option<Whole>,
    merges: Merges,
    frame: Frame,
    classes: &'static Classes,
    /// Caches and buffers that no thread is using.
    idle: Mutex<Vec<Scratch>>,
}

/// How a text falls into pieces.
#[derive(Debug)]
enum Cut {
    Pattern(Pattern),
    Pairs(Pairs),
}

/// What merges start from.
#[derive(Debug)]
enum Symbols {
    /// The id of each byte, or [`NO_ID`].
    Bytes(Box<[u32; 256]>),
    /// Ids of characters, and of the bytes of all others.
    Characters { known: Table, fallback: Box<[u32; 256]> },
}

/// Tokens by the bytes they stand for.
#[derive(Debug)]
struct Whole(HashMap<Box<[u8]>, u32>);

/// Ids around a text.
#[derive(Debug, Default)]
struct Frame {
    before: Vec<u32>,
    after: Vec<u32>,
}

/// What one thread needs.
#[derive(Debug)]
struct Scratch {
    cache: Cache,
    symbols: Vec<u32>,
    heap: Heap,
    normal: String,
}

impl Fast {
    /// Adds the ids of `text` to `out`. False, and `out` holds anything: this text is the crate's.
    pub fn encode(&self, text: &str, reading: Reading, out: &mut Vec<u32>) -> bool {
        if text.len() >= TEXT_MAX {
            return false;
        }
        let idle = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let mut scratch = idle.unwrap_or_else(Scratch::new);
        if reading == Reading::Prompt {
            out.extend_from_slice(&self.frame.before);
        }
        let done = split(&self.raw, text, reading, |part| match part {
            Part::Token(id) => {
                out.push(id);
                true
            }
            Part::Text(text) => self.normalised(text, reading, &mut scratch, out),
        });
        if reading == Reading::Prompt {
            out.extend_from_slice(&self.frame.after);
        }
        let mut idle = self.idle.lock().unwrap_or_else(|e| e.into_inner());
        if idle.len() < IDLE_MAX {
            idle.push(scratch);
        }
        done
    }

    /// The largest id of the template.
    pub fn largest_framed(&self) -> Option<u32> {
        self.frame.before.iter().chain(&self.frame.after).copied().max()
    }

    fn normalised(&self, text: &str, reading: Reading, scratch: &mut Scratch, out: &mut Vec<u32>) -> bool {
        let mut normal = std::mem::take(&mut scratch.normal);
        let text = if self.nfc && nfc::nfc(text, &mut normal) { normal.as_str() } else { text };
        let done = split(&self.normal, text, reading, |part| match part {
            Part::Token(id) => {
                out.push(id);
                true
            }
            Part::Text(text) => self.pieces(text.as_bytes(), scratch, out),
        });
        if normal.capacity() <= KEEP {
            scratch.normal = normal;
        }
        done
    }

    fn pieces(&self, text: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) -> bool {
        let mut queue = Queue::new();
        let mut at = 0;
        let pattern = match &self.cut {
            Cut::Pattern(pattern) => *pattern,
            Cut::Pairs(pairs) => {
                while at < text.len() {
                    let end = pairs.next(text, at);
                    queue.push(text, at, end, &scratch.cache);
                    at = end;
                    if queue.is_full() {
                        self.drain(text, &mut queue, scratch, out);
                    }
                }
                self.drain(text, &mut queue, scratch, out);
                return true;
            }
        };
        let splitter = Splitter { text, pattern, classes: self.classes };
        while at < text.len() {
            let mut starts = splitter.starts(at) & !1;
            if starts == 0 {
                // Longer than a block, or with characters that blocks leave out.
                let Some(end) = splitter.next(at) else { return false };
                queue.push(text, at, end, &scratch.cache);
                at = end;
            }
            let mut from = at;
            while starts != 0 {
                let to = at + starts.trailing_zeros() as usize;
                starts &= starts - 1;
                queue.push(text, from, to, &scratch.cache);
                from = to;
            }
            at = from;
            if queue.is_full() {
                self.drain(text, &mut queue, scratch, out);
            }
        }
        self.drain(text, &mut queue, scratch, out);
        true
    }

    /// Ids of the pieces in the queue. Their lines of the cache are on their way by now.
    fn drain(&self, text: &[u8], queue: &mut Queue, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let mut batch = Batch::new();
        for &Piece { key, hash, from, to } in &queue.pieces[..queue.len] {
            let found = if key == 0 { None } else { scratch.cache.get(hash, key) };
            match found {
                Some(ids) if count(&ids) <= SHORT_IDS => batch.push(&ids, out),
                found => {
                    batch.flush(out);
                    let look = key == 0 || found.is_some();
                    self.miss(&text[from as usize..to as usize], key, look, scratch, out);
                }
            }
        }
        batch.flush(out);
        queue.len = 0;
    }

    /// A piece that is new, or long, or has many ids; `look`: it may be among the long ones.
    #[cold]
    fn miss(&self, piece: &[u8], key: u128, look: bool, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if look && let Some(ids) = scratch.cache.get_long(piece) {
            out.extend_from_slice(ids);
            return;
        }
        let symbols = &mut scratch.symbols;
        symbols.clear();
        match self.whole.as_ref().and_then(|whole| whole.0.get(piece)) {
            Some(&id) => symbols.push(id),
            None => {
                self.symbols.of(piece, symbols);
                self.merges.apply(symbols, &mut scratch.heap);
            }
        }
        out.extend_from_slice(symbols);
        if look || !scratch.cache.insert(key, symbols) {
            scratch.cache.insert_long(piece, symbols);
        }
        if symbols.capacity() > KEEP {
            *symbols = Vec::new();
        }
    }
}

/// Pieces found whose ids are still to be looked up: memory is slow, and has time meanwhile.
struct Queue {
    pieces: [Piece; Queue::ROOM],
    len: usize,
}

#[derive(Clone, Copy, Default)]
struct Piece {
    /// 0 for a long one.
    key: u128,
    hash: u64,
    from: u32,
    to: u32,
}

impl Queue {
    const ROOM: usize = 2 * blocks::BLOCK;

    fn new() -> Queue {
        Queue { pieces: [Piece::default(); Queue::ROOM], len: 0 }
    }

    /// No room for the pieces of another block.
    fn is_full(&self) -> bool {
        self.len > Queue::ROOM - blocks::BLOCK
    }

    #[inline]
    fn push(&mut self, text: &[u8], from: usize, to: usize, cache: &Cache) {
        let key = cache::key(text, from, to).unwrap_or(0);
        let hash = cache.hash(key);
        cache.fetch(hash);
        self.pieces[self.len] = Piece { key, hash, from: from as u32, to: to as u32 };
        self.len += 1;
    }
}

/// The parts of `text`; without tokens to look for, it is one.
fn split<'a>(added: &Option<Added>, text: &'a str, reading: Reading, mut each: impl FnMut(Part<'a>) -> bool) -> bool {
    match added {
        Some(added) if reading != Reading::Document => added.split(text, false, each),
        Some(added) if added.has_ordinary() => added.split(text, true, each),
        _ => text.is_empty() || each(Part::Text(text)),
    }
}

impl Symbols {
    fn of(&self, piece: &[u8], into: &mut Vec<u32>) {
        match self {
            Symbols::Bytes(ids) => {
                into.extend(piece.iter().map(|&b| ids[usize::from(b)]).filter(|&id| id != NO_ID));
            }
            Symbols::Characters { known, fallback } => {
                let mut at = 0;
                while at < piece.len() {
                    let (c, len) = decode(piece, at);
                    let space = c == u32::from(' ');
                    match known.get(if space { BAR.into() } else { c.into() }) {
                        Some(id) => into.push(id as u32),
                        None if space => {
                            let mut bar = [0; 4];
                            into.extend(BAR.encode_utf8(&mut bar).bytes().map(|b| fallback[usize::from(b)]));
                        }
                        None => into.extend(piece[at..at + len].iter().map(|&b| fallback[usize::from(b)])),
                    }
                    at += len;
                }
            }
        }
    }
}

impl Whole {
    /// Tokens that are spelt in the characters for bytes; no piece is any other.
    fn new(vocab: &HashMap<String, u32>) -> Whole {
        let byte_of: HashMap<char, u8> = (0..=255).map(|b| (super::byte_char(b), b)).collect();
        let bytes = |text: &str| text.chars().map(|c| byte_of.get(&c).copied()).collect::<Option<Box<[u8]>>>();
        Whole(vocab.iter().filter_map(|(text, &id)| Some((bytes(text)?, id))).collect())
    }
}

impl Scratch {
    fn new() -> Scratch {
        Scratch { cache: Cache::new(), symbols: Vec::new(), heap: Heap::default(), normal: String::new() }
    }
}

/// Ids on their way out: four are written at a time, whatever their number.
struct Batch {
    ids: [u32; Batch::ROOM],
    len: usize,
}

impl Batch {
    const ROOM: usize = 256;

    fn new() -> Batch {
        Batch { ids: [0; Batch::ROOM], len: 0 }
    }

    #[inline]
    fn push(&mut self, packed: &cache::Packed, out: &mut Vec<u32>) {
        if self.len + packed.len() > Batch::ROOM {
            self.flush(out);
        }
        self.ids[self.len..self.len + packed.len()].copy_from_slice(packed);
        self.ids[self.len] &= ID;
        self.len += count(packed);
    }

    fn flush(&mut self, out: &mut Vec<u32>) {
        out.extend_from_slice(&self.ids[..self.len]);
        self.len = 0;
    }
}
