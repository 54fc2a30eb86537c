//! Whether two answers are equal to math_verify, gold first.
//!
//! ```text
//! an equation against something else    its last side; the gold's only if it gives a name a value
//! numbers                               exactly; to six decimals where one is written with a point; 9% is 9 and 0.09
//! expressions                           by value: see `expr`
//! words                                 letter by letter, without case
//! relations                             equal differences, either way round; equations also up to a constant factor
//! sets                                  some order of the elements; with tuples, theirs; a set of one is its element
//! intervals                             by ends; an open one is also the pair of its ends
//! matrices                              cell by cell
//! ```
//!
//! Source: math_verify 0.9, grader.py (Apache-2.0), read for what it means.

use super::expr::{Expr, Op};

/// Elements of sets that are tried in every order.
const SET_MAX: usize = 64;

pub(super) fn equal(gold: &Expr, given: &Expr) -> bool {
    let given = match last_side(given) {
        Some(right) if last_side(gold).is_none() => right,
        _ => given,
    };
    let gold = match last_side(gold) {
        Some(right) if is_assignment(gold) && last_side(given).is_none() => right,
        _ => gold,
    };
    match (gold, given) {
        (Expr::Relation(sides, ops), Expr::Relation(other_sides, other_ops)) => {
            relations((sides, ops), (other_sides, other_ops))
        }
        (Expr::Relation(sides, ops), Expr::Interval { .. }) => {
            as_interval(sides, ops).is_some_and(|gold| equal(&gold, given))
        }
        (Expr::Matrix(a), Expr::Matrix(b)) => {
            let flat = |m: &[Vec<Expr>]| m.iter().map(Vec::len).collect::<Vec<_>>();
            flat(a) == flat(b) && a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| equal(a, b))
        }
        (Expr::Interval { ends: a, open: a_open }, Expr::Interval { ends: b, open: b_open }) => {
            a_open == b_open && equal(&a.0, &b.0) && equal(&a.1, &b.1)
        }
        (Expr::Interval { ends, open: (true, true) }, Expr::Set(_) | Expr::Tuple(_)) => {
            equal(&Expr::Tuple(vec![ends.0.clone(), ends.1.clone()]), given)
        }
        (Expr::Set(_) | Expr::Tuple(_), Expr::Interval { ends, open: (true, true) }) => {
            equal(gold, &Expr::Tuple(vec![ends.0.clone(), ends.1.clone()]))
        }
        (Expr::Union(a), Expr::Union(b)) | (Expr::Set(a), Expr::Set(b)) => same_elements(a, b),
        (Expr::Tuple(a), Expr::Tuple(b) | Expr::Set(b)) | (Expr::Set(a), Expr::Tuple(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Expr::Set(a), one) | (one, Expr::Set(a)) => a.len() == 1 && equal(&a[0], one),
        (Expr::Symbol(a), b) | (b, Expr::Symbol(a)) if a.starts_with("words ") => words(a, b),
        _ => gold.is_scalar() && given.is_scalar() && scalars(gold, given),
    }
}

/// The last side of a chain of equations.
fn last_side(e: &Expr) -> Option<&Expr> {
    match e {
        Expr::Relation(sides, ops) if ops.iter().all(|op| *op == Op::Equal) => sides.last(),
        _ => None,
    }
}

/// Whether a relation's left side is names alone.
fn is_assignment(e: &Expr) -> bool {
    let named = |e: &Expr| matches!(e, Expr::Symbol(_) | Expr::E);
    match e {
        Expr::Relation(sides, _) => match &sides[0] {
            Expr::Mul(parts) => parts.iter().all(named),
            Expr::Call(name, _) => name.starts_with("function "),
            side => named(side),
        },
        _ => false,
    }
}

fn scalars(a: &Expr, b: &Expr) -> bool {
    let value = |e: &Expr| match e {
        Expr::Percent(n) => n.exact(),
        _ => e.exact(),
    };
    let percent = matches!(a, Expr::Percent(_)) || matches!(b, Expr::Percent(_));
    if percent && value(a).is_some_and(|a| a.integer().is_some() && Some(a) == value(b)) {
        return true;
    }
    if matches!((a, b), (Expr::Infinity, Expr::Infinity)) || a == b {
        return true;
    }
    let written_with_point = |e: &Expr| match e {
        Expr::Number(_, point) => *point,
        Expr::Percent(e) => matches!(**e, Expr::Number(_, true)),
        Expr::Mul(parts) => matches!(parts[..], [Expr::Number(..), Expr::Number(_, true)]),
        _ => false,
    };
    if written_with_point(a) || written_with_point(b) {
        let rounded = |e: &Expr| e.at(0, false).map(|v| (v.re * 1e6).round_ties_even());
        let constant = |e: &Expr| e.at(0, false) == e.at(1, false);
        return constant(a) && constant(b) && rounded(a).is_some() && rounded(a) == rounded(b);
    }
    a.equals(b, false)
}

