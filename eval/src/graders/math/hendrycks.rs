//! hendrycks_math (version 1.0): equality of strings after repairs.
//!
//! The answer is the span between the first and the last `$` of the generation, or all of it where there are fewer than
//! two. Both sides go through [`strip_string`] and are then compared byte by byte. Where a repair fails (`\frac` or
//! `\sqrt` at the end, two units, a `/` between things that are no integers) the harness catches an exception and
//! compares the *unrepaired* strings; so does [`is_equiv`].
//!
//! Integers beside `/` are read as Python's `int` reads them: white space around, a sign, any script's digits, `_`
//! between digits. Python refuses more than 4300 digits, and so do we.
//! Source: lm-evaluation-harness 0.4.13, tasks/hendrycks_math/utils.py (MIT), read for what it means.

use super::{last_boxed, unbox};
use crate::graders::python;

/// The exact match of a generation with the answer boxed in the row's solution.
///
/// False where the solution has no box that closes (the harness fails on such a row).
pub fn process_results(generation: &str, solution: &str) -> bool {
    let boxed = last_boxed(solution);
    let gold = boxed.as_deref().and_then(unbox);
    gold.is_some_and(|gold| is_equiv(answer_span(generation), gold))
}

/// The span between the first and the last `$`; all of the text where there are fewer than two.
pub fn answer_span(generation: &str) -> &str {
    match (generation.find('$'), generation.rfind('$')) {
        (Some(first), Some(last)) if first < last => &generation[first + 1..last],
        _ => generation,
    }
}

/// Whether two answers are the same string after repair, or, where a repair fails, before.
pub fn is_equiv(a: &str, b: &str) -> bool {
    match (strip_string(a), strip_string(b)) {
        (Some(repaired_a), Some(repaired_b)) => repaired_a == repaired_b,
        _ => a == b,
    }
}

/// An answer after the repairs, in their order; `None` where the harness raises.
pub fn strip_string(s: &str) -> Option<String> {
    const DROPPED: [(&str, &str); 10] = [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ];
    let mut s = s.to_owned();
    for (from, to) in DROPPED {
        s = s.replace(from, to);
    }
    s = without_units(&s)?.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if s.is_empty() {
        return Some(s);
    }
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    let mut sides = s.split('=');
    if let (Some(left), Some(right), None) = (sides.next(), sides.next(), sides.next())
        && left.chars().count() <= 2
    {
        s = right.to_owned();
    }
    s = with_braced_roots(&s)?.replace(' ', "");
    s = with_braced_fractions(&s)?;
    if s == "0.5" {
        s = "\\frac{1}{2}".to_owned();
    }
    slash_to_fraction(&s)
}

/// What stands before `\text{ `, which opens a unit; `None` for two units.
fn without_units(s: &str) -> Option<&str> {
    let mut parts = s.split("\\text{ ");
    let head = parts.next()?;
    parts.next();
    parts.next().is_none().then_some(head)
}

/// `\sqrt3` becomes `\sqrt{3}`; `None` for a root of nothing at the end.
fn with_braced_roots(s: &str) -> Option<String> {
    let mut parts = s.split("\\sqrt");
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let first = part.chars().next()?;
        out.push_str("\\sqrt");
        if first == '{' {
            out.push_str(part);
        } else {
            out.extend(['{', first, '}']);
            out.push_str(&part[first.len_utf8()..]);
        }
    }
    Some(out)
}

/// `\frac12` becomes `\frac{1}{2}` and `\frac1{72}` becomes `\frac{1}{72}`.
///
/// `None` for a fraction of nothing at the end. The whole string as it was where an unbraced fraction has one character
/// after it, or where an empty part follows one.
fn with_braced_fractions(s: &str) -> Option<String> {
    let mut parts = s.split("\\frac");
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let mut chars = part.chars();
        let a = chars.next()?;
        out.push_str("\\frac");
        if a == '{' {
            out.push_str(part);
            continue;
        }
        let Some(b) = chars.next() else { return Some(s.to_owned()) };
        out.extend(['{', a, '}']);
        if b == '{' {
            out.push(b);
        } else {
            out.extend(['{', b, '}']);
        }
        out.push_str(chars.as_str());
    }
    Some(out)
}

/// `3/4` becomes `\frac{3}{4}`; `None` where one side of a lone `/` is no integer.
///
/// An integer that Python would print in another way (`03/4`, `+3/4`) leaves the string as it is.
fn slash_to_fraction(s: &str) -> Option<String> {
    let mut sides = s.split('/');
    let (Some(a), Some(b), None) = (sides.next(), sides.next(), sides.next()) else { return Some(s.to_owned()) };
    match (python_int(a)?, python_int(b)?) {
        (true, true) => Some(format!("\\frac{{{a}}}{{{b}}}")),
        _ => Some(s.to_owned()),
    }
}

/// Whether Python's `int(s)` accepts the text, and if so whether it prints as the same text.
fn python_int(s: &str) -> Option<bool> {
    const DIGITS_MAX: usize = 4300;
    let body = python::strip(s);
    let digits = body.strip_prefix(['+', '-']).unwrap_or(body);
    let mut count = 0;
    let mut after_digit = false;
    for c in digits.chars() {
        match c {
            '_' if after_digit => after_digit = false,
            _ if python::is_decimal(c) => {
                count += 1;
                after_digit = true;
            }
            _ => return None,
        }
    }
    if !after_digit || count > DIGITS_MAX {
        return None;
    }
    let plain = s.len() == body.len() && digits.bytes().all(|b| b.is_ascii_digit()) && !body.starts_with('+');
    let shortest = digits == "0" && body == "0" || !digits.starts_with('0');
    Some(plain && shortest)
}
