//! Causal attention of a token to those before it in its document, with grouped key heads.
//!
//! Query i of head h sees the keys j with first_i ≤ j ≤ i of key head ⌊h·K/H⌋; all other p_ij are 0.
//!
//! s_ij  = scale · Σ_d q_id k_jd                       scale = 1/√D
//! lse_i = log Σ_j exp(s_ij)
//! p_ij  = exp(s_ij − lse_i)
//! o_id  = Σ_j p_ij v_jd
//!
//! δ_i   = Σ_d do_id o_id
//! dp_ij = Σ_d do_id v_jd
//! ds_ij = p_ij · (dp_ij − δ_i) · scale
//! dq_id = Σ_j ds_ij k_jd
//! dk_jd = Σ_i ds_ij q_id,   dv_jd = Σ_i p_ij do_id    i over the queries of all H/K heads that share the key head
//!
//! Forward costs 2·T²·D flops a head (two products over half the square), backward 5·T²·D. Scores are made tile by tile
//! and never leave the caches, so memory moved is q, k, v, o and their gradients: bound by arithmetic from T of a few
//! dozen on. [`tree`] lets a query see a second run of keys, which several branches share. [`decode`] reads the cache once for a handful of queries: bound by memory.
//!
//! **Order of sums.** Tiles of keys start at fixed positions of the row. Forward goes over a query's tiles of keys in
//! order with a running maximum and sum (an online softmax); dq sums tiles of keys in order, dk and dv sum heads, and in
//! a head blocks of queries, in order. A masked pair adds an exact zero. So the bits of a token's results depend on its
//! own document and on where in the row that stands, and on nothing else: not on other documents of the row (as long
//! as they hold finite numbers), on other rows, on the number of threads, or, in forward and dq, on what follows.
//!
//! **Precision.** Scores, softmax and sums are f32. In a bf16 run the products take bf16: p and ds are rounded to bf16
//! for theirs, before ds is multiplied by scale, which the sums of dq and dk are. exp(x) is 2^(x·log₂e), by a polynomial
//! within 1.4 ulp, and zero below 2^−126.5; its argument is rounded to f32 as the scores are, so that p is exact to about
//! 1 + |x| ulp for scores of a size x.
//!
//! **Memory.** Only scratch of the pool: `cpu.rs` and `cpu/backward.rs` state their budgets.
//!
//! Source: the definition is that of Vaswani et al. 2017, arXiv:1706.03762, and Ainslie et al. 2023, arXiv:2305.13245
//! (grouped heads); tiling, online softmax, lse and δ: Dao et al. 2022, arXiv:2205.14135, and Dao 2023,
//! arXiv:2307.08691.

pub mod cases;
mod cpu;
mod gpu;
pub mod reference;

use crate::{
    Result,
    device::Stream,
    tensor::{DType, Tensor},
};

/// Largest head that the scratch of a lane holds.
pub const HEAD_DIM_MAX: usize = 512;

/// Sizes of a call: B, T, H, K, D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// B: rows, each of its own.
    pub batch: usize,
    /// T: tokens of a row; in [`decode`] the new tokens.
    pub seq: usize,
    /// H: query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// K: key and value heads.
    pub kv_heads: usize,
    /// D: size of a head, up to [`HEAD_DIM_MAX`].
    pub head_dim: usize,
}

impl Dims {
    /// G: query heads that share a key head.
    pub fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// 1/√D
    pub fn scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }
}

/// Arguments of [`forward`]. q, k, v and o have one dtype, f32 or bf16.
#[derive(Debug)]
pub struct Forward<'a> {
    /// `[B, T, H, D]`
    pub q: &'a Tensor,
    /// `[B, T, K, D]`
    pub k: &'a Tensor,
    /// `[B, T, K, D]`
    pub v: &'a Tensor,
    /// `[B, T]` u32: index within the row of the first token of a token's own document; `None`: the row is one document
    pub first: Option<&'a Tensor>,
    /// `[B, T, H, D]`, set
    pub o: &'a mut Tensor,
    /// `[B, H, T]` f32, set; kept for backward
    pub lse: &'a mut Tensor,
}

