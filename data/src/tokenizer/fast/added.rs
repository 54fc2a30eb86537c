//! Added tokens: texts that stand for an id wherever they occur, whatever the pattern says.
//!
//! The rule is the `tokenizers` crate's, to the letter: of all tokens the one that starts
//! leftmost, of these the longest; the next search starts behind it, also when the token was
//! turned down: because `single_word` wants no word character (`\w`) on either side, or because it is
//! special in a text whose special tokens are text. `lstrip` and `rstrip` take the white space on
//! that side along.
//!
//! A token is a path through a tree of bytes. Few bytes start one, so a text is first asked for
//! these, eight at a time.

use std::sync::OnceLock;

use regex::Regex;
use tokenizers::AddedToken;

use super::classes::{Classes, SPACE};
use super::table::Table;

/// The tokens of one kind: found before normalisation, or behind it.
#[derive(Debug)]
pub struct Added {
    /// Which bytes start a token, and which pairs of bytes.
    starts: [bool; 256],
    pairs: Vec<u64>,
    /// (node, byte) to node; node 0 is the root.
    edges: Table,
    /// Of each node the token that ends there, and one; 0 for none.
    ends: Vec<u32>,
    tokens: Vec<Token>,
}

#[derive(Debug)]
struct Token {
    id: u32,
    special: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

/// What a text falls into.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    Text(&'a str),
    Token(u32),
}

impl Added {
    /// `tokens`: what is searched for, its id and its flags. Nothing where there is none.
    pub fn new(tokens: &[(String, u32, AddedToken)]) -> Option<Added> {
        if tokens.is_empty() {
            return None;
        }
        let bytes = tokens.iter().map(|(text, ..)| text.len()).sum();
        let mut added = Added {
            starts: [false; 256],
            pairs: vec![0; 1024],
            edges: Table::with_room(bytes),
            ends: vec![0],
            tokens: Vec::new(),
        };
        for (text, id, token) in tokens {
            let AddedToken { special, single_word, lstrip, rstrip, .. } = *token;
            added.tokens.push(Token { id: *id, special, single_word, lstrip, rstrip });
            let text = text.as_bytes();
            added.starts[usize::from(text[0])] = true;
            for second in 0..=255u8 {
                if text.get(1).is_none_or(|&b| b == second) {
                    let pair = usize::from(text[0]) << 8 | usize::from(second);
                    added.pairs[pair / 64] |= 1 << (pair % 64);
                }
            }
            let mut node = 0;
            for &byte in text {
                let key = node << 8 | u64::from(byte);
                node = added.edges.get(key).unwrap_or_else(|| {
                    let new = added.ends.len() as u64;
                    added.ends.push(0);
                    added.edges.insert(key, new);
                    new
                });
            }
            added.ends[node as usize] = added.tokens.len() as u32;
        }
        Some(added)
    }

    /// Whether any of them is found where special tokens are text.
    pub fn has_ordinary(&self) -> bool {
        self.tokens.iter().any(|token| !token.special)
    }

    /// Gives `each` the parts of `text` in order; stops when it says false, and says so. `ordinary`:
    /// special tokens are text.
    pub fn split<'a>(&self, text: &'a str, ordinary: bool, mut each: impl FnMut(Part<'a>) -> bool) -> bool {
        let (mut at, mut done) = (0, 0);
        while let Some((from, to, token)) = self.find(text.as_bytes(), at) {
            at = to;
            let token = &self.tokens[token];
            if ordinary && token.special {
                continue;
            }
            if token.single_word && (word_at_end(&text[..from]) || word_at_start(&text[to..])) {
                continue;
            }
            let from = if token.lstrip { trim_end(&text[..from]).max(done) } else { from };
            let to = if token.rstrip { to + leading_space(&text[to..]) } else { to };
            if done < from && !each(Part::Text(&text[done..from])) {
                return false;
            }
            if !each(Part::Token(token.id)) {
                return false;
            }
            done = to;
        }
        done >= text.len() || each(Part::Text(&text[done..]))
    }

    /// The leftmost longest token from `at` on: its bounds and its place among the tokens.
    fn find(&self, text: &[u8], mut at: usize) -> Option<(usize, usize, usize)> {
        while let Some(byte) = text.get(at) {
            if let Some(eight) = text[at..].first_chunk::<8>() {
                let starts = eight.map(|b| u64::from(self.starts[usize::from(b)]));
                let mask = (0..8).fold(0, |mask, i| mask | starts[i] << i);
                if mask & 1 == 0 {
                    at += (mask | 1 << 8).trailing_zeros() as usize;
                    continue;
                }
            }
            let pair = usize::from(*byte) << 8 | usize::from(text.get(at + 1).copied().unwrap_or(0));
            // A last byte has no second one: the tree knows.
            if (self.pairs[pair / 64] >> (pair % 64) & 1 == 1 || at + 1 == text.len())
                && let Some((to, token)) = self.longest(text, at)
            {
                return Some((at, to, token));
            }
            at += 1;
        }
        None
    }

    fn longest(&self, text: &[u8], from: usize) -> Option<(usize, usize)> {
        let (mut node, mut found) = (0, None);
        for (i, &byte) in text[from..].iter().enumerate() {
            let Some(next) = self.edges.get(node << 8 | u64::from(byte)) else { break };
            node = next;
            match self.ends[node as usize] {
                0 => {}
                end => found = Some((from + i + 1, end as usize - 1)),
            }
        }
        found
    }
}

fn is_space(c: char) -> bool {
    Classes::get().of(c.into()) == SPACE
}

/// Where the white space at the end of `text` starts.
fn trim_end(text: &str) -> usize {
    text.trim_end_matches(is_space).len()
}

/// Bytes of white space that `text` starts with.
fn leading_space(text: &str) -> usize {
    text.len() - text.trim_start_matches(is_space).len()
}

fn is_word(c: Option<char>) -> bool {
    static WORD: OnceLock<Regex> = OnceLock::new();
    let word = WORD.get_or_init(|| Regex::new(r"^\w").expect("a plain class"));
    c.is_some_and(|c| word.is_match(c.encode_utf8(&mut [0; 4])))
}

fn word_at_end(text: &str) -> bool {
    is_word(text.chars().next_back())
}

fn word_at_start(text: &str) -> bool {
    is_word(text.chars().next())
}
