//! Loads, stores and atomics of a warp.
//!
//! Lanes go through memory in runs: the first lane's address says which allocation (or block's shared memory) it lies
//! in, and all lanes that lie there too are served from it; the others make the next run. Nearly always there is one.

use super::alu::bits_of;
use super::warp::{LANES, Warp};
use super::watch::{self, Kind};
use super::{Context, Cta, space_name};
use crate::fault::{FaultKind, Step, Stop};
use crate::fp;
use crate::ir::{Access, Addr, Atom, AtomOp, Float, Row, Space};
use crate::memory::{is_set, set};
use crate::window;

/// The memory a generic address turns out to lie in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Home {
    Global,
    /// Of this block of the cluster.
    Shared(usize),
    Local,
    Data,
    Param,
}

impl Home {
    pub fn name(self) -> &'static str {
        match self {
            Home::Global => "global",
            Home::Shared(_) => "shared",
            Home::Local => "local",
            Home::Data => "constant",
            Home::Param => "parameter",
        }
    }
}

/// The addresses of all lanes.
#[inline(always)]
pub(super) fn addresses(w: &Warp, a: &Addr) -> [u64; LANES] {
    if a.wide {
        w.r64(a.row).map(|x| x.wrapping_add_signed(a.offset))
    } else {
        w.r32(a.row).map(|x| x.wrapping_add(a.offset as u32).into())
    }
}

/// Where `address` of `space` lies, and the address within that memory.
#[inline(always)]
pub(super) fn place(space: Space, address: u64, own: usize, blocks: usize) -> Option<(Home, u64)> {
    match space {
        Space::Global if address < window::DATA => Some((Home::Global, address)),
        Space::Shared | Space::Cluster => shared(address, own, blocks),
        Space::Local => Some((Home::Local, address)),
        Space::Param => Some((Home::Param, address)),
        Space::Const | Space::Global => Some((Home::Data, address.wrapping_sub(window::DATA))),
        Space::Generic => match address {
            a if a < window::SHARED => Some((Home::Global, a)),
            a if a < window::SHARED + window::SIZE => shared(a - window::SHARED, own, blocks),
            a if (window::LOCAL..window::LOCAL + window::SIZE).contains(&a) => Some((Home::Local, a - window::LOCAL)),
            a if (window::PARAM..window::PARAM + window::SIZE).contains(&a) => Some((Home::Param, a - window::PARAM)),
            a => Some((Home::Data, a.wrapping_sub(window::DATA))),
        },
    }
}

/// A shared address: the offset, and above it the block plus one, or 0 for the own block.
fn shared(address: u64, own: usize, blocks: usize) -> Option<(Home, u64)> {
    let offset = address & ((1 << window::BLOCK_BITS) - 1);
    match address >> window::BLOCK_BITS {
        0 => Some((Home::Shared(own), offset)),
        n if n as usize <= blocks => Some((Home::Shared(n as usize - 1), offset)),
        // What is no address of any block is out of bounds of the own one.
        _ => Some((Home::Shared(own), address)),
    }
}

/// One memory's bytes, where they begin, and which were written.
pub(super) struct Region<'a> {
    pub start: u64,
    pub data: &'a mut [u8],
    pub written: Option<&'a mut [u64]>,
}

/// The region of `home` around `address`.
pub(super) fn region<'a>(ctas: &'a mut [Cta], x: &'a mut Context<'_>, home: Home, address: u64) -> Option<Region<'a>> {
    match home {
        Home::Global => {
            let (start, a) = x.memory.find_mut(address)?;
            Some(Region { start, data: &mut a.data, written: Some(&mut a.written) })
        }
        Home::Shared(cta) => {
            let c = &mut ctas[cta];
            if c.live_warps == 0 {
                return None;
            }
            Some(Region { start: 0, data: &mut c.shared, written: Some(&mut c.written) })
        }
        Home::Local | Home::Data | Home::Param => None,
    }
}

