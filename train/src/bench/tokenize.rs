//! Tokenization: our own path beside the `tokenizers` crate, on the same text in the same sitting, ids compared.
//!
//! A text is cut at line ends into documents of about 8 kB. A round is: *cold*, the tokenizer loaded anew and the whole
//! text once; *warm*, the same text again; *crate*, a share of the text through the crate, each document's ids held
//! against ours. The rounds together take the whole text through the crate. Loading is timed apart. Then come random
//! strings, made of what pre-tokenizers care for, of every script, of broken runs and of the tokenizer's own special
//! tokens, which are read as tokens and as text; a difference fails the bench and is printed.

use super::{Row, median_and_min};
use crate::commands::Failure;
use esker_data::{Reading, Tokenizer, corpus};
use serde::Serialize;
use std::{
    fmt::Write,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

/// Bytes of a document, about.
const DOCUMENT: usize = 8_000;
/// Documents that a thread takes at once.
const CLAIM: usize = 16;
/// Random strings that a thread takes at once.
const STRINGS: usize = 1_000;
/// Times the whole text is read.
const ROUNDS: usize = 3;

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct Tokenize<'a> {
    /// A tokenizer.json or its folder; none: a BPE learnt from the embedded corpus.
    pub tokenizer: Option<&'a Path>,
    /// A file of text; none: the embedded corpus, sixteen times.
    pub text: Option<&'a Path>,
    /// Random strings to compare.
    pub random: u64,
    /// What they are drawn from.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
}

/// The one row.
#[derive(Clone, Debug, Serialize)]
pub struct TokenizeRow {
    /// `tokenize`
    pub bench: &'static str,
    /// Name of the tokenizer.
    pub case: String,
    /// Threads.
    pub threads: usize,
    /// Our own path is in use.
    pub fast: bool,
    /// Of the text, in 10^6 bytes.
    pub mb: f64,
    /// Of the text.
    pub tokens: usize,
    /// Reading the file.
    pub load_ms: f64,
    /// First pass after loading, median of the rounds.
    pub cold_mb_per_s: f64,
    /// Further passes, median of the rounds.
    pub warm_mb_per_s: f64,
    /// The crate, over all of its shares.
    pub crate_mb_per_s: f64,
    /// Cold over crate.
    pub ratio: f64,
    /// Documents compared, all equal.
    pub documents: usize,
    /// Random strings compared, all equal.
    pub random: u64,
    /// What those were drawn from.
    pub seed: u64,
}

impl std::fmt::Display for TokenizeRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{}: {:.1} MB, {} tokens, {} threads; load {:.0} ms, cold {:.1} MB/s, warm {:.1} MB/s, crate {:.2} MB/s, \
             {:.1} times{}; equal in {} documents and {} random strings (seed {})",
            self.case,
            self.mb,
            self.tokens,
            self.threads,
            self.load_ms,
            self.cold_mb_per_s,
            self.warm_mb_per_s,
            self.crate_mb_per_s,
            self.ratio,
            if self.fast { "" } else { " (not recognised: both are the crate)" },
            self.documents,
            self.random,
            self.seed,
        )
    }
}

