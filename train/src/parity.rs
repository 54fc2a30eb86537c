//! Are we what others mean by this network, its gradient and its optimiser?
//!
//! A folder holds what another implementation computed: a model, rows of tokens, their log-probabilities, the gradient
//! of their mean loss, and some AdamW steps with the weights that came out. The same is computed here, in f32, with the
//! code that trains, and the largest differences are set against stated limits:
//!
//! log-probabilities   |ours − theirs|                     1e-4
//! gradient tensors    ‖ours − theirs‖ / ‖theirs‖          1e-4
//! losses of the steps |ours − theirs|                     5e-4
//! trained weights     ‖ours − theirs‖ / ‖theirs‖          1e-3

pub mod folder;

use crate::{bare, config::ConfigError, optim, state::State};
use esker_kernels::{
    DeviceError,
    device::Stream,
    tensor::{Arena, Class, DType, Tensor},
};
use esker_model::{
    Weights,
    hf::{self, HfError},
};
use esker_train_elements::relative_l2;
use folder::{Expected, FolderError, Tokens, Training};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Largest difference of a log-probability.
pub const LOGPROB_MAX: f64 = 1e-4;
/// Largest relative difference (L2) of a gradient tensor.
pub const GRADIENT_MAX: f64 = 1e-4;
/// Largest difference of a training loss.
pub const LOSS_MAX: f64 = 5e-4;
/// Largest relative difference (L2) of a trained weight tensor.
pub const WEIGHT_MAX: f64 = 1e-3;
/// Tensors that the table shows of each kind.
const SHOWN: usize = 4;

/// How far one quantity is from what was expected.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Largest difference.
    pub worst: f64,
    /// Where.
    pub at: String,
    /// Largest allowed.
    pub allowed: f64,
    /// Whether it is.
    pub ok: bool,
}

/// One tensor's distance.
#[derive(Clone, Debug, Serialize)]
pub struct TensorDifference {
    /// Hugging Face name.
    pub name: String,
    /// ‖ours − theirs‖ / ‖theirs‖.
    pub relative_l2: f64,
}

/// What a folder's comparison came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The folder.
    pub dir: PathBuf,
    /// Every difference is allowed.
    pub ok: bool,
    /// Log-probabilities of the first rows.
    pub logprob: Difference,
    /// Their mean loss: ours and theirs.
    pub mean_nll: (f64, f64),
    /// Gradients of that loss, the worst tensor.
    pub gradient: Difference,
    /// Norm of the whole gradient: ours and, where written, theirs.
    pub grad_norm: (f64, Option<f64>),
    /// Losses of the steps.
    pub loss: Difference,
    /// Weights after the steps, the worst tensor.
    pub weight: Difference,
    /// Steps taken.
    pub steps: usize,
    /// Every gradient tensor, worst first.
    pub gradients: Vec<TensorDifference>,
    /// Every weight tensor after the steps, worst first.
    pub weights: Vec<TensorDifference>,
}