/// The fault of an access that lies nowhere, or not wholly in what it begins in.
pub(super) fn outside(x: &Context<'_>, home: Home, address: u64, bytes: u32, what: &'static str) -> FaultKind {
    let why = match home {
        Home::Global => match x.memory.find(address) {
            Some((start, a)) => {
                format!("the allocation of {} bytes at {start:#x} ends before it does", a.data.len())
            }
            None => match x.memory.below(address) {
                Some((start, len)) => format!(
                    "the allocation before it, {len} bytes at {start:#x}, ended {} bytes earlier",
                    address - start - len
                ),
                None => "no allocation lies there".to_string(),
            },
        },
        Home::Shared(_) if address < x.plan.shared => "the block it belongs to has ended".to_string(),
        Home::Shared(_) => format!("the block has {} bytes", x.plan.shared),
        Home::Local => format!("a thread has {} bytes", x.kernel.local_bytes),
        Home::Data => format!("the module has {} bytes", x.kernel.data.len()),
        Home::Param => format!("the parameters have {} bytes", x.kernel.param_bytes),
    };
    FaultKind::OutOfBounds { what, space: home.name(), address, bytes, why }
}

/// Checks one lane's access against a region; gives the offset in it.
#[inline(always)]
pub(super) fn inside(r: &Region<'_>, address: u64, bytes: usize) -> Option<usize> {
    let offset = address.wrapping_sub(r.start) as usize;
    (offset < r.data.len() && bytes <= r.data.len() - offset).then_some(offset)
}

/// Reads `N` bytes for every lane of `m`.
pub(super) fn gather<const N: usize>(
    w: &Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    kind: Kind,
) -> Step<[[u8; N]; LANES]> {
    let what = kind.what;
    let mut out = [[0u8; N]; LANES];
    let blocks = ctas.len();
    let mut left = m;
    while left != 0 {
        let first = left.trailing_zeros() as usize;
        let Some((home, address)) = place(space, at[first], w.cta, blocks) else { break };
        if let Home::Local | Home::Data | Home::Param = home {
            let bytes = constant(w, x, home, address, N, first, what)?;
            out[first].copy_from_slice(bytes);
            left &= left - 1;
            continue;
        }
        let Some(r) = region(ctas, x, home, address) else {
            return Err(Stop::new(first as u32, outside(x, home, address, N as u32, what)));
        };
        let written = r.written.as_deref().unwrap_or(&[]);
        // All lanes, one after the other: a single copy.
        if left == u32::MAX && at[31].wrapping_sub(at[0]) == 31 * N as u64 && address % N as u64 == 0 {
            let together = (0..LANES).all(|i| at[i] == at[0].wrapping_add((i * N) as u64));
            if let (true, Some(offset)) = (together, inside(&r, address, LANES * N))
                && is_set(written, offset, LANES * N)
            {
                for (i, lane) in out.iter_mut().enumerate() {
                    lane.copy_from_slice(&r.data[offset + i * N..offset + (i + 1) * N]);
                }
                break;
            }
        }
        let (mut fault, mut unwritten) = (None, None);
        for i in first..LANES {
            if left >> i & 1 == 0 {
                continue;
            }
            let Some((h, address)) = place(space, at[i], w.cta, blocks) else { continue };
            if h != home {
                continue;
            }
            let Some(offset) = inside(&r, address, N) else {
                if i == first || home != Home::Global {
                    fault = Some((i, outside as fn(&Context<'_>, Home, u64, u32, &'static str) -> FaultKind, address));
                    break;
                }
                continue;
            };
            if address % N as u64 != 0 {
                return Err(Stop::new(
                    i as u32,
                    FaultKind::Misaligned { what, space: home.name(), address, bytes: N as u32 },
                ));
            }
            if !is_set(written, offset, N) {
                unwritten = Some((i as u32, address));
                break;
            }
            out[i].copy_from_slice(&r.data[offset..offset + N]);
            left &= !(1 << i);
        }
        if let Some((i, make, address)) = fault {
            return Err(Stop::new(i as u32, make(x, home, address, N as u32, what)));
        }
        if let Some((lane, address)) = unwritten {
            // Where bytes are missing because they are on their way, the race says more.
            watch::lanes(w, x, space, at, m, N, kind, |_, _| false)?;
            return Err(Stop::new(lane, FaultKind::Unwritten { what, space: home.name(), address, bytes: N as u32 }));
        }
    }
    watch::lanes(w, x, space, at, m, N, kind, |_, _| false)?;
    Ok(out)
}

