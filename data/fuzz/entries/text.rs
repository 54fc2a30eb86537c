use esker_data::text::{Kind, Reader, TextOptions};

/// Reads the bytes as .jsonl and as .txt, with small limits. The outcome is that of .jsonl.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let options = TextOptions { separator: Some("---".into()), max_document_bytes: 1 << 16 };
    let read = |kind| -> Result<(), String> {
        let mut reader = Reader::new(bytes, kind, "fuzz".into(), &options);
        while let Some(document) = reader.next_document().map_err(text_of)? {
            assert!(document.text.len() <= options.max_document_bytes);
        }
        Ok(())
    };
    let _ = read(Kind::Txt);
    read(Kind::Jsonl)
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
