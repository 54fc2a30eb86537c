//! What the README says the simulator models of sm_90a and no kernel of these tests uses: every layout of `wgmma`, the
//! TMA in each number of dimensions, mbarriers, clusters. Small programs, against what the host computes by the layouts
//! of the manual.

mod kit;

use esker_ptx_sim::{Element, Fault, FaultKind, Launch, Memory, Module, Options, Report, Swizzle, TensorMap, launch};
use half::{bf16, f16};
use kit::{Params, Shape, floats, random, read_floats, run};

/// A kernel `k` with these parameters; registers of every kind are declared.
fn kernel(params: &str, head: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k({params}) {head} {{\n.reg .pred %p<8>;\n\
         .reg .b16 %h<8>;\n.reg .b32 %r<64>;\n.reg .b64 %d<64>;\n.reg .f32 %f<256>;\n{body}\nret;\n}}\n"
    )
}

/// Lines that bring `bytes` bytes at `[image]` into the shared variable `s`, by 128 threads, and make them known to all
/// and to the async proxy.
fn bring(bytes: usize) -> String {
    format!(
        ".shared .align 1024 .b8 s[{bytes}];\nld.param.u64 %d1, [image];\nmov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 4;\n\
         mov.u32 %r3, s;\nBRING:\nsetp.ge.u32 %p1, %r2, {bytes};\n@%p1 bra BROUGHT;\ncvt.u64.u32 %d2, %r2;\n\
         add.u64 %d3, %d1, %d2;\nld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d3];\nadd.u32 %r8, %r3, %r2;\n\
         st.shared.v4.u32 [%r8], {{%r4, %r5, %r6, %r7}};\nadd.u32 %r2, %r2, 2048;\nbra BRING;\nBROUGHT:\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\n"
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Elem {
    Bf16,
    F16,
    Tf32,
}

impl Elem {
    fn bytes(self) -> usize {
        if self == Elem::Tf32 { 4 } else { 2 }
    }

    fn name(self) -> &'static str {
        match self {
            Elem::Bf16 => "bf16",
            Elem::F16 => "f16",
            Elem::Tf32 => "tf32",
        }
    }

    /// What memory holds for `x`, and its value.
    fn store(self, x: f32) -> (Vec<u8>, f64) {
        match self {
            Elem::Bf16 => (bf16::from_f32(x).to_le_bytes().to_vec(), bf16::from_f32(x).to_f64()),
            Elem::F16 => (f16::from_f32(x).to_le_bytes().to_vec(), f16::from_f32(x).to_f64()),
            Elem::Tf32 => (x.to_le_bytes().to_vec(), f32::from_bits(x.to_bits() & 0xFFFF_E000).into()),
        }
    }
}

/// How an operand lies: with k or with its rows (of A; columns of B) together, and its swizzle in bytes.
#[derive(Clone, Copy, Debug)]
struct Lies {
    rows_together: bool,
    swizzle: usize,
}

/// The 16-byte piece of `at` after the TMA's swizzle of lines of so many bytes: manual, figure of swizzling modes.
fn swizzled(at: usize, swizzle: usize) -> usize {
    let (line, piece) = (at / 128, at / 16 % 8);
    let moved = match swizzle {
        0 => piece,
        // Pairs, quads or all eight pieces of a line change places by the number of the line.
        _ => piece ^ (line % (swizzle / 16)),
    };
    line * 128 + moved * 16 + at % 16
}

/// The bytes of `rows` by `k` elements in shared memory, their values, and the descriptor but for the address.
fn image(lies: Lies, elem: Elem, rows: usize, k: usize, x: &[f32]) -> (Vec<u8>, Vec<f64>, u64) {
    let e = elem.bytes();
    let (mut bytes, mut values) = (vec![0u8; rows * k * e], vec![0.0; rows * k]);
    // As boxes of the TMA: lines of `swizzle` bytes, one after the other; without a swizzle, cores of 8 lines of 16 bytes.
    let line = if lies.swizzle == 0 { 16 } else { lies.swizzle };
    let (along, across) = if lies.rows_together { (rows, k) } else { (k, rows) };
    let per = line / e;
    assert!(along % per == 0 || along < per);
    for r in 0..rows {
        for j in 0..k {
            let (a, b) = if lies.rows_together { (r, j) } else { (j, r) };
            let at = a / per * across * line + b * line + a % per * e;
            let (b, v) = elem.store(x[r * k + j]);
            let at = swizzled(at, lies.swizzle);
            bytes[at..at + e].copy_from_slice(&b);
            values[r * k + j] = v;
        }
    }
    // From one line's worth of elements to the next, and from eight lines to the next eight.
    let (next, eight) = (across * line, 8 * line);
    let (leading, stride) = match (lies.rows_together, lies.swizzle) {
        (true, 0) => (eight, next),
        _ => (next, eight),
    };
    let mode = match lies.swizzle {
        0 => 0u64,
        128 => 1,
        64 => 2,
        _ => 3,
    };
    (bytes, values, (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62)
}

/// One product m64 n k of A (in registers if `None`) and B on the simulator; how far it is off.
fn product(elem: Elem, n: usize, a: Option<Lies>, b: Lies, negate: (bool, bool), seed: u64) -> f64 {
    let e = elem.bytes();
    let k = 32 / e;
    let (xa, xb) = (random(64 * k, seed), random(n * k, seed + 1));
    let packed = Lies { rows_together: false, swizzle: 0 };
    let (image_a, a_values, a_desc) = image(a.unwrap_or(packed), elem, 64, k, &xa);
    let (image_b, b_values, b_desc) = image(b, elem, n, k, &xb);
    let b_at = image_a.len().next_multiple_of(1024);
    let mut whole = image_a.clone();
    whole.resize(b_at, 0);
    whole.extend(&image_b);
    whole.resize(whole.len().next_multiple_of(16), 0);
    // The registers of A: words of rows g and g + 8, then the next four words of each.
    let word = |row: usize, col: usize| -> u32 {
        let part = |c: usize| elem.store(xa[row * k + c]).0;
        let bytes: Vec<u8> = if e == 4 { part(col) } else { [part(2 * col), part(2 * col + 1)].concat() };
        u32::from_le_bytes(bytes.try_into().unwrap())
    };
    let fragments: Vec<u8> = (0..128usize)
        .flat_map(|t| {
            let (row, col) = (t / 32 * 16 + t % 32 / 4, t % 4);
            [word(row, col), word(row + 8, col), word(row, col + 4), word(row + 8, col + 4)]
        })
        .flat_map(u32::to_le_bytes)
        .collect();

    let d: Vec<String> = (0..n / 2).map(|q| format!("%f{q}")).collect();
    let sign = |n: bool| if n { -1 } else { 1 };
    let (a_operand, a_trans) = match a {
        Some(l) => ("%d10".to_string(), format!(", {}", u8::from(l.rows_together))),
        None => ("{%r20, %r21, %r22, %r23}".to_string(), String::new()),
    };
    let trans = if elem == Elem::Tf32 { String::new() } else { format!("{a_trans}, {}", u8::from(b.rows_together)) };
    let mut body = bring(whole.len());
    body += "mov.u32 %r30, s;\nshr.u32 %r31, %r30, 4;\ncvt.u64.u32 %d9, %r31;\nld.param.u64 %d10, [a_desc];\n";
    body += &format!("ld.param.u64 %d11, [b_desc];\nor.b64 %d10, %d10, %d9;\nadd.u64 %d9, %d9, {};\n", b_at / 16);
    body += "or.b64 %d11, %d11, %d9;\nld.param.u64 %d12, [fragments];\nmul.wide.u32 %d13, %r1, 16;\n";
    body += "add.u64 %d12, %d12, %d13;\nld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d12];\n";
    for q in &d {
        body += &format!("mov.f32 {q}, 0f3F800000;\n");
    }
    body += "setp.eq.u32 %p2, 0, 0;\nwgmma.fence.sync.aligned;\n";
    body += &format!(
        "wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{t}.{t} {{{}}}, {a_operand}, %d11, %p2, {}, {}{trans};\n",
        d.join(", "),
        sign(negate.0),
        sign(negate.1),
        t = elem.name()
    );
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nld.param.u64 %d14, [out];\n";
    body += &format!("mul.wide.u32 %d15, %r1, {};\nadd.u64 %d14, %d14, %d15;\n", n * 2);
    for (q, f) in d.iter().enumerate() {
        body += &format!("st.global.f32 [%d14+{}], {f};\n", q * 4);
    }
    let params = ".param .u64 image, .param .u64 fragments, .param .u64 out, .param .u64 a_desc, .param .u64 b_desc";
    let ptx = kernel(params, "", &body);

    let mut m = Memory::new();
    let (pi, pf, po) = (m.alloc(whole.len()), m.alloc(fragments.len()), m.alloc(64 * n * 4));
    m.write(pi, &whole).unwrap();
    m.write(pf, &fragments).unwrap();
    let p = Params::default().ptr(pi).ptr(pf).ptr(po).ptr(a_desc).ptr(b_desc);
    let shape = Shape { grid: [1; 3], block: 128, shared: 0 };
    run(&ptx, "k", &mut m, &shape, &p, seed).unwrap_or_else(|e| panic!("{elem:?} {a:?} {b:?}: {e}"));
    let got = read_floats(&m, po, 64 * n);
    let mut worst = 0f64;
    for t in 0..128 {
        for q in 0..n / 2 {
            let (i, j) = (t / 32 * 16 + t % 32 / 4 + 8 * (q % 4 / 2), 8 * (q / 4) + 2 * (t % 4) + q % 2);
            let dot: f64 = (0..k).map(|l| a_values[i * k + l] * b_values[j * k + l]).sum();
            let want = 1.0 + if negate.0 != negate.1 { -dot } else { dot };
            worst = worst.max((f64::from(got[t * n / 2 + q]) - want).abs());
        }
    }
    worst
}

/// Every layout a descriptor can tell, of A and of B. k is 32 bytes, so that the k of a wider swizzle is a part of its
/// line: there the image has one line of 32 bytes and more, as a tile of which one step of k is multiplied.
#[test]
fn wgmma_reads_every_layout() {
    let rows = |swizzle| Lies { rows_together: true, swizzle };
    let ks = |swizzle| Lies { rows_together: false, swizzle };
    let mut seed = 1;
    for elem in [Elem::Bf16, Elem::F16] {
        for a in [None, Some(ks(0)), Some(ks(32)), Some(rows(0)), Some(rows(32)), Some(rows(64)), Some(rows(128))] {
            for (n, b) in [(64, ks(0)), (16, ks(32)), (64, rows(0)), (64, rows(32)), (64, rows(64)), (128, rows(128))] {
                let error = product(elem, n, a, b, (false, false), seed);
                assert!(error < 1e-5, "{elem:?} n{n} {a:?} {b:?}: {error}");
                seed += 1;
            }
        }
    }
    // tf32 knows k together only.
    for a in [None, Some(ks(0)), Some(ks(32))] {
        for (n, b) in [(8, ks(0)), (256, ks(32))] {
            let error = product(Elem::Tf32, n, a, b, (false, false), seed);
            assert!(error < 1e-5, "tf32 n{n} {a:?} {b:?}: {error}");
            seed += 1;
        }
    }
    for negate in [(true, false), (false, true), (true, true)] {
        assert!(product(Elem::Bf16, 24, Some(ks(32)), ks(32), negate, 5) < 1e-5, "{negate:?}");
    }
}

/// The lines of 64 and 128 bytes with k together hold two and four steps of k: each is read where it lies.
#[test]
fn wgmma_steps_along_a_swizzled_line() {
    for (swizzle, steps) in [(64usize, 2usize), (128, 4)] {
        for step in 0..steps {
            let k = 16 * steps;
            let lies = Lies { rows_together: false, swizzle };
            let (xa, xb) = (random(64 * k, 3), random(32 * k, 4));
            let (image_a, a, desc) = image(lies, Elem::Bf16, 64, k, &xa);
            let (image_b, b, _) = image(lies, Elem::Bf16, 32, k, &xb);
            let whole = [image_a.clone(), image_b].concat();
            let d: Vec<String> = (0..16).map(|q| format!("%f{q}")).collect();
            let mut body = bring(whole.len());
            body += "mov.u32 %r30, s;\nshr.u32 %r31, %r30, 4;\ncvt.u64.u32 %d9, %r31;\nld.param.u64 %d10, [desc];\n";
            body += &format!("add.u64 %d9, %d9, {};\nor.b64 %d11, %d10, %d9;\n", step * 2);
            body += &format!("add.u64 %d9, %d9, {};\nor.b64 %d12, %d10, %d9;\n", image_a.len() / 16);
            body += "setp.ne.u32 %p2, 0, 0;\nwgmma.fence.sync.aligned;\n";
            body += &format!(
                "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {{{}}}, %d11, %d12, %p2, 1, 1, 0, 0;\n",
                d.join(", ")
            );
            body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nld.param.u64 %d14, [out];\n";
            body += "mul.wide.u32 %d15, %r1, 64;\nadd.u64 %d14, %d14, %d15;\n";
            for (q, f) in d.iter().enumerate() {
                body += &format!("st.global.f32 [%d14+{}], {f};\n", q * 4);
            }
            let ptx = kernel(".param .u64 image, .param .u64 out, .param .u64 desc", "", &body);
            let mut m = Memory::new();
            let (pi, po) = (m.alloc(whole.len()), m.alloc(64 * 32 * 4));
            m.write(pi, &whole).unwrap();
            let shape = Shape { grid: [1; 3], block: 128, shared: 0 };
            let p = Params::default().ptr(pi).ptr(po).ptr(desc);
            run(&ptx, "k", &mut m, &shape, &p, step as u64).unwrap_or_else(|e| panic!("{e}"));
            let got = read_floats(&m, po, 64 * 32);
            for t in 0..128 {
                for q in 0..16 {
                    let (i, j) = (t / 32 * 16 + t % 32 / 4 + 8 * (q % 4 / 2), 8 * (q / 4) + 2 * (t % 4) + q % 2);
                    let ks = step * 16..step * 16 + 16;
                    let want: f64 = ks.map(|l| a[i * k + l] * b[j * k + l]).sum();
                    assert!((f64::from(got[t * 16 + q]) - want).abs() < 1e-5, "swizzle {swizzle} step {step}");
                }
            }
        }
    }
}

/// A descriptor that leads out of shared memory is a fault, whichever warp comes first.
#[test]
fn wgmma_out_of_bounds_is_told() {
    let d: Vec<String> = (0..4).map(|q| format!("%f{q}")).collect();
    let body = bring(2048)
        + "mov.b64 %d10, 0x4000000000010000;\nmov.b64 %d11, 0x4000004000013F00;\nsetp.ne.u32 %p2, 0, 0;\n\
           wgmma.fence.sync.aligned;\n"
        + &format!(
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{{}}}, {{%r1, %r1, %r1, %r1}}, %d11, %p2, 1, 1, 0;\n",
            d.join(", ")
        )
        + "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";
    let ptx = kernel(".param .u64 image", "", &body);
    for seed in 0..6 {
        let mut m = Memory::new();
        let p = m.alloc(2048);
        m.write(p, &[0; 2048]).unwrap();
        let shape = Shape { grid: [1; 3], block: 128, shared: 0 };
        let e = run(&ptx, "k", &mut m, &shape, &Params::default().ptr(p), seed).unwrap_err();
        assert!(matches!(*e.kind, FaultKind::OutOfBounds { what: "wgmma", .. }), "{e}");
        let e =
            run(&ptx.replace("wgmma.fence.sync.aligned;", ""), "k", &mut m, &shape, &Params::default().ptr(p), seed);
        assert!(matches!(*e.unwrap_err().kind, FaultKind::Misuse(_)));
    }
}

/// A box of a tensor, as it should lie in shared memory: f32, zero outside.
fn box_of(map: &TensorMap, tensor: &[f32], coords: &[i32]) -> Vec<f32> {
    let count: usize = map.box_dims.iter().map(|&b| b as usize).product();
    let pitches: Vec<usize> = std::iter::once(1).chain(map.strides.iter().map(|s| *s as usize / 4)).collect();
    let mut out = vec![0f32; count];
    for (n, to) in out.iter_mut().enumerate() {
        let (mut left, mut at, mut inside) = (n, 0, true);
        for i in 0..map.dims.len() {
            let c = i64::from(coords[i]) + (left % map.box_dims[i] as usize) as i64;
            left /= map.box_dims[i] as usize;
            inside &= c >= 0 && c < map.dims[i] as i64;
            at += if inside { c as usize * pitches[i] } else { 0 };
        }
        if inside {
            *to = tensor[at];
        }
    }
    out
}

fn tensor(rank: usize, address: u64) -> TensorMap {
    let dims = [24u64, 5, 4, 3, 2][..rank].to_vec();
    // Rows with a gap after them.
    let mut strides = vec![112u64];
    for d in &dims[1..] {
        strides.push(strides[strides.len() - 1] * d);
    }
    strides.truncate(rank - 1);
    let box_dims = [8u32, 3, 2, 2, 2][..rank].to_vec();
    TensorMap { address, element: Element::F32, dims, strides, box_dims, swizzle: Swizzle::None }
}

/// One thread: wait for the mbarrier `bar`'s phase 0.
const WAIT: &str = "WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [bar], 0;\n@!%p1 bra WAIT;\n";

fn coordinates(coords: &[i32]) -> String {
    coords.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_tma_brings_boxes_of_one_to_five_dimensions() {
    for rank in 1..=5 {
        for coords in [[0, 0, 0, 0, 0], [16, 2, 1, 1, 0], [-3, 4, -1, 2, 1], [20, 3, 3, 0, -1]] {
            let coords = &coords[..rank];
            let mut m = Memory::new();
            let x = random(28 * 5 * 4 * 3 * 2, 7 + rank as u64);
            let px = floats(&mut m, &x);
            let map = tensor(rank, px);
            let count: usize = map.box_dims.iter().map(|&b| b as usize).product();
            let po = m.alloc(count * 4);
            let body = format!(
                ".shared .align 128 .b8 s[{bytes}];\n.shared .align 8 .b8 bar[8];\nmov.u32 %r1, %tid.x;\n\
                 setp.ne.u32 %p2, %r1, 0;\nmov.b64 %d1, map;\ncvta.param.u64 %d2, %d1;\n@%p2 bra MADE;\n\
                 mbarrier.init.shared::cta.b64 [bar], 1;\nfence.mbarrier_init.release.cluster;\nMADE:\nbar.sync 0;\n\
                 @%p2 bra WAIT;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {bytes};\n\
                 cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [s], \
                 [%d2, {{{}}}], [bar];\n{WAIT}ld.param.u64 %d3, [out];\nmov.u32 %r2, s;\nLOOP:\n\
                 setp.ge.u32 %p3, %r1, {count};\n@%p3 bra DONE;\nshl.b32 %r3, %r1, 2;\nadd.u32 %r4, %r2, %r3;\n\
                 ld.shared.u32 %r5, [%r4];\ncvt.u64.u32 %d4, %r3;\nadd.u64 %d5, %d3, %d4;\nst.global.u32 [%d5], %r5;\n\
                 add.u32 %r1, %r1, 32;\nbra LOOP;\nDONE:\n",
                coordinates(coords),
                bytes = count * 4,
            );
            let ptx = kernel(".param .align 64 .b8 map[128], .param .u64 out", "", &body);
            let p = Params::default().put(&map.encode().unwrap()).ptr(po);
            let shape = Shape { grid: [1; 3], block: 32, shared: 0 };
            run(&ptx, "k", &mut m, &shape, &p, rank as u64).unwrap_or_else(|e| panic!("{rank}d {coords:?}: {e}"));
            assert_eq!(read_floats(&m, po, count), box_of(&map, &x, coords), "{rank}d {coords:?}");
        }
    }
}

/// Out again, as it is or added; what hangs over the edge goes nowhere.
#[test]
fn the_tma_stores_and_adds_boxes() {
    for (rank, add) in (1..=5).flat_map(|r| [(r, false), (r, true)]) {
        let coords: &[i32] = &[-3, 4, -1, 2, 1][..rank];
        let mut m = Memory::new();
        let (x, image) = (random(28 * 5 * 4 * 3 * 2, 3), random(8 * 3 * 2 * 2 * 2, 4));
        let (px, pi) = (floats(&mut m, &x), floats(&mut m, &image));
        let map = tensor(rank, px);
        let count: usize = map.box_dims.iter().map(|&b| b as usize).product();
        let copy = if add { "cp.reduce.async.bulk" } else { "cp.async.bulk" };
        let op = if add { ".add" } else { "" };
        let body = bring(count * 4)
            + &format!(
                "setp.ne.u32 %p2, %r1, 0;\n@%p2 exit;\nmov.b64 %d10, map;\ncvta.param.u64 %d11, %d10;\n\
                 {copy}.tensor.{rank}d.global.shared::cta{op}.tile.bulk_group [%d11, {{{}}}], [s];\n\
                 cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\n",
                coordinates(coords)
            );
        let ptx = kernel(".param .align 64 .b8 map[128], .param .u64 image", "", &body);
        let p = Params::default().put(&map.encode().unwrap()).ptr(pi);
        let shape = Shape { grid: [1; 3], block: 128, shared: 0 };
        run(&ptx, "k", &mut m, &shape, &p, 2).unwrap_or_else(|e| panic!("{rank}d add {add}: {e}"));
        // Where each element of the box lands: a tensor of its own numbers, read as a box.
        let marks: Vec<f32> = (0..x.len()).map(|i| i as f32 + 1.0).collect();
        let mut want = x.clone();
        for (mark, v) in box_of(&map, &marks, coords).into_iter().zip(&image).filter(|(mark, _)| *mark > 0.0) {
            let at = mark as usize - 1;
            want[at] = if add { want[at] + v } else { *v };
        }
        assert_eq!(read_floats(&m, px, x.len()), want, "{rank}d add {add}");
    }
}

/// Each swizzle, brought by the TMA and read back piece by piece.
#[test]
fn the_tma_swizzles() {
    for (swizzle, bytes) in [(Swizzle::None, 0usize), (Swizzle::B32, 32), (Swizzle::B64, 64), (Swizzle::B128, 128)] {
        let row = if bytes == 0 { 64 } else { bytes };
        let mut m = Memory::new();
        let x = random(32 * row / 4, 5);
        let (px, po) = (floats(&mut m, &x), m.alloc(32 * row));
        let map = TensorMap {
            address: px,
            element: Element::F32,
            dims: vec![row as u64 / 4, 32],
            strides: vec![row as u64],
            box_dims: vec![row as u32 / 4, 32],
            swizzle,
        };
        let body = format!(
            ".shared .align 1024 .b8 s[{size}];\n.shared .align 8 .b8 bar[8];\nmov.u32 %r1, %tid.x;\n\
             setp.ne.u32 %p2, %r1, 0;\nmov.b64 %d1, map;\ncvta.param.u64 %d2, %d1;\n@%p2 bra MADE;\n\
             mbarrier.init.shared::cta.b64 [bar], 1;\nfence.mbarrier_init.release.cluster;\nMADE:\nbar.sync 0;\n\
             @%p2 bra WAIT;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], {size};\n\
             cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [s], [%d2, {{0, 0}}], [bar];\n\
             {WAIT}ld.param.u64 %d3, [out];\nmov.u32 %r2, s;\nLOOP:\nsetp.ge.u32 %p3, %r1, {words};\n@%p3 bra DONE;\n\
             shl.b32 %r3, %r1, 2;\nadd.u32 %r4, %r2, %r3;\nld.shared.u32 %r5, [%r4];\ncvt.u64.u32 %d4, %r3;\n\
             add.u64 %d5, %d3, %d4;\nst.global.u32 [%d5], %r5;\nadd.u32 %r1, %r1, 32;\nbra LOOP;\nDONE:\n",
            size = 32 * row,
            words = 8 * row,
        );
        let ptx = kernel(".param .align 64 .b8 map[128], .param .u64 out", "", &body);
        let p = Params::default().put(&map.encode().unwrap()).ptr(po);
        run(&ptx, "k", &mut m, &Shape { grid: [1; 3], block: 32, shared: 0 }, &p, 1).unwrap_or_else(|e| panic!("{e}"));
        let got = read_floats(&m, po, x.len());
        for (i, v) in x.iter().enumerate() {
            assert_eq!(got[swizzled(i * 4, bytes) / 4], *v, "{swizzle:?} {i}");
        }
    }
}

fn run_cluster(ptx: &str, m: &mut Memory, cluster: u32, block: u32, p: &Params, seed: u64) -> Result<Report, Fault> {
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
    let shape =
        Launch { grid: [cluster, 1, 1], block: [block, 1, 1], cluster: [cluster, 1, 1], shared: 0, params: &p.0 };
    launch(module.kernel("k").unwrap(), m, shape, &Options { seed, ..Options::default() })
}

fn words(m: &Memory, at: u64, n: usize) -> Vec<u32> {
    m.slice(at, n * 4).unwrap().chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Each block reads its right neighbour's memory, between two barriers of the cluster.
const NEIGHBOURS: &str = ".shared .align 4 .b8 s[128];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, %cluster_ctarank;\n\
    mov.u32 %r3, %cluster_nctarank;\nshl.b32 %r4, %r1, 2;\nmov.u32 %r5, s;\nadd.u32 %r5, %r5, %r4;\n\
    mad.lo.u32 %r6, %r2, 100, %r1;\nst.shared.u32 [%r5], %r6;\nbarrier.cluster.arrive.release.aligned;\n\
    barrier.cluster.wait.acquire.aligned;\nadd.u32 %r7, %r2, 1;\nrem.u32 %r7, %r7, %r3;\n\
    mapa.shared::cluster.u32 %r8, %r5, %r7;\nld.shared::cluster.u32 %r9, [%r8];\n\
    getctarank.shared::cluster.u32 %r10, %r8;\nmad.lo.u32 %r9, %r10, 1000, %r9;\nld.param.u64 %d1, [out];\n\
    mad.lo.u32 %r11, %r2, 128, %r4;\ncvt.u64.u32 %d2, %r11;\nadd.u64 %d1, %d1, %d2;\nst.global.u32 [%d1], %r9;\n\
    barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n";

#[test]
fn clusters_share_memory() {
    let ptx = kernel(".param .u64 out", "", NEIGHBOURS);
    // Without the second barrier a block may end while it is read; without the first the memory is not written yet.
    let (first, last) = (ptx.find("barrier").unwrap(), ptx.rfind("barrier.cluster.arrive").unwrap());
    let end = |at: usize| ptx[at..].match_indices('\n').nth(1).unwrap().0 + at;
    let (early, late) =
        (format!("{}{}", &ptx[..first], &ptx[end(first)..]), format!("{}{}", &ptx[..last], &ptx[end(last)..]));
    for seed in 0..8 {
        for blocks in [2, 4] {
            let mut m = Memory::new();
            let out = m.alloc(128 * 4);
            let p = Params::default().ptr(out);
            run_cluster(&ptx, &mut m, blocks, 32, &p, seed).unwrap_or_else(|e| panic!("{e}"));
            let want: Vec<u32> =
                (0..blocks).flat_map(|b| (0..32).map(move |t| ((b + 1) % blocks) * 1100 + t)).collect();
            assert_eq!(words(&m, out, blocks as usize * 32), want);
            let e = run_cluster(&early, &mut m, blocks, 32, &p, seed).unwrap_err();
            assert!(matches!(*e.kind, FaultKind::Race { .. } | FaultKind::Unwritten { .. }), "{e}");
            let e = run_cluster(&late, &mut m, blocks, 32, &p, seed).unwrap_err();
            assert!(matches!(*e.kind, FaultKind::Misuse(_) | FaultKind::OutOfBounds { .. }), "{e}");
        }
    }
}

/// Plain bytes from one block to the other, and an arrival from afar.
#[test]
fn bulk_copies_cross_a_cluster() {
    let body = format!(
        ".shared .align 16 .b8 s[256];\n.shared .align 8 .b8 bar[8];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, %cluster_ctarank;\n\
         shl.b32 %r3, %r1, 2;\nmov.u32 %r4, s;\nadd.u32 %r5, %r4, %r3;\nmad.lo.u32 %r6, %r2, 100, %r1;\n\
         st.shared.u32 [%r5], %r6;\nsetp.ne.u32 %p2, %r1, 0;\n@%p2 bra MADE;\n\
         mbarrier.init.shared::cta.b64 [bar], 2;\nfence.mbarrier_init.release.cluster;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 128;\nMADE:\nfence.proxy.async;\n\
         barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n@%p2 bra WAIT;\n\
         xor.b32 %r7, %r2, 1;\nadd.u32 %r8, %r4, 128;\nmapa.shared::cluster.u32 %r9, %r8, %r7;\nmov.u32 %r10, bar;\n\
         mapa.shared::cluster.u32 %r11, %r10, %r7;\n\
         cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r9], [%r4], 128, [%r11];\n\
         mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r11];\n{WAIT}ld.shared.u32 %r12, [%r5+128];\n\
         ld.param.u64 %d1, [out];\nmad.lo.u32 %r13, %r2, 128, %r3;\ncvt.u64.u32 %d2, %r13;\nadd.u64 %d1, %d1, %d2;\n\
         st.global.u32 [%d1], %r12;\nbarrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n"
    );
    let ptx = kernel(".param .u64 out", "", &body);
    for seed in 0..8 {
        let mut m = Memory::new();
        let out = m.alloc(256);
        run_cluster(&ptx, &mut m, 2, 32, &Params::default().ptr(out), seed).unwrap_or_else(|e| panic!("{e}"));
        let want: Vec<u32> = (0..2).flat_map(|b| (0..32).map(move |t| (1 - b) * 100 + t)).collect();
        assert_eq!(words(&m, out, 64), want, "seed {seed}");
    }
}

/// Runs one block with one word a thread as its result, %r0.
fn block_of(threads: u32, body: &str, seed: u64) -> Result<Vec<u32>, Fault> {
    let body = format!(
        "mov.u32 %r1, %tid.x;\n{body}\nld.param.u64 %d1, [out];\nmul.wide.u32 %d2, %r1, 4;\nadd.u64 %d1, %d1, %d2;\n\
         st.global.u32 [%d1], %r0;\n"
    );
    let mut m = Memory::new();
    let out = m.alloc(threads as usize * 4);
    let shape = Shape { grid: [1; 3], block: threads, shared: 0 };
    run(&kernel(".param .u64 out", "", &body), "k", &mut m, &shape, &Params::default().ptr(out), seed)?;
    Ok(words(&m, out, threads as usize))
}

#[test]
fn mbarriers_count_arrivals_and_bytes() {
    let made = ".shared .align 8 .b8 bar[8];\n.shared .align 4 .b8 v[4];\nsetp.ne.u32 %p2, %r1, 0;\n@%p2 bra MADE;\n\
                mbarrier.init.shared.b64 [bar], COUNT;\nMADE:\nbar.sync 0;\n";
    for seed in 0..8 {
        // Tokens: every thread arrives and waits for the phase its token names; a thread's store before is seen after.
        let tokens = made.replace("COUNT", "64").replace("v[4]", "v[256]")
            + "shl.b32 %r2, %r1, 2;\nmov.u32 %r3, v;\nadd.u32 %r4, %r3, %r2;\nst.shared.u32 [%r4], %r1;\n\
               mbarrier.arrive.shared.b64 %d5, [bar];\nT:\nmbarrier.test_wait.shared.b64 %p1, [bar], %d5;\n@!%p1 bra T;\n\
               xor.b32 %r5, %r2, 252;\nadd.u32 %r5, %r3, %r5;\nld.shared.u32 %r0, [%r5];\n";
        assert_eq!(block_of(64, &tokens, seed).unwrap(), (0..64).map(|t| 63 - t).collect::<Vec<u32>>());
        // Two arrivals in one, bytes announced and counted by hand, a second phase with one thread less.
        let drop = made.replace("COUNT", "3")
            + "@%p2 bra OTHERS;\nmbarrier.expect_tx.relaxed.cta.shared::cta.b64 [bar], 64;\n\
               mbarrier.arrive.shared.b64 _, [bar], 2;\nmbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 64;\n\
               bra W;\nOTHERS:\nsetp.ne.u32 %p3, %r1, 32;\n@%p3 bra W;\nmbarrier.arrive_drop.shared.b64 _, [bar];\nW:\n\
               mbarrier.try_wait.parity.shared.b64 %p1, [bar], 0;\n@!%p1 bra W;\nbar.sync 0;\n@%p2 bra X;\n\
               mbarrier.arrive.shared.b64 _, [bar], 2;\nX:\nmbarrier.try_wait.parity.shared.b64 %p1, [bar], 1;\n\
               @!%p1 bra X;\nmov.u32 %r0, 7;\n";
        assert_eq!(block_of(64, &drop, seed).unwrap(), vec![7; 64]);
        // Bytes that never come.
        let starved = drop.replace("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [bar], 64;", "");
        let e = block_of(64, &starved, seed).unwrap_err();
        assert!(matches!(*e.kind, FaultKind::Deadlock { .. }), "{e}");
        // One arrival more than the phase takes.
        let many = made.replace("COUNT", "1") + "mbarrier.arrive.shared.b64 _, [bar], 2;\nmov.u32 %r0, 1;\n";
        assert!(matches!(*block_of(1, &many, seed).unwrap_err().kind, FaultKind::Misuse(_)));
    }
}

#[test]
fn named_barriers_hand_over() {
    // Warp 1 makes, warp 0 takes: arrive and sync on one barrier of 64 threads, and back on another.
    let body = ".shared .align 4 .b8 v[128];\nand.b32 %r2, %r1, 31;\nshl.b32 %r2, %r2, 2;\nmov.u32 %r3, v;\n\
                add.u32 %r3, %r3, %r2;\nmov.u32 %r0, 0;\nsetp.ge.u32 %p1, %r1, 32;\n@%p1 bra MAKER;\n\
                bar.sync 3, 64;\nld.shared.u32 %r0, [%r3];\nbar.arrive 4, 64;\nbra DONE;\nMAKER:\nmul.lo.u32 %r4, %r1, 3;\n\
                st.shared.u32 [%r3], %r4;\nbar.arrive 3, 64;\nbar.sync 4, 64;\nst.shared.u32 [%r3], 0;\nDONE:\n";
    for seed in 0..8 {
        let want: Vec<u32> = (0..64).map(|t| if t < 32 { (t + 32) * 3 } else { 0 }).collect();
        assert_eq!(block_of(64, body, seed).unwrap(), want);
        let e = block_of(64, &body.replace("bar.sync 4, 64;\n", ""), seed).unwrap_err();
        assert!(matches!(*e.kind, FaultKind::Race { .. } | FaultKind::Misuse(_) | FaultKind::Deadlock { .. }), "{e}");
    }
    let votes = "setp.lt.u32 %p1, %r1, 40;\nbar.red.popc.u32 %r0, 0, %p1;\nbar.red.or.pred %p3, 0, %p1;\n\
                 bar.red.and.pred %p4, 0, %p1;\nselp.u32 %r2, 100, 0, %p3;\nadd.u32 %r0, %r0, %r2;\n\
                 selp.u32 %r2, 1000, 0, %p4;\nadd.u32 %r0, %r0, %r2;\n";
    assert_eq!(block_of(96, votes, 1).unwrap(), vec![140; 96]);
}

/// Matrices out of registers and into them, in every number and turned.
#[test]
fn matrices_of_eight_by_eight() {
    for (n, trans) in [(1, false), (2, true), (4, false), (4, true)] {
        let list = |from: usize| (from..from + n).map(|i| format!("%r{i}")).collect::<Vec<_>>().join(", ");
        let (t, mut sum) = (if trans { ".trans" } else { "" }, String::new());
        let mut body = format!(
            ".shared .align 16 .b8 s[{}];\nshl.b32 %r2, %r1, 4;\nand.b32 %r2, %r2, {};\nmov.u32 %r3, s;\n\
             add.u32 %r3, %r3, %r2;\n",
            128 * n,
            128 * n - 1
        );
        for i in 0..n {
            body += &format!("mad.lo.u32 %r{}, %r1, 0x20002, {};\n", 10 + i, 0x1_0000 + i * 0x0040_0040);
            sum += &format!("xor.b32 %r{}, %r{}, %r{};\nor.b32 %r0, %r0, %r{};\n", 30 + i, 10 + i, 20 + i, 30 + i);
        }
        // Stored turned and loaded turned is where it was.
        body += &format!(
            "stmatrix.sync.aligned.m8n8.x{n}{t}.shared.b16 [%r3], {{{}}};\nbar.warp.sync -1;\n\
             ldmatrix.sync.aligned.m8n8.x{n}{t}.shared.b16 {{{}}}, [%r3];\nmov.u32 %r0, 0;\n{sum}",
            list(10),
            list(20)
        );
        assert_eq!(block_of(32, &body, 1).unwrap(), vec![0; 32], "x{n} {trans}");
        if trans {
            // Turned once only is elsewhere.
            let once = body.replacen(".trans", "", 1);
            assert_ne!(block_of(32, &once, 1).unwrap(), vec![0; 32]);
        }
    }
}

/// `cp.async` fills up with zeros, and `wait_all` waits for what was never committed.
#[test]
fn copies_fill_up_and_wait_for_all() {
    let body = "ld.param.u64 %d1, [image];\n.shared .align 16 .b8 s[512];\nmov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 4;\n\
                mov.u32 %r3, s;\nadd.u32 %r3, %r3, %r2;\ncvt.u64.u32 %d2, %r2;\nadd.u64 %d3, %d1, %d2;\n\
                and.b32 %r4, %r1, 15;\ncp.async.ca.shared.global [%r3], [%d3], 16, %r4;\ncp.async.wait_all;\n\
                ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r3];\nld.param.u64 %d4, [out];\nadd.u64 %d4, %d4, %d2;\n\
                st.global.v4.u32 [%d4], {%r10, %r11, %r12, %r13};\n";
    let ptx = kernel(".param .u64 image, .param .u64 out", "", body);
    let image: Vec<u8> = (0..512u32).map(|i| (i % 251) as u8 + 1).collect();
    for seed in 0..6 {
        let mut m = Memory::new();
        let (pi, po) = (m.alloc(512), m.alloc(512));
        m.write(pi, &image).unwrap();
        let p = Params::default().ptr(pi).ptr(po);
        let shape = Shape { grid: [1; 3], block: 32, shared: 0 };
        run(&ptx, "k", &mut m, &shape, &p, seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let want: Vec<u8> = (0..512).map(|i| if i % 16 < i / 16 % 16 { image[i] } else { 0 }).collect();
        assert_eq!(m.slice(po, 512).unwrap(), want);
    }
}

#[test]
fn half_atomics_and_exchanges() {
    let one = ".shared .align 8 .b8 s[8];\nst.shared.u32 [s], VALUE;\nOP\nld.shared.u32 %r0, [s];\n";
    let result = |value: u32, op: &str| {
        let body = one.replace("VALUE", &value.to_string()).replace("OP", op);
        block_of(1, &body, 0).unwrap_or_else(|e| panic!("{op}: {e}"))[0]
    };
    // 1 and 2 plus 2 and 2, in f16 and bf16.
    let op = "mov.b32 %r5, 0x40004000;\natom.shared.add.noftz.f16x2 %r6, [s], %r5;";
    assert_eq!(result(0x3C00_4000, op), 0x4200_4400);
    let op = "mov.b32 %r5, 0x40004000;\natom.shared.add.noftz.bf16x2 %r6, [s], %r5;";
    assert_eq!(result(0x3F80_4000, op), 0x4040_4080);
    assert_eq!(result(9, "mov.u32 %r5, 3;\natom.shared.exch.b32 %r6, [s], %r5;"), 3);
    assert_eq!(result(9, "mov.u32 %r5, 3;\natom.shared.min.u32 %r6, [s], %r5;"), 3);
    assert_eq!(result(9, "mov.u32 %r5, 12;\natom.shared.dec.u32 %r6, [s], %r5;"), 8);
    assert_eq!(result(9, "mov.u32 %r5, 12;\nred.shared.xor.b32 [s], %r5;"), 5);
}

/// Passes over banks beyond the fewest and sectors, by line, of patterns whose counts are plain.
#[test]
fn conflicts_and_sectors_are_counted() {
    // Lane times so many bytes; the access; extra passes over banks.
    for (step, access, want) in [
        (4, "ld.shared.u32 %r5, [%r4];", 0),
        (8, "ld.shared.u32 %r5, [%r4];", 1),
        (16, "ld.shared.u32 %r5, [%r4];", 3),
        (128, "ld.shared.u32 %r5, [%r4];", 31),
        (132, "ld.shared.u32 %r5, [%r4];", 0),
        (0, "ld.shared.u32 %r5, [%r4];", 0),
        (2, "ld.shared.u16 %r5, [%r4];", 0),
        (8, "ld.shared.v2.u32 {%r5, %r6}, [%r4];", 0),
        (16, "ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r4];", 0),
        // Eight lanes a part, all in the same four banks: seven passes too many in each of four parts.
        (128, "ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r4];", 28),
        (128, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4];", 28),
        (16, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4];", 0),
    ] {
        let fill = "mov.u32 %r10, 0;\nF:\nshl.b32 %r11, %r10, 9;\nshl.b32 %r12, %r1, 4;\nadd.u32 %r11, %r11, %r12;\n\
                    mov.u32 %r13, s;\nadd.u32 %r13, %r13, %r11;\nst.shared.v4.u32 [%r13], {%r1, %r1, %r1, %r1};\n\
                    add.u32 %r10, %r10, 1;\nsetp.lt.u32 %p1, %r10, 9;\n@%p1 bra F;\nbar.sync 0;\n";
        let body = format!(
            ".shared .align 16 .b8 s[4608];\nmov.u32 %r1, %tid.x;\n{fill}mov.u32 %r3, s;\n\
             mad.lo.u32 %r4, %r1, {step}, %r3;\n{access}\n"
        );
        let ptx = kernel("", "", &body);
        let shape = Shape { grid: [1; 3], block: 32, shared: 0 };
        let r = run(&ptx, "k", &mut Memory::new(), &shape, &Params::default(), 0).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(r.bank_conflicts(), want, "{step} bytes a lane: {access}");
    }
    // Lane times so many bytes of device memory; sectors of 32 bytes touched, and the fewest that hold the bytes.
    for (step, access, touched, fewest) in [
        (4, "ld.global.u32 %r5, [%d4];", 4, 4),
        (8, "ld.global.u32 %r5, [%d4];", 8, 4),
        (32, "ld.global.u32 %r5, [%d4];", 32, 4),
        (0, "ld.global.u32 %r5, [%d4];", 1, 4),
        (16, "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d4];", 16, 16),
        (64, "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d4];", 32, 16),
        (4, "st.global.u32 [%d4+16], %r1;", 5, 4),
    ] {
        let body = format!(
            "mov.u32 %r1, %tid.x;\nld.param.u64 %d1, [x];\nmul.wide.u32 %d2, %r1, {step};\nadd.u64 %d4, %d1, %d2;\n{access}\n"
        );
        let ptx = kernel(".param .u64 x", "", &body);
        let mut m = Memory::new();
        let x = m.alloc(4096);
        m.write(x, &[1; 4096]).unwrap();
        let shape = Shape { grid: [1; 3], block: 32, shared: 0 };
        let r = run(&ptx, "k", &mut m, &shape, &Params::default().ptr(x), 0).unwrap_or_else(|e| panic!("{e}"));
        let sum = |f: fn(&esker_ptx_sim::LineReport) -> u64| r.lines.iter().map(f).sum::<u64>();
        assert_eq!((sum(|l| l.sectors), sum(|l| l.sectors_best)), (touched, fewest), "{step} bytes a lane: {access}");
    }
}
