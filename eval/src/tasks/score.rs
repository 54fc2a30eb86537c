//! From answers to numbers, document by document.
//!
//! ```text
//! acc        the choice of the largest log p is the right one; of equals the first
//! acc_norm   the same for log p / characters of the choice, without the space before it
//! acc_bytes  the same for log p / bytes of the choice
//! acc        (last word) every token of it is the likeliest
//! perplexity (last word) log p of it
//! ```
//!
//! Graders of generated text stand in [`crate::graders`].
//! Source: lm-evaluation-harness 0.4.13, api/task.py (MIT), read for what it means.

use super::catalogue::Grade;
use super::docs::{self, Asked};
use super::{Doc, Task};
use crate::graders;
use crate::request::{Answer, Request};
use serde_json::{Map, json};

/// What a document is worth by one metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(f64),
    /// Of each instruction, whether it was followed.
    Verdicts(Vec<bool>),
}

/// A document through one filter.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Place among the task's documents.
    pub doc_id: usize,
    /// `none`, or the filter's name.
    pub filter: &'static str,
    /// Metric and value.
    pub values: Vec<(&'static str, Value)>,
    /// What the filter left of a generated text.
    pub filtered: Option<String>,
}

/// See [`Task::score`].
pub(super) fn of(task: &Task, answers: &[Answer]) -> Vec<Scored> {
    let filters: &[&'static str] = match task.spec.grade {
        Grade::Gsm8k => &["strict-match", "flexible-extract"],
        _ => &["none"],
    };
    let mut scored = Vec::with_capacity(filters.len() * task.docs.len());
    for &filter in filters {
        let mut left = answers;
        for (doc_id, doc) in task.docs.iter().enumerate() {
            let own;
            (own, left) = left.split_at(count(doc));
            let (filtered, values) = one(task.spec.grade, filter, doc, own);
            scored.push(Scored { doc_id, filter, values, filtered });
        }
        assert!(left.is_empty(), "tasks: {} more answers than {} asked for", left.len(), task.name());
    }
    scored
}

/// Requests of a document.
fn count(doc: &Doc) -> usize {
    match &doc.asked {
        Asked::Choice { choices, .. } => choices.len(),
        Asked::Blank { beginnings, .. } => beginnings.len(),
        Asked::LastWord { .. } | Asked::Open { .. } => 1,
    }
}

fn one(grade: Grade, filter: &str, doc: &Doc, answers: &[Answer]) -> (Option<String>, Vec<(&'static str, Value)>) {
    let number = |yes: bool| Value::Number(f64::from(u8::from(yes)));
    match (grade, &doc.asked) {
        (Grade::Choice { lengths }, Asked::Choice { choices, gold, .. }) => {
            let sums: Vec<f64> = answers.iter().map(|a| likelihood(a).0).collect();
            let best = |by: &dyn Fn(&str) -> usize| {
                let each = sums.iter().zip(choices).map(|(sum, choice)| sum / by(choice) as f64);
                number(largest(each) == *gold)
            };
            let mut values = vec![("acc", best(&|_| 1))];
            if lengths {
                values.push(("acc_norm", best(&|choice| choice.chars().count())));
                values.push(("acc_bytes", best(&str::len)));
            }
            (None, values)
        }
        (Grade::Choice { .. }, Asked::Blank { gold, .. }) => {
            (None, vec![("acc", number(largest(answers.iter().map(|a| likelihood(a).0)) == *gold))])
        }
        (Grade::LastWord, _) => {
            let (sum, greedy) = likelihood(&answers[0]);
            (None, vec![("perplexity", Value::Number(sum)), ("acc", number(greedy))])
        }
        (Grade::Gsm8k, Asked::Open { answer, .. }) => {
            let text = generated(&answers[0]);
            let found = match filter {
                "strict-match" => graders::gsm8k::strict_match(text),
                _ => graders::gsm8k::flexible_extract(text),
            };
            let right = number(graders::gsm8k::exact_match(&found, answer));
            (Some(found), vec![("exact_match", right)])
        }
        (Grade::Hendrycks, _) => {
            let text = generated(&answers[0]);
            let right = graders::math::hendrycks::process_results(text, solution(doc));
            (Some(text.into()), vec![("exact_match", number(right))])
        }
        (Grade::Minerva, _) => {
            let text = generated(&answers[0]);
            let right = graders::math::minerva::process_results(text, solution(doc));
            let values = vec![("exact_match", number(right.exact_match)), ("math_verify", number(right.math_verify))];
            (Some(text.into()), values)
        }
        (Grade::Ifeval, _) => {
            let text = generated(&answers[0]);
            let verdict =
                docs::instructions(&doc.row, text).expect("tasks: instructions are checked when rows are read");
            let all = |verdicts: &[bool]| number(verdicts.iter().all(|v| *v));
            let values = vec![
                ("prompt_level_strict_acc", all(&verdict.strict)),
                ("inst_level_strict_acc", Value::Verdicts(verdict.strict)),
                ("prompt_level_loose_acc", all(&verdict.loose)),
                ("inst_level_loose_acc", Value::Verdicts(verdict.loose)),
            ];
            (Some(text.into()), values)
        }
        (grade, asked) => unreachable!("tasks: {grade:?} of {asked:?}"),
    }
}

fn solution(doc: &Doc) -> &str {
    doc.row.get("solution").and_then(|s| s.as_str()).expect("tasks: solutions are checked when rows are read")
}

/// The place of the largest; the first of equals, and a NaN before all, as numpy's argmax has it.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best: Option<(usize, f64)> = None;
    for (i, v) in values.enumerate() {
        if best.is_none_or(|(_, b)| !b.is_nan() && (v > b || v.is_nan())) {
            best = Some((i, v));
        }
    }
    best.map_or(0, |(i, _)| i)
}

