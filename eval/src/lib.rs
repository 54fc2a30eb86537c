//! What a model is worth: bits per byte, what counting alone achieves, and samples.
//!
//! Nothing here changes a model: there is no gradient and no optimiser. [`loss`] scores a text or shards, [`baseline`]
//! says what to beat, [`sample`] chooses the next token and [`generate`] continues a text with it. [`engine`]
//! answers the requests of benchmarks, many at once, and [`serve`] those of the network.

pub mod engine;
pub mod generate;
pub mod graders;
pub mod loss;
pub mod report;
pub mod request;
pub mod serve;
pub mod tasks;

pub use esker_eval_chance::{baseline, sample};
