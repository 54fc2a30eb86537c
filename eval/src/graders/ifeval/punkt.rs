//! Sentences: Punkt with the parameters that were trained for English.
//!
//! A `.`, `?` or `!` that is followed by closing punctuation, or by space and another word, may end a sentence. It
//! does, save where the word before it is an abbreviation, an initial, an ellipsis or a number, and the word after it
//! does not look like a start: `starts` below is the orthographic heuristic, from how training saw the word's first
//! letter. Closing quotes and brackets that follow are then given to the sentence they close. Punkt's collocations (a
//! list of 37 pairs in NLTK's model, from business news) are left out.
//!
//! The parameters (`punkt.gz`) are our own: abbreviations and starters written down by hand, and what NLTK's trainer
//! saw of words' first letters in texts whose licence is clear (`tools/make_ifeval_data.py` has the format and names
//! the texts). The harness downloads NLTK's English model, whose licence nobody could name; counts may differ from its
//! by a sentence where an abbreviation, an initial or a number stands before a word that the two trainings saw
//! differently.
//! Source: Kiss & Strunk 2006, "Unsupervised multilingual sentence boundary detection", sections 4.1 to 4.3; the
//! regular expressions of NLTK 3.10 (Apache-2.0), read for what they mean.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::sync::LazyLock;

use super::super::python;

/// The sentences of a text; an empty text has none.
pub(super) fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut slices = slices(text).into_iter().peekable();
    let mut realign = 0;
    while let Some((start, end)) = slices.next() {
        let start = start + realign;
        let next = slices.peek().map(|&(start, end)| (start, text.get(start..end).unwrap_or("")));
        let closing = next.and_then(|(at, sentence)| closing(sentence).map(|(len, all)| (at + len, all)));
        let end = match closing {
            Some((end, all)) => {
                realign = all;
                end
            }
            None => {
                realign = 0;
                end
            }
        };
        if start < end {
            found.push(&text[start..end]);
        } else if closing.is_some() {
            found.push("");
        }
    }
    found
}

/// What training said of English; types are lower case, numbers are `##number##`.
struct Parameters {
    abbreviations: HashSet<String>,
    starters: HashSet<String>,
    seen: HashMap<String, Seen>,
}

/// How training saw a word that it saw with a small first letter at least once.
#[derive(Clone, Copy)]
struct Seen {
    /// never with a capital inside a sentence
    starter: bool,
    /// with a capital somewhere, or never small at the start of a sentence
    inside: bool,
}

static ENGLISH: LazyLock<Parameters> = LazyLock::new(|| {
    let mut text = String::new();
    flate2::read::GzDecoder::new(&include_bytes!("punkt.gz")[..])
        .read_to_string(&mut text)
        .expect("punkt.gz is whole: it is part of the program");
    let mut p = Parameters { abbreviations: HashSet::new(), starters: HashSet::new(), seen: HashMap::new() };
    for line in text.lines() {
        let (kind, value) = line.split_once('\t').expect("punkt.gz: kind, tab, value");
        match kind {
            "a" => {
                p.abbreviations.insert(value.to_owned());
            }
            "s" => {
                p.starters.insert(value.to_owned());
            }
            _ => {
                let bits: u8 = kind.parse().expect("punkt.gz: a kind it has");
                p.seen.insert(value.to_owned(), Seen { starter: bits & 1 != 0, inside: bits & 2 != 0 });
            }
        }
    }
    p
});

/// A character that may follow a sentence's end without space between.
fn is_non_word(c: char) -> bool {
    matches!(c, ')' | '"' | ';' | '}' | ']' | '*' | ':' | '@' | '\'' | '(' | '{' | '[' | '?' | '!') || is_curly(c)
}

fn is_curly(c: char) -> bool {
    matches!(c, '\u{2018}' | '\u{2019}' | '\u{201c}' | '\u{201d}' | '\u{ab}' | '\u{bb}')
}

/// The closing punctuation with which a sentence starts, if it belongs to the one before: its length, and its length
/// with the white space after it.
fn closing(sentence: &str) -> Option<(usize, usize)> {
    let mut rest = sentence;
    loop {
        let c = rest.chars().next()?;
        if !(matches!(c, '"' | '\'' | ')' | ']' | '}') || is_curly(c)) {
            return None;
        }
        rest = &rest[c.len_utf8()..];
        let after = rest.trim_start();
        if after.len() < rest.len() || rest.is_empty() || rest.starts_with("--") {
            return Some((sentence.len() - rest.len(), sentence.len() - after.len()));
        }
    }
}

