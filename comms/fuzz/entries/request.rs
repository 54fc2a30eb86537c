use esker_comms::blob::ask::Request;
use esker_comms::blob::tree::Bits;
use esker_comms::net::{peer_of_spki, spki};

/// Parses the bytes as a request for a chunk, as the bits of an answer and as a key of a handshake.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    for len in [bytes.len() as u32 * 8, (bytes.len() as u32 * 8).saturating_sub(3)] {
        if let Some(bits) = Bits::checked(bytes, len) {
            assert_eq!(bits.bytes(), bytes, "bits have one form");
            assert!(bits.count() <= len);
        }
    }
    if let Some(id) = peer_of_spki(bytes) {
        assert_eq!(&spki(&id)[..], bytes, "a key has one form");
    }
    let request = Request::parse(bytes).map_err(|e| e.to_string())?;
    assert_eq!(&request.to_bytes()[..], bytes, "a request has one form");
    Ok(())
}
