//! What Python's `str` calls white space and words, where Rust and the `regex` crate differ.
//!
//! The harness is written in Python, and its verdicts hang on these sets: `str.strip()` and `\s` also take U+001C to
//! U+001F; `\w` is letters, numbers and `_`, and not the marks that the `regex` crate adds (a Hindi word with a vowel
//! sign is several words to Python); `\d` is the same set in both.
//! Source: the Python language reference, `str.isspace`, and the documentation of `re`.

use std::sync::LazyLock;

use regex::Regex;

/// `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`.
pub(super) fn strip(s: &str) -> &str {
    s.trim_matches(is_space)
}

/// Whether a character is a decimal digit of some script (general category Nd): what Python's `int` reads.
pub(super) fn is_decimal(c: char) -> bool {
    static DECIMAL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A\p{Nd}\z").expect("a constant pattern"));
    c.is_ascii_digit() || !c.is_ascii() && DECIMAL.is_match(c.encode_utf8(&mut [0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_digits_are_pythons() {
        assert_eq!(strip("\x1c\u{a0} a\u{85}\u{3000}b \x1f\n"), "a\u{85}\u{3000}b");
        assert!(is_decimal('٣') && !is_decimal('½'));
    }
}
