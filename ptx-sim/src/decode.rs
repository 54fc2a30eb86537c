//! One statement to one typed instruction.
//!
//! An opcode is a dotted word: the operation, then modifiers in an order the manual fixes. A decoder takes the modifiers
//! it knows one by one; one left over, or an operand too many or of the wrong width, is an error. Nothing is ignored
//! but hints (caching, prefetch), which change no value.
//!
//! Source: PTX ISA 9.0, chapter 9.

mod alu;
mod data;
mod hopper;
mod sync;
mod tensor;

use crate::fp::Round;
use crate::ir::{Addr, Fill, Float, Mode, Num, Op, Order, PSrc, Row, Space, Width};
use crate::parse::{Body, Operand, Parsed, Symbol, Wrong, special, type_bits};

/// Decodes a statement; `body` gives its names and takes its constants.
pub(crate) fn decode(body: &mut Body, opcode: &str, operands: Vec<Operand>, line: u32) -> Parsed<Op> {
    let mut parts = opcode.split('.');
    let name = parts.next().unwrap_or("").to_string();
    let mods = parts.map(|p| Some(p.to_string())).collect();
    let mut d = Dec { body, name, opcode: opcode.to_string(), mods, operands, line };
    let op = d.op()?;
    if let Some(left) = d.mods.iter().flatten().next() {
        let what = format!("the simulator does not know `.{left}` of `{opcode}`");
        return Err(Wrong { line, what });
    }
    Ok(op)
}

/// A statement being decoded.
struct Dec<'a> {
    body: &'a mut Body,
    name: String,
    opcode: String,
    /// Modifiers not yet taken.
    mods: Vec<Option<String>>,
    operands: Vec<Operand>,
    line: u32,
}

