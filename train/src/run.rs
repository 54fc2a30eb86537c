//! A run: it decides, what it calls computes.
//!
//! [`train`] opens the folder and the tokens, plans, opens the stream and places the arena, draws or loads the weights,
//! and then repeats: gradient, norm, guard, update, one line. After a step it may validate, and then save; a signal lets
//! the step finish, saves, and stops. Nothing allocates between two saves, benchmarks in the loop aside.
//!
//! A step's result is a function of the configuration and the tokens. Stopping anywhere and resuming gives the same
//! bits as going straight through, and the same lines in `steps.jsonl`, times aside.

use crate::benchmark::{BenchmarkError, Benchmarks};
use crate::checkpoint::{self, CheckpointError, Position};
use crate::config::{self, ConfigError, Run};
use crate::folder::{self, Folder, FolderError};
use crate::guard::Guard;
use crate::masters::Masters;
use crate::metrics::{Metrics, MetricsError, StepRow, TaskRow, Validated};
use crate::optim;
use crate::plan::{DoesNotFit, Plan};
use crate::schedule;
use crate::source::{self, Opened, Share, SourceError};
use crate::state::State;
use crate::step::{self, Host, StepError};
use crate::validate::Validator;
use esker_data::loader::{Loader, LoaderError};
use esker_data::prefetch::Prefetch;
use esker_data::tokenizer::Tokenizer;
use esker_data::tokens::TokenSet;
use esker_kernels::DeviceError;
use esker_kernels::device::{Kind, Stream};
use esker_kernels::peak::Peaks;
use esker_kernels::tensor::Arena;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// How a run begins.
#[derive(Debug)]
pub enum Start {
    /// In a new folder.
    New {
        /// What to train.
        run: Run,
        /// Where the new folder goes.
        out: PathBuf,
    },
    /// From the newest whole checkpoint in a run's folder, or from its beginning when there is none yet.
    Resume {
        /// The run's folder.
        folder: PathBuf,
        /// What to train; none takes the folder's own configuration.
        run: Option<Run>,
    },
}

/// What a run needs from its caller.
#[derive(Debug)]
pub struct Options<'a> {
    /// Raised by a signal: the step is finished and saved.
    pub stop: &'a AtomicBool,
    /// Measured ceilings of this machine, for `peak_share`.
    pub peaks: Option<Peaks>,
    /// What computes the steps. Not part of the configuration: a run may go on elsewhere.
    pub device: Kind,
}

/// What a run tells while it goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The plan stands; memory is taken next.
    Planned {
        /// What the run will take.
        plan: &'a Plan,
        /// The run's folder.
        folder: &'a Path,
    },
    /// The tokens are open.
    Data {
        /// Training tokens.
        train_tokens: u64,
        /// Windows of an epoch.
        train_windows: u64,
        /// Validation tokens; 0 without a validation set.
        validation_tokens: u64,
        /// Bytes of text that each validation scores.
        validation_scored_bytes: u64,
        /// Tokens of the vocabulary.
        vocab: u32,
        /// Passes over the training tokens in the whole run.
        epochs: f64,
        /// The same of each source.
        sources: &'a [Share],
    },
    /// A checkpoint was passed over.
    Refused {
        /// Its folder.
        checkpoint: &'a Path,
        /// What is wrong with it.
        why: &'a CheckpointError,
    },
    /// The run goes on from here.
    Resumed {
        /// The checkpoint's folder.
        checkpoint: &'a Path,
        /// Steps done.
        step: u64,
    },
    /// A step is done.
    Step(&'a StepRow),
    /// The guard saw a spike in the step just done.
    Spike {
        /// Which step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// Deviations above the mean of the window.
        loss_z: f64,
        /// The same for the norm.
        norm_z: f64,
        /// The update was left out.
        skipped: bool,
    },
    /// A validation is done.
    Validated(&'a Validated),
    /// Benchmarks are done.
    Scored {
        /// A row for each.
        rows: &'a [TaskRow],
        /// Time they took, all together.
        ms: f64,
    },
    /// A checkpoint was written.
    Saved {
        /// Its folder.
        path: &'a Path,
        /// Steps done.
        step: u64,
        /// Bytes of all its files.
        bytes: u64,
        /// Time it took.
        ms: f64,
    },
    /// An old checkpoint was removed.
    Pruned {
        /// Its folder.
        path: &'a Path,
    },
    /// A signal stopped the run; resume with the run's folder.
    Stopped {
        /// Steps done.
        step: u64,
        /// Where they are saved.
        checkpoint: &'a Path,
    },
    /// All steps are done.
    Done {
        /// Steps done.
        step: u64,
        /// Time of this process in the loop.
        seconds: f64,
    },
}

/// Where the caller hears of it.
pub type Sink<'a> = dyn FnMut(Event<'_>) + Send + 'a;

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run's folder.
    pub folder: PathBuf,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// A signal stopped it.
    pub stopped: bool,
    /// Loss of the last step of this process.
    pub last_loss: Option<f64>,
    /// The last validation of this process.
    pub validation: Option<Validated>,
    /// Time of this process in the loop.
    pub seconds: f64,
}

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The folder's configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run's folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The tokens cannot be had.
    #[error(transparent)]
    Source(Box<SourceError>),
    /// A checkpoint was refused, or could not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// There are checkpoints, but none is whole.
    #[error(
        "{folder}: none of its checkpoints is whole, the newest: {newest}; remove them to train from the beginning"
    )]
    NoneWhole {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Why the newest was refused.
        newest: Box<CheckpointError>,
    },
    /// Metrics cannot be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The benchmarks cannot be run.
    #[error(transparent)]
    Benchmark(#[from] BenchmarkError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device has less memory than the plan takes.
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
    /// A step could not be computed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The loss or the gradient is no number.
    #[error(
        "step {step}: loss {loss}, gradient norm {grad_norm}: not a number; the update was not made. Lower optim.lr, or set guard.action = \"skip\", and resume {folder}"
    )]
    Diverged {
        /// Which step.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// The run's folder.
        folder: PathBuf,
    },
}

