//! Device memory: allocations with their bounds, and which of their bytes were ever written.
//!
//! Every allocation lies at a multiple of 256 bytes, with at least 256 bytes that belong to nobody after it, so that an
//! index one too far hits none. Fresh memory reads as `0xFF` bytes, a NaN in every float format, and is *unwritten*
//! until a kernel or the host writes it: a kernel that reads it in order to compute is at fault.

use crate::window;

/// The memory of a simulated device.
#[derive(Debug, Default)]
pub struct Memory {
    /// By address: their first ones ascend.
    allocations: Vec<(u64, Allocation)>,
    /// The one found last: the next access nearly always lies there too.
    last: usize,
    next: u64,
    /// Bytes allocated now.
    used: usize,
}

#[derive(Debug)]
pub(crate) struct Allocation {
    pub data: Vec<u8>,
    /// One bit a byte.
    pub written: Vec<u64>,
}

/// What the host asked of [`Memory`] and cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {address:#x} do not lie in one allocation")]
pub struct OutOfRange {
    /// The first address asked for.
    pub address: u64,
    /// How many bytes.
    pub bytes: usize,
}

const GAP: u64 = 256;

impl Memory {
    /// Memory without an allocation.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Allocates; the address is a multiple of 256. No address is given twice.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let at = window::GLOBAL + self.next;
        self.next += (bytes as u64).div_ceil(GAP) * GAP + GAP;
        let written = vec![0; bytes.div_ceil(64) + 1];
        self.allocations.push((at, Allocation { data: vec![0xFF; bytes], written }));
        self.used += bytes;
        at
    }

    /// Frees an allocation by its address.
    pub fn free(&mut self, address: u64) -> Result<(), OutOfRange> {
        let at = self.allocations.binary_search_by_key(&address, |a| a.0);
        let at = at.map_err(|_| OutOfRange { address, bytes: 0 })?;
        self.used -= self.allocations.remove(at).1.data.len();
        Ok(())
    }

    /// Bytes allocated now.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The number of the last allocation that begins at or before `address`.
    fn number(&self, address: u64) -> Option<usize> {
        self.allocations.partition_point(|a| a.0 <= address).checked_sub(1)
    }

    /// The allocation `address` lies in, and its first address.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, &Allocation)> {
        let (at, a) = &self.allocations[self.number(address)?];
        (address - at < a.data.len() as u64).then_some((*at, a))
    }

    #[inline]
    pub(crate) fn find_mut(&mut self, address: u64) -> Option<(u64, &mut Allocation)> {
        let lies = |(at, a): &(u64, Allocation)| address.wrapping_sub(*at) < a.data.len() as u64;
        if !self.allocations.get(self.last).is_some_and(lies) {
            self.last = self.number(address)?;
        }
        let found = &mut self.allocations[self.last];
        lies(found).then_some((found.0, &mut found.1))
    }

    /// The last allocation that begins at or before `address`: its first address and its length.
    pub(crate) fn below(&self, address: u64) -> Option<(u64, u64)> {
        self.number(address).map(|n| (self.allocations[n].0, self.allocations[n].1.data.len() as u64))
    }

    /// The number of the allocation these bytes lie in, and where in it. An empty range may stand at its end.
    fn range(&self, address: u64, bytes: usize) -> Result<(usize, usize), OutOfRange> {
        let wrong = OutOfRange { address, bytes };
        let n = self.number(address).ok_or(wrong.clone())?;
        let (at, a) = &self.allocations[n];
        let offset = (address - at) as usize;
        if offset > a.data.len() || bytes > a.data.len() - offset {
            return Err(wrong);
        }
        Ok((n, offset))
    }

    /// The bytes at `address`, as the host sees them.
    pub fn slice(&self, address: u64, bytes: usize) -> Result<&[u8], OutOfRange> {
        let (n, offset) = self.range(address, bytes)?;
        Ok(&self.allocations[n].1.data[offset..offset + bytes])
    }

    /// The bytes at `address`, to be written: all of them count as written from now on.
    pub fn slice_mut(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], OutOfRange> {
        let (n, offset) = self.range(address, bytes)?;
        let a = &mut self.allocations[n].1;
        a.mark(offset, bytes, true);
        Ok(&mut a.data[offset..offset + bytes])
    }

    /// Writes from the host.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), OutOfRange> {
        self.slice_mut(address, from.len())?.copy_from_slice(from);
        Ok(())
    }

    /// Reads to the host.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), OutOfRange> {
        to.copy_from_slice(self.slice(address, to.len())?);
        Ok(())
    }

    /// Copies within the device; what was unwritten stays so.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), OutOfRange> {
        let (from_at, from_off) = self.range(from, bytes)?;
        let (to_at, to_off) = self.range(to, bytes)?;
        let a = &self.allocations[from_at].1;
        let data = a.data[from_off..from_off + bytes].to_vec();
        let written: Vec<bool> = (from_off..from_off + bytes).map(|i| a.is_written(i, 1)).collect();
        let b = &mut self.allocations[to_at].1;
        b.data[to_off..to_off + bytes].copy_from_slice(&data);
        for (i, w) in written.into_iter().enumerate() {
            b.mark(to_off + i, 1, w);
        }
        Ok(())
    }

    /// Whether all these bytes were written.
    pub fn is_written(&self, address: u64, bytes: usize) -> Result<bool, OutOfRange> {
        let (n, offset) = self.range(address, bytes)?;
        Ok(self.allocations[n].1.is_written(offset, bytes))
    }

    /// Makes bytes unwritten again and fills them with `0xFF`, as when a buffer of an arena is given to a new use.
    pub fn forget(&mut self, address: u64, bytes: usize) -> Result<(), OutOfRange> {
        let (n, offset) = self.range(address, bytes)?;
        let a = &mut self.allocations[n].1;
        a.data[offset..offset + bytes].fill(0xFF);
        a.mark(offset, bytes, false);
        Ok(())
    }
}

