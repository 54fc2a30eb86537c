//! Means over documents, their standard errors, and groups of tasks.
//!
//! ```text
//! mean         Σ x / n                                      error: √(Σ (x − mean)² / (n − 1)) / √n
//! perplexity   exp(−Σ x / n)                                error: deviation of its value over R resamplings
//! instructions share of all verdicts of all documents       no error
//! group        Σ mean_t · n_t / Σ n_t                       error: √(Σ (n_t − 1) n_t e_t² / (Σ n_t − k) / Σ n_t)
//! ```
//!
//! Resamplings are drawn as the harness draws them ([`esker_eval_chance::resample`]). One document has no error, nor has
//! a group in which one task has none. Sums run from the first document to the last.
//! Source: lm-evaluation-harness 0.4.13, api/metrics.py and api/group.py (MIT), read for what they mean.

use super::Task;
use super::catalogue::{Grade, Group};
use super::docs::Asked;
use super::score::{Scored, Value};
use esker_eval_chance::resample::{deviation, mean, of_perplexity, perplexity};
use serde_json::json;

/// A number of a task or group.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name, as `acc`.
    pub name: &'static str,
    /// Through which filter.
    pub filter: &'static str,
    /// The number.
    pub value: f64,
    /// Its standard error, where there is one.
    pub stderr: Option<f64>,
    /// What guessing would get, where there is something to guess.
    pub chance: Option<f64>,
}

impl Metric {
    /// All but a perplexity.
    pub fn higher_is_better(&self) -> bool {
        self.name != "perplexity"
    }
}

/// What a task or a group came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// A shorter one, for the table.
    pub alias: String,
    /// As the harness numbers it.
    pub version: String,
    /// Of a group, its members' names.
    pub members: Option<Vec<String>>,
    /// Depth in the table.
    pub depth: usize,
    /// Examples shown; none where a group's members differ.
    pub num_fewshot: Option<usize>,
    /// Documents scored.
    pub documents: usize,
    /// Documents of the whole split.
    pub original: usize,
    /// In the order of the task.
    pub metrics: Vec<Metric>,
    /// The task's configuration in the harness's words; null for a group.
    pub config: serde_json::Value,
}

/// A task's numbers.
pub(super) fn of_task(task: &Task, scored: &[Scored], bootstrap_iters: usize) -> Outcome {
    let mut keys: Vec<(&'static str, &'static str)> = Vec::new();
    for (name, filter) in scored.iter().flat_map(|s| s.values.iter().map(|(name, _)| (*name, s.filter))) {
        if !keys.contains(&(name, filter)) {
            keys.push((name, filter));
        }
    }
    let guess = chance(task);
    let metrics = keys
        .into_iter()
        .map(|(name, filter)| {
            let of = |s: &Scored| s.values.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
            let values: Vec<Value> = scored.iter().filter(|s| s.filter == filter).filter_map(of).collect();
            let (value, stderr) = over(name, &values, bootstrap_iters);
            let chance = guess.filter(|_| name.starts_with("acc"));
            Metric { name, filter, value, stderr, chance }
        })
        .collect();
    let spec = &task.spec;
    Outcome {
        name: spec.name.clone(),
        alias: spec.alias.clone(),
        version: format!("{:?}", spec.version),
        members: None,
        depth: 0,
        num_fewshot: Some(task.shots),
        documents: task.docs.len(),
        original: task.original,
        metrics,
        config: config(task),
    }
}

/// The mean of one over the number of choices.
fn chance(task: &Task) -> Option<f64> {
    let one = |asked: &Asked| match asked {
        Asked::Choice { choices, .. } => Some(1.0 / choices.len() as f64),
        Asked::Blank { beginnings, .. } => Some(1.0 / beginnings.len() as f64),
        Asked::LastWord { .. } | Asked::Open { .. } => None,
    };
    let each: Option<Vec<f64>> = task.docs.iter().map(|doc| one(&doc.asked)).collect();
    each.map(|each| mean(&each))
}

/// A metric over all documents, and its error.
fn over(name: &str, values: &[Value], bootstrap_iters: usize) -> (f64, Option<f64>) {
    let mut numbers = Vec::new();
    let mut verdicts = false;
    for value in values {
        match value {
            Value::Number(n) => numbers.push(*n),
            Value::Verdicts(v) => {
                verdicts = true;
                numbers.extend(v.iter().map(|v| f64::from(u8::from(*v))));
            }
        }
    }
    let errors = bootstrap_iters > 0 && values.len() > 1;
    match name {
        _ if verdicts => (mean(&numbers), None),
        "perplexity" => (perplexity(mean(&numbers)), errors.then(|| of_perplexity(&numbers, bootstrap_iters))),
        _ => (mean(&numbers), errors.then(|| deviation(&numbers) / (numbers.len() as f64).sqrt())),
    }
}

