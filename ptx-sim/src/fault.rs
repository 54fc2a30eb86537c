//! What stops a launch, and where it stood.

use std::fmt;
use std::sync::Arc;

/// A launch that could not go on: what is wrong, and which thread of which block ran which instruction.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The kernel's name.
    pub kernel: String,
    /// The name its PTX was parsed under.
    pub file: Arc<str>,
    /// The line of the PTX, from 1.
    pub line: u32,
    /// The instruction as it stands there.
    pub text: String,
    /// The block.
    pub block: [u32; 3],
    /// The warp in the block.
    pub warp: u32,
    /// The lane in the warp.
    pub lane: u32,
    /// What is wrong.
    pub kind: Box<FaultKind>,
}

/// The kinds of [`Fault`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch does not fit the kernel: too many threads, too few bytes of parameters.
    #[error("the launch does not fit the kernel: {0}")]
    Launch(String),
    /// An access outside of every allocation, or of the block's shared memory.
    #[error("{what} of {bytes} bytes at {space} address {address:#x}: {why}")]
    OutOfBounds {
        /// `load`, `store`, ...
        what: &'static str,
        /// `global`, `shared`, ...
        space: &'static str,
        /// The address within the space.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
        /// What lies there instead.
        why: String,
    },
    /// An address that is no multiple of the access's size.
    #[error("{what} of {bytes} bytes at {space} address {address:#x}, which is no multiple of {bytes}")]
    Misaligned {
        /// `load`, `store`, ...
        what: &'static str,
        /// `global`, `shared`, ...
        space: &'static str,
        /// The address within the space.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// A read of bytes that nobody wrote.
    #[error("{what} of {bytes} bytes at {space} address {address:#x}, not all of which were ever written")]
    Unwritten {
        /// `load`, `atomic`, ...
        what: &'static str,
        /// `global`, `shared`, ...
        space: &'static str,
        /// The address within the space.
        address: u64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// Two accesses of the same bytes, at least one of them a write, that nothing puts in order.
    #[error("race at {space} address {address:#x}: this {what} and the {other} by {by} (line {line}) have no order")]
    Race {
        /// `load`, `store`, ...
        what: &'static str,
        /// `global` or `shared`.
        space: &'static str,
        /// The address within the space.
        address: u64,
        /// What the other access was.
        other: &'static str,
        /// Who made it.
        by: String,
        /// Its line in the PTX.
        line: u32,
    },
    /// Memory written by plain stores and read by the async proxy without a proxy fence between.
    #[error(
        "the async proxy reads {space} address {address:#x}, which {by} wrote (line {line}) without a fence.proxy.async after it"
    )]
    ProxyFence {
        /// `global` or `shared`.
        space: &'static str,
        /// The address within the space.
        address: u64,
        /// Who wrote it.
        by: String,
        /// The store's line in the PTX.
        line: u32,
    },
    /// Every thread waits for another.
    #[error("deadlock: {}", .waits.join("; "))]
    Deadlock {
        /// Who waits where, for what.
        waits: Vec<String>,
    },
    /// An instruction used against its rules.
    #[error("{0}")]
    Misuse(String),
    /// `trap`.
    #[error("the kernel trapped")]
    Trap,
    /// The launch ran longer than its options allow.
    #[error("no end after {0} instructions of warps; {1}")]
    Endless(u64, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "kernel {}, {}:{} `{}`", self.kernel, self.file, self.line, self.text)?;
        write!(f, ", block ({x}, {y}, {z}), warp {}, lane {}: {}", self.warp, self.lane, self.kind)
    }
}

impl std::error::Error for Fault {}

/// A fault before it knows its place.
#[derive(Debug)]
pub(crate) struct Stop {
    pub lane: u32,
    pub kind: FaultKind,
}

impl Stop {
    pub fn new(lane: u32, kind: FaultKind) -> Box<Stop> {
        Box::new(Stop { lane, kind })
    }

    pub fn misuse(lane: u32, what: impl Into<String>) -> Box<Stop> {
        Stop::new(lane, FaultKind::Misuse(what.into()))
    }
}

pub(crate) type Step<T> = Result<T, Box<Stop>>;
