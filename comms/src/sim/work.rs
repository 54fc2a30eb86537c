//! What the rounds are about, small enough to be done a hundred million times: a state of 3072 values, an update of 48.
//!
//! ```text
//! update   "TINY" | run [32] | round u64 | peer [32] | base root [32] | 48 records: position u16, value f32
//! train    at 16 positions of each tile of 1024, drawn from (peer, round): half the way to a fixed target, with noise
//! fold     x_i -= alpha · Σ_p w_p v_pi / Σ_p w_p        in the order of keys, every operation rounded to f32
//! ```

use crate::round::{Expect, Picks, Signs, Sound};
use crate::state::Leaves;
use crate::wire::Reason;
use crate::{Hash, PeerId};

/// What a run does with its state. The rounds never look inside.
pub trait Work {
    /// The state at the start.
    fn genesis(&self) -> Vec<f32>;
    /// An update from `state`, whose header is `head`.
    fn update(&self, state: &[f32], head: &Head, how: How) -> Vec<u8>;
    /// Decodes an update and holds its header against what it must be.
    fn check(&self, run: &Hash, bytes: &[u8], expect: &Expect) -> Result<Sound, Reason>;
    /// Applies checked updates, each with its weight, in the order given.
    fn fold(&self, state: &mut [f32], parts: &[(u32, &[u8])], alpha: f32);
}

/// What an update is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The run.
    pub run: Hash,
    /// The round.
    pub round: u64,
    /// Whose.
    pub peer: PeerId,
    /// Root of the state it was made from.
    pub base_root: Hash,
}

/// How an update is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As it should be.
    Honest,
    /// With every sign turned.
    SignFlip,
    /// A million times too large.
    Huge,
    /// Noise of the usual size.
    Noise,
    /// All zeros.
    Zeros,
    /// One value that is not a number.
    Nan,
}

/// Tiles of the state.
const TILES: usize = 3;
const TILE: usize = 1024;
const PICKS: usize = 16;
const HEAD: usize = 4 + 32 + 8 + 32 + 32;
const RECORD: usize = 6;

/// Bytes of an update.
pub const UPDATE_BYTES: usize = HEAD + TILES * PICKS * RECORD;
/// Values of the state.
pub const VALUES: usize = TILES * TILE;

/// SplitMix64: the simulation's only source of chance.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in `0..1`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }
}

/// The built-in work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tiny;

fn target(i: usize) -> f32 {
    ((i * 37) % 101) as f32 / 50.0 - 1.0
}

fn head(head: &Head) -> Vec<u8> {
    [b"TINY".as_slice(), &head.run.0, &head.round.to_le_bytes(), &head.peer.0, &head.base_root.0].concat()
}

fn records(bytes: &[u8]) -> impl Iterator<Item = (usize, f32)> {
    bytes[HEAD..].chunks_exact(RECORD).map(|r| {
        let at = u16::from_le_bytes([r[0], r[1]]);
        (usize::from(at), f32::from_le_bytes([r[2], r[3], r[4], r[5]]))
    })
}

impl Work for Tiny {
    fn genesis(&self) -> Vec<f32> {
        vec![0.0; VALUES]
    }

    fn update(&self, state: &[f32], h: &Head, how: How) -> Vec<u8> {
        let mut rng =
            Rng(u64::from_le_bytes(h.peer.0[..8].try_into().expect("sim: 8 bytes")) ^ h.round.rotate_left(32));
        let mut bytes = head(h);
        for tile in 0..TILES {
            let mut at = 0;
            for pick in 0..PICKS {
                // Rising positions: each from what is left, leaving room for those to come.
                let room = TILE - at - (PICKS - pick);
                at += rng.below((room / (PICKS - pick) * 2 + 1).min(room + 1) as u64) as usize;
                let i = tile * TILE + at;
                let noise = (rng.unit() as f32 - 0.5) * 0.1;
                let honest = (state[i] - target(i)) * 0.5 + noise;
                let value = match how {
                    How::Honest => honest,
                    How::SignFlip => -honest,
                    How::Huge => honest * 1e6,
                    How::Noise => noise * 10.0,
                    How::Zeros => 0.0,
                    How::Nan => f32::NAN,
                };
                bytes.extend_from_slice(&(i as u16).to_le_bytes());
                bytes.extend_from_slice(&value.to_le_bytes());
                at += 1;
            }
        }
        bytes
    }

    fn check(&self, run: &Hash, bytes: &[u8], expect: &Expect) -> Result<Sound, Reason> {
        if bytes.len() as u64 != expect.bytes || bytes.len() != UPDATE_BYTES {
            return Err(Reason::Malformed);
        }
        let of = |base_root| head(&Head { run: *run, round: expect.round, peer: expect.peer, base_root });
        let bound = HEAD - 32;
        if bytes[..bound] != of(Hash::NONE)[..bound] {
            return Err(Reason::Malformed);
        }
        if !expect.bases.iter().any(|base| base.0 == bytes[bound..HEAD]) {
            return Err(Reason::StaleBase);
        }
        let (mut last, mut square) = (None, 0f64);
        for (i, value) in records(bytes) {
            if last.is_some_and(|l| l >= i) || i >= VALUES {
                return Err(Reason::Malformed);
            }
            if !value.is_finite() {
                return Err(Reason::NotFinite);
            }
            last = Some(i);
            square += f64::from(value) * f64::from(value);
        }
        let picks = Picks::of(records(bytes).map(|(i, _)| i as u64));
        Ok(Sound { norm: square.sqrt(), picks, signs: Signs::default() })
    }

    fn fold(&self, state: &mut [f32], parts: &[(u32, &[u8])], alpha: f32) {
        let total: f32 = parts.iter().map(|(w, _)| *w as f32 / 65536.0).sum();
        if total == 0.0 {
            return;
        }
        let mut sum = vec![0f32; VALUES];
        for (weight, bytes) in parts {
            let weight = *weight as f32 / 65536.0;
            for (i, value) in records(bytes) {
                sum[i] += weight * value;
            }
        }
        for (x, s) in state.iter_mut().zip(&sum) {
            *x -= alpha * (s / total);
        }
    }
}

/// A state as leaves: one for each of the two tensors.
pub struct View<'a>(pub &'a [f32]);

impl Leaves for View<'_> {
    fn leaf(&self, index: u64, into: &mut Vec<u8>) {
        let values = if index == 0 { &self.0[..2 * TILE] } else { &self.0[2 * TILE..] };
        into.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    }
}

/// How far a state is from the target: root mean square.
pub fn distance(state: &[f32]) -> f64 {
    let square = |(i, x): (usize, &f32)| f64::from(x - target(i)).powi(2);
    (state.iter().enumerate().map(square).sum::<f64>() / VALUES as f64).sqrt()
}

/// Another's update under one's own header.
pub(super) fn forge(h: &Head, of: &[u8]) -> Vec<u8> {
    [&head(h), &of[HEAD..]].concat()
}
