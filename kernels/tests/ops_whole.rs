//! House rule: an op is whole. Its folder holds the page, the reference and the cases, and everyone who goes through
//! all ops knows it.

use esker_kernels::bench;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn ops() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops")
}

fn folders() -> BTreeSet<String> {
    let entries = fs::read_dir(ops()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[test]
fn every_folder_has_its_page_its_reference_and_its_cases() {
    for op in folders() {
        for file in ["mod.rs", "reference.rs", "cases.rs"] {
            let path = ops().join(&op).join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(text.starts_with("//! "), "{}: a file opens with what it is about", path.display());
        }
    }
}

#[test]
fn every_folder_is_a_module_and_every_module_a_folder() {
    let text = fs::read_to_string(ops().join("mod.rs")).unwrap();
    let modules: BTreeSet<String> =
        text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(String::from).collect();
    assert_eq!(modules, folders());
}

#[test]
fn the_table_of_the_bench_lists_every_op_once() {
    let names: Vec<String> = bench::OPS.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, folders().into_iter().collect::<Vec<_>>(), "bench::OPS, in the order of the alphabet");
}

#[test]
fn every_golden_names_its_source() {
    for op in folders() {
        let Ok(text) = fs::read_to_string(ops().join(&op).join("golden.json")) else { continue };
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let source = golden["source"].as_str().unwrap_or_else(|| panic!("{op}/golden.json: no \"source\""));
        assert!(source.chars().any(|c| c.is_ascii_digit()), "{op}/golden.json: {source:?} names no version");
    }
}
