//! What a benchmark asks of a model: the three questions of lm-evaluation-harness, and their answers.
//!
//! A task turns its documents into requests; who answers them (a model in this process, another over the network)
//! knows nothing of tasks. Strings, not tokens: where a text is cut into tokens is part of answering.

use serde::{Deserialize, Serialize};

/// One question to a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// log p(continuation | context), and whether greedy decoding would have said it.
    LogLikelihood { context: String, continuation: String },
    /// log p(text), each token after all those before it that fit.
    Rolling { text: String },
    /// Greedy continuation of `context`, cut before the first of `until`, of at most `max_tokens` tokens.
    Generate { context: String, until: Vec<String>, max_tokens: usize },
}

/// What a model says to a [`Request`] of the same name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// `sum`: natural log, over `tokens` tokens of the continuation; `greedy`: each of them was the likeliest.
    LogLikelihood { sum: f64, greedy: bool, tokens: usize },
    /// Natural log, over all `tokens` of the text.
    Rolling { sum: f64, tokens: usize },
    /// Without the string it was cut at.
    Generate { text: String },
}
