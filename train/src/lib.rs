//! A training run, from a TOML file to a checkpoint, and the parts the `esker` binary stands on.
//!
//! Read [`run`] first: it decides, everything else computes. [`config`] turns a file into a [`config::Run`] that can
//! start, [`plan`] says what it will take, [`step`] is one update, [`checkpoint`] is what survives a crash.

pub mod benchmark;
pub mod checkpoint;
pub mod config;
pub mod folder;
pub mod guard;
pub mod masters;
pub mod metrics;
pub mod optim;
pub mod outer;
pub mod plan;
pub mod run;
pub mod schedule;
pub mod source;
pub mod state;
pub mod step;
pub mod validate;

// What the binary adds: the command line, what a person sees, and the checks of a build.
pub mod bare;
pub mod bench;
pub mod cli;
pub mod commands;
pub mod doctor;
pub mod live;
pub mod parity;
pub mod peers;
pub mod progress;
pub mod report;
pub mod study;
