//! `esker data import` and `export` from outside: there and back, and what is said when it cannot be.

mod esker;

use esker::{esker, fails, json};

/// 400 ids in four documents that end with 99.
fn stream() -> Vec<u8> {
    (0..400u16).flat_map(|i| (if i % 100 == 99 { 99 } else { i % 90 }).to_le_bytes()).collect()
}

#[test]
fn shards_give_back_what_was_imported() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("train.bin"), stream()).unwrap();
    let (bin, shards) = (path("train.bin"), path("shards"));
    let import = ["data", "import", "--eos", "99", "--vocab-size", "100", "--out", &shards, &bin];
    let made = json(&[&import[..], &["--json"]].concat());
    assert_eq!((&made["format"], &made["tokens"], &made["documents"]), (&"nanogpt".into(), &400.into(), &4.into()));
    fails(&import, 2, &["holds a data set already"]);
    assert_eq!(esker(&[&import[..], &["--overwrite"]].concat()).code, 0);
    let out = path("back");
    let made = json(&["data", "export", "--format", "nanogpt", "--out", &out, &shards, "--json"]);
    assert_eq!(made["tokens"], 400);
    assert_eq!(std::fs::read(path("back/train.bin")).unwrap(), stream());
    fails(&["data", "export", "--format", "nanogpt", "--out", &out, &shards], 2, &["train.bin", "is there already"]);
    let text = esker(&["data", "export", "--format", "mds", "--seq-len", "64", "--zstd", "--out", &out, &shards]);
    assert!(text.code == 0 && text.stdout.contains("16 tokens fill no window"), "{}{}", text.stdout, text.stderr);
    // Found by its index, whatever it was written from.
    let (again, mds) = (path("again"), path("back/train"));
    let mds = [&import[..5], &["100", "--out", &again, &mds, "--json"]].concat();
    assert_eq!(json(&mds)["tokens"], 384);
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("train.bin"), stream()).unwrap();
    let (bin, out) = (path("train.bin"), path("out"));
    fails(&["data", "import", "--out", &out, &bin], 2, &["--eos"]);
    fails(&["data", "import", "--out", &out, "--eos", "99", &bin], 2, &["--vocab-size", "--tokenizer"]);
    let whole = ["data", "import", "--out", &out, "--eos", "99", "--vocab-size", "100"];
    fails(&[&whole[..], &["--format", "megatron", &bin]].concat(), 3, &["train.idx"]);
    fails(&["data", "import", "--out", &out, "--format", "megatrom", &bin], 2, &["megatrom", "tokshuf"]);
    fails(&["data", "import", "--out", &out, "--dtype", "f32", &bin], 2, &["f32", "u16"]);
    fails(&[&whole[..], &[&path("nowhere")]].concat(), 3, &["nowhere"]);
    fails(&["data", "export", "--format", "llmc", "--out", &out, &path("")], 3, &["manifest.json"]);
}
