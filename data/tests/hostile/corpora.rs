//! The corpora of `fuzz/`, and some thousand more made here from valid ones, through the functions that the fuzz
//! targets call.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};

#[path = "../../fuzz/entries"]
mod entries {
    pub mod formats;
    pub mod manifest;
    pub mod packed;
    #[cfg(feature = "parquet")]
    pub mod parquet;
    pub mod shard;
    pub mod text;
    pub mod tokenizer;
}

use super::counting::{calls, peak_of};
use super::places;
use esker_data::{Batch, Check, Loader, LoaderConfig, TokenSet, Tokenizer};

/// Memory that no file of this test may make a reader exceed.
const MEMORY_MAX: usize = 32 << 20;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// What went wrong so far in the test that is [`alone`].
static FAULTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs one case; its outcome. The message of a refusal names the file and fits a screen.
fn run(name: &str, bytes: &[u8], entry: fn(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let panics = PANICS.load(SeqCst);
    let (outcome, peak) = peak_of(|| std::panic::catch_unwind(|| entry(bytes)));
    let panics = PANICS.load(SeqCst) - panics;
    let fault = |what: String| FAULTS.lock().unwrap().push(format!("{name}: {what}"));
    if panics > 0 {
        fault(format!("{panics} panics"));
    }
    if peak > MEMORY_MAX {
        fault(format!("took {peak} bytes"));
    }
    let outcome = outcome.unwrap_or(Ok(()));
    if let Err(message) = &outcome {
        let named = message.contains("fuzz") || message.contains("manifest.json");
        if !(10..700).contains(&message.len()) || !named {
            fault(format!("says {message:?}"));
        }
    }
    outcome
}

/// Holds the lock; a test that ends with faults fails and lists them.
struct Alone(#[expect(dead_code, reason = "held until the test ends")] MutexGuard<'static, ()>);

fn alone() -> Alone {
    let guard = super::counting::alone();
    FAULTS.lock().unwrap().clear();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, SeqCst);
        hook(info);
    }));
    Alone(guard)
}

impl Drop for Alone {
    fn drop(&mut self) {
        let faults = std::mem::take(&mut *FAULTS.lock().unwrap());
        if !std::thread::panicking() {
            assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        }
    }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).unwrap()
}

#[test]
fn corpora() {
    let _alone = alone();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut cases = 0;
    for (target, entry) in [
        ("shard", entries::shard::run as fn(&[u8]) -> Result<(), String>),
        ("text", entries::text::run),
        ("packed", entries::packed::run),
        #[cfg(feature = "parquet")]
        ("parquet", entries::parquet::run),
        ("tokenizer", entries::tokenizer::run),
        ("manifest", entries::manifest::run),
        ("formats", entries::formats::run),
    ] {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(root.join(target)).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for path in files {
            let name = path.file_name().unwrap().to_str().unwrap();
            let outcome = run(&format!("{target}/{name}"), &std::fs::read(&path).unwrap(), entry);
            if name.starts_with("valid") {
                outcome.unwrap_or_else(|e| panic!("{target}/{name}: {e}"));
            }
            cases += 1;
        }
    }
    println!("{cases} corpus files");
    assert!(cases >= 60, "{cases} corpus files");
}

