//! What the lanes of a warp do together: shuffles, votes, matches, reductions.
//!
//! Every lane of the member mask must come to the instruction before any goes on. Lanes that come early wait; a lane of
//! the mask that has ended, or a lane that comes and is not in its own mask, is a fault.

use super::alu::bits_of;
use super::barrier::Wait;
use super::warp::{LANES, Warp};
use super::{Context, watch};
use crate::fault::{Step, Stop};
use crate::ir::{Redux, Row, ShflMode, Vote, WarpOp, Width};

/// Lanes `m` come to `op`. True if they go on.
pub(super) fn run(w: &mut Warp, x: &mut Context<'_>, op: &WarpOp, mask: Row, m: u32, pc: u32) -> Step<bool> {
    let masks = *w.r32(mask);
    if m == u32::MAX && masks == [u32::MAX; LANES] {
        perform(w, op, m);
        met(w, x, m);
        return Ok(true);
    }
    let mut left = m;
    while left != 0 {
        let members = masks[left.trailing_zeros() as usize];
        let group = (0..LANES).fold(0, |g, i| g | (left >> i & u32::from(masks[i] == members)) << i);
        left &= !group;
        come(w, x, op, members, group, pc)?;
    }
    Ok(w.runnable())
}

/// Demands all lanes, for an instruction that a warp runs as one.
pub(super) fn together(m: u32, what: &str) -> Step<()> {
    if m == u32::MAX {
        return Ok(());
    }
    Err(Stop::misuse(m.trailing_zeros(), format!("{what} by lanes {m:#010x} only; all 32 must run it together")))
}

/// What lanes do together also orders their accesses.
fn met(w: &Warp, x: &mut Context<'_>, m: u32) {
    if let Some(r) = &mut x.races {
        r.clocks.meet(watch::index(&x.plan, w), m, w.live);
    }
}

fn come(w: &mut Warp, x: &mut Context<'_>, op: &WarpOp, members: u32, group: u32, pc: u32) -> Step<()> {
    let lane = group.trailing_zeros();
    if group & !members != 0 {
        let lane = (group & !members).trailing_zeros();
        return Err(Stop::misuse(lane, format!("the lane is not in its own member mask {members:#010x}")));
    }
    if members & !w.live != 0 {
        let gone = members & !w.live;
        return Err(Stop::misuse(
            lane,
            format!("the member mask {members:#010x} names lanes that have ended ({gone:#010x})"),
        ));
    }
    // A mere barrier joins lanes that stand at different ones; the others exchange values and need one place.
    let place = if *op == WarpOp::Sync { None } else { Some(pc) };
    let same = |wait: &Wait| matches!(wait, Wait::Lanes { members: n, pc: p } if *n == members && *p == place);
    let there = w.waits.iter().filter(|(_, wait)| same(wait)).fold(group, |g, (lanes, _)| g | lanes);
    if there != members {
        w.block(group, pc + 1, Wait::Lanes { members, pc: place });
        return Ok(());
    }
    perform(w, op, members);
    met(w, x, members);
    w.unblock(same);
    Ok(())
}

fn perform(w: &mut Warp, op: &WarpOp, m: u32) {
    match *op {
        WarpOp::Sync => {}
        WarpOp::Shfl { mode, d, p, a, b, c } => shuffle(w, m, mode, d, p, a, b, c),
        WarpOp::VotePred { mode, d, a } => {
            let v = w.pred(a) & m;
            let r = match mode {
                Vote::All => v == m,
                Vote::Any => v != 0,
                _ => v == m || v == 0,
            };
            w.set_pred(d, m, if r { u32::MAX } else { 0 });
        }
        WarpOp::Ballot { d, a } => {
            let v = w.pred(a) & m;
            w.set32(d, m, &[v; LANES]);
        }
        WarpOp::MatchAny { w: width, d, a } => {
            let v = values(w, width, a);
            let out = std::array::from_fn(|i| bits_of(|j| v[j] == v[i]) & m);
            w.set32(d, m, &out);
        }
        WarpOp::MatchAll { w: width, d, p, a } => {
            let v = values(w, width, a);
            let first = v[m.trailing_zeros() as usize];
            let all = (0..LANES).all(|i| m >> i & 1 == 0 || v[i] == first);
            w.set32(d, m, &[if all { m } else { 0 }; LANES]);
            if let Some(p) = p {
                w.set_pred(p, m, if all { u32::MAX } else { 0 });
            }
        }
        WarpOp::Redux { op, d, a } => {
            let v = *w.r32(a);
            let lanes = (0..LANES).filter(|i| m >> i & 1 == 1).map(|i| v[i]);
            let r = lanes.reduce(|x, y| match op {
                Redux::Add => x.wrapping_add(y),
                Redux::MinU => x.min(y),
                Redux::MaxU => x.max(y),
                Redux::MinS => (x as i32).min(y as i32) as u32,
                Redux::MaxS => (x as i32).max(y as i32) as u32,
                Redux::And => x & y,
                Redux::Or => x | y,
                Redux::Xor => x ^ y,
            });
            w.set32(d, m, &[r.unwrap_or(0); LANES]);
        }
        WarpOp::Elect { d, p } => {
            let first = m.trailing_zeros();
            if let Some(d) = d {
                w.set32(d, m, &[first; LANES]);
            }
            w.set_pred(p, m, 1 << first);
        }
    }
}

fn values(w: &Warp, width: Width, a: Row) -> [u64; LANES] {
    if width == Width::W64 { *w.r64(a) } else { w.r32(a).map(u64::from) }
}

/// `c` holds the segment's mask in bits 8 to 12 and the bound in bits 0 to 4.
fn shuffle(w: &mut Warp, m: u32, mode: ShflMode, d: Option<Row>, p: Option<u16>, a: Row, b: Row, c: Row) {
    let (from, by, bounds) = (*w.r32(a), *w.r32(b), *w.r32(c));
    let (mut out, mut valid) = ([0u32; LANES], 0);
    for lane in 0..LANES as u32 {
        let (by, bounds) = (by[lane as usize] & 31, bounds[lane as usize]);
        let (bound, segment) = (bounds & 31, bounds >> 8 & 31);
        let max = lane & segment | bound & !segment;
        let min = lane & segment;
        let (j, ok) = match mode {
            ShflMode::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= max as i32),
            ShflMode::Down => (lane + by, lane + by <= max),
            ShflMode::Bfly => (lane ^ by, lane ^ by <= max),
            ShflMode::Idx => (min | by & !segment, min | by & !segment <= max),
        };
        let j = if ok { j } else { lane };
        out[lane as usize] = from[j as usize & 31];
        valid |= u32::from(ok) << lane;
    }
    if let Some(d) = d {
        w.set32(d, m, &out);
    }
    if let Some(p) = p {
        w.set_pred(p, m, valid);
    }
}
