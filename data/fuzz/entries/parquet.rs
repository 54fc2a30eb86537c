use esker_data::text::{TextOptions, documents};

/// Reads the bytes as a parquet file with a column `text`.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text_of)?;
    let path = dir.path().join("fuzz.parquet");
    std::fs::write(&path, bytes).map_err(text_of)?;
    let options = TextOptions { max_document_bytes: 1 << 16, ..TextOptions::default() };
    for document in documents(&[path], &options).map_err(text_of)? {
        assert!(document.map_err(text_of)?.text.len() <= options.max_document_bytes);
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
