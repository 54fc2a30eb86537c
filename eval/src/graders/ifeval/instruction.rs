//! The 25 instructions: their arguments, and whether a text follows them.
//!
//! Keywords, section markers and postscript markers are regular expressions to the harness, unescaped; they are here
//! too, in the dialect of the `regex` crate, and one that is no expression is refused. White space is Python's, which
//! has four characters more. Source: see the page above.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use super::super::python;
use super::{IfevalError, json, langdetect, punkt, words};

/// The ids of the instructions.
pub const IDS: [&str; 25] = [
    "keywords:existence",
    "keywords:frequency",
    "keywords:forbidden_words",
    "keywords:letter_frequency",
    "language:response_language",
    "length_constraints:number_sentences",
    "length_constraints:number_paragraphs",
    "length_constraints:number_words",
    "length_constraints:nth_paragraph_first_word",
    "detectable_content:number_placeholders",
    "detectable_content:postscript",
    "detectable_format:number_bullet_lists",
    "detectable_format:constrained_response",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "detectable_format:title",
    "combination:two_responses",
    "combination:repeat_prompt",
    "startend:end_checker",
    "change_case:capital_word_frequency",
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
    "startend:quotation",
];

/// A number that a count is held against.
#[derive(Debug, Clone, Copy)]
enum Bound {
    LessThan(u64),
    AtLeast(u64),
}

impl Bound {
    fn holds(self, count: usize) -> bool {
        match self {
            Bound::LessThan(n) => (count as u64) < n,
            Bound::AtLeast(n) => count as u64 >= n,
        }
    }
}

/// One instruction with its arguments.
#[derive(Debug, Clone)]
pub struct Instruction(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Keywords(Vec<Regex>),
    KeywordFrequency(Regex, Bound),
    Forbidden(Vec<Regex>),
    LetterFrequency(Option<char>, Bound),
    Language(String),
    Sentences(Bound),
    Paragraphs(u64),
    Words(Bound),
    ParagraphFirstWord { paragraphs: u64, nth: u64, word: String },
    Placeholders(u64),
    Postscript(Regex),
    Bullets(u64),
    Constrained,
    Highlights(u64),
    Sections(Regex, u64),
    Json,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    End(String),
    CapitalWords(Bound),
    EnglishCase { upper: bool },
    NoComma,
    Quotation,
}

impl Instruction {
    /// Reads an instruction from its id and its arguments (an object; null counts as an empty one).
    pub fn parse(id: &str, kwargs: &Value) -> Result<Instruction, IfevalError> {
        let Some(id) = IDS.into_iter().find(|known| *known == id) else {
            return Err(IfevalError::UnknownInstruction { id: id.to_owned() });
        };
        let empty = Map::new();
        let map = match kwargs {
            Value::Object(map) => map,
            Value::Null => &empty,
            other => return Err(invalid(id, "kwargs", other, "an object")),
        };
        let mut a = Arguments { id, map, asked: Vec::new() };
        let kind = a.kind()?;
        let stray = map.iter().find(|(key, value)| !is_absent(value) && !a.asked.contains(&key.as_str()));
        match stray {
            Some((key, value)) => Err(invalid(id, key, value, "no such argument")),
            None => Ok(Instruction(kind)),
        }
    }

