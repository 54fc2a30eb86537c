//! Answers to competition problems, written in LaTeX.
//!
//! [`hendrycks`] compares strings after a fixed list of repairs; [`minerva`] reads them as mathematics. Both take the
//! gold answer from the box of the row's solution, by the functions here.
//! Source: lm-evaluation-harness 0.4.13, tasks/hendrycks_math and tasks/minerva_math (MIT), read for what they mean.

pub mod hendrycks;
pub mod minerva;

/// The last `\boxed{...}` (or `\fbox{...}`) of a text, braces and all, or `\boxed ` and what follows up to a `$`.
///
/// `None` where there is no box, or its braces do not close. A `\boxed ` anywhere wins over every braced box, as in
/// the harness.
pub fn last_boxed(text: &str) -> Option<String> {
    if let Some(at) = text.rfind("\\boxed ") {
        let rest = &text[at + 7..];
        return Some(format!("\\boxed {}", rest.split('$').next().unwrap_or(rest)));
    }
    let at = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let mut open = 0i64;
    for (offset, c) in text[at..].char_indices() {
        match c {
            '{' => open += 1,
            '}' => {
                open -= 1;
                if open == 0 {
                    return Some(text[at..at + offset + 1].to_owned());
                }
            }
            _ => {}
        }
    }
    None
}

/// What stands in a box that [`last_boxed`] gave.
///
/// `None` for what is no such box: an `\fbox`, or a box that does not start the text. The harness stops with an
/// assertion there; a row like that has no gold answer.
pub fn unbox(boxed: &str) -> Option<&str> {
    if boxed.contains("\\boxed ") {
        return boxed.strip_prefix("\\boxed ");
    }
    boxed.strip_prefix("\\boxed{")?.strip_suffix('}')
}
