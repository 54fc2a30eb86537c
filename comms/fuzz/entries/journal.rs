//! A journal after a crash.

use esker_comms::round::journal::{Record, recover};
use esker_comms::{Key, RunSpec, sim};
use std::sync::OnceLock;

/// The whole part is written again byte for byte.
pub fn run(bytes: &[u8]) {
    static SPEC: OnceLock<RunSpec> = OnceLock::new();
    let spec = SPEC.get_or_init(|| sim::spec(&[Key::from_seed([7; 32]).id()]));
    let (records, whole) = recover(spec, bytes);
    let again: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    assert_eq!(again, bytes[..whole], "two forms of one journal");
}
