//! Rows: what a window holds, that an epoch is a permutation, that a position says everything,
//! that validation scores each token once.

use esker_data::{
    Batch, Check, IGNORED, Loader, LoaderConfig, LoaderError, Scan, Shard, ShardSpec, ShardWriter, TokenSet,
};
use proptest::prelude::*;

const EOS: u32 = 9;

/// Documents with tokens that count up from 10 and never repeat; bytes of text 3 a token.
fn documents(lengths: &[usize]) -> Vec<(Vec<u32>, u64)> {
    let mut next = 10;
    lengths
        .iter()
        .map(|&n| {
            let document: Vec<u32> = (next..next + n as u32).collect();
            next += n as u32;
            (document, 3 * n as u64)
        })
        .collect()
}

fn memory(lengths: &[usize]) -> TokenSet {
    TokenSet::from_documents(documents(lengths), 100_000, Some(EOS)).unwrap()
}

/// The same documents in shards of `per_shard` documents.
fn shards(dir: &std::path::Path, lengths: &[usize], per_shard: usize) -> TokenSet {
    let spec = ShardSpec { vocab_size: 100_000, eos: Some(EOS), tokenizer_hash: [3; 32] };
    let mut paths = Vec::new();
    for (i, part) in documents(lengths).chunks(per_shard).enumerate() {
        let path = dir.join(format!("{i}.shard"));
        let mut writer = ShardWriter::create(&path, spec).unwrap();
        for (tokens, bytes) in part {
            writer.push(&[&tokens[..], &[EOS]].concat(), *bytes).unwrap();
        }
        writer.finish().unwrap();
        paths.push(path);
    }
    TokenSet::open(&paths, Check::Everything).unwrap()
}

#[derive(Debug, Clone, PartialEq)]
struct Rows {
    inputs: Vec<u32>,
    targets: Vec<u32>,
    doc_first: Vec<u32>,
}

/// Calls `fill` with buffers that hold rubbish.
fn rows(n: usize, fill: impl Fn(Batch<'_>) -> Result<(), LoaderError>) -> Result<Rows, LoaderError> {
    let junk = || vec![77_777; n];
    let mut r = Rows { inputs: junk(), targets: junk(), doc_first: junk() };
    fill(Batch { inputs: &mut r.inputs, targets: &mut r.targets, doc_first: Some(&mut r.doc_first) })?;
    Ok(r)
}

fn config(seq_len: usize) -> LoaderConfig {
    LoaderConfig { seq_len, seed: 5, ignore_boundary: false }
}

#[test]
fn a_window_knows_its_documents() {
    // 10 11 12 E 13 E 14 15 16 17 E 18: two windows of 5, one token left over.
    let set = TokenSet::from_documents(documents(&[3, 1, 4, 1]), 100, Some(EOS)).unwrap();
    let loader = Loader::new(set, config(5)).unwrap();
    assert_eq!((loader.windows(), loader.dropped_tokens()), (2, 2));
    let all = rows(10, |b| loader.fill(0, 2, b)).unwrap();
    let (first, second) = if all.inputs[0] == 10 { (0..5, 5..10) } else { (5..10, 0..5) };
    assert_eq!(all.inputs[first.clone()], [10, 11, 12, EOS, 13]);
    assert_eq!(all.targets[first.clone()], [11, 12, EOS, 13, EOS]);
    // The end mark opens what follows.
    assert_eq!(all.doc_first[first], [0, 0, 0, 3, 3]);
    assert_eq!(all.inputs[second.clone()], [EOS, 14, 15, 16, 17]);
    assert_eq!(all.targets[second.clone()], [14, 15, 16, 17, EOS]);
    assert_eq!(all.doc_first[second], [0, 0, 0, 0, 0]);

    let set = memory(&[3, 1, 4, 1]);
    let loader = Loader::new(set, LoaderConfig { ignore_boundary: true, ..config(5) }).unwrap();
    let mut targets = rows(10, |b| loader.fill(0, 2, b)).unwrap().targets;
    targets.sort_unstable();
    assert_eq!(targets, [EOS, EOS, EOS, 11, 12, 15, 16, 17, IGNORED, IGNORED]);
}

#[test]
fn documents_without_end_mark_begin_where_they_begin() {
    let set = TokenSet::from_documents(documents(&[2, 1, 3]), 100, None).unwrap();
    let loader = Loader::new(set, config(5)).unwrap();
    let all = rows(5, |b| loader.fill(0, 1, b)).unwrap();
    assert_eq!(
        all,
        Rows { inputs: vec![10, 11, 12, 13, 14], targets: vec![11, 12, 13, 14, 15], doc_first: vec![0, 0, 2, 3, 3] }
    );
}

#[test]
fn validation_starts_from_an_end_mark_and_pads() {
    let set = memory(&[2, 3]); // 10 11 E | 12 13 14 E
    let scan = Scan::new(set, 4).unwrap();
    assert_eq!(scan.windows(), 2);
    let got = rows(12, |b| scan.fill(0, 3, b)).unwrap();
    assert_eq!(got.inputs, [EOS, 10, 11, EOS, 12, 13, 14, EOS, EOS, EOS, EOS, EOS]);
    assert_eq!(got.targets[..7], [10, 11, EOS, 12, 13, 14, EOS]);
    assert_eq!(got.targets[7..], [IGNORED; 5]);
    assert_eq!(got.doc_first[..7], [0, 0, 0, 3, 0, 0, 0]);
    let all = scan.scored(0..2);
    assert_eq!((all.tokens, all.bytes), (7, 15));
    // Three tokens of the first document, then one of the second's four: 6 + 9 / 4 bytes.
    let first = scan.scored(0..1);
    assert_eq!((first.tokens, first.bytes), (4, 8));
}

#[test]
fn too_little_or_absurd_is_an_error() {
    let few = Loader::new(memory(&[3]), config(4)).unwrap_err().to_string();
    assert!(few.contains("4 tokens hold no window of seq_len 4 + 1"), "{few}");
    assert!(matches!(Loader::new(memory(&[3]), config(0)), Err(LoaderError::SeqLen { got: 0, .. })));
    assert!(matches!(Loader::new(memory(&[3]), config(usize::MAX)), Err(LoaderError::SeqLen { .. })));
    assert!(matches!(Scan::new(memory(&[]), 4), Err(LoaderError::TooFewTokens { .. })));
    let id = TokenSet::from_documents([(vec![1, 50], 2)], 50, None).unwrap_err();
    assert!(matches!(id, LoaderError::Token { at: 1, id: 50, .. }), "{id}");
    assert!(matches!(TokenSet::from_shards(Vec::new()), Err(LoaderError::NoShards)));
}

/// A shard whose tokens exceed its vocabulary, opened without reading it, hands none of them out.
#[test]
fn ids_outside_the_vocabulary_are_never_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.shard");
    let spec = ShardSpec { vocab_size: 50, eos: None, tokenizer_hash: [0; 32] };
    let mut writer = ShardWriter::create(&path, spec).unwrap();
    writer.push(&[7; 40], 40).unwrap();
    writer.finish().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 20] = 50; // token 10
    std::fs::write(&path, bytes).unwrap();
    let set = TokenSet::from_shards(vec![Shard::open(&path, Check::Header).unwrap()]).unwrap();
    let loader = Loader::new(set, config(39)).unwrap();
    let error = rows(39, |b| loader.fill(0, 1, b)).unwrap_err().to_string();
    assert!(error.contains("x.shard: token 10 is 50, outside the vocabulary of 50"), "{error}");
    let error = Shard::open(&path, Check::Everything).unwrap_err().to_string();
    assert!(error.contains("x.shard: bytes 4096 to") && error.contains("do not match"), "{error}");
}

