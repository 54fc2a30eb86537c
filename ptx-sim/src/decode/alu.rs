//! Arithmetic, logic and comparison.

use super::{Dec, float, num, signed};
use crate::fp::Round;
use crate::ir::{Bool, Cmp, F1, F2, Float, I1, I2, I3, Mode, Num, Op, PSrc, Prmt, Setp, Width};
use crate::parse::{Operand, Parsed, type_bits};

impl Dec<'_> {
    pub(super) fn alu(&mut self) -> Parsed<Op> {
        match self.name.as_str() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "addc" | "subc"
            | "madc" => self.arithmetic(),
            "and" | "or" | "xor" | "not" => self.logic(),
            "setp" | "set" => self.compare(),
            "selp" => {
                let w = self.bare_width()?;
                self.count(4)?;
                Ok(Op::Selp {
                    w: Width::of(w),
                    d: self.dst(0, w)?,
                    a: self.src(1, w)?,
                    b: self.src(2, w)?,
                    p: self.pred_src(3)?,
                })
            }
            "slct" => {
                self.take("ftz");
                let w = self.bare_width()?;
                let by = self.ty()?;
                self.count(4)?;
                let (d, a, b) = (self.dst(0, w)?, self.src(1, w)?, self.src(2, w)?);
                Ok(Op::Slct { w: Width::of(w), float: by == "f32", d, a, b, c: self.src(3, 32)? })
            }
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" => self.special_function(),
            "copysign" => {
                let t = self.ty()?;
                let Some(t) = float(&t) else { return self.unknown() };
                self.count(3)?;
                let (d, a, b) = (self.dst(0, t.bits())?, self.src(1, t.bits())?, self.src(2, t.bits())?);
                Ok(Op::Float2 { f: F2::Copysign, t, m: PLAIN, d, a, b })
            }
            "testp" => self.testp(),
            _ => self.bits(),
        }
    }

    /// The width of a type that says nothing else.
    fn bare_width(&mut self) -> Parsed<u32> {
        let t = self.ty()?;
        Ok(type_bits(&t).unwrap_or(32))
    }

    fn arithmetic(&mut self) -> Parsed<Op> {
        let t = self.ty()?;
        match float(&t) {
            Some(t) => self.float_arithmetic(t),
            None => self.int_arithmetic(&t),
        }
    }

    fn float_arithmetic(&mut self, t: Float) -> Parsed<Op> {
        let m = self.mode();
        let nan = self.take("NaN");
        let (approx, full) = (self.take("approx"), self.take("full"));
        let bits = t.bits();
        let f = match self.name.as_str() {
            "abs" | "neg" => {
                self.count(2)?;
                let f = if self.name == "abs" { F1::Abs } else { F1::Neg };
                return Ok(Op::Float1 { f, t, m, d: self.dst(0, bits)?, a: self.src(1, bits)? });
            }
            "fma" | "mad" => {
                self.count(4)?;
                let (d, a, b, c) = (self.dst(0, bits)?, self.src(1, bits)?, self.src(2, bits)?, self.src(3, bits)?);
                return Ok(Op::Fma { t, m, d, a, b, c });
            }
            "add" => F2::Add,
            "sub" => F2::Sub,
            "mul" => F2::Mul,
            "div" if matches!(t, Float::F32 | Float::F64) => F2::Div,
            "min" if nan => F2::MinNan,
            "max" if nan => F2::MaxNan,
            "min" => F2::Min,
            "max" => F2::Max,
            _ => return self.unknown(),
        };
        if (approx || full) && f != F2::Div || nan && !matches!(f, F2::MinNan | F2::MaxNan) {
            return self.unknown();
        }
        self.count(3)?;
        Ok(Op::Float2 { f, t, m, d: self.dst(0, bits)?, a: self.src(1, bits)?, b: self.src(2, bits)? })
    }

    fn int_arithmetic(&mut self, t: &str) -> Parsed<Op> {
        let Some(signed) = signed(t) else { return self.unknown() };
        let bits = type_bits(t).unwrap_or(32);
        let w = Width::of(bits);
        let (wide, hi, sat) = (self.take("wide"), self.take("hi"), self.take("sat"));
        let lo = self.take("lo");
        let cc = self.take("cc");
        if matches!(self.name.as_str(), "addc" | "subc") || cc {
            return self.carry(w, bits, cc);
        }
        if bits == 8 || bits > 64 || (hi && wide) || (lo && (hi || wide)) {
            return self.unknown();
        }
        match self.name.as_str() {
            "abs" | "neg" => {
                self.count(2)?;
                let f = if self.name == "abs" { I1::Abs } else { I1::Neg };
                return Ok(Op::Int1 { f, w, d: self.dst(0, bits)?, a: self.src(1, bits)? });
            }
            "mul" | "mad" if wide => {
                let mad = self.name == "mad";
                if bits == 64 {
                    return self.unknown();
                }
                self.count(3 + usize::from(mad))?;
                let (d, a, b) = (self.dst(0, 2 * bits)?, self.src(1, bits)?, self.src(2, bits)?);
                let c = if mad { Some(self.src(3, 2 * bits)?) } else { None };
                return Ok(Op::MulWide { w, signed, d, a, b, c });
            }
            "mad" => {
                self.count(4)?;
                let f = match (hi, signed) {
                    (false, _) => I3::Mad,
                    (true, false) => I3::MadHiU,
                    (true, true) => I3::MadHiS,
                };
                let (d, a, b, c) = (self.dst(0, bits)?, self.src(1, bits)?, self.src(2, bits)?, self.src(3, bits)?);
                return Ok(Op::Int3 { f, w, d, a, b, c });
            }
            _ => {}
        }
        let f = match (self.name.as_str(), signed, hi) {
            ("add", true, _) if sat && bits == 32 => I2::AddSat,
            ("sub", true, _) if sat && bits == 32 => I2::SubSat,
            _ if sat => return self.unknown(),
            ("add", ..) => I2::Add,
            ("sub", ..) => I2::Sub,
            ("mul", _, false) => I2::Mul,
            ("mul", false, true) => I2::MulHiU,
            ("mul", true, true) => I2::MulHiS,
            ("div", false, _) => I2::DivU,
            ("div", true, _) => I2::DivS,
            ("rem", false, _) => I2::RemU,
            ("rem", true, _) => I2::RemS,
            ("min", false, _) => I2::MinU,
            ("min", true, _) => I2::MinS,
            ("max", false, _) => I2::MaxU,
            ("max", true, _) => I2::MaxS,
            _ => return self.unknown(),
        };
        self.count(3)?;
        Ok(Op::Int2 { f, w, d: self.dst(0, bits)?, a: self.src(1, bits)?, b: self.src(2, bits)? })
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`: long addition, with one carry flag a thread.
    fn carry(&mut self, w: Width, bits: u32, give: bool) -> Parsed<Op> {
        let (sub, take) = match self.name.as_str() {
            "add" => (false, false),
            "addc" => (false, true),
            "sub" => (true, false),
            "subc" => (true, true),
            _ => return self.unknown(),
        };
        self.count(3)?;
        let carry = self.body.carry_flag();
        Ok(Op::Carry { sub, w, carry, take, give, d: self.dst(0, bits)?, a: self.src(1, bits)?, b: self.src(2, bits)? })
    }

    fn logic(&mut self) -> Parsed<Op> {
        let t = self.ty()?;
        if t == "pred" {
            let operand = self.operand(0)?;
            let Some(d) = self.pred_dst(&operand)? else { return self.wrong("a predicate expected") };
            let a = self.pred_src(1)?;
            if self.name == "not" {
                self.count(2)?;
                return Ok(Op::MovPred { d, a: PSrc { negate: !a.negate, ..a } });
            }
            self.count(3)?;
            let f = match self.name.as_str() {
                "and" => Bool::And,
                "or" => Bool::Or,
                _ => Bool::Xor,
            };
            return Ok(Op::PredLogic { f, d, a, b: self.pred_src(2)? });
        }
        let bits = type_bits(&t).unwrap_or(32);
        let w = Width::of(bits);
        if self.name == "not" {
            self.count(2)?;
            return Ok(Op::Int1 { f: I1::Not, w, d: self.dst(0, bits)?, a: self.src(1, bits)? });
        }
        let f = match self.name.as_str() {
            "and" => I2::And,
            "or" => I2::Or,
            _ => I2::Xor,
        };
        self.count(3)?;
        Ok(Op::Int2 { f, w, d: self.dst(0, bits)?, a: self.src(1, bits)?, b: self.src(2, bits)? })
    }

    fn bits(&mut self) -> Parsed<Op> {
        match self.name.as_str() {
            "shl" | "shr" => {
                let t = self.ty()?;
                let bits = type_bits(&t).unwrap_or(32);
                let f = match (self.name.as_str(), signed(&t)) {
                    ("shl", _) => I2::Shl,
                    (_, Some(true)) => I2::ShrS,
                    _ => I2::ShrU,
                };
                self.count(3)?;
                // The amount has 32 bits, whatever is shifted.
                let (d, a, amount) = (self.dst(0, bits)?, self.src(1, bits)?, self.src(2, 32)?);
                Ok(Op::Int2 { f, w: Width::of(bits), d, a, b: amount })
            }
            "cnot" | "brev" => {
                let t = self.ty()?;
                let bits = type_bits(&t).unwrap_or(32);
                let f = if self.name == "cnot" { I1::CNot } else { I1::Brev };
                self.count(2)?;
                Ok(Op::Int1 { f, w: Width::of(bits), d: self.dst(0, bits)?, a: self.src(1, bits)? })
            }
            "popc" | "clz" | "bfind" => {
                let shift = self.take("shiftamt");
                let t = self.ty()?;
                let bits = type_bits(&t).unwrap_or(32);
                let f = match (self.name.as_str(), signed(&t)) {
                    ("popc", _) => I1::Popc,
                    ("clz", _) => I1::Clz,
                    (_, Some(true)) => I1::FindS(shift),
                    _ => I1::FindU(shift),
                };
                self.count(2)?;
                Ok(Op::Int1 { f, w: Width::of(bits), d: self.dst(0, 32)?, a: self.src(1, bits)? })
            }
            "bfi" => {
                let bits = self.bare_width()?;
                self.count(5)?;
                let (d, a, b) = (self.dst(0, bits)?, self.src(1, bits)?, self.src(2, bits)?);
                Ok(Op::Bfi { w: Width::of(bits), d, a, b, c: self.src(3, 32)?, e: self.src(4, 32)? })
            }
            "bfe" => {
                let t = self.ty()?;
                let bits = type_bits(&t).unwrap_or(32);
                let f = if signed(&t) == Some(true) { I3::BfeS } else { I3::BfeU };
                self.count(4)?;
                let (d, a, b, c) = (self.dst(0, bits)?, self.src(1, bits)?, self.src(2, 32)?, self.src(3, 32)?);
                Ok(Op::Int3 { f, w: Width::of(bits), d, a, b, c })
            }
            _ => self.words(),
        }
    }

    /// Operations of three words of 32 bits.
    fn words(&mut self) -> Parsed<Op> {
        let f = match self.name.as_str() {
            "shf" => {
                let left = self.must(&[("l", true), ("r", false)])?;
                let wrap = self.must(&[("wrap", true), ("clamp", false)])?;
                if left { I3::ShfL { wrap } } else { I3::ShfR { wrap } }
            }
            "lop3" => {
                let Operand::Int(lut) = self.operand(4)? else { return self.wrong("a number expected") };
                self.operands.truncate(4);
                I3::Lop3(lut as u8)
            }
            "prmt" => I3::Prmt(
                self.one_of(&[
                    ("f4e", Prmt::F4e),
                    ("b4e", Prmt::B4e),
                    ("rc8", Prmt::Rc8),
                    ("ecl", Prmt::Ecl),
                    ("ecr", Prmt::Ecr),
                    ("rc16", Prmt::Rc16),
                ])
                .unwrap_or(Prmt::Index),
            ),
            "fns" => I3::Fns,
            "sad" | "dp4a" => {
                let t = self.ty()?;
                let a_signed = signed(&t) == Some(true);
                if self.name == "sad" {
                    if type_bits(&t) != Some(32) {
                        return self.unknown();
                    }
                    self.count(4)?;
                    let f = if a_signed { I3::SadS } else { I3::SadU };
                    let (d, a, b, c) = (self.dst(0, 32)?, self.src(1, 32)?, self.src(2, 32)?, self.src(3, 32)?);
                    return Ok(Op::Int3 { f, w: Width::W32, d, a, b, c });
                }
                let b = self.ty()?;
                self.mods.push(Some("b32".into()));
                I3::Dp4a { a_signed, b_signed: signed(&b) == Some(true) }
            }
            _ => return self.unknown(),
        };
        if self.bare_width()? != 32 {
            return self.unknown();
        }
        self.count(4)?;
        let (d, a, b, c) = (self.dst(0, 32)?, self.src(1, 32)?, self.src(2, 32)?, self.src(3, 32)?);
        Ok(Op::Int3 { f, w: Width::W32, d, a, b, c })
    }

    fn special_function(&mut self) -> Parsed<Op> {
        let t = self.ty()?;
        let Some(t) = float(&t) else { return self.unknown() };
        self.take("approx");
        let m = self.mode();
        let f = match self.name.as_str() {
            "rcp" => F1::Rcp,
            "sqrt" => F1::Sqrt,
            "rsqrt" => F1::Rsqrt,
            "sin" => F1::Sin,
            "cos" => F1::Cos,
            "ex2" => F1::Ex2,
            "lg2" => F1::Lg2,
            _ => F1::Tanh,
        };
        let half = !matches!(t, Float::F32 | Float::F64);
        if half && !matches!(f, F1::Ex2 | F1::Tanh) || t == Float::F64 && !matches!(f, F1::Rcp | F1::Sqrt | F1::Rsqrt) {
            return self.unknown();
        }
        self.count(2)?;
        Ok(Op::Float1 { f, t, m, d: self.dst(0, t.bits())?, a: self.src(1, t.bits())? })
    }

    fn testp(&mut self) -> Parsed<Op> {
        let [finite, inf, number, nan, normal, sub] =
            ["finite", "infinite", "number", "notanumber", "normal", "subnormal"].map(|m| self.take(m));
        let t = self.ty()?;
        let Some(t @ (Float::F32 | Float::F64)) = float(&t) else { return self.unknown() };
        if sub {
            return self.unknown();
        }
        self.count(2)?;
        let operand = self.operand(0)?;
        let Some(d) = self.pred_dst(&operand)? else { return self.unknown() };
        let a = self.src(1, t.bits())?;
        Ok(Op::TestP { finite: finite || number, nan, inf: inf || number, normal, t, d, a })
    }

    fn compare(&mut self) -> Parsed<Op> {
        let cmp = self.must(&[
            ("eq", Cmp::Eq),
            ("ne", Cmp::Ne),
            ("lt", Cmp::Lt),
            ("le", Cmp::Le),
            ("gt", Cmp::Gt),
            ("ge", Cmp::Ge),
            ("lo", Cmp::Lt),
            ("ls", Cmp::Le),
            ("hi", Cmp::Gt),
            ("hs", Cmp::Ge),
            ("equ", Cmp::Equ),
            ("neu", Cmp::Neu),
            ("ltu", Cmp::Ltu),
            ("leu", Cmp::Leu),
            ("gtu", Cmp::Gtu),
            ("geu", Cmp::Geu),
            ("num", Cmp::Num),
            ("nan", Cmp::Nan),
        ])?;
        let bool_op = self.one_of(&[("and", Bool::And), ("or", Bool::Or), ("xor", Bool::Xor)]);
        let ftz = self.take("ftz");
        if self.name == "set" {
            let to = self.ty()?;
            let t = self.ty()?;
            let (Some(ty), true) = (num(&t), bool_op.is_none() && matches!(to.as_str(), "u32" | "s32" | "f32")) else {
                return self.unknown();
            };
            self.count(3)?;
            let bits = type_bits(&t).unwrap_or(32);
            let (d, a, b) = (self.dst(0, 32)?, self.src(1, bits)?, self.src(2, bits)?);
            return Ok(Op::Set { cmp, ty, ftz, float: to == "f32", d, a, b });
        }
        let t = self.ty()?;
        let Some(ty) = num(&t).filter(|t| !matches!(t, Num::Tf32 | Num::U(8) | Num::S(8))) else {
            return self.unknown();
        };
        let bits = type_bits(&t).unwrap_or(32);
        self.count(3 + usize::from(bool_op.is_some()))?;
        let (p, q) = match self.operand(0)? {
            Operand::Pair(p, q) => (self.pred_dst(&p)?, self.pred_dst(&q)?),
            one => (self.pred_dst(&one)?, None),
        };
        let (a, b) = (self.src(1, bits)?, self.src(2, bits)?);
        let c = if bool_op.is_some() { self.pred_src(3)? } else { PSrc::ALWAYS };
        Ok(Op::Setp(Setp { cmp, ty, ftz, bool_op: bool_op.unwrap_or(Bool::And), p, q, a, b, c }))
    }
}

/// No rounding, no clamping.
pub(super) const PLAIN: Mode = Mode { round: Round::Near, ftz: false, sat: false, relu: false };
