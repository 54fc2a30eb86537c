//! The ops. Each folder is one op: its page, a reference in `f64`, a fast version a device, and its cases.

pub mod adamw;
pub mod attention;
pub mod cast;
pub mod chunk_topk;
pub mod embedding;
pub mod global_norm;
pub mod matmul;
pub mod rmsnorm;
pub mod rope;
pub mod swiglu;
pub mod xent;
