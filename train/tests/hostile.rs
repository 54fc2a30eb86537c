//! Bad files: each is refused with a message that names it, an exit code that blames the input, and no panic.
//!
//! The corpus is made here from good folders, one fault at a time.

mod esker;

use esker::{GOLDEN, Ran, esker, model_folder};
use std::path::Path;

/// A file, what becomes of it, and a word that the message must have beside the file's name.
type Fault = (&'static str, String, Change);

/// What is done to a file.
enum Change {
    /// Its bytes become these.
    Put(Vec<u8>),
    /// It is cut to this share.
    Cut(f64),
    /// This many bytes spread over it change.
    Flip(usize),
    /// A key of its JSON, as a pointer, becomes this.
    Set(&'static str, serde_json::Value),
    /// It is removed.
    Remove,
    /// A folder takes its place.
    Folder,
}

fn apply(path: &Path, change: &Change) {
    match change {
        Change::Put(bytes) => std::fs::write(path, bytes).unwrap(),
        Change::Cut(share) => {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
        }
        Change::Flip(count) => {
            let mut bytes = std::fs::read(path).unwrap();
            let len = bytes.len();
            (0..*count).for_each(|i| bytes[(i * 7919 + 3) % len] ^= 0x55);
            std::fs::write(path, bytes).unwrap();
        }
        Change::Set(pointer, value) => {
            let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = json.pointer_mut(parent).expect("a place in the file");
            match (parent, key.parse::<usize>()) {
                (serde_json::Value::Array(list), Ok(i)) => list[i] = value.clone(),
                (object, _) => object[key] = value.clone(),
            }
            std::fs::write(path, json.to_string()).unwrap();
        }
        Change::Remove => std::fs::remove_file(path).unwrap(),
        Change::Folder => {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }
    }
}

/// A safetensors file whose header claims what it likes.
fn lying(header: &str, claimed: u64, data: usize) -> Vec<u8> {
    let mut bytes = claimed.to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Faults that any JSON file can have.
fn json_faults(file: &'static str) -> Vec<Fault> {
    let put = |text: &str| Change::Put(text.as_bytes().to_vec());
    vec![
        (file, "empty".into(), put("")),
        (file, "null".into(), put("null")),
        (file, "a list".into(), put("[]")),
        (file, "a number".into(), put("1e999")),
        (file, "half".into(), Change::Cut(0.5)),
        (file, "deep".into(), Change::Put(vec![b'['; 100_000])),
        (file, "not UTF-8".into(), Change::Put(vec![0xff; 64])),
        (file, "zeros".into(), Change::Put(vec![0; 4096])),
        (file, "removed".into(), Change::Remove),
        (file, "a folder".into(), Change::Folder),
    ]
}

/// Faults that any safetensors file can have.
fn tensor_faults(file: &'static str) -> Vec<Fault> {
    let big = r#"{"model.norm.weight":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#;
    let back = r#"{"model.norm.weight":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#;
    let past = r#"{"model.norm.weight":{"dtype":"F32","shape":[1024],"data_offsets":[0,4096]}}"#;
    let len = |h: &str| h.len() as u64;
    vec![
        (file, "empty".into(), Change::Put(Vec::new())),
        (file, "seven bytes".into(), Change::Put(vec![1; 7])),
        (file, "a header of 2^63".into(), Change::Put(lying("{}", 1 << 63, 0))),
        (file, "a header of 2^40".into(), Change::Put(lying("{}", 1 << 40, 0))),
        (file, "no tensor".into(), Change::Put(lying("{}", 2, 0))),
        (file, "a shape that overflows".into(), Change::Put(lying(big, len(big), 16))),
        (file, "offsets backwards".into(), Change::Put(lying(back, len(back), 16))),
        (file, "offsets past the end".into(), Change::Put(lying(past, len(past), 16))),
        (file, "half".into(), Change::Cut(0.5)),
        (file, "all but a byte".into(), Change::Cut(0.999_999)),
        (file, "flipped header".into(), Change::Flip(1)),
        (file, "removed".into(), Change::Remove),
    ]
}

fn refused(ran: &Ran, file: &str, what: &str) {
    let words = format!("{file}, {what}: exit {}: {}", ran.code, ran.stderr);
    assert!([2, 3].contains(&ran.code), "{words}");
    assert!(ran.stderr.contains("error: "), "{words}");
    assert!(ran.stderr.contains(file.trim_end_matches(".safetensors").trim_end_matches(".json")), "{words}");
    assert!(ran.stderr.len() < 2_000, "{words}");
    assert!(ran.stdout.is_empty(), "{words}: {}", ran.stdout);
}

/// Runs `check` on a fresh copy of `good` for each fault.
fn each_fault(good: &Path, faults: &[Fault], run: impl Fn(&str) -> Ran + Sync) {
    let workers = 2;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let run = &run;
            scope.spawn(move || {
                for (file, what, change) in faults.iter().skip(worker).step_by(workers) {
                    let dir = tempfile::tempdir().unwrap();
                    for entry in std::fs::read_dir(good).unwrap().flatten() {
                        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
                    }
                    apply(&dir.path().join(file), change);
                    refused(&run(&dir.path().to_string_lossy()), file, what);
                }
            });
        }
    });
}

