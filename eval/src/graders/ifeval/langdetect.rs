//! Which language a text is in: naive Bayes over n-grams of one to three characters, 55 languages.
//!
//! ```text
//! p_l ← 1/55;  then, n-grams w of the text drawn at random:   p_l ← p_l · (α/10000 + P(w | l))
//! every fifth: p normalised; stop when one language has more than 0.99999, or after 1000
//! ```
//!
//! Seven such trials are averaged, each with its α = 0.5 + 0.05·N(0, 1); the likeliest language above 0.1 is the
//! answer. Drawing is Python's `Random(0)`: the harness leaves the generator unseeded, so near ties differ between its
//! own runs, and seed 0 is one of them. Addresses are dropped first, at most 10,000 characters are read, Latin letters
//! are dropped from texts that are mostly not Latin, characters are brought to one form, and words in capitals have no
//! n-grams beyond their first letter.
//!
//! Profiles: those of langdetect 1.0.9 without the n-grams that no text can show, P(w | l) rounded to 2^(-q/14), which
//! moves it by 2.5 % at most (`langdetect.gz`, its format in `tools/make_ifeval_data.py`).
//! Source: Nakatani Shuyo 2010, language-detection (Apache-2.0); langdetect 1.0.9, its port to Python (MIT), read for
//! what they mean.

use std::collections::HashMap;
use std::io::Read;
use std::sync::LazyLock;

use crate::tasks::Random;

/// Characters of a text that are read.
const CHARS_MAX: usize = 10_000;
const TRIALS: usize = 7;

/// A text without a single known n-gram: a number, or words in capitals of two letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoFeatures;

/// The code of a text's language (`en`, `zh-cn`), or `unknown` where none is likely.
pub(super) fn detect(text: &str) -> Result<&'static str, NoFeatures> {
    let model = &*MODEL;
    let grams = model.grams(&cleaned(text));
    if grams.is_empty() {
        return Err(NoFeatures);
    }
    let mut random = Random::new(0);
    let mut mean = vec![0.0; model.languages.len()];
    let mut drawn = (0.0, 0.0);
    for i in 0..TRIALS {
        // Every second number was made with the one before.
        drawn = if i % 2 == 0 { random.gauss_pair() } else { (drawn.1, 0.0) };
        let alpha = 0.5 + drawn.0 * 0.05;
        let p = model.trial(&grams, alpha, &mut random);
        mean.iter_mut().zip(&p).for_each(|(m, p)| *m += p / TRIALS as f64);
    }
    let best = (0..mean.len()).max_by(|&a, &b| mean[a].total_cmp(&mean[b])).expect("there are languages");
    Ok(if mean[best] > 0.1 { model.languages[best] } else { "unknown" })
}

struct Model {
    languages: Vec<&'static str>,
    /// n-gram (unused places are NUL) to its place in `spans`
    places: HashMap<[char; 3], usize>,
    /// ranges of `shares`
    spans: Vec<(usize, usize)>,
    /// language and P(n-gram | language)
    shares: Vec<(u8, f64)>,
    /// ideographs to the one that stands for them
    same: HashMap<char, char>,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&include_bytes!("langdetect.gz")[..])
        .read_to_end(&mut bytes)
        .expect("langdetect.gz is whole: it is part of the program");
    Model::read(bytes.leak()).expect("langdetect.gz is as tools/make_ifeval_data.py writes it")
});

impl Model {
    fn read(bytes: &'static [u8]) -> Option<Model> {
        let end = bytes.windows(2).position(|pair| pair == b"\n\n")?;
        let (mut languages, mut same, mut grams) = (Vec::new(), HashMap::new(), Vec::new());
        for line in std::str::from_utf8(&bytes[..end]).ok()?.split('\n') {
            let (kind, value) = (line.get(..1)?, line.get(2..)?);
            let mut chars = value.chars();
            match kind {
                "l" => languages = value.split(' ').collect(),
                "k" => {
                    let first = value.chars().next()?;
                    same.extend(chars.map(|c| (c, first)));
                }
                _ => {
                    let mut gram = ['\0'; 3];
                    let last = kind.parse::<usize>().ok()? - 1;
                    for place in &mut gram[..last] {
                        *place = chars.next()?;
                    }
                    grams.extend(chars.map(|c| {
                        gram[last] = c;
                        gram
                    }));
                }
            }
        }
        let (masks, steps) = bytes[end + 2..].split_at_checked(7 * grams.len())?;
        let mask = |i: usize| masks[7 * i..7 * i + 7].iter().rev().fold(0u64, |m, &b| m << 8 | u64::from(b));
        let mut spans = Vec::with_capacity(grams.len());
        let mut total = 0;
        for i in 0..grams.len() {
            let count = mask(i).count_ones() as usize;
            spans.push((total, total + count));
            total += count;
        }
        let mut shares = vec![(0, 0.0); total];
        let mut filled: Vec<usize> = spans.iter().map(|span| span.0).collect();
        let mut steps = steps.iter();
        for language in 0..languages.len() {
            for (i, at) in filled.iter_mut().enumerate() {
                if mask(i) >> language & 1 == 1 {
                    shares[*at] = (language as u8, (-f64::from(*steps.next()?) / 14.0).exp2());
                    *at += 1;
                }
            }
        }
        let places = grams.into_iter().enumerate().map(|(i, gram)| (gram, i)).collect();
        Some(Model { languages, places, spans, shares, same })
    }

