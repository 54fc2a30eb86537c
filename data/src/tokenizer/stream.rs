//! Ids to text as they come.
//!
//! A token may hold half a character, or lose its leading space because it stands first. So a few ids are decoded
//! together: with d(a..b) the text of ids a..b,
//!
//! ```text
//! new text = d(context..now) without its prefix d(context..shown)
//! ```
//!
//! and it is held back while it ends in U+FFFD, the sign of a character that is not complete. U+FFFD may be in the text
//! itself, though, and what is broken may stay so: once [`HELD_MAX`] ids wait, all is shown but the last three U+FFFD, of
//! which a character of at most four bytes may still come, and [`CONTEXT`] ids stay, which hold whole characters behind
//! whatever that cut leaves at their front. The window is never longer than both, however long the text.

use super::{Tokenizer, TokenizerError};

/// Ids that may wait for the rest of a character.
const HELD_MAX: usize = 32;
/// Ids that stay when so many have waited: four characters at least, three of which may be held back.
const CONTEXT: usize = 16;
/// Characters at the end that may still be parts of one.
const PARTS_MAX: usize = 3;

/// Incremental decoding; made by [`Tokenizer::stream`]. Special tokens show nothing.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Ids from `context` on.
    ids: Vec<u32>,
    /// How many of `ids` have been shown: they are there as context.
    shown: usize,
    /// What has been shown of the text of `ids`.
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
        let whole = !text.ends_with(char::REPLACEMENT_CHARACTER);
        if !whole && held < HELD_MAX {
            return Ok(None);
        }
        let new = fresh(certain(&text), &self.prefix);
        if new.is_empty() && held < HELD_MAX {
            return Ok(None);
        }
        // What was just shown is the context of what follows.
        let gone = if whole { self.shown } else { self.ids.len() - CONTEXT };
        self.ids.drain(..gone);
        self.shown = if whole { self.ids.len() } else { CONTEXT - PARTS_MAX };
        self.prefix = certain(&self.tokenizer.decode(&self.ids, true)?).to_owned();
        Ok(Some(new).filter(|new| !new.is_empty()))
    }

    /// What was held back, shown as it is.
    pub fn finish(self) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        Ok(fresh(&text, &self.prefix))
    }
}

/// `text` without the characters at its end that more ids may complete.
fn certain(text: &str) -> &str {
    let broken = text.chars().rev().take(PARTS_MAX).take_while(|&c| c == char::REPLACEMENT_CHARACTER).count();
    &text[..text.len() - broken * char::REPLACEMENT_CHARACTER.len_utf8()]
}

/// `text` after `prefix`; should a decoder rewrite what came before, after as many characters.
fn fresh(text: &str, prefix: &str) -> String {
    match text.strip_prefix(prefix) {
        Some(new) => new.to_string(),
        None => text.chars().skip(prefix.chars().count()).collect(),
    }
}
