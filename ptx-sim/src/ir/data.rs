//! Accesses of memory, copies and mbarriers.

use super::{Float, Num, Row};

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
