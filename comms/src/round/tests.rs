//! One machine and what is done to it by hand: hints that lie, floods, what a host has lost.

use super::admit::BySpec;
use super::*;
use crate::spec::tests::{key, spec};
use crate::wire::{Attest, Ballot, Body, Entry, Manifest, Message, Phase, Sealed, Slot, Status, Vote};
use crate::{Key, RunSpec};
use std::sync::Arc;

/// A follower of a run with one validator, key 0; connected to it and to a stranger.
struct Hand {
    spec: Arc<RunSpec>,
    run: Hash,
    machine: Machine,
    now: Time,
    tip: Hash,
}

impl Hand {
    fn new() -> Hand {
        Hand::among(1)
    }

    /// With so many validators, keys 0 to n - 1.
    fn among(n: u64) -> Hand {
        let spec = Arc::new(spec(n));
        let (run, mut out) = (spec.id(), Vec::new());
        let nothing = Recovered::nothing(&spec);
        let machine = Machine::new(spec.clone(), key(9), false, None, Box::new(BySpec), nothing, 0, &mut out);
        let mut hand = Hand { spec, run, machine, now: 0, tip: Hash::NONE };
        hand.gives(Fact::Up(key(0).id()));
        hand.gives(Fact::Up(key(1).id()));
        hand
    }

    fn gives(&mut self, fact: Fact) -> Vec<Order> {
        let mut out = Vec::new();
        self.now += 1;
        self.machine.step(self.now, fact, &mut out);
        out
    }

    fn says(&mut self, by: &Key, body: Body) -> Vec<Order> {
        let msg = Message::new(by, &self.run, body);
        let msg = Message::open(&self.spec, &self.run, msg.bytes().to_vec()).unwrap();
        self.gives(Fact::Message { from: by.id(), msg })
    }

    /// The validator's manifest of the next round, with these updates.
    fn seals(&mut self, round: u64, blobs: &[Hash]) -> Vec<Order> {
        let entry = |blob: &Hash| Entry { peer: key(2).id(), blob: *blob, tokens: 1, weight: 65536 };
        let manifest = Manifest {
            run: self.run,
            round,
            prev: self.tip,
            prev_root: self.spec.genesis,
            checkpoint: None,
            train_ms: 1,
            collect_ms: 1,
            entries: blobs.iter().map(entry).collect(),
            rejects: vec![],
            slots: vec![Slot { peer: key(2).id(), since: 1 }],
        };
        let hash = manifest.hash();
        let ballot = Ballot { round, attempt: 0, phase: Phase::Sign, manifest: Some(hash) };
        let signature = Message::new(&key(0), &self.run, Body::Ballot(ballot)).signature().unwrap();
        let votes = vec![Vote { validator: key(0).id(), signature }];
        self.tip = hash;
        self.says(&key(0), Body::Sealed(Arc::new(Sealed { manifest, hash, attempt: 0, votes })))
    }
}

fn pulls(orders: &[Order], of: PeerId) -> usize {
    orders
        .iter()
        .filter(|o| matches!(o, Order::Send { to, msg } if *to == of && matches!(msg.body(), Body::Pull(_))))
        .count()
}

fn tells(orders: &[Order]) -> bool {
    orders.iter().any(|o| matches!(o, Order::Flood { msg, .. } if matches!(msg.body(), Body::Status(_))))
}

/// A status is an unsigned hint. One that claims the end of time once kept whoever heard it from ever telling the mesh of
/// a manifest again, and had him pull for ever.
#[test]
fn a_boast_silences_nobody_and_is_believed_for_a_while() {
    let mut hand = Hand::new();
    let (liar, far) = (key(1), Status { round: u64::MAX, manifest: Hash::NONE, applied: u64::MAX });
    let mut asked = pulls(&hand.says(&liar, Body::Status(far.clone())), liar.id());
    assert_eq!(asked, 1);
    assert!(tells(&hand.seals(0, &[])), "a new tip is told in spite of the boast");
    for _ in 0..100 {
        hand.now += hand.spec.times.retry_ms;
        let orders = hand.gives(Fact::Tick);
        asked += pulls(&orders, liar.id());
        assert_eq!(pulls(&orders, key(0).id()), 0, "nobody else is asked for what one liar claims");
    }
    assert!(asked < 12, "{asked} pulls for one boast");
    assert_eq!(pulls(&hand.says(&liar, Body::Status(far)), liar.id()), 0, "nor does it help to say it again");
    // Who was silent and claims more is asked again, and so is everybody else.
    hand.now += hand.spec.times.retry_ms;
    let behind = Status { round: 5, manifest: Hash::NONE, applied: 5 };
    assert_eq!(pulls(&hand.says(&key(0), Body::Status(behind)), key(0).id()), 1);
    assert!(tells(&hand.seals(1, &[])) || hand.machine.tip().unwrap().manifest.round == 1);
}

