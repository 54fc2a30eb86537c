//! Where a text without a pattern may be cut all the same: Gemma's, a sentencepiece-like BPE.
//!
//! There the whole text between added tokens is one piece, spaces written as U+2581. A merge
//! leaves its product's text in one symbol, so two characters can only end up in one symbol if
//! some product has them side by side. Between two characters that stand side by side in no
//! product of any merge nothing is ever merged, and the ids of a text cut there are those of
//! the parts. English falls into words: hardly any token has a space behind its first letter.
//!
//! U+2581 and the space are one character here, which is what the normalizer makes of them.

use super::classes::decode;
use super::table::Table;

/// What the normalizer puts for a space.
pub const BAR: char = '\u{2581}';

/// Characters that may be merged.
#[derive(Debug)]
pub struct Pairs {
    /// Two ASCII characters, the second in the lower 7 bits: may they be merged?
    ascii: Box<[bool; 1 << 14]>,
    /// The others: first and second character.
    others: Table,
}

impl Pairs {
    /// `products`: the texts that merges make.
    pub fn new<'a>(products: impl Iterator<Item = &'a str>) -> Pairs {
        let mut ascii = Box::new([false; 1 << 14]);
        let mut others = std::collections::HashSet::new();
        for product in products {
            let chars = product.chars().map(|c| if c == BAR { ' ' } else { c } as u32);
            for (a, b) in chars.clone().zip(chars.skip(1)) {
                if a < 128 && b < 128 {
                    ascii[(a << 7 | b) as usize] = true;
                } else {
                    others.insert(key(a, b));
                }
            }
        }
        let mut table = Table::with_room(others.len());
        for key in others {
            table.insert(key, 1);
        }
        Pairs { ascii, others: table }
    }

    /// The end of the piece that starts at `at`, before the end of `text`, which is UTF-8 with
    /// plain spaces or U+2581.
    #[inline]
    pub fn next(&self, text: &[u8], at: usize) -> usize {
        let (mut before, len) = one(text, at);
        let mut end = at + len;
        while end < text.len() {
            let (c, len) = one(text, end);
            let joined = if before < 128 && c < 128 {
                self.ascii[(before << 7 | c) as usize]
            } else {
                self.others.get(key(before, c)).is_some()
            };
            if !joined {
                break;
            }
            before = c;
            end += len;
        }
        end
    }
}

/// The character at `at`, U+2581 being a space.
#[inline]
fn one(text: &[u8], at: usize) -> (u32, usize) {
    let (c, len) = decode(text, at);
    (if c == BAR as u32 { b' '.into() } else { c }, len)
}

fn key(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}
