//! Serves a model over HTTP in the shape of OpenAI's completions: what lm-evaluation-harness scores and clients stream.
//!
//! | path                 | what |
//! | -------------------- | ---- |
//! | POST /v1/completions | continues prompts (texts or ids), or scores them with `echo` and `logprobs`; streams by server-sent events |
//! | GET /v1/models       | the one model |
//! | GET /health          | 200 while it runs |
//!
//! Two threads share the work. One speaks HTTP (`http.rs`): it reads requests (`ask.rs`), turns texts into ids and puts a
//! `talk::Job` for each prompt into a queue of bounded length. The other has the model (`talk.rs`): it scores what is to be
//! scored in one batch, and lets all texts under way grow together, new ones joining at any step. Events go back through a
//! channel for each request, which holds at most what its tokens make. A client that is gone ends its texts.
//!
//! What arrives is hostile: bodies, prompts, lists, connections and waits have limits (`http.rs`, `wire.rs`), and errors
//! are told in OpenAI's form, with a status of 400 to 503.
//! Source of the forms: OpenAI's API reference of completions; logprobs as vLLM gives them.

mod ask;
mod http;
mod talk;
#[cfg(test)]
mod tests;
pub mod wire;

use crate::engine::flow::{self, Flow};
use esker_data::tokenizer::Tokenizer;
use esker_kernels::{DeviceError, device::Stream, tensor::Arena};
use esker_model::{
    Config, Weights,
    score::{Scorer, Size},
};
use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};
use tokio::sync::{Notify, mpsc};

/// Bytes of all caches together.
const CACHE_BYTES: usize = 4 << 30;
/// Tokens of a step.
const STEP_TOKENS: usize = 512;
/// Prompts that may wait.
const QUEUE: usize = 1024;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the model is called.
    pub name: String,
    /// Texts that grow at once.
    pub max_batch: usize,
    /// Most tokens of a prompt and what follows it.
    pub max_length: usize,
    /// Tokens that end a text, besides the tokenizer's end mark.
    pub eos: Vec<u32>,
}

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// No memory, or the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The address cannot be used.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Which.
        addr: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The thread that speaks HTTP could not begin, or ended.
    #[error("the HTTP server failed: {0}")]
    Http(std::io::Error),
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

/// A model with its memory, listening, and not yet answering.
#[derive(Debug)]
pub struct Server<'a> {
    listener: TcpListener,
    addr: SocketAddr,
    config: &'a Config,
    tokenizer: &'a Tokenizer,
    options: Options,
    talk: talk::Model<'a>,
    stop: Arc<Notify>,
}

impl<'a> Server<'a> {
    /// Takes memory for `options.max_batch` texts, or as many as fit 4 GiB of cache, and listens on `addr`; port 0 is any.
    pub fn new(
        stream: &'a Stream,
        config: &'a Config,
        weights: &'a Weights,
        tokenizer: &'a Tokenizer,
        options: Options,
        addr: SocketAddr,
    ) -> Result<Server<'a>, ServeError> {
        if tokenizer.vocab_size() as usize > config.vocab {
            return Err(ServeError::Vocabulary { got: tokenizer.vocab_size(), vocab: config.vocab });
        }
        let listen = |source| ServeError::Listen { addr, source };
        let listener = TcpListener::bind(addr).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let (dtype, most) = (weights.embed.dtype(), options.max_length.max(1));
        let lanes = flow::lanes(config, weights, most, options.max_batch, CACHE_BYTES);
        let flow = Flow::new(stream, config, weights, (lanes, most, STEP_TOKENS))?;
        let size = Size { tokens: most.max(STEP_TOKENS), positions: most };
        let (mut scorer, _) = Arena::build(stream, |arena| Scorer::layout(arena, config, dtype, size))?;
        scorer.ready(stream, config)?;
        let eos = options.eos.iter().copied().chain(tokenizer.eos()).collect();
        let talk = talk::Model { stream, config, weights, tokenizer, eos, flow, scorer };
        Ok(Server { listener, addr, config, tokenizer, options, talk, stop: Arc::default() })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Texts that grow at once.
    pub fn lanes(&self) -> usize {
        self.talk.flow.lanes()
    }

    /// Notified, it takes no more requests, finishes those under way for a few seconds, and [`Server::run`] returns.
    pub fn stop(&self) -> Arc<Notify> {
        self.stop.clone()
    }

    /// Serves until it is told to stop.
    pub fn run(self) -> Result<(), ServeError> {
        let Server { listener, config, tokenizer, options, mut talk, stop, .. } = self;
        let stopped = stop.clone();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let house = http::House {
            name: options.name,
            vocab: config.vocab,
            max_length: options.max_length,
            tokenizer: tokenizer.clone(),
            created: http::now(),
            jobs,
            served: Default::default(),
        };
        let thread = std::thread::Builder::new().name("http".into());
        let http = thread.spawn(move || http::serve(listener, house, stop)).map_err(ServeError::Http)?;
        // It ends when the other thread has dropped its side of the queue, or when the device fails.
        let outcome = talk.run(queue);
        stopped.notify_one();
        let served = http.join().expect("serve: the HTTP thread");
        outcome?;
        served.map_err(ServeError::Http)
    }
}