/// What does not decode costs its receiver a verification all the same, and was once not counted.
#[test]
fn who_babbles_is_not_listened_to() {
    let mut hand = Hand::new();
    let from = key(1).id();
    let mut told = 0;
    let mut heard = 0;
    while hand.machine.listens(&from) {
        let orders = hand.gives(Fact::Babble { from });
        told += orders.iter().filter(|o| matches!(o, Order::Log(Event::Quota { peer }) if *peer == from)).count();
        heard += 1;
        assert!(heard < 1000);
    }
    assert_eq!(told, 1, "said once");
    assert!(hand.machine.listens(&key(0).id()));
    hand.seals(0, &[]);
    assert!(hand.machine.listens(&from), "a new round, a new hearing");
}

/// An update that went from the store is fetched again; it once ended the process.
#[test]
fn what_the_store_has_lost_is_fetched_again() {
    let mut hand = Hand::new();
    let blob = Hash::of(b"update");
    let fetches = |orders: &[Order]| {
        orders.iter().any(|o| matches!(o, Order::Fetch { wants, .. } if wants.iter().any(|w| w.blob == blob)))
    };
    let folds = |orders: &[Order]| orders.iter().any(|o| matches!(o, Order::Fold { round: 1, .. }));
    hand.seals(0, &[]);
    assert!(fetches(&hand.seals(1, &[blob])));
    assert!(folds(&hand.gives(Fact::Held(vec![blob]))));
    assert!(fetches(&hand.gives(Fact::Missing { round: 1, blobs: vec![blob] })));
    assert!(folds(&hand.gives(Fact::Held(vec![blob]))));
    let orders = hand.gives(Fact::Folded { round: 1, root: Hash::of(b"root") });
    assert!(orders.iter().any(|o| matches!(o, Order::Log(Event::Applied { round: 1, .. }))));
}

/// A validator that attests for rounds to come once pushed out what the others say of this one.
#[test]
fn a_liars_attests_push_out_nobody_elses() {
    let mut hand = Hand::among(4);
    let says = |hand: &mut Hand, by: u64, round: u64, root: Hash| {
        hand.says(&key(by), Body::Attest(Attest { round, manifest: Hash::NONE, root }))
    };
    let truth = Hash::of(b"the others' root");
    says(&mut hand, 1, 0, truth);
    says(&mut hand, 2, 0, truth);
    (0..50).for_each(|n| _ = says(&mut hand, 0, u64::MAX - n, Hash::NONE));
    // The third word makes the quorum by which our own root is found to differ.
    let orders = says(&mut hand, 3, 0, truth);
    assert!(orders.iter().any(|o| matches!(o, Order::Sync { round: 0, root, .. } if *root == truth)), "{orders:?}");
}

/// Rounds at the end of time come from anybody.
#[test]
fn no_round_from_the_wire_overflows() {
    let spec = Arc::new(spec(1));
    let mut out = Vec::new();
    let nothing = Recovered::nothing(&spec);
    let mut machine = Machine::new(spec.clone(), key(0), true, None, Box::new(BySpec), nothing, 0, &mut out);
    machine.step(1, Fact::Up(key(1).id()), &mut out);
    let join = crate::wire::Join { protocol: spec.protocol, token: None };
    let far = |round| {
        let (h, blob, bytes) = (Hash::NONE, Hash::NONE, spec.blob_bytes);
        [
            Body::Join(join.clone()),
            Body::Attest(Attest { round, manifest: h, root: h }),
            Body::Commit(crate::wire::Commit { round, after: h, blob, bytes, tokens: round, steps: u32::MAX }),
            Body::Reveal(crate::wire::Reveal { round, blob }),
            Body::Status(Status { round, manifest: h, applied: round }),
            Body::Pull(crate::wire::Pull { from: round }),
        ]
    };
    for (turn, body) in (1..).zip([u64::MAX, u64::MAX - 1, u64::MAX - 5].into_iter().flat_map(far)) {
        let msg = Message::new(&key(1), &spec.id(), body);
        machine.step(turn * 10_000, Fact::Message { from: key(1).id(), msg }, &mut out);
        machine.step(turn * 10_000 + 5_000, Fact::Tick, &mut out);
    }
}

