//! How fast the simulator runs. `cargo test --release -p esker-ptx-sim --test speed -- --ignored --nocapture`

mod kit;

use esker_ptx_sim::{Checks, Launch, Memory, Module, Options, launch};
use kit::{Params, bf16, halves, random};
use std::time::Instant;

/// Runs `f` and says how many seconds of a processor it took, which others on the machine change little; where the system
/// does not tell, of the clock.
fn seconds<T>(f: impl FnOnce() -> T) -> (f64, T) {
    let ran = || -> Option<f64> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
    };
    let (start, clock) = (ran(), Instant::now());
    let out = f();
    let s = start.and_then(|start| Some(ran()? - start));
    (s.unwrap_or_else(|| clock.elapsed().as_secs_f64()), out)
}

#[test]
#[ignore = "a measurement"]
fn instructions_per_second() {
    let module = Module::parse(include_str!("kernels/portable.ptx")).unwrap();
    let (m, n, k) = (256, 256, 512);
    let (a, b) = (bf16(&random(m * k, 1)), bf16(&random(n * k, 2)));
    for checks in [Checks::Basic, Checks::Races] {
        let mut mem = Memory::new();
        let (pa, pb, pc) = (halves(&mut mem, &a), halves(&mut mem, &b), mem.alloc(m * n * 4));
        let p = Params::default().ptr(pc).ptr(pa).ptr(pb).i32(m as i32).i32(n as i32).i32(k as i32);
        let shape = Launch { grid: [4, 4, 1], block: [128, 1, 1], cluster: [1; 3], shared: 0, params: &p.0 };
        let (s, r) = seconds(|| {
            launch(module.kernel("gemm").unwrap(), &mut mem, shape, &Options { checks, ..Options::default() }).unwrap()
        });
        println!(
            "gemm, {checks:?}: {:.1} M warp instructions/s, {:.2} G multiply-adds/s",
            r.instructions as f64 / s / 1e6,
            r.macs as f64 / s / 1e9
        );
        let x = mem.alloc(4 << 20);
        mem.write(x, &vec![0; 4 << 20]).unwrap();
        let p = Params::default().ptr(x).ptr(x).put(&0f32.to_le_bytes()).i32(1 << 20);
        let shape = Launch { grid: [4096, 1, 1], block: [256, 1, 1], cluster: [1; 3], shared: 0, params: &p.0 };
        let (s, r) = seconds(|| {
            launch(module.kernel("axpy").unwrap(), &mut mem, shape, &Options { checks, ..Options::default() }).unwrap()
        });
        println!("axpy, {checks:?}: {:.1} M warp instructions/s", r.instructions as f64 / s / 1e6);
        let p = Params::default().i32(20000);
        let shape = Launch { grid: [4, 1, 1], block: [256, 1, 1], cluster: [1; 3], shared: 0, params: &p.0 };
        let spin = Module::parse(SPIN).unwrap();
        let (s, r) = seconds(|| {
            launch(spin.kernel("spin").unwrap(), &mut mem, shape, &Options { checks, ..Options::default() }).unwrap()
        });
        println!("arithmetic, {checks:?}: {:.1} M warp instructions/s", r.instructions as f64 / s / 1e6);
    }
}

const SPIN: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry spin(.param .u32 n) {\n.reg .pred %p<2>;
.reg .b32 %r<9>;\n.reg .f32 %f<9>;\nld.param.u32 %r1, [n];\nmov.u32 %r2, 0;\nmov.f32 %f1, 0f3F800000;\nL:\nadd.s32 %r2, %r2, 1;
mad.lo.s32 %r3, %r2, %r1, %r2;\nxor.b32 %r4, %r3, %r2;\nfma.rn.f32 %f1, %f1, %f1, %f1;\nadd.f32 %f2, %f1, %f1;\nshl.b32 %r5, %r4, 3;
mul.f32 %f1, %f2, 0f3E800000;\nsetp.lt.s32 %p1, %r2, %r1;\n@%p1 bra L;\nret;\n}\n";
