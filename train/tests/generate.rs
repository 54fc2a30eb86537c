//! A trained model from elsewhere, through the binary: it says what its makers' tools make it say.
//!
//! stories260K (Karpathy, tinyllamas) and its greedy continuations by transformers lie with the tests of esker-model, its
//! tokenizer with those of esker-data.

mod esker;

use esker::{esker, json};
use std::path::Path;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/stories260K");
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/tests/golden/stories260K.tokenizer.json");

/// The model as one Hugging Face folder.
fn stories(dir: &Path) -> String {
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(Path::new(MODEL).join(file), dir.join(file)).unwrap();
    }
    std::fs::copy(TOKENIZER, dir.join("tokenizer.json")).unwrap();
    dir.to_string_lossy().into_owned()
}

fn cases() -> Vec<serde_json::Value> {
    let text = std::fs::read(Path::new(MODEL).join("greedy.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&text).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

#[test]
fn greedy_continuations_equal_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let model = stories(dir.path());
    let cases = cases();
    let prompts = ["", "Once upon a time", "The dog and the cat"];
    assert_eq!(cases.len(), prompts.len());
    for (case, prompt) in cases.iter().zip(prompts) {
        let want = case["greedy_ids"].as_array().unwrap();
        let tokens = want.len().to_string();
        let args = ["generate", "--model", &model, "--prompt", prompt, "--tokens", &tokens, "--greedy"];
        let got = json(&[&args[..], &["--json"]].concat());
        assert_eq!(got["prompt_ids"], case["prompt_ids"], "{prompt:?}");
        assert_eq!(got["ids"].as_array().unwrap(), want, "{prompt:?}");
        assert!(!prompt.ends_with("cat") || got["text"].as_str().unwrap().starts_with(" were"), "{got}");
        // The stream to a terminal is the same text.
        let streamed = esker(&args);
        assert_eq!(streamed.stdout.trim_end(), format!("{prompt}{}", got["text"].as_str().unwrap()).trim_end());
        assert!(streamed.stderr.contains("tok/s"), "{}", streamed.stderr);
    }
}

#[test]
fn a_seed_is_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = stories(dir.path());
    let text = |seed: &str, threads: &str| {
        let args = ["generate", "--model", &model, "--prompt", "Once", "--tokens", "40", "--temperature", "1"];
        esker(&[&args[..], &["--seed", seed, "--threads", threads]].concat()).stdout
    };
    let first = text("1", "1");
    assert_eq!(first, text("1", "2"));
    assert_ne!(first, text("2", "1"));
}

#[test]
fn what_is_exported_scores_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let model = stories(dir.path());
    let out = dir.path().join("out").to_string_lossy().into_owned();
    let exported = json(&["export", &model, &out, "--json"]);
    assert_eq!(exported["max_difference"], 0.0);
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "Once upon a time, there was a little girl named Lily. She loved to play outside.").unwrap();
    let bits = |model: &str| {
        json(&["eval", "--model", model, "--text", &text.to_string_lossy(), "--json"])["bits_per_byte"].clone()
    };
    assert_eq!(bits(&model), bits(&out));
    assert!(bits(&model).as_f64().unwrap() < 0.8, "a story that it has learnt: {}", bits(&model));
}
