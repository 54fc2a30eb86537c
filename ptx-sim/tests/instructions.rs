//! Instructions against known answers, one by one. `%r1 %r2 %r3`, `%d1 ...` and `%h1 ...` hold the inputs in 32, 64 and
//! 16 bits; the answer is what `%r0`, `%d0`, `%h0` or `%p0` holds after.

mod kit;

use esker_ptx_sim::{FaultKind, Memory, Module};
use kit::{Params, Shape, run};

fn kernel(body: &str, input: [u64; 3]) -> String {
    let mut set = String::new();
    for (i, v) in input.iter().enumerate() {
        let (i, w, h) = (i + 1, v & 0xFFFF_FFFF, v & 0xFFFF);
        set += &format!("mov.b64 %d{i}, {v}; mov.b32 %r{i}, {w}; mov.b16 %h{i}, {h};\n");
    }
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) {{\n.reg .pred %p<8>;\n\
         .reg .b16 %h<8>;\n.reg .b32 %r<64>;\n.reg .b64 %d<64>;\nld.param.u64 %d63, [out];\n{set}{body}\nret;\n}}\n"
    )
}

fn answer(text: &str, input: [u64; 3]) -> u64 {
    let (store, bytes) = match text {
        t if t.contains("%r0") => ("st.global.u32 [%d63], %r0;", 4),
        t if t.contains("%d0") => ("st.global.u64 [%d63], %d0;", 8),
        t if t.contains("%h0") => ("st.global.u16 [%d63], %h0;", 2),
        _ => ("selp.u32 %r60, 1, 0, %p0;\nst.global.u32 [%d63], %r60;", 4),
    };
    let mut m = Memory::new();
    let out = m.alloc(8);
    m.write(out, &[0; 8]).unwrap();
    let ptx = kernel(&format!("{text}\n{store}"), input);
    let one = Shape { grid: [1; 3], block: 1, shared: 0 };
    run(&ptx, "k", &mut m, &one, &Params::default().ptr(out), 0).unwrap_or_else(|e| panic!("{text}: {e}"));
    let mut b = [0u8; 8];
    b[..bytes].copy_from_slice(m.slice(out, bytes).unwrap());
    u64::from_le_bytes(b)
}

fn f(x: f32) -> u64 {
    x.to_bits().into()
}

fn neg(x: i64) -> u64 {
    x as u64
}

const W: u64 = 0xFFFF_FFFF;

fn check(rows: &[(&str, [u64; 3], u64)]) {
    for (text, input, want) in rows {
        let got = answer(text, *input);
        assert_eq!(got, *want, "{text} of {input:x?}: {got:#x}, not {want:#x}");
    }
}

