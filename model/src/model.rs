//! The whole network, forward and backward: the only loops over blocks.
//!
//! x₀ = rows of the embedding;  x_{l+1} = mlp(attention(x_l));  loss = head(x_L)
//!
//! [`train_micro`] takes some rows of a step through the network and back and adds to the gradients; a step calls it
//! until all its rows are through. It never allocates: [`Buffers`] holds all that lives in between. Every sum over tokens
//! goes grain by grain (`grain_rows` sequences), in order, so how many rows one call takes changes no bit of a gradient,
//! and neither does [`Recompute::Block`], which keeps only the input of each block and runs its forward again.

use crate::{
    attention,
    config::Config,
    head, mlp,
    weights::{Grads, Layer, Weights},
};
use esker_kernels::{
    Result,
    device::Stream,
    ops::{embedding, matmul, rope, xent},
    tensor::{Arena, Class, DType, Tensor},
};
use serde::{Deserialize, Serialize};

/// The target of a token that is not counted.
pub const IGNORE: u32 = xent::IGNORE;

/// Which activations of a block are made again in backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// None: every block keeps what its backward needs.
    #[default]
    None,
    /// All but the block's input: about a third more work, and the activations of one block instead of all.
    Block,
}

/// Sizes of [`Buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Most sequences in one call.
    pub micro_rows: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Sequences whose gradients are summed together.
    pub grain_rows: usize,
    /// Of activations and matrices: f32 or bf16.
    pub dtype: DType,
    /// Whether attention stays inside the documents that [`Buffers::first`] marks.
    pub documents: bool,
    /// How to train; `None`: only [`score`].
    pub backward: Option<Recompute>,
}

/// All that a call needs besides weights and gradients.
#[derive(Debug)]
pub struct Buffers {
    /// `[micro_rows, seq]` u32, each below the vocabulary
    pub inputs: Tensor,
    /// `[micro_rows, seq]` u32, each below the vocabulary or [`IGNORE`]
    pub targets: Tensor,
    /// `[micro_rows, seq]` u32, with `documents`: where in its row the document of a token begins
    pub first: Option<Tensor>,
    /// `[micro_rows, seq]` f32, set: loss of each target in nats, 0 where it is ignored
    pub nll: Tensor,
    shape: Shape,
    rot: Rotation,
    /// Inputs of the blocks and of the head: all of them for training, else two in turn. `[tokens, C]` f32
    xs: Vec<Tensor>,
    /// One a block, or one for all.
    blocks: Vec<Acts>,
    head: head::Acts,
    back: Option<Back>,
}

/// What a block's forward leaves for its backward.
#[derive(Debug)]
struct Acts {
    attention: attention::Acts,
    /// `[tokens, C]` f32: the residual stream between the halves
    middle: Tensor,
    mlp: mlp::Acts,
}

/// Tables of the rotation, `[positions, D/2]` f32.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Gradients of activations, which all blocks use in turn.
#[derive(Debug)]
pub(crate) struct Back {
    /// `[tokens, C]` f32: of the residual stream
    pub dx: Tensor,
    /// `[tokens, C]` f32: of a norm's output
    pub dn: Tensor,
    /// `[tokens, max(F, H·D)]`, as a half of a block needs them
    pub wide: [Tensor; 3],
    /// `[tokens, K·D]`
    pub narrow: [Tensor; 2],
    /// `[B, H, T]` f32
    pub delta: Tensor,
}

/// The tokens of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    pub rows: usize,
    pub seq: usize,
    /// In tokens.
    pub grain: usize,
}

impl Tokens {
    pub fn count(self) -> usize {
        self.rows * self.seq
    }
}

