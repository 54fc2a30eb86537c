//! Token files of other programs: every format of tests/datafmt is read, imported, exported again,
//! and found in place; the answers are those of Python (tests/datafmt/README.md).

use std::io::Read;
use std::path::{Path, PathBuf};

use blake2::{Blake2b, Digest, digest::consts::U32};
use esker_data::formats::{
    Division, Documents, ExportOptions, ExportReport, Format, FormatError, ImportOptions, InPlace, Int, Options,
    export, import, open,
};
use esker_data::{Batch, Loader, LoaderConfig, TokenSet, Tokenizer};
use serde_json::Value;
use tempfile::TempDir;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/datafmt").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if !name.ends_with(".gz") || name.ends_with(".csv.gz") {
        return bytes;
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
    plain
}

/// Puts files into a new folder.
fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

/// llm.c's file of a stream whose documents end with `from`: the mark moved to the front.
fn llmc(magic: [i32; 2], width: usize, stream: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 1024];
    for (i, n) in [magic[0], magic[1], (stream.len() / width) as i32].into_iter().enumerate() {
        header[4 * i..4 * i + 4].copy_from_slice(&n.to_le_bytes());
    }
    let turned = [&stream[stream.len() - width..], &stream[..stream.len() - width]].concat();
    header.extend(turned.chunks(width).flat_map(|id| if id == from { to } else { id }));
    header
}

fn llmc_gpt2() -> Vec<u8> {
    let mark = 50256u16.to_le_bytes();
    llmc([20240520, 1], 2, &fixture("gpt2.u16.gz"), &mark, &mark)
}

/// One of the formats as it comes.
struct Case {
    /// Its key in expected.json.
    key: &'static str,
    dir: TempDir,
    format: Format,
    eos: u32,
    vocab: u32,
}

fn case(key: &'static str, format: Format, eos: u32, vocab: u32, files: &[(&str, Vec<u8>)]) -> Case {
    Case { key, dir: folder(files), format, eos, vocab }
}

fn cases() -> Vec<Case> {
    let (gpt2, llama3) = (fixture("gpt2.u16.gz"), fixture("llama3.u32.gz"));
    let (end, begin) = (128001u32.to_le_bytes(), 128000u32.to_le_bytes());
    let llama3_llmc = llmc([20240801, 7], 4, &llama3, &end, &begin);
    let mds = |name: &str, files: &[&str]| -> Vec<(String, Vec<u8>)> {
        files.iter().map(|f| (f.trim_end_matches(".gz").to_string(), fixture(&format!("{name}/{f}")))).collect()
    };
    let i32s = mds("mds_i32", &["index.json", "shard.00000.mds.gz"]);
    let packed = mds("mds_bytes_zstd", &["index.json", "shard.00000.mds.zstd", "shard.00001.mds.zstd"]);
    let tars = mds("dclm_tokshuf", &["manifest.jsonl", "shard_00000000.tar", "shard_00000001.tar"]);
    fn refs(files: &[(String, Vec<u8>)]) -> Vec<(&str, Vec<u8>)> {
        files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect()
    }
    vec![
        case(
            "megatron/gpt2",
            Format::Megatron,
            50256,
            50257,
            &[("a.bin", gpt2.clone()), ("a.idx", fixture("gpt2.idx"))],
        ),
        case(
            "megatron/llama3",
            Format::Megatron,
            128001,
            128256,
            &[("a.bin", llama3.clone()), ("a.idx", fixture("llama3.idx"))],
        ),
        case("llmc/gpt2_train", Format::Llmc, 50256, 50257, &[("train.bin", llmc_gpt2())]),
        case("llmc/llama3_train", Format::Llmc, 128000, 128256, &[("train.bin", llama3_llmc)]),
        case("nanogpt", Format::Nanogpt, 50256, 50257, &[("train.bin", gpt2.clone())]),
        case(
            "olmo",
            Format::Olmo,
            0,
            50280,
            &[("part-0-00000.npy", fixture("olmo.npy.gz")), ("part-0-00000.csv.gz", fixture("olmo.csv.gz"))],
        ),
        case(
            "datatrove/gpt2",
            Format::Datatrove,
            50256,
            50257,
            &[("a.ds", gpt2), ("a.ds.index", fixture("gpt2.ds.index"))],
        ),
        case(
            "datatrove/llama3",
            Format::Datatrove,
            128001,
            128256,
            &[("a.ds", llama3), ("a.ds.index", fixture("llama3.ds.index"))],
        ),
        case("mds_i32", Format::Mds, 128001, 128256, &refs(&i32s)),
        case("mds_bytes_zstd", Format::Mds, 128001, 128256, &refs(&packed)),
        case("dclm_tokshuf", Format::Tokshuf, 0, 50280, &refs(&tars)),
        case(
            "templar",
            Format::Templar,
            1,
            262144,
            &[
                ("train_000000.npy", fixture("templar/train_000000.npy.gz")),
                ("sample_ids_000000.bin", fixture("templar/sample_ids_000000.bin")),
            ],
        ),
    ]
}