#[test]
fn integers() {
    check(&[
        ("add.s32 %r0, %r1, %r2;", [W, 2, 0], 1),
        ("sub.s64 %d0, %d1, %d2;", [3, 5, 0], neg(-2)),
        ("add.u16 %h0, %h1, %h2;", [0xFFFF, 3, 0], 2),
        ("mul.lo.s32 %r0, %r1, %r2;", [neg(-3), 7, 0], neg(-21) & W),
        ("mul.hi.u32 %r0, %r1, %r2;", [W, W, 0], W - 1),
        ("mul.hi.s32 %r0, %r1, %r2;", [W, 7, 0], W),
        ("mul.wide.s32 %d0, %r1, %r2;", [neg(-4), 5, 0], neg(-20)),
        ("mul.wide.u32 %d0, %r1, %r2;", [W, W, 0], W * W),
        ("mul.wide.s16 %r0, %h1, %h2;", [neg(-4), 5, 0], neg(-20) & W),
        ("mad.lo.s32 %r0, %r1, %r2, %r3;", [6, 7, 8], 50),
        ("mad.wide.u32 %d0, %r1, %r2, %d3;", [W, 2, 5], W * 2 + 5),
        ("mad.hi.u32 %r0, %r1, %r2, %r3;", [W, W, 3], 1),
        ("div.s32 %r0, %r1, %r2;", [neg(-7), 2, 0], neg(-3) & W),
        ("rem.s32 %r0, %r1, %r2;", [neg(-7), 2, 0], W),
        ("div.u64 %d0, %d1, %d2;", [neg(-1), 16, 0], u64::MAX / 16),
        ("min.s32 %r0, %r1, %r2;", [W, 1, 0], W),
        ("max.u32 %r0, %r1, %r2;", [W, 1, 0], W),
        ("min.s64 %d0, %d1, %d2;", [neg(-9), 1, 0], neg(-9)),
        ("abs.s32 %r0, %r1;", [neg(-9), 0, 0], 9),
        ("neg.s64 %d0, %d1;", [9, 0, 0], neg(-9)),
        ("sad.s32 %r0, %r1, %r2, %r3;", [neg(-9), 1, 100], 110),
        ("add.cc.u32 %r4, %r1, %r2; addc.u32 %r0, %r3, 0;", [W, 1, 7], 8),
        ("sub.cc.u32 %r4, %r1, %r2; subc.u32 %r0, %r3, 0;", [0, 1, 7], 6),
        ("dp4a.s32.s32 %r0, %r1, %r2, %r3;", [0xFF02_0304, 0x0101_0101, 10], 18),
    ]);
}

#[test]
fn bits() {
    check(
        &[
            ("and.b32 %r0, %r1, %r2;", [12, 10, 0], 8),
            ("or.b64 %d0, %d1, %d2;", [12, 1 << 40, 0], 12 | 1 << 40),
            ("xor.b16 %h0, %h1, %h2;", [12, 10, 0], 6),
            ("not.b32 %r0, %r1;", [0, 0, 0], W),
            ("shl.b32 %r0, %r1, %r2;", [1, 31, 0], 1 << 31),
            ("shl.b32 %r0, %r1, %r2;", [1, 32, 0], 0),
            ("shr.s32 %r0, %r1, %r2;", [1 << 31, 40, 0], W),
            ("shr.u64 %d0, %d1, %r2;", [1 << 63, 63, 0], 1),
            ("shr.s16 %h0, %h1, %r2;", [0x8000, 3, 0], 0xF000),
            ("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", [0x8000_0000, 1, 33], 3),
            ("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", [1, 5, 40], 5),
            ("bfe.u32 %r0, %r1, %r2, %r3;", [0xABCD, 4, 8], 0xBC),
            ("bfe.s32 %r0, %r1, %r2, %r3;", [0xABCD, 4, 8], neg(-0x44) & W),
            ("bfe.s32 %r0, %r1, %r2, %r3;", [1 << 31, 30, 8], neg(-2) & W),
            ("bfi.b32 %r0, %r1, %r2, 8, 4;", [0xF5, 0xFFFF, 0], 0xF5FF),
            ("bfi.b64 %d0, %d1, %d2, 32, 16;", [0xABCD, 7, 0], 0xABCD_0000_0007),
            ("popc.b32 %r0, %r1;", [0xF0F0, 0, 0], 8),
            ("popc.b64 %r0, %d1;", [u64::MAX, 0, 0], 64),
            ("clz.b32 %r0, %r1;", [1, 0, 0], 31),
            ("clz.b64 %r0, %d1;", [1, 0, 0], 63),
            ("brev.b32 %r0, %r1;", [1, 0, 0], 1 << 31),
            ("bfind.u32 %r0, %r1;", [0x100, 0, 0], 8),
            ("bfind.s32 %r0, %r1;", [neg(-1), 0, 0], W),
            ("bfind.shiftamt.u32 %r0, %r1;", [0x100, 0, 0], 23),
            ("fns.b32 %r0, %r1, %r2, %r3;", [0b1011_0100, 0, 3], 5),
            ("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", [0xF0, 0xCC, 0xAA], 0xF0 ^ 0xCC ^ 0xAA),
            ("lop3.b32 %r0, %r1, %r2, %r3, 0xE8;", [0xF0, 0xCC, 0xAA], 0xE8),
            ("prmt.b32 %r0, %r1, %r2, 0x5410;", [0x1111_2222, 0x3333_4444, 0], 0x4444_2222),
            ("prmt.b32 %r0, %r1, %r2, 0x7632;", [0x1111_2222, 0x3333_4444, 0], 0x3333_1111),
            ("prmt.b32 %r0, %r1, %r2, 0x8888;", [0x80, 0, 0], W),
            ("selp.b32 %r0, %r1, %r2, %p7;", [1, 2, 0], 2),
            ("slct.b32.s32 %r0, %r1, %r2, %r3;", [1, 2, neg(-5)], 2),
        ]
        .map(|(t, i, w)| {
            // A predicate that is false.
            let t: &'static str = Box::leak(format!("setp.ne.u32 %p7, 0, 0; {t}").into_boxed_str());
            (t, i, w)
        }),
    );
}

