//! Kernels of sm_90a: warpgroups, the TMA, mbarriers, clusters. hopper.ptx is made by kernels/make.py.

mod kit;

use esker_ptx_sim::{Element, Fault, FaultKind, Memory, Swizzle, TensorMap};
use kit::{Params, Shape, bf16, floats, halves, plant, product_error, random, read_floats, run, value};

const PTX: &str = include_str!("kernels/hopper.ptx");

fn map(address: u64, rows: usize, cols: usize, box_rows: u32, swizzle: Swizzle) -> TensorMap {
    TensorMap {
        address,
        element: Element::Bf16,
        dims: vec![cols as u64, rows as u64],
        strides: vec![cols as u64 * 2],
        box_dims: vec![64, box_rows],
        swizzle,
    }
}

/// A product of [m, k] and [n, k], and how far it is off; NaN if it has any.
fn gemm(ptx: &str, (m, n, k): (usize, usize, usize), seed: u64, out: Swizzle) -> Result<f64, Fault> {
    let (a, b) = (bf16(&random(m * k, 1)), bf16(&random(n * k, 2)));
    let mut mem = Memory::new();
    let (pa, pb, pc) = (halves(&mut mem, &a), halves(&mut mem, &b), mem.alloc(m * n * 2));
    let p = Params::default()
        .put(&map(pa, m, k, 64, Swizzle::B128).encode().unwrap())
        .put(&map(pb, n, k, 32, Swizzle::B128).encode().unwrap())
        .put(&map(pc, m, n, 64, out).encode().unwrap())
        .i32(k as i32);
    let grid = [m.div_ceil(128) as u32 * 2, n.div_ceil(64) as u32, 1];
    run(ptx, "gemm", &mut mem, &Shape { grid, block: 256, shared: 5 * 8192 }, &p, seed)?;
    let got = mem.slice(pc, m * n * 2).unwrap().chunks(2).map(|c| value(u16::from_le_bytes([c[0], c[1]])));
    Ok(product_error(&got.collect::<Vec<f64>>(), &a, &b, n, k))
}

const SIZES: (usize, usize, usize) = (128, 64, 384);

#[test]
fn gemm_of_warpgroups() {
    // Also where the last blocks hang over the edge.
    for sizes in [SIZES, (256, 128, 64), (200, 72, 128)] {
        let e = gemm(PTX, sizes, 1, Swizzle::B128).unwrap();
        assert!(e < 4e-3, "{sizes:?}: {e}");
    }
}

#[test]
fn no_false_alarm_in_fifty_seeds() {
    let first = gemm(PTX, SIZES, 0, Swizzle::B128).unwrap();
    for seed in 1..50 {
        assert_eq!(gemm(PTX, SIZES, seed, Swizzle::B128).unwrap(), first, "seed {seed}");
    }
}

/// Bugs of the kinds such kernels have, each looked for on five seeds.
#[test]
fn planted_bugs_are_found() {
    let never = "setp.eq.u32 p, 0, 0;";
    let wait = "mbarrier.try_wait";
    let mutants = [
        ("the producer never waits for a stage", plant(PTX, "gemm", wait, &[0, 1, 2, 3, 4], never)),
        ("the consumers never wait for a stage", plant(PTX, "gemm", wait, &[5, 6, 7], never)),
        ("a stage is given back before its products are done", plant(PTX, "gemm", "wgmma.wait_group", &[0, 1, 2], "")),
        ("one wait of three for products is missing", plant(PTX, "gemm", "wgmma.wait_group", &[1], "")),
        ("no proxy fence before the store", plant(PTX, "gemm", "fence.proxy", &[0], "")),
        ("no barrier before the store", plant(PTX, "gemm", "bar.sync", &[0], "")),
        ("mbarriers are used before they are known", {
            let p = plant(PTX, "gemm", "barrier.cluster.arrive", &[0], "");
            plant(&p, "gemm", "barrier.cluster.wait", &[0], "")
        }),
        ("a block ends while the other still talks to it", {
            let p = plant(PTX, "gemm", "barrier.cluster.arrive", &[1], "");
            plant(&p, "gemm", "barrier.cluster.wait", &[1], "")
        }),
        ("the thread ends before its store is done", plant(PTX, "gemm", "cp.async.bulk.wait_group", &[0], "")),
        ("consumers of one block tell only their own", {
            let own = |r: &str, a: &str| format!("mov.u32 {r}, {a};");
            let p = plant(PTX, "gemm", "mapa.", &[0], &own("%r75", "%r76"));
            let p = plant(&p, "gemm", "mapa.", &[0], &own("%r113", "%r114"));
            plant(&p, "gemm", "mapa.", &[0], &own("%r154", "%r155"))
        }),
        ("a stage awaits too few bytes", PTX.replace("16384;", "16256;")),
    ];
    let (mut tries, mut found) = (0, 0);
    for (name, ptx) in &mutants {
        let mut caught = 0;
        for seed in 0..5 {
            match gemm(ptx, SIZES, seed, Swizzle::B128) {
                Ok(e) if e < 4e-3 => {}
                _ => caught += 1,
            }
        }
        println!("{name}: {caught} of 5");
        tries += 5;
        found += caught;
        assert!(caught > 0, "{name}");
    }
    println!("{found} of {tries}");
    assert!(found * 10 >= tries * 9, "{found} of {tries}");
    // The result is laid out otherwise than it is taken.
    assert!(gemm(PTX, SIZES, 0, Swizzle::None).unwrap() > 0.1);
}

#[test]
fn faults_say_what_is_wrong() {
    let ptx = plant(PTX, "gemm", "fence.proxy", &[0], "");
    let e = gemm(&ptx, SIZES, 0, Swizzle::B128).unwrap_err();
    assert!(matches!(*e.kind, FaultKind::ProxyFence { space: "shared", .. }), "{e}");
    let ptx = plant(PTX, "gemm", "mbarrier.arrive.release", &[0, 1, 2], "");
    let e = gemm(&ptx, SIZES, 0, Swizzle::B128).unwrap_err();
    assert!(matches!(&*e.kind, FaultKind::Deadlock { waits } if waits.len() > 2), "{e}");
    assert!(e.to_string().contains("mbarrier at 0x"), "{e}");
}

#[test]
fn bulk_copies_and_sums() {
    let x = random(3072, 9);
    for seed in 0..10 {
        let mut m = Memory::new();
        let (px, po) = (floats(&mut m, &x), floats(&mut m, &vec![1.0; 1024]));
        let p = Params::default().ptr(po).ptr(px);
        let r = run(PTX, "add_bulk", &mut m, &Shape { grid: [3, 1, 1], block: 32, shared: 0 }, &p, seed).unwrap();
        assert_eq!(r.float_atomics, 3072);
        for (i, got) in read_floats(&m, po, 1024).into_iter().enumerate() {
            assert!((got - (1.0 + x[i] + x[1024 + i] + x[2048 + i])).abs() < 1e-6);
        }
    }
}
