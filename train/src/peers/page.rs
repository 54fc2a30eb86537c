//! `report.html` of a run of several owners on one machine.

use super::local::{Alone, Row};
use crate::config::Run;
use crate::folder::{self, FolderError};
use crate::report::chart::{Series, figure_over};
use crate::report::{REPORT, escape};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What a run of several owners came to, beside one owner.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// How many.
    pub owners: usize,
    /// A round each.
    pub rows: Vec<Row>,
    /// Loss of the shared weights at the end, on the validation set.
    pub nll: Option<f64>,
    /// The same tokens by one owner.
    pub alone: Alone,
    /// Bytes of an update.
    pub update_bytes: u64,
    /// How many times less that is than the model in f32.
    pub compression: f64,
    /// Seconds of all rounds, the start of the processes among them.
    pub seconds: f64,
    /// Seconds of the one owner.
    pub alone_seconds: f64,
}

impl Outcome {
    /// How much worse the owners are than one, as a share of its loss.
    pub fn worse(&self) -> Option<f64> {
        Some(self.nll? / self.alone.nll? - 1.0)
    }
}

/// Writes the report and `result.json` into `folder`; gives the report's path.
pub fn write(folder: &Path, run: &Run, outcome: &Outcome) -> Result<PathBuf, FolderError> {
    let json = serde_json::to_vec_pretty(outcome).expect("our own types become JSON");
    folder::write(&folder.join("result.json"), &json)?;
    let path = folder.join(REPORT);
    folder::write(&path, html(run, outcome).as_bytes())?;
    Ok(path)
}

fn html(run: &Run, o: &Outcome) -> String {
    let name = escape(&run.name);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>{name}</title>\n<style>\n{}</style></head><body>\n<h1>{name}</h1>\n<p class=\"under\">{} owners, {} rounds, one state: the roots of all were equal after every round</p>\n<div class=\"cards\">\n",
        include_str!("../report/report.css"),
        o.owners,
        o.rows.len()
    );
    let mut card = |value: String, what: &str| {
        let _ = writeln!(out, "<div class=\"card\"><b>{value}</b><span>{what}</span></div>");
    };
    if let (Some(nll), Some(alone)) = (o.nll, o.alone.nll) {
        card(format!("{nll:.4}"), "validation loss of the owners, nats");
        card(format!("{alone:.4}"), "of one owner with the same tokens");
    }
    if let Some(worse) = o.worse() {
        card(format!("{:+.2} %", 100.0 * worse), "against one owner");
    }
    card(format!("{:.1}", o.compression), "times less than the model in f32");
    card(format!("{:.1} kB", o.update_bytes as f64 / 1e3), "an update");
    card(format!("{:.0} s", o.seconds), "for all rounds");
    out.push_str("</div>\n<h2>Curves</h2>\n");
    let tokens = |round: usize| {
        let steps = run.outer.as_ref().map_or(1, |outer| outer.inner_steps);
        (round as u64 + 1) as f64 * (steps * run.batch.tokens_per_step as u64 * o.owners as u64) as f64
    };
    let owners = o.rows.iter().enumerate().map(|(i, row)| (tokens(i), row.loss)).collect();
    let alone = o.alone.losses.iter().enumerate().map(|(i, loss)| (tokens(i), *loss)).collect();
    let all = format!("{} owners", o.owners);
    let lines = [
        Series { name: &all, class: "a", points: owners },
        Series { name: "one owner (orange)", class: "b", points: alone },
    ];
    out.push_str(&figure_over("tokens", "Training loss", "nats a token", &lines));
    let sent = |row: &Row| (row.round as f64, row.up_bytes / 1e3);
    let got = |row: &Row| (row.round as f64, row.down_bytes / 1e3);
    let bytes = [
        Series { name: "sent", class: "a", points: o.rows.iter().map(sent).collect() },
        Series { name: "received (orange)", class: "b", points: o.rows.iter().map(got).collect() },
    ];
    out.push_str(&figure_over("round", "Bytes of an owner", "kB a round", &bytes));
    out.push_str("<h2>Rounds</h2>\n<table>\n<tr><th>round</th><th>loss</th><th>up, kB</th><th>down, kB</th><th>counted</th><th>root</th></tr>\n");
    for row in &o.rows {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"n\">{:.4}</td><td class=\"n\">{:.1}</td><td class=\"n\">{:.1}</td><td>{}</td><td>{}</td></tr>",
            row.round,
            row.loss,
            row.up_bytes / 1e3,
            row.down_bytes / 1e3,
            who(&row.counted),
            escape(row.root.get(..16).unwrap_or(&row.root))
        );
    }
    let _ = write!(out, "</table>\n<h2>Configuration</h2>\n<pre>{}</pre>\n", escape(run.to_toml().trim_end()));
    let _ = write!(out, "<p class=\"under\">esker {}</p>\n</body></html>\n", env!("CARGO_PKG_VERSION"));
    out
}

/// Numbers of the owners whose updates counted, a dot for one that did not.
pub fn who(counted: &[bool]) -> String {
    let one = |(i, counted): (usize, &bool)| if *counted { format!("{}", i + 1) } else { ".".into() };
    counted.iter().enumerate().map(one).collect::<Vec<_>>().join(" ")
}
