//! `esker bench gpu`: everything a borrowed card is asked, in one command that needs this binary and a driver alone.
//!
//! ① each op's conformance cases, against the reference in f64, twice
//! ② the same cases, small ones, on the simulator: how far card and simulator lie apart
//! ③ the card's ceilings: a copy, a product of 8192 x 8192 in bf16 and in f32, by its own clock
//! ④ each op's bench cases with their share of the roofline of ③
//! ⑤ whole training steps on random tokens, as graphs and with launches one by one
//! ⑥ a training run from shards: loss, tokens a second, share of the bf16 rate of ③ and of the datasheet's (MFU)
//! ⑦ PyTorch at the same shapes on the same card, where the machine has it
//!
//! `gpu.json` holds all of it, `gpu.txt` the same for people. On the simulator all of it runs at sizes of nothing: a test
//! of the command.

mod torch;
mod training;

pub use torch::Torch;
pub use training::Training;

use super::{ModelRow, step};
use crate::run::TrainError;
use esker_kernels::{
    DeviceError,
    bench::OPS,
    device::{Kind, Stream},
    gpu::Gpu,
    harness,
    peak::Peaks,
    tensor::DType,
};
use serde::Serialize;
use std::{
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// All that was found.
#[derive(Debug, Serialize)]
pub struct GpuReport {
    /// Of this program.
    pub version: &'static str,
    /// As the driver names the card.
    pub device: String,
    /// Measured ceilings.
    pub peaks: Peaks,
    /// An op a row.
    pub conformance: Vec<Conformance>,
    /// Rows of the bench.
    pub ops: Vec<harness::Row>,
    /// Training steps.
    pub steps: Vec<ModelRow>,
    /// A run from shards.
    pub training: Training,
    /// How shares of a step are made.
    pub mfu_formula: &'static str,
    /// The same shapes in PyTorch.
    pub torch: Torch,
}

/// Whether one op does on the device what it should.
#[derive(Debug, Serialize)]
pub struct Conformance {
    /// Op folder.
    pub op: &'static str,
    /// Cases that were run.
    pub cases: usize,
    /// The first that differs from the reference or between two runs.
    pub fault: Option<String>,
    /// Cases run on the simulator too.
    pub compared: usize,
    /// Largest distance of the two, in units of the root mean square of the simulator's values.
    pub from_simulator: f64,
}

/// What goes wrong besides kernels.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The run failed.
    #[error(transparent)]
    Train(#[from] Box<TrainError>),
    /// The folder could not be written.
    #[error("{path}: {source}")]
    Write {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What to ask: less of it on the simulator, where it is a test of this command.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Operations or bytes of the dearest case of ①.
    pub conform_most: f64,
    /// The same of ②.
    pub compare_most: f64,
    /// ④ to ⑥ take the smallest there is.
    pub tiny: bool,
    /// Seconds a shape of ⑤ runs for.
    pub seconds: f64,
    /// Steps of ⑥.
    pub steps: u64,
}

impl Extent {
    /// On a card.
    pub const CARD: Extent =
        Extent { conform_most: f64::INFINITY, compare_most: 2e5, tiny: false, seconds: 5.0, steps: 100 };
    /// On the simulator.
    pub const SIM: Extent = Extent { conform_most: 2e3, compare_most: 5e2, tiny: true, seconds: 0.0, steps: 3 };
}

/// Rows of 1024 tokens in a step of the 124M shape.
const ROWS: [usize; 2] = [4, 16];
const MFU: &str = "flops_per_token x tokens_per_s / bf16 flops_per_s; measured: the rate of the product above; MFU: the \
                   rate in the card's datasheet, dense; flops_per_token as `esker plan` prints it";

/// Runs all of it on `gpu` and writes `gpu.json` and `gpu.txt` into `out`; `say` hears what is under way.
pub fn gpu(gpu: &Gpu, extent: Extent, out: &Path, mut say: impl FnMut(&str)) -> Result<GpuReport, GpuError> {
    // First, so that a folder that cannot be written is known before an hour of a card.
    let script = torch::script(out)?;
    let (s, device) = (&Stream::Gpu(gpu.clone()), gpu.name());
    say(&format!("ceilings of {device}"));
    let peaks = Peaks::measure(s)?;
    let mut conformance = Vec::new();
    for op in OPS {
        say(&format!("conformance of {}", op.name));
        conformance.push(conform(s, op, extent)?);
    }
    let mut ops = Vec::new();
    for op in OPS {
        say(&format!("bench of {}", op.name));
        if extent.tiny {
            ops.push(op.time_least(s, &peaks)?);
        } else {
            op.time(s, &peaks, "", |row| ops.push(row))?;
        }
    }
    let steps = steps(s, gpu, &peaks, extent, &mut say)?;
    say(&format!("a run of {} steps from shards", extent.steps));
    let kind = if gpu.is_sim() { Kind::Sim } else { Kind::Cuda };
    let training = training::training(kind, &device, peaks, s.threads(), extent)?;
    say("PyTorch");
    let torch = torch::torch(out, &script)?;
    let version = env!("CARGO_PKG_VERSION");
    let report = GpuReport { version, device, peaks, conformance, ops, steps, training, mfu_formula: MFU, torch };
    let json = serde_json::to_string_pretty(&report).expect("bench: a report is always JSON");
    let put = |name: &str, text: &str| {
        let path = out.join(name);
        let written = std::fs::create_dir_all(out).and_then(|()| std::fs::write(&path, text));
        written.map_err(|source| GpuError::Write { path: path.display().to_string(), source })
    };
    put("gpu.json", &json)?;
    put("gpu.txt", &report.to_string())?;
    Ok(report)
}

/// Steps of each shape as graphs, and of the smallest in bf16 with launches one by one: what graphs are worth.
fn steps(
    s: &Stream,
    gpu: &Gpu,
    peaks: &Peaks,
    extent: Extent,
    say: &mut impl FnMut(&str),
) -> Result<Vec<ModelRow>, DeviceError> {
    let mut rows = Vec::new();
    if extent.tiny {
        rows.push(step::of_nothing(s, peaks, DType::Bf16)?);
        return Ok(rows);
    }
    for (n, dtype) in ROWS.iter().flat_map(|&n| [(n, DType::Bf16), (n, DType::F32)]) {
        say(&format!("steps of 124M parameters, {n} rows, {dtype}"));
        rows.push(step::of_124m(s, peaks, n, dtype, extent.seconds)?);
    }
    say("steps with launches one by one");
    gpu.use_graphs(false);
    let single = step::of_124m(s, peaks, ROWS[0], DType::Bf16, extent.seconds);
    gpu.use_graphs(true);
    let mut single = single?;
    single.case += " one by one";
    rows.push(single);
    Ok(rows)
}

fn conform(s: &Stream, op: &esker_kernels::bench::Entry, extent: Extent) -> Result<Conformance, DeviceError> {
    let said = |e: Box<dyn std::any::Any + Send>| {
        let text = e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string()));
        text.unwrap_or_else(|| "a panic without words".into())
    };
    let (cases, fault) = match catch_unwind(AssertUnwindSafe(|| op.conform(s, extent.conform_most))) {
        Ok((ran, _)) => (ran, None),
        Err(e) => (0, Some(said(e))),
    };
    let sim = Stream::sim(1)?;
    let (compared, from_simulator) = op.compare(s, &sim, extent.compare_most)?;
    Ok(Conformance { op: op.name, cases, fault, compared, from_simulator })
}

