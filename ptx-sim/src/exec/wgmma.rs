//! Products of warpgroups: four warps multiply matrices that lie in shared memory, and go on meanwhile.
//!
//! Each warp makes the 16 rows of D that are its own. A product may take place at any time from its issue to its wait,
//! as the seed says; until then the registers of D hold NaN, so that who reads them early is seen. Registers of A are
//! read when it takes place. `wait_group` opens for the four warps of a warpgroup together, as hardware makes them one.
//!
//! A matrix in shared memory is told by a descriptor of 64 bits: its address (bits 0 to 13, in units of 16 bytes), the
//! leading (16 to 29) and the stride offset (32 to 45), and the swizzle (62 and 63: none, 128, 64 or 32 bytes). With S
//! bytes of swizzle and elements of e bytes, element (row r, column k) of a matrix with k together lies at
//!
//! ```text
//! S > 0    (r / 8) stride + (r mod 8) S + k e                   S = 0    (r / 8) stride + (k e / 16) leading
//!                                                                        + (r mod 8) 16 + k e mod 16
//! ```
//!
//! and with r together, S / e = w rows in a line, at
//!
//! ```text
//! S > 0    (r / w) leading + (k / 8) stride + (k mod 8) S + (r mod w) e
//! S = 0    (r / 8) stride + (k / 8) leading + (k mod 8) 16 + (r mod 8) e
//! ```
//!
//! from the descriptor's address, after which the address's bits are swizzled as the TMA swizzles them.
//!
//! Source: PTX ISA 9.0, 9.7.15 (asynchronous warpgroup matrices).

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use super::barrier::Wait;
use super::collective::together;
use super::memory::Home;
use super::warp::{LANES, Warp};
use super::{Cluster, Context, Cta, watch};
use crate::clock::Known;
use crate::fault::{FaultKind, Step, Stop};
use crate::fp;
use crate::ir::{Elem, Op, OperandA, Row, Wgmma};
use crate::memory::is_set;
use crate::race::Actor;
use crate::tensor_map::Swizzle;

/// Products of a warp that have not taken place.
#[derive(Debug, Default)]
pub(crate) struct Products {
    queue: VecDeque<Pending>,
    /// What the registers of D really hold while they show NaN.
    saved: HashMap<Row, [u32; LANES]>,
    commits: u32,
    /// Whether the warp has run a `wgmma.fence`, without which its registers may not be ready.
    pub fenced: bool,
}

#[derive(Debug)]
struct Pending {
    pc: u32,
    group: u32,
    a: u64,
    b: u64,
    add: bool,
}

/// A matrix as its descriptor tells it.
#[derive(Clone, Copy, Debug)]
struct Layout {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
    /// Bytes of an element.
    size: u64,
    /// Rows lie together, rather than k.
    rows_together: bool,
}

impl Layout {
    fn new(d: u64, size: u64, rows_together: bool) -> Option<Layout> {
        if d >> 49 & 7 != 0 {
            return None;
        }
        let field = |at: u32| (d >> at & 0x3FFF) << 4;
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(d >> 62) as usize];
        Some(Layout { start: field(0), leading: field(16), stride: field(32), swizzle, size, rows_together })
    }

    /// Where element (r, k) lies.
    #[inline]
    fn at(&self, r: u64, k: u64) -> u64 {
        let e = self.size;
        let line = match self.swizzle {
            Swizzle::None => 0,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        };
        let offset = match (self.rows_together, line) {
            (false, 0) => r / 8 * self.stride + k * e / 16 * self.leading + r % 8 * 16 + k * e % 16,
            (false, s) => r / 8 * self.stride + r % 8 * s + k * e,
            (true, 0) => r / 8 * self.stride + k / 8 * self.leading + k % 8 * 16 + r % 8 * e,
            (true, s) => {
                let w = s / e;
                r / w * self.leading + k / 8 * self.stride + k % 8 * s + r % w * e
            }
        };
        self.swizzle.place(self.start + offset)
    }

    /// The 16-byte pieces of these rows, each of neighbours along k or, where rows lie together, along the rows: the
    /// first (row, k) of each, and where it lies.
    fn pieces(self, rows: Range<u64>, k: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let n = 16 / self.size as usize;
        let (r_step, k_step) = if self.rows_together { (n, 1) } else { (1, n) };
        rows.step_by(r_step).flat_map(move |r| (0..k).step_by(k_step).map(move |k| (r, k, self.at(r, k) & !15)))
    }
}