/// Puts the digests right again after a change, so that the lie itself is met.
fn sealed(mut bytes: Vec<u8>, body: bool) -> Vec<u8> {
    if body {
        let digest = blake3::hash(&bytes[4096..]);
        bytes[96..128].copy_from_slice(digest.as_bytes());
    }
    let digest = blake3::hash(&bytes[..4064]);
    bytes[4064..4096].copy_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn shards_cut_flipped_and_lying() {
    let _alone = alone();
    let mut cases = 0;
    let mut refused = |name: String, bytes: &[u8]| {
        cases += 1;
        run(&name, bytes, entries::shard::run).expect_err(&name)
    };
    for file in ["u16.shard", "u32.shard", "u16-v2.shard", "u32-v2.shard"] {
        let valid = golden(file);
        for n in places(valid.len(), 60) {
            refused(format!("{file} cut to {n}"), &valid[..n]);
        }
        for at in places(valid.len(), 120) {
            let mut bytes = valid.clone();
            bytes[at] ^= 1 << (at % 8);
            refused(format!("{file} bit {} of byte {at}", at % 8), &bytes);
        }
        for extra in [1, 8, 16, 5000] {
            let bytes = [&valid[..], &vec![0; extra]].concat();
            refused(format!("{file} and {extra} zeros"), &bytes);
            refused(format!("{file} and {extra} zeros, sealed"), &sealed(bytes, true));
        }
        // Every number of the header, with the values that break arithmetic.
        for at in [8, 12, 16, 20, 28] {
            for value in [0, 1, 3, 1 << 16, 1 << 31, u32::MAX] {
                let mut bytes = valid.clone();
                if bytes[at..at + 4] == u32::to_le_bytes(value)
                    || (at == 16 && value == 1 << 16 && file.starts_with("u16"))
                    || (at == 16 && value > 70_000)
                {
                    continue; // true, or a larger vocabulary, which is no lie one could notice
                }
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                refused(format!("{file}: u32 at {at} is {value}"), &sealed(bytes, false));
            }
        }
        for at in [32, 40, 48, 56] {
            for value in [0, 1, 7, 9, 1 << 20, 1 << 40, 1 << 62, 1 << 63, u64::MAX - 4096, u64::MAX] {
                let mut bytes = valid.clone();
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                let message = refused(format!("{file}: u64 at {at} is {value}"), &sealed(bytes, false));
                assert!(message.contains("expected") || message.contains("bytes"), "{message}");
            }
        }
        let mut bytes = valid.clone();
        bytes[200] = 1;
        assert!(refused(format!("{file}: reserved byte"), &sealed(bytes, false)).contains("reserved"));
        // An index that falls, repeats or points outside; digests right.
        let index = valid.len() - 48;
        for entry in 0..3 {
            for value in [0u64, 4, 8, 9, u64::MAX] {
                let mut bytes = valid.clone();
                let at = index + 16 * entry;
                if bytes[at..at + 8] == value.to_le_bytes() {
                    continue;
                }
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                let outcome =
                    run(&format!("{file}: index {entry} is {value}"), &sealed(bytes, true), entries::shard::run);
                // A rising index is another division into documents, and no lie.
                assert!(outcome.is_err() || entry < 2 && (1..8).contains(&value), "index {entry} is {value}");
            }
        }
    }
    println!("{cases} shards refused");
    assert!(cases >= 800, "{cases}");
}

#[test]
fn tokenizers_cut_and_flipped() {
    let _alone = alone();
    let mut cases = 0;
    for file in ["trained.json", "stories260K.tokenizer.json"] {
        let valid = golden(file);
        let end = valid.trim_ascii_end().len();
        for n in places(end, 60) {
            run(&format!("{file} cut to {n}"), &valid[..n], entries::tokenizer::run).expect_err("cut JSON");
            cases += 1;
        }
        for at in places(end, 250) {
            let mut bytes = valid.clone();
            bytes[at] ^= 1 << (at % 8);
            // Another letter in a token is another tokenizer, and no lie.
            let _ = run(&format!("{file} bit {} of byte {at}", at % 8), &bytes, entries::tokenizer::run);
            cases += 1;
        }
    }
    println!("{cases} tokenizers");
}

/// All places of a JSON value, by pointer; of long lists and maps the first few.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_string());
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate().take(3) {
                pointers(item, &format!("{at}/{i}"), into);
            }
        }
        Value::Object(map) => {
            for (key, item) in map.iter().take(12) {
                pointers(item, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), into);
            }
        }
        _ => {}
    }
}

