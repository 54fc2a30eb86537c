//! One owner: from the shared weights to an update, and from the round's updates to the next shared weights.
//!
//! | set | dtype | |
//! | --- | --- | --- |
//! | anchor | f32 | the shared weights; in a bf16 run too, whose copies for the ops follow from them |
//! | θ, m, v | f32 | [`Inner`]: this owner's weights and moments |
//! | e | f32 | error feedback |
//! | scratch | u32 | each owner's part of the one tensor that is being folded |
//!
//! [`Owner::prepare`] always begins at the anchor, so a run with delay calls it for round t + 1 before
//! [`Owner::apply`] of round t, and everything else is as without. An update of ours that did not count is added back
//! to e: `e ← e + d`, so a late owner loses nothing but the round. One that counted and that a kill made us forget
//! leaves e at 0 where it moved something: what was given is not given twice.

use super::blob::{self, Header, Layout};
use super::inner::{Ended, Inner, Trained, Word};
use super::{Clip, Outer, OuterError, leaves};
use crate::config::Run;
use crate::metrics::Validated;
use crate::source::Opened;
use esker_kernels::device::Stream;
use esker_kernels::ops::chunk_topk::{self, Compress, Delta, Fold, Update, clip_factors, record};
use esker_kernels::tensor::{Arena, Class, DType, Tensor};
use esker_model::Weights;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// An owner's state.
#[derive(Debug)]
pub struct Owner {
    pub(super) inner: Inner,
    pub(super) anchor: Weights,
    pub(super) feedback: Weights,
    /// Rounds that the anchor holds.
    pub(super) round: u64,
    /// Root of the anchor.
    pub(super) root: [u8; 32],
    /// Updates of ours that no round has settled, oldest first.
    pub(super) sent: VecDeque<(u64, Vec<u8>)>,
    pub(super) id: [u8; 32],
    /// In whose name updates are made.
    peer: Option<[u8; 32]>,
    /// Root of the weights that were drawn.
    genesis: [u8; 32],
    outer: Outer,
    layout: Layout,
    /// By the words of a part: a tensor a slot.
    scratch: BTreeMap<usize, Vec<Tensor>>,
}

/// What a round's work came to.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The update.
    pub blob: Vec<u8>,
    /// What it begins with.
    pub header: Header,
    /// Loss and tokens.
    pub trained: Trained,
}

impl Owner {
    /// An owner at the beginning of the run: the weights are drawn from the run's seed, so all owners have the same.
    pub fn open(stream: Arc<Stream>, run: Run, opened: &Opened) -> Result<Owner, OuterError> {
        let outer = run.shared()?.clone();
        let layout = Layout::new(&run.model, outer.spec());
        let id = run.id(&opened.identity);
        let inner = Inner::open(Arc::clone(&stream), run, opened)?;
        let ((mut anchor, feedback, scratch), _) = Arena::build(&stream, |arena| {
            let set = |arena: &mut Arena, class| Weights::layout(arena.class(class), &inner.run.model, DType::F32);
            (set(arena, Class::Weights), set(arena, Class::Gradients), scratch(arena, &layout, outer.slots))
        })?;
        anchor.convert_from(&stream, &inner.state.master)?;
        let root = leaves::root(&anchor);
        let sent = VecDeque::new();
        let peer = None;
        Ok(Owner { inner, anchor, feedback, round: 0, root, sent, id, peer, genesis: root, outer, layout, scratch })
    }

    /// The run.
    pub fn run(&self) -> &Run {
        &self.inner.run
    }

    /// What the run is called between owners.
    pub fn id(&self) -> [u8; 32] {
        self.id
    }

    /// Calls the run by another name: that of a spec which says more than the configuration does.
    pub fn name_run(&mut self, id: [u8; 32]) {
        self.id = id;
    }

    /// Says which updates of a round are its own, before it has made one since its start.
    pub fn name_peer(&mut self, peer: [u8; 32]) {
        self.peer = Some(peer);
    }

