//! Hugging Face folders: what we write others read, what others write we read, and nothing hostile gets further than an
//! error.

use crate::*;
use esker_kernels::{device::Stream, tensor::DType};
use esker_model::{
    Config, Family, Scaling, Weights,
    hf::{self, Card, HfError},
    init,
};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

fn drawn(cfg: &Config) -> Weights {
    let s = Stream::cpu(1).unwrap();
    let mut w = weights(&s, cfg, DType::F32);
    init::draw(&s, cfg, &mut w, 7).unwrap();
    w
}

fn empty(cfg: &Config) -> Weights {
    weights(&Stream::cpu(1).unwrap(), cfg, DType::F32)
}

fn saved(cfg: &Config, dtype: DType) -> (TempDir, Weights) {
    let (dir, w) = (TempDir::new().unwrap(), drawn(cfg));
    hf::save(dir.path(), &Card { config: cfg.clone(), bos: Some(1), eos: vec![2, 3] }, &w, dtype).unwrap();
    (dir, w)
}

fn floats(w: &Weights) -> Vec<f32> {
    w.each().flat_map(|(_, t)| t.to_f32()).collect()
}

#[test]
fn what_is_saved_comes_back() {
    for (family, tied, dtype) in
        [(Family::Llama, false, DType::F32), (Family::Qwen3, true, DType::F32), (Family::Llama, true, DType::Bf16)]
    {
        let mut cfg = odd(family, tied);
        cfg.rope.scaling =
            Some(Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 32 });
        let (dir, w) = saved(&cfg, dtype);
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors"]);

        let card = hf::read_card(dir.path()).unwrap();
        assert_eq!(card, Card { config: cfg.clone(), bos: Some(1), eos: vec![2, 3] });
        let mut back = empty(&cfg);
        hf::load(dir.path(), &mut back).unwrap();
        let rounded = |x: f32| if dtype == DType::Bf16 { bf16::from_f32(x).to_f32() } else { x };
        assert_eq!(floats(&back), floats(&w).into_iter().map(rounded).collect::<Vec<_>>());

        // The file is the one that the format's crate makes of the whole model in memory, and that crate reads it.
        let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
        assert!(bytes == as_the_crate_writes(&w, dtype), "{dtype}");
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), w.each().count());
        for (name, t) in w.each() {
            let theirs = theirs.tensor(&name.to_string()).unwrap();
            assert_eq!(theirs.shape(), t.shape());
            assert_eq!(theirs.dtype(), if dtype == DType::Bf16 { Dtype::BF16 } else { Dtype::F32 });
            assert_eq!(theirs.data().len(), t.len() * dtype.bytes());
            assert_eq!(bytes.len() % 2 + theirs.data().as_ptr().align_offset(dtype.bytes()), 0);
        }
    }
}

