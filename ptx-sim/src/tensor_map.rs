//! The tensor map: what the TMA knows of a tensor in device memory and of the box it copies.
//!
//! A driver writes 128 bytes in a layout of its own; [`TensorMap::encode`] writes the simulator's, which the simulator
//! alone reads. The host passes them to a kernel as it would the driver's: a 64-byte aligned parameter of 128 bytes.
//!
//! Element (c0, c1, ...) lies at `address + c0 · element + c1 · strides[0] + c2 · strides[1] ...`; of a box, elements
//! lie in shared memory one after the other, dimension 0 innermost, the 16-byte pieces of a row moved as the swizzle
//! says: bits 4 to 6 of the address are xored with bits 7 to 9 (128 bytes), 4 and 5 with 7 and 8 (64 bytes), 4 with 7
//! (32 bytes). Elements outside of the tensor read as zero and are not written.
//!
//! Source: CUDA driver API, cuTensorMapEncodeTiled.

use crate::ir::{Float, Num};

/// Types of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 8 bits.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 32 bits, signed.
    S32,
    /// 64 bits.
    U64,
    /// 64 bits, signed.
    S64,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

const ELEMENTS: [Element; 10] = [
    Element::U8,
    Element::U16,
    Element::U32,
    Element::S32,
    Element::U64,
    Element::S64,
    Element::F16,
    Element::Bf16,
    Element::F32,
    Element::F64,
];

impl Element {
    /// Its size.
    pub fn bytes(self) -> usize {
        match self {
            Element::U8 => 1,
            Element::U16 | Element::F16 | Element::Bf16 => 2,
            Element::U32 | Element::S32 | Element::F32 => 4,
            Element::U64 | Element::S64 | Element::F64 => 8,
        }
    }

    pub(crate) fn num(self) -> Num {
        match self {
            Element::U8 => Num::U(8),
            Element::U16 => Num::U(16),
            Element::U32 => Num::U(32),
            Element::S32 => Num::S(32),
            Element::U64 => Num::U(64),
            Element::S64 => Num::S(64),
            Element::F16 => Num::F(Float::F16),
            Element::Bf16 => Num::F(Float::Bf16),
            Element::F32 => Num::F(Float::F32),
            Element::F64 => Num::F(Float::F64),
        }
    }
}

/// How the rows of a box are laid into shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// As they come.
    None,
    /// Over 32 bytes.
    B32,
    /// Over 64 bytes.
    B64,
    /// Over 128 bytes.
    B128,
}

impl Swizzle {
    /// The address a piece moves to.
    #[inline]
    pub(crate) fn place(self, address: u64) -> u64 {
        let mask = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ (address >> 7 & mask) << 4
    }