/// Groups in front of their members, in the order of the names asked for.
pub(super) fn with_groups(asked: &[String], groups: &[Group], tasks: Vec<Outcome>) -> Vec<Outcome> {
    let mut out: Vec<Outcome> = Vec::new();
    for name in asked {
        place(name, 0, groups, &tasks, &mut out);
    }
    out
}

fn place(name: &str, depth: usize, groups: &[Group], tasks: &[Outcome], out: &mut Vec<Outcome>) {
    if out.iter().any(|o| o.name == name) {
        return;
    }
    if let Some(group) = groups.iter().find(|g| g.name == name) {
        out.push(Outcome { depth, ..of_group(group, groups, tasks) });
        for member in &group.members {
            place(member, depth + 1, groups, tasks, out);
        }
    } else {
        let task = tasks.iter().find(|t| t.name == name).expect("tasks: every name was resolved");
        out.push(Outcome { depth, ..task.clone() });
    }
}

fn leaves<'a>(group: &Group, groups: &[Group], tasks: &'a [Outcome]) -> Vec<&'a Outcome> {
    let of = |member: &String| match groups.iter().find(|g| g.name == member) {
        Some(inner) => leaves(inner, groups, tasks),
        None => tasks.iter().filter(|t| t.name == *member).collect(),
    };
    group.members.iter().flat_map(of).collect()
}

fn of_group(group: &Group, groups: &[Group], tasks: &[Outcome]) -> Outcome {
    let leaves = leaves(group, groups, tasks);
    let sizes: Vec<f64> = leaves.iter().map(|t| t.documents as f64).collect();
    let all: f64 = sizes.iter().sum();
    let weigh = |x: &[f64]| x.iter().zip(&sizes).map(|(x, n)| x * n).sum::<f64>() / all;
    // The tasks of a group have the same metrics.
    let metrics = (0..leaves[0].metrics.len())
        .map(|i| {
            let of = |f: &dyn Fn(&Metric) -> Option<f64>| -> Option<Vec<f64>> {
                leaves.iter().map(|t| f(&t.metrics[i])).collect()
            };
            let pooled = |errors: Vec<f64>| {
                let sum: f64 = errors.iter().zip(&sizes).map(|(e, n)| (n - 1.0) * e * e * n).sum();
                (sum / (all - sizes.len() as f64) / all).sqrt()
            };
            Metric {
                value: weigh(&of(&|m| Some(m.value)).expect("tasks: every metric has a value")),
                stderr: of(&|m| m.stderr).map(pooled),
                chance: of(&|m| m.chance).map(|c| weigh(&c)),
                ..leaves[0].metrics[i].clone()
            }
        })
        .collect();
    let shots = leaves[0].num_fewshot;
    Outcome {
        name: group.name.into(),
        alias: group.alias.into(),
        version: group.version.into(),
        members: Some(group.members.clone()),
        depth: 0,
        num_fewshot: shots.filter(|_| leaves.iter().all(|t| t.num_fewshot == shots)),
        documents: leaves.iter().map(|t| t.documents).sum(),
        original: leaves.iter().map(|t| t.original).sum(),
        metrics,
        config: serde_json::Value::Null,
    }
}

/// The keys of the harness's configuration of a task that say what was asked and how it was scored.
fn config(task: &Task) -> serde_json::Value {
    let spec = &task.spec;
    let output_type = match spec.grade {
        Grade::Choice { .. } => "multiple_choice",
        Grade::LastWord => "loglikelihood",
        _ => "generate_until",
    };
    let mut config = json!({
        "task": spec.name,
        "task_alias": spec.alias,
        "output_type": output_type,
        "description": spec.description,
        "target_delimiter": " ",
        "fewshot_delimiter": "\n\n",
        "num_fewshot": task.shots,
        "repeats": 1,
        "metadata": {"version": spec.version},
    });
    if output_type == "generate_until" {
        let until = &spec.until;
        config["generation_kwargs"] = json!({
            "until": until.stops, "do_sample": false, "temperature": 0.0, "max_gen_toks": until.max_tokens,
        });
    }
    config
}