/// Whoever pulls is sent what its queue takes: sixteen manifests of a large run once made its link look stalled, which ended
/// it, each time again.
#[test]
fn a_pull_of_large_manifests_is_answered_in_parts() {
    let mut spec = spec(1);
    (spec.limits.slots, spec.limits.contributors) = (1 << 14, 1 << 14);
    let (spec, mut prev, mut chain) = (Arc::new(spec), Hash::NONE, Vec::new());
    let peer = |n: u64| PeerId(std::array::from_fn(|i| n.to_be_bytes().get(i).copied().unwrap_or(0)));
    for round in 0..20 {
        let manifest = Manifest {
            run: spec.id(),
            round,
            prev,
            prev_root: spec.genesis,
            checkpoint: None,
            train_ms: 1,
            collect_ms: 1,
            entries: vec![],
            rejects: vec![],
            slots: (0..1 << 14).map(|n| Slot { peer: peer(n), since: 1 }).collect(),
        };
        prev = manifest.hash();
        chain.push(Record::Sealed(Arc::new(Sealed { manifest, hash: prev, attempt: 0, votes: vec![] })));
    }
    let recovered = Recovered { records: chain, ..Recovered::nothing(&spec) };
    let mut out = Vec::new();
    let mut machine = Machine::new(spec.clone(), key(9), false, None, Box::new(BySpec), recovered, 0, &mut out);
    let (mut from, mut pulls) = (3, 0);
    while from < 19 {
        let (run, mut out) = (spec.id(), Vec::new());
        let msg = Message::new(&key(1), &run, Body::Pull(crate::wire::Pull { from }));
        machine.step(1, Fact::Message { from: key(1).id(), msg }, &mut out);
        let sent = out.iter().filter_map(|o| match o {
            Order::Send { to, msg } if *to == key(1).id() => Some(msg),
            _ => None,
        });
        let sent: Vec<_> = sent.collect();
        let bytes: usize = sent.iter().map(|msg| msg.bytes().len()).sum();
        assert!(!sent.is_empty() && bytes <= 4 << 20, "{} manifests of {bytes} bytes", sent.len());
        (from, pulls) = (from + sent.len() as u64, pulls + 1);
    }
    assert_eq!((from, pulls), (20, 3));
}

/// A stranger that attests under thousands of keys once made a validator that trains forget itself: no slot for it again.
#[test]
fn a_crowd_of_attests_does_not_push_out_the_validator_itself() {
    let own = (0..).map(key).find(|key| key.id().0[0] == 0).expect("one in 256");
    let mut spec = spec(1);
    (spec.validators, spec.limits.peers_min) = (vec![own.id()], 1);
    let (spec, me, mut out) = (Arc::new(spec), own.id(), Vec::new());
    let nothing = Recovered::nothing(&spec);
    let mut machine = Machine::new(spec.clone(), own, true, None, Box::new(BySpec), nothing, 0, &mut out);
    let attest = Attest { round: 0, manifest: Hash::NONE, root: Hash::NONE };
    for n in 0..(1 << 15) + 100 {
        let crowd = Key::from_seed(Hash::of_parts(&[b"crowd", &u64::to_le_bytes(n)]).0);
        let msg = Message::new(&crowd, &spec.id(), Body::Attest(attest.clone()));
        let from = PeerId([(n / 200) as u8; 32]);
        machine.step(1, Fact::Message { from, msg }, &mut out);
    }
    machine.step(1 + spec.times.retry_ms, Fact::Tick, &mut out);
    let tip = machine.tip().expect("round 0 is settled");
    assert!(tip.manifest.slot(&me).is_some(), "its own slot");
}
