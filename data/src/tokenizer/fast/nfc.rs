//! NFC, as the `tokenizers` crate does it, where a text needs it at all.
//!
//! Characters that NFC has no business with (`classes.rs`) are stepped over. Around any other one
//! the text is cut before an ASCII character on either side, since such a one never joins what
//! stands before it; if that stretch does not pass the quick check (Unicode Standard Annex 15,
//! section 9), the crate's own code normalises it: its tables are older than ours, and ids are to
//! be the same.

use tokenizers::NormalizedString;
use unicode_normalization::{IsNormalized, is_nfc_quick};

use super::classes::{Classes, decode};

/// Below this lead byte lie the characters up to U+02FF, which NFC leaves alone.
const LEAD: u8 = 0xcc;

/// Writes NFC of `text` into `into` and says true, or leaves it and says false: the text is in
/// NFC as it stands.
pub fn nfc(text: &str, into: &mut String) -> bool {
    let (bytes, classes) = (text.as_bytes(), Classes::get());
    let (mut at, mut copied) = (0, 0);
    into.clear();
    while let Some(lead) = next_lead(bytes, at) {
        let (c, len) = decode(bytes, lead);
        at = lead + len;
        if !classes.nfc_looks(c) {
            continue;
        }
        let ascii = |b: &u8| b.is_ascii();
        let from = copied + bytes[copied..lead].iter().rposition(ascii).unwrap_or(0);
        let to = lead + bytes[lead..].iter().position(ascii).unwrap_or(bytes.len() - lead);
        if is_nfc_quick(text[from..to].chars()) != IsNormalized::Yes {
            let mut stretch = NormalizedString::from(&text[from..to]);
            stretch.nfc();
            into.push_str(&text[copied..from]);
            into.push_str(stretch.get());
            copied = to;
        }
        at = to;
    }
    if copied == 0 {
        return false;
    }
    into.push_str(&text[copied..]);
    true
}

/// The next byte that leads a character above U+02FF.
fn next_lead(bytes: &[u8], mut at: usize) -> Option<usize> {
    while let Some(block) = bytes[at..].first_chunk::<32>() {
        if block.iter().fold(false, |any, &b| any | (b >= LEAD)) {
            break;
        }
        at += block.len();
    }
    bytes[at..].iter().position(|&b| b >= LEAD).map(|i| at + i)
}