impl GpuReport {
    /// Whether every op conforms.
    pub fn passes(&self) -> bool {
        self.conformance.iter().all(|c| c.fault.is_none())
    }
}

impl std::fmt::Display for GpuReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let p = &self.peaks;
        writeln!(f, "{} (esker {})", self.device, self.version)?;
        writeln!(
            f,
            "copy {:.0} GB/s, matmul bf16 {:.1} TFLOP/s, f32 {:.1} TFLOP/s\n",
            p.stream_bytes_per_s / 1e9,
            p.bf16_flops_per_s / 1e12,
            p.f32_flops_per_s / 1e12
        )?;
        writeln!(f, "{:<14} {:>6}  {:>9}  from the simulator", "op", "cases", "conforms")?;
        for c in &self.conformance {
            let (yes, far) = (if c.fault.is_none() { "yes" } else { "NO" }, c.from_simulator);
            writeln!(f, "{:<14} {:>6}  {yes:>9}  {far:.1e} in {} cases", c.op, c.cases, c.compared)?;
            if let Some(fault) = &c.fault {
                writeln!(f, "  {fault}")?;
            }
        }
        if !self.ops.is_empty() {
            writeln!(f, "\n{:<12} {:<64} {:>10} {:>9} {:>8} {:>8}", "op", "case", "us", "TFLOP/s", "GB/s", "roofline")?;
        }
        for r in &self.ops {
            let mut line = String::new();
            write!(line, "{:<12} {:<64} {:>10.1}", r.op, r.case, r.median_us)?;
            let (tflops, share) = (r.gflop_per_s / 1e3, 100.0 * r.roofline);
            writeln!(f, "{line} {tflops:>9.2} {:>8.0} {share:>6.0} %", r.gb_per_s)?;
        }
        for r in &self.steps {
            writeln!(
                f,
                "step {} {}: {:.2} ms, {:.0} tokens/s, {:.1} % of the measured rate",
                r.case,
                r.dtype,
                r.median_ms,
                r.tokens_per_s,
                100.0 * r.share_of_peak
            )?;
        }
        let t = &self.training;
        writeln!(
            f,
            "run of {} steps of {} tokens from shards, {:.1} M parameters in {}: loss {:.3} to {:.3}, {} bits a byte",
            t.steps,
            t.step_tokens,
            t.params as f64 / 1e6,
            t.dtype,
            t.losses.first().copied().unwrap_or(f64::NAN),
            t.losses.last().copied().unwrap_or(f64::NAN),
            t.bits_per_byte.map_or("-".into(), |bits| format!("{bits:.3}"))
        )?;
        let mfu = t.mfu.map_or("unknown".into(), |mfu| format!("{:.1} %", 100.0 * mfu));
        let measured = 100.0 * t.share_of_measured;
        writeln!(f, "  {:.0} tokens/s, {measured:.1} % of the measured rate, MFU {mfu}", t.tokens_per_s)?;
        writeln!(f, "\nshare: {}\n", self.mfu_formula)?;
        write!(f, "{}", self.torch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole command, at sizes of nothing.
    #[test]
    fn the_report_is_written_and_says_what_conforms() {
        let (device, out) = (Gpu::sim(1, false, 1).unwrap(), tempfile::tempdir().unwrap());
        let report = gpu(&device, Extent::SIM, out.path(), |_| ()).unwrap();
        assert!(report.passes(), "{report}");
        assert!(report.conformance.iter().map(|c| c.cases).sum::<usize>() > 20);
        assert!(report.conformance.iter().map(|c| c.compared).sum::<usize>() > 0);
        // Two simulators differ in the order of warps, which no result may show.
        assert!(report.conformance.iter().all(|c| c.from_simulator == 0.0), "{report}");
        assert_eq!((report.ops.len(), report.steps.len(), report.training.losses.len()), (OPS.len(), 1, 3));
        assert!(report.torch.skipped.is_some() || report.torch.found.is_some());
        let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
        assert!(read("gpu.txt").contains("simulator") && read("compare_gpu.py").contains("scaled_dot_product"));
        let json: serde_json::Value = serde_json::from_str(&read("gpu.json")).unwrap();
        assert_eq!(json["conformance"].as_array().unwrap().len(), OPS.len());
        assert!(json["training"]["losses"][2].as_f64().is_some_and(f64::is_finite));
    }
}
