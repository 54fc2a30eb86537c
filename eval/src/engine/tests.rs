//! The engine against one row at a time through [`Decoder`], which shares neither its packing nor its attention.

use super::{encode::Encoder, *};
use esker_kernels::tensor::{Class, DType};
use esker_model::{Decoder, Family, Rope, init};

/// A small model with fresh weights.
pub(crate) fn model(family: Family, dtype: DType) -> (Stream, Config, Weights) {
    let config = Config {
        family,
        vocab: 260,
        context: 96,
        hidden: 48,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        ffn: 80,
        norm_eps: 1e-5,
        tied: family == Family::Llama,
        init_std: 0.15,
        rope: Rope { theta: 10_000.0, scaling: None },
    };
    let s = Stream::cpu(2).unwrap();
    let build =
        |dtype| Arena::build(&s, |arena| Weights::layout(arena.class(Class::Weights), &config, dtype)).unwrap().0;
    let mut f32s = build(DType::F32);
    init::draw(&s, &config, &mut f32s, 7).unwrap();
    let mut weights = build(dtype);
    weights.convert_from(&s, &f32s).unwrap();
    (s, config, weights)
}

fn ask(context: &str, continuation: &str) -> Request {
    Request::LogLikelihood { context: context.into(), continuation: continuation.into() }
}

fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for (question, choices) in [
        ("Question: what falls?\nAnswer:", vec![" rain", " rain and snow", " a stone", " a"]),
        ("Question: what flies?\nAnswer:", vec![" birds", " rain"]),
        ("", vec!["of nothing", "x"]),
        ("Which one of them ", vec!["A", "B", "C", "D"]),
    ] {
        requests.extend(choices.into_iter().map(|choice| ask(question, choice)));
    }
    let long: String = (0..40).map(|i| format!("{i} sheep, ")).collect();
    requests.push(ask(&long, "then sleep"));
    requests.push(Request::Rolling { text: long[..250].into() });
    requests.push(Request::Rolling { text: String::new() });
    requests.push(ask("a", ""));
    requests
}

/// The same question, plainly.
fn plain(s: &Stream, config: &Config, w: &Weights, request: &Request) -> (f64, bool, usize) {
    let tokenizer = Tokenizer::bytes();
    let mut encoder = Encoder::new(&tokenizer, None, config.context).unwrap();
    let rows = match request {
        Request::LogLikelihood { context, continuation } => {
            encoder.pair(context, continuation).unwrap().into_iter().collect()
        }
        Request::Rolling { text } => encoder.rolling(text).unwrap(),
        Request::Generate { .. } => unreachable!(),
    };
    let (mut sum, mut greedy, mut tokens) = (0.0, true, 0);
    for row in rows {
        let n = row.inputs().len();
        let mut decoder = Arena::build(s, |a| Decoder::layout(a, config, w.embed.dtype(), n, 1)).unwrap().0;
        decoder.ready(s, config).unwrap();
        for p in 0..n {
            let z = decoder.step(s, config, w, row.ids[p]).unwrap();
            if p >= row.from() {
                let lse = z.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
                sum += f64::from(z[row.ids[p + 1] as usize]) - lse;
                greedy &= largest(z).unwrap() == row.ids[p + 1];
            }
        }
        tokens += row.scored;
    }
    (sum, greedy, tokens)
}

