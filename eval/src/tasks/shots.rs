//! The examples before a question.
//!
//! ```text
//! context = description + example_1 + ... + example_n + question
//! example = question + " " + its answer + "\n\n"
//! ```
//!
//! An example whose answer is an empty text is its question alone. Drawn examples come from one stream of Python's
//! `Random(seed)` a task: document i sees what is drawn after those of all documents before it. Where the document may
//! not be among its own examples, n + 1 are drawn, equals of it go, and n of the rest stay; should too few be left, n are
//! drawn again from the pool without it.
//! Source: lm-evaluation-harness 0.4.13, api/samplers.py and api/task.py (MIT), read for what they mean.

use super::Random;
use super::catalogue::{MINERVA_SHOTS, Pool, Spec};
use super::docs::Asked;
use super::{Doc, TaskError};

/// minerva_math's own examples.
pub(super) fn written() -> Vec<Doc> {
    let doc = |&(problem, solution): &(&str, &str)| Doc {
        row: serde_json::Map::new(),
        asked: Asked::Open { question: format!("Problem:\n{problem}\n\nSolution:"), answer: solution.into() },
    };
    MINERVA_SHOTS.iter().map(doc).collect()
}

/// The places in `pool` of the examples of each document; one list where all see the same.
pub(super) fn draw(
    spec: &Spec,
    docs: &[Doc],
    pool: &[Doc],
    shots: usize,
    seed: u64,
) -> Result<Vec<Vec<usize>>, TaskError> {
    let too_many = |asked, there, how| TaskError::Examples { task: spec.name.clone(), asked, there, how };
    match spec.pool {
        _ if shots == 0 => Ok(Vec::new()),
        Pool::Never => Ok(Vec::new()),
        Pool::First { .. } | Pool::Written if shots > pool.len() => Err(too_many(shots, pool.len(), "show")),
        Pool::First { .. } | Pool::Written => Ok(vec![(0..shots).collect()]),
        Pool::Drawn { others, .. } => {
            let mut random = Random::new(seed);
            let mut drawn = Vec::with_capacity(docs.len());
            for doc in docs {
                let n = if others { shots + 1 } else { shots };
                let mut places = random.sample(pool.len(), n).ok_or_else(|| too_many(n, pool.len(), "draw from"))?;
                if others {
                    places.retain(|&at| pool[at].row != doc.row);
                    places.truncate(shots);
                }
                if places.len() < shots {
                    let left: Vec<usize> = (0..pool.len()).filter(|&at| pool[at].row != doc.row).collect();
                    let again = random.sample(left.len(), shots);
                    let again = again.ok_or_else(|| too_many(shots, left.len(), "draw from"))?;
                    places = again.into_iter().map(|at| left[at]).collect();
                }
                drawn.push(places);
            }
            Ok(drawn)
        }
    }
}

/// Appends an example.
pub(super) fn example(asked: &Asked, out: &mut String) {
    let (question, answer): (&str, &str) = match asked {
        Asked::Choice { question, choices, gold } => {
            // A choice is an answer even when it is empty.
            out.push_str(question);
            out.push(' ');
            out.push_str(&choices[*gold]);
            return out.push_str("\n\n");
        }
        Asked::Blank { beginnings, end, gold } => (&beginnings[*gold], end),
        Asked::LastWord { text, word } => (text, word),
        Asked::Open { question, answer } => (question, answer),
    };
    out.push_str(question);
    if !answer.is_empty() {
        out.push(' ');
        out.push_str(answer);
        out.push_str("\n\n");
    }
}
