//! `esker train`: starts or resumes a run, shows it, and says what came of it.

use super::{Failure, Kind, generate, model, print_json, program, quoted};
use crate::{
    cli,
    config::{self, Run},
    folder::{self, FolderError},
    metrics::{self, Validated},
    progress::{Out, Progress},
    report::{self, Beaten, Finish, Text},
    run::{self, Event, Options, Outcome, Start},
    source, validate,
};
use esker_data::loader::Scan;
use esker_eval::{baseline, sample};
use esker_kernels::{
    device::{Kind as Device, Stream},
    peak::Peaks,
    tensor::DType,
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Training tokens that the baselines count at most: enough for any vocabulary, and a second or two.
const COUNT_MAX: u64 = 20_000_000;
/// The report is made anew after a validation when the last one is older than this.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Raised by the first signal.
static STOP: AtomicBool = AtomicBool::new(false);

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    folder: PathBuf,
    checkpoint: Option<PathBuf>,
    report: Option<PathBuf>,
    step: u64,
    steps: u64,
    stopped: bool,
    seconds: f64,
    last_loss: Option<f64>,
    bits_per_byte: Option<f64>,
    unigram_bits_per_byte: Option<f64>,
    bigram_bits_per_byte: Option<f64>,
    sample: Option<Text>,
}

pub fn run(args: cli::Train) -> Result<(), Failure> {
    let (start, threads) = start(&args)?;
    watch_signals();
    let device = args.device.kind();
    let peaks = peaks(device, threads)?;
    let out = if args.json { Out::Stderr } else { Out::Stdout };
    let mut progress = Progress::new(out);
    let mut reports = Reports { folder: None, last: None };
    let options = Options { stop: &STOP, peaks, device };
    let outcome = run::train(start, &options, &mut |event: Event<'_>| {
        progress.on(&event);
        reports.on(&event);
    });
    let outcome = outcome.map_err(|e| match (Failure::from(e), &reports.folder) {
        // A full disk or the like: once that is mended the run goes on.
        (failure, Some(folder)) if failure.kind == Kind::System && folder.exists() => {
            failure.help(format!("what was saved is kept; then go on with: {}", resume(folder)))
        }
        (failure, _) => failure,
    })?;
    let (finish, report) = finish(&outcome, &progress)?;
    if args.json {
        print_json(&answer(&outcome, &finish, report))?;
    } else {
        progress.say(&closing(&outcome, &finish, &report));
    }
    if outcome.stopped {
        let message = format!("stopped after step {} of {}; everything is saved", outcome.step, outcome.steps);
        let help = vec![format!("go on with: {}", resume(&outcome.folder))];
        return Err(Failure { kind: Kind::Stopped, message, help });
    }
    Ok(())
}

/// The command that goes on with the run in `folder`.
fn resume(folder: &Path) -> String {
    format!("{} train --resume {}", program(), quoted(&folder.to_string_lossy()))
}

/// What to run, and with how many threads.
fn start(args: &cli::Train) -> Result<(Start, usize), Failure> {
    let file = args.file.as_ref().map(|file| config::load(file, &args.set)).transpose()?;
    match (&args.resume, file) {
        (None, None) => {
            Err(Failure::input("nothing to train: give a config FILE, as configs/quickstart.toml, or --resume RUN"))
        }
        (None, Some(run)) => {
            if let Some(note) = alone(&run) {
                eprintln!("{note}");
            }
            let threads = run.threads();
            Ok((Start::New { run, out: args.out.clone() }, threads))
        }
        (Some(folder), run) => {
            let own = folder.join(folder::CONFIG);
            let what = "give the folder that `esker train` printed, as runs/NAME-001";
            if let Err(e) = std::fs::read_dir(folder) {
                return Err(Failure::file(folder, &e).help(what));
            }
            if !own.exists() {
                return Err(Failure::from(FolderError::NoRun { folder: folder.clone() }).help(what));
            }
            let run = match run {
                Some(run) => run,
                None => config::load(&own, &args.set)?,
            };
            let threads = run.threads();
            Ok((Start::Resume { folder: folder.clone(), run: Some(run) }, threads))
        }
    }
}

/// What to say of a run that several owners share: this is what one of them comes to by itself.
fn alone(run: &Run) -> Option<String> {
    run.outer.as_ref()?;
    let (name, tokens) = (&run.name, run.batch.tokens_per_step);
    Some(format!(
        "note: {name} has a section [outer], which is for `esker peer` and `esker peers local`; here one owner trains alone, {tokens} tokens a step"
    ))
}

/// The first Ctrl-C or SIGTERM asks the run to end after its step; the second ends the process.
fn watch_signals() {
    let handler = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step; once more to stop at once");
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        eprintln!("warning: Ctrl-C will not save: {e}");
    }
}

/// Ceilings of the device; a simulator has none.
fn peaks(device: Device, threads: usize) -> Result<Option<Peaks>, Failure> {
    if device == Device::Sim {
        return Ok(None);
    }
    let stream = Stream::open(device, threads)?;
    Ok(Some(Peaks::measure(&stream)?))
}

/// Keeps the run's report fresh.
struct Reports {
    folder: Option<PathBuf>,
    last: Option<Instant>,
}

