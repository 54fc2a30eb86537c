//! What this machine has, and what it reaches.

use crate::plan::size;
use esker_kernels::{
    DeviceError, Result as Done,
    device::Stream,
    gpu::card,
    harness,
    ops::matmul::{self, Dims, Product, Put},
    peak::Peaks,
    simd,
    tensor::{DType, Tensor},
};
use serde::Serialize;
use std::time::Instant;

/// Rows, columns and depth of the product that is timed.
const N: usize = 1024;
/// Seconds that it runs for, each dtype.
const SECONDS: f64 = 1.0;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Of this program.
    pub version: &'static str,
    /// Built with debug checks: then every rate is far below what a release build reaches.
    pub debug_build: bool,
    /// Operating system and kind of processor.
    pub platform: String,
    /// As the processor calls itself.
    pub cpu: Option<String>,
    /// Widest instructions it has.
    pub simd_detected: &'static str,
    /// Those in use (`ESKER_SIMD` lowers them).
    pub simd_in_use: &'static str,
    /// Threads of the stream.
    pub threads: usize,
    /// Threads that the system would give.
    pub threads_available: usize,
    /// Memory of the machine, where it says so.
    pub memory_bytes: Option<u64>,
    /// What of it can be had now.
    pub memory_available_bytes: Option<u64>,
    /// Setting of the system's transparent huge pages.
    pub huge_pages: Option<String>,
    /// NVIDIA cards, with what was measured on each; or why none is used.
    pub cards: Result<Vec<Card>, String>,
    /// Measured ceilings.
    pub peaks: Peaks,
    /// A product of two 1024 x 1024 matrices, median.
    pub matmul_f32_gflop_per_s: f64,
    /// Of the f32 peak.
    pub matmul_f32_share: f64,
    /// The same with bf16 inputs.
    pub matmul_bf16_gflop_per_s: f64,
    /// Of the bf16 peak.
    pub matmul_bf16_share: f64,
    /// Largest error of the f32 product in 64 entries, against f64, in units of their root mean square.
    pub matmul_error: f64,
    /// Largest allowed.
    pub matmul_error_max: f64,
}

/// An NVIDIA card.
#[derive(Debug, Serialize)]
pub struct Card {
    /// Marketing name.
    pub name: String,
    /// Compute capability, as 9.0.
    pub capability: String,
    /// Multiprocessors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Newest CUDA that the driver knows.
    pub driver_cuda: String,
    /// Measured on the first card alone.
    pub peaks: Option<Peaks>,
}

/// The cards of this machine; the first one is measured.
fn cards() -> Result<Vec<Card>, DeviceError> {
    let mut cards: Vec<Card> = card::cards()?
        .into_iter()
        .map(|info| Card {
            name: info.name,
            capability: format!("{}.{}", info.capability.0, info.capability.1),
            processors: info.processors,
            memory_bytes: info.memory_bytes as u64,
            driver_cuda: format!("{}.{}", info.driver_cuda / 1000, info.driver_cuda % 1000 / 10),
            peaks: None,
        })
        .collect();
    if let Some(first) = cards.first_mut() {
        first.peaks = Some(Peaks::measure(&Stream::cuda(1)?)?);
    }
    Ok(cards)
}

/// Looks and measures; takes about three seconds.
pub fn examine(s: &Stream) -> Done<Found> {
    let peaks = Peaks::measure(s)?;
    let (f32_rate, matmul_error) = product(s, DType::F32)?;
    let (bf16_rate, _) = product(s, DType::Bf16)?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let thp = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok();
    Ok(Found {
        version: env!("CARGO_PKG_VERSION"),
        debug_build: cfg!(debug_assertions),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: cpuinfo.lines().find_map(|l| Some(l.strip_prefix("model name")?.split_once(':')?.1.trim().to_string())),
        simd_detected: simd::detected().name(),
        simd_in_use: simd::level().name(),
        threads: s.threads(),
        threads_available: std::thread::available_parallelism().map_or(1, |n| n.get()),
        memory_bytes: kib(&meminfo, "MemTotal:"),
        memory_available_bytes: kib(&meminfo, "MemAvailable:"),
        huge_pages: thp.and_then(|t| Some(t.split_once('[')?.1.split_once(']')?.0.to_string())),
        cards: cards().map_err(|e| e.to_string()),
        peaks,
        matmul_f32_gflop_per_s: f32_rate / 1e9,
        matmul_f32_share: f32_rate / peaks.f32_flops_per_s,
        matmul_bf16_gflop_per_s: bf16_rate / 1e9,
        matmul_bf16_share: bf16_rate / peaks.bf16_flops_per_s,
        matmul_error,
        matmul_error_max: 1e-5,
    })
}

