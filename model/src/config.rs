//! The shape of a network, what it weighs and what a token costs.
//!
//! Llama and Qwen3 are one network: embedding, L blocks of attention and a gated MLP over an f32 residual stream, a last
//! norm, a head. Qwen3 also norms each query and key head before rotating it. C: `hidden`, H: `heads`, K: `kv_heads`,
//! D: `head_dim`, F: `ffn`, V: `vocab`, L: `layers`.
//!
//! parameters = V·C + L·(2·C·H·D + 2·C·K·D + 3·C·F) + (2·L + 1)·C  [+ V·C untied]  [+ 2·L·D with QK-norm]
//!
//! flops of a training token = 6·(weights of all products, the head's too) + 6·L·H·D·T
//! Forward multiplies and adds once a weight (2), backward twice (4). A causal query meets (T + 1)/2 ≈ T/2 keys, with two
//! products each: 2·H·D·T forward, three times that in training. The lookup of the embedding, norms, softmax and whatever
//! is computed a second time to save memory are not counted.
//! Source: Kaplan et al. 2020, arXiv:2001.08361, section 2.1; attention as in Chowdhery et al. 2022, arXiv:2204.02311,
//! appendix B, halved for the causal mask.

use esker_kernels::ops::{attention, rope};
use serde::{Deserialize, Serialize};

/// The shape of a network: the `[model]` section of a run's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which family's details hold.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Longest sequence the model is meant for, tokens.
    pub context: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width inside the MLP.
    pub ffn: usize,
    /// What the norms add under the root.
    pub norm_eps: f64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Standard deviation of fresh matrices.
    pub init_std: f64,
    /// Rotation of queries and keys.
    pub rope: Rope,
}

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 1 to 3.2, and what was trained in its form.
    Llama,
    /// Qwen3: each query and key head is normed before it is rotated.
    Qwen3,
}

/// Rotation of queries and keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How the wavelengths are stretched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
}

/// How the wavelengths of a rotation are stretched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Scaling {
    /// All by one factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Long ones by a factor, short ones not, those between by a mix (Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are stretched whole.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are left.
        high_freq_factor: f64,
        /// Context of the model before it was stretched.
        original_context: usize,
    },
}

/// A value that no network can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("model.{key} = {got}: expected {want}")]
pub struct ConfigError {
    /// Key in the `[model]` section.
    pub key: &'static str,
    /// What it says.
    pub got: String,
    /// What it may say.
    pub want: String,
}

/// Parameters by group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Params {
    /// The embedding, which is the head too when tied.
    pub embedding: u64,
    /// Projections of queries, keys, values and outputs.
    pub attention: u64,
    /// Gate, up and down.
    pub mlp: u64,
    /// All norms.
    pub norms: u64,
    /// The head of its own; 0 when tied.
    pub head: u64,
}

impl Params {
    /// Name and number of each group.
    pub fn groups(&self) -> [(&'static str, u64); 5] {
        [
            ("embedding", self.embedding),
            ("attention", self.attention),
            ("mlp", self.mlp),
            ("norms", self.norms),
            ("head", self.head),
        ]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.groups().iter().map(|(_, n)| n).sum()
    }
}

impl Family {
    /// Whether query and key heads are normed.
    pub fn qk_norm(self) -> bool {
        self == Family::Qwen3
    }
}

impl Config {
    /// Checks every range. After this no size computed from the config can overflow.
    pub fn check(&self) -> Result<(), ConfigError> {
        // Far above any model, and small enough that products of a few of them fit 64 bits.
        within("vocab", self.vocab, 1, 1 << 24)?;
        within("context", self.context, 1, 1 << 26)?;
        within("hidden", self.hidden, 1, 1 << 20)?;
        within("layers", self.layers, 1, 1 << 12)?;
        within("heads", self.heads, 1, 1 << 14)?;
        within("kv_heads", self.kv_heads, 1, self.heads)?;
        within("head_dim", self.head_dim, 2, attention::HEAD_DIM_MAX)?;
        within("ffn", self.ffn, 1, 1 << 22)?;
        ensure(self.heads.is_multiple_of(self.kv_heads), "kv_heads", self.kv_heads, || {
            format!("a divisor of heads = {}", self.heads)
        })?;
        ensure(self.head_dim.is_multiple_of(2), "head_dim", self.head_dim, || "an even number".into())?;
        ensure(self.q_width() <= 1 << 20, "head_dim", self.head_dim, || {
            format!("at most {} with heads = {}", (1 << 20) / self.heads, self.heads)
        })?;
        let eps = self.norm_eps;
        ensure((1e-12..=0.1).contains(&eps), "norm_eps", eps, || "a number from 1e-12 to 0.1".into())?;
        let std = self.init_std;
        ensure(0.0 < std && std <= 10.0, "init_std", std, || "a number above 0, at most 10".into())?;
        self.rope.check()
    }

