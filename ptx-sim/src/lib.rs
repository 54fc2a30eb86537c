//! Runs the PTX of CUDA kernels on a CPU, and reports what a GPU would let pass.
//!
//! [`Module::parse`] understands a PTX text, [`launch`] runs one of its kernels on a [`Memory`]. A kernel that reads
//! memory nobody wrote, steps outside of an allocation, races, or waits for ever ends in a [`Fault`] that names the
//! instruction and the thread. The README says what is modelled and what is not.

mod clock;
mod decode;
mod exec;
mod fault;
mod fp;
mod ir;
mod lex;
mod memory;
mod parse;
mod race;
mod report;
mod tensor_map;
mod window;

pub use exec::{Checks, Launch, Options, launch};
pub use fault::{Fault, FaultKind};
pub use ir::{Kernel, Param};
pub use memory::{Memory, OutOfRange};
pub use parse::{Module, ParseError};
pub use report::{LineReport, Report};
pub use tensor_map::{BadMap, Element, Swizzle, TensorMap};
