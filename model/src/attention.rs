//! The first half of a block: a token looks at those before it.
//!
//! ① n = rmsnorm(x)
//! ② q = n·Wqᵀ,  k = n·Wkᵀ,  v = n·Wvᵀ
//! ③ q, k = rmsnorm of each head of q and of k          (Qwen3 alone)
//! ④ q, k turned by their positions
//! ⑤ o = attention(q, k, v)
//! ⑥ y = x + o·Woᵀ
//!
//! x and y are the residual stream, f32; the rest has the run's dtype. Backward meets the lines from ⑥ to ①. The gradient
//! of the residual stream passes ⑥ unchanged, so one tensor serves as dy and dx, and ① adds the block's share to it.

use crate::{
    config::Config,
    model::{Back, Product, Rotation, Tokens},
    weights::Layer,
};
use esker_kernels::{
    Result,
    device::Stream,
    ops::{attention, matmul, matmul::Put, rmsnorm, rope},
    tensor::{Arena, DType, Tensor},
};

/// What forward leaves for backward.
#[derive(Debug)]
pub(crate) struct Acts {
    /// `[tokens, C]`
    n: Tensor,
    /// `[tokens]`
    r: Tensor,
    /// `[tokens, H, D]`, as attention sees it
    q: Tensor,
    /// `[tokens, K, D]`, as attention sees it
    k: Tensor,
    /// `[tokens, K, D]`
    v: Tensor,
    /// With QK-norm.
    raw: Option<Raw>,
    /// `[tokens, H, D]`
    o: Tensor,
    /// `[B, H, T]`
    lse: Tensor,
}

/// Queries and keys before their norm.
#[derive(Debug)]
struct Raw {
    /// `[tokens, H, D]`
    q: Tensor,
    /// `[tokens, K, D]`
    k: Tensor,
    /// `[tokens, H]`
    rq: Tensor,
    /// `[tokens, K]`
    rk: Tensor,
}

/// Keys and values of tokens already seen.
#[derive(Debug)]
pub(crate) struct Cache {
    /// `[capacity, K, D]`
    k: Tensor,
    /// `[capacity, K, D]`
    v: Tensor,
}

impl Acts {
    pub fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, dtype: DType) -> Acts {
        let mut t = |dtype, width| arena.tensor(dtype, [tokens, width]);
        let (q, kv) = (cfg.q_width(), cfg.kv_width());
        Acts {
            n: t(dtype, cfg.hidden),
            r: t(DType::F32, 1),
            q: t(dtype, q),
            k: t(dtype, kv),
            v: t(dtype, kv),
            raw: cfg.family.qk_norm().then(|| Raw {
                q: t(dtype, q),
                k: t(dtype, kv),
                rq: t(DType::F32, cfg.heads),
                rk: t(DType::F32, cfg.kv_heads),
            }),
            o: t(dtype, q),
            lse: t(DType::F32, cfg.heads),
        }
    }

    #[cfg(debug_assertions)]
    pub fn poison(&mut self) {
        let Acts { n, r, q, k, v, raw, o, lse } = self;
        [n, r, q, k, v, o, lse].into_iter().for_each(Tensor::poison);
        if let Some(Raw { q, k, rq, rk }) = raw {
            [q, k, rq, rk].into_iter().for_each(Tensor::poison);
        }
    }
}

impl Cache {
    pub fn layout(arena: &mut Arena, cfg: &Config, capacity: usize, dtype: DType) -> Cache {
        let mut t = || arena.tensor(dtype, [capacity, cfg.kv_heads, cfg.head_dim]);
        Cache { k: t(), v: t() }
    }
}

/// y = x + what attention adds.
pub(crate) fn forward(
    s: &Stream,
    cfg: &Config,
    t: Tokens,
    w: &Layer,
    x: &Tensor,
    y: &mut Tensor,
    a: &mut Acts,
    (rot, first): (&Rotation, Option<&Tensor>),
) -> Result<()> {
    let n = t.count();
    project(s, cfg, n, w, x, a, matmul::nt)?; // ① ② ③
    turn(s, cfg, (n, t.seq), a, rot, 0)?; // ④
    attention::forward(
        s,
        dims(cfg, t),
        attention::Forward { q: &a.q, k: &a.k, v: &a.v, first, o: &mut a.o, lse: &mut a.lse },
    )?; // ⑤
    merge(s, cfg, n, w, x, y, a, matmul::nt) // ⑥
}

/// The same for `n` new tokens of one sequence, behind the `at` whose keys and values are in the cache.
pub(crate) fn extend(
    s: &Stream,
    cfg: &Config,
    (n, at): (usize, usize),
    w: &Layer,
    x: &Tensor,
    y: &mut Tensor,
    a: &mut Acts,
    (rot, cache): (&Rotation, &mut Cache),
    product: Product,
) -> Result<()> {
    project(s, cfg, n, w, x, a, product)?; // ① ② ③
    turn(s, cfg, (n, n), a, rot, at)?; // ④
    copy_rows(s, cfg.kv_width(), (&a.k, 0), (&mut cache.k, at), n)?;
    copy_rows(s, cfg.kv_width(), (&a.v, 0), (&mut cache.v, at), n)?;
    let seen = attention::Decode { q: &a.q, k_cache: &cache.k, v_cache: &cache.v, len: at + n, o: &mut a.o };
    attention::decode(s, dims(cfg, Tokens { rows: 1, seq: n, grain: n }), seen)?; // ⑤
    merge(s, cfg, n, w, x, y, a, product) // ⑥
}

