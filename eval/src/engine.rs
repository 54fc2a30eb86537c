//! Answers what a benchmark asks, with a model in this process and the semantics of lm-evaluation-harness 0.4.13.
//!
//! A row of ids is what the network reads for one request (`encode.rs` says how strings become one).
//!
//! log p(continuation) = Σ_t z_t,id(t) − log Σ_v exp z_tv          z: f32 logits, t over the row's scored places
//! greedy              = each id(t) is the largest of z_t           the lowest id of equals
//!
//! Generation is greedy, ends at the end mark, at a stop string or after `max_tokens`, and its text is cut before each of
//! the stop strings in turn.

mod encode;

use crate::{
    request::{Answer, Request},
    sample::{SampleError, largest},
};
use encode::{Encoder, Row};
use esker_data::tokenizer::{Tokenizer, TokenizerError};
use esker_kernels::{DeviceError, device::Stream, tensor::Arena};
use esker_model::{Config, Decoder, Weights};

/// How requests are put to the model.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Most tokens that the model sees at once; `None`: the model's own context.
    pub max_length: Option<usize>,
    /// Whether texts begin with the start mark; `None`: as the tokenizer itself does it.
    pub add_bos: Option<bool>,
    /// Tokens that end a generated text, besides the tokenizer's end mark.
    pub eos: Vec<u32>,
}

/// Why requests could not be answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No memory, or the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A text could not be encoded, or ids not decoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model's logits are no numbers.
    #[error(transparent)]
    Sample(#[from] SampleError),
    /// An empty context, and nothing to stand for it.
    #[error("a context is empty, and the tokenizer has neither a start nor an end mark to stand for it")]
    NoMark,
    /// A continuation that does not fit.
    #[error("a continuation of {tokens} tokens is longer than the {max_length} that the model sees at once")]
    TooLong {
        /// Of the continuation.
        tokens: usize,
        /// That fit.
        max_length: usize,
    },
    /// More tokens to generate than fit.
    #[error(
        "{max_tokens} tokens to generate leave no room for a context in the {max_length} that the model sees at once"
    )]
    NoRoom {
        /// To generate.
        max_tokens: usize,
        /// That fit.
        max_length: usize,
    },
    /// Ids that the model has no embedding for.
    #[error(
        "the tokenizer has {got} ids, the model's vocabulary is {vocab}; use the tokenizer the model was trained with"
    )]
    Vocabulary {
        /// Of the tokenizer.
        got: u32,
        /// Of the model.
        vocab: usize,
    },
}

/// A model that answers requests.
#[derive(Debug)]
pub struct Engine<'a> {
    stream: &'a Stream,
    config: &'a Config,
    weights: &'a Weights,
    tokenizer: &'a Tokenizer,
    encoder: Encoder<'a>,
    eos: Vec<u32>,
}

impl<'a> Engine<'a> {
    /// Checks that the tokenizer is one of this model's.
    pub fn new(
        stream: &'a Stream,
        config: &'a Config,
        weights: &'a Weights,
        tokenizer: &'a Tokenizer,
        options: Options,
    ) -> Result<Engine<'a>, EngineError> {
        if tokenizer.vocab_size() as usize > config.vocab {
            return Err(EngineError::Vocabulary { got: tokenizer.vocab_size(), vocab: config.vocab });
        }
        let max_length = options.max_length.unwrap_or(config.context).max(1);
        let encoder = Encoder::new(tokenizer, options.add_bos, max_length)?;
        let eos = options.eos.into_iter().chain(tokenizer.eos()).collect();
        Ok(Engine { stream, config, weights, tokenizer, encoder, eos })
    }

    /// The answer to each request, in their order.
    pub fn answer(&mut self, requests: &[Request]) -> Result<Vec<Answer>, EngineError> {
        let answers = requests.iter().map(|request| self.one(request)).collect();
        self.encoder.forget();
        answers
    }

    fn one(&mut self, request: &Request) -> Result<Answer, EngineError> {
        match request {
            Request::LogLikelihood { context, continuation } => {
                let row = self.encoder.pair(context, continuation)?;
                let (sum, greedy) = row.as_ref().map_or(Ok((0.0, true)), |row| self.score(row))?;
                Ok(Answer::LogLikelihood { sum, greedy, tokens: row.map_or(0, |row| row.scored) })
            }
            Request::Rolling { text } => {
                let (mut sum, mut tokens) = (0.0, 0);
                for row in self.encoder.rolling(text)? {
                    sum += self.score(&row)?.0;
                    tokens += row.scored;
                }
                Ok(Answer::Rolling { sum, tokens })
            }
            Request::Generate { context, until, max_tokens } => {
                let ids = self.encoder.prompt(context, *max_tokens)?;
                Ok(Answer::Generate { text: self.generate(&ids, until, *max_tokens)? })
            }
        }
    }

    fn decoder(&self, capacity: usize, piece: usize) -> Result<Decoder, EngineError> {
        let dtype = self.weights.embed.dtype();
        let mut decoder =
            Arena::build(self.stream, |arena| Decoder::layout(arena, self.config, dtype, capacity, piece))?.0;
        decoder.ready(self.stream, self.config)?;
        Ok(decoder)
    }

    fn score(&self, row: &Row) -> Result<(f64, bool), EngineError> {
        let inputs = row.inputs();
        let mut decoder = self.decoder(inputs.len(), inputs.len().min(512))?;
        let (mut sum, mut greedy) = (0.0, true);
        let head = row.from() + 1;
        for place in row.from()..inputs.len() {
            let new = if place + 1 == head { &inputs[..head] } else { &inputs[place..=place] };
            let z = decoder.prefill(self.stream, self.config, self.weights, new)?;
            let target = row.ids[place + 1];
            greedy &= largest(z)? == target;
            let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum_exp: f32 = z.iter().map(|z| (z - max).exp()).sum();
            sum += f64::from(z[target as usize] - max - sum_exp.ln());
        }
        Ok((sum, greedy))
    }

    fn generate(&self, ids: &[u32], until: &[String], max_tokens: usize) -> Result<String, EngineError> {
        let mut decoder = self.decoder(ids.len() + max_tokens, ids.len().min(512))?;
        let (mut made, mut next) = (Vec::new(), ids.to_vec());
        while made.len() < max_tokens {
            let id = largest(decoder.prefill(self.stream, self.config, self.weights, &next)?)?;
            made.push(id);
            next = vec![id];
            let text = self.tokenizer.decode(&made, false)?;
            if self.eos.contains(&id) || until.iter().any(|stop| !stop.is_empty() && text.contains(stop)) {
                break;
            }
        }
        let mut text = self.tokenizer.decode(&made, true)?;
        for stop in until.iter().filter(|stop| !stop.is_empty()) {
            text.truncate(text.find(stop).unwrap_or(text.len()));
        }
        Ok(text)
    }
}
