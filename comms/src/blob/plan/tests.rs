//! What is asked of whom, fact by fact.

use super::*;

fn id(n: u8) -> PeerId {
    PeerId([n; 32])
}

const A: Hash = Hash([1; 32]);
const B: Hash = Hash([2; 32]);
const MIB: u64 = CHUNK as u64;
const NOW: Duration = Duration::ZERO;

fn plan(size: u64, holders: u8) -> Plan {
    let mut p = Plan::new(1);
    p.want(A, size, Priority::Round, &Bits::none(chunks(size)), true);
    (1..=holders).for_each(|n| p.holds(&A, id(n), true));
    p
}

fn all(p: &mut Plan, now: Duration) -> Vec<Job> {
    std::iter::from_fn(|| p.next(now)).collect()
}

#[test]
fn work_is_spread_and_nothing_is_asked_twice() {
    let mut p = plan(100 * MIB, 4);
    let jobs = all(&mut p, NOW);
    assert_eq!(jobs.len(), 32);
    for n in 1..=4 {
        assert_eq!(jobs.iter().filter(|j| j.peer == id(n)).count(), 8);
    }
    let mut pieces: Vec<_> = jobs.iter().map(|j| j.piece).collect();
    pieces.sort_unstable();
    pieces.dedup();
    assert_eq!(pieces.len(), 32);
}

#[test]
fn the_more_urgent_want_goes_first() {
    let mut p = plan(100 * MIB, 1);
    p.want(B, MIB, Priority::Manifest, &Bits::none(1), true);
    p.holds(&B, id(1), true);
    assert_eq!(p.next(NOW).map(|j| j.name), Some(B));
    assert_eq!(p.next(NOW).map(|j| j.name), Some(A));
}

#[test]
fn the_outline_comes_before_chunks_and_the_rarest_chunk_first() {
    let mut p = Plan::new(1);
    p.want(A, 3 * MIB, Priority::Round, &Bits::none(3), false);
    p.holds(&A, id(1), true);
    let first = p.next(NOW).unwrap();
    assert_eq!(first.piece, Piece::Outline);
    assert_eq!(p.next(NOW), None);
    p.done(NOW, first, Outcome::Got);
    p.holds(&A, id(2), false);
    let have = p.next(NOW).unwrap();
    assert_eq!((have.piece, have.peer), (Piece::Have, id(2)));
    let mut bits = Bits::all(3);
    bits.clear(1);
    p.done(NOW, have, Outcome::Has(bits));
    assert_eq!(p.next(NOW).unwrap(), Job { name: A, peer: id(1), piece: Piece::Chunk(1) });
}

#[test]
fn a_holder_that_fails_rests_and_others_go_on() {
    let mut p = plan(3 * MIB, 2);
    let jobs = all(&mut p, NOW);
    assert_eq!(jobs.len(), 3);
    let failed = jobs[0];
    p.done(NOW, failed, Outcome::Failed);
    let again = p.next(NOW).unwrap();
    assert_eq!(again.piece, failed.piece);
    assert_ne!(again.peer, failed.peer);
    let wake = p.wake(NOW).unwrap();
    assert!((Duration::from_millis(250)..=Duration::from_millis(500)).contains(&wake));
}

#[test]
fn a_liar_is_not_asked_again() {
    let mut p = plan(100 * MIB, 1);
    let job = p.next(NOW).unwrap();
    p.done(NOW, job, Outcome::Lie);
    p.holds(&A, id(1), true);
    assert_eq!(p.next(Duration::from_secs(599)), None);
    assert!(p.next(Duration::from_secs(601)).is_some());
}

#[test]
fn a_late_chunk_is_asked_of_another_and_the_loser_is_stopped() {
    let mut p = plan(4 * MIB, 2);
    let jobs = all(&mut p, NOW);
    let (slow, quick): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|j| j.peer == id(1));
    quick.into_iter().for_each(|j| drop(p.done(Duration::from_millis(300), j, Outcome::Got)));
    assert_eq!(p.next(Duration::from_secs(2)), None);
    let second = p.next(Duration::from_secs(4)).unwrap();
    assert_eq!(second.peer, id(2));
    let loser = *slow.iter().find(|j| j.piece == second.piece).unwrap();
    assert_eq!(p.done(Duration::from_secs(5), second, Outcome::Got), [loser]);
    assert!(p.done(Duration::from_secs(6), loser, Outcome::Got).is_empty());
}

#[test]
fn a_want_is_hopeless_when_all_have_said_no() {
    let mut p = plan(2 * MIB, 2);
    assert!(!p.hopeless(&A));
    while let Some(job) = p.next(NOW) {
        p.done(NOW, job, Outcome::Absent);
    }
    assert!(p.hopeless(&A));
    p.holds(&A, id(3), false);
    assert!(!p.hopeless(&A));
    p.gone(&id(3));
    assert!(p.hopeless(&A));
}

#[test]
fn what_is_complete_is_wanted_no_more() {
    let mut p = plan(2 * MIB, 1);
    for job in all(&mut p, NOW) {
        p.done(NOW, job, Outcome::Got);
    }
    assert!(!p.wants(&A));
    assert_eq!(p.at_once, 0);
    assert_eq!(p.wake(NOW), None);
}
