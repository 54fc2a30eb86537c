//! The weights of a network, and whatever has their shape: gradients, masters, moments.
//!
//! One struct serves all of them, so that an optimiser walks several side by side ([`Weights::each_mut`]) and a file
//! names them once. Matrices are stored as their products read them, one row an output, and have the run's dtype; norms
//! are always f32.

use crate::config::Config;
use esker_kernels::{
    Result,
    device::Stream,
    ops::cast,
    tensor::{Arena, DType, Tensor},
};

/// A network's tensors. V: vocab, C: hidden.
#[derive(Debug)]
pub struct Weights {
    /// `[V, C]`
    pub embed: Tensor,
    /// Blocks, first one first.
    pub layers: Vec<Layer>,
    /// `[C]`
    pub norm: Tensor,
    /// `[V, C]`; none when the embedding is the head
    pub head: Option<Tensor>,
}

/// A block's tensors. C: hidden, H: heads, K: key heads, D: head size, F: hidden of the MLP.
#[derive(Debug)]
pub struct Layer {
    /// `[C]`
    pub attn_norm: Tensor,
    /// `[H·D, C]`
    pub wq: Tensor,
    /// `[K·D, C]`
    pub wk: Tensor,
    /// `[K·D, C]`
    pub wv: Tensor,
    /// `[D]`, with QK-norm
    pub q_norm: Option<Tensor>,
    /// `[D]`, with QK-norm
    pub k_norm: Option<Tensor>,
    /// `[C, H·D]`
    pub wo: Tensor,
    /// `[C]`
    pub mlp_norm: Tensor,
    /// `[F, C]`
    pub gate: Tensor,
    /// `[F, C]`
    pub up: Tensor,
    /// `[C, F]`
    pub down: Tensor,
}

/// Gradients of all weights, f32, added to.
#[derive(Debug)]
pub struct Grads {
    /// The sum so far.
    pub sum: Weights,
    /// `[V, C]`, tied models alone: the embedding's share as a lookup. It is kept apart from its share as the head until
    /// [`Grads::join`], for the two are found at different times: in one sum, the order of additions would depend on the
    /// number of rows in a micro-batch.
    pub lookup: Option<Tensor>,
}

/// Which tensor of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Block, for tensors of a block.
    pub layer: Option<u32>,
    /// Which one there.
    pub part: Part,
}

/// Which tensor of a block or of the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    Embed,
    AttnNorm,
    Wq,
    Wk,
    Wv,
    QNorm,
    KNorm,
    Wo,
    MlpNorm,
    Gate,
    Up,
    Down,
    Norm,
    Head,
}

impl Name {
    /// Whether it has two dimensions: such weights decay.
    pub fn is_matrix(self) -> bool {
        !matches!(self.part, Part::AttnNorm | Part::QNorm | Part::KNorm | Part::MlpNorm | Part::Norm)
    }

    /// A number that stays the same whatever else the network has: 32 a block.
    pub fn id(self) -> u32 {
        self.layer.map_or(0, |l| 32 * (l + 1)) + self.part as u32
    }
}

impl std::fmt::Display for Name {
    /// The name in Hugging Face's files.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(l) = self.layer {
            write!(f, "model.layers.{l}.")?;
        }
        f.write_str(match self.part {
            Part::Embed => "model.embed_tokens.weight",
            Part::AttnNorm => "input_layernorm.weight",
            Part::Wq => "self_attn.q_proj.weight",
            Part::Wk => "self_attn.k_proj.weight",
            Part::Wv => "self_attn.v_proj.weight",
            Part::QNorm => "self_attn.q_norm.weight",
            Part::KNorm => "self_attn.k_norm.weight",
            Part::Wo => "self_attn.o_proj.weight",
            Part::MlpNorm => "post_attention_layernorm.weight",
            Part::Gate => "mlp.gate_proj.weight",
            Part::Up => "mlp.up_proj.weight",
            Part::Down => "mlp.down_proj.weight",
            Part::Norm => "model.norm.weight",
            Part::Head => "lm_head.weight",
        })
    }
}

impl Weights {
    /// Lays the tensors out under the arena's current class; matrices have dtype `matrices`.
    pub fn layout(arena: &mut Arena, cfg: &Config, matrices: DType) -> Weights {
        Weights {
            embed: arena.tensor(matrices, [cfg.vocab, cfg.hidden]),
            layers: (0..cfg.layers).map(|_| Layer::layout(arena, cfg, matrices)).collect(),
            norm: arena.tensor(DType::F32, [cfg.hidden]),
            head: (!cfg.tied).then(|| arena.tensor(matrices, [cfg.vocab, cfg.hidden])),
        }
    }

