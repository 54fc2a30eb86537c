//! One form for each value, and nothing that can be said twice in two places.

use super::*;
use crate::spec::tests::{key, spec};
use proptest::prelude::*;

fn hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let peers = || proptest::collection::btree_set(any::<[u8; 32]>(), 0..6);
    let lists = (peers(), peers(), peers());
    (hash(), any::<u64>(), hash(), hash(), proptest::option::of((any::<u64>(), hash())), lists).prop_map(
        |(run, round, prev, prev_root, checkpoint, (entries, rejects, slots))| Manifest {
            run,
            round,
            prev,
            prev_root,
            checkpoint: checkpoint.map(|(round, root)| Checkpoint { round, root }),
            train_ms: round ^ 5,
            collect_ms: 7,
            entries: entries
                .into_iter()
                .map(|p| Entry { peer: PeerId(p), blob: run, tokens: 9, weight: 65536 })
                .collect(),
            rejects: rejects.into_iter().map(|p| Reject { peer: PeerId(p), reason: Reason::Overlap }).collect(),
            slots: slots.into_iter().map(|p| Slot { peer: PeerId(p), since: round }).collect(),
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let (a, b) = (any::<u64>(), hash());
    (0..12, a, b, hash(), manifest(), any::<[u8; 64]>(), any::<u32>()).prop_map(
        |(kind, round, h, g, manifest, signature, n)| match kind {
            0 => Body::Join(Join {
                protocol: crate::Protocol { min: 1, max: 2 },
                token: (n % 2 == 0).then_some(Signature(signature)),
            }),
            1 => Body::Commit(Commit { round, after: h, blob: g, bytes: round, tokens: 4, steps: n }),
            2 => Body::Reveal(Reveal { round, blob: h }),
            3 => Body::Close(Close { round, after: h }),
            4 => Body::Have(Have { round, after: h, whole: n % 2 == 0, slots: vec![n as u8, 1 | n as u8] }),
            5 => Body::Propose(Box::new(Propose { attempt: n, ready: (n % 2 == 0).then_some(n / 2), manifest })),
            6 => Body::Ballot(Ballot { round, attempt: n, phase: Phase::Sign, manifest: Some(h) }),
            7 => Body::Sealed(Arc::new(Sealed {
                hash: manifest.hash(),
                manifest,
                attempt: n,
                votes: vec![Vote { validator: PeerId(h.0), signature: Signature(signature) }],
            })),
            8 => Body::Attest(Attest { round, manifest: h, root: g }),
            9 => Body::Refuse(Refuse { round, peer: PeerId(h.0), reason: Reason::Late }),
            10 => Body::Status(Status { round, manifest: h, applied: round / 2 }),
            _ => Body::Pull(Pull { from: round }),
        },
    )
}

proptest! {
    #[test]
    fn what_is_said_is_what_is_heard(body in body()) {
        let (spec, key) = (spec(1), key(0));
        let msg = Message::new(&key, &spec.id(), body.clone());
        let (again, signed) = Message::decode(&spec, msg.bytes()).unwrap();
        prop_assert_eq!(&again, &body);
        prop_assert_eq!(signed.map(|s| s.0), msg.signer());
    }

    #[test]
    fn bytes_that_decode_are_the_only_ones(body in body(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let (spec, key) = (spec(1), key(0));
        let msg = Message::new(&key, &spec.id(), body);
        let mut bytes = msg.bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok((body, signed)) = Message::decode(&spec, &bytes) {
            let mut again = vec![body.kind() as u8];
            body.put(&mut again);
            if let Some((signer, signature)) = signed {
                signer.put(&mut again);
                signature.put(&mut again);
            }
            prop_assert_eq!(&again, &bytes);
        }
        // Whatever was changed, a signed message does not hold any more.
        if msg.signer().is_some() {
            prop_assert!(Message::open(&spec, &spec.id(), bytes).is_err());
        }
    }

    #[test]
    fn cut_or_longer_is_refused(body in body(), cut in any::<prop::sample::Index>()) {
        let (spec, key) = (spec(1), key(0));
        let bytes = Message::new(&key, &spec.id(), body).bytes().to_vec();
        prop_assert!(Message::decode(&spec, &bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(Message::decode(&spec, &[&bytes[..], &[0]].concat()).is_err());
    }
}

fn opened(spec: &RunSpec, run: &Hash, msg: &Msg) -> Result<Msg, WireFault> {
    Message::open(spec, run, msg.bytes().to_vec())
}

#[test]
fn old_and_foreign_messages_are_refused() {
    let (spec, run) = (spec(1), spec(1).id());
    let attest = Body::Attest(Attest { round: 3, manifest: Hash::of(b"m"), root: Hash::of(b"r") });
    let here = Message::new(&key(9), &run, attest.clone());
    assert!(opened(&spec, &run, &here).is_ok());
    let there = Message::new(&key(9), &Hash::of(b"another run"), attest);
    assert!(matches!(opened(&spec, &run, &there), Err(WireFault::Signature { .. })));
    // The same body under another kind: Status has the fields of Attest in another order and is not signed.
    let mut bytes = here.bytes().to_vec();
    bytes[0] = Kind::Close as u8;
    assert!(Message::open(&spec, &run, bytes).is_err());
    let close = Body::Close(Close { round: 1, after: Hash::NONE });
    assert!(matches!(opened(&spec, &run, &Message::new(&key(9), &run, close)), Err(WireFault::NotAValidator { .. })));
}

#[test]
fn a_manifest_needs_a_quorum_of_this_run() {
    let (spec, run) = (spec(4), spec(4).id());
    let seal = |signers: &[u64], run: Hash, attempt: u32| {
        let manifest = Manifest {
            run,
            round: 2,
            prev: Hash::NONE,
            prev_root: Hash::NONE,
            checkpoint: None,
            train_ms: 1,
            collect_ms: 1,
            entries: vec![],
            rejects: vec![],
            slots: vec![],
        };
        let hash = manifest.hash();
        let mut votes: Vec<Vote> = signers
            .iter()
            .map(|i| {
                let body = Body::Ballot(Ballot { round: 2, attempt: 0, phase: Phase::Sign, manifest: Some(hash) });
                let msg = Message::new(&key(*i), &run, body);
                Vote { validator: key(*i).id(), signature: msg.signature().unwrap() }
            })
            .collect();
        votes.sort_by_key(|v| v.validator);
        let sealed = Sealed { manifest, hash, attempt, votes };
        Message::new(&key(0), &run, Body::Sealed(Arc::new(sealed)))
    };
    assert!(opened(&spec, &run, &seal(&[0, 1, 2], run, 0)).is_ok());
    assert!(opened(&spec, &run, &seal(&[0, 1, 2, 3], run, 0)).is_ok());
    assert!(matches!(opened(&spec, &run, &seal(&[0, 1], run, 0)), Err(WireFault::Quorum { got: 2, want: 3, .. })));
    // A stranger's signature does not count, signatures of another attempt neither.
    assert!(opened(&spec, &run, &seal(&[0, 1, 77], run, 0)).is_err());
    assert!(opened(&spec, &run, &seal(&[0, 1, 2], run, 1)).is_err());
    let other = Hash::of(b"other");
    assert!(matches!(opened(&spec, &run, &seal(&[0, 1, 2], other, 0)), Err(WireFault::OtherRun { .. })));
}
