//! Damaged .jsonl and .txt. A damaged document costs itself and, where what divides documents was hit, its neighbour:
//! all others are read as before, and the message names file and line.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use esker_data::text::{Kind, Records, TextOptions, parse};

use super::counting::{alone, peak_of};
use super::places;

/// Longest document that is read.
const LONGEST: usize = 1 << 12;
/// Memory that reading may take: a document and its line, twice for growth, and as much again for its text.
const MEMORY_MAX: usize = 8 * LONGEST;
/// Of one damaged file.
const NAME: &str = "damaged.file";

/// A valid file: its bytes, and where each document stands in it, with what divides it from the next.
struct Valid {
    kind: Kind,
    bytes: Vec<u8>,
    spans: Vec<Range<usize>>,
    texts: Vec<String>,
}

/// One document as it was read, or its message.
type Read = Result<String, String>;

/// How many files there were, and how many of them held a document that was refused.
#[derive(Default)]
struct Tally {
    files: usize,
    refused: usize,
}

impl Valid {
    fn new(kind: Kind) -> Valid {
        let texts: Vec<String> =
            (0..14).map(|i| format!("document {i}: \"é\" 日本 \u{1f3de}\n{}\n", "a line\n".repeat(i % 4))).collect();
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        for (i, text) in texts.iter().enumerate() {
            let start = bytes.len();
            match kind {
                Kind::Jsonl => {
                    // Escapes in one half of them, letters as they are in the other.
                    let mut json = serde_json::to_string(text).unwrap();
                    if i % 2 == 0 {
                        json = json.replace('é', "\\u00e9").replace('\u{1f3de}', "\\ud83c\\udfde");
                    }
                    bytes.extend(format!("{{\"id\":{i},\"text\":{json},\"n\":[1,{{\"a\":null}}]}}\n").into_bytes());
                }
                _ => bytes.extend(format!("{text}---\n").into_bytes()),
            }
            spans.push(start..bytes.len());
        }
        Valid { kind, bytes, spans, texts }
    }

    fn options() -> TextOptions {
        TextOptions { separator: Some("---".into()), max_document_bytes: LONGEST, ..TextOptions::default() }
    }

    /// All documents of `bytes`.
    fn read(&self, bytes: &[u8]) -> Vec<Read> {
        let options = Valid::options();
        let mut records = Records::new(bytes, self.kind, NAME.into(), &options);
        let (mut buffer, mut all) = (Vec::new(), Vec::new());
        while let Some(raw) = records.next(&mut buffer).expect("memory does not fail") {
            let read = match raw.fault {
                Some(fault) => Err(fault),
                None => parse(self.kind, &buffer[raw.bytes], &options).map(|(text, _)| text.into_owned()),
            };
            all.push(read.map_err(|fault| fault.at(self.kind, Path::new(NAME), raw.line, &options).to_string()));
            buffer.clear();
        }
        all
    }

    /// Reads a file whose damage lies in the documents `hit`; what became of these.
    #[track_caller]
    fn damaged(&self, what: &str, bytes: &[u8], hit: &BTreeSet<usize>, tally: &mut Tally) -> Vec<Read> {
        let own: usize = self.texts.iter().map(|t| t.len() + 128).sum();
        let (read, peak) = peak_of(|| std::panic::catch_unwind(|| self.read(bytes)));
        let read = read.unwrap_or_else(|_| panic!("{what}: panicked"));
        assert!(peak < MEMORY_MAX + own, "{what}: took {peak} bytes");
        let (first, last) = (*hit.first().unwrap(), *hit.last().unwrap());
        let behind = self.texts.len() - 1 - last;
        assert!(read.len() >= first + behind, "{what}: only {} documents", read.len());
        let is = |read: &[Read], texts: &[String]| read.iter().map(Result::as_ref).eq(texts.iter().map(Ok));
        assert!(is(&read[..first], &self.texts[..first]), "{what}: a document before it: {read:?}");
        let from = read.len() - behind;
        assert!(is(&read[from..], &self.texts[last + 1..]), "{what}: a document behind it: {read:?}");
        for message in read.iter().filter_map(|r| r.as_ref().err()) {
            let named = message.starts_with(&format!("{NAME}, line "));
            assert!(named && message.len() < 400, "{what}: says {message:?}");
        }
        tally.files += 1;
        tally.refused += usize::from(read.iter().any(Result::is_err));
        read[first..from].to_vec()
    }

    /// The documents that damage to `bytes` can reach: those it touches, and the next where it touches what divides them.
    fn hit(&self, bytes: Range<usize>) -> BTreeSet<usize> {
        let divider = if self.kind == Kind::Jsonl { 1 } else { 5 };
        let touches = |span: &Range<usize>| span.start < bytes.end && bytes.start < span.end;
        let all = self.spans.iter().enumerate().filter(|(_, span)| touches(span));
        let last = self.spans.len() - 1;
        all.flat_map(|(i, span)| [i, if bytes.end + divider > span.end { (i + 1).min(last) } else { i }]).collect()
    }
}

