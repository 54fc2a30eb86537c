//! The comparison with another implementation: it agrees with the golden folder, and would see if it did not.

use esker_kernels::device::Stream;
use esker_train::parity;
use std::path::{Path, PathBuf};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama-gqa-untied");

fn copy(dir: &Path) -> PathBuf {
    for entry in std::fs::read_dir(GOLDEN).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    dir.into()
}

/// Reads a file of a copy as JSON, changes it, writes it back.
fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
}

#[test]
fn the_golden_folder_agrees_on_any_number_of_threads() {
    let one = parity::check(&Stream::cpu(1).unwrap(), Path::new(GOLDEN)).unwrap();
    assert!(one.ok, "{one}");
    assert_eq!((one.steps, one.gradients.len(), one.weights.len()), (20, 21, 21));
    let two = parity::check(&Stream::cpu(2).unwrap(), Path::new(GOLDEN)).unwrap();
    assert_eq!(one.to_string(), two.to_string());
}

#[test]
fn each_kind_of_difference_is_seen() {
    let s = Stream::cpu(2).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = copy(dir.path());
    let bump = |value: &mut serde_json::Value, by: f64| *value = (value.as_f64().unwrap() + by).into();
    edit(&folder, "expected.json", |v| bump(&mut v["logprob"][1][7], 2e-4));
    let got = parity::check(&s, &folder).unwrap();
    assert!(!got.ok && !got.logprob.ok && got.gradient.ok && got.logprob.at == "row 1, place 7", "{got}");

    copy(dir.path());
    edit(&folder, "train.json", |v| bump(&mut v["steps"][13]["loss"], 1e-3));
    let got = parity::check(&s, &folder).unwrap();
    assert!(!got.ok && !got.loss.ok && got.loss.at == "step 13" && got.weight.ok, "{got}");

    copy(dir.path());
    edit(&folder, "train.json", |v| v["optimizer"]["weight_decay"] = 0.0.into());
    let got = parity::check(&s, &folder).unwrap();
    assert!(!got.ok && got.logprob.ok && got.gradient.ok && !got.weight.ok, "{got}");

    copy(dir.path());
    std::fs::copy(folder.join("trained.safetensors"), folder.join("grads.safetensors")).unwrap();
    let got = parity::check(&s, &folder).unwrap();
    assert!(!got.gradient.ok && got.logprob.ok, "{got}");
}

#[test]
fn settings_may_be_spelt_as_pytorch_does() {
    let s = Stream::cpu(2).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = copy(dir.path());
    edit(&folder, "train.json", |v| {
        let o = v["optimizer"].as_object_mut().unwrap();
        let (b1, b2) = (o.remove("beta1").unwrap(), o.remove("beta2").unwrap());
        o.insert("betas".into(), serde_json::json!([b1, b2]));
        let clip = o.remove("clip_global_norm").unwrap();
        o.insert("max_grad_norm".into(), clip);
        let lr = o["lr"].clone();
        o.insert("schedule".into(), "as written".into());
        v["steps"].as_array_mut().unwrap().iter_mut().for_each(|step| step["lr"] = lr.clone());
    });
    assert!(parity::check(&s, &folder).unwrap().ok);
}