/// Why a folder could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParityError {
    /// A JSON file.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The model or a file of tensors.
    #[error(transparent)]
    Model(#[from] HfError),
    /// Model and settings do not go together.
    #[error("{}: config.json, tokens.json and train.json do not make a run: {source}", dir.display())]
    Run {
        /// The folder.
        dir: PathBuf,
        /// Which key.
        source: Box<ConfigError>,
    },
    /// No memory, or the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Compares the folder `dir` with what is computed here.
pub fn check(s: &Stream, dir: &Path) -> Result<Report, ParityError> {
    let model = hf::read_card(dir)?.config;
    let tokens = folder::tokens(dir, model.vocab)?;
    let expected = folder::expected(dir, &tokens)?;
    let training = folder::training(dir, &tokens)?;
    let sizes =
        bare::Sizes { rows: tokens.rows, seq: tokens.seq, steps: training.steps.len() as u64, dtype: DType::F32 };
    let run = bare::run(model, &sizes, training.optim.clone())
        .map_err(|source| ParityError::Run { dir: dir.into(), source: Box::new(source) })?;
    let layout = |arena: &mut Arena| {
        let state = State::layout(arena, &run);
        (state, Weights::layout(arena.class(Class::Weights), &run.model, DType::F32))
    };
    let ((mut state, mut theirs), _) = Arena::build(s, layout)?;
    state.buffers.ready(s, &run.model)?;
    hf::load(dir, &mut state.master)?;
    hf::load_file(&dir.join("grads.safetensors"), &mut theirs)?;

    let mean_nll = backward(s, &run, &mut state, &tokens.steps[0])?;
    let logprob = logprobs(&state, &expected, tokens.seq);
    let gradients = tensors(&state.grads.sum, &theirs);
    let grad_norm = optim::norm(s, &state.grads.sum)?;

    let loss = train(s, &run, &mut state, &tokens, &training)?;
    hf::load_file(&dir.join("trained.safetensors"), &mut theirs)?;
    let weights = tensors(&state.master, &theirs);
    let (gradient, weight) = (worst(&gradients, GRADIENT_MAX), worst(&weights, WEIGHT_MAX));
    Ok(Report {
        dir: dir.into(),
        ok: logprob.ok && gradient.ok && loss.ok && weight.ok,
        logprob,
        mean_nll: (mean_nll, expected.mean_nll),
        gradient,
        grad_norm: (grad_norm, expected.grad_norm),
        loss,
        weight,
        steps: training.steps.len(),
        gradients,
        weights,
    })
}

/// Forward and backward of one batch; leaves losses in the buffers and the gradient in the state. Gives the mean loss.
fn backward(s: &Stream, run: &crate::config::Run, state: &mut State, rows: &[Vec<u32>]) -> Result<f64, DeviceError> {
    let cut = |from: usize| rows.iter().flat_map(move |row| row[from..row.len() - 1 + from].iter().copied());
    let (inputs, targets): (Vec<u32>, Vec<u32>) = (cut(0).collect(), cut(1).collect());
    let State { master, grads, buffers, .. } = state;
    s.upload_u32(&inputs, &mut buffers.inputs)?;
    s.upload_u32(&targets, &mut buffers.targets)?;
    let scale = (1.0 / targets.len() as f64) as f32;
    s.enter(|| {
        esker_model::train_micro(s, &run.model, master, grads, buffers, rows.len(), scale)?;
        grads.join(s)
    })?;
    s.synchronise()?;
    let nll = &buffers.nll.f32()[..targets.len()];
    Ok(nll.iter().map(|&x| f64::from(x)).sum::<f64>() / targets.len() as f64)
}

/// The steps of train.json, from the gradient of the first that lies in the state.
fn train(
    s: &Stream,
    run: &crate::config::Run,
    state: &mut State,
    tokens: &Tokens,
    training: &Training,
) -> Result<Difference, DeviceError> {
    state.grads.zero(s)?;
    let mut all = Worst::new(LOSS_MAX);
    for (i, (step, rows)) in training.steps.iter().zip(&tokens.steps).enumerate() {
        let loss = backward(s, run, state, rows)?;
        all.see((loss - step.loss).abs(), || format!("step {i}"));
        let norm = optim::norm(s, &state.grads.sum)?;
        let lr = step.lr.unwrap_or(run.optim.lr);
        optim::update(s, run, state, lr, i as u64 + 1, optim::clip(run, norm))?;
    }
    Ok(all.done())
}

fn logprobs(state: &State, expected: &Expected, seq: usize) -> Difference {
    let nll = state.buffers.nll.f32();
    let mut all = Worst::new(LOGPROB_MAX);
    for (r, row) in expected.logprob.iter().enumerate() {
        for (t, want) in row.iter().enumerate() {
            all.see((f64::from(-nll[r * seq + t]) - want).abs(), || format!("row {r}, place {t}"));
        }
    }
    all.done()
}

/// The distance of each tensor, worst first.
fn tensors(ours: &Weights, theirs: &Weights) -> Vec<TensorDifference> {
    let one = |((name, a), (_, b)): ((esker_model::Name, &Tensor), (esker_model::Name, &Tensor))| TensorDifference {
        name: name.to_string(),
        relative_l2: relative_l2(a.f32(), b.f32()),
    };
    let mut all: Vec<TensorDifference> = ours.each().zip(theirs.each()).map(one).collect();
    all.sort_by(|a, b| b.relative_l2.total_cmp(&a.relative_l2));
    all
}

fn worst(tensors: &[TensorDifference], allowed: f64) -> Difference {
    let mut all = Worst::new(allowed);
    tensors.iter().for_each(|t| all.see(t.relative_l2, || t.name.clone()));
    all.done()
}

/// The largest of what it sees; NaN is larger than all.
struct Worst {
    worst: f64,
    at: String,
    allowed: f64,
}

impl Worst {
    fn new(allowed: f64) -> Worst {
        Worst { worst: 0.0, at: String::new(), allowed }
    }

    fn see(&mut self, difference: f64, at: impl FnOnce() -> String) {
        if self.at.is_empty() || difference > self.worst || (difference.is_nan() && !self.worst.is_nan()) {
            (self.worst, self.at) = (difference, at());
        }
    }

    fn done(self) -> Difference {
        let ok = self.worst <= self.allowed;
        Difference { worst: self.worst, at: self.at, allowed: self.allowed, ok }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {}", self.dir.display(), if self.ok { "agrees" } else { "DIFFERS" })?;
        let mut line = |what: &str, d: &Difference| {
            let mark = if d.ok { "ok" } else { "PAST" };
            writeln!(f, "  {what:<28} {:>9.2e}   allowed {:.0e}   {mark:<4}  worst: {}", d.worst, d.allowed, d.at)
        };
        line("log-probabilities", &self.logprob)?;
        line("gradients, relative L2", &self.gradient)?;
        line(&format!("losses of {} steps", self.steps), &self.loss)?;
        line("trained weights, relative L2", &self.weight)?;
        let (ours, theirs) = self.mean_nll;
        writeln!(f, "  mean loss {ours:.6}, expected {theirs:.6}")?;
        if let (ours, Some(theirs)) = self.grad_norm {
            writeln!(f, "  gradient norm {ours:.6}, expected {theirs:.6}")?;
        }
        for (what, tensors) in [("gradients", &self.gradients), ("trained weights", &self.weights)] {
            writeln!(f, "  worst {what}:")?;
            for t in tensors.iter().take(SHOWN) {
                writeln!(f, "    {:>9.2e}  {}", t.relative_l2, t.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_that_is_no_number_is_never_allowed() {
        let mut all = Worst::new(1.0);
        all.see(0.5, || "a".into());
        all.see(f64::NAN, || "b".into());
        all.see(0.7, || "c".into());
        let got = all.done();
        assert!(!got.ok && got.at == "b");
        assert!(Worst::new(1.0).done().ok);
    }
}
