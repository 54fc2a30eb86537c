//! `esker study`: runs what is missing, and writes tables and plots.

use super::{Failure, Kind, print};
use crate::cli;
use crate::study::{self, Event, Setting, StudyError};
use std::sync::atomic::{AtomicBool, Ordering};

/// Raised by the first signal.
static STOP: AtomicBool = AtomicBool::new(false);

pub fn run(args: cli::Study) -> Result<(), Failure> {
    let settings = settings(&args)?;
    let jobs = match args.jobs {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    if let Err(e) = ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst)) {
        eprintln!("warning: Ctrl-C will not end the study in order: {e}");
    }
    let outcomes = study::run(&settings, &args.out, jobs, &STOP, &|event| match event {
        Event::Begins { done, all } => eprintln!("{} of {all} runs are there, {jobs} at a time", done),
        Event::Done { outcome, done, all } => eprintln!(
            "{done}/{all}  {:<10} H {:<3} lr {:<7} loss {:.4}  compression {:.1}  {:.0} s",
            outcome.setting.method.name(),
            outcome.setting.method.inner_steps(),
            outcome.setting.lr,
            outcome.loss(),
            outcome.compression,
            outcome.took
        ),
    });
    let outcomes = outcomes.map_err(|e| match e {
        StudyError::Stopped => Failure { kind: Kind::Stopped, message: e.to_string(), help: Vec::new() },
        e => Failure::from(e),
    })?;
    let written = study::write_report(&args.out, &outcomes)?;
    print(&written)
}

fn settings(args: &cli::Study) -> Result<Vec<Setting>, Failure> {
    if !args.setting.is_empty() {
        let read =
            |json: &String| serde_json::from_str(json).map_err(|e| Failure::input(format!("--setting {json}: {e}")));
        return args.setting.iter().map(read).collect();
    }
    Ok(match args.which {
        cli::Which::Sparseloco => study::sparseloco(),
        cli::Which::Tuning => study::tuning(),
        cli::Which::Liars => study::liars(),
    })
}