    /// Width of all query heads together: H·D.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads: K·D.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Parameters by group, exactly.
    pub fn params(&self) -> Params {
        let n = |x: usize| x as u64;
        let (c, l, table) = (n(self.hidden), n(self.layers), n(self.vocab) * n(self.hidden));
        let head_norms = if self.family.qk_norm() { 2 * n(self.head_dim) } else { 0 };
        Params {
            embedding: table,
            attention: l * 2 * c * (n(self.q_width()) + n(self.kv_width())),
            mlp: l * 3 * c * n(self.ffn),
            norms: l * (2 * c + head_norms) + c,
            head: if self.tied { 0 } else { table },
        }
    }

    /// Flops of one training token, forward and backward, in sequences of `seq` tokens: see the head of this page.
    pub fn flops_per_token(&self, seq: usize) -> f64 {
        6.0 * self.product_weights() as f64 + 6.0 * self.layers as f64 * self.q_width() as f64 * seq as f64
    }

    /// The formula of [`Config::flops_per_token`] with its numbers.
    pub fn flops_formula(&self, seq: usize) -> String {
        format!(
            "6 x {} weights of products (head included, lookup not) + 6 x {} layers x {} heads x {} x {seq} tokens, causal",
            self.product_weights(),
            self.layers,
            self.heads,
            self.head_dim
        )
    }

    /// Weights that a token is multiplied with: all matrices, the table as the head alone.
    fn product_weights(&self) -> u64 {
        let p = self.params();
        p.attention + p.mlp + p.embedding
    }
}

impl Rope {
    fn check(&self) -> Result<(), ConfigError> {
        let range = || "a number from 1 to 1e12".to_string();
        ensure(1.0 <= self.theta && self.theta <= 1e12, "rope.theta", self.theta, range)?;
        let stretch = |factor: f64| {
            ensure((1.0..=1e6).contains(&factor), "rope.scaling.factor", factor, || "a number from 1 to 1e6".into())
        };
        match self.scaling {
            None => Ok(()),
            Some(Scaling::Linear { factor }) => stretch(factor),
            Some(Scaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context }) => {
                stretch(factor)?;
                let range = || "a number above 0, at most 1e6".to_string();
                ensure(0.0 < low && low <= 1e6, "rope.scaling.low_freq_factor", low, range)?;
                ensure(low < high && high <= 1e6, "rope.scaling.high_freq_factor", high, || {
                    format!("a number above low_freq_factor = {low}, at most 1e6")
                })?;
                within("rope.scaling.original_context", original_context, 1, 1 << 26)
            }
        }
    }

    /// The same in the op's words.
    pub(crate) fn op(&self) -> rope::Rope {
        let scaling = match self.scaling {
            None => rope::Scaling::None,
            Some(Scaling::Linear { factor }) => rope::Scaling::Linear { factor },
            Some(Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) => {
                rope::Scaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original_context,
                }
            }
        };
        rope::Rope { theta: self.theta, scaling }
    }
}

fn within(key: &'static str, got: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    ensure(low <= got && got <= high, key, got, || format!("a whole number from {low} to {high}"))
}

