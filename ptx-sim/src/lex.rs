//! PTX text to tokens.
//!
//! PTX is a line of dotted words, operands and semicolons inside braces. Debug directives (`.loc`, `.file`, `.section`)
//! say nothing about what runs and end with the line or with their own braces, so they are dropped here; all else
//! reaches the parser, which refuses what it does not know.
//!
//! Source: PTX ISA 9.0, chapter 4 (syntax).

use crate::parse::ParseError;

/// One token and the line it stands on, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub kind: Tok,
    pub line: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tok {
    /// A word: a name, a register, a directive or a whole dotted opcode.
    Word(String),
    /// An integer's bits, or a float's from `0f` and `0d` with the number of bits it is written in.
    Int(u64),
    Float {
        bits: u64,
        wide: bool,
    },
    Text(String),
    /// `{ } ( ) [ ] < > , ; : | + - = @ !`
    Mark(char),
}

fn of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// Cuts `text` into tokens.
pub(crate) fn tokens(name: &str, text: &str) -> Result<Vec<Token>, ParseError> {
    let mut out = Vec::new();
    let mut lines = Lines { name, text, at: 0, line: 1 };
    while let Some(c) = lines.peek() {
        let line = lines.line;
        match c {
            c if c.is_whitespace() => lines.skip(1),
            '/' if lines.rest().starts_with("//") => lines.skip_line(),
            '/' if lines.rest().starts_with("/*") => match lines.rest().find("*/") {
                Some(n) => lines.skip(n + 2),
                None => return Err(lines.error("a comment that never ends")),
            },
            '"' => {
                let body = &lines.rest()[1..];
                let n = body.find('"').ok_or_else(|| lines.error("a text that never ends"))?;
                out.push(Token { kind: Tok::Text(body[..n].to_string()), line });
                lines.skip(n + 2);
            }
            c if c.is_ascii_digit() => {
                let word = lines.word();
                let kind = number(&word).ok_or_else(|| lines.error(&format!("`{word}` is not a number")))?;
                out.push(Token { kind, line });
            }
            c if of_word(c) => {
                let word = lines.word();
                match word.as_str() {
                    ".loc" | ".file" => lines.skip_line(),
                    ".section" => match lines.rest().find('}') {
                        Some(n) => lines.skip(n + 1),
                        None => return Err(lines.error("a section that never ends")),
                    },
                    _ => out.push(Token { kind: Tok::Word(word), line }),
                }
            }
            '{' | '}' | '(' | ')' | '[' | ']' | '<' | '>' | ',' | ';' | ':' | '|' | '+' | '-' | '=' | '@' | '!' => {
                out.push(Token { kind: Tok::Mark(c), line });
                lines.skip(1);
            }
            c => return Err(lines.error(&format!("the character `{c}`, which PTX does not have"))),
        }
    }
    Ok(out)
}

struct Lines<'a> {
    name: &'a str,
    text: &'a str,
    at: usize,
    line: u32,
}

impl Lines<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Goes on by `n` bytes, or to the end of the character they cut.
    fn skip(&mut self, n: usize) {
        let mut end = (self.at + n).min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        self.line += self.text[self.at..end].matches('\n').count() as u32;
        self.at = end;
    }

    fn skip_line(&mut self) {
        let n = self.rest().find('\n').unwrap_or(self.rest().len());
        self.skip(n);
    }

    /// The word that starts here; `::` belongs to it, as in `shared::cta`, a lone `:` does not.
    fn word(&mut self) -> String {
        let rest = self.rest();
        let mut n = 0;
        loop {
            let run = rest[n..].find(|c| !of_word(c)).unwrap_or(rest.len() - n);
            n += run;
            if rest[n..].starts_with("::") && rest[n + 2..].starts_with(of_word) {
                n += 2;
            } else {
                break;
            }
        }
        let word = rest[..n].to_string();
        self.skip(n);
        word
    }

    fn error(&self, what: &str) -> ParseError {
        let text = self.text.lines().nth(self.line as usize - 1).unwrap_or("").trim().to_string();
        ParseError { file: self.name.to_string(), line: self.line, what: what.to_string(), text }
    }
}

/// A literal: `12`, `0x1F`, `12U`, `0f3F800000`, `0d3FF0000000000000`.
fn number(word: &str) -> Option<Tok> {
    if let Some(hex) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return Some(Tok::Float { bits: u64::from(u32::from_str_radix(hex, 16).ok()?), wide: false });
    }
    if let Some(hex) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return Some(Tok::Float { bits: u64::from_str_radix(hex, 16).ok()?, wide: true });
    }
    if word.contains('.') {
        // The `9.0` of `.version`; the compilers at hand write no decimal float.
        return Some(Tok::Word(word.to_string()));
    }
    let digits = word.trim_end_matches('U');
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok().map(Tok::Int);
    }
    digits.parse().ok().map(Tok::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Tok> {
        tokens("t", text).unwrap().into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn words_numbers_marks() {
        let got = kinds("ld.shared::cta.u32 %r1, [%rd2+-4]; // tail\n@!%p1 bra $L_1;");
        let word = |s: &str| Tok::Word(s.into());
        let mark = Tok::Mark;
        let want = vec![
            word("ld.shared::cta.u32"),
            word("%r1"),
            mark(','),
            mark('['),
            word("%rd2"),
            mark('+'),
            mark('-'),
            Tok::Int(4),
            mark(']'),
            mark(';'),
            mark('@'),
            mark('!'),
            word("%p1"),
            word("bra"),
            word("$L_1"),
            mark(';'),
        ];
        assert_eq!(got, want);
        assert_eq!(kinds("L1: x"), [word("L1"), mark(':'), word("x")]);
        assert_eq!(
            kinds("0f3F800000 0xffU 0d3FF0000000000000"),
            [
                Tok::Float { bits: 0x3F80_0000, wide: false },
                Tok::Int(255),
                Tok::Float { bits: 0x3FF0_0000_0000_0000, wide: true }
            ]
        );
    }

    #[test]
    fn debug_lines_go() {
        assert_eq!(kinds(".loc 1 2 3, function_name $L, inlined_at 1\n.file 1 \"a b\"\nret;").len(), 2);
        assert_eq!(kinds(".section .debug_str {\n.b8 0\n}\nret;").len(), 2);
    }

    #[test]
    fn faults_name_the_line() {
        let e = tokens("k.ptx", "ret;\n\"open").unwrap_err();
        assert_eq!((e.line, e.file.as_str()), (2, "k.ptx"));
        assert!(tokens("k", "mov 0fxyz").is_err() && tokens("k", "§").is_err() && tokens("k", "/* x").is_err());
    }
}
