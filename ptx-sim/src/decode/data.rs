//! Moves, conversions, loads, stores and atomics.

use super::{Dec, num, signed};
use crate::fp::Round;
use crate::ir::{Access, Addr, Atom, AtomOp, CpAsync, Cvt, Fill, Float, Num, Op, Order, Slot, Space, Width};
use crate::parse::{Operand, Parsed, Symbol, type_bits};

impl Dec<'_> {
    pub(super) fn data(&mut self) -> Parsed<Op> {
        match self.name.as_str() {
            "mov" => self.mov(),
            "cvt" => self.cvt(),
            "cvta" => self.cvta(),
            "isspacep" => {
                let space = self.space();
                self.count(2)?;
                let operand = self.operand(0)?;
                let Some(d) = self.pred_dst(&operand)? else { return self.unknown() };
                let a = self.operand(1)?;
                Ok(Op::IsSpace { space, d, a: self.base(&a, 0)? })
            }
            "ld" | "ldu" | "st" => self.load_store(),
            "atom" | "red" => self.atom(),
            // Hints: what they promise to the caches changes no value here.
            _ => self.hint(),
        }
    }

    fn hint(&mut self) -> Parsed<Op> {
        self.space();
        self.one_of(&[("L1", ()), ("L2", ())]);
        self.cache_hints();
        if self.name == "createpolicy" {
            self.one_of(&[("fractional", ()), ("range", ())]);
            self.ty()?;
            let d = self.dst(0, 64)?;
            let a = self.body.constant(Width::W64, Fill::Const(0));
            return Ok(Op::Mov { w: Width::W64, d, a });
        }
        if self.name == "discard" {
            return self.unknown();
        }
        self.take("tensormap");
        Ok(Op::Nop)
    }

    fn mov(&mut self) -> Parsed<Op> {
        let t = self.ty()?;
        self.count(2)?;
        let (to, from) = (self.operand(0)?, self.operand(1)?);
        if t == "pred" {
            let Some(d) = self.pred_dst(&to)? else { return self.unknown() };
            return Ok(Op::MovPred { d, a: self.pred_src(1)? });
        }
        let bits = type_bits(&t).unwrap_or(32);
        let part = |n: usize| bits / n.max(1) as u32;
        match (&to, &from) {
            (Operand::Vector(list), _) => {
                let part = part(list.len());
                let d = list
                    .iter()
                    .map(|o| if *o == Operand::Sink { Ok(None) } else { self.result(o, part).map(Some) })
                    .collect::<Parsed<_>>()?;
                Ok(Op::Split { bits: part, d, a: self.source(&from, bits)? })
            }
            (_, Operand::Vector(list)) => {
                let part = part(list.len());
                let a = list.iter().map(|o| self.source(o, part)).collect::<Parsed<_>>()?;
                Ok(Op::Join { bits: part, d: self.result(&to, bits)?, a })
            }
            (_, Operand::Name(n, 0))
                if matches!(n.as_str(), "%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo") =>
            {
                Ok(Op::Clock { w: Width::of(bits), d: self.result(&to, bits)? })
            }
            _ => Ok(Op::Mov { w: Width::of(bits), d: self.result(&to, bits)?, a: self.source(&from, bits)? }),
        }
    }

    fn cvt(&mut self) -> Parsed<Op> {
        let whole =
            self.one_of(&[("rni", Round::Near), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)]);
        let away = self.take("rna");
        let round = self.round();
        let (ftz, sat, satfinite, relu) =
            (self.take("ftz"), self.take("sat"), self.take("satfinite"), self.take("relu"));
        let narrow = self.one_of(&[("e4m3x2", Num::E4m3x2), ("e5m2x2", Num::E5m2x2)]);
        let (to, from) = match narrow {
            Some(n) => {
                let t = self.ty()?;
                let other = num(&t).unwrap_or(n);
                // The order of the two types in the opcode tells which is the result.
                let first = self
                    .opcode
                    .split('.')
                    .find(|m| m.starts_with("e4m3") || type_bits(m).is_some() || m.starts_with("e5m2"));
                if first.is_some_and(|m| m.ends_with("x2") && m.starts_with('e')) { (n, other) } else { (other, n) }
            }
            None => {
                let (to, from) = (self.ty()?, self.ty()?);
                match (num(&to), num(&from)) {
                    (Some(to), Some(from)) => (to, from),
                    _ => return self.unknown(),
                }
            }
        };
        let pair = self.operands.len() == 3;
        let bits_of = |n: Num| match n {
            Num::U(b) | Num::S(b) => u32::from(b),
            Num::F(f) => f.bits(),
            Num::Tf32 => 32,
            Num::E4m3x2 | Num::E5m2x2 => 16,
        };
        self.cvt_known(to, from, pair, satfinite)?;
        self.count(2 + usize::from(pair))?;
        // A register may be wider than the integer in it.
        let operand = self.operand(0)?;
        let (d, w) = match to {
            Num::U(bits) | Num::S(bits) => {
                let (d, have) = self.any_reg(&operand)?;
                if have < u32::from(bits) {
                    return self.wrong(format!("`{}`: the result has {have} bits", self.opcode));
                }
                (d, Width::of(have))
            }
            _ => (self.result(&operand, bits_of(to))?, Width::of(bits_of(to))),
        };
        let (a, aw) = match (from, self.operand(1)?) {
            (Num::U(bits) | Num::S(bits), o @ Operand::Name(..)) if self.is_reg(&o) => {
                let (a, have) = self.any_reg(&o)?;
                if have < u32::from(bits) {
                    return self.wrong(format!("`{}`: the source has {have} bits", self.opcode));
                }
                (a, Width::of(have))
            }
            (_, o) => (self.source(&o, bits_of(from))?, Width::of(bits_of(from))),
        };
        let b = if pair { Some(self.src(2, bits_of(from))?) } else { None };
        let round = if away { Round::Away } else { whole.or(round).unwrap_or(Round::Near) };
        let (whole, sat) = (whole.is_some(), sat || satfinite);
        Ok(Op::Cvt(Box::new(Cvt { to, from, round, whole, ftz, sat, relu, w, aw, d, a, b })))
    }

    fn is_reg(&self, o: &Operand) -> bool {
        matches!(o, Operand::Name(n, 0) if matches!(self.body.find(n), Some(Symbol::Reg(..))))
    }

    fn cvt_known(&self, to: Num, from: Num, pair: bool, satfinite: bool) -> Parsed<()> {
        let known = match (to, from) {
            (Num::F(Float::Bf16x2 | Float::F16x2), Num::F(Float::F32)) => pair,
            (Num::E4m3x2 | Num::E5m2x2, Num::F(Float::F32)) => pair && satfinite,
            (Num::F(Float::F16x2), Num::E4m3x2 | Num::E5m2x2) => !pair,
            (Num::E4m3x2 | Num::E5m2x2, Num::F(Float::F16x2)) => !pair && satfinite,
            (Num::Tf32, Num::F(Float::F32)) => !pair,
            (Num::Tf32 | Num::E4m3x2 | Num::E5m2x2, _) | (_, Num::Tf32 | Num::E4m3x2 | Num::E5m2x2) => false,
            (Num::F(Float::F16x2 | Float::Bf16x2), _) | (_, Num::F(Float::F16x2 | Float::Bf16x2)) => false,
            _ => !pair,
        };
        if known { Ok(()) } else { self.unknown() }
    }

    fn cvta(&mut self) -> Parsed<Op> {
        let to = self.take("to");
        let space = self.space();
        let t = self.ty()?;
        let bits = type_bits(&t).unwrap_or(64);
        self.count(2)?;
        let (d, a) = (self.dst(0, bits)?, self.src(1, bits)?);
        Ok(Op::Cvta { space, to, wide: bits == 64, d, a })
    }

    fn load_store(&mut self) -> Parsed<Op> {
        let store = self.name == "st";
        let order = self.order();
        let space = self.space();
        self.cache_hints();
        let vector = self.one_of(&[("v2", 2usize), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let t = self.ty()?;
        let bits = type_bits(&t).unwrap_or(32);
        if bits > 64 || bits == 1 || bits as usize * vector > 256 {
            return self.unknown();
        }
        self.count(2)?;
        let (value, at) = if store { (1, 0) } else { (0, 1) };
        let list = match self.operand(value)? {
            Operand::Vector(list) if list.len() == vector => list,
            one if vector == 1 => vec![one],
            _ => return self.wrong(format!("{vector} registers expected")),
        };
        let slots = list.iter().map(|o| self.slot(o, bits, store)).collect::<Parsed<_>>()?;
        let addr = self.space_addr(at, space)?;
        let access = Access { space, bytes: bits / 8, signed: signed(&t) == Some(true), order, addr, slots };
        Ok(if store { Op::St(Box::new(access)) } else { Op::Ld(Box::new(access)) })
    }

    fn slot(&mut self, o: &Operand, bits: u32, store: bool) -> Parsed<Slot> {
        if *o == Operand::Sink && !store {
            return Ok(Slot { row: None, bits });
        }
        if self.is_reg(o) {
            let (row, have) = self.any_reg(o)?;
            if have < bits && !(have <= 16 && bits <= 16) {
                return self.wrong(format!("`{}`: a register of {have} bits", self.opcode));
            }
            return Ok(Slot { row: Some(row), bits: have });
        }
        if !store {
            return self.wrong("a register expected");
        }
        Ok(Slot { row: Some(self.source(o, bits.max(16))?), bits: bits.max(16) })
    }

    /// An address whose names are those of `space`; module data has one address in every space.
    fn space_addr(&mut self, i: usize, space: Space) -> Parsed<Addr> {
        let addr = self.addr(i)?;
        if let (Operand::Mem(base, ..), Space::Generic) = (self.operand(i)?, space)
            && let Operand::Name(name, _) = &*base
            && matches!(
                self.body.find(name),
                Some(Symbol::Shared(_) | Symbol::Local(_) | Symbol::Param(_) | Symbol::Dynamic)
            )
        {
            return self.wrong(format!("`{name}` has no generic address"));
        }
        Ok(addr)
    }

    fn atom(&mut self) -> Parsed<Op> {
        let order = match self.order() {
            Order::Weak => Order::Relaxed,
            order => order,
        };
        let space = self.space();
        let kind = self.must(&[
            ("add", 0u8),
            ("and", 1),
            ("or", 2),
            ("xor", 3),
            ("min", 4),
            ("max", 5),
            ("inc", 6),
            ("dec", 7),
            ("exch", 8),
            ("cas", 9),
        ])?;
        self.take("noftz");
        let vector = self.one_of(&[("v2", 2usize), ("v4", 4)]).unwrap_or(1);
        self.cache_hints();
        let t = self.ty()?;
        let bits = type_bits(&t).unwrap_or(32);
        let is_signed = signed(&t);
        let float = super::float(&t);
        let op = match (kind, is_signed, float) {
            (0, None, Some(f)) => AtomOp::AddFloat(f),
            (0, Some(_), _) => AtomOp::AddInt,
            (1, ..) => AtomOp::And,
            (2, ..) => AtomOp::Or,
            (3, ..) => AtomOp::Xor,
            (4, Some(true), _) => AtomOp::MinS,
            (4, Some(false), _) => AtomOp::MinU,
            (4, _, Some(f)) => AtomOp::MinFloat(f),
            (5, Some(true), _) => AtomOp::MaxS,
            (5, Some(false), _) => AtomOp::MaxU,
            (5, _, Some(f)) => AtomOp::MaxFloat(f),
            (6, ..) if bits == 32 => AtomOp::Inc,
            (7, ..) if bits == 32 => AtomOp::Dec,
            (8, ..) => AtomOp::Exch,
            (9, ..) => AtomOp::Cas,
            _ => return self.unknown(),
        };
        if !(16..=64).contains(&bits) || vector > 1 && !matches!(op, AtomOp::AddFloat(_)) {
            return self.unknown();
        }
        let red = self.name == "red";
        if vector > 1 && !red {
            return self.unknown();
        }
        let first = usize::from(!red);
        self.count(2 + first + usize::from(op == AtomOp::Cas))?;
        let d = if red { None } else { Some(self.dst(0, bits)?) };
        let addr = self.space_addr(first, space)?;
        let b = match self.operand(first + 1)? {
            Operand::Vector(list) if list.len() == vector => {
                list.iter().map(|o| self.source(o, bits)).collect::<Parsed<_>>()?
            }
            one if vector == 1 => [self.source(&one, bits)?].into(),
            _ => return self.wrong(format!("{vector} registers expected")),
        };
        let c = if op == AtomOp::Cas { Some(self.src(first + 2, bits)?) } else { None };
        Ok(Op::Atom(Box::new(Atom { op, space, bytes: bits / 8, order, addr, d, b, c })))
    }

    pub(super) fn cp_async(&mut self) -> Parsed<Op> {
        self.take("async");
        if self.take("commit_group") {
            self.count(0)?;
            return Ok(Op::CpCommit);
        }
        if self.take("wait_all") {
            self.count(0)?;
            return Ok(Op::CpWait { left: None });
        }
        if self.take("wait_group") {
            self.count(1)?;
            let Operand::Int(n) = self.operand(0)? else { return self.wrong("a number expected") };
            return Ok(Op::CpWait { left: Some(n as u32) });
        }
        self.cache_hints();
        let shared = self.take("shared") || self.take("shared::cta");
        if !(shared && self.take("global")) {
            return self.unknown();
        }
        let (dst, src) = (self.addr(0)?, self.addr(1)?);
        let Operand::Int(bytes @ (4 | 8 | 16)) = self.operand(2)? else {
            return self.wrong("a copy of 4, 8 or 16 bytes expected");
        };
        let src_bytes = match self.operands.len() {
            3 => None,
            4 => Some(self.src(3, 32)?),
            _ => return self.unknown(),
        };
        Ok(Op::CpAsync(Box::new(CpAsync { dst, src, bytes: bytes as u32, src_bytes })))
    }
}
