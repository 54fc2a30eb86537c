//! A reader of answers in LaTeX.
//!
//! Two dialects. *Strict* is what sympy's `parse_latex` takes: one expression, of which a prefix may stand alone
//! (`1,2,3` reads as 1), letters and unknown commands are symbols (π and e too), a letter before parentheses is a
//! function. *Full* is what math_verify takes: all of the text, and lists, tuples, sets, intervals, matrices,
//! relations, percent, words, with π and e as numbers and letters of either case as one.
//!
//! ```text
//! relation  list of sums between = < > \le \ge \ne ...           sum      product (+ product)*
//! product   implied (· implied | / implied)*                      implied  factor factor*        (1/2x is 1/(2x))
//! factor    atom (^ exponent | ! | % | °)*
//! ```
//!
//! Texts of more than [`TOKENS_MAX`] tokens and nesting deeper than [`DEPTH_MAX`] are no answers, nor is what takes
//! more than [`STEPS_MAX`] atoms to read: where two rules begin alike, the second reads the same tokens again.

use super::expr::{Expr, Op};
use super::number::Ratio;
use super::token::{Token, tokens};

const BYTES_MAX: usize = 8192;
const TOKENS_MAX: usize = 1000;
const DEPTH_MAX: usize = 60;
const STEPS_MAX: usize = 20_000;

/// Reads an answer; `strict` chooses the dialect.
pub(super) fn parse(text: &str, strict: bool) -> Option<Expr> {
    if text.len() > BYTES_MAX {
        return None;
    }
    let tokens = tokens(text, strict);
    if tokens.len() > TOKENS_MAX {
        return None;
    }
    let mut p = Parser { tokens: &tokens, at: 0, strict, depth: 0, steps: 0 };
    if strict {
        let read = p.relation()?;
        // The character after the prefix must at least be one that LaTeX's lexer knows.
        let known = !matches!(p.peek(), Some(Token::Sign('%' | '.' | '"' | '?' | '\u{fffd}')));
        return (known && read.is_scalar()).then_some(read);
    }
    let mut parts = vec![p.union()?];
    while p.sign(',') || p.sign(';') {
        parts.push(p.union()?);
    }
    if p.at < tokens.len() {
        return None;
    }
    Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Set(parts) })
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    strict: bool,
    depth: usize,
    steps: usize,
}