impl From<SourceError> for TrainError {
    fn from(e: SourceError) -> TrainError {
        TrainError::Source(Box::new(e))
    }
}

impl From<LoaderError> for TrainError {
    fn from(e: LoaderError) -> TrainError {
        SourceError::from(e).into()
    }
}

/// Trains a run to its end, or until `options.stop` is raised. A new run that cannot begin leaves no folder behind.
pub fn train(start: Start, options: &Options<'_>, sink: &mut Sink<'_>) -> Result<Outcome, TrainError> {
    let fresh = matches!(start, Start::New { .. });
    let (run, folder) = match start {
        Start::New { run, out } => {
            let folder = Folder::create(&out, &run)?;
            (run, folder)
        }
        Start::Resume { folder, run } => {
            let folder = Folder::open(&folder)?;
            let own = || config::load(&folder.path().join(folder::CONFIG), &[]);
            (run.map_or_else(own, Ok)?, folder)
        }
    };
    let (path, mut begun) = (folder.path().to_path_buf(), false);
    let ended = go(run, folder, options, sink, &mut begun);
    if fresh && !begun {
        // It holds what its configuration says and no step. A failure here changes nothing about why the run did not
        // begin, which is what is told.
        let _ = std::fs::remove_dir_all(&path);
    }
    ended
}

/// [`train`] in a folder that is ours; `begun` becomes true before the first step.
fn go(
    run: Run,
    folder: Folder,
    options: &Options<'_>,
    sink: &mut Sink<'_>,
    begun: &mut bool,
) -> Result<Outcome, TrainError> {
    // A device is opened first: what it can give is part of the plan.
    let device = match options.device {
        Kind::Cpu => None,
        kind => Some(Stream::open(kind, run.train.threads)?),
    };
    let plan = match &device {
        Some(device) => Plan::on_device(&run, device.free_bytes()?.map(|free| free as u64)),
        None => Plan::of(&run),
    };
    let plan_json = folder.path().join("plan.json");
    sink(Event::Planned { plan: &plan, folder: folder.path() });
    plan.check_device()?;
    let opened = source::open(&run, folder.path())?;
    let stream = device.map_or_else(|| Stream::open(Kind::Cpu, run.train.threads), Ok)?;
    let trainer = Trainer::open(&stream, options, run, folder, opened, sink)?;
    // After the checkpoint was accepted, as with the configuration.
    let json = serde_json::to_string_pretty(&plan).expect("run: a plan is always JSON");
    folder::write(&plan_json, json.as_bytes())?;
    *begun = true;
    stream.enter(|| trainer.run(sink))
}

/// A run that is ready for its next step.
struct Trainer<'a> {
    stream: &'a Stream,
    options: &'a Options<'a>,
    run: Run,
    folder: Folder,
    tokenizer: Option<Tokenizer>,
    tokens: String,
    feed: Prefetch,
    validator: Option<Validator>,
    benchmarks: Option<Benchmarks>,
    state: State,
    host: Host,
    guard: Guard,
    metrics: Metrics,
    step: u64,
    updates: u64,
    checkpoint: Option<PathBuf>,
    validation: Option<Validated>,
}

