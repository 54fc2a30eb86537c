//! What this machine can do at most, measured: the roofs that every bench row and progress line is set against.
//!
//! Arithmetic: all threads run multiply-adds on registers alone, twelve independent sums each, with the widest
//! instructions of [`simd::level`]; five bursts of about eight milliseconds, of which the fastest counts.
//!
//! Memory: all threads share one pass over arrays of 64 MiB each, larger than the last cache of most hosts, of which the
//! fastest of five counts. *Stream* is `x = x/2 + y`, 8 bytes read and 4 written an element, as an optimiser does;
//! *read* only sums. A machine that other work keeps busy shows less: measure when it is quiet.

use crate::{
    Result,
    device::Stream,
    gpu::Gpu,
    harness::draw,
    ops::matmul,
    pool::Pool,
    simd::{self, Level},
    tensor::{Arena, DType, Tensor},
};
use serde::Serialize;
use std::{hint::black_box, time::Instant};

/// Measured ceilings of a stream, all threads together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Peaks {
    /// Fused multiply-adds in f32, a multiply-add counting two.
    pub f32_flops_per_s: f64,
    /// The same with bf16 inputs and f32 sums; equal to f32's where the CPU has no such instruction.
    pub bf16_flops_per_s: f64,
    /// Bytes read and written a second by a stream over memory far larger than the caches.
    pub stream_bytes_per_s: f64,
    /// Bytes read a second, nothing written.
    pub read_bytes_per_s: f64,
}

impl Peaks {
    /// Measures the stream's device; takes about a third of a second and 128 MiB of memory.
    pub fn measure(s: &Stream) -> Result<Peaks> {
        match s {
            Stream::Cpu(pool) => {
                let level = simd::level();
                let f32_flops_per_s = flops(pool, level.min(Level::Avx512));
                let (stream_bytes_per_s, read_bytes_per_s) = memory(s, pool)?;
                Ok(Peaks {
                    f32_flops_per_s,
                    bf16_flops_per_s: if level == Level::Avx512Bf16 { flops(pool, level) } else { f32_flops_per_s },
                    stream_bytes_per_s,
                    read_bytes_per_s,
                })
            }
            Stream::Gpu(gpu) => of_device(s, gpu),
        }
    }

    /// The arithmetic peak for inputs of `dtype`.
    pub fn flops(&self, dtype: DType) -> f64 {
        match dtype {
            DType::Bf16 => self.bf16_flops_per_s,
            _ => self.f32_flops_per_s,
        }
    }
}

/// A device's rates by its own clock: a copy, and products in either dtype. Tiny on the simulator, whose clock counts
/// instructions.
fn of_device(s: &Stream, gpu: &Gpu) -> Result<Peaks> {
    let (side, copied) = if gpu.is_sim() { (64, 1 << 12) } else { (8192, 1 << 28) };
    let fastest = |f: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let mut least = f64::INFINITY;
        for _ in 0..5 {
            let from = gpu.event()?;
            f()?;
            least = least.min(gpu.elapsed_ms(&from, &gpu.event()?)? / 1e3);
        }
        Ok(least)
    };
    let mut tensors = (Tensor::alone(s, DType::F32, [copied])?, Tensor::alone(s, DType::F32, [copied])?);
    let (from, to) = &mut tensors;
    let copy_s = fastest(&mut || s.copy(from, to, copied))?;
    drop(tensors);
    let rate = |dtype| -> Result<f64> {
        let mut t = [(); 3].map(|()| Tensor::alone(s, dtype, [side, side]));
        let [Ok(a), Ok(b), Ok(c)] = &mut t else {
            return Err(t.into_iter().find_map(|t| t.err()).expect("one failed"));
        };
        // Zeros would let a card run faster than it can on numbers.
        a.set(&draw(1, side * side));
        b.set(&draw(2, side * side));
        let d = matmul::Dims { m: side, n: side, k: side };
        let mut run = || matmul::nt(s, d, matmul::Product { a, b, c, put: matmul::Put::Set });
        run()?;
        Ok(2.0 * (side as f64).powi(3) / fastest(&mut run)?)
    };
    let stream_bytes_per_s = 8.0 * copied as f64 / copy_s;
    Ok(Peaks {
        f32_flops_per_s: rate(DType::F32)?,
        bf16_flops_per_s: rate(DType::Bf16)?,
        stream_bytes_per_s,
        read_bytes_per_s: stream_bytes_per_s,
    })
}

