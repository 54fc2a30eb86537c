//! The command line of `esker data`.

use super::Tokenize;
use clap::{Args, Subcommand, ValueEnum};
use esker_data::formats::{Format, Int};
use std::path::PathBuf;

/// The commands of `esker data`.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// Turn corpora of any size into token shards; stopped, it goes on where it was
    #[command(after_help = "\
INPUT is a file or a folder, which stands for all such files in it and in its folders, by name:
  .jsonl           a JSON object a line, its text under --text-key
  .txt             a document, or several with --separator
  .gz .zst .zstd   behind .jsonl, .json and .txt: packed, any number of members or frames
  .parquet         a column of text, in builds with --features parquet

Memory does not grow with the input. Shards are the same bytes on any number of threads. A process that was killed
leaves what it finished in DIR; the same command takes it up. Until the end DIR takes about twice its final size.

Example:
  esker data prepare --tokenizer tokenizer.json --out tokens dclm/global-shard_01_of_10")]
    Prepare(Prepare),
    /// Turn token files of other programs into token shards
    #[command(after_help = "\
INPUT is a file, or a folder of them, all of one format:
  megatron   NAME.bin and NAME.idx             datatrove  *.ds, *.ds.index, *.ds.loss, *.ds.metadata
  llmc       *.bin of llm.c, modded-nanogpt    mds        a folder with index.json, raw or zstd
  nanogpt    *.bin, u16 ids alone              tokshuf    DCLM's *.tar and manifest.jsonl (needs --eos, --pad)
  olmo       *.npy without header, *.csv.gz    templar    train_N.npy, sample_ids_N.bin
  npy        NumPy arrays of one or two dimensions
The tokenizer that made the ids gives vocabulary, end mark and bytes of text, and training asks for it; without one,
name --vocab-size and --eos.

Examples:
  esker data import --tokenizer tokenizer.json --out tokens train_text_document.bin
  esker data import --eos 50256 --vocab-size 50257 --out tokens fineweb_train_000001.bin
  esker data import --tokenizer neox/tokenizer.json --eos 0 --pad 50256 --out tokens dclm/")]
    Import(Import),
    /// Write token shards as files of another program
    #[command(after_help = "\
Each split becomes a file (train.bin) or a folder (train/) of --out; nothing is replaced. Formats with samples,
contexts or windows need --seq-len; what does not fill the last is left out and counted, save in tokshuf, which fills
it up with --pad.

Examples:
  esker data export --format megatron --out megatron tokens
  esker data export --format mds --seq-len 2048 --out mds tokens")]
    Export(Export),
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

