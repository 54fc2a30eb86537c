//! Runs the binary, and makes small models for it.
#![allow(dead_code)] // Each test binary uses its part.

use std::{path::Path, process::Command};

/// A parity folder that agrees.
pub const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama-gqa-untied");

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// What would change the words of the binary, where somebody who runs tests has set it.
const WORDING: [&str; 3] = ["CARGO", "CLICOLOR_FORCE", "ESKER_LOG"];

/// Runs `esker` with `args`. A panic of it is a failure of the test, whoever calls.
pub fn esker(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    for name in WORDING {
        command.env_remove(name);
    }
    let out = command.args(args).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    let ran = Ran { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) };
    assert!(!ran.stderr.contains("panicked"), "{args:?}: {}", ran.stderr);
    assert!([0, 1, 2, 3, 130].contains(&ran.code), "{args:?}: exit code {}: {}", ran.code, ran.stderr);
    ran
}

/// It must fail with this code and say all of `words`.
pub fn fails(args: &[&str], code: i32, words: &[&str]) {
    let ran = esker(args);
    assert_eq!(ran.code, code, "{args:?}: {}", ran.stderr);
    assert!(ran.stderr.starts_with("error: ") || ran.stderr.contains("\nerror: "), "{args:?}: {}", ran.stderr);
    assert!(words.iter().all(|w| ran.stderr.contains(w)), "{args:?} lacks one of {words:?}: {}", ran.stderr);
}

/// It must succeed and print one JSON value.
pub fn json(args: &[&str]) -> serde_json::Value {
    let ran = esker(args);
    assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", ran.stdout))
}

/// Writes a small random model over bytes into `dir`/model; gives that folder.
pub fn model_folder(dir: &Path) -> String {
    use esker_kernels::{
        device::Stream,
        tensor::{Arena, DType},
    };
    use esker_model::{Config, Family, Rope, Weights, hf};
    let config = Config {
        family: Family::Llama,
        vocab: 257,
        context: 48,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 40,
        norm_eps: 1e-5,
        tied: true,
        init_std: 0.2,
        rope: Rope { theta: 10_000.0, scaling: None },
    };
    let s = Stream::cpu(1).unwrap();
    let mut weights = Arena::build(&s, |arena| Weights::layout(arena, &config, DType::F32)).unwrap().0;
    esker_model::init::draw(&s, &config, &mut weights, 3).unwrap();
    let out = dir.join("model");
    let card = hf::Card { config, bos: None, eos: vec![256] };
    hf::save(&out, &card, &weights, DType::F32).unwrap();
    std::fs::write(out.join("tokenizer.json"), esker_data::tokenizer::Tokenizer::bytes().json()).unwrap();
    out.to_string_lossy().into_owned()
}
