//! What a kernel is after parsing: instructions with their registers resolved, ready to be run.
//!
//! A warp keeps its registers in rows, one value for each of its 32 lanes: a row of 32 words holds a register of up to
//! 32 bits (narrower ones zero-extended), two rows one of 64 bits, its low words first in each pair of bytes as the
//! machine keeps a `u64`. Constants and special registers are rows too, filled once for each warp, so that every source
//! of every instruction is a row. A predicate is a word with one bit a lane; predicate 0 is always true.

use std::fmt;
use std::sync::Arc;

use crate::fp::Round;

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

/// Integer operations of two sources.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum I2 {
    Add,
    Sub,
    Mul,
    MulHiU,
    MulHiS,
    DivU,
    DivS,
    RemU,
    RemS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    AddSat,
    SubSat,
}

/// Integer operations of one source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum I1 {
    Not,
    CNot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    /// `bfind`, with `.shiftamt` or without.
    FindU(bool),
    FindS(bool),
}

/// Integer operations of three sources, all of one width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum I3 {
    Mad,
    MadHiU,
    MadHiS,
    SadU,
    SadS,
    BfeU,
    BfeS,
    ShfL { wrap: bool },
    ShfR { wrap: bool },
    Lop3(u8),
    Prmt(Prmt),
    Fns,
    Dp4a { a_signed: bool, b_signed: bool },
}

/// Modes of `prmt`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Prmt {
    Index,
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// The type of floating-point lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
}

impl Float {
    pub fn bits(self) -> u32 {
        match self {
            Float::F16 | Float::Bf16 => 16,
            Float::F64 => 64,
            _ => 32,
        }
    }
}

/// Floating-point operations of two sources.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum F2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Copysign,
}

/// Floating-point operations of one source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum F1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

/// Rounding and clamping of a floating-point operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mode {
    pub round: Round,
    /// Subnormal sources and results of f32 become zero of their sign.
    pub ftz: bool,
    /// The result is clamped to 0 to 1, NaN to 0.
    pub sat: bool,
    /// Negative results become 0.
    pub relu: bool,
}

/// Types a conversion knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Num {
    U(u8),
    S(u8),
    F(Float),
    Tf32,
    /// Two of e4m3 or e5m2.
    E4m3x2,
    E5m2x2,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cvt {
    pub to: Num,
    pub from: Num,
    pub round: Round,
    /// `.rni` and its kin: to a whole number.
    pub whole: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    /// Widths of the two registers, which may exceed their integers'.
    pub w: Width,
    pub aw: Width,
    pub d: Row,
    pub a: Row,
    /// The second source of a conversion to a pair; it gives the low half.
    pub b: Option<Row>,
}

/// Comparisons; the unordered ones also hold when a source is NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bool {
    And,
    Or,
    Xor,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Setp {
    pub cmp: Cmp,
    pub ty: Num,
    pub ftz: bool,
    pub bool_op: Bool,
    pub p: Option<u16>,
    /// Gets the opposite comparison, combined likewise; for pairs (`f16x2`), the comparison of the high halves.
    pub q: Option<u16>,
    pub a: Row,
    pub b: Row,
    pub c: PSrc,
}

/// The memory an address lies in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    /// Shared memory of any block of the cluster.
    Cluster,
    Local,
    Const,
    Param,
}

/// An address: a row of 32 or 64 bits, plus a constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Addr {
    pub row: Row,
    pub wide: bool,
    pub offset: i64,
}

/// What a load or store promises to other threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Weak,
    /// `.relaxed` and `.volatile`: no race with its kind, and no ordering.
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

/// A register and how much of it a memory access fills: 16-bit values in words, 64-bit ones in pairs of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slot {
    /// `None` for `_`.
    pub row: Option<Row>,
    pub bits: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub space: Space,
    /// Bytes of one element.
    pub bytes: u32,
    pub signed: bool,
    pub order: Order,
    pub addr: Addr,
    pub slots: Box<[Slot]>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum AtomOp {
    AddInt,
    AddFloat(Float),
    And,
    Or,
    Xor,
    MinU,
    MinS,
    MaxU,
    MaxS,
    Inc,
    Dec,
    Exch,
    Cas,
    MinFloat(Float),
    MaxFloat(Float),
}

#[derive(Clone, Debug)]
pub(crate) struct Atom {
    pub op: AtomOp,
    pub space: Space,
    pub bytes: u32,
    pub order: Order,
    pub addr: Addr,
    /// `None` for `red`.
    pub d: Option<Row>,
    pub b: Box<[Row]>,
    pub c: Option<Row>,
}

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

/// `cp.async`: a copy from global to shared memory that its thread waits for.
#[derive(Clone, Debug)]
pub(crate) struct CpAsync {
    pub dst: Addr,
    pub src: Addr,
    pub bytes: u32,
    /// Bytes read; the others are zero.
    pub src_bytes: Option<Row>,
}

/// What an instruction does with an mbarrier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MbarOp {
    Init {
        count: Row,
    },
    Inval,
    /// `state`: where the phase's token goes.
    Arrive {
        count: Option<Row>,
        expect: Option<Row>,
        drop: bool,
        state: Option<Row>,
    },
    Expect {
        bytes: Row,
    },
    Complete {
        bytes: Row,
    },
    /// Waits for the phase of a parity, or of a token; a mere test answers at once.
    Wait {
        p: Option<u16>,
        phase: Row,
        parity: bool,
        test: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Mbar {
    pub op: MbarOp,
    pub space: Space,
    pub addr: Addr,
}

/// The arithmetic of a bulk reduction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
}

/// Where a bulk copy goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    /// Into shared memory, completing on an mbarrier; of several blocks if a mask says so.
    In { mbar: Addr, mask: Option<Row> },
    /// From shared memory of this block to that of another.
    Across { mbar: Addr },
    /// Out to device memory, in a group of the thread's.
    Out { reduce: Option<(Reduce, Option<Num>)> },
}

/// A copy by the TMA: of a box of a tensor, or of plain bytes.
#[derive(Clone, Debug)]
pub(crate) struct Bulk {
    pub way: Way,
    pub shared: Addr,
    pub global: Addr,
    /// Coordinates of the box, innermost first; none for plain bytes.
    pub coords: Box<[Row]>,
    pub bytes: Option<Row>,
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
