//! Corpora into shards: DCLM's own layout, the same bytes however the work is cut, dropped
//! documents, and work taken up again.

use std::io::Write;
use std::path::{Path, PathBuf};

use esker_data::pack::{Bad, Dropped, PackError, Why};
use esker_data::prepare::prepare;
use esker_data::text::{TextOptions, documents};
use esker_data::{Check, Manifest, PackOptions, Split, Tokenizer};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dclm").join(name)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn run(inputs: &[PathBuf], out: &Path, options: &PackOptions) -> Result<Manifest, PackError> {
    prepare(inputs, &Tokenizer::bytes(), out, options, &mut |p| assert!(p.bytes <= p.bytes_total))
}

/// Documents of a split, as text.
fn texts(manifest: &Manifest, out: &Path, split: Split) -> Vec<String> {
    let mut all = Vec::new();
    for entry in &manifest.split(split).shards {
        let shard = esker_data::Shard::open(&out.join(&entry.file), Check::Everything).unwrap();
        for d in 0..shard.header().documents {
            let (tokens, text) = shard.document(d);
            let mut ids = vec![0; (tokens.end - tokens.start) as usize];
            shard.tokens(tokens.start, &mut ids).unwrap();
            assert_eq!(ids.pop(), Some(256));
            assert_eq!(ids.len() as u64, text.end - text.start);
            all.push(Tokenizer::bytes().decode(&ids, true).unwrap());
        }
    }
    all
}

/// Names and bytes of all files in a folder.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let mut all: Vec<_> =
        entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap_or_default())).collect();
    all.sort();
    all
}

/// The record schema of DCLM-baseline: unknown fields, two frames of zstd, escaped and raw UTF-8. The count and the
/// digest are those that came with the files.
#[test]
fn dclm_is_read() {
    let read = |names: &[&str]| -> Vec<String> {
        let inputs: Vec<PathBuf> = names.iter().map(|n| golden(n)).collect();
        documents(&inputs, &TextOptions::default()).unwrap().map(|d| d.unwrap().text).collect()
    };
    let all = read(&["shard_00000000_processed.jsonl.zst", "shard_00000001_processed.jsonl.gz"]);
    let joined = all.join("\0");
    assert_eq!((all.len(), all.iter().map(String::len).sum::<usize>()), (14, 240_098));
    assert_eq!(sha1_of(joined.as_bytes()), "ee791e836725a536775761fead4975d60bfe819f");
    #[cfg(feature = "parquet")]
    assert!(read(&["shard_00000000_processed.parquet"]) == all[..10]);

    let dir = tempfile::tempdir().unwrap();
    let options = PackOptions { keep_empty: true, val_fraction: 0.0, ..PackOptions::default() };
    let inputs = [golden("shard_00000000_processed.jsonl.zst"), golden("shard_00000001_processed.jsonl.gz")];
    let made = run(&inputs, dir.path(), &options).unwrap();
    assert!(texts(&made, dir.path(), Split::Train) == all);
    let prepared = made.prepared.unwrap();
    assert_eq!(prepared.documents, all.len() as u64);
    let bytes = std::fs::read(&inputs[0]).unwrap();
    assert_eq!(prepared.inputs[0].bytes, bytes.len() as u64);
    assert_eq!(prepared.inputs[0].blake3, blake3::hash(&bytes).to_hex().as_str());
    assert_eq!(prepared.inputs[0].documents, 10);
}