/// Arguments of [`backward`]. All but `first`, `lse` and `delta` have one dtype, f32 or bf16.
#[derive(Debug)]
pub struct Backward<'a> {
    /// `[B, T, H, D]`
    pub q: &'a Tensor,
    /// `[B, T, K, D]`
    pub k: &'a Tensor,
    /// `[B, T, K, D]`
    pub v: &'a Tensor,
    /// `[B, T]` u32, as in forward
    pub first: Option<&'a Tensor>,
    /// `[B, T, H, D]`, as forward left it
    pub o: &'a Tensor,
    /// `[B, H, T]` f32, as forward left it
    pub lse: &'a Tensor,
    /// `[B, T, H, D]`
    pub do_: &'a Tensor,
    /// `[B, H, T]` f32, scratch
    pub delta: &'a mut Tensor,
    /// `[B, T, H, D]`, set
    pub dq: &'a mut Tensor,
    /// `[B, T, K, D]`, set
    pub dk: &'a mut Tensor,
    /// `[B, T, K, D]`, set
    pub dv: &'a mut Tensor,
}

/// Arguments of [`tree`]. q, k, v and o have one dtype, f32 or bf16.
#[derive(Debug)]
pub struct Tree<'a> {
    /// `[B, T, H, D]`
    pub q: &'a Tensor,
    /// `[B, T, K, D]`
    pub k: &'a Tensor,
    /// `[B, T, K, D]`
    pub v: &'a Tensor,
    /// `[B, T]` u32: index within the row of the first token of a token's own branch
    pub first: &'a Tensor,
    /// `[B, T, 2]` u32: begin and end, within the row and before `first`, of the trunk that the branch grows from; empty
    /// where it is its own root
    pub trunk: &'a Tensor,
    /// `[B, T, H, D]`, set
    pub o: &'a mut Tensor,
}

/// Arguments of [`decode`]. All have one dtype, f32 or bf16.
#[derive(Debug)]
pub struct Decode<'a> {
    /// `[n, H, D]`
    pub q: &'a Tensor,
    /// `[capacity, K, D]`
    pub k_cache: &'a Tensor,
    /// `[capacity, K, D]`
    pub v_cache: &'a Tensor,
    /// Keys present, the n new ones included.
    pub len: usize,
    /// `[n, H, D]`, set
    pub o: &'a mut Tensor,
}

/// o and lse of every token.
pub fn forward(s: &Stream, d: Dims, a: Forward<'_>) -> Result<()> {
    check(d);
    check_first(d, a.first);
    let (queries, keys) = (d.batch * d.seq * d.heads * d.head_dim, d.batch * d.seq * d.kv_heads * d.head_dim);
    let dtype = a.q.dtype();
    for (name, t, needed) in [("q", a.q, queries), ("k", a.k, keys), ("v", a.v, keys), ("o", &*a.o, queries)] {
        check_tensor(name, t, dtype, needed);
    }
    check_tensor("lse", a.lse, DType::F32, d.batch * d.heads * d.seq);
    match s {
        Stream::Cpu(pool) => cpu::forward(pool, d, a),
        Stream::Gpu(gpu) => gpu::forward(gpu, d, a)?,
    }
    Ok(())
}

/// o of every token, where branches share a trunk: query i sees the keys j ≤ i of its own branch, first_i ≤ j, and those
/// of its trunk. Several continuations of one text need that text's tokens once.
pub fn tree(s: &Stream, d: Dims, a: Tree<'_>) -> Result<()> {
    check(d);
    check_first(d, Some(a.first));
    let (queries, keys) = (d.batch * d.seq * d.heads * d.head_dim, d.batch * d.seq * d.kv_heads * d.head_dim);
    let dtype = a.q.dtype();
    for (name, t, needed) in [("q", a.q, queries), ("k", a.k, keys), ("v", a.v, keys), ("o", &*a.o, queries)] {
        check_tensor(name, t, dtype, needed);
    }
    let tokens = d.batch * d.seq;
    assert!(a.trunk.len() >= 2 * tokens, "attention: trunk has {} elements, {} needed", a.trunk.len(), 2 * tokens);
    for (i, (&first, trunk)) in a.first.u32()[..tokens].iter().zip(a.trunk.u32().chunks_exact(2)).enumerate() {
        assert!(
            trunk[0] <= trunk[1] && trunk[1] <= first,
            "attention: token {} of a row says that its trunk is {trunk:?} before {first}",
            i % d.seq
        );
    }
    match s {
        Stream::Cpu(pool) => cpu::tree(pool, d, a),
        Stream::Gpu(gpu) => cpu::tree(gpu.host(), d, a),
    }
    Ok(())
}

