//! A model in one GGUF file: its shape, its weights, dequantised, and its tokenizer.
//!
//! "GGUF" │ u32 version │ u64 tensors │ u64 pairs │ pairs: key, u32 type, value │ tensors: name, u32 rank, u64 dims, u32
//! type, u64 offset │ padding │ data                                       (`gguf/file.rs`, `gguf/blocks.rs`)
//!
//! Read are versions 2 and 3, little-endian, of the architectures llama and qwen3, with tensors of type F32, F16, BF16,
//! Q8_0, Q4_0 and Q4_1. llama.cpp keeps the rows of a Llama's query and key projections in the order of interleaved
//! rotation; here they are put back in halves, as Hugging Face has them:
//!
//! row (head, half j, pair i) = file's row (head, pair i, half j)            i < D/2, j < 2
//!
//! Llama 3.1's stretched rotation lies in the file as the factors of its frequencies; the rule they follow is found again
//! (`stretched`). The tokenizer's tables become a tokenizer.json (`gguf/tokenizer.rs`).
//! Source: the format's page in the ggml repository (docs/gguf.md); the permutation: llama.cpp's conversion script.

mod blocks;
mod file;
mod tokenizer;

use crate::{
    card::Card,
    config::{Config, Family, Rope, Scaling},
    hf::HfError,
    weights::{Name, Part, Weights},
};
use esker_kernels::tensor::{DType, Tensor};
use file::{File, Info, Value};
use half::bf16;
use std::{collections::BTreeMap, path::Path};

/// What Llama 3.1 divides its frequencies by.
const ROPE_FREQS: &str = "rope_freqs.weight";
/// The context that Llama 3.1 was first trained on.
const LLAMA3_CONTEXT: usize = 8192;

/// An open file whose header holds together, and whose tensors are those of its network.
#[derive(Debug)]
pub struct Gguf {
    file: File,
    card: Card,
}

impl Gguf {
    /// Opens a file and checks everything but the numbers of its tensors; reads only its header.
    pub fn open(path: &Path) -> Result<Gguf, HfError> {
        let mut file = File::open(path)?;
        let mut config = config(&file)?;
        stretched(&mut file, &mut config)?;
        config.check().map_err(|source| HfError::Config { file: path.into(), source })?;
        let id = |key: &str| file.whole(key).map(|id| id.filter(|&id| id < config.vocab as u64).map(|id| id as u32));
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let eos = id("tokenizer.ggml.eos_token_id")?.into_iter().chain(id("tokenizer.ggml.eot_token_id")?);
        let mut eos: Vec<u32> = eos.collect();
        eos.dedup();
        let gguf = Gguf { card: Card { config, bos, eos }, file };
        gguf.check_tensors()?;
        Ok(gguf)
    }

    /// The network, checked, and its marks.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Reads all tensors into `w`, laid out for this network, rounded to its dtypes.
    pub fn load(&mut self, w: &mut Weights) -> Result<(), HfError> {
        let Gguf { file, card } = self;
        for (name, to) in w.each_mut() {
            let info = file.tensors.get(&spelt(name)).expect("gguf: checked at open").clone();
            let heads = match (card.config.family, name.part) {
                (Family::Llama, Part::Wq) => card.config.heads,
                (Family::Llama, Part::Wk) => card.config.kv_heads,
                _ => 0,
            };
            fill(file, &info, heads, to)?;
        }
        Ok(())
    }

    /// The text of a tokenizer.json, where the file has a tokenizer.
    pub fn tokenizer_json(&self) -> Result<Option<String>, HfError> {
        tokenizer::json(&self.file)
    }

    /// The text of the tokenizer_config.json that names its marks.
    pub fn tokenizer_config_json(&self) -> Result<String, HfError> {
        tokenizer::config_json(&self.file, self.card.config.context)
    }

