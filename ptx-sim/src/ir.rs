//! What a kernel is after parsing: instructions with their registers resolved, ready to be run.
//!
//! A warp keeps its registers in rows, one value for each of its 32 lanes: a row of 32 words holds a register of up to
//! 32 bits (narrower ones zero-extended), two rows one of 64 bits, its low words first in each pair of bytes as the
//! machine keeps a `u64`. Constants and special registers are rows too, filled once for each warp, so that every source
//! of every instruction is a row. A predicate is a word with one bit a lane; predicate 0 is always true.

mod arith;
mod data;
mod together;

use std::fmt;
use std::sync::Arc;

pub(crate) use arith::*;
pub(crate) use data::*;
pub(crate) use together::*;

/// Index of a row of registers, in rows of 32 words.
pub(crate) type Row = u32;

/// A `.entry` of a module: what a launch runs.
#[derive(Clone)]
pub struct Kernel {
    pub(crate) file: Arc<str>,
    /// The whole text, for messages.
    pub(crate) source: Arc<str>,
    pub(crate) name: String,
    pub(crate) line: u32,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) shared_bytes: u64,
    pub(crate) local_bytes: u64,
    pub(crate) dynamic_shared: bool,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) req_threads: Option<[u32; 3]>,
    pub(crate) cluster: Option<[u32; 3]>,
    pub(crate) rows: u32,
    pub(crate) preds: u16,
    pub(crate) fills: Vec<(Row, Width, Fill)>,
    pub(crate) code: Vec<Inst>,
    pub(crate) data: Arc<[u8]>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// As in the PTX.
    pub name: String,
    /// Where it stands in the bytes of a launch's `params`.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
    /// Its alignment, by which `offset` was rounded up.
    pub align: usize,
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters, in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes a launch's `params` must have.
    pub fn param_bytes(&self) -> usize {
        self.param_bytes
    }

    /// Bytes of shared memory with a length of their own; dynamic shared memory follows them.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes as usize
    }

    /// Most threads a block may have (`__launch_bounds__`), where the kernel says so.
    pub fn max_threads(&self) -> Option<u32> {
        self.req_threads.or(self.max_threads).map(|t| t.iter().product())
    }

    /// Blocks of a cluster, where the kernel fixes them (`__cluster_dims__`).
    pub fn cluster(&self) -> Option<[u32; 3]> {
        self.cluster
    }

    /// A line of its PTX.
    pub(crate) fn text_of(&self, line: u32) -> String {
        self.source.lines().nth(line.max(1) as usize - 1).unwrap_or("").trim().to_string()
    }

    /// How many instructions it has.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} of {}, {} instructions", self.name, self.file, self.code.len())
    }
}

/// How wide the lanes of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Width {
    W16,
    W32,
    W64,
}

impl Width {
    pub fn of(bits: u32) -> Width {
        match bits {
            64 => Width::W64,
            32 => Width::W32,
            _ => Width::W16,
        }
    }
}

/// What fills a row that nothing writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fill {
    Const(u64),
    Special(Special),
    /// The start of dynamic shared memory, plus an offset.
    Dynamic(i64),
}

/// Special registers that stay the same while a thread lives. A number is an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    BlockDim(u8),
    BlockId(u8),
    GridDim(u8),
    ClusterId(u8),
    ClusterCount(u8),
    ClusterBlock(u8),
    ClusterDim(u8),
    ClusterRank,
    ClusterSize,
    Lane,
    WarpId,
    WarpCount,
    SmId,
    SmCount,
    MaskEq,
    MaskLe,
    MaskLt,
    MaskGe,
    MaskGt,
    DynamicBytes,
    SharedBytes,
}

impl Special {
    /// Whether it is the same for a block's threads, and another for other blocks.
    pub fn of_block(self) -> bool {
        use Special::*;
        matches!(self, BlockId(_) | ClusterId(_) | ClusterBlock(_) | SmId)
    }
}

/// A predicate as a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PSrc {
    pub pred: u16,
    pub negate: bool,
}