/// y = x + what attention adds, for `n` tokens of branches that share trunks: `rot` has a row for each token.
pub(crate) fn branches(
    s: &Stream,
    cfg: &Config,
    n: usize,
    w: &Layer,
    x: &Tensor,
    y: &mut Tensor,
    a: &mut Acts,
    (rot, first, trunk): (&Rotation, &Tensor, &Tensor),
) -> Result<()> {
    project(s, cfg, n, w, x, a, matmul::nt)?; // ① ② ③
    turn(s, cfg, (n, n), a, rot, 0)?; // ④
    let d = dims(cfg, Tokens { rows: 1, seq: n, grain: n });
    attention::tree(s, d, attention::Tree { q: &a.q, k: &a.k, v: &a.v, first, trunk, o: &mut a.o })?; // ⑤
    merge(s, cfg, n, w, x, y, a, matmul::nt) // ⑥
}

/// The same for new tokens of several sequences, each behind what the cache of its slot holds: `rot` has a row for each
/// token.
pub(crate) fn extend_each(
    s: &Stream,
    cfg: &Config,
    n: usize,
    w: &Layer,
    x: &Tensor,
    y: &mut Tensor,
    a: &mut Acts,
    rot: &Rotation,
    caches: &mut [Cache],
    (parts, own): (impl Iterator<Item = (usize, Piece)>, &mut Own),
    product: Product,
) -> Result<()> {
    project(s, cfg, n, w, x, a, product)?; // ① ② ③
    turn(s, cfg, (n, n), a, rot, 0)?; // ④
    for (slot, Piece { from, n, at }) in parts {
        let (q, kv, cache) = (cfg.q_width(), cfg.kv_width(), &mut caches[slot]);
        copy_rows(s, kv, (&a.k, from), (&mut cache.k, at), n)?;
        copy_rows(s, kv, (&a.v, from), (&mut cache.v, at), n)?;
        copy_rows(s, q, (&a.q, from), (&mut own.q, 0), n)?;
        let seen = attention::Decode { q: &own.q, k_cache: &cache.k, v_cache: &cache.v, len: at + n, o: &mut own.o };
        attention::decode(s, dims(cfg, Tokens { rows: 1, seq: n, grain: n }), seen)?; // ⑤
        copy_rows(s, q, (&own.o, 0), (&mut a.o, from), n)?;
    }
    merge(s, cfg, n, w, x, y, a, product) // ⑥
}

/// New tokens of one sequence among those of several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Row of its first token.
    pub from: usize,
    /// How many.
    pub n: usize,
    /// Tokens of its sequence before them.
    pub at: usize,
}

/// Queries and results of one sequence at a time.
#[derive(Debug)]
pub(crate) struct Own {
    /// `[tokens, H, D]`
    q: Tensor,
    /// `[tokens, H, D]`
    o: Tensor,
}

impl Own {
    pub fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, dtype: DType) -> Own {
        let mut t = || arena.tensor(dtype, [tokens, cfg.q_width()]);
        Own { q: t(), o: t() }
    }
}

/// Copies `n` rows of `width` elements, from and to a row each.
pub(crate) fn copy_rows(
    s: &Stream,
    width: usize,
    from: (&Tensor, usize),
    to: (&mut Tensor, usize),
    n: usize,
) -> Result<()> {
    s.copy_part((from.0, from.1 * width), (to.0, to.1 * width), n * width)
}

fn project(s: &Stream, cfg: &Config, n: usize, w: &Layer, x: &Tensor, a: &mut Acts, product: Product) -> Result<()> {
    let (c, eps) = (cfg.hidden, cfg.norm_eps as f32);
    let stream = rmsnorm::Dims { rows: n, cols: c };
    rmsnorm::forward(s, stream, rmsnorm::Forward { x, w: &w.attn_norm, y: &mut a.n, r: &mut a.r, eps })?; // ①
    let (q, k) = match &mut a.raw {
        None => (&mut a.q, &mut a.k),
        Some(raw) => (&mut raw.q, &mut raw.k),
    };
    for (w, c_, width) in [(&w.wq, q, cfg.q_width()), (&w.wk, k, cfg.kv_width()), (&w.wv, &mut a.v, cfg.kv_width())] {
        let d = matmul::Dims { m: n, n: width, k: c };
        product(s, d, matmul::Product { a: &a.n, b: w, c: c_, put: Put::Set })?; // ②
    }
    if let (Some(raw), Some(wq), Some(wk)) = (&mut a.raw, &w.q_norm, &w.k_norm) {
        let heads = |heads| rmsnorm::Dims { rows: n * heads, cols: cfg.head_dim };
        let q = rmsnorm::Forward { x: &raw.q, w: wq, y: &mut a.q, r: &mut raw.rq, eps };
        rmsnorm::forward(s, heads(cfg.heads), q)?; // ③
        let k = rmsnorm::Forward { x: &raw.k, w: wk, y: &mut a.k, r: &mut raw.rk, eps };
        rmsnorm::forward(s, heads(cfg.kv_heads), k)?; // ③
    }
    Ok(())
}

