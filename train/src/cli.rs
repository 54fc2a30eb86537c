//! The command line: what can be typed, with an example each.

pub mod data;
pub mod fetch;
pub mod model;
pub mod peers;

use clap::{Args, Parser, Subcommand, ValueEnum};
use esker_kernels::{device, tensor::DType};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a check failed (parity, the logit check of export, doctor)
  2    the command line, a config or a file's content is wrong
  3    a file or the device could not be used: missing, unreadable, full, out of memory
  130  stopped by Ctrl-C or SIGTERM; what was done is saved and can be resumed

Environment:
  ESKER_LOG   what to log on stderr, as `info` or `esker=debug` (default: warn)
  ESKER_SIMD  portable, avx2, avx512 or avx512bf16: lowers the instructions used";

/// Pretrains language models in Rust: from text to a checkpoint that other tools load.
#[derive(Debug, Parser)]
#[command(name = "esker", version, after_help = format!("Example:\n  esker train configs/quickstart.toml\n\n{EXIT_CODES}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model as a config file says, or go on with a run
    #[command(after_help = "\
Ctrl-C or SIGTERM finishes the step, saves and exits 130; a second one ends at once.

Examples:
  esker train configs/quickstart.toml
  esker train configs/quickstart.toml --set optim.lr=1e-3 --set train.steps=600
  esker train --resume runs/quickstart-001
  esker train --resume runs/quickstart-001 --set train.threads=1")]
    Train(Train),
    /// Show layers, parameters, FLOPs and memory of a config; nothing runs
    #[command(after_help = "\
Example:
  esker plan configs/quickstart.toml --set train.dtype=f32")]
    Plan(Plan),
    /// Continue a prompt
    #[command(after_help = "\
Example:
  esker generate --model runs/quickstart-001 --prompt \"Fellow citizens\" --tokens 100 --temperature 0.8 --top-p 0.95")]
    Generate(model::Generate),
    /// Log-probability of every token of given rows, as JSON
    #[command(after_help = "\
