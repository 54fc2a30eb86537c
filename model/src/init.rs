//! Fresh weights: a function of (seed, name of the tensor, place in it) and of nothing else.
//!
//! Matrices are drawn from a normal distribution of standard deviation `init_std`, the two that write to the residual
//! stream (`wo`, `down`) from one narrower by 1/sqrt(2·L); norms are one.
//!
//! A draw must have the same bits on every machine, so it uses no function that libraries round differently:
//! z = (Σ of twelve uniform 16-bit numbers − 12·65535/2) / 65536 is a sum of integers, exact in f32, has variance
//! 1 − 2⁻³² and ends at six deviations. One multiplication by the deviation is the only rounding.
//!
//! The uniform numbers come from Philox4x32-10: three blocks give two draws, and block b of tensor t under a seed is the
//! cipher of the counter (b, t), so pieces are drawn in any order, by any number of threads.
//! Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox; the known answers of its
//! Random123 library are tested); GPT-2's scale of the residual projections, Radford et al. 2019, section 2.3.

use crate::{config::Config, weights::Part, weights::Weights};
use esker_kernels::{Result, device::Stream, tensor::DType};

/// Values that one piece of work draws; even, so that pieces begin with a fresh block.
const PIECE: usize = 1 << 14;

/// Fills `w`, whose tensors are all f32, with fresh weights.
pub fn draw(s: &Stream, cfg: &Config, w: &mut Weights, seed: u64) -> Result<()> {
    let residual = 1.0 / (2.0 * cfg.layers as f64).sqrt();
    for (name, t) in w.each_mut() {
        assert_eq!(t.dtype(), DType::F32, "init: {name}");
        let std = match name.part {
            Part::Wo | Part::Down => cfg.init_std * residual,
            _ => cfg.init_std,
        };
        // The divisor is a power of two: this is the rounding of std alone, and sqrt above is exact by IEEE.
        let unit = (std / 131_072.0) as f32;
        let matrix = name.is_matrix();
        s.host().chunks(t.f32_mut(), PIECE, |i, piece, _| {
            if matrix {
                fill(piece, (i * PIECE) as u64, name.id(), seed, unit);
            } else {
                piece.fill(1.0);
            }
        });
    }
    Ok(())
}

/// Draws the values `from..` (`from` even) of tensor `id`: twice the centred sum is an integer, times half the unit.
fn fill(out: &mut [f32], from: u64, id: u32, seed: u64, unit: f32) {
    let key = [seed as u32, (seed >> 32) as u32];
    for (i, pair) in out.chunks_mut(2).enumerate() {
        let first = (from / 2 + i as u64) * 3;
        let block = |b: u64| philox([b as u32, (b >> 32) as u32, id, 0], key);
        let [a, b, c] = [block(first), block(first + 1), block(first + 2)];
        let sum = |words: [u32; 6]| words.iter().map(|w| (w & 0xffff) as i32 + (w >> 16) as i32).sum::<i32>();
        let sums = [sum([a[0], a[1], a[2], a[3], b[0], b[1]]), sum([b[2], b[3], c[0], c[1], c[2], c[3]])];
        for (x, sum) in pair.iter_mut().zip(sums) {
            *x = (2 * sum - 12 * 65535) as f32 * unit;
        }
    }
}

/// Philox4x32-10: four words that are a random function of `counter` under `key`.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) = (u64::from(c0) * 0xD251_1F53, u64::from(c2) * 0xCD9E_8D57);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // kat_vectors of Random123 1.09, lines "philox4x32 10".
        let ones = u32::MAX;
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([ones; 4], [ones; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(
            philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn draws_are_normal_and_do_not_depend_on_where_a_piece_begins() {
        let mut whole = vec![0.0f32; 1 << 18];
        fill(&mut whole, 0, 7, 42, 1.0 / 131_072.0);
        let mut tail = vec![0.0f32; 1000];
        fill(&mut tail, 5000, 7, 42, 1.0 / 131_072.0);
        assert_eq!(tail, whole[5000..6000]);
        let n = whole.len() as f64;
        let moment = |k: i32| whole.iter().map(|&x| f64::from(x).powi(k)).sum::<f64>() / n;
        // Kurtosis of a sum of twelve uniforms: 3 − 1.2/12.
        let got = [moment(1), moment(2), moment(3), moment(4)];
        for (got, want) in got.iter().zip([0.0, 1.0, 0.0, 2.9]) {
            assert!((got - want).abs() < 0.04, "{got} {want}");
        }
        assert!(whole.iter().all(|x| x.abs() <= 6.0));
        let mut other = vec![0.0f32; 1000];
        fill(&mut other, 5000, 8, 42, 1.0 / 131_072.0);
        assert_ne!(other, tail);
        // Fixed for ever: changing a draw changes every run that was ever started.
        let bits: Vec<u32> = whole[..3].iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits, [1057159936, 1068648704, 1067433472]);
    }
}
