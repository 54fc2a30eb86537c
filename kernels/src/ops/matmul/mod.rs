//! Matrix products: the forms a training step needs.
//!
//! nt: c_ij = Σ_k a_ik · b_jk      forward            y  = x·Wᵀ
//! nn: c_ij = Σ_k a_ik · b_kj      gradient of inputs  dx = dy·W
//! tn: c_ij = Σ_k a_ki · b_kj      gradient of weights dW += dyᵀ·x, k runs over tokens
//!
//! i < m, j < n, k < K; all row-major. Costs 2·m·n·K flops; bound by arithmetic once m, n and K pass a hundred or so.
//! [`matvec()`] is nt for few rows, as in decoding: it reads b once and is bound by memory.
//!
//! **Precision.** A product of two f32 tensors multiplies and adds in f32. As soon as one input is bf16 it is a bf16
//! product: an f32 input is rounded to bf16 (to nearest, ties to even) on its way, products are exact and sums f32.
//! Where the CPU has `VDPBF16PS`, that instruction does both steps of a pair of k; it takes denormal inputs for zero
//! and flushes denormal sums, so results below 1.2e-38 are zero there. Elsewhere bf16 is widened to f32, exactly.
//! Nothing is skipped: 0·NaN is NaN.
//!
//! **Order of sums.** k is cut into blocks of equal length, at most the `block` of the table in `tile.rs`; in a block
//! one accumulator per element takes k in order, from zero; blocks are added to c in order. So an element's value
//! depends on its row of a, its column of b, K and the grain alone: not on m, n, the number of threads or where in a
//! tile it falls. tn starts its blocks anew at each *grain* of tokens: a call over three grains gives the bits of three
//! calls over one.
//!
//! Source of the blocking: Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".

pub mod cases;
pub(crate) mod cpu;
mod cut;
pub(crate) mod gpu;
mod matvec;
pub mod reference;
pub(crate) mod tile;

use super::swiglu;
use crate::{
    Result,
    device::Stream,
    simd,
    tensor::{DType, Tensor},
};
use tile::{In, Out};

/// Sizes of a product: c is `[m, n]`, k is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Rows of c.
    pub m: usize,
    /// Columns of c.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// What happens to what c held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Put {
    /// c = the product.
    Set,
    /// c += the product; c must be f32.
    Add,
}

/// Arguments of every form; see each for the shapes. An input is f32 or bf16; so is c.
#[derive(Debug)]
pub struct Product<'a> {
    /// Left operand.
    pub a: &'a Tensor,
    /// Right operand.
    pub b: &'a Tensor,
    /// `[m, n]`
    pub c: &'a mut Tensor,
    /// Whether c is overwritten or added to.
    pub put: Put,
}

/// c = a·bᵀ: a is `[m, k]`, b is `[n, k]`.
pub fn nt(s: &Stream, d: Dims, p: Product<'_>) -> Result<()> {
    check("nt", d, &p);
    match s {
        Stream::Cpu(pool) => cpu::nt(pool, d, input(p.a), input(p.b), output(p.c), p.put),
        Stream::Gpu(gpu) => gpu::product(gpu, gpu::Form::Nt, d, p, 1)?,
    }
    Ok(())
}

/// c = a·b: a is `[m, k]`, b is `[k, n]`.
pub fn nn(s: &Stream, d: Dims, p: Product<'_>) -> Result<()> {
    check("nn", d, &p);
    match s {
        Stream::Cpu(pool) => cpu::nn(pool, d, input(p.a), input(p.b), output(p.c), p.put),
        Stream::Gpu(gpu) => gpu::product(gpu, gpu::Form::Nn, d, p, 1)?,
    }
    Ok(())
}

/// c (+)= aᵀ·b: a is `[k, m]`, b is `[k, n]`, c is f32. The sum over k goes `grain` rows at a time.
pub fn tn(s: &Stream, d: Dims, p: Product<'_>, grain: usize) -> Result<()> {
    check("tn", d, &p);
    assert_eq!(p.c.dtype(), DType::F32, "matmul tn: c");
    match s {
        Stream::Cpu(pool) => cpu::tn(pool, d, input(p.a), input(p.b), output(p.c), p.put, grain),
        Stream::Gpu(gpu) => gpu::product(gpu, gpu::Form::Tn, d, p, grain)?,
    }
    Ok(())
}