/// An id that occurs nowhere, so that no context of tokshuf loses its end.
const NO_PAD: u32 = u32::MAX;

impl Case {
    fn options(&self) -> Options {
        let pad = (self.format == Format::Tokshuf).then_some(NO_PAD);
        Options { eos: Some(self.eos), pad, ..Options::default() }
    }

    fn read(&self, options: &Options) -> Documents {
        open(&[self.dir.path().to_path_buf()], options).unwrap()
    }

    /// Imports with a vocabulary and no tokenizer, and exports again.
    fn there_and_back(&self, read: Options, options: &ExportOptions) -> (TempDir, ExportReport) {
        let (shards, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pad_vocab = self.vocab;
        // Small shards, so that documents lie in several.
        let import_options =
            ImportOptions { read, vocab_size: Some(pad_vocab), shard_tokens: 9000, ..Default::default() };
        let report = import(&[self.dir.path().into()], None, shards.path(), &import_options, &mut |_, _| {}).unwrap();
        assert!(report.manifest.train.shards.len() > 1, "{}", self.key);
        let mut calls = Vec::new();
        let report = export(shards.path(), out.path(), options, &mut |done, all| calls.push((done, all))).unwrap();
        assert!(calls.is_sorted() && calls.last().is_some_and(|(done, all)| done == all), "{}: {calls:?}", self.key);
        (out, report)
    }
}

fn same_files(key: &str, got: &Path, want: &Path, names: &[(&str, &str)]) {
    for (a, b) in names {
        let (a, b) = (std::fs::read(got.join(a)).unwrap(), std::fs::read(want.join(b)).unwrap());
        let differ = a.iter().zip(&b).position(|(a, b)| a != b);
        assert!(a == b, "{key}: {names:?} differ first at {differ:?}; {} and {} bytes", a.len(), b.len());
    }
}

#[test]
fn every_fixture_is_found_and_read_as_python_reads_it() {
    let expected: Value = serde_json::from_slice(&fixture("expected.json")).unwrap();
    let cases = cases();
    assert_eq!(cases.len(), expected.as_object().unwrap().len());
    for case in &cases {
        let want = &expected[case.key];
        let documents = case.read(&case.options());
        assert_eq!(documents.format(), case.format, "{}", case.key);
        let documents: Vec<Vec<u32>> = documents.map(Result::unwrap).collect();
        assert!(documents.iter().all(|d| !d.is_empty()));
        let mut ids: Vec<u32> = documents.concat();
        if case.format == Format::Llmc {
            // Ours end with the mark; theirs begin with it.
            ids.rotate_right(1);
        }
        if !matches!(case.format, Format::Mds | Format::Tokshuf | Format::Templar) {
            assert_eq!(documents.len(), 10, "{}", case.key);
            assert!(documents.iter().all(|d| d.last() == Some(&case.eos)), "{}", case.key);
        }
        let json = |ids: &[u32]| serde_json::to_value(ids).unwrap();
        assert_eq!(ids.len(), want["tokens"], "{}", case.key);
        assert_eq!(json(&ids[..12]), want["first"], "{}", case.key);
        assert_eq!(json(&ids[ids.len() - 6..]), want["last"], "{}", case.key);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let digest: String = Blake2b::<U32>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(want["blake2b256_of_u32"], digest, "{}", case.key);
    }
}

#[test]
fn samples_contexts_and_windows_are_kept_whole_when_asked_for() {
    for (key, pad, count, length) in [
        ("mds_i32", NO_PAD, 26, 1024),
        ("mds_bytes_zstd", NO_PAD, 26, 1024),
        ("dclm_tokshuf", 50256, 14, 2049),
        ("templar", NO_PAD, 13, 2048),
    ] {
        let case = cases().into_iter().find(|c| c.key == key).unwrap();
        let options = Options { pad: Some(pad), division: Division::Records, ..case.options() };
        let records: Vec<Vec<u32>> = case.read(&options).map(Result::unwrap).collect();
        assert_eq!(records.len(), count, "{key}");
        let short = records.iter().filter(|r| r.len() < length).count();
        // One context was filled up with 1023 PADs, which are gone.
        assert_eq!(short, usize::from(key == "dclm_tokshuf"));
        assert_eq!(records.iter().map(Vec::len).sum::<usize>(), count * length - 1023 * short);
        // Divided at marks, every piece is closed or ends where its record ends.
        let options = Options { division: Division::Auto, ..options };
        let parts: Vec<Vec<u32>> = case.read(&options).map(Result::unwrap).collect();
        assert_eq!(parts.concat(), records.concat());
        assert!(parts.iter().all(|p| !p[..p.len() - 1].contains(&case.eos)));
        assert!(parts.len() > 5);
    }
}

#[test]
fn import_and_export_give_the_same_bytes() {
    for case in cases() {
        let mut to = ExportOptions::new(case.format);
        let mut read = case.options();
        let dir = case.dir.path();
        match case.format {
            Format::Megatron => {
                let (out, _) = case.there_and_back(read, &to);
                same_files(case.key, out.path(), dir, &[("train.bin", "a.bin"), ("train.idx", "a.idx")]);
            }
            Format::Llmc | Format::Nanogpt => {
                let (out, _) = case.there_and_back(read, &to);
                same_files(case.key, out.path(), dir, &[("train.bin", "train.bin")]);
            }
            Format::Olmo => {
                let (out, _) = case.there_and_back(read, &to);
                same_files(case.key, out.path(), dir, &[("train.npy", "part-0-00000.npy")]);
                // The names of documents are not kept; where they start and end is.
                let spans = |path: PathBuf| -> Vec<String> {
                    let mut text = String::new();
                    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
                    assert!(text.ends_with("\r\n"));
                    text.lines().map(|row| row.splitn(3, ',').take(2).collect::<Vec<_>>().join(",")).collect()
                };
                assert_eq!(spans(out.path().join("train.csv.gz")), spans(dir.join("part-0-00000.csv.gz")));
            }
            Format::Datatrove => {
                let (out, _) = case.there_and_back(read, &to);
                same_files(case.key, out.path(), dir, &[("train.ds", "a.ds"), ("train.ds.index", "a.ds.index")]);
            }
            Format::Templar => {
                to.seq_len = Some(2048);
                let (out, report) = case.there_and_back(read, &to);
                assert_eq!(report.dropped_tokens, 0);
                let names = ["train_000000.npy", "sample_ids_000000.bin"];
                same_files(case.key, &out.path().join("train"), dir, &names.map(|n| (n, n)));
            }
            Format::Mds if case.key == "mds_i32" => {
                (to.seq_len, to.file_bytes) = (Some(1024), Some(131072));
                let (out, _) = case.there_and_back(read, &to);
                let names = ["index.json", "shard.00000.mds"];
                same_files(case.key, &out.path().join("train"), dir, &names.map(|n| (n, n)));
            }
            Format::Mds => {
                (to.seq_len, to.file_bytes, to.bytes_column, to.zstd) = (Some(1024), Some(131072), true, true);
                let (out, _) = case.there_and_back(read.clone(), &to);
                // Another level of zstd, so other bytes, of one letter even in the raw shard; the
                // same division into shards and the same samples.
                let read_again = |dir: &Path| -> Vec<Vec<u32>> {
                    let options = Options { division: Division::Records, ..case.options() };
                    open(&[dir.into()], &options).unwrap().map(Result::unwrap).collect()
                };
                let again = out.path().join("train");
                assert_eq!(read_again(&again), read_again(dir));
                let index = |dir: &Path| -> Vec<(Value, Value)> {
                    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
                    let shards = index["shards"].as_array().unwrap();
                    shards.iter().map(|s| (s["samples"].clone(), s["raw_data"]["bytes"].clone())).collect()
                };
                assert_eq!(index(&again), index(dir));
            }
            Format::Tokshuf => {
                (to.seq_len, to.pad, to.records, to.samples_per_file) = (Some(2049), Some(50256), true, Some(7));
                (read.pad, read.division) = (Some(50256), Division::Records);
                let (out, report) = case.there_and_back(read.clone(), &to);
                assert_eq!(report.padded_tokens, 1023);
                let again = out.path().join("train");
                same_files(case.key, &again, dir, &[("manifest.jsonl", "manifest.jsonl")]);
                // gzip and UUIDs differ; the lists inside are equal byte for byte.
                let lists = |dir: &Path| -> Vec<Vec<u8>> {
                    let names = ["shard_00000000.tar", "shard_00000001.tar"];
                    let mut lists = Vec::new();
                    for name in names {
                        let mut tar = tar::Archive::new(std::fs::File::open(dir.join(name)).unwrap());
                        for entry in tar.entries().unwrap() {
                            let mut json = Vec::new();
                            flate2::read::GzDecoder::new(entry.unwrap()).read_to_end(&mut json).unwrap();
                            lists.push(json);
                        }
                    }
                    lists
                };
                assert_eq!(lists(&again), lists(dir));
            }
            Format::Npy => unreachable!("has no fixture; below"),
        }
    }
}

#[test]
fn npy_arrays_are_written_as_numpy_writes_them() {
    let case = &cases()[4];
    for (seq_len, header) in [
        (None, "{'descr': '<u2', 'fortran_order': False, 'shape': (27325,), }"),
        (Some(100), "{'descr': '<u2', 'fortran_order': False, 'shape': (273, 100), }"),
    ] {
        let to = ExportOptions { seq_len, ..ExportOptions::new(Format::Npy) };
        let (out, report) = case.there_and_back(case.options(), &to);
        let file = std::fs::read(out.path().join("train.npy")).unwrap();
        let want = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes()].concat();
        assert_eq!(file[..want.len()], want);
        assert_eq!(file[127], b'\n');
        let gpt2 = fixture("gpt2.u16.gz");
        assert_eq!(file[128..], gpt2[..gpt2.len() - 2 * report.dropped_tokens as usize]);
        let options = Options { eos: Some(50256), ..Options::default() };
        let documents = open(&[out.path().into()], &options).unwrap();
        assert_eq!(documents.format(), Format::Npy);
        assert_eq!(documents.count(), seq_len.map_or(10, |_| 273));
    }
}

