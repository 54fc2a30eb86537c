//! Scoring many texts at once: all their tokens go through the network as the rows of one wide product.
//!
//! A [`Batch`] is a row of tokens without padding. Some open a text of their own, a *root*; a *branch* goes on from a place
//! of a root, so the choices of a question read the question once, and questions behind one few-shot prompt the prompt:
//!
//! ```text
//! root     Q u e s t i o n :  f i r s t      branches see the root up to where they leave it, then themselves;
//! branch                   └─ s e c o n d    positions count from the root's beginning
//! branch                   └─ t h i r d
//! ```
//!
//! Only the places that are asked for reach the head, some rows at a time: the logits of a batch never exist. A batch
//! costs 2 flops a weight of the blocks and token, 2 flops a weight of the head and place, and little else.

use crate::{
    attention::{self, copy_rows},
    config::Config,
    mlp,
    model::Rotation,
    weights::Weights,
};
use esker_kernels::{
    Result,
    device::Stream,
    ops::{embedding, matmul, rmsnorm, xent},
    tensor::{Arena, Class, DType, Tensor},
};
use std::ops::Range;

/// Tokens to read at once, and the places whose next token is asked for.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    first: Vec<u32>,
    trunk: Vec<u32>,
    asked: Vec<u32>,
}

/// What the network says of the token behind one place.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which of the places, in the order of [`Batch::ask`].
    pub index: usize,
    /// log Σ exp of the logits; NaN where a logit is NaN or +∞.
    pub lse: f32,
    /// The likeliest id, the lowest of equals.
    pub best: u32,
    /// `[V]`
    pub logits: &'a [f32],
}

/// Sizes of a [`Scorer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Most tokens of a batch.
    pub tokens: usize,
    /// Most tokens of a text.
    pub positions: usize,
}

/// All that reading a batch needs besides weights.
#[derive(Debug)]
pub struct Scorer {
    size: Size,
    /// For every position.
    table: Rotation,
    /// For every token of a batch.
    rot: Rotation,
    /// `[tokens]` u32
    ids: Tensor,
    /// `[tokens]` u32
    first: Tensor,
    /// `[tokens, 2]` u32
    trunk: Tensor,
    /// `[tokens, C]` f32, three: input, middle and output of a block
    xs: [Tensor; 3],
    attention: attention::Acts,
    mlp: mlp::Acts,
    head: Head,
}

/// A few rows of the head.
#[derive(Debug)]
struct Head {
    chunk: usize,
    /// `[chunk, C]` f32
    x: Tensor,
    /// `[chunk, C]`
    n: Tensor,
    /// `[chunk]`
    r: Tensor,
    /// `[chunk, V]` f32
    logits: Tensor,
    /// `[chunk]` f32
    lse: Tensor,
    /// `[chunk]` u32
    best: Tensor,
}

impl Batch {
    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Places asked for.
    pub fn places(&self) -> usize {
        self.asked.len()
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        let Batch { ids, positions, first, trunk, asked } = self;
        [ids, positions, first, trunk, asked].into_iter().for_each(Vec::clear);
    }

    /// Opens a text; returns where its tokens stand.
    pub fn root(&mut self, ids: &[u32]) -> Range<usize> {
        self.put(ids, 0, [0, 0])
    }

    /// Goes on from the first `depth` tokens of `root`; returns where the new tokens stand.
    pub fn branch(&mut self, root: &Range<usize>, depth: usize, ids: &[u32]) -> Range<usize> {
        assert!(depth <= root.len() && root.end <= self.ids.len(), "score: a branch at {depth} of {root:?}");
        self.put(ids, depth, [root.start as u32, (root.start + depth) as u32])
    }

    /// Asks for the token behind the one at `place`.
    pub fn ask(&mut self, place: usize) {
        assert!(place < self.ids.len(), "score: place {place} of {}", self.ids.len());
        self.asked.push(place as u32);
    }

    fn put(&mut self, ids: &[u32], position: usize, trunk: [u32; 2]) -> Range<usize> {
        let from = self.ids.len();
        self.ids.extend_from_slice(ids);
        for i in 0..ids.len() {
            self.positions.push((position + i) as u32);
            self.first.push(from as u32);
            self.trunk.extend(trunk);
        }
        from..self.ids.len()
    }
}

