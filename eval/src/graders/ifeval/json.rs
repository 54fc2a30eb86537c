//! Whether a text is JSON to Python's `json.loads`.
//!
//! That is RFC 8259 and three words more, `NaN`, `Infinity` and `-Infinity`; escapes of half a surrogate pair pass,
//! control characters in strings do not, nor integers of more than 4300 digits. What nests deeper than [`DEPTH_MAX`] is
//! refused: there Python gives up with an error of its own.

/// Python's limit on recursion is 1000 calls, of which a few are taken.
const DEPTH_MAX: usize = 990;
/// Python's limit on the digits of an integer read from text.
const DIGITS_MAX: usize = 4300;

/// Whether the text is one JSON value, with nothing but white space around.
pub(super) fn is_valid(text: &str) -> bool {
    let mut r = Reader { rest: text.as_bytes() };
    r.document().is_some() && r.space().is_empty()
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn space(&mut self) -> &'a [u8] {
        let skip = self.rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.rest = &self.rest[skip..];
        self.rest
    }

    fn take(&mut self, head: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(head);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// A value, without recursion: `open` holds the closing bytes of what is open.
    fn document(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            match *self.rest.first()? {
                bracket @ (b'[' | b'{') => {
                    self.rest = &self.rest[1..];
                    self.space();
                    let close = bracket + 2;
                    if !self.take(&[close]) {
                        if open.len() == DEPTH_MAX {
                            return None;
                        }
                        open.push(close);
                        if close == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value ended: close what closes, until one asks for another value.
            loop {
                let Some(&close) = open.last() else { return Some(()) };
                self.space();
                if self.take(&[close]) {
                    open.pop();
                } else if self.take(b",") {
                    if close == b'}' {
                        self.space();
                        self.key()?;
                    }
                    break;
                } else {
                    return None;
                }
            }
        }
    }

    /// A key and its colon.
    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.space();
        self.take(b":").then_some(())
    }

    fn scalar(&mut self) -> Option<()> {
        const WORDS: [&[u8]; 6] = [b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity"];
        if self.rest.first() == Some(&b'"') {
            return self.string();
        }
        if WORDS.iter().any(|word| self.take(word)) {
            return Some(());
        }
        self.number()
    }

    fn string(&mut self) -> Option<()> {
        if !self.take(b"\"") {
            return None;
        }
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                b'"' => return Some(()),
                0..=0x1f => return None,
                b'\\' => {
                    let (&escape, rest) = self.rest.split_first()?;
                    self.rest = match escape {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => rest,
                        b'u' if rest.len() >= 4 && rest[..4].iter().all(u8::is_ascii_hexdigit) => &rest[4..],
                        _ => return None,
                    };
                }
                _ => {}
            }
        }
    }

    fn digits(&mut self) -> usize {
        let count = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        count
    }

    fn number(&mut self) -> Option<()> {
        self.take(b"-");
        let whole = if self.take(b"0") { 1 } else { self.digits() };
        if whole == 0 {
            return None;
        }
        // A point or an exponent without digits after it is no part of the number: what follows then fails.
        let mut integer = true;
        let before = self.rest;
        if self.take(b".") {
            if self.digits() > 0 {
                integer = false;
            } else {
                self.rest = before;
            }
        }
        let before = self.rest;
        if self.take(b"e") || self.take(b"E") {
            if !self.take(b"+") {
                self.take(b"-");
            }
            if self.digits() > 0 {
                integer = false;
            } else {
                self.rest = before;
            }
        }
        (!integer || whole <= DIGITS_MAX).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_takes() {
        for good in ["{}", "[]", " {\"a\": [1, -2.5e+3, NaN, -Infinity, \"\\ud800\", null]} ", "\"\"", "0", "[[],{}]"] {
            assert!(is_valid(good), "{good}");
        }
        let deep = "[".repeat(100_000);
        let long = "1".repeat(4301);
        for bad in [
            "",
            "{",
            "[1,]",
            "{\"a\"}",
            "{a: 1}",
            "\"\n\"",
            "01",
            "1.",
            "1 2",
            "'a'",
            "+1",
            "\"\\x\"",
            "\u{feff}1",
            &deep,
            &long,
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
