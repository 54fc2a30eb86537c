//! Tokens to a module: its variables, and each kernel's parameters, registers, labels and statements.
//!
//! ```text
//! module    = { directive | variable | function }
//! function  = [.visible] .entry NAME ( params ) { .maxntid ... } { statement }
//! statement = LABEL: | { statement } | .reg ... ; | variable ; | [@[!]p] opcode operands ;
//! ```
//!
//! Registers, labels and variables declared between braces are known between them only, so that inline assembly may
//! use the same names again. A branch may name a label that comes later: it is bound when the braces close.
//!
//! Source: PTX ISA 9.0, chapters 4, 5, 11.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode;
use crate::ir::{Fill, Inst, Kernel, Op, PSrc, Param, Row, Special, Width};
use crate::lex::{Tok, Token, tokens};
use crate::window;

/// What in a PTX text cannot be understood. The simulator never guesses: what it does not know, it refuses.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{file}:{line}: {what}: `{text}`")]
pub struct ParseError {
    /// The name given to the text.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// What is wrong, in words.
    pub what: String,
    /// The line itself.
    pub text: String,
}

/// A PTX text, understood.
#[derive(Clone, Debug)]
pub struct Module {
    /// `.version`, as written.
    pub version: String,
    /// `.target`, as written: `sm_80`, `sm_90a`.
    pub target: String,
    kernels: Vec<Kernel>,
}

impl Module {
    /// Understands a PTX text. An instruction, modifier or directive it does not know is an error, with its line.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        Module::parse_named("ptx", text)
    }

    /// As [`Module::parse`], with the file's name for the errors.
    pub fn parse_named(file: &str, text: &str) -> Result<Module, ParseError> {
        let tokens = tokens(file, text)?;
        let mut p = Parser { file, text, tokens, at: 0, globals: HashMap::new(), data: Vec::new(), shared: 0 };
        p.module().map_err(|Wrong { line, what }| ParseError {
            file: file.to_string(),
            line,
            what,
            text: text.lines().nth(line.max(1) as usize - 1).unwrap_or("").trim().to_string(),
        })
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All kernels, as they stand in the text.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }
}

/// An error before it has its file and text.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub line: u32,
    pub what: String,
}

pub(crate) type Parsed<T> = Result<T, Wrong>;

/// What an operand says, before names are looked up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A name, plus an offset in bytes where one is written.
    Name(String, i64),
    /// `!name`, a predicate turned round.
    Not(String),
    Int(u64),
    Float {
        bits: u64,
        wide: bool,
    },
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `[base + offset, more ...]`
    Mem(Box<Operand>, i64, Vec<Operand>),
    /// `a|b`: two results.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`: no result wanted.
    Sink,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Symbol {
    Reg(Row, u32),
    Pred(u16),
    Shared(u64),
    /// The start of dynamic shared memory, known at launch.
    Dynamic,
    Local(u64),
    Param(u64),
    /// An address among the module's own data.
    Data(u64),
}

struct Parser<'a> {
    file: &'a str,
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    globals: HashMap<String, Symbol>,
    /// The module's `.const` and `.global` variables, at [`window::DATA`].
    data: Vec<u8>,
    /// Bytes of shared variables outside of kernels.
    shared: u64,
}

/// The scope between one pair of braces.
#[derive(Default)]
struct Scope {
    names: HashMap<String, Symbol>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<String>>,
    /// Branches to names not met yet.
    pending: Vec<(usize, String, u32)>,
}

/// A kernel while it is read: what the decoder of instructions may ask and add.
pub(crate) struct Body {
    scopes: Vec<Scope>,
    globals: HashMap<String, Symbol>,
    pub code: Vec<Inst>,
    rows: u32,
    preds: u16,
    fills: Vec<(Row, Width, Fill)>,
    consts: HashMap<(Width, Fill), Row>,
    shared: u64,
    shared_align: u64,
    local: u64,
    dynamic: bool,
}

impl Body {
    pub fn find(&self, name: &str) -> Option<Symbol> {
        let inner = self.scopes.iter().rev().find_map(|s| s.names.get(name));
        inner.or_else(|| self.globals.get(name)).copied()
    }

    /// The row that always holds `fill`: constants and special registers are registers that nothing writes.
    pub fn constant(&mut self, width: Width, fill: Fill) -> Row {
        if let Some(&row) = self.consts.get(&(width, fill)) {
            return row;
        }
        let row = self.new_row(width);
        self.consts.insert((width, fill), row);
        self.fills.push((row, width, fill));
        row
    }

    pub fn new_row(&mut self, width: Width) -> Row {
        let row = self.rows;
        self.rows += if width == Width::W64 { 2 } else { 1 };
        row
    }