/// Memory that lanes read one by one.
fn constant<'a>(
    w: &'a Warp,
    x: &'a Context<'_>,
    home: Home,
    address: u64,
    bytes: usize,
    lane: usize,
    what: &'static str,
) -> Step<&'a [u8]> {
    let all: &[u8] = match home {
        Home::Param => x.params,
        Home::Data => &x.kernel.data,
        _ => {
            let size = x.kernel.local_bytes as usize;
            &w.local[lane * size..(lane + 1) * size]
        }
    };
    let at = address as usize;
    if at >= all.len() || bytes > all.len() - at {
        return Err(Stop::new(lane as u32, outside(x, home, address, bytes as u32, what)));
    }
    if !address.is_multiple_of(bytes as u64) {
        let kind = FaultKind::Misaligned { what, space: home.name(), address, bytes: bytes as u32 };
        return Err(Stop::new(lane as u32, kind));
    }
    Ok(&all[at..at + bytes])
}

/// Writes `N` bytes for every lane of `m`.
pub(super) fn scatter<const N: usize>(
    w: &mut Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    from: &[[u8; N]; LANES],
    kind: Kind,
) -> Step<()> {
    let blocks = ctas.len();
    let what = kind.what;
    let mut left = m;
    while left != 0 {
        let first = left.trailing_zeros() as usize;
        let Some((home, address)) = place(space, at[first], w.cta, blocks) else { break };
        match home {
            Home::Param | Home::Data => {
                return Err(Stop::misuse(first as u32, format!("a store to {} memory", home.name())));
            }
            Home::Local => {
                constant(w, x, home, address, N, first, what)?;
                let at = first * x.kernel.local_bytes as usize + address as usize;
                w.local[at..at + N].copy_from_slice(&from[first]);
                left &= left - 1;
                continue;
            }
            _ => {}
        }
        let Some(mut r) = region(ctas, x, home, address) else {
            return Err(Stop::new(first as u32, outside(x, home, address, N as u32, what)));
        };
        // All lanes, one after the other: a single copy.
        if left == u32::MAX && at[31].wrapping_sub(at[0]) == 31 * N as u64 && address.is_multiple_of(N as u64) {
            let together = (0..LANES).all(|i| at[i] == at[0].wrapping_add((i * N) as u64));
            if let (true, Some(offset)) = (together, inside(&r, address, LANES * N)) {
                for (i, lane) in from.iter().enumerate() {
                    r.data[offset + i * N..offset + (i + 1) * N].copy_from_slice(lane);
                }
                if let Some(written) = &mut r.written {
                    set(written, offset, LANES * N, true);
                }
                break;
            }
        }
        let mut fault = None;
        for i in first..LANES {
            if left >> i & 1 == 0 {
                continue;
            }
            let Some((h, address)) = place(space, at[i], w.cta, blocks) else { continue };
            if h != home {
                continue;
            }
            let Some(offset) = inside(&r, address, N) else {
                if i == first || home != Home::Global {
                    fault = Some((i, address));
                    break;
                }
                continue;
            };
            if address % N as u64 != 0 {
                return Err(Stop::new(
                    i as u32,
                    FaultKind::Misaligned { what, space: home.name(), address, bytes: N as u32 },
                ));
            }
            r.data[offset..offset + N].copy_from_slice(&from[i]);
            if let Some(written) = &mut r.written {
                set(written, offset, N, true);
            }
            left &= !(1 << i);
        }
        if let Some((i, address)) = fault {
            return Err(Stop::new(i as u32, outside(x, home, address, N as u32, what)));
        }
    }
    watch::lanes(w, x, space, at, m, N, kind, |i, j| from[i] == from[j])
}

/// Adds the traffic of one access to the counters; `n` bytes a lane.
pub(super) fn count(x: &mut Context<'_>, space: Space, at: &[u64; LANES], m: u32, n: usize, pc: u32, store: bool) {
    let bytes = u64::from(m.count_ones()) * n as u64;
    let first = at[m.trailing_zeros() as usize & 31];
    let shared =
        matches!(space, Space::Shared | Space::Cluster) || space == Space::Generic && space_name(first) == "shared";
    let global = space == Space::Global || space == Space::Generic && space_name(first) == "global";
    let total = match (shared, global, store) {
        (true, _, false) => &mut x.report.shared_read,
        (true, _, true) => &mut x.report.shared_written,
        (_, true, false) => &mut x.report.global_read,
        (_, true, true) => &mut x.report.global_written,
        _ => return,
    };
    *total += bytes;
    if !x.counters {
        return;
    }
    let line = &mut x.lines[pc as usize];
    if global {
        let mut sectors: Vec<u64> =
            lanes(m).flat_map(|i| [at[i] / 32, at[i].saturating_add(n as u64 - 1) / 32]).collect();
        sectors.sort_unstable();
        sectors.dedup();
        line.sectors += sectors.len() as u64;
        line.sectors_best += bytes.div_ceil(32);
    } else {
        line.conflicts += bank_passes(at, m, n);
    }
}

fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |i| m >> i & 1 == 1)
}

/// Passes over the 32 banks of 4 bytes beyond the fewest possible. Wide accesses go in parts of 128 bytes: half a warp
/// at 8 bytes a lane, a quarter at 16.
fn bank_passes(at: &[u64; LANES], m: u32, n: usize) -> u64 {
    let group = (128 / n.max(4)).clamp(1, LANES);
    let mut extra = 0;
    for start in (0..LANES).step_by(group) {
        let mut words: Vec<u64> = (start..start + group)
            .filter(|i| m >> i & 1 == 1)
            .flat_map(|i| (at[i] / 4)..=(at[i].saturating_add(n as u64 - 1) / 4))
            .collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; 32];
        words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
        extra += banks.iter().max().map_or(0, |&most| most.saturating_sub(1));
    }
    extra
}

pub(super) fn load(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Access, m: u32, pc: u32) -> Step<()> {
    let at = addresses(w, &a.addr);
    let total = a.bytes as usize * a.slots.len();
    count(x, a.space, &at, m, total, pc, false);
    match total {
        1 => load_n::<1>(w, ctas, x, a, &at, m),
        2 => load_n::<2>(w, ctas, x, a, &at, m),
        4 => load_n::<4>(w, ctas, x, a, &at, m),
        8 => load_n::<8>(w, ctas, x, a, &at, m),
        16 => load_n::<16>(w, ctas, x, a, &at, m),
        _ => load_n::<32>(w, ctas, x, a, &at, m),
    }
}

fn load_n<const N: usize>(
    w: &mut Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    a: &Access,
    at: &[u64; LANES],
    m: u32,
) -> Step<()> {
    let bytes = gather::<N>(w, ctas, x, a.space, at, m, Kind { order: a.order, ..Kind::read("load") })?;
    let n = a.bytes as usize;
    for (s, slot) in a.slots.iter().enumerate() {
        let Some(d) = slot.row else { continue };
        let part = |b: &[u8; N]| -> u64 {
            let p = &b[s * n..(s + 1) * n];
            match (n, a.signed) {
                (1, false) => p[0].into(),
                (1, true) => p[0] as i8 as i64 as u64,
                (2, false) => u16::from_le_bytes([p[0], p[1]]).into(),
                (2, true) => i16::from_le_bytes([p[0], p[1]]) as i64 as u64,
                (4, false) => u32::from_le_bytes(p.try_into().expect("4 bytes")).into(),
                (4, true) => i32::from_le_bytes(p.try_into().expect("4 bytes")) as i64 as u64,
                _ => u64::from_le_bytes(p.try_into().expect("8 bytes")),
            }
        };
        match slot.bits {
            64 => w.set64(d, m, &std::array::from_fn(|i| part(&bytes[i]))),
            32 => w.set32(d, m, &std::array::from_fn(|i| part(&bytes[i]) as u32)),
            _ => w.set32(d, m, &std::array::from_fn(|i| part(&bytes[i]) as u32 & 0xFFFF)),
        }
    }
    Ok(())
}

pub(super) fn store(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Access, m: u32, pc: u32) -> Step<()> {
    let at = addresses(w, &a.addr);
    let total = a.bytes as usize * a.slots.len();
    count(x, a.space, &at, m, total, pc, true);
    match total {
        1 => store_n::<1>(w, ctas, x, a, &at, m),
        2 => store_n::<2>(w, ctas, x, a, &at, m),
        4 => store_n::<4>(w, ctas, x, a, &at, m),
        8 => store_n::<8>(w, ctas, x, a, &at, m),
        16 => store_n::<16>(w, ctas, x, a, &at, m),
        _ => store_n::<32>(w, ctas, x, a, &at, m),
    }
}

