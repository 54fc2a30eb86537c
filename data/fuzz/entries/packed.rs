use esker_data::prepare::{Packing, Stream};
use esker_data::text::{Kind, Records, TextOptions, parse};
use std::path::Path;
use std::sync::Arc;

/// Reads the bytes as packed lines of JSON: gzip where they start so, else zstd.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let options = TextOptions { max_document_bytes: 1 << 16, ..TextOptions::default() };
    let packing = if bytes.starts_with(&[0x1f, 0x8b]) { Packing::Gzip } else { Packing::Zstd };
    let stream = Stream::new(bytes, packing, Arc::default());
    let mut records = Records::new(stream, Kind::Jsonl, "fuzz".into(), &options);
    let (mut buffer, mut outcome) = (Vec::new(), Ok(()));
    while let Some(raw) = records.next(&mut buffer).map_err(text_of)? {
        let read = match raw.fault {
            Some(fault) => Err(fault),
            None => parse(Kind::Jsonl, &buffer[raw.bytes], &options).map(|(text, _)| text.len()),
        };
        match read {
            Ok(bytes) => assert!(bytes <= options.max_document_bytes),
            Err(fault) => outcome = Err(text_of(fault.at(Kind::Jsonl, Path::new("fuzz"), raw.line, &options))),
        }
        buffer.clear();
    }
    outcome
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
