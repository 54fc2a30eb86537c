//! Validators that lose messages, die and lie, and what they decide; and a lie that is told once.

use super::*;
use crate::sim::work::Rng;
use crate::spec::tests::{key, spec};
use crate::wire::{Body, Message, Propose};
use crate::{Hash, Key};

/// One validator and what it keeps through restarts.
struct Seat {
    key: Key,
    agree: Agree,
    ballots: Vec<Ballot>,
    locks: Vec<(u32, Manifest)>,
    proposals: Vec<Msg>,
    decided: Option<Hash>,
}

fn manifest(run: Hash, mark: u64) -> Manifest {
    Manifest {
        run,
        round: 1,
        prev: Hash::NONE,
        prev_root: Hash::NONE,
        checkpoint: None,
        train_ms: mark,
        collect_ms: 1,
        entries: vec![],
        rejects: vec![],
        slots: vec![],
    }
}

/// Plays four validators over a network that loses, repeats and delays, with kills and, where `liar`, one who
/// signs everything. Gives what each decided.
fn play(seed: u64, liar: bool, loss: f64) -> Vec<Option<Hash>> {
    let (spec, mut rng) = (spec(4), Rng(seed));
    let run = spec.id();
    let mut keys: Vec<Key> = (0..4).map(key).collect();
    keys.sort_by_key(Key::id);
    let seat =
        |key: Key| Seat { key, agree: Agree::new(1), ballots: vec![], locks: vec![], proposals: vec![], decided: None };
    let mut seats: Vec<Seat> = keys.into_iter().map(seat).collect();
    let mut pool: Vec<Msg> = Vec::new();
    let mut now = 0;
    for turn in 0..6000u64 {
        now += rng.below(400);
        let i = rng.below(4) as usize;
        let me = seats[i].key.id();
        if rng.chance(0.01) && turn < 4000 {
            // Killed: only what was kept is left.
            let seat = &mut seats[i];
            seat.agree = Agree::new(1);
            for ballot in &seat.ballots {
                seat.agree.recall(ballot);
                let msg = Message::new(&seat.key, &run, Body::Ballot(ballot.clone()));
                seat.agree.ballot(&msg, &mut vec![]);
            }
            for (attempt, m) in &seat.locks {
                seat.agree.recall_lock(*attempt, m.clone());
            }
            for msg in &seat.proposals {
                seat.agree.propose(&spec, msg, &mut vec![]);
            }
        }
        let mut acts = Vec::new();
        for _ in 0..rng.below(6) {
            if pool.is_empty() || turn < 4000 && rng.chance(loss) {
                continue;
            }
            let msg = pool[rng.below(pool.len() as u64) as usize].clone();
            seats[i].agree.propose(&spec, &msg, &mut acts);
            seats[i].agree.ballot(&msg, &mut acts);
        }
        seats[i].agree.start(now, &spec, &me, &mut acts);
        loop {
            let mut sound = |m: &Manifest| Some(m.train_ms % 7 != 3);
            seats[i].agree.advance(now, &spec, &me, &mut sound, &mut acts);
            if acts.is_empty() || seats[i].decided.is_some() {
                break;
            }
            for act in std::mem::take(&mut acts) {
                let seat = &mut seats[i];
                match act {
                    Act::Propose { attempt, again } => {
                        let (ready, m) = match again {
                            Some((ready, m)) => (Some(ready), m),
                            None => (None, manifest(run, u64::from(attempt) * 10 + i as u64)),
                        };
                        let body = Body::Propose(Box::new(Propose { attempt, ready, manifest: m }));
                        let msg = Message::new(&seat.key, &run, body);
                        seat.proposals.push(msg.clone());
                        seat.agree.propose(&spec, &msg, &mut acts);
                        pool.push(msg);
                    }
                    Act::Cast(ballot) => {
                        let known =
                            seat.ballots.iter().find(|b| (b.attempt, b.phase) == (ballot.attempt, ballot.phase));
                        assert!(known.is_none_or(|b| *b == ballot), "seed {seed}: said two things");
                        seat.ballots.push(ballot.clone());
                        if liar && i == 3 {
                            let any = seat.proposals.iter().chain(&pool).filter_map(|m| match m.body() {
                                Body::Propose(p) => Some(p.manifest.hash()),
                                _ => None,
                            });
                            for hash in any.collect::<Vec<_>>() {
                                let lie = Ballot { manifest: Some(hash), ..ballot.clone() };
                                pool.push(Message::new(&seat.key, &run, Body::Ballot(lie)));
                            }
                        }
                        let msg = Message::new(&seat.key, &run, Body::Ballot(ballot));
                        seat.agree.ballot(&msg, &mut acts);
                        pool.push(msg);
                    }
                    Act::Lock { attempt, manifest } => seat.locks.push((attempt, manifest)),
                    Act::Decide { manifest, .. } => seat.decided = Some(manifest.hash()),
                    Act::Liar { signer, .. } => {
                        assert!(liar && signer != me || i == 3, "seed {seed}: an honest liar")
                    }
                }
            }
        }
    }
    seats.iter().map(|s| s.decided).collect()
}

#[test]
fn two_manifests_never_and_one_in_the_end() {
    for seed in 0..12 {
        for (liar, loss) in [(false, 0.5), (true, 0.3)] {
            let decided = play(seed, liar, loss);
            let honest = &decided[..if liar { 3 } else { 4 }];
            let mut manifests: Vec<Hash> = honest.iter().flatten().copied().collect();
            manifests.dedup();
            assert_eq!(manifests.len(), 1, "seed {seed}, liar {liar}: {decided:?}");
            assert!(liar || honest.iter().all(Option::is_some), "seed {seed}: {decided:?}");
        }
    }
}

/// Whoever had two ballots of one validator could once have all others write both down again and again.
#[test]
fn a_lie_is_told_once() {
    let (spec, run) = (spec(4), spec(4).id());
    let ballot = |mark: u64| {
        let manifest = Some(Hash::of(&mark.to_le_bytes()));
        Message::new(&key(0), &run, Body::Ballot(Ballot { round: 1, attempt: 0, phase: Phase::Ready, manifest }))
    };
    let proposal = |mark: u64| {
        let body = Propose { attempt: 0, ready: None, manifest: manifest(run, mark) };
        let keys = (0..4).map(key).find(|key| key.id() == spec.proposer(1, 0)).unwrap();
        Message::new(&keys, &run, Body::Propose(Box::new(body)))
    };
    let (mut agree, mut acts) = (Agree::new(1), Vec::new());
    for mark in [0, 1, 1, 2, 0, 3] {
        agree.ballot(&ballot(mark), &mut acts);
        agree.propose(&spec, &proposal(mark), &mut acts);
    }
    let mut liars: Vec<PeerId> = acts
        .iter()
        .map(|act| match act {
            Act::Liar { signer, .. } => *signer,
            other => panic!("{other:?}"),
        })
        .collect();
    liars.sort_unstable();
    let count = liars.len();
    liars.dedup();
    assert_eq!((liars.len(), liars.contains(&key(0).id())), (count, true), "{count} proofs");
}
