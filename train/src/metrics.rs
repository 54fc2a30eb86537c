//! What a run tells: one JSON line a step in `steps.jsonl`, one a validation or a benchmark in `evals.jsonl`.
//!
//! Keys carry their units. A line is written with one call and a buffer that is used again, so a step allocates nothing
//! and a kill tears at most the last line. A resumed run cuts both files back to its checkpoint's step and goes on, so
//! that they equal a straight run's, times aside. Lines are appended, so that another process may add what it measured of
//! a checkpoint to `evals.jsonl`. A number that is not finite is written as null.

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// One update.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Updates done, this one among them.
    pub step: u64,
    /// Updates of the whole run.
    pub steps: u64,
    /// Mean over the step's targets, nats a token.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Norm of the whole gradient, before clipping.
    #[serde(deserialize_with = "or_nan")]
    pub grad_norm: f64,
    /// What the gradient was multiplied with; 1 where nothing was clipped.
    pub clip: f32,
    /// Learning rate.
    pub lr: f64,
    /// Tokens read since the start of the run.
    pub tokens: u64,
    /// Targets that counted in this step.
    pub targets: u64,
    /// Whole step.
    pub step_ms: f64,
    /// Part of it spent waiting for tokens.
    pub data_wait_ms: f64,
    /// Tokens of this step over its time.
    pub tokens_per_s: f64,
    /// FLOPs of the step over its time, as a share of the measured peak; null where none was measured.
    pub peak_share: Option<f64>,
    /// The guard left the update out.
    pub skipped: bool,
}

/// One validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// Updates done.
    pub step: u64,
    /// Σ nll / ln 2 / bytes.
    #[serde(deserialize_with = "or_nan")]
    pub bits_per_byte: f64,
    /// Mean, nats a token.
    #[serde(deserialize_with = "or_nan")]
    pub nll: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// UTF-8 bytes of text behind them.
    pub bytes: u64,
    /// Time it took.
    pub ms: f64,
}

/// One benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Updates done.
    pub step: u64,
    /// Name of the task or group.
    pub task: String,
    /// Examples before each question, where all its tasks show as many.
    pub num_fewshot: Option<usize>,
    /// Documents scored.
    pub documents: usize,
    /// Keys as in lm-evaluation-harness: `acc,none`, `acc_stderr,none`; null where a number is not finite or not there.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// What guessing gets, where there is something to guess.
    pub chance: Option<f64>,
}

fn or_nan<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// Why metrics could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A line that is no row.
    #[error("{path}:{line}: {why}; delete the line, or the file")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What the parser found.
        why: String,
    },
}

/// Names of the two files inside a run's folder.
pub const STEPS: &str = "steps.jsonl";
/// See [`STEPS`].
pub const EVALS: &str = "evals.jsonl";

/// The rows of `steps.jsonl` in `folder`; none when the file is not there.
pub fn read_steps(folder: &Path) -> Result<Vec<StepRow>, MetricsError> {
    read(&folder.join(STEPS), |_| true)
}

/// The validations of `evals.jsonl` in `folder`; none when the file is not there.
pub fn read_evals(folder: &Path) -> Result<Vec<Validated>, MetricsError> {
    read(&folder.join(EVALS), |line| !is_task(line))
}

/// The benchmarks of `evals.jsonl` in `folder`; none when the file is not there.
pub fn read_tasks(folder: &Path) -> Result<Vec<TaskRow>, MetricsError> {
    read(&folder.join(EVALS), is_task)
}

fn is_task(line: &str) -> bool {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "task")]
        _task: String,
    }
    serde_json::from_str::<Named>(line).is_ok()
}

/// Appends benchmarks to `evals.jsonl` in `folder`, while a run may be writing there.
pub fn append_tasks(folder: &Path, rows: &[TaskRow]) -> Result<(), MetricsError> {
    let path = folder.join(EVALS);
    let lines: String =
        rows.iter().map(|row| serde_json::to_string(row).expect("metrics: a row is always JSON") + "\n").collect();
    let file = File::options().append(true).create(true).open(&path);
    let result = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    result.map_err(|source| MetricsError::Io { path, action: "append to", source })
}

/// Both files, open for writing.
#[derive(Debug)]
pub struct Metrics {
    steps: Lines,
    evals: Lines,
}

impl Metrics {
    /// Opens the files in `folder` and cuts off every line after `step`.
    pub fn open(folder: &Path, step: u64) -> Result<Metrics, MetricsError> {
        Ok(Metrics { steps: Lines::open(folder.join(STEPS), step)?, evals: Lines::open(folder.join(EVALS), step)? })
    }

    /// Appends a step.
    pub fn step(&mut self, row: &StepRow) -> Result<(), MetricsError> {
        self.steps.write(row)
    }

    /// Appends a validation.
    pub fn validated(&mut self, row: &Validated) -> Result<(), MetricsError> {
        self.evals.write(row)
    }

    /// Appends a benchmark.
    pub fn task(&mut self, row: &TaskRow) -> Result<(), MetricsError> {
        self.evals.write(row)
    }