#[test]
fn shards_of_different_tokenizers_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..2u8)
        .map(|i| {
            let path = dir.path().join(format!("{i}.shard"));
            let spec = ShardSpec { vocab_size: 50, eos: None, tokenizer_hash: [i; 32] };
            let mut writer = ShardWriter::create(&path, spec).unwrap();
            writer.push(&[1, 2], 2).unwrap();
            writer.finish().unwrap();
            path
        })
        .collect();
    let error = TokenSet::open(&paths, Check::Header).unwrap_err().to_string();
    assert!(error.contains("1.shard: header field `tokenizer hash` differs from that of"), "{error}");
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..40, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Memory and shards say the same; every epoch hands out each window once; rows a call do not
    /// matter; nor does the thread.
    #[test]
    fn an_epoch_is_a_permutation(lengths in lengths(), seq_len in 1usize..20, seed: u64, split in 1usize..9) {
        let dir = tempfile::tempdir().unwrap();
        let config = LoaderConfig { seq_len, seed, ignore_boundary: false };
        let Ok(loader) = Loader::new(shards(dir.path(), &lengths, lengths.len()), config) else { return Ok(()) };
        let same = Loader::new(memory(&lengths), config).unwrap();
        let n = loader.windows() as usize;
        let at_once = rows(3 * n * seq_len, |b| loader.fill(0, 3 * n, b)).unwrap();
        prop_assert_eq!(&at_once, &rows(3 * n * seq_len, |b| same.fill(0, 3 * n, b)).unwrap());

        for epoch in 0..3 {
            let mut starts: Vec<u32> = (0..n).map(|i| at_once.inputs[(epoch * n + i) * seq_len]).collect();
            starts.sort_unstable();
            let mut want = vec![0; n];
            for (w, place) in want.iter_mut().enumerate() {
                let flat: Vec<u32> = documents(&lengths).iter().flat_map(|(d, _)| d.iter().copied().chain([EOS])).collect();
                *place = flat[w * seq_len];
            }
            want.sort_unstable();
            prop_assert_eq!(starts, want);
        }
        // Row by row from another thread, in pieces of `split`.
        let pieces = std::thread::scope(|s| {
            s.spawn(|| {
                let mut all = Rows { inputs: vec![], targets: vec![], doc_first: vec![] };
                let mut at = 0;
                while at < 3 * n {
                    let k = split.min(3 * n - at);
                    let piece = rows(k * seq_len, |b| loader.fill(at as u64, k, b)).unwrap();
                    all.inputs.extend(piece.inputs);
                    all.targets.extend(piece.targets);
                    all.doc_first.extend(piece.doc_first);
                    at += k;
                }
                all
            })
            .join()
            .unwrap()
        });
        prop_assert_eq!(pieces, at_once);
    }

    /// `doc_first` against its definition, place by place.
    #[test]
    fn doc_first_is_what_it_says(lengths in lengths(), seq_len in 1usize..50, marks: bool) {
        let eos = marks.then_some(EOS);
        let set = TokenSet::from_documents(documents(&lengths), 100_000, eos).unwrap();
        let Ok(loader) = Loader::new(set, config(seq_len)) else { return Ok(()) };
        let got = rows(seq_len, |b| loader.fill(0, 1, b)).unwrap();
        // The document of each token, an end mark counting to the next one.
        let document_of = |id: u32| {
            let mut end = 10;
            lengths.iter().position(|&n| { end += n as u32; id < end }).unwrap() as i64
        };
        let mut of: Vec<i64> = got.inputs.iter().map(|&id| if id == EOS { -1 } else { document_of(id) }).collect();
        for i in (0..seq_len).rev() {
            if of[i] == -1 {
                of[i] = of.get(i + 1).copied().unwrap_or(i64::MAX);
            }
        }
        for i in 0..seq_len {
            let first = (0..=i).rev().take_while(|&j| of[j] == of[i]).last().unwrap();
            prop_assert_eq!(got.doc_first[i], first as u32, "place {} of {:?}", i, got.inputs);
        }
    }

    /// Each token is a target once, and bytes add up, over one shard or many.
    #[test]
    fn validation_scores_each_token_once(lengths in lengths(), seq_len in 1usize..30, per_shard in 1usize..9, cut in 0u64..40) {
        let dir = tempfile::tempdir().unwrap();
        let scan = Scan::new(shards(dir.path(), &lengths, per_shard), seq_len).unwrap();
        let n = scan.windows() as usize;
        let got = rows(n * seq_len, |b| scan.fill(0, n, b)).unwrap();
        let flat: Vec<u32> = documents(&lengths).iter().flat_map(|(d, _)| d.iter().copied().chain([EOS])).collect();
        let scored: Vec<u32> = got.targets.iter().copied().filter(|&t| t != IGNORED).collect();
        prop_assert_eq!(&scored, &flat);
        // Before each target stands the token that precedes it.
        for (i, &target) in got.targets.iter().enumerate().filter(|(_, t)| **t > EOS && **t != IGNORED) {
            let first = documents(&lengths).iter().any(|(d, _)| d[0] == target);
            prop_assert_eq!(got.inputs[i], if first { EOS } else { target - 1 });
        }
        let all = scan.scored(0..n as u64);
        prop_assert_eq!((all.tokens, all.bytes), (flat.len() as u64, scan.set().text_bytes()));
        let cut = cut.min(n as u64);
        let (a, b) = (scan.scored(0..cut), scan.scored(cut..n as u64));
        prop_assert_eq!((a.tokens + b.tokens, a.bytes + b.bytes), (all.tokens, all.bytes));
        let counted = got.targets[..cut as usize * seq_len].iter().filter(|&&t| t != IGNORED).count();
        prop_assert_eq!(a.tokens, counted as u64);
    }
}

/// Kept for ever: what position 0, 1, ... of a run with this seed is trained on.
#[test]
fn golden_rows() {
    let loader =
        Loader::new(memory(&[30, 5, 40, 1, 60]), LoaderConfig { seq_len: 4, seed: 2026, ignore_boundary: false })
            .unwrap();
    let n = loader.windows() as usize;
    let got = rows(2 * n * 4, |b| loader.fill(0, 2 * n, b)).unwrap();
    let mut digest = blake3::Hasher::new();
    for word in got.inputs.iter().chain(&got.targets).chain(&got.doc_first) {
        digest.update(&word.to_le_bytes());
    }
    assert_eq!(n, 35);
    let head = (&got.inputs[..8], digest.finalize().to_hex());
    assert_eq!(
        (head.0, head.1.as_str()),
        (&[60, 61, 62, 63, 64, 65, 66, 67][..], "8a943ce685bb9cd9b24f08c8a63fa28ecff60dfaea148fa68f0db689c1258ce3")
    );
}
