//! What a character is to the patterns: letter, number, white space or none of these.
//!
//! The classes are taken from `regex-syntax`, which the `tokenizers` crate's own patterns are
//! made of, so both know the same version of Unicode. Pages of 256 characters that are alike are
//! kept once; the whole is about 40 kB and is made at first use.
//!
//! A bit beside the class says that NFC has to look at the character: it has a combining class,
//! or it may decompose or compose (Unicode Standard Annex 15, section 9). What lacks the bit in
//! today's Unicode lacks it in every older version, for normalisation is stable, so the bit is
//! right for the crate's older tables too.

use std::collections::HashMap;
use std::sync::OnceLock;

use unicode_normalization::{IsNormalized, char::canonical_combining_class, is_nfc_quick};

/// Neither letter nor number nor space: `[^\s\p{L}\p{N}]`.
pub const OTHER: u8 = 0;
/// `\p{L}`
pub const LETTER: u8 = 1;
/// `\p{N}`
pub const NUMBER: u8 = 2;
/// `\s`
pub const SPACE: u8 = 3;
/// The bits that hold one of the four.
const CLASS: u8 = 3;
/// NFC has to look at it.
const LOOK: u8 = 4;

/// Characters a page.
const PAGE: usize = 256;
/// From here on there are no characters that NFC changes or may change, as of Unicode 17; later
/// versions may bring some, so all of them are looked at.
const PLANES: u32 = 0x3_0000;

/// The table.
#[derive(Debug)]
pub struct Classes {
    /// For each page of Unicode its place in `pages`.
    page_of: Vec<u16>,
    pages: Vec<[u8; PAGE]>,
}

impl Classes {
    /// The one table.
    pub fn get() -> &'static Classes {
        static CLASSES: OnceLock<Classes> = OnceLock::new();
        CLASSES.get_or_init(Classes::new)
    }

    fn new() -> Classes {
        let mut flat = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            for (first, last) in ranges(pattern) {
                flat[first as usize..=last as usize].fill(class);
            }
        }
        for c in (0..PLANES).filter_map(char::from_u32) {
            let alone = is_nfc_quick(std::iter::once(c)) == IsNormalized::Yes;
            if !alone || canonical_combining_class(c) != 0 {
                flat[c as usize] |= LOOK;
            }
        }
        flat[PLANES as usize..].iter_mut().for_each(|c| *c |= LOOK);
        let mut table = Classes { page_of: Vec::new(), pages: Vec::new() };
        let mut known: HashMap<[u8; PAGE], u16> = HashMap::new();
        for page in flat.chunks_exact(PAGE) {
            let page: [u8; PAGE] = page.try_into().expect("whole pages");
            let place = *known.entry(page).or_insert_with(|| {
                table.pages.push(page);
                (table.pages.len() - 1) as u16
            });
            table.page_of.push(place);
        }
        table
    }

    /// One of [`OTHER`], [`LETTER`], [`NUMBER`], [`SPACE`].
    #[inline]
    pub fn of(&self, c: u32) -> u8 {
        self.flags(c) & CLASS
    }

    /// Whether NFC has to look at `c`.
    #[inline]
    pub fn nfc_looks(&self, c: u32) -> bool {
        self.flags(c) & LOOK != 0
    }

    #[inline]
    fn flags(&self, c: u32) -> u8 {
        self.pages[self.page_of[(c >> 8) as usize] as usize][(c & 0xff) as usize]
    }
}

/// The characters of a class as ranges with both ends.
fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    use regex_syntax::hir::{Class, HirKind};
    let hir = regex_syntax::parse(pattern).expect("a plain class");
    match hir.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.ranges().iter().map(|r| (r.start().into(), r.end().into())).collect()
        }
        other => unreachable!("{pattern} is a class of characters, not {other:?}"),
    }
}

/// The character at `at` and its bytes. `text` is UTF-8 and `at` starts a character.
#[inline]
pub fn decode(text: &[u8], at: usize) -> (u32, usize) {
    let low = |i: usize| u32::from(text[at + i] & 0x3f);
    let lead = u32::from(text[at]);
    match lead {
        0..0x80 => (lead, 1),
        0x80..0xe0 => ((lead & 0x1f) << 6 | low(1), 2),
        0xe0..0xf0 => ((lead & 0x0f) << 12 | low(1) << 6 | low(2), 3),
        _ => ((lead & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character against the regular expressions themselves.
    #[test]
    fn classes_are_those_of_the_regex_crate() {
        let all: String = ('\0'..=char::MAX).collect();
        let table = Classes::get();
        assert!(table.pages.len() < 400, "{} pages", table.pages.len());
        let mut found = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            for m in regex::Regex::new(pattern).unwrap().find_iter(&all) {
                found[m.as_str().chars().next().unwrap() as usize] = class;
            }
        }
        for (at, c) in all.char_indices() {
            assert_eq!(table.of(c.into()), found[c as usize], "{c:?}");
            assert_eq!(decode(all.as_bytes(), at), (c.into(), c.len_utf8()));
        }
    }
}