    /// Brings both to the disk: a checkpoint is never newer than its lines.
    pub fn sync(&self) -> Result<(), MetricsError> {
        self.steps.sync()?;
        self.evals.sync()
    }
}

/// Appends lines to a file with one write each.
#[derive(Debug)]
struct Lines {
    file: File,
    path: PathBuf,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: PathBuf, step: u64) -> Result<Lines, MetricsError> {
        let io = |action| move |source| (action, source);
        let open = || {
            let mut options = File::options();
            let file = options.read(true).append(true).create(true).open(&path).map_err(io("open"))?;
            let end = end_of(&file, step).map_err(io("read"))?;
            file.set_len(end).map_err(io("cut"))?;
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Lines { file, path, line: Vec::with_capacity(1 << 10) }),
            Err((action, source)) => Err(MetricsError::Io { path, action, source }),
        }
    }

    fn write(&mut self, row: &impl Serialize) -> Result<(), MetricsError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, row).expect("metrics: a row is always JSON");
        self.line.push(b'\n');
        let result = self.file.write_all(&self.line);
        result.map_err(|source| MetricsError::Io { path: self.path.clone(), action: "write", source })
    }

    fn sync(&self) -> Result<(), MetricsError> {
        let result = self.file.sync_data();
        result.map_err(|source| MetricsError::Io { path: self.path.clone(), action: "sync", source })
    }
}

/// What every line has; the rest is not looked at.
#[derive(Deserialize)]
struct Numbered {
    step: u64,
}

/// The byte after the last whole line whose step is at most `step`; a torn or foreign line ends the file.
fn end_of(file: &File, step: u64) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut line, mut end) = (Vec::new(), 0);
    loop {
        line.clear();
        // A line is bounded, whatever the file holds.
        let got = std::io::Read::take(&mut reader, 1 << 16).read_until(b'\n', &mut line)?;
        let keep =
            line.last() == Some(&b'\n') && serde_json::from_slice::<Numbered>(&line).is_ok_and(|row| row.step <= step);
        if !keep {
            return Ok(end);
        }
        end += got as u64;
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<T>, MetricsError> {
    let io = |source| MetricsError::Io { path: path.into(), action: "read", source };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(e)),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let row = |(i, line): (usize, &str)| {
        let why = |e: serde_json::Error| MetricsError::Line { path: path.into(), line: i + 1, why: e.to_string() };
        serde_json::from_str(line).map_err(why)
    };
    whole.lines().enumerate().filter(|(_, line)| wanted(line)).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> StepRow {
        StepRow {
            step,
            steps: 9,
            loss: 1.0 / step as f64,
            grad_norm: if step == 2 { f64::NAN } else { 0.5 },
            clip: 0.1,
            lr: 1e-3,
            tokens: 8 * step,
            targets: 7,
            step_ms: 1.5,
            data_wait_ms: 0.0,
            tokens_per_s: 1e9,
            peak_share: None,
            skipped: false,
        }
    }

    #[test]
    fn a_resumed_file_equals_a_straight_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STEPS);
        let write = |from: u64, to: u64| {
            let mut m = Metrics::open(dir.path(), from).unwrap();
            (from + 1..=to).for_each(|s| m.step(&row(s)).unwrap());
            m.sync().unwrap();
        };
        write(0, 6);
        let straight = std::fs::read(&path).unwrap();
        write(0, 5);
        // A kill tears a line.
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend(b"{\"step\":6,\"lo");
        for cut in [5, 3, 0] {
            std::fs::write(&path, &torn).unwrap();
            write(cut, 6);
            assert_eq!(std::fs::read(&path).unwrap(), straight);
        }
        let rows = read_steps(dir.path()).unwrap();
        assert_eq!(rows.len(), 6);
        assert!(rows[1].grad_norm.is_nan());
        assert_eq!(rows[4], row(5));
        assert_eq!(read_evals(&dir.path().join("nowhere")).unwrap(), []);
    }

    #[test]
    fn benchmarks_stand_beside_validations() {
        let dir = tempfile::tempdir().unwrap();
        let task = |step| TaskRow {
            step,
            task: "piqa".into(),
            num_fewshot: Some(0),
            documents: 3,
            metrics: [("acc,none".to_string(), Some(0.5)), ("perplexity,none".to_string(), None)].into(),
            chance: Some(0.5),
        };
        let validated = |step| Validated { step, bits_per_byte: 1.0, nll: 2.0, tokens: 3, bytes: 4, ms: 5.0 };
        let mut m = Metrics::open(dir.path(), 0).unwrap();
        m.validated(&validated(2)).unwrap();
        m.task(&task(2)).unwrap();
        // Another process, while this one goes on.
        append_tasks(dir.path(), &[task(1)]).unwrap();
        m.validated(&validated(4)).unwrap();
        assert_eq!(read_evals(dir.path()).unwrap(), [validated(2), validated(4)]);
        assert_eq!(read_tasks(dir.path()).unwrap(), [task(2), task(1)]);
        Metrics::open(dir.path(), 3).unwrap();
        assert_eq!(read_evals(dir.path()).unwrap(), [validated(2)]);
        assert_eq!(read_tasks(dir.path()).unwrap().len(), 2);
    }
}
