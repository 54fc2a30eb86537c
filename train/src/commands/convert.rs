//! `esker import` and `esker export`: a model from one folder into another, read again and compared. A GGUF file is
//! imported as well as a folder.

use super::{
    Failure,
    model::{Opened, load, open},
    print, print_json, quoted,
};
use crate::{cli, folder, plan::size};
use esker_data::tokenizer::Tokenizer;
use esker_kernels::{
    device::Stream,
    tensor::{Arena, Class, DType},
};
use esker_model::{Config, Decoder, Weights, gguf::Gguf, hf};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Largest difference of a logit after f32 was written and read.
const F32_MAX: f64 = 1e-4;
/// The same for bf16, in which weights keep 8 bits: a gross error is larger, rounding is not.
const BF16_MAX: f64 = 0.1;
/// Tokens of the fixed prompt.
const PROMPT: usize = 32;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    from: PathBuf,
    to: PathBuf,
    dtype: DType,
    files: Vec<String>,
    bytes: u64,
    /// Of the logits on a fixed prompt.
    max_difference: f64,
    /// Above it the command fails.
    allowed: f64,
    ok: bool,
}

pub fn import(args: cli::Import) -> Result<(), Failure> {
    refuse_model_at(&args.to)?;
    if args.from.is_file() {
        let (model, gguf) = open_gguf(&args.from, args.threads)?;
        return write(model, &args.to, DType::F32, args.json, |_, to| gguf_tokenizer(&gguf, &args.from, to));
    }
    let model = open(&args.from, DType::F32, args.threads)?;
    write(model, &args.to, DType::F32, args.json, tokenizer_files)
}

pub fn export(args: cli::Export) -> Result<(), Failure> {
    refuse_model_at(&args.to)?;
    let model = open(&args.from, DType::F32, args.threads)?;
    write(model, &args.to, args.dtype.into(), args.json, tokenizer_files)
}

fn refuse_model_at(to: &Path) -> Result<(), Failure> {
    if to.join("model.safetensors").exists() || to.join("config.json").exists() {
        let message = format!("{}: has a model already", to.display());
        return Err(Failure::input(message).help("give a new folder, or remove it"));
    }
    Ok(())
}

/// Writes the model and, by `tokenizer`, what belongs to its text; reads it again and compares.
fn write(
    model: Opened,
    to: &Path,
    dtype: DType,
    json: bool,
    tokenizer: impl FnOnce(&Opened, &Path) -> Result<Vec<String>, Failure>,
) -> Result<(), Failure> {
    let saved = hf::save(to, &model.card, &model.weights, dtype)?;
    let mut files: Vec<String> = saved.iter().map(|s| s.name.clone()).collect();
    files.extend(tokenizer(&model, to)?);
    let written = load(&model.stream, to, model.config(), DType::F32)?;
    let max_difference = logits_differ(&model, &written)?;
    let allowed = if dtype == DType::Bf16 { BF16_MAX } else { F32_MAX };
    let answer = Answer {
        from: model.dir.clone(),
        to: to.into(),
        dtype,
        files,
        bytes: saved.iter().map(|s| s.bytes).sum(),
        max_difference,
        allowed,
        ok: max_difference <= allowed,
    };
    if json {
        print_json(&answer)?;
    } else {
        print(&format!(
            "{} -> {}\n  {}\n  {} of weights in {dtype}\n  logits of {PROMPT} tokens after reading it back: largest difference {max_difference:.2e} (allowed {allowed:.0e})\n",
            answer.from.display(),
            quoted(&to.to_string_lossy()),
            answer.files.join("  "),
            size(answer.bytes),
        ))?;
    }
    // NaN is not within any limit, so the comparison is asked for what holds.
    if !answer.ok {
        return Err(Failure::check(format!(
            "{}: the logits of what was written differ by {max_difference:.3e}, more than {allowed:.0e}",
            to.display()
        )));
    }
    Ok(())
}

