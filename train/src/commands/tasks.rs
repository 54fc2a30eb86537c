//! `esker eval --tasks`: benchmarks of a model, or of every checkpoint of a run as it appears.

use super::{
    Failure,
    model::{self, Opened},
    print, print_json,
};
use crate::{
    benchmark,
    checkpoint::{self, Manifest},
    cli, config,
    folder::{self, CHECKPOINTS},
    metrics, report as run_report,
};
use esker_data::tokenizer::Tokenizer;
use esker_eval::{
    engine::{self, Engine},
    report,
    request::{Answer, Request},
    tasks::{Options, Outcome, Scored, Suite, Task},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{
    collections::HashSet,
    io::{BufWriter, IsTerminal, Write},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Between two looks for a new checkpoint.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub fn run(args: &cli::model::Eval) -> Result<(), Failure> {
    let suite = load(&args.tasks)?;
    if args.tasks.follow {
        return follow(args, &suite);
    }
    let model = Opened::new(&args.model)?;
    let tokenizer = model.tokenizer()?;
    let begin = Instant::now();
    let outcomes = score(&model, &tokenizer, &args.tasks, &suite)?;
    let results = results(args, &model, &suite, &outcomes, begin.elapsed().as_secs_f64());
    if let Some(path) = &args.tasks.output {
        let mut bytes = serde_json::to_vec_pretty(&results).expect("our own types become JSON");
        bytes.push(b'\n');
        folder::write(path, &bytes)?;
    }
    if args.json {
        return print_json(&results);
    }
    print(&report::table(&outcomes))
}

/// Rows of all tasks, before a model is opened: what is missing is said at once.
fn load(args: &cli::model::Tasks) -> Result<Suite, Failure> {
    let data = args.data.as_deref().expect("cli: --tasks needs --data");
    let options = Options {
        limit: args.limit,
        num_fewshot: args.num_fewshot,
        seed: args.seed,
        bootstrap_iters: args.bootstrap_iters,
    };
    let suite = Suite::load(&args.names, data, &options)?;
    let mut said = HashSet::new();
    for (task, path) in suite.parts() {
        if said.insert(path) {
            eprintln!(
                "warning: {task}: examples are drawn from a part of their split, {}; the harness draws others",
                path.display()
            );
        }
    }
    Ok(suite)
}

fn score(
    model: &Opened,
    tokenizer: &Tokenizer,
    args: &cli::model::Tasks,
    suite: &Suite,
) -> Result<Vec<Outcome>, Failure> {
    let options = engine::Options { max_length: args.max_length, add_bos: args.add_bos, eos: model.card.eos.clone() };
    let mut engine = Engine::new(&model.stream, model.config(), &model.weights, tokenizer, options)?;
    if let Some(dir) = &args.log_samples {
        std::fs::create_dir_all(dir).map_err(|e| Failure::file(dir, &e))?;
    }
    let bar = ProgressBar::new(suite.tasks.iter().map(|task| task.documents() as u64).sum());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} documents  {msg}  eta {eta}");
    bar.set_style(style.expect("a constant template"));
    let ask = |task: &Task, done: usize, requests: &[Request]| {
        bar.set_position(done as u64);
        bar.set_message(task.name().to_owned());
        engine.answer(requests).map_err(Failure::from)
    };
    let (mut finished, mut begin) = (0, Instant::now());
    let each = |task: &Task, answers: &[Answer], scored: &[Scored]| {
        finished += 1;
        if !std::io::stderr().is_terminal() {
            let (n, all, seconds) = (task.documents(), suite.tasks.len(), begin.elapsed().as_secs_f64());
            eprintln!("{finished}/{all} {}: {n} documents, {seconds:.1} s", task.name());
        }
        begin = Instant::now();
        args.log_samples.as_deref().map_or(Ok(()), |dir| keep(dir, task, answers, scored))
    };
    let outcomes = suite.run(ask, each);
    bar.finish_and_clear();
    outcomes
}

/// Writes the samples file of a task, aside and then into its place.
fn keep(dir: &Path, task: &Task, answers: &[Answer], scored: &[Scored]) -> Result<(), Failure> {
    let path = dir.join(format!("samples_{}.jsonl", task.name()));
    let aside = path.with_extension("jsonl.tmp");
    let write = || {
        let mut out = BufWriter::new(std::fs::File::create(&aside)?);
        for line in task.samples(answers, scored) {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        std::fs::rename(&aside, &path)
    };
    write().map_err(|e| Failure::file(&path, &e))
}

/// The harness's layout, and what was run.
fn results(
    args: &cli::model::Eval,
    model: &Opened,
    suite: &Suite,
    outcomes: &[Outcome],
    seconds: f64,
) -> serde_json::Value {
    let mut out = report::json(outcomes);
    let name = args.model.dir.display().to_string();
    let max_length = args.tasks.max_length.unwrap_or(model.config().context);
    let options = suite.options();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    out["config"] = json!({
        "model": "esker",
        "model_args": {"pretrained": name, "dtype": format!("{:?}", args.model.dtype).to_lowercase()},
        "model_num_parameters": model.config().params().total(),
        "limit": options.limit,
        "bootstrap_iters": options.bootstrap_iters,
        "fewshot_seed": options.seed,
        "add_bos_token": args.tasks.add_bos,
    });
    out["model_source"] = json!("esker");
    out["model_name"] = json!(name);
    out["max_length"] = json!(max_length);
    out["date"] = json!(since - seconds);
    out["total_evaluation_time_seconds"] = json!(seconds.to_string());
    out["esker_version"] = json!(env!("CARGO_PKG_VERSION"));
    out
}

/// Scores each checkpoint of a run that was not scored yet, until the last step's is.
fn follow(args: &cli::model::Eval, suite: &Suite) -> Result<(), Failure> {
    let folder = &args.model.dir;
    let own = folder.join(folder::CONFIG);
    if !own.exists() {
        let message = format!("{}: not a run folder: it has no {}", folder.display(), folder::CONFIG);
        return Err(Failure::input(message).help("--follow wants what `esker train` printed, as runs/NAME-001"));
    }
    let steps = config::load(&own, &[])?.train.steps;
    let mut done = scored_before(folder, suite)?;
    let mut waits = false;
    loop {
        for (step, path) in checkpoint::listed(&folder.join(CHECKPOINTS))? {
            if !done.insert(step) {
                continue;
            }
            match one(args, suite, step, &path) {
                Ok(()) => waits = false,
                // The run keeps its newest ones only, and may have removed this one meanwhile.
                Err(_) if !path.exists() => {}
                Err(e) => return Err(e),
            }
        }
        if done.contains(&steps) {
            return Ok(());
        }
        if !waits {
            eprintln!("waiting for the next checkpoint of {steps} steps; Ctrl-C ends this");
            waits = true;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Steps whose every task stands in evals.jsonl, with as many documents and examples.
fn scored_before(folder: &Path, suite: &Suite) -> Result<HashSet<u64>, Failure> {
    let rows = metrics::read_tasks(folder)?;
    let wanted = benchmark::rows(&suite.outline(), 0);
    let has = |step: u64| {
        wanted.iter().all(|w| {
            let same =
                |r: &metrics::TaskRow| (&r.task, r.num_fewshot, r.documents) == (&w.task, w.num_fewshot, w.documents);
            rows.iter().any(|r| r.step == step && same(r))
        })
    };
    Ok(rows.iter().map(|r| r.step).filter(|&step| has(step)).collect())
}

fn one(args: &cli::model::Eval, suite: &Suite, step: u64, path: &Path) -> Result<(), Failure> {
    let begin = Instant::now();
    Manifest::verify(path, step)?;
    let model = model::open(path, args.model.dtype.into(), args.model.threads)?;
    let tokenizer = model.tokenizer()?;
    let outcomes = score(&model, &tokenizer, &args.tasks, suite)?;
    let rows = benchmark::rows(&outcomes, step);
    metrics::append_tasks(&args.model.dir, &rows)?;
    run_report::write(&args.model.dir)?;
    if args.json {
        return rows.iter().try_for_each(print_json);
    }
    print(&format!("step {step}, {:.1} s\n{}", begin.elapsed().as_secs_f64(), report::table(&outcomes)))
}