    /// Whether a text follows the instruction.
    pub fn is_followed_by(&self, text: &str) -> bool {
        match &self.0 {
            Kind::Keywords(words) => words.iter().all(|word| word.is_match(text)),
            Kind::KeywordFrequency(word, bound) => bound.holds(word.find_iter(text).count()),
            Kind::Forbidden(words) => !words.iter().any(|word| word.is_match(text)),
            Kind::LetterFrequency(letter, bound) => letter_frequency(text, *letter, *bound),
            Kind::Language(code) => langdetect::detect(text).map_or(true, |found| found == code),
            Kind::Sentences(bound) => bound.holds(punkt::sentences(text).len()),
            Kind::Paragraphs(n) => paragraphs(text) == Some(*n),
            Kind::Words(bound) => bound.holds(words::count(text)),
            Kind::ParagraphFirstWord { paragraphs, nth, word } => first_word(text, *paragraphs, *nth, word),
            Kind::Placeholders(n) => at_least(&PLACEHOLDER, text, *n),
            Kind::Postscript(marker) => marker.is_match(&text.to_lowercase()),
            Kind::Bullets(n) => {
                (STAR_BULLET.find_iter(text).count() + DASH_BULLET.find_iter(text).count()) as u64 == *n
            }
            Kind::Constrained => {
                ["My answer is yes.", "My answer is no.", "My answer is maybe."].iter().any(|s| text.contains(s))
            }
            Kind::Highlights(n) => highlights(text) as u64 >= *n,
            Kind::Sections(marker, n) => at_least(marker, text, *n),
            Kind::Json => is_json(text),
            Kind::Title => TITLE.find_iter(text).any(|title| {
                let inside = title.as_str().trim_start_matches('<').trim_end_matches('>');
                !python::strip(inside).is_empty()
            }),
            Kind::TwoResponses => two_responses(text),
            Kind::RepeatPrompt(prompt) => python::strip(text).to_lowercase().starts_with(prompt),
            Kind::End(phrase) => python::strip(text).trim_matches('"').to_lowercase().ends_with(phrase),
            Kind::CapitalWords(bound) => bound.holds(words::capitals(text)),
            Kind::EnglishCase { upper } => {
                python::is_case(text, *upper) && langdetect::detect(text).map_or(true, |found| found == "en")
            }
            Kind::NoComma => !text.contains(','),
            Kind::Quotation => {
                let text = python::strip(text);
                text.len() > 1 && text.starts_with('"') && text.ends_with('"')
            }
        }
    }
}

fn invalid(id: &'static str, key: &str, value: &Value, expected: &'static str) -> IfevalError {
    IfevalError::Invalid { id, key: key.to_owned(), value: value.to_string(), expected }
}

/// What Python counts as false: the harness drops such arguments.
fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The arguments of an instruction, and which were asked for.
struct Arguments<'a> {
    id: &'static str,
    map: &'a Map<String, Value>,
    asked: Vec<&'static str>,
}

impl<'a> Arguments<'a> {
    fn kind(&mut self) -> Result<Kind, IfevalError> {
        Ok(match self.id {
            "keywords:existence" => {
                let keywords = self.texts("keywords")?;
                Kind::Keywords(self.patterns("keywords", keywords, |word| format!("(?i){word}"))?)
            }
            "keywords:frequency" => {
                let word = python::strip(self.text("keyword")?).to_owned();
                let bound = self.bound("relation", "frequency")?;
                Kind::KeywordFrequency(self.pattern("keyword", &format!("(?i){word}"))?, bound)
            }
            "keywords:forbidden_words" => {
                let forbidden = self.texts("forbidden_words")?;
                Kind::Forbidden(self.patterns("forbidden_words", forbidden, whole_word)?)
            }
            "keywords:letter_frequency" => {
                let mut letter = self.text("letter")?.chars();
                let only = letter.next().filter(|c| letter.as_str().is_empty() && c.is_ascii_alphabetic());
                let bound = self.bound("let_relation", "let_frequency")?;
                Kind::LetterFrequency(only.map(|c| c.to_ascii_lowercase()), bound)
            }
            "language:response_language" => Kind::Language(self.text("language")?.to_owned()),
            "length_constraints:number_sentences" => Kind::Sentences(self.bound("relation", "num_sentences")?),
            "length_constraints:number_paragraphs" => Kind::Paragraphs(self.number("num_paragraphs")?),
            "length_constraints:number_words" => Kind::Words(self.bound("relation", "num_words")?),
            "length_constraints:nth_paragraph_first_word" => self.first_word()?,
            "detectable_content:number_placeholders" => Kind::Placeholders(self.number("num_placeholders")?),
            "detectable_content:postscript" => self.postscript()?,
            "detectable_format:number_bullet_lists" => Kind::Bullets(self.number("num_bullets")?),
            "detectable_format:constrained_response" => Kind::Constrained,
            "detectable_format:number_highlighted_sections" => Kind::Highlights(self.number("num_highlights")?),
            "detectable_format:multiple_sections" => {
                let marker = python::strip(self.text("section_spliter")?).to_owned();
                let space = python::SPACE;
                let pattern =
                    self.pattern("section_spliter", &format!(r"[{space}]?{marker}[{space}]?\d+[{space}]?"))?;
                Kind::Sections(pattern, self.number("num_sections")?)
            }
            "detectable_format:json_format" => Kind::Json,
            "detectable_format:title" => Kind::Title,
            "combination:two_responses" => Kind::TwoResponses,
            "combination:repeat_prompt" => {
                Kind::RepeatPrompt(python::strip(self.text("prompt_to_repeat")?).to_lowercase())
            }
            "startend:end_checker" => Kind::End(python::strip(self.text("end_phrase")?).to_lowercase()),
            "change_case:capital_word_frequency" => {
                Kind::CapitalWords(self.bound("capital_relation", "capital_frequency")?)
            }
            "change_case:english_capital" => Kind::EnglishCase { upper: true },
            "change_case:english_lowercase" => Kind::EnglishCase { upper: false },
            "punctuation:no_comma" => Kind::NoComma,
            "startend:quotation" => Kind::Quotation,
            other => unreachable!("ifeval: {other} is in IDS and has no verifier"),
        })
    }