fn store_n<const N: usize>(
    w: &mut Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    a: &Access,
    at: &[u64; LANES],
    m: u32,
) -> Step<()> {
    let n = a.bytes as usize;
    let mut bytes = [[0u8; N]; LANES];
    for (s, slot) in a.slots.iter().enumerate() {
        let Some(row) = slot.row else { continue };
        if slot.bits == 64 {
            let v = w.r64(row);
            for i in 0..LANES {
                bytes[i][s * n..(s + 1) * n].copy_from_slice(&v[i].to_le_bytes()[..n]);
            }
        } else {
            let v = w.r32(row);
            for i in 0..LANES {
                bytes[i][s * n..(s + 1) * n].copy_from_slice(&v[i].to_le_bytes()[..n]);
            }
        }
    }
    scatter::<N>(w, ctas, x, a.space, at, m, &bytes, Kind { order: a.order, ..Kind::write("store") })
}

/// Atomics take place lane by lane, lowest first.
pub(super) fn atomic(w: &mut Warp, ctas: &mut [Cta], x: &mut Context<'_>, a: &Atom, m: u32, pc: u32) -> Step<()> {
    let at = addresses(w, &a.addr);
    let n = a.bytes as usize;
    count(x, a.space, &at, m, n * a.b.len(), pc, true);
    if let AtomOp::AddFloat(_) = a.op {
        x.report.float_atomics += u64::from(m.count_ones());
    }
    let mut old = [0u64; LANES];
    for i in lanes(m) {
        for (part, &b) in a.b.iter().enumerate() {
            let address = at[i].wrapping_add((part * n) as u64);
            let read = |w: &Warp, row: Row| if n == 8 { w.r64(row)[i] } else { w.r32(row)[i].into() };
            let (b, c) = (read(w, b), a.c.map_or(0, |c| read(w, c)));
            old[i] = atomic_lane(w, ctas, x, a, address, i, b, c)?;
            let kind = Kind { order: a.order, ..Kind::write("atomic") };
            watch::lanes(w, x, a.space, &[address; LANES], 1 << i, n, kind, |_, _| false)?;
        }
    }
    if let Some(d) = a.d {
        if n == 8 {
            w.set64(d, m, &old);
        } else {
            w.set32(d, m, &old.map(|v| v as u32));
        }
    }
    Ok(())
}

fn atomic_lane(
    w: &Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    a: &Atom,
    address: u64,
    lane: usize,
    b: u64,
    c: u64,
) -> Step<u64> {
    let (n, what) = (a.bytes as usize, "atomic");
    let fault = |kind| Stop::new(lane as u32, kind);
    let blocks = ctas.len();
    let Some((home, address)) = place(a.space, address, w.cta, blocks) else {
        return Err(Stop::misuse(lane as u32, "an atomic on no memory"));
    };
    let found = region(ctas, x, home, address).and_then(|r| inside(&r, address, n).map(|offset| (r, offset)));
    let Some((mut r, offset)) = found else {
        return Err(fault(outside(x, home, address, n as u32, what)));
    };
    if address % n as u64 != 0 {
        return Err(fault(FaultKind::Misaligned { what, space: home.name(), address, bytes: n as u32 }));
    }
    let written = r.written.as_deref_mut().unwrap_or(&mut []);
    if a.op != AtomOp::Exch && !is_set(written, offset, n) {
        return Err(fault(FaultKind::Unwritten { what, space: home.name(), address, bytes: n as u32 }));
    }
    set(written, offset, n, true);
    let mut word = [0u8; 8];
    word[..n].copy_from_slice(&r.data[offset..offset + n]);
    let old = u64::from_le_bytes(word);
    let new = update(a.op, n, old, b, c);
    r.data[offset..offset + n].copy_from_slice(&new.to_le_bytes()[..n]);
    Ok(old)
}