#[test]
fn comparisons() {
    let nan = f(f32::NAN);
    check(&[
        ("setp.lt.s32 %p0, %r1, %r2;", [W, 1, 0], 1),
        ("setp.lo.u32 %p0, %r1, %r2;", [W, 1, 0], 0),
        ("setp.ge.s64 %p0, %d1, %d2;", [neg(-1), 0, 0], 0),
        ("setp.eq.u16 %p0, %h1, %h2;", [0x1_0005, 5, 0], 1),
        ("setp.lt.f32 %p0, %r1, %r2;", [nan, f(1.0), 0], 0),
        ("setp.ltu.f32 %p0, %r1, %r2;", [nan, f(1.0), 0], 1),
        ("setp.neu.f32 %p0, %r1, %r2;", [nan, nan, 0], 1),
        ("setp.ne.f32 %p0, %r1, %r2;", [nan, nan, 0], 0),
        ("setp.nan.f32 %p0, %r1, %r2;", [nan, 0, 0], 1),
        ("setp.gt.f64 %p0, %d1, %d2;", [2f64.to_bits(), 1f64.to_bits(), 0], 1),
        ("setp.eq.s32 %p1, 1, 1; setp.lt.and.s32 %p0, %r1, %r2, !%p1;", [1, 2, 0], 0),
        ("setp.lt.s32 %p1|%p0, %r1, %r2;", [1, 2, 0], 0),
        ("setp.lt.bf16 %p0, %h1, %h2;", [0xBF80, 0x3F80, 0], 1),
        ("set.lt.u32.f32 %r0, %r1, %r2;", [f(1.0), f(2.0), 0], W),
        ("set.lt.f32.s32 %r0, %r1, %r2;", [1, 2, 0], f(1.0)),
        ("testp.finite.f32 %p0, %r1;", [nan, 0, 0], 0),
        ("testp.infinite.f32 %p0, %r1;", [f(f32::INFINITY), 0, 0], 1),
    ]);
}

