//! Bits in a row of bytes, the lowest of the first byte first.

use super::Fault;

/// Takes bits.
pub(super) struct Reader<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl Reader<'_> {
    /// The next `count` bits, at most 64.
    pub fn take(&mut self, count: usize) -> u64 {
        if count == 0 {
            return 0;
        }
        let (byte, shift) = (self.at / 8, self.at % 8);
        self.at += count;
        let word = |from: usize| match self.bytes.get(from..from + 8) {
            Some(eight) => u64::from_le_bytes(eight.try_into().expect("eight bytes")),
            None => {
                let rest = self.bytes.get(from..).unwrap_or_default();
                rest.iter().rev().fold(0, |bits, &b| bits << 8 | u64::from(b))
            }
        };
        let mut bits = word(byte) >> shift;
        if shift + count > 64 {
            bits |= u64::from(self.bytes[byte + 8]) << (64 - shift);
        }
        if count == 64 { bits } else { bits & ((1 << count) - 1) }
    }

    /// Passes over what fills the byte up, which must be zero.
    pub fn finish_byte(&mut self) -> Result<(), Fault> {
        let rest = self.at.next_multiple_of(8) - self.at;
        if self.take(rest) == 0 { Ok(()) } else { Err(Fault::Padding) }
    }
}

/// Puts bits.
pub(super) struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
    word: u64,
    held: usize,
}

impl<'a> Writer<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Writer<'a> {
        Writer { bytes, at: 0, word: 0, held: 0 }
    }

    /// The low `count` bits of `bits`, which has no others; at most 64.
    pub fn put(&mut self, bits: u64, count: usize) {
        if count == 0 {
            return;
        }
        self.word |= bits << self.held;
        if self.held + count < 64 {
            self.held += count;
            return;
        }
        self.bytes[self.at..self.at + 8].copy_from_slice(&self.word.to_le_bytes());
        self.at += 8;
        let written = 64 - self.held;
        self.word = if written == 64 { 0 } else { bits >> written };
        self.held = count - written;
    }

    /// Fills the byte up with zeros.
    pub fn flush(&mut self) {
        let bytes = self.held.div_ceil(8);
        self.bytes[self.at..self.at + bytes].copy_from_slice(&self.word.to_le_bytes()[..bytes]);
        self.at += bytes;
        (self.word, self.held) = (0, 0);
    }
}