/// The least seconds of five calls.
fn fastest(mut f: impl FnMut()) -> f64 {
    (0..5).fold(f64::INFINITY, |best, _| {
        let start = Instant::now();
        f();
        best.min(start.elapsed().as_secs_f64())
    })
}

/// Multiply-adds of all lanes with the instructions of `level`, twice their number a second.
fn flops(pool: &Pool, level: Level) -> f64 {
    // One small burst says how many rounds take a millisecond.
    let rounds = 20_000;
    let start = Instant::now();
    let per_round = burst(level, rounds);
    let rounds = (rounds as f64 * 1e-3 / start.elapsed().as_secs_f64()).max(1.0) as usize;
    let pieces = 8 * pool.lanes();
    let seconds = fastest(|| {
        pool.run(pieces, |_, _| {
            burst(level, rounds);
        });
    });
    (per_round * rounds * pieces) as f64 / seconds
}

/// Runs `rounds` of twelve multiply-adds on registers; returns the operations of one round.
fn burst(level: Level, rounds: usize) -> usize {
    // SAFETY: the level is at most that of this CPU.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match level {
            Level::Avx512Bf16 => return x86::bf16(rounds),
            Level::Avx512 => return x86::avx512(rounds),
            Level::Avx2 => return x86::avx2(rounds),
            Level::Portable => {}
        }
    }
    let _ = level;
    let (x, y) = (black_box([1.0f32; 4]), black_box([1e-9f32; 4]));
    let mut sums = black_box([[0f32; 4]; CHAINS]);
    for _ in 0..rounds {
        for sum in &mut sums {
            for j in 0..4 {
                sum[j] = sum[j] * x[j] + y[j];
            }
        }
    }
    black_box(sums);
    2 * 4 * CHAINS
}

/// Independent sums: more than the latency times the width of any core so far.
const CHAINS: usize = 12;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::CHAINS;
    use std::{arch::x86_64::*, hint::black_box};

    macro_rules! burst {
        ($name:ident, $features:literal, $flops:expr, $zero:expr, $x:expr, $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(rounds: usize) -> usize {
                let x = black_box($x);
                let mut sums = [$zero; CHAINS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $step(*sum, x);
                    }
                }
                black_box(sums);
                $flops * CHAINS
            }
        };
    }

    burst!(avx2, "avx2,fma", 16, _mm256_setzero_ps(), _mm256_set1_ps(1e-9), |s, x| _mm256_fmadd_ps(x, x, s));
    burst!(avx512, "avx512f", 32, _mm512_setzero_ps(), _mm512_set1_ps(1e-9), |s, x| _mm512_fmadd_ps(x, x, s));
    burst!(
        bf16,
        "avx512f,avx512bf16",
        64,
        _mm512_setzero_ps(),
        _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0)),
        |s, x| _mm512_dpbf16_ps(s, x, x)
    );
}

/// Bytes a second of the stream and of reading alone.
fn memory(s: &Stream, pool: &Pool) -> Result<(f64, f64)> {
    const LEN: usize = 16 << 20;
    const PIECE: usize = 1 << 16;
    let ((mut x, y), _) = Arena::build(s, |arena| {
        let mut array = || arena.tensor(DType::F32, [LEN]);
        (array(), array())
    })?;
    let stream_s = fastest(|| {
        let y = y.f32();
        pool.chunks(x.f32_mut(), PIECE, |i, x, _| {
            for (x, y) in x.iter_mut().zip(&y[i * PIECE..]) {
                *x = 0.5 * *x + y;
            }
        });
    });
    let read_s = fastest(|| {
        let arrays = [x.f32(), y.f32()];
        pool.run(2 * LEN / PIECE, |i, _| {
            let piece = &arrays[i * PIECE / LEN][i * PIECE % LEN..][..PIECE];
            let mut sums = [0f32; 32];
            for x in piece.chunks_exact(32) {
                for j in 0..32 {
                    sums[j] += x[j];
                }
            }
            black_box(sums);
        });
    });
    let bytes = (LEN * 4) as f64;
    Ok((3.0 * bytes / stream_s, 2.0 * bytes / read_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_of_this_world() {
        let peaks = Peaks::measure(&Stream::cpu(1).unwrap()).unwrap();
        for rate in [peaks.f32_flops_per_s, peaks.stream_bytes_per_s, peaks.read_bytes_per_s] {
            assert!((1e7..1e14).contains(&rate), "{peaks:?}");
        }
        assert!(peaks.flops(DType::Bf16) >= 0.5 * peaks.flops(DType::F32), "{peaks:?}");
    }
}
