//! Checks and times every op the same way.
//!
//! The proof of an op is a chain. [`slope`] shows that the reference's backward is the slope of its forward; goldens
//! show that the forward is what the world means by the name; [`conform`] shows that a device agrees with the reference
//! on every case, odd sizes too, with the same bits twice and on any number of threads. [`time`] measures the cases of
//! the bench and sets each beside the roofline of the machine it ran on.

use crate::{Result, device::Stream, peak::Peaks, tensor::DType};
use half::bf16;
use serde::Serialize;
use std::time::Instant;

/// One result of an op: what it is called, its values, and how far from the reference it may lie.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name in the op's page, as `dx`.
    pub name: &'static str,
    /// Values in row-major order.
    pub values: Vec<f64>,
}

/// What a case costs: the two sides of its roofline.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: f64,
    /// Bytes that must cross the memory bus, each once.
    pub bytes: f64,
    /// Which arithmetic peak bounds it.
    pub arithmetic: DType,
}

/// An op as tests and benches see it. A direction (forward, backward) or a form is part of the case.
pub trait Op {
    /// Name of the op's folder.
    const NAME: &'static str;
    /// Sizes, dtype, direction: prints as the bench's row.
    type Case: Clone + std::fmt::Debug;
    /// Tensors of one case, filled from a seed.
    type Ready;

    /// What conformance checks: odd sizes first, then each edge of a tile.
    fn conform_cases() -> Vec<Self::Case>;
    /// What the bench times: the sizes of real models.
    fn bench_cases() -> Vec<Self::Case>;
    /// Cost of one run.
    fn work(case: &Self::Case) -> Work;
    /// Lays out the tensors and draws the inputs.
    fn prepare(s: &Stream, case: &Self::Case, seed: u64) -> Result<Self::Ready>;
    /// Runs the op once. Outputs that are added to start from what `prepare` drew, the first time.
    fn run(s: &Stream, case: &Self::Case, ready: &mut Self::Ready) -> Result<()>;
    /// Reads the results back.
    fn outputs(s: &Stream, case: &Self::Case, ready: &Self::Ready) -> Result<Vec<Output>>;
    /// The same results from the reference in f64, on the same inputs (rounded to the case's dtype).
    fn reference(case: &Self::Case, seed: u64) -> Vec<Output>;
    /// Largest allowed error of an output, in units of the root mean square of the reference's values.
    fn tolerance(case: &Self::Case) -> f64;
}

/// Checks every conformance case of `O` on `s`, twice, against the reference; then on `others`, bit for bit.
pub fn conform<O: Op>(s: &Stream, others: &[Stream]) {
    for (i, case) in O::conform_cases().iter().enumerate() {
        conform_case::<O>(s, others, case, 1000 + i as u64);
    }
}

/// [`conform`] of one case.
pub fn conform_case<O: Op>(s: &Stream, others: &[Stream], case: &O::Case, seed: u64) {
    let once = |s: &Stream| {
        let mut ready = O::prepare(s, case, seed).expect("memory for a case");
        O::run(s, case, &mut ready).unwrap_or_else(|e| panic!("{} {case:?} seed {seed}: {e}", O::NAME));
        O::outputs(s, case, &ready).expect("outputs")
    };
    let got = once(s);
    for other in std::iter::once(s).chain(others) {
        for (a, b) in got.iter().zip(once(other)) {
            let same = a.values.iter().zip(&b.values).all(|(x, y)| x.to_bits() == y.to_bits());
            assert!(same, "{} {case:?} seed {seed}: {} differs between two runs", O::NAME, a.name);
        }
    }
    let want = O::reference(case, seed);
    assert_eq!(got.len(), want.len(), "{}: outputs", O::NAME);
    for (g, w) in got.iter().zip(&want) {
        assert_eq!(g.name, w.name, "{}: order of outputs", O::NAME);
        let (error, at) = distance(&g.values, &w.values);
        assert!(
            error <= O::tolerance(case),
            "{} {case:?} seed {seed}: {}[{at}] is {}, the reference says {}; error {error:.3e} of {:.1e}",
            O::NAME,
            g.name,
            g.values[at],
            w.values[at],
            O::tolerance(case)
        );
    }
}

/// [`conform`] on the host, with one thread, two and three.
pub fn conform_on_host<O: Op>() {
    let host = |threads| Stream::cpu(threads).expect("threads for a case");
    conform::<O>(&host(1), &[host(2), host(3)]);
}

/// The values in the reference's precision.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// Largest difference in units of the root mean square of `want` (at least 1e-6), and where. NaN is infinitely far.
pub fn distance(got: &[f64], want: &[f64]) -> (f64, usize) {
    assert_eq!(got.len(), want.len(), "distance: lengths");
    let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt().max(1e-6);
    let mut worst = (0.0, 0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let e = (g - w).abs() / rms;
        if e.is_nan() {
            return (f64::INFINITY, i);
        }
        if e > worst.0 {
            worst = (e, i);
        }
    }
    worst
}

