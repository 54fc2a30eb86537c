//! Answers what a benchmark asks, with a model in this process and the semantics of lm-evaluation-harness 0.4.13.
//!
//! A row of ids is what the network reads for one request (`encode.rs` says how strings become one).
//!
//! log p(continuation) = Σ_t z_t,id(t) − log Σ_v exp z_tv          z: f32 logits, t over the row's scored places
//! greedy              = each id(t) is the largest of z_t           the lowest id of equals
//!
//! Rows that begin alike share what they begin with, and thousands of tokens go through the network at once (`plan.rs`,
//! [`mod@esker_model::score`]); texts to generate grow side by side (`flow.rs`).
//!
//! Generation is greedy, ends at the end mark, at a stop string or after `max_tokens`, and its text is cut before each of
//! the stop strings in turn.

pub(crate) mod encode;
pub(crate) mod flow;
pub(crate) mod plan;

use crate::{
    request::{Answer, Request},
    sample::{SampleError, largest},
};
use encode::{Encoder, Row};
use esker_data::tokenizer::{Tokenizer, TokenizerError};
use esker_kernels::{DeviceError, device::Stream, tensor::Arena};
use esker_model::{
    Config, Weights,
    score::{Scorer, Size},
};
use flow::{Flow, Next};
use plan::{Asking, texts};

/// Tokens of a batch, unless one text is longer: enough rows to fill the matrix products, few enough to stay small.
const TOKENS: usize = 2048;
/// Texts that grow at once, where their caches fit.
const LANES: usize = 16;
/// Of all caches together.
const CACHE_BYTES: usize = 1 << 30;
/// Tokens of a step of generation.
const STEP_TOKENS: usize = 512;

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

/// What answering took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows of ids that were scored.
    pub rows: u64,
    /// Tokens that they have, read one by one.
    pub row_tokens: u64,
    /// Tokens that went through the blocks to score them.
    pub tokens: u64,
    /// Places that went through the head.
    pub places: u64,
    /// Tokens generated.
    pub generated: u64,
}

impl Work {
    /// Flops of the products that scoring takes: 2 a weight of the blocks and token, 2 a weight of the head and place.
    pub fn flops(&self, config: &Config) -> f64 {
        let p = config.params();
        2.0 * ((p.attention + p.mlp) as f64 * self.tokens as f64 + p.embedding as f64 * self.places as f64)
    }
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
    scorer: Option<Scorer>,
    work: Work,
}

