//! Files of bytes kept for ever: each is read, and written again byte for byte.
//!
//! `ESKER_BLESS=1 cargo test -p esker-data --test formats` writes a file that is missing; it never
//! changes one that is there.

use std::path::{Path, PathBuf};

use esker_data::pack::{Manifest, PackOptions, pack};
use esker_data::prepare::prepare;
use esker_data::shard::Header;
use esker_data::text::TextOptions;
use esker_data::{Check, Shard, ShardError, ShardSpec, ShardWriter, Split, Tokenizer};
use proptest::prelude::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// `got` must be the golden file.
fn same_for_ever(name: &str, got: &[u8]) {
    let path = golden(name);
    if !path.exists() && std::env::var_os("ESKER_BLESS").is_some() {
        std::fs::write(&path, got).unwrap();
    }
    let want = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(want == got, "{name}: this build writes other bytes");
}

fn write(path: &Path, spec: ShardSpec, documents: &[(Vec<u32>, u64)]) -> Result<Header, ShardError> {
    let mut writer = ShardWriter::create(path, spec)?;
    for (tokens, text_bytes) in documents {
        writer.push(tokens, *text_bytes)?;
    }
    writer.finish()
}

fn all_tokens(shard: &Shard) -> Vec<u32> {
    let mut tokens = vec![0; shard.header().tokens as usize];
    shard.tokens(0, &mut tokens).unwrap();
    tokens
}

#[test]
fn shards_are_read_and_written_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    for (name, vocab_size, eos, big) in [("u16", 300, Some(299), 298), ("u32", 70_000, None, 69_999)] {
        let documents = [(vec![1, 2, big, 299], 7), (vec![299], 0), (vec![0, 5, 299], 11)];
        let spec = ShardSpec { vocab_size, eos, tokenizer_hash: [7; 32] };
        let path = dir.path().join(name);
        let header = write(&path, spec, &documents).unwrap();
        same_for_ever(&format!("{name}-v2.shard"), &std::fs::read(&path).unwrap());

        // Version 1 differs in its header alone while the body is one leaf.
        let old = Shard::open(&golden(&format!("{name}.shard")), Check::Lazy).unwrap();
        assert_eq!(*old.header(), Header { version: 1, ..header.clone() });
        assert_eq!(all_tokens(&old), all_tokens(&Shard::open(&path, Check::Lazy).unwrap()));
        let shard = Shard::open(&golden(&format!("{name}-v2.shard")), Check::Everything).unwrap();
        assert_eq!(*shard.header(), header);
        assert_eq!((header.tokens, header.documents, header.text_bytes), (8, 3, 18));
        assert_eq!((header.vocab_size, header.eos), (vocab_size, eos));
        assert_eq!(header.max_token, big.max(299));
        assert_eq!(all_tokens(&shard), [1, 2, big, 299, 299, 0, 5, 299]);
        assert_eq!(shard.document(2), (5..8, 7..18));
        assert_eq!((0..9).map(|t| shard.document_of(t)).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 2, 2, 2, 3]);
    }
}

