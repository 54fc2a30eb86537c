//! What a study came to: tables for people (`tables.md`), numbers for machines (`results.csv`, `curves.csv`), plots.

use super::{Lie, Link, Method, Outcome, StudyError};
use crate::folder;
use crate::report::chart::file;
use esker_kernels::ops::chunk_topk::{Codec, Mean};
use std::fmt::Write;
use std::path::Path;

/// Writes everything about `outcomes` into `dir`; gives the tables.
pub fn write(dir: &Path, outcomes: &[Outcome]) -> Result<String, StudyError> {
    let put = |name: &str, text: &str| folder::write(&dir.join(name), text.as_bytes());
    put("results.csv", &results(outcomes))?;
    put("curves.csv", &curves(outcomes))?;
    let plots = plots(outcomes);
    for (name, text) in &plots {
        put(name, text)?;
    }
    let tables = tables(outcomes, plots.iter().map(|(name, _)| *name));
    put("tables.md", &tables)?;
    Ok(tables)
}

/// The settings of SparseLoCo in a run.
#[derive(Clone, Copy, PartialEq)]
struct Sparse {
    inner_steps: u64,
    codec: Codec,
    k: usize,
    beta: f64,
    mean: Mean,
    alpha: f64,
}

impl Sparse {
    fn of(o: &Outcome) -> Option<Sparse> {
        match o.setting.method {
            Method::Sparseloco { inner_steps, codec, k, beta, mean, alpha } if o.setting.liars.is_none() => {
                Some(Sparse { inner_steps, codec, k, beta, mean, alpha })
            }
            _ => None,
        }
    }
}

fn codec_name(codec: Codec) -> &'static str {
    match codec {
        Codec::Compact => "ours",
        Codec::Reference => "reference",
        Codec::Exact => "exact",
    }
}

fn mean_name(mean: Mean) -> &'static str {
    match mean {
        Mean::Peers => "peers",
        Mean::Senders => "senders",
    }
}

fn results(outcomes: &[Outcome]) -> String {
    let mut out = String::from(
        "method,seed,lr,steps,owners,inner_steps,codec,k,mean,alpha,beta,liars,judged,loss,bits_per_byte,bytes,modelled_s,update_bytes,compression,took_s\n",
    );
    for o in outcomes {
        let (s, last) = (&o.setting, o.curve.last());
        let own = match s.method {
            Method::Sparseloco { codec, k, beta, mean, alpha, .. } => {
                format!("{},{k},{},{alpha},{beta}", codec_name(codec), mean_name(mean))
            }
            Method::Demo { k, decay } => format!(",{k},,,{decay}"),
            Method::Diloco { outer_lr, momentum, .. } => format!(",,,{outer_lr},{momentum}"),
            Method::Ddp => ",,,,".into(),
        };
        let liars =
            s.liars.as_ref().map_or(",".into(), |l| format!("{},{}", l.lie.map_or("none", Lie::name), l.judged));
        let end =
            last.map_or(",,,".into(), |p| format!("{:.5},{:.5},{},{:.1}", p.nll, p.bits_per_byte, p.bytes, p.seconds));
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{own},{liars},{end},{},{:.2},{:.0}",
            s.method.name(),
            s.seed,
            s.lr,
            s.steps,
            s.owners,
            s.method.inner_steps(),
            o.update_bytes,
            o.compression,
            o.took
        );
    }
    out
}

fn curves(outcomes: &[Outcome]) -> String {
    let mut out = String::from("run,step,tokens,bytes,modelled_s,nll,bits_per_byte\n");
    for o in outcomes {
        let run = super::name_of(&o.setting);
        for p in &o.curve {
            let _ = writeln!(
                out,
                "{},{},{},{},{:.2},{:.5},{:.5}",
                run.trim_end_matches(".json"),
                p.step,
                p.tokens,
                p.bytes,
                p.seconds,
                p.nll,
                p.bits_per_byte
            );
        }
    }
    out
}

/// The runs of the comparison: per method those of its most frequent setting, whatever the seed.
fn compared(outcomes: &[Outcome]) -> Vec<(&'static str, Vec<&Outcome>)> {
    let mut groups: Vec<(&'static str, Vec<&Outcome>)> = Vec::new();
    for name in ["DDP", "DiLoCo", "DeMo", "SparseLoCo"] {
        let of = |o: &&Outcome| o.setting.method.name() == name && o.setting.liars.is_none();
        let alike = |a: &Outcome, b: &Outcome| {
            (&a.setting.method, a.setting.lr, a.setting.steps) == (&b.setting.method, b.setting.lr, b.setting.steps)
        };
        let group = |first: &Outcome| outcomes.iter().filter(of).filter(|o| alike(o, first)).collect::<Vec<_>>();
        let best = outcomes.iter().filter(of).map(group).reduce(|a, b| if b.len() > a.len() { b } else { a });
        groups.extend(best.map(|runs| (name, runs)));
    }
    groups
}

fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
    (mean, if values.len() > 1 { (square / (n - 1.0)).sqrt() } else { f64::NAN })
}