fn ensure(
    holds: bool,
    key: &'static str,
    got: impl std::fmt::Display,
    want: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError { key, got: got.to_string(), want: want() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama(
        vocab: usize,
        hidden: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        ffn: usize,
        tied: bool,
    ) -> Config {
        let rope = Rope { theta: 500000.0, scaling: None };
        let head_dim = hidden / heads;
        let (context, norm_eps, init_std) = (2048, 1e-5, 0.02);
        let family = Family::Llama;
        Config {
            family,
            vocab,
            context,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn,
            norm_eps,
            tied,
            init_std,
            rope,
        }
    }

    #[test]
    fn published_models_have_their_published_sizes() {
        let covenant = llama(262_144, 8192, 80, 64, 8, 28672, false);
        let cases = [
            (covenant.clone(), 72_747_327_488),
            (llama(32_000, 288, 6, 6, 6, 768, true), 15_191_712),
            (llama(512, 64, 5, 8, 4, 172, true), 260_032),
            (llama(49_152, 576, 30, 9, 3, 1536, true), 134_515_008),
            (llama(128_256, 4096, 32, 32, 8, 14336, false), 8_030_261_248),
            (llama(128_256, 2048, 16, 32, 8, 8192, true), 1_235_814_400),
        ];
        for (config, params) in cases {
            config.check().unwrap();
            assert_eq!(config.params().total(), params, "{config:?}");
        }
        // Qwen3-0.6B, whose heads are wider than hidden / heads.
        let mut qwen = llama(151_936, 1024, 28, 16, 8, 3072, true);
        (qwen.family, qwen.head_dim) = (Family::Qwen3, 128);
        qwen.check().unwrap();
        assert_eq!(qwen.params().total(), 596_049_920);
        // 6 a weight of each product, and 6·80·8192·2048 for attention.
        let weights = 72_747_327_488u64 - 262_144 * 8192 - covenant.params().norms;
        assert_eq!(covenant.flops_per_token(2048), 6.0 * weights as f64 + 6.0 * 80.0 * 8192.0 * 2048.0);
        assert!(covenant.flops_formula(2048).contains(&weights.to_string()));
    }

    #[test]
    fn a_file_says_every_key_and_no_other() {
        let text = r#"{"family":"qwen3","vocab":512,"context":64,"hidden":64,"layers":2,"heads":4,"kv_heads":2,"head_dim":16,
            "ffn":128,"norm_eps":1e-6,"tied":true,"init_std":0.02,"rope":{"theta":1e6,"scaling":{"kind":"llama3","factor":8.0,
            "low_freq_factor":1.0,"high_freq_factor":4.0,"original_context":32}}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        config.check().unwrap();
        let back: Config = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(back, config);
        for wrong in [
            text.replace("\"ffn\":128,", ""),
            text.replace("\"ffn\"", "\"fnn\":1,\"ffn\""),
            text.replace("\"factor\":8.0,", "\"factor\":8.0,\"beta\":1,"),
            text.replace("llama3", "yarn"),
        ] {
            assert!(serde_json::from_str::<Config>(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn absurd_numbers_are_refused_by_name() {
        let good = llama(512, 64, 2, 4, 2, 128, true);
        let refused = |change: &dyn Fn(&mut Config), key: &str| {
            let mut config = good.clone();
            change(&mut config);
            let error = config.check().unwrap_err();
            assert_eq!(error.key, key, "{error}");
            assert!(error.to_string().contains("expected"), "{error}");
        };
        refused(&|c| c.hidden = 1_000_000_000_000_000_000, "hidden");
        refused(&|c| c.vocab = 0, "vocab");
        refused(&|c| c.layers = usize::MAX, "layers");
        refused(&|c| c.kv_heads = 3, "kv_heads");
        refused(&|c| c.kv_heads = 8, "kv_heads");
        refused(&|c| c.head_dim = 15, "head_dim");
        refused(&|c| (c.heads, c.head_dim) = (1 << 14, 128), "head_dim");
        refused(&|c| c.norm_eps = f64::NAN, "norm_eps");
        refused(&|c| c.init_std = -1.0, "init_std");
        refused(&|c| c.rope.theta = f64::INFINITY, "rope.theta");
        refused(&|c| c.rope.scaling = Some(Scaling::Linear { factor: 0.0 }), "rope.scaling.factor");
    }
}