    fn bytes(self) -> u64 {
        match self {
            Swizzle::None => u64::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A tensor of 1 to 5 dimensions in device memory, and a box of it. See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Of element (0, 0, ...); a multiple of 16.
    pub address: u64,
    /// The type.
    pub element: Element,
    /// Elements along each dimension, innermost first.
    pub dims: Vec<u64>,
    /// Bytes between neighbours along dimension 1, 2, ...; multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of the box along each dimension, at most 256.
    pub box_dims: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
}

/// Why a tensor map cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor map: {0}")]
pub struct BadMap(String);

const MAGIC: u16 = 0x7E50;

impl TensorMap {
    /// Checks what the driver would, and writes the 128 bytes a kernel takes.
    pub fn encode(&self) -> Result<[u8; 128], BadMap> {
        let bad = |what: String| Err(BadMap(what));
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) || self.box_dims.len() != rank || self.strides.len() != rank - 1 {
            let n = (rank, self.box_dims.len(), self.strides.len());
            return bad(format!("{} dimensions, {} of the box, {} strides", n.0, n.1, n.2));
        }
        if !self.address.is_multiple_of(16) || self.strides.iter().any(|s| !s.is_multiple_of(16) || *s >= 1 << 40) {
            return bad(format!("address {:#x} and strides {:?} must be multiples of 16", self.address, self.strides));
        }
        if self.dims.iter().any(|&d| d == 0 || d > 1 << 32) || self.box_dims.iter().any(|&b| b == 0 || b > 256) {
            return bad(format!("dimensions {:?} with a box of {:?}; a box has 1 to 256", self.dims, self.box_dims));
        }
        let row = u64::from(self.box_dims[0]) * self.element.bytes() as u64;
        if !row.is_multiple_of(16) || row > self.swizzle.bytes() {
            let most =
                if self.swizzle == Swizzle::None { String::new() } else { format!(" up to {}", self.swizzle.bytes()) };
            return bad(format!("a box has rows of {row} bytes; a multiple of 16{most} expected"));
        }
        let mut out = [0u8; 128];
        out[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        out[2] = rank as u8;
        out[3] = ELEMENTS.iter().position(|e| *e == self.element).unwrap_or(0) as u8;
        out[4] = self.swizzle as u8;
        out[8..16].copy_from_slice(&self.address.to_le_bytes());
        for (i, d) in self.dims.iter().enumerate() {
            out[16 + 8 * i..24 + 8 * i].copy_from_slice(&d.to_le_bytes());
        }
        for (i, s) in self.strides.iter().enumerate() {
            out[56 + 8 * i..64 + 8 * i].copy_from_slice(&s.to_le_bytes());
        }
        for (i, b) in self.box_dims.iter().enumerate() {
            out[88 + 4 * i..92 + 4 * i].copy_from_slice(&b.to_le_bytes());
        }
        Ok(out)
    }

    /// Reads what [`TensorMap::encode`] wrote; `None` for anything else.
    pub(crate) fn decode(b: &[u8]) -> Option<TensorMap> {
        let u64_at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
        let rank = usize::from(b[2]);
        if b.len() != 128 || b[..2] != MAGIC.to_le_bytes() || !(1..=5).contains(&rank) {
            return None;
        }
        let swizzle = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        Some(TensorMap {
            address: u64_at(8),
            element: *ELEMENTS.get(usize::from(b[3]))?,
            dims: (0..rank).map(|i| u64_at(16 + 8 * i)).collect(),
            strides: (0..rank - 1).map(|i| u64_at(56 + 8 * i)).collect(),
            box_dims: (0..rank).map(|i| u32::from_le_bytes(b[88 + 4 * i..92 + 4 * i].try_into().expect("4"))).collect(),
            swizzle: *swizzle.get(usize::from(b[4]))?,
        })
    }

    /// Bytes of the box in shared memory.
    pub(crate) fn box_bytes(&self) -> usize {
        self.box_dims.iter().map(|&b| b as usize).product::<usize>() * self.element.bytes()
    }

    /// Each row of the box at `coords`: its offset in the box, the address of its first element, and how many elements
    /// of it are skipped and then lie in the tensor.
    pub(crate) fn rows(&self, coords: &[i32]) -> Vec<(usize, u64, usize, usize)> {
        let es = self.element.bytes();
        let row = self.box_dims[0] as usize;
        let count: usize = self.box_dims[1..].iter().map(|&b| b as usize).product();
        let (c0, d0) = (i64::from(coords[0]), self.dims[0] as i64);
        let skip = (-c0).clamp(0, row as i64) as usize;
        let end = (d0 - c0).clamp(0, row as i64) as usize;
        (0..count)
            .map(|n| {
                let (mut left, mut address, mut inside) = (n, self.address as i64 + c0 * es as i64, true);
                for i in 1..self.dims.len() {
                    let c = i64::from(coords[i]) + (left % self.box_dims[i] as usize) as i64;
                    left /= self.box_dims[i] as usize;
                    inside &= (0..self.dims[i] as i64).contains(&c);
                    address += c * self.strides[i - 1] as i64;
                }
                let len = if inside { end.saturating_sub(skip) } else { 0 };
                (n * row * es, address as u64, skip, len)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            address: 0x7_0000_0100,
            element: Element::Bf16,
            dims: vec![100, 7, 3],
            strides: vec![208, 1456],
            box_dims: vec![64, 4, 2],
            swizzle: Swizzle::B128,
        }
    }

    #[test]
    fn round_trip_and_refusals() {
        assert_eq!(TensorMap::decode(&map().encode().unwrap()), Some(map()));
        assert_eq!(TensorMap::decode(&[0; 128]), None);
        for spoil in [
            (|m: &mut TensorMap| m.address = 8) as fn(&mut TensorMap),
            |m| m.strides[0] = 200,
            |m| m.box_dims[0] = 72,
            |m| m.box_dims[1] = 257,
            |m| m.dims.push(1),
            |m| m.dims[2] = 0,
        ] {
            let mut m = map();
            spoil(&mut m);
            assert!(m.encode().is_err(), "{m:?}");
        }
    }

    #[test]
    fn rows_know_the_edges() {
        let rows = map().rows(&[64, 5, 2]);
        assert_eq!(rows.len(), 8);
        // Columns 64 to 99 of rows 5 and 6 of plane 2; rows 7 and 8, and plane 3, are outside.
        let base = 0x7_0000_0100 + 128;
        assert_eq!(rows[0], (0, base + 5 * 208 + 2 * 1456, 0, 36));
        assert_eq!(rows[1].3, 36);
        assert!(rows[2..].iter().all(|r| r.3 == 0));
        let left = map().rows(&[-3, 0, 0]);
        assert_eq!((left[0].2, left[0].3), (3, 61));
    }

    #[test]
    fn swizzles_stay_in_their_rows() {
        assert_eq!(Swizzle::B128.place(0x480), 0x480 ^ 0x10);
        assert_eq!(Swizzle::B64.place(0x380), 0x380 ^ 0x30);
        assert_eq!(Swizzle::B32.place(0x100), 0x100);
        assert_eq!(Swizzle::B32.place(0x080), 0x090);
    }
}