fn turn(s: &Stream, cfg: &Config, (n, seq): (usize, usize), a: &mut Acts, rot: &Rotation, start: usize) -> Result<()> {
    for (x, heads) in [(&mut a.q, cfg.heads), (&mut a.k, cfg.kv_heads)] {
        let d = rope::Dims { rows: n, seq, heads, head_dim: cfg.head_dim };
        rope::forward(s, d, rope::Rotate { x, cos: &rot.cos, sin: &rot.sin, start })?;
    }
    Ok(())
}

fn merge(
    s: &Stream,
    cfg: &Config,
    n: usize,
    w: &Layer,
    x: &Tensor,
    y: &mut Tensor,
    a: &Acts,
    product: Product,
) -> Result<()> {
    let d = matmul::Dims { m: n, n: cfg.hidden, k: cfg.q_width() };
    matmul::onto(s, d, matmul::Onto { a: &a.o, b: &w.wo, x, y }, product)
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
    (rot, first): (&Rotation, Option<&Tensor>),
) -> Result<()> {
    let (n, c, q_width, kv_width) = (t.count(), cfg.hidden, cfg.q_width(), cfg.kv_width());
    // The wide buffers: do, and then dq before its norm; dq; dk before its norm.
    let Back { dx, dn, wide: [do_, dq, dk_raw], narrow: [dk, dv], delta } = back;

    let d = matmul::Dims { m: n, n: q_width, k: c };
    matmul::nn(s, d, matmul::Product { a: dx, b: &w.wo, c: do_, put: Put::Set })?; // ⑥ do = dy·Wo
    let d = matmul::Dims { m: c, n: q_width, k: n };
    matmul::tn(s, d, matmul::Product { a: dx, b: &a.o, c: &mut g.wo, put: Put::Add }, t.grain)?; // ⑥ dWo += dyᵀ·o

    let (q, k, v, o, lse) = (&a.q, &a.k, &a.v, &a.o, &a.lse);
    let grads = attention::Backward { q, k, v, first, o, lse, do_, delta, dq, dk, dv };
    attention::backward(s, dims(cfg, t), grads)?; // ⑤

    for (x, heads) in [(&mut *dq, cfg.heads), (&mut *dk, cfg.kv_heads)] {
        let d = rope::Dims { rows: n, seq: t.seq, heads, head_dim: cfg.head_dim };
        rope::backward(s, d, rope::Rotate { x, cos: &rot.cos, sin: &rot.sin, start: 0 })?; // ④
    }

    let (dq, dk) = if let Some(raw) = &a.raw {
        let [wq, wk] = [&w.q_norm, &w.k_norm].map(|w| w.as_ref().expect("attention: weights of the QK-norm"));
        let [gq, gk] = [&mut g.q_norm, &mut g.k_norm].map(|g| g.as_mut().expect("attention: gradients of the QK-norm"));
        for (x, w, r, dy, dx, dw, heads) in [
            (&raw.q, wq, &raw.rq, &*dq, &mut *do_, gq, cfg.heads),
            (&raw.k, wk, &raw.rk, &*dk, &mut *dk_raw, gk, cfg.kv_heads),
        ] {
            let d = rmsnorm::Dims { rows: n * heads, cols: cfg.head_dim };
            rmsnorm::backward(s, d, rmsnorm::Backward { x, w, r, dy, dx, dw, put: Put::Set }, t.grain * heads)?; // ③
        }
        (&*do_, &*dk_raw)
    } else {
        (&*dq, &*dk)
    };

    let shares = [
        (dq, &w.wq, &mut g.wq, q_width, Put::Set),
        (dk, &w.wk, &mut g.wk, kv_width, Put::Add),
        (dv, &w.wv, &mut g.wv, kv_width, Put::Add),
    ];
    for (dy, w, dw, width, put) in shares {
        let d = matmul::Dims { m: n, n: c, k: width };
        matmul::nn(s, d, matmul::Product { a: dy, b: w, c: dn, put })?; // ② dn = dq·Wq + dk·Wk + dv·Wv
        let d = matmul::Dims { m: width, n: c, k: n };
        matmul::tn(s, d, matmul::Product { a: dy, b: &a.n, c: dw, put: Put::Add }, t.grain)?; // ② dW += dyᵀ·n
    }

    let (w, dw, d) = (&w.attn_norm, &mut g.attn_norm, rmsnorm::Dims { rows: n, cols: c });
    rmsnorm::backward(s, d, rmsnorm::Backward { x, w, r: &a.r, dy: dn, dx, dw, put: Put::Add }, t.grain) // ①
}

fn dims(cfg: &Config, t: Tokens) -> attention::Dims {
    attention::Dims { batch: t.rows, seq: t.seq, heads: cfg.heads, kv_heads: cfg.kv_heads, head_dim: cfg.head_dim }
}