    /// Root of the weights that every owner begins with.
    pub fn genesis(&self) -> [u8; 32] {
        self.genesis
    }

    /// How updates are laid out.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Rounds that the shared weights hold: the next one to apply.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Root of the shared weights.
    pub fn root(&self) -> [u8; 32] {
        self.root
    }

    /// The shared weights.
    pub fn anchor(&self) -> &Weights {
        &self.anchor
    }

    /// This owner's own weights: those it trained, until the round's updates are applied.
    pub fn theta(&self) -> &Weights {
        &self.inner.state.master
    }

    /// Its error feedback.
    pub fn feedback(&self) -> &Weights {
        &self.feedback
    }

    /// The header that an update of `peer` for the whole of `round`, trained from the shared weights as they are, must have.
    pub fn header(&self, round: u64, peer: [u8; 32]) -> Header {
        self.header_of(round, peer, self.inner.run.steps_of(&self.outer, round))
    }

    fn header_of(&self, round: u64, peer: [u8; 32], steps: u64) -> Header {
        let run = &self.inner.run;
        let tokens = steps * run.batch.tokens_per_step as u64;
        Header { run: self.id, peer, base: self.root, round, tokens, inner_steps: steps as u32 }
    }

    /// Trains `round` on the rows of `slot` and gives the update in the name of `peer`.
    ///
    /// # Errors
    /// [`OuterError::Diverged`] leaves the owner at the shared weights, with the error feedback it had.
    pub fn prepare(&mut self, round: u64, slot: u64, peer: [u8; 32]) -> Result<Prepared, OuterError> {
        self.prepare_until(round, slot, peer, &|_| Word::GoOn)
    }

    /// As [`Owner::prepare`], and ends before the step in which `word` says so, which is told how many are done. Where there
    /// was time for some of the round's steps alone, the update says of how many it is.
    ///
    /// # Errors
    /// [`OuterError::Stopped`] leaves the owner at the shared weights too.
    pub fn prepare_until(
        &mut self,
        round: u64,
        slot: u64,
        peer: [u8; 32],
        word: &dyn Fn(u64) -> Word,
    ) -> Result<Prepared, OuterError> {
        let run = &self.inner.run;
        let (slots, rounds) = (self.outer.slots, run.rounds(&self.outer));
        let steps = run.steps_of(&self.outer, round);
        let rows = run.rows_of(&self.outer, round, slot).filter(|_| steps > 0);
        let Some(position) = rows else { return Err(OuterError::NoSuchRows { round, slot, slots, rounds }) };
        self.peer = Some(peer);
        self.return_to_anchor()?;
        let first = round * self.outer.inner_steps;
        let trained = match self.inner.train_until(first, steps, position, word)? {
            Ended::Done(trained) => trained,
            cut => {
                self.return_to_anchor()?;
                let diverged = matches!(cut, Ended::Diverged);
                return Err(match diverged {
                    true => OuterError::Diverged { round, step: first },
                    false => OuterError::Stopped { round },
                });
            }
        };
        let header = self.header_of(round, peer, trained.steps);
        let stream = Arc::clone(self.inner.stream());
        let (blob, finite) = stream.enter(|| self.compress(&header))?;
        if !finite {
            self.feedback.zero(self.inner.stream())?;
            self.return_to_anchor()?;
            return Err(OuterError::Diverged { round, step: first + trained.steps });
        }
        self.sent.push_back((round, blob.clone()));
        Ok(Prepared { blob, header, trained })
    }

    /// θ ← a.
    fn return_to_anchor(&mut self) -> Result<(), OuterError> {
        let stream = Arc::clone(self.inner.stream());
        self.inner.state.master.convert_from(&stream, &self.anchor)?;
        Ok(self.inner.state.refresh(&stream)?)
    }