/// A place where a sentence may end: the word before, the sign, what follows.
struct Candidate {
    /// bytes of the word before the sign
    word: (usize, usize),
    /// one past the sign
    end: usize,
    /// one past what follows: a character of closing punctuation, or white space and a word
    context_end: usize,
    /// where the next sentence would start
    next_start: usize,
}

/// Byte ranges of sentences, before closing punctuation moves.
fn slices(text: &str) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut start = 0;
    for c in candidates(text) {
        if has_break(&text[c.word.0..c.context_end]) {
            out.push((start, c.end));
            start = c.next_start;
        }
    }
    out.push((start, text.trim_end_matches(python::is_space).len()));
    out
}

/// The candidates whose word does not run into the next one's: of `!!!` only the last.
fn candidates(text: &str) -> Vec<Candidate> {
    let mut out: Vec<Candidate> = Vec::new();
    // The word before the last sign, and whether a candidate waits to be kept.
    let mut word = (0, 0);
    let mut waiting: Option<Candidate> = None;
    for (at, sign) in text.char_indices().filter(|(_, c)| matches!(c, '.' | '?' | '!')) {
        let end = at + sign.len_utf8();
        let Some((context_end, next_start)) = what_follows(text, end) else { continue };
        let before = &text[word.1..at];
        let space = before.rfind([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        // A space in the first place counts as none: the rule takes index 0 for "not found".
        let start = match space {
            Some(offset) if offset > 0 => word.1 + offset + 1,
            _ => word.0,
        };
        if let Some(previous) = waiting.take()
            && word.1 <= start
        {
            out.push(previous);
        }
        word = (start, at);
        waiting = Some(Candidate { word, end, context_end, next_start });
    }
    out.extend(waiting);
    out
}

/// The end of what follows a sign, and where a next sentence would start; `None` if no sentence can end here.
fn what_follows(text: &str, end: usize) -> Option<(usize, usize)> {
    let rest = &text[end..];
    let first = rest.chars().next()?;
    if is_non_word(first) {
        return Some((end + first.len_utf8(), end));
    }
    let word = rest.trim_start();
    if word.len() == rest.len() || word.is_empty() {
        return None;
    }
    let start = text.len() - word.len();
    Some((start + word.find(char::is_whitespace).unwrap_or(word.len()), start))
}

/// A word with the notes that the two passes make.
struct Token<'a> {
    text: &'a str,
    /// lower case, or `##number##`
    kind: String,
    breaks: bool,
    abbreviation: bool,
    ellipsis: bool,
}

/// Whether a sentence ends inside a candidate's context: at a word that is not its last.
fn has_break(context: &str) -> bool {
    let mut tokens: Vec<Token<'_>> = Vec::new();
    for line in context.split('\n') {
        words(line, |word| tokens.push(first_pass(word)));
    }
    let mut found = false;
    for i in 0..tokens.len() {
        if found {
            return true;
        }
        if let [token, next, ..] = &mut tokens[i..] {
            second_pass(token, next);
            found = token.breaks;
        }
    }
    false
}

/// What the word alone says.
fn first_pass(text: &str) -> Token<'_> {
    let kind = if is_number(text) { "##number##".to_owned() } else { text.to_lowercase() };
    let mut token = Token { text, kind, breaks: false, abbreviation: false, ellipsis: false };
    if matches!(text, "." | "?" | "!") {
        token.breaks = true;
    } else if text.bytes().all(|b| b == b'.') {
        token.ellipsis = true;
    } else if text.ends_with('.') && !text.ends_with("..") {
        let word = text[..text.len() - 1].to_lowercase();
        let last = word.rsplit('-').next().unwrap_or(&word);
        let known = &ENGLISH.abbreviations;
        token.abbreviation = known.contains(&word) || known.contains(last);
        token.breaks = !token.abbreviation;
    }
    token
}

/// What the word and the next one say together.
fn second_pass(token: &mut Token<'_>, next: &Token<'_>) {
    if !token.text.ends_with('.') {
        return;
    }
    let kind = without_period(&token.kind);
    let next_kind = if next.breaks { without_period(&next.kind) } else { &next.kind };
    let mut chars = token.text.chars();
    let initial = chars.next().is_some_and(is_letter) && chars.as_str() == ".";
    let upper = next.text.chars().next().is_some_and(char::is_uppercase);
    let starts = starts(next, next_kind);
    if (token.abbreviation || token.ellipsis)
        && !initial
        && (starts == Some(true) || upper && ENGLISH.starters.contains(next_kind))
    {
        token.breaks = true;
        return;
    }
    if initial || kind == "##number##" {
        let never_small = !ENGLISH.seen.contains_key(next_kind);
        if starts == Some(false) || starts.is_none() && initial && upper && never_small {
            token.breaks = false;
        }
    }
}

