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
