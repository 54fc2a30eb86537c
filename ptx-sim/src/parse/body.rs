//! A kernel while it is read: its names by scope, its rows of registers, its code so far.

use std::collections::HashMap;

use super::{Parsed, Symbol, Wrong};
use crate::ir::{Fill, Inst, Op, Row, Special, Width};

/// The scope between one pair of braces.
#[derive(Default)]
pub(super) struct Scope {
    pub names: HashMap<String, Symbol>,
    pub labels: HashMap<String, u32>,
    pub tables: HashMap<String, Vec<String>>,
    /// Branches to names not met yet.
    pending: Vec<(usize, String, u32)>,
}

/// A kernel while it is read: what the decoder of instructions may ask and add.
pub(crate) struct Body {
    pub(super) scopes: Vec<Scope>,
    pub(super) globals: HashMap<String, Symbol>,
    pub code: Vec<Inst>,
    pub(super) rows: u32,
    pub(super) preds: u16,
    pub(super) fills: Vec<(Row, Width, Fill)>,
    pub(super) consts: HashMap<(Width, Fill), Row>,
    pub(super) shared: u64,
    pub(super) shared_align: u64,
    pub(super) local: u64,
    pub(super) dynamic: bool,
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

    pub(super) fn close(&mut self) -> Parsed<()> {
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
