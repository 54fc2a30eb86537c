//! What a peer sends of its round, and what becomes of it: the k largest of each chunk in two bits, with error feedback.
//!
//! A matrix is cut into tiles of 64x64, a vector into runs of 4096: its *chunks* ([`Grid`]), smaller at the edges. Of a
//! chunk of n elements k_n = ⌈k·n / 4096⌉ are sent. θ: weights now; a: anchor, the weights that all peers share;
//! e: error feedback of this peer.
//!
//! compress   e ← β·e + (a − θ)
//!            I = places of the k_n largest |e| of each chunk; of equals the first in the chunk, row by row
//!            d = decode(encode(e_I))
//!            e_I ← e_I − d                       what quantising loses is fed back too
//! fold       D_j = 1/R · Σ_r f_r·d_rj            over all R peers, or over those that sent j
//!            a ← a − α·D;  θ ← a
//! norm       Σ d²                                of one peer's update, for the clip f_r = min(1, median / norm_r)
//!
//! Each operation is one IEEE f32 operation, rounded apart, in the order written, peers in the order given; sums inside
//! a chunk have fixed lanes. So every device and every peer gets the same bits, and `e_new + d` is `e_old·β + (a − θ)`
//! less one rounding. The three ways to write a chunk are in [`record`].
//!
//! compress reads 12 bytes a parameter and writes 4 (in place, without a and θ: reads 4, and writes the lines it sent
//! from); fold reads 4 and writes 8, θ's half past the caches: bound by memory. Source: Sarfi et al. 2025, arXiv:2508.15706 (SparseLoCo).

mod ahead;
pub mod cases;
pub(crate) mod cpu;
mod fold;
mod gpu;
pub mod record;
pub mod reference;
mod scan;
pub(crate) mod select;

use crate::{
    Result,
    device::Stream,
    simd,
    tensor::{DType, Tensor},
};
pub use record::{Codec, Malformed, Spec};

/// Elements of a whole chunk.
pub const CHUNK: usize = 4096;
/// Side of a matrix's tile.
pub const SIDE: usize = 64;

/// How one tensor is cut into chunks: a function of its shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    rows: usize,
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
}

/// One chunk: a rectangle of the tensor, its elements counted row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub row: usize,
    pub col: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Tile {
    /// Elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Where its first element lies in a tensor whose rows are `stride` apart.
    pub(crate) fn start(self, stride: usize) -> usize {
        self.row * stride + self.col
    }

    /// Where its element `i` lies.
    #[inline(always)]
    pub(crate) fn place(self, stride: usize, i: usize) -> usize {
        // Nearly all chunks are whole, and a division takes longer than all else that is done for an element.
        let (row, col) = match (self.rows, self.cols) {
            (1, _) => (0, i),
            (_, SIDE) => (i / SIDE, i % SIDE),
            (_, cols) => (i / cols, i % cols),
        };
        self.start(stride) + row * stride + col
    }
}

impl Grid {
    /// Of a matrix of that shape.
    pub fn matrix(rows: usize, cols: usize) -> Grid {
        assert!(rows > 0 && cols > 0, "chunk_topk: a matrix of {rows} x {cols}");
        Grid { rows, cols, tile_rows: SIDE, tile_cols: SIDE }
    }

    /// Of a vector of that length.
    pub fn vector(len: usize) -> Grid {
        assert!(len > 0, "chunk_topk: a vector of nothing");
        Grid { rows: 1, cols: len, tile_rows: 1, tile_cols: CHUNK }
    }

    /// Of a tensor: one dimension makes a vector, two a matrix.
    pub fn of(shape: &[usize]) -> Grid {
        match *shape {
            [len] => Grid::vector(len),
            [rows, cols] => Grid::matrix(rows, cols),
            _ => panic!("chunk_topk: a tensor of {} dimensions", shape.len()),
        }
    }

    /// Elements of the tensor.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.rows * self.cols
    }

    /// Columns of the tensor: the distance between rows of a tile.
    pub(crate) fn stride(self) -> usize {
        self.cols
    }

    /// Tiles side by side.
    fn across(self) -> usize {
        self.cols.div_ceil(self.tile_cols)
    }

    /// Number of chunks.
    pub fn chunks(self) -> usize {
        self.rows.div_ceil(self.tile_rows) * self.across()
    }

    /// Chunk `i`, counted row by row.
    pub fn tile(self, i: usize) -> Tile {
        let (row, col) = (i / self.across() * self.tile_rows, i % self.across() * self.tile_cols);
        Tile { row, col, rows: self.tile_rows.min(self.rows - row), cols: self.tile_cols.min(self.cols - col) }
    }

    /// Byte of an update at which chunk `i` begins, `head` bytes after the start of the tensor's part; `chunks()` gives
    /// the end.
    pub(crate) fn record_at(self, spec: Spec, i: usize) -> usize {
        let (down, right) = (i / self.across(), i % self.across());
        let bytes = |rows: usize, cols: usize| if rows * cols == 0 { 0 } else { spec.record_bytes(rows * cols) };
        let line = |rows: usize, tiles: usize| {
            let whole = tiles.min(self.cols / self.tile_cols);
            whole * bytes(rows, self.tile_cols) + (tiles - whole) * bytes(rows, self.cols % self.tile_cols)
        };
        let whole = down.min(self.rows / self.tile_rows);
        let above = whole * line(self.tile_rows, self.across())
            + (down - whole) * line(self.rows % self.tile_rows, self.across());
        let here = if right == 0 { 0 } else { line(self.tile_rows.min(self.rows - down * self.tile_rows), right) };
        spec.head_bytes() + above + here
    }

    /// Bytes of the tensor's part of an update.
    pub fn update_bytes(self, spec: Spec) -> usize {
        self.record_at(spec, self.chunks())
    }

    /// Length of the u32 tensor that holds the tensor's part of an update.
    pub fn update_words(self, spec: Spec) -> usize {
        self.update_bytes(spec).div_ceil(4)
    }
}

