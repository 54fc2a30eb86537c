//! Lists the kernel images under `prebuilt/`, so that the library embeds whatever `build-kernels` left there.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=prebuilt");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder of the package");
    let folder = Path::new(&root).join("prebuilt");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".z"))
        .collect();
    names.sort();
    let mut table = String::from("static PREBUILT: &[(&str, &[u8])] = &[\n");
    for name in names {
        let path = folder.join(&name);
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string grows");
    }
    table.push_str("];\n");
    let out = env::var("OUT_DIR").expect("cargo names the folder of outputs");
    fs::write(Path::new(&out).join("prebuilt.rs"), table).expect("the folder of outputs can be written");
}