    /// Every tensor of the network, of its shape, and no other.
    fn check_tensors(&self) -> Result<(), HfError> {
        let (file, config) = (&self.file, &self.card.config);
        let bad = |why: String| HfError::Format { file: file.path.clone(), why };
        if config.layers > file.tensors.len() {
            let (layers, tensors) = (config.layers, file.tensors.len());
            return Err(bad(format!(
                "{layers} blocks by its keys, and no more than {tensors} tensors: one of them lies"
            )));
        }
        let parts = expected(config);
        let missing: Vec<String> = parts.keys().filter(|&name| !file.tensors.contains_key(name)).cloned().collect();
        if !missing.is_empty() {
            return Err(HfError::Missing { path: file.path.clone(), names: missing });
        }
        if file.tensors.len() > parts.len() {
            let unknown = file.tensors.keys().filter(|&name| !parts.contains_key(name)).cloned().collect();
            return Err(HfError::Unknown { path: file.path.clone(), names: unknown });
        }
        for (name, want) in parts {
            let got = &file.tensors[&name].shape;
            if *got != want {
                return Err(bad(format!("tensor {name} has shape {got:?}, the file's own keys make it {want:?}")));
            }
        }
        Ok(())
    }
}

/// The network that the file's keys describe.
fn config(file: &File) -> Result<Config, HfError> {
    let bad = |why: String| HfError::Format { file: file.path.clone(), why };
    let arch = match file.get("general.architecture") {
        Some(Value::Text(arch)) => arch.as_str(),
        _ => return Err(bad("general.architecture is missing or no text".into())),
    };
    let family = match arch {
        "llama" => Family::Llama,
        "qwen3" => Family::Qwen3,
        _ => return Err(bad(format!("general.architecture = {arch:?}; llama and qwen3 can be read"))),
    };
    let key = |name: &str| format!("{arch}.{name}");
    let maybe = |name: &str| file.whole(&key(name)).map(|n| n.map(|n| n as usize));
    let size = |name: &str| maybe(name)?.ok_or_else(|| bad(format!("{} is missing", key(name))));
    let real = |name: &str| file.real(&key(name));
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let head_dim = match maybe("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    if let Some(turned) = maybe("rope.dimension_count")?
        && turned != head_dim
    {
        return Err(bad(format!("{arch}.rope.dimension_count = {turned}: expected the whole head, {head_dim}")));
    }
    if maybe("expert_count")?.is_some_and(|n| n > 0) {
        return Err(bad(format!("{arch}.expert_count: mixtures of experts are not built")));
    }
    let scaling = match file.get(&key("rope.scaling.type")) {
        None => None,
        Some(Value::Text(kind)) if kind == "none" => None,
        Some(Value::Text(kind)) if kind == "linear" => {
            let factor = real("rope.scaling.factor")?;
            Some(Scaling::Linear {
                factor: factor.ok_or_else(|| bad(format!("{arch}.rope.scaling.factor is missing")))?,
            })
        }
        Some(other) => return Err(bad(format!("{arch}.rope.scaling.type = {other}: expected none or linear"))),
    };
    let rows = file.tensors.get("token_embd.weight").and_then(|t| t.shape.first().copied());
    Ok(Config {
        family,
        vocab: rows.ok_or_else(|| bad("tensor token_embd.weight is missing".into()))? as usize,
        context: size("context_length")?,
        hidden,
        layers: size("block_count")?,
        heads,
        kv_heads: maybe("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: size("feed_forward_length")?,
        norm_eps: real("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        tied: !file.tensors.contains_key("output.weight"),
        init_std: 0.02,
        rope: Rope { theta: real("rope.freq_base")?.unwrap_or(10_000.0), scaling },
    })
}

/// Takes `rope_freqs.weight` out of the tensors, numbers that the frequencies f_k are divided by, and puts the rule they
/// follow into `config`: that of Llama 3.1 and later, whose bounds are the same in all its models, with the factor of the
/// slowest pair. Numbers of another rule are refused.
fn stretched(file: &mut File, config: &mut Config) -> Result<(), HfError> {
    let Some(info) = file.tensors.remove(ROPE_FREQS) else { return Ok(()) };
    let pairs = config.head_dim / 2;
    if info.shape != [pairs as u64] || config.rope.scaling.is_some() {
        let why = format!(
            "{ROPE_FREQS} has shape {:?}, beside rope.scaling.type {}; expected [{pairs}], and no other scaling",
            info.shape,
            if config.rope.scaling.is_some() { "linear" } else { "none" }
        );
        return Err(file.bad(why));
    }
    let (mut bytes, mut divisors) = (vec![0; info.kind.bytes(pairs)], vec![0.0; pairs]);
    file.seek_data(&info)?;
    file.read(&mut bytes)?;
    info.kind.dequantise(&bytes, &mut divisors);
    let factor = f64::from(divisors.iter().copied().fold(0.0, f32::max));
    let llama =
        Scaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: LLAMA3_CONTEXT };
    let scaling = if factor == 1.0 { None } else { Some(llama) };
    let rope = Rope { theta: config.rope.theta, scaling };
    let (plain, ours) = (config.rope.op(), rope.op());
    let pairs = plain.frequencies(config.head_dim).zip(ours.frequencies(config.head_dim));
    // Converters round a divisor to f32, and its parts before that.
    if !pairs.zip(&divisors).all(|((plain, ours), &by)| (plain / f64::from(by) / ours - 1.0).abs() < 1e-4) {
        let why = "its numbers are not those of Llama 3.1's rule; convert the model from its Hugging Face folder";
        return Err(file.bad(format!("{ROPE_FREQS}: {why}")));
    }
    config.rope = rope;
    Ok(())
}

/// Name and shape of every tensor of a network.
fn expected(c: &Config) -> BTreeMap<String, Vec<u64>> {
    let n = |x: usize| x as u64;
    let (hidden, q, kv, ffn, head) = (n(c.hidden), n(c.q_width()), n(c.kv_width()), n(c.ffn), n(c.head_dim));
    let mut all = vec![(Part::Embed, None, vec![n(c.vocab), hidden]), (Part::Norm, None, vec![hidden])];
    if !c.tied {
        all.push((Part::Head, None, vec![n(c.vocab), hidden]));
    }
    for layer in (0..c.layers as u32).map(Some) {
        all.extend([
            (Part::AttnNorm, layer, vec![hidden]),
            (Part::Wq, layer, vec![q, hidden]),
            (Part::Wk, layer, vec![kv, hidden]),
            (Part::Wv, layer, vec![kv, hidden]),
            (Part::Wo, layer, vec![hidden, q]),
            (Part::MlpNorm, layer, vec![hidden]),
            (Part::Gate, layer, vec![ffn, hidden]),
            (Part::Up, layer, vec![ffn, hidden]),
            (Part::Down, layer, vec![hidden, ffn]),
        ]);
        if c.family.qk_norm() {
            all.extend([(Part::QNorm, layer, vec![head]), (Part::KNorm, layer, vec![head])]);
        }
    }
    all.into_iter().map(|(part, layer, shape)| (spelt(Name { layer, part }), shape)).collect()
}

/// A tensor's name in the file.
fn spelt(name: Name) -> String {
    let part = match name.part {
        Part::Embed => "token_embd",
        Part::AttnNorm => "attn_norm",
        Part::Wq => "attn_q",
        Part::Wk => "attn_k",
        Part::Wv => "attn_v",
        Part::QNorm => "attn_q_norm",
        Part::KNorm => "attn_k_norm",
        Part::Wo => "attn_output",
        Part::MlpNorm => "ffn_norm",
        Part::Gate => "ffn_gate",
        Part::Up => "ffn_up",
        Part::Down => "ffn_down",
        Part::Norm => "output_norm",
        Part::Head => "output",
    };
    match name.layer {
        Some(layer) => format!("blk.{layer}.{part}.weight"),
        None => format!("{part}.weight"),
    }
}

/// Reads a tensor row by row; with `heads`, rows are put back from pairs into halves.
fn fill(file: &mut File, info: &Info, heads: usize, to: &mut Tensor) -> Result<(), HfError> {
    let cols = info.cols();
    let rows = to.len() / cols;
    let mut bytes = vec![0; info.kind.bytes(cols)];
    let mut row = vec![0.0; cols];
    file.seek_data(info)?;
    for r in 0..rows {
        file.read(&mut bytes)?;
        info.kind.dequantise(&bytes, &mut row);
        let at = match rows.checked_div(heads) {
            None => r,
            Some(head_dim) => {
                let (head, pair, half) = (r / head_dim, r % head_dim / 2, r % 2);
                head * head_dim + half * (head_dim / 2) + pair
            }
        };
        match to.dtype() {
            DType::Bf16 => {
                let to = &mut to.bf16_mut()[at * cols..][..cols];
                to.iter_mut().zip(&row).for_each(|(to, &x)| *to = bf16::from_f32(x));
            }
            _ => to.f32_mut()[at * cols..][..cols].copy_from_slice(&row),
        }
    }
    Ok(())
}
