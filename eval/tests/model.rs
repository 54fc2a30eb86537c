//! Losses and continuations of a small random model: what must hold whatever its weights are.

use esker_data::tokens::TokenSet;
use esker_eval::{
    generate::{GenerateError, Request, generate},
    loss::{LossError, Scorer},
    sample::{Options, largest},
};
use esker_kernels::{
    device::Stream,
    tensor::{Arena, DType},
};
use esker_model::{Config, Decoder, Family, Rope, Weights};
use std::sync::Arc;

fn config() -> Config {
    Config {
        family: Family::Llama,
        vocab: 97,
        context: 64,
        hidden: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn: 48,
        norm_eps: 1e-5,
        tied: true,
        init_std: 0.3,
        rope: Rope { theta: 10_000.0, scaling: None },
    }
}

fn model(s: &Stream) -> (Config, Weights) {
    let config = config();
    let mut weights = Arena::build(s, |arena| Weights::layout(arena, &config, DType::F32)).unwrap().0;
    esker_model::init::draw(s, &config, &mut weights, 5).unwrap();
    (config, weights)
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * i * 31 + i * 7 + 3) % 97).collect()
}

fn decoder(s: &Stream, config: &Config, capacity: usize) -> Decoder {
    let mut d = Arena::build(s, |arena| Decoder::layout(arena, config, DType::F32, capacity, 16)).unwrap().0;
    d.ready(s, config).unwrap();
    d
}

#[test]
fn rows_of_any_length_score_as_they_do_alone() {
    let s = Stream::cpu(2).unwrap();
    let (config, weights) = model(&s);
    let rows = [ids(40), ids(2), ids(1), vec![], ids(17)];
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let mut scorer = Scorer::new(&s, &config, &weights, 39, false).unwrap();
    let together = scorer.rows(&rows).unwrap();
    assert_eq!(together.iter().map(Vec::len).collect::<Vec<_>>(), [39, 1, 0, 0, 16]);
    for (row, nll) in rows.iter().zip(&together) {
        assert_eq!(&scorer.rows(&[row]).unwrap()[0], nll);
    }
    // A causal model: a row's head scores like the head of the row.
    assert_eq!(together[4], together[0][..16]);
    assert!(matches!(scorer.rows(&[&[1, 97, 2]]), Err(LossError::Id { id: 97, row: 0, place: 1, vocab: 97 })));
}

#[test]
fn scores_are_what_the_decoder_says() {
    let s = Stream::cpu(1).unwrap();
    let (config, weights) = model(&s);
    let row = ids(20);
    let nll = Scorer::new(&s, &config, &weights, 19, false).unwrap().rows(&[&row]).unwrap().remove(0);
    let mut d = decoder(&s, &config, 20);
    for (i, pair) in row.windows(2).enumerate() {
        let logits = d.step(&s, &config, &weights, pair[0]).unwrap();
        let max = f64::from(logits[largest(logits).unwrap() as usize]);
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        let want = max + sum.ln() - f64::from(logits[pair[1] as usize]);
        assert!((f64::from(nll[i]) - want).abs() < 1e-4, "place {i}: {} and {want}", nll[i]);
    }
}