impl<'a> Trainer<'a> {
    fn open(
        stream: &'a Stream,
        options: &'a Options<'a>,
        run: Run,
        folder: Folder,
        opened: Opened,
        sink: &mut Sink<'_>,
    ) -> Result<Trainer<'a>, TrainError> {
        let Opened { sources, validation, tokenizer, identity } = opened;
        let loader = Loader::mixed(sources, run.mix(), run.rows())?;
        let validator = validation.as_ref().map(|set| Validator::new(&run, Arc::clone(set))).transpose()?;
        let rows = run.train.steps as f64 * run.rows_per_step() as f64;
        sink(Event::Data {
            train_tokens: loader.sets().map(TokenSet::tokens).sum(),
            train_windows: loader.windows(),
            validation_tokens: validation.map_or(0, |set| set.tokens()),
            validation_scored_bytes: validator.as_ref().map_or(0, Validator::bytes),
            vocab: loader.sets().map(TokenSet::vocab_size).max().unwrap_or(0),
            epochs: rows / loader.windows() as f64,
            sources: &source::shares(&run, &loader),
        });
        let section = run.eval.as_ref();
        let benchmarks = section.map(|section| Benchmarks::open(section, tokenizer.as_ref())).transpose()?;
        checkpoint::clean(&folder.checkpoints())?;
        let newest = newest(&folder, sink)?;
        let masters = Masters::of(&run, options.device != Kind::Cpu);
        let (mut state, _) = Arena::build(stream, |arena| State::layout_as(arena, &run, masters))?;
        state.buffers.ready(stream, &run.model)?;
        let (step, updates, guard) = match &newest {
            None => {
                state.draw(stream, &run)?;
                (0, 0, Guard::new(&run.guard))
            }
            Some(path) => {
                let at = checkpoint::load(path, &run, &mut state, &identity)?;
                sink(Event::Resumed { checkpoint: path, step: at.step });
                let guard = Guard::restore(&run.guard, &at.guard).expect("run: load has checked the guard");
                (at.step, at.updates, guard)
            }
        };
        state.refresh(stream)?;
        // After the checkpoint was accepted: a refusal must leave the folder as it is.
        folder::write(&folder.path().join(folder::CONFIG), run.to_toml().as_bytes())?;
        let metrics = Metrics::open(folder.path(), step)?;
        Ok(Trainer {
            stream,
            options,
            host: Host::new(&run),
            feed: step::feed(&run, loader, step)?,
            run,
            folder,
            tokenizer,
            tokens: identity,
            validator,
            benchmarks,
            state,
            guard,
            metrics,
            step,
            updates,
            checkpoint: newest,
            validation: None,
        })
    }

    /// The loop.
    fn run(mut self, sink: &mut Sink<'_>) -> Result<Outcome, TrainError> {
        let start = Instant::now();
        let steps = self.run.train.steps;
        let (mut last_loss, mut stopped) = (None, false);
        while self.step < steps && !stopped {
            last_loss = Some(self.one_step(sink)?);
            let last = self.step == steps;
            stopped = self.options.stop.load(Ordering::Relaxed) && !last;
            if due(self.step, self.run.validation.every_steps) || last {
                self.validate(sink)?;
            }
            if last || self.run.eval.as_ref().is_some_and(|eval| due(self.step, eval.every_steps)) {
                self.benchmark(sink)?;
            }
            if due(self.step, self.run.checkpoint.every_steps) || last || stopped {
                self.save(sink)?;
            }
        }
        let (step, seconds) = (self.step, start.elapsed().as_secs_f64());
        match &self.checkpoint {
            Some(checkpoint) if stopped => sink(Event::Stopped { step, checkpoint }),
            _ => sink(Event::Done { step, seconds }),
        }
        Ok(Outcome {
            folder: self.folder.path().to_path_buf(),
            checkpoint: self.checkpoint,
            step,
            steps,
            stopped,
            last_loss,
            validation: self.validation,
            seconds,
        })
    }

    /// One update and its line; gives the loss.
    fn one_step(&mut self, sink: &mut Sink<'_>) -> Result<f64, TrainError> {
        let start = Instant::now();
        let (s, run) = (self.stream, &self.run);
        let position = self.step * run.rows_per_step() as u64;
        // A section of its own for what may or may not follow; inside, each piece between two copies is a graph.
        let (feed, state, host) = (&mut self.feed, &mut self.state, &mut self.host);
        let (sums, grad_norm) = s.graph("gradient", 0, || -> Result<_, StepError> {
            let sums = step::gradient(s, run, feed, state, host, position)?;
            Ok((sums, optim::norm(s, &state.grads.sum)?))
        })?;
        let verdict = self.guard.judge(sums.loss, grad_norm);
        let number = self.step + 1;
        let finite = sums.loss.is_finite() && grad_norm.is_finite();
        if !finite && !verdict.skip {
            let folder = self.folder.path().to_path_buf();
            return Err(TrainError::Diverged { step: number, loss: sums.loss, grad_norm, folder });
        }
        let clip = optim::clip(run, grad_norm);
        let lr = schedule::rate(&run.schedule, run.optim.lr, self.step, run.train.steps);
        if verdict.skip {
            self.state.grads.zero(s)?;
        } else {
            s.graph("update", 0, || optim::update(s, run, &mut self.state, lr, self.updates + 1, clip))?;
            self.updates += 1;
        }
        self.step = number;
        let seconds = start.elapsed().as_secs_f64();
        let step_tokens = run.batch.tokens_per_step as f64;
        let flops = run.model.flops_per_token(run.batch.seq_len) * step_tokens;
        let row = StepRow {
            step: number,
            steps: run.train.steps,
            loss: sums.loss,
            grad_norm,
            clip,
            lr,
            tokens: number * run.batch.tokens_per_step as u64,
            targets: sums.targets,
            step_ms: seconds * 1e3,
            data_wait_ms: sums.data_wait.as_secs_f64() * 1e3,
            tokens_per_s: step_tokens / seconds,
            peak_share: self.options.peaks.map(|peaks| flops / seconds / peaks.flops(run.train.dtype)),
            skipped: verdict.skip,
        };
        self.metrics.step(&row)?;
        tracing::debug!(target: "esker::step", step = row.step, loss = row.loss, grad_norm, lr, step_ms = row.step_ms);
        sink(Event::Step(&row));
        if verdict.spike {
            let (loss, loss_z, norm_z) = (row.loss, verdict.loss_z, verdict.norm_z);
            sink(Event::Spike { step: number, loss, grad_norm, loss_z, norm_z, skipped: verdict.skip });
        }
        Ok(sums.loss)
    }

    fn validate(&mut self, sink: &mut Sink<'_>) -> Result<(), TrainError> {
        let Some(validator) = &self.validator else { return Ok(()) };
        let row = validator.score(self.stream, &self.run, &mut self.state, &mut self.host, self.step)?;
        self.metrics.validated(&row)?;
        sink(Event::Validated(&row));
        self.validation = Some(row);
        Ok(())
    }

    fn benchmark(&mut self, sink: &mut Sink<'_>) -> Result<(), TrainError> {
        let (Some(benchmarks), Some(tokenizer)) = (&self.benchmarks, &self.tokenizer) else { return Ok(()) };
        let start = Instant::now();
        let rows = benchmarks.score(self.stream, &self.run.model, self.state.weights(), tokenizer, self.step)?;
        for row in &rows {
            self.metrics.task(row)?;
        }
        sink(Event::Scored { rows: &rows, ms: start.elapsed().as_secs_f64() * 1e3 });
        Ok(())
    }

    fn save(&mut self, sink: &mut Sink<'_>) -> Result<(), TrainError> {
        let start = Instant::now();
        // A checkpoint is never newer than its lines.
        self.metrics.sync()?;
        let (run, dir) = (&self.run, self.folder.checkpoints());
        let at = Position {
            version: checkpoint::VERSION,
            step: self.step,
            updates: self.updates,
            position: self.step * run.rows_per_step() as u64,
            tokens: self.tokens.clone(),
            config_hash: run.hash(),
            config: run.canonical(),
            guard: self.guard.keep(),
        };
        let written = checkpoint::save(&dir, run, &self.state, &at, self.tokenizer.as_ref())?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        sink(Event::Saved { path: &written.path, step: self.step, bytes: written.bytes, ms });
        let keep = &run.checkpoint;
        for path in checkpoint::prune(&dir, self.step, keep.keep_last, keep.keep_every)? {
            sink(Event::Pruned { path: &path });
        }
        self.checkpoint = Some(written.path);
        Ok(())
    }
}

/// The newest whole checkpoint, if the folder has any at all.
fn newest(folder: &Folder, sink: &mut Sink<'_>) -> Result<Option<PathBuf>, TrainError> {
    let newest = checkpoint::newest_valid(folder.path())?;
    for (path, why) in &newest.refused {
        sink(Event::Refused { checkpoint: path, why });
    }
    match (newest.found, newest.refused.into_iter().next()) {
        (Some(found), _) => Ok(Some(found.path)),
        (None, None) => Ok(None),
        (None, Some((_, newest))) => {
            Err(TrainError::NoneWhole { folder: folder.checkpoints(), newest: Box::new(newest) })
        }
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
