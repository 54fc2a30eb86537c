//! From a request's strings to rows of ids, as lm-evaluation-harness 0.4.13 cuts them for a Hugging Face model.
//!
//! A context's trailing white space moves to the continuation. continuation = ids(context + continuation) without its
//! first |ids(context)|: a token that spans the seam counts where the context alone ends. Texts are encoded with what the
//! tokenizer itself puts around them (a start mark in Llama, nothing in GPT-2), unless they begin with the mark's own
//! letters already. An empty context is the start mark, or the end mark where there is none.
//!
//! A row keeps its last `max_length + 1` ids; the last of them is a target alone. A rolling text is cut into windows of
//! `max_length` targets; the first follows the mark, each later one sees as many ids before it as still fit.
//! Source: lm_eval/api/model.py, models/huggingface.py and utils.py of that version, read and tried.

use super::EngineError;
use esker_data::tokenizer::Tokenizer;
use std::collections::HashMap;

/// Ids that go through the network together, of which the last `scored` are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The last one is a target alone; the others are inputs.
    pub ids: Vec<u32>,
    /// Targets: at least 1, and fewer than ids.
    pub scored: usize,
}

impl Row {
    /// What the network reads.
    pub fn inputs(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    /// Place of the first input whose next token is scored.
    pub fn from(&self) -> usize {
        self.ids.len() - 1 - self.scored
    }
}

/// How texts become ids.
#[derive(Debug)]
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    add_bos: Option<bool>,
    max_length: usize,
    /// What stands for an empty context, and how it is spelt.
    prefix: Option<(u32, String)>,
    /// The start mark as it is spelt.
    bos: Option<String>,
    /// Ids of contexts seen: the choices of a question share theirs.
    contexts: HashMap<String, Vec<u32>>,
}

