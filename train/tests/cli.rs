//! The binary from outside: what is typed, what comes back, and with which exit code.

mod esker;

use esker::{GOLDEN, esker, fails, json, model_folder};

const COMMANDS: [&str; 18] = [
    "train", "plan", "generate", "score", "serve", "eval", "tokenize", "fetch", "import", "export", "parity", "bench",
    "doctor", "peer", "study", "sim", "replay", "watch",
];
const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/quickstart.toml");
/// The commands of `esker peers`.
const PEERS: [&str; 3] = ["local", "key", "invite"];
/// The commands of `esker data`.
const DATA: [&str; 6] = ["prepare", "import", "export", "verify", "inspect", "mix"];

#[test]
fn every_command_shows_an_example_of_itself() {
    for command in COMMANDS {
        let out = esker(&[command, "--help"]);
        assert_eq!(out.code, 0);
        assert!(out.stdout.contains("Example"), "{command}: {}", out.stdout);
        assert!(
            out.stdout.contains(&format!("  esker {command} ")) || command == "doctor",
            "{command}: {}",
            out.stdout
        );
    }
    for (group, commands) in [("data", &DATA[..]), ("peers", &PEERS)] {
        for command in commands {
            let out = esker(&[group, command, "--help"]);
            assert!(out.stdout.contains(&format!("  esker {group} {command} ")), "{command}: {}", out.stdout);
        }
    }
    let all = esker(&["--help"]).stdout;
    assert!(COMMANDS.iter().chain(&["data", "peers"]).all(|c| all.contains(c)), "{all}");
    assert!(all.contains("Exit codes:") && all.contains("130") && all.contains("Example:"), "{all}");
}

/// Of those commands whose examples need no more than this repository and a moment.
#[test]
fn examples_run_as_they_are_written() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    for command in [&["plan"][..], &["data", "mix"], &["data", "inspect"]] {
        let help = esker(&[command, &["--help"]].concat()).stdout;
        let begin = format!("  esker {} ", command.join(" "));
        let examples = help.lines().filter(|line| line.starts_with(&begin) && line.contains("configs/"));
        let examples: Vec<Vec<String>> = examples
            .map(|line| {
                line.split_whitespace().skip(1).map(|word| word.replace("configs/", &format!("{root}configs/")))
            })
            .map(Iterator::collect)
            .collect();
        assert!(!examples.is_empty(), "{help}");
        for example in examples {
            let words: Vec<&str> = example.iter().map(String::as_str).collect();
            let ran = esker(&words);
            assert_eq!(ran.code, 0, "{words:?}: {}", ran.stderr);
        }
    }
}

#[test]
fn a_misspelt_word_is_answered_with_the_right_one() {
    fails(&["trian", "x.toml"], 2, &["train"]);
    fails(&["plan", "x.toml", "--jsno"], 2, &["--json"]);
    fails(&["bench", "attentoin"], 2, &["did you mean \"attention\"?"]);
    fails(&["plan", QUICKSTART, "--set", "optim.lrr=1"], 2, &["optim.lr"]);
    fails(&["plan", QUICKSTART, "--set", "optimm.lr=1"], 2, &["optim"]);
    fails(&["plan", QUICKSTART, "--set", "optim.lr=fast"], 2, &["optim.lr", "\"fast\"", "expected a number"]);
    fails(&["plan", QUICKSTART, "--set", "train.steps=1.5"], 2, &["train.steps", "expected a whole number"]);
    fails(&["plan", QUICKSTART, "--set", "data.train=x"], 2, &["data.train", "expected a list"]);
    fails(&["plan", QUICKSTART, "--set", "model=3"], 2, &["model", "expected a section"]);
}