#[test]
fn packed_rows_score_as_rows_alone() {
    for (family, dtype, allowed) in
        [(Family::Llama, DType::F32, 2e-4), (Family::Qwen3, DType::F32, 2e-4), (Family::Llama, DType::Bf16, 1.5)]
    {
        let (s, config, w) = model(family, dtype);
        let tokenizer = Tokenizer::bytes();
        let mut engine = Engine::new(&s, &config, &w, &tokenizer, Options::default()).unwrap();
        let requests = requests();
        let answers = engine.answer(&requests).unwrap();
        for (request, answer) in requests.iter().zip(&answers) {
            let (sum, greedy, tokens) = plain(&s, &config, &w, request);
            let got = match *answer {
                Answer::LogLikelihood { sum: got, greedy: g, tokens: t } => {
                    assert!(g == greedy || dtype == DType::Bf16, "{request:?}");
                    (got, t)
                }
                Answer::Rolling { sum, tokens } => (sum, tokens),
                Answer::Generate { .. } => panic!("{request:?}"),
            };
            assert_eq!(got.1, tokens, "{request:?}");
            assert!((got.0 - sum).abs() <= allowed, "{family:?} {dtype}: {request:?}: {} and {sum}", got.0);
        }
        let work = engine.work();
        assert!(work.tokens < work.row_tokens && work.places > 0, "{work:?}");
        // Any number of requests at once: the same answers, up to rounding.
        for (i, request) in requests.iter().enumerate().take(6) {
            let alone = engine.answer(std::slice::from_ref(request)).unwrap();
            let (Answer::LogLikelihood { sum: a, .. }, Answer::LogLikelihood { sum: b, .. }) = (&alone[0], &answers[i])
            else {
                panic!("{request:?}")
            };
            assert!((a - b).abs() <= allowed, "{request:?}: {a} alone, {b} among others");
        }
    }
}

/// One text at a time.
fn plain_text(s: &Stream, config: &Config, w: &Weights, prompt: &str, max: usize) -> Vec<u32> {
    let tokenizer = Tokenizer::bytes();
    let encoder = Encoder::new(&tokenizer, None, config.context).unwrap();
    let ids = encoder.prompt(prompt, max).unwrap();
    let mut decoder = Arena::build(s, |a| Decoder::layout(a, config, DType::F32, ids.len() + max, 8)).unwrap().0;
    decoder.ready(s, config).unwrap();
    let mut made = Vec::new();
    let mut next = ids;
    while made.len() < max {
        let id = largest(decoder.prefill(s, config, w, &next).unwrap()).unwrap();
        made.push(id);
        next = vec![id];
        if id == 256 {
            break;
        }
    }
    made
}

#[test]
fn texts_that_grow_together_grow_as_alone() {
    let (s, config, w) = model(Family::Llama, DType::F32);
    let tokenizer = Tokenizer::bytes();
    let prompts = ["Once", "", "The quick brown fox jumps over the lazy dog, and then it", "a", "b", "c"];
    let requests: Vec<Request> = (0..40)
        .map(|i| Request::Generate { context: prompts[i % 6].into(), until: vec![], max_tokens: 1 + i % 7 * 3 })
        .chain([Request::Generate { context: "none".into(), until: vec![], max_tokens: 0 }])
        .collect();
    let mut engine = Engine::new(&s, &config, &w, &tokenizer, Options::default()).unwrap();
    let answers = engine.answer(&requests).unwrap();
    for (request, answer) in requests.iter().zip(&answers) {
        let Request::Generate { context, max_tokens, .. } = request else { unreachable!() };
        let made = plain_text(&s, &config, &w, context, *max_tokens);
        let text = decode(&tokenizer, &made, true).unwrap();
        assert_eq!(answer, &Answer::Generate { text }, "{request:?}");
    }
}

#[test]
fn a_text_ends_before_its_stop_strings() {
    let (s, config, w) = model(Family::Llama, DType::F32);
    let tokenizer = Tokenizer::bytes();
    let mut engine = Engine::new(&s, &config, &w, &tokenizer, Options::default()).unwrap();
    let mut generate = |until: Vec<String>| {
        let request = Request::Generate { context: "Once upon".into(), until, max_tokens: 24 };
        match engine.answer(&[request]).unwrap().remove(0) {
            Answer::Generate { text } => text,
            other => panic!("{other:?}"),
        }
    };
    let whole = generate(vec![]);
    let chars: Vec<char> = whole.chars().collect();
    let stop: String = chars[4..6].iter().collect();
    let cut = whole.find(&stop).unwrap();
    assert_eq!(generate(vec![stop.clone(), String::new()]), whole[..cut]);
    assert_eq!(generate(vec!["no such thing".into()]), whole);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (s, mut config, w) = model(Family::Llama, DType::F32);
    config.vocab = 200;
    let tokenizer = Tokenizer::bytes();
    let error = Engine::new(&s, &config, &w, &tokenizer, Options::default()).unwrap_err();
    assert!(matches!(error, EngineError::Vocabulary { got: 257, vocab: 200 }), "{error}");
}
