//! Words, in the two ways that IFEval counts them.
//!
//! [`count`] counts runs of letters, marks, digits and joining punctuation (NLTK's `RegexpTokenizer(r"\w+")`; NLTK 3.10
//! takes `\w` from UTS 18, as the `regex` crate does, where 3.9 took Python's, which splits words at vowel signs).
//! [`capitals`] splits each sentence as NLTK's `word_tokenize` does, by a list of replacements that put spaces around
//! punctuation, quotes and clitics, and counts the tokens without a small letter: `IT'S` is two of them.
//! Source: the Penn Treebank's tokenizer script (Robert MacIntyre); NLTK 3.10, tokenize/destructive.py (Apache-2.0),
//! read for what it means.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::super::python;
use super::punkt;

/// Runs of `\w`.
pub(super) fn count(text: &str) -> usize {
    static WORDS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\w+").expect("a constant pattern"));
    WORDS.find_iter(text).count()
}

/// Tokens that are all capitals.
pub(super) fn capitals(text: &str) -> usize {
    let all =
        |sentence| separated(sentence).split(python::is_space).filter(|token| python::is_case(token, true)).count();
    punkt::sentences(text).into_iter().map(all).sum()
}

/// Replacements before the quote that opens a word is handled, then after it; the last ones see a space at both ends.
const OPENING: [(&str, &str); 4] =
    [("([«“‘„]|`+)", " $1 "), ("^\"", "``"), ("(``)", " $1 "), (r#"([ (\[{<])("|'{2})"#, "$1 `` ")];
const PUNCTUATION: [(&str, &str); 12] = [
    (r#"([^.])(\.)([\])}>"'»”’ ]*)\s*$"#, "$1 $2 $3 "),
    (r"([:,])([^\d])", " $1 $2"),
    (r"([:,])$", " $1 "),
    (r"\.{2,}", " $0 "),
    (r"[;@#$%&]", " $0 "),
    (r"[\x{2012}-\x{2015}]", " $0 "),
    (r#"([^.])(\.)([\])}>"']*)\s*$"#, "$1 $2$3 "),
    (r"[?!]", " $0 "),
    (r"([^'])' ", "$1 ' "),
    (r"[*]", " $0 "),
    (r"[\]\[(){}<>]", " $0 "),
    (r"--", " -- "),
];
const CLOSING: [(&str, &str); 12] = [
    ("([»”’])", " $1 "),
    ("''", " '' "),
    ("\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
    (r"(?i)\b(can)(not)\b", " $1 $2 "),
    (r"(?i)\b(d)('ye)\b", " $1 $2 "),
    (r"(?i)\b(gim|lem)(me)\b", " $1 $2 "),
    (r"(?i)\b(gon|wan)(na)\b", " $1 $2 "),
    (r"(?i)\b(got)(ta)\b", " $1 $2 "),
    (r"(?i)\b(more)('n)\b| ('t)(is|was)\b", " $1$3 $2$4 "),
];

type Rules = Vec<(Regex, &'static str)>;

fn compiled(rules: &[(&str, &'static str)]) -> Rules {
    rules.iter().map(|(pattern, to)| (Regex::new(pattern).expect("a constant pattern"), *to)).collect()
}

/// A sentence with spaces between its tokens.
fn separated(sentence: &str) -> String {
    static RULES: LazyLock<[Rules; 3]> =
        LazyLock::new(|| [compiled(&OPENING), compiled(&PUNCTUATION), compiled(&CLOSING)]);
    let apply = |text: String, rules: &Rules| {
        rules.iter().fold(text, |text, (pattern, to)| match pattern.replace_all(&text, *to) {
            Cow::Borrowed(_) => text,
            Cow::Owned(changed) => changed,
        })
    };
    let text = apply(sentence.to_owned(), &RULES[0]);
    let text = apply(opening_quotes(&text), &RULES[1]);
    apply(format!(" {text} "), &RULES[2])
}

/// Puts a space after a `'` that opens a word: one with no word character before it, a word character after it, and no
/// clitic (`'re`, `'ve`, `'ll`, `'m`, `'t`, `'s`, `'d`, `'n`) there.
fn opening_quotes(text: &str) -> String {
    static CLITIC: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\A(?i:re|ve|ll|m|t|s|d|n)\b").expect("a constant pattern"));
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\A\w").expect("a constant pattern"));
    let is_word =
        |c: char| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii() && WORD.is_match(c.encode_utf8(&mut [0; 4]));
    let mut out = String::with_capacity(text.len() + 16);
    let mut before = None;
    for (at, c) in text.char_indices() {
        out.push(c);
        if c == '\'' && !before.is_some_and(is_word) {
            let rest = &text[at + 1..];
            if rest.chars().next().is_some_and(is_word) && !CLITIC.is_match(rest) {
                out.push(' ');
            }
        }
        before = Some(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let tokens = |s: &str| separated(s).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join("|");
        assert_eq!(tokens("Good muffins cost $3.88 (in New York)."), "Good|muffins|cost|$|3.88|(|in|New|York|)|.");
        assert_eq!(tokens("IT'S \"FINE\", he can't CANNOT wanna"), "IT|'S|``|FINE|''|,|he|ca|n't|CAN|NOT|wan|na");
        assert_eq!(capitals("NASA can't. I CANNOT!"), 4);
        assert_eq!(count("d'accord x_1 \u{939}\u{93f}\u{928}"), 4);
    }
}
