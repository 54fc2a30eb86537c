//! One run of the study: owners side by side in one thread.

use super::validator::Validator;
use super::{Forger, Link, Method, Outcome, Point, Setting, StudyError, VERSION, base, demo, run_of, slots};
use crate::outer::inner::Inner;
use crate::outer::{Layout, OuterError, Owner, blob};
use crate::source::Opened;
use esker_kernels::device::Stream;
use esker_kernels::ops::chunk_topk::{Codec, Spec};
use esker_train_elements as elements;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Points of a curve, about.
const POINTS: u64 = 8;

/// A run under way: its curve, and what it counts.
pub(super) struct Course<'a> {
    setting: &'a Setting,
    stop: &'a AtomicBool,
    curve: Vec<Point>,
    bytes: u64,
    seconds: f64,
    step: u64,
}

impl<'a> Course<'a> {
    /// Of which run.
    pub fn setting(&self) -> &'a Setting {
        self.setting
    }

    /// Counts an exchange after `steps` more steps; says whether it is time for a point of the curve.
    pub fn exchanged(&mut self, steps: u64, bytes: u64, dense: bool) -> Result<bool, StudyError> {
        let (link, owners) = (Link::HOME, self.setting.owners);
        let exchange = if dense { link.dense(owners, bytes) } else { link.sparse(owners, bytes) };
        self.seconds += steps as f64 * link.step_seconds + exchange;
        self.bytes += bytes;
        let before = self.step * POINTS / self.setting.steps;
        self.step += steps;
        if self.stop.load(Ordering::Relaxed) {
            return Err(StudyError::Stopped);
        }
        Ok(self.step * POINTS / self.setting.steps > before)
    }

    /// Adds a point: the loss of `inner`, whose weights are the shared ones.
    pub fn point(&mut self, inner: &mut Inner) -> Result<(), OuterError> {
        let validated = inner.score(self.step)?;
        self.add(validated.expect("study: the corpus has a validation set"));
        Ok(())
    }

    fn add(&mut self, validated: crate::metrics::Validated) {
        let tokens = self.step * self.setting.owners * base().batch.tokens_per_step as u64;
        let (nll, bits_per_byte) = (validated.nll, validated.bits_per_byte);
        self.curve.push(Point {
            step: self.step,
            tokens,
            bytes: self.bytes,
            seconds: self.seconds,
            nll,
            bits_per_byte,
        });
    }

    /// Says which run an owner's failure belongs to.
    pub fn named<T>(&self, result: Result<T, OuterError>) -> Result<T, StudyError> {
        result.map_err(|e| StudyError::Owner { setting: super::name_of(self.setting), source: Box::new(e) })
    }

    /// What it came to.
    pub fn end(self, update_bytes: u64, params: u64) -> Outcome {
        Outcome {
            version: VERSION,
            base: base().hash(),
            setting: self.setting.clone(),
            curve: self.curve,
            update_bytes,
            compression: 4.0 * params as f64 / update_bytes as f64,
            params,
            seen: None,
            took: 0.0,
        }
    }
}

/// Runs `setting` to its end.
pub(super) fn run(setting: &Setting, opened: &Opened, stop: &AtomicBool) -> Result<Outcome, StudyError> {
    let course = Course { setting, stop, curve: Vec::new(), bytes: 0, seconds: 0.0, step: 0 };
    match setting.method {
        Method::Ddp => ddp(course, opened),
        Method::Diloco { inner_steps, outer_lr, momentum } => diloco(course, opened, inner_steps, outer_lr, momentum),
        Method::Demo { k, decay } => demo::run(course, opened, k, decay),
        Method::Sparseloco { .. } => sparseloco(course, opened),
    }
}

pub(super) fn stream() -> Result<Arc<Stream>, OuterError> {
    Ok(Arc::new(Stream::cpu(1)?))
}

/// Parameters of the study's model.
pub(super) fn params() -> u64 {
    Layout::new(&base().model, Spec { k: 1, codec: Codec::Exact }).elements() as u64
}

/// One optimiser on the batch of all owners, whose shares are summed as a tree.
fn ddp(mut course: Course<'_>, opened: &Opened) -> Result<Outcome, StudyError> {
    let setting = course.setting;
    let run = run_of(setting).varied(|file| {
        file.batch.tokens_per_step *= setting.owners as usize;
        file.batch.virtual_ranks = setting.owners as usize;
    });
    let run = run.expect("study: owners of a DDP run are a power of two");
    let rows = run.rows_per_step() as u64;
    let opening = stream().and_then(|s| Inner::open(s, run, opened));
    let mut inner = course.named(opening)?;
    let bytes = 4 * params();
    for step in 0..setting.steps {
        let trained = inner.train(step, 1, step * rows);
        let trained = course.named(trained)?;
        let diverged = trained.is_none().then_some(OuterError::Diverged { round: step, step });
        course.named(diverged.map_or(Ok(()), Err))?;
        if course.exchanged(1, bytes, true)? {
            let point = course.point(&mut inner);
            course.named(point)?;
        }
    }
    Ok(course.end(bytes, params()))
}

