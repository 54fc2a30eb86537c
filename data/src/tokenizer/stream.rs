//! Ids to text as they come.
//!
//! A token may hold half a character, or lose its leading space because it stands first. So a
//! few ids are decoded together: with d(a..b) the text of ids a..b,
//!
//! ```text
//! new text = d(context..now) without its prefix d(context..shown)
//! ```
//!
//! and it is held back while it ends in U+FFFD, the sign of a character that is not complete.
//! A character has at most 4 bytes, so what is still broken after [`HELD_MAX`] ids is broken
//! for good and is shown as it is. The window never exceeds twice that, however long the text.

use super::{Tokenizer, TokenizerError};

/// Ids that may wait for the rest of a character.
const HELD_MAX: usize = 8;

/// Incremental decoding; made by [`Tokenizer::stream`]. Special tokens show nothing.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids from `context` on.
    ids: Vec<u32>,
    /// How many of `ids` have been shown: they are there as context.
    shown: usize,
    /// Their text.
    prefix: String,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> TextStream<'a> {
        TextStream { tokenizer, ids: Vec::new(), shown: 0, prefix: String::new() }
    }

    /// Takes the next id; text that is now certain comes back, if there is any.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, true)?;
        let held = self.ids.len() - self.shown;
        if text.ends_with('\u{fffd}') && held < HELD_MAX {
            return Ok(None);
        }
        let new = fresh(&text, &self.prefix);
        if new.is_empty() && held < HELD_MAX {
            return Ok(None);
        }
        // What was just shown is the context of what follows.
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        self.prefix = self.tokenizer.decode(&self.ids, true)?;
        Ok(Some(new).filter(|new| !new.is_empty()))
    }

    /// What was held back, shown as it is.
    pub fn finish(self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        Ok(fresh(&text, &self.prefix))
    }
}

/// `text` after `prefix`; should a decoder rewrite what came before, after as many characters.
fn fresh(text: &str, prefix: &str) -> String {
    match text.strip_prefix(prefix) {
        Some(new) => new.to_string(),
        None => text.chars().skip(prefix.chars().count()).collect(),
    }
}