#[test]
fn exit_codes_tell_input_from_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let model = model_folder(dir.path());
    std::fs::write(path("bad.json"), "{\"rows\": [[1, -2]]}").unwrap();
    std::fs::write(path("good.json"), "{\"rows\": [[1, 2]]}").unwrap();
    std::fs::write(path("latin1.txt"), b"caf\xe9").unwrap();
    // What is wrong with the input: 2, and the file is named.
    fails(&["train"], 2, &["--resume"]);
    fails(&["score", "--model", &model, "--tokens", &path("bad.json")], 2, &["bad.json", "help:"]);
    fails(&["eval", "--model", &model, "--text", &path("latin1.txt")], 2, &["latin1.txt", "UTF-8"]);
    fails(&["eval", "--model", &model], 2, &["--text"]);
    fails(&["generate", "--model", &path("")], 2, &["config.json"]);
    fails(&["export", &model, &model], 2, &["has a model already"]);
    fails(&["train", "--resume", &model], 2, &["config.toml"]);
    fails(&["replay", &model], 2, &["no event log", "help:"]);
    fails(&["peer", "x.toml", "--join", "nowhere"], 2, &["HOST:PORT"]);
    fails(&["replay", QUICKSTART], 2, &["quickstart.toml", "no event log", "help:"]);
    fails(&["sim", "--rounds", "5", "--partition", "4", "2"], 2, &["--partition 4 2", "before"]);
    fails(&["tokenize", "--tokenizer", "byte", "--out", &path("o"), &path("latin1.txt")], 3, &["help:", "`bytes`"]);
    // Wishes without measure: threads that could not be ended any more, a year past the end of time.
    fails(&["generate", "--model", &model, "--threads", "1000000"], 2, &["--threads", "on this machine"]);
    fails(&["study", "liars", "--jobs", "1000000"], 2, &["--jobs", "on this machine"]);
    fails(&["train", QUICKSTART, "--set", "train.threads=4000", "--out", &path("r")], 3, &["4000", "at most"]);
    fails(&["peer", QUICKSTART, "--linger", &u64::MAX.to_string()], 2, &["--linger"]);
    fails(&["plan", QUICKSTART, "--set", "batch.tokens_per_step=1000000000000"], 2, &["at most", "step"]);
    // What the system refuses: 3.
    fails(&["score", "--model", &path("nowhere"), "--tokens", &path("good.json")], 3, &["nowhere"]);
    fails(&["score", "--model", &model, "--tokens", &path("nowhere.json")], 3, &["nowhere.json"]);
    fails(&["eval", "--model", &model, "--text", &path("nowhere.txt")], 3, &["nowhere.txt"]);
    fails(&["parity", &path("nowhere")], 3, &["nowhere"]);
}

#[test]
fn json_alone_stands_on_stdout() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    assert!(json(&["plan", QUICKSTART, "--json"])["params"].as_u64().unwrap() > 0);

    std::fs::write(path("rows.json"), "{\"rows\": [[1, 2, 3, 4], [5], [], [6, 7]]}").unwrap();
    let scores = json(&["score", "--model", &model, "--tokens", &path("rows.json")]);
    let rows: Vec<Vec<f64>> = serde_json::from_value(scores["logprob"].clone()).unwrap();
    assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0, 0, 1]);
    let mean = rows.iter().flatten().sum::<f64>() / -4.0;
    assert!((scores["mean_nll"].as_f64().unwrap() - mean).abs() < 1e-6, "{scores}");
    std::fs::write(path("none.json"), "{\"rows\": []}").unwrap();
    assert!(json(&["score", "--model", &model, "--tokens", &path("none.json")])["mean_nll"].is_null());

    std::fs::write(path("text.txt"), "It is a small world.\n").unwrap();
    let eval = json(&["eval", "--model", &model, "--text", &path("text.txt"), "--json"]);
    assert_eq!((eval["bytes"].as_u64(), eval["tokens"].as_u64()), (Some(21), Some(21)));

    let made = json(&["generate", "--model", &model, "--prompt", "a", "--tokens", "8", "--greedy", "--json"]);
    assert!(made["ids"].as_array().unwrap().len() <= 8 && made["prompt_ids"] == serde_json::json!([97]));
}

#[test]
fn a_model_survives_export_and_import() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let exported = json(&["export", &model, &path("f32"), "--json"]);
    assert_eq!((exported["ok"].as_bool(), exported["max_difference"].as_f64()), (Some(true), Some(0.0)));
    for file in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        assert!(dir.path().join("f32").join(file).is_file(), "{file}");
    }
    let bf16 = json(&["export", &path("f32"), &path("bf16"), "--dtype", "bf16", "--json"]);
    assert!(bf16["max_difference"].as_f64().unwrap() > 0.0 && bf16["ok"] == true, "{bf16}");
    json(&["import", &path("bf16"), &path("back"), "--json"]);
    std::fs::write(path("rows.json"), "{\"rows\": [[1, 2, 3, 4, 5, 6, 7, 8]]}").unwrap();
    let score = |model: &str| esker(&["score", "--model", &path(model), "--tokens", &path("rows.json")]).stdout;
    assert_eq!(score("bf16"), score("back"));
    assert_eq!(score("f32"), esker(&["score", "--model", &model, "--tokens", &path("rows.json")]).stdout);
}