#[test]
fn in_place_is_what_streaming_reads() {
    for case in cases() {
        let path = case.dir.path();
        let mut files: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|f| {
            let name = f.file_name().unwrap().to_str().unwrap();
            !name.starts_with("sample_ids") && [".bin", ".npy", ".ds"].iter().any(|e| name.ends_with(e))
        });
        let Some(file) = files.first() else {
            assert!(matches!(case.format, Format::Mds | Format::Tokshuf));
            let error = InPlace::open(path, &case.options()).unwrap_err().to_string();
            assert!(error.contains("packed"), "{error}");
            continue;
        };
        let set = InPlace::open(file, &case.options()).unwrap();
        let mut documents: Vec<Vec<u32>> = case.read(&case.options()).map(Result::unwrap).collect();
        if case.format == Format::Llmc {
            // In place nothing can be added: the last document has no mark.
            documents.last_mut().unwrap().pop();
        }
        assert_eq!(set.documents(), documents.len() as u64, "{}", case.key);
        assert_eq!(set.tokens(), documents.concat().len() as u64);
        let mut at = 0;
        for (d, document) in documents.iter().enumerate() {
            let range = set.document(d as u64);
            assert_eq!(range, at..at + document.len() as u64, "{}: document {d}", case.key);
            let mut ids = vec![0; document.len()];
            set.slice(at, &mut ids).unwrap();
            assert_eq!(ids, *document);
            assert_eq!((set.document_of(range.start), set.document_of(range.end - 1)), (d as u64, d as u64));
            at = range.end;
        }
        assert_eq!(set.document_of(at), set.documents());
    }
}

