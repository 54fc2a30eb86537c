use esker_data::text::{Kind, Records, TextOptions, parse};
use std::path::Path;

/// Reads the bytes as .jsonl and as .txt, with small limits. The outcome is that of .jsonl.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let options = TextOptions {
        separator: Some("---".into()),
        max_document_bytes: 1 << 16,
        id_key: Some("id".into()),
        ..TextOptions::default()
    };
    let read = |kind| -> Result<(), String> {
        let mut records = Records::new(bytes, kind, "fuzz".into(), &options);
        let (mut buffer, mut outcome) = (Vec::new(), Ok(()));
        while let Some(raw) = records.next(&mut buffer).map_err(text_of)? {
            let read = match raw.fault {
                Some(fault) => Err(fault),
                None => parse(kind, &buffer[raw.bytes], &options).map(|(text, _)| text.len()),
            };
            match read {
                Ok(bytes) => assert!(bytes <= options.max_document_bytes),
                Err(fault) => outcome = Err(text_of(fault.at(kind, Path::new("fuzz"), raw.line, &options))),
            }
            buffer.clear();
        }
        outcome
    };
    let _ = read(Kind::Txt);
    read(Kind::Jsonl)
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
