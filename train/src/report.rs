//! `report.html` in a run's folder: one file with curves, plan, configuration and sample, made from the folder alone.
//!
//! It loads nothing: style and curves are inside, so it can be sent by mail. It is written aside and renamed, so a reader
//! of a run that goes on never sees half of it. Whatever came from a file is escaped.

pub(crate) mod chart;

use crate::{
    benchmark::headline,
    folder::{self, FolderError},
    metrics::{self, MetricsError, StepRow, TaskRow, Validated},
    plan::{grouped, size},
};
use chart::{Series, figure};
use esker_eval::baseline::Baseline;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

/// Name of the report inside a run's folder.
pub const REPORT: &str = "report.html";
/// Name of what a finished run came to, inside its folder.
pub const RESULT: &str = "result.json";

/// What a finished run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// Steps done.
    pub step: u64,
    /// Of the last validation.
    pub bits_per_byte: Option<f64>,
    /// Of the same validation tokens.
    pub baseline: Option<Beaten>,
    /// A text by the model.
    pub sample: Option<Text>,
}

/// The baselines beside a run, bits per byte.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beaten {
    /// Frequency of each token.
    pub unigram: f64,
    /// Frequency of each pair, interpolated.
    pub bigram: f64,
}

impl From<Baseline> for Beaten {
    fn from(b: Baseline) -> Beaten {
        Beaten { unigram: b.unigram, bigram: b.bigram }
    }
}

/// A prompt and what the model made of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Given.
    pub prompt: String,
    /// Made.
    pub text: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The run's metrics cannot be read.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The report cannot be written.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Writes the report of the run in `folder`; gives its path.
pub fn write(folder: &Path) -> Result<PathBuf, ReportError> {
    let steps = metrics::read_steps(folder)?;
    let evals = metrics::read_evals(folder)?;
    let tasks = metrics::read_tasks(folder)?;
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let plan = read("plan.json").and_then(|text| serde_json::from_str(&text).ok());
    let finish: Option<Finish> = read(RESULT).and_then(|text| serde_json::from_str(&text).ok());
    // A run that was taken up again has outgrown what its former end came to.
    let finish = finish.filter(|f| steps.last().is_none_or(|row| row.step == f.step));
    let name = folder.file_name().map_or("run".into(), |n| n.to_string_lossy());
    let config = read(folder::CONFIG).unwrap_or_default();
    let page = Page { name: &name, steps: &steps, evals: &evals, tasks: &tasks, plan, finish, config: &config };
    let path = folder.join(REPORT);
    folder::write(&path, page.html().as_bytes())?;
    Ok(path)
}

struct Page<'a> {
    name: &'a str,
    steps: &'a [StepRow],
    evals: &'a [Validated],
    tasks: &'a [TaskRow],
    plan: Option<Value>,
    finish: Option<Finish>,
    config: &'a str,
}

