//! Probabilities and draws: what evaluation computes itself for each token of a vocabulary, of a text, or for each of
//! many draws.
//!
//! [`sample`] chooses the next token, [`baseline`] counts tokens and pairs, [`random`] draws as Python does and
//! [`resample`] says how far a mean may be off.
//!
//! It is a crate of its own because `esker-eval` is built without optimisation: that reads rows, puts strings together
//! and lets the network work, and optimised it would take seconds more to build. A loop over logits, tokens or draws
//! belongs here.

pub mod baseline;
pub mod random;
pub mod resample;
pub mod sample;
