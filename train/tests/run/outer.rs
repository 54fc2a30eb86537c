//! Owners' rounds without a network: the formula to the bit, what survives, and what strangers may send.

use crate::tiny::Place;
use esker_kernels::device::Stream;
use esker_kernels::ops::chunk_topk::record;
use esker_model::Weights;
use esker_train::config::Run;
use esker_train::outer::blob::{self, HEADER_BYTES};
use esker_train::outer::{BlobFault, OuterError, Owner};
use esker_train::source;
use std::sync::Arc;

/// Three slots, two steps a round, six rounds.
const OUTER: &[&str] = &[
    "train.steps=12",
    "outer.slots=3",
    "outer.inner_steps=2",
    "outer.codec=compact",
    "outer.k=64",
    "outer.beta=0.95",
    "outer.mean=senders",
    "outer.clip=median",
    "outer.alpha=[{ round = 0, value = 1.0 }, { round = 5, value = 0.5 }]",
];

fn run(place: &Place, sets: &[&str]) -> Run {
    place.run(&[OUTER, sets].concat())
}

fn owner(place: &Place, run: &Run) -> Owner {
    let opened = source::open(run, place.dir.path()).unwrap();
    Owner::open(Arc::new(Stream::cpu(run.train.threads).unwrap()), run.clone(), &opened).unwrap()
}

fn owners(place: &Place, run: &Run, n: usize) -> Vec<Owner> {
    (0..n).map(|_| owner(place, run)).collect()
}

fn peer(slot: usize) -> [u8; 32] {
    [slot as u8 + 1; 32]
}

/// One whole round of all; gives the updates.
fn round(owners: &mut [Owner], round: u64) -> Vec<Vec<u8>> {
    let prepare = |(slot, o): (usize, &mut Owner)| o.prepare(round, slot as u64, peer(slot)).unwrap().blob;
    let blobs: Vec<Vec<u8>> = owners.iter_mut().enumerate().map(prepare).collect();
    apply(owners, round, &blobs);
    blobs
}

fn apply(owners: &mut [Owner], round: u64, blobs: &[Vec<u8>]) {
    let all: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
    let roots: Vec<[u8; 32]> = owners.iter_mut().map(|o| o.apply(round, &all).unwrap()).collect();
    assert!(roots.iter().all(|root| *root == roots[0]), "round {round}: roots differ");
}

fn flat(w: &Weights) -> Vec<f32> {
    w.each().flat_map(|(_, t)| t.f32().to_vec()).collect()
}

/// What an update decodes to, as dense weights.
fn decoded(o: &Owner, blob: &[u8]) -> Vec<f32> {
    let (mut out, mut first) = (vec![0.0; o.layout().elements()], 0);
    for part in o.layout().parts() {
        record::visit(part.grid, o.layout().spec(), &blob[part.bytes.clone()], |i, d| out[first + i] = d).unwrap();
        first += part.grid.len();
    }
    out
}

fn same(got: &[f32], want: impl Iterator<Item = f32>) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "element {i}: {got} {want}");
    }
}

#[test]
fn whole_tiles_without_quantiser_and_feedback_are_plain_averaging() {
    let place = Place::new();
    let sets = ["outer.k=4096", "outer.codec=exact", "outer.beta=0.0", "outer.clip=none", "outer.mean=peers"];
    for mean in ["peers", "senders"] {
        let run = run(&place, &[&sets[..4], &[&format!("outer.mean={mean}")]].concat());
        let mut all = owners(&place, &run, 3);
        for t in 0..2 {
            let anchor = flat(all[0].anchor());
            let prepare = |(slot, o): (usize, &mut Owner)| o.prepare(t, slot as u64, peer(slot)).unwrap().blob;
            let blobs: Vec<Vec<u8>> = all.iter_mut().enumerate().map(prepare).collect();
            let thetas: Vec<Vec<f32>> = all.iter().map(|o| flat(o.theta())).collect();
            assert!(thetas[0] != thetas[1] && thetas[0] != anchor);
            apply(&mut all, t, &blobs);
            let alpha = run.shared().unwrap().alpha(t);
            let mean = |i: usize| thetas.iter().fold(0.0f32, |sum, theta| sum + (anchor[i] - theta[i])) / 3.0;
            same(&flat(all[0].anchor()), (0..anchor.len()).map(|i| anchor[i] - alpha * mean(i)));
            assert!(all.iter().all(|o| flat(o.feedback()).iter().all(|e| *e == 0.0)));
        }
    }
}

