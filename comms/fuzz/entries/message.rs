//! A message: form and bounds. Signatures are checked behind this and cannot panic.

use esker_comms::wire::{Body, Canonical, Message};
use esker_comms::{Key, RunSpec, sim};
use std::sync::OnceLock;

/// The run in which everything is decoded: one validator, small lists.
pub fn run_spec() -> &'static RunSpec {
    static SPEC: OnceLock<RunSpec> = OnceLock::new();
    SPEC.get_or_init(|| {
        let mut spec = sim::spec(&[Key::from_seed([7; 32]).id()]);
        (spec.limits.slots, spec.limits.contributors) = (64, 16);
        spec
    })
}

/// What decodes is written again byte for byte.
pub fn run(bytes: &[u8]) {
    if let Ok((body, signed)) = Message::decode(run_spec(), bytes) {
        let mut again = vec![bytes[0]];
        body.put(&mut again);
        if let Some((signer, signature)) = signed {
            signer.put(&mut again);
            signature.put(&mut again);
        }
        assert_eq!(again, bytes, "two forms of one message: {body:?}");
        assert!(!matches!(body, Body::Sealed(s) if s.manifest.slots.len() > 64), "a list past its bound");
    }
}