/// c = a·bᵀ for few rows: a is `[m, k]`, b is `[n, k]`. Not the same bits as [`nt`]; a row's bits do not depend on m.
pub fn matvec(s: &Stream, d: Dims, p: Product<'_>) -> Result<()> {
    check("matvec", d, &p);
    match s {
        Stream::Cpu(pool) => matvec::nt(pool, simd::level(), d, input(p.a), input(p.b), output(p.c), p.put),
        Stream::Gpu(gpu) => gpu::product(gpu, gpu::Form::Nt, d, p, 1)?,
    }
    Ok(())
}

/// Arguments of [`gated`].
#[derive(Debug)]
pub struct Gated<'a> {
    /// `[m, k]`
    pub a: &'a Tensor,
    /// `[n, k]`
    pub gate: &'a Tensor,
    /// `[n, k]`
    pub up: &'a Tensor,
    /// `[m, n]`, set to a·gateᵀ
    pub g: &'a mut Tensor,
    /// `[m, n]`, set to a·upᵀ
    pub u: &'a mut Tensor,
    /// `[m, n]`, set to silu(g)·u
    pub h: &'a mut Tensor,
}

/// [`nt`] or [`matvec()`].
pub type ByRows = fn(&Stream, Dims, Product<'_>) -> Result<()>;

/// The wide half of an MLP: two products and [`swiglu::forward`] of what they leave. On a device's tensor cores it is one
/// pass, with the bits of three; elsewhere `product` says which form the two take.
pub fn gated(s: &Stream, d: Dims, p: Gated<'_>, product: ByRows) -> Result<()> {
    let Gated { a, gate, up, g, u, h } = p;
    check("gated", d, &Product { a, b: gate, c: &mut *g, put: Put::Set });
    check("gated", d, &Product { a, b: up, c: &mut *u, put: Put::Set });
    assert!(h.len() >= d.m * d.n, "matmul gated: h has {} elements, {d:?}", h.len());
    if let Stream::Gpu(device) = s
        && gpu::takes_gated(d, [a, gate, up, g, u, h])
    {
        return gpu::gated(device, d, Gated { a, gate, up, g, u, h });
    }
    product(s, d, Product { a, b: gate, c: &mut *g, put: Put::Set })?;
    product(s, d, Product { a, b: up, c: &mut *u, put: Put::Set })?;
    swiglu::forward(s, swiglu::Dims { rows: d.m, cols: d.n }, swiglu::Forward { g, u, h })
}

/// Arguments of [`onto`].
#[derive(Debug)]
pub struct Onto<'a> {
    /// `[m, k]`
    pub a: &'a Tensor,
    /// `[n, k]`
    pub b: &'a Tensor,
    /// `[m, n]` f32
    pub x: &'a Tensor,
    /// `[m, n]` f32, set to x + a·bᵀ
    pub y: &'a mut Tensor,
}

/// A product that joins the residual stream. On a device it is one pass, with the bits of a copy and a product that adds;
/// elsewhere it is these two, and `product` says which form the second takes.
pub fn onto(s: &Stream, d: Dims, p: Onto<'_>, product: ByRows) -> Result<()> {
    let Onto { a, b, x, y } = p;
    check("onto", d, &Product { a, b, c: &mut *y, put: Put::Add });
    assert!(x.len() >= d.m * d.n && x.dtype() == DType::F32, "matmul onto: x has {} elements, {d:?}", x.len());
    if let Stream::Gpu(device) = s {
        return gpu::onto(device, d, Onto { a, b, x, y });
    }
    s.copy(x, y, d.m * d.n)?;
    product(s, d, Product { a, b, c: y, put: Put::Add })
}

fn check(form: &str, d: Dims, p: &Product<'_>) {
    assert!(p.a.len() >= d.m * d.k, "matmul {form}: a has {} elements, {d:?}", p.a.len());
    assert!(p.b.len() >= d.n * d.k, "matmul {form}: b has {} elements, {d:?}", p.b.len());
    assert!(p.c.len() >= d.m * d.n, "matmul {form}: c has {} elements, {d:?}", p.c.len());
    assert!(p.put == Put::Set || p.c.dtype() == DType::F32, "matmul {form}: only an f32 c is added to");
}

fn input(t: &Tensor) -> In<'_> {
    match t.dtype() {
        DType::Bf16 => In::Bf16(t.bf16()),
        _ => In::F32(t.f32()),
    }
}

fn output(t: &mut Tensor) -> Out<'_> {
    match t.dtype() {
        DType::Bf16 => Out::Bf16(t.bf16_mut()),
        _ => Out::F32(t.f32_mut()),
    }
}