#[test]
fn feedback_keeps_what_was_not_sent() {
    let place = Place::new();
    for codec in ["compact", "reference", "exact"] {
        let run = run(&place, &[&format!("outer.codec={codec}"), "outer.k=128"]);
        let mut all = owners(&place, &run, 1);
        for t in 0..3 {
            let (anchor, before) = (flat(all[0].anchor()), flat(all[0].feedback()));
            let blob = all[0].prepare(t, 0, peer(0)).unwrap().blob;
            let (theta, sent) = (flat(all[0].theta()), decoded(&all[0], &blob));
            let whole = |i: usize| 0.95f32 * before[i] + (anchor[i] - theta[i]);
            same(&flat(all[0].feedback()), (0..theta.len()).map(|i| whole(i) - sent[i]));
            assert!(sent.iter().filter(|d| **d != 0.0).count() * 24 < sent.len(), "it is sparse");
            apply(&mut all, t, &[blob]);
        }
    }
}

#[test]
fn every_form_of_round_agrees() {
    let place = Place::new();
    for sets in [
        &["outer.inner_steps=1", "train.steps=3"][..],
        &["outer.inner_steps=5"],
        &["outer.mean=peers", "outer.codec=reference"],
        &["train.dtype=bf16"],
        &["train.dtype=bf16", "outer.codec=exact", "outer.k=4096"],
    ] {
        let run = run(&place, sets);
        let mut all = owners(&place, &run, 2);
        let start = all[0].root();
        let rounds = run.rounds(run.shared().unwrap());
        for t in 0..rounds {
            round(&mut all, t);
        }
        assert_ne!(all[0].root(), start, "{sets:?}");
        let error = all[0].prepare(rounds, 0, peer(0)).unwrap_err();
        assert!(matches!(error, OuterError::NoSuchRows { .. }), "{error}");
        let first = all[0].score().unwrap().unwrap().nll;
        assert!(first.is_finite() && first < 6.0, "{first}");
    }
}

#[test]
fn threads_change_no_bit() {
    let place = Place::new();
    let root = |threads: &str| {
        let run = run(&place, &[threads]);
        let mut all = owners(&place, &run, 2);
        let blobs: Vec<Vec<Vec<u8>>> = (0..3).map(|t| round(&mut all, t)).collect();
        (blobs, all[0].root())
    };
    assert_eq!(root("train.threads=1"), root("train.threads=2"));
}

#[test]
fn a_round_under_way_does_not_disturb_the_one_before() {
    // With a delay of one, round 1 is trained before round 0 is applied: all still agree, and the next begins there.
    let place = Place::new();
    let run = run(&place, &[]);
    let mut all = owners(&place, &run, 3);
    let prepare = |all: &mut Vec<Owner>, t: u64| -> Vec<Vec<u8>> {
        all.iter_mut().enumerate().map(|(s, o)| o.prepare(t, s as u64, peer(s)).unwrap().blob).collect()
    };
    let mut waiting = prepare(&mut all, 0);
    for t in 1..6 {
        let next = prepare(&mut all, t);
        apply(&mut all, t - 1, &std::mem::replace(&mut waiting, next));
    }
    apply(&mut all, 5, &waiting);
    assert_eq!(all[0].round(), 6);
}