impl Cluster {
    /// Issues a product of warp `i`.
    pub(super) fn wgmma(&mut self, x: &mut Context<'_>, i: usize, pc: u32, g: &Wgmma, m: u32) -> Step<()> {
        together(m, "wgmma")?;
        let w = &mut self.warps[i];
        if !w.products.fenced {
            return Err(Stop::misuse(0, "a product before any wgmma.fence of its warp"));
        }
        let uniform = |w: &Warp, row: Row| {
            let v = w.r64(row);
            if v.iter().all(|&d| d == v[0]) {
                Ok(v[0])
            } else {
                Err(Stop::misuse(0, "lanes give different descriptors"))
            }
        };
        let a = if let OperandA::Shared(row) = g.a { uniform(w, row)? } else { 0 };
        let b = uniform(w, g.b)?;
        let add = w.pred(g.add);
        if add != 0 && add != u32::MAX {
            return Err(Stop::misuse(0, "lanes disagree whether D is added to"));
        }
        let p = Pending { pc, group: w.products.commits + 1, a, b, add: add != 0 };
        self.watch_product(x, i, g, &p)?;
        let w = &mut self.warps[i];
        if w.products.queue.is_empty() && x.delay(2) == 0 {
            return product(&mut self.warps[i], &self.ctas, x, g, &p);
        }
        for &d in &g.d {
            if !w.products.saved.contains_key(&d) {
                let now = *w.r32(d);
                w.products.saved.insert(d, now);
                w.set32(d, u32::MAX, &[0x7FFF_FFFF; LANES]);
            }
        }
        w.products.queue.push_back(p);
        // Of those issued, some take place now.
        if x.delay(2) == 0 {
            let due = w.products.queue.len() as u32;
            let n = 1 + x.rng.below(due);
            self.products(x, i, n as usize)?;
        }
        Ok(())
    }

    /// Performs the first `n` products of warp `i`, and gives back the registers none awaits.
    fn products(&mut self, x: &mut Context<'_>, i: usize, n: usize) -> Step<()> {
        let kernel = x.kernel;
        for _ in 0..n {
            let w = &mut self.warps[i];
            let Some(p) = w.products.queue.pop_front() else { break };
            let Op::Wgmma(g) = &kernel.code[p.pc as usize].op else { continue };
            product(w, &self.ctas, x, g, &p)?;
        }
        let w = &mut self.warps[i];
        let mut saved = std::mem::take(&mut w.products.saved);
        for p in &w.products.queue {
            if let Op::Wgmma(g) = &kernel.code[p.pc as usize].op {
                for d in &g.d {
                    if let Some(v) = saved.remove(d) {
                        w.products.saved.insert(*d, v);
                    }
                }
            }
        }
        for (d, v) in saved {
            w.set32(d, u32::MAX, &v);
        }
        Ok(())
    }

    pub(super) fn wg_commit(&mut self, i: usize, m: u32) -> Step<()> {
        together(m, "wgmma.commit_group")?;
        self.warps[i].products.commits += 1;
        Ok(())
    }

