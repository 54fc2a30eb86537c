//! Generation of several sequences at once: one product serves the new tokens of all, each attends its own cache.
//!
//! A slot holds the keys and values of one sequence. [`Slots::step`] takes some new tokens for some slots, a prompt's piece
//! for one and a single token for the next, and returns the logits behind the last of each. Reading the weights bounds a
//! step of few tokens, so several sequences cost little more than one. As in [`crate::decode`], a handful of rows go
//! through another product than many do: a sequence's logits do not depend on what the others say, but their last bits on
//! how many rows there are.

use crate::{
    attention::{self, Own, Piece, copy_rows},
    config::Config,
    mlp,
    model::{Product, Rotation},
    weights::Weights,
};
use esker_kernels::{
    Result,
    device::Stream,
    ops::{embedding, matmul, matmul::Put, rmsnorm},
    tensor::{Arena, Class, DType, Tensor},
};

/// Rows up to which weights are read once for all of them.
const FEW_ROWS: usize = 4;

/// Sizes of [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Sequences at once.
    pub slots: usize,
    /// Most tokens of a sequence.
    pub capacity: usize,
    /// Most tokens of a step, all sequences together; at least `slots`.
    pub tokens: usize,
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// Which slot.
    pub slot: usize,
    /// At least one.
    pub ids: &'a [u32],
}

/// Several sequences under way.
#[derive(Debug)]
pub struct Slots {
    size: Size,
    /// Tokens in each slot.
    len: Vec<usize>,
    /// For every position.
    table: Rotation,
    /// For every token of a step.
    rot: Rotation,
    /// By layer, then slot.
    caches: Vec<Vec<attention::Cache>>,
    /// `[tokens]` u32
    ids: Tensor,
    /// `[tokens, C]` f32, three: input, middle and output of a block
    xs: [Tensor; 3],
    attention: attention::Acts,
    own: Own,
    mlp: mlp::Acts,
    /// `[slots, C]` f32: the residual stream of each piece's last token
    last: Tensor,
    /// `[slots, C]`
    n: Tensor,
    /// `[slots]`
    r: Tensor,
    /// `[slots, V]` f32
    logits: Tensor,
}

impl Slots {
    /// Lays out caches and what a step needs, with matrices of `dtype`; sets the arena's classes itself.
    pub fn layout(arena: &mut Arena, cfg: &Config, dtype: DType, size: Size) -> Slots {
        let Size { slots, capacity, tokens } = size;
        assert!(slots > 0 && capacity > 0 && tokens >= slots, "slots: {size:?}");
        arena.class(Class::Inputs);
        let (table, rot) = (Rotation::layout(arena, cfg, capacity), Rotation::layout(arena, cfg, tokens));
        let ids = arena.tensor(DType::U32, [tokens]);
        arena.class(Class::Cache);
        let cache = |arena: &mut Arena| attention::Cache::layout(arena, cfg, capacity, dtype);
        let caches = (0..cfg.layers).map(|_| (0..slots).map(|_| cache(arena)).collect()).collect();
        arena.class(Class::Scratch);
        Slots {
            size,
            len: vec![0; slots],
            table,
            rot,
            caches,
            ids,
            xs: [(); 3].map(|()| arena.tensor(DType::F32, [tokens, cfg.hidden])),
            attention: attention::Acts::layout(arena, cfg, tokens, dtype),
            own: Own::layout(arena, cfg, tokens, dtype),
            mlp: mlp::Acts::layout(arena, cfg, tokens, dtype),
            last: arena.tensor(DType::F32, [slots, cfg.hidden]),
            n: arena.tensor(dtype, [slots, cfg.hidden]),
            r: arena.tensor(DType::F32, [slots]),
            logits: arena.tensor(DType::F32, [slots, cfg.vocab]),
        }
    }

    /// Fills the tables; once, after they are placed.
    pub fn ready(&mut self, s: &Stream, cfg: &Config) -> Result<()> {
        self.table.fill(s, cfg)
    }