fn tables<'a>(outcomes: &[Outcome], plots: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::new();
    if let Some(o) = outcomes.first() {
        let tokens = o.curve.last().map_or(0, |p| p.tokens);
        let Link { up, down, latency, step_seconds } = Link::HOME;
        let _ = writeln!(
            out,
            "{} parameters, {} owners, {} steps of {} tokens each: {:.2} M tokens a run. Loss is that of the shared weights on held-out addresses, nats a token. Bytes are what one owner sends, each update once. Time is modelled: {:.0} Mbit/s up, {:.0} down, {:.0} ms one way, {:.0} ms a step; dense exchanges as a ring, sparse ones through a seeder.\n",
            o.params,
            o.setting.owners,
            o.setting.steps,
            tokens / o.setting.steps.max(1) / o.setting.owners.max(1),
            tokens as f64 / 1e6,
            up / 1e6,
            down / 1e6,
            latency * 1e3,
            step_seconds * 1e3
        );
    }
    let groups = compared(outcomes);
    if groups.len() > 1 {
        comparison(&mut out, &groups);
    }
    for sweep in sweeps(outcomes) {
        let _ = writeln!(
            out,
            "\n{}\n\n| {} | loss | bits a byte | bytes sent | compression |\n| --- | --- | --- | --- | --- |",
            sweep.title, sweep.factor
        );
        for (name, o) in &sweep.rows {
            let p = o.curve.last().expect("study: a curve has an end");
            let _ = writeln!(
                out,
                "| {name} | {:.4} | {:.4} | {} | {:.1} |",
                p.nll,
                p.bits_per_byte,
                sized(p.bytes),
                o.compression
            );
        }
    }
    lies(&mut out, outcomes);
    for plot in plots {
        let _ = writeln!(out, "\n![{}]({plot})", plot.trim_end_matches(".svg").replace('-', " "));
    }
    out
}

fn comparison(out: &mut String, groups: &[(&str, Vec<&Outcome>)]) {
    out.push_str("| method | lr | seeds | loss, mean (deviation) | bytes sent | against DiLoCo | modelled time |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    let diloco = groups.iter().find(|(name, _)| *name == "DiLoCo").map(|(_, runs)| runs);
    let base = diloco.and_then(|runs| runs.first()?.curve.last()).map(|p| p.bytes as f64);
    for (name, runs) in groups {
        let (mean, deviation) = mean_and_deviation(&runs.iter().map(|o| o.loss()).collect::<Vec<_>>());
        let last = runs[0].curve.last().expect("study: a curve has an end");
        let spread = if deviation.is_nan() { String::new() } else { format!(" ({deviation:.4})") };
        let ratio = base.map_or(String::new(), |base| format!("{:.4}", last.bytes as f64 / base));
        let (lr, seeds, bytes) = (runs[0].setting.lr, runs.len(), sized(last.bytes));
        let _ = writeln!(
            out,
            "| {name} | {lr} | {seeds} | {mean:.4}{spread} | {bytes} | {ratio} | {:.0} s |",
            last.seconds
        );
    }
}

/// Runs that differ in one factor.
struct Sweep<'a> {
    title: &'static str,
    factor: &'static str,
    rows: Vec<(String, &'a Outcome)>,
}

fn sweeps(outcomes: &[Outcome]) -> Vec<Sweep<'_>> {
    let compared = compared(outcomes);
    let middle = compared.iter().find(|(name, _)| *name == "SparseLoCo").and_then(|(_, runs)| runs.first());
    let Some((middle, run)) = middle.and_then(|o| Some((Sparse::of(o)?, *o))) else { return Vec::new() };
    let rows = |same: &dyn Fn(Sparse) -> Sparse, name: &dyn Fn(Sparse) -> String, key: &dyn Fn(Sparse) -> f64| {
        let alike = |o: &&Outcome| {
            Sparse::of(o).is_some_and(|s| same(s) == middle)
                && (o.setting.seed, o.setting.lr, o.setting.steps)
                    == (run.setting.seed, run.setting.lr, run.setting.steps)
        };
        let mut found: Vec<(f64, String, &Outcome)> =
            outcomes.iter().filter(alike).filter_map(|o| Sparse::of(o).map(|s| (key(s), name(s), o))).collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        found.into_iter().map(|(_, name, o)| (name, o)).collect::<Vec<_>>()
    };
    let all = [
        Sweep {
            title: "Steps between exchanges",
            factor: "H",
            rows: rows(&|s| Sparse { inner_steps: middle.inner_steps, ..s }, &|s| s.inner_steps.to_string(), &|s| {
                s.inner_steps as f64
            }),
        },
        Sweep {
            title: "Density",
            factor: "k of 4096",
            rows: rows(&|s| Sparse { k: middle.k, ..s }, &|s| format!("{} ({:.1} %)", s.k, s.k as f64 / 40.96), &|s| {
                s.k as f64
            }),
        },
        Sweep {
            title: "Codec",
            factor: "codec",
            rows: rows(&|s| Sparse { codec: middle.codec, ..s }, &|s| codec_name(s.codec).into(), &|s| {
                s.codec as u8 as f64
            }),
        },
        Sweep {
            title: "Mean and outer learning rate",
            factor: "mean, alpha",
            rows: rows(
                &|s| Sparse { mean: middle.mean, alpha: middle.alpha, ..s },
                &|s| format!("{}, {}", mean_name(s.mean), s.alpha),
                &|s| s.alpha + if s.mean == Mean::Peers { 100.0 } else { 0.0 },
            ),
        },
        Sweep {
            title: "Decay of the error feedback",
            factor: "beta",
            rows: rows(&|s| Sparse { beta: middle.beta, ..s }, &|s| s.beta.to_string(), &|s| s.beta),
        },
    ];
    all.into_iter().filter(|sweep| sweep.rows.len() > 1).collect()
}

