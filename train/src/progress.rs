//! What a person sees of a run: the plan, a bar or a few lines, and how it ended.
//!
//! On a terminal one bar is redrawn on stderr; elsewhere at most some forty lines are printed, fewer the shorter the run.
//! Nothing here can stop a run: an output that nobody reads any more is let go.

use crate::{
    benchmark::headline,
    metrics::{StepRow, TaskRow, Validated},
    plan::{grouped, size},
    run::Event,
    source::Share,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// Lines with steps that a run prints at most, the first and last aside.
const STEP_LINES: u64 = 12;
/// Lines with validations.
const VALIDATION_LINES: u64 = 10;
/// Lines about spikes and checkpoints; the rest is in steps.jsonl and in the folder.
const EVENT_LINES: u64 = 5;

/// Where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// To stdout, for a person.
    Stdout,
    /// To stderr, since stdout is for a program.
    Stderr,
}

/// Shows the events of one run.
#[derive(Debug)]
pub struct Progress {
    out: Out,
    bar: Option<ProgressBar>,
    begin: Instant,
    /// Step before the first one of this process.
    first: Option<u64>,
    last: Option<StepRow>,
    validated: Option<Validated>,
    validations: u64,
    benchmarks: u64,
    spikes: u64,
    saves: u64,
    /// Time spent on training steps, and what they trained on: a mean that one slow step cannot sway.
    step_s: f64,
    tokens_per_s: f64,
}

impl Progress {
    /// A bar where stderr is a terminal, lines elsewhere.
    pub fn new(out: Out) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            let style = "{bar:24.cyan/blue} {pos}/{len}  {msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a template of ours").progress_chars("━╸─"));
            bar
        });
        Progress::with(out, bar)
    }

    fn with(out: Out, bar: Option<ProgressBar>) -> Progress {
        Progress {
            out,
            bar,
            begin: Instant::now(),
            first: None,
            last: None,
            validated: None,
            validations: 0,
            benchmarks: 0,
            spikes: 0,
            saves: 0,
            step_s: 0.0,
            tokens_per_s: 0.0,
        }
    }

    /// Prints a line between what moves.
    pub fn say(&self, text: &str) {
        let write = || {
            let text = format!("{text}\n");
            // A reader that is gone must not end a run.
            let _ = match self.out {
                Out::Stdout => std::io::stdout().write_all(text.as_bytes()),
                Out::Stderr => std::io::stderr().write_all(text.as_bytes()),
            };
        };
        match &self.bar {
            Some(bar) if !bar.is_finished() => bar.suspend(write),
            _ => write(),
        }
    }

    /// Shows what happened.
    pub fn on(&mut self, event: &Event<'_>) {
        match *event {
            Event::Planned { plan, folder } => {
                self.say(&format!("{plan}"));
                self.say(&format!("run folder: {}", folder.display()));
            }
            Event::Refused { checkpoint, why } => self.say(&format!("passed over {}: {why}", checkpoint.display())),
            Event::Resumed { checkpoint, step } => {
                self.say(&format!("goes on after step {step} from {}", checkpoint.display()));
            }
            Event::Data { train_tokens, validation_tokens, validation_scored_bytes, epochs, sources, .. } => {
                let each = |s: &Share| {
                    format!("\n  {}: {:.2}% of the rows, read {:.2} times", s.name, 100.0 * s.share, s.epochs)
                };
                let sources: String = sources.iter().filter(|_| sources.len() > 1).map(each).collect();
                self.say(&format!(
                    "data: {} training tokens, read {epochs:.2} times; {} validation tokens, each validation scores {} of text{sources}\n",
                    grouped(train_tokens),
                    grouped(validation_tokens),
                    size(validation_scored_bytes)
                ));
            }
            Event::Step(row) => self.step(row),
            Event::Spike { step, loss, grad_norm, loss_z, norm_z, skipped } => {
                self.spikes += 1;
                if self.spikes <= EVENT_LINES {
                    let did = if skipped { "; the update was left out" } else { "" };
                    self.say(&format!(
                        "spike at step {step}: loss {loss:.3} ({loss_z:.1} sigma), gradient norm {grad_norm:.3} ({norm_z:.1} sigma){did}"
                    ));
                }
            }
            Event::Validated(row) => self.validated(row),
            Event::Scored { rows, ms } => self.scored(rows, ms),
            Event::Saved { path, bytes, ms, .. } => {
                self.saves += 1;
                if self.saves <= EVENT_LINES {
                    self.say(&format!("saved {} ({}, {ms:.0} ms)", path.display(), size(bytes)));
                }
            }
            Event::Stopped { .. } | Event::Done { .. } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, row: &StepRow) {
        if self.first.is_none() {
            self.first = Some(row.step - 1);
            self.begin = Instant::now() - Duration::from_secs_f64((row.step_ms / 1e3).clamp(0.0, 1e6));
        }
        // A moving mean over about the last two seconds or ten steps, whichever is more.
        let dt = (row.step_ms / 1e3).max(1e-9);
        let keep = (-dt / 2.0).exp().max(0.9);
        self.step_s = if self.last.is_none() { dt } else { keep * self.step_s + (1.0 - keep) * dt };
        self.tokens_per_s = row.tokens_per_s * dt / self.step_s;
        let line = self.line(row);
        match &self.bar {
            Some(bar) => {
                bar.set_length(row.steps);
                bar.set_position(row.step);
                bar.set_message(line);
            }
            None if due(row.step, row.steps, STEP_LINES) || self.last.is_none() => {
                self.say(&format!(
                    "step {:>width$}/{}  {line}",
                    row.step,
                    row.steps,
                    width = row.steps.to_string().len()
                ));
            }
            None => {}
        }
        self.last = Some(*row);
    }

    /// What stands behind a bar or in a line.
    fn line(&self, row: &StepRow) -> String {
        let mut text = format!("loss {:.3}", row.loss);
        if let Some(v) = &self.validated {
            text.push_str(&format!("  val {:.3} bits/byte", v.bits_per_byte));
        }
        text.push_str(&format!("  {} tok/s", grouped(self.tokens_per_s.round() as u64)));
        if let Some(share) = row.peak_share {
            text.push_str(&format!("  {:.0}% of peak", 100.0 * share));
        }
        text.push_str(&format!("  data wait {:.1}%", 100.0 * row.data_wait_ms / row.step_ms.max(1e-9)));
        let done = row.step - self.first.unwrap_or(0).min(row.step - 1);
        let left = (row.steps - row.step.min(row.steps)) as f64 * self.begin.elapsed().as_secs_f64() / done as f64;
        text.push_str(&format!("  eta {}", clock(left)));
        text
    }

    fn validated(&mut self, row: &Validated) {
        let before = self.validated.replace(*row);
        self.validations += 1;
        if self.bar.is_none() && self.validations > VALIDATION_LINES {
            return;
        }
        let change = before.map_or(String::new(), |b| format!("  ({:+.4})", row.bits_per_byte - b.bits_per_byte));
        self.say(&format!("validation after step {}: {:.4} bits/byte{change}", row.step, row.bits_per_byte));
    }
}