    /// One trial: the languages' probabilities.
    fn trial(&self, grams: &[usize], alpha: f64, random: &mut Random) -> Vec<f64> {
        let mut p = vec![1.0 / self.languages.len() as f64; self.languages.len()];
        let weight = alpha / 10_000.0;
        for i in 0..=1000 {
            let (start, end) = self.spans[grams[random.below(grams.len())]];
            let mut shares = self.shares[start..end].iter().peekable();
            for (language, p) in p.iter_mut().enumerate() {
                let share = shares.next_if(|s| usize::from(s.0) == language).map_or(0.0, |s| s.1);
                *p *= weight + share;
            }
            if i % 5 == 0 {
                let sum: f64 = p.iter().sum();
                p.iter_mut().for_each(|p| *p /= sum);
                if p.iter().copied().fold(0.0, f64::max) > 0.99999 {
                    break;
                }
            }
        }
        p
    }

    /// The known n-grams of a text, in its order.
    fn grams(&self, text: &[char]) -> Vec<usize> {
        let mut out = Vec::new();
        // The last characters, at most three; a space starts a word.
        let mut last = vec![' '];
        let mut capitals = false;
        for &c in text {
            let c = self.normal(c);
            let before = *last.last().expect("never empty");
            if before == ' ' {
                last = vec![' '];
                capitals = false;
                if c != ' ' {
                    last.push(c);
                }
            } else {
                if last.len() >= 3 {
                    last.remove(0);
                }
                last.push(c);
            }
            if before != ' ' || c != ' ' {
                capitals = c.is_uppercase() && (capitals || before.is_uppercase());
            }
            if capitals {
                continue;
            }
            for n in 1..=last.len() {
                let mut gram = ['\0'; 3];
                gram[..n].copy_from_slice(&last[last.len() - n..]);
                out.extend(self.places.get(&gram));
            }
        }
        out
    }

    /// The one form of a character: what is no letter is a space, syllables of one script are one.
    fn normal(&self, c: char) -> char {
        match c {
            '\0'..='\x7f' if !c.is_ascii_alphabetic() => ' ',
            '\u{a0}' | '\u{ab}' | '\u{b0}' | '\u{bb}' | '\u{2000}'..='\u{206f}' => ' ',
            '\u{219}' => '\u{15f}',
            '\u{21b}' => '\u{163}',
            '\u{6cc}' => '\u{64a}',
            '\u{1ea0}'..='\u{1eff}' => '\u{1ec3}',
            '\u{3040}'..='\u{309f}' => '\u{3042}',
            '\u{30a0}'..='\u{30ff}' => '\u{30a2}',
            '\u{3100}'..='\u{312f}' | '\u{31a0}'..='\u{31bf}' => '\u{3105}',
            '\u{4e00}'..='\u{9fff}' => *self.same.get(&c).unwrap_or(&c),
            '\u{ac00}'..='\u{d7af}' => '\u{ac00}',
            _ => c,
        }
    }
}

/// The characters that count: no addresses, single spaces, and no Latin in a text that is mostly something else.
fn cleaned(text: &str) -> Vec<char> {
    let mut kept: Vec<char> = Vec::new();
    let text = without_addresses(text, scheme_end, |c| c.is_ascii_alphanumeric() || "-_.?&~;+=/#".contains(c));
    let text = composed(without_mail(&text));
    let mut before = '\0';
    for &c in text.iter().take(CHARS_MAX) {
        if c != ' ' || before != ' ' {
            kept.push(c);
        }
        before = c;
    }
    let latin = kept.iter().filter(|c| ('A'..='z').contains(*c)).count();
    let other = kept.iter().filter(|&&c| c >= '\u{300}' && !('\u{1e00}'..='\u{1eff}').contains(&c)).count();
    if latin * 2 < other {
        kept.retain(|c| !('A'..='z').contains(c));
    }
    kept
}

