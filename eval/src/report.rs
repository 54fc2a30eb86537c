//! Results as a table for a person, and as JSON in the layout of lm-evaluation-harness.
//!
//! The JSON's keys are the harness's: `results` (a task's `metric,filter` and `metric_stderr,filter`, `"N/A"` where
//! there is no error), `groups`, `group_subtasks`, `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`.
//! `chance` is ours: what guessing gets.

use crate::tasks::{Metric, Outcome};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// The layout of the harness.
pub fn json(outcomes: &[Outcome]) -> Value {
    let mut out = json!({});
    let keyed = |f: &dyn Fn(&Outcome) -> Option<Value>| -> Value {
        Value::Object(outcomes.iter().filter_map(|o| Some((o.name.clone(), f(o)?))).collect())
    };
    let task = |o: &Outcome| o.members.is_none();
    out["results"] = keyed(&|o| Some(results(o)));
    if outcomes.iter().any(|o| !task(o)) {
        out["groups"] = keyed(&|o| (!task(o)).then(|| results(o)));
    }
    out["group_subtasks"] = keyed(&|o| o.members.as_ref().map(|members| json!(members)));
    out["configs"] = keyed(&|o| task(o).then(|| o.config.clone()));
    out["versions"] = keyed(&|o| {
        // A task's is a number, a group's a text.
        let number = task(o).then(|| o.version.parse::<f64>().ok()).flatten();
        Some(number.map_or_else(|| json!(o.version), |n| json!(n)))
    });
    out["n-shot"] = keyed(&|o| o.num_fewshot.map(|n| json!(n)));
    out["higher_is_better"] =
        keyed(&|o| Some(o.metrics.iter().map(|m| (m.name.to_owned(), json!(m.higher_is_better()))).collect()));
    out["n-samples"] = keyed(&|o| task(o).then(|| json!({"original": o.original, "effective": o.documents})));
    out["chance"] = keyed(&|o| {
        let each: Map<String, Value> =
            o.metrics.iter().filter_map(|m| Some((format!("{},{}", m.name, m.filter), json!(m.chance?)))).collect();
        (!each.is_empty()).then_some(Value::Object(each))
    });
    out
}

fn results(o: &Outcome) -> Value {
    let mut out = json!({"name": o.name, "alias": o.alias, "sample_len": o.documents});
    let mut counts = Map::new();
    for m in &o.metrics {
        let key = format!("{},{}", m.name, m.filter);
        out[&key] = json!(m.value);
        out[format!("{}_stderr,{}", m.name, m.filter)] = m.stderr.map_or_else(|| json!("N/A"), |e| json!(e));
        counts.insert(key, json!(o.documents));
    }
    if o.members.is_some() {
        out["sample_count"] = Value::Object(counts);
    }
    out
}

/// A table: a line for each metric of each task, groups before their members.
pub fn table(outcomes: &[Outcome]) -> String {
    let header =
        ["task", "version", "filter", "shots", "docs", "metric", "", "value", "stderr", "chance"].map(String::from);
    let mut lines = vec![header];
    for o in outcomes {
        for (i, m) in o.metrics.iter().enumerate() {
            lines.push(line(o, m, i == 0));
        }
    }
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let number = matches!(column, 3 | 4 | 7..);
            let _ = if number { write!(text, "{cell:>width$}  ") } else { write!(text, "{cell:<width$}  ") };
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

fn line(o: &Outcome, m: &Metric, first: bool) -> [String; 10] {
    let once = |text: String| if first { text } else { String::new() };
    let indent = if o.depth > 0 { format!("{}- ", " ".repeat(o.depth)) } else { String::new() };
    let number = |x: Option<f64>| x.map_or(String::new(), four);
    [
        once(format!("{indent}{}", o.alias)),
        once(o.version.clone()),
        m.filter.into(),
        o.num_fewshot.map_or(String::new(), |n| n.to_string()),
        o.documents.to_string(),
        m.name.into(),
        if m.higher_is_better() { "↑" } else { "↓" }.into(),
        four(m.value),
        number(m.stderr),
        number(m.chance),
    ]
}

/// Four places, or an exponent where the number is large: the perplexity of an untrained model is.
fn four(x: f64) -> String {
    if x.abs() < 1e7 { format!("{x:.4}") } else { format!("{x:.4e}") }
}
