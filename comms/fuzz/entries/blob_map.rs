use esker_comms::blob::map::{Map, len_for};

/// Parses the bytes as a blob's journal.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let map = Map::parse(bytes).map_err(|e| e.to_string())?;
    assert_eq!(bytes.len(), len_for(map.size), "a journal has the length of its blob");
    assert_eq!(map.to_bytes(), bytes, "a journal has one form");
    Ok(())
}
