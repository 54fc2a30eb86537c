#![allow(dead_code, reason = "each test takes what it needs")]
//! What the tests share: parameters, memory of floats, numbers without a pattern, and bugs planted in PTX.

use esker_ptx_sim::{Checks, Fault, Launch, Memory, Module, Options, Report, launch};

/// The bytes of parameters, each aligned to its size (a tensor map to 64).
#[derive(Default)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn put(mut self, bytes: &[u8]) -> Params {
        self.0.resize(self.0.len().next_multiple_of(bytes.len().min(64)), 0);
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn ptr(self, p: u64) -> Params {
        self.put(&p.to_le_bytes())
    }
    pub fn i32(self, x: i32) -> Params {
        self.put(&x.to_le_bytes())
    }
}

pub struct Shape {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
}

pub fn run(ptx: &str, name: &str, m: &mut Memory, s: &Shape, p: &Params, seed: u64) -> Result<Report, Fault> {
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
    let kernel = module.kernel(name).unwrap();
    let shape = Launch { grid: s.grid, block: [s.block, 1, 1], cluster: [1; 3], shared: s.shared, params: &p.0 };
    launch(kernel, m, shape, &Options { seed, counters: true, checks: Checks::Races, ..Options::default() })
}

/// Numbers from -0.5 to 0.5.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut s = 0x1234_5678_9ABC_DEF1u64 ^ seed << 20;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

pub fn floats(m: &mut Memory, x: &[f32]) -> u64 {
    let at = m.alloc(x.len() * 4);
    m.write(at, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    at
}

pub fn halves(m: &mut Memory, x: &[u16]) -> u64 {
    let at = m.alloc(x.len() * 2);
    m.write(at, &x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    at
}

pub fn read_floats(m: &Memory, at: u64, n: usize) -> Vec<f32> {
    m.slice(at, n * 4).unwrap().chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// bf16 by cutting, which is exact enough for test data.
pub fn bf16(x: &[f32]) -> Vec<u16> {
    x.iter().map(|v| (v.to_bits() >> 16) as u16).collect()
}

pub fn value(bits: u16) -> f64 {
    f32::from_bits(u32::from(bits) << 16).into()
}

/// |got - A Bᵀ| / |A Bᵀ|, A being [m, k] and B [n, k].
pub fn product_error(got: &[f64], a: &[u16], b: &[u16], n: usize, k: usize) -> f64 {
    let (mut err, mut norm) = (0.0, 0.0);
    for (at, got) in got.iter().enumerate() {
        let (i, j) = (at / n, at % n);
        let want: f64 = (0..k).map(|l| value(a[i * k + l]) * value(b[j * k + l])).sum();
        err += (got - want).powi(2);
        norm += want * want;
    }
    (err / norm).sqrt()
}

/// The PTX with the `which`-th lines of those in `kernel` that contain `needle` replaced.
pub fn plant(ptx: &str, kernel: &str, needle: &str, which: &[usize], with: &str) -> String {
    let (mut seen, mut inside, mut planted) = (0, false, 0);
    let mut out = String::new();
    for line in ptx.lines() {
        if line.contains(".entry") {
            inside = line.contains(&format!(".entry {kernel}("));
        }
        let hit = inside && line.contains(needle);
        if hit && which.contains(&seen) {
            out.push_str(with);
            planted += 1;
        } else {
            out.push_str(line);
        }
        seen += usize::from(hit);
        out.push('\n');
    }
    assert_eq!(planted, which.len(), "{kernel} has {seen} lines with {needle}");
    out
}
