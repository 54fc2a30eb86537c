//! A spec for tests, its one form, and what is refused.

use super::*;
use crate::Key;

/// The key of test peer `i`.
pub fn key(i: u64) -> Key {
    Key::from_seed(Hash::of(&i.to_le_bytes()).0)
}

/// A run with `n` validators, keys 0 to n - 1.
pub fn spec(n: u64) -> RunSpec {
    crate::sim::spec(&(0..n).map(|i| key(i).id()).collect::<Vec<_>>())
}

#[test]
fn its_bytes_have_one_form_and_name_the_run() {
    let spec = spec(4);
    spec.check().unwrap();
    let bytes = spec.encode();
    let again = RunSpec::read(&bytes).unwrap();
    assert_eq!((again.encode(), again.id()), (bytes.clone(), spec.id()));
    for cut in 0..bytes.len() {
        assert!(RunSpec::read(&bytes[..cut]).is_err());
    }
    assert!(RunSpec::read(&[bytes, vec![0]].concat()).is_err());
}

#[test]
fn a_spec_that_cannot_run_is_refused_by_name() {
    let refused = |change: fn(&mut RunSpec)| {
        let mut spec = spec(4);
        change(&mut spec);
        spec.check().unwrap_err().to_string()
    };
    assert!(refused(|s| s.quorum = 2).contains("quorum"));
    assert!(refused(|s| s.validators.reverse()).contains("validators"));
    assert!(refused(|s| s.name = "a/b".into()).contains("name"));
    assert!(refused(|s| s.delay = 2).contains("delay"));
    assert!(refused(|s| s.outer.k = 0).contains("outer.k"));
    assert!(refused(|s| s.limits.norm_ratio = f32::NAN).contains("norm_ratio"));
    // Its own bytes would not be read.
    assert!(refused(|s| s.limits.age_ratio = f32::INFINITY).contains("age_ratio"));
    assert!(refused(|s| s.outer.beta = -0.0).contains("outer.beta"));
    assert!(refused(|s| s.outer.alpha[0].alpha = f32::INFINITY).contains("outer.alpha"));
}

#[test]
fn alpha_runs_straight_between_its_knots() {
    let mut spec = spec(1);
    spec.outer.alpha = vec![Knot { round: 10, alpha: 1.0 }, Knot { round: 20, alpha: 0.5 }];
    assert_eq!([0, 10, 15, 20, 99].map(|r| spec.alpha(r)), [1.0, 1.0, 0.75, 0.5, 0.5]);
}

#[test]
fn proposers_take_turns() {
    let spec = spec(4);
    let four: std::collections::BTreeSet<_> = (0..4).map(|a| spec.proposer(7, a)).collect();
    assert_eq!(four.len(), 4);
    assert_eq!(spec.proposer(7, 1), spec.proposer(8, 0));
}
