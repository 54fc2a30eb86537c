//! Two methods of Python's `str` that prompts are made with, where Rust's differ.
//!
//! `strip()` also takes U+001C to U+001F. `capitalize()` puts the first character into title case, which is not always
//! its upper case (ß becomes Ss, ǆ becomes ǅ), and all others into lower case, Greek final sigma by its place.
//! Source: the Python library reference, "Text Sequence Type"; Unicode's SpecialCasing.txt.

/// `str.strip()`.
pub(super) fn strip(s: &str) -> &str {
    s.trim_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// `str.lstrip()`.
pub(super) fn lstrip(s: &str) -> &str {
    s.trim_start_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
}

/// `str.capitalize()`.
pub(super) fn capitalize(s: &str) -> String {
    let Some(first) = s.chars().next() else { return String::new() };
    let mut out = title(first);
    // The whole is lowered, so that a sigma sees what stands before it; then the first character's part is passed over.
    out.extend(s.to_lowercase().chars().skip(first.to_lowercase().count()));
    out
}

/// Unicode's full title case of a character.
fn title(c: char) -> String {
    let at = |x: u32| char::from_u32(x).expect("text: a constant character").to_string();
    let x = c as u32;
    match x {
        // Latin pairs: upper, title, lower.
        0x1c4..=0x1c6 => at(0x1c5),
        0x1c7..=0x1c9 => at(0x1c8),
        0x1ca..=0x1cc => at(0x1cb),
        0x1f1..=0x1f3 => at(0x1f2),
        // Georgian has capitals for whole words only.
        0x10d0..=0x10fa | 0x10fd..=0x10ff => c.to_string(),
        // Greek with iota below: one character in title case.
        0x1f80..=0x1faf => at(x | 8),
        0x1fb3 | 0x1fc3 | 0x1ff3 => at(x + 9),
        0x1fbc | 0x1fcc | 0x1ffc => c.to_string(),
        0x1fb2 | 0x1fb4 | 0x1fb7 | 0x1fc2 | 0x1fc4 | 0x1fc7 | 0x1ff2 | 0x1ff4 | 0x1ff7 => {
            c.to_uppercase().map(|u| if u == '\u{399}' { '\u{345}' } else { u }).collect()
        }
        // Ligatures: the first letter up, the others down.
        0xdf | 0x587 | 0xfb00..=0xfb06 | 0xfb13..=0xfb17 => {
            let mut up = c.to_uppercase();
            let first = up.next().into_iter();
            first.chain(up.flat_map(char::to_lowercase)).collect()
        }
        _ => c.to_uppercase().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From CPython 3.11.
    #[test]
    fn strings_become_what_python_makes_of_them() {
        assert_eq!(strip("\x1f\u{a0} a b \u{2003}\n"), "a b");
        assert_eq!(lstrip("\x1f A "), "A ");
        for (from, to) in [
            ("", ""),
            ("he Said THAT", "He said that"),
            ("éCLAIR", "Éclair"),
            ("ßA", "Ssa"),
            ("ǆX", "ǅx"),
            ("ﬁNE", "Fine"),
            ("ŉA", "ʼNa"),
            ("ΑΣ ΣΑΣ", "Ας σας"),
            ("İI", "İi"),
            ("აბ", "აბ"),
            ("ᾀΑ", "ᾈα"),
            ("1ST", "1st"),
        ] {
            assert_eq!(capitalize(from), to, "{from:?}");
        }
    }
}
