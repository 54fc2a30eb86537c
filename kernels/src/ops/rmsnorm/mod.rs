//! rmsnorm