/// Runs it; a difference between the two is a failure.
pub fn tokenize(what: Tokenize<'_>, each: &mut dyn FnMut(Row) -> bool) -> Result<(), Failure> {
    let text = match what.text {
        Some(path) => String::from_utf8_lossy(&std::fs::read(path).map_err(|e| Failure::file(path, &e))?).into_owned(),
        None => corpus::embedded().map(|a| a.text).collect::<String>().repeat(16),
    };
    let learnt = || Tokenizer::train_bpe(corpus::embedded().map(|a| a.text), 4096);
    let first = what.tokenizer.map_or_else(learnt, Tokenizer::from_file)?;
    let documents = documents(&text);
    let (mut load, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    let (mut crate_s, mut crate_bytes, mut tokens) = (0.0, 0, 0);
    for round in 0..ROUNDS {
        let start = Instant::now();
        let tokenizer = Tokenizer::from_json(first.json(), first.name())?;
        load.push(start.elapsed().as_secs_f64());
        for times in [&mut cold, &mut warm] {
            let start = Instant::now();
            tokens = encode_all(&tokenizer, &documents, what.threads)?;
            times.push(start.elapsed().as_secs_f64());
        }
        let share: Vec<&str> = documents.iter().skip(round).step_by(ROUNDS).copied().collect();
        crate_bytes += share.iter().map(|d| d.len()).sum::<usize>();
        crate_s += compare_all(&tokenizer, &share, what.threads)?;
    }
    compare_random(&first, what)?;
    let mb = text.len() as f64 / 1e6;
    let (cold, _) = median_and_min(cold);
    let crate_mb_per_s = crate_bytes as f64 / 1e6 / crate_s;
    each(Row::Tokenize(TokenizeRow {
        bench: "tokenize",
        case: first.name().into(),
        threads: what.threads,
        fast: first.is_fast(),
        mb,
        tokens,
        load_ms: median_and_min(load).0 * 1e3,
        cold_mb_per_s: mb / cold,
        warm_mb_per_s: mb / median_and_min(warm).0,
        crate_mb_per_s,
        ratio: mb / cold / crate_mb_per_s,
        documents: documents.len(),
        random: what.random,
        seed: what.seed,
    }));
    Ok(())
}

/// Cut at line ends.
fn documents(text: &str) -> Vec<&str> {
    let (mut documents, mut from, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        at += line.len();
        if at - from > DOCUMENT {
            documents.push(&text[from..at]);
            from = at;
        }
    }
    if from < at {
        documents.push(&text[from..at]);
    }
    documents
}

/// Hands out `0..len` in runs of `claim` to threads; the sum of what `work` gives, or the first failure.
fn shared<T: Send + std::iter::Sum>(
    len: usize,
    claim: usize,
    threads: usize,
    work: impl Fn(std::ops::Range<usize>) -> Result<T, Failure> + Sync,
) -> Result<T, Failure> {
    let next = AtomicUsize::new(0);
    let lane = || {
        let claims = std::iter::repeat_with(|| next.fetch_add(claim, Relaxed)).take_while(|&from| from < len);
        claims.map(|from| work(from..(from + claim).min(len))).sum::<Result<T, Failure>>()
    };
    std::thread::scope(|s| {
        let lanes: Vec<_> = (0..threads).map(|_| s.spawn(lane)).collect();
        lanes.into_iter().map(|l| l.join().expect("a lane does not panic")).sum()
    })
}

/// Tokens of all documents.
fn encode_all(tokenizer: &Tokenizer, documents: &[&str], threads: usize) -> Result<usize, Failure> {
    shared(documents.len(), CLAIM, threads, |range| {
        let mut ids = Vec::new();
        for document in &documents[range] {
            tokenizer.encode_into(document, &mut ids)?;
        }
        Ok(ids.len())
    })
}

/// Seconds that the crate takes; its ids are ours.
fn compare_all(tokenizer: &Tokenizer, documents: &[&str], threads: usize) -> Result<f64, Failure> {
    let busy: f64 = shared(documents.len(), CLAIM, threads, |range| {
        let mut seconds = 0.0;
        for document in &documents[range] {
            let start = Instant::now();
            let want = tokenizer.encode_by_crate(document, Reading::Tokens)?;
            seconds += start.elapsed().as_secs_f64();
            same(tokenizer, document, &tokenizer.encode(document)?, &want)?;
        }
        Ok(seconds)
    })?;
    Ok(busy / threads as f64)
}

fn same(tokenizer: &Tokenizer, text: &str, got: &[u32], want: &[u32]) -> Result<(), Failure> {
    if got == want {
        return Ok(());
    }
    let at = got.iter().zip(want).take_while(|(a, b)| a == b).count();
    let near = |ids: &[u32]| format!("{:?}", ids.iter().skip(at).take(8).collect::<Vec<_>>());
    let shown: String = text.chars().take(2000).collect();
    Err(Failure::check(format!(
        "{}: from id {at} on {} and not {} as the crate has it, in {shown:?}",
        tokenizer.name(),
        near(got),
        near(want)
    )))
}

fn compare_random(tokenizer: &Tokenizer, what: Tokenize<'_>) -> Result<(), Failure> {
    let special = special(tokenizer);
    shared(what.random as usize, STRINGS, what.threads, |range| {
        let (mut text, mut ids) = (String::new(), Vec::new());
        for i in range {
            let mut draw = Draw(what.seed ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            text.clear();
            for _ in 0..draw.below(24) {
                draw.part(&special, &mut text);
            }
            same(tokenizer, &text, &tokenizer.encode(&text)?, &tokenizer.encode_by_crate(&text, Reading::Tokens)?)?;
            ids.clear();
            tokenizer.encode_document(&text, &mut ids)?;
            same(tokenizer, &text, &ids, &tokenizer.encode_by_crate(&text, Reading::Document)?)?;
        }
        Ok(0u64)
    })?;
    Ok(())
}

/// Texts of the added tokens, which are worth writing out in full.
fn special(tokenizer: &Tokenizer) -> Vec<String> {
    let file: serde_json::Value = serde_json::from_slice(tokenizer.json()).unwrap_or_default();
    let tokens = file["added_tokens"].as_array().into_iter().flatten();
    tokens.filter_map(|t| t["content"].as_str().map(String::from)).collect()
}

/// SplitMix64 (Steele, Lea & Flood 2014).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one(&mut self, of: &str) -> char {
        let n = self.below(of.chars().count() as u64);
        of.chars().nth(n as usize).expect("within")
    }

    /// A run of one kind.
    fn part(&mut self, special: &[String], text: &mut String) {
        let kind = self.below(16);
        if kind == 15 && !special.is_empty() {
            text.push_str(&special[self.below(special.len() as u64) as usize]);
            return;
        }
        if kind == 14 {
            let _ = write!(text, "{}", self.next() >> self.below(60));
            return;
        }
        let page = self.below(0x300) as u32 * 0x100;
        let longest = if self.below(40) == 0 { 90 } else { 7 };
        for _ in 0..=self.below(longest) {
            let c = match kind {
                0..4 => self.one("abcdefghijklmnopqrstuvwxyzetaoinshr"),
                4 | 5 => ' ',
                6 => self.one(" \t\r\n\n\u{b}\u{c}\u{85}\u{a0}\u{2028}\u{3000}"),
                7 => self.one("''sStTmMdDrReEvVlLſ "),
                8 => self.one("!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~"),
                9 => self.one("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
                10 => self.one("0123456789²٣५Ⅷ½"),
                11 => self.one("éàüßñœ“”’—…•日本語中文한국어Жяשלाक्\u{301}\u{308}\u{323}\u{1161}▁🏞👩\u{200d}"),
                // A page of Unicode, and anything at all.
                12 => char::from_u32(page + self.below(0x100) as u32).unwrap_or('\u{fffd}'),
                _ => char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\u{fffd}'),
            };
            text.push(c);
        }
    }
}
