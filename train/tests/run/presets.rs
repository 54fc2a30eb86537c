//! Every file in configs/ parses, plans anywhere, and weighs what it should.

use esker_kernels::ops::chunk_topk::{Codec, Spec};
use esker_kernels::tensor::Class;
use esker_train::config::{self, Run};
use esker_train::outer::Layout;
use esker_train::plan::Plan;
use std::path::{Path, PathBuf};

/// File, parameters, and where the number comes from besides our own arithmetic.
const TOTALS: &[(&str, u64)] = &[
    ("quickstart", 1_869_504),
    ("peers-quickstart", 529_248),
    // llama2.c, as its checkpoints count.
    ("stories15M-cpu", 15_191_712),
    ("stories110M-cpu", 109_529_856),
    ("gpt2-124M-cpu", 123_551_232),
    ("sparseloco-512M-cpu", 512_398_848),
    ("sparseloco-1B-cpu", 1_204_881_408),
    // The model cards' safetensors totals.
    ("llama-3.2-1B-cpu", 1_235_814_400),
    ("llama-3.1-8B-cpu", 8_030_261_248),
    // The Covenant-72B report.
    ("covenant-72B-cpu", 72_747_327_488),
];

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn load(name: &str) -> Run {
    config::load(&configs().join(format!("{name}.toml")), &[]).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_file_is_in_the_table_and_plans() {
    let files = std::fs::read_dir(configs()).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<String> = files.map(|f| f.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    let mut known: Vec<&str> = TOTALS.iter().map(|&(name, _)| name).collect();
    names.sort();
    known.sort();
    assert_eq!(names, known);
    for &(name, params) in TOTALS {
        let run = load(name);
        // A plan takes no memory: the largest of these would not fit.
        let plan = Plan::with_available(&run, Some(24 << 30));
        assert_eq!(plan.params, params, "{name}");
        assert_eq!(plan.groups.iter().map(|g| g.params).sum::<u64>(), params, "{name}");
        assert_eq!(plan.bytes.values().sum::<usize>() as u64, plan.arena_bytes, "{name}");
        assert_eq!(plan.arena_bytes + plan.stream_bytes + plan.host_bytes, plan.total_bytes, "{name}");
        assert!(name.starts_with(&run.name), "{name} is named for its run, {}", run.name);
        assert_eq!(plan.fits, Some(plan.total_bytes <= 24 << 30), "{name}");
        assert_eq!(plan.fits == Some(false), !plan.advice.is_empty(), "{name}: advice where it does not fit");
        // Two moments of four bytes each, rounded up to whole lines of 64 bytes a tensor.
        let moments = plan.bytes[&Class::Optimiser] as u64;
        let tensors = (run.model.layers * 9 + 3) as u64;
        assert!((8 * params..=8 * params + 2 * 64 * tensors).contains(&moments), "{name}: {moments}");
        let text = plan.to_string();
        assert!(text.contains("parameters") && text.contains("memory"), "{text}");
        serde_json::to_string(&plan).unwrap();
    }
}

#[test]
fn a_plan_says_what_to_change() {
    let run = load("gpt2-124M-cpu").varied(|f| f.batch.micro_rows = 64).unwrap();
    let whole = Plan::with_available(&run, Some(4 << 30));
    assert_eq!(whole.fits, Some(false));
    assert!(whole.advice[0].starts_with("set batch.micro_rows = 1: "), "{:?}", whole.advice);
    let none = Plan::with_available(&run, Some(1 << 30));
    assert!(none.advice.last().unwrap().contains("smaller model"), "{:?}", none.advice);
    let unknown = Plan::with_available(&run, None);
    assert!(unknown.fits.is_none() && unknown.advice.is_empty());
}

#[test]
fn an_effective_file_gives_the_same_run() {
    for &(name, _) in TOTALS {
        let run = load(name);
        let again = config::parse(&run.to_toml(), name, &[]).unwrap();
        assert_eq!(again, run);
        assert_eq!(again.hash(), run.hash());
    }
}

#[test]
fn updates_are_as_short_as_published() {
    // 64 of 4096 values: 14 bits each, or 10, and what stands before them. Small models have more of that.
    for name in ["stories110M-cpu", "sparseloco-512M-cpu", "llama-3.1-8B-cpu", "covenant-72B-cpu"] {
        let run = load(name);
        let times = |codec| Layout::new(&run.model, Spec { k: 64, codec }).compression();
        assert!(times(Codec::Reference) >= 146.0, "{name}: {}", times(Codec::Reference));
        assert!(times(Codec::Compact) >= 200.0, "{name}: {}", times(Codec::Compact));
    }
}
