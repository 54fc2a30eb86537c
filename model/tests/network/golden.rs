//! Whole networks against PyTorch: see ../golden/README.md.

use crate::*;
use esker_kernels::{
    device::Stream,
    tensor::{Arena, DType},
};
use esker_model::{Decoder, Recompute, hf};

const FOLDERS: [&str; 3] = ["llama-gqa-untied", "llama-mqa-scaled-tied", "qwen3-tied"];

#[test]
fn log_probabilities_and_gradients_are_pytorchs() {
    let s = Stream::cpu(2).unwrap();
    for name in FOLDERS {
        let (cfg, w) = load(&s, name, DType::F32);
        let golden_json = json(&folder(name).join("golden.json"));
        let rows = rows(&golden_json["rows"]);
        let got = step(&cfg, &w, &rows, None, How { micro_rows: 2, ..How::PLAIN });

        let want: Vec<Vec<f64>> = serde_json::from_value(golden_json["logprob"].clone()).unwrap();
        let off = got.nll.iter().zip(want.concat()).map(|(g, w)| (f64::from(*g) + w).abs()).fold(0.0, f64::max);
        assert!(off < 1e-5, "{name}: log-probabilities off by {off}");

        let mut want = weights(&s, &cfg, DType::F32);
        hf::load_file(&folder(name).join("grads.safetensors"), &mut want).unwrap();
        for ((tensor, got), (_, want)) in got.grads.iter().zip(want.each()) {
            let off = relative(got, want.f32());
            assert!(off < 1e-5, "{name}: gradient of {tensor} off by {off}");
        }
    }
}

#[test]
fn generation_with_a_cache_is_the_whole_forward() {
    let s = Stream::cpu(2).unwrap();
    for name in FOLDERS {
        let (cfg, w) = load(&s, name, DType::F32);
        let golden_json = json(&folder(name).join("golden.json"));
        let rows = rows(&golden_json["rows"]);
        let want = step(&cfg, &w, &rows, None, How::PLAIN).nll;
        let (row, len) = (&rows[0], rows[0].len() - 1);
        // A prompt in pieces of 7, then one token at a time.
        let (mut d, _) = Arena::build(&s, |arena| Decoder::layout(arena, &cfg, DType::F32, len, 7)).unwrap();
        d.ready(&s, &cfg).unwrap();
        for prompt in [1, 7, 12] {
            d.reset();
            let mut logits = d.prefill(&s, &cfg, &w, &row[..prompt]).unwrap().to_vec();
            for i in prompt..=len {
                let off = (logprob(&logits, row[i]) + f64::from(want[i - 1])).abs();
                assert!(off < 1e-5, "{name}: prompt {prompt}, token {i} off by {off}");
                if i < len {
                    logits = d.step(&s, &cfg, &w, row[i]).unwrap().to_vec();
                }
            }
            assert_eq!((d.len(), d.room()), (len, 0));
            let want: Vec<f32> = serde_json::from_value(golden_json["last_logits_of_row_0"].clone()).unwrap();
            assert!(relative(&logits, &want) < 1e-5, "{name}: last logits");
        }
    }
}

#[test]
fn stories260k_goes_on_as_its_author_printed() {
    let s = Stream::cpu(2).unwrap();
    let (cfg, w) = load(&s, "stories260K", DType::F32);
    assert_eq!(cfg.params().total(), 260_032);
    let greedy = json(&folder("stories260K/greedy.json"));
    let (mut d, _) = Arena::build(&s, |arena| Decoder::layout(arena, &cfg, DType::F32, 160, 16)).unwrap();
    d.ready(&s, &cfg).unwrap();
    for case in greedy["cases"].as_array().unwrap() {
        let [prompt, want] = ["prompt_ids", "greedy_ids"].map(|key| rows(&serde_json::json!([case[key]])).remove(0));
        let wanted: Vec<f64> = serde_json::from_value(case["token_logprobs_of_whole_sequence"].clone()).unwrap();
        d.reset();
        let mut logits = d.prefill(&s, &cfg, &w, &prompt).unwrap();
        for (i, &id) in want.iter().enumerate() {
            let best = (0..cfg.vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(best as u32, id, "token {i} after {prompt:?}");
            let off = (logprob(logits, id) - wanted[prompt.len() - 1 + i]).abs();
            assert!(off < 1e-4, "token {i} after {prompt:?} off by {off}");
            logits = d.step(&s, &cfg, &w, id).unwrap();
        }
        // The same in one pass, over the whole sequence.
        let whole = vec![[prompt, want].concat()];
        let nll = step(&cfg, &w, &whole, None, How { recompute: Recompute::Block, ..How::PLAIN }).nll;
        let off = nll.iter().zip(&wanted).map(|(g, w)| (f64::from(*g) + w).abs()).fold(0.0, f64::max);
        assert!(off < 1e-4, "whole sequence off by {off}");
    }
}

#[test]
fn bf16_stays_near_f32() {
    let s = Stream::cpu(2).unwrap();
    for name in FOLDERS {
        let (cfg, w) = load(&s, name, DType::F32);
        let (_, half) = load(&s, name, DType::Bf16);
        let rows = rows(&json(&folder(name).join("golden.json"))["rows"]);
        let want = step(&cfg, &w, &rows, None, How::PLAIN);
        for recompute in [Recompute::None, Recompute::Block] {
            let got =
                step(&cfg, &half, &rows, None, How { dtype: DType::Bf16, micro_rows: 2, recompute, ..How::PLAIN });
            let off = relative(&got.nll, &want.nll);
            assert!(off < 0.02, "{name}: losses off by {off}");
            for ((tensor, got), (_, want)) in got.grads.iter().zip(&want.grads) {
                let off = relative(got, want);
                // A dozen numbers, each a sum of a thousand that nearly cancel: norms show the rounding most.
                let allowed =
                    if tensor.contains("attn.q_norm") || tensor.contains("attn.k_norm") { 0.15 } else { 0.05 };
                assert!(off < allowed, "{name}: gradient of {tensor} off by {off}");
            }
        }
    }
}
