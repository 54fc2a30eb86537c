//! The second half of a block: each token by itself, through a wider layer behind a gate.
//!
//! ① n = rmsnorm(x)
//! ② g = n·Wgᵀ,  u = n·Wuᵀ
//! ③ h = silu(g)·u
//! ④ y = x + h·Wdᵀ
//!
//! x and y are the residual stream, f32; the rest has the run's dtype. The gradient of the residual stream passes ④
//! unchanged, so one tensor serves as dy and dx, and ① adds the block's share to it.
//! Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU).

use crate::{
    config::Config,
    model::{Back, Product, Tokens},
    weights::Layer,
};
use esker_kernels::{
    Result,
    device::Stream,
    ops::{matmul, matmul::Put, rmsnorm, swiglu},
    tensor::{Arena, DType, Tensor},
};

/// What forward leaves for backward.
#[derive(Debug)]
pub(crate) struct Acts {
    /// `[tokens, C]`
    n: Tensor,
    /// `[tokens]`
    r: Tensor,
    /// `[tokens, F]`
    g: Tensor,
    /// `[tokens, F]`
    u: Tensor,
    /// `[tokens, F]`
    h: Tensor,
}

impl Acts {
    pub fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, dtype: DType) -> Acts {
        let mut t = |dtype, width| arena.tensor(dtype, [tokens, width]);
        let (c, f) = (cfg.hidden, cfg.ffn);
        Acts { n: t(dtype, c), r: t(DType::F32, 1), g: t(dtype, f), u: t(dtype, f), h: t(dtype, f) }
    }

    #[cfg(debug_assertions)]
    pub fn poison(&mut self) {
        let Acts { n, r, g, u, h } = self;
        [n, r, g, u, h].into_iter().for_each(Tensor::poison);
    }
}

/// y = x + what the MLP adds, for `n` tokens.
pub(crate) fn forward(
    s: &Stream,
    cfg: &Config,
    n: usize,
    w: &Layer,
    x: &Tensor,
    y: &mut Tensor,
    a: &mut Acts,
    product: Product,
) -> Result<()> {
    widen(s, cfg, n, w, x, a, product)?; // ① ② ③
    let d = matmul::Dims { m: n, n: cfg.hidden, k: cfg.ffn };
    matmul::onto(s, d, matmul::Onto { a: &a.h, b: &w.down, x, y }, product) // ④
}

/// Lines ① to ③: all that backward needs.
pub(crate) fn widen(
    s: &Stream,
    cfg: &Config,
    n: usize,
    w: &Layer,
    x: &Tensor,
    a: &mut Acts,
    product: Product,
) -> Result<()> {
    let (c, f, eps) = (cfg.hidden, cfg.ffn, cfg.norm_eps as f32);
    let stream = rmsnorm::Dims { rows: n, cols: c };
    rmsnorm::forward(s, stream, rmsnorm::Forward { x, w: &w.mlp_norm, y: &mut a.n, r: &mut a.r, eps })?; // ①
    let Acts { n: x, g, u, h, .. } = a;
    let wide = matmul::Gated { a: x, gate: &w.gate, up: &w.up, g, u, h };
    matmul::gated(s, matmul::Dims { m: n, n: f, k: c }, wide, product) // ② ③
}

/// Adds this half's share to `back.dx`, and the gradients of its weights to `g`.
pub(crate) fn backward(
    s: &Stream,
    cfg: &Config,
    t: Tokens,
    (w, g): (&Layer, &mut Layer),
    x: &Tensor,
    a: &Acts,
    back: &mut Back,
) -> Result<()> {
    let (n, c, f) = (t.count(), cfg.hidden, cfg.ffn);
    let Back { dx, dn, wide: [dh, dg, du], .. } = back;

    let d = matmul::Dims { m: n, n: f, k: c };
    matmul::nn(s, d, matmul::Product { a: dx, b: &w.down, c: dh, put: Put::Set })?; // ④ dh = dy·Wd
    let d = matmul::Dims { m: c, n: f, k: n };
    matmul::tn(s, d, matmul::Product { a: dx, b: &a.h, c: &mut g.down, put: Put::Add }, t.grain)?; // ④ dWd += dyᵀ·h

    let d = swiglu::Dims { rows: n, cols: f };
    swiglu::backward(s, d, swiglu::Backward { g: &a.g, u: &a.u, dh, dg, du })?; // ③

    for (dy, w, dw, put) in [(&*dg, &w.gate, &mut g.gate, Put::Set), (&*du, &w.up, &mut g.up, Put::Add)] {
        let d = matmul::Dims { m: n, n: c, k: f };
        matmul::nn(s, d, matmul::Product { a: dy, b: w, c: dn, put })?; // ② dn = dg·Wg + du·Wu
        let d = matmul::Dims { m: f, n: c, k: n };
        matmul::tn(s, d, matmul::Product { a: dy, b: &a.n, c: dw, put: Put::Add }, t.grain)?; // ② dW += dyᵀ·n
    }

    let (w, dw, d) = (&w.mlp_norm, &mut g.mlp_norm, rmsnorm::Dims { rows: n, cols: c });
    rmsnorm::backward(s, d, rmsnorm::Backward { x, w, r: &a.r, dy: dn, dx, dw, put: Put::Add }, t.grain) // ①
}