/// What the peer moved by since the round began: a − θ.
#[derive(Debug)]
pub struct Delta<'a> {
    /// `[rows, cols]` f32: weights at the start of the round
    pub anchor: &'a Tensor,
    /// `[rows, cols]` f32: weights now
    pub theta: &'a Tensor,
}

/// Tensors of [`compress`].
#[derive(Debug)]
pub struct Compress<'a> {
    /// `[rows, cols]` f32: error feedback; taken in and left without what is sent
    pub e: &'a mut Tensor,
    /// What is added to β·e; `None` where `e` holds the sum already, and β is not used.
    pub delta: Option<Delta<'a>>,
    /// `[update_words]` u32: the tensor's part of the update, its bytes in order, the last word filled up with zeros
    pub update: &'a mut Tensor,
    pub beta: f32,
}

/// Compresses one tensor. Returns whether every number sent is finite: if not, nothing of the update may be sent.
pub fn compress(s: &Stream, grid: Grid, spec: Spec, a: Compress<'_>) -> Result<bool> {
    holds_f32(grid, "e", a.e);
    if let Some(delta) = &a.delta {
        holds_f32(grid, "anchor", delta.anchor);
        holds_f32(grid, "theta", delta.theta);
    }
    holds_update(grid, spec, a.update);
    Ok(match s {
        Stream::Cpu(pool) => cpu::compress(pool, simd::level(), grid, spec, a),
        Stream::Gpu(gpu) => gpu::compress(gpu, grid, spec, a)?,
    })
}

/// One peer's part of [`fold`].
#[derive(Debug)]
pub struct Update<'a> {
    /// `[update_words]` u32, which has passed [`record::check`]
    pub update: &'a Tensor,
    /// f_r: what its values are multiplied by
    pub factor: f32,
}

/// Over whom the mean of a coordinate runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mean {
    /// All peers; one that did not send it counts as zero.
    Peers,
    /// The peers that sent it.
    Senders,
}

/// Tensors of [`fold`].
#[derive(Debug)]
pub struct Fold<'a> {
    /// In the order that all peers agree on.
    pub updates: &'a [Update<'a>],
    pub mean: Mean,
    pub alpha: f32,
    /// `[rows, cols]` f32: moved by −α·D
    pub anchor: &'a mut Tensor,
    /// `[rows, cols]` f32: set to the anchor
    pub theta: &'a mut Tensor,
}

/// The outer step of one tensor. No update at all leaves the anchor as it is.
pub fn fold(s: &Stream, grid: Grid, spec: Spec, a: Fold<'_>) -> Result<()> {
    holds_f32(grid, "anchor", a.anchor);
    holds_f32(grid, "theta", a.theta);
    for u in a.updates {
        holds_update(grid, spec, u.update);
    }
    match s {
        Stream::Cpu(pool) => fold::fold(pool, simd::level(), grid, spec, a),
        Stream::Gpu(gpu) => gpu::fold(gpu, grid, spec, a)?,
    }
    Ok(())
}

/// Σ d² of one tensor's part of an update that has passed [`record::check`]: the same bits everywhere.
pub fn sum_squares(s: &Stream, grid: Grid, spec: Spec, update: &Tensor) -> Result<f64> {
    holds_update(grid, spec, update);
    Ok(match s {
        Stream::Cpu(pool) => cpu::sum_squares(pool, grid, spec, update),
        Stream::Gpu(gpu) => gpu::sum_squares(gpu, grid, spec, update)?,
    })
}

/// The clip of each peer: 1 for those up to the median of the norms, median / norm above it. With an even number the
/// lower of the two in the middle counts, so that half of the peers cannot raise it.
pub fn clip_factors(norms: &[f64]) -> Vec<f32> {
    let mut sorted = norms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(&median) = sorted.get(sorted.len().saturating_sub(1) / 2) else { return Vec::new() };
    norms.iter().map(|norm| (median / (norm + 1e-8)).min(1.0) as f32).collect()
}

fn holds_f32(grid: Grid, name: &str, t: &Tensor) {
    assert_eq!(t.len(), grid.len(), "chunk_topk: elements of {name}");
    assert_eq!(t.dtype(), DType::F32, "chunk_topk: dtype of {name}");
}

fn holds_update(grid: Grid, spec: Spec, t: &Tensor) {
    assert_eq!(t.len(), grid.update_words(spec), "chunk_topk: words of an update");
    assert_eq!(t.dtype(), DType::U32, "chunk_topk: dtype of an update");
}
