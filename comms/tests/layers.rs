//! Who may know whom inside the crate, held against its source: what is agreed on and said, the machines and the state know no
//! socket, clock, file or thread; the network and the blobs know nothing of rounds; quinn is the network's alone.

use std::path::{Path, PathBuf};

const WORLD: [&str; 9] =
    ["tokio::", "quinn", "std::net", "std::time", "std::fs", "std::thread", "crate::net", "crate::blob", "crate::node"];
const ABOVE_BLOBS: [&str; 5] = ["crate::round", "crate::state", "crate::node", "crate::sim", "RunSpec"];
const ABOVE_NET: [&str; 1] = ["crate::blob"];

/// Folders and files of `src` by their beginning, and what none of them may name.
const PICTURE: &[(&[&str], &[&str])] = &[
    (&["round", "wire", "spec", "state", "hash"], &WORLD),
    (&["round", "wire", "spec", "state", "hash", "key", "net", "blob", "node"], &["crate::sim"]),
    (&["net", "blob"], &ABOVE_BLOBS),
    (&["net"], &ABOVE_NET),
    (&["blob", "node", "sim", "key", "hash"], &["quinn"]),
];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, into),
            false => into.push(path),
        }
    }
}

#[test]
fn nothing_points_up() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut seen) = (Vec::new(), 0);
    sources(&src, &mut files);
    for path in files {
        let name = path.strip_prefix(&src).unwrap().with_extension("");
        let first = name.iter().next().unwrap().to_str().unwrap();
        if name.ends_with("tests") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = product.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (n, line) in code {
            for (_, never) in PICTURE.iter().filter(|(places, _)| places.contains(&first)) {
                let named = never.iter().find(|word| line.contains(**word));
                assert!(named.is_none(), "{}:{}: {first} may not name {named:?}", path.display(), n + 1);
            }
        }
        seen += 1;
    }
    assert!(seen > 60, "{seen} files");
}
