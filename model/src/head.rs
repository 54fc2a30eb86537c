//! The end of the network: the last norm, the logits, and the loss.
//!
//! ① n   = rmsnorm(x)
//! ② nll = cross-entropy of n·Wᵀ against the targets         W: the head, or the embedding when tied
//!
//! The op of ② goes both ways at once, chunk by chunk, so that the logits of a batch never exist.

use crate::{
    config::Config,
    model::{Back, Tokens},
    weights::{Grads, Weights},
};
use esker_kernels::{
    Result,
    device::Stream,
    ops::{matmul::Put, rmsnorm, xent},
    tensor::{Arena, DType, Tensor},
};

/// What the last norm leaves, and a few rows of logits.
#[derive(Debug)]
pub(crate) struct Acts {
    /// `[tokens, C]`
    n: Tensor,
    /// `[tokens]`
    r: Tensor,
    /// `[chunk, V]`
    logits: Tensor,
    chunk: usize,
}

impl Acts {
    /// The chunk follows from the grain, never from the number of tokens: it is part of what fixes the bits.
    pub fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, grain: usize, dtype: DType) -> Acts {
        let chunk = xent::chunk_rows(cfg.vocab, grain);
        Acts {
            n: arena.tensor(dtype, [tokens, cfg.hidden]),
            r: arena.tensor(DType::F32, [tokens]),
            logits: arena.tensor(DType::F32, [chunk, cfg.vocab]),
            chunk,
        }
    }

    fn dims(&self, cfg: &Config, rows: usize) -> xent::Dims {
        xent::Dims { rows, cols: cfg.hidden, vocab: cfg.vocab, chunk: self.chunk }
    }
}

/// Loss of each token alone.
pub(crate) fn score(
    s: &Stream,
    cfg: &Config,
    tokens: usize,
    w: &Weights,
    x: &Tensor,
    a: &mut Acts,
    (targets, nll): (&Tensor, &mut Tensor),
) -> Result<()> {
    norm(s, cfg, tokens, w, x, a)?; // ①
    let d = a.dims(cfg, tokens);
    xent::score(s, d, xent::Score { n: &a.n, w: w.head(), targets, nll, logits: &mut a.logits }) // ②
}

/// Loss of each token; sets `back.dx` and adds to the gradients of the last norm and the head.
pub(crate) fn train(
    s: &Stream,
    cfg: &Config,
    t: Tokens,
    (w, g): (&Weights, &mut Grads),
    x: &Tensor,
    a: &mut Acts,
    back: &mut Back,
    (targets, nll, scale): (&Tensor, &mut Tensor, f32),
) -> Result<()> {
    norm(s, cfg, t.count(), w, x, a)?; // ①
    let (d, Back { dx, dn, .. }) = (a.dims(cfg, t.count()), back);
    let Acts { n, r, logits, .. } = a;
    let both = xent::Train { n, w: w.head(), targets, nll, dn, dw: g.head_mut(), scale, logits };
    xent::train(s, d, both, t.grain)?; // ②
    let (d, dw) = (rmsnorm::Dims { rows: t.count(), cols: cfg.hidden }, &mut g.sum.norm);
    rmsnorm::backward(s, d, rmsnorm::Backward { x, w: &w.norm, r, dy: dn, dx, dw, put: Put::Set }, t.grain) // ①
}

fn norm(s: &Stream, cfg: &Config, rows: usize, w: &Weights, x: &Tensor, a: &mut Acts) -> Result<()> {
    let (d, eps) = (rmsnorm::Dims { rows, cols: cfg.hidden }, cfg.norm_eps as f32);
    rmsnorm::forward(s, d, rmsnorm::Forward { x, w: &w.norm, y: &mut a.n, r: &mut a.r, eps })
}
