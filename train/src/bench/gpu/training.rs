//! ⑥ A training run as a user would start it: text into shards, shards into steps, and what the steps came to.

use super::{Extent, GpuError};
use crate::{
    config, metrics,
    run::{self, Options, Start},
};
use esker_kernels::{device::Kind, peak::Peaks, tensor::DType};
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// What a run on the device came to.
#[derive(Debug, Serialize)]
pub struct Training {
    /// Parameters of the network.
    pub params: u64,
    /// Arithmetic.
    pub dtype: DType,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// Steps.
    pub steps: u64,
    /// Loss of each step, nats a token.
    pub losses: Vec<f64>,
    /// Bits a byte of the validation set at the end.
    pub bits_per_byte: Option<f64>,
    /// Median over the steps after the first five.
    pub tokens_per_s: f64,
    /// As `esker plan` counts them.
    pub flops_per_token: f64,
    /// Of the bf16 rate measured here.
    pub share_of_measured: f64,
    /// Of the rate in the card's datasheet, where it is known: what is called MFU.
    pub mfu: Option<f64>,
}

/// Dense bf16 products a second by the makers' datasheets, by a part of the card's name; the first that fits.
const DATASHEETS: [(&str, f64); 9] = [
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
];

/// What the datasheet of the card called `device` says.
pub(super) fn datasheet(device: &str) -> Option<f64> {
    DATASHEETS.iter().find(|(name, _)| device.contains(name)).map(|&(_, flops)| flops)
}

/// Trains on the text that the program carries, packed into shards in a folder that is gone afterwards.
pub(super) fn training(
    kind: Kind,
    device: &str,
    peaks: Peaks,
    threads: usize,
    extent: Extent,
) -> Result<Training, GpuError> {
    let folder = Folder::new()?;
    let run = config::parse(&text(extent, threads), "bench gpu", &[]).expect("bench: a configuration of ours");
    let (step_tokens, dtype) = (run.batch.tokens_per_step, run.train.dtype);
    let (params, flops_per_token) = (run.model.params().total(), run.model.flops_per_token(run.batch.seq_len));
    let stop = AtomicBool::new(false);
    let options = Options { stop: &stop, peaks: Some(peaks), device: kind };
    let start = Start::New { run, out: folder.0.clone() };
    let outcome = run::train(start, &options, &mut |_| ()).map_err(Box::new)?;
    let rows = metrics::read_steps(&outcome.folder).map_err(|e| Box::new(e.into()))?;
    let mut rates: Vec<f64> = rows.iter().skip(5.min(rows.len() - 1)).map(|row| row.tokens_per_s).collect();
    rates.sort_by(f64::total_cmp);
    let tokens_per_s = rates[rates.len() / 2];
    let rate = flops_per_token * tokens_per_s;
    Ok(Training {
        params,
        dtype,
        step_tokens,
        steps: outcome.step,
        losses: rows.iter().map(|row| row.loss).collect(),
        bits_per_byte: outcome.validation.map(|v| v.bits_per_byte),
        tokens_per_s,
        flops_per_token,
        share_of_measured: rate / peaks.flops(dtype),
        mfu: datasheet(device).map(|flops| rate / flops),
    })
}

/// A folder for the run, which holds a checkpoint of gigabytes for a moment.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Folder, GpuError> {
        let path = std::env::temp_dir().join(format!("esker-bench-{}", std::process::id()));
        let made = std::fs::create_dir_all(&path);
        made.map_err(|source| GpuError::Write { path: path.display().to_string(), source })?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in the system's own folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The run: GPT-2 small in Llama form, or two layers of next to nothing.
fn text(extent: Extent, threads: usize) -> String {
    let [vocab, hidden, layers, heads, ffn, seq, rows, micro] =
        if extent.tiny { [257, 32, 2, 4, 48, 16, 2, 2] } else { [50_257, 768, 12, 12, 2048, 1024, 64, 16] };
    let tokenizer = if extent.tiny { "{ kind = \"bytes\" }" } else { "{ kind = \"bpe\", vocab = 4096 }" };
    let (steps, tokens, validation) = (extent.steps, rows * seq, rows * seq);
    let head_dim = hidden / heads;
    format!(
        r#"
name = "bench"
seed = 1
[model]
family = "llama"
vocab = {vocab}
context = {seq}
hidden = {hidden}
layers = {layers}
heads = {heads}
kv_heads = {heads}
head_dim = {head_dim}
ffn = {ffn}
norm_eps = 1e-5
tied = true
init_std = 0.02
rope = {{ theta = 10000.0 }}
[data]
source = "embedded"
tokenizer = {tokenizer}
train = []
validation = []
document_mask = true
boundary_loss = false
[batch]
tokens_per_step = {tokens}
seq_len = {seq}
micro_rows = {micro}
grain_rows = {micro}
virtual_ranks = 1
[optim]
kind = "adamw"
lr = 6e-4
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
clip_norm = 1.0
[schedule]
kind = "cosine"
warmup_steps = 1
final_ratio = 0.1
[train]
steps = {steps}
dtype = "bf16"
recompute = "none"
threads = {threads}
[guard]
window = 64
sigma = 6.0
action = "report"
[validation]
every_steps = 0
tokens = {validation}
[checkpoint]
every_steps = 0
keep_last = 1
keep_every = 0
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runs_are_runs() {
        for extent in [Extent::CARD, Extent::SIM] {
            let run = config::parse(&text(extent, 1), "bench gpu", &[]).unwrap();
            assert_eq!(run.model.params().total() > 100_000_000, !extent.tiny);
        }
    }

    #[test]
    fn a_card_is_known_by_its_name() {
        assert_eq!(datasheet("NVIDIA H200"), Some(989e12));
        assert_eq!(datasheet("NVIDIA L40S"), Some(362e12));
        assert_eq!(datasheet("PTX simulator"), None);
    }
}