/// No UTF-8 has the byte 255: wherever it stands, some document is refused.
fn no_utf8(valid: &Valid, tally: &mut Tally) {
    for at in places(valid.bytes.len(), 240) {
        let mut bytes = valid.bytes.clone();
        bytes[at] = 255;
        let read = valid.damaged(&format!("255 at {at}"), &bytes, &valid.hit(at..at + 1), tally);
        let message = read.iter().find_map(|r| r.as_ref().err());
        assert!(message.is_some_and(|m| m.contains("not UTF-8 from byte ")), "255 at {at}: {read:?}");
    }
}

fn flipped(valid: &Valid, tally: &mut Tally) {
    for at in places(valid.bytes.len(), 300) {
        let mut bytes = valid.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        valid.damaged(&format!("bit {} of byte {at}", at % 8), &bytes, &valid.hit(at..at + 1), tally);
    }
}

/// What stands whole before the cut is read; of the rest a line of JSON is refused, unless only its end is missing.
fn cut(valid: &Valid, tally: &mut Tally) {
    for at in places(valid.bytes.len(), 200) {
        let read = valid.read(&valid.bytes[..at]);
        let whole = valid.spans.iter().filter(|span| span.end <= at).count();
        assert!(read[..whole].iter().map(Result::as_ref).eq(valid.texts[..whole].iter().map(Ok)), "cut to {at}");
        assert!(read.len() <= whole + 1, "cut to {at}: {read:?}");
        let span = &valid.spans[whole.min(valid.spans.len() - 1)];
        if valid.kind == Kind::Jsonl && (span.start + 1..span.end - 1).contains(&at) {
            assert!(read[whole].is_err(), "cut to {at}: {:?}", read[whole]);
        }
        tally.files += 1;
        tally.refused += usize::from(read.iter().any(Result::is_err));
    }
}

/// A document that swells is refused alone, and takes no memory.
fn swollen(valid: &Valid, tally: &mut Tally) {
    for at in places(valid.bytes.len(), 60) {
        for much in [LONGEST + 1, 40 * LONGEST] {
            let mut bytes = valid.bytes.clone();
            bytes.splice(at..at, std::iter::repeat_n(b'x', much));
            let read = valid.damaged(&format!("{much} bytes at {at}"), &bytes, &valid.hit(at..at + 1), tally);
            let message = read.iter().find_map(|r| r.as_ref().err());
            assert!(message.is_some_and(|m| m.contains("a document of more than 4096 bytes")), "{at}: {read:?}");
        }
    }
}

#[test]
fn txt() {
    let (_alone, valid, mut tally) = (alone(), Valid::new(Kind::Txt), Tally::default());
    assert!(valid.read(&valid.bytes).iter().map(Result::as_ref).eq(valid.texts.iter().map(Ok)));
    no_utf8(&valid, &mut tally);
    flipped(&valid, &mut tally);
    cut(&valid, &mut tally);
    swollen(&valid, &mut tally);
    println!("{} files, {} refused", tally.files, tally.refused);
    assert!(tally.refused >= 200, "{}", tally.refused);
}

#[test]
fn jsonl() {
    let (_alone, valid, mut tally) = (alone(), Valid::new(Kind::Jsonl), Tally::default());
    assert!(valid.read(&valid.bytes).iter().map(Result::as_ref).eq(valid.texts.iter().map(Ok)));
    no_utf8(&valid, &mut tally);
    flipped(&valid, &mut tally);
    cut(&valid, &mut tally);
    swollen(&valid, &mut tally);
    let deep = |open: &str| format!("{{\"text\":\"a\",\"n\":{}1}}", open.repeat(500));
    let lies = [
        "{}",
        "[]",
        "null",
        "\"text\"",
        "{\"text\":null}",
        "{\"text\":7}",
        "{\"text\":true}",
        "{\"text\":[\"a\"]}",
        "{\"text\":{\"text\":\"a\"}}",
        "{\"Text\":\"a\"}",
        "{\"text\":\"a\",\"text\":\"b\"}",
        "{\"text\":\"a\"} {\"text\":\"b\"}",
        "{\"text\":\"a\"},",
        "{\"text\":\"a\",}",
        "{'text':'a'}",
        "{\"text\":\"a",
        "{\"text\":\"\\ud83c\"}",
        "{\"text\":\"\\udfde\\ud83c\"}",
        "{\"text\":\"\\u00g0\"}",
        "{\"text\":\"\\x41\"}",
        "{\"text\":\"tab\there\"}",
        "{\"text\":\"nul\u{0}here\"}",
        "{\"text\":\"a\",\"n\":NaN}",
        "{\"text\":\"a\",\"n\":01}",
        "{\"text\":\"a\",\"n\":1e}",
        "{\"text\":\"a\" \"n\":1}",
        "\u{feff}{\"text\":\"a\"}",
        &deep("["),
        &deep("{\"a\":"),
    ];
    for i in [1, 6, 13] {
        for lie in lies {
            let span = valid.spans[i].clone();
            let bytes = [&valid.bytes[..span.start], lie.as_bytes(), b"\n", &valid.bytes[span.end..]].concat();
            let read = valid.damaged(lie, &bytes, &BTreeSet::from([i]), &mut tally);
            let [Err(message)] = &read[..] else { panic!("{lie:?} was read as {read:?}") };
            assert!(message.starts_with(&format!("{NAME}, line {}: ", i + 1)), "{lie:?}: {message}");
        }
    }
    println!("{} files, {} refused", tally.files, tally.refused);
    assert!(tally.refused >= 400, "{}", tally.refused);
}