#[test]
fn every_token_of_a_text_is_scored_once() {
    let s = Stream::cpu(1).unwrap();
    let (config, weights) = model(&s);
    let text = ids(50);
    let mut scorer = Scorer::new(&s, &config, &weights, 16, false).unwrap();
    let with_start = scorer.text(&text, Some(2), 200).unwrap();
    assert_eq!((with_start.tokens, with_start.bytes), (50, 200));
    let without = scorer.text(&text, None, 196).unwrap();
    assert_eq!(without.tokens, 49);
    assert!(matches!(scorer.text(&[], Some(2), 0), Err(LossError::Nothing)));
    assert!(matches!(scorer.text(&[4], None, 1), Err(LossError::Nothing)));
    // By hand, window by window.
    let row: Vec<u32> = std::iter::once(2).chain(text.iter().copied()).collect();
    let mut sum = 0.0;
    for at in (0..50).step_by(16) {
        let end = (at + 17).min(51);
        sum += scorer.rows(&[&row[at..end]]).unwrap()[0].iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    assert!((sum - with_start.nll_sum).abs() < 1e-9, "{sum} {}", with_start.nll_sum);
    assert_eq!(with_start.bits_per_byte(), sum / std::f64::consts::LN_2 / 200.0);
}

#[test]
fn a_set_is_its_documents_with_their_end_marks() {
    let s = Stream::cpu(2).unwrap();
    let (config, weights) = model(&s);
    let documents = [ids(30), ids(11)];
    let set = TokenSet::from_documents(documents.iter().map(|d| (d.clone(), 3 * d.len() as u64)), 97, Some(0)).unwrap();
    let mut scorer = Scorer::new(&s, &config, &weights, 64, true).unwrap();
    let loss = scorer.set(&Arc::new(set)).unwrap();
    assert_eq!((loss.tokens, loss.bytes), (43, 123));
    // Attention stays inside a document, so each scores as it would alone: after an end mark, and its own end too.
    let mut alone = 0.0;
    for document in &documents {
        let row: Vec<u32> = std::iter::once(0).chain(document.iter().copied()).chain([0]).collect();
        alone += scorer.rows(&[&row]).unwrap()[0].iter().map(|&x| f64::from(x)).sum::<f64>();
    }
    // Places differ by the rotation of the second document alone, which only rounding can see.
    assert!((loss.nll_sum - alone).abs() < 1e-3, "{} {alone}", loss.nll_sum);
    let foreign = TokenSet::from_documents([(vec![1], 1)], 98, Some(0)).unwrap();
    assert!(matches!(scorer.set(&Arc::new(foreign)), Err(LossError::Vocabulary { got: 98, vocab: 97 })));
}

#[test]
fn a_continuation_is_its_own_prefix_and_stops_where_it_should() {
    let s = Stream::cpu(1).unwrap();
    let (config, weights) = model(&s);
    let prompt = ids(20);
    let go = |tokens: usize, options: Options, stop: &[u32], limit: usize| {
        let mut seen = Vec::new();
        let request = Request { prompt: &prompt, tokens, options, stop };
        let mut d = decoder(&s, &config, 60);
        let made = generate(&s, &config, &weights, &mut d, request, |id| {
            seen.push(id);
            seen.len() < limit
        });
        let made = made.unwrap();
        assert_eq!(made.tokens, seen);
        made
    };
    let drawn = Options { temperature: 1.0, top_k: 0, top_p: 0.95, seed: 4 };
    for options in [Options::greedy(), drawn] {
        let long = go(30, options, &[], 99);
        assert_eq!((long.tokens.len(), long.passes, long.ended), (30, 29, false));
        assert_eq!(go(12, options, &[], 99).tokens, long.tokens[..12]);
        assert_eq!(go(30, options, &[], 5).tokens, long.tokens[..5], "the listener may stop");
        let stop = long.tokens[7];
        let at = long.tokens.iter().position(|&t| t == stop).unwrap();
        let ended = go(30, options, &[stop], 99);
        assert!(ended.ended);
        assert_eq!(ended.tokens, long.tokens[..at]);
        assert!(go(0, options, &[], 99).tokens.is_empty());
    }
    assert_ne!(go(30, drawn, &[], 99).tokens, go(30, Options { seed: 5, ..drawn }, &[], 99).tokens);
}

#[test]
fn requests_that_cannot_be_met_are_refused() {
    let s = Stream::cpu(1).unwrap();
    let (config, weights) = model(&s);
    let refuse = |prompt: &[u32], tokens: usize| {
        let request = Request { prompt, tokens, options: Options::greedy(), stop: &[] };
        let mut d = decoder(&s, &config, 20);
        generate(&s, &config, &weights, &mut d, request, |_| true).unwrap_err()
    };
    assert!(matches!(refuse(&[], 4), GenerateError::Empty));
    assert!(matches!(refuse(&[1, 97], 4), GenerateError::Id { id: 97, vocab: 97 }));
    assert!(matches!(refuse(&ids(10), 11), GenerateError::Room { wanted: 21, room: 20 }));
}
