//! Rounds between owners who do not trust each other, over QUIC. Knows bytes, keys and time; no tensor.
