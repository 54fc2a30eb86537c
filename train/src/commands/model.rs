//! Opens a model from what a user names: a Hugging Face folder, a checkpoint, or a run (its newest valid checkpoint).

use super::Failure;
use crate::{checkpoint, cli, folder};
use esker_data::tokenizer::Tokenizer;
use esker_kernels::{
    device::Stream,
    tensor::{Arena, Class, DType},
};
use esker_model::{
    Config, Weights,
    hf::{self, Card},
};
use std::path::{Path, PathBuf};

/// A model in memory, ready to run.
#[derive(Debug)]
pub struct Opened {
    pub stream: Stream,
    /// Where the weights lay.
    pub dir: PathBuf,
    pub card: Card,
    pub weights: Weights,
}

impl Opened {
    /// Finds, checks and loads.
    pub fn new(args: &cli::model::Model) -> Result<Opened, Failure> {
        open(&args.dir, args.dtype.into(), args.threads)
    }

    pub fn config(&self) -> &Config {
        &self.card.config
    }

    /// The tokenizer beside the weights.
    pub fn tokenizer(&self) -> Result<Tokenizer, Failure> {
        let tokenizer = Tokenizer::from_file(&self.dir.join("tokenizer.json")).map_err(|e| {
            Failure::from(e).help("text needs the model's tokenizer.json beside its weights; `esker score` takes ids")
        })?;
        if tokenizer.vocab_size() as usize > self.config().vocab {
            let (t, m) = (tokenizer.vocab_size(), self.config().vocab);
            let file = self.dir.join("tokenizer.json");
            let message = format!("{}: has {t} tokens, the model's vocabulary is {m}", file.display());
            return Err(Failure::input(message).help("put the tokenizer.json that the model was trained with there"));
        }
        Ok(tokenizer)
    }

    /// Warns on stderr when `tokens` is longer than what the model was made for.
    pub fn warn_past_context(&self, tokens: usize) {
        let context = self.config().context;
        if tokens > context {
            eprintln!("warning: {tokens} tokens are more than the model's context of {context}; quality falls past it");
        }
    }
}

/// Loads the model at `dir` for arithmetic in `dtype`.
pub fn open(dir: &Path, dtype: DType, threads: usize) -> Result<Opened, Failure> {
    let dir = find(dir)?;
    let card = hf::read_card(&dir)?;
    let stream = Stream::cpu(threads)?;
    let weights = load(&stream, &dir, &card.config, dtype)?;
    Ok(Opened { stream, dir, card, weights })
}

/// Lays out weights for `config` and reads them from the folder `dir`.
pub fn load(stream: &Stream, dir: &Path, config: &Config, dtype: DType) -> Result<Weights, Failure> {
    let layout = |arena: &mut Arena| Weights::layout(arena.class(Class::Weights), config, dtype);
    let mut weights = Arena::build(stream, layout)?.0;
    hf::load(dir, &mut weights)?;
    Ok(weights)
}

/// The folder with the weights that `dir` stands for.
pub fn find(dir: &Path) -> Result<PathBuf, Failure> {
    if let Err(e) = std::fs::read_dir(dir) {
        return Err(Failure::file(dir, &e).help("give a Hugging Face folder, a checkpoint, or a run folder"));
    }
    if dir.join(folder::CONFIG).exists() {
        return newest(dir);
    }
    if !dir.join("config.json").exists() {
        let message = format!("{}: no model here: neither config.json nor {}", dir.display(), folder::CONFIG);
        return Err(Failure::input(message).help(
            "give a Hugging Face folder (config.json, model.safetensors), a checkpoint (runs/NAME/ckpt/step-...), or a run folder (runs/NAME)",
        ));
    }
    Ok(dir.into())
}

fn newest(run: &Path) -> Result<PathBuf, Failure> {
    let newest = checkpoint::newest_valid(run)?;
    for (path, why) in &newest.refused {
        eprintln!("warning: passed over {}: {why}", path.display());
    }
    newest.found.map(|found| found.path).ok_or_else(|| {
        Failure::input(format!("{}: has no valid checkpoint yet", run.display()))
            .help("a run saves every checkpoint.every_steps steps, at its end, and when stopped with Ctrl-C")
    })
}