    fn first_word(&mut self) -> Result<Kind, IfevalError> {
        let paragraphs = self.number("num_paragraphs")?;
        let nth = self.number("nth_paragraph")?;
        let word = self.text("first_word")?.to_lowercase();
        if nth > paragraphs {
            return Err(invalid(self.id, "nth_paragraph", &nth.into(), "a number from 1 to num_paragraphs"));
        }
        Ok(Kind::ParagraphFirstWord { paragraphs, nth, word })
    }

    fn postscript(&mut self) -> Result<Kind, IfevalError> {
        let space = python::SPACE;
        let pattern = match python::strip(self.text("postscript_marker")?) {
            "P.P.S" => format!(r"p\.[{space}]?p\.[{space}]?s"),
            "P.S." => format!(r"p\.[{space}]?s\."),
            other => other.to_lowercase(),
        };
        Ok(Kind::Postscript(self.pattern("postscript_marker", &pattern)?))
    }

    fn get(&mut self, key: &'static str, expected: &'static str) -> Result<&'a Value, IfevalError> {
        self.asked.push(key);
        match self.map.get(key) {
            Some(value) if !is_absent(value) => Ok(value),
            _ => Err(IfevalError::Missing { id: self.id, key, expected }),
        }
    }

    fn text(&mut self, key: &'static str) -> Result<&'a str, IfevalError> {
        let value = self.get(key, "a text")?;
        value.as_str().ok_or_else(|| invalid(self.id, key, value, "a text"))
    }

    fn texts(&mut self, key: &'static str) -> Result<Vec<&'a str>, IfevalError> {
        const WANTED: &str = "a list of texts";
        let value = self.get(key, WANTED)?;
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| invalid(self.id, key, value, WANTED))
    }

    /// A count from 1; tables that know only one kind of number write it with a point (`3.0`).
    fn number(&mut self, key: &'static str) -> Result<u64, IfevalError> {
        const WANTED: &str = "a whole number from 1 to 4294967295";
        let value = self.get(key, WANTED)?;
        let number = value.as_f64().filter(|n| n.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(n));
        number.map(|n| n as u64).ok_or_else(|| invalid(self.id, key, value, WANTED))
    }

    fn bound(&mut self, relation: &'static str, number: &'static str) -> Result<Bound, IfevalError> {
        let n = self.number(number)?;
        match self.text(relation)? {
            "less than" => Ok(Bound::LessThan(n)),
            "at least" => Ok(Bound::AtLeast(n)),
            other => Err(invalid(self.id, relation, &other.into(), "\"less than\" or \"at least\"")),
        }
    }

    fn pattern(&self, key: &str, pattern: &str) -> Result<Regex, IfevalError> {
        Regex::new(pattern).map_err(|_| invalid(self.id, key, &pattern.into(), "a regular expression"))
    }

    fn patterns(&self, key: &str, words: Vec<&str>, form: fn(&str) -> String) -> Result<Vec<Regex>, IfevalError> {
        words.into_iter().map(|word| self.pattern(key, &form(word))).collect()
    }
}