/// A text to generate.
struct Job<'r> {
    request: usize,
    ids: Vec<u32>,
    until: &'r [String],
    max_tokens: usize,
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
        let work = Work::default();
        Ok(Engine { stream, config, weights, tokenizer, encoder, eos, scorer: None, work })
    }

    /// What all answers so far took.
    pub fn work(&self) -> Work {
        self.work
    }

    /// The answer to each request, in their order. The more at once, the faster each.
    pub fn answer(&mut self, requests: &[Request]) -> Result<Vec<Answer>, EngineError> {
        let (mut rows, mut owner, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
        let mut answers = Vec::with_capacity(requests.len());
        for (i, request) in requests.iter().enumerate() {
            answers.push(match request {
                Request::LogLikelihood { context, continuation } => {
                    rows.extend(self.encoder.pair(context, continuation)?);
                    Answer::LogLikelihood { sum: 0.0, greedy: true, tokens: 0 }
                }
                Request::Rolling { text } => {
                    rows.extend(self.encoder.rolling(text)?);
                    Answer::Rolling { sum: 0.0, tokens: 0 }
                }
                Request::Generate { context, until, max_tokens } => {
                    let ids = self.encoder.prompt(context, *max_tokens)?;
                    jobs.push(Job { request: i, ids, until, max_tokens: *max_tokens });
                    Answer::Generate { text: String::new() }
                }
            });
            owner.resize(rows.len(), i);
        }
        self.encoder.forget();
        for ((row, owner), (add, all)) in rows.iter().zip(owner).zip(self.score(&rows)?) {
            match &mut answers[owner] {
                Answer::LogLikelihood { sum, greedy, tokens } => {
                    (*sum, *greedy, *tokens) = (*sum + add, *greedy && all, *tokens + row.scored);
                }
                Answer::Rolling { sum, tokens } => (*sum, *tokens) = (*sum + add, *tokens + row.scored),
                Answer::Generate { .. } => unreachable!("engine: a row of a text to generate"),
            }
        }
        self.generate(jobs, &mut answers)?;
        Ok(answers)
    }

    /// Of each row, the sum of its log-probabilities and whether each target is the likeliest.
    fn score(&mut self, rows: &[Row]) -> Result<Vec<(f64, bool)>, EngineError> {
        let mut scores = vec![(0.0, true); rows.len()];
        let Some(longest) = rows.iter().map(|row| row.inputs().len()).max() else { return Ok(scores) };
        let size = Size { tokens: longest.max(TOKENS), positions: longest };
        let mut scorer = match self.scorer.take() {
            Some(s) if s.size().tokens >= size.tokens && s.size().positions >= size.positions => s,
            _ => {
                let dtype = self.weights.embed.dtype();
                let layout = |arena: &mut Arena| Scorer::layout(arena, self.config, dtype, size);
                let mut scorer = Arena::build(self.stream, layout)?.0;
                scorer.ready(self.stream, self.config)?;
                scorer
            }
        };
        let most = scorer.size().tokens;
        let mut asking = Asking::default();
        for text in texts(rows, most) {
            if asking.batch.tokens() + text.tokens > most {
                self.read(&mut scorer, &asking, &mut scores)?;
                asking.clear();
            }
            asking.put(rows, &text);
        }
        self.read(&mut scorer, &asking, &mut scores)?;
        self.scorer = Some(scorer);
        self.work.rows += rows.len() as u64;
        self.work.row_tokens += rows.iter().map(|row| row.inputs().len() as u64).sum::<u64>();
        Ok(scores)
    }

    /// Puts a batch through the network and adds what it says to the scores of its rows.
    fn read(&mut self, scorer: &mut Scorer, asking: &Asking, scores: &mut [(f64, bool)]) -> Result<(), EngineError> {
        let mut broken = None;
        scorer.read(self.stream, self.config, self.weights, &asking.batch, |said| {
            if !said.lse.is_finite() {
                broken = largest(said.logits).err().or(Some(SampleError::Nothing(said.logits.len())));
            }
            for target in &asking.asked[said.index] {
                let (sum, greedy) = &mut scores[target.row];
                *sum += f64::from(said.logits[target.id as usize] - said.lse);
                *greedy &= said.best == target.id;
            }
        })?;
        self.work.tokens += asking.batch.tokens() as u64;
        self.work.places += asking.batch.places() as u64;
        broken.map_or(Ok(()), |e| Err(e.into()))
    }

    /// Generates all texts, the longest first.
    fn generate(&mut self, mut jobs: Vec<Job<'_>>, answers: &mut [Answer]) -> Result<(), EngineError> {
        let Some(capacity) = jobs.iter().map(|job| job.ids.len() + job.max_tokens).max() else { return Ok(()) };
        let lanes = flow::lanes(self.config, self.weights, capacity, LANES.min(jobs.len()), CACHE_BYTES);
        let mut flow = Flow::new(self.stream, self.config, self.weights, (lanes, capacity, STEP_TOKENS))?;
        jobs.sort_by_key(|job| job.ids.len());
        let mut under_way: Vec<Option<Growing<'_>>> = (0..lanes).map(|_| None).collect();
        let mut broken = None;
        while !(jobs.is_empty() && flow.idle()) {
            while let Some(lane) = flow.free() {
                let Some(mut job) = jobs.pop() else { break };
                if job.max_tokens > 0 {
                    flow.start(lane, std::mem::take(&mut job.ids));
                    under_way[lane] = Some(Growing::new(self.tokenizer, job)?);
                }
            }
            flow.step(|lane, logits| {
                let growing = under_way[lane].as_mut().expect("engine: a lane without a text");
                self.work.generated += 1;
                match growing.grow(self.tokenizer, &self.eos, logits) {
                    Ok(Next::End) => match growing.text(self.tokenizer) {
                        Ok(text) => answers[growing.job.request] = Answer::Generate { text },
                        Err(e) => broken = Some(e),
                    },
                    Ok(next) => return next,
                    Err(e) => broken = Some(e),
                }
                Next::End
            })?;
            if let Some(e) = broken {
                return Err(e);
            }
        }
        Ok(())
    }
}

/// A text that grows.
struct Growing<'r> {
    job: Job<'r>,
    made: Vec<u32>,
    /// Last tokens among which a stop string that just ended lies whole.
    window: usize,
}

impl<'r> Growing<'r> {
    fn new(tokenizer: &Tokenizer, job: Job<'r>) -> Result<Growing<'r>, EngineError> {
        let mut window = 0;
        for stop in job.until {
            // Two more than it takes to spell, for other ways to cut the same text.
            window = window.max(tokenizer.encode(stop)?.len() + 2);
        }
        Ok(Growing { job, made: Vec::new(), window })
    }

    /// Takes the likeliest token.
    fn grow(&mut self, tokenizer: &Tokenizer, eos: &[u32], logits: &[f32]) -> Result<Next, EngineError> {
        let id = largest(logits)?;
        self.made.push(id);
        if self.made.len() == self.job.max_tokens || eos.contains(&id) {
            return Ok(Next::End);
        }
        if id < tokenizer.vocab_size() && !self.job.until.is_empty() {
            let last: Vec<u32> = self.made[self.made.len().saturating_sub(self.window)..].to_vec();
            let text = decode(tokenizer, &last, false)?;
            if self.job.until.iter().any(|stop| !stop.is_empty() && text.contains(stop)) {
                return Ok(Next::End);
            }
        }
        Ok(Next::Token(id))
    }

    /// What was made, cut before each stop string in turn.
    fn text(&self, tokenizer: &Tokenizer) -> Result<String, EngineError> {
        let mut text = decode(tokenizer, &self.made, true)?;
        for stop in self.job.until.iter().filter(|stop| !stop.is_empty()) {
            text.truncate(text.find(stop).unwrap_or(text.len()));
        }
        Ok(text)
    }
}

/// The text of ids; those that only the model has (its vocabulary may be rounded up) show nothing.
fn decode(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
    let known: Vec<u32> = ids.iter().copied().filter(|&id| id < tokenizer.vocab_size()).collect();
    tokenizer.decode(&known, skip_special)
}

#[cfg(test)]
pub(crate) mod tests;
