//! Walks through an event log after the fact: rounds as one process saw them, what was said, and what went wrong.

use super::events;
use crate::folder::FolderError;
use esker_comms::Hash;
use esker_comms::round::Time;
use esker_comms::round::log::{History, Line, Seen, Timed, walk};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Lines of trouble kept to be shown.
const TROUBLE_MAX: usize = 50;

/// A round, for programs; times in milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub round: u64,
    /// When its manifest came.
    pub decided_ms: Option<Time>,
    /// How long training took.
    pub train_ms: Option<Time>,
    /// From one's own update to the manifest.
    pub wait_ms: Option<Time>,
    /// From the manifest to the state after it.
    pub apply_ms: Option<Time>,
    /// Updates that counted.
    pub entries: u32,
    /// Updates that did not.
    pub rejects: u32,
    /// Peers that train next.
    pub slots: u32,
    /// Whether one's own update counted, or why not.
    pub own: Option<String>,
    /// Root of the state after it.
    pub root: Option<Hash>,
}

/// What a log says.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Its files: path, first and last time, lines, and bytes behind the last whole line.
    pub files: Vec<(PathBuf, Time, Time, u64, u64)>,
    history: History,
    trouble: Vec<Timed>,
    troubles: u64,
}

/// Reads the log at `path` (a file, or a folder as [`events::files`] takes), and gives `each` line that is asked for.
///
/// # Errors
/// Where a file cannot be read.
pub fn read(path: &Path, mut each: impl FnMut(&Timed)) -> Result<Replayed, FolderError> {
    let mut out = Replayed::default();
    for file in events::files(path)? {
        let fault = |source| FolderError::Io { path: file.clone(), action: "read", source };
        let bytes = std::fs::read(&file).map_err(fault)?;
        let (mut first, mut last, mut lines) = (None, 0, 0);
        let whole = walk(&bytes, |timed| {
            first.get_or_insert(timed.at);
            (last, lines) = (timed.at, lines + 1);
            out.history.see(&timed);
            each(&timed);
            if is_trouble(&timed.line) {
                out.troubles += 1;
                if out.trouble.len() < TROUBLE_MAX {
                    out.trouble.push(timed);
                }
            }
        });
        out.files.push((file, first.unwrap_or(0), last, lines, (bytes.len() - whole) as u64));
    }
    Ok(out)
}

fn is_trouble(line: &Line) -> bool {
    use Line::{Equivocation, Fork, Mismatch, Quota, Refused};
    matches!(line, Mismatch { .. } | Refused { .. } | Equivocation { .. } | Quota { .. } | Fork { .. })
        || matches!(line, Line::TurnedAway { .. } | Line::Checked { fault: Some(_), .. })
}

impl Replayed {
    /// All rounds, in order.
    pub fn rows(&self) -> Vec<Row> {
        self.history.rounds.iter().map(|(round, seen)| row(*round, seen)).collect()
    }

    /// The walk-through, for people; of one round alone where `only` says so.
    pub fn table(&self, only: Option<u64>) -> String {
        let mut out = String::new();
        for (path, first, last, lines, cut) in &self.files {
            let _ = write!(out, "{}  {} to {}, {lines} lines", path.display(), utc(*first), utc(*last));
            let _ = match cut {
                0 => writeln!(out),
                cut => writeln!(out, "; {cut} bytes at its end are no whole line"),
            };
        }
        let _ = writeln!(
            out,
            "\n{:>7}  {:23}  {:>8}  {:>8}  {:>8}  {:>7}  {:>4}  {:>4}  {:8}  ours",
            "round", "decided, UTC", "train, s", "wait, s", "apply, s", "counted", "away", "next", "root"
        );
        let seconds = |ms: Option<Time>| ms.map_or("-".into(), |ms| format!("{:.3}", ms as f64 / 1e3));
        for row in self.rows().into_iter().filter(|row| only.is_none_or(|only| row.round == only)) {
            let _ = writeln!(
                out,
                "{:>7}  {:23}  {:>8}  {:>8}  {:>8}  {:>7}  {:>4}  {:>4}  {:8}  {}",
                row.round,
                row.decided_ms.map_or("-".into(), utc),
                seconds(row.train_ms),
                seconds(row.wait_ms),
                seconds(row.apply_ms),
                row.entries,
                row.rejects,
                row.slots,
                row.root.map_or("-".into(), |root| root.short()),
                row.own.unwrap_or_default()
            );
        }
        let _ = writeln!(out, "\n{:10}  {:>9}  {:>9}", "message", "heard", "said");
        for (kind, (heard, said)) in &self.history.messages {
            let _ = writeln!(out, "{:10}  {heard:>9}  {said:>9}", format!("{kind:?}"));
        }
        if self.troubles > 0 {
            let _ = writeln!(out, "\n{} lines of trouble", self.troubles);
        }
        self.trouble.iter().for_each(|timed| out.push_str(&line(timed)));
        out
    }
}