fn lies(out: &mut String, outcomes: &[Outcome]) {
    let with = |lie: Option<Lie>, judged: bool| {
        outcomes.iter().find(|o| o.setting.liars.as_ref().is_some_and(|l| l.lie == lie && l.judged == judged))
    };
    let Some(honest) = with(None, true) else { return };
    let of = |o: Option<&Outcome>| {
        o.map_or("".into(), |o| format!("{:.4} ({:+.2} %)", o.loss(), 100.0 * (o.loss() / honest.loss() - 1.0)))
    };
    let _ = writeln!(
        out,
        "\nTwo of ten owners lie\n\n| lie | with a validator | lies that counted | honest rejected | without one |\n| --- | --- | --- | --- | --- |"
    );
    let seen = |o: Option<&Outcome>| {
        let seen = o.and_then(|o| o.seen);
        seen.map_or("|".into(), |s| format!("{} of {} | {} of {}", s.lies_counted, s.lies, s.honest_rejected, s.honest))
    };
    let _ = writeln!(out, "| none | {} | {} | |", of(Some(honest)), seen(Some(honest)));
    for lie in Lie::ALL {
        let (judged, unjudged) = (with(Some(lie), true), with(Some(lie), false));
        let _ = writeln!(out, "| {} | {} | {} | {} |", lie.name(), of(judged), seen(judged), of(unjudged));
    }
    if let Some(s) = honest.seen {
        let _ = writeln!(
            out,
            "\nAmong honest owners alone: agreement {:.3} in the median, at least {:.2} of the round's median; overlap at most {:.2}; norms {:.2} to {:.2} of the median.",
            s.agreement, s.agreement_min, s.overlap_max, s.norm_min, s.norm_max
        );
    }
}

fn plots(outcomes: &[Outcome]) -> Vec<(&'static str, String)> {
    let groups = compared(outcomes);
    let lines = |x: fn(&super::Point) -> f64| -> Vec<_> {
        let line = |(name, runs): &(&str, Vec<&Outcome>)| {
            let n = runs.iter().map(|o| o.curve.len()).min().unwrap_or(0);
            let mean = |i: usize| runs.iter().map(|o| o.curve[i].nll).sum::<f64>() / runs.len() as f64;
            (name.to_string(), (0..n).map(|i| (x(&runs[0].curve[i]), mean(i))).collect())
        };
        groups.iter().map(line).collect()
    };
    let mut plots = Vec::new();
    if groups.len() > 1 {
        let bytes =
            file("Loss against bytes sent by an owner", "bytes", "validation loss, nats", &lines(|p| p.bytes as f64));
        plots.push(("loss-bytes.svg", bytes));
        let time = file("Loss against modelled time", "seconds", "validation loss, nats", &lines(|p| p.seconds));
        plots.push(("loss-time.svg", time));
    }
    for (sweep, name, x) in sweeps(outcomes).iter().filter_map(|s| match s.factor {
        "H" => Some((s, "inner-steps.svg", "steps between exchanges")),
        "k of 4096" => Some((s, "density.svg", "values sent of a tile of 4096")),
        _ => None,
    }) {
        let value = |o: &Outcome| {
            Sparse::of(o).map_or(0.0, |s| if sweep.factor == "H" { s.inner_steps as f64 } else { s.k as f64 })
        };
        let points = sweep.rows.iter().map(|(_, o)| (value(o), o.loss())).collect();
        plots.push((name, file(sweep.title, x, "final validation loss, nats", &[("SparseLoCo".into(), points)])));
    }
    plots
}

fn sized(bytes: u64) -> String {
    match bytes {
        b if b >= 1_000_000_000 => format!("{:.2} GB", b as f64 / 1e9),
        b if b >= 1_000_000 => format!("{:.2} MB", b as f64 / 1e6),
        b => format!("{:.1} kB", b as f64 / 1e3),
    }
}
