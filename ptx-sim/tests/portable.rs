//! Kernels of the portable set, from CUDA C++ through NVRTC, run whole. portable.ptx is made by kernels/make.py.

use esker_ptx_sim::{Checks, Fault, FaultKind, Launch, Memory, Module, Options, Report, launch};

const PTX: &str = include_str!("kernels/portable.ptx");

/// The bytes of parameters, each aligned to its size.
#[derive(Default)]
struct Params(Vec<u8>);

impl Params {
    fn put(mut self, bytes: &[u8]) -> Params {
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend_from_slice(bytes);
        self
    }
    fn ptr(self, p: u64) -> Params {
        self.put(&p.to_le_bytes())
    }
    fn i32(self, x: i32) -> Params {
        self.put(&x.to_le_bytes())
    }
    fn f32(self, x: f32) -> Params {
        self.put(&x.to_le_bytes())
    }
}

fn run(
    ptx: &str,
    name: &str,
    m: &mut Memory,
    grid: [u32; 3],
    block: u32,
    p: Params,
    seed: u64,
) -> Result<Report, Fault> {
    let module = Module::parse_named("portable.ptx", ptx).unwrap();
    let kernel = module.kernel(name).unwrap();
    let shape = Launch { grid, block: [block, 1, 1], cluster: [1; 3], shared: 0, params: &p.0 };
    let options = Options { seed, counters: true, checks: Checks::Races, ..Options::default() };
    launch(kernel, m, shape, &options)
}

fn random(n: usize) -> Vec<f32> {
    let mut s = 0x1234_5678_9ABC_DEF1u64;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

fn floats(m: &mut Memory, x: &[f32]) -> u64 {
    let at = m.alloc(x.len() * 4);
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    m.write(at, &bytes).unwrap();
    at
}

fn read(m: &Memory, at: u64, n: usize) -> Vec<f32> {
    let b = m.slice(at, n * 4).unwrap();
    b.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

#[test]
fn axpy() {
    let n = 1000;
    let (x, y) = (random(n), random(2 * n)[n..].to_vec());
    let mut m = Memory::new();
    let (px, py) = (floats(&mut m, &x), floats(&mut m, &y));
    let p = || Params::default().ptr(py).ptr(px).f32(1.5).i32(n as i32);
    run(PTX, "axpy", &mut m, [4, 1, 1], 256, p(), 0).unwrap();
    let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 1.5f32.mul_add(*x, *y)).collect();
    assert_eq!(read(&m, py, n), want);
    // One element more than there is.
    let p = Params::default().ptr(py).ptr(px).f32(1.5).i32(n as i32 + 1);
    let e = run(PTX, "axpy", &mut m, [4, 1, 1], 256, p, 0).unwrap_err();
    assert!(matches!(e.kind, FaultKind::OutOfBounds { bytes: 4, .. }), "{e}");
    assert_eq!((e.block, e.warp, e.lane), ([3, 0, 0], 7, 8), "{e}");
}

#[test]
fn block_sum() {
    let x = random(1000);
    for seed in 0..8 {
        let mut m = Memory::new();
        let (px, po) = (floats(&mut m, &x), m.alloc(16));
        let p = Params::default().ptr(po).ptr(px).i32(1000);
        run(PTX, "block_sum", &mut m, [4, 1, 1], 256, p, seed).unwrap();
        for (b, got) in read(&m, po, 4).into_iter().enumerate() {
            let want: f64 = x[b * 256..(b * 256 + 256).min(1000)].iter().map(|&v| f64::from(v)).sum();
            assert!((f64::from(got) - want).abs() < 1e-4);
        }
    }
}

#[test]
fn histogram() {
    let x: Vec<u8> = random(5000).iter().map(|v| (v * v * 1000.0) as u8).collect();
    let mut m = Memory::new();
    let (ph, px) = (m.alloc(1024), m.alloc(5000));
    m.write(px, &x).unwrap();
    run(PTX, "histogram", &mut m, [1, 1, 1], 256, Params::default().ptr(ph).ptr(px).i32(5000), 3).unwrap();
    let mut want = [0u32; 256];
    x.iter().for_each(|&b| want[b as usize] += 1);
    let got: Vec<u32> =
        m.slice(ph, 1024).unwrap().chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(got, want);
}

#[test]
fn last_block() {
    let x = random(1000);
    let mut bits = Vec::new();
    for seed in 0..6 {
        let mut m = Memory::new();
        let (px, po, pp, pc) = (floats(&mut m, &x), m.alloc(4), m.alloc(32), m.alloc(4));
        m.write(pc, &[0; 4]).unwrap();
        let p = Params::default().ptr(po).ptr(pp).ptr(pc).ptr(px).i32(1000);
        run(PTX, "last_block", &mut m, [8, 1, 1], 128, p, seed).unwrap();
        bits.push(read(&m, po, 1)[0].to_bits());
    }
    bits.dedup();
    let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
    assert!(bits.len() == 1 && (f64::from(f32::from_bits(bits[0])) - want).abs() < 1e-4);
}

/// A[m, k] and B[n, k] as bf16, and their product in f64.
fn gemm(ptx: &str, m: usize, n: usize, k: usize, seed: u64) -> Result<f64, Fault> {
    let x = random((m + n) * k);
    let bf: Vec<u16> = x.iter().map(|v| (v.to_bits() >> 16) as u16).collect();
    let value = |i: usize| f64::from(f32::from_bits(u32::from(bf[i]) << 16));
    let mut mem = Memory::new();
    let (pa, pb, pc) = (mem.alloc(m * k * 2), mem.alloc(n * k * 2), mem.alloc(m * n * 4));
    let bytes: Vec<u8> = bf.iter().flat_map(|v| v.to_le_bytes()).collect();
    mem.write(pa, &bytes[..m * k * 2]).unwrap();
    mem.write(pb, &bytes[m * k * 2..]).unwrap();
    let p = Params::default().ptr(pc).ptr(pa).ptr(pb).i32(m as i32).i32(n as i32).i32(k as i32);
    let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
    run(ptx, "gemm", &mut mem, grid, 128, p, seed)?;
    assert!(mem.is_written(pc, m * n * 4).unwrap());
    let got = read(&mem, pc, m * n);
    let (mut err, mut norm) = (0.0, 0.0);
    for i in 0..m {
        for j in 0..n {
            let want: f64 = (0..k).map(|l| value(i * k + l) * value((m + j) * k + l)).sum();
            err += (f64::from(got[i * n + j]) - want).powi(2);
            norm += want * want;
        }
    }
    Ok((err / norm).sqrt())
}

#[test]
fn gemm_of_mma() {
    for (m, n, k) in [(64, 64, 32), (128, 64, 256), (70, 100, 96)] {
        for seed in 0..3 {
            let e = gemm(PTX, m, n, k, seed).unwrap();
            assert!(e < 1e-6, "{m} {n} {k}: {e}");
        }
    }
}
