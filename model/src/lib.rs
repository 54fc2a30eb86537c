//! The network: forward and backward written out, face to face.
//!
//! A block has two halves, `attention.rs` and `mlp.rs`, each a page of numbered lines: forward counts up, backward counts
//! down, and `Acts` names what lives in between. There is no tape and no graph. `head.rs` ends the network with its loss;
//! [`model`] holds the loops over blocks that train; [`decode`] and [`slots`] generate with the same halves and caches, one
//! sequence and several, and [`mod@score`] reads many texts at once.
//!
//! [`Config`] says the shape, [`Weights`] holds it, [`init`] draws it, [`hf`] reads and writes it as a Hugging Face
//! folder, [`gguf`] reads it from a GGUF file. Every struct of tensors lays itself out in an arena, so what a plan measures is what a run takes; inside
//! [`train_micro`], [`score()`] and a [`Decoder`] nothing allocates.
//!
//! This crate knows no shard of tokens, no optimiser and no peer: it is handed rows of ids and adds to gradients.

mod attention;
mod card;
pub mod config;
pub mod decode;
pub mod gguf;
mod head;
pub mod hf;
pub mod init;
mod mlp;
pub mod model;
mod safetensors;
pub mod score;
pub mod slots;
pub mod weights;

pub use config::{Config, ConfigError, Family, Params, Rope, Scaling};
pub use decode::Decoder;
pub use model::{Buffers, IGNORE, Recompute, Shape, score, train_micro};
pub use weights::{Grads, Layer, Name, Part, Weights};