/// Every place of a valid document holds in turn everything it should not.
fn wrong_types(name: &str, valid: &Value, entry: fn(&[u8]) -> Result<(), String>) -> usize {
    let wrong = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!(u64::MAX),
        json!(4_294_967_295u64),
        json!(""),
        json!("\u{0}é"),
        json!("9".repeat(3000)),
        json!([]),
        json!([[[]], {}]),
        json!({}),
        json!({"type": "Sequence"}),
    ];
    let mut at = Vec::new();
    pointers(valid, "", &mut at);
    for pointer in &at {
        for (i, wrong) in wrong.iter().enumerate() {
            let mut bad = valid.clone();
            *bad.pointer_mut(pointer).expect("taken from this value") = wrong.clone();
            let bytes = serde_json::to_vec(&bad).unwrap();
            let _ = run(&format!("{name} with wrong value {i} at {pointer:?}"), &bytes, entry);
        }
    }
    at.len() * wrong.len()
}

#[test]
fn json_of_wrong_types() {
    let _alone = alone();
    let parse = |file: &str| serde_json::from_slice::<Value>(&golden(file)).unwrap();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/tokenizer/valid.json");
    let small: Value = serde_json::from_slice(&std::fs::read(corpus).unwrap()).unwrap();
    let mut parts = small.clone();
    // One of everything that a pipeline may hold.
    parts["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}, {"type": "Prepend", "prepend": "_"},
        {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}
    ]});
    parts["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": true}, {"type": "FixedLength", "length": 5},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false}
    ]});
    parts["post_processor"] = json!({"type": "Sequence", "processors": [
        {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 0], "trim_offsets": true, "add_prefix_space": true},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}
    ]});
    parts["decoder"] = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}, {"type": "WordPiece", "prefix": "##", "cleanup": true},
            {"type": "CTC", "pad_token": "a", "word_delimiter_token": "b", "cleanup": true},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true}
        ]});
    let mut unigram = small.clone();
    unigram["model"] = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": [["<unk>", 0.0], ["a", -1.5], ["ab", -2.0]]});
    let mut pieces = small.clone();
    pieces["model"] = json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"a": 0, "##b": 1}});
    let tokenizers = wrong_types("parts", &parts, entries::tokenizer::run)
        + wrong_types("unigram", &unigram, entries::tokenizer::run)
        + wrong_types("WordPiece", &pieces, entries::tokenizer::run)
        + wrong_types("small", &small, entries::tokenizer::run)
        + wrong_types("stories260K", &parse("stories260K.tokenizer.json"), entries::tokenizer::run);
    let manifests = wrong_types("manifest", &parse("manifest.json"), entries::manifest::run);
    println!("{tokenizers} tokenizers, {manifests} manifests");
    assert!(tokenizers + manifests >= 2000);
}

#[test]
fn manifests_and_text_cut_and_flipped() {
    let _alone = alone();
    let valid = golden("manifest.json");
    let end = valid.trim_ascii_end().len();
    for n in places(end, 100) {
        run(&format!("manifest cut to {n}"), &valid[..n], entries::manifest::run).expect_err("cut JSON");
    }
    let lines = b"{\"text\":\"an esker \\u2603 \xe2\x98\x83\",\"n\":[1,2.5e3,{\"a\":null}]}\n".repeat(3);
    for (name, valid, entry) in [
        ("manifest", &valid, entries::manifest::run as fn(&[u8]) -> Result<(), String>),
        ("text", &lines, entries::text::run),
    ] {
        for at in 0..valid.len() {
            let mut bytes = valid.clone();
            bytes[at] ^= 1 << (at % 8);
            let _ = run(&format!("{name} bit {} of byte {at}", at % 8), &bytes, entry);
            let _ = run(&format!("{name} cut to {at}"), &valid[..at], entry);
        }
    }
}

