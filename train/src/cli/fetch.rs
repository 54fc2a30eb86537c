//! The command line of `esker fetch`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `esker fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// What the repository holds; decides which files are taken
    #[arg(value_enum, value_name = "WHAT")]
    pub what: What,
    /// Repository, as OWNER/NAME
    #[arg(value_name = "REPO")]
    pub repo: String,
    /// Take files of this name instead, `*` standing for anything; may be repeated
    #[arg(long = "file", value_name = "PATTERN")]
    pub files: Vec<String>,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// Folder to put the files in
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// A model: config, safetensors, tokenizer
    Model,
    /// The tokenizer of a model
    Tokenizer,
    /// A data set: every file
    Dataset,
}
