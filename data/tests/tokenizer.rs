//! Ids against an independent source, round trips, streams, and learning twice.

use std::path::{Path, PathBuf};

use esker_data::tokenizer::BYTES_EOS;
use esker_data::{Tokenizer, TokenizerError, corpus};
use proptest::prelude::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn stories() -> Tokenizer {
    Tokenizer::from_file(&golden("stories260K.tokenizer.json")).unwrap()
}

/// A small BPE of the first addresses.
fn small() -> Tokenizer {
    Tokenizer::train_bpe(corpus::embedded().take(3).map(|a| a.text), 600).unwrap()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for &id in ids {
        text.extend(stream.push(id).unwrap());
    }
    text + &stream.finish().unwrap()
}

#[test]
fn stories260k_gives_the_ids_of_the_python_package() {
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        ids: Vec<u32>,
        ids_with_special: Vec<u32>,
    }
    let tokenizer = stories();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (512, Some(1), Some(2)));
    let cases = std::fs::read_to_string(golden("stories260K.ids.jsonl")).unwrap();
    assert!(cases.lines().count() >= 30);
    for line in cases.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.encode_prompt(&case.text).unwrap(), case.ids_with_special, "{:?}", case.text);
        let text = tokenizer.decode(&case.ids, true).unwrap();
        assert_eq!(streamed(&tokenizer, &case.ids), text, "streamed {:?}", case.text);
    }
}

/// *Bytes* and its tokenizer.json are one tokenizer.
#[test]
fn bytes_are_a_tokenizer_json_too() {
    let bytes = Tokenizer::bytes();
    assert!(matches!(Tokenizer::from_json(bytes.json(), "x").unwrap(), Tokenizer::Bytes));
    let spaced = [bytes.json(), b"\n"].concat();
    let json = Tokenizer::from_json(&spaced, "x").unwrap();
    assert!(matches!(json, Tokenizer::Json(_)));
    assert_eq!((json.vocab_size(), json.eos()), (257, Some(BYTES_EOS)));
    for text in ["", "Hello, world!\n\0", "naïve 日本 🏞\u{a0}\u{ad}", " \t \u{7f}"] {
        let ids = bytes.encode(text).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(json.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(json.decode(&ids, true).unwrap(), text);
        assert_eq!(json.bytes_of(&ids).unwrap(), text.len() as u64);
    }
    assert_eq!(bytes.decode(&[72, 105, BYTES_EOS], true).unwrap(), "Hi");
    assert_eq!(bytes.decode(&[72, 105, BYTES_EOS], false).unwrap(), "Hi<|endoftext|>");
    assert!(matches!(bytes.decode(&[257], true), Err(TokenizerError::Id { id: 257, .. })));
}

/// Learnt twice, on one thread and on several: the same bytes, and those kept for ever.
#[test]
fn learning_is_deterministic() {
    let learn = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(small)
    };
    let first = small();
    for threads in [1, 2, 5] {
        assert!(learn(threads).json() == first.json(), "{threads} threads");
    }
    let path = golden("trained.json");
    if !path.exists() && std::env::var_os("ESKER_BLESS").is_some() {
        std::fs::write(&path, first.json()).unwrap();
    }
    assert!(std::fs::read(&path).unwrap() == first.json(), "this build learns other merges");
    assert_eq!((first.vocab_size(), first.eos()), (600, Some(0)));
}

/// The whole embedded corpus, as the quickstart does it.
#[test]
fn learns_the_embedded_corpus() {
    let start = std::time::Instant::now();
    let tokenizer = Tokenizer::train_bpe(corpus::embedded().map(|a| a.text), 2048).unwrap();
    println!("2048 ids learnt in {:.2} s", start.elapsed().as_secs_f64());
    assert_eq!(tokenizer.vocab_size(), 2048);
    let address = corpus::embedded().last().unwrap();
    let ids = tokenizer.encode(&address.text).unwrap();
    assert!(ids.len() * 3 < address.text.len(), "{} ids for {} bytes", ids.len(), address.text.len());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), address.text);
    assert_eq!(tokenizer.bytes_of(&ids).unwrap(), address.text.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn byte_level_is_lossless(text in any::<String>()) {
        static SMALL: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
        for tokenizer in [&Tokenizer::bytes(), SMALL.get_or_init(small)] {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, true).unwrap(), &text);
            prop_assert_eq!(&streamed(tokenizer, &ids), &text);
            prop_assert_eq!(tokenizer.bytes_of(&ids).unwrap(), text.len() as u64);
        }
    }

    /// Any ids at all: the stream shows what decoding at once shows, and holds back little.
    #[test]
    fn streams_survive_broken_characters(ids in prop::collection::vec(0u32..257, 0..200)) {
        let bytes = Tokenizer::bytes();
        let mut stream = bytes.stream();
        let mut shown = String::new();
        for &id in &ids {
            shown.extend(stream.push(id).unwrap());
        }
        shown += &stream.finish().unwrap();
        prop_assert_eq!(shown, bytes.decode(&ids, true).unwrap());
    }
}

/// U+FFFD may stand in the text itself, so it does not tell by itself that something is missing.
#[test]
fn a_stream_shows_replacement_characters_of_the_text() {
    let small = small();
    for n in 0..40 {
        for tail in ["", "ଅ", "a🏞", "é"] {
            let text = format!("x{}{tail}", "\u{fffd}".repeat(n));
            for tokenizer in [&Tokenizer::bytes(), &small] {
                let ids = tokenizer.encode(&text).unwrap();
                assert_eq!(streamed(tokenizer, &ids), text, "{n} times, then {tail:?}");
            }
        }
    }
}

#[test]
fn a_stream_waits_for_whole_characters() {
    let bytes = Tokenizer::bytes();
    let mut stream = bytes.stream();
    let shown: Vec<Option<String>> = "é🏞".bytes().map(|b| stream.push(b.into()).unwrap()).collect();
    let some = |s: &str| Some(s.to_string());
    assert_eq!(shown, [None, some("é"), None, None, None, some("🏞")]);
    assert_eq!(stream.push(0xe2).unwrap(), None);
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn marks_come_from_the_config_beside() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), stories().json()).unwrap();
    let config = dir.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"bos_token": {"content": "</s>"}, "eos_token": "<s>"}"#).unwrap();
    let tokenizer = Tokenizer::from_file(dir.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(2), Some(1)));
    std::fs::write(&config, r#"{"eos_token": "<nowhere>"}"#).unwrap();
    let error = Tokenizer::from_file(dir.path()).unwrap_err().to_string();
    assert!(error.contains("<nowhere>") && error.contains("tokenizer_config.json"), "{error}");
    assert_eq!(stories().with_eos("<s>").unwrap().eos(), Some(1));
}
