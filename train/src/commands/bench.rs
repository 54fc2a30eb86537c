//! `esker bench`: see [`crate::bench`].

use super::{Failure, print, print_json};
use crate::{bench, cli};
use esker_kernels::{device::Stream, gpu::Gpu, peak::Peaks};

pub fn run(args: cli::Bench) -> Result<(), Failure> {
    if args.what.as_deref() == Some("tokenize") {
        return tokenize(&args);
    }
    if args.what.as_deref() == Some("gpu") {
        return gpu(&args);
    }
    let what = args.what.as_deref().unwrap_or("");
    if !what.is_empty() && bench::names().all(|name| name != what) {
        return Err(unknown(what));
    }
    let stream = Stream::open(args.device.kind(), args.threads)?;
    let peaks = Peaks::measure(&stream)?;
    let mut rows = 0;
    let mut unread = None;
    let dtypes: Vec<_> = args.dtype.map_or(bench::DTYPES.to_vec(), |d| vec![d.into()]);
    if !args.json {
        print(&bench::heading(&stream, &peaks, what))?;
    }
    let mut show = |row: bench::Row| {
        rows += 1;
        let shown = if args.json { print_json(&row) } else { print(&row.to_string()) };
        unread = shown.err();
        unread.is_none()
    };
    match what {
        "step" => bench::steps(&stream, &peaks, &args.case, &dtypes, args.seconds, &mut show)?,
        "decode" => bench::decode(&stream, &peaks, &args.case, &dtypes, args.seconds, &mut show)?,
        "data" => bench::data(stream.threads(), &args.case, args.seconds, &mut show)?,
        op => bench::ops(&stream, &peaks, op, &args.case, args.dtype.map(Into::into), &mut show)?,
    }
    if let Some(failure) = unread {
        return Err(failure);
    }
    if rows == 0 {
        return Err(Failure::input(format!("no case of the bench contains {:?}", args.case))
            .help("leave --case out to see all of them"));
    }
    Ok(())
}

/// The card unless another device was named.
fn gpu(args: &cli::Bench) -> Result<(), Failure> {
    let (gpu, extent) = match args.device {
        cli::Device::Sim => (Gpu::sim(1, false, args.threads)?, bench::Extent::SIM),
        cli::Device::Cpu | cli::Device::Cuda => (Gpu::cuda(0, args.threads)?, bench::Extent::CARD),
    };
    let report = bench::gpu(&gpu, extent, &args.out, |what| eprintln!("{what}"))?;
    if args.json {
        print_json(&report)?
    } else {
        print(&report.to_string())?
    }
    if !report.passes() {
        return Err(Failure::check("an op does not conform on this device; the report names the case"));
    }
    Ok(())
}

fn tokenize(args: &cli::Bench) -> Result<(), Failure> {
    let what = bench::Tokenize {
        tokenizer: args.tokenizer.as_deref(),
        text: args.text.as_deref(),
        random: args.random,
        seed: args.seed,
        threads: if args.threads == 0 { std::thread::available_parallelism()?.get() } else { args.threads },
    };
    let mut shown = Ok(());
    bench::tokenize(what, &mut |row| {
        shown = if args.json { print_json(&row) } else { print(&row.to_string()) };
        shown.is_ok()
    })?;
    shown
}

fn unknown(op: &str) -> Failure {
    let failure = Failure::input(format!("no bench is called {op:?}"));
    let near = bench::names().map(|k| (strsim::damerau_levenshtein(k, op), k)).min();
    match near {
        Some((distance, name)) if distance <= 3 => failure.help(format!("did you mean {name:?}?")),
        _ => failure.help(format!("there are {}", bench::names().collect::<Vec<_>>().join(", "))),
    }
}
