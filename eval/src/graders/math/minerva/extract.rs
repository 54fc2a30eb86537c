//! Where in a text an answer stands, for math_verify.
//!
//! ```text
//! first   final answer is: LATEX or NUMBER . I hope
//! then    final answer ... is LATEX or NUMBER;  the last \boxed{...}
//! then    answer: ... LATEX or NUMBER;          then the same without the colon
//! last    any LATEX or NUMBER
//! ```
//!
//! LATEX is `$...$`, `$$...$$`, `\(...\)`, `\[...\]` or a bare fraction, several joined by commas, "and", "or". Of the
//! candidates of one rank that which ends last is tried first, of those the longest; the first that can be read wins.
//! One that cannot is kept as a string, for the first such candidate: two answers are equal as strings too.
//! Source: math_verify 0.9, parser.py (Apache-2.0), read for what it means.

use std::sync::LazyLock;

use regex::Regex;

use super::expr::Expr;
use super::latex;

/// Characters of a text that are looked at, from its end.
const TEXT_MAX: usize = 1 << 16;
/// Candidates of one rank that are tried.
const TRIED_MAX: usize = 64;
/// Bytes of one candidate.
const CANDIDATE_MAX: usize = 2048;
/// Answers that one list joins.
const JOINED_MAX: usize = 6;

/// What a text answers: an expression, if one could be read, and the first candidate's text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) expr: Option<Expr>,
    pub(super) text: Option<String>,
}

/// A candidate: where it stands, and its LaTeX parts, or the number as it is.
struct Candidate<'a> {
    start: usize,
    end: usize,
    parts: Vec<&'a str>,
    percent: bool,
    /// a number in prose, not LaTeX
    plain: bool,
}

pub(super) fn answer(text: &str) -> Answer {
    let from = text.char_indices().rev().nth(TEXT_MAX - 1).map_or(0, |(at, _)| at);
    let text = &text[from..];
    let mut found = Answer::default();
    for rank in [hoped, final_and_boxed, after_colon, after_answer, anywhere] {
        let mut candidates = rank(text);
        candidates.sort_by_key(|c| (std::cmp::Reverse(c.end), c.start));
        for candidate in candidates.iter().take(TRIED_MAX) {
            let form = if candidate.plain { plain } else { cleaned };
            let cleaned: Vec<String> = candidate.parts.iter().map(|part| form(part)).collect();
            if found.text.is_none() && !cleaned[0].is_empty() {
                found.text = Some(cleaned.join(" and "));
            }
            found.expr = read(&cleaned, candidate.percent);
            if found.expr.is_some() {
                return found;
            }
        }
    }
    found
}

/// One expression, or the set of several; of those that cannot all be read, the first.
fn read(parts: &[String], percent: bool) -> Option<Expr> {
    let read = |part: &String| {
        let whole = latex::parse(part, false);
        // Of a chain of equations the last side may do.
        let sides = part.matches('=').count();
        whole.or_else(|| {
            if sides > 1 && !part.contains([',', ';']) { latex::parse(part.rsplit('=').next()?, false) } else { None }
        })
    };
    let mut exprs: Vec<Option<Expr>> = parts.iter().map(read).collect();
    if exprs.len() > 1 && exprs.iter().all(Option::is_some) {
        let flat = exprs.into_iter().flatten().flat_map(|e| if let Expr::Set(parts) = e { parts } else { vec![e] });
        return Some(Expr::Set(flat.collect()));
    }
    let first = exprs.swap_remove(0)?;
    Some(if percent { Expr::Percent(Box::new(first)) } else { first })
}

