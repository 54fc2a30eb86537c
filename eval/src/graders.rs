//! Graders that need no model: what a generated text is worth against a gold answer or a list of instructions.
//!
//! [`gsm8k`] takes a number out of a text and compares it, [`math`] compares answers written in LaTeX, [`ifeval`] says
//! of each instruction whether a response follows it. Each follows lm-evaluation-harness 0.4.13 and its page says where
//! it departs. All of it is pure: the same strings give the same verdict on every machine, no string makes it panic,
//! and the work is bounded for strings made to hurt.

pub mod gsm8k;
pub mod ifeval;
pub mod math;
mod python;