/// The end of `http://` or `https://` at the start of a text.
fn scheme_end(s: &str) -> Option<usize> {
    ["https://", "http://"].iter().find(|scheme| s.starts_with(**scheme)).map(|scheme| scheme.len())
}

/// A text with a space for each web address of up to 2076 characters.
fn without_addresses(text: &str, scheme: fn(&str) -> Option<usize>, part: fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("http") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = scheme(rest)
            .map_or((0, 0), |head| (head, rest[head..].chars().take(2076).take_while(|&c| part(c)).count()));
        if len.1 > 0 {
            out.push(' ');
            rest = &rest[len.0 + len.1..];
        } else {
            out.push('h');
            rest = &rest[1..];
        }
    }
    out + rest
}

/// A text with a space for each mail address: up to 64 characters, `@`, up to 255, up to 255 (which may hold points).
fn without_mail(text: &str) -> Vec<char> {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let dotted = |c: char| name(c) || c == '.';
    let chars: Vec<char> = text.chars().collect();
    let mut out: Vec<char> = Vec::with_capacity(chars.len());
    // Characters of `out` that a later address may not take back.
    let mut fixed = 0;
    let mut i = 0;
    while i < chars.len() {
        let mut end = i;
        if chars[i] == '@' {
            let before = out[fixed..].iter().rev().take(64).take_while(|&&c| dotted(c)).count();
            let host = chars[i + 1..].iter().take(255).take_while(|&&c| name(c)).count();
            let tail = chars[i + 1 + host..].iter().take(255).take_while(|&&c| dotted(c)).count();
            if before > 0 && host > 0 && host + tail > 1 {
                out.truncate(out.len() - before);
                end = i + 1 + host + tail;
            }
        }
        if end > i {
            out.push(' ');
            fixed = out.len();
            i = end;
        } else {
            out.push(chars[i]);
            i += 1;
        }
    }
    out
}

/// Vietnamese letters followed by a combining mark, made one character.
fn composed(text: Vec<char>) -> Vec<char> {
    const PLAIN: &str = "AEIOUYaeiouyÂÊÔâêôĂăƠơƯư";
    const MARKED: [(char, &str); 5] = [
        ('\u{300}', "ÀÈÌÒÙỲàèìòùỳẦỀỒầềồẰằỜờỪừ"),
        ('\u{301}', "ÁÉÍÓÚÝáéíóúýẤẾỐấếốẮắỚớỨứ"),
        ('\u{303}', "ÃẼĨÕŨỸãẽĩõũỹẪỄỖẫễỗẴẵỠỡỮữ"),
        ('\u{309}', "ẢẺỈỎỦỶảẻỉỏủỷẨỂỔẩểổẲẳỞởỬử"),
        ('\u{323}', "ẠẸỊỌỤỴạẹịọụỵẬỆỘậệộẶặỢợỰự"),
    ];
    let mut out: Vec<char> = Vec::with_capacity(text.len());
    // A letter that took one mark takes no second.
    let mut free = false;
    for c in text {
        let marked = MARKED.iter().find(|(mark, _)| *mark == c).map(|(_, letters)| *letters);
        let letter = out.last().filter(|_| free).and_then(|last| PLAIN.chars().position(|p| p == *last));
        free = true;
        match (marked, letter) {
            (Some(letters), Some(at)) => {
                out.pop();
                out.extend(letters.chars().nth(at));
                free = false;
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_of_short_texts() {
        assert_eq!(detect("This is a plain sentence, and nothing else."), Ok("en"));
        assert_eq!(detect("Das ist ein ganz gewöhnlicher Satz, weiter nichts."), Ok("de"));
        assert_eq!(
            detect(
                "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947} \u{906}\u{92a} \u{915}\u{948}\u{938}\u{947} \u{939}\u{948}\u{902}"
            ),
            Ok("hi")
        );
        assert_eq!(detect("12 345 @@"), Err(NoFeatures));
    }

    #[test]
    fn addresses_and_marks() {
        let clean = |s: &str| cleaned(s).into_iter().collect::<String>();
        assert_eq!(clean("see http://a.b/c?d=1 or https:// or x.y@a-b.cd, a@b"), "see or https:// or , a@b");
        assert_eq!(clean("Vie\u{302}\u{323}t a\u{301}"), "Vie\u{302}\u{323}t á");
    }
}
