//! What owners do who do not want the run to succeed: each writes a well-formed update in its own name.
//!
//! Nobody can copy an update of the round that is under way: all have committed to theirs before the first is shown.

use crate::outer::OuterError;
use crate::outer::blob::{HEADER_BYTES, Layout};
use esker_kernels::device::Stream;
use esker_kernels::ops::chunk_topk::{self, Compress, record};
use esker_kernels::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// A way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lie {
    /// Its own update with every sign turned.
    SignFlip,
    /// Its own update a million times as long.
    Million,
    /// Random places and values, as long as an honest update.
    Noise,
    /// Another owner's update of the round before.
    Copy,
    /// Nothing.
    Zeros,
    /// Its own update of a few rounds before.
    Stale,
}

impl Lie {
    /// All of them.
    pub const ALL: [Lie; 6] = [Lie::SignFlip, Lie::Million, Lie::Noise, Lie::Copy, Lie::Zeros, Lie::Stale];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Lie::SignFlip => "sign-flip",
            Lie::Million => "million",
            Lie::Noise => "noise",
            Lie::Copy => "copy",
            Lie::Zeros => "zeros",
            Lie::Stale => "stale",
        }
    }
}

/// Rounds after which an old update is sent again.
const STALE_ROUNDS: usize = 4;

/// Makes an honest update a lie.
#[derive(Debug)]
pub struct Forger {
    lie: Option<Lie>,
    old: VecDeque<Vec<u8>>,
    draws: u64,
}

impl Forger {
    /// Of what lie; without one, updates stay as they are. `seed` tells the noise of one from that of another.
    pub fn new(lie: Option<Lie>, seed: u64) -> Forger {
        Forger { lie, old: VecDeque::new(), draws: seed << 40 }
    }

    /// What a liar sends in place of its honest update `own`; `other` is another owner's of the round before.
    pub fn forge(&mut self, layout: &Layout, other: Option<&[u8]>, own: Vec<u8>) -> Result<Vec<u8>, OuterError> {
        let header = own[..HEADER_BYTES].to_vec();
        let renamed = |blob: &[u8]| [&header[..], &blob[HEADER_BYTES..]].concat();
        let lie = match self.lie {
            None => return Ok(own),
            // Before there is one, it is as bad as it can be.
            Some(Lie::Copy) => match other {
                Some(other) => return Ok(renamed(other)),
                None => Lie::Zeros,
            },
            Some(Lie::Stale) => {
                self.old.push_back(own);
                let old = renamed(&self.old[self.old.len().saturating_sub(1 + STALE_ROUNDS)]);
                if self.old.len() > STALE_ROUNDS {
                    self.old.pop_front();
                }
                return Ok(old);
            }
            Some(lie) => lie,
        };
        let stream = super::methods::stream()?;
        let mut blob = header;
        for part in layout.parts() {
            let mut values = vec![0.0f32; part.grid.len()];
            let mut squares = 0.0;
            record::visit(part.grid, layout.spec(), &own[part.bytes.clone()], |i, d| {
                squares += f64::from(d) * f64::from(d);
                values[i] = match lie {
                    Lie::SignFlip => -d,
                    Lie::Million => 1e6 * d,
                    _ => 0.0,
                };
            })
            .expect("lies: an update of our own");
            if lie == Lie::Noise {
                self.noise(&mut values, squares, layout.spec().k);
            }
            blob.extend(compressed(&stream, layout, part.grid, &values)?);
        }
        Ok(blob)
    }

    /// Random values at random places, about `squares` long over the `k` of 4096 that are sent.
    fn noise(&mut self, values: &mut [f32], squares: f64, k: usize) {
        let size = (squares / (values.len() * k) as f64 * 4096.0).sqrt() as f32;
        for value in values {
            self.draws += 1;
            let bits = mixed(self.draws);
            // The places of the largest are those of uniform draws; their values are ±size, nearly.
            let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
            *value = sign * size * (0.9 + 0.1 * (bits >> 40) as f32 / (1u64 << 24) as f32);
        }
    }
}

fn mixed(i: u64) -> u64 {
    // A finaliser is enough here: nobody guesses at these.
    let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The records of `values`.
fn compressed(stream: &Stream, layout: &Layout, grid: chunk_topk::Grid, values: &[f32]) -> Result<Vec<u8>, OuterError> {
    let spec = layout.spec();
    let mut e = Tensor::alone(stream, DType::F32, [values.len()])?;
    let mut update = Tensor::alone(stream, DType::U32, [grid.update_words(spec)])?;
    e.set(values);
    chunk_topk::compress(stream, grid, spec, Compress { e: &mut e, delta: None, update: &mut update, beta: 0.0 })?;
    Ok(update.bytes()[..grid.update_bytes(spec)].to_vec())
}