/// `esker data import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Which format: auto, megatron, llmc, nanogpt, olmo, datatrove, mds, tokshuf, templar or npy
    #[arg(long, default_value = "auto", value_parser = format_or_auto)]
    pub format: FormatOrAuto,
    /// The tokenizer that made the ids: a tokenizer.json, a folder that holds one, or `bytes`
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// The id that ends a document (in llm.c: that opens one); the tokenizer's when left out
    #[arg(long, value_name = "ID")]
    pub eos: Option<u32>,
    /// The id that fills contexts up; it is left out at their ends
    #[arg(long, value_name = "ID")]
    pub pad: Option<u32>,
    /// Ids are below this; the tokenizer's when left out
    #[arg(long, value_name = "N")]
    pub vocab_size: Option<u32>,
    /// How ids are stored where files do not say: u8, i8, u16, i16, u32, i32, u64 or i64
    #[arg(long, value_name = "TYPE", value_parser = int)]
    pub dtype: Option<Int>,
    /// What a document is: what the format says, what ends with the end mark, or every record as it is
    #[arg(long, value_enum, default_value_t = Divide::Auto)]
    pub documents: Divide,
    /// The column of MDS with the tokens; tokens or input_ids when left out
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// Read datatrove files with masked tokens as if nothing were masked
    #[arg(long)]
    pub drop_loss_mask: bool,
    /// Folder for shards and manifest.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Files and folders to read
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Share of the documents kept for validation
    #[arg(long, default_value_t = 0.0)]
    pub val_fraction: f64,
    /// Decides which documents those are
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Replace shards that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Print what was made as JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker data export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Which format: megatron, llmc, nanogpt, olmo, datatrove, mds, tokshuf, templar or npy
    #[arg(long)]
    pub format: Format,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Folder of shards with its manifest.json
    #[arg(value_name = "SHARD_DIR")]
    pub shards: PathBuf,
    /// Only this split
    #[arg(long, value_enum)]
    pub split: Option<Part>,
    /// Tokens of a sample (mds), context (tokshuf), window (templar) or row (npy)
    #[arg(long, value_name = "N")]
    pub seq_len: Option<usize>,
    /// The id that fills the last context of tokshuf up
    #[arg(long, value_name = "ID")]
    pub pad: Option<u32>,
    /// How ids are stored; what the format's own tools would choose when left out
    #[arg(long, value_name = "TYPE", value_parser = int)]
    pub dtype: Option<Int>,
    /// A document is a sample or context, not a window of the stream (mds, tokshuf)
    #[arg(long)]
    pub records: bool,
    /// mds: samples of encoding `bytes` (of i64, or --dtype), as llm-foundry writes them
    #[arg(long)]
    pub bytes: bool,
    /// mds: compress shards
    #[arg(long)]
    pub zstd: bool,
    /// mds: bytes of a shard at most; 67108864 when left out
    #[arg(long, value_name = "BYTES")]
    pub shard_bytes: Option<u64>,
    /// tokshuf: contexts of a tar; 8192 when left out
    #[arg(long, value_name = "N")]
    pub shard_contexts: Option<u64>,
    /// Print what was written as JSON
    #[arg(long)]
    pub json: bool,
}

/// Which format an import reads; none is found by name and content.
#[derive(Clone, Copy, Debug)]
pub struct FormatOrAuto(pub Option<Format>);

fn format_or_auto(name: &str) -> Result<FormatOrAuto, String> {
    match name {
        "auto" => Ok(FormatOrAuto(None)),
        name => name.parse().map(|format| FormatOrAuto(Some(format))),
    }
}

fn int(name: &str) -> Result<Int, String> {
    let names = || Int::ALL.map(|(_, name)| name).join(", ");
    Int::from_name(name).ok_or_else(|| format!("{name:?} is no integer type; expected {}", names()))
}

/// What an import takes for a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Divide {
    /// The format's table where it has one, else end marks
    Auto,
    /// End marks
    Marks,
    /// Documents of a table, samples, contexts, windows or rows, whole
    Records,
}

/// A split by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Training documents
    Train,
    /// Validation documents
    Val,
}

/// `esker data prepare`.
#[derive(Debug, Args)]
pub struct Prepare {
    /// What `esker tokenize` takes too.
    #[command(flatten)]
    pub base: Tokenize,
    /// Key of the text in a JSON line, column of the text in parquet
    #[arg(long, value_name = "KEY", default_value = "text")]
    pub text_key: String,
    /// Key or column of a document's name, shown where a document is dropped
    #[arg(long, value_name = "KEY")]
    pub id_key: Option<String>,
    /// Line that stands between two documents of a .txt file
    #[arg(long, value_name = "LINE")]
    pub separator: Option<String>,
    /// Longest document, and longest line of JSON, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    pub max_document_bytes: usize,
    /// What to do with a document that is too long, no UTF-8, no JSON, or has no text
    #[arg(long, value_enum, default_value_t = Bad::Error)]
    pub bad: Bad,
    /// Make an end mark of a document of no bytes, instead of dropping it
    #[arg(long)]
    pub keep_empty: bool,
    /// Tokens after which a shard is closed
    #[arg(long, value_name = "TOKENS", default_value_t = 1 << 29)]
    pub shard_tokens: u64,
    /// Unpacked input after which work is safe from a kill, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub piece_bytes: u64,
    /// Threads that encode; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = super::threads)]
    pub threads: usize,
}

/// What to do with a document that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bad {
    /// Stop and name it
    Error,
    /// Leave it out and count it
    Drop,
}