/// Rows of foreign files, without a copy, are those of the shards that import makes of them.
#[test]
fn rows_of_foreign_files_are_those_of_their_import() {
    for key in ["megatron/llama3", "nanogpt", "olmo", "datatrove/gpt2", "templar"] {
        let case = cases().into_iter().find(|c| c.key == key).unwrap();
        let documents = case.read(&case.options());
        let file = documents.path().to_path_buf();
        let files = vec![InPlace::open(&file, &case.options()).unwrap()];
        let foreign = TokenSet::from_foreign(files, case.vocab, Some(case.eos)).unwrap();
        let memory = documents.map(|d| {
            let mut ids = d.unwrap();
            assert!(ids.pop() == Some(case.eos) || key == "templar");
            (ids, 0)
        });
        // In memory each document gets its mark back; Templar's last has none, and ends the set.
        let memory = TokenSet::from_documents(memory, case.vocab, Some(case.eos)).unwrap();
        let config = LoaderConfig { seq_len: 64, seed: 3, ignore_boundary: true };
        let rows = |set: TokenSet| {
            let loader = Loader::new(set, config).unwrap();
            let mut b = [vec![0; 64 * 400], vec![0; 64 * 400], vec![0; 64 * 400]];
            let [inputs, targets, doc_first] = &mut b;
            loader.fill(0, 400, Batch { inputs, targets, doc_first: Some(doc_first) }).unwrap();
            b
        };
        assert!(rows(foreign) == rows(memory), "{key}");
    }
}