/// Bytes of a line of /proc/meminfo.
fn kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Rate of c = a·bᵀ, FLOPs a second, and the error of some of its entries.
fn product(s: &Stream, dtype: DType) -> Done<(f64, f64)> {
    let (mut a, mut b) = (Tensor::alone(s, dtype, [N, N])?, Tensor::alone(s, dtype, [N, N])?);
    let (va, vb) = (harness::draw_as(dtype, 1, N * N), harness::draw_as(dtype, 2, N * N));
    a.set(&va);
    b.set(&vb);
    let mut c = Tensor::alone(s, DType::F32, [N, N])?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 3 || begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        let dims = Dims { m: N, n: N, k: N };
        s.enter(|| matmul::nt(s, dims, Product { a: &a, b: &b, c: &mut c, put: Put::Set }))?;
        s.synchronise()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let places: Vec<(usize, usize)> = (0..64).map(|i| (i * 389 % N, i * 613 % N)).collect();
    let got: Vec<f64> = places.iter().map(|&(i, j)| f64::from(c.f32()[i * N + j])).collect();
    let dot = |&(i, j): &(usize, usize)| (0..N).map(|k| f64::from(va[i * N + k]) * f64::from(vb[j * N + k])).sum();
    let want: Vec<f64> = places.iter().map(dot).collect();
    Ok((2.0 * (N * N * N) as f64 / times[times.len() / 2], harness::distance(&got, &want).0))
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unknown = || "unknown".to_string();
        let bytes = |b: Option<u64>| b.map_or_else(unknown, size);
        writeln!(f, "esker          {}, {}", self.version, self.platform)?;
        if self.debug_build {
            writeln!(f, "               a debug build: rates mean little; use cargo run --release")?;
        }
        writeln!(f, "processor      {}", self.cpu.clone().unwrap_or_else(unknown))?;
        writeln!(f, "instructions   {} in use, {} there", self.simd_in_use, self.simd_detected)?;
        writeln!(f, "threads        {} of {}", self.threads, self.threads_available)?;
        writeln!(f, "memory         {}, {} free", bytes(self.memory_bytes), bytes(self.memory_available_bytes))?;
        writeln!(f, "huge pages     {}", self.huge_pages.clone().unwrap_or_else(unknown))?;
        let p = &self.peaks;
        let (f32_peak, bf16_peak) = (p.f32_flops_per_s / 1e9, p.bf16_flops_per_s / 1e9);
        writeln!(f, "peak f32       {f32_peak:>7.0} GFLOP/s")?;
        writeln!(f, "peak bf16      {bf16_peak:>7.0} GFLOP/s")?;
        writeln!(f, "stream         {:>7.1} GB/s read and written", p.stream_bytes_per_s / 1e9)?;
        writeln!(f, "read           {:>7.1} GB/s", p.read_bytes_per_s / 1e9)?;
        let rate = |rate: f64, share: f64| format!("{rate:>7.0} GFLOP/s, {:.0} % of peak", 100.0 * share);
        writeln!(f, "matmul f32     {}", rate(self.matmul_f32_gflop_per_s, self.matmul_f32_share))?;
        writeln!(f, "matmul bf16    {}", rate(self.matmul_bf16_gflop_per_s, self.matmul_bf16_share))?;
        match &self.cards {
            Err(why) => writeln!(f, "card           {why}")?,
            Ok(cards) => {
                for c in cards {
                    let memory = size(c.memory_bytes);
                    let Card { name, capability, processors, driver_cuda, .. } = c;
                    writeln!(
                        f,
                        "card           {name}, {capability}, {processors} processors, {memory}, driver for CUDA {driver_cuda}"
                    )?;
                    if let Some(p) = &c.peaks {
                        let tflops = |rate: f64| rate / 1e12;
                        writeln!(
                            f,
                            "               copy {:.0} GB/s read and written, matmul bf16 {:.1} TFLOP/s, f32 {:.1}",
                            p.stream_bytes_per_s / 1e9,
                            tflops(p.bf16_flops_per_s),
                            tflops(p.f32_flops_per_s)
                        )?;
                    }
                }
            }
        }
        writeln!(f, "matmul error   {:.1e} of {:.0e} allowed", self.matmul_error, self.matmul_error_max)
    }
}