impl Scorer {
    /// Lays out a batch and its activations, with matrices of `dtype`; sets the arena's classes itself.
    pub fn layout(arena: &mut Arena, cfg: &Config, dtype: DType, size: Size) -> Scorer {
        let Size { tokens, positions } = size;
        arena.class(Class::Inputs);
        let (table, rot) = (Rotation::layout(arena, cfg, positions), Rotation::layout(arena, cfg, tokens));
        let ids = arena.tensor(DType::U32, [tokens]);
        let (first, trunk) = (arena.tensor(DType::U32, [tokens]), arena.tensor(DType::U32, [tokens, 2]));
        arena.class(Class::Scratch);
        Scorer {
            size,
            table,
            rot,
            ids,
            first,
            trunk,
            xs: [(); 3].map(|()| arena.tensor(DType::F32, [tokens, cfg.hidden])),
            attention: attention::Acts::layout(arena, cfg, tokens, dtype),
            mlp: mlp::Acts::layout(arena, cfg, tokens, dtype),
            head: Head::layout(arena, cfg, tokens, dtype),
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

    /// Reads `batch`, whose ids lie below the vocabulary, and calls `each` for every place asked for, in order.
    pub fn read(
        &mut self,
        s: &Stream,
        cfg: &Config,
        w: &Weights,
        batch: &Batch,
        mut each: impl FnMut(Asked<'_>),
    ) -> Result<()> {
        let n = batch.ids.len();
        assert!(n <= self.size.tokens, "score: {n} tokens in buffers for {}", self.size.tokens);
        s.upload_u32(&batch.ids, &mut self.ids)?;
        s.upload_u32(&batch.first, &mut self.first)?;
        s.upload_u32(&batch.trunk, &mut self.trunk)?;
        self.rot.gather(&self.table, &batch.positions);
        s.enter(|| self.blocks(s, cfg, w, n))?;
        for (i, places) in batch.asked.chunks(self.head.chunk).enumerate() {
            let Scorer { xs, head, .. } = self;
            s.enter(|| head.rank(s, cfg, w, &xs[0], places))?;
            s.synchronise()?;
            let logits = head.logits.f32().chunks_exact(cfg.vocab);
            for (j, logits) in logits.take(places.len()).enumerate() {
                let (lse, best) = (head.lse.f32()[j], head.best.u32()[j]);
                each(Asked { index: i * head.chunk + j, lse, best, logits });
            }
        }
        Ok(())
    }

    /// Embedding and all blocks; leaves the last residual stream in the first of `xs`.
    fn blocks(&mut self, s: &Stream, cfg: &Config, w: &Weights, n: usize) -> Result<()> {
        let [x, middle, y] = &mut self.xs;
        let d = embedding::Dims { rows: n, cols: cfg.hidden, vocab: cfg.vocab };
        embedding::forward(s, d, embedding::Forward { ids: &self.ids, w: &w.embed, x })?;
        for w in &w.layers {
            let seen = (&self.rot, &self.first, &self.trunk);
            attention::branches(s, cfg, n, w, x, middle, &mut self.attention, seen)?;
            mlp::forward(s, cfg, n, w, middle, y, &mut self.mlp, matmul::nt)?;
            std::mem::swap(x, y);
        }
        Ok(())
    }
}

impl Head {
    fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, dtype: DType) -> Head {
        let chunk = xent::chunk_rows(cfg.vocab, tokens);
        Head {
            chunk,
            x: arena.tensor(DType::F32, [chunk, cfg.hidden]),
            n: arena.tensor(dtype, [chunk, cfg.hidden]),
            r: arena.tensor(DType::F32, [chunk]),
            logits: arena.tensor(DType::F32, [chunk, cfg.vocab]),
            lse: arena.tensor(DType::F32, [chunk]),
            best: arena.tensor(DType::U32, [chunk]),
        }
    }

    /// Logits of the rows `places` of `x`.
    fn rank(&mut self, s: &Stream, cfg: &Config, w: &Weights, x: &Tensor, places: &[u32]) -> Result<()> {
        let (rows, cols, eps) = (places.len(), cfg.hidden, cfg.norm_eps as f32);
        for (i, &place) in places.iter().enumerate() {
            copy_rows(s, cols, (x, place as usize), (&mut self.x, i), 1)?;
        }
        let (x, y, r) = (&self.x, &mut self.n, &mut self.r);
        rmsnorm::forward(s, rmsnorm::Dims { rows, cols }, rmsnorm::Forward { x, w: &w.norm, y, r, eps })?;
        let d = xent::Dims { rows, cols, vocab: cfg.vocab, chunk: rows };
        let Head { n, logits, lse, best, .. } = self;
        xent::rank(s, d, xent::Rank { n, w: w.head(), logits, lse, best })
    }
}
