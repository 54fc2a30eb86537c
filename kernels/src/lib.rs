//! What runs on a device: streams, memory, and the ops.
//!
//! An op is a folder under [`ops`]: a page with its formula, a reference in `f64`, a fast version for each device, and
//! the cases that conformance checks and the bench times. This crate knows no layer, no file format and no network.
//!
//! Start with [`ops::rmsnorm`], the smallest whole op; [`device`] and [`tensor`] are what all of them stand on.

pub mod bench;
pub mod device;
pub mod harness;
pub mod ops;
pub mod peak;
pub mod pool;
pub mod simd;
pub mod tensor;

/// A failure of the world the kernels run in; our own mistakes panic and name the op.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The system would not give the memory that the plan asks for.
    #[error(
        "could not map {wanted_bytes} bytes of host memory: {source}; lower batch.micro_rows, set train.recompute = \"block\" or use a smaller model"
    )]
    OutOfMemory {
        /// Bytes asked for in one mapping.
        wanted_bytes: usize,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The threads of a CPU stream could not be started.
    #[error("could not start {threads} worker threads: {why}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system answered.
        why: String,
    },
}

/// What every door returns.
pub type Result<T> = std::result::Result<T, DeviceError>;
