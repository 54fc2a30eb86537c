//! Masters of a bf16 run on a device, in two halves.
//!
//! | | whole | split |
//! | --- | --- | --- |
//! | what the optimiser changes | f32, 4 bytes | `high` and `low` of [`esker_kernels::ops::adamw::split`] |
//! | what ops read | a bf16 copy, 2 bytes more | `high` itself |
//! | bytes a parameter | 6 | 4 |
//!
//! Nothing is lost: the halves join to the f32 that whole masters would be, and a checkpoint keeps that. What differs is
//! a tie in rounding to bf16, which `high` rounds up and a copy to even: one number in 65536, by half a step.
//!
//! Norms stay f32 and whole. Drawing, loading and saving go by way of whole masters in the host's memory, for that time.

use crate::config::Run;
use crate::state::State;
use esker_kernels::Result;
use esker_kernels::device::Stream;
use esker_kernels::ops::adamw::split;
use esker_kernels::tensor::{Arena, DType};
use esker_model::Weights;

/// How masters lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masters {
    /// f32, with a copy for ops that read bf16.
    Whole,
    /// bf16 that ops read, and the 16 bits that it lacks.
    Split,
}

impl Masters {
    /// Those of `run`, on a device or on the host.
    pub fn of(run: &Run, on_device: bool) -> Masters {
        if on_device && run.train.dtype == DType::Bf16 { Masters::Split } else { Masters::Whole }
    }
}

/// Room in the host's memory for the masters of `run`, whole.
pub fn room(run: &Run) -> Result<Weights> {
    let host = Stream::cpu(1)?;
    Ok(Arena::build(&host, |arena| Weights::layout(arena, &run.model, DType::F32))?.0)
}

/// The masters of `state`, whole, where it has them in halves.
pub fn join(run: &Run, state: &State) -> Result<Option<Weights>> {
    let Some(low) = &state.low else { return Ok(None) };
    let (mut whole, mut lows) = (room(run)?, low.iter());
    for ((name, to), (_, high)) in whole.each_mut().zip(state.master.each()) {
        if !name.is_matrix() {
            to.set(high.f32());
            continue;
        }
        split::join_all(high, lows.next().expect("masters: a low half for each matrix"), to.f32_mut());
    }
    Ok(Some(whole))
}

/// Takes `whole` into the halves of `state`.
pub fn part(whole: &Weights, state: &mut State) {
    let mut lows = state.low.iter_mut().flatten();
    for ((name, from), (_, high)) in whole.each().zip(state.master.each_mut()) {
        if !name.is_matrix() {
            high.set(from.f32());
            continue;
        }
        split::part_all(from.f32(), high, lows.next().expect("masters: a low half for each matrix"));
    }
}