fn sha1_of(bytes: &[u8]) -> String {
    use sha1::Digest;
    sha1::Sha1::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Lines of about `n` documents, some of them odd.
fn corpus(n: usize, salt: usize) -> String {
    (0..n)
        .map(|i| {
            let text = format!("document {i} of {salt} é\\n{}", "word ".repeat((i * 7 + salt) % 41));
            format!("{{\"id\": {i}, \"text\": \"{text}\", \"n\": [1, {{\"text\": null}}]}}\n")
        })
        .collect()
}

#[test]
fn the_output_follows_from_the_documents_alone() {
    let dir = tempfile::tempdir().unwrap();
    let parts: Vec<String> = (0..7).map(|i| corpus(30 + 20 * i, i)).collect();
    let folder = |name: &str, end: &str, pack: &dyn Fn(&[u8]) -> Vec<u8>| {
        let folder = dir.path().join(name);
        for (i, part) in parts.iter().enumerate() {
            let file = folder.join(format!("part_{}/{i:02}.{end}", i / 3));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            // Two members or frames.
            let half = part.len() / 2;
            let bytes = [pack(&part.as_bytes()[..half]), pack(&part.as_bytes()[half..])].concat();
            std::fs::write(file, bytes).unwrap();
        }
        vec![folder]
    };
    let plain = folder("plain", "jsonl", &|b| b.to_vec());
    let whole = dir.path().join("whole.json.gz");
    std::fs::write(&whole, gzip(parts.concat().as_bytes())).unwrap();
    let base = PackOptions { val_fraction: 0.2, shard_tokens: 9000, threads: 1, ..PackOptions::default() };
    let want_dir = dir.path().join("want");
    let want = run(&plain, &want_dir, &base).unwrap();
    assert!(want.train.shards.len() > 3 && want.val.shards.len() > 1);
    let documents: usize = (0..7).map(|i| 30 + 20 * i).sum();
    assert_eq!(want.train.documents + want.val.documents, documents as u64);
    let mut runs = 0;
    let cases = [
        (plain.clone(), 2, 2000),
        (plain, 5, 1 << 20),
        (folder("gz", "jsonl.gz", &gzip), 5, 20_000),
        (folder("zst", "jsonl.zst", &zstd), 3, 5000),
        (vec![whole], 2, 40_000),
    ];
    for (inputs, threads, piece_bytes) in cases {
        runs += 1;
        let out = dir.path().join(format!("out{runs}"));
        let made = run(&inputs, &out, &PackOptions { threads, piece_bytes, ..base.clone() }).unwrap();
        assert_eq!((&made.train, &made.val), (&want.train, &want.val), "{inputs:?} {threads} {piece_bytes}");
        let shards =
            |dir: &Path| files(dir).into_iter().filter(|(name, _)| name != "manifest.json").collect::<Vec<_>>();
        assert!(shards(&out) == shards(&want_dir), "{inputs:?} {threads} {piece_bytes}");
    }
    for split in [Split::Train, Split::Val] {
        want.open(&want_dir, split, Check::Everything).unwrap();
    }
}

/// A document that spells the end mark does not end there: what is read back is what was written.
#[test]
fn a_document_may_spell_the_end_mark() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    let written = ["one<|endoftext|>two", "<|endoftext|>"];
    let lines: String = written.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
    std::fs::write(&input, lines).unwrap();
    let tokenizer = Tokenizer::train_bpe(["one two one two"].into_iter(), 270).unwrap();
    let out = dir.path().join("out");
    let options = PackOptions { val_fraction: 0.0, ..PackOptions::default() };
    let made = prepare(&[input], &tokenizer, &out, &options, &mut |_| {}).unwrap();
    let shard = esker_data::Shard::open(&out.join(&made.train.shards[0].file), Check::Everything).unwrap();
    let mut ids = vec![0; made.train.tokens as usize];
    shard.tokens(0, &mut ids).unwrap();
    let ends = ids.iter().filter(|&&id| Some(id) == tokenizer.eos()).count();
    assert_eq!((made.train.documents, ends), (2, 2));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), written.concat());
}

