//! Token files of other programs: for each reader some hundred, made here from valid ones that our own export wrote.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::MutexGuard;

use super::counting::{alone, peak_of};
use super::places;
use esker_data::formats::{ExportOptions, Format, ImportOptions, Int, Options, export, import};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

/// Memory that no file of this test may make an import exceed; most of it is a window of zstd.
const MEMORY_MAX: usize = 24 << 20;
const EOS: u32 = 999;
const PAD: u32 = 1000;
const VOCAB: u32 = 1000;

/// Names and bytes of the files of one data set.
type Files = Vec<(&'static str, Vec<u8>)>;

/// What happened to the damaged files of one format.
struct Bench {
    format: Format,
    dir: TempDir,
    refused: usize,
    read: usize,
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new(format: Format) -> Bench {
        Bench { format, dir: tempfile::tempdir().unwrap(), refused: 0, read: 0, _alone: alone() }
    }

    /// Imports the files; the documents, or why not.
    fn run(&mut self, what: &str, files: &Files) -> Result<Vec<u64>, String> {
        let (dir, out) = (self.dir.path().join("in"), self.dir.path().join("out"));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        let read = Options {
            format: Some(self.format),
            eos: Some(EOS),
            pad: Some(PAD),
            max_document_tokens: 5000,
            ..Options::default()
        };
        let options = ImportOptions { read, vocab_size: Some(VOCAB), overwrite: true, ..Default::default() };
        let import = || import(std::slice::from_ref(&dir), None, &out, &options, &mut |_, _| {});
        let (outcome, peak) = peak_of(|| std::panic::catch_unwind(import));
        let outcome = outcome.unwrap_or_else(|_| panic!("{}: {what}: panicked", self.format));
        assert!(peak < MEMORY_MAX, "{}: {what}: took {peak} bytes", self.format);
        match outcome {
            Ok(report) => {
                self.read += 1;
                Ok(vec![report.documents, report.tokens])
            }
            Err(e) => {
                self.refused += 1;
                let message = e.to_string();
                let named = message.contains(dir.to_str().unwrap()) || message.contains("hold no text");
                assert!(named && message.len() < 1200, "{}: {what}: says {message:?}", self.format);
                Err(message)
            }
        }
    }

    #[track_caller]
    fn refuse(&mut self, what: &str, files: &Files) -> String {
        match self.run(what, files) {
            Err(message) => message,
            Ok(report) => panic!("{}: {what}: was read as {report:?}", self.format),
        }
    }

    /// Cuts file `i` at `n` places, ends included; those for which `valid` holds may be read.
    fn cut(&mut self, files: &Files, i: usize, n: usize, valid: impl Fn(usize) -> bool) {
        for at in places(files[i].1.len(), n) {
            let mut files = files.clone();
            files[i].1.truncate(at);
            let what = format!("{} cut to {at}", files[i].0);
            match valid(at) {
                true => drop(self.run(&what, &files)),
                false => drop(self.refuse(&what, &files)),
            }
        }
    }

    /// Flips one bit at `n` places of file `i`. Where `sealed` says that digests cover the place,
    /// the file is refused, or what is read is the same.
    fn flip(&mut self, files: &Files, i: usize, n: usize, sealed: impl Fn(usize) -> bool) {
        let whole = self.run("whole", files).unwrap();
        for at in places(files[i].1.len(), n) {
            let mut files = files.clone();
            files[i].1[at] ^= 1 << (at % 8);
            let what = format!("{}: bit {} of byte {at}", files[i].0, at % 8);
            if let Ok(report) = self.run(&what, &files) {
                assert!(!sealed(at) || report == whole, "{}: {what}: was read as {report:?}", self.format);
            }
        }
    }

    /// Writes each value at `at` of file `i`; one that was there already is left out.
    fn lie<const N: usize>(&mut self, files: &Files, i: usize, at: usize, values: &[[u8; N]]) {
        for value in values {
            let mut files = files.clone();
            if files[i].1[at..at + N] == value[..] {
                continue;
            }
            files[i].1[at..at + N].copy_from_slice(value);
            self.refuse(&format!("{}: {value:?} at {at}", files[i].0), &files);
        }
    }

    fn done(self) {
        println!("{}: {} refused, {} read", self.format, self.refused, self.read);
        assert!(self.refused >= 200, "{}: {} refused", self.format, self.refused);
    }
}

/// Numbers that break arithmetic.
fn numbers() -> Vec<[u8; 8]> {
    [0, 3, 1 << 20, 1 << 31, 1 << 40, 1 << 61, 1 << 62, 1 << 63, u64::MAX - 7, u64::MAX].map(u64::to_le_bytes).to_vec()
}

/// 2000 ids in 40 documents.
fn ids() -> Vec<u32> {
    (0..2000u32).map(|i| if i % 50 == 49 { EOS } else { i.wrapping_mul(2654435761) % 900 }).collect()
}

/// A valid data set, written by export.
fn valid(change: impl Fn(&mut ExportOptions), format: Format, names: &[&'static str]) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let (from, shards, out) = (dir.path().join("a.bin"), dir.path().join("shards"), dir.path().join("out"));
    let mut bytes = Vec::new();
    Int::U16.write(&ids(), &mut bytes).unwrap();
    std::fs::write(&from, bytes).unwrap();
    let read = Options { eos: Some(EOS), ..Options::default() };
    let options = ImportOptions { read, vocab_size: Some(VOCAB), ..Default::default() };
    import(&[from], None, &shards, &options, &mut |_, _| {}).unwrap();
    let mut options = ExportOptions::new(format);
    change(&mut options);
    export(&shards, &out, &options, &mut |_, _| {}).unwrap();
    let find = |name: &str| -> PathBuf {
        [out.join(name), out.join("train").join(name)]
            .into_iter()
            .find(|p| p.is_file())
            .unwrap_or_else(|| panic!("{name}"))
    };
    names.iter().map(|name| (*name, std::fs::read(find(name)).unwrap())).collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

#[test]
fn megatron() {
    let mut b = Bench::new(Format::Megatron);
    let files = valid(|_| {}, Format::Megatron, &["train.idx", "train.bin"]);
    b.cut(&files, 0, 100, |_| false);
    b.cut(&files, 1, 60, |_| false);
    b.flip(&files, 0, 200, |_| false);
    b.lie(&files, 0, 9, &numbers());
    b.lie(&files, 0, 17, &[[0], [1], [4], [5], [6], [7], [9], [255]]);
    b.lie(&files, 0, 18, &numbers());
    b.lie(&files, 0, 26, &numbers());
    for at in [34, 38, 34 + 4 * 39] {
        b.lie(&files, 0, at, &[-1i32, i32::MIN, i32::MAX, 0, 51].map(i32::to_le_bytes));
    }
    for at in [194, 202, 194 + 8 * 39] {
        b.lie(&files, 0, at, &[1u64, 7, 1 << 32, 1 << 63, u64::MAX].map(u64::to_le_bytes));
    }
    for at in [514, 522 + 8 * 38, 514 + 8 * 40] {
        b.lie(&files, 0, at, &[41u64, 1 << 32, 1 << 61, 1 << 63, u64::MAX].map(u64::to_le_bytes));
    }
    b.refuse("no .idx", &vec![files[1].clone()]);
    b.refuse("no .bin", &vec![files[0].clone()]);
    b.done();
}

#[test]
fn llmc() {
    let mut b = Bench::new(Format::Llmc);
    let files = valid(|_| {}, Format::Llmc, &["train.bin"]);
    b.cut(&files, 0, 250, |_| false);
    b.flip(&files, 0, 200, |_| false);
    for at in [0, 4, 8] {
        b.lie(&files, 0, at, &[0, -1, 1, 7, i32::MAX, i32::MIN, 20240522, 20240801, 1999, 2001].map(i32::to_le_bytes));
    }
    for more in 1..20 {
        let mut files = files.clone();
        files[0].1.extend(vec![0; more]);
        b.refuse(&format!("{more} bytes more"), &files);
    }
    b.done();
}

#[test]
fn nanogpt() {
    let mut b = Bench::new(Format::Nanogpt);
    let files = valid(|_| {}, Format::Nanogpt, &["train.bin"]);
    b.cut(&files, 0, 300, |n| n % 2 == 0 && n > 0);
    b.flip(&files, 0, 100, |_| false);
    for at in places(1999, 100) {
        b.lie(&files, 0, 2 * at, &[u16::MAX.to_le_bytes(), 1000u16.to_le_bytes()]);
    }
    for length in [5001, 6000, 100_000] {
        b.refuse("no end mark", &vec![("train.bin", vec![1; 2 * length])]);
    }
    b.done();
}

#[test]
fn olmo() {
    let mut b = Bench::new(Format::Olmo);
    let files = valid(|_| {}, Format::Olmo, &["train.csv.gz", "train.npy"]);
    b.cut(&files, 0, 100, |_| false);
    b.cut(&files, 1, 60, |_| false);
    // gzip has bytes that say nothing (time, system), and a digest of everything else.
    b.flip(&files, 0, 150, |_| true);
    let mut table = Vec::new();
    flate2::read::GzDecoder::new(&files[0].1[..]).read_to_end(&mut table).unwrap();
    let rows: Vec<String> = String::from_utf8(table).unwrap().lines().map(String::from).collect();
    let with = |row: usize, text: &str| {
        let mut rows = rows.clone();
        rows[row] = text.into();
        gz((rows.join("\r\n") + "\r\n").as_bytes())
    };
    for row in [0, 1, 39] {
        for text in [
            "",
            ",",
            "a,b",
            "0",
            "0,",
            ",50",
            "-1,50",
            "0,0",
            "50,50",
            "50,40",
            "0,18446744073709551616",
            "1.5,2",
            "0 ,50",
            "0x0,50",
            "\"0,50",
            "0,4000",
            "4000,4001",
            "\"\n",
            "é,1",
            "0,99999999999",
            "1e3,2e3",
        ] {
            b.refuse(&format!("row {row} is {text:?}"), &vec![("train.csv.gz", with(row, text)), files[1].clone()]);
        }
        let long = "9".repeat(100_000);
        b.refuse("a long row", &vec![("train.csv.gz", with(row, &long)), files[1].clone()]);
    }
    // Bombs: 64 MB of one row, of rows without tokens, of quotes, in some 60 kB.
    for (what, part) in [
        ("one row", "1"),
        ("empty rows", "0,0\n"),
        ("line ends", "\n"),
        ("a quote", "\"\"\n"),
        ("an open quote", "\n\"\""),
    ] {
        let bomb = gz(part.repeat((64 << 20) / part.len()).as_bytes());
        b.refuse(what, &vec![("train.csv.gz", bomb), files[1].clone()]);
    }
    b.refuse("an npy header", &vec![("train.npy", [b"\x93NUMPY\x01\0", &files[1].1[..]].concat())]);
    b.done();
}

#[test]
fn datatrove() {
    let mut b = Bench::new(Format::Datatrove);
    let files = valid(|_| {}, Format::Datatrove, &["train.ds.index", "train.ds", "train.ds.metadata"]);
    b.cut(&files, 0, 100, |_| false);
    b.cut(&files, 1, 60, |_| false);
    b.flip(&files, 0, 150, |_| false);
    for at in [0, 8, 8 * 20] {
        let values = [2001u64, 1 << 40, 1 << 62, u64::MAX - 1, u64::MAX].map(u64::to_le_bytes);
        b.lie(&files, 0, at, &values);
    }
    b.lie(&files, 0, 8 * 39, &numbers());
    for text in [
        "",
        "name",
        "name\n",
        "name\nx",
        "name\n-1\n",
        "name\n1999\n2k",
        "n\n4000",
        "n\n99999999999999999999",
        "n\n1.0",
    ] {
        let mut files = files.clone();
        files[2].1 = text.into();
        b.refuse(&format!("metadata {text:?}"), &files);
        files.remove(0);
        b.refuse(&format!("metadata {text:?} and no index"), &files);
    }
    let mut bad = files.clone();
    bad[2].1 = vec![0xff; 100];
    b.refuse("metadata of bytes", &bad);
    bad[2].1 = vec![b'a'; 1 << 20];
    b.refuse("long metadata", &bad);
    for length in [0, 1, 1999, 2001, 4000] {
        let files = [files.clone(), vec![("train.ds.loss", vec![1; length])]].concat();
        b.refuse(&format!("loss of {length}"), &files);
    }
    for byte in [0, 2, 255] {
        let files = [files.clone(), vec![("train.ds.loss", vec![byte; 2000])]].concat();
        b.refuse(&format!("loss of {byte}"), &files);
    }
    b.done();
}

/// Headers of arrays that are none of ours.
const HEADERS: [&str; 24] = [
    "",
    "{}",
    "{",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (500,), }",
    "{'descr': '>u2', 'fortran_order': False, 'shape': (1000,), }",
    "{'descr': '<c8', 'fortran_order': False, 'shape': (250,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (250,), }",
    "{'descr': '<u2', 'fortran_order': True, 'shape': (20, 50), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (10, 10, 10), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (999,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (1001,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (0,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (18446744073709551615,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (18446744073709551616,), }",
    "{'descr': '<u8', 'fortran_order': False, 'shape': (2305843009213693952,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': 1000, }",
    "{'descr': '<u2', 'fortran_order': False}",
    "{'descr': '<u2', 'shape': (1000,)}",
    "{'fortran_order': False, 'shape': (1000,)}",
    "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (1000,)}",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (1000,), 'x': __import__('os')}",
];

fn npy(major: u8, length: Option<u32>, header: &str, data: &[u8]) -> Vec<u8> {
    let length = length.unwrap_or(header.len() as u32).to_le_bytes();
    let length = if major == 1 { &length[..2] } else { &length[..] };
    [b"\x93NUMPY", &[major, 0][..], length, header.as_bytes(), data].concat()
}

/// Damage that Templar's token files and plain arrays share; `i` is the array.
fn npy_damage(b: &mut Bench, files: &Files, i: usize) {
    let data = vec![1; 2000];
    for header in HEADERS {
        for major in [1, 2, 3] {
            let mut files = files.clone();
            files[i].1 = npy(major, None, header, &data);
            b.refuse(&format!("header {header:?}"), &files);
        }
    }
    let good = "{'descr': '<u4', 'fortran_order': False, 'shape': (500,), }";
    for length in [0, 1, 58, 3000, 65535, 1 << 20, u32::MAX] {
        for major in [1, 2, 3] {
            let mut files = files.clone();
            files[i].1 = npy(major, Some(length), good, &data);
            b.refuse(&format!("header of {length} bytes"), &files);
        }
    }
    for major in [0, 4, 255] {
        let mut files = files.clone();
        files[i].1 = npy(major, None, good, &data);
        b.refuse(&format!("version {major}"), &files);
    }
}

#[test]
fn templar() {
    let mut b = Bench::new(Format::Templar);
    let files = valid(|o| o.seq_len = Some(100), Format::Templar, &["sample_ids_000000.bin", "train_000000.npy"]);
    b.cut(&files, 0, 100, |_| false);
    // Cut before its header is told, what is left is ids without header, in multiples of four.
    b.cut(&files, 1, 100, |_| false);
    b.flip(&files, 0, 100, |_| true);
    b.flip(&files, 1, 200, |at| at >= 128);
    npy_damage(&mut b, &files, 1);
    for ids in [vec![], vec![0; 8], vec![0; 160], vec![0; 168], npy(1, None, HEADERS[3], &[1; 2000])] {
        let mut files = files.clone();
        files[0].1 = ids;
        b.refuse("other ids", &files);
    }
    b.done();
}

#[test]
fn arrays() {
    let mut b = Bench::new(Format::Npy);
    let files = valid(|_| {}, Format::Npy, &["train.npy"]);
    b.cut(&files, 0, 150, |_| false);
    b.flip(&files, 0, 150, |_| false);
    npy_damage(&mut b, &files, 0);
    b.done();
}

/// A tar of one member whose header `change` may spoil before its checksum is made.
fn tar(name: &str, data: &[u8], change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    let mut block = *header.as_bytes();
    block[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    change(&mut block);
    let mut header = tar::Header::from_byte_slice(&block).clone();
    header.set_cksum();
    let pad = data.len().next_multiple_of(512) - data.len();
    [&header.as_bytes()[..], data, &vec![0; pad], &[0; 1024]].concat()
}

#[test]
fn tokshuf() {
    let mut b = Bench::new(Format::Tokshuf);
    let change = |o: &mut ExportOptions| (o.seq_len, o.pad) = (Some(300), Some(PAD));
    let files = valid(change, Format::Tokshuf, &["manifest.jsonl", "shard_00000000.tar"]);
    b.cut(&files, 0, 60, |_| false);
    let whole = files[1].1.len();
    b.cut(&files, 1, 150, |n| n >= whole - 512);
    b.flip(&files, 0, 50, |_| false);
    b.flip(&files, 1, 250, |_| true);
    let one = |bytes: Vec<u8>| vec![("shard_00000000.tar", bytes)];
    assert!(b.run("one context", &one(tar("a.json.gz", &gz(b"[1,2,3]"), |_| {}))).is_ok());
    assert!(b.run("spaces", &one(tar("a.json.gz", &gz(b" [ 1 , 2 ,3 ]\n"), |_| {}))).is_ok());
    for text in [
        "",
        " ",
        "[",
        "]",
        "[]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1]]",
        "[[1]]",
        "[1]x",
        "{}",
        "null",
        "1",
        "[-1]",
        "[1.5]",
        "[1e3]",
        "[\"1\"]",
        "[null]",
        "[01]",
        "[00]",
        "[4294967296]",
        "[99999999999999999999999]",
        "[1000]",
        "[1000,1000]",
        "\u{feff}[1]",
    ] {
        b.refuse(&format!("context {text:?}"), &one(tar("a.json.gz", &gz(text.as_bytes()), |_| {})));
    }
    for name in ["../a.json.gz", "/a.json.gz", "a/../../b.json.gz", "..", "a\\..\\b"] {
        b.refuse(name, &one(tar(name, &gz(b"[1,2,3]"), |_| {})));
    }
    for kind in b"1234567SVMZ" {
        b.refuse("a link or a device", &one(tar("a.json.gz", &gz(b"[1]"), |h| h[156] = *kind)));
    }
    for kind in b"LKxg0" {
        for size in [
            b"77777777777\0",
            b"00001000000\0",
            b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
            b"zzzzzzzzzzz\0",
        ] {
            b.refuse(
                "a size that lies",
                &one(tar("a.json.gz", &gz(b"[1]"), |h| {
                    h[156] = *kind;
                    h[124..136].copy_from_slice(size);
                })),
            );
        }
    }
    let two = |second: &[u8]| [&tar("a", &gz(b"[1,2,3]"), |_| {})[..1024], &tar("b", &gz(second), |_| {})].concat();
    assert!(b.run("two contexts", &one(two(b"[4,5,6]"))).is_ok());
    b.refuse("contexts of two lengths", &one(two(b"[4,5]")));
    b.refuse("more behind gzip", &one(tar("a", &[gz(b"[1]"), vec![0; 9]].concat(), |_| {})));
    b.refuse("no gzip", &one(tar("a.json", b"[1,2,3]", |_| {})));
    // Bombs: 64 MB of spaces, digits and ids in some 60 kB.
    for part in [" ", "1", "1,", "[", "[1] "] {
        let text = format!("[{}", part.repeat((64 << 20) / part.len()));
        b.refuse("a bomb", &one(tar("a.json.gz", &gz(text.as_bytes()), |_| {})));
    }
    for line in [
        "{}",
        "[]",
        "null",
        "{\"shard\":\"shard_00000000\"}",
        "{\"shard\":\"../a\",\"num_sequences\":7}",
        "{\"shard\":\"/etc/passwd\",\"num_sequences\":7}",
        "{\"shard\":\"\",\"num_sequences\":7}",
        "{\"shard\":\"shard_00000000\",\"num_sequences\":-1}",
        "{\"shard\":\"shard_00000000\",\"num_sequences\":8}",
        "{\"shard\":\"shard_00000000\",\"num_sequences\":18446744073709551615}",
        "{\"shard\":\"shard_00000009\",\"num_sequences\":7}",
        "x",
        "{\"shard\":7,\"num_sequences\":7}",
        "",
    ] {
        let mut files = files.clone();
        files[0].1 = line.into();
        b.refuse(&format!("manifest {line:?}"), &files);
    }
    b.done();
}

/// The index of one raw shard, its lengths and digests right, so that what it holds is met.
fn index(entry: &Value, raw: &[u8], zip: Option<&[u8]>) -> Vec<u8> {
    let file = |name: &str, bytes: &[u8]| {
        let sha1: String = Sha1::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        json!({"basename": name, "bytes": bytes.len(), "hashes": {"sha1": sha1}})
    };
    let mut entry = entry.clone();
    entry["raw_data"] = file("shard.00000.mds", raw);
    if let Some(zip) = zip {
        entry["compression"] = json!("zstd:1");
        entry["zip_data"] = file("shard.00000.mds.zstd", zip);
    }
    serde_json::to_vec(&json!({"version": 2, "shards": [entry]})).unwrap()
}

/// All places of a JSON value, by pointer.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_string());
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), into)),
        Value::Object(map) => map.iter().for_each(|(k, v)| pointers(v, &format!("{at}/{k}"), into)),
        _ => {}
    }
}

