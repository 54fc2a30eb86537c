//! Hostile files for every reader of this crate: cut, flipped, lying, unpacking to far more than they are.
//!
//! None may panic, not even where a panic would be caught; none may take memory that it has no reason to take; and what
//! must be refused is refused with a message that names the file.

mod corpora;
mod counting;
mod formats;
mod text;

/// `n` places spread over 0..len, both ends with them; fewer where there are fewer.
fn places(len: usize, n: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..n).map(|i| i * (len - 1) / (n - 1)).collect();
    places.dedup();
    places
}
