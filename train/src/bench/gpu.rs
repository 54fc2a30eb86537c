//! `esker bench gpu`: everything a borrowed card is asked, in one command that needs this binary and a driver alone.
//!
//! ① each op's conformance cases, against the reference in f64, twice
//! ② the same cases, small ones, on the simulator: how far card and simulator lie apart
//! ③ the card's ceilings: a copy, a product of 8192 x 8192 in bf16 and in f32, by its own clock
//! ④ each op's bench cases with their share of the roofline of ③
//! ⑤ whole training steps: tokens a second and the share of the bf16 rate of ③ (and of a datasheet's, MFU, where known)
//!
//! `gpu.json` holds all of it, `gpu.txt` the same for people. Beside it, `tools/compare_gpu.py` asks PyTorch the same
//! shapes on the same card.

use super::{ModelRow, step};
use esker_kernels::{DeviceError, bench::OPS, device::Stream, harness, peak::Peaks, tensor::DType};
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
    /// How `share_of_peak` of a step is made.
    pub mfu_formula: &'static str,
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
    /// Whether ④ and ⑤ run.
    pub times: bool,
    /// Seconds a step's shape runs for.
    pub seconds: f64,
}

impl Extent {
    /// On a card.
    pub const CARD: Extent = Extent { conform_most: f64::INFINITY, compare_most: 2e5, times: true, seconds: 5.0 };
    /// On the simulator.
    pub const SIM: Extent = Extent { conform_most: 2e3, compare_most: 0.0, times: false, seconds: 0.0 };
}

/// Rows of 1024 tokens in a step of the 124M shape.
const ROWS: [usize; 2] = [4, 16];
const MFU: &str =
    "flops_per_token x tokens_per_s / bf16_flops_per_s, the rate measured here; flops_per_token as in `esker plan`";

/// Runs all of it on `s` and writes `gpu.json` and `gpu.txt` into `out`; `say` hears what is under way.
pub fn gpu(s: &Stream, extent: Extent, out: &Path, mut say: impl FnMut(&str)) -> Result<GpuReport, GpuError> {
    let device = match s {
        Stream::Gpu(gpu) => gpu.name(),
        Stream::Cpu(_) => "host".into(),
    };
    say(&format!("ceilings of {device}"));
    let peaks = Peaks::measure(s)?;
    let mut conformance = Vec::new();
    for op in OPS {
        say(&format!("conformance of {}", op.name));
        conformance.push(conform(s, op, extent)?);
    }
    let (mut ops, mut steps) = (Vec::new(), Vec::new());
    if extent.times {
        for op in OPS {
            say(&format!("bench of {}", op.name));
            op.time(s, &peaks, "", |row| ops.push(row))?;
        }
        for (rows, dtype) in ROWS.iter().flat_map(|&rows| [(rows, DType::Bf16), (rows, DType::F32)]) {
            say(&format!("steps of 124M parameters, {rows} rows, {dtype}"));
            steps.push(step::of_124m(s, &peaks, rows, dtype, extent.seconds)?);
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let report = GpuReport { version, device, peaks, conformance, ops, steps, mfu_formula: MFU };
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
        writeln!(f, "\nshare of a step: {}", self.mfu_formula)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_written_and_says_what_conforms() {
        let (s, out) = (Stream::sim(1).unwrap(), tempfile::tempdir().unwrap());
        let report = gpu(&s, Extent::SIM, out.path(), |_| ()).unwrap();
        assert!(report.passes(), "{report}");
        assert!(report.conformance.iter().map(|c| c.cases).sum::<usize>() > 20);
        let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
        assert!(read("gpu.txt").contains("simulator"));
        let json: serde_json::Value = serde_json::from_str(&read("gpu.json")).unwrap();
        assert_eq!(json["conformance"].as_array().unwrap().len(), OPS.len());
    }
}
