//! Pre-tokenizers by hand: where a piece ends, without a regular-expression engine.
//!
//! *GPT-2* (Radford et al. 2019; what `ByteLevel` does):
//!
//! ```text
//! 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! With `digits`, each number (`char::is_numeric`) is cut out first, as `Digits(individual)`
//! does, and what lies between is text of its own: its end is an end to `(?!\S)`.
//!
//! *cl100k* (tiktoken; Llama 3 and dolma2 with n = 3, Qwen with n = 1):
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! ```
//!
//! Both cover every character, so pieces follow each other without a gap, and each pattern is a
//! function of the place where the last piece ended. Here it is one character after another;
//! `blocks.rs` does 64 bytes at once and is proved against this.

use super::classes::{Classes, LETTER, NUMBER, OTHER, SPACE, decode};

/// White space in one run that the crate's engine is trusted with: it keeps a place for each to
/// go back to and gives up at a million.
const SPACES_MAX: usize = 1 << 19;

/// Not a class: the text is over.
const END: u8 = 8;

/// Which pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// No pattern: a text is one piece.
    Whole,
    /// GPT-2's; `digits`: numbers are cut out first, one by one.
    Gpt2 { digits: bool },
    /// cl100k's with at most so many digits a piece.
    Cl100k { digits: u8 },
}

/// A text and its pattern.
#[derive(Debug, Clone, Copy)]
pub struct Splitter<'a> {
    /// UTF-8.
    pub text: &'a [u8],
    pub pattern: Pattern,
    pub classes: &'static Classes,
}

impl Splitter<'_> {
    /// The end of the piece that starts at `at`, before the end of the text. Nothing where the
    /// crate's engine might give up and so would not follow its pattern.
    pub fn next(&self, at: usize) -> Option<usize> {
        match self.pattern {
            Pattern::Whole => Some(self.text.len()),
            Pattern::Gpt2 { .. } => self.gpt2(at),
            Pattern::Cl100k { digits } => self.cl100k(at, digits.into()),
        }
    }

    /// Class of the character at `at` and its length, [`END`] where there is none.
    fn kind(&self, at: usize) -> (u8, usize) {
        if at >= self.text.len() {
            return (END, 0);
        }
        let (c, len) = decode(self.text, at);
        if self.cut_out(c) { (END, 0) } else { (self.classes.of(c), len) }
    }

    /// A number that is a text of its own.
    fn cut_out(&self, c: u32) -> bool {
        self.pattern == (Pattern::Gpt2 { digits: true }) && char::from_u32(c).is_some_and(char::is_numeric)
    }

    /// The end of the run of `kind` from `at` on.
    fn run(&self, mut at: usize, kind: u8) -> usize {
        loop {
            match self.kind(at) {
                (k, len) if k == kind => at += len,
                _ => return at,
            }
        }
    }

    fn gpt2(&self, at: usize) -> Option<usize> {
        let (c, len) = decode(self.text, at);
        if self.cut_out(c) {
            return Some(at + len);
        }
        if let Some(len) = contraction(&self.text[at..], false) {
            return Some(at + len);
        }
        let (kind, _) = self.kind(at);
        if kind != SPACE {
            return Some(self.run(at, kind));
        }
        let next = if self.text[at] == b' ' { self.kind(at + 1).0 } else { END };
        match next {
            LETTER | NUMBER | OTHER => Some(self.run(at + 1, next)),
            _ => self.spaces(at, false),
        }
    }

    fn cl100k(&self, at: usize, digits: usize) -> Option<usize> {
        if let Some(len) = contraction(&self.text[at..], true) {
            return Some(at + len);
        }
        let (kind, len) = self.kind(at);
        let newline = matches!(self.text[at], b'\r' | b'\n');
        if kind == LETTER {
            return Some(self.run(at, LETTER));
        }
        if kind != NUMBER && !newline && self.kind(at + len).0 == LETTER {
            return Some(self.run(at + len, LETTER));
        }
        if kind == NUMBER {
            let more = |&end: &usize| Some(end).filter(|&e| self.kind(e).0 == NUMBER).map(|e| e + self.kind(e).1);
            return std::iter::successors(Some(at + len), more).take(digits).last();
        }
        let skip = usize::from(self.text[at] == b' ');
        if self.kind(at + skip).0 == OTHER {
            let end = self.run(at + skip, OTHER);
            let newlines = self.text[end..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            return Some(end + newlines);
        }
        self.spaces(at, true)
    }

    /// `\s+(?!\S)|\s+`, with `lines` after `\s*[\r\n]+`.
    fn spaces(&self, at: usize, lines: bool) -> Option<usize> {
        let (mut end, mut last, mut after_newline, mut count) = (at, at, at, 0);
        let next = loop {
            let (kind, len) = self.kind(end);
            if kind != SPACE {
                break kind;
            }
            count += 1;
            last = end;
            end += len;
            if matches!(self.text[last], b'\r' | b'\n') {
                after_newline = end;
            }
        };
        if count > SPACES_MAX {
            return None;
        }
        Some(match () {
            () if lines && after_newline > at => after_newline,
            () if next == END || last == at => end,
            () => last,
        })
    }
}

/// The length of a contraction that `text` starts with. U+017F, the long s, is an s to `(?i)`.
pub fn contraction(text: &[u8], any_case: bool) -> Option<usize> {
    let fold = |b: u8| if any_case { b.to_ascii_lowercase() } else { b };
    if text.first() != Some(&b'\'') {
        return None;
    }
    match (text.get(1).map(|&b| fold(b))?, text.get(2).copied()) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(e)) if fold(e) == b'e' => Some(3),
        (b'l', Some(l)) if fold(l) == b'l' => Some(3),
        (0xc5, Some(0xbf)) if any_case => Some(3),
        _ => None,
    }
}