#[test]
fn text_becomes_shards_that_can_be_scored() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let lines: String = (0..40).map(|i| format!("{{\"text\": \"document number {i}\"}}\n")).collect();
    std::fs::write(path("corpus.jsonl"), lines).unwrap();
    let out = path("tokens");
    let manifest = json(&[
        "tokenize",
        "--tokenizer",
        "bytes",
        "--out",
        &out,
        "--val-fraction",
        "0.5",
        "--json",
        &path("corpus.jsonl"),
    ]);
    let (train, val) = (&manifest["train"], &manifest["val"]);
    assert_eq!(train["documents"].as_u64().unwrap() + val["documents"].as_u64().unwrap(), 40);
    let shard = format!("{out}/{}", val["shards"][0]["file"].as_str().unwrap());
    let eval = json(&["eval", "--model", &model, "--shard", &shard, "--json"]);
    assert_eq!(eval["tokens"], val["tokens"]);
    assert_eq!(eval["bytes"], val["text_bytes"]);
    let again = esker(&["tokenize", "--tokenizer", "bytes", "--out", &out, &path("corpus.jsonl")]);
    assert_eq!(again.code, 2, "{}", again.stderr);
    let text = esker(&["tokenize", "--tokenizer", "bytes", "--out", &out, "--overwrite", &path("corpus.jsonl")]);
    assert!(text.stdout.contains("source = \"shards\""), "{}", text.stdout);
}

/// The smallest run there is, over a text of bytes in `dir`; gives its config.
fn tiny(dir: &std::path::Path) -> String {
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let lines: String = (0..60).map(|i| format!("{{\"text\": \"this is document number {i}\"}}\n")).collect();
    std::fs::write(path("corpus.jsonl"), lines).unwrap();
    let args = ["--tokenizer", "bytes", "--out", &path("tokens"), "--val-fraction", "0.5", &path("corpus.jsonl")];
    assert_eq!(esker(&[&["tokenize"][..], &args].concat()).code, 0);
    std::fs::write(path("tiny.toml"), include_str!("tiny.toml").replace('@', &path("tokens"))).unwrap();
    path("tiny.toml")
}