#[test]
fn floats() {
    let (tiny, third) = (f(f32::from_bits(1)), 1.0f32 / 3.0);
    check(&[
        ("add.f32 %r0, %r1, %r2;", [f(1.5), f(2.25), 0], f(3.75)),
        ("add.rz.f32 %r0, %r1, %r2;", [f(1.0), f(-1e-20), 0], f(1.0f32.next_down())),
        ("add.rp.f32 %r0, %r1, %r2;", [f(1.0), f(1e-20), 0], f(1.0f32.next_up())),
        ("add.sat.f32 %r0, %r1, %r2;", [f(1.0), f(1.0), 0], f(1.0)),
        ("mul.ftz.f32 %r0, %r1, %r2;", [tiny, f(2.0), 0], 0),
        ("mul.rn.f32 %r0, %r1, %r2;", [tiny, f(2.0), 0], 2),
        ("fma.rn.f32 %r0, %r1, %r2, %r3;", [f(third), f(3.0), f(-1.0)], f(third.mul_add(3.0, -1.0))),
        ("fma.rm.f32 %r0, %r1, %r2, %r3;", [f(1.0), f(1.0), f(-1e-20)], f(1.0f32.next_down())),
        ("div.rn.f32 %r0, %r1, %r2;", [f(1.0), f(3.0), 0], f(third)),
        ("div.full.f32 %r0, %r1, %r2;", [f(1.0), f(4.0), 0], f(0.25)),
        ("rcp.approx.ftz.f32 %r0, %r1;", [f(4.0), 0, 0], f(0.25)),
        ("rcp.rn.f32 %r0, %r1;", [f(3.0), 0, 0], f(third)),
        ("sqrt.rn.f32 %r0, %r1;", [f(2.0), 0, 0], f(2f32.sqrt())),
        ("rsqrt.approx.f32 %r0, %r1;", [f(4.0), 0, 0], f(0.5)),
        ("ex2.approx.ftz.f32 %r0, %r1;", [f(-3.0), 0, 0], f(0.125)),
        ("lg2.approx.f32 %r0, %r1;", [f(8.0), 0, 0], f(3.0)),
        ("tanh.approx.f32 %r0, %r1;", [f(0.0), 0, 0], f(0.0)),
        ("min.f32 %r0, %r1, %r2;", [f(f32::NAN), f(2.0), 0], f(2.0)),
        ("min.NaN.f32 %r0, %r1, %r2;", [f(f32::NAN), f(2.0), 0], 0x7FFF_FFFF),
        ("max.f32 %r0, %r1, %r2;", [f(-0.0), f(0.0), 0], 0),
        ("neg.f32 %r0, %r1;", [f(1.0), 0, 0], f(-1.0)),
        ("abs.f32 %r0, %r1;", [f(-1.0), 0, 0], f(1.0)),
        ("copysign.f32 %r0, %r1, %r2;", [f(-1.0), f(3.0), 0], f(-3.0)),
        ("add.f64 %d0, %d1, %d2;", [1.5f64.to_bits(), 2f64.to_bits(), 0], 3.5f64.to_bits()),
        ("fma.rn.f64 %d0, %d1, %d2, %d3;", [2f64.to_bits(), 3f64.to_bits(), 1f64.to_bits()], 7f64.to_bits()),
        ("add.f16 %h0, %h1, %h2;", [0x3C00, 0x4000, 0], 0x4200),
        ("mul.f16x2 %r0, %r1, %r2;", [0x3C00_4000, 0x4000_4000, 0], 0x4000_4400),
        ("fma.rn.bf16x2 %r0, %r1, %r2, %r3;", [0x3F80_4000, 0x4000_4000, 0x3F80_0000], 0x4040_4080),
        ("fma.rn.relu.bf16 %h0, %h1, %h2, %h3;", [0xBF80, 0x3F80, 0], 0),
        ("max.bf16x2 %r0, %r1, %r2;", [0x3F80_BF80, 0xBF80_3F80, 0], 0x3F80_3F80),
        ("neg.bf16x2 %r0, %r1;", [0x3F80_BF80, 0, 0], 0xBF80_3F80),
    ]);
}

