use std::path::Path;

use esker_data::formats::{Division, Format, InPlace, Options, open};

/// Reads the bytes as a format: one byte says which, four the length of the first file (a table
/// beside the tokens), then come that file and the tokens. The outcome is that of reading
/// documents by the format's own table.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::Builder::new().prefix("fuzz").tempdir().map_err(text_of)?;
    let Some((&which, rest)) = bytes.split_first() else { return Err("fuzz: no bytes".into()) };
    let (format, table, data) = match which % 9 {
        0 => (Format::Megatron, "a.idx", "a.bin"),
        1 => (Format::Llmc, "", "a.bin"),
        2 => (Format::Nanogpt, "", "a.bin"),
        3 => (Format::Olmo, "a.csv.gz", "a.npy"),
        4 => (Format::Datatrove, "a.ds.index", "a.ds"),
        5 => (Format::Mds, "index.json", "shard.00000.mds"),
        6 => (Format::Tokshuf, "manifest.jsonl", "shard_00000000.tar"),
        7 => (Format::Templar, "sample_ids_000000.bin", "train_000000.npy"),
        _ => (Format::Npy, "", "a.npy"),
    };
    let (length, rest) = rest.split_at(rest.len().min(4));
    let length = length.iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
    let (first, second) = rest.split_at(length.min(rest.len()));
    if !table.is_empty() {
        std::fs::write(dir.path().join(table), first).map_err(text_of)?;
    }
    let zstd = second.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let data = if format == Format::Mds && zstd { "shard.00000.mds.zstd" } else { data };
    let path = dir.path().join(data);
    std::fs::write(&path, second).map_err(text_of)?;
    // The name alone may say another format, and must not break anything.
    let _ = Format::of(dir.path());
    let limits = Options { eos: Some(7), pad: Some(8), max_document_tokens: 1 << 16, ..Options::default() };
    for division in [Division::Marks, Division::Records] {
        let _ = read(dir.path(), &path, &Options { division, format: Some(format), ..limits.clone() });
    }
    read(dir.path(), &path, &Options { format: Some(format), ..limits })
}

fn read(dir: &Path, path: &Path, options: &Options) -> Result<(), String> {
    if let Ok(set) = InPlace::open(path, options) {
        let mut ids = [0; 16];
        for d in [0, set.documents() / 2, set.documents().saturating_sub(1)] {
            if d < set.documents() {
                let tokens = set.document(d);
                assert_eq!(set.document_of(tokens.start), d);
                let n = (tokens.end - tokens.start).min(16) as usize;
                let _ = set.slice(tokens.start, &mut ids[..n]);
            }
        }
    }
    let mut documents = open(&[dir.to_path_buf()], options).map_err(text_of)?;
    let mut ids = Vec::new();
    while documents.next_document(&mut ids).map_err(text_of)? {
        assert!((1..=1 << 16).contains(&ids.len()));
        let (done, total) = documents.position();
        assert!(done <= total);
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
