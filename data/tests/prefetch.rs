//! Rows made ahead are the rows, and what goes wrong comes out in its turn.

use esker_data::prefetch::Ahead;
use esker_data::{Batch, Check, Loader, LoaderConfig, Mix, Prefetch, Request, ShardSpec, ShardWriter, TokenSet};
use std::path::Path;
use std::sync::Arc;

const SEQ: usize = 7;
const EOS: u32 = 3;

fn memory(from: u32, documents: u32) -> Arc<TokenSet> {
    let document = |i: u32| ((0..5 + i % 11).map(|j| 10 + (from + 31 * i + j) % 900).collect(), 20);
    Arc::new(TokenSet::from_documents((0..documents).map(document), 1000, Some(EOS)).unwrap())
}

fn loader() -> Loader {
    let config = LoaderConfig { seq_len: SEQ, seed: 4, ignore_boundary: true };
    Loader::mixed(vec![memory(0, 60), memory(500, 13)], Mix::new(&[3, 2]).unwrap(), config).unwrap()
}

/// Micro-batches of 3 and 2 rows; every second one counts the targets of both.
fn requests(n: u64) -> impl Iterator<Item = Request> + Send {
    (0..n).flat_map(|i| {
        let position = 5 * i;
        [Request { position, rows: 3, count_rows: 5 }, Request { position: position + 3, rows: 2, count_rows: 0 }]
    })
}

#[test]
fn rows_made_ahead_are_the_rows() {
    let loader = loader();
    for (buffers, documents) in [(2, true), (3, false), (9, true)] {
        let ahead = Ahead { buffers, rows: 3, documents };
        let mut feed = Prefetch::start(loader.clone(), ahead, requests(200)).unwrap();
        for want in requests(200) {
            let n = want.rows * SEQ;
            let (mut inputs, mut targets, mut doc_first) = (vec![0; n], vec![0; n], vec![0; n]);
            let batch = Batch { inputs: &mut inputs, targets: &mut targets, doc_first: Some(&mut doc_first) };
            loader.fill(want.position, want.rows, batch).unwrap();
            let rows = feed.wait().unwrap();
            assert_eq!((rows.request(), rows.inputs(), rows.targets()), (want, &inputs[..], &targets[..]));
            assert_eq!(rows.doc_first(), documents.then_some(&doc_first[..]));
            let counted = match want.count_rows {
                0 => 0,
                rows => {
                    let mut targets = vec![0; rows * SEQ];
                    let mut inputs = targets.clone();
                    let batch = Batch { inputs: &mut inputs, targets: &mut targets, doc_first: None };
                    loader.fill(want.position, rows, batch).unwrap();
                    targets.iter().filter(|&&t| t != esker_data::IGNORED).count() as u64
                }
            };
            assert_eq!(rows.targets_counted(), counted);
        }
    }
}

#[test]
fn a_feed_may_be_dropped_at_any_time() {
    for taken in [0, 1, 5, 400] {
        let ahead = Ahead { buffers: 4, rows: 3, documents: false };
        let mut feed = Prefetch::start(loader(), ahead, requests(200)).unwrap();
        for _ in 0..taken {
            feed.wait().unwrap();
        }
    }
}

#[test]
#[should_panic(expected = "more rows are asked for than were requested")]
fn more_than_was_requested_is_our_fault() {
    let ahead = Ahead { buffers: 2, rows: 3, documents: false };
    let mut feed = Prefetch::start(loader(), ahead, requests(1)).unwrap();
    for _ in 0..3 {
        feed.wait().unwrap();
    }
}

#[test]
#[should_panic(expected = "of the thread")]
fn a_panic_of_the_thread_comes_out() {
    let ahead = Ahead { buffers: 2, rows: 3, documents: false };
    let requests = requests(9).inspect(|r| assert!(r.position < 10, "of the thread"));
    let mut feed = Prefetch::start(loader(), ahead, requests).unwrap();
    for _ in 0..18 {
        feed.wait().unwrap();
    }
}

/// One flipped byte: every row before the one that needs it is handed out, then the shard and the
/// range of bytes are named, and no damaged token was seen.
#[test]
fn damage_is_met_when_it_is_reached() {
    let dir = tempfile::tempdir().unwrap();
    let (clean, path) = (shard(&dir.path().join("a.shard")), dir.path().join("b.shard"));
    let mut bytes = std::fs::read(&clean).unwrap();
    let flipped = 4096 + (2 << 20) + 77;
    bytes[flipped] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let open = |path: &Path, check| TokenSet::open(&[path.to_path_buf()], check);
    let error = open(&path, Check::Everything).unwrap_err().to_string();
    let range = format!("bytes {} to {}", 4096 + (2 << 20), 4096 + (3 << 20));
    assert!(error.contains("b.shard") && error.contains(&range), "{error}");

    let config = LoaderConfig { seq_len: 1 << 14, seed: 4, ignore_boundary: false };
    let whole = Loader::new(open(&clean, Check::Header).unwrap(), config).unwrap();
    let lazy = Loader::new(open(&path, Check::Lazy).unwrap(), config).unwrap();
    let all = (0..lazy.windows()).map(|position| Request { position, rows: 1, count_rows: 0 });
    let ahead = Ahead { buffers: 3, rows: 1, documents: true };
    let mut good = Prefetch::start(whole, ahead, all.clone()).unwrap();
    let mut feed = Prefetch::start(lazy, ahead, all.clone()).unwrap();
    let mut met = None;
    for _ in all {
        match feed.wait() {
            Ok(rows) => assert_eq!(rows.inputs(), good.wait().unwrap().inputs()),
            Err(e) => {
                met = Some(e.to_string());
                break;
            }
        }
    }
    let met = met.expect("every window is read");
    assert!(met.contains("b.shard") && met.contains(&range), "{met}");
}

/// Four leaves of 16-bit tokens, and a piece of a fifth.
fn shard(path: &Path) -> std::path::PathBuf {
    let spec = ShardSpec { vocab_size: 50_000, eos: None, tokenizer_hash: [1; 32] };
    let mut writer = ShardWriter::create(path, spec).unwrap();
    for d in 0..1000u32 {
        let document: Vec<u32> = (0..2200).map(|i| (d * 7 + i * 13) % 50_000).collect();
        writer.push(&document, 9000).unwrap();
    }
    writer.finish().unwrap();
    path.to_path_buf()
}