/// The model of a GGUF file in f32, and the file.
fn open_gguf(from: &Path, threads: usize) -> Result<(Opened, Gguf), Failure> {
    let mut gguf = Gguf::open(from).map_err(|e| {
        Failure::from(e).help("give a Hugging Face folder, or a GGUF file of the architectures llama or qwen3")
    })?;
    let stream = Stream::cpu(threads)?;
    let card = gguf.card().clone();
    let layout = |arena: &mut Arena| Weights::layout(arena.class(Class::Weights), &card.config, DType::F32);
    let mut weights = Arena::build(&stream, layout)?.0;
    gguf.load(&mut weights)?;
    Ok((Opened { stream, dir: from.into(), card, weights }, gguf))
}

/// Writes the tokenizer that a GGUF file's tables describe.
fn gguf_tokenizer(gguf: &Gguf, from: &Path, to: &Path) -> Result<Vec<String>, Failure> {
    let Some(text) = gguf.tokenizer_json()? else {
        eprintln!("warning: {} has no tokenizer; the folder holds a model for token ids alone", from.display());
        return Ok(Vec::new());
    };
    Tokenizer::from_json(text.as_bytes(), &from.display().to_string())?;
    let (json, config) = ("tokenizer.json", "tokenizer_config.json");
    folder::write(&to.join(json), text.as_bytes())?;
    folder::write(&to.join(config), gguf.tokenizer_config_json()?.as_bytes())?;
    Ok(vec![json.into(), config.into()])
}

/// Copies tokenizer.json, and writes the tokenizer_config.json with which transformers loads it.
fn tokenizer_files(model: &Opened, to: &Path) -> Result<Vec<String>, Failure> {
    let (json, config) = ("tokenizer.json", "tokenizer_config.json");
    if !model.dir.join(json).exists() {
        eprintln!(
            "warning: {} has no tokenizer.json; the folder holds a model for token ids alone",
            model.dir.display()
        );
        return Ok(Vec::new());
    }
    let tokenizer = model.tokenizer()?;
    let read = |name: &str| {
        let path = model.dir.join(name);
        std::fs::read(&path).map_err(|e| Failure::file(&path, &e))
    };
    folder::write(&to.join(json), &read(json)?)?;
    let text = if model.dir.join(config).exists() {
        read(config)?
    } else {
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.decode(&[id], false).ok());
        let value = serde_json::json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token(tokenizer.bos()),
            "eos_token": token(tokenizer.eos()),
            "model_max_length": model.config().context,
            "clean_up_tokenization_spaces": false,
        });
        serde_json::to_vec_pretty(&value).expect("JSON from JSON")
    };
    folder::write(&to.join(config), &text)?;
    Ok(vec![json.into(), config.into()])
}

/// Largest difference between the logits that two sets of weights give at each place of a fixed prompt.
fn logits_differ(model: &Opened, other: &Weights) -> Result<f64, Failure> {
    let config = model.config();
    let prompt: Vec<u32> =
        (0..PROMPT.min(config.context)).map(|i| ((i * i * 7919 + i * 31 + 1) % config.vocab) as u32).collect();
    let ours = logits(model, config, &model.weights, &prompt)?;
    let theirs = logits(model, config, other, &prompt)?;
    let differences = ours.iter().zip(&theirs).map(|(a, b)| f64::from((a - b).abs()));
    Ok(differences.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }))
}

/// The logits after every token of `prompt`.
fn logits(model: &Opened, config: &Config, weights: &Weights, prompt: &[u32]) -> Result<Vec<f32>, Failure> {
    let s = &model.stream;
    let layout = |arena: &mut Arena| Decoder::layout(arena, config, DType::F32, prompt.len(), 1);
    let mut decoder = Arena::build(s, layout)?.0;
    decoder.ready(s, config)?;
    let mut all = Vec::with_capacity(prompt.len() * config.vocab);
    for &token in prompt {
        all.extend_from_slice(decoder.step(s, config, weights, token)?);
    }
    Ok(all)
}
