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

mod body;
mod statement;

use std::collections::HashMap;
use std::sync::Arc;

use crate::ir::{Inst, Kernel, Op, PSrc, Param, Row};
use crate::lex::{Tok, Token, tokens};
use crate::window;
use body::Scope;
pub(crate) use body::{Body, special};

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
}
