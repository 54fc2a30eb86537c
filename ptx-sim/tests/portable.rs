//! Kernels of the portable set, from CUDA C++ through NVRTC, run whole. portable.ptx is made by kernels/make.py.

mod kit;

use esker_ptx_sim::{Fault, FaultKind, Memory};
use kit::{Params, Shape, bf16, floats, halves, plant, product_error, random, read_floats, run};

const PTX: &str = include_str!("kernels/portable.ptx");

fn shape(blocks: u32, block: u32) -> Shape {
    Shape { grid: [blocks, 1, 1], block, shared: 0 }
}

#[test]
fn axpy() {
    let n = 1000;
    let (x, y) = (random(n, 1), random(n, 2));
    let mut m = Memory::new();
    let (px, py) = (floats(&mut m, &x), floats(&mut m, &y));
    let p = |n: i32| Params::default().ptr(py).ptr(px).put(&1.5f32.to_le_bytes()).i32(n);
    run(PTX, "axpy", &mut m, &shape(4, 256), &p(1000), 0).unwrap();
    let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 1.5f32.mul_add(*x, *y)).collect();
    assert_eq!(read_floats(&m, py, n), want);
    // One element more than there is.
    let e = run(PTX, "axpy", &mut m, &shape(4, 256), &p(1001), 0).unwrap_err();
    assert!(matches!(*e.kind, FaultKind::OutOfBounds { bytes: 4, .. }), "{e}");
    assert_eq!((e.block, e.warp, e.lane), ([3, 0, 0], 7, 8), "{e}");
    // Memory nobody wrote.
    let fresh = m.alloc(4000);
    let p = Params::default().ptr(py).ptr(fresh).put(&1.5f32.to_le_bytes()).i32(1000);
    let e = run(PTX, "axpy", &mut m, &shape(4, 256), &p, 0).unwrap_err();
    assert!(matches!(*e.kind, FaultKind::Unwritten { space: "global", .. }), "{e}");
    // An address off by two.
    let p = Params::default().ptr(py + 2).ptr(px).put(&1.5f32.to_le_bytes()).i32(8);
    let e = run(PTX, "axpy", &mut m, &shape(1, 32), &p, 0).unwrap_err();
    assert!(matches!(*e.kind, FaultKind::Misaligned { .. }), "{e}");
}

fn block_sum(ptx: &str, seed: u64) -> Result<bool, Fault> {
    let x = random(1000, 3);
    let mut m = Memory::new();
    let (px, po) = (floats(&mut m, &x), m.alloc(16));
    run(ptx, "block_sum", &mut m, &shape(4, 256), &Params::default().ptr(po).ptr(px).i32(1000), seed)?;
    let close = |(b, got): (usize, f32)| {
        let want: f64 = x[b * 256..(b * 256 + 256).min(1000)].iter().map(|&v| f64::from(v)).sum();
        (f64::from(got) - want).abs() < 1e-4
    };
    Ok(read_floats(&m, po, 4).into_iter().enumerate().all(close))
}

#[test]
fn histogram() {
    let x: Vec<u8> = random(5000, 4).iter().map(|v| (v * v * 1000.0) as u8).collect();
    let mut m = Memory::new();
    let (ph, px) = (m.alloc(1024), m.alloc(5000));
    m.write(px, &x).unwrap();
    run(PTX, "histogram", &mut m, &shape(1, 256), &Params::default().ptr(ph).ptr(px).i32(5000), 3).unwrap();
    let mut want = [0u32; 256];
    x.iter().for_each(|&b| want[b as usize] += 1);
    let got = m.slice(ph, 1024).unwrap().chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap()));
    assert!(got.eq(want));
}

fn last_block(ptx: &str, seed: u64) -> Result<u32, Fault> {
    let x = random(1000, 5);
    let mut m = Memory::new();
    let (px, po, pp, pc) = (floats(&mut m, &x), m.alloc(4), m.alloc(32), m.alloc(4));
    m.write(pc, &[0; 4]).unwrap();
    let p = Params::default().ptr(po).ptr(pp).ptr(pc).ptr(px).i32(1000);
    run(ptx, "last_block", &mut m, &shape(8, 128), &p, seed)?;
    let (want, got) = (x.iter().map(|&v| f64::from(v)).sum::<f64>(), read_floats(&m, po, 1)[0]);
    assert!((f64::from(got) - want).abs() < 1e-4);
    Ok(got.to_bits())
}

/// A product of [m, k] and [n, k], and how far it is off.
fn gemm(ptx: &str, (m, n, k): (usize, usize, usize), seed: u64) -> Result<f64, Fault> {
    let (a, b) = (bf16(&random(m * k, 6)), bf16(&random(n * k, 7)));
    let mut mem = Memory::new();
    let (pa, pb, pc) = (halves(&mut mem, &a), halves(&mut mem, &b), mem.alloc(m * n * 4));
    let p = Params::default().ptr(pc).ptr(pa).ptr(pb).i32(m as i32).i32(n as i32).i32(k as i32);
    let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
    let r = run(ptx, "gemm", &mut mem, &Shape { grid, block: 128, shared: 0 }, &p, seed)?;
    assert_eq!((r.macs, r.bank_conflicts()), ((grid[0] * grid[1]) as u64 * 4096 * k as u64, 0), "{r}");
    assert!(mem.is_written(pc, m * n * 4).unwrap());
    let got: Vec<f64> = read_floats(&mem, pc, m * n).into_iter().map(f64::from).collect();
    Ok(product_error(&got, &a, &b, n, k))
}

#[test]
fn gemm_of_mma() {
    for sizes in [(64, 64, 32), (128, 64, 256), (70, 100, 96)] {
        let e = gemm(PTX, sizes, 0).unwrap();
        assert!(e < 1e-6, "{sizes:?}: {e}");
    }
}

/// Every seed finds each planted bug, as the order of accesses and not their luck is looked at.
#[test]
fn planted_bugs_are_found_on_every_seed() {
    let sizes = (64, 64, 256);
    let no_barrier = plant(PTX, "gemm", "bar.sync", &[0], "");
    let early = plant(PTX, "gemm", "cp.async.wait_group 1", &[0], "cp.async.wait_group 2;");
    let no_sum_barrier = plant(PTX, "block_sum", "bar.sync", &[0], "");
    let no_fence = plant(PTX, "last_block", "membar.gl", &[0], "");
    let no_step = plant(PTX, "last_block", "bar.sync", &[2], "");
    for seed in 0..10 {
        for ptx in [&no_barrier, &early] {
            let e = gemm(ptx, sizes, seed).unwrap_err();
            assert!(matches!(*e.kind, FaultKind::Race { space: "shared", .. } | FaultKind::Unwritten { .. }), "{e}");
        }
        let e = block_sum(&no_sum_barrier, seed).unwrap_err();
        assert!(matches!(*e.kind, FaultKind::Race { .. } | FaultKind::Unwritten { .. }), "{e}");
        let e = last_block(&no_fence, seed).unwrap_err();
        assert!(matches!(*e.kind, FaultKind::Race { space: "global", .. }), "{e}");
        let e = last_block(&no_step, seed).unwrap_err();
        assert!(matches!(*e.kind, FaultKind::Race { space: "shared", .. }), "{e}");
    }
}

#[test]
fn no_false_alarm_in_fifty_seeds() {
    let bits = last_block(PTX, 0).unwrap();
    for seed in 0..50 {
        assert!(gemm(PTX, (64, 64, 128), seed).unwrap() < 1e-6);
        assert!(block_sum(PTX, seed).unwrap());
        assert_eq!(last_block(PTX, seed).unwrap(), bits);
    }
}