impl Reports {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Planned { folder, .. } => self.folder = Some(folder.to_path_buf()),
            Event::Validated(_) | Event::Scored { .. } if self.last.is_none_or(|at| at.elapsed() > REPORT_EVERY) => {
                self.last = Some(Instant::now());
                if let Some(folder) = &self.folder
                    && let Err(e) = report::write(folder)
                {
                    tracing::warn!(target: "esker::report", error = %e, "no report");
                }
            }
            _ => {}
        }
    }
}

/// Baselines, sample and report of a run that ended or stopped.
fn finish(outcome: &Outcome, progress: &Progress) -> Result<(Finish, PathBuf), Failure> {
    let folder = &outcome.folder;
    // A run that was complete when it was resumed has validated before.
    let validation = match outcome.validation {
        Some(validated) => Some(validated),
        None => metrics::read_evals(folder)?.pop(),
    };
    let mut finish =
        Finish { step: outcome.step, bits_per_byte: validation.map(|v| v.bits_per_byte), baseline: None, sample: None };
    // Whoever stops a run wants it to end: baselines and sample wait for the last step.
    if !outcome.stopped {
        let run = config::load(&folder.join(folder::CONFIG), &[])?;
        if let Some(validated) = validation {
            finish.baseline = baselines(&run, folder, &validated)?;
        }
        if let Some(checkpoint) = &outcome.checkpoint {
            finish.sample = text(&run, checkpoint).unwrap_or_else(|e| {
                progress.say(&format!("no sample: {}", e.message));
                None
            });
        }
        let json = serde_json::to_vec_pretty(&finish).expect("our own types become JSON");
        folder::write(&folder.join(report::RESULT), &json)?;
    }
    Ok((finish, report::write(folder)?))
}

/// Unigram and bigram of the very windows that the run validates on.
fn baselines(run: &Run, folder: &Path, validated: &Validated) -> Result<Option<Beaten>, Failure> {
    let opened = source::open(run, folder)?;
    // A mixture has no one text that could be counted in its place.
    let (Some(validation), [train]) = (opened.validation, opened.sources.as_slice()) else { return Ok(None) };
    let seq = run.batch.seq_len;
    let scan = Scan::new(validation, seq)?;
    let windows = validate::windows(run, scan.windows());
    let measured = baseline::measure(train, (&scan, seq), windows, COUNT_MAX)?;
    // A run that was resumed with another validation.tokens has no baseline of the same text.
    let same = (measured.tokens, measured.bytes) == (validated.tokens, validated.bytes);
    Ok(same.then(|| measured.into()))
}

/// The text that `[sample]` asks for, in f32, from the checkpoint as anyone would load it.
fn text(run: &Run, checkpoint: &Path) -> Result<Option<Text>, Failure> {
    let Some(s) = &run.sample else { return Ok(None) };
    if !checkpoint.join("tokenizer.json").exists() {
        return Ok(None);
    }
    let model = model::open(checkpoint, DType::F32, run.train.threads)?;
    let tokenizer = model.tokenizer()?;
    let prompt = generate::prompt_ids(&model, &tokenizer, &s.prompt)?;
    let options = sample::Options { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, seed: s.seed };
    let (text, _) = generate::continue_text(&model, &tokenizer, &prompt, s.tokens, options, |_| true)?;
    Ok(Some(Text { prompt: s.prompt.clone(), text }))
}

fn answer(outcome: &Outcome, finish: &Finish, report: PathBuf) -> Answer {
    Answer {
        folder: outcome.folder.clone(),
        checkpoint: outcome.checkpoint.clone(),
        report: Some(report),
        step: outcome.step,
        steps: outcome.steps,
        stopped: outcome.stopped,
        seconds: outcome.seconds,
        last_loss: outcome.last_loss,
        bits_per_byte: finish.bits_per_byte,
        unigram_bits_per_byte: finish.baseline.map(|b| b.unigram),
        bigram_bits_per_byte: finish.baseline.map(|b| b.bigram),
        sample: finish.sample.clone(),
    }
}

/// The last words of a run.
fn closing(outcome: &Outcome, finish: &Finish, report: &Path) -> String {
    let mut out = String::new();
    if let Some(bits) = finish.bits_per_byte {
        out.push_str(&format!("\nvalidation   {bits:.4} bits per byte\n"));
        if let Some(b) = finish.baseline {
            let against = |x: f64| if x > bits { format!("beaten by {:.4}", x - bits) } else { "not beaten".into() };
            out.push_str(&format!("  bigram     {:.4}   {}\n", b.bigram, against(b.bigram)));
            out.push_str(&format!("  unigram    {:.4}   {}\n", b.unigram, against(b.unigram)));
        }
    }
    if let Some(s) = &finish.sample {
        out.push_str(&format!("\nsample (the prompt is \"{}\")\n", s.prompt));
        for line in format!("{}{}", s.prompt, s.text).lines() {
            out.push_str(&format!("  | {line}\n"));
        }
    }
    out.push_str(&format!("\nrun folder   {}\n", outcome.folder.display()));
    out.push_str(&format!("report       {}\n", report.display()));
    if !outcome.stopped {
        let (me, folder) = (program(), quoted(&outcome.folder.to_string_lossy()));
        let prompt = finish.sample.as_ref().map_or("Once", |s| s.prompt.as_str());
        out.push_str(&format!(
            "\nnext\n  {me} generate --model {folder} --prompt {}\n  {me} eval --model {folder}\n  {me} export {folder} my-model",
            quoted(prompt)
        ));
    }
    out
}