    /// The update of what θ moved by, and whether all of it is finite.
    fn compress(&mut self, header: &Header) -> Result<(Vec<u8>, bool), OuterError> {
        let stream = Arc::clone(self.inner.stream());
        let spec = self.layout.spec();
        let (mut blob, mut finite) = (Vec::with_capacity(self.layout.bytes()), true);
        blob.extend_from_slice(&header.to_bytes());
        let sets = self.feedback.each_mut().zip(self.anchor.each()).zip(self.inner.state.master.each());
        for ((((_, e), (_, anchor)), (_, theta)), part) in sets.zip(self.layout.parts()) {
            let update = &mut self.scratch.get_mut(&part.grid.update_words(spec)).expect("owner: laid out")[0];
            let delta = Some(Delta { anchor, theta });
            let beta = self.outer.beta as f32;
            finite &= chunk_topk::compress(&stream, part.grid, spec, Compress { e, delta, update, beta })?;
            blob.extend_from_slice(&update.bytes()[..part.bytes.len()]);
        }
        Ok((blob, finite))
    }

    /// As [`Owner::apply_weighted`], every update with weight 1.
    pub fn apply(&mut self, round: u64, blobs: &[&[u8]]) -> Result<[u8; 32], OuterError> {
        self.apply_weighted(round, blobs, &vec![1.0; blobs.len()])
    }

    /// Moves the shared weights by the updates that count for `round`, in the order that all owners agree on, and
    /// returns their new root. Each must have passed [`blob::check`]; its values are multiplied by its weight, after the
    /// clip.
    pub fn apply_weighted(&mut self, round: u64, blobs: &[&[u8]], weights: &[f32]) -> Result<[u8; 32], OuterError> {
        assert_eq!(blobs.len(), weights.len(), "owner: a weight an update");
        if round != self.round {
            return Err(OuterError::OutOfTurn { got: round, want: self.round });
        }
        if blobs.len() as u64 > self.outer.slots {
            return Err(OuterError::TooMany { got: blobs.len(), slots: self.outer.slots });
        }
        for (index, bytes) in blobs.iter().enumerate() {
            let want = self.layout.bytes();
            let whole = match bytes.len() == want {
                true => blob::records(&self.layout, bytes),
                false => Err(blob::BlobFault::Length { got: bytes.len(), want }),
            };
            whole.map_err(|fault| OuterError::Refused { index, fault })?;
        }
        let stream = Arc::clone(self.inner.stream());
        stream.enter(|| self.fold(round, blobs, weights))?;
        self.settle(round, blobs);
        self.round += 1;
        self.root = leaves::root(&self.anchor);
        Ok(self.root)
    }

    fn fold(&mut self, round: u64, blobs: &[&[u8]], weights: &[f32]) -> Result<(), OuterError> {
        let stream = Arc::clone(self.inner.stream());
        let (spec, mean) = (self.layout.spec(), self.outer.mean);
        let alpha = self.outer.alpha(round);
        let sets = self.anchor.each_mut().zip(self.inner.state.master.each_mut());
        for (((_, anchor), (_, theta)), part) in sets.zip(self.layout.parts()) {
            let scratch = self.scratch.get_mut(&part.grid.update_words(spec)).expect("owner: laid out");
            let mut norms = Vec::with_capacity(blobs.len());
            for (update, blob) in scratch.iter_mut().zip(blobs) {
                let (bytes, update_bytes) = (&blob[part.bytes.clone()], update.bytes_mut());
                update_bytes[..bytes.len()].copy_from_slice(bytes);
                update_bytes[bytes.len()..].fill(0);
                norms.push(chunk_topk::sum_squares(&stream, part.grid, spec, update)?.sqrt());
            }
            let factors = match self.outer.clip {
                Clip::Median => clip_factors(&norms),
                Clip::None => vec![1.0; norms.len()],
            };
            let factors = factors.iter().zip(weights).map(|(factor, weight)| factor * weight);
            let updates = scratch.iter().zip(factors).map(|(update, factor)| Update { update, factor });
            let updates: Vec<Update<'_>> = updates.collect();
            chunk_topk::fold(&stream, part.grid, spec, Fold { updates: &updates, mean, alpha, anchor, theta })?;
        }
        Ok(self.inner.state.refresh(&stream)?)
    }