#[test]
fn both_forms_of_sample_ids_and_shifted_windows_are_taken() {
    let (train, ids) = (fixture("templar/train_000000.npy.gz"), fixture("templar/sample_ids_000000.bin"));
    let npy = fixture("templar/npyhdr.sample_ids_000000.bin");
    let options = Options { eos: Some(1), ..Options::default() };
    let read = |train: &[u8], ids: &[u8]| {
        let dir = folder(&[("train_000000.npy", train.to_vec()), ("sample_ids_000000.bin", ids.to_vec())]);
        let documents: Result<Vec<_>, _> = open(&[dir.path().into()], &options)?.collect();
        documents.map(|d| d.len())
    };
    assert_eq!(read(&train, &ids).unwrap(), 6);
    assert_eq!(read(&train, &npy).unwrap(), 6);
    // Without a header of its own.
    assert_eq!(read(&train[128..], &ids).unwrap(), 6);
    // Hashed from the start of the file, header and all.
    let hash = |w: &[u8]| Blake2b::<blake2::digest::consts::U8>::digest(w).to_vec();
    let shifted: Vec<u8> = (0..13).flat_map(|i| hash(&train[i * 8192..(i + 1) * 8192])).collect();
    assert_eq!(read(&train, &shifted).unwrap(), 6);
    // One window of another text.
    for i in 0..13 {
        let mut wrong = ids.clone();
        wrong[8 * i + 3] ^= 1;
        let error = read(&train, &wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("window {i} of 2048")), "{error}");
    }
}

