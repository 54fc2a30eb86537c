//! Continues a prompt token by token, with the keys and values of what was seen kept.

use crate::sample::{Options, SampleError, Sampler};
use esker_kernels::{DeviceError, device::Stream};
use esker_model::{Config, Decoder, Weights};
use std::time::Instant;

/// What to continue and how far.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// At least one id; from nothing, the start mark or the end mark.
    pub prompt: &'a [u32],
    /// New tokens at most.
    pub tokens: usize,
    /// How each is chosen.
    pub options: Options,
    /// A token that ends the text; it is not part of the result.
    pub stop: &'a [u32],
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// The new tokens.
    pub tokens: Vec<u32>,
    /// Whether a stop token ended the text.
    pub ended: bool,
    /// Seconds for the prompt, to the first logits.
    pub prompt_s: f64,
    /// Seconds for all passes after the prompt's.
    pub decode_s: f64,
    /// Passes after the prompt's.
    pub passes: usize,
}

/// Why a prompt could not be continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No token could be chosen.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// The prompt is empty.
    #[error("the prompt has no token and the tokenizer no start or end mark to begin with; give a --prompt")]
    Empty,
    /// The cache is too small for prompt and new tokens.
    #[error("prompt and new tokens need room for {wanted} tokens, the cache has {room}")]
    Room {
        /// Places wanted.
        wanted: usize,
        /// Places left.
        room: usize,
    },
    /// An id outside the vocabulary.
    #[error("the prompt has token id {id}, the model's vocabulary ends at {vocab}; is this the model's tokenizer?")]
    Id {
        /// The id.
        id: u32,
        /// Ids are below it.
        vocab: usize,
    },
}

/// Continues `request.prompt`; `each` sees every new token at once and may end the text by saying false.
pub fn generate(
    s: &Stream,
    config: &Config,
    weights: &Weights,
    decoder: &mut Decoder,
    request: Request<'_>,
    mut each: impl FnMut(u32) -> bool,
) -> Result<Generated, GenerateError> {
    let mut sampler = Sampler::new(request.options)?;
    let wanted = request.prompt.len() + request.tokens;
    if wanted > decoder.room() {
        return Err(GenerateError::Room { wanted, room: decoder.room() });
    }
    if request.prompt.is_empty() {
        return Err(GenerateError::Empty);
    }
    if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= config.vocab) {
        return Err(GenerateError::Id { id, vocab: config.vocab });
    }
    let mut out = Generated::default();
    let begin = Instant::now();
    let mut logits = decoder.prefill(s, config, weights, request.prompt)?;
    out.prompt_s = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    for place in 0..request.tokens {
        let next = sampler.pick(logits, place as u64)?;
        if request.stop.contains(&next) {
            out.ended = true;
            break;
        }
        out.tokens.push(next);
        if !each(next) || place + 1 == request.tokens {
            break;
        }
        logits = decoder.step(s, config, weights, next)?;
        out.passes += 1;
    }
    out.decode_s = begin.elapsed().as_secs_f64();
    Ok(out)
}