impl Dec<'_> {
    fn op(&mut self) -> Parsed<Op> {
        match self.name.as_str() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "sad" | "mul24"
            | "mad24" | "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "bfe" | "bfi" | "bfind"
            | "brev" | "clz" | "popc" | "lop3" | "prmt" | "fns" | "dp4a" | "addc" | "subc" | "madc" | "rcp"
            | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" | "copysign" | "testp" | "setp" | "set"
            | "selp" | "slct" => self.alu(),
            "mov" | "cvt" | "cvta" | "isspacep" | "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu"
            | "createpolicy" | "discard" | "applypriority" => self.data(),
            "mbarrier" | "wgmma" | "mapa" | "getctarank" | "setmaxnreg" => self.hopper(),
            "cp" if self.opcode.contains(".bulk") => self.bulk(),
            "cp" if matches!(self.mods.first(), Some(Some(m)) if m == "async") => self.cp_async(),
            "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => self.tensor(),
            "bra" | "brx" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence" | "shfl" | "vote"
            | "match" | "redux" | "activemask" | "elect" | "nanosleep" | "griddepcontrol" | "pmevent" => self.sync(),
            _ => self.unknown(),
        }
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err(Wrong { line: self.line, what: what.into() })
    }

    fn unknown<T>(&self) -> Parsed<T> {
        self.wrong(format!("the simulator does not know the instruction `{}`", self.opcode))
    }

    /// Takes the modifier if it is there.
    fn take(&mut self, m: &str) -> bool {
        match self.mods.iter_mut().find(|x| x.as_deref() == Some(m)) {
            Some(slot) => {
                *slot = None;
                true
            }
            None => false,
        }
    }

    /// Takes the one of `list` that is there and gives what it stands for.
    fn one_of<T: Copy>(&mut self, list: &[(&str, T)]) -> Option<T> {
        list.iter().find(|(m, _)| self.take(m)).map(|&(_, v)| v)
    }

    fn must<T: Copy>(&mut self, list: &[(&str, T)]) -> Parsed<T> {
        match self.one_of(list) {
            Some(v) => Ok(v),
            None => self.unknown(),
        }
    }

    /// Takes the first modifier that is a type.
    fn ty(&mut self) -> Parsed<String> {
        let at = self.mods.iter().position(|m| m.as_deref().is_some_and(|m| type_bits(m).is_some()));
        match at.and_then(|i| self.mods[i].take()) {
            Some(t) => Ok(t),
            None => self.wrong(format!("`{}` names no type", self.opcode)),
        }
    }

    fn count(&self, want: usize) -> Parsed<()> {
        if self.operands.len() == want {
            return Ok(());
        }
        self.wrong(format!("`{}` has {} operands; {want} expected", self.opcode, self.operands.len()))
    }

    fn operand(&self, i: usize) -> Parsed<Operand> {
        match self.operands.get(i) {
            Some(o) => Ok(o.clone()),
            None => self.wrong(format!("`{}` has only {} operands", self.opcode, self.operands.len())),
        }
    }

    /// The row of source `i`, `bits` wide.
    fn src(&mut self, i: usize, bits: u32) -> Parsed<Row> {
        let operand = self.operand(i)?;
        self.source(&operand, bits)
    }

    fn source(&mut self, operand: &Operand, bits: u32) -> Parsed<Row> {
        let width = Width::of(bits);
        // Rows of 16 and 32 bits look alike, so that a constant serves both.
        let shelf = if width == Width::W64 { Width::W64 } else { Width::W32 };
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        let fill = match operand {
            Operand::Int(n) => Fill::Const(n & mask),
            Operand::Float { bits: b, wide } => Fill::Const(match (wide, bits) {
                (false, 64) => f64::from(f32::from_bits(*b as u32)).to_bits(),
                (true, 32) => u64::from((f64::from_bits(*b) as f32).to_bits()),
                _ => *b & mask,
            }),
            Operand::Name(name, offset) => {
                if let Some(s) = special(name) {
                    return Ok(self.body.constant(shelf, Fill::Special(s)));
                }
                match self.body.find(name) {
                    Some(Symbol::Reg(row, have)) if have == bits || (have <= 16 && bits <= 16) => return Ok(row),
                    Some(Symbol::Reg(_, have)) => {
                        return self.wrong(format!("`{name}` has {have} bits where {bits} are read"));
                    }
                    Some(Symbol::Shared(at)) | Some(Symbol::Param(at)) => Fill::Const(at.wrapping_add_signed(*offset)),
                    Some(Symbol::Local(at)) => Fill::Const(at.wrapping_add_signed(*offset)),
                    Some(Symbol::Data(at)) => Fill::Const(at.wrapping_add_signed(*offset)),
                    Some(Symbol::Dynamic) => {
                        self.body.dynamic();
                        Fill::Dynamic(*offset)
                    }
                    Some(Symbol::Pred(_)) => return self.wrong(format!("`{name}` is a predicate")),
                    None if name == "WARP_SZ" => Fill::Const(32),
                    None => return self.wrong(format!("no register or variable `{name}`")),
                }
            }
            _ => return self.wrong(format!("`{}`: an operand cannot be read", self.opcode)),
        };
        Ok(self.body.constant(shelf, fill))
    }

    /// The row of result `i`, `bits` wide.
    fn dst(&mut self, i: usize, bits: u32) -> Parsed<Row> {
        let operand = self.operand(i)?;
        self.result(&operand, bits)
    }

    fn result(&mut self, operand: &Operand, bits: u32) -> Parsed<Row> {
        match operand {
            Operand::Name(name, 0) => match self.body.find(name) {
                Some(Symbol::Reg(row, have)) if have == bits || (have <= 16 && bits <= 16) => Ok(row),
                Some(Symbol::Reg(_, have)) => self.wrong(format!("`{name}` has {have} bits where {bits} are written")),
                _ => self.wrong(format!("no register `{name}`")),
            },
            // A result nobody reads still needs a place.
            Operand::Sink => Ok(self.body.new_row(Width::of(bits))),
            _ => self.wrong(format!("`{}`: an operand cannot be written", self.opcode)),
        }
    }

    /// A register of whatever width it has.
    fn any_reg(&mut self, operand: &Operand) -> Parsed<(Row, u32)> {
        match operand {
            Operand::Name(name, 0) => match self.body.find(name) {
                Some(Symbol::Reg(row, bits)) => Ok((row, bits)),
                _ => self.wrong(format!("no register `{name}`")),
            },
            _ => self.wrong("a register expected"),
        }
    }

    fn pred_dst(&mut self, operand: &Operand) -> Parsed<Option<u16>> {
        match operand {
            Operand::Sink => Ok(None),
            Operand::Name(name, 0) => match self.body.find(name) {
                Some(Symbol::Pred(p)) => Ok(Some(p)),
                _ => self.wrong(format!("no predicate `{name}`")),
            },
            _ => self.wrong("a predicate expected"),
        }
    }

    fn pred_src(&mut self, i: usize) -> Parsed<PSrc> {
        let operand = self.operand(i)?;
        let (name, negate) = match &operand {
            Operand::Name(name, 0) => (name, false),
            Operand::Not(name) => (name, true),
            Operand::Int(0) => return Ok(PSrc::NEVER),
            Operand::Int(_) => return Ok(PSrc::ALWAYS),
            _ => return self.wrong("a predicate expected"),
        };
        match self.body.find(name) {
            Some(Symbol::Pred(pred)) => Ok(PSrc { pred, negate }),
            _ => self.wrong(format!("no predicate `{name}`")),
        }
    }

    /// `[base + offset]`; `space` tells which names may stand there.
    fn addr(&mut self, i: usize) -> Parsed<Addr> {
        match self.operand(i)? {
            Operand::Mem(base, offset, more) if more.is_empty() => self.base(&base, offset),
            _ => self.wrong(format!("`{}`: an address expected", self.opcode)),
        }
    }

    fn base(&mut self, base: &Operand, offset: i64) -> Parsed<Addr> {
        if let Operand::Name(name, _) = base
            && let Some(Symbol::Reg(row, bits)) = self.body.find(name)
        {
            if bits < 32 {
                return self.wrong(format!("`{name}` is too narrow for an address"));
            }
            return Ok(Addr { row, wide: bits == 64, offset });
        }
        Ok(Addr { row: self.source(base, 64)?, wide: true, offset })
    }

    /// Takes the state space; generic without one.
    fn space(&mut self) -> Space {
        self.one_of(&[
            ("global", Space::Global),
            ("shared::cta", Space::Shared),
            ("shared::cluster", Space::Cluster),
            ("shared", Space::Shared),
            ("local", Space::Local),
            ("const", Space::Const),
            ("param", Space::Param),
            ("param::entry", Space::Param),
        ])
        .unwrap_or(Space::Generic)
    }

    /// Takes ordering and scope; the scope changes nothing here, as every block sees one memory.
    fn order(&mut self) -> Order {
        let order = self.one_of(&[
            ("relaxed", Order::Relaxed),
            ("volatile", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcqRel),
            ("weak", Order::Weak),
        ]);
        self.scope();
        order.unwrap_or(Order::Weak)
    }

    fn scope(&mut self) {
        self.one_of(&[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())]);
    }

    /// Takes hints to the caches, which change no value. A policy operand goes with `.L2::cache_hint`.
    fn cache_hints(&mut self) {
        while self
            .one_of(&[
                ("ca", ()),
                ("cg", ()),
                ("cs", ()),
                ("lu", ()),
                ("cv", ()),
                ("wb", ()),
                ("wt", ()),
                ("nc", ()),
                ("L1::no_allocate", ()),
                ("L1::evict_normal", ()),
                ("L1::evict_unchanged", ()),
                ("L1::evict_first", ()),
                ("L1::evict_last", ()),
                ("L2::evict_normal", ()),
                ("L2::evict_first", ()),
                ("L2::evict_last", ()),
                ("L2::64B", ()),
                ("L2::128B", ()),
                ("L2::256B", ()),
            ])
            .is_some()
        {}
        if self.take("L2::cache_hint") {
            self.operands.pop();
        }
    }

    fn round(&mut self) -> Option<Round> {
        self.one_of(&[("rn", Round::Near), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up)])
    }

    fn mode(&mut self) -> Mode {
        let round = self.round().unwrap_or(Round::Near);
        let (ftz, sat, relu) = (self.take("ftz"), self.take("sat"), self.take("relu"));
        Mode { round, ftz, sat, relu }
    }
}

/// The float of a type, if it is one.
fn float(t: &str) -> Option<Float> {
    Some(match t {
        "f16" => Float::F16,
        "f16x2" => Float::F16x2,
        "bf16" => Float::Bf16,
        "bf16x2" => Float::Bf16x2,
        "f32" => Float::F32,
        "f64" => Float::F64,
        _ => return None,
    })
}

/// The number of a type.
fn num(t: &str) -> Option<Num> {
    if let Some(f) = float(t) {
        return Some(Num::F(f));
    }
    let bits = type_bits(t)? as u8;
    Some(match t.as_bytes()[0] {
        b's' => Num::S(bits),
        b'u' | b'b' => Num::U(bits),
        b't' => Num::Tf32,
        _ => return None,
    })
}

/// Whether an integer type is signed; `None` for a float.
fn signed(t: &str) -> Option<bool> {
    match t.as_bytes()[0] {
        b's' => Some(true),
        b'u' => Some(false),
        b'b' if !t.starts_with("bf") => Some(false),
        _ => None,
    }
}