/// Killed after its update went out and before it was kept: the owner knows nothing of what it gave.
#[test]
fn what_counted_before_a_kill_is_not_given_twice() {
    let place = Place::new();
    let run = run(&place, &[]);
    let mut all = owners(&place, &run, 2);
    let dir = place.dir.path().join("owner");
    std::fs::create_dir_all(&dir).unwrap();
    let prepare = |o: &mut Owner, t: u64, slot: usize| o.prepare(t, slot as u64, peer(slot)).unwrap().blob;
    for t in 0..3 {
        round(&mut all, t);
    }
    all[0].save(&dir).unwrap();
    let given = [prepare(&mut all[0], 3, 0), prepare(&mut all[1], 3, 1)];
    all[0] = owner(&place, &run);
    all[0].name_peer(peer(0));
    assert!(all[0].restore(&dir).unwrap());
    apply(&mut all, 3, &given);

    let layout = all[0].layout().clone();
    let picks = |blob: &[u8]| {
        let mut places = std::collections::BTreeSet::new();
        for (i, part) in layout.parts().iter().enumerate() {
            record::visit(part.grid, layout.spec(), &blob[part.bytes.clone()], |at, _| _ = places.insert((i, at)))
                .unwrap();
        }
        places
    };
    let feedback: Vec<Vec<f32>> = all[0].feedback().each().map(|(_, e)| e.f32().to_vec()).collect();
    assert!(picks(&given[0]).iter().all(|(tensor, at)| feedback[*tensor][*at] == 0.0));
    assert!(feedback.iter().flatten().any(|e| *e != 0.0), "the rest is kept");
    let next = picks(&prepare(&mut all[0], 4, 0));
    let shared = next.intersection(&picks(&given[0])).count();
    assert!(shared * 2 < next.len(), "{shared} of {} again", next.len());
    // Weights that were fetched, rounds later.
    all[0].settle_at(9).unwrap();
    assert!(all[0].feedback().each().all(|(_, e)| e.f32().iter().all(|e| *e == 0.0)));
}

#[test]
fn a_restored_owner_goes_on_to_the_bit() {
    let place = Place::new();
    let run = run(&place, &[]);
    let mut straight = owners(&place, &run, 2);
    let mut killed = owners(&place, &run, 2);
    let dir = place.dir.path().join("owner");
    std::fs::create_dir_all(&dir).unwrap();
    let fresh = |dir: &std::path::Path| {
        let mut o = owner(&place, &run);
        assert!(o.restore(dir).unwrap());
        o
    };
    assert!(!killed[0].restore(&dir).unwrap(), "nothing is there yet");
    for t in 0..4 {
        let want = round(&mut straight, t);
        let prepare = |o: &mut Owner, slot: usize| o.prepare(t, slot as u64, peer(slot)).unwrap().blob;
        let got = vec![prepare(&mut killed[0], 0), prepare(&mut killed[1], 1)];
        assert_eq!(got, want, "round {t}");
        // Killed between its update and the round's end, and once more after it.
        killed[0].save(&dir).unwrap();
        killed[0] = fresh(&dir);
        apply(&mut killed, t, &got);
        killed[0].save(&dir).unwrap();
        killed[0] = fresh(&dir);
        assert_eq!(killed[0].root(), straight[0].root());
    }
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["owner.safetensors"], "settled updates are gone");
    let mut bytes = std::fs::read(dir.join("owner.safetensors")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(dir.join("owner.safetensors"), bytes).unwrap();
    let error = owner(&place, &run).restore(&dir).unwrap_err().to_string();
    assert!(error.contains("owner.safetensors") && error.contains("damaged"), "{error}");
}

#[test]
fn an_update_that_came_late_goes_back_into_the_feedback() {
    let place = Place::new();
    let run = run(&place, &[]);
    let mut all = owners(&place, &run, 2);
    let blobs: Vec<Vec<u8>> =
        all.iter_mut().enumerate().map(|(s, o)| o.prepare(0, s as u64, peer(s)).unwrap().blob).collect();
    let (kept, sent) = (flat(all[1].feedback()), decoded(&all[1], &blobs[1]));
    apply(&mut all, 0, &blobs[..1]);
    same(&flat(all[1].feedback()), kept.iter().zip(&sent).map(|(e, d)| e + d));
    assert!(matches!(all[0].apply(0, &[]).unwrap_err(), OuterError::OutOfTurn { got: 0, want: 1 }));
    let none = all[0].root();
    assert_eq!(all[0].apply(1, &[]).unwrap(), none, "a round without updates moves nothing");
}

