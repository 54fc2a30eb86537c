//! The command line of `esker data`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// The commands of `esker data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Read every byte of token shards and hold it against its digest
    #[command(after_help = "\
PATH is a shard, or a folder of them; in a folder with a manifest.json, the shards it lists and tokenizer.json are held
against it too. Every damaged file is named, and the command exits with 1 if there is one.

Example:
  esker data verify tokens")]
    Verify(Verify),
    /// Show a row as text, the documents of a step, or how long documents are
    #[command(after_help = "\
PATH is a config, a run's folder, a shard, or a folder of them (its training shards). Without --window and --step, the
lengths of all documents are counted. A row has one token more than a window has inputs: the last is only a target.

Examples:
  esker data inspect tokens
  esker data inspect configs/quickstart.toml --window 12
  esker data inspect runs/quickstart-001 --step 3 --json")]
    Inspect(Inspect),
    /// Show what a run would take of each source: expected and realised tokens, and epochs
    #[command(after_help = "\
Example:
  esker data mix configs/quickstart.toml --set train.steps=1000")]
    Mix(Mix),
}

/// `esker data verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Shards, and folders of them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker data inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A config, a run's folder, a shard, or a folder of shards
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Override a key of the config; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Show this row as text: of a run, the row at this place since its start; of shards, in their own order. From 0
    #[arg(long, value_name = "N", conflicts_with = "step")]
    pub window: Option<u64>,
    /// List the documents that this step trains on. From 1, as in steps.jsonl
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// Tokens of a window, for shards without a config (256 when left out)
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub seq: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker data mix`.
#[derive(Debug, Args)]
pub struct Mix {
    /// Config of the run (TOML)
    pub file: PathBuf,
    /// Override a key of the config, as train.steps=1000; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