/// A product with transposed weights: for many rows or for few.
pub(crate) type Product = fn(&Stream, matmul::Dims, matmul::Product<'_>) -> Result<()>;

impl Buffers {
    /// Lays out activations, scratch and inputs; sets the arena's classes itself.
    pub fn layout(arena: &mut Arena, cfg: &Config, shape: Shape) -> Buffers {
        let Shape { micro_rows, seq, grain_rows, dtype, documents, backward } = shape;
        assert!(micro_rows > 0 && seq > 0 && grain_rows > 0, "buffers: {shape:?}");
        assert!(backward.is_none() || micro_rows.is_multiple_of(grain_rows), "buffers: {shape:?}");
        let tokens = micro_rows * seq;

        arena.class(Class::Inputs);
        let mut ids = || arena.tensor(DType::U32, [micro_rows, seq]);
        let (inputs, targets, first) = (ids(), ids(), documents.then(&mut ids));
        let rot = Rotation::layout(arena, cfg, seq);

        arena.class(Class::Activations);
        let nll = arena.tensor(DType::F32, [micro_rows, seq]);
        let xs = if backward.is_some() { cfg.layers + 1 } else { 2 };
        let xs = (0..xs).map(|_| arena.tensor(DType::F32, [tokens, cfg.hidden])).collect();
        let blocks = if backward == Some(Recompute::None) {
            (0..cfg.layers).map(|_| Acts::layout(arena, cfg, tokens, dtype)).collect()
        } else {
            arena.class(Class::Scratch);
            vec![Acts::layout(arena, cfg, tokens, dtype)]
        };
        arena.class(Class::Scratch);
        let head = head::Acts::layout(arena, cfg, tokens, grain_rows * seq, dtype);
        let back = backward.map(|_| Back::layout(arena, cfg, tokens, dtype));
        Buffers { inputs, targets, first, nll, shape, rot, xs, blocks, head, back }
    }

    /// Fills the tables; once, after they are placed.
    pub fn ready(&mut self, s: &Stream, cfg: &Config) -> Result<()> {
        self.rot.fill(s, cfg)
    }

    /// The sizes it was laid out with.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn tokens(&self, rows: usize) -> Tokens {
        let Shape { micro_rows, seq, grain_rows, .. } = self.shape;
        assert!(rows <= micro_rows, "model: {rows} rows in buffers for {micro_rows}");
        Tokens { rows, seq, grain: grain_rows * seq }
    }
}

impl Acts {
    fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, dtype: DType) -> Acts {
        Acts {
            attention: attention::Acts::layout(arena, cfg, tokens, dtype),
            middle: arena.tensor(DType::F32, [tokens, cfg.hidden]),
            mlp: mlp::Acts::layout(arena, cfg, tokens, dtype),
        }
    }
}

impl Rotation {
    pub fn layout(arena: &mut Arena, cfg: &Config, positions: usize) -> Rotation {
        let mut t = || arena.tensor(DType::F32, [positions, cfg.head_dim / 2]);
        Rotation { cos: t(), sin: t() }
    }

    pub fn fill(&mut self, s: &Stream, cfg: &Config) -> Result<()> {
        let positions = self.cos.shape()[0];
        let Rotation { cos, sin } = self;
        rope::table(s, &cfg.rope.op(), positions, cfg.head_dim, rope::Table { cos, sin })
    }

    /// Row i becomes that of `positions[i]` in `table`: tokens that stand anywhere turn as rows of one sequence.
    pub fn gather(&mut self, table: &Rotation, positions: &[u32]) {
        let half = table.cos.shape()[1];
        for (from, to) in [(&table.cos, &mut self.cos), (&table.sin, &mut self.sin)] {
            let (from, to) = (from.f32(), to.f32_mut());
            for (to, &p) in to.chunks_exact_mut(half).zip(positions) {
                to.copy_from_slice(&from[p as usize * half..][..half]);
            }
        }
    }
}

impl Back {
    fn layout(arena: &mut Arena, cfg: &Config, tokens: usize, dtype: DType) -> Back {
        let mut t = |dtype, width| arena.tensor(dtype, [tokens, width]);
        let wide = cfg.ffn.max(cfg.q_width());
        Back {
            dx: t(DType::F32, cfg.hidden),
            dn: t(DType::F32, cfg.hidden),
            wide: [(); 3].map(|()| t(dtype, wide)),
            narrow: [(); 2].map(|()| t(dtype, cfg.kv_width())),
            delta: t(DType::F32, cfg.heads),
        }
    }
}