#[test]
fn dropped_documents_are_counted_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl.gz");
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(300));
    let lines = [
        &b"{\"body\":\"good\",\"id\":\"a\"}"[..],
        b"{\"body\":\"\",\"id\":\"b\"}",
        b"{\"text\":\"no body\",\"id\":\"c\"}",
        b"{\"body\":7}",
        b"{\"body\":\"\xff\"}",
        b"",
        long.as_bytes(),
        b"{\"body\":\"good too\"}",
    ];
    std::fs::write(&input, gzip(&lines.join(&b'\n'))).unwrap();
    let text = TextOptions {
        text_key: "body".into(),
        id_key: Some("id".into()),
        max_document_bytes: 200,
        ..TextOptions::default()
    };
    let base = PackOptions { text, val_fraction: 0.0, ..PackOptions::default() };
    let inputs = [input];
    let out = dir.path().join("out");
    let stops = run(&inputs, &out, &base).unwrap_err().to_string();
    assert!(stops.contains("in.jsonl.gz, line 3: missing field `body`"), "{stops}");
    assert!(files(&out).is_empty(), "{:?}", files(&out));
    let made = run(&inputs, &out, &PackOptions { bad: Bad::Drop, ..base.clone() }).unwrap();
    assert_eq!(texts(&made, &out, Split::Train), ["good", "good too"]);
    let prepared = made.prepared.as_ref().unwrap();
    assert_eq!(prepared.dropped, Dropped { empty: 1, no_text: 1, too_long: 1, bad_utf8: 1, bad_json: 1 });
    assert_eq!((prepared.documents, prepared.dropped.total()), (7, 5));
    let named: Vec<_> = prepared.dropped_first.iter().map(|d| (d.line, d.id.as_deref(), d.why)).collect();
    let want = [
        (2, Some("b"), Why::Empty),
        (3, None, Why::NoText),
        (4, None, Why::BadJson),
        (5, None, Why::BadUtf8),
        (7, None, Why::TooLong),
    ];
    assert_eq!(named, want);
    assert_eq!(Manifest::load(&out).unwrap(), made);
    let kept = PackOptions { bad: Bad::Drop, keep_empty: true, overwrite: true, ..base };
    let made = run(&inputs, &out, &kept).unwrap();
    assert_eq!(texts(&made, &out, Split::Train), ["good", "", "good too"]);
}

/// What was finished before a fault stands, and is not made again; what does not belong is not taken.
#[test]
fn work_is_taken_up_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = |i: usize| dir.path().join(format!("{i}.jsonl.zst"));
    let write = |i: usize, text: &[u8]| std::fs::write(path(i), zstd(text)).unwrap();
    for i in 0..3 {
        write(i, corpus(200, i).as_bytes());
    }
    let inputs: Vec<PathBuf> = (0..3).map(path).collect();
    let options = PackOptions { piece_bytes: 4000, threads: 1, ..PackOptions::default() };
    let want_dir = dir.path().join("want");
    run(&inputs, &want_dir, &options).unwrap();
    let want = files(&want_dir);

    let whole = std::fs::read(path(2)).unwrap();
    std::fs::write(path(2), &whole[..whole.len() - 5]).unwrap();
    let out = dir.path().join("out");
    let fault = run(&inputs, &out, &options).unwrap_err().to_string();
    assert!(fault.contains("2.jsonl.zst: cannot read: zstd frame from byte 0 on is cut short"), "{fault}");
    let pieces = || files(&out.join(".prepare"));
    let before = pieces();
    assert!(before.len() > 12, "{}", before.len());
    // A piece that rotted, and one whose note is gone, are made again.
    let shards: Vec<PathBuf> = before
        .iter()
        .filter(|(name, _)| name.ends_with(".shard"))
        .map(|(name, _)| out.join(".prepare").join(name))
        .collect();
    let mut rotten = std::fs::read(&shards[1]).unwrap();
    let at = rotten.len() - 40;
    rotten[at] ^= 1;
    std::fs::write(&shards[1], rotten).unwrap();
    std::fs::remove_file(shards[3].with_extension("json")).unwrap();
    std::fs::write(path(2), &whole).unwrap();
    let touched = |i: usize| std::fs::metadata(&shards[i]).map(|m| m.modified().unwrap()).ok();
    let first = touched(0);
    let mut least = u64::MAX;
    prepare(&inputs, &Tokenizer::bytes(), &out, &options, &mut |p| {
        least = least.min(p.documents);
        assert!(touched(0).is_none_or(|t| Some(t) == first), "a whole piece was made again");
    })
    .unwrap();
    assert!(files(&out) == want, "{:?}", files(&out).iter().map(|f| &f.0).collect::<Vec<_>>());
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    std::fs::write(&input, corpus(50, 1)).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir_all(out.join(".prepare")).unwrap();
    let lock = std::fs::File::create(out.join(".prepare/lock")).unwrap();
    lock.lock().unwrap();
    let busy = run(std::slice::from_ref(&input), &out, &PackOptions::default()).unwrap_err();
    assert!(matches!(busy, PackError::Busy { .. }), "{busy}");
    drop(lock);
    run(&[input], &out, &PackOptions::default()).unwrap();
}