FILE holds {\"rows\": [[id, ...], ...]}; rows may differ in length. Of each row, every id but the first is scored, given
those before it: {\"mean_nll\": x, \"logprob\": [[...], ...]}, natural logarithms.

Example:
  echo '{\"rows\": [[1, 403, 407, 261], [1, 410]]}' > rows.json
  esker score --model my-model --tokens rows.json")]
    Score(model::Score),
    /// Serve a model over HTTP, in the shape of OpenAI's completions
    #[command(after_help = "\
POST /v1/completions continues prompts (texts or token ids), streams, and scores prompts with echo and logprobs; GET
/v1/models and /health tell what runs. Up to --max-batch texts grow at once, others wait. lm-evaluation-harness scores the
model with --model local-completions. Ctrl-C ends what is under way within seconds.

Examples:
  esker serve --model my-model
  curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 50}'
  lm_eval --model local-completions --tasks arc_easy --model_args model=my-model,base_url=http://127.0.0.1:8000/v1/completions,tokenizer_backend=huggingface,tokenizer=my-model")]
    Serve(model::Serve),
    /// Scores on benchmarks, or bits per byte of a text or of token shards
    #[command(after_help = "\
With --tasks, the questions, answers and scores are those of lm-evaluation-harness 0.4.13, and so is the JSON. NAMES are
arc_easy, arc_challenge, piqa, openbookqa, hellaswag, winogrande, mmlu, boolq, lambada_openai, gsm8k, ifeval,
minerva_math, hendrycks_math, and parts of them such as mmlu_stem or mmlu_anatomy. Nothing is downloaded: DIR holds each
benchmark's own rows as TASK.SPLIT.jsonl or .jsonl.gz, and what is missing is named with its keys and source. With
--follow, --model is a run's folder: each of its checkpoints is scored as it appears, into the run's evals.jsonl and
report.html, until the last step's is.

Without --tasks, every token is scored once, in windows of the model's context. A text's first token is predicted from
the tokenizer's start mark (its end mark where it has none). Of a run folder, without --text and --shard, the run's own
validation tokens are scored.

Examples:
  esker eval --model my-model --tasks arc_easy,hellaswag --data rows --limit 200
  esker eval --model my-model --tasks mmlu --num-fewshot 5 --data rows --output mmlu.json --log-samples mmlu-samples
  esker eval --model runs/quickstart-001 --follow --tasks piqa --data rows
  esker eval --model runs/quickstart-001
  esker eval --model my-model --text book.txt")]
    Eval(model::Eval),
    /// Turn .txt and .jsonl, packed or not, into token shards
    #[command(after_help = "\
INPUT is a .txt file (a document), a .jsonl file (a document a line, under \"text\"), either of them packed (.gz, .zst),
or a folder of them. `esker data prepare` is the same with more options.

Example:
  esker tokenize --tokenizer tokenizer.json --out tokens corpus/")]
    Tokenize(Tokenize),
    /// Token shards: check, look at, mix
    #[command(subcommand)]
    Data(data::Data),
    /// Take a model, a tokenizer or a corpus from the Hugging Face hub, in builds with --features hub
    #[command(after_help = "\
A file that stands in DIR with its size on the hub is kept, and a part is gone on with. HF_TOKEN in the environment
opens closed repositories, HF_ENDPOINT names another hub.

Examples:
  esker fetch model HuggingFaceTB/SmolLM2-135M --out SmolLM2-135M
  esker fetch dataset mlfoundations/dclm-baseline-1.0 --file 'global-shard_01_of_10/local-shard_0_of_10/*' --out dclm")]
    Fetch(fetch::Fetch),
    /// Copy a Hugging Face model, or a GGUF file, into a folder of our own layout, checked
    #[command(after_help = "\
The copy holds f32 weights. Its logits on a fixed prompt are compared with those of the source. Of a GGUF file (versions 2
and 3, llama and qwen3; F32, F16, BF16, Q8_0, Q4_0, Q4_1) the weights are dequantised and the tokenizer.json is made from
its tables.

Examples:
  esker import SmolLM2-135M my-model
  esker import SmolLM2-135M-Instruct.Q4_1.gguf my-model")]
    Import(Import),
    /// Write a folder that transformers loads, from a run, a checkpoint or a model
    #[command(after_help = "\
What was written is read again and its logits on a fixed prompt are compared with the source's: past 1e-4 (f32) the
command fails. bf16 halves the file and rounds the weights: its limit is 0.1.

Example:
  esker export runs/quickstart-001 my-model")]
    Export(Export),
    /// Compare forward, backward and training with what another implementation wrote
    #[command(after_help = "\
DIR holds config.json, model.safetensors, tokens.json, expected.json, grads.safetensors, train.json and
trained.safetensors; tools/make_parity.py makes one from any transformers model. Largest difference allowed, in f32:
1e-4 in a log-probability, 1e-4 relative (L2) in a gradient tensor, 5e-4 in a loss of the training steps, 1e-3 relative
(L2) in a trained weight tensor.

Example:
  esker parity train/tests/golden/llama-gqa-untied")]
    Parity(Parity),
    /// Time the ops, whole training steps, decoding, or reading tokens
    #[command(after_help = "\
WHAT is an op (matmul, attention, ...), `step` (whole training steps at four known shapes), `decode` (generation at the
110M shape), `data` (rows of 2 GiB of token shards, written into the folder for temporary files), `gpu` (all that a
card is asked: conformance, ceilings, ops, steps), or nothing for all ops. A row of --json is one case.

Examples:
  esker bench matmul --case 768 --threads 1
  esker bench step --case stories15M --dtype bf16 --json
  esker bench tokenize --tokenizer tokenizer.json --text corpus.txt --random 1000000")]
    Bench(Bench),
    /// Take part in a run that several owners share
    #[command(after_help = "\
A key is made at the first start and kept in the folder with all that a restart needs. Everybody runs the same FILE, whose
[peers] names the keys of those who validate (`esker peers key` prints one). ROLE is peer, validator, seeder, bootstrap,
observer or all, or several by comma; whoever has a validator's key validates whatever it says. What it sees and does is
kept in the folder's events, which `esker replay` reads.

Examples:
  esker peer run.toml --role all --listen 0.0.0.0:7700
  esker peer run.toml --join 203.0.113.5:7700 --page 127.0.0.1:9600")]
    Peer(peers::Peer),
    /// Several owners on one machine; keys and invitations
    #[command(subcommand)]
    Peers(peers::Peers),
    /// Compare ways for owners to share a run: loss against bytes and time, on one small model
    #[command(after_help = "\
WHICH is sparseloco (DDP, DiLoCo, DeMo and SparseLoCo, then a sweep for each setting of SparseLoCo), tuning (learning
rates around those that it uses) or liars (two of ten owners lie, with and without a validator). Each run's result is a
file in DIR/runs; a study that was stopped goes on with what is missing. Tables and plots are written into DIR.

Examples:
  esker study sparseloco
  esker study liars --out liars --jobs 1")]
    Study(Study),
    /// Show what this machine has and what it reaches, or what stands between it and a shared run
    #[command(after_help = "\
With --join a line each says how the processes there are reached, their clock and protocol, the line's rate, what
translates addresses on the way, and the disk under --dir; it ends with 1 where one of them is bad. The key is a fresh
one, so a process that runs on this machine is not disturbed.

Examples:
  esker doctor
  esker doctor --join 203.0.113.5:7700 --dir runs")]
    Doctor(peers::Doctor),
    /// Play the peers' protocol in virtual time: churn, crashes, partitions, liars
    #[command(after_help = "\
The same machines as of a real run, signatures and all, around a tiny state. Ends with 1 where a promise was broken: one
manifest a round, one root a round, nothing listed that is not sound and held by a quorum, no round missed while a quorum
of validators lives. The same seed plays the same history.

Examples:
  esker sim --peers 1000 --rounds 100 --churn 0.2 --liars 0.03 --seed 1
  esker sim --peers 20 --rounds 30 --kills 3 --partition 5 10")]
    Sim(peers::Sim),
    /// Walk through the event log of a process of a shared run
    #[command(after_help = "\
PATH is the folder of a peer, or one file of its events. Shows each round (when it was decided, how long training, the
wait and the fold took, what counted, the root), messages by kind, and what went wrong. With --lines, every line.

Examples:
  esker replay runs/peers-quickstart-peer
  esker replay runs/peers-quickstart-peer --lines --round 12
  esker replay runs/peers-quickstart-peer/events/00003.log --json")]
    Replay(peers::Replay),
    /// Show in the terminal what a process of a shared run is doing
    #[command(after_help = "\
ADDR is where the process shows its page (its --page). The same, and more, is at http://ADDR/ and http://ADDR/metrics.

Example:
  esker watch 127.0.0.1:9600")]
    Watch(peers::Watch),
}

/// `esker train`.
#[derive(Debug, Args)]
pub struct Train {
    /// Config of the run (TOML)
    pub file: Option<PathBuf>,
    /// Override a key of the config, as optim.lr=3e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Go on with this run folder from its newest checkpoint
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    /// What computes: this machine, its first NVIDIA card, or a simulator of one (exact, and very slow)
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Folder in which run folders are made
    #[arg(long, default_value = "runs", value_name = "DIR")]
    pub out: PathBuf,
    /// Print the outcome as one JSON object; progress goes to stderr
    #[arg(long)]
    pub json: bool,
}

/// What computes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// This machine's cores
    Cpu,
    /// The first NVIDIA card
    Cuda,
    /// A simulator of a card, for tests of kernels
    Sim,
}

