//! What is typed about models that are at hand: to continue texts, to score, to serve, to examine.

use super::Precision;
use clap::Args;
use std::path::PathBuf;

/// Which model, and how it runs.
#[derive(Debug, Args)]
pub struct Model {
    /// A Hugging Face folder, a checkpoint, or a run folder (its newest valid checkpoint)
    #[arg(long = "model", value_name = "DIR")]
    pub dir: PathBuf,
    /// Arithmetic of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = super::threads)]
    pub threads: usize,
}

/// `esker generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Which model.
    #[command(flatten)]
    pub model: Model,
    /// Text to continue
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// New tokens at most
    #[arg(long, default_value_t = 128)]
    pub tokens: usize,
    /// Divides the logits: lower is safer, 0 is greedy
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f32,
    /// Choose among this many most likely tokens; 0 = all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Choose among the fewest tokens of this probability; 1 = all
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Start of the draws: the same seed, the same text
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Always take the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    pub greedy: bool,
    /// Print prompt, ids, text and speed as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `esker score`.
#[derive(Debug, Args)]
pub struct Score {
    /// Which model.
    #[command(flatten)]
    pub model: Model,
    /// JSON file with the rows of token ids
    #[arg(long, value_name = "FILE")]
    pub tokens: PathBuf,
    /// Accepted for symmetry: the output is JSON either way
    #[arg(long)]
    pub json: bool,
}

/// `esker serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Which model.
    #[command(flatten)]
    pub model: Model,
    /// Where to listen; port 0 takes any that is free
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "IP:PORT")]
    pub addr: std::net::SocketAddr,
    /// Texts that grow at once, as far as 4 GiB hold their caches
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_batch: u16,
    /// Most tokens of a prompt and what follows it; 0 takes the model's context, or 4096 where that is longer
    #[arg(long, default_value_t = 0)]
    pub max_length: usize,
    /// What requests call the model; the folder's name when left out
    #[arg(long)]
    pub name: Option<String>,
}

/// `esker eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// Which model.
    #[command(flatten)]
    pub model: Model,
    /// A text in UTF-8
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    pub text: Option<PathBuf>,
    /// Token shards made with the model's tokenizer; may be repeated
    #[arg(long, value_name = "FILE")]
    pub shard: Vec<PathBuf>,
    /// Tokens of a window; 0 takes the model's context, or 2048 where that is longer
    #[arg(long, default_value_t = 0)]
    pub seq: usize,
    /// Benchmarks and their options.
    #[command(flatten)]
    pub tasks: Tasks,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The benchmarks of `esker eval`.
#[derive(Debug, Args)]
pub struct Tasks {
    /// Benchmarks to score, by comma
    #[arg(long = "tasks", value_name = "NAMES", value_delimiter = ',', conflicts_with_all = ["text", "shard"], requires = "data")]
    pub names: Vec<String>,
    /// Folder of the benchmarks' rows
    #[arg(long, value_name = "DIR", requires = "names")]
    pub data: Option<PathBuf>,
    /// Documents of each task at most, the first ones
    #[arg(long, value_name = "N", requires = "names")]
    pub limit: Option<usize>,
    /// Examples before each question; left out, each task's own number
    #[arg(long, value_name = "N", requires = "names")]
    pub num_fewshot: Option<usize>,
    /// Start of the draws of examples
    #[arg(long, default_value_t = esker_eval::tasks::SEED, value_name = "SEED")]
    pub seed: u64,
    /// Resamplings behind the error of a perplexity; 0 leaves out all errors
    #[arg(long, default_value_t = esker_eval::tasks::BOOTSTRAP_ITERS, value_name = "N")]
    pub bootstrap_iters: usize,
    /// Most tokens the model sees at once; left out, its context
    #[arg(long, value_name = "N", requires = "names")]
    pub max_length: Option<usize>,
    /// Whether texts begin with the start mark; left out, as the tokenizer does it
    #[arg(long, value_name = "BOOL", requires = "names")]
    pub add_bos: Option<bool>,
    /// Keep every document, request, answer and score: samples_TASK.jsonl in this folder
    #[arg(long, value_name = "DIR", requires = "names")]
    pub log_samples: Option<PathBuf>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE", requires = "names")]
    pub output: Option<PathBuf>,
    /// Score each checkpoint of the run folder --model as it appears
    #[arg(long, requires = "names", conflicts_with_all = ["log_samples", "output"])]
    pub follow: bool,
}
