//! `config.json`: a model's shape in Hugging Face's words.
//!
//! Two spellings of the rotation are in use. Transformers 5 writes one object,
//! `rope_parameters: {rope_type, rope_theta, ..}`; version 4 wrote `rope_theta` beside `rope_scaling: {rope_type (once
//! type), factor, ..}`. Both are read, and must agree where both stand; both are written, so that either version opens
//! what we save. Whatever changes the network and is not built here (biases, sliding windows, other rotations,
//! quantised weights) is refused by name; whatever does not is passed over. A key that a family leaves out takes the
//! value that transformers gives it.

use crate::{
    config::{Config, Family, Rope, Scaling},
    hf::HfError,
};
use esker_kernels::tensor::DType;
use serde_json::{Map, Value, json};
use std::{fs::File, io::Read, path::Path};

/// No real file comes near this.
const JSON_BYTES_MAX: u64 = 4 << 20;

/// What a folder says of its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// The network.
    pub config: Config,
    /// Token that opens a text.
    pub bos: Option<u32>,
    /// Tokens that end one.
    pub eos: Vec<u32>,
}

impl Card {
    /// Reads `config.json`, and `generation_config.json` where there is one; the config is checked.
    pub(crate) fn read(dir: &Path) -> Result<Card, HfError> {
        let path = dir.join("config.json");
        let object = Object { file: &path, map: &read_object(&path)? };
        let config = object.config()?;
        config.check().map_err(|source| HfError::Config { file: path.clone(), source })?;
        let mut card =
            Card { config, bos: object.ids("bos_token_id")?.first().copied(), eos: object.ids("eos_token_id")? };
        let path = dir.join("generation_config.json");
        if path.exists() {
            // Where both say something, transformers generates by this one.
            let object = Object { file: &path, map: &read_object(&path)? };
            card.bos = object.ids("bos_token_id")?.first().copied().or(card.bos);
            let eos = object.ids("eos_token_id")?;
            card.eos = if eos.is_empty() { card.eos } else { eos };
        }
        Ok(card)
    }

    /// The text of `config.json` for weights saved as `dtype`.
    pub(crate) fn config_json(&self, dtype: DType) -> String {
        let c = &self.config;
        let (class, model_type) = match c.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        };
        let kind = match c.rope.scaling {
            None => json!({"rope_type": "default"}),
            Some(Scaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
            Some(Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context,
            }),
        };
        let mut parameters = kind.clone();
        parameters["rope_theta"] = json!(c.rope.theta);
        let dtype = match dtype {
            DType::Bf16 => "bfloat16",
            _ => "float32",
        };
        let mut all = json!({
            "architectures": [class],
            "model_type": model_type,
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context,
            "hidden_size": c.hidden,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "intermediate_size": c.ffn,
            "hidden_act": "silu",
            "rms_norm_eps": c.norm_eps,
            "tie_word_embeddings": c.tied,
            "initializer_range": c.init_std,
            "rope_parameters": parameters,
            "rope_theta": c.rope.theta,
            "rope_scaling": if c.rope.scaling.is_some() { kind } else { Value::Null },
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos_json(),
            "dtype": dtype,
            "torch_dtype": dtype,
            "use_cache": true,
        });
        match c.family {
            Family::Llama => all["mlp_bias"] = json!(false),
            Family::Qwen3 => {
                all["use_sliding_window"] = json!(false);
                all["sliding_window"] = Value::Null;
            }
        }
        serde_json::to_string_pretty(&all).expect("card: json of plain values") + "\n"
    }

    /// The text of `generation_config.json`.
    pub(crate) fn generation_json(&self) -> String {
        let all = json!({"bos_token_id": self.bos, "eos_token_id": self.eos_json(), "do_sample": false});
        serde_json::to_string_pretty(&all).expect("card: json of plain values") + "\n"
    }

    fn eos_json(&self) -> Value {
        match *self.eos {
            [] => Value::Null,
            [one] => json!(one),
            _ => json!(self.eos),
        }
    }
}

/// Reads a file that holds one JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, HfError> {
    let io = |source| HfError::Io { path: path.into(), action: "read", source };
    let bad = |why: String| HfError::Format { file: path.into(), why };
    let mut text = Vec::new();
    File::open(path).map_err(io)?.take(JSON_BYTES_MAX + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > JSON_BYTES_MAX {
        return Err(bad(format!("longer than {JSON_BYTES_MAX} bytes")));
    }
    match serde_json::from_slice(&text).map_err(|e| bad(format!("not valid JSON: {e}")))? {
        Value::Object(map) => Ok(map),
        _ => Err(bad("expected a JSON object".into())),
    }
}

/// A JSON object that knows where it came from.
struct Object<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
}