/// Takes the first `rows` rows of `b.inputs` (a multiple of the grain) through the network and back. Adds to `g` the
/// gradients of Σ loss · `scale`, `scale` being one over the targets of the whole step; sets the head of `b.nll`.
pub fn train_micro(
    s: &Stream,
    cfg: &Config,
    w: &Weights,
    g: &mut Grads,
    b: &mut Buffers,
    rows: usize,
    scale: f32,
) -> Result<()> {
    let t = b.tokens(rows);
    assert!(rows.is_multiple_of(b.shape.grain_rows), "model: {rows} rows in grains of {}", b.shape.grain_rows);
    s.enter(|| {
        forward(s, cfg, t, w, b)?;
        let Buffers { inputs, targets, first, nll, shape, rot, xs, blocks, head, back } = b;
        let back = back.as_mut().expect("model: buffers that only score");
        let marks = (&*rot, first.as_ref());

        head::train(s, cfg, t, (w, g), &xs[cfg.layers], head, back, (targets, nll, scale))?;
        for l in (0..cfg.layers).rev() {
            let (w, g, x) = (&w.layers[l], &mut g.sum.layers[l], &xs[l]);
            poison(shape.backward, back, blocks);
            let acts = if shape.backward == Some(Recompute::Block) {
                let Acts { attention: a, middle, mlp: m } = &mut blocks[0];
                attention::forward(s, cfg, t, w, x, middle, a, marks)?;
                mlp::widen(s, cfg, t.count(), w, middle, m, matmul::nt)?;
                &blocks[0]
            } else {
                &blocks[l]
            };
            mlp::backward(s, cfg, t, (w, g), &acts.middle, &acts.mlp, back)?;
            attention::backward(s, cfg, t, (w, g), x, &acts.attention, back, marks)?;
        }
        let d = embedding::Dims { rows: t.count(), cols: cfg.hidden, vocab: cfg.vocab };
        embedding::backward(s, d, embedding::Backward { ids: inputs, dx: &back.dx, dw: g.lookup_mut() })
    })
}

/// Takes the first `rows` rows of `b.inputs` through the network; sets the head of `b.nll`.
pub fn score(s: &Stream, cfg: &Config, w: &Weights, b: &mut Buffers, rows: usize) -> Result<()> {
    let t = b.tokens(rows);
    s.enter(|| {
        forward(s, cfg, t, w, b)?;
        let x = &b.xs[cfg.layers % b.xs.len()];
        head::score(s, cfg, t.count(), w, x, &mut b.head, (&b.targets, &mut b.nll))
    })
}

/// Embedding and all blocks; leaves the last residual stream in its place of `b.xs`.
fn forward(s: &Stream, cfg: &Config, t: Tokens, w: &Weights, b: &mut Buffers) -> Result<()> {
    let (places, kept) = (b.xs.len(), b.blocks.len());
    let d = embedding::Dims { rows: t.count(), cols: cfg.hidden, vocab: cfg.vocab };
    embedding::forward(s, d, embedding::Forward { ids: &b.inputs, w: &w.embed, x: &mut b.xs[0] })?;
    for (l, w) in w.layers.iter().enumerate() {
        let [x, y] = b.xs.get_disjoint_mut([l % places, (l + 1) % places]).expect("model: two places");
        block(s, cfg, t, w, (x, y), &mut b.blocks[l % kept], (&b.rot, b.first.as_ref()))?;
    }
    Ok(())
}

fn block(
    s: &Stream,
    cfg: &Config,
    t: Tokens,
    w: &Layer,
    (x, y): (&Tensor, &mut Tensor),
    a: &mut Acts,
    marks: (&Rotation, Option<&Tensor>),
) -> Result<()> {
    attention::forward(s, cfg, t, w, x, &mut a.middle, &mut a.attention, marks)?;
    mlp::forward(s, cfg, t.count(), w, &a.middle, y, &mut a.mlp, matmul::nt)
}

/// In debug builds, makes whatever one block leaves in shared memory unusable for the next.
fn poison(recompute: Option<Recompute>, back: &mut Back, blocks: &mut [Acts]) {
    #[cfg(debug_assertions)]
    {
        let Back { dx: _, dn, wide: [a, b, c], narrow: [d, e], delta } = back;
        [dn, a, b, c, d, e, delta].into_iter().for_each(Tensor::poison);
        if recompute == Some(Recompute::Block) {
            blocks[0].attention.poison();
            blocks[0].middle.poison();
            blocks[0].mlp.poison();
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = (recompute, back, blocks);
}