#[test]
fn mds() {
    let mut b = Bench::new(Format::Mds);
    let files = valid(|o| o.seq_len = Some(100), Format::Mds, &["index.json", "shard.00000.mds"]);
    let zipped =
        valid(|o| (o.seq_len, o.zstd) = (Some(100), true), Format::Mds, &["index.json", "shard.00000.mds.zstd"]);
    for files in [&files, &zipped] {
        b.cut(files, 0, 60, |_| false);
        b.cut(files, 1, 60, |_| false);
        b.flip(files, 1, 100, |_| true);
        b.refuse("no shard", &vec![files[0].clone()]);
    }
    b.flip(&files, 0, 100, |_| false);
    let whole: Value = serde_json::from_slice(&files[0].1).unwrap();
    let mut at = Vec::new();
    pointers(&whole, "", &mut at);
    for pointer in at {
        for wrong in [
            json!(null),
            json!(-1),
            json!(1.5),
            json!(u64::MAX),
            json!("../../etc/passwd"),
            json!("/etc/passwd"),
            json!([[]]),
            json!({}),
        ] {
            let mut bad = whole.clone();
            *bad.pointer_mut(&pointer).unwrap() = wrong.clone();
            let files = vec![("index.json", serde_json::to_vec(&bad).unwrap()), files[1].clone()];
            let outcome = b.run(&format!("{wrong} at {pointer:?}"), &files);
            // Keys that streaming writes and a reader has no use for may hold anything.
            let spare =
                ["size_limit", "hashes", "compression", "zip_data", "version"].iter().any(|k| pointer.contains(k));
            let kept = pointer.starts_with("/shards/0/column") && wrong.is_null();
            assert!(outcome.is_err() || spare || kept, "{wrong} at {pointer:?} was read");
        }
    }
    // The digests of the index are right, and the shard lies.
    let entry = &whole["shards"][0];
    let raw = &files[1].1;
    let sealed = |raw: Vec<u8>| vec![("index.json", index(entry, &raw, None)), ("shard.00000.mds", raw)];
    assert!(b.run("sealed", &sealed(raw.clone())).is_ok());
    let first = u32::from_le_bytes(raw[4..8].try_into().unwrap()) as usize;
    for at in [0, 4, 8, 4 * 11, 4 * 21, first, first + 4, first + 5] {
        for value in [0, 1, 3, 90, 1 << 16, 1 << 22, 1 << 31, u32::MAX - 3, u32::MAX] {
            let mut bad = raw.clone();
            bad[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            if bad != *raw {
                b.refuse(&format!("{value} at {at}"), &sealed(bad));
            }
        }
    }
    for at in 88..first {
        let mut bad = raw.clone();
        bad[at] ^= 1 << (at % 8);
        let _ = b.run(&format!("bit {} of byte {at} of the columns", at % 8), &sealed(bad));
    }
    let packed =
        |raw: &[u8], zip: Vec<u8>| vec![("index.json", index(entry, raw, Some(&zip))), ("shard.00000.mds.zstd", zip)];
    let zstd = |raw: &[u8]| ruzstd::encoding::compress_to_vec(raw, ruzstd::encoding::CompressionLevel::Fastest);
    b.refuse("other columns", &packed(&raw[..raw.len() - 1], zstd(raw)));
    b.refuse("bytes after the frame", &packed(raw, [zstd(raw), vec![0; 5]].concat()));
    b.refuse("two frames", &packed(raw, [zstd(raw), zstd(raw)].concat()));
    b.refuse("no frame", &packed(raw, raw.clone()));
    // Frames that ask for a window of gigabytes, and for the largest that is allowed.
    for window in [0x88, 0x90, 0xa8, 0xf8, 0xff] {
        b.refuse("a wide window", &packed(raw, vec![0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0]));
    }
    // Bombs: 64 MB of zeros in a few kB, more than the index says and just as much.
    let zeros = vec![0; 64 << 20];
    let bomb = zstd(&zeros);
    b.refuse("a bomb", &packed(raw, bomb.clone()));
    let mut lying = index(entry, &zeros, Some(&bomb));
    b.refuse("an honest bomb", &vec![("index.json", lying.clone()), ("shard.00000.mds.zstd", bomb.clone())]);
    // The last of these has no power of two above it.
    for claim in ["4294967295", "18446744073709551615"] {
        lying = String::from_utf8(lying).unwrap().replace("67108864", claim).into_bytes();
        b.refuse(
            "a bomb that claims more",
            &vec![("index.json", lying.clone()), ("shard.00000.mds.zstd", bomb.clone())],
        );
        lying = index(entry, &zeros, Some(&bomb));
    }
    drop(zeros);
    b.done();
}

#[test]
fn what_was_written_is_read() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in valid(|_| {}, Format::Nanogpt, &["train.bin"]) {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let read = Options { eos: Some(EOS), ..Options::default() };
    let documents = esker_data::formats::open(&[Path::new(dir.path()).into()], &read).unwrap();
    let all: Vec<Vec<u32>> = documents.map(Result::unwrap).collect();
    assert_eq!(all.len(), 40);
    assert_eq!(all.concat(), ids());
}