#[test]
fn leaves_are_compared_and_replaced() {
    use esker_train::outer::leaves;
    let place = Place::new();
    let run = run(&place, &[]);
    let mut all = owners(&place, &run, 2);
    round(&mut all, 0);
    let good = leaves::get(all[0].anchor(), 3).unwrap().to_vec();
    let mut bad = good.clone();
    bad[5] ^= 4;
    assert!(all[1].set_leaf(3, &bad) && !all[1].set_leaf(3, &bad[1..]) && !all[1].set_leaf(1 << 20, &bad));
    assert_ne!(all[1].settle_at(1).unwrap(), all[0].root());
    let (a, b) = (leaves::digests(all[0].anchor()), leaves::digests(all[1].anchor()));
    assert_eq!((0..a.len()).filter(|&i| a[i] != b[i]).collect::<Vec<_>>(), [3]);
    assert!(all[1].set_leaf(3, &good));
    assert_eq!(all[1].settle_at(1).unwrap(), all[0].root());
    round(&mut all, 1);
}

/// Who has no time for a whole round sends what there was time for, and says how much that is.
#[test]
fn a_short_round_says_so() {
    use esker_train::outer::inner::Word;
    let place = Place::new();
    let run = run(&place, &[]);
    let (mut a, mut b) = (owner(&place, &run), owner(&place, &run));
    let whole = a.header(0, peer(1));
    assert_eq!(whole.inner_steps, 2);
    let short = a.prepare_until(0, 1, peer(1), &|_| Word::Enough).unwrap();
    assert_eq!((short.header.inner_steps, short.header.tokens), (1, whole.tokens / 2));
    assert_eq!((short.trained.steps, short.trained.loss), (1, short.trained.last_loss));
    blob::check(a.layout(), &short.header, &short.blob).unwrap();
    assert!(matches!(blob::check(a.layout(), &whole, &short.blob), Err(BlobFault::Work { got_steps: 1, .. })));
    // The steps it made are those that it would have made.
    let word = |done| if done == 1 { Word::Enough } else { Word::GoOn };
    assert_eq!(b.prepare_until(0, 1, peer(1), &word).unwrap().blob, short.blob);
    assert!(matches!(b.prepare_until(0, 1, peer(1), &|_| Word::Stop), Err(OuterError::Stopped { round: 0 })));
}

#[test]
fn hostile_updates_are_named() {
    let place = Place::new();
    for codec in ["compact", "reference", "exact"] {
        let run = run(&place, &[&format!("outer.codec={codec}")]);
        let mut o = owner(&place, &run);
        let good = o.prepare(0, 1, peer(1)).unwrap().blob;
        let want = o.header(0, peer(1));
        let check = |bytes: &[u8]| blob::check(o.layout(), &want, bytes);
        check(&good).unwrap();
        assert_eq!(good.len(), o.layout().bytes());
        let changed = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            check(&bytes).unwrap_err()
        };
        assert_eq!(changed(0), BlobFault::Magic);
        assert_eq!(changed(8), BlobFault::Version { got: 0 });
        assert!(matches!(changed(12), BlobFault::Work { got_steps: 3, .. }));
        assert_eq!(changed(16), BlobFault::OtherRun);
        assert_eq!(changed(48), BlobFault::OtherPeer);
        assert_eq!(changed(80), BlobFault::StaleBase);
        assert_eq!(changed(112), BlobFault::WrongRound { got: 1, want: 0 });
        assert!(matches!(changed(120), BlobFault::Work { got_tokens: 257, .. }));
        for length in [0, 1, 127, 128, good.len() - 1] {
            assert!(check(&good[..length]).is_err());
        }
        assert!(matches!(check(&[&good[..], &[0]].concat()), Err(BlobFault::Length { .. })));
        // Any bytes in place of the records: an answer, never a panic.
        let mut state = 1u64;
        for _ in 0..200 {
            let mut bytes = good.clone();
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = HEADER_BYTES + (state >> 33) as usize % (bytes.len() - HEADER_BYTES);
                bytes[at] = (state >> 20) as u8;
            }
            let _ = check(&bytes);
        }
    }
}
