//! Where addresses lie, and the bytes of a warp's lanes from there and to there.
//!
//! Nearly always all lanes lie in one allocation, or in their own block's shared memory, and no access is at fault: this
//! is looked at first. Else lanes go through memory in runs: the first lane's address says where it lies, and all lanes
//! that lie there too are served from it; the others make the next run. That way also tells what a fault is.

use super::warp::{LANES, Warp};
use super::watch::{self, Kind};
use super::{Context, Cta};
use crate::fault::{FaultKind, Step, Stop};
use crate::ir::{Addr, Space};
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

/// What all lanes of `m` access, where that is one allocation or the shared memory of their own block and every access
/// is aligned and wholly inside.
#[inline(always)]
pub(super) fn one_region<'a>(
    w: &Warp,
    ctas: &'a mut [Cta],
    x: &'a mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    bytes: usize,
) -> Option<Region<'a>> {
    let first = at[m.trailing_zeros() as usize & 31];
    let (mut bits, mut low, mut high) = (0, first, first);
    for i in 0..LANES {
        let a = if m >> i & 1 == 1 { at[i] } else { first };
        bits |= a;
        low = low.min(a);
        high = high.max(a);
    }
    let home = match space {
        Space::Shared | Space::Cluster => Home::Shared(w.cta),
        Space::Global if first < window::DATA => Home::Global,
        Space::Generic if first < window::SHARED => Home::Global,
        _ => return None,
    };
    let r = region(ctas, x, home, first)?;
    let end = high.checked_sub(r.start)?.checked_add(bytes as u64)?;
    (bits % bytes as u64 == 0 && low >= r.start && end <= r.data.len() as u64).then_some(r)
}

/// The one address all lanes of `m` have.
#[inline(always)]
fn one_address(at: &[u64; LANES], m: u32) -> Option<u64> {
    let first = at[m.trailing_zeros() as usize & 31];
    let differ = (0..LANES).fold(0, |d, i| d | if m >> i & 1 == 1 { at[i] ^ first } else { 0 });
    (differ == 0).then_some(first)
}

/// Whether lane i's address is the first lane's and i times `bytes`.
#[inline(always)]
fn in_line(at: &[u64; LANES], m: u32, bytes: usize) -> bool {
    let mut differ = 0;
    for i in 0..LANES {
        differ |= at[i] ^ at[0].wrapping_add((i * bytes) as u64);
    }
    m == u32::MAX && differ == 0
}

/// The bits of `bytes` at an offset that is a multiple of them, within their word.
#[inline(always)]
fn bits_at(offset: usize, bytes: usize) -> u64 {
    (u64::MAX >> (64 - bytes)) << (offset % 64)
}

/// Reads the lanes of `m` where nothing is at fault; else false, and lanes may have been read.
#[inline(always)]
fn gather_one<const N: usize>(
    w: &Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    out: &mut [[u8; N]; LANES],
) -> bool {
    if let (Space::Param | Space::Const, Some(address)) = (space, one_address(at, m)) {
        let Some((home, address)) = place(space, address, w.cta, ctas.len()) else { return false };
        let Ok(bytes) = constant(w, x, home, address, N, 0, "") else { return false };
        *out = [bytes.try_into().expect("N bytes"); LANES];
        return true;
    }
    let Some(r) = one_region(w, ctas, x, space, at, m, N) else { return false };
    let written = r.written.as_deref().unwrap_or(&[]);
    if in_line(at, m, N) {
        let offset = (at[0] - r.start) as usize;
        if !is_set(written, offset, LANES * N) {
            return false;
        }
        out.as_flattened_mut().copy_from_slice(&r.data[offset..offset + LANES * N]);
        return true;
    }
    let mut known = true;
    for i in 0..LANES {
        if m >> i & 1 == 1 {
            let offset = (at[i] - r.start) as usize;
            let bits = bits_at(offset, N);
            known &= written[offset / 64] & bits == bits;
            out[i].copy_from_slice(&r.data[offset..offset + N]);
        }
    }
    known
}

/// As `gather_one`, to memory. What it does not do it has not begun.
#[inline(always)]
fn scatter_one<const N: usize>(
    w: &Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    from: &[[u8; N]; LANES],
) -> bool {
    let Some(mut r) = one_region(w, ctas, x, space, at, m, N) else { return false };
    let Some(written) = r.written.as_deref_mut() else { return false };
    if in_line(at, m, N) {
        let offset = (at[0] - r.start) as usize;
        r.data[offset..offset + LANES * N].copy_from_slice(from.as_flattened());
        set(written, offset, LANES * N, true);
        return true;
    }
    for i in 0..LANES {
        if m >> i & 1 == 1 {
            let offset = (at[i] - r.start) as usize;
            written[offset / 64] |= bits_at(offset, N);
            r.data[offset..offset + N].copy_from_slice(&from[i]);
        }
    }
    true
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
    let mut out = [[0u8; N]; LANES];
    if !gather_one(w, ctas, x, space, at, m, &mut out) {
        gather_runs(w, ctas, x, space, at, m, kind, &mut out)?;
    }
    watch::lanes(w, x, space, at, m, N, kind, |_, _| false)?;
    Ok(out)
}

#[inline(never)]
fn gather_runs<const N: usize>(
    w: &Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    kind: Kind,
    out: &mut [[u8; N]; LANES],
) -> Step<()> {
    let what = kind.what;
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
    Ok(())
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
    if !scatter_one(w, ctas, x, space, at, m, from) {
        scatter_runs(w, ctas, x, space, at, m, from, kind.what)?;
    }
    watch::lanes(w, x, space, at, m, N, kind, |i, j| from[i] == from[j])
}

#[inline(never)]
fn scatter_runs<const N: usize>(
    w: &mut Warp,
    ctas: &mut [Cta],
    x: &mut Context<'_>,
    space: Space,
    at: &[u64; LANES],
    m: u32,
    from: &[[u8; N]; LANES],
    what: &'static str,
) -> Step<()> {
    let blocks = ctas.len();
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
    Ok(())
}

pub(super) fn lanes(m: u32) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |i| m >> i & 1 == 1)
}