#[test]
fn parity_folders() {
    let mut faults = Vec::new();
    for file in ["tokens.json", "expected.json", "train.json", "config.json"] {
        faults.extend(json_faults(file));
    }
    for file in ["model.safetensors", "grads.safetensors"] {
        faults.extend(tensor_faults(file));
    }
    let set = |file, pointer: &'static str, value: serde_json::Value| {
        (file, format!("{pointer} = {value}"), Change::Set(pointer, value))
    };
    faults.extend([
        set("tokens.json", "/rows/0/0/3", 307.into()),
        set("tokens.json", "/rows/0/0/3", (-1).into()),
        set("tokens.json", "/rows/3/1", serde_json::json!([1, 2])),
        set("tokens.json", "/rows", serde_json::json!([[[]]])),
        set("expected.json", "/logprob/1", serde_json::json!([0.5])),
        set("expected.json", "/mean_nll", "six".into()),
        set("train.json", "/optimizer/lr", serde_json::Value::Null),
        set("train.json", "/optimizer/lr", (-1.0).into()),
        set("train.json", "/optimizer/eps", "small".into()),
        set("train.json", "/optimizer/kind", "Lion".into()),
        set("train.json", "/optimizer/schedule", "cosine".into()),
        set("train.json", "/steps", serde_json::json!([])),
        set("config.json", "/hidden_size", 0.into()),
        set("config.json", "/hidden_size", 65.into()),
        set("config.json", "/num_hidden_layers", 4_000_000_000u64.into()),
        set("config.json", "/num_hidden_layers", 3.into()),
        set("config.json", "/vocab_size", 308.into()),
        set("config.json", "/model_type", "gpt2".into()),
        set("config.json", "/num_key_value_heads", 3.into()),
        set("config.json", "/rms_norm_eps", "tiny".into()),
        set("config.json", "/max_position_embeddings", 8.into()),
        set("config.json", "/hidden_act", "gelu".into()),
    ]);
    assert!(faults.len() >= 60, "{}", faults.len());
    each_fault(Path::new(GOLDEN), &faults, |dir| esker(&["parity", dir, "--threads", "1"]));
}

#[test]
fn folders_of_models() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let mut faults = json_faults("config.json");
    // A folder without generation_config.json or model.safetensors is looked at in other ways.
    faults.extend(tensor_faults("model.safetensors").into_iter().filter(|f| f.1 != "removed"));
    faults.extend(json_faults("tokenizer.json"));
    // Without config.json the folder is no model, and the message names what is missing.
    each_fault(Path::new(&model), &faults, |dir| {
        esker(&["generate", "--model", dir, "--prompt", "a", "--tokens", "2", "--threads", "1", "--json"])
    });
}

#[test]
fn rows_to_score() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let deep = "[".repeat(50_000);
    let cases = [
        "",
        "{",
        "{}",
        "[]",
        "null",
        "{\"rows\": null}",
        "{\"rows\": [1, 2]}",
        "{\"rows\": [[1, 2], 3]}",
        "{\"rows\": [[1.5, 2]]}",
        "{\"rows\": [[-1, 2]]}",
        "{\"rows\": [[\"1\", 2]]}",
        "{\"rows\": [[257, 2]]}",
        "{\"rows\": [[2, 257]]}",
        "{\"rows\": [[1, 4294967295]]}",
        "{\"rows\": [[1, 4294967296]]}",
        "{\"rows\": [[1, 99999999999999999999999]]}",
        "{\"rows\": [[1, 1e3]]}",
        "{\"rows\": [[1, 2]]} trailing",
        "{\"rows\": [[1, 2]], \"rows\": [[1, 2]]}",
        "{\"tokens\": [[1, 2]]}",
        "\u{feff}{\"rows\": [[1, 2]]}",
        "{\"rows\": [[1, true]]}",
        deep.as_str(),
    ];
    for (i, text) in cases.iter().enumerate() {
        let path = dir.path().join(format!("case-{i}.json"));
        std::fs::write(&path, text).unwrap();
        let name = path.to_string_lossy();
        let ran = esker(&["score", "--model", &model, "--tokens", &name, "--threads", "1"]);
        refused(&ran, &format!("case-{i}.json"), &text[..text.len().min(60)]);
        assert_eq!(ran.code, 2);
    }
}
