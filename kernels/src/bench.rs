//! The table of all ops, for whoever times or checks every one of them: `esker bench`, `cargo bench`, house rules.

use crate::{
    Result,
    device::Stream,
    harness::{self, Op, Row},
    ops::{adamw, attention, cast, chunk_topk, embedding, global_norm, matmul, rmsnorm, rope, swiglu, xent},
    peak::Peaks,
};

/// Every op, by the name of its folder.
pub const OPS: &[Entry] = &[
    entry::<adamw::cases::AdamW>(),
    entry::<attention::cases::Attention>(),
    entry::<cast::cases::Cast>(),
    entry::<chunk_topk::cases::ChunkTopk>(),
    entry::<embedding::cases::Embedding>(),
    entry::<global_norm::cases::GlobalNorm>(),
    entry::<matmul::cases::Matmul>(),
    entry::<rmsnorm::cases::RmsNorm>(),
    entry::<rope::cases::Rotation>(),
    entry::<swiglu::cases::SwiGlu>(),
    entry::<xent::cases::Xent>(),
];

/// One op with its type gone.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Name of the op's folder.
    pub name: &'static str,
    time: Time,
    time_least: TimeLeast,
    cases: Cases,
    conform: Conform,
    compare: Compare,
}

type Compare = fn(&Stream, &Stream, f64) -> Result<(usize, f64)>;
type TimeLeast = fn(&Stream, &Peaks) -> Result<Row>;
type Time = fn(&Stream, &Peaks, &str, &mut dyn FnMut(Row)) -> Result<()>;
type Conform = fn(&Stream, f64) -> (usize, usize);
type Cases = fn(&Stream, &mut dyn FnMut(&str, &mut (dyn FnMut() -> Result<()> + Send))) -> Result<()>;

impl Entry {
    /// Times the bench cases whose printed form contains `filter`.
    pub fn time(&self, s: &Stream, peaks: &Peaks, filter: &str, mut each: impl FnMut(Row)) -> Result<()> {
        (self.time)(s, peaks, filter, &mut each)
    }

    /// Times the conformance case that costs least: what a test of a bench can afford.
    pub fn time_least(&self, s: &Stream, peaks: &Peaks) -> Result<Row> {
        (self.time_least)(s, peaks)
    }

    /// Checks the conformance cases that cost at most `most` operations or bytes against the reference, each twice; panics
    /// at the first that differs. Returns how many ran, and of how many.
    pub fn conform(&self, s: &Stream, most: f64) -> (usize, usize) {
        (self.conform)(s, most)
    }

    /// Runs the conformance cases that cost at most `most` on two streams. Returns how many, and the largest distance of the
    /// first's results in units of the root mean square of the second's.
    pub fn compare(&self, s: &Stream, with: &Stream, most: f64) -> Result<(usize, f64)> {
        (self.compare)(s, with, most)
    }

    /// Makes the tensors of each conformance case in turn and hands over its name and a call that runs it once.
    pub fn cases(&self, s: &Stream, mut each: impl FnMut(&str, &mut (dyn FnMut() -> Result<()> + Send))) -> Result<()> {
        (self.cases)(s, &mut each)
    }
}

/// Times the bench cases that contain `case` in their printed form, of the op called `op` or of all.
pub fn all(s: &Stream, op: Option<&str>, case: &str, peaks: &Peaks, mut each: impl FnMut(Row)) -> Result<()> {
    for entry in OPS.iter().filter(|entry| op.is_none_or(|name| name == entry.name)) {
        entry.time(s, peaks, case, &mut each)?;
    }
    Ok(())
}

const fn entry<O: Op>() -> Entry
where
    O::Case: Sync,
    O::Ready: Send,
{
    Entry {
        name: O::NAME,
        time: |s, peaks, filter, each| harness::time::<O>(s, peaks, filter, each),
        time_least: |s, peaks| {
            let cost = |case: &O::Case| O::work(case).flops.max(O::work(case).bytes);
            let least = O::conform_cases().into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
            harness::time_case::<O>(s, peaks, &least.expect("bench: an op without cases"))
        },
        conform: |s, most| {
            let cases = O::conform_cases();
            let cheap = |case: &O::Case| O::work(case).flops.max(O::work(case).bytes) <= most;
            let chosen: Vec<_> = cases.iter().enumerate().filter(|(_, case)| cheap(case)).collect();
            for &(i, case) in &chosen {
                harness::conform_case::<O>(s, &[], case, 1000 + i as u64);
            }
            (chosen.len(), cases.len())
        },
        compare: |s, with, most| {
            let (mut ran, mut far) = (0, 0.0f64);
            for case in O::conform_cases() {
                let work = O::work(&case);
                if work.flops.max(work.bytes) <= most {
                    let run = |s: &Stream| {
                        let mut ready = O::prepare(s, &case, 1)?;
                        O::run(s, &case, &mut ready)?;
                        O::outputs(s, &case, &ready)
                    };
                    for (a, b) in run(s)?.iter().zip(run(with)?) {
                        far = far.max(harness::distance(&a.values, &b.values).0);
                    }
                    ran += 1;
                }
            }
            Ok((ran, far))
        },
        cases: |s, each| {
            for case in O::conform_cases() {
                let mut ready = O::prepare(s, &case, 1)?;
                each(&format!("{case:?}"), &mut || O::run(s, &case, &mut ready));
            }
            Ok(())
        },
    }
}
