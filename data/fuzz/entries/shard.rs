use esker_data::TokenSet;
use esker_data::loader::{Batch, Loader, LoaderConfig, Scan};
use esker_data::shard::{Check, Shard};

/// Opens the bytes as a shard twice: trusting its digests, and not. The outcome is that of the
/// full check.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text_of)?;
    let path = dir.path().join("fuzz.shard");
    std::fs::write(&path, bytes).map_err(text_of)?;
    if let Ok(shard) = Shard::open(&path, Check::Header) {
        // Wrong rows and errors are fine here, panics are not.
        let _ = read_rows(shard);
    }
    read_rows(Shard::open(&path, Check::Everything).map_err(text_of)?)
}

fn read_rows(shard: Shard) -> Result<(), String> {
    let documents = shard.header().documents;
    for d in [0, documents / 2, documents.saturating_sub(1)].into_iter().filter(|&d| d < documents) {
        let (tokens, _) = shard.document(d);
        shard.document_of(tokens.start);
    }
    let set = std::sync::Arc::new(TokenSet::from_shards(vec![shard]).map_err(text_of)?);
    let (mut inputs, mut targets, mut firsts) = ([0; 12], [0; 12], [0; 12]);
    let config = LoaderConfig { seq_len: 3, seed: 1, ignore_boundary: true };
    if let Ok(loader) = Loader::new(set.clone(), config) {
        let batch = Batch { inputs: &mut inputs, targets: &mut targets, doc_first: Some(&mut firsts) };
        loader.fill(u64::MAX / 2, 4, batch).map_err(text_of)?;
    }
    if let Ok(scan) = Scan::new(set, 3) {
        scan.scored(0..scan.windows() / 2);
        let batch = Batch { inputs: &mut inputs, targets: &mut targets, doc_first: Some(&mut firsts) };
        scan.fill(scan.windows().saturating_sub(2), 4, batch).map_err(text_of)?;
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