impl Device {
    /// As the kernels name it.
    pub fn kind(self) -> device::Kind {
        match self {
            Device::Cpu => device::Kind::Cpu,
            Device::Cuda => device::Kind::Cuda,
            Device::Sim => device::Kind::Sim,
        }
    }
}

/// `esker study`.
#[derive(Debug, Args)]
pub struct Study {
    /// Which runs
    #[arg(value_enum)]
    pub which: Which,
    /// Folder of results, tables and plots
    #[arg(long, default_value = "studies", value_name = "DIR")]
    pub out: PathBuf,
    /// Runs at a time, each on one thread; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub jobs: usize,
    /// Run this instead: JSON as under "setting" in a result; may be repeated
    #[arg(long, value_name = "JSON")]
    pub setting: Vec<String>,
}

/// Which runs make a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Methods against each other, then a sweep a setting
    Sparseloco,
    /// Learning rates around the ones it uses
    Tuning,
    /// Two of ten owners lie
    Liars,
}

/// `esker plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// Config of the run (TOML)
    pub file: PathBuf,
    /// Override a key of the config, as train.dtype=f32; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// What would hold the run; without a driver, a card of unknown size
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker tokenize`.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// A tokenizer.json, a folder that holds one, or `bytes`
    #[arg(long, value_name = "FILE")]
    pub tokenizer: PathBuf,
    /// Folder for shards, tokenizer.json and manifest.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Files and folders to read
    #[arg(required = true, value_name = "INPUT")]
    pub inputs: Vec<PathBuf>,
    /// Share of the documents kept for validation
    #[arg(long, default_value_t = 0.01)]
    pub val_fraction: f64,
    /// Decides which documents those are
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Replace shards that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Print the manifest
    #[arg(long)]
    pub json: bool,
}

/// `esker import`.
#[derive(Debug, Args)]
pub struct Import {
    /// A Hugging Face folder (config.json, model.safetensors or shards, tokenizer.json) or a .gguf file
    #[arg(value_name = "HF_DIR_OR_GGUF")]
    pub from: PathBuf,
    /// Folder to make
    #[arg(value_name = "OUT")]
    pub to: PathBuf,
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A run folder (its newest valid checkpoint), a checkpoint, or a model
    #[arg(value_name = "RUN_OR_CKPT")]
    pub from: PathBuf,
    /// Folder to make
    #[arg(value_name = "OUT")]
    pub to: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker parity`.