pub(super) fn update(op: AtomOp, n: usize, old: u64, b: u64, c: u64) -> u64 {
    let sign = |v: u64| if n == 8 { v as i64 } else { i64::from(v as u32 as i32) };
    let (x, y) = (old as u32, b as u32);
    match op {
        AtomOp::AddInt => old.wrapping_add(b),
        AtomOp::AddFloat(f) => add_float(f, old, b),
        AtomOp::MinFloat(f) => pick_float(f, old, b, |x, y| y < x || x.is_nan()),
        AtomOp::MaxFloat(f) => pick_float(f, old, b, |x, y| y > x || x.is_nan()),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::MinU => old.min(b),
        AtomOp::MaxU => old.max(b),
        AtomOp::MinS => {
            if sign(b) < sign(old) {
                b
            } else {
                old
            }
        }
        AtomOp::MaxS => {
            if sign(b) > sign(old) {
                b
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if x >= y {
                0
            } else {
                u64::from(x + 1)
            }
        }
        AtomOp::Dec => {
            if x == 0 || x > y {
                b
            } else {
                u64::from(x - 1)
            }
        }
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
    }
}

fn add_float(f: Float, x: u64, y: u64) -> u64 {
    let half = |format: fp::Format, s: u32| {
        let v = |w: u64| format.value((w >> s) as u32 & 0xFFFF);
        u64::from(format.round(fp::add_odd(v(x), v(y)), fp::Round::Near, false)) << s
    };
    match f {
        Float::F32 => u64::from(fp::canonical(f32::from_bits(x as u32) + f32::from_bits(y as u32)).to_bits()),
        Float::F64 => (f64::from_bits(x) + f64::from_bits(y)).to_bits(),
        Float::F16 => half(fp::F16, 0),
        Float::Bf16 => half(fp::BF16, 0),
        Float::F16x2 => half(fp::F16, 0) | half(fp::F16, 16),
        Float::Bf16x2 => half(fp::BF16, 0) | half(fp::BF16, 16),
    }
}

fn pick_float(f: Float, x: u64, y: u64, second: impl Fn(f64, f64) -> bool) -> u64 {
    let value = |v: u64| match f {
        Float::F64 => f64::from_bits(v),
        Float::F16 | Float::F16x2 => fp::F16.value(v as u32 & 0xFFFF),
        Float::Bf16 | Float::Bf16x2 => fp::BF16.value(v as u32 & 0xFFFF),
        Float::F32 => f32::from_bits(v as u32).into(),
    };
    if second(value(x), value(y)) { y } else { x }
}

/// A window's address to a generic one, or back.
pub(super) fn cvta(w: &mut Warp, m: u32, space: Space, to: bool, wide: bool, d: Row, a: Row) -> Step<()> {
    let base = match space {
        Space::Shared | Space::Cluster => window::SHARED,
        Space::Local => window::LOCAL,
        Space::Param => window::PARAM,
        Space::Generic | Space::Global | Space::Const => 0,
    };
    if !wide {
        let lane = m.trailing_zeros();
        return Err(Stop::misuse(lane, "generic addresses have 64 bits"));
    }
    let x = *w.r64(a);
    let out = x.map(|x| if to { x.wrapping_sub(base) } else { x.wrapping_add(base) });
    w.set64(d, m, &out);
    Ok(())
}

pub(super) fn is_space(w: &mut Warp, m: u32, space: Space, d: u16, a: &Addr) -> Step<()> {
    let at = addresses(w, a);
    let want = match space {
        Space::Global => "global",
        Space::Shared | Space::Cluster => "shared",
        Space::Local => "local",
        Space::Param => "parameter",
        Space::Const | Space::Generic => "constant",
    };
    let v = bits_of(|i| space_name(at[i]) == want);
    w.set_pred(d, m, v);
    Ok(())
}

/// `mapa`: the address of `a` in the block of that rank.
pub(super) fn mapa(
    w: &mut Warp,
    x: &Context<'_>,
    m: u32,
    wide: bool,
    generic: bool,
    d: Row,
    a: &Addr,
    rank: Row,
) -> Step<()> {
    let (at, ranks) = (addresses(w, a), *w.r32(rank));
    for i in lanes(m) {
        if ranks[i] >= x.plan.blocks {
            let what = format!("block {} of a cluster of {}", ranks[i], x.plan.blocks);
            return Err(Stop::misuse(i as u32, what));
        }
    }
    let base = if generic { window::SHARED } else { 0 };
    let out: [u64; LANES] = std::array::from_fn(|i| {
        let offset = at[i].wrapping_sub(base) & ((1 << window::BLOCK_BITS) - 1);
        base + (u64::from(ranks[i].wrapping_add(1) & 0xFF) << window::BLOCK_BITS | offset)
    });
    if wide {
        w.set64(d, m, &out);
    } else {
        w.set32(d, m, &out.map(|v| v as u32));
    }
    Ok(())
}

/// `getctarank`: the block an address of shared memory belongs to.
pub(super) fn rank_of(w: &mut Warp, m: u32, generic: bool, d: Row, a: &Addr) {
    let (at, own) = (addresses(w, a), w.cta as u32);
    let base = if generic { window::SHARED } else { 0 };
    let out = at.map(|v| match (v.wrapping_sub(base) >> window::BLOCK_BITS) as u32 {
        0 => own,
        n => n - 1,
    });
    w.set32(d, m, &out);
}
