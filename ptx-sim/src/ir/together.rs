//! What the threads of a warp, a warpgroup or a block do together: exchanges, barriers, products.

use super::{Addr, PSrc, Row, Space, Width};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Redux {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
}

/// Collective instructions of a warp, run when all lanes of the member mask have come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum WarpOp {
    Shfl { mode: ShflMode, d: Option<Row>, p: Option<u16>, a: Row, b: Row, c: Row },
    VotePred { mode: Vote, d: u16, a: PSrc },
    Ballot { d: Row, a: PSrc },
    MatchAny { w: Width, d: Row, a: Row },
    MatchAll { w: Width, d: Row, p: Option<u16>, a: Row },
    Redux { op: Redux, d: Row, a: Row },
    Elect { d: Option<Row>, p: u16 },
    Sync,
}

/// What a `barrier.red` makes of its predicates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum BarRed {
    Popc(Row),
    And(u16),
    Or(u16),
}

/// A barrier of the block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bar {
    pub arrive_only: bool,
    pub id: Row,
    /// Threads awaited; all of the block without it.
    pub count: Option<Row>,
    pub red: Option<(BarRed, PSrc)>,
}

/// Element type of a tensor-core product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Elem {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync`: D[16, 8] = A[16, k] · B[k, 8] + C.
#[derive(Clone, Debug)]
pub(crate) struct Mma {
    pub elem: Elem,
    pub k: u32,
    /// Sums are f16 in pairs rather than f32.
    pub half_sums: bool,
    pub d: Box<[Row]>,
    pub a: Box<[Row]>,
    pub b: Box<[Row]>,
    pub c: Box<[Row]>,
}

/// `ldmatrix` and `stmatrix`: `rows.len()` matrices of 8 by 8 values of 16 bits.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub trans: bool,
    pub space: Space,
    pub addr: Addr,
    pub rows: Box<[Row]>,
}

/// Where `wgmma` finds A.
#[derive(Clone, Debug)]
pub(crate) enum OperandA {
    Shared(Row),
    Registers(Box<[Row]>),
}

/// `wgmma.mma_async`: D[64, n] = A[64, k] · B[k, n] + D, by four warps.
#[derive(Clone, Debug)]
pub(crate) struct Wgmma {
    pub elem: Elem,
    pub n: u32,
    pub k: u32,
    pub d: Box<[Row]>,
    pub a: OperandA,
    pub b: Row,
    /// Without it D starts at zero.
    pub add: PSrc,
    pub negate: [bool; 2],
    /// A and B lie in memory with their rows or columns, not k, together.
    pub trans: [bool; 2],
}
