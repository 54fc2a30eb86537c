//! What a validator measures on updates before they count, and what it makes of it.
//!
//! Each update has passed [`super::blob::check`]: it is well formed, of this run, round and base. Now they are held
//! against each other. d_r: what update r decodes to, P_r: the places it sends, over all tensors.
//!
//! ```text
//! length       ‖d_r‖
//! overlap      max over s before r   |P_r ∩ P_s| / |P_r|         s: committed before r, or of the round before
//! agreement    Σ_i∈S sign(d_ri · o_ri) / |S|
//!              o_r = Σ_s≠r d_s / ‖d_s‖,   S: places of P_r where o_r is not zero
//! ```
//!
//! An honest update has the length of the others', its own places, and where others send the same place it pushes to
//! the same side far more often than not: its rows are drawn from the same text. Zeros have no length, a blow-up too
//! much of it; a copy has another's places, even with other values on them; noise agrees as often as not, and a flipped
//! sign hardly ever. What is allowed is relative to the median of the round ([`Limits`]), so no limit ages as the loss
//! falls. Up to half of the updates may lie before a median does.
//!
//! The places are sampled by a hash of the place, about [`SAMPLE`] of them at most, the same in every update.

use super::blob::Layout;
use esker_kernels::ops::chunk_topk::record;

/// Places of an update that are compared.
pub const SAMPLE: usize = 1 << 16;

/// What was measured on one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// L2 norm of all values.
    pub norm: f64,
    /// The largest share of its places that an earlier one has.
    pub overlap: f64,
    /// Which one that is; none where nothing came before.
    pub nearest: Option<Nearest>,
    /// From −1 to 1; 0 where nobody else sends any of its places.
    pub agreement: f64,
}

/// Whose places an update has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nearest {
    /// The update of this round with that index.
    Now(usize),
    /// That of the round before with that index.
    Before(usize),
}

/// What an update is allowed, relative to the round's median.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Its norm at least, as a share of the median norm.
    pub norm_min: f64,
    /// Its norm at most.
    pub norm_max: f64,
    /// Its overlap at most.
    pub overlap_max: f64,
    /// Its agreement at least, as a share of the median agreement.
    pub agreement_min: f64,
}

impl Limits {
    /// What honest owners stay within by a factor of two or more: see `train/benches/record/sparseloco`.
    pub const DEFAULT: Limits = Limits { norm_min: 0.1, norm_max: 10.0, overlap_max: 0.6, agreement_min: 0.4 };
}

/// Why an update does not count.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It hardly moves anything.
    #[error("its norm {norm:.3e} is under {limit:.3e}, which the round's median allows: it adds nothing")]
    TooShort {
        /// Its norm.
        norm: f64,
        /// The least.
        limit: f64,
    },
    /// It moves too much.
    #[error("its norm {norm:.3e} is over {limit:.3e}, which the round's median allows")]
    TooLong {
        /// Its norm.
        norm: f64,
        /// The most.
        limit: f64,
    },
    /// It is another's, or an old one.
    #[error("{overlap:.2} of its places are those of an earlier update; at most {limit:.2}")]
    Copy {
        /// The share.
        overlap: f64,
        /// The most.
        limit: f64,
        /// Whose.
        of: Nearest,
    },
    /// It pushes the other way.
    #[error("it agrees with the others' signs by {agreement:.3}; at least {limit:.3}: it does not train on this text")]
    Disagrees {
        /// By how much it agrees.
        agreement: f64,
        /// The least.
        limit: f64,
    },
}

/// A validator's memory: the places of the round before.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    before: Vec<Vec<u64>>,
}

impl Judge {
    /// Measures the updates of a round, in the order of their commits. Each must have passed [`super::blob::check`].
    pub fn measure(&mut self, layout: &Layout, blobs: &[&[u8]]) -> Vec<Measured> {
        let norms: Vec<f64> = blobs.iter().map(|blob| norm(layout, blob)).collect();
        let agreements = agreements(layout, blobs, &norms);
        let places: Vec<Vec<u64>> = blobs.iter().map(|blob| places(layout, blob)).collect();
        let earlier = |r: usize| {
            let now = (0..r).map(|s| (Nearest::Now(s), shared(&places[r], &places[s])));
            let before = self.before.iter().enumerate().map(|(s, old)| (Nearest::Before(s), shared(&places[r], old)));
            now.chain(before).max_by(|a, b| a.1.total_cmp(&b.1))
        };
        let measured = (0..blobs.len()).map(|r| {
            let nearest = earlier(r);
            Measured {
                norm: norms[r],
                overlap: nearest.map_or(0.0, |(_, share)| share),
                nearest: nearest.map(|(which, _)| which),
                agreement: agreements[r],
            }
        });
        let measured = measured.collect();
        self.before = places;
        measured
    }
}

