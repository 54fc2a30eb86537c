//! Rows of several sources: each source's epochs are permutations of its windows, shares are exact at every prefix, a
//! position says everything, and neither ranks nor micro-batches nor threads change a row.

use esker_data::{Batch, Loader, LoaderConfig, LoaderError, Mix, Prefetch, Request, TokenSet, prefetch::Ahead};
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// A source whose tokens say which it is: `source` * 100,000 and on.
fn set(source: usize, tokens: usize) -> Arc<TokenSet> {
    let first = source as u32 * 100_000;
    let documents: Vec<(Vec<u32>, u64)> = (first..first + tokens as u32)
        .collect::<Vec<_>>()
        .chunks(37)
        .map(|document| (document.to_vec(), document.len() as u64))
        .collect();
    Arc::new(TokenSet::from_documents(documents, 1_000_000, None).unwrap())
}

fn loader(seq_len: usize, seed: u64, sources: &[(usize, u64)]) -> Result<Loader, LoaderError> {
    let sets = sources.iter().enumerate().map(|(i, &(tokens, _))| set(i, tokens)).collect();
    let weights: Vec<u64> = sources.iter().map(|&(_, w)| w).collect();
    Loader::mixed(sets, Mix::new(&weights).unwrap(), LoaderConfig { seq_len, seed, ignore_boundary: false })
}

fn inputs(loader: &Loader, position: u64, rows: usize) -> Vec<u32> {
    let n = rows * loader.config().seq_len;
    let (mut inputs, mut targets) = (vec![0; n], vec![0; n]);
    loader.fill(position, rows, Batch { inputs: &mut inputs, targets: &mut targets, doc_first: None }).unwrap();
    assert!(inputs.iter().zip(&targets).all(|(i, t)| i + 1 == *t));
    inputs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn each_source_is_permuted_epoch_after_epoch(
        sources in prop::collection::vec((30usize..400, 1u64..20), 1..6), seq_len in 1usize..12, seed: u64,
    ) {
        let loader = loader(seq_len, seed, &sources).unwrap();
        let mut seen: Vec<HashMap<u64, Vec<u64>>> = vec![HashMap::new(); sources.len()];
        let rows = 3 * loader.windows();
        let mut counts = vec![0u64; sources.len()];
        for position in 0..rows {
            let place = loader.place(position);
            prop_assert_eq!(place.start, place.window * seq_len as u64);
            prop_assert_eq!(place.epoch, counts[place.source] / loader.windows_of(place.source));
            counts[place.source] += 1;
            // The row is what its place says.
            let first = place.source as u32 * 100_000 + place.start as u32;
            prop_assert_eq!(inputs(&loader, position, 1), (first..first + seq_len as u32).collect::<Vec<_>>());
            seen[place.source].entry(place.epoch).or_default().push(place.window);
        }
        prop_assert_eq!(loader.mix().counts(rows), counts.clone());
        for (source, epochs) in seen.into_iter().enumerate() {
            let n = loader.windows_of(source);
            for (epoch, mut windows) in epochs {
                let whole = (epoch + 1) * n <= counts[source];
                windows.sort_unstable();
                windows.dedup();
                prop_assert_eq!(windows.len() as u64, if whole { n } else { counts[source] % n });
                prop_assert!(windows.last().is_none_or(|&w| w < n));
            }
        }
    }

    /// Steps of some rows, cut over ranks and micro-batches, from any step on, by one thread or two, through a feed or
    /// not: the rows of the straight run.
    #[test]
    fn ranks_micro_batches_workers_and_stops_change_nothing(
        sources in prop::collection::vec((60usize..300, 1u64..9), 1..4), seed: u64, ranks in 1usize..5,
        per_rank in 1usize..7, micro in 1usize..7, from in 0u64..9,
    ) {
        let loader = loader(5, seed, &sources).unwrap();
        let (per_step, steps) = (ranks * per_rank, 9);
        let straight = inputs(&loader, 0, per_step * steps as usize);
        let want = &straight[from as usize * per_step * 5..];

        let requests = (from..steps).flat_map(move |step| (0..ranks).flat_map(move |rank| {
            (0..per_rank).step_by(micro).map(move |at| Request {
                position: step * per_step as u64 + (rank * per_rank + at) as u64,
                rows: micro.min(per_rank - at),
                count_rows: 0,
            })
        }));
        let mut feed = Prefetch::start(loader.clone(), Ahead { buffers: 3, rows: micro, documents: false }, requests.clone()).unwrap();
        let mut got = Vec::new();
        for _ in requests.clone() {
            got.extend_from_slice(feed.wait().unwrap().inputs());
        }
        prop_assert_eq!(&got[..], want);

        let half = |keep: usize| {
            let all = requests.clone().enumerate().filter(|(i, _)| i % 2 == keep);
            all.map(|(i, r)| (i, inputs(&loader, r.position, r.rows))).collect::<Vec<_>>()
        };
        let (even, odd) = std::thread::scope(|s| (s.spawn(|| half(0)).join(), s.spawn(|| half(1)).join()));
        let mut both = [even.unwrap(), odd.unwrap()].concat();
        both.sort();
        let got: Vec<u32> = both.into_iter().flat_map(|(_, rows)| rows).collect();
        prop_assert_eq!(&got[..], want);
    }
}

/// Sources need not have been in memory, but must mean the same by an id.
#[test]
fn sources_of_different_vocabularies_do_not_mix() {
    let other = Arc::new(TokenSet::from_documents([((0..50).collect(), 50)], 999, None).unwrap());
    let config = LoaderConfig { seq_len: 4, seed: 1, ignore_boundary: false };
    let error = Loader::mixed(vec![set(0, 50), other], Mix::new(&[1, 1]).unwrap(), config).unwrap_err();
    assert!(error.to_string().contains("`vocabulary` differs"), "{error}");
    let error = Loader::mixed(vec![set(0, 50), set(1, 3)], Mix::new(&[1, 1]).unwrap(), config).unwrap_err();
    assert!(matches!(error, LoaderError::TooFewTokens { tokens: 3, seq_len: 4, .. }), "{error}");
}

/// A mixture of one is that source, in its own order.
#[test]
fn one_source_is_no_mixture() {
    let config = LoaderConfig { seq_len: 4, seed: 8, ignore_boundary: false };
    let plain = Loader::new(set(0, 500), config).unwrap();
    let mixed = Loader::mixed(vec![set(0, 500)], Mix::new(&[35]).unwrap(), config).unwrap();
    assert_eq!(inputs(&plain, 0, 400), inputs(&mixed, 0, 400));
}

/// Kept for ever: the first 10,000 rows of a mixture of three, as source, epoch and window.
#[test]
fn golden_first_rows_of_a_mixture() {
    let sources = [(30_000, 70), (9_000, 25), (2_000, 5)];
    let loader = loader(4, 2026, &sources).unwrap();
    let mut digest = blake3::Hasher::new();
    for position in 0..10_000 {
        let place = loader.place(position);
        for word in [place.source as u64, place.epoch, place.window] {
            digest.update(&word.to_le_bytes());
        }
    }
    assert_eq!(loader.mix().counts(10_000), [7000, 2500, 500]);
    let head: Vec<usize> = (0..20).map(|p| loader.place(p).source).collect();
    assert_eq!(head, [0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 2]);
    assert_eq!(digest.finalize().to_hex().as_str(), "8c8169f4d1f753c056230db8b3e26176aeb4ae26ddfef952d5bea28c088f664f");
}
