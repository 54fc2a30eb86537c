//! The inner optimiser: steps of AdamW on rows from anywhere in the order of the run.
//!
//! The learning rate is a function of the step of the whole run, `t` of AdamW counts what this owner did: an owner that
//! joins late has the others' learning rate and young moments.

use super::OuterError;
use crate::config::Run;
use crate::metrics::Validated;
use crate::source::Opened;
use crate::state::State;
use crate::step::{self, Host, Sums};
use crate::validate::Validator;
use crate::{optim, schedule};
use esker_data::loader::Loader;
use esker_data::prefetch::Prefetch;
use esker_kernels::device::Stream;
use esker_kernels::tensor::Arena;
use std::sync::Arc;

/// A model in training, with its tokens.
#[derive(Debug)]
pub struct Inner {
    /// What is trained, and how.
    pub run: Run,
    /// Weights θ, moments, gradients, activations.
    pub state: State,
    /// Updates of AdamW.
    pub updates: u64,
    stream: Arc<Stream>,
    loader: Loader,
    host: Host,
    validator: Option<Validator>,
}

/// What some steps came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trained {
    /// Mean of the steps' losses, nats.
    pub loss: f64,
    /// Loss of the last one.
    pub last_loss: f64,
    /// Inputs.
    pub tokens: u64,
    /// How many.
    pub steps: u64,
}

/// What is said before each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// One more.
    GoOn,
    /// Time is up: what is done counts.
    Enough,
    /// Nobody waits for this any more.
    Stop,
}

/// How some steps ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ended {
    /// They are done: all, or as many as there was time for.
    Done(Trained),
    /// A loss or a gradient was no number; that step was not made.
    Diverged,
    /// They were asked to end.
    Stopped,
}

impl Inner {
    /// Lays out and draws the weights.
    pub fn open(stream: Arc<Stream>, run: Run, opened: &Opened) -> Result<Inner, OuterError> {
        let loader = Loader::mixed(opened.sources.clone(), run.mix(), run.rows())?;
        let validation = opened.validation.as_ref();
        let validator = validation.map(|set| Validator::new(&run, Arc::clone(set))).transpose()?;
        let (mut state, _) = Arena::build(&stream, |arena| State::layout(arena, &run))?;
        state.buffers.ready(&stream, &run.model)?;
        esker_model::init::draw(&stream, &run.model, &mut state.master, run.seed)?;
        state.refresh(&stream)?;
        let host = Host::new(&run);
        Ok(Inner { run, state, updates: 0, stream, loader, host, validator })
    }

    /// The stream it runs on.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// As [`Inner::train_until`], to the end; none where it diverged.
    pub fn train(&mut self, first: u64, steps: u64, position: u64) -> Result<Option<Trained>, OuterError> {
        Ok(match self.train_until(first, steps, position, &|_| Word::GoOn)? {
            Ended::Done(trained) => Some(trained),
            Ended::Diverged | Ended::Stopped => None,
        })
    }

    /// Steps `first .. first + steps` of the run on the rows from `position` on, one by one as `word` says, which is told how
    /// many are done. One at least is made before there is enough.
    pub fn train_until(
        &mut self,
        first: u64,
        steps: u64,
        position: u64,
        word: &dyn Fn(u64) -> Word,
    ) -> Result<Ended, OuterError> {
        let mut feed = self.feed(position, steps)?;
        let stream = Arc::clone(&self.stream);
        let mut trained = Trained::default();
        for i in 0..steps {
            match word(i) {
                Word::Stop => return Ok(Ended::Stopped),
                Word::Enough if i > 0 => break,
                _ => {}
            }
            let position = position + i * self.run.rows_per_step() as u64;
            let loss = stream.enter(|| self.step(&mut feed, first + i, position))?;
            let Some(loss) = loss else { return Ok(Ended::Diverged) };
            trained.loss += loss / steps as f64;
            trained.last_loss = loss;
            trained.tokens += self.run.batch.tokens_per_step as u64;
            trained.steps += 1;
        }
        if trained.steps < steps {
            trained.loss *= steps as f64 / trained.steps.max(1) as f64;
        }
        Ok(Ended::Done(trained))
    }

    /// One update; gives the loss. None where it or the gradient is no number: the step was not made.
    fn step(&mut self, feed: &mut Prefetch, step: u64, position: u64) -> Result<Option<f64>, OuterError> {
        let (sums, norm) = self.gradient(feed, position)?;
        if !(sums.loss.is_finite() && norm.is_finite()) {
            self.state.grads.zero(&self.stream)?;
            return Ok(None);
        }
        let scale = optim::clip(&self.run, norm);
        let lr = schedule::rate(&self.run.schedule, self.run.optim.lr, step, self.run.train.steps);
        let (s, t) = (Arc::clone(&self.stream), self.updates + 1);
        s.graph("update", 0, || optim::update(&s, &self.run, &mut self.state, lr, t, scale))?;
        self.updates = t;
        Ok(Some(sums.loss))
    }

    /// Brings the copies that the ops read up to date, after the weights were changed from outside.
    pub fn refresh(&mut self) -> Result<(), OuterError> {
        Ok(self.state.refresh(&self.stream)?)
    }

    /// Starts making the rows of `steps` steps from `position` on.
    pub fn feed(&self, position: u64, steps: u64) -> Result<Prefetch, OuterError> {
        Ok(step::feed_rows(&self.run, self.loader.clone(), position, steps)?)
    }

    /// Leaves the gradient of the step at `position`, which `feed` has next, in the state; gives its norm.
    pub fn gradient(&mut self, feed: &mut Prefetch, position: u64) -> Result<(Sums, f64), OuterError> {
        let sums = step::gradient(&self.stream, &self.run, feed, &mut self.state, &mut self.host, position)?;
        let norm = optim::norm(&self.stream, &self.state.grads.sum)?;
        Ok((sums, norm))
    }

    /// Scores the weights on the validation set, where there is one.
    pub fn score(&mut self, step: u64) -> Result<Option<Validated>, OuterError> {
        let Some(validator) = &self.validator else { return Ok(None) };
        Ok(Some(validator.score(&self.stream, &self.run, &mut self.state, &mut self.host, step)?))
    }
}
