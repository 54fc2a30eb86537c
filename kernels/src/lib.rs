//! What runs on a device: streams, memory, and the ops.
//!
//! An op is a folder under [`ops`]: a page with its formula, a reference in `f64`, a fast version for each device, and
//! the cases that conformance checks and the bench times. This crate knows no layer, no file format and no network.
//!
//! Start with [`ops::rmsnorm`], the smallest whole op; [`device`] and [`tensor`] are what all of them stand on.

pub mod bench;
pub mod device;
pub mod gpu;
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
        "could not map {wanted_bytes} bytes of host memory: {source}; in a run lower batch.micro_rows or set train.recompute = \"block\", elsewhere ask for fewer tokens at once, or use a smaller model"
    )]
    OutOfMemory {
        /// Bytes asked for in one mapping.
        wanted_bytes: usize,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The machine has no CUDA driver.
    #[error("no NVIDIA driver here (libcuda.so.1 was not found): install one, or use --device cpu")]
    NoDriver,
    /// The driver sees fewer cards.
    #[error("there is no card {ordinal}: the driver sees {cards} (see CUDA_VISIBLE_DEVICES)")]
    NoCard {
        /// Number asked for.
        ordinal: usize,
        /// How many there are.
        cards: usize,
    },
    /// The driver is older than the kernels' compiler.
    #[error("the driver is for CUDA {}.{}; the kernels need {}.{}: install driver 580 or newer", has / 1000, has % 1000 / 10, wants / 1000, wants % 1000 / 10)]
    OldDriver {
        /// What the driver knows, 13000 for 13.0.
        has: u32,
        /// What the kernels were compiled with.
        wants: u32,
    },
    /// The kernels need more than the card has.
    #[error("{name} has compute capability {}.{}; the kernels need 8.0", capability.0, capability.1)]
    OldCard {
        /// Marketing name.
        name: String,
        /// Compute capability.
        capability: (u32, u32),
    },
    /// A call of the driver failed.
    #[error("{call}: {why}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// What it answered.
        why: String,
    },
    /// The card has less memory than the plan asks for.
    #[error(
        "the plan asks for {wanted_bytes} bytes of device memory in one piece; {free_bytes} of {all_bytes} are free: lower batch.micro_rows, set train.recompute = \"block\" or use a smaller model"
    )]
    OutOfDeviceMemory {
        /// Bytes asked for in one allocation.
        wanted_bytes: usize,
        /// Bytes free.
        free_bytes: usize,
        /// Bytes of the card.
        all_bytes: usize,
    },
    /// There is no image of a kernel that this device could run.
    #[error("{why}")]
    Kernel {
        /// Which, and what to do.
        why: String,
    },
    /// The simulator found a kernel at fault.
    #[error("{fault}")]
    Simulator {
        /// The instruction, the thread and the fault.
        fault: String,
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