    pub fn new_pred(&mut self) -> u16 {
        self.preds += 1;
        self.preds - 1
    }

    /// The predicate that stands for the carry of long additions.
    pub fn carry_flag(&mut self) -> u16 {
        match self.find("%carry") {
            Some(Symbol::Pred(p)) => p,
            _ => {
                let p = self.new_pred();
                self.scopes[0].names.insert("%carry".into(), Symbol::Pred(p));
                p
            }
        }
    }

    pub fn dynamic(&mut self) {
        self.dynamic = true;
    }

    /// Binds the branch that will be pushed next to `label`, now or when its braces close.
    pub fn branch_to(&mut self, label: &str, line: u32) {
        let at = self.code.len();
        self.scopes.last_mut().expect("a body has a scope").pending.push((at, label.to_string(), line));
    }

    fn close(&mut self) -> Parsed<()> {
        let scope = self.scopes.pop().expect("a scope is open");
        for (at, name, line) in scope.pending {
            if let Some(&target) = scope.labels.get(&name) {
                if let Op::Bra { target: t, .. } = &mut self.code[at].op {
                    *t = target;
                }
            } else if let Some(list) = scope.tables.get(&name) {
                let targets: Option<Vec<u32>> = list.iter().map(|l| scope.labels.get(l).copied()).collect();
                let targets =
                    targets.ok_or_else(|| Wrong { line, what: format!("a target of `{name}` is no label") })?;
                if let Op::Brx { targets: t, .. } = &mut self.code[at].op {
                    *t = targets.into();
                }
            } else if let Some(outer) = self.scopes.last_mut() {
                outer.pending.push((at, name, line));
            } else {
                return Err(Wrong { line, what: format!("no label `{name}`") });
            }
        }
        Ok(())
    }
}

fn align_up(x: u64, to: u64) -> u64 {
    x.div_ceil(to.max(1)) * to.max(1)
}

/// Bits of a `.type` of a register or variable.
pub(crate) fn type_bits(t: &str) -> Option<u32> {
    Some(match t {
        "pred" => 1,
        "b8" | "u8" | "s8" | "e4m3" | "e5m2" => 8,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 16,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => 32,
        "b64" | "u64" | "s64" | "f64" => 64,
        "b128" => 128,
        _ => return None,
    })
}

