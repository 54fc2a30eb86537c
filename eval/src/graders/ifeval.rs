//! IFEval (version 4.0 of the task): whether a response follows each instruction of its prompt.
//!
//! 25 kinds of instruction, each with a verifier (`instruction`); `punkt`, `words`, `langdetect` and `json`
//! are what they lean on. *Strict* asks of the response as it is, *loose* of eight forms of it: with and without `*`,
//! with and without its first line, its last line, both. An empty form follows nothing. At the level of a prompt all
//! instructions must be followed; at the level of instructions each counts.
//!
//! Where the harness draws at random, because an argument is missing, zero or out of range, we refuse the row by name:
//! no row of the data set needs it, save two that ask for a letter that is none (`#`, `!`). There the harness counts a
//! letter drawn from the alphabet in both cases, so the likelier verdict is given: what more than half of them would
//! give.
//!
//! Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911;
//! lm-evaluation-harness 0.4.13, tasks/ifeval (Apache-2.0), read for what it means.

use serde_json::Value;

mod instruction;
mod json;
mod langdetect;
mod punkt;
mod words;

pub use instruction::{IDS, Instruction};

/// Why the instructions of a row cannot be checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IfevalError {
    /// An id that is not in [`IDS`].
    #[error("instruction {id:?} is unknown; IFEval has {}", IDS.join(", "))]
    UnknownInstruction {
        /// as the row has it
        id: String,
    },
    /// Not as many sets of arguments as instructions.
    #[error(
        "{ids} instructions but {kwargs} entries in kwargs; each instruction needs one, {{}} where it has no argument"
    )]
    Lengths {
        /// instructions of the row
        ids: usize,
        /// entries in its kwargs
        kwargs: usize,
    },
    /// An argument is absent, null, zero or empty.
    #[error("instruction {id}: argument {key:?} is missing; {expected} was expected")]
    Missing {
        /// the instruction
        id: &'static str,
        /// the argument
        key: &'static str,
        /// what would do
        expected: &'static str,
    },
    /// An argument has another type or lies out of range.
    #[error("instruction {id}: argument {key:?} is {value}; {expected} was expected")]
    Invalid {
        /// the instruction
        id: &'static str,
        /// the argument
        key: String,
        /// as the row has it
        value: String,
        /// what would do
        expected: &'static str,
    },
}

/// What one response is worth: a flag for each instruction, in the row's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// of the response as it is
    pub strict: Vec<bool>,
    /// of any of its eight forms
    pub loose: Vec<bool>,
}

/// Whether a response follows the instructions of a row (`instruction_id_list` and `kwargs`, one object each; null and
/// empty arguments count as absent).
pub fn verdict<S: AsRef<str>>(ids: &[S], kwargs: &[Value], response: &str) -> Result<Verdict, IfevalError> {
    if ids.len() != kwargs.len() {
        return Err(IfevalError::Lengths { ids: ids.len(), kwargs: kwargs.len() });
    }
    let instructions: Vec<Instruction> =
        ids.iter().zip(kwargs).map(|(id, kwargs)| Instruction::parse(id.as_ref(), kwargs)).collect::<Result<_, _>>()?;
    let forms = forms(response);
    let follows = |i: &Instruction, form: &String| !super::python::strip(form).is_empty() && i.is_followed_by(form);
    Ok(Verdict {
        strict: instructions.iter().map(|i| follows(i, &forms[0])).collect(),
        loose: instructions.iter().map(|i| forms.iter().any(|form| follows(i, form))).collect(),
    })
}

/// The response and its seven loose forms, each once.
fn forms(response: &str) -> Vec<String> {
    let lines: Vec<&str> = response.split('\n').collect();
    let joined = |lines: &[&str]| super::python::strip(&lines.join("\n")).to_owned();
    let no_first = joined(&lines[1..]);
    let no_last = joined(&lines[..lines.len() - 1]);
    let neither = joined(lines.get(1..lines.len() - 1).unwrap_or(&[]));
    let mut forms: Vec<String> = Vec::new();
    for form in [response.to_owned(), no_first, no_last, neither] {
        for form in [form.replace('*', ""), form].into_iter().rev() {
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}
