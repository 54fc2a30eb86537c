//! Operations on registers.

use super::{PSrc, Row, Width};
use crate::fp::Round;

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