/// One variable of `.shared`, `.const`, `.global` or `.local`.
struct Variable {
    name: String,
    align: u64,
    /// `None` for `name[]`, whose length the launch gives.
    bytes: Option<u64>,
    init: Vec<u8>,
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |t| t.line)
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err(Wrong { line: self.line(), what: what.into() })
    }

    fn peek(&self) -> Option<&Tok> {
        self.tokens.get(self.at).map(|t| &t.kind)
    }

    fn mark(&mut self, c: char) -> bool {
        let hit = self.peek() == Some(&Tok::Mark(c));
        self.at += usize::from(hit);
        hit
    }

    fn want(&mut self, c: char) -> Parsed<()> {
        if self.mark(c) { Ok(()) } else { self.wrong(format!("`{c}` expected")) }
    }

    fn word(&mut self) -> Parsed<String> {
        match self.peek() {
            Some(Tok::Word(w)) => {
                let w = w.clone();
                self.at += 1;
                Ok(w)
            }
            _ => self.wrong("a name expected"),
        }
    }

    fn int(&mut self) -> Parsed<u64> {
        match self.peek() {
            Some(&Tok::Int(n)) => {
                self.at += 1;
                Ok(n)
            }
            _ => self.wrong("a number expected"),
        }
    }

    fn module(&mut self) -> Parsed<Module> {
        let mut module = Module { version: String::new(), target: String::new(), kernels: Vec::new() };
        while self.peek().is_some() {
            let word = self.word()?;
            match word.as_str() {
                ".version" => {
                    // The lexer sees `9.0` as the word `9.0` would be a number: take what stands there.
                    module.version = self.text.lines().nth(self.line() as usize - 1).unwrap_or("").trim().to_string();
                    self.at += 1;
                }
                ".target" => {
                    module.target = self.word()?;
                    while self.mark(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    if self.int()? != 64 {
                        self.at -= 1;
                        return self.wrong("addresses of 64 bits only");
                    }
                }
                ".visible" | ".weak" | ".extern" => {}
                ".entry" => {
                    let kernel = self.entry()?;
                    module.kernels.push(kernel);
                }
                ".shared" => {
                    let v = self.variable()?;
                    self.want(';')?;
                    let symbol = match v.bytes {
                        None => Symbol::Dynamic,
                        Some(bytes) => {
                            let at = align_up(self.shared, v.align);
                            self.shared = at + bytes;
                            Symbol::Shared(at)
                        }
                    };
                    self.globals.insert(v.name, symbol);
                }
                ".const" | ".global" => {
                    let v = self.variable()?;
                    self.want(';')?;
                    let at = align_up(self.data.len() as u64, v.align);
                    let Some(bytes) = v.bytes else { return self.wrong("a variable without a length") };
                    self.data.resize((at + bytes) as usize, 0);
                    self.data[at as usize..at as usize + v.init.len()].copy_from_slice(&v.init);
                    self.globals.insert(v.name, Symbol::Data(window::DATA + at));
                }
                _ => {
                    self.at -= 1;
                    return self.wrong(format!("the simulator does not know the directive `{word}`"));
                }
            }
        }
        let data: Arc<[u8]> = std::mem::take(&mut self.data).into();
        let source: Arc<str> = self.text.into();
        for k in &mut module.kernels {
            k.source = source.clone();
            k.data = data.clone();
            k.file = self.file.into();
        }
        Ok(module)
    }

    /// After the word for the space: `.align 16 .b8 name[64] = {1, 2}`.
    fn variable(&mut self) -> Parsed<Variable> {
        let mut align = None;
        let mut word = self.word()?;
        loop {
            match word.as_str() {
                ".align" => align = Some(self.int()?),
                ".attribute" => return self.wrong("the simulator does not know attributes of variables"),
                _ => break,
            }
            word = self.word()?;
        }
        let bits = word.strip_prefix('.').and_then(type_bits).filter(|&b| b >= 8);
        let Some(bits) = bits else { return self.wrong(format!("`{word}` is not a type of a variable")) };
        let (name, size) = (self.word()?, u64::from(bits / 8));
        let mut bytes = Some(size);
        while self.mark('[') {
            if self.mark(']') {
                bytes = None;
            } else {
                let n = self.int()?;
                self.want(']')?;
                bytes = bytes.and_then(|b| b.checked_mul(n)).filter(|&b| b <= 1 << 28);
                if bytes.is_none() {
                    return self.wrong("a variable of more than 256 MiB");
                }
            }
        }
        let mut init = Vec::new();
        if self.mark('=') {
            self.initial(size as usize, &mut init)?;
        }
        if init.len() as u64 > bytes.unwrap_or(0) {
            return self.wrong("more values than the variable holds");
        }
        Ok(Variable { name, align: align.unwrap_or(size), bytes, init })
    }

    fn initial(&mut self, size: usize, out: &mut Vec<u8>) -> Parsed<()> {
        if self.mark('{') {
            loop {
                self.initial(size, out)?;
                if !self.mark(',') {
                    return self.want('}');
                }
            }
        }
        let bits = match self.operand(None)? {
            Operand::Int(bits) | Operand::Float { bits, .. } => bits,
            _ => return self.wrong("a number expected"),
        };
        out.extend_from_slice(&bits.to_le_bytes()[..size]);
        Ok(())
    }

    fn entry(&mut self) -> Parsed<Kernel> {
        let line = self.line();
        let name = self.word()?;
        let mut body = Body {
            scopes: vec![Scope::default()],
            globals: self.globals.clone(),
            code: Vec::new(),
            rows: 0,
            preds: 1,
            fills: Vec::new(),
            consts: HashMap::new(),
            shared: self.shared,
            shared_align: 16,
            local: 0,
            dynamic: false,
        };
        let (params, param_bytes) = self.params(&mut body)?;
        let mut kernel = Kernel {
            file: "".into(),
            source: "".into(),
            name,
            line,
            params,
            param_bytes,
            shared_bytes: 0,
            local_bytes: 0,
            dynamic_shared: false,
            max_threads: None,
            req_threads: None,
            cluster: None,
            rows: 0,
            preds: 0,
            fills: Vec::new(),
            code: Vec::new(),
            data: Arc::from([]),
        };
        self.tuning(&mut kernel)?;
        self.want('{')?;
        self.statements(&mut body)?;
        body.code.push(Inst { guard: PSrc::ALWAYS, op: Op::Exit, line: self.line() });
        body.close()?;
        kernel.shared_bytes = body.shared;
        kernel.dynamic_shared = body.dynamic;
        kernel.local_bytes = align_up(body.local, 16);
        kernel.rows = body.rows;
        kernel.preds = body.preds;
        kernel.fills = body.fills;
        kernel.code = body.code;
        Ok(kernel)
    }

    fn params(&mut self, body: &mut Body) -> Parsed<(Vec<Param>, usize)> {
        let (mut params, mut end) = (Vec::new(), 0);
        if !self.mark('(') || self.mark(')') {
            return Ok((params, 0));
        }
        loop {
            let word = self.word()?;
            if word != ".param" {
                return self.wrong("`.param` expected");
            }
            // `.ptr .global .align 8` says what the pointer points to, which is the caller's affair.
            let start = self.at;
            let pointer = self.tokens[start..].iter().take(2).any(|t| t.kind == Tok::Word(".ptr".into()));
            let v = if pointer { self.pointer()? } else { self.variable()? };
            let Some(bytes) = v.bytes else { return self.wrong("a parameter without a length") };
            let offset = align_up(end, v.align);
            end = offset + bytes;
            body.scopes[0].names.insert(v.name.clone(), Symbol::Param(offset));
            params.push(Param {
                name: v.name,
                offset: offset as usize,
                bytes: bytes as usize,
                align: v.align as usize,
            });
            if !self.mark(',') {
                self.want(')')?;
                return Ok((params, end as usize));
            }
        }
    }

    /// `.u64 .ptr .global .align 8 name`
    fn pointer(&mut self) -> Parsed<Variable> {
        loop {
            let word = self.word()?;
            match word.as_str() {
                ".u64" | ".b64" | ".s64" | ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                ".align" => {
                    self.int()?;
                }
                _ => return Ok(Variable { name: word, align: 8, bytes: Some(8), init: Vec::new() }),
            }
        }
    }

    /// The directives between a kernel's parameters and its body.
    fn tuning(&mut self, k: &mut Kernel) -> Parsed<()> {
        while let Some(Tok::Word(w)) = self.peek() {
            let w = w.clone();
            self.at += 1;
            match w.as_str() {
                ".maxntid" => k.max_threads = Some(self.three()?),
                ".reqntid" => k.req_threads = Some(self.three()?),
                ".reqnctapercluster" => k.cluster = Some(self.three()?),
                ".maxclusterrank" | ".minnctapersm" | ".maxnreg" => {
                    self.int()?;
                }
                ".explicitcluster" => {}
                ".pragma" => self.pragma()?,
                _ => {
                    self.at -= 1;
                    return self.wrong(format!("the simulator does not know the directive `{w}`"));
                }
            }
        }
        Ok(())
    }

    fn pragma(&mut self) -> Parsed<()> {
        match self.peek() {
            Some(Tok::Text(_)) => self.at += 1,
            _ => return self.wrong("a text expected"),
        }
        self.want(';')
    }

    fn three(&mut self) -> Parsed<[u32; 3]> {
        let mut out = [1; 3];
        for (i, x) in out.iter_mut().enumerate() {
            if i > 0 && !self.mark(',') {
                break;
            }
            *x = self.int()? as u32;
        }
        Ok(out)
    }

    /// Statements up to and with the brace that closes them.
    fn statements(&mut self, body: &mut Body) -> Parsed<()> {
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

    fn operand(&mut self, body: Option<&Body>) -> Parsed<Operand> {
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

/// The special register of a name.
pub(crate) fn special(name: &str) -> Option<Special> {
    use Special::*;
    let axis = |make: fn(u8) -> Special, suffix: &str| match suffix {
        ".x" => Some(make(0)),
        ".y" => Some(make(1)),
        ".z" => Some(make(2)),
        _ => None,
    };
    Some(match name {
        "%laneid" => Lane,
        "%warpid" => WarpId,
        "%nwarpid" => WarpCount,
        "%smid" => SmId,
        "%nsmid" => SmCount,
        "%cluster_ctarank" => ClusterRank,
        "%cluster_nctarank" => ClusterSize,
        "%lanemask_eq" => MaskEq,
        "%lanemask_le" => MaskLe,
        "%lanemask_lt" => MaskLt,
        "%lanemask_ge" => MaskGe,
        "%lanemask_gt" => MaskGt,
        "%dynamic_smem_size" => DynamicBytes,
        "%total_smem_size" => SharedBytes,
        _ => {
            let (head, suffix) = name.split_at(name.len().checked_sub(2)?);
            return match head {
                "%tid" => axis(Tid, suffix),
                "%ntid" => axis(BlockDim, suffix),
                "%ctaid" => axis(BlockId, suffix),
                "%nctaid" => axis(GridDim, suffix),
                "%clusterid" => axis(ClusterId, suffix),
                "%nclusterid" => axis(ClusterCount, suffix),
                "%cluster_ctaid" => axis(ClusterBlock, suffix),
                "%cluster_nctaid" => axis(ClusterDim, suffix),
                _ => None,
            };
        }
    })
}
