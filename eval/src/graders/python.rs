//! What Python's `str` calls white space and words, where Rust and the `regex` crate differ.
//!
//! The harness is written in Python, and its verdicts hang on these sets: `str.strip()` and `\s` also take U+001C to
//! U+001F; `\w` is letters, numbers and `_`, and not the marks that the `regex` crate adds (a Hindi word with a vowel
//! sign is several words to Python); `\d` is the same set in both.
//! Source: the Python language reference, `str.isspace`, and the documentation of `re`.

use std::sync::LazyLock;

use regex::Regex;

/// Python's `\s`, inside a class of the `regex` crate.
pub(super) const SPACE: &str = r"\s\x1c-\x1f";

/// Python's `\w`, inside a class of the `regex` crate.
pub(super) const WORD: &str = r"\p{L}\p{N}_";

/// `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`.
pub(super) fn strip(s: &str) -> &str {
    s.trim_matches(is_space)
}

/// `str.islower()` and `str.isupper()`: cased characters exist and all are of that case.
///
/// A titlecase letter (such as U+01C5) is cased and neither.
pub(super) fn is_case(s: &str, upper: bool) -> bool {
    let mut cased = false;
    for c in s.chars() {
        let (up, low) = (c.is_uppercase(), c.is_lowercase());
        if (if upper { low } else { up }) || is_title(c) {
            return false;
        }
        cased |= up || low;
    }
    cased
}

/// Whether a character is a decimal digit of some script (general category Nd): what Python's `int` reads.
pub(super) fn is_decimal(c: char) -> bool {
    static DECIMAL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A\p{Nd}\z").expect("a constant pattern"));
    c.is_ascii_digit() || !c.is_ascii() && DECIMAL.is_match(c.encode_utf8(&mut [0; 4]))
}

/// The letters of general category Lt: three ligature pairs of Latin, DZ, and Greek capitals with iota below.
fn is_title(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}')
        || matches!(c, '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}')
        || matches!(c, '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_case_are_pythons() {
        assert_eq!(strip("\x1c\u{a0} a\u{85}\u{3000}b \x1f\n"), "a\u{85}\u{3000}b");
        assert!(is_case("ÉT 3", true) && is_case("ß x", false));
        assert!(!is_case("3.", true) && !is_case("", false) && !is_case("Ab", false) && !is_case("\u{1c5}A", true));
    }
}