/// gzip and zstd: cut anywhere, flipped anywhere, followed by anything, and small files that
/// unpack to much.
#[test]
fn packed_text_cut_flipped_and_swollen() {
    let _alone = alone();
    let mut cases = 0;
    let mut run = |name: &str, bytes: &[u8]| {
        cases += 1;
        run(name, bytes, entries::packed::run)
    };
    for name in ["shard_00000000_processed.jsonl.zst", "shard_00000001_processed.jsonl.gz"] {
        let valid = golden(&format!("dclm/{name}"));
        run(name, &valid).unwrap();
        // Where the second frame ends and the file does not, nothing is missing.
        for at in places(valid.len() - 1, 80) {
            let _ = run(&format!("{name} cut to {at}"), &valid[..at]);
        }
        for (i, at) in places(valid.len(), 200).into_iter().chain(0..40).enumerate() {
            let mut bytes = valid.clone();
            bytes[at] ^= 1 << (i % 8);
            let _ = run(&format!("{name} bit {} of byte {at}", i % 8), &bytes);
            bytes[at] = [0, 255][i % 2];
            let _ = run(&format!("{name} byte {at} replaced"), &bytes);
        }
        for tail in [&b"\0\0\0\0"[..], b"tail", &valid[..40]] {
            run(&format!("{name} and {tail:?}"), &[&valid[..], tail].concat()).unwrap_err();
        }
    }
    // 256 MiB of zeros, in blocks of zstd that repeat a byte, and in a member of gzip.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    for _ in 0..2048 {
        bomb.extend([&((128u32 << 10) << 3 | 2).to_le_bytes()[..3], &[0]].concat());
    }
    bomb.extend([1, 0, 0]);
    run("a bomb of zstd", &bomb).unwrap_err();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..256 {
        std::io::Write::write_all(&mut gz, &[0; 1 << 20]).unwrap();
    }
    run("a bomb of gzip", &gz.finish().unwrap()).unwrap_err();
    // A window of 128 MiB, then nothing; of 2 GiB; a skippable frame longer than the file; no content as promised.
    run("a wide window", &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88, 1, 0, 0]).unwrap();
    run("too wide a window", &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 1, 0, 0]).unwrap_err();
    run("a long frame to skip", &[0x50, 0x2a, 0x4d, 0x18, 255, 255, 255, 255, 1]).unwrap_err();
    run("less than promised", &[0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x09, 1, 0, 0]).unwrap_err();
    println!("{cases} packed files");
    assert!(cases >= 400);
}

/// Parquet: cut, flipped, and the numbers of footer and page headers replaced.
#[cfg(feature = "parquet")]
#[test]
fn parquet_cut_and_flipped() {
    let _alone = alone();
    let valid = golden("dclm/shard_00000000_processed.parquet");
    run("valid parquet", &valid, entries::parquet::run).unwrap();
    for at in places(valid.len() - 1, 60) {
        run(&format!("parquet cut to {at}"), &valid[..at], entries::parquet::run).unwrap_err();
    }
    let footer = valid.len() - 8 - u32::from_le_bytes(valid[valid.len() - 8..][..4].try_into().unwrap()) as usize;
    let dense = (footer..valid.len()).chain(0..60).step_by(3);
    for (i, at) in places(valid.len(), 200).into_iter().chain(dense).enumerate() {
        let mut bytes = valid.clone();
        bytes[at] ^= 1 << (i % 8);
        let _ = run(&format!("parquet bit {} of byte {at}", i % 8), &bytes, entries::parquet::run);
        bytes[at] = [0x7f, 0xff][i % 2];
        let _ = run(&format!("parquet byte {at} replaced"), &bytes, entries::parquet::run);
    }
}

/// Rows are written without taking memory.
#[test]
fn filling_rows_allocates_nothing() {
    let _alone = alone();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/u16.shard");
    let shards = TokenSet::open(&[path], Check::Header).unwrap();
    let bytes = Tokenizer::bytes();
    let documents = (0..50).map(|i| (bytes.encode(&"word ".repeat(i)).unwrap(), 5 * i as u64));
    let memory = TokenSet::from_documents(documents, 257, bytes.eos()).unwrap();
    for set in [shards, memory] {
        let loader = Loader::new(set, LoaderConfig { seq_len: 3, seed: 1, ignore_boundary: true }).unwrap();
        let mut buffers = [vec![0; 300], vec![0; 300], vec![0; 300]];
        let [inputs, targets, doc_first] = &mut buffers;
        // Other threads of the test harness may allocate; ours would do so every time.
        let quietest = (0..20)
            .map(|i| {
                let before = calls();
                loader.fill(i, 100, Batch { inputs, targets, doc_first: Some(doc_first) }).unwrap();
                calls() - before
            })
            .min();
        assert_eq!(quietest, Some(0));
    }
}
