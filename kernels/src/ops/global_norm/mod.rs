//! global_norm