/// Which of the updates count: none, or the reason against it, in their order.
pub fn judge(measured: &[Measured], limits: &Limits) -> Vec<Option<Reason>> {
    let norm = median(measured.iter().map(|m| m.norm));
    let agreement = median(measured.iter().map(|m| m.agreement));
    let alone = measured.len() < 3;
    let reason = |m: &Measured| {
        let (low, high, least) = (limits.norm_min * norm, limits.norm_max * norm, limits.agreement_min * agreement);
        // A round that moves nothing has a median of 0, and nobody in it moves less.
        if m.norm < low || m.norm == 0.0 {
            return Some(Reason::TooShort { norm: m.norm, limit: low });
        }
        if m.norm > high {
            return Some(Reason::TooLong { norm: m.norm, limit: high });
        }
        if let Some(of) = m.nearest.filter(|_| m.overlap > limits.overlap_max) {
            return Some(Reason::Copy { overlap: m.overlap, limit: limits.overlap_max, of });
        }
        // Of two that disagree nobody knows which is right.
        if !alone && m.agreement < least {
            return Some(Reason::Disagrees { agreement: m.agreement, limit: least });
        }
        None
    };
    measured.iter().map(reason).collect()
}

/// The lower of the two in the middle, of an even number.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// Calls `each(element, value)` for what `blob` holds of tensor `i`.
fn visit(layout: &Layout, i: usize, blob: &[u8], each: impl FnMut(usize, f32)) {
    let part = &layout.parts()[i];
    record::visit(part.grid, layout.spec(), &blob[part.bytes.clone()], each)
        .expect("judge: an update that was checked");
}

/// L2 norm of all that an update holds: f64, in the order of its bytes, so the same everywhere.
pub fn norm(layout: &Layout, blob: &[u8]) -> f64 {
    let mut squares = 0.0;
    for i in 0..layout.parts().len() {
        visit(layout, i, blob, |_, d| squares += f64::from(d) * f64::from(d));
    }
    f64::sqrt(squares)
}

/// Tensor by tensor, so that one dense tensor of sums is held at a time.
fn agreements(layout: &Layout, blobs: &[&[u8]], norms: &[f64]) -> Vec<f64> {
    let mut same = vec![(0u64, 0i64); blobs.len()];
    let longest = layout.parts().iter().map(|part| part.grid.len()).max().unwrap_or(0);
    let mut sum = vec![0.0f64; longest];
    for (i, part) in layout.parts().iter().enumerate() {
        sum[..part.grid.len()].fill(0.0);
        let unit = |r: usize, d: f32| f64::from(d) / norms[r].max(f64::MIN_POSITIVE);
        for (r, blob) in blobs.iter().enumerate() {
            visit(layout, i, blob, |at, d| sum[at] += unit(r, d));
        }
        for (r, blob) in blobs.iter().enumerate() {
            let (places, sign) = &mut same[r];
            visit(layout, i, blob, |at, d| {
                let (own, all) = (unit(r, d), sum[at]);
                let others = all - own;
                // What is left of the sum's rounding is nobody's.
                if others.abs() > 1e-9 * all.abs().max(own.abs()) {
                    *places += 1;
                    *sign += if own * others > 0.0 { 1 } else { -1 };
                }
            });
        }
    }
    same.into_iter().map(|(places, sign)| if places == 0 { 0.0 } else { sign as f64 / places as f64 }).collect()
}

/// A sample of the places of an update, ascending: of all tensors, one number each.
pub fn places(layout: &Layout, blob: &[u8]) -> Vec<u64> {
    let kept: usize = layout.parts().iter().map(|part| part.grid.len() * layout.spec().k / 4096).sum();
    let every = (kept / SAMPLE).max(1) as u64;
    let (mut found, mut first) = (Vec::with_capacity(kept.min(2 * SAMPLE)), 0);
    for (i, part) in layout.parts().iter().enumerate() {
        visit(layout, i, blob, |at, _| {
            let place = first + at as u64;
            if every == 1 || mix(place).is_multiple_of(every) {
                found.push(place);
            }
        });
        first += part.grid.len() as u64;
    }
    found.sort_unstable();
    found
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The share of `a` that is in `b`; both ascend.
fn shared(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        both += u64::from(a[i] == b[j]);
        (i, j) = (i + usize::from(a[i] <= b[j]), j + usize::from(b[j] <= a[i]));
    }
    both as f64 / a.len().max(1) as f64
}
