//! What holds of a run as a whole: one binary, so that it links once.

mod benchmarks;
mod bits;
mod checkpoints;
mod configs;
mod device;
mod kill;
mod layering;
mod memory;
mod mixture;
mod outer;
mod peers;
mod presets;
mod resume;
mod steady;
mod tiny;