    /// The sizes it was laid out with.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Tokens that `slot` still takes.
    pub fn room(&self, slot: usize) -> usize {
        self.size.capacity - self.len[slot]
    }

    /// Forgets the sequence of `slot`.
    pub fn reset(&mut self, slot: usize) {
        self.len[slot] = 0;
    }

    /// Reads new tokens of some slots, each named once and with room for them; their ids lie below the vocabulary.
    /// Returns the logits behind the last token of each, `[news, V]`.
    pub fn step(&mut self, s: &Stream, cfg: &Config, w: &Weights, news: &[New<'_>]) -> Result<&[f32]> {
        let (mut ids, mut positions, mut pieces) = (Vec::new(), Vec::new(), Vec::with_capacity(news.len()));
        for (i, &New { slot, ids: new }) in news.iter().enumerate() {
            assert!(!new.is_empty() && new.len() <= self.room(slot), "slots: {} tokens for slot {slot}", new.len());
            assert!(news[..i].iter().all(|other| other.slot != slot), "slots: slot {slot} twice");
            let at = self.len[slot];
            pieces.push(Piece { from: ids.len(), n: new.len(), at });
            ids.extend_from_slice(new);
            positions.extend((at..at + new.len()).map(|p| p as u32));
        }
        assert!(ids.len() <= self.size.tokens, "slots: {} tokens in buffers for {}", ids.len(), self.size.tokens);
        s.upload_u32(&ids, &mut self.ids)?;
        self.rot.gather(&self.table, &positions);
        s.enter(|| {
            self.extend(s, cfg, w, (news, &pieces, ids.len()))?;
            self.predict(s, cfg, w, &pieces)
        })?;
        s.synchronise()?;
        for new in news {
            self.len[new.slot] += new.ids.len();
        }
        Ok(&self.logits.f32()[..news.len() * cfg.vocab])
    }

    /// Takes the new tokens through all blocks.
    fn extend(
        &mut self,
        s: &Stream,
        cfg: &Config,
        w: &Weights,
        (news, pieces, n): (&[New<'_>], &[Piece], usize),
    ) -> Result<()> {
        let product = product(n);
        let [x, middle, y] = &mut self.xs;
        let d = embedding::Dims { rows: n, cols: cfg.hidden, vocab: cfg.vocab };
        embedding::forward(s, d, embedding::Forward { ids: &self.ids, w: &w.embed, x })?;
        for (w, caches) in w.layers.iter().zip(&mut self.caches) {
            let parts = (news.iter().map(|new| new.slot).zip(pieces.iter().copied()), &mut self.own);
            attention::extend_each(s, cfg, n, w, x, middle, &mut self.attention, &self.rot, caches, parts, product)?;
            mlp::forward(s, cfg, n, w, middle, y, &mut self.mlp, product)?;
            std::mem::swap(x, y);
        }
        Ok(())
    }

    /// Logits behind the last row of each piece.
    fn predict(&mut self, s: &Stream, cfg: &Config, w: &Weights, pieces: &[Piece]) -> Result<()> {
        let (rows, cols, eps) = (pieces.len(), cfg.hidden, cfg.norm_eps as f32);
        for (i, piece) in pieces.iter().enumerate() {
            copy_rows(s, cols, (&self.xs[0], piece.from + piece.n - 1), (&mut self.last, i), 1)?;
        }
        let (x, y, r) = (&self.last, &mut self.n, &mut self.r);
        rmsnorm::forward(s, rmsnorm::Dims { rows, cols }, rmsnorm::Forward { x, w: &w.norm, y, r, eps })?;
        let d = matmul::Dims { m: rows, n: cfg.vocab, k: cols };
        product(rows)(s, d, matmul::Product { a: &self.n, b: w.head(), c: &mut self.logits, put: Put::Set })
    }
}

fn product(rows: usize) -> Product {
    if rows <= FEW_ROWS { matmul::matvec } else { matmul::nt }
}