impl Allocation {
    /// Whether `bytes` from `offset` were all written.
    #[inline]
    pub fn is_written(&self, offset: usize, bytes: usize) -> bool {
        is_set(&self.written, offset, bytes)
    }

    #[inline]
    pub fn mark(&mut self, offset: usize, bytes: usize, written: bool) {
        set(&mut self.written, offset, bytes, written);
    }
}

/// Whether bits `from .. from + n` are all set.
#[inline]
pub(crate) fn is_set(bits: &[u64], from: usize, n: usize) -> bool {
    let (mut at, end) = (from, from + n);
    while at < end {
        let (word, bit) = (at / 64, at % 64);
        let take = (64 - bit).min(end - at);
        let mask = (u64::MAX >> (64 - take)) << bit;
        if bits[word] & mask != mask {
            return false;
        }
        at += take;
    }
    true
}

/// Sets bits `from .. from + n`, or clears them.
#[inline]
pub(crate) fn set(bits: &mut [u64], from: usize, n: usize, on: bool) {
    let (mut at, end) = (from, from + n);
    while at < end {
        let (word, bit) = (at / 64, at % 64);
        let take = (64 - bit).min(end - at);
        let mask = (u64::MAX >> (64 - take)) << bit;
        if on {
            bits[word] |= mask;
        } else {
            bits[word] &= !mask;
        }
        at += take;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_side() {
        let mut m = Memory::new();
        let (a, b) = (m.alloc(100), m.alloc(3));
        assert_eq!((a % 256, b % 256, m.used()), (0, 0, 103));
        assert!(!m.is_written(a, 1).unwrap());
        m.write(a + 10, &[1, 2, 3]).unwrap();
        assert!(m.is_written(a + 10, 3).unwrap() && !m.is_written(a + 9, 2).unwrap());
        assert_eq!(m.slice(a + 9, 5).unwrap(), [0xFF, 1, 2, 3, 0xFF]);
        m.copy(b, a + 11, 3).unwrap();
        assert!(m.is_written(b, 2).unwrap() && !m.is_written(b + 2, 1).unwrap());
        m.forget(a + 10, 1).unwrap();
        assert!(!m.is_written(a + 10, 1).unwrap());
        assert!(m.slice(a + 99, 2).is_err() && m.slice(a + 100, 0).is_ok() && m.write(b - 1, &[0]).is_err());
        m.free(a).unwrap();
        assert!(m.free(a).is_err() && m.slice(a, 1).is_err());
    }

    #[test]
    fn bit_runs() {
        let mut bits = vec![0u64; 4];
        set(&mut bits, 60, 70, true);
        assert!(is_set(&bits, 60, 70) && !is_set(&bits, 59, 2) && !is_set(&bits, 129, 2));
        set(&mut bits, 64, 1, false);
        assert!(!is_set(&bits, 60, 70) && is_set(&bits, 65, 65));
    }
}