#[test]
fn conversions() {
    check(&[
        ("cvt.s64.s32 %d0, %r1;", [neg(-5) & W, 0, 0], neg(-5)),
        ("cvt.u64.u32 %d0, %r1;", [W, 0, 0], W),
        ("cvt.u32.u64 %r0, %d1;", [u64::MAX - 4, 0, 0], W - 4),
        ("cvt.s32.s8 %r0, %r1;", [0x80, 0, 0], neg(-128) & W),
        ("cvt.u32.u16 %r0, %h1;", [0xFFFF, 0, 0], 0xFFFF),
        ("cvt.u16.u32 %h0, %r1;", [0x1_2345, 0, 0], 0x2345),
        ("cvt.sat.u8.s32 %r0, %r1;", [300, 0, 0], 255),
        ("cvt.sat.s8.s32 %r0, %r1;", [neg(-300), 0, 0], neg(-128) & W),
        ("cvt.rn.f32.s32 %r0, %r1;", [neg(-7), 0, 0], f(-7.0)),
        ("cvt.rn.f32.u64 %r0, %d1;", [u64::MAX, 0, 0], f(u64::MAX as f32)),
        ("cvt.rz.f32.u32 %r0, %r1;", [W, 0, 0], f(4294967040.0)),
        ("cvt.rn.f64.s64 %d0, %d1;", [neg(-3), 0, 0], (-3f64).to_bits()),
        ("cvt.rzi.s32.f32 %r0, %r1;", [f(-2.9), 0, 0], neg(-2) & W),
        ("cvt.rni.s32.f32 %r0, %r1;", [f(2.5), 0, 0], 2),
        ("cvt.rpi.s32.f32 %r0, %r1;", [f(2.1), 0, 0], 3),
        ("cvt.rzi.u32.f32 %r0, %r1;", [f(-2.9), 0, 0], 0),
        ("cvt.rzi.s32.f32 %r0, %r1;", [f(1e20), 0, 0], 0x7FFF_FFFF),
        ("cvt.rzi.s32.f32 %r0, %r1;", [f(f32::NAN), 0, 0], 0),
        ("cvt.rmi.f32.f32 %r0, %r1;", [f(-2.1), 0, 0], f(-3.0)),
        ("cvt.sat.f32.f32 %r0, %r1;", [f(7.0), 0, 0], f(1.0)),
        ("cvt.rn.f16.f32 %h0, %r1;", [f(1.5), 0, 0], 0x3E00),
        ("cvt.f32.f16 %r0, %h1;", [0x3E00, 0, 0], f(1.5)),
        ("cvt.rn.bf16.f32 %h0, %r1;", [0x3F80_8000, 0, 0], 0x3F80),
        ("cvt.rn.bf16.f32 %h0, %r1;", [0x3F81_8000, 0, 0], 0x3F82),
        ("cvt.rz.bf16.f32 %h0, %r1;", [0x3F81_FFFF, 0, 0], 0x3F81),
        ("cvt.rn.relu.bf16.f32 %h0, %r1;", [f(-1.0), 0, 0], 0),
        ("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", [f(1.0), f(2.0), 0], 0x3F80_4000),
        ("cvt.rn.f16x2.f32 %r0, %r1, %r2;", [f(1.0), f(2.0), 0], 0x3C00_4000),
        ("cvt.rna.tf32.f32 %r0, %r1;", [0x3F80_1000, 0, 0], 0x3F80_2000),
        ("cvt.f64.f32 %d0, %r1;", [f(1.5), 0, 0], 1.5f64.to_bits()),
        ("cvt.rn.f32.f64 %r0, %d1;", [(1.0f64 / 3.0).to_bits(), 0, 0], f(1.0 / 3.0)),
        ("cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2;", [f(1.0), f(1000.0), 0], 0x387E),
        ("cvt.rn.f16x2.e4m3x2 %r0, %h1;", [0x3840, 0, 0], 0x3C00_4000),
    ]);
}