#[derive(Debug, Args)]
pub struct Parity {
    /// Folders to compare with
    #[arg(required = true, value_name = "DIR")]
    pub dirs: Vec<PathBuf>,
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Print every tensor's difference as JSON
    #[arg(long)]
    pub json: bool,
}

/// `esker bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// An op, `step`, `decode`, `data`, `tokenize` or `gpu`; all ops when left out
    pub what: Option<String>,
    /// What computes; `gpu` takes the card unless it is `sim`
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,
    /// For `gpu`: the folder that takes gpu.json, gpu.txt and the comparison's script
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub out: PathBuf,
    /// Only cases whose printed form contains this
    #[arg(long, default_value = "", value_name = "FILTER")]
    pub case: String,
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Only this arithmetic (both when left out)
    #[arg(long, value_enum)]
    pub dtype: Option<Precision>,
    /// Seconds a case of `step`, `decode` and `data` runs for, about
    #[arg(long, default_value_t = 8.0)]
    pub seconds: f64,
    /// For `tokenize`: a tokenizer.json, or a folder with one; learnt from the built-in text when left out
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// For `tokenize`: a file of text; the built-in one when left out
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// For `tokenize`: so many random strings are compared too
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub random: u64,
    /// For `tokenize`: what those strings are drawn from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A number of threads that this machine can be asked for.
fn threads(text: &str) -> Result<usize, String> {
    let most = esker_kernels::pool::threads_max();
    let asked = text.parse().ok().filter(|n| *n <= most);
    asked.ok_or_else(|| format!("from 1 to {most} on this machine, or 0 for every core"))
}

/// Arithmetic a user may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// IEEE single precision
    F32,
    /// bf16 inputs, f32 sums
    Bf16,
}

impl From<Precision> for DType {
    fn from(p: Precision) -> DType {
        match p {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::Bf16,
        }
    }
}
