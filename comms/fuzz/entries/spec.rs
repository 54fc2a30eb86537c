//! A run's spec.

use esker_comms::RunSpec;
use esker_comms::wire::Canonical;

/// What decodes is written again byte for byte, and can run.
pub fn run(bytes: &[u8]) {
    if let Ok(spec) = RunSpec::read(bytes) {
        assert_eq!(spec.encode(), bytes, "two forms of one spec");
        spec.check().expect("a spec that its own decoder refuses");
        let _ = (spec.alpha(3), spec.manifest_bytes_max(), spec.leaf_bytes(1), spec.proposer(u64::MAX, u32::MAX));
    }
}