#[test]
fn moves_and_memory() {
    check(&[
        ("mov.b64 %d0, {%r1, %r2};", [5, 7, 0], 7 << 32 | 5),
        ("mov.b64 {%r4, %r0}, %d1;", [7 << 32 | 5, 0, 0], 7),
        ("mov.b32 {%h4, %h0}, %r1;", [0x1234_5678, 0, 0], 0x1234),
        ("mov.b64 {%h4, %h5, %h0, _}, %d1;", [0x1111_2222_3333_4444, 0, 0], 0x2222),
        ("mov.u32 %r0, %nwarpid;", [0; 3], 1),
        ("mov.u32 %r0, %lanemask_le;", [0; 3], 1),
        (".shared .align 8 .b8 s[16]; st.shared.u32 [s+4], %r1; ld.shared.u8 %r0, [s+5];", [0xABCD, 0, 0], 0xAB),
        (".shared .align 8 .b8 s[16]; st.shared.u8 [s], %r1; ld.shared.s8 %r0, [s];", [0x80, 0, 0], neg(-128) & W),
        (
            ".shared .align 8 .b8 s[16]; mov.u64 %d4, s; cvta.shared.u64 %d5, %d4; st.u64 [%d5+8], %d1; ld.shared.u64 %d0, [s+8];",
            [9, 0, 0],
            9,
        ),
        (
            ".shared .align 4 .b8 s[4]; st.shared.u32 [s], %r1; atom.shared.add.u32 %r4, [s], %r2; ld.shared.u32 %r0, [s];",
            [9, 4, 0],
            13,
        ),
        (".shared .align 4 .b8 s[4]; st.shared.u32 [s], %r1; atom.shared.cas.b32 %r0, [s], %r1, %r2;", [9, 4, 0], 9),
        (
            ".shared .align 4 .b8 s[4]; st.shared.u32 [s], %r1; red.shared.max.s32 [s], %r2; ld.shared.u32 %r0, [s];",
            [neg(-9), 4, 0],
            4,
        ),
        (
            ".shared .align 4 .b8 s[4]; st.shared.f32 [s], %r1; atom.shared.add.f32 %r4, [s], %r2; ld.shared.f32 %r0, [s];",
            [f(1.0), f(2.0), 0],
            f(3.0),
        ),
        (
            ".shared .align 4 .b8 s[4]; st.shared.u32 [s], %r1; atom.shared.inc.u32 %r4, [s], %r2; ld.shared.u32 %r0, [s];",
            [4, 4, 0],
            0,
        ),
        (".local .align 8 .b8 l[16]; st.local.v2.u32 [l], {%r1, %r2}; ld.local.u64 %d0, [l];", [5, 7, 0], 7 << 32 | 5),
        ("activemask.b32 %r0;", [0; 3], 1),
        ("{ .reg .b32 %r1; mov.u32 %r1, 4; } mov.u32 %r0, %r1;", [9, 0, 0], 9),
        ("mov.u32 %r0, 1; bra L; mov.u32 %r0, 2; L: add.u32 %r0, %r0, 5;", [0; 3], 6),
        (
            "ts: .branchtargets A, B; mov.u32 %r0, 0; brx.idx %r1, ts; A: mov.u32 %r0, 1; B: add.u32 %r0, %r0, 10;",
            [1, 0, 0],
            10,
        ),
    ]);
}