#[test]
fn manifest_is_read_and_written_as_ever() {
    let dir = tempfile::tempdir().unwrap();
    let documents = [(Split::Train, "a ridge"), (Split::Val, "of gravel"), (Split::Train, "")];
    let documents = documents.map(|(split, text)| Ok((split, text.to_string())));
    let made = pack(documents.into_iter(), &Tokenizer::bytes(), dir.path(), &PackOptions::default()).unwrap();
    same_for_ever("manifest-v2.json", &std::fs::read(dir.path().join("manifest.json")).unwrap());
    assert_eq!(Manifest::load(&golden("manifest-v2.json")).unwrap(), made);
    // That of shards of version 1: other digests of headers, and nothing else.
    let old = Manifest::load(&golden("manifest.json")).unwrap();
    assert_eq!((old.train.tokens, old.val.tokens), (made.train.tokens, made.val.tokens));
    assert_eq!((made.train.documents, made.train.tokens, made.train.text_bytes), (2, 9, 7));
    assert_eq!((made.val.documents, made.val.tokens, made.val.text_bytes), (1, 10, 9));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn shard_round_trip(
        documents in prop::collection::vec((prop::collection::vec(0u32..70_000, 1..3000), 0u64..1 << 40), 0..12),
        wide: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.shard");
        let vocab_size = if wide { 70_000 } else { 65_536 };
        let documents: Vec<(Vec<u32>, u64)> = documents
            .into_iter()
            .map(|(tokens, bytes)| (tokens.into_iter().map(|t| t % vocab_size).collect(), bytes))
            .collect();
        let header = write(&path, ShardSpec { vocab_size, eos: None, tokenizer_hash: [1; 32] }, &documents).unwrap();
        let shard = Shard::open(&path, Check::Everything).unwrap();
        prop_assert_eq!(shard.header(), &header);
        let flat: Vec<u32> = documents.iter().flat_map(|(tokens, _)| tokens.clone()).collect();
        prop_assert_eq!(all_tokens(&shard), flat);
        for (d, (tokens, bytes)) in documents.iter().enumerate() {
            let (t, b) = shard.document(d as u64);
            prop_assert_eq!((t.end - t.start, b.end - b.start), (tokens.len() as u64, *bytes));
            prop_assert_eq!(shard.document_of(t.start), d as u64);
            prop_assert_eq!(shard.document_of(t.end - 1), d as u64);
        }
    }
}

/// A shard of several leaves, damaged in each of its regions: the region is named, and what is not damaged stays
/// readable under [`Check::Lazy`].
#[test]
fn damage_is_named_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.shard");
    let documents: Vec<(Vec<u32>, u64)> =
        (0..700u32).map(|d| ((0..1500).map(|i| (d + i * i) % 60_000).collect(), 6000)).collect();
    let spec = ShardSpec { vocab_size: 60_000, eos: None, tokenizer_hash: [1; 32] };
    let header = write(&path, spec, &documents).unwrap();
    let good = std::fs::read(&path).unwrap();
    let body = (2 * header.tokens + 16 * header.documents) as usize;
    assert_eq!((good.len(), body.div_ceil(1 << 20)), (4096 + body + 3 * 32, 3));
    // The body's digest is the plain one of its bytes, whatever the table.
    assert_eq!(header.body_digest, *blake3::hash(&good[4096..4096 + body]).as_bytes());
    let open = |bytes: &[u8], check| {
        std::fs::write(&path, bytes).unwrap();
        Shard::open(&path, check)
    };
    let flipped = |at: &[usize]| {
        let mut bytes = good.clone();
        at.iter().for_each(|&at| bytes[at] ^= 4);
        bytes
    };
    let said = |bytes: &[u8], check| open(bytes, check).unwrap_err().to_string();
    let (second, end) = (4096 + (1 << 20), 4096 + body);

    let text = said(&flipped(&[second + 3]), Check::Everything);
    assert!(text.contains("x.shard: bytes 1052672 to 2101248 do not match"), "{text}");
    let text = said(&flipped(&[4096, end - 40]), Check::Everything);
    assert!(text.contains(&format!("bytes 4096 to 1052672, bytes 2101248 to {end} do not")), "{text}");
    let text = said(&flipped(&[4096, second]), Check::Everything);
    assert!(text.contains("bytes 4096 to 2101248 do not"), "{text}");
    // The table and the header are looked at whatever is asked for, and the index under Lazy.
    for check in [Check::Header, Check::Lazy, Check::Everything] {
        assert!(said(&flipped(&[end + 40]), check).contains("the table of digests"));
        assert!(said(&flipped(&[100]), check).contains("header"));
        assert!(said(&good[..good.len() - 32], check).contains("bytes"));
    }
    let text = said(&flipped(&[end - 20]), Check::Lazy);
    assert!(text.contains(&format!("bytes 2101248 to {end} do not")), "{text}");

    let shard = open(&flipped(&[second + 3]), Check::Lazy).unwrap();
    let whole: Vec<u32> = documents.iter().flat_map(|(d, _)| d.clone()).collect();
    let mut out = vec![0; 1000];
    for (start, good) in [(0, true), ((1 << 19) - 999, false), ((1 << 19) + 9000, false), (1 << 20, true), (5, true)] {
        let got = shard.tokens(start, &mut out);
        assert_eq!(got.is_ok(), good, "tokens from {start}");
        assert!(!good || out == whole[start as usize..start as usize + 1000]);
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ShardSpec { vocab_size: 10, eos: None, tokenizer_hash: [0; 32] };
    let mut writer = ShardWriter::create(&dir.path().join("x.shard"), spec).unwrap();
    writer.push(&[1, 2], 2).unwrap();
    let id = writer.push(&[3, 10], 2).unwrap_err();
    assert!(matches!(id, ShardError::Token { at: 3, id: 10, max: 9, .. }), "{id}");
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The same folder, byte for byte, on one thread and on several, from files and in small shards.
#[test]
fn packing_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    let lines: String =
        (0..400).map(|i| format!("{{\"text\":\"document {i} {}\"}}\n", "word ".repeat(i % 37))).collect();
    std::fs::write(&input, lines).unwrap();
    let options = PackOptions { val_fraction: 0.1, shard_tokens: 9000, ..PackOptions::default() };
    let run = |threads: usize| {
        let out = dir.path().join(format!("out{threads}"));
        let options = PackOptions { threads, ..options.clone() };
        let made = prepare(std::slice::from_ref(&input), &Tokenizer::bytes(), &out, &options, &mut |_| {}).unwrap();
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(&out)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
            .collect();
        files.sort();
        (made, files, out)
    };
    let (one, files, out) = run(1);
    let (three, again, _) = run(3);
    assert_eq!(one, three);
    assert!(files == again);
    assert_eq!(one.train.documents + one.val.documents, 400);
    assert!(20 <= one.val.documents && one.val.documents <= 60, "{} of 400 held out", one.val.documents);
    assert!(one.train.shards.len() >= 2, "{} shards", one.train.shards.len());
    for split in [Split::Train, Split::Val] {
        let set = one.open(&out, split, Check::Everything).unwrap();
        assert_eq!((set.tokens(), set.text_bytes()), (one.split(split).tokens, one.split(split).text_bytes));
        assert_eq!(set.tokens(), set.text_bytes() + set.documents());
    }
    // A second run does not silently mix with the first.
    let full = prepare(std::slice::from_ref(&input), &Tokenizer::bytes(), &out, &options, &mut |_| {}).unwrap_err();
    assert!(full.to_string().contains("holds a data set already"), "{full}");
    // A shard of another packing under the right name is noticed.
    std::fs::copy(out.join(&one.train.shards[0].file), out.join(&one.train.shards[1].file)).unwrap();
    let changed = one.open(&out, Split::Train, Check::Header).unwrap_err();
    assert!(changed.to_string().contains("is not what the manifest says"), "{changed}");
}