/// Checks that `grad` is the slope of `f` at `x`: along `probes` random directions and at as many single places.
///
/// Central differences in f64 with step 1e-5; the error allowed is `tol` of the slope's own size plus 1e-9.
pub fn slope(f: impl Fn(&[f64]) -> f64, x: &[f64], grad: &[f64], probes: usize, tol: f64) {
    assert_eq!(x.len(), grad.len(), "slope: lengths");
    let step = 1e-5;
    let mut moved = x.to_vec();
    let mut check = |what: String, direction: &dyn Fn(usize) -> f64| {
        let mut at = |sign: f64| {
            for (i, m) in moved.iter_mut().enumerate() {
                *m = x[i] + sign * step * direction(i);
            }
            f(&moved)
        };
        let measured = (at(1.0) - at(-1.0)) / (2.0 * step);
        let claimed: f64 = grad.iter().enumerate().map(|(i, g)| g * direction(i)).sum();
        let size = grad.iter().enumerate().map(|(i, g)| (g * direction(i)).powi(2)).sum::<f64>().sqrt();
        assert!(
            (measured - claimed).abs() <= tol * (size + claimed.abs()) + 1e-9,
            "slope along {what}: measured {measured}, claimed {claimed}"
        );
    };
    for p in 0..probes {
        let direction = draw(77 + p as u64, x.len());
        check(format!("direction {p}"), &|i| f64::from(direction[i]));
        let place = (p * 7919 + 13) % x.len();
        check(format!("place {place}"), &|i| f64::from(u8::from(i == place)));
    }
}

/// `n` values near a normal distribution of mean 0 and deviation 1, a function of the seed alone.
pub fn draw(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut uniform = || {
        // SplitMix64 (Steele, Lea and Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
    };
    // Twelve uniforms would be the textbook; four are near enough for test data.
    (0..n).map(|_| (uniform() + uniform() + uniform() + uniform() - 2.0) * 1.732).collect()
}

/// `n` values as [`draw`], rounded to `dtype`, so that a device and the reference start from the same numbers.
pub fn draw_as(dtype: DType, seed: u64, n: usize) -> Vec<f32> {
    let mut values = draw(seed, n);
    if dtype == DType::Bf16 {
        for v in &mut values {
            *v = bf16::from_f32(*v).to_f32();
        }
    }
    values
}

/// One row of the bench.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Op folder.
    pub op: &'static str,
    /// The case as it prints.
    pub case: String,
    /// Threads on the host.
    pub threads: usize,
    /// Runs counted.
    pub runs: usize,
    /// Median of the runs.
    pub median_us: f64,
    /// Fastest of the runs.
    pub min_us: f64,
    /// Arithmetic rate at the median.
    pub gflop_per_s: f64,
    /// Memory rate at the median, counting each byte once.
    pub gb_per_s: f64,
    /// Time that the machine's peaks allow, as a share of the median.
    pub roofline: f64,
}

/// Times every bench case of `O` whose printed form contains `filter`.
pub fn time<O: Op>(s: &Stream, peaks: &Peaks, filter: &str, mut each: impl FnMut(Row)) -> Result<()> {
    for case in O::bench_cases() {
        if format!("{case:?}").contains(filter) {
            each(time_case::<O>(s, peaks, &case)?);
        }
    }
    Ok(())
}

/// Times one case: by wall clock on the host, by the device's clock there, launches as a graph, so that what is measured
/// is the kernels. The simulator runs it once.
pub fn time_case<O: Op>(s: &Stream, peaks: &Peaks, case: &O::Case) -> Result<Row> {
    let mut ready = O::prepare(s, case, 1)?;
    let work = O::work(case);
    let mut once = || s.graph(O::NAME, 0, || O::run(s, case, &mut ready));
    let (mut times_us, begin) = (Vec::new(), Instant::now());
    let least = match s {
        Stream::Gpu(gpu) if gpu.is_sim() => 1,
        // The second time builds the graph.
        Stream::Gpu(_) => once().and_then(|()| once()).map(|()| 5)?,
        Stream::Cpu(_) => once().map(|()| 5)?,
    };
    while times_us.len() < least || (least > 1 && begin.elapsed().as_millis() < 600 && times_us.len() < 200) {
        times_us.push(match s {
            Stream::Cpu(_) => {
                let start = Instant::now();
                once()?;
                start.elapsed().as_secs_f64() * 1e6
            }
            Stream::Gpu(gpu) => {
                let from = gpu.event()?;
                once()?;
                gpu.elapsed_ms(&from, &gpu.event()?)? * 1e3
            }
        });
    }
    times_us.sort_by(f64::total_cmp);
    let median_us = times_us[times_us.len() / 2];
    let bound_us = (work.flops / peaks.flops(work.arithmetic)).max(work.bytes / peaks.stream_bytes_per_s) * 1e6;
    Ok(Row {
        op: O::NAME,
        case: format!("{case:?}"),
        threads: s.threads(),
        runs: times_us.len(),
        median_us,
        min_us: times_us[0],
        gflop_per_s: work.flops / median_us / 1e3,
        gb_per_s: work.bytes / median_us / 1e3,
        roofline: bound_us / median_us,
    })
}
