//! Control flow, barriers, fences and what the lanes of a warp do together.

use super::Dec;
use crate::ir::{Bar, BarRed, Op, Redux, ShflMode, Vote, WarpOp, Width};
use crate::parse::{Operand, Parsed, type_bits};

impl Dec<'_> {
    pub(super) fn sync(&mut self) -> Parsed<Op> {
        match self.name.as_str() {
            "bra" => {
                self.take("uni");
                self.count(1)?;
                let Operand::Name(label, 0) = self.operand(0)? else { return self.wrong("a label expected") };
                self.body.branch_to(&label, self.line);
                Ok(Op::Bra { target: u32::MAX })
            }
            "brx" => {
                self.must(&[("idx", ())])?;
                self.take("uni");
                self.count(2)?;
                let idx = self.src(0, 32)?;
                let Operand::Name(table, 0) = self.operand(1)? else { return self.wrong("a list of labels expected") };
                self.body.branch_to(&table, self.line);
                Ok(Op::Brx { idx, targets: Box::new([]) })
            }
            // Kernels call no functions, so that to return is to end.
            "ret" | "exit" => {
                self.take("uni");
                self.count(0)?;
                Ok(Op::Exit)
            }
            "trap" => Ok(Op::Trap),
            "nanosleep" => {
                self.take("u32");
                Ok(Op::Nanosleep)
            }
            "pmevent" => Ok(Op::Nop),
            "griddepcontrol" => {
                // Launches run one after the other here: what they wait for has always happened.
                self.must(&[("wait", ()), ("launch_dependents", ())])?;
                Ok(Op::Nop)
            }
            "membar" => {
                self.must(&[("cta", ()), ("gl", ()), ("sys", ())])?;
                Ok(Op::Fence { proxy: false })
            }
            "fence" => self.fence(),
            "bar" | "barrier" => self.barrier(),
            "activemask" => {
                self.must(&[("b32", ())])?;
                self.count(1)?;
                Ok(Op::ActiveMask { d: self.dst(0, 32)? })
            }
            _ => self.warp(),
        }
    }

    fn fence(&mut self) -> Parsed<Op> {
        if self.take("proxy") {
            if self.take("async") || self.take("async::generic") || self.take("async.global") {
                self.space();
                return Ok(Op::Fence { proxy: true });
            }
            return self.unknown();
        }
        self.one_of(&[("sc", ()), ("acq_rel", ()), ("acquire", ()), ("release", ())]);
        self.one_of(&[("mbarrier_init", ())]);
        self.scope();
        Ok(Op::Fence { proxy: false })
    }

    fn barrier(&mut self) -> Parsed<Op> {
        if self.take("warp") {
            self.must(&[("sync", ())])?;
            self.count(1)?;
            return Ok(Op::Warp { op: WarpOp::Sync, mask: self.src(0, 32)? });
        }
        if self.take("cluster") {
            self.count(0)?;
            self.take("aligned");
            if self.take("arrive") {
                self.take("release");
                return Ok(Op::ClusterArrive { release: !self.take("relaxed") });
            }
            self.must(&[("wait", ())])?;
            self.take("acquire");
            return Ok(Op::ClusterWait);
        }
        self.take("cta");
        self.take("aligned");
        if self.take("sync") || self.take("arrive") {
            let arrive_only = self.opcode.contains("arrive");
            let count = match self.operands.len() {
                1 if !arrive_only => None,
                2 => Some(self.src(1, 32)?),
                _ => return self.unknown(),
            };
            return Ok(Op::Bar(Box::new(Bar { arrive_only, id: self.src(0, 32)?, count, red: None })));
        }
        if !self.take("red") {
            return self.unknown();
        }
        let kind = self.must(&[("popc", 0u8), ("and", 1), ("or", 2)])?;
        self.ty()?;
        let n = self.operands.len();
        if !(3..=4).contains(&n) {
            return self.unknown();
        }
        let d = self.operand(0)?;
        let red = match kind {
            0 => BarRed::Popc(self.result(&d, 32)?),
            _ => {
                let Some(p) = self.pred_dst(&d)? else { return self.unknown() };
                if kind == 1 { BarRed::And(p) } else { BarRed::Or(p) }
            }
        };
        let count = if n == 4 { Some(self.src(2, 32)?) } else { None };
        let p = self.pred_src(n - 1)?;
        Ok(Op::Bar(Box::new(Bar { arrive_only: false, id: self.src(1, 32)?, count, red: Some((red, p)) })))
    }

    fn warp(&mut self) -> Parsed<Op> {
        self.must(&[("sync", ())])?;
        let (op, mask) = match self.name.as_str() {
            "shfl" => {
                let mode = self.must(&[
                    ("up", ShflMode::Up),
                    ("down", ShflMode::Down),
                    ("bfly", ShflMode::Bfly),
                    ("idx", ShflMode::Idx),
                ])?;
                self.must(&[("b32", ())])?;
                self.count(5)?;
                let (d, p) = self.value_and_pred(32)?;
                let (a, b, c) = (self.src(1, 32)?, self.src(2, 32)?, self.src(3, 32)?);
                (WarpOp::Shfl { mode, d, p, a, b, c }, 4)
            }
            "vote" => {
                let mode =
                    self.must(&[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)])?;
                self.ty()?;
                self.count(3)?;
                let a = self.pred_src(1)?;
                let d = self.operand(0)?;
                if mode == Vote::Ballot {
                    (WarpOp::Ballot { d: self.result(&d, 32)?, a }, 2)
                } else {
                    let Some(d) = self.pred_dst(&d)? else { return self.unknown() };
                    (WarpOp::VotePred { mode, d, a }, 2)
                }
            }
            "match" => {
                let all = self.must(&[("any", false), ("all", true)])?;
                let t = self.ty()?;
                let bits = type_bits(&t).unwrap_or(32);
                self.count(3)?;
                let (d, p) = self.value_and_pred(32)?;
                let (w, a) = (Width::of(bits), self.src(1, bits)?);
                let Some(d) = d else { return self.unknown() };
                (if all { WarpOp::MatchAll { w, d, p, a } } else { WarpOp::MatchAny { w, d, a } }, 2)
            }
            "redux" => self.redux()?,
            "elect" => {
                self.count(2)?;
                let (d, p) = self.value_and_pred(32)?;
                let Some(p) = p else { return self.unknown() };
                (WarpOp::Elect { d, p }, 1)
            }
            _ => return self.unknown(),
        };
        Ok(Op::Warp { op, mask: self.src(mask, 32)? })
    }

    fn redux(&mut self) -> Parsed<(WarpOp, usize)> {
        let kind = self.must(&[("add", 0u8), ("min", 1), ("max", 2), ("and", 3), ("or", 4), ("xor", 5)])?;
        let t = self.ty()?;
        let op = match (kind, t.as_str()) {
            (0, "u32" | "s32") => Redux::Add,
            (1, "u32") => Redux::MinU,
            (1, "s32") => Redux::MinS,
            (2, "u32") => Redux::MaxU,
            (2, "s32") => Redux::MaxS,
            (3, "b32") => Redux::And,
            (4, "b32") => Redux::Or,
            (5, "b32") => Redux::Xor,
            _ => return self.unknown(),
        };
        self.count(3)?;
        Ok((WarpOp::Redux { op, d: self.dst(0, 32)?, a: self.src(1, 32)? }, 2))
    }

    /// The result `d|p`, or `d` alone.
    fn value_and_pred(&mut self, bits: u32) -> Parsed<(Option<u32>, Option<u16>)> {
        match self.operand(0)? {
            Operand::Pair(d, p) => {
                let d = if *d == Operand::Sink { None } else { Some(self.result(&d, bits)?) };
                Ok((d, self.pred_dst(&p)?))
            }
            one => Ok((Some(self.result(&one, bits)?), None)),
        }
    }
}