/// A pattern for a word that stands alone. Python's word boundary does not count marks as parts of words, so for a plain
/// word it is written out; only whether there is a match matters.
fn whole_word(word: &str) -> String {
    static PLAIN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(&format!(r"\A[{}]+\z", python::WORD)).expect("a constant pattern"));
    if PLAIN.is_match(word) {
        let outside = format!("[^{}]", python::WORD);
        format!(r"(?:\A|{outside})(?i:{word})(?:{outside}|\z)")
    } else {
        format!(r"(?i)\b{word}\b")
    }
}

fn constant(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant pattern")
}

static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| constant(r"\[.*?\]"));
static STAR_BULLET: LazyLock<Regex> = LazyLock::new(|| constant(r"(?m)^[\s\x1c-\x1f]*\*[^*].*$"));
static DASH_BULLET: LazyLock<Regex> = LazyLock::new(|| constant(r"(?m)^[\s\x1c-\x1f]*-.*$"));
static HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| constant(r"\*[^\n*]*\*"));
static DOUBLE_HIGHLIGHT: LazyLock<Regex> = LazyLock::new(|| constant(r"\*\*[^\n*]*\*\*"));
static DIVIDER: LazyLock<Regex> = LazyLock::new(|| constant(r"[\s\x1c-\x1f]?\*\*\*[\s\x1c-\x1f]?"));
static TITLE: LazyLock<Regex> = LazyLock::new(|| constant(r"<<[^\n]+>>"));

fn at_least(pattern: &Regex, text: &str, n: u64) -> bool {
    pattern.find_iter(text).count() as u64 >= n
}

/// `None` for a letter is the row's mistake: see the page above.
fn letter_frequency(text: &str, letter: Option<char>, bound: Bound) -> bool {
    let text = text.to_lowercase();
    let holds = |letter: char| bound.holds(text.chars().filter(|c| *c == letter).count());
    match letter {
        Some(letter) => holds(letter),
        None => ('a'..='z').filter(|letter| holds(*letter)).count() > 13,
    }
}

/// Paragraphs between `***`; `None` if one that is neither first nor last is empty.
fn paragraphs(text: &str) -> Option<u64> {
    let parts: Vec<&str> = DIVIDER.split(text).collect();
    let mut count = parts.len() as u64;
    for (i, part) in parts.iter().enumerate() {
        if python::strip(part).is_empty() {
            if i != 0 && i != parts.len() - 1 {
                return None;
            }
            count -= 1;
        }
    }
    Some(count)
}

/// Whether there are so many paragraphs (between blank lines) and the nth starts with the word.
fn first_word(text: &str, paragraphs: u64, nth: u64, word: &str) -> bool {
    let parts: Vec<&str> = text.split("\n\n").collect();
    let count = parts.iter().filter(|part| !python::strip(part).is_empty()).count() as u64;
    if count != paragraphs || nth > count {
        return false;
    }
    let first = parts[nth as usize - 1].split(python::is_space).find(|s| !s.is_empty());
    let Some(first) = first else { return false };
    let first = first.trim_start_matches('\'').trim_start_matches('"');
    let end = first.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(first.len());
    // Letter by letter, so a capital sigma at the end is the same small letter as elsewhere.
    first[..end].chars().flat_map(char::to_lowercase).eq(word.chars())
}

fn highlights(text: &str) -> usize {
    let single = HIGHLIGHT.find_iter(text).filter(|m| !python::strip(m.as_str().trim_matches('*')).is_empty());
    let double = DOUBLE_HIGHLIGHT.find_iter(text).filter(|m| {
        let inside = m.as_str();
        let inside = inside.strip_prefix("**").unwrap_or(inside);
        !python::strip(inside.strip_suffix("**").unwrap_or(inside)).is_empty()
    });
    single.count() + double.count()
}

fn is_json(text: &str) -> bool {
    let mut text = python::strip(text);
    for fence in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(fence).unwrap_or(text);
    }
    json::is_valid(python::strip(text.strip_suffix("```").unwrap_or(text)))
}

/// Whether six asterisks separate two different responses.
fn two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").map(python::strip).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or(&[]);
    if inner.iter().any(|part| part.is_empty()) {
        return false;
    }
    let full: Vec<&&str> = parts.iter().filter(|part| !part.is_empty()).collect();
    full.len() == 2 && full[0] != full[1]
}
