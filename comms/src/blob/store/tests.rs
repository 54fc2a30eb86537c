//! A store that several threads use at once.

use super::*;

/// What another thread wants kept once went all the same, when the pruning had looked at it before; and the files of
/// one begun anew went with the old one's.
#[test]
fn what_is_wanted_while_it_is_pruned_stays_or_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), 1 << 30).unwrap();
    let bytes: Vec<Vec<u8>> = (0..16).map(|n| vec![n; 100]).collect();
    let together = std::sync::Barrier::new(2);
    for round in (1..600).step_by(2) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                store.prune(round).unwrap();
            });
            together.wait();
            bytes.iter().for_each(|bytes| _ = store.insert(bytes, round + 1).unwrap());
        });
        for bytes in &bytes {
            assert_eq!(store.read_all(&Hash::of(bytes)).unwrap().as_ref(), Some(bytes), "round {round}");
        }
    }
}

/// A blob that is forgotten while another thread reads it is gone, which is no fault of the disk.
#[test]
fn a_blob_that_goes_while_it_is_read_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), 1 << 30).unwrap();
    let bytes = vec![7; 3000];
    let name = Hash::of(&bytes);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (0..4000).filter(|_| store.read_all(&name).unwrap().is_some()).count());
        while !reader.is_finished() {
            store.insert(&bytes, 0).unwrap();
            store.remove(&name).unwrap();
        }
        reader.join().unwrap();
    });
}