/// LaTeX without its box and its spacing, and without a unit at its end unless that is all there is.
fn cleaned(latex: &str) -> String {
    const REPLACED: [(&str, &str); 15] = [
        ("{,}", ","),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\$", ""),
        ("$", ""),
        ("\\!", ""),
        ("\"", ""),
        ("\\displaystyle", ""),
        ("\\mathrm", "\\text"),
        ("\\mathbf", "\\text"),
        ("\\textbf", "\\text"),
        ("\\ldots", " "),
    ];
    static AND: LazyLock<Regex> = LazyLock::new(|| constant(r",?\s*(?:\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)"));
    static TEXT: LazyLock<Regex> = LazyLock::new(|| constant(r"\\(?:text|mbox)\{.*\}(?:\^\d|\{\^\d\})?\z"));
    static UNIT: LazyLock<Regex> = LazyLock::new(|| {
        constant(concat!(
            r"([\d}\s])\s*(?:degree|[ckm]?m|mile|mph|k?g|kmh|kmph|in|inch|f?t|foot|feet|yard|lb|pound|gallon|gal|lit[er]+|l",
            r"|met[er]+|sq(?:uare)?|cubic|cube|acre|s|sec|second|min|minute|h|hr|hour|day|week|month|yr|year|am|pm|cent|dollar",
            r"|rupee|unit|point|th|men|man|women|woman|way|number|mark|coin|apple|c|d|more|less|per)(?:s|es)?\s*\z"
        ))
    });
    let inside = boxed(latex).map_or(latex, |(start, end)| &latex[start..end]);
    let mut s = inside.trim().to_owned();
    let arrows = s.contains("\\leftarrow") || s.contains("\\rightarrow");
    for (from, to) in REPLACED.iter().filter(|(from, _)| !arrows || !from.ends_with("ight") && !from.ends_with("eft")) {
        if s.contains(from) {
            s = s.replace(from, to);
        }
    }
    s = AND.replace_all(&s, ",").into_owned();
    for pattern in [&*TEXT, &*UNIT, &*UNIT] {
        let shorter = pattern.replace(&s, "$1").trim().to_owned();
        if !shorter.is_empty() {
            s = shorter;
        }
    }
    s
}

/// A number in prose: groups of three are joined, another comma is a point.
fn plain(number: &str) -> String {
    let grouped = number.split([' ', ',']).skip(1).all(|group| group.split('.').next().is_some_and(|g| g.len() == 3));
    if grouped && !number.trim_start_matches('-').starts_with('0') {
        return number.replace([' ', ','], "");
    }
    number.replace(',', ".")
}

/// The inside of the last `\boxed{...}` that closes.
fn boxed(text: &str) -> Option<(usize, usize)> {
    for (at, _) in text.rmatch_indices("\\boxed{").take(TRIED_MAX) {
        let start = at + 7;
        let mut open = 1;
        for (offset, b) in text[start..].bytes().enumerate() {
            open += i32::from(b == b'{') - i32::from(b == b'}');
            if open == 0 {
                return Some((start, start + offset));
            }
        }
    }
    None
}

fn constant(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

static ENVIRONMENT: LazyLock<Regex> = LazyLock::new(|| {
    constant(concat!(
        r"\A(?s:\$\$((?:[^$\\]|\\.|\$[^$])+?)\$\$|\\\[(.+?)\\\]|\$((?:\\[^\n]|[^\n$\\])+)\$|\\\(([^\n]+?)\\\)",
        r"|(-?\\frac\{-?\d+(?:[.,]\d+)?\}\{-?\d+(?:[.,]\d+)?\}))\s*(\\?%|[Pp]ercent|[Pp]ct)?"
    ))
});
static JOIN: LazyLock<Regex> = LazyLock::new(|| constant(r"\A\s*(?:,?and|,?or|,)\s*"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    constant(concat!(
        r"\A(?:[\s=]|)(?:\*\*)?[$€£¥₹]?(-?[1-9]\d{0,2}(?:[ ,]\d{3})+(?:\.\d+)?|-?\d+[.,]\d+|\.\d+|-?\d+)",
        r"(\s*(?:%|[Pp]ercent|[Pp]ct))?"
    ))
});
static SUM: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r"\A(?:[\s=]|)(?:\*\*)?(-?\(?-?\d[\d.\s+\-*×/^()÷]*[+\-*×/^()÷][\d.\s+\-*×/^()÷]+\)?)(?:\*\*)?(?:[.,:\s)$]|\z)",
    )
});
static FINAL_IS: LazyLock<Regex> = LazyLock::new(|| constant(r"(?i)final answer is:?\s*"));
static FINAL: LazyLock<Regex> = LazyLock::new(|| constant(r"(?is)final answer.{0,100}?\s+is:?\s*"));
static ANSWER: LazyLock<Regex> = LazyLock::new(|| constant(r"(?i)answer"));
static HOPE: LazyLock<Regex> = LazyLock::new(|| constant(r"\A\.?\s?I hope"));