impl<'a> Encoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer, add_bos: Option<bool>, max_length: usize) -> Result<Encoder<'a>, EngineError> {
        let spelt = |id: u32| tokenizer.decode(&[id], false);
        let prefix = match tokenizer.bos().or(tokenizer.eos()) {
            Some(id) => Some((id, spelt(id)?)),
            None => None,
        };
        let bos = tokenizer.bos().map(spelt).transpose()?;
        Ok(Encoder { tokenizer, add_bos, max_length, prefix, bos, contexts: HashMap::new() })
    }

    /// The row of a continuation after a context; `None` when there is no token to score.
    pub fn pair(&mut self, context: &str, continuation: &str) -> Result<Option<Row>, EngineError> {
        let kept = context.trim_end_matches(space);
        let (context, continuation) = (kept, format!("{}{continuation}", &context[kept.len()..]));
        let (mut ids, tail) = if context.is_empty() {
            let tail = self.tokenizer.encode(&continuation)?;
            let prefix = self.prefix()?;
            match tail.first() {
                Some(&first) if first == prefix => (vec![first], tail[1..].to_vec()),
                _ => (vec![prefix], tail),
            }
        } else {
            let whole = self.text(&format!("{context}{continuation}"))?;
            let before = match self.contexts.get(context) {
                Some(ids) => ids.clone(),
                None => {
                    let ids = self.text(context)?;
                    self.contexts.insert(context.into(), ids.clone());
                    ids
                }
            };
            let tail = whole[before.len().min(whole.len())..].to_vec();
            (before, tail)
        };
        let scored = tail.len();
        ids.extend(tail);
        self.row(ids, scored)
    }

    /// Forgets the contexts of requests that are encoded.
    pub fn forget(&mut self) {
        self.contexts = HashMap::new();
    }

    /// The windows of a text whose every token is scored.
    pub fn rolling(&self, text: &str) -> Result<Vec<Row>, EngineError> {
        let ids: Vec<u32> = std::iter::once(self.prefix()?).chain(self.text(text)?).collect();
        let n = ids.len() - 1;
        let mut rows = Vec::new();
        for from in (0..n).step_by(self.max_length) {
            let to = n.min(from + self.max_length);
            // The first window begins at the mark; so would each that is shorter than a window.
            let begin = if from == 0 { 0 } else { to - self.max_length };
            rows.push(Row { ids: ids[begin..=to].to_vec(), scored: to - from });
        }
        Ok(rows)
    }

    /// The ids of a context to continue, with room behind them for `max_tokens`.
    pub fn prompt(&self, context: &str, max_tokens: usize) -> Result<Vec<u32>, EngineError> {
        let Some(room) = self.max_length.checked_sub(max_tokens).filter(|&room| room > 0) else {
            return Err(EngineError::NoRoom { max_tokens, max_length: self.max_length });
        };
        let mut ids = self.with_mark(context, self.bos.as_deref())?;
        if ids.is_empty() {
            ids.push(self.prefix()?);
        }
        ids.drain(..ids.len().saturating_sub(room));
        Ok(ids)
    }

    /// The id that stands for an empty context.
    fn prefix(&self) -> Result<u32, EngineError> {
        self.prefix.as_ref().map(|p| p.0).ok_or(EngineError::NoMark)
    }

    /// Ids with the tokenizer's own marks.
    fn text(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.with_mark(text, self.prefix.as_ref().map(|p| p.1.as_str()))
    }

    /// Ids with the tokenizer's own marks, unless the text begins with `mark`.
    fn with_mark(&self, text: &str, mark: Option<&str>) -> Result<Vec<u32>, EngineError> {
        if self.add_bos == Some(false) || mark.is_some_and(|m| !m.is_empty() && text.starts_with(m)) {
            return Ok(self.tokenizer.encode(text)?);
        }
        let mut ids = self.tokenizer.encode_prompt(text)?;
        if let (Some(true), Some(bos)) = (self.add_bos, self.tokenizer.bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn row(&self, mut ids: Vec<u32>, scored: usize) -> Result<Option<Row>, EngineError> {
        if scored == 0 {
            return Ok(None);
        }
        if scored > self.max_length {
            return Err(EngineError::TooLong { tokens: scored, max_length: self.max_length });
        }
        ids.drain(..ids.len().saturating_sub(self.max_length + 1));
        Ok(Some(Row { ids, scored }))
    }
}

/// White space as Python's `str.rstrip` sees it: Unicode's, and the four separators of ASCII.
fn space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes, whose end mark 256 opens what has no context.
    fn encoder(tokenizer: &Tokenizer, max_length: usize) -> Encoder<'_> {
        Encoder::new(tokenizer, None, max_length).unwrap()
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn row(ids: Vec<u32>, scored: usize) -> Option<Row> {
        Some(Row { ids, scored })
    }

    #[test]
    fn white_space_belongs_to_the_continuation() {
        let tokenizer = Tokenizer::bytes();
        let mut e = encoder(&tokenizer, 64);
        assert_eq!(e.pair("a b ", "c").unwrap(), row(bytes("a b c"), 2));
        assert_eq!(e.pair("a\n\u{a0}\u{1f}", " c").unwrap(), row(bytes("a\n\u{a0}\u{1f} c"), 6));
        assert_eq!(e.pair("a", "").unwrap(), None);
    }

    #[test]
    fn an_empty_context_is_the_mark() {
        let tokenizer = Tokenizer::bytes();
        let mut e = encoder(&tokenizer, 64);
        assert_eq!(e.pair("", "ab").unwrap(), row(vec![256, 97, 98], 2));
        assert_eq!(e.pair("  ", "ab").unwrap(), row(vec![256, 32, 32, 97, 98], 4));
        assert_eq!(e.prompt("", 3).unwrap(), [256]);
    }

    #[test]
    fn what_is_too_long_loses_its_left() {
        let tokenizer = Tokenizer::bytes();
        let mut e = encoder(&tokenizer, 4);
        assert_eq!(e.pair("abcdef", "gh").unwrap(), row(bytes("defgh"), 2));
        assert_eq!(e.pair("abcdef", "ghij").unwrap(), row(bytes("fghij"), 4));
        assert!(matches!(e.pair("a", "ghijk"), Err(EngineError::TooLong { tokens: 5, max_length: 4 })));
        assert_eq!(e.prompt("abcdef", 1).unwrap(), bytes("def"));
        assert!(matches!(e.prompt("a", 4), Err(EngineError::NoRoom { .. })));
    }

    #[test]
    fn windows_of_a_text_cover_each_token_once() {
        let tokenizer = Tokenizer::bytes();
        let e = encoder(&tokenizer, 4);
        let windows = e.rolling("abcdefghij").unwrap();
        let want = [(vec![256, 97, 98, 99, 100], 4), (bytes("defgh"), 4), (bytes("fghij"), 2)];
        assert_eq!(windows.len(), 3);
        for (got, (ids, scored)) in windows.into_iter().zip(want) {
            assert_eq!(got, Row { ids, scored });
        }
        assert_eq!(e.rolling("").unwrap(), []);
        assert_eq!(e.rolling("ab").unwrap(), [Row { ids: vec![256, 97, 98], scored: 2 }]);
    }
}
