//! What sm_90 added: mbarriers, bulk copies and the TMA, products of warpgroups, clusters.

use super::{Dec, num};
use crate::ir::{Bulk, Elem, Mbar, MbarOp, Op, OperandA, Reduce, Row, Space, Way, Wgmma};
use crate::parse::{Operand, Parsed, type_bits};

impl Dec<'_> {
    pub(super) fn hopper(&mut self) -> Parsed<Op> {
        match self.name.as_str() {
            "mbarrier" => self.mbarrier(),
            "wgmma" => self.wgmma(),
            "setmaxnreg" => {
                // Registers are never short here.
                self.must(&[("inc", ()), ("dec", ())])?;
                self.must(&[("sync", ())])?;
                self.must(&[("aligned", ())])?;
                self.must(&[("u32", ())])?;
                self.count(1)?;
                match self.operand(0)? {
                    Operand::Int(n) if (24..=256).contains(&n) && n % 8 == 0 => Ok(Op::Nop),
                    _ => self.wrong("a multiple of 8 from 24 to 256 expected"),
                }
            }
            _ => {
                let generic = self.space() == Space::Generic;
                let t = self.ty()?;
                let bits = type_bits(&t).unwrap_or(32);
                let map = self.name == "mapa";
                self.count(if map { 3 } else { 2 })?;
                let wide = bits == 64;
                let d = self.dst(0, if map { bits } else { 32 })?;
                let a = self.operand(1)?;
                let a = self.base(&a, 0)?;
                Ok(if map {
                    Op::Mapa { wide, generic, d, a, rank: self.src(2, 32)? }
                } else {
                    Op::GetRank { generic, d, a }
                })
            }
        }
    }

    fn mbarrier(&mut self) -> Parsed<Op> {
        let kind = self.must(&[
            ("init", 0u8),
            ("inval", 1),
            ("arrive_drop", 2),
            ("arrive", 3),
            ("expect_tx", 4),
            ("complete_tx", 5),
            ("try_wait", 6),
            ("test_wait", 7),
        ])?;
        // `arrive.expect_tx` names both.
        let expect = kind == 3 && self.take("expect_tx");
        let parity = self.take("parity");
        self.one_of(&[("acquire", ()), ("release", ()), ("relaxed", ())]);
        self.scope();
        let space = self.space();
        self.must(&[("b64", ())])?;
        let op = |d: &mut Self, op, at| -> Parsed<Op> { Ok(Op::Mbar(Box::new(Mbar { op, space, addr: d.addr(at)? }))) };
        match kind {
            0 => {
                self.count(2)?;
                let count = self.src(1, 32)?;
                op(self, MbarOp::Init { count }, 0)
            }
            1 => {
                self.count(1)?;
                op(self, MbarOp::Inval, 0)
            }
            4 | 5 => {
                self.count(2)?;
                let bytes = self.src(1, 32)?;
                op(self, if kind == 4 { MbarOp::Expect { bytes } } else { MbarOp::Complete { bytes } }, 0)
            }
            6 | 7 => {
                // A time to give up after changes nothing: a wait here ends when its phase does.
                if kind == 6 && self.operands.len() == 4 {
                    self.operands.pop();
                }
                self.count(3)?;
                let operand = self.operand(0)?;
                let p = self.pred_dst(&operand)?;
                let phase = self.src(2, if parity { 32 } else { 64 })?;
                op(self, MbarOp::Wait { p, phase, parity, test: kind == 7 }, 1)
            }
            _ => self.arrive(kind == 2, expect, space),
        }
    }

    /// `arrive [a]`, `arrive _, [a], n`, `arrive state, [a], n`.
    fn arrive(&mut self, drop: bool, expect: bool, space: Space) -> Parsed<Op> {
        let first = usize::from(!matches!(self.operand(0)?, Operand::Mem(..)));
        let state = match self.operand(0)? {
            Operand::Name(..) => Some(self.dst(0, 64)?),
            _ => None,
        };
        let n = match self.operands.len() - first {
            1 => None,
            2 => Some(self.src(first + 1, 32)?),
            _ => return self.unknown(),
        };
        let (count, expect) = if expect { (None, n) } else { (n, None) };
        let op = MbarOp::Arrive { count, expect, drop, state };
        Ok(Op::Mbar(Box::new(Mbar { op, space, addr: self.addr(first)? })))
    }

    pub(super) fn bulk(&mut self) -> Parsed<Op> {
        let reduce = self.take("reduce");
        self.take("async");
        self.take("bulk");
        if self.take("commit_group") {
            self.count(0)?;
            return Ok(Op::BulkCommit);
        }
        if self.take("wait_group") {
            self.count(1)?;
            let Operand::Int(n) = self.operand(0)? else { return self.wrong("a number expected") };
            // Here a copy reads and writes at once.
            self.take("read");
            return Ok(Op::BulkWait { left: n as u32 });
        }
        if self.take("prefetch") {
            self.mods.iter_mut().for_each(|m| *m = None);
            return Ok(Op::Nop);
        }
        let tensor = self.take("tensor");
        let dims = self.one_of(&[("1d", 1usize), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]).unwrap_or(0);
        if tensor != (dims > 0) {
            return self.unknown();
        }
        self.take("tile");
        let completes = self.take("mbarrier::complete_tx::bytes");
        let group = self.take("bulk_group");
        let multicast = self.take("multicast::cluster");
        self.cache_hints();
        let spaces: Vec<String> =
            self.opcode.split('.').filter(|m| *m == "global" || m.starts_with("shared")).map(String::from).collect();
        let [to, from] = spaces.as_slice() else { return self.unknown() };
        let (to, from) = (to.clone(), from.clone());
        for space in [&to, &from] {
            self.take(space);
        }
        match (to.as_str(), from.as_str(), completes, group) {
            ("shared::cluster" | "shared::cta", "global", true, false) if !reduce => self.bulk_in(dims, multicast),
            ("global", "shared::cta", false, true) => self.bulk_out(dims, reduce),
            ("shared::cluster", "shared::cta", true, false) if !reduce && dims == 0 => {
                self.count(4)?;
                let (to, from, mbar) = (self.addr(0)?, self.addr(1)?, self.addr(3)?);
                let bytes = Some(self.src(2, 32)?);
                // The one that is written stands as `shared`, the one that is read as `global`.
                Ok(Op::Bulk(Box::new(Bulk {
                    way: Way::Across { mbar },
                    shared: to,
                    global: from,
                    coords: Box::new([]),
                    bytes,
                })))
            }
            _ => self.unknown(),
        }
    }

    /// `[dst], [map, {c0, c1}], [mbar]` or `[dst], [src], bytes, [mbar]`, and the mask of a multicast.
    fn bulk_in(&mut self, dims: usize, multicast: bool) -> Parsed<Op> {
        let plain = usize::from(dims == 0);
        self.count(3 + plain + usize::from(multicast))?;
        let shared = self.addr(0)?;
        let mbar = self.addr(2 + plain)?;
        let mask = if multicast { Some(self.src(3 + plain, 16)?) } else { None };
        let (global, coords, bytes) = self.bulk_source(1, dims)?;
        Ok(Op::Bulk(Box::new(Bulk { way: Way::In { mbar, mask }, shared, global, coords, bytes })))
    }

    /// `[map, {c0, c1}], [src]` or `[dst], [src], bytes`.
    fn bulk_out(&mut self, dims: usize, reduce: bool) -> Parsed<Op> {
        self.count(2 + usize::from(dims == 0))?;
        let reduce = if reduce {
            let op = self.must(&[
                ("add", Reduce::Add),
                ("min", Reduce::Min),
                ("max", Reduce::Max),
                ("and", Reduce::And),
                ("or", Reduce::Or),
                ("xor", Reduce::Xor),
                ("inc", Reduce::Inc),
                ("dec", Reduce::Dec),
            ])?;
            self.take("noftz");
            // A tensor's map says what its elements are.
            let t = if dims == 0 { Some(self.ty()?) } else { None };
            Some((op, t.and_then(|t| num(&t))))
        } else {
            None
        };
        let (global, coords, bytes) = self.bulk_source(0, dims)?;
        let shared = self.addr(1)?;
        Ok(Op::Bulk(Box::new(Bulk { way: Way::Out { reduce }, shared, global, coords, bytes })))
    }

    fn bulk_source(&mut self, i: usize, dims: usize) -> Parsed<(crate::ir::Addr, Box<[Row]>, Option<Row>)> {
        if dims == 0 {
            return Ok((self.addr(i)?, Box::new([]), Some(self.src(2, 32)?)));
        }
        let Operand::Mem(base, offset, more) = self.operand(i)? else { return self.wrong("a tensor map expected") };
        let coords = match more.as_slice() {
            [Operand::Vector(list)] if list.len() == dims => list.clone(),
            [one] if dims == 1 => vec![one.clone()],
            _ => return self.wrong(format!("{dims} coordinates expected")),
        };
        let coords = coords.iter().map(|c| self.source(c, 32)).collect::<Parsed<_>>()?;
        Ok((self.base(&base, offset)?, coords, None))
    }

    fn wgmma(&mut self) -> Parsed<Op> {
        let kind = self.must(&[("fence", 0u8), ("commit_group", 1), ("wait_group", 2), ("mma_async", 3)])?;
        self.must(&[("sync", ())])?;
        self.must(&[("aligned", ())])?;
        match kind {
            0 => return Ok(Op::WgFence),
            1 => return Ok(Op::WgCommit),
            2 => {
                let Operand::Int(n) = self.operand(0)? else { return self.wrong("a number expected") };
                return Ok(Op::WgWait { left: n as u32 });
            }
            _ => {}
        }
        let shape = self.mods.iter_mut().find(|m| m.as_deref().is_some_and(|m| m.starts_with("m64n")));
        let Some(shape) = shape.and_then(Option::take) else { return self.unknown() };
        let parts = shape["m64n".len()..].split_once('k').map(|(n, k)| (n.parse::<u32>(), k.parse::<u32>()));
        let Some((Ok(n), Ok(k))) = parts else { return self.unknown() };
        let [d, a, b] = [self.ty()?, self.ty()?, self.ty()?];
        let elem = match (a.as_str(), b.as_str(), k) {
            ("bf16", "bf16", 16) => Elem::Bf16,
            ("f16", "f16", 16) => Elem::F16,
            ("tf32", "tf32", 8) => Elem::Tf32,
            _ => return self.unknown(),
        };
        if d != "f32" || n == 0 || n % 8 != 0 || n > 256 {
            return self.unknown();
        }
        self.wgmma_operands(elem, n, k)
    }

    /// `{d ...}, a, b, scale-d, negate-a, negate-b [, trans-a] [, trans-b]`
    fn wgmma_operands(&mut self, elem: Elem, n: u32, k: u32) -> Parsed<Op> {
        let d = self.registers(0, n as usize / 2, true)?;
        let a = match self.operand(1)? {
            Operand::Vector(_) => OperandA::Registers(self.registers(1, 4, false)?),
            _ => OperandA::Shared(self.src(1, 64)?),
        };
        let b = self.src(2, 64)?;
        let (mut add, mut negate, mut trans) = (crate::ir::PSrc::ALWAYS, [false; 2], [false; 2]);
        if self.operands.len() > 3 {
            add = self.pred_src(3)?;
            negate = [self.sign(4)?, self.sign(5)?];
            let a_in_registers = matches!(a, OperandA::Registers(_));
            trans = match (elem, a_in_registers) {
                (Elem::Tf32, _) => trans,
                (_, true) => [false, self.sign_bit(6)?],
                (_, false) => [self.sign_bit(6)?, self.sign_bit(7)?],
            };
            let more = if elem == Elem::Tf32 { 0 } else { 2 - usize::from(a_in_registers) };
            self.count(6 + more)?;
        }
        Ok(Op::Wgmma(Box::new(Wgmma { elem, n, k, d, a, b, add, negate, trans })))
    }

    /// 1 or -1.
    fn sign(&self, i: usize) -> Parsed<bool> {
        match self.operand(i)? {
            Operand::Int(1) => Ok(false),
            Operand::Int(u64::MAX) => Ok(true),
            _ => self.wrong("1 or -1 expected"),
        }
    }

    fn sign_bit(&self, i: usize) -> Parsed<bool> {
        match self.operand(i)? {
            Operand::Int(n @ (0 | 1)) => Ok(n == 1),
            _ => self.wrong("0 or 1 expected"),
        }
    }

    fn registers(&mut self, i: usize, n: usize, write: bool) -> Parsed<Box<[Row]>> {
        match self.operand(i)? {
            Operand::Vector(list) if list.len() == n => {
                list.iter().map(|o| if write { self.result(o, 32) } else { self.source(o, 32) }).collect()
            }
            _ => self.wrong(format!("{n} registers expected")),
        }
    }
}
