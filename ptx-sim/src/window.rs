//! Where each memory lies among generic addresses.
//!
//! Hardware keeps its windows secret; these only have to lie apart. Addresses of shared memory within their own window
//! have 32 bits: an offset, and in the top byte the block of the cluster plus one, or 0 for the block that asks.

/// Device memory begins here.
pub(crate) const GLOBAL: u64 = 0x7_0000_0000;
pub(crate) const SHARED: u64 = 0x100_0000_0000;
pub(crate) const LOCAL: u64 = 0x200_0000_0000;
pub(crate) const PARAM: u64 = 0x300_0000_0000;
/// The module's constants.
pub(crate) const DATA: u64 = 0x400_0000_0000;
/// Bytes of a window.
pub(crate) const SIZE: u64 = 1 << 32;
/// Bits of an offset into one block's shared memory.
pub(crate) const BLOCK_BITS: u32 = 24;
