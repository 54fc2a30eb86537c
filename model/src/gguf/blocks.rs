//! How GGUF stores numbers: plain, or in blocks of 32 with a scale.
//!
//! Q8_0  f16 d, 32 × i8           x = d·q
//! Q4_0  f16 d, 16 bytes          x = d·(q − 8)     low halves of the bytes are the first 16 numbers, high halves the rest
//! Q4_1  f16 d, f16 m, 16 bytes   x = d·q + m
//! Source: ggml-quants in the ggml repository.

use half::{bf16, f16};

/// Numbers of a block.
const BLOCK: usize = 32;

/// A type of tensor that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
}

impl Kind {
    /// The type of number `id`, or what it is called.
    pub fn new(id: u32) -> Result<Kind, String> {
        const OTHERS: [(u32, &str); 10] = [
            (6, "Q5_0"),
            (7, "Q5_1"),
            (9, "Q8_1"),
            (10, "Q2_K"),
            (11, "Q3_K"),
            (12, "Q4_K"),
            (13, "Q5_K"),
            (14, "Q6_K"),
            (15, "Q8_K"),
            (28, "F64"),
        ];
        match id {
            0 => Ok(Kind::F32),
            1 => Ok(Kind::F16),
            2 => Ok(Kind::Q4_0),
            3 => Ok(Kind::Q4_1),
            8 => Ok(Kind::Q8_0),
            30 => Ok(Kind::Bf16),
            _ => {
                let name = OTHERS.iter().find(|other| other.0 == id);
                Err(name.map_or_else(|| format!("type {id}"), |name| name.1.into()))
            }
        }
    }

    /// Numbers that are stored together: a row holds a multiple of them.
    pub fn block(self) -> usize {
        match self {
            Kind::F32 | Kind::F16 | Kind::Bf16 => 1,
            Kind::Q8_0 | Kind::Q4_0 | Kind::Q4_1 => BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::Q8_0 => 2 + BLOCK,
            Kind::Q4_0 => 2 + BLOCK / 2,
            Kind::Q4_1 => 4 + BLOCK / 2,
        }
    }

    /// Bytes of a row of `cols` numbers.
    pub fn bytes(self, cols: usize) -> usize {
        cols / self.block() * self.block_bytes()
    }

    /// A row's numbers.
    pub fn dequantise(self, bytes: &[u8], row: &mut [f32]) {
        let half = |b: &[u8], at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        for (b, x) in bytes.chunks_exact(self.block_bytes()).zip(row.chunks_exact_mut(self.block())) {
            match self {
                Kind::F32 => x[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                Kind::F16 => x[0] = half(b, 0),
                Kind::Bf16 => x[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                Kind::Q8_0 => x.iter_mut().zip(&b[2..]).for_each(|(x, &q)| *x = half(b, 0) * f32::from(q as i8)),
                Kind::Q4_0 => {
                    let d = half(b, 0);
                    nibbles(&b[2..], x, |q| d * (q - 8.0));
                }
                Kind::Q4_1 => {
                    let (d, m) = (half(b, 0), half(b, 2));
                    nibbles(&b[4..], x, |q| d * q + m);
                }
            }
        }
    }
}

fn nibbles(bytes: &[u8], x: &mut [f32], value: impl Fn(f32) -> f32) {
    for (i, &byte) in bytes.iter().enumerate() {
        x[i] = value(f32::from(byte & 15));
        x[i + BLOCK / 2] = value(f32::from(byte >> 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_what_their_formulas_say() {
        let (d, m) = (f16::from_f32(0.5).to_le_bytes(), f16::from_f32(-2.0).to_le_bytes());
        let mut row = [0.0; 32];
        let low_high: Vec<u8> = (0..16).map(|i| i | ((15 - i) << 4)).collect();
        Kind::Q4_0.dequantise(&[&d[..], &low_high].concat(), &mut row);
        assert_eq!((row[0], row[15], row[16], row[31]), (-4.0, 3.5, 3.5, -4.0));
        Kind::Q4_1.dequantise(&[&d[..], &m, &low_high].concat(), &mut row);
        assert_eq!((row[0], row[15], row[16], row[31]), (-2.0, 5.5, 5.5, -2.0));
        let bytes: Vec<u8> = (0..32).map(|i| (i as i8 - 16) as u8).collect();
        Kind::Q8_0.dequantise(&[&d[..], &bytes].concat(), &mut row);
        assert_eq!((row[0], row[16], row[31]), (-8.0, 0.0, 7.5));
        let mut two = [0.0; 2];
        Kind::F16.dequantise(&[d, m].concat(), &mut two);
        assert_eq!(two, [0.5, -2.0]);
        Kind::Bf16.dequantise(&[bf16::from_f32(3.0).to_le_bytes(), bf16::ONE.to_le_bytes()].concat(), &mut two);
        assert_eq!(two, [3.0, 1.0]);
        Kind::F32.dequantise(&[1.25f32.to_le_bytes(), (-7.0f32).to_le_bytes()].concat(), &mut two);
        assert_eq!(two, [1.25, -7.0]);
    }
}