/// Options out of range, and inputs without text, say so.
#[test]
fn packing_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("empty.txt");
    std::fs::write(&input, "").unwrap();
    let run = |options: PackOptions| {
        prepare(std::slice::from_ref(&input), &Tokenizer::bytes(), &dir.path().join("out"), &options, &mut |_| {})
            .unwrap_err()
            .to_string()
    };
    let text = TextOptions::default();
    let base = PackOptions { text, ..PackOptions::default() };
    assert!(run(base.clone()).contains("no text"));
    std::fs::write(dir.path().join("one.txt"), "one document").unwrap();
    let out = dir.path().join("one");
    let one = prepare(&[dir.path().join("one.txt")], &Tokenizer::bytes(), &out, &base, &mut |_| {}).unwrap();
    assert_eq!((one.train.documents, one.val.documents), (1, 0));
    let empty = one.open(&out, Split::Val, Check::Header).unwrap_err().to_string();
    assert!(empty.contains("no document fell into val"), "{empty}");
    assert!(run(PackOptions { val_fraction: 1.0, ..base.clone() }).contains("val_fraction is 1"));
    assert!(run(PackOptions { val_fraction: f64::NAN, ..base.clone() }).contains("val_fraction is NaN"));
    assert!(run(PackOptions { shard_tokens: 0, ..base }).contains("shard_tokens"));
}
