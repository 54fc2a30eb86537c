//! The tokens of an answer in LaTeX.
//!
//! Spacing, sizes of brackets and dollars are dropped, synonyms become one command. In the full dialect letters lose
//! their case and `\text{...}` is one token; in the strict one it is a command like any other. Digits take in groups of
//! three after commas (`1,000`), in the full dialect only where the first group has at most three digits.

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Number(String),
    Letter(char),
    Command(String),
    /// the inside of `\text{...}` and its kin
    Words(String),
    Sign(char),
}

pub(super) fn tokens(text: &str, strict: bool) -> Vec<Token> {
    let mut out = Vec::new();
    let chars: Vec<char> = text.chars().collect();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        i += 1;
        match c {
            '\\' => {
                let start = i;
                while i < chars.len() && chars[i].is_ascii_alphabetic() {
                    i += 1;
                }
                if i == start && i < chars.len() {
                    i += 1;
                }
                command(chars[start..i].iter().collect(), &chars, &mut i, strict, &mut out);
            }
            '0'..='9' => number(&chars, &mut i, strict, &mut out),
            '.' if !strict && chars.get(i).is_some_and(char::is_ascii_digit) => {
                number(&chars, &mut i, strict, &mut out)
            }
            c if c.is_whitespace() || c == '$' => {}
            c if c.is_ascii_alphabetic() => out.push(Token::Letter(if strict { c } else { c.to_ascii_lowercase() })),
            '×' => out.push(Token::Command("times".into())),
            '÷' => out.push(Token::Command("div".into())),
            'π' => out.push(Token::Command("pi".into())),
            '−' => out.push(Token::Sign('-')),
            '°' if !strict => {}
            c if c.is_ascii() => out.push(Token::Sign(c)),
            _ => out.push(Token::Sign('\u{fffd}')),
        }
    }
    out
}

/// Digits from the place before `i`, with groups of three after commas, and a fraction.
fn number(chars: &[char], i: &mut usize, strict: bool, out: &mut Vec<Token>) {
    let digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
    let mut text = String::new();
    *i -= 1;
    let start = *i;
    while digit(*i) {
        text.push(chars[*i]);
        *i += 1;
    }
    let mut end = *i;
    while (strict || (1..=3).contains(&(*i - start)) || end > *i)
        && chars.get(end) == Some(&',')
        && (1..=3).all(|k| digit(end + k))
        && !digit(end + 4)
    {
        text.extend(&chars[end + 1..end + 4]);
        end += 4;
    }
    *i = end;
    if chars.get(*i) == Some(&'.') && digit(*i + 1) {
        text.push('.');
        *i += 1;
        while digit(*i) {
            text.push(chars[*i]);
            *i += 1;
        }
    }
    out.push(Token::Number(text));
}

/// One command: dropped, replaced by what it means, or kept.
fn command(name: String, chars: &[char], i: &mut usize, strict: bool, out: &mut Vec<Token>) {
    const WORDS: [&str; 7] = ["text", "mbox", "mathrm", "textbf", "textit", "mathbf", "operatorname"];
    match name.as_str() {
        "left" | "right" | "displaystyle" | "quad" | "qquad" | "big" | "Big" | "bigl" | "bigr" | "limits" => {}
        "," | ";" | ":" | "!" | " " => {}
        "dfrac" | "tfrac" | "cfrac" => out.push(Token::Command("frac".into())),
        "lvert" | "rvert" | "vert" | "mid" => out.push(Token::Sign('|')),
        "$" if !strict => {}
        // Neither reader knows it.
        "%" => out.push(Token::Sign('\u{fffd}')),
        "cdot" | "ast" | "times" => out.push(Token::Command("times".into())),
        _ if !strict && WORDS.contains(&name.as_str()) && chars.get(*i) == Some(&'{') => {
            let inside: String = chars[*i + 1..].iter().take_while(|c| **c != '}').collect();
            *i = (*i + 2 + inside.chars().count()).min(chars.len());
            out.push(Token::Words(inside.trim().to_lowercase()));
        }
        _ => out.push(Token::Command(name)),
    }
}
