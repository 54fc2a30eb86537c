//! Tokens on disk and their order.
//!
//! Text comes in through [`text`], one document at a time. A [`tokenizer`] turns it into ids,
//! and [`pack`] writes these as [`shard`]s, in a folder with a manifest; [`prepare`] does all of
//! that with files of any size. [`tokens`] opens the shards of a split, or takes documents from
//! memory; a [`loader`] cuts the tokens into windows, draws from several sources as a [`mix`]
//! says, and puts windows into the [`order`] of an epoch, which is a function and no file.
//! [`prefetch`] makes rows ahead of whoever needs them. [`corpus`] is the text that comes with
//! the binary; [`formats`] reads and writes the token files of others.
//!
//! ```text
//! text, corpus -> tokenizer -> pack, prepare -> shard files -> tokens -> loader (mix, order) -> prefetch -> rows of ids
//! ```
//!
//! A row is a function of one number, its position since the start of the run: that is all the
//! state there is, whatever the ranks, the rows a step and the threads.
//!
//! This crate knows no tensor: it hands out slices of token ids. Files are taken for hostile: a
//! length is held against the size of its file before it is used, and what is wrong becomes an
//! error that names file and field and says what to do. `fuzz/` has a target for each reader.
//!
//! ```
//! use esker_data::{Batch, Loader, LoaderConfig, TokenSet, Tokenizer};
//!
//! let tokenizer = Tokenizer::bytes();
//! let text = "An esker is a ridge laid down by a stream under ice.";
//! let documents = [(tokenizer.encode(text)?, text.len() as u64)];
//! let set = TokenSet::from_documents(documents, tokenizer.vocab_size(), tokenizer.eos())?;
//! let loader = Loader::new(set, LoaderConfig { seq_len: 8, seed: 1, ignore_boundary: false })?;
//! let (mut inputs, mut targets) = ([0; 16], [0; 16]);
//! loader.fill(3, 2, Batch { inputs: &mut inputs, targets: &mut targets, doc_first: None })?;
//! assert_eq!(inputs[1..8], targets[..7]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod corpus;
pub mod formats;
pub mod loader;
pub mod mix;
pub mod order;
pub mod pack;
pub mod prefetch;
pub mod prepare;
pub mod shard;
pub mod text;
pub mod tokenizer;
pub mod tokens;

pub use loader::{Batch, IGNORED, Loader, LoaderConfig, LoaderError, Place, Scan, Scored};
pub use mix::{Mix, MixError};
pub use order::Order;
pub use pack::{Manifest, PackError, PackOptions, Split};
pub use prefetch::{Prefetch, Request};
pub use shard::{Check, Shard, ShardError, ShardSpec, ShardWriter};
pub use text::{Document, TextError, TextOptions};
pub use tokenizer::{Reading, TextStream, Tokenizer, TokenizerError};
pub use tokens::TokenSet;

/// What another crate says of a file, cut where the file's own bytes would fill the screen.
fn brief(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    match text.char_indices().nth(300) {
        None => text,
        Some((at, _)) => {
            let place = text.rfind(" at line ").map_or("", |i| &text[i.max(at)..]);
            format!("{} ...{place}", &text[..at])
        }
    }
}
