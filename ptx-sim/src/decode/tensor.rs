//! Matrix fragments and the tensor cores' products of a warp.

use super::Dec;
use crate::ir::{Elem, Matrix, Mma, Op, Row};
use crate::parse::{Operand, Parsed};

impl Dec<'_> {
    pub(super) fn tensor(&mut self) -> Parsed<Op> {
        self.must(&[("sync", ())])?;
        self.must(&[("aligned", ())])?;
        match self.name.as_str() {
            "mma" => self.mma(),
            "movmatrix" => {
                self.must(&[("m8n8", ())])?;
                self.must(&[("trans", ())])?;
                self.must(&[("b16", ())])?;
                self.count(2)?;
                Ok(Op::MovMatrix { d: self.dst(0, 32)?, a: self.src(1, 32)? })
            }
            _ => self.matrix(),
        }
    }

    fn matrix(&mut self) -> Parsed<Op> {
        let load = self.name == "ldmatrix";
        self.must(&[("m8n8", ())])?;
        let n = self.must(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
        let trans = self.take("trans");
        let space = self.space();
        self.must(&[("b16", ())])?;
        self.count(2)?;
        let (list, at) = if load { (0, 1) } else { (1, 0) };
        let rows = self.fragment(list, n, load)?;
        let m = Matrix { trans, space, addr: self.addr(at)?, rows };
        Ok(if load { Op::LdMatrix(Box::new(m)) } else { Op::StMatrix(Box::new(m)) })
    }

    /// The `n` words of operand `i`.
    fn fragment(&mut self, i: usize, n: usize, write: bool) -> Parsed<Box<[Row]>> {
        let list = match self.operand(i)? {
            Operand::Vector(list) => list,
            one => vec![one],
        };
        if list.len() != n {
            return self.wrong(format!("`{}`: {n} registers expected, {} given", self.opcode, list.len()));
        }
        list.iter().map(|o| if write { self.result(o, 32) } else { self.source(o, 32) }).collect()
    }

    fn mma(&mut self) -> Parsed<Op> {
        let k = self.must(&[("m16n8k16", 16u32), ("m16n8k8", 8), ("m16n8k4", 4)])?;
        self.must(&[("row", ())])?;
        self.must(&[("col", ())])?;
        let [d, a, b, c] = [self.ty()?, self.ty()?, self.ty()?, self.ty()?];
        let elem = match (a.as_str(), b.as_str(), k) {
            ("bf16", "bf16", 8 | 16) => Elem::Bf16,
            ("f16", "f16", 8 | 16) => Elem::F16,
            ("tf32", "tf32", 4 | 8) => Elem::Tf32,
            _ => return self.unknown(),
        };
        let half_sums = match (d.as_str(), c.as_str()) {
            ("f32", "f32") => false,
            ("f16", "f16") if elem == Elem::F16 => true,
            _ => return self.unknown(),
        };
        self.count(4)?;
        // A word holds two elements of 16 bits or one of tf32; A has 16 rows, B 8, for 32 lanes.
        let words = if elem == Elem::Tf32 { k as usize } else { k as usize / 2 };
        let sums = if half_sums { 2 } else { 4 };
        let d = self.fragment(0, sums, true)?;
        let (a, b, c) =
            (self.fragment(1, words / 2, false)?, self.fragment(2, words / 4, false)?, self.fragment(3, sums, false)?);
        Ok(Op::Mma(Box::new(Mma { elem, k, half_sums, d, a, b, c })))
    }
}