impl Object<'_> {
    fn config(&self) -> Result<Config, HfError> {
        let family = match self.text("model_type")?.as_deref() {
            Some("llama") => Family::Llama,
            Some("qwen3") => Family::Qwen3,
            _ => return Err(self.wrong("model_type", "\"llama\" or \"qwen3\"")),
        };
        self.refuse_what_is_not_built()?;
        let (hidden, heads) = (self.need("hidden_size")?, self.need("num_attention_heads")?);
        let head_dim = match self.whole("head_dim")? {
            Some(n) => n,
            None if family == Family::Qwen3 => 128,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(self.wrong("head_dim", "a number, since num_attention_heads does not divide hidden_size"));
            }
        };
        Ok(Config {
            family,
            vocab: self.need("vocab_size")?,
            context: self.need("max_position_embeddings")?,
            hidden,
            layers: self.need("num_hidden_layers")?,
            heads,
            kv_heads: self.whole("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            ffn: self.need("intermediate_size")?,
            norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            tied: self.flag("tie_word_embeddings")?.unwrap_or(false),
            init_std: self.number("initializer_range")?.unwrap_or(0.02),
            rope: self.rope()?,
        })
    }

    fn refuse_what_is_not_built(&self) -> Result<(), HfError> {
        for (key, what) in [
            ("attention_bias", "biases in attention"),
            ("mlp_bias", "biases in the MLP"),
            ("use_sliding_window", "attention in sliding windows"),
        ] {
            if self.flag(key)?.unwrap_or(false) {
                return Err(self.unsupported(key, what));
            }
        }
        // Qwen3 names a window that it does not use unless the flag above says so.
        if !self.null("sliding_window") && !self.map.contains_key("use_sliding_window") {
            return Err(self.unsupported("sliding_window", "attention in sliding windows"));
        }
        if !self.null("quantization_config") {
            return Err(self.unsupported("quantization_config", "quantised weights"));
        }
        if let Some(Value::Array(kinds)) = self.map.get("layer_types")
            && kinds.iter().any(|k| k != "full_attention")
        {
            return Err(self.unsupported("layer_types", "layers other than full_attention"));
        }
        if self.text("hidden_act")?.is_some_and(|act| act != "silu") {
            return Err(self.unsupported("hidden_act", "activations other than \"silu\""));
        }
        if self.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(self.unsupported("partial_rotary_factor", "rotation of a part of each head"));
        }
        Ok(())
    }

    fn rope(&self) -> Result<Rope, HfError> {
        let theta = self.number("rope_theta")?;
        let old = self.inner("rope_scaling")?.map(|o| o.scaling()).transpose()?;
        let Some(new) = self.inner("rope_parameters")? else {
            return Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling: old.flatten() });
        };
        if new.number("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(new.unsupported("partial_rotary_factor", "rotation of a part of each head"));
        }
        let rope = Rope { theta: new.number("rope_theta")?.or(theta).unwrap_or(10_000.0), scaling: new.scaling()? };
        if theta.is_some_and(|theta| theta != rope.theta) {
            return Err(self.wrong("rope_theta", "the same as rope_parameters.rope_theta, or nothing"));
        }
        if old.is_some_and(|old| old != rope.scaling) {
            return Err(self.wrong("rope_scaling", "the same as rope_parameters, or nothing"));
        }
        Ok(rope)
    }

    fn scaling(&self) -> Result<Option<Scaling>, HfError> {
        let key = if self.map.contains_key("rope_type") { "rope_type" } else { "type" };
        let need = |key| self.number(key)?.ok_or_else(|| self.wrong(key, "a number"));
        match self.text(key)?.as_deref() {
            None | Some("default") => Ok(None),
            Some("linear") => Ok(Some(Scaling::Linear { factor: need("factor")? })),
            Some("llama3") => Ok(Some(Scaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_context: self.need("original_max_position_embeddings")?,
            })),
            Some(_) => Err(self.wrong(key, "\"default\", \"linear\" or \"llama3\"")),
        }
    }

    fn null(&self, key: &str) -> bool {
        matches!(self.map.get(key), None | Some(Value::Null))
    }

    fn need(&self, key: &'static str) -> Result<usize, HfError> {
        self.whole(key)?.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    fn whole(&self, key: &'static str) -> Result<Option<usize>, HfError> {
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        self.get(key, "a whole number, 0 or more", read)
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, HfError> {
        self.get(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &'static str) -> Result<Option<bool>, HfError> {
        self.get(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, HfError> {
        self.get(key, "a text", |v| v.as_str().map(String::from))
    }

    fn inner(&self, key: &'static str) -> Result<Option<Object<'_>>, HfError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Object { file: self.file, map })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// One id or a list of them.
    fn ids(&self, key: &'static str) -> Result<Vec<u32>, HfError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let read = |v: &Value| match v {
            Value::Array(all) => all.iter().map(id).collect(),
            one => id(one).map(|n| vec![n]),
        };
        Ok(self.get(key, "a token id or a list of them", read)?.unwrap_or_default())
    }

    fn get<T>(&self, key: &'static str, want: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, HfError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| self.wrong(key, want)),
        }
    }

    fn wrong(&self, key: &'static str, want: &str) -> HfError {
        let got = self.map.get(key).map_or("nothing".into(), |v| {
            let text = v.to_string();
            if text.chars().count() > 60 { text.chars().take(60).collect::<String>() + ".." } else { text }
        });
        HfError::Key { file: self.file.into(), key, got, want: want.into() }
    }

    fn unsupported(&self, key: &'static str, what: &'static str) -> HfError {
        HfError::Unsupported { file: self.file.into(), key, what }
    }
}