/// Runs `body` with 32 lanes; each stores `%r0`.
fn lanes(body: &str) -> Vec<u32> {
    let mut m = Memory::new();
    let out = m.alloc(128);
    let store =
        "mov.u32 %r61, %laneid; mul.wide.u32 %d62, %r61, 4; add.u64 %d62, %d63, %d62; st.global.u32 [%d62], %r0;";
    let ptx = kernel(&format!("mov.u32 %r9, %laneid;\n{body}\n{store}"), [1, 2, 3]);
    let warp = Shape { grid: [1; 3], block: 32, shared: 0 };
    run(&ptx, "k", &mut m, &warp, &Params::default().ptr(out), 0).unwrap_or_else(|e| panic!("{body}: {e}"));
    m.slice(out, 128).unwrap().chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

#[test]
fn warps_together() {
    let of = |f: fn(u32) -> u32| (0..32).map(f).collect::<Vec<u32>>();
    assert_eq!(lanes("shfl.sync.bfly.b32 %r0, %r9, 5, 31, -1;"), of(|l| l ^ 5));
    assert_eq!(lanes("shfl.sync.up.b32 %r0, %r9, 3, 0, -1;"), of(|l| if l < 3 { l } else { l - 3 }));
    assert_eq!(lanes("shfl.sync.down.b32 %r0|%p1, %r9, 3, 31, -1;"), of(|l| if l > 28 { l } else { l + 3 }));
    assert_eq!(lanes("shfl.sync.idx.b32 %r0, %r9, 2, 0x181f, -1;"), of(|l| l / 8 * 8 + 2));
    assert_eq!(lanes("setp.lt.u32 %p1, %r9, 5; vote.sync.ballot.b32 %r0, %p1, -1;"), of(|_| 31));
    assert_eq!(lanes("setp.lt.u32 %p1, %r9, 5; vote.sync.any.pred %p2, %p1, -1; selp.u32 %r0, 1, 0, %p2;"), of(|_| 1));
    assert_eq!(lanes("and.b32 %r4, %r9, 3; match.any.sync.b32 %r0, %r4, -1;"), of(|l| 0x1111_1111 << (l % 4)));
    assert_eq!(lanes("redux.sync.add.s32 %r0, %r9, -1;"), of(|_| 496));
    assert_eq!(lanes("elect.sync %r4|%p1, -1; selp.u32 %r0, 1, 0, %p1;"), of(|l| u32::from(l == 0)));
    assert_eq!(lanes("mov.u32 %r0, %tid.x; bar.warp.sync -1;"), of(|l| l));
    // Lanes go different ways, meet, and go a loop of different lengths.
    let split =
        "mov.u32 %r0, 0; setp.lt.u32 %p1, %r9, 7; @%p1 bra A; add.u32 %r0, %r0, 100; bra B; A: add.u32 %r0, %r0, 1; B:";
    assert_eq!(lanes(split), of(|l| if l < 7 { 1 } else { 100 }));
    let round = "mov.u32 %r0, 0; L: add.u32 %r0, %r0, 2; setp.lt.u32 %p1, %r0, %r9; @%p1 bra L;";
    assert_eq!(lanes(round), of(|l| (l.max(1)).next_multiple_of(2)));
    // Each half of the warp shuffles on its own way.
    let halves =
        "mov.u32 %r0, 0; setp.lt.u32 %p1, %r9, 16; @%p1 bra A; shfl.sync.bfly.b32 %r0, %r9, 1, 31, 0xffff0000; bra B;
        A: shfl.sync.bfly.b32 %r0, %r9, 2, 31, 0xffff; B:";
    assert_eq!(lanes(halves), of(|l| if l < 16 { l ^ 2 } else { l ^ 1 }));
    // movmatrix: lane l holds row l/4, columns 2(l%4) and one more.
    let t = lanes(
        "shl.b32 %r4, %r9, 1; add.u32 %r5, %r4, 1; shl.b32 %r5, %r5, 16; or.b32 %r4, %r4, %r5; movmatrix.sync.aligned.m8n8.trans.b16 %r0, %r4;",
    );
    assert_eq!(
        t,
        of(|l| {
            let (g, t) = (l / 4, 2 * (l % 4));
            (t * 8 + g) | ((t + 1) * 8 + g) << 16
        })
    );
}

fn fault(body: &str, threads: u32) -> FaultKind {
    let mut m = Memory::new();
    let out = m.alloc(8);
    let ptx = kernel(body, [0; 3]);
    let shape = Shape { grid: [1; 3], block: threads, shared: 0 };
    match run(&ptx, "k", &mut m, &shape, &Params::default().ptr(out), 0) {
        Ok(_) => panic!("{body} ran"),
        Err(e) => *e.kind,
    }
}

#[test]
fn misuse_is_told() {
    let half = "mov.u32 %r9, %laneid; setp.lt.u32 %p1, %r9, 16; ";
    let is_misuse = |k: FaultKind| assert!(matches!(k, FaultKind::Misuse(_)), "{k}");
    is_misuse(fault(&format!("{half} @%p1 exit; shfl.sync.bfly.b32 %r0, %r9, 1, 31, -1;"), 32));
    is_misuse(fault("bar.sync 0, 33;", 64));
    is_misuse(fault("mov.u32 %r1, 99; bar.sync %r1;", 32));
    is_misuse(fault(".shared .align 8 .b8 s[64]; mbarrier.arrive.shared.b64 _, [s];", 32));
    let k = fault(&format!("{half} @%p1 bra A; bar.sync 1; bra B; A: bar.sync 2; B:"), 32);
    assert!(matches!(k, FaultKind::Deadlock { .. }), "{k}");
    let k = fault(
        "mov.u32 %r9, %tid.x; setp.lt.u32 %p1, %r9, 32; @%p1 bra A; bar.sync 1, 64; bra B; A: bar.sync 2, 64; B:",
        64,
    );
    assert!(matches!(&k, FaultKind::Deadlock { waits } if waits.len() == 2), "{k}");
    assert!(matches!(fault("trap;", 32), FaultKind::Trap));
    let k = fault(".shared .align 4 .b8 s[64]; ld.shared.u32 %r0, [s];", 1);
    assert!(matches!(k, FaultKind::Unwritten { space: "shared", .. }), "{k}");
    let k = fault(".shared .align 4 .b8 s[64]; st.shared.u32 [s+64], %r1;", 1);
    assert!(matches!(k, FaultKind::OutOfBounds { space: "shared", .. }), "{k}");
    let k = fault(".shared .align 4 .b8 s[64]; mov.u32 %r9, %tid.x; st.shared.u32 [s], %r9;", 2);
    assert!(matches!(k, FaultKind::Race { .. }), "{k}");
}

#[test]
fn what_is_unknown_is_refused() {
    for (text, what) in [
        ("frobnicate.u32 %r0, %r1;", "instruction"),
        ("add.rn.s32 %r0, %r1, %r2;", "`.rn`"),
        ("add.s32 %r0, %r1;", "operands"),
        ("add.s32 %r0, %d1, %r2;", "64 bits"),
        ("ld.global.u32 %r0, [nowhere];", "nowhere"),
        ("bra NOWHERE;", "NOWHERE"),
        (".sometimes;", "directive"),
        ("mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 %r0, %r1, %r2, %r3;", "know"),
    ] {
        let e = Module::parse_named("x.ptx", &kernel(text, [0; 3])).unwrap_err();
        assert!(e.what.contains(what) && e.line > 0 && e.to_string().starts_with("x.ptx:"), "{text}: {e}");
    } // What the README says is not modelled: refused by name and line, never passed over.
    for text in [
        "call foo;",
        "tex.2d.v4.f32.s32 {%r0, %r1, %r2, %r3}, [%d1, {%r4, %r5}];",
        "tcgen05.fence::before_thread_sync;",
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r0], %r1, [%r2];",
        "multimem.red.global.add.u32 [%d1], %r1;",
        "cp.async.mbarrier.arrive.shared.b64 [%r1];",
        "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r0, %r1, %r2, %r3}, %d1, %d2, %r4, 0, %p1, 1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%r0, %r1, %r2, %r3}, %d1, %d2, %p1, 1, 1;",
        "cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1], [%d1, {0, 0, 0}], [%r2], {%h1};",
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r0, %r1}, [%r2];",
        "fence.proxy.tensormap::generic.release.gpu;",
    ] {
        let e = Module::parse_named("x.ptx", &kernel(text, [0; 3])).expect_err(text);
        let line = kernel(text, [0; 3]).lines().position(|l| l == text).unwrap() as u32 + 1;
        assert!(e.line == line && e.to_string().contains(text), "{text}: {e}");
    }
    let function = ".func foo() {\nret;\n}\n";
    let e = Module::parse_named("x.ptx", &kernel("", [0; 3]).replace(".visible", &format!("{function}.visible")));
    assert!(e.unwrap_err().to_string().contains(".func"));
}