/// What `safetensors::serialize` makes of a model.
fn as_the_crate_writes(w: &Weights, dtype: DType) -> Vec<u8> {
    let (theirs, bytes): (_, fn(&f32) -> Vec<u8>) = match dtype {
        DType::Bf16 => (Dtype::BF16, |&x| bf16::from_f32(x).to_le_bytes().into()),
        _ => (Dtype::F32, |x| x.to_le_bytes().into()),
    };
    let all: Vec<_> = w
        .each()
        .map(|(name, t)| (name.to_string(), t.shape(), t.f32().iter().flat_map(bytes).collect::<Vec<_>>()))
        .collect();
    let views = all.iter().map(|(name, shape, data)| (name, TensorView::new(theirs, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, Some([("format".into(), "pt".into())].into())).unwrap()
}

#[test]
fn any_tensors_go_into_a_file_and_come_back() {
    let s = Stream::cpu(1).unwrap();
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("state.safetensors");
    let tensor = |dtype| esker_kernels::tensor::Tensor::alone(&s, dtype, [3, 2]).unwrap();
    let (mut a, mut b) = (tensor(DType::F32), tensor(DType::U32));
    a.set(&[1.5, -0.0, f32::MIN_POSITIVE, f32::INFINITY, 5.0, 6.0]);
    s.upload_u32(&[1, 2, 3, 4, 5, u32::MAX], &mut b).unwrap();
    let meta = [("step", "12"), ("quoted \"key\"", "line\nbreak")];
    let size = hf::save_file(&file, &[("a.m".into(), &a), ("b".into(), &b)], None, &meta).unwrap();
    assert_eq!(size, fs::metadata(&file).unwrap().len());
    let (mut a2, mut b2) = (tensor(DType::F32), tensor(DType::U32));
    let got = hf::load_tensors(&file, &mut [("b".into(), &mut b2), ("a.m".into(), &mut a2)]).unwrap();
    assert_eq!((a2.bytes(), b2.bytes()), (a.bytes(), b.bytes()));
    let mut want = meta.map(|(k, v)| (k.to_string(), v.to_string()));
    want.sort();
    assert_eq!(got, want);
    let lacks = hf::load_tensors(&file, &mut [("b".into(), &mut b2)]).unwrap_err();
    assert!(matches!(lacks, HfError::Unknown { .. }), "{lacks}");
    let as_float = hf::load_tensors(&file, &mut [("b".into(), &mut a2), ("a.m".into(), &mut b2)]).unwrap_err();
    assert!(matches!(as_float, HfError::Dtype { .. }), "{as_float}");
}

#[test]
fn tensors_of_every_kind_lie_on_multiples_of_their_size() {
    let s = Stream::cpu(1).unwrap();
    let (dir, one) = (TempDir::new().unwrap(), |dtype, n| {
        let mut t = esker_kernels::tensor::Tensor::alone(&s, dtype, [n]).unwrap();
        t.bytes_mut().iter_mut().zip(1..).for_each(|(b, i)| *b = i);
        t
    });
    // The odd one first, so that in this order the next two would lie askew.
    let all =
        [("a", one(DType::Bf16, 3)), ("c", one(DType::F32, 5)), ("b", one(DType::F32, 0)), ("d", one(DType::U32, 2))];
    let named: Vec<_> = all.iter().map(|(name, t)| (name.to_string(), t)).collect();
    let meta = ["z", "y", "x", "w", "v", "u"].map(|key| (key, "text"));
    let files = ["1", "2"].map(|name| {
        let file = dir.path().join(name);
        hf::save_file(&file, &named, None, &meta).unwrap();
        fs::read(file).unwrap()
    });
    assert_eq!(files[0], files[1], "metadata in an order of chance");
    let (n, header) = SafeTensors::read_metadata(&files[0]).unwrap();
    assert_eq!((n % 8, header.offset_keys()), (0, ["b", "c", "d", "a"].map(String::from).into()));
    assert_eq!(header.metadata().as_ref().unwrap().len(), meta.len());
    let theirs = SafeTensors::deserialize(&files[0]).unwrap();
    for (name, t) in &all {
        assert_eq!(theirs.tensor(name).unwrap().data(), t.bytes(), "{name}");
        assert_eq!(header.info(name).unwrap().data_offsets.0 % t.dtype().bytes(), 0, "{name}");
    }
}

#[test]
#[should_panic(expected = "safetensors: a name twice")]
fn one_name_for_two_tensors_is_our_bug() {
    let (s, dir) = (Stream::cpu(1).unwrap(), TempDir::new().unwrap());
    let t = esker_kernels::tensor::Tensor::alone(&s, DType::F32, [1]).unwrap();
    let _ = hf::save_file(&dir.path().join("file"), &[("a".into(), &t), ("a".into(), &t)], None, &[]);
}

/// Name, dtype, shape and bytes of a tensor.
type Theirs = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes tensors with the format's crate alone, as somebody else would.
fn write_theirs<'a>(file: &Path, tensors: impl IntoIterator<Item = (&'a str, Dtype, Vec<usize>, &'a [u8])>) {
    let views =
        tensors.into_iter().map(|(name, dtype, shape, data)| (name, TensorView::new(dtype, shape, data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A model's tensors as f16: names, shapes, bytes.
fn halves(w: &Weights) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = |x: &[f32]| x.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    w.each().map(|(name, t)| (name.to_string(), t.shape().to_vec(), bytes(t.f32()))).collect()
}

#[test]
fn shards_and_half_floats_are_read() {
    let cfg = odd(Family::Llama, false);
    let (dir, w) = saved(&cfg, DType::F32);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let mut back = empty(&cfg);
    let none = hf::load(dir.path(), &mut back).unwrap_err();
    assert!(matches!(none, HfError::NoWeights { .. }), "{none}");

    let all = halves(&w);
    let table = [0u8; 4 * 7];
    let view =
        |(name, shape, data): &'static (String, Vec<usize>, Vec<u8>)| (&name[..], Dtype::F16, shape.clone(), &data[..]);
    let all: &'static [_] = all.leak();
    let (one, two) = all.split_at(9);
    // Old files carry a table that follows from the config.
    let extra = ("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, vec![7], &table[..]);
    write_theirs(&dir.path().join("model-1.safetensors"), one.iter().map(view).chain([extra.clone()]));
    write_theirs(&dir.path().join("model-2.safetensors"), two.iter().map(view));
    let mut map = serde_json::Map::new();
    for (file, tensors) in [("model-1.safetensors", one), ("model-2.safetensors", two)] {
        map.extend(tensors.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    map.insert(extra.0.into(), json!("model-1.safetensors"));
    let index = |map: &serde_json::Map<String, Value>| {
        let text = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    hf::load(dir.path(), &mut back).unwrap();
    assert_eq!(floats(&back), floats(&w).into_iter().map(|x| f16::from_f32(x).to_f32()).collect::<Vec<_>>());

    let mut wrong = |change: &dyn Fn(&mut serde_json::Map<String, Value>), says: &str| {
        let mut map = map.clone();
        change(&mut map);
        index(&map);
        let error = hf::load(dir.path(), &mut back).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    wrong(&|m| drop(m.insert("lm_head.weight".into(), json!("../model-2.safetensors"))), "not the name of a file");
    wrong(&|m| drop(m.insert("lm_head.weight".into(), json!("model-1.safetensors"))), "missing: lm_head.weight");
    wrong(&|m| drop(m.insert("another".into(), json!("model-3.safetensors"))), "cannot read");
    wrong(&|m| drop(m.insert("lm_head.weight".into(), json!(3))), "not a file name");
    wrong(&|m| drop(m.remove("lm_head.weight")), "without a place in the network: lm_head.weight");
    fs::write(dir.path().join("model.safetensors.index.json"), "[]").unwrap();
    assert!(hf::load(dir.path(), &mut back).unwrap_err().to_string().contains("expected a JSON object"));
}

#[test]
fn a_tied_model_may_carry_its_head_but_no_other() {
    let cfg = odd(Family::Llama, true);
    let (dir, w) = saved(&cfg, DType::F32);
    let file = dir.path().join("model.safetensors");
    let all: &'static [_] = halves(&w).leak();
    let view =
        |(name, shape, data): &'static (String, Vec<usize>, Vec<u8>)| (&name[..], Dtype::F16, shape.clone(), &data[..]);
    let mut back = empty(&cfg);
    let (_, shape, embed) = &all[0];
    write_theirs(&file, all.iter().map(view).chain([("lm_head.weight", Dtype::F16, shape.clone(), &embed[..])]));
    hf::load(dir.path(), &mut back).unwrap();
    let mut other = embed.clone();
    *other.last_mut().unwrap() ^= 1;
    write_theirs(&file, all.iter().map(view).chain([("lm_head.weight", Dtype::F16, shape.clone(), &other[..])]));
    let error = hf::load(dir.path(), &mut back).unwrap_err();
    assert!(matches!(error, HfError::UntiedHead { .. }), "{error}");
}

#[test]
fn what_does_not_fit_is_named() {
    let cfg = odd(Family::Qwen3, true);
    let (dir, w) = saved(&cfg, DType::F32);
    let file = dir.path().join("model.safetensors");
    let mut back = empty(&cfg);
    let mut check = |change: &dyn Fn(&mut Vec<Theirs>), says: &[&str]| {
        let mut all: Vec<_> = halves(&w).into_iter().map(|(n, s, d)| (n, Dtype::F16, s, d)).collect();
        change(&mut all);
        write_theirs(&file, all.iter().map(|(n, t, s, d)| (&n[..], *t, s.clone(), &d[..])));
        let error = hf::load(dir.path(), &mut back).unwrap_err().to_string();
        says.iter().for_each(|says| assert!(error.contains(says), "{error}"));
    };
    check(&|all| drop(all.remove(3)), &["model.safetensors", "1 tensor missing", "layers.0.self_attn.k_proj.weight"]);
    check(&|all| drop(all.drain(1..9)), &["8 tensors missing", ", .."]);
    check(
        &|all| all.push(("model.layers.0.self_attn.q_proj.bias".into(), Dtype::F16, vec![1], vec![0, 0])),
        &["1 tensor without a place", "q_proj.bias"],
    );
    check(&|all| all[2].2.reverse(), &["q_proj.weight has shape [33, 56]", "makes it [56, 33]"]);
    check(&|all| (all[2].1, all[2].2) = (Dtype::U8, vec![56, 66]), &["q_proj.weight has shape"]);
    check(&|all| all[2].1 = Dtype::I16, &["q_proj.weight holds I16", "F32, BF16 or F16", "convert"]);
}

/// A file as its bytes: the header's own length unless `n` says another.
fn raw(n: Option<u64>, header: &str, data: usize) -> Vec<u8> {
    let mut bytes = n.unwrap_or(header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn hostile_files_are_refused_with_a_reason() {
    let cfg = odd(Family::Llama, true);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("hostile.safetensors");
    let mut w = empty(&cfg);
    let t =
        |shape: &str, from: u64, to: u64| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#);
    let one = |name: &str, t: String| format!("{{\"{name}\":{t}}}");
    let two = |a: String, b: String| format!("{{\"a\":{a},\"b\":{b}}}");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "too short"),
        (vec![1, 2, 3], "too short"),
        (raw(Some(u64::MAX), "{}", 0), "the header claims 18446744073709551615 bytes"),
        (raw(Some(3), "{}", 0), "the header claims 3 bytes"),
        (raw(Some(1 << 24), "{}", 0), "cut short"),
        (raw(None, "", 0), "not valid"),
        (raw(None, "[]", 0), "not valid"),
        (raw(None, "{\"a\":1}", 0), "not valid"),
        (raw(None, &"[".repeat(100_000), 0), "not valid"),
        (raw(None, "{\"__metadata__\":{\"a\":1}}", 0), "not valid"),
        (raw(None, &one("a", t("[2]", 0, 8)), 7), "the tensors take 8 bytes, the file has 7"),
        (raw(None, &one("a", t("[2]", 0, 8)), 9), "the tensors take 8 bytes, the file has 9"),
        (raw(None, &one("a", t("[2]", 8, 16)), 16), "expected to begin at 0"),
        (raw(None, &one("a", t("[2]", 8, 0)), 8), "expected to begin at 0"),
        (raw(None, &one("a", t("[3]", 0, 8)), 8), "does not take 8 bytes"),
        (raw(None, &one("a", t("[-3]", 0, 8)), 8), "not valid"),
        (raw(None, &one("a", t("[4294967296,4294967296]", 0, 0)), 0), "does not take 0 bytes"),
        (raw(None, &one("a", t("[2]", 0, 8).replace("F32", "Q4")), 8), "tensor \"a\": unknown dtype \"Q4\""),
        // Three numbers of half a byte, and so many that their bits are too many to count.
        (raw(None, &one("a", t("[3]", 0, 1).replace("F32", "F4")), 1), "F4 of [3] does not take 1 bytes"),
        (raw(None, &one("a", t("[3]", 0, 2).replace("F32", "F4")), 2), "F4 of [3] does not take 2 bytes"),
        (raw(None, &one("a", t("[1152921504606846976]", 0, 0)), 0), "does not take 0 bytes"),
        (raw(None, "{\"__metadata__\":{},\"__metadata__\":{}}", 0), "duplicate field `__metadata__`"),
        (raw(None, &two(t("[2]", 0, 8), t("[2]", 4, 12)), 12), "expected to begin at 8"),
        (raw(None, &two(t("[2]", 0, 8), t("[2]", 16, 24)), 24), "expected to begin at 8"),
        (raw(None, &format!("{{\"a\":{},\"a\":{}}}", t("[2]", 0, 8), t("[2]", 8, 16)), 16), "tensor a is there twice"),
        (raw(None, "{}", 0), "tensors missing"),
    ];
    for (bytes, says) in cases {
        fs::write(&file, &bytes).unwrap();
        let error = hf::load_file(&file, &mut w).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("hostile.safetensors"), "{error}\n expected: {says}");
    }
    let error = hf::load_file(&dir.path().join("none"), &mut w).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
}

/// The config of a golden folder with keys changed.
fn card_with(folder: &str, change: &dyn Fn(&mut Value)) -> Result<Card, HfError> {
    let mut config = json(&crate::folder(folder).join("config.json"));
    change(&mut config);
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    hf::read_card(dir.path())
}

#[test]
fn both_spellings_of_a_config_are_one() {
    let folder = "llama-mqa-scaled-tied";
    let new = card_with(folder, &|_| ()).unwrap();
    assert!(matches!(new.config.rope.scaling, Some(Scaling::Llama3 { original_context: 16, .. })));
    assert_eq!((new.bos, new.eos.as_slice()), (Some(1), [2].as_slice()));
    let old = |c: &mut Value| {
        let mut rope = c.as_object_mut().unwrap().remove("rope_parameters").unwrap();
        c["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
        c["rope_scaling"] = rope;
    };
    assert_eq!(card_with(folder, &old).unwrap(), new);
    let linear = |c: &mut Value| {
        old(c);
        c["rope_scaling"] = json!({"type": "linear", "factor": 2.0});
    };
    assert_eq!(card_with(folder, &linear).unwrap().config.rope.scaling, Some(Scaling::Linear { factor: 2.0 }));
    let bare = |c: &mut Value| {
        old(c);
        for key in ["rope_scaling", "rope_theta", "head_dim", "num_key_value_heads", "tie_word_embeddings"] {
            c.as_object_mut().unwrap().remove(key);
        }
    };
    let config = card_with(folder, &bare).unwrap().config;
    assert_eq!((config.rope.theta, config.head_dim, config.kv_heads, config.tied), (10000.0, 8, 3, false));
    let both = |c: &mut Value| c["rope_theta"] = json!(1.0);
    assert!(card_with(folder, &both).unwrap_err().to_string().contains("rope_theta = 1.0: expected the same as"));
    // Qwen3 configs name a window that they do not use.
    let window = |c: &mut Value| c["sliding_window"] = json!(4096);
    assert!(card_with("qwen3-tied", &window).is_ok());
    // Llama 3 has several tokens that end a text.
    let ends = |c: &mut Value| c["eos_token_id"] = json!([5, 6]);
    assert_eq!(card_with(folder, &ends).unwrap().eos, [5, 6]);
}

#[test]
fn configs_that_cannot_be_are_refused_by_key() {
    for (folder, key, value, says) in [
        ("llama-gqa-untied", "model_type", json!("mamba"), "expected \"llama\" or \"qwen3\""),
        ("llama-gqa-untied", "model_type", Value::Null, "expected \"llama\" or \"qwen3\""),
        (
            "llama-gqa-untied",
            "hidden_size",
            json!(1_000_000_000_000_000_000u64),
            "hidden = 1000000000000000000: expected",
        ),
        ("llama-gqa-untied", "hidden_size", json!(1e18), "expected a whole number"),
        ("llama-gqa-untied", "hidden_size", json!("32"), "hidden_size = \"32\": expected a whole number"),
        ("llama-gqa-untied", "num_hidden_layers", json!(-1), "expected a whole number"),
        ("llama-gqa-untied", "num_attention_heads", json!(0), "heads = 0"),
        ("llama-gqa-untied", "num_key_value_heads", json!(3), "a divisor of heads"),
        ("llama-gqa-untied", "vocab_size", Value::Null, "vocab_size = null: expected a whole number"),
        ("llama-gqa-untied", "attention_bias", json!(true), "biases in attention"),
        ("llama-gqa-untied", "mlp_bias", json!(true), "biases in the MLP"),
        ("llama-gqa-untied", "mlp_bias", json!(1), "expected true or false"),
        ("llama-gqa-untied", "hidden_act", json!("gelu"), "silu"),
        ("llama-gqa-untied", "sliding_window", json!(4096), "sliding windows"),
        ("llama-gqa-untied", "quantization_config", json!({"bits": 4}), "quantised"),
        ("llama-gqa-untied", "rope_parameters", json!({"rope_type": "yarn", "factor": 4.0}), "\"default\", \"linear\""),
        ("llama-gqa-untied", "rope_parameters", json!({"rope_type": "linear"}), "factor = nothing: expected a number"),
        ("llama-gqa-untied", "rope_parameters", json!([1]), "expected an object"),
        ("llama-gqa-untied", "partial_rotary_factor", json!(0.5), "a part of each head"),
        ("llama-gqa-untied", "eos_token_id", json!(-2), "a token id"),
        ("llama-gqa-untied", "rms_norm_eps", json!("x".repeat(1000)), "xx.."),
        ("qwen3-tied", "use_sliding_window", json!(true), "sliding windows"),
        ("qwen3-tied", "layer_types", json!(["full_attention", "sliding_attention"]), "full_attention"),
    ] {
        let error = card_with(folder, &|c| c[key] = value.clone()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("config.json"), "{error}\n expected: {says}");
        assert!(error.len() < 400, "{error}");
    }
}