#[test]
fn a_run_that_cannot_begin_leaves_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (tiny(dir.path()), dir.path().join("runs").to_string_lossy().into_owned());
    fails(&["train", &config, "--out", &out, "--set", "data.train=[\"nope.shard\"]"], 3, &["nope.shard"]);
    fails(&["train", &config, "--out", &out, "--set", "model.vocab=100"], 2, &["model.vocab"]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    // One that began stays, whatever becomes of it.
    fails(&["train", &config, "--out", &out, "--set", "optim.lr=1e30", "--set", "optim.weight_decay=0"], 2, &["lr"]);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn a_run_goes_on_under_overrides_that_change_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let (config, out) = (tiny(dir.path()), dir.path().join("runs").to_string_lossy().into_owned());
    let run = json(&["train", &config, "--out", &out, "--json"])["folder"].as_str().unwrap().to_string();
    let again = json(&["train", "--resume", &run, "--set", "train.threads=2", "--json"]);
    assert_eq!(again["step"], 6);
    // Refused by its key, though the shapes of all tensors differ too; and nothing in the folder is touched.
    let kept = |name: &str| std::fs::read(std::path::Path::new(&run).join(name)).unwrap();
    let before = (kept("plan.json"), kept("config.toml"));
    fails(&["train", "--resume", &run, "--set", "model.ffn=32"], 2, &["model.ffn was 24 and is now 32"]);
    assert_eq!(before, (kept("plan.json"), kept("config.toml")));
    fails(&["train", "--resume", &format!("{run}/ckpt")], 2, &["did you mean"]);
    fails(&["train", "--resume", &format!("{run}-nope")], 3, &["tiny-001-nope", "help:"]);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let out = std::process::Command::new("sh")
        .args(["-c", "\"$0\" --help | true; \"$0\" plan \"$1\" | head -c 1"])
        .args([env!("CARGO_BIN_EXE_esker"), concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/quickstart.toml")])
        .output()
        .unwrap();
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn parity_of_the_golden_folder_says_what_it_allows() {
    let out = esker(&["parity", GOLDEN]);
    assert_eq!(out.code, 0, "{}{}", out.stdout, out.stderr);
    assert!(out.stdout.contains("agrees") && out.stdout.contains("allowed 1e-4"), "{}", out.stdout);
}

/// What `esker data` says of shards and of a run that reads them.
#[test]
fn shards_are_checked_and_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let lines: String = (0..60).map(|i| format!("{{\"text\": \"document number {i}\"}}\n")).collect();
    std::fs::write(path("corpus.jsonl"), lines).unwrap();
    let out = path("tokens");
    json(&[
        "tokenize",
        "--tokenizer",
        "bytes",
        "--out",
        &out,
        "--val-fraction",
        "0.2",
        "--json",
        &path("corpus.jsonl"),
    ]);

    let whole = json(&["data", "verify", &out, "--json"]);
    assert_eq!((whole["damaged"].as_u64(), whole["files"].as_array().unwrap().len()), (Some(0), 3), "{whole}");
    let lengths = json(&["data", "inspect", &out, "--json"]);
    assert_eq!(lengths["sources"][0]["longest"], "document number 59".len() + 1);
    let window = json(&["data", "inspect", &out, "--window", "1", "--seq", "24", "--json"]);
    let documents = window["documents"].as_array().unwrap();
    assert!(documents[1]["text"].as_str().unwrap().starts_with("document n"), "{window}");
    let text = esker(&["data", "inspect", &format!("{out}/val-00000.shard"), "--window", "0", "--seq", "9"]).stdout;
    assert!(text.contains("--- document 0 begins: its tokens 0 to 10 of"), "{text}");
    fails(&["data", "inspect", &out, "--step", "1"], 2, &["no steps"]);
    fails(&["data", "inspect", &out, "--window", "99999"], 2, &["there are"]);

    let quickstart =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/quickstart.toml")).unwrap();
    let toml = quickstart
        .replace("source = \"embedded\"", "source = \"shards\"")
        .replace("{ kind = \"bpe\", vocab = 512 }", "{ kind = \"bytes\" }")
        .replace("seq_len = 256", "seq_len = 16");
    let mixture = format!(
        "[[data.mixture]]\nname = \"most\"\nweight = 0.9\ntrain = [\"{out}/train-00000.shard\"]\n\
         [[data.mixture]]\nname = \"few\"\nweight = 0.1\ntrain = [\"{out}/val-00000.shard\"]\n"
    );
    std::fs::write(path("run.toml"), toml + &mixture).unwrap();
    let mix = json(&["data", "mix", &path("run.toml"), "--json"]);
    let tokens = |i: usize| mix["sources"][i]["realised_tokens"].as_u64().unwrap();
    assert_eq!((tokens(0) + tokens(1), tokens(0)), (340 * 4096, 340 * 4096 * 9 / 10), "{mix}");
    assert!(mix["sources"][1]["epochs"].as_f64().unwrap() > 1.0);
    assert!(esker(&["data", "mix", &path("run.toml")]).stdout.contains("most"));
    let step = json(&["data", "inspect", &path("run.toml"), "--step", "340", "--json"]);
    assert_eq!(step["rows"].as_array().unwrap().len(), 256);
    // What the step lists is what the row is.
    let last = &step["rows"][255];
    let row = last["row"].to_string();
    let shown = json(&["data", "inspect", &path("run.toml"), "--window", &row, "--json"]);
    assert_eq!((&shown["shard"], &shown["from"], &shown["source"]), (&last["shard"], &last["from"], &last["source"]));
    assert!(esker(&["data", "inspect", &path("run.toml"), "--step", "2"]).stdout.contains("train-00000.shard"));
    fails(&["data", "inspect", &path("run.toml"), "--step", "341"], 2, &["steps 1 to 340"]);

    // A byte of one shard, then the tokenizer: both are named.
    let shard = path("tokens/train-00000.shard");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    std::fs::write(path("tokens/tokenizer.json"), "{}").unwrap();
    let ran = esker(&["data", "verify", &out]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("DAMAGED") && ran.stdout.contains("train-00000.shard: bytes 4096 to"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("tokenizer.json: digest") && ran.stderr.contains("2 of 3 files"), "{}", ran.stdout);
    fails(&["data", "verify", &path("nowhere")], 3, &["nowhere"]);
    fails(&["data", "verify", dir.path().to_str().unwrap()], 2, &["holds no manifest.json"]);
}

#[test]
fn a_gguf_file_becomes_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let gguf = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/fuzz/corpus/gguf/valid-");
    for (name, text) in [("gpt2", "abab"), ("llama-2", "a a")] {
        let answer = json(&["import", &format!("{gguf}{name}"), &path(name), "--json"]);
        assert_eq!(answer["max_difference"], 0.0);
        json(&["generate", "--model", &path(name), "--prompt", text, "--tokens", "2", "--greedy", "--json"]);
    }
    fails(&["import", &format!("{gguf}gpt2"), &path("gpt2")], 2, &["has a model already"]);
    let damaged = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/fuzz/corpus/gguf/kind-q4-k");
    fails(&["import", damaged, &path("other")], 2, &["kind-q4-k", "blk.0.attn_q.weight", "Q4_K", "help:"]);
}
