//! An event log.

use esker_comms::round::log::{Timed, replay};

/// The whole part is written again byte for byte.
pub fn run(bytes: &[u8]) {
    let history = replay(bytes);
    let again: Vec<u8> = history.lines.iter().flat_map(Timed::encode_framed).collect();
    assert_eq!(again, bytes[..history.bytes_whole as usize], "two forms of one log");
}
