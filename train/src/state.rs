//! All tensors of a run, laid out before the first step.
//!
//! | set | dtype | when |
//! | --- | --- | --- |
//! | `master` | f32 | always; what the optimiser changes and a checkpoint keeps |
//! | `compute` | bf16 matrices, f32 norms | in a bf16 run with whole masters: what the ops read |
//! | `low` | 16 bits a number of a matrix | in a bf16 run on a device, where `master` is bf16: see `masters` |
//! | `m`, `v` | f32 | the optimiser's moments |
//! | `grads` | f32 | of the virtual rank at work |
//! | `pending` | f32, log₂ V sets | sums of virtual ranks that wait for their other half |
//! | `buffers` | as the ops want | activations, scratch, tokens of `micro_rows` sequences |
//!
//! [`State::layout`] runs on a measuring arena for the plan and on a placing one for the run.

use crate::config::Run;
use crate::masters::{self, Masters};
use esker_kernels::device::Stream;
use esker_kernels::tensor::{Arena, Class, DType, Tensor};
use esker_model::{Buffers, Grads, Shape, Weights};

/// The tensors of a run.
#[derive(Debug)]
pub struct State {
    /// What is trained.
    pub master: Weights,
    /// With split masters: what each matrix of `master` lacks, in their order.
    pub low: Option<Vec<Tensor>>,
    /// Its copy for the ops, where they want another dtype.
    pub compute: Option<Weights>,
    /// First moments.
    pub m: Weights,
    /// Second moments.
    pub v: Weights,
    /// Gradients of the virtual rank at work; zero between steps.
    pub grads: Grads,
    /// Level l: the sum of 2ˡ virtual ranks that waits for the next 2ˡ.
    pub pending: Vec<Weights>,
    /// Activations, scratch, tokens.
    pub buffers: Buffers,
}

impl State {
    /// Lays out the tensors of `run` with whole masters.
    pub fn layout(arena: &mut Arena, run: &Run) -> State {
        State::layout_as(arena, run, Masters::Whole)
    }

    /// Lays out the tensors of `run`.
    pub fn layout_as(arena: &mut Arena, run: &Run, masters: Masters) -> State {
        let (config, dtype) = (&run.model, run.train.dtype);
        let set = |arena: &mut Arena, class, dtype| Weights::layout(arena.class(class), config, dtype);
        let levels = run.batch.virtual_ranks.ilog2();
        let whole = masters == Masters::Whole;
        let master = set(arena, Class::Weights, if whole { DType::F32 } else { DType::Bf16 });
        let low = |arena: &mut Arena| {
            let matrices = master.each().filter(|(name, _)| name.is_matrix());
            matrices.map(|(_, high)| arena.tensor(DType::Bf16, [high.len()])).collect()
        };
        State {
            low: (!whole).then(|| low(arena)),
            master,
            compute: (whole && dtype != DType::F32).then(|| set(arena, Class::Weights, dtype)),
            m: set(arena, Class::Optimiser, DType::F32),
            v: set(arena, Class::Optimiser, DType::F32),
            grads: Grads::layout(arena.class(Class::Gradients), config),
            pending: (0..levels).map(|_| set(arena, Class::Gradients, DType::F32)).collect(),
            buffers: Buffers::layout(arena, config, shape(run)),
        }
    }

    /// What the ops read.
    pub fn weights(&self) -> &Weights {
        self.compute.as_ref().unwrap_or(&self.master)
    }

    /// Draws fresh masters.
    pub fn draw(&mut self, s: &Stream, run: &Run) -> esker_kernels::Result<()> {
        if self.low.is_none() {
            return esker_model::init::draw(s, &run.model, &mut self.master, run.seed);
        }
        let mut whole = masters::room(run)?;
        esker_model::init::draw(s, &run.model, &mut whole, run.seed)?;
        masters::part(&whole, self);
        Ok(())
    }

    /// Makes the copies that follow from the master weights, after these were drawn or loaded.
    pub fn refresh(&mut self, s: &Stream) -> esker_kernels::Result<()> {
        match &mut self.compute {
            Some(copy) => copy.convert_from(s, &self.master),
            None => Ok(()),
        }
    }
}

fn shape(run: &Run) -> Shape {
    Shape {
        micro_rows: run.micro_rows(),
        seq: run.batch.seq_len,
        grain_rows: run.batch.grain_rows,
        dtype: run.train.dtype,
        documents: run.data.document_mask,
        backward: Some(run.train.recompute),
    }
}