impl Progress {
    fn scored(&mut self, rows: &[TaskRow], ms: f64) {
        self.benchmarks += 1;
        let Some(step) = rows.first().map(|row| row.step) else { return };
        if self.bar.is_none() && self.benchmarks > VALIDATION_LINES {
            return;
        }
        let one = |row: &TaskRow| {
            let (metric, value) = headline(row)?;
            Some(format!("{} {metric} {value:.4}", row.task))
        };
        let all: Vec<String> = rows.iter().filter_map(one).collect();
        self.say(&format!("benchmarks after step {step}: {} ({:.1} s)", all.join(", "), ms / 1e3));
    }
}

/// Whether step `step` of `steps` is one of about `lines` evenly spread ones; the last always is.
fn due(step: u64, steps: u64, lines: u64) -> bool {
    let every = steps.div_ceil(lines).max(1);
    step.is_multiple_of(every) || step == steps
}

/// Seconds as 0:42, 12:05 or 3:04:05.
pub fn clock(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9).round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_prints_few_lines_whatever_its_length() {
        for steps in [1, 2, 15, 16, 17, 300, 1_000_000] {
            let lines = (1..=steps).filter(|&s| due(s, steps, STEP_LINES)).count() as u64;
            assert!(lines <= STEP_LINES + 1 && lines >= steps.min(6), "{steps}: {lines}");
            assert!(due(steps, steps, STEP_LINES));
        }
        const { assert!(1 + STEP_LINES + 1 + VALIDATION_LINES + 2 * EVENT_LINES <= 40) };
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(0.4), "0:00");
        assert_eq!(clock(725.0), "12:05");
        assert_eq!(clock(11_045.2), "3:04:05");
        assert_eq!(clock(f64::INFINITY), clock(1e9));
    }

    #[test]
    fn a_line_says_where_a_run_is() {
        let mut p = Progress::with(Out::Stderr, None);
        let row = StepRow {
            step: 150,
            steps: 300,
            loss: 4.213,
            grad_norm: 1.0,
            clip: 1.0,
            lr: 1e-3,
            tokens: 150 * 8192,
            targets: 8192,
            step_ms: 100.0,
            data_wait_ms: 1.0,
            tokens_per_s: 81_920.0,
            peak_share: Some(0.613),
            skipped: false,
        };
        p.step(&row);
        let validated = Validated { step: 150, bits_per_byte: 2.5, nll: 4.0, tokens: 9, bytes: 30, ms: 1.0 };
        p.validated(&validated);
        let line = p.line(&row);
        let want = "loss 4.213  val 2.500 bits/byte  81,920 tok/s  61% of peak  data wait 1.0%  eta 0:";
        assert!(line.starts_with(want), "{line}");
    }
}
