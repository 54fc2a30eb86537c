//! Who may know whom: every manifest against the picture in ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::path::Path;

/// A crate and the crates of this workspace that it may use.
const PICTURE: &[(&str, &[&str])] = &[
    ("ptx-sim", &[]),
    ("kernels", &["esker-ptx-sim"]),
    ("comms", &[]),
    ("data", &[]),
    ("model", &["esker-kernels"]),
    ("eval/chance", &["esker-data"]),
    ("eval", &["esker-data", "esker-eval-chance", "esker-kernels", "esker-model"]),
    ("train/elements", &[]),
    ("train", &["esker-comms", "esker-data", "esker-eval", "esker-kernels", "esker-model", "esker-train-elements"]),
];

fn manifest(path: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).join("Cargo.toml");
    toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

#[test]
fn nothing_points_up() {
    let members = manifest("")["workspace"]["members"].as_array().unwrap().clone();
    let members: BTreeSet<&str> = members.iter().map(|m| m.as_str().unwrap()).collect();
    let drawn: BTreeSet<&str> = PICTURE.iter().map(|&(name, _)| name).collect();
    assert_eq!(members, drawn, "a crate is missing from the picture");
    for &(name, may) in PICTURE {
        let manifest = manifest(name);
        assert_eq!(manifest["package"]["name"].as_str(), Some(format!("esker-{}", name.replace('/', "-")).as_str()));
        assert!(!manifest.contains_key("build-dependencies"), "{name} has build dependencies");
        assert!(!manifest.contains_key("target"), "{name} has dependencies by target, which this test does not read");
        for table in ["dependencies", "dev-dependencies"] {
            let keys = manifest.get(table).and_then(|t| t.as_table()).into_iter().flat_map(|t| t.keys());
            for used in keys.filter(|key| key.starts_with("esker")) {
                assert!(may.contains(&used.as_str()), "{name} may not use {used} ({table})");
            }
        }
    }
}

/// The libraries that would let a crate say what went wrong without a type stay in the binary.
#[test]
fn anyhow_stays_in_the_binary() {
    for (name, _) in PICTURE.iter().filter(|(name, _)| *name != "train") {
        let manifest = manifest(name);
        let used = manifest.get("dependencies").and_then(|t| t.as_table()).is_some_and(|t| t.contains_key("anyhow"));
        assert!(!used, "{name} uses anyhow");
    }
}
