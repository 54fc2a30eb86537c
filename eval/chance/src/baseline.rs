//! What counting alone achieves: bits per byte of the unigram and the bigram of the training tokens.
//!
//! N: training tokens; c(t): how often t occurs as a target; c(s,t): how often t follows s; c(s) = Σ_t c(s,t);
//! F(s): number of different followers of s; V: size of the vocabulary.
//!
//! p₁(t)   = (c(t) + 1) / (N + V)                              add-one
//! p₂(t|s) = (c(s,t) + F(s) · p₁(t)) / (c(s) + F(s))           interpolated with p₁; p₁ where s was never seen
//! bits per byte = −Σ log₂ p / bytes                           over every validation token, the same as a model's
//!
//! Counts are integers, and the sum over the validation tokens runs in their order: the same bits every time. Pairs are
//! those the model sees: a token with the one before it, the first of a document with the end mark before it.
//! Source of p₂: Witten & Bell 1991, "The zero-frequency problem", method C.

use esker_data::{
    loader::{Batch, IGNORED, LoaderError, Scan},
    tokens::TokenSet,
};
use serde::Serialize;
use std::{collections::HashMap, sync::Arc};

/// Bits per byte that a model has to beat.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Baseline {
    /// From the frequency of each token.
    pub unigram: f64,
    /// From the token before, interpolated with the unigram.
    pub bigram: f64,
    /// Training tokens that were counted.
    pub counted_tokens: u64,
    /// Validation tokens that were scored.
    pub tokens: u64,
    /// Bytes of text that they stand for.
    pub bytes: u64,
}

/// Counts of single tokens and of pairs.
#[derive(Debug)]
pub struct Counts {
    single: Vec<u64>,
    /// Of each token, how often it stood before another one, and before how many different ones.
    before: Vec<(u64, u32)>,
    pairs: HashMap<(u32, u32), u64>,
    total: u64,
}

impl Counts {
    /// No token seen yet, of a vocabulary of `vocab`.
    pub fn new(vocab: usize) -> Counts {
        Counts { single: vec![0; vocab], before: vec![(0, 0); vocab], pairs: HashMap::new(), total: 0 }
    }

    /// Counts `next` after `last`; both lie in the vocabulary.
    pub fn add(&mut self, last: u32, next: u32) {
        self.single[next as usize] += 1;
        self.total += 1;
        let pair = self.pairs.entry((last, next)).or_default();
        *pair += 1;
        let (count, followers) = &mut self.before[last as usize];
        *count += 1;
        *followers += u32::from(*pair == 1);
    }

    /// p₁.
    pub fn unigram(&self, next: u32) -> f64 {
        (self.single[next as usize] as f64 + 1.0) / (self.total as f64 + self.single.len() as f64)
    }

    /// p₂.
    pub fn bigram(&self, last: u32, next: u32) -> f64 {
        let (count, followers) = self.before[last as usize];
        let p1 = self.unigram(next);
        if count == 0 {
            return p1;
        }
        let pair = self.pairs.get(&(last, next)).copied().unwrap_or(0);
        (pair as f64 + f64::from(followers) * p1) / (count as f64 + f64::from(followers))
    }
}

/// Counts the first `count_max` tokens of `train` and scores `windows` of a validation set, cut into windows of `seq`
/// tokens: give those the model was scored on.
pub fn measure(
    train: &Arc<TokenSet>,
    (validation, seq): (&Scan, usize),
    windows: impl IntoIterator<Item = u64>,
    count_max: u64,
) -> Result<Baseline, LoaderError> {
    measure_all(train, (validation, seq), &mut windows.into_iter(), count_max)
}