    /// The matrix that makes logits: the head, or the embedding when tied.
    pub fn head(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Every tensor once, in one fixed order.
    pub fn each(&self) -> impl Iterator<Item = (Name, &Tensor)> + Clone {
        let end = |part, t| (Name { layer: None, part }, t);
        let blocks = (0..).zip(&self.layers).flat_map(|(l, layer)| {
            layer.each().into_iter().flatten().map(move |(part, t)| (Name { layer: Some(l), part }, t))
        });
        let tail = [Some(end(Part::Norm, &self.norm)), self.head.as_ref().map(|t| end(Part::Head, t))];
        std::iter::once(end(Part::Embed, &self.embed)).chain(blocks).chain(tail.into_iter().flatten())
    }

    /// Every tensor once, to write, in the order of [`Weights::each`].
    pub fn each_mut(&mut self) -> impl Iterator<Item = (Name, &mut Tensor)> {
        let blocks = (0..).zip(&mut self.layers).flat_map(|(l, layer)| {
            layer.each_mut().into_iter().flatten().map(move |(part, t)| (Name { layer: Some(l), part }, t))
        });
        let head = self.head.as_mut().map(|t| (Name { layer: None, part: Part::Head }, t));
        std::iter::once((Name { layer: None, part: Part::Embed }, &mut self.embed))
            .chain(blocks)
            .chain(std::iter::once((Name { layer: None, part: Part::Norm }, &mut self.norm)))
            .chain(head)
    }

    /// Number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.each().map(|(_, t)| t.len()).sum()
    }

    /// Copies `from`, rounding where dtypes differ.
    pub fn convert_from(&mut self, s: &Stream, from: &Weights) -> Result<()> {
        for ((name, to), (_, from)) in self.each_mut().zip(from.each()) {
            assert_eq!(to.shape(), from.shape(), "weights: shapes of {name}");
            if to.dtype() == from.dtype() {
                s.copy(from, to, from.len())?;
            } else {
                cast::convert(s, from.len(), from, to)?;
            }
        }
        Ok(())
    }

    /// Sets all elements to zero.
    pub fn zero(&mut self, s: &Stream) -> Result<()> {
        self.each_mut().try_for_each(|(_, t)| s.zero(t))
    }
}

impl Layer {
    fn layout(arena: &mut Arena, cfg: &Config, matrices: DType) -> Layer {
        let (c, f, q, kv) = (cfg.hidden, cfg.ffn, cfg.q_width(), cfg.kv_width());
        let qk_norm = cfg.family.qk_norm();
        Layer {
            attn_norm: arena.tensor(DType::F32, [c]),
            wq: arena.tensor(matrices, [q, c]),
            wk: arena.tensor(matrices, [kv, c]),
            wv: arena.tensor(matrices, [kv, c]),
            q_norm: qk_norm.then(|| arena.tensor(DType::F32, [cfg.head_dim])),
            k_norm: qk_norm.then(|| arena.tensor(DType::F32, [cfg.head_dim])),
            wo: arena.tensor(matrices, [c, q]),
            mlp_norm: arena.tensor(DType::F32, [c]),
            gate: arena.tensor(matrices, [f, c]),
            up: arena.tensor(matrices, [f, c]),
            down: arena.tensor(matrices, [c, f]),
        }
    }

    fn each(&self) -> [Option<(Part, &Tensor)>; 11] {
        [
            Some((Part::AttnNorm, &self.attn_norm)),
            Some((Part::Wq, &self.wq)),
            Some((Part::Wk, &self.wk)),
            Some((Part::Wv, &self.wv)),
            self.q_norm.as_ref().map(|t| (Part::QNorm, t)),
            self.k_norm.as_ref().map(|t| (Part::KNorm, t)),
            Some((Part::Wo, &self.wo)),
            Some((Part::MlpNorm, &self.mlp_norm)),
            Some((Part::Gate, &self.gate)),
            Some((Part::Up, &self.up)),
            Some((Part::Down, &self.down)),
        ]
    }

    fn each_mut(&mut self) -> [Option<(Part, &mut Tensor)>; 11] {
        [
            Some((Part::AttnNorm, &mut self.attn_norm)),
            Some((Part::Wq, &mut self.wq)),
            Some((Part::Wk, &mut self.wk)),
            Some((Part::Wv, &mut self.wv)),
            self.q_norm.as_mut().map(|t| (Part::QNorm, t)),
            self.k_norm.as_mut().map(|t| (Part::KNorm, t)),
            Some((Part::Wo, &mut self.wo)),
            Some((Part::MlpNorm, &mut self.mlp_norm)),
            Some((Part::Gate, &mut self.gate)),
            Some((Part::Up, &mut self.up)),
            Some((Part::Down, &mut self.down)),
        ]
    }
}

impl Grads {
    /// Lays the tensors out under the arena's current class.
    pub fn layout(arena: &mut Arena, cfg: &Config) -> Grads {
        Grads {
            sum: Weights::layout(arena, cfg, DType::F32),
            lookup: cfg.tied.then(|| arena.tensor(DType::F32, [cfg.vocab, cfg.hidden])),
        }
    }

    /// Ends a virtual rank: adds the lookup's share to the embedding's sum, and clears it.
    pub fn join(&mut self, s: &Stream) -> Result<()> {
        if let Some(lookup) = &mut self.lookup {
            cast::add(s, lookup.len(), lookup, &mut self.sum.embed)?;
            s.zero(lookup)?;
        }
        Ok(())
    }

    /// Sets all elements to zero.
    pub fn zero(&mut self, s: &Stream) -> Result<()> {
        self.sum.zero(s)?;
        self.lookup.iter_mut().try_for_each(|t| s.zero(t))
    }

    /// The gradient of what makes logits: the head's, or the embedding's when tied.
    pub(crate) fn head_mut(&mut self) -> &mut Tensor {
        self.sum.head.as_mut().unwrap_or(&mut self.sum.embed)
    }

    /// Where the gradient of the lookup goes.
    pub(crate) fn lookup_mut(&mut self) -> &mut Tensor {
        self.lookup.as_mut().unwrap_or(&mut self.sum.embed)
    }
}