/// Words against words, or against letters that stand side by side.
fn words(a: &str, b: &Expr) -> bool {
    fn spell(e: &Expr, out: &mut String) -> Option<()> {
        match e {
            Expr::Symbol(name) => out.push_str(name.strip_prefix("words ").unwrap_or(name)),
            Expr::E => out.push('e'),
            Expr::Mul(parts) => parts.iter().try_for_each(|part| spell(part, out))?,
            _ => return None,
        }
        Some(())
    }
    let mut spelt = String::new();
    let letters = |s: &str| s.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    spell(b, &mut spelt).is_some() && letters(a.trim_start_matches("words ")) == letters(&spelt)
}

fn same_elements(a: &[Expr], b: &[Expr]) -> bool {
    if a.len() != b.len() || a.len() > SET_MAX {
        return false;
    }
    let mut free: Vec<&Expr> = b.iter().collect();
    a.iter().all(|a| match free.iter().position(|b| equal(a, b)) {
        Some(at) => {
            free.swap_remove(at);
            true
        }
        None => false,
    })
}

fn relations((a, a_ops): (&[Expr], &[Op]), (b, b_ops): (&[Expr], &[Op])) -> bool {
    if let ([a_left, a_right], [b_left, b_right], [a_op], [b_op]) = (a, b, a_ops, b_ops) {
        let (a, b) = (a_left.minus(a_right), b_left.minus(b_right));
        if !a.is_scalar() || !b.is_scalar() {
            return a_op == b_op && equal(a_left, b_left) && equal(a_right, b_right);
        }
        let same = a_op == b_op && a.equals(&b, false);
        let turned = a_op.flipped() == *b_op && a.equals(&b.clone().negated(), false);
        let scaled = *a_op == Op::Equal && *b_op == Op::Equal && proportional(&a, &b);
        return same || turned || scaled;
    }
    let straight = a_ops == b_ops && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b));
    let back = b_ops.iter().rev().map(|op| op.flipped());
    straight || a_ops.iter().copied().eq(back) && a.iter().zip(b.iter().rev()).all(|(a, b)| equal(a, b))
}

/// Whether one expression is a constant times the other.
fn proportional(a: &Expr, b: &Expr) -> bool {
    let ratio = Expr::Div(Box::new(a.clone()), Box::new(b.clone()));
    let (Some(first), Some(second), Some(third)) = (ratio.at(0, false), ratio.at(1, false), ratio.at(2, false)) else {
        return false;
    };
    let near = |v: super::number::Complex| v.sub(first).abs() <= 1e-9 * first.abs();
    first.abs() > 0.0 && near(second) && near(third)
}

/// `x < 3` and `1 < x <= 2` as intervals, for a symbol on one side or between.
fn as_interval(sides: &[Expr], ops: &[Op]) -> Option<Expr> {
    let infinity = |sign: i128| if sign < 0 { Expr::Infinity.negated() } else { Expr::Infinity };
    let strict = |op: &Op| matches!(op, Op::Less | Op::More);
    let up = |op: &Op| matches!(op, Op::Less | Op::AtMost);
    let down = |op: &Op| matches!(op, Op::More | Op::AtLeast);
    let interval = |low: Expr, high: Expr, open| Some(Expr::Interval { ends: Box::new((low, high)), open });
    match (sides, ops) {
        ([Expr::Symbol(_), a], [op]) if up(op) => interval(infinity(-1), a.clone(), (true, strict(op))),
        ([Expr::Symbol(_), a], [op]) if down(op) => interval(a.clone(), infinity(1), (strict(op), true)),
        ([a, Expr::Symbol(_)], [op]) if up(op) => interval(a.clone(), infinity(1), (strict(op), true)),
        ([a, Expr::Symbol(_)], [op]) if down(op) => interval(infinity(-1), a.clone(), (true, strict(op))),
        ([a, Expr::Symbol(_), b], [p, q]) if up(p) && up(q) => interval(a.clone(), b.clone(), (strict(p), strict(q))),
        ([a, Expr::Symbol(_), b], [p, q]) if down(p) && down(q) => {
            interval(b.clone(), a.clone(), (strict(q), strict(p)))
        }
        _ => None,
    }
}