    /// Warp `i` waits with the other three of its warpgroup until at most `left` groups are open.
    pub(super) fn wg_wait(&mut self, x: &mut Context<'_>, i: usize, pc: u32, left: u32, m: u32) -> Step<bool> {
        together(m, "wgmma.wait_group")?;
        let w = &mut self.warps[i];
        let (cta, group) = (w.cta, w.id / 4);
        w.block(m, pc + 1, Wait::Group { left });
        let of = |w: &Warp| w.cta == cta && w.id / 4 == group;
        let waits = |w: &Warp| w.waits.iter().any(|(_, wait)| matches!(wait, Wait::Group { .. }));
        let members: Vec<usize> = (0..self.warps.len()).filter(|&j| of(&self.warps[j])).collect();
        if members.len() != 4 {
            return Err(Stop::misuse(0, "a warpgroup has four warps; the block's threads are no multiple of 128"));
        }
        if !members.iter().all(|&j| waits(&self.warps[j])) {
            return Ok(false);
        }
        for j in members {
            let w = &self.warps[j];
            let over = w.products.commits.saturating_sub(left);
            let n = w.products.queue.iter().take_while(|p| p.group <= over).count();
            self.products(x, j, n)?;
            let w = &mut self.warps[j];
            if let Some(r) = &mut x.races {
                let engine = r.group_engine(cta, group as usize);
                let mut known = Known::default();
                known.own.resize(engine + 1, 0);
                known.own[engine] = over;
                r.clocks.acquire(watch::index(&x.plan, w), w.live, w.live, &Rc::new(known));
            }
            w.unblock(|wait| matches!(wait, Wait::Group { .. }));
        }
        Ok(true)
    }

    /// Looks at the bounds of what the product reads, and tells the race check: A of its own rows, and B, for which the
    /// first warp answers.
    fn watch_product(&mut self, x: &mut Context<'_>, i: usize, g: &Wgmma, p: &Pending) -> Step<()> {
        let w = &self.warps[i];
        let (size, shared) = (elem_bytes(g.elem), x.plan.shared);
        let layout = |d, t| Layout::new(d, size, t).ok_or(Stop::misuse(0, "a descriptor with a base offset"));
        let b = layout(p.b, g.trans[1])?;
        let mut rows = vec![(b, 0, u64::from(g.n), w.id.is_multiple_of(4))];
        if let OperandA::Shared(_) = g.a {
            let first = u64::from(w.id % 4) * 16;
            rows.insert(0, (layout(p.a, g.trans[0])?, first, first + 16, true));
        }
        let (cta, warp, group) = (w.cta, watch::index(&x.plan, w), w.id as usize / 4);
        let engine = x.races.as_mut().map(|r| (r.group_engine(cta, group), p.group));
        for (l, first, end, answers) in rows {
            for at in l.pieces(first..end, g.k.into()).map(|(_, _, at)| at) {
                if at + 16 > shared {
                    let why = format!("the block has {shared} bytes");
                    let kind = FaultKind::OutOfBounds { what: "wgmma", space: "shared", address: at, bytes: 16, why };
                    return Err(Stop::new(0, kind));
                }
                if !answers {
                    continue;
                }
                if let Some(races) = x.races.as_deref_mut() {
                    let actor = Actor { engine, ..Actor::lane(warp, 0, x.pc) };
                    let found = races.shared(cta, at, 16, false, &actor, &|_| false);
                    found.map_err(|c| watch::fault(x, Home::Shared(cta), "wgmma", 0, c))?;
                }
                if !is_set(&self.ctas[cta].written, at as usize, 16) {
                    let kind = FaultKind::Unwritten { what: "wgmma", space: "shared", address: at, bytes: 16 };
                    return Err(Stop::new(0, kind));
                }
            }
        }
        Ok(())
    }
}

fn elem_bytes(e: Elem) -> u64 {
    if e == Elem::Tf32 { 4 } else { 2 }
}

/// Gives `put` every element of these rows: (row, k) and its value.
#[inline(always)]
fn elements(c: &Cta, l: Layout, elem: Elem, rows: Range<u64>, k: u64, mut put: impl FnMut(usize, usize, f32)) {
    for (r, k, at) in l.pieces(rows, k) {
        let piece: &[u8; 16] = c.shared[at as usize..at as usize + 16].try_into().expect("16 bytes");
        for i in 0..16 / l.size as usize {
            let half = || u32::from(u16::from_le_bytes([piece[2 * i], piece[2 * i + 1]]));
            let v = match elem {
                Elem::Bf16 => fp::from_bf16(half()),
                Elem::F16 => fp::from_f16(half()),
                Elem::Tf32 => {
                    let word = u32::from_le_bytes(piece[4 * i..4 * i + 4].try_into().expect("4 bytes"));
                    super::matrix::value(elem, word, 0)
                }
            };
            let (r, k) = (r as usize, k as usize);
            if l.rows_together { put(r + i, k, v) } else { put(r, k + i, v) }
        }
    }
}