#[test]
fn llmc_files_cut_inside_documents_keep_every_id() {
    let file = |ids: &[u16]| {
        let mut bytes = vec![0; 1024];
        for (i, n) in [20240520, 1, ids.len() as i32].into_iter().enumerate() {
            bytes[4 * i..4 * i + 4].copy_from_slice(&n.to_le_bytes());
        }
        bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes
    };
    let read = |files: &[&[u16]]| -> Vec<Vec<u32>> {
        let files: Vec<(String, Vec<u8>)> =
            files.iter().enumerate().map(|(i, ids)| (format!("train_{i}.bin"), file(ids))).collect();
        let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        open(&[folder(&files).path().into()], &Options::default()).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(read(&[&[9, 1, 2, 9, 3]]), [vec![1, 2, 9], vec![3, 9]]);
    assert_eq!(read(&[&[9, 9, 1, 9]]), [vec![9], vec![1, 9], vec![9]]);
    assert_eq!(read(&[&[9]]), [vec![9]]);
    // The second file goes on with the document of the first.
    assert_eq!(read(&[&[9, 1, 2], &[3, 9, 4]]), [vec![1, 2], vec![3, 9], vec![4, 9]]);
    assert_eq!(read(&[&[9, 1], &[9, 2]]), [vec![1, 9], vec![2, 9]]);
    let counted = |documents: Vec<Vec<u32>>| documents.concat().iter().filter(|&&id| id == 9).count();
    assert_eq!(counted(read(&[&[9, 1, 9], &[3, 9, 9], &[5, 9]])), 5);
}

#[test]
fn megatron_types_sequences_and_modes() {
    let idx = |code: u8, width: u64, lengths: &[i32], documents: &[i64], modes: &[i8]| {
        let mut b = b"MMIDIDX\0\0".to_vec();
        b.extend(1u64.to_le_bytes());
        b.push(code);
        b.extend((lengths.len() as u64).to_le_bytes());
        b.extend((documents.len() as u64).to_le_bytes());
        b.extend(lengths.iter().flat_map(|n| n.to_le_bytes()));
        let mut at = 0u64;
        for &n in lengths {
            b.extend(at.to_le_bytes());
            at += n as u64 * width;
        }
        b.extend(documents.iter().flat_map(|n| n.to_le_bytes()));
        b.extend(modes.iter().map(|&m| m as u8));
        b
    };
    let read = |int: Int, ids: &[u32], index: Vec<u8>| -> Result<Vec<Vec<u32>>, FormatError> {
        let mut bin = Vec::new();
        int.write(ids, &mut bin).unwrap();
        let dir = folder(&[("x.bin", bin), ("x.idx", index)]);
        open(&[dir.path().join("x.idx")], &Options::default())?.collect()
    };
    for (code, int) in [(1, Int::U8), (2, Int::I8), (3, Int::I16), (4, Int::I32), (5, Int::I64), (8, Int::U16)] {
        let width = int.bytes() as u64;
        // Two sequences in the first document; an empty one; an empty document.
        let ids = [5, 6, 7, 8, 9, 100];
        let index = idx(code, width, &[2, 1, 0, 3], &[0, 2, 2, 4], &[]);
        assert_eq!(read(int, &ids, index).unwrap(), [vec![5, 6, 7], vec![8, 9, 100]]);
        let index = idx(code, width, &[2, 1, 0, 3], &[0, 2, 2, 4], &[0; 4]);
        assert_eq!(read(int, &ids, index).unwrap().len(), 2);
        let index = idx(code, width, &[2, 1, 0, 3], &[0, 2, 2, 4], &[0, 1, 0, 0]);
        assert!(read(int, &ids, index).unwrap_err().to_string().contains("mode"));
        for documents in [&[0i64, 2, 1, 4][..], &[0, 2, 5], &[1, 4], &[0, 2], &[0, -1, 4], &[4]] {
            let index = idx(code, width, &[2, 1, 0, 3], documents, &[]);
            assert!(read(int, &ids, index).unwrap_err().to_string().contains("document entry"), "{documents:?}");
        }
    }
    for code in [0, 6, 7, 9, 255] {
        assert!(read(Int::U16, &[1, 2], idx(code, 2, &[2], &[0, 1], &[])).unwrap_err().to_string().contains("type"));
    }
}

#[test]
fn a_tokenizer_gives_vocabulary_end_mark_and_bytes_of_text() {
    let tokenizer = Tokenizer::bytes();
    let texts = ["An esker", "", "is a ridge ⛰"];
    let mut bin = Vec::new();
    for text in texts {
        let mut ids = tokenizer.encode(text).unwrap();
        ids.push(tokenizer.eos().unwrap());
        Int::U16.write(&ids, &mut bin).unwrap();
    }
    let (dir, out) = (folder(&[("val.bin", bin)]), tempfile::tempdir().unwrap());
    let inputs = [dir.path().to_path_buf()];
    let report = import(&inputs, Some(&tokenizer), out.path(), &ImportOptions::default(), &mut |_, _| {}).unwrap();
    let m = &report.manifest;
    assert_eq!((report.documents, report.unclosed_documents), (3, 0));
    assert_eq!((m.vocab_size, Some(m.eos)), (tokenizer.vocab_size(), tokenizer.eos()));
    assert_eq!(m.train.text_bytes, texts.iter().map(|t| t.len() as u64).sum::<u64>());
    assert_eq!(std::fs::read(out.path().join("tokenizer.json")).unwrap(), tokenizer.json());
    let again = import(&inputs, Some(&tokenizer), out.path(), &ImportOptions::default(), &mut |_, _| {});
    assert!(again.unwrap_err().to_string().contains("holds a data set already"));
    let over = ImportOptions { overwrite: true, val_fraction: 0.5, ..Default::default() };
    let halved = import(&inputs, Some(&tokenizer), out.path(), &over, &mut |_, _| {}).unwrap();
    assert_eq!(halved.manifest.train.documents + halved.manifest.val.documents, 3);
}

#[test]
fn what_is_missing_or_does_not_fit_is_said() {
    let case = |key: &str| cases().into_iter().find(|c| c.key == key).unwrap();
    let out = tempfile::tempdir().unwrap();
    let try_import = |case: &Case, read: Options, vocab: Option<u32>| {
        let options = ImportOptions { read, vocab_size: vocab, overwrite: true, ..Default::default() };
        import(&[case.dir.path().into()], None, out.path(), &options, &mut |_, _| {}).unwrap_err().to_string()
    };
    let says = |message: String, parts: &[&str]| {
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    };
    let nanogpt = case("nanogpt");
    says(try_import(&nanogpt, Options::default(), Some(50257)), &["--eos"]);
    says(try_import(&nanogpt, nanogpt.options(), None), &["--tokenizer", "--vocab-size"]);
    says(try_import(&nanogpt, nanogpt.options(), Some(50000)), &["end mark", "50256"]);
    says(
        try_import(&nanogpt, Options { eos: Some(13), ..Options::default() }, Some(3000)),
        &["train.bin", "of document 0", "--vocab-size"],
    );
    says(
        try_import(&nanogpt, Options { division: Division::Records, ..nanogpt.options() }, Some(50257)),
        &["no records"],
    );
    says(
        try_import(&nanogpt, Options { max_document_tokens: 100, ..nanogpt.options() }, Some(50257)),
        &["longer than 100", "--eos"],
    );
    let tokshuf = case("dclm_tokshuf");
    says(try_import(&tokshuf, Options { pad: None, ..tokshuf.options() }, Some(50280)), &["--pad", "50256"]);
    says(try_import(&tokshuf, Options { eos: None, ..tokshuf.options() }, Some(50280)), &["--eos"]);
    let bytes = case("mds_bytes_zstd");
    says(
        try_import(&bytes, Options { column: Some("text".into()), ..bytes.options() }, Some(128256)),
        &["tokens", "--column"],
    );
    let olmo = case("olmo");
    std::fs::remove_file(olmo.dir.path().join("part-0-00000.csv.gz")).unwrap();
    says(try_import(&olmo, olmo.options(), Some(50280)), &["--dtype", ".csv.gz"]);
    let with = |files: &[(&str, Vec<u8>)], read: Options| {
        let dir = folder(files);
        open(&[dir.path().into()], &read).and_then(|d| d.collect::<Result<Vec<_>, _>>()).unwrap_err().to_string()
    };
    let mut eval = vec![0; 1100];
    eval[..4].copy_from_slice(&20240522i32.to_le_bytes());
    says(with(&[("hellaswag_val.bin", eval)], Options::default()), &["evaluation", "20240522"]);
    let ids: Vec<u8> = vec![1, 0, 2, 0];
    let ds = |loss: &[u8]| {
        vec![("a.ds", ids.clone()), ("a.ds.index", 2u64.to_le_bytes().to_vec()), ("a.ds.loss", loss.to_vec())]
    };
    says(with(&ds(&[1, 0]), Options::default()), &["1 of 2", "--drop-loss-mask"]);
    says(with(&ds(&[1]), Options::default()), &["a.ds.loss", "one a token"]);
    says(with(&[("notes.md", vec![1])], Options::default()), &["no known format", "index.json"]);
    says(with(&[("a.bin", ids.clone()), ("b.ds", ids.clone())], Options::default()), &["nanogpt", "datatrove"]);

    // Export: what cannot be said in the format.
    let shards = tempfile::tempdir().unwrap();
    let llama3 = case("datatrove/llama3");
    let options = ImportOptions { read: llama3.options(), vocab_size: Some(128256), ..Default::default() };
    import(&[llama3.dir.path().into()], None, shards.path(), &options, &mut |_, _| {}).unwrap();
    let try_export = |change: &dyn Fn(&mut ExportOptions), format: Format| {
        let mut options = ExportOptions::new(format);
        change(&mut options);
        export(shards.path(), &out.path().join("x"), &options, &mut |_, _| {}).unwrap_err().to_string()
    };
    says(try_export(&|_| {}, Format::Nanogpt), &["train.bin", "does not fit u16", "--dtype"]);
    says(try_export(&|_| {}, Format::Templar), &["--seq-len"]);
    says(try_export(&|_| {}, Format::Mds), &["--seq-len"]);
    says(try_export(&|o| o.seq_len = Some(2049), Format::Tokshuf), &["--pad"]);
    says(try_export(&|o| o.records = true, Format::Megatron), &["records"]);
    says(try_export(&|o| o.int = Some(Int::U32), Format::Megatron), &["i32"]);
    says(try_export(&|o| (o.records, o.seq_len) = (true, Some(10)), Format::Tokshuf), &["no context of 10"]);
    // Nothing half written is left.
    let left = std::fs::read_dir(out.path().join("x"))
        .map_or(0, |d| d.filter(|e| e.as_ref().unwrap().path().is_file()).count());
    assert_eq!(left, 0);
}