/// [`measure`], compiled here once, as fast as this crate is, whoever calls it.
fn measure_all(
    train: &Arc<TokenSet>,
    (validation, seq): (&Scan, usize),
    windows: &mut dyn Iterator<Item = u64>,
    count_max: u64,
) -> Result<Baseline, LoaderError> {
    let vocab = train.vocab_size().max(validation.set().vocab_size()) as usize;
    let mut counts = Counts::new(vocab);
    let scan = Scan::new(train.clone(), 4096)?;
    for window in 0..scan.windows() {
        if counts.total >= count_max {
            break;
        }
        pairs(&scan, 4096, window, |last, next| {
            if counts.total < count_max {
                counts.add(last, next);
            }
        })?;
    }
    let mut sum = Baseline { unigram: 0.0, bigram: 0.0, counted_tokens: counts.total, tokens: 0, bytes: 0 };
    for window in windows {
        pairs(validation, seq, window, |last, next| {
            sum.unigram -= counts.unigram(next).log2();
            sum.bigram -= counts.bigram(last, next).log2();
        })?;
        let scored = validation.scored(window..window + 1);
        sum.tokens += scored.tokens;
        sum.bytes += scored.bytes;
    }
    let bytes = sum.bytes.max(1) as f64;
    Ok(Baseline { unigram: sum.unigram / bytes, bigram: sum.bigram / bytes, ..sum })
}

/// Calls `f` with every target of a window and the token before it, in order.
fn pairs(scan: &Scan, seq: usize, window: u64, mut f: impl FnMut(u32, u32)) -> Result<(), LoaderError> {
    let (mut inputs, mut targets) = (vec![0; seq], vec![0; seq]);
    scan.fill(window, 1, Batch { inputs: &mut inputs, targets: &mut targets, doc_first: None })?;
    for (&last, &next) in inputs.iter().zip(&targets) {
        if next != IGNORED {
            f(last, next);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let mut counts = Counts::new(5);
        for (last, next) in [(0, 1), (1, 1), (1, 2), (2, 1), (1, 1), (1, 4)] {
            counts.add(last, next);
        }
        let one = |p: &dyn Fn(u32) -> f64| assert!(((0..5).map(p).sum::<f64>() - 1.0).abs() < 1e-12);
        one(&|t| counts.unigram(t));
        for s in 0..5 {
            one(&|t| counts.bigram(s, t));
        }
    }

    #[test]
    fn the_formula_by_hand() {
        let mut counts = Counts::new(3);
        for (last, next) in [(0, 1), (0, 1), (0, 2), (1, 0)] {
            counts.add(last, next);
        }
        // c = [1, 2, 1], N = 4, V = 3.
        assert_eq!(counts.unigram(1), 3.0 / 7.0);
        // c(0,1) = 2, F(0) = 2, c(0) = 3.
        assert_eq!(counts.bigram(0, 1), (2.0 + 2.0 * (3.0 / 7.0)) / 5.0);
        assert_eq!(counts.bigram(2, 1), 3.0 / 7.0, "2 was never seen before another");
    }

    #[test]
    fn a_text_that_repeats_is_cheap_and_order_shows_in_the_bigram() {
        // 0 is the end mark; the text alternates 1 2 1 2 ..., a byte a token.
        let text: Vec<u32> = (0..2000).map(|i| 1 + i % 2).collect();
        let set =
            |n: usize| Arc::new(TokenSet::from_documents([(text[..n].to_vec(), n as u64)], 4, Some(0)).expect("a set"));
        let scan = |n: usize, seq: usize| Scan::new(set(n), seq).unwrap();
        let got = measure(&set(2000), (&scan(500, 64), 64), 0..8, u64::MAX).unwrap();
        assert!((got.unigram - 1.0).abs() < 0.1, "two tokens, equally often: {got:?}");
        assert!(got.bigram < 0.05, "{got:?}");
        assert_eq!((got.counted_tokens, got.tokens, got.bytes), (2001, 501, 500), "the end mark is a target too");
        assert_eq!(got, measure(&set(2000), (&scan(500, 64), 64), 0..8, u64::MAX).unwrap());
        assert_eq!(measure(&set(2000), (&scan(500, 64), 64), 0..8, 100).unwrap().counted_tokens, 100);
        let other_cuts = measure(&set(2000), (&scan(500, 501), 501), [0], u64::MAX).unwrap();
        assert!((other_cuts.bigram - got.bigram).abs() < 1e-12, "where windows are cut changes nothing");
        assert_eq!(measure(&set(2000), (&scan(500, 64), 64), [3], u64::MAX).unwrap().tokens, 64);
    }
}