/// Whether a word starts a sentence, as far as its first letter tells.
fn starts(word: &Token<'_>, kind: &str) -> Option<bool> {
    if matches!(word.text, ";" | ":" | "," | "." | "!" | "?") {
        return Some(false);
    }
    let seen = ENGLISH.seen.get(kind);
    let first = word.text.chars().next()?;
    if first.is_uppercase() && seen.is_some_and(|s| s.starter) {
        return Some(true);
    }
    if first.is_lowercase() && seen.is_none_or(|s| s.inside) {
        return Some(false);
    }
    None
}

fn without_period(kind: &str) -> &str {
    match kind.strip_suffix('.') {
        Some(head) if !head.is_empty() => head,
        _ => kind,
    }
}

/// Letters as the rules see them: what may stand in a word and is no digit.
fn is_letter(c: char) -> bool {
    static MARK: LazyLock<regex::Regex> = LazyLock::new(|| regex::Regex::new(r"\A\w\z").expect("a constant pattern"));
    let word = c == '_' || c.is_alphabetic() || !c.is_ascii() && MARK.is_match(c.encode_utf8(&mut [0; 4]));
    word && !python::is_decimal(c)
}

/// `-3`, `.5`, `1,000.`, `10-20`: a sign, a point, a digit, then digits, commas, points and hyphens.
fn is_number(text: &str) -> bool {
    let s = text.strip_prefix('-').unwrap_or(text);
    let s = s.strip_prefix(['.', ',']).unwrap_or(s);
    s.chars().next().is_some_and(python::is_decimal)
        && s.chars().all(|c| matches!(c, ',' | '.' | '-') || python::is_decimal(c))
}

/// Gives the words of a line to `take`: runs of punctuation, words up to punctuation, single characters.
fn words<'a>(line: &'a str, mut take: impl FnMut(&'a str)) {
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if c.is_whitespace() {
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let len = match many_punctuation(rest) {
            Some(len) => len,
            None if starts_word(c) => word_len(rest),
            None => c.len_utf8(),
        };
        take(&rest[..len]);
        rest = &rest[len..];
    }
}

fn starts_word(c: char) -> bool {
    !matches!(c, '(' | '"' | '`' | '{' | '[' | ':' | ';' | '&' | '#' | '*' | '@' | ')' | '}' | ']' | '-' | ',')
}

/// The bytes of a word: at least one character, up to white space or punctuation that ends a word.
fn word_len(s: &str) -> usize {
    let ends = |rest: &str| {
        let Some(c) = rest.chars().next() else { return true };
        c.is_whitespace() || is_non_word(c) || many_punctuation(rest).is_some()
    };
    let mut chars = s.char_indices();
    chars.next();
    for (at, c) in chars {
        let rest = &s[at..];
        if ends(rest) || c == ',' && ends(&rest[1..]) {
            return at;
        }
    }
    s.len()
}

/// The bytes of two or more hyphens, of two or more points, or of three or more points with one space between.
fn many_punctuation(s: &str) -> Option<usize> {
    for sign in ["-", "."] {
        let run = s.len() - s.trim_start_matches(sign).len();
        if run >= 2 {
            return Some(run);
        }
    }
    let mut rest = s;
    let mut pairs = 0;
    let mut len = None;
    while let Some(after) = rest.strip_prefix('.') {
        if pairs >= 2 {
            len = Some(s.len() - after.len());
        }
        let Some(space) = after.chars().next().filter(|c| c.is_whitespace()) else { break };
        rest = &after[space.len_utf8()..];
        pairs += 1;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abbreviations_initials_and_quotes() {
        let count = |s: &str| sentences(s).len();
        assert_eq!(count(""), 0);
        assert_eq!(count("Mr. Smith met J. Bach in the U.S. on Friday. It rained."), 2);
        assert_eq!(sentences("(He left.) She stayed."), ["(He left.)", "She stayed."]);
        assert_eq!(sentences("Very bad acting!!! I promise."), ["Very bad acting!!!", "I promise."]);
        assert_eq!(sentences("“Stop.” He did."), ["“Stop.”", "He did."]);
        assert_eq!(count("It costs 3.5 dollars. 4. Next"), 3);
    }
}
