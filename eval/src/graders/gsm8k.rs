//! GSM8K (version 3.0 of the task): two ways to take a number out of a generation, and one way to compare it.
//!
//! ```text
//! strict match      the first match of   #### (\-?[0-9\.\,]+)
//! flexible extract  the last match of    (-?[$0-9.,]{2,})|(-?[0-9]+)
//! no match          [invalid]
//! exact match       both sides: drop ","  "$"  all up to the last "#### "  one "." at the end; lower case; equal
//! ```
//!
//! The gold side is the whole worked answer of the row, which is why the third rule drops what stands before `#### `.
//! Two details are Python's and kept: `.` and `,` alone are numbers to both patterns, and the `$` of the last rule also
//! stands before a newline that ends the string. NumPy's arrays, through which the harness compares, drop NULs at the
//! end of a string; so does [`exact_match`].
//! Source: lm-evaluation-harness 0.4.13, tasks/gsm8k/gsm8k.yaml, filters/extraction.py, api/metrics.py (MIT), read for
//! what they mean.

use std::sync::LazyLock;

use regex::Regex;

/// What a filter gives where it finds no number.
pub const INVALID: &str = "[invalid]";

/// The number after the first `#### `, or [`INVALID`].
pub fn strict_match(generation: &str) -> String {
    static PATTERN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#### (-?[0-9.,]+)").expect("a constant pattern"));
    PATTERN.captures(generation).map_or_else(|| INVALID.to_owned(), |found| found[1].to_owned())
}

/// The last thing that looks like a number, or [`INVALID`].
pub fn flexible_extract(generation: &str) -> String {
    static PATTERN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"-?[$0-9.,]{2,}|-?[0-9]+").expect("a constant pattern"));
    PATTERN.find_iter(generation).last().map_or_else(|| INVALID.to_owned(), |found| found.as_str().to_owned())
}

/// Whether an extracted number and the row's whole answer are equal once [`normalise`]d.
pub fn exact_match(extracted: &str, answer: &str) -> bool {
    normalise(extracted) == normalise(answer)
}

/// The form in which two answers are compared: see the head of this page.
pub fn normalise(s: &str) -> String {
    let s = s.trim_end_matches('\0').replace(',', "");
    let s = s.trim_end_matches('\0').replace('$', "");
    let s = s.trim_end_matches('\0');
    let s = s.rfind("#### ").map_or(s, |at| &s[at + 5..]).trim_end_matches('\0');
    let s = match (s.strip_suffix('.'), s.strip_suffix(".\n")) {
        (Some(head), _) => head.to_owned(),
        (None, Some(head)) => format!("{head}\n"),
        (None, None) => s.to_owned(),
    };
    s.trim_end_matches('\0').to_lowercase()
}