impl Page<'_> {
    fn html(&self) -> String {
        let name = escape(self.name);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>{name}</title>\n<style>\n{}</style></head><body>\n<h1>{name}</h1>\n<p class=\"under\">{}</p>\n",
            include_str!("report/report.css"),
            self.state()
        );
        out.push_str(&self.cards());
        out.push_str(&self.sample());
        out.push_str("<h2>Curves</h2>\n");
        out.push_str(&self.curves());
        out.push_str(&self.benchmarks());
        out.push_str(&self.planned());
        let _ = write!(out, "<h2>Configuration</h2>\n<pre>{}</pre>\n", escape(self.config.trim_end()));
        let _ = write!(out, "<p class=\"under\">esker {}</p>\n</body></html>\n", env!("CARGO_PKG_VERSION"));
        out
    }

    fn state(&self) -> String {
        match self.steps.last() {
            None => "no step yet".into(),
            Some(row) if row.step == row.steps => format!("all {} steps done", grouped(row.steps)),
            Some(row) => format!("{} of {} steps", grouped(row.step), grouped(row.steps)),
        }
    }

    fn cards(&self) -> String {
        let mut cards: Vec<(String, &str)> = Vec::new();
        if let Some(eval) = self.evals.last() {
            cards.push((format!("{:.4}", eval.bits_per_byte), "validation, bits per byte"));
        }
        // Baselines belong to the end that they were measured at.
        if let Some(b) = self.finish.as_ref().and_then(|f| f.baseline) {
            cards.push((format!("{:.4}", b.bigram), "bigram baseline"));
            cards.push((format!("{:.4}", b.unigram), "unigram baseline"));
        }
        if let Some(row) = self.steps.last() {
            cards.push((format!("{:.4}", row.loss), "last training loss, nats"));
            cards.push((grouped(row.tokens), "tokens read"));
            cards.push((grouped(median(self.steps.iter().map(|r| r.tokens_per_s)) as u64), "tokens a second, median"));
            let shares: Vec<f64> = self.steps.iter().filter_map(|r| r.peak_share).collect();
            if !shares.is_empty() {
                cards.push((format!("{:.0} %", 100.0 * median(shares.into_iter())), "of measured peak, median"));
            }
        }
        let card =
            |(value, what): &(String, &str)| format!("<div class=\"card\"><b>{value}</b><span>{what}</span></div>\n");
        format!("<div class=\"cards\">\n{}</div>\n", cards.iter().map(card).collect::<String>())
    }

    fn sample(&self) -> String {
        match self.finish.as_ref().and_then(|f| f.sample.as_ref()) {
            None => String::new(),
            Some(s) => format!("<h2>Sample</h2>\n<pre><b>{}</b>{}</pre>\n", escape(&s.prompt), escape(&s.text)),
        }
    }

    fn curves(&self) -> String {
        let of = |f: fn(&StepRow) -> f64| self.steps.iter().map(|r| (r.step as f64, f(r))).collect::<Vec<_>>();
        let validation = self.evals.iter().map(|e| (e.step as f64, e.nll)).collect();
        let bits = self.evals.iter().map(|e| (e.step as f64, e.bits_per_byte)).collect();
        let one = |points| [Series { name: "", class: "a", points }];
        [
            figure(
                "Loss",
                "nats a token",
                &[
                    Series { name: "training", class: "a", points: of(|r| r.loss) },
                    Series { name: "validation (orange)", class: "b", points: validation },
                ],
            ),
            figure("Validation", "bits per byte", &[Series { name: "", class: "b", points: bits }]),
            figure("Learning rate", "", &one(of(|r| r.lr))),
            figure("Gradient norm", "before the clip", &one(of(|r| r.grad_norm))),
            figure("Throughput", "tokens a second", &one(of(|r| r.tokens_per_s))),
        ]
        .concat()
    }

    /// A curve for each benchmark.
    fn benchmarks(&self) -> String {
        let mut names: Vec<&str> = self.tasks.iter().map(|row| row.task.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let mut out = String::new();
        for name in names {
            // The last of a step counts: a checkpoint may have been scored again.
            let mut points = BTreeMap::new();
            let (mut unit, mut chance) = ("", None);
            for row in self.tasks.iter().filter(|row| row.task == name) {
                if let Some((metric, value)) = headline(row) {
                    points.insert(row.step, value);
                    (unit, chance) = (metric, row.chance);
                }
            }
            let level = |chance: f64| points.keys().map(|&step| (step as f64, chance)).collect();
            let guess = chance.map_or(Vec::new(), level);
            let own = points.iter().map(|(&step, &value)| (step as f64, value)).collect();
            let series = [
                Series { name: "model", class: "a", points: own },
                Series { name: "guessing (orange)", class: "b", points: guess },
            ];
            out.push_str(&figure(&escape(name), &escape(unit), &series));
        }
        if out.is_empty() { out } else { format!("<h2>Benchmarks</h2>\n{out}") }
    }

    fn planned(&self) -> String {
        let Some(plan) = &self.plan else { return String::new() };
        let number = |key: &str| plan.get(key).and_then(Value::as_f64);
        let mut rows: Vec<(String, String)> = Vec::new();
        for group in plan.get("groups").and_then(Value::as_array).into_iter().flatten() {
            if let (Some(name), Some(n)) =
                (group.get("name").and_then(Value::as_str), group.get("params").and_then(Value::as_u64))
            {
                rows.push((format!("parameters, {name}"), grouped(n)));
            }
        }
        type Show = fn(f64) -> String;
        let whole: Show = |n| grouped(n as u64);
        let exponent: Show = |n| format!("{n:.3e}");
        let bytes: Show = |n| size(n as u64);
        let keys: [(&str, &str, Show); 9] = [
            ("params", "parameters", whole),
            ("layers", "layers", whole),
            ("tokens", "tokens of the run", whole),
            ("step_tokens", "tokens of a step", whole),
            ("flops_per_token", "FLOPs of a token", exponent),
            ("total_flops", "FLOPs of the run", exponent),
            ("stream_bytes", "memory, ops' own", bytes),
            ("host_bytes", "memory, process", bytes),
            ("total_bytes", "memory", bytes),
        ];
        rows.extend(keys.iter().filter_map(|(key, what, show)| Some((what.to_string(), show(number(key)?)))));
        for (class, n) in plan.get("bytes").and_then(Value::as_object).into_iter().flatten() {
            rows.push((format!("memory, {class}"), size(n.as_u64().unwrap_or(0))));
        }
        let mut out = String::from("<h2>Plan</h2>\n<table>\n");
        for (what, value) in rows {
            let _ = writeln!(out, "<tr><th>{}</th><td class=\"n\">{}</td></tr>", escape(&what), escape(&value));
        }
        out.push_str("</table>\n");
        if let Some(formula) = plan.get("flops_formula").and_then(Value::as_str) {
            let _ = writeln!(out, "<p class=\"under\">FLOPs of a token = {}</p>", escape(formula));
        }
        out
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Text for between tags and inside quotes; control characters that HTML forbids become visible.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(steps: u64, finish: Option<Finish>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for step in 1..=steps {
            let row = StepRow {
                step,
                steps: 3000,
                loss: if step == 5 { f64::NAN } else { 8.0 / (1.0 + step as f64 / 50.0) },
                grad_norm: 1.0,
                clip: 1.0,
                lr: 1e-3,
                tokens: step * 8192,
                targets: 8192,
                step_ms: 100.0,
                data_wait_ms: 0.1,
                tokens_per_s: 81_920.0 + (step % 7) as f64,
                peak_share: Some(0.6),
                skipped: false,
            };
            lines.push_str(&serde_json::to_string(&row).unwrap());
            lines.push('\n');
        }
        std::fs::write(dir.path().join(metrics::STEPS), lines).unwrap();
        let task =
            r#"{"step":3,"task":"<piqa>","num_fewshot":0,"documents":9,"metrics":{"acc,none":0.5},"chance":0.5}"#;
        std::fs::write(dir.path().join(metrics::EVALS), format!("{task}\n")).unwrap();
        std::fs::write(dir.path().join(folder::CONFIG), "name = \"<b>&\"\n").unwrap();
        let plan = r#"{"params": 12, "groups": [{"name": "mlp", "params": 7}], "bytes": {"weights": 99}, "flops_formula": "6 < 7"}"#;
        std::fs::write(dir.path().join("plan.json"), plan).unwrap();
        if let Some(finish) = finish {
            std::fs::write(dir.path().join(RESULT), serde_json::to_string(&finish).unwrap()).unwrap();
        }
        dir
    }

    /// Tags close in the order they open, attributes are quoted, no stray `<` or `&`.
    fn well_formed(html: &str) {
        let body = html.strip_prefix("<!DOCTYPE html>\n").expect("a doctype");
        let style = body.find("<style>").unwrap()..body.find("</style>").unwrap();
        let body = [&body[..style.start], "<style>", &body[style.end..]].concat();
        let (mut open, mut rest) = (Vec::new(), body.as_str());
        while let Some(at) = rest.find('<') {
            assert!(!rest[..at].contains('>'), "stray >: {}", &rest[..at]);
            let end = rest[at..].find('>').expect("a tag ends") + at;
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closing {name}");
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        }
        assert!(open.is_empty(), "{open:?}");
        for (at, _) in body.match_indices('&') {
            let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
            assert!(known.iter().any(|k| body[at..].starts_with(k)), "a stray & at {at}");
        }
    }

    #[test]
    fn a_report_is_whole_at_every_stage_and_loads_nothing() {
        let hostile = "</pre><script>alert(1)</script> \u{1}&amp; 'é\" ".to_string();
        let sample = Some(Text { prompt: hostile.clone(), text: hostile.clone() });
        let baseline = Some(Beaten { unigram: 3.0, bigram: 2.5 });
        let finish = Finish { step: 3000, bits_per_byte: Some(2.0), baseline, sample };
        for (steps, finish) in [(0, None), (1, None), (300, None), (3000, Some(finish))] {
            let dir = folder_with(steps, finish);
            let html = std::fs::read_to_string(write(dir.path()).unwrap()).unwrap();
            well_formed(&html);
            for foreign in ["http", "<script", "src=", "@import", "url("] {
                assert!(!html.contains(foreign), "{foreign}");
            }
            assert!(html.contains("&lt;b&gt;&amp;") && html.contains("prefers-color-scheme"));
            assert!(html.len() < 300_000, "{}", html.len());
        }
    }
}
