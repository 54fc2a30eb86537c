//! Rounds between owners who do not trust each other, over QUIC. Knows bytes, keys and time; no tensor.
//!
//! [`RunSpec`] is what all agree on; [`wire`] what they say; [`round`] how a round goes, as machines that take facts and
//! give orders; [`state`] how a state is named, compared and repaired; [`sim`] the same machines in virtual time. The
//! page of the protocol is `comms/README.md`.

mod hash;
mod key;
mod spec;

pub mod blob;
pub mod net;
pub mod node;
pub mod round;
pub mod sim;
pub mod state;
pub mod wire;

pub use hash::{Hash, NotHex};
pub use key::{Key, KeyError, PeerId, Signature};
pub use spec::*;
