//! Import of GGUF against numbers that follow from how `fuzz/corpus/gguf/valid-gpt2` was made: element (row, col) of
//! attn_q (Q8_0) is ((7·row + 3·col) mod 255 − 127)/64, of attn_k and attn_output (Q4_0) (n − 8)/32, of attn_v and ffn_down
//! (Q4_1) n/32 − 1/4, with n = (5·row + 3·col) mod 16; element i of ffn_gate (F16), ffn_up (BF16) and the norms (F32) is
//! ((f·i) mod 64 − 32)/64 with f = 29, 31 and 37. Rows are counted as they lie in the file.

use esker_kernels::{
    device::Stream,
    tensor::{Arena, Class, DType, Tensor},
};
use esker_model::{Family, Scaling, Weights, gguf::Gguf};
use serde_json::Value;
use std::path::PathBuf;

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf").join(name)
}

fn load(gguf: &mut Gguf, dtype: DType) -> Weights {
    let (s, config) = (Stream::cpu(1).unwrap(), gguf.card().config.clone());
    let layout = |arena: &mut Arena| Weights::layout(arena.class(Class::Weights), &config, dtype);
    let mut w = Arena::build(&s, layout).unwrap().0;
    gguf.load(&mut w).unwrap();
    w
}

#[test]
fn every_type_of_tensor_is_dequantised_and_rows_are_put_back() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut gguf = Gguf::open(&corpus("valid-gpt2")).unwrap();
        let w = load(&mut gguf, dtype);
        // Every value of the file but Q8_0's has few enough bits for bf16.
        let near = |a: f32, b: f32| (a - b).abs() <= if dtype == DType::Bf16 { b.abs() / 256.0 } else { 0.0 };
        let check = |t: &Tensor, cols: usize, want: &dyn Fn(usize, usize) -> f32| {
            for (i, &x) in t.to_f32().iter().enumerate() {
                assert!(near(x, want(i / cols, i % cols)), "{:?} [{i}]: {x}", t.shape());
            }
        };
        // Row (head, half, pair) of ours is row (head, pair, half) of the file; heads of 8.
        let file = |row: usize| row / 8 * 8 + row % 4 * 2 + row % 8 / 4;
        let q8 = |r: usize, c: usize| ((7 * r + 3 * c) % 255) as f32 / 64.0 - 127.0 / 64.0;
        let n = |r: usize, c: usize| ((5 * r + 3 * c) % 16) as f32;
        let plain = |f: usize, i: usize| ((f * i) % 64) as f32 / 64.0 - 0.5;
        let l = &w.layers[0];
        check(&w.embed, 32, &q8);
        check(&l.wq, 32, &|r, c| q8(file(r), c));
        check(&l.wk, 32, &|r, c| (n(file(r), c) - 8.0) / 32.0);
        check(&l.wv, 32, &|r, c| n(r, c) / 32.0 - 0.25);
        check(&l.wo, 32, &|r, c| (n(r, c) - 8.0) / 32.0);
        check(&l.down, 32, &|r, c| n(r, c) / 32.0 - 0.25);
        check(&l.gate, 32, &|r, c| plain(29, 32 * r + c));
        check(&l.up, 32, &|r, c| plain(31, 32 * r + c));
        check(&l.attn_norm, 32, &|_, c| plain(37, c));
        check(&w.norm, 32, &|_, c| plain(37, c));
        assert!(w.head.is_none());
    }
}

#[test]
fn keys_make_the_card() {
    let gguf = Gguf::open(&corpus("valid-gpt2")).unwrap();
    let (card, c) = (gguf.card(), &gguf.card().config);
    assert_eq!((c.family, c.vocab, c.context, c.hidden, c.layers), (Family::Llama, 6, 16, 32, 1));
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.ffn, c.tied), (4, 2, 8, 32, true));
    assert_eq!((c.norm_eps, c.rope.theta), (1e-5, 10000.0));
    assert_eq!((card.bos, &card.eos[..]), (Some(0), &[0][..]));
    let mut qwen = Gguf::open(&corpus("valid-qwen3")).unwrap();
    assert_eq!(qwen.card().config.family, Family::Qwen3);
    let w = load(&mut qwen, DType::F32);
    // Qwen 3 turns halves: its rows stay where they are.
    assert_eq!(w.layers[0].wq.f32()[32], 7.0 / 64.0 - 127.0 / 64.0);
    let mut llama = Gguf::open(&corpus("valid-llama-2")).unwrap();
    assert!(!llama.card().config.tied && load(&mut llama, DType::F32).head.is_some());
}

/// Llama 3.1's divisors, made by its rule in another language: 1, 1, 2.69 and 8 for heads of 8 and θ = 500000.
#[test]
fn a_stretched_rotation_is_known_by_its_numbers() {
    let mut gguf = Gguf::open(&corpus("valid-llama-3")).unwrap();
    let rope = gguf.card().config.rope.clone();
    let want = Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    assert_eq!((rope.theta, rope.scaling), (500_000.0, Some(want)));
    load(&mut gguf, DType::F32);
    let mut bytes = std::fs::read(corpus("valid-llama-3")).unwrap();
    let at = bytes.len() - 16;
    assert_eq!(bytes[at..at + 4], 1f32.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    for other in [0.0f32, 1.01, -1.0, 9.0, f32::NAN, f32::INFINITY] {
        bytes[at..at + 4].copy_from_slice(&other.to_le_bytes());
        let file = dir.path().join("other.gguf");
        std::fs::write(&file, &bytes).unwrap();
        let refused = Gguf::open(&file).unwrap_err().to_string();
        assert!(refused.contains("rope_freqs.weight"), "{other}: {refused}");
    }
}

#[test]
fn tables_make_a_tokenizer() {
    let read = |name: &str| {
        let gguf = Gguf::open(&corpus(name)).unwrap();
        let json: Value = serde_json::from_str(&gguf.tokenizer_json().unwrap().unwrap()).unwrap();
        let config: Value = serde_json::from_str(&gguf.tokenizer_config_json().unwrap()).unwrap();
        (json, config)
    };
    let (json, config) = read("valid-gpt2");
    assert_eq!(json["model"]["vocab"]["Ġab"], 5);
    assert_eq!(json["model"]["merges"], serde_json::json!(["a b", "Ġ ab"]));
    assert_eq!(json["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
    assert_eq!(json["added_tokens"][0]["content"], "<|end|>");
    assert!(json["post_processor"].is_null());
    assert_eq!(config["eos_token"], "<|end|>");
    let (json, config) = read("valid-llama-2");
    // Of the two tokens that merges make, "▁a" alone can be made of others.
    assert_eq!(json["model"]["merges"], serde_json::json!(["▁ a"]));
    assert_eq!(json["model"]["unk_token"], "<unk>");
    assert_eq!(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&Value::from("<s>"), &Value::from("</s>")));
    assert!(Gguf::open(&corpus("valid-qwen3")).unwrap().tokenizer_json().unwrap().is_none());
}