/// What follows a place, as far as a candidate may reach.
fn window(text: &str, start: usize) -> &str {
    let mut end = text.len().min(start + CANDIDATE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[start..end]
}

/// LaTeX that starts at a place.
fn latex_at(text: &str, start: usize) -> Option<Candidate<'_>> {
    if start > 0 && text.as_bytes()[start - 1] == b'\\' || !matches!(text.as_bytes().get(start)?, b'$' | b'\\' | b'-') {
        return None;
    }
    if text[start..].starts_with('$') && text[..start].ends_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut c = Candidate { start, end: start, parts: Vec::new(), percent: false, plain: false };
    let mut at = start;
    while c.parts.len() < JOINED_MAX {
        let Some(found) = ENVIRONMENT.captures(window(text, at)) else { break };
        c.parts.push((1..=5).find_map(|i| found.get(i)).map_or("", |m| m.as_str()));
        c.percent |= found.get(6).is_some();
        c.end = at + found.get(0).map_or(0, |m| m.end());
        let Some(join) = JOIN.find(window(text, c.end)) else { break };
        at = c.end + join.end();
    }
    (!c.parts.is_empty()).then_some(c)
}

/// A number or a sum of numbers that starts at a place, which white space, `=` or the start of the text stands before.
fn number_at(text: &str, start: usize) -> Vec<Candidate<'_>> {
    let before = text[..start].chars().next_back();
    let here = text[start..].chars().next();
    if !(here.is_some_and(|c| c.is_whitespace() || c == '=') || before.is_none_or(|c| c.is_whitespace() || c == '=')) {
        return Vec::new();
    }
    let found = |pattern: &Regex, number: bool| {
        pattern.captures(window(text, start)).map(|m| Candidate {
            start,
            end: start + m.get(0).map_or(0, |m| m.end()),
            parts: vec![m.get(1).map_or("", |m| m.as_str())],
            percent: number && m.get(2).is_some(),
            plain: number,
        })
    };
    found(&SUM, false).into_iter().chain(found(&NUMBER, true)).collect()
}

fn at(text: &str, start: usize) -> Vec<Candidate<'_>> {
    latex_at(text, start).into_iter().chain(number_at(text, start)).collect()
}

fn hoped(text: &str) -> Vec<Candidate<'_>> {
    let ends = FINAL_IS.find_iter(text).map(|m| m.end());
    let mut all: Vec<Candidate<'_>> = ends.flat_map(|end| at(text, end)).collect();
    all.retain(|c| HOPE.is_match(&text[c.end..]));
    all
}

fn final_and_boxed(text: &str) -> Vec<Candidate<'_>> {
    let mut all: Vec<Candidate<'_>> = FINAL.find_iter(text).flat_map(|m| at(text, m.end())).collect();
    if let Some((start, end)) = boxed(text) {
        // The box may stand in an environment, which ends after it: it goes first among what ends near.
        all.push(Candidate {
            start,
            end: text[..end].len() + 2,
            parts: vec![&text[start..end]],
            percent: false,
            plain: false,
        });
    }
    all
}

/// The first candidate within fifty characters of each "answer".
fn near_answers(text: &str, colon: bool) -> Vec<Candidate<'_>> {
    let mut all = Vec::new();
    for m in ANSWER.find_iter(text).collect::<Vec<_>>().into_iter().rev().take(TRIED_MAX) {
        let rest = &text[m.end()..];
        if colon && !rest.starts_with(':') {
            continue;
        }
        let places = || rest.char_indices().take(52).map(|(offset, _)| m.end() + offset);
        all.extend(places().find_map(|place| latex_at(text, place)));
        all.extend(places().map(|place| number_at(text, place)).find(|c| !c.is_empty()).unwrap_or_default());
    }
    all
}

fn after_colon(text: &str) -> Vec<Candidate<'_>> {
    near_answers(text, true)
}

fn after_answer(text: &str) -> Vec<Candidate<'_>> {
    near_answers(text, false)
}

/// All LaTeX and all numbers, from left to right, no two of a kind overlapping.
fn anywhere(text: &str) -> Vec<Candidate<'_>> {
    let mut all = Vec::new();
    let (mut latex_from, mut number_from) = (0, 0);
    for (place, _) in text.char_indices() {
        if place >= latex_from
            && let Some(c) = latex_at(text, place)
        {
            latex_from = c.end;
            all.push(c);
        }
        if place >= number_from {
            for c in number_at(text, place) {
                number_from = number_from.max(c.end);
                all.push(c);
            }
        }
    }
    all
}
