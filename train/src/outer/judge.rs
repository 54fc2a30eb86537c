//! What a validator measures on an update that [`super::blob::check`] has passed, for [`esker_comms::round::judge`] to
//! hold against the others of the round, and how far an honest update may be from them.
//!
//! ```text
//! norm     ‖d‖, d: what it decodes to
//! picks    a sketch of the places that it moves, over all tensors
//! signs    to which side it moves them
//! ```
//!
//! An honest update has the length of the others', its own places, and where others send the same place it pushes to
//! the same side far more often than not: its rows are drawn from the same text. Zeros have no length, a blow-up too
//! much of it; a copy has another's places, even with other values on them; noise agrees as often as not, and a flipped
//! sign hardly ever. An old update shares more with those that counted when it was made. What is allowed is relative to
//! the median of the round, so no limit ages as the loss falls. Up to half of the updates may lie before a median does.
//!
//! Picks and signs are of a sample of the places, drawn by a hash of the place and so the same in every update: from
//! [`SAMPLE`] to twice as many, or all where there are fewer.

use super::blob::Layout;
use esker_comms::round::{Picks, Signs, Sound};
use esker_kernels::ops::chunk_topk::{CHUNK, Spec, record};

/// Places of an update whose signs are compared.
pub const SAMPLE: usize = 1 << 14;

/// Times that an update may be longer than the median one, or shorter. Honest ones are within a tenth of it: see
/// `train/benches/record/sparseloco`, for the other limits too.
pub const NORM_RATIO: f32 = 10.0;
/// The least agreement of an update, as a share of the median one. Honest ones have nine tenths of it or more.
pub const AGREEMENT_MIN: f32 = 0.4;
/// Times that an update may share more with an earlier round's than with its own round's. Honest ones come to 1.1, to 1.3
/// where their owner was late for many rounds; those kept back for four rounds to 1.5 and more.
pub const AGE_RATIO: f32 = 1.4;

/// The share of its places that an update may have in common with an earlier one: three fifths of what chance leaves to
/// choose. Honest updates share a tenth.
pub fn overlap_max(spec: Spec) -> f32 {
    let density = spec.k as f32 / CHUNK as f32;
    density + 0.6 * (1.0 - density)
}

/// Measures an update that was checked.
pub fn sound(layout: &Layout, blob: &[u8]) -> Sound {
    let kept: usize = layout.parts().iter().map(|part| part.grid.len() * layout.spec().k / CHUNK).sum();
    let every = (kept / SAMPLE).max(1) as u64;
    let (mut places, mut signs) = (Vec::with_capacity(2 * SAMPLE), Vec::with_capacity(2 * SAMPLE));
    let (mut first, mut squares) = (0, 0.0);
    for part in layout.parts() {
        record::visit(part.grid, layout.spec(), &blob[part.bytes.clone()], |at, d| {
            // f64, in the order of the bytes: the same everywhere.
            squares += f64::from(d) * f64::from(d);
            let place = first + at as u64;
            if d != 0.0 && mix(place).is_multiple_of(every) {
                places.push(place);
                signs.push((place, d < 0.0));
            }
        })
        .expect("judge: an update that was checked");
        first += part.grid.len() as u64;
    }
    Sound { norm: f64::sqrt(squares), picks: Picks::of(places), signs: Signs::of(signs) }
}

/// The finaliser of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
