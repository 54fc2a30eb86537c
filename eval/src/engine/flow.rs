//! Several texts that grow at once: prompts and new tokens of all in one step of the network.
//!
//! A lane is a slot of the cache with what its text has not yet read. A step first takes one token of every lane, so
//! that nobody waits for another's long prompt, then as much of the prompts as fits; a lane whose text is read whole is
//! asked how it goes on.

use esker_kernels::{DeviceError, device::Stream, tensor::Arena};
use esker_model::{
    Config, Weights,
    slots::{New, Size, Slots},
};

/// How a lane goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// With this token.
    Token(u32),
    /// Not at all: the lane is free.
    End,
}

/// Texts under way.
#[derive(Debug)]
pub(crate) struct Flow<'a> {
    stream: &'a Stream,
    config: &'a Config,
    weights: &'a Weights,
    slots: Slots,
    /// What each lane has yet to read; empty: the lane is free.
    lanes: Vec<Vec<u32>>,
}

impl<'a> Flow<'a> {
    /// Room for texts up to `capacity` tokens on `lanes` lanes, `tokens` of them a step.
    pub fn new(
        stream: &'a Stream,
        config: &'a Config,
        weights: &'a Weights,
        (lanes, capacity, tokens): (usize, usize, usize),
    ) -> Result<Flow<'a>, DeviceError> {
        let (dtype, size) = (weights.embed.dtype(), Size { slots: lanes, capacity, tokens: tokens.max(lanes) });
        let (mut slots, _) = Arena::build(stream, |arena| Slots::layout(arena, config, dtype, size))?;
        slots.ready(stream, config)?;
        Ok(Flow { stream, config, weights, slots, lanes: vec![Vec::new(); lanes] })
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// A lane that nobody uses.
    pub fn free(&self) -> Option<usize> {
        self.lanes.iter().position(Vec::is_empty)
    }

    /// Whether every lane is free.
    pub fn idle(&self) -> bool {
        self.lanes.iter().all(Vec::is_empty)
    }

    /// Begins a text of at least one token on a free lane.
    pub fn start(&mut self, lane: usize, prompt: Vec<u32>) {
        assert!(self.lanes[lane].is_empty() && !prompt.is_empty(), "flow: lane {lane}");
        self.slots.reset(lane);
        self.lanes[lane] = prompt;
    }

    /// One pass of the network; `next` is asked for each lane that is read whole, with the logits behind its text.
    pub fn step(&mut self, mut next: impl FnMut(usize, &[f32]) -> Next) -> Result<(), DeviceError> {
        let busy: Vec<usize> = (0..self.lanes.len()).filter(|&lane| !self.lanes[lane].is_empty()).collect();
        if busy.is_empty() {
            return Ok(());
        }
        let mut spare = self.slots.size().tokens - busy.len();
        let mut news = Vec::with_capacity(busy.len());
        for &lane in &busy {
            let n = self.lanes[lane].len().min(1 + spare);
            spare -= n - 1;
            news.push(New { slot: lane, ids: &self.lanes[lane][..n] });
        }
        let taken: Vec<usize> = news.iter().map(|new| new.ids.len()).collect();
        let logits = self.slots.step(self.stream, self.config, self.weights, &news)?;
        for ((&lane, taken), logits) in busy.iter().zip(taken).zip(logits.chunks_exact(self.config.vocab)) {
            let pending = &mut self.lanes[lane];
            pending.drain(..taken);
            if pending.is_empty()
                && let Next::Token(id) = next(lane, logits)
            {
                pending.push(id);
            }
        }
        Ok(())
    }
}

/// Lanes for texts of `capacity` tokens: as many as are wanted and as fit `bytes` of cache, at least one.
pub(crate) fn lanes(config: &Config, weights: &Weights, capacity: usize, wanted: usize, bytes: usize) -> usize {
    let token = 2 * config.layers * config.kv_width() * weights.embed.dtype().bytes();
    (bytes / (token * capacity).max(1)).clamp(1, wanted.max(1))
}
