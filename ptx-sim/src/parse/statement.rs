//! The statements of a kernel: labels, declarations, instructions with their operands.

use super::body::{Body, Scope};
use super::{Operand, Parsed, Parser, Symbol, align_up, type_bits};
use crate::decode;
use crate::ir::{Inst, PSrc, Width};
use crate::lex::Tok;

impl Parser<'_> {
    /// Statements up to and with the brace that closes them.
    pub(super) fn statements(&mut self, body: &mut Body) -> Parsed<()> {
        loop {
            if self.mark('}') {
                return Ok(());
            }
            if self.mark('{') {
                body.scopes.push(Scope::default());
                self.statements(body)?;
                body.close()?;
                continue;
            }
            if self.mark(';') {
                continue;
            }
            if self.peek().is_none() {
                return self.wrong("a body that never ends");
            }
            if self.mark('@') {
                self.instruction(body, true)?;
                continue;
            }
            let label = matches!(self.tokens.get(self.at + 1), Some(t) if t.kind == Tok::Mark(':'));
            match self.peek() {
                Some(Tok::Word(w)) if label => {
                    let name = w.clone();
                    self.at += 2;
                    self.label(body, name)?;
                }
                Some(Tok::Word(w)) if w.starts_with('.') => self.declaration(body)?,
                _ => self.instruction(body, false)?,
            }
        }
    }

    fn label(&mut self, body: &mut Body, name: String) -> Parsed<()> {
        let here = body.code.len() as u32;
        let scope = body.scopes.last_mut().expect("a body has a scope");
        if self.peek() == Some(&Tok::Word(".branchtargets".into())) {
            self.at += 1;
            let mut list = vec![self.word()?];
            while self.mark(',') {
                list.push(self.word()?);
            }
            scope.tables.insert(name, list);
            return self.want(';');
        }
        if scope.labels.insert(name.clone(), here).is_some() {
            return self.wrong(format!("the label `{name}` stands twice"));
        }
        Ok(())
    }

    fn declaration(&mut self, body: &mut Body) -> Parsed<()> {
        let word = self.word()?;
        match word.as_str() {
            ".reg" => self.registers(body)?,
            ".shared" | ".local" => {
                let v = self.variable()?;
                let Some(bytes) = v.bytes else { return self.wrong("a variable without a length") };
                let (end, symbol): (&mut u64, fn(u64) -> Symbol) = match word.as_str() {
                    ".shared" => (&mut body.shared, Symbol::Shared),
                    _ => (&mut body.local, Symbol::Local),
                };
                let at = align_up(*end, v.align);
                *end = at + bytes;
                body.shared_align = body.shared_align.max(v.align);
                body.scopes.last_mut().expect("a body has a scope").names.insert(v.name, symbol(at));
            }
            ".pragma" => return self.pragma(),
            _ => {
                self.at -= 1;
                return self.wrong(format!("the simulator does not know the directive `{word}`"));
            }
        }
        self.want(';')
    }

    /// `.reg .b32 %r<287>, %x`
    fn registers(&mut self, body: &mut Body) -> Parsed<()> {
        let t = self.word()?;
        let bits = t.strip_prefix('.').and_then(type_bits).filter(|&b| b <= 64);
        let Some(bits) = bits else { return self.wrong(format!("`{t}` is not a type of a register")) };
        loop {
            let name = self.word()?;
            if self.mark('<') {
                let n = self.int()?;
                self.want('>')?;
                if n > 1 << 16 {
                    return self.wrong("more than 65536 registers");
                }
                for i in 0..n {
                    Self::register(body, format!("{name}{i}"), bits);
                }
            } else {
                Self::register(body, name, bits);
            }
            if !self.mark(',') {
                return Ok(());
            }
        }
    }

    fn register(body: &mut Body, name: String, bits: u32) {
        let symbol = match bits {
            1 => Symbol::Pred(body.new_pred()),
            64 => Symbol::Reg(body.new_row(Width::W64), 64),
            _ => Symbol::Reg(body.new_row(Width::W32), bits),
        };
        body.scopes.last_mut().expect("a body has a scope").names.insert(name, symbol);
    }

    fn instruction(&mut self, body: &mut Body, guarded: bool) -> Parsed<()> {
        let line = self.line();
        let mut guard = PSrc::ALWAYS;
        if guarded {
            let negate = self.mark('!');
            let name = self.word()?;
            match body.find(&name) {
                Some(Symbol::Pred(p)) => guard = PSrc { pred: p, negate },
                _ => return self.wrong(format!("`{name}` is no predicate")),
            }
        }
        let opcode = self.word()?;
        let mut operands = Vec::new();
        while !self.mark(';') {
            operands.push(self.operand(Some(body))?);
            if !self.mark(',') {
                self.want(';')?;
                break;
            }
        }
        let op = decode::decode(body, &opcode, operands, line)?;
        body.code.push(Inst { guard, op, line });
        Ok(())
    }

    pub(super) fn operand(&mut self, body: Option<&Body>) -> Parsed<Operand> {
        let one = self.single()?;
        if body.is_some() && self.mark('|') {
            let two = self.single()?;
            return Ok(Operand::Pair(Box::new(one), Box::new(two)));
        }
        Ok(one)
    }

    fn single(&mut self) -> Parsed<Operand> {
        if self.mark('{') {
            let mut list = Vec::new();
            while !self.mark('}') {
                list.push(self.single()?);
                if !self.mark(',') {
                    self.want('}')?;
                    break;
                }
            }
            return Ok(Operand::Vector(list));
        }
        if self.mark('[') {
            let base = self.single()?;
            let (base, offset) = match base {
                Operand::Name(n, off) => (Operand::Name(n, 0), off),
                other => (other, 0),
            };
            let mut more = Vec::new();
            while self.mark(',') {
                more.push(self.single()?);
            }
            self.want(']')?;
            return Ok(Operand::Mem(Box::new(base), offset, more));
        }
        if self.mark('!') {
            return Ok(Operand::Not(self.word()?));
        }
        if self.mark('-') {
            return match self.peek().cloned() {
                Some(Tok::Int(n)) => {
                    self.at += 1;
                    Ok(Operand::Int(n.wrapping_neg()))
                }
                Some(Tok::Float { bits, wide }) => {
                    self.at += 1;
                    Ok(Operand::Float { bits: bits ^ if wide { 1 << 63 } else { 1 << 31 }, wide })
                }
                _ => self.wrong("a number expected"),
            };
        }
        match self.peek().cloned() {
            Some(Tok::Int(n)) => {
                self.at += 1;
                Ok(Operand::Int(n))
            }
            Some(Tok::Float { bits, wide }) => {
                self.at += 1;
                Ok(Operand::Float { bits, wide })
            }
            Some(Tok::Word(w)) if w == "_" => {
                self.at += 1;
                Ok(Operand::Sink)
            }
            Some(Tok::Word(w)) => {
                self.at += 1;
                let offset = if self.mark('+') {
                    let negate = self.mark('-');
                    let n = self.int()? as i64;
                    if negate { -n } else { n }
                } else {
                    0
                };
                Ok(Operand::Name(w, offset))
            }
            _ => self.wrong("an operand expected"),
        }
    }
}
