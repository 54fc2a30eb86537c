//! A sealed manifest.

use esker_comms::wire::{Canonical, Sealed};

/// What decodes is written again byte for byte.
pub fn run(bytes: &[u8]) {
    if let Ok(sealed) = Sealed::decode(bytes) {
        assert_eq!(sealed.encode(), bytes, "two forms of one manifest");
    }
}