/// One warp's 16 rows of a product.
fn product(w: &mut Warp, ctas: &[Cta], x: &mut Context<'_>, g: &Wgmma, p: &Pending) -> Step<()> {
    let (n, k, c) = (g.n as usize, g.k as usize, &ctas[w.cta]);
    let size = elem_bytes(g.elem);
    let a = fragment_a(w, c, g, p, size);
    let lb = Layout::new(p.b, size, g.trans[1]).expect("looked at when issued");
    let mut b = vec![0f32; n * k];
    elements(c, lb, g.elem, 0..n as u64, k as u64, |j, kk, v| b[kk * n + j] = if g.negate[1] { -v } else { v });
    let mut d = vec![0f32; 16 * n];
    if p.add {
        for (q, row) in g.d.iter().enumerate() {
            let v = w.products.saved.get(row).unwrap_or_else(|| w.r32(*row));
            for l in 0..LANES {
                d[place_d(l, q, n)] = f32::from_bits(v[l]);
            }
        }
    }
    add_product(&mut d, &a, &b, n, k);
    for (q, &row) in g.d.iter().enumerate() {
        let v: [u32; LANES] = std::array::from_fn(|l| fp::canonical(d[place_d(l, q, n)]).to_bits());
        match w.products.saved.get_mut(&row) {
            Some(saved) => *saved = v,
            None => w.set32(row, u32::MAX, &v),
        }
    }
    // A warp makes a quarter of the product's 64 rows.
    x.products += 16 * (n * k) as u64;
    Ok(())
}

/// d += a b, of 16 rows, in the order of k.
fn add_product(d: &mut [f32], a: &[[f32; 16]; 16], b: &[f32], n: usize, k: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature, as has just been asked.
        return unsafe { add_product_wide(d, a, b, n, k) };
    }
    add_product_plain(d, a, b, n, k);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_product_wide(d: &mut [f32], a: &[[f32; 16]; 16], b: &[f32], n: usize, k: usize) {
    add_product_plain(d, a, b, n, k);
}

#[inline(always)]
fn add_product_plain(d: &mut [f32], a: &[[f32; 16]; 16], b: &[f32], n: usize, k: usize) {
    for (row, a) in d.chunks_exact_mut(n).zip(a) {
        // Eight columns at a time, whose sums stay in registers.
        for (j, row) in row.chunks_exact_mut(8).enumerate() {
            let mut sum: [f32; 8] = (&*row).try_into().expect("8 columns");
            for kk in 0..k {
                let b = &b[kk * n + 8 * j..][..8];
                (0..8).for_each(|i| sum[i] += a[kk] * b[i]);
            }
            row.copy_from_slice(&sum);
        }
    }
}

/// Where register `q` of lane `l` stands in the 16 rows of D.
fn place_d(l: usize, q: usize, n: usize) -> usize {
    (l / 4 + 8 * (q % 4 / 2)) * n + 8 * (q / 4) + 2 * (l % 4) + q % 2
}

fn fragment_a(w: &Warp, c: &Cta, g: &Wgmma, p: &Pending, size: u64) -> [[f32; 16]; 16] {
    let mut a = [[0f32; 16]; 16];
    match &g.a {
        OperandA::Shared(_) => {
            let l = Layout::new(p.a, size, g.trans[0]).expect("looked at when issued");
            let first = u64::from(w.id % 4) * 16;
            elements(c, l, g.elem, first..first + 16, g.k.into(), |i, k, v| a[i - first as usize][k] = v);
        }
        OperandA::Registers(rows) => {
            let per = if g.elem == Elem::Tf32 { 1 } else { 2 };
            for (n, &row) in rows.iter().enumerate() {
                let v = w.r32(row);
                for l in 0..LANES {
                    let (i, k) = (l / 4 + 8 * (n % 2), (l % 4) * per + n / 2 * 4 * per);
                    for h in 0..per {
                        a[i][k + h] = super::matrix::value(g.elem, v[l], h as u32);
                    }
                }
            }
        }
    }
    if g.negate[0] {
        a.iter_mut().flatten().for_each(|v| *v = -*v);
    }
    a
}