fn likelihood(answer: &Answer) -> (f64, bool) {
    match answer {
        Answer::LogLikelihood { sum, greedy, .. } => (*sum, *greedy),
        other => unreachable!("tasks: {other:?} to a question for a log-likelihood"),
    }
}

fn generated(answer: &Answer) -> &str {
    match answer {
        Answer::Generate { text } => text,
        other => unreachable!("tasks: {other:?} to a question for a text"),
    }
}

impl Task {
    /// A line of the harness's samples file for each of `scored`: document, requests, answers and what they are worth.
    ///
    /// Keys as in the harness, its digests (`doc_hash`, `prompt_hash`, `target_hash`) left out: they cover how a Python
    /// dictionary prints. `answers` are those to [`Task::requests`].
    pub fn samples(&self, answers: &[Answer], scored: &[Scored]) -> impl Iterator<Item = serde_json::Value> {
        let (mut first, mut at) = (Vec::with_capacity(self.docs.len()), 0);
        for doc in &self.docs {
            first.push(at);
            at += count(doc);
        }
        scored.iter().map(move |s| {
            let doc = &self.docs[s.doc_id];
            let asked = self.requests_of(s.doc_id);
            let own = &answers[first[s.doc_id]..][..asked.len()];
            let arguments: Map<String, serde_json::Value> =
                asked.iter().enumerate().map(|(i, r)| (format!("gen_args_{i}"), arguments(r))).collect();
            let resps: Vec<serde_json::Value> = own.iter().map(shown).collect();
            let filtered = match &s.filtered {
                Some(text) => json!([text]),
                None => json!(resps),
            };
            let mut out = json!({
                "doc_id": s.doc_id,
                "doc": doc.row,
                "target": target(&doc.asked),
                "arguments": arguments,
                "resps": resps.iter().map(|r| json!([r])).collect::<Vec<_>>(),
                "filtered_resps": filtered,
                "filter": s.filter,
                "metrics": s.values.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            });
            for (name, value) in &s.values {
                out[*name] = match value {
                    Value::Number(n) => json!(n),
                    Value::Verdicts(v) => json!(v),
                };
            }
            out
        })
    }
}

fn arguments(request: &Request) -> serde_json::Value {
    match request {
        Request::LogLikelihood { context, continuation } => json!({"arg_0": context, "arg_1": continuation}),
        Request::Rolling { text } => json!({"arg_0": text}),
        Request::Generate { context, until, max_tokens } => json!({
            "arg_0": context,
            "arg_1": {"until": until, "do_sample": false, "temperature": 0.0, "max_gen_toks": max_tokens},
        }),
    }
}

/// An answer as the samples files have it: numbers and flags as Python prints them.
fn shown(answer: &Answer) -> serde_json::Value {
    match answer {
        Answer::LogLikelihood { sum, greedy, .. } => {
            json!([format!("{sum:?}"), if *greedy { "True" } else { "False" }])
        }
        Answer::Rolling { sum, .. } => json!(format!("{sum:?}")),
        Answer::Generate { text } => json!(text),
    }
}

fn target(asked: &Asked) -> String {
    match asked {
        Asked::Choice { gold, .. } => gold.to_string(),
        Asked::Blank { end, .. } => end.clone(),
        Asked::LastWord { word, .. } => word.clone(),
        Asked::Open { answer, .. } => answer.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_and_nan_before_all() {
        let of = |v: &[f64]| largest(v.iter().copied());
        assert_eq!(of(&[-2.0, -1.0, -1.0]), 1);
        assert_eq!(of(&[f64::NEG_INFINITY; 2]), 0);
        assert_eq!(of(&[0.0, f64::NAN, f64::NAN, 9.0]), 1);
        assert_eq!(of(&[]), 0);
    }
}