/// DiLoCo: the outer optimiser is SGD with Nesterov momentum, in PyTorch's form.
fn diloco(
    mut course: Course<'_>,
    opened: &Opened,
    inner_steps: u64,
    outer_lr: f64,
    momentum: f64,
) -> Result<Outcome, StudyError> {
    let (setting, run) = (course.setting, run_of(course.setting));
    let windows = inner_steps * run.rows_per_step() as u64;
    let opening = stream().and_then(|s| {
        (0..setting.owners).map(|_| Inner::open(Arc::clone(&s), run.clone(), opened)).collect::<Result<Vec<_>, _>>()
    });
    let mut owners = course.named(opening)?;
    let mut anchor: Vec<Vec<f32>> = owners[0].state.master.each().map(|(_, t)| t.f32().to_vec()).collect();
    let mut velocity: Vec<Vec<f32>> = anchor.iter().map(|a| vec![0.0; a.len()]).collect();
    let (bytes, share) = (4 * params(), 1.0 / setting.owners as f32);
    for round in 0..setting.steps.div_ceil(inner_steps) {
        let first = round * inner_steps;
        let steps = inner_steps.min(setting.steps - first);
        for (slot, owner) in owners.iter_mut().enumerate() {
            let position = (round * setting.owners + slot as u64) * windows;
            let trained = course.named(owner.train(first, steps, position))?;
            let diverged = trained.is_none().then_some(OuterError::Diverged { round, step: first });
            course.named(diverged.map_or(Ok(()), Err))?;
        }
        for (i, (a, v)) in anchor.iter_mut().zip(&mut velocity).enumerate() {
            let mut mean = vec![0.0f32; a.len()];
            for owner in &owners {
                let (_, theta) = owner.state.master.each().nth(i).expect("study: a tensor");
                elements::add_apart(&mut mean, a, theta.f32(), share);
            }
            elements::nesterov(a, v, &mean, outer_lr as f32, momentum as f32);
            for owner in &mut owners {
                owner.state.master.each_mut().nth(i).expect("study: a tensor").1.f32_mut().copy_from_slice(a);
            }
        }
        let fresh = owners.iter_mut().try_for_each(Inner::refresh);
        course.named(fresh)?;
        if course.exchanged(steps, bytes, true)? {
            let point = course.point(&mut owners[0]);
            course.named(point)?;
        }
    }
    Ok(course.end(bytes, params()))
}

/// SparseLoCo, every owner with its own state; with liars, and a validator.
fn sparseloco(mut course: Course<'_>, opened: &Opened) -> Result<Outcome, StudyError> {
    let (setting, run) = (course.setting, run_of(course.setting));
    let outer = run.shared().expect("study: an outer section").clone();
    let opening = stream().and_then(|s| {
        let lying = setting.liars.as_ref().is_some_and(|liars| liars.lie.is_some());
        let present = if lying { slots(setting) } else { setting.owners };
        (0..present).map(|_| Owner::open(Arc::clone(&s), run.clone(), opened)).collect::<Result<Vec<_>, _>>()
    });
    let mut owners = course.named(opening)?;
    let bytes = owners[0].layout().bytes() as u64;
    let lie = setting.liars.as_ref().and_then(|liars| liars.lie);
    let mut liars: Vec<Forger> = (setting.owners..slots(setting)).map(|slot| Forger::new(lie, slot)).collect();
    let mut validator = setting.liars.as_ref().filter(|liars| liars.judged).map(|_| Validator::new(&run));
    let mut before: Vec<Vec<u8>> = Vec::new();
    for round in 0..run.rounds(&outer) {
        let mut blobs: Vec<Vec<u8>> = Vec::new();
        for (slot, owner) in owners.iter_mut().enumerate() {
            let peer = [slot as u8; 32];
            let mut blob = course.named(owner.prepare(round, slot as u64, peer))?.blob;
            if let Some(liar) = slot.checked_sub(setting.owners as usize) {
                blob = course.named(liars[liar].forge(owner.layout(), before.first().map(Vec::as_slice), blob))?;
            }
            let wrong = blob::check(owner.layout(), &owner.header(round, peer), &blob).err();
            course.named(wrong.map_or(Ok(()), |fault| Err(OuterError::Refused { index: slot, fault })))?;
            blobs.push(blob);
        }
        let all: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        let counting = match &mut validator {
            None => all,
            Some(validator) => validator.choose(owners[0].layout(), round, &all, setting.owners as usize),
        };
        // Two fold, and must agree; the others would only do the same again.
        let (leader, others) = owners.split_first_mut().expect("study: owners");
        course.named(leader.apply(round, &counting))?;
        for (i, owner) in others.iter_mut().enumerate() {
            let root = if i == 0 { owner.apply(round, &counting) } else { owner.follow(round, &counting, leader) };
            if course.named(root)? != leader.root() {
                return Err(StudyError::Roots { setting: super::name_of(setting), round });
            }
        }
        if course.exchanged(run.steps_of(&outer, round), bytes, false)? {
            let scored = course.named(owners[0].score())?;
            course.add(scored.expect("study: the corpus has a validation set"));
        }
        before = blobs;
    }
    let mut outcome = course.end(bytes, params());
    outcome.seen = validator.map(|validator| validator.seen());
    Ok(outcome)
}
