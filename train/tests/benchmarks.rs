//! `esker eval --tasks` as a user meets it.

mod esker;

use esker::{esker, fails, json, model_folder};
use serde_json::Value;

/// Rows that fit into the context of a small model.
fn rows(dir: &std::path::Path) -> String {
    let row = |i: u32| format!("{{\"goal\":\"g{i}\",\"sol1\":\"ice\",\"sol2\":\"oak {i}\",\"label\":{}}}\n", i % 2);
    std::fs::write(dir.join("piqa.validation.jsonl"), (0..6).map(row).collect::<String>()).unwrap();
    let row = |i: u32| format!("{{\"text\":\"t {i} end{i}\"}}\n");
    std::fs::write(dir.join("lambada_openai.test.jsonl"), (0..4).map(row).collect::<String>()).unwrap();
    dir.to_string_lossy().into_owned()
}

#[test]
fn a_model_is_scored_in_table_json_and_samples() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (model_folder(dir.path()), rows(dir.path()));
    let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (samples, output) = (at("samples"), at("results.json"));
    let base =
        ["eval", "--model", &model, "--tasks", "piqa,lambada_openai", "--data", &data, "--bootstrap-iters", "100"];
    let got = json(&[&base[..], &["--json", "--log-samples", &samples, "--output", &output]].concat());
    let piqa = &got["results"]["piqa"];
    assert!(piqa["acc,none"].is_number() && piqa["acc_norm_stderr,none"].is_number(), "{got}");
    assert_eq!(got["n-samples"]["piqa"]["effective"], 6);
    assert_eq!(got["chance"]["piqa"]["acc,none"], 0.5);
    assert_eq!(got["versions"]["lambada_openai"], 1.0);
    let kept: Value = serde_json::from_str(&std::fs::read_to_string(&output).unwrap()).unwrap();
    assert_eq!(kept["results"], got["results"]);
    let lines = std::fs::read_to_string(dir.path().join("samples/samples_piqa.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(lines.lines().count(), 6);
    assert_eq!(first["arguments"]["gen_args_1"]["arg_0"], "Question: g0\nAnswer:");
    assert_eq!(first["arguments"]["gen_args_1"]["arg_1"], " oak 0");
    assert_eq!(first["target"], "0");
    let table = esker(&base).stdout;
    assert!(table.contains("piqa") && table.contains("perplexity") && table.contains("0.5000"), "{table}");
}

#[test]
fn what_is_missing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = (model_folder(dir.path()), rows(dir.path()));
    let eval = |more: &[&str], code, words: &[&str]| fails(&[&["eval", "--model", &model], more].concat(), code, words);
    eval(&["--tasks", "piqa"], 2, &["--data"]);
    eval(&["--tasks", "hellaswag", "--data", &data], 2, &["hellaswag.validation.jsonl", "ctx_b", "hub"]);
    eval(&["--tasks", "pika", "--data", &data], 2, &["no task \"pika\"", "openbookqa"]);
    eval(&["--tasks", "piqa", "--data", &data, "--num-fewshot", "2"], 2, &["piqa.train", "with examples"]);
    eval(&["--tasks", "piqa", "--data", "/no/such/folder"], 3, &["/no/such/folder"]);
    eval(&["--tasks", "piqa", "--data", &data, "--follow"], 2, &["not a run folder"]);
}

#[test]
fn every_checkpoint_of_a_run_is_scored_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = rows(dir.path());
    let out = dir.path().join("runs").to_string_lossy().into_owned();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/quickstart.toml");
    let sets = [
        "model.vocab=257",
        "model.context=48",
        "model.hidden=16",
        "model.layers=1",
        "model.heads=2",
        "model.kv_heads=1",
        "model.head_dim=8",
        "model.ffn=24",
        "data.tokenizer={kind=\"bytes\"}",
        "batch.tokens_per_step=64",
        "batch.seq_len=16",
        "batch.grain_rows=1",
        "batch.micro_rows=4",
        "train.steps=4",
        "checkpoint.every_steps=2",
        "checkpoint.keep_last=9",
        "schedule.warmup_steps=1",
        "sample.tokens=4",
        "validation.tokens=64",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let trained = json(&[&["train", config, "--out", &out, "--json"], &sets[..]].concat());
    let run = trained["folder"].as_str().unwrap();
    let follow = ["eval", "--model", run, "--follow", "--tasks", "piqa", "--data", &data, "--limit", "4"];
    let first = esker(&follow);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(first.stdout.contains("step 2,") && first.stdout.contains("step 4,"), "{}", first.stdout);
    let lines = || std::fs::read_to_string(std::path::Path::new(run).join("evals.jsonl")).unwrap();
    assert_eq!(lines().matches("\"task\":\"piqa\"").count(), 2);
    assert_eq!(esker(&follow).stdout, "", "all were scored");
    assert_eq!(lines().matches("\"task\":\"piqa\"").count(), 2);
    let report = std::fs::read_to_string(std::path::Path::new(run).join("report.html")).unwrap();
    assert!(report.contains("<h2>Benchmarks</h2>"));
}