    /// As [`Owner::apply`], with the weights that `leader`, an owner in this process, came to: many owners side by side
    /// need not all fold.
    pub fn follow(&mut self, round: u64, blobs: &[&[u8]], leader: &Owner) -> Result<[u8; 32], OuterError> {
        if (round, round + 1) != (self.round, leader.round) {
            return Err(OuterError::OutOfTurn { got: round, want: self.round });
        }
        self.anchor.convert_from(self.inner.stream(), &leader.anchor)?;
        self.settle(round, blobs);
        self.round = leader.round;
        self.root = leader.root;
        Ok(self.root)
    }

    /// Forgets what counted in `round`, and takes back what did not.
    fn settle(&mut self, round: u64, blobs: &[&[u8]]) {
        let ours = |blob: &&&[u8]| Header::read(blob).is_ok_and(|header| Some(header.peer) == self.peer);
        let forgotten = blobs.iter().filter(ours).find(|blob| self.sent.iter().all(|(_, own)| own != **blob)).copied();
        while self.sent.front().is_some_and(|(sent, _)| *sent <= round) {
            let (_, own) = self.sent.pop_front().expect("owner: just seen");
            if blobs.contains(&own.as_slice()) {
                continue;
            }
            tracing::info!(target: "esker::round", round, "our update did not count; it goes back into the feedback");
            self.visit_feedback(&own, |e, d| *e += d);
        }
        let Some(given) = forgotten else { return };
        tracing::info!(target: "esker::round", round, "our update of before a restart counted; the feedback gives it up");
        self.visit_feedback(given, |e, _| *e = 0.0);
    }

    /// Calls `each(e, d)` for every place that an update moves, which was checked.
    fn visit_feedback(&mut self, blob: &[u8], each: impl Fn(&mut f32, f32)) {
        for ((_, e), part) in self.feedback.each_mut().zip(self.layout.parts()) {
            let e = e.f32_mut();
            record::visit(part.grid, self.layout.spec(), &blob[part.bytes.clone()], |i, d| each(&mut e[i], d))
                .expect("owner: an update that was checked");
        }
    }

    /// Scores the shared weights on the validation set, where there is one. Ends a training that is under way.
    pub fn score(&mut self) -> Result<Option<Validated>, OuterError> {
        let stream = Arc::clone(self.inner.stream());
        stream.enter(|| {
            self.return_to_anchor()?;
            let step = (self.round * self.outer.inner_steps).min(self.inner.run.train.steps);
            self.inner.score(step)
        })
    }

    /// Replaces one leaf of the shared weights. False where it is not as long as ours.
    pub fn set_leaf(&mut self, leaf: usize, bytes: &[u8]) -> bool {
        leaves::set(&mut self.anchor, leaf, bytes)
    }

    /// Takes the leaves as they are for the weights after `round` rounds, as after fetching them; gives their root. Where
    /// rounds were skipped nobody knows what of the feedback was given in them, and it begins anew.
    pub fn settle_at(&mut self, round: u64) -> Result<[u8; 32], OuterError> {
        if round != self.round {
            self.feedback.zero(self.inner.stream())?;
        }
        self.round = round;
        self.sent.retain(|(sent, _)| *sent >= round);
        self.root = leaves::root(&self.anchor);
        self.return_to_anchor()?;
        Ok(self.root)
    }
}

/// A tensor a slot for each size that a part of an update has.
fn scratch(arena: &mut Arena, layout: &Layout, slots: u64) -> BTreeMap<usize, Vec<Tensor>> {
    let mut scratch = BTreeMap::new();
    for part in layout.parts() {
        let words = part.grid.update_words(layout.spec());
        let of_slots = |arena: &mut Arena| (0..slots).map(|_| arena.tensor(DType::U32, [words])).collect();
        scratch.entry(words).or_insert_with(|| of_slots(arena.class(Class::Scratch)));
    }
    scratch
}