/// Gradients of q, k and v.
pub fn backward(s: &Stream, d: Dims, a: Backward<'_>) -> Result<()> {
    check(d);
    check_first(d, a.first);
    let (queries, keys) = (d.batch * d.seq * d.heads * d.head_dim, d.batch * d.seq * d.kv_heads * d.head_dim);
    let dtype = a.q.dtype();
    for (name, t, needed) in [
        ("q", a.q, queries),
        ("k", a.k, keys),
        ("v", a.v, keys),
        ("o", a.o, queries),
        ("do", a.do_, queries),
        ("dq", &*a.dq, queries),
        ("dk", &*a.dk, keys),
        ("dv", &*a.dv, keys),
    ] {
        check_tensor(name, t, dtype, needed);
    }
    check_tensor("lse", a.lse, DType::F32, d.batch * d.heads * d.seq);
    check_tensor("delta", a.delta, DType::F32, d.batch * d.heads * d.seq);
    match s {
        Stream::Cpu(pool) => cpu::backward(pool, d, a),
        Stream::Gpu(gpu) => gpu::backward(gpu, d, a)?,
    }
    Ok(())
}

/// o of `d.seq` new tokens of one sequence against its cache: query j sees the keys `0..=len - n + j`.
pub fn decode(s: &Stream, d: Dims, a: Decode<'_>) -> Result<()> {
    check(d);
    assert_eq!(d.batch, 1, "attention: decode takes one sequence");
    assert!(d.seq <= a.len && a.len <= SEQ_MAX, "attention: {} new tokens among {} keys", d.seq, a.len);
    let (queries, keys) = (d.seq * d.heads * d.head_dim, a.len * d.kv_heads * d.head_dim);
    let dtype = a.q.dtype();
    for (name, t, needed) in
        [("q", a.q, queries), ("k_cache", a.k_cache, keys), ("v_cache", a.v_cache, keys), ("o", &*a.o, queries)]
    {
        check_tensor(name, t, dtype, needed);
    }
    match s {
        Stream::Cpu(pool) => cpu::decode(pool, d, a),
        Stream::Gpu(gpu) => cpu::decode(gpu.host(), d, a),
    }
    Ok(())
}

/// Most tokens of a row: positions are exact as f32.
const SEQ_MAX: usize = 1 << 24;

fn check(d: Dims) {
    assert!(d.seq <= SEQ_MAX, "attention: seq of {d:?}");
    assert!(d.kv_heads > 0 && d.heads.is_multiple_of(d.kv_heads), "attention: heads of {d:?}");
    assert!((1..=HEAD_DIM_MAX).contains(&d.head_dim), "attention: head_dim of {d:?}");
}

fn check_tensor(name: &str, t: &Tensor, dtype: DType, needed: usize) {
    assert!(matches!(dtype, DType::F32 | DType::Bf16), "attention: {dtype}");
    assert_eq!(t.dtype(), dtype, "attention: dtype of {name}");
    assert!(t.len() >= needed, "attention: {name} has {} elements, {needed} needed", t.len());
}

fn check_first(d: Dims, first: Option<&Tensor>) {
    let Some(first) = first else { return };
    let tokens = d.batch * d.seq;
    assert!(first.len() >= tokens, "attention: first has {} elements, {tokens} needed", first.len());
    for (i, &f) in first.u32()[..tokens].iter().enumerate() {
        assert!(
            f as usize <= i % d.seq,
            "attention: token {} of a row says that its document starts at {f}",
            i % d.seq
        );
    }
}