impl PSrc {
    pub const ALWAYS: PSrc = PSrc { pred: 0, negate: false };
    pub const NEVER: PSrc = PSrc { pred: 0, negate: true };
}

/// One instruction.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub guard: PSrc,
    pub op: Op,
    pub line: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Mbar(Box<Mbar>),
    Bulk(Box<Bulk>),
    BulkCommit,
    BulkWait {
        left: u32,
    },
    Wgmma(Box<Wgmma>),
    WgFence,
    WgCommit,
    WgWait {
        left: u32,
    },
    ClusterArrive {
        release: bool,
    },
    ClusterWait,
    /// The address of `a` in block `rank` of the cluster.
    Mapa {
        wide: bool,
        generic: bool,
        d: Row,
        a: Addr,
        rank: Row,
    },
    GetRank {
        generic: bool,
        d: Row,
        a: Addr,
    },
    Mov {
        w: Width,
        d: Row,
        a: Row,
    },
    MovPred {
        d: u16,
        a: PSrc,
    },
    /// Several registers into one, lowest first.
    Join {
        bits: u32,
        d: Row,
        a: Box<[Row]>,
    },
    Split {
        bits: u32,
        d: Box<[Option<Row>]>,
        a: Row,
    },
    Int1 {
        f: I1,
        w: Width,
        d: Row,
        a: Row,
    },
    Int2 {
        f: I2,
        w: Width,
        d: Row,
        a: Row,
        b: Row,
    },
    Int3 {
        f: I3,
        w: Width,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// Of 16 or 32 bits to twice as many.
    MulWide {
        w: Width,
        signed: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Option<Row>,
    },
    Bfi {
        w: Width,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
        e: Row,
    },
    /// `add.cc` and `sub.cc` and their kin: the carry is a predicate of its own.
    Carry {
        sub: bool,
        w: Width,
        carry: u16,
        take: bool,
        give: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    PredLogic {
        f: Bool,
        d: u16,
        a: PSrc,
        b: PSrc,
    },
    Setp(Setp),
    /// `set`: the comparison as all ones (integer) or 1.0.
    Set {
        cmp: Cmp,
        ty: Num,
        ftz: bool,
        float: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    Selp {
        w: Width,
        d: Row,
        a: Row,
        b: Row,
        p: PSrc,
    },
    Slct {
        w: Width,
        float: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Float1 {
        f: F1,
        t: Float,
        m: Mode,
        d: Row,
        a: Row,
    },
    Float2 {
        f: F2,
        t: Float,
        m: Mode,
        d: Row,
        a: Row,
        b: Row,
    },
    Fma {
        t: Float,
        m: Mode,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    TestP {
        finite: bool,
        nan: bool,
        inf: bool,
        normal: bool,
        t: Float,
        d: u16,
        a: Row,
    },
    Cvt(Box<Cvt>),
    /// A shared, local, const or param address to a generic one, or back.
    Cvta {
        space: Space,
        to: bool,
        wide: bool,
        d: Row,
        a: Row,
    },
    IsSpace {
        space: Space,
        d: u16,
        a: Addr,
    },
    Clock {
        w: Width,
        d: Row,
    },
    Ld(Box<Access>),
    St(Box<Access>),
    Atom(Box<Atom>),
    CpAsync(Box<CpAsync>),
    CpCommit,
    /// Without a number `wait_all`, which also commits.
    CpWait {
        left: Option<u32>,
    },
    LdMatrix(Box<Matrix>),
    StMatrix(Box<Matrix>),
    MovMatrix {
        d: Row,
        a: Row,
    },
    Mma(Box<Mma>),
    /// `mask`: the lanes that must come.
    Warp {
        op: WarpOp,
        mask: Row,
    },
    ActiveMask {
        d: Row,
    },
    Bar(Box<Bar>),
    Fence {
        proxy: bool,
    },
    Nanosleep,
    Nop,
    Bra {
        target: u32,
    },
    Brx {
        idx: Row,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,
}
