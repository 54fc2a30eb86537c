//! Generation: one sequence, token by token, with the keys and values of what it has seen.
//!
//! The same blocks as in training ([`crate::model`]), with line ⑤ of attention reading a cache. A prompt goes through in
//! pieces, as products of many rows; then each token is a product of one row with every weight, bound by reading them.

use crate::{
    attention,
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

/// One sequence under way.
#[derive(Debug)]
pub struct Decoder {
    len: usize,
    capacity: usize,
    rot: Rotation,
    caches: Vec<attention::Cache>,
    /// `[piece]` u32
    ids: Tensor,
    /// `[piece, C]` f32, three: input, middle and output of a block
    xs: [Tensor; 3],
    attention: attention::Acts,
    mlp: mlp::Acts,
    /// `[1, C]` f32: the residual stream of the last token
    last: Tensor,
    /// `[1, C]`
    n: Tensor,
    /// `[1]`
    r: Tensor,
    /// `[V]` f32
    logits: Tensor,
}

impl Decoder {
    /// Lays out a cache for `capacity` tokens, and what `prefill_rows` tokens at a time need; sets the arena's classes
    /// itself. `dtype` is that of the matrices.
    pub fn layout(arena: &mut Arena, cfg: &Config, dtype: DType, capacity: usize, prefill_rows: usize) -> Decoder {
        let (c, rows) = (cfg.hidden, prefill_rows.max(1));
        arena.class(Class::Inputs);
        let (rot, ids) = (Rotation::layout(arena, cfg, capacity), arena.tensor(DType::U32, [rows]));
        arena.class(Class::Cache);
        let caches = (0..cfg.layers).map(|_| attention::Cache::layout(arena, cfg, capacity, dtype)).collect();
        arena.class(Class::Scratch);
        Decoder {
            len: 0,
            capacity,
            rot,
            caches,
            ids,
            xs: [(); 3].map(|()| arena.tensor(DType::F32, [rows, c])),
            attention: attention::Acts::layout(arena, cfg, rows, dtype),
            mlp: mlp::Acts::layout(arena, cfg, rows, dtype),
            last: arena.tensor(DType::F32, [1, c]),
            n: arena.tensor(dtype, [1, c]),
            r: arena.tensor(DType::F32, [1]),
            logits: arena.tensor(DType::F32, [cfg.vocab]),
        }
    }

    /// Fills the tables; once, after they are placed.
    pub fn ready(&mut self, s: &Stream, cfg: &Config) -> Result<()> {
        self.rot.fill(s, cfg)
    }

    /// Tokens seen.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tokens that still fit.
    pub fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Forgets the sequence.
    pub fn reset(&mut self) {
        self.len = 0;
    }

    /// Reads `tokens` behind what was seen; returns the logits of the token that follows them.
    pub fn prefill(&mut self, s: &Stream, cfg: &Config, w: &Weights, tokens: &[u32]) -> Result<&[f32]> {
        assert!(
            !tokens.is_empty() && tokens.len() <= self.room(),
            "decoder: {} tokens, room for {}",
            tokens.len(),
            self.room()
        );
        s.enter(|| {
            for piece in tokens.chunks(self.ids.len()) {
                self.extend(s, cfg, w, piece)?;
            }
            self.predict(s, cfg, w, (tokens.len() - 1) % self.ids.len())
        })?;
        Ok(self.logits.f32())
    }

    /// Reads one token; returns the logits of the next.
    pub fn step(&mut self, s: &Stream, cfg: &Config, w: &Weights, token: u32) -> Result<&[f32]> {
        self.prefill(s, cfg, w, &[token])
    }

    /// Takes a piece through all blocks.
    fn extend(&mut self, s: &Stream, cfg: &Config, w: &Weights, piece: &[u32]) -> Result<()> {
        let (n, at) = (piece.len(), self.len);
        let product: Product = if n <= FEW_ROWS { matmul::matvec } else { matmul::nt };
        let [x, middle, y] = &mut self.xs;
        s.upload_u32(piece, &mut self.ids)?;
        let d = embedding::Dims { rows: n, cols: cfg.hidden, vocab: cfg.vocab };
        embedding::forward(s, d, embedding::Forward { ids: &self.ids, w: &w.embed, x })?;
        for (w, cache) in w.layers.iter().zip(&mut self.caches) {
            attention::extend(s, cfg, (n, at), w, x, middle, &mut self.attention, (&self.rot, cache), product)?;
            mlp::forward(s, cfg, n, w, middle, y, &mut self.mlp, product)?;
            std::mem::swap(x, y);
        }
        self.len += n;
        Ok(())
    }

    /// Logits after row `row` of the last piece.
    fn predict(&mut self, s: &Stream, cfg: &Config, w: &Weights, row: usize) -> Result<()> {
        let (c, eps) = (cfg.hidden, cfg.norm_eps as f32);
        s.copy_part((&self.xs[0], row * c), (&mut self.last, 0), c)?;
        let (d, x) = (rmsnorm::Dims { rows: 1, cols: c }, &self.last);
        rmsnorm::forward(s, d, rmsnorm::Forward { x, w: &w.norm, y: &mut self.n, r: &mut self.r, eps })?;
        let d = matmul::Dims { m: 1, n: cfg.vocab, k: c };
        matmul::matvec(s, d, matmul::Product { a: &self.n, b: w.head(), c: &mut self.logits, put: Put::Set })
    }
}