fn row(round: u64, seen: &Seen) -> Row {
    let between = |from: Option<Time>, to: Option<Time>| Some(to?.saturating_sub(from?));
    let (began, trained) = seen.trained;
    let (entries, rejects, slots) = seen.counts;
    Row {
        round,
        decided_ms: seen.accepted,
        train_ms: between(began, trained),
        wait_ms: between(trained, seen.accepted),
        apply_ms: between(seen.accepted, seen.applied.map(|(at, _)| at)),
        entries,
        rejects,
        slots,
        own: seen.own.map(|own| match own {
            Ok(()) => "counted".into(),
            Err(Some(reason)) => reason.to_string(),
            Err(None) => "nobody had it".into(),
        }),
        root: seen.applied.map(|(_, root)| root),
    }
}

/// A line as a person reads it: when, what, and its fields; names cut to eight digits.
pub fn line(timed: &Timed) -> String {
    let Ok(Value::Object(fields)) = serde_json::to_value(&timed.line) else {
        unreachable!("replay: a line becomes an object")
    };
    let mut out = utc(timed.at);
    let _ = write!(out, "  {:12}", fields.get("line").and_then(Value::as_str).unwrap_or_default());
    for (key, value) in fields.iter().filter(|(key, _)| *key != "line") {
        let _ = match value {
            Value::String(name) if name.len() >= 64 => write!(out, "  {key} {}", &name[..8]),
            Value::String(word) => write!(out, "  {key} {word}"),
            Value::Null => Ok(()),
            other => write!(out, "  {key} {other}"),
        };
    }
    out.push('\n');
    out
}

/// Milliseconds since 1970 as a date and time. Source of the calendar: Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`; eras of 400 years that begin on the first of March.
pub fn utc(ms: Time) -> String {
    let (days, ms) = (ms / 86_400_000, ms % 86_400_000);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (s, ms) = (ms / 1000, ms % 1000);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{ms:03}", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::super::events::EventLog;
    use super::*;
    use esker_comms::wire::{Kind, Reason};

    #[test]
    fn days_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00.000");
        assert_eq!(utc(951_827_696_789), "2000-02-29 12:34:56.789");
        assert_eq!(utc(1_790_000_000_001), "2026-09-21 14:13:20.001");
    }

    #[test]
    fn a_log_is_walked_through() {
        let dir = tempfile::tempdir().unwrap();
        let root = Hash::of(b"root");
        let lines = [
            Line::Train { round: 3, slot: 1, base_root: root },
            Line::Trained { round: 3, blob: root, tokens: 5 },
            Line::Said { to: None, kind: Kind::Commit, id: root },
            Line::Accepted { round: 3, manifest: root, entries: 2, rejects: 1, slots: 4 },
            Line::TurnedAway { round: 3, reason: Some(Reason::Norm) },
            Line::Applied { round: 3, root },
        ];
        let mut log = EventLog::open(dir.path()).unwrap();
        let times = [1000, 3500, 3600, 4000, 4000, 4250];
        lines.into_iter().zip(times).for_each(|(line, at)| log.put(&Timed { at, line }));
        let mut seen = 0;
        let replayed = read(dir.path(), |_| seen += 1).unwrap();
        let row = &replayed.rows()[0];
        assert_eq!((row.train_ms, row.wait_ms, row.apply_ms), (Some(2500), Some(500), Some(250)));
        assert_eq!((seen, row.entries, row.rejects, row.slots, row.root), (6, 2, 1, 4, Some(root)));
        let text = replayed.table(None);
        assert!(
            text.contains("1970-01-01 00:00:04.000") && text.contains("too far above the round's median"),
            "{text}"
        );
        assert!(text.contains("1 lines of trouble") && text.contains("turned_away"), "{text}");
        assert!(read(&dir.path().join("nowhere"), |_| ()).unwrap_err().to_string().contains("nowhere"));
    }
}