const FUNCTIONS: [&str; 20] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan", "ln", "log", "exp",
    "lg", "max", "min", "det", "gcd",
];

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn sign(&mut self, c: char) -> bool {
        let found = self.peek() == Some(&Token::Sign(c));
        self.at += usize::from(found);
        found
    }

    fn command(&mut self, name: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Command(found)) if found == name);
        self.at += usize::from(found);
        found
    }

    /// Runs a rule; on failure, steps back to where it began.
    fn attempt<T>(&mut self, rule: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let at = self.at;
        let read = rule(self);
        if read.is_none() {
            self.at = at;
        }
        read
    }

    /// Sets joined by `\cup`.
    fn union(&mut self) -> Option<Expr> {
        let first = self.relation()?;
        let mut parts = vec![first];
        while self.command("cup") {
            parts.push(self.relation()?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Union(parts) })
    }

    fn relation(&mut self) -> Option<Expr> {
        let first = self.sum()?;
        let (mut sides, mut ops) = (vec![first], Vec::new());
        loop {
            let next = self.attempt(|p| {
                let op = p.op()?;
                Some((op, p.sum()?))
            });
            let Some((op, side)) = next else { break };
            ops.push(op);
            sides.push(side);
        }
        Some(if ops.is_empty() { sides.remove(0) } else { Expr::Relation(sides, ops) })
    }

    fn op(&mut self) -> Option<Op> {
        let op = match self.peek()? {
            Token::Sign('=') => Op::Equal,
            Token::Sign('<') => Op::Less,
            Token::Sign('>') => Op::More,
            Token::Command(name) => match name.as_str() {
                "le" | "leq" | "leqslant" => Op::AtMost,
                "ge" | "geq" | "geqslant" => Op::AtLeast,
                "lt" => Op::Less,
                "gt" => Op::More,
                "ne" | "neq" => Op::NotEqual,
                "in" if !self.strict => Op::Equal,
                _ => return None,
            },
            _ => return None,
        };
        self.at += 1;
        Some(op)
    }

    fn sum(&mut self) -> Option<Expr> {
        self.depth += 1;
        let read = if self.depth > DEPTH_MAX { None } else { self.sum_inside() };
        self.depth -= 1;
        read
    }

    fn sum_inside(&mut self) -> Option<Expr> {
        let mut parts = Vec::new();
        if !self.strict && self.command("pm") {
            let value = self.product().filter(Expr::is_scalar)?;
            return Some(Expr::Set(vec![value.clone(), value.negated()]));
        }
        parts.push(self.signed()?);
        loop {
            if !self.strict && self.command("pm") {
                // Each is written twice, so neither may hold another choice.
                let base = Some(Expr::Add(parts)).filter(Expr::is_scalar)?;
                let value = self.product().filter(Expr::is_scalar)?;
                return Some(Expr::Set(vec![Expr::Add(vec![base.clone(), value.clone()]), base.minus(&value)]));
            }
            let next = self.attempt(|p| {
                let minus = matches!(p.peek()?, Token::Sign('-'));
                if !minus && !p.sign('+') {
                    return None;
                }
                p.signed()
            });
            match next {
                Some(part) => parts.push(part),
                None => break,
            }
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Add(parts) })
    }

    /// A product behind any number of signs.
    fn signed(&mut self) -> Option<Expr> {
        let mut negative = false;
        loop {
            if self.sign('-') {
                negative = !negative;
            } else if !self.sign('+') {
                break;
            }
        }
        let product = self.product()?;
        Some(if negative { product.negated() } else { product })
    }

    fn product(&mut self) -> Option<Expr> {
        let mut left = self.implied()?;
        loop {
            let next = self.attempt(|p| {
                let times = p.command("times") || p.sign('*');
                if !times && !p.command("div") && !p.sign('/') && !p.sign(':') {
                    return None;
                }
                Some((times, p.signed_factor()?))
            });
            left = match next {
                Some((true, right)) => Expr::Mul(vec![left, right]),
                Some((false, right)) => Expr::Div(Box::new(left), Box::new(right)),
                None => return Some(left),
            };
        }
    }

    fn signed_factor(&mut self) -> Option<Expr> {
        if self.sign('-') {
            return Some(self.implied()?.negated());
        }
        self.implied()
    }

    /// Factors that stand side by side.
    fn implied(&mut self) -> Option<Expr> {
        let mut parts = vec![self.factor()?];
        while let Some(part) = self.attempt(Parser::factor) {
            parts.push(part);
        }
        if parts.len() == 1 {
            return Some(parts.remove(0));
        }
        // 3½ is a mixed number; so is any pair of numbers to math_verify.
        let mixed = match &parts[..] {
            [Expr::Number(n, _), second] if !self.strict => {
                n.integer().is_some() && second.exact().is_some() && !matches!(second, Expr::Pow(..))
            }
            _ => false,
        };
        Some(if mixed { Expr::Add(parts) } else { Expr::Mul(parts) })
    }

    fn factor(&mut self) -> Option<Expr> {
        let mut base = self.atom()?;
        loop {
            if self.sign('!') {
                base = Expr::Call("factorial".into(), vec![base]);
            } else if !self.strict && matches!(base, Expr::Number(..)) && self.sign('%') {
                base = Expr::Percent(Box::new(base));
            } else if self.sign('^') {
                let degrees = self.attempt(|p| {
                    let braced = p.sign('{');
                    (p.command("circ") && (!braced || p.sign('}'))).then_some(())
                });
                if degrees.is_some() && !base.is_scalar() {
                    return None;
                }
                if degrees.is_none() {
                    base = Expr::Pow(Box::new(base), Box::new(self.exponent()?));
                }
            } else {
                return Some(base);
            }
        }
    }

    fn exponent(&mut self) -> Option<Expr> {
        if self.sign('{') {
            let inside = self.sum()?;
            return self.sign('}').then_some(inside);
        }
        if self.sign('-') {
            return Some(self.atom()?.negated());
        }
        self.atom()
    }

    fn atom(&mut self) -> Option<Expr> {
        let token = self.peek()?;
        self.at += 1;
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return None;
        }
        match token {
            Token::Number(text) => self.number(text),
            Token::Letter(c) => self.letter(*c),
            Token::Words(words) if words.is_empty() => self.atom(),
            Token::Words(words) => Some(Expr::Symbol(format!("words {words}"))),
            Token::Command(name) => self.after_command(name),
            Token::Sign('(') => self.bracketed(true),
            Token::Sign('[') => self.bracketed(false),
            Token::Sign('{') => {
                let inside = self.sum()?;
                self.sign('}').then_some(inside)
            }
            Token::Sign('|') => {
                let inside = self.sum()?;
                self.sign('|').then(|| Expr::Call("abs".into(), vec![inside]))
            }
            Token::Sign(_) => None,
        }
    }

    fn number(&mut self, text: &str) -> Option<Expr> {
        // A base says nothing to math_verify; the other reader stops before it.
        if !self.strict && self.sign('_') {
            self.index()?;
        }
        Some(match Ratio::parse(text) {
            Some(n) => Expr::Number(n, text.contains('.')),
            // Too long for exact arithmetic: equal to itself alone.
            None => Expr::Symbol(format!("number {text}")),
        })
    }

    /// A letter with its index, or a function of one.
    fn letter(&mut self, c: char) -> Option<Expr> {
        let mut name = c.to_string();
        if self.sign('_') {
            name.push('_');
            name.push_str(&self.index()?);
        }
        while self.sign('\'') {
            name.push('\'');
        }
        let may_call = self.strict || matches!(c, 'f' | 'g' | 'h');
        if may_call && self.peek() == Some(&Token::Sign('(')) {
            let args = self.attempt(|p| {
                p.at += 1;
                let mut args = vec![p.sum()?];
                while p.sign(',') {
                    args.push(p.sum()?);
                }
                p.sign(')').then_some(args)
            });
            if let Some(args) = args {
                return Some(Expr::Call(format!("function {name}"), args));
            }
        }
        Some(if name == "e" && !self.strict { Expr::E } else { Expr::Symbol(name) })
    }

    /// What stands after `_`, as text.
    fn index(&mut self) -> Option<String> {
        let plain = |token: &Token| match token {
            Token::Number(text) | Token::Command(text) | Token::Words(text) => text.clone(),
            Token::Letter(c) | Token::Sign(c) => c.to_string(),
        };
        if !self.sign('{') {
            self.at += 1;
            return self.tokens.get(self.at - 1).map(plain);
        }
        let rest = &self.tokens[self.at..];
        let len = rest.iter().position(|t| *t == Token::Sign('}'))?;
        self.at += len + 1;
        Some(rest[..len].iter().map(plain).collect())
    }

    fn group(&mut self) -> Option<Expr> {
        if self.sign('{') {
            let inside = self.sum()?;
            return self.sign('}').then_some(inside);
        }
        match self.peek()? {
            // \frac12: one digit each, which a longer number gives away.
            Token::Number(_) | Token::Letter(_) | Token::Command(_) => self.atom(),
            _ => None,
        }
    }

    fn after_command(&mut self, name: &str) -> Option<Expr> {
        match name {
            "frac" => self.fraction(),
            "binom" | "dbinom" | "tbinom" => Some(Expr::Call("binom".into(), vec![self.group()?, self.group()?])),
            "sqrt" => self.root(),
            "infty" => Some(Expr::Infinity),
            "pi" if !self.strict => Some(Expr::Pi),
            "lfloor" => self.enclosed("rfloor", "floor"),
            "lceil" => self.enclosed("rceil", "ceil"),
            "{" | "lbrace" if self.strict => {
                let inside = self.sum()?;
                (self.command("}") || self.command("rbrace")).then_some(inside)
            }
            "{" | "lbrace" => self.set(),
            "emptyset" | "varnothing" if !self.strict => Some(Expr::Set(Vec::new())),
            "begin" if !self.strict => self.matrix(),
            "boxed" | "overline" | "mathbf" | "vec" if !self.strict => self.group(),
            _ if FUNCTIONS.contains(&name) => self.function(name),
            "}" | "rbrace" | "rfloor" | "rceil" | "cup" | "cap" | "end" | "\\" | "times" | "div" => None,
            "le" | "leq" | "ge" | "geq" | "lt" | "gt" | "ne" | "neq" => None,
            "in" if !self.strict => None,
            _ => {
                let mut name = format!("\\{name}");
                if self.sign('_') {
                    name.push('_');
                    name.push_str(&self.index()?);
                }
                Some(Expr::Symbol(name))
            }
        }
    }

    fn fraction(&mut self) -> Option<Expr> {
        // \frac12 is one token of two digits, or of more: its first two are the fraction.
        if let Some(Token::Number(digits)) = self.peek()
            && digits.len() >= 2
            && digits.bytes().all(|b| b.is_ascii_digit())
        {
            self.at += 1;
            let ratio = |text: &str| Ratio::parse(text).map(|n| Expr::Number(n, false));
            let fraction = Expr::Div(Box::new(ratio(&digits[..1])?), Box::new(ratio(&digits[1..2])?));
            let rest = &digits[2..];
            return Some(if rest.is_empty() { fraction } else { Expr::Mul(vec![fraction, ratio(rest)?]) });
        }
        Some(Expr::Div(Box::new(self.group()?), Box::new(self.group()?)))
    }

    fn root(&mut self) -> Option<Expr> {
        let degree = if self.sign('[') {
            let degree = self.sum()?;
            self.sign(']').then_some(degree)?
        } else {
            Expr::integer(2)
        };
        let inverse = Expr::Div(Box::new(Expr::integer(1)), Box::new(degree));
        Some(Expr::Pow(Box::new(self.group()?), Box::new(inverse)))
    }

    fn enclosed(&mut self, end: &str, name: &str) -> Option<Expr> {
        let inside = self.sum()?;
        self.command(end).then(|| Expr::Call(name.into(), vec![inside]))
    }

    /// A function: its base or power first, then its argument, in parentheses or what stands side by side.
    fn function(&mut self, name: &str) -> Option<Expr> {
        let mut base = None;
        if self.sign('_') {
            base = Some(self.exponent()?);
        }
        let power = if self.sign('^') { Some(self.exponent()?) } else { None };
        let mut args = Vec::new();
        if self.sign('(') {
            args.push(self.sum()?);
            while self.sign(',') {
                args.push(self.sum()?);
            }
            if !self.sign(')') {
                return None;
            }
        } else if self.strict && self.sign('{') {
            args.push(self.sum()?);
            if !self.sign('}') {
                return None;
            }
        } else {
            args.push(self.plain_argument()?);
        }
        let inverse = power.as_ref().is_some_and(|p| p.exact() == Ratio::new(-1, 1)) && name.len() == 3;
        let call = match name {
            "log" | "lg" => {
                // sympy's reader takes e for the base where none is written, math_verify's takes 10.
                let natural = base.is_none() && self.strict && name == "log";
                match base {
                    _ if natural => Expr::Call("ln".into(), args),
                    base => {
                        let x = args.into_iter().next()?;
                        Expr::Call("log".into(), vec![x, base.unwrap_or_else(|| Expr::integer(10))])
                    }
                }
            }
            _ if inverse => Expr::Call(format!("arc{name}"), args),
            _ => Expr::Call(name.into(), args),
        };
        Some(match power {
            Some(power) if !inverse => Expr::Pow(Box::new(call), Box::new(power)),
            _ => call,
        })
    }

    /// Factors side by side up to the next function.
    fn plain_argument(&mut self) -> Option<Expr> {
        let mut parts = vec![self.factor()?];
        while !matches!(self.peek(), Some(Token::Command(name)) if FUNCTIONS.contains(&name.as_str())) {
            match self.attempt(Parser::factor) {
                Some(part) => parts.push(part),
                None => break,
            }
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Mul(parts) })
    }

    /// What stands in `(` or `[`: an expression, a tuple, an interval.
    fn bracketed(&mut self, round: bool) -> Option<Expr> {
        let mut parts = vec![if self.strict { self.sum()? } else { self.relation()? }];
        while !self.strict && self.sign(',') {
            parts.push(self.relation()?);
        }
        let round_end = self.sign(')');
        if !round_end && !self.sign(']') {
            return None;
        }
        match parts.len() {
            1 => (round == round_end).then(|| parts.remove(0)),
            2 => {
                let right = parts.pop()?;
                Some(Expr::Interval { ends: Box::new((parts.pop()?, right)), open: (round, round_end) })
            }
            _ => (round == round_end).then_some(Expr::Tuple(parts)),
        }
    }

    fn set(&mut self) -> Option<Expr> {
        let mut parts = Vec::new();
        if self.command("}") || self.command("rbrace") {
            return Some(Expr::Set(parts));
        }
        loop {
            parts.push(self.relation()?);
            if self.command("}") || self.command("rbrace") {
                return Some(Expr::Set(parts));
            }
            if !self.sign(',') {
                return None;
            }
        }
    }

    /// `\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}`
    fn matrix(&mut self) -> Option<Expr> {
        self.index_braces()?;
        let mut rows = vec![Vec::new()];
        loop {
            if self.command("end") {
                self.index_braces()?;
                break;
            }
            if self.command("\\") {
                rows.push(Vec::new());
            } else if !self.sign('&') {
                let cell = self.sum()?;
                rows.last_mut()?.push(cell);
            }
        }
        rows.retain(|row| !row.is_empty());
        Some(Expr::Matrix(rows))
    }

    fn index_braces(&mut self) -> Option<()> {
        (self.peek() == Some(&Token::Sign('{'))).then_some(())?;
        self.index().map(|_| ())
    }
}
