//! Makes every kernel image anew, or shows what one `.cu` compiles to.
//!
//! ```text
//! build-kernels                 compiles what changed in cuda/ for every architecture into prebuilt/ and kernels.lock
//! build-kernels --check         compiles everything, in memory, and compares: what CI runs
//! build-kernels --one FILE      registers, spills, shared memory and tensor instructions of one file, then whether its
//!                               kernels still agree with the reference, by the simulator
//! ```
//!
//! A spill, a stack or one of ptxas's warnings of serialised wgmma fails it, and so does a case that differs. Needs NVRTC; see `gpu/nvrtc.rs` for where it
//! is looked for. The same NVRTC gives the same bytes.

use esker_kernels::{
    bench::OPS,
    device::Stream,
    gpu::{
        images::{self, ARCHS, MODULES, Module, PTX_ARCH},
        nvrtc::{Compiled, Compiler},
    },
};
use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
    sync::atomic::{AtomicUsize, Ordering},
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let Some(compiler) = Compiler::find() else {
        eprintln!(
            "no NVRTC: pip install --no-deps nvidia-cuda-nvrtc==13.0.88, then name its folder (…/nvidia/cu13/lib) in ESKER_NVRTC"
        );
        return ExitCode::FAILURE;
    };
    let done = match args[..] {
        [] => all(&compiler, true).and_then(|made| made.write()),
        ["--check"] => all(&compiler, false).and_then(|made| made.compare()),
        ["--one", file] => one(&compiler, file),
        _ => Err("usage: build-kernels [--check | --one FILE]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the package.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a module as its file is now, which need not be what this program embeds.
fn text(m: &Module) -> Result<String, String> {
    let read = |file: &str| {
        let path = root().join("cuda").join(file);
        fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
    };
    Ok(images::whole_text(&read("prelude.cuh")?, m.file, &read(m.file)?))
}

/// Everything that is written.
struct Made {
    lock: String,
    /// Images, by file name.
    files: BTreeMap<String, Vec<u8>>,
    /// Planted bugs, by file name.
    planted: BTreeMap<String, Vec<u8>>,
}

/// Compiles every module; with `keep`, only those whose source is not the one that the lock names.
fn all(compiler: &Compiler, keep: bool) -> Result<Made, String> {
    let version = version(&compiler.compile("version", "", PTX_ARCH, &[])?.ptx).to_owned();
    let mut kept = BTreeMap::new();
    if keep {
        for m in MODULES {
            kept.extend(unchanged(m, &version)?.map(|made| (m.name, made)));
        }
    }
    let changed = MODULES.iter().filter(|m| !kept.contains_key(m.name));
    let jobs: Vec<(&Module, &str)> = changed.flat_map(|m| ARCHS.map(|arch| (m, arch))).collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((m, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let made = compile(compiler, m, arch);
                    results.lock().expect("no job panics").insert((m.name, *arch), made);
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no job panics");
    let faults: Vec<&str> = results.values().filter_map(|made| made.as_ref().err().map(String::as_str)).collect();
    if !faults.is_empty() {
        return Err(faults.join("\n"));
    }
    let (mut lock, mut files) = (format!("{HEAD}nvrtc {version}\n"), BTreeMap::new());
    for m in MODULES {
        if let Some((lines, images)) = kept.remove(m.name) {
            lock.push_str(&lines);
            files.extend(images);
            continue;
        }
        writeln!(lock, "\nmodule {} {}", m.name, images::hash(&text(m)?, &m.defines())).expect("a string grows");
        for arch in ARCHS {
            let c = results.remove(&(m.name, arch)).expect("every job ran")?;
            writeln!(lock, " {arch} {} {} bytes", images::short_hash(&c.cubin), c.cubin.len()).expect("a string grows");
            for e in &c.entries {
                writeln!(
                    lock,
                    "  {} registers {} stack {} spills {} shared {} tensor {}",
                    e.name, e.registers, e.stack, e.spills, e.shared, e.tensor
                )
                .expect("a string grows");
            }
            if arch == PTX_ARCH {
                files.insert(format!("{}.ptx.z", m.name), images::pack(c.ptx.as_bytes()));
            }
            files.insert(format!("{}.{arch}.z", m.name), images::pack(&c.cubin));
        }
    }
    let planted = mutants(compiler)?;
    Ok(Made { lock, files, planted })
}

/// The lock's lines and the images of a module that is as it was when `version` compiled it, if they are all there.
fn unchanged(m: &Module, version: &str) -> Result<Option<Kept>, String> {
    let lock = fs::read_to_string(root().join("kernels.lock")).unwrap_or_default();
    let head = format!("\nmodule {} {}\n", m.name, images::hash(&text(m)?, &m.defines()));
    let Some(start) = lock.find(&head).filter(|_| lock.contains(&format!("\nnvrtc {version}\n"))) else {
        return Ok(None);
    };
    let end = lock[start + 1..].find("\nmodule ").map_or(lock.len(), |at| start + 1 + at);
    let mut files = BTreeMap::new();
    for kind in ARCHS.iter().copied().chain(["ptx"]) {
        let name = format!("{}.{kind}.z", m.name);
        let Ok(bytes) = fs::read(root().join("prebuilt").join(&name)) else { return Ok(None) };
        files.insert(name, bytes);
    }
    Ok(Some((lock[start..end].to_owned(), files)))
}

/// Lines of the lock, and images by file name.
type Kept = (String, BTreeMap<String, Vec<u8>>);

/// The PTX of every planted bug, by file name.
fn mutants(compiler: &Compiler) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let list = root().join(MUTANTS).join("list");
    let list = fs::read_to_string(&list).map_err(|e| format!("{}: {e}", list.display()))?;
    let mut files = BTreeMap::new();
    for mutant in images::mutants(&list) {
        let text = text(mutant.module)?;
        if text.matches(&mutant.old).count() != 1 {
            return Err(format!("mutant {}: what it changes is not there, or not once", mutant.name));
        }
        let text = text.replacen(&mutant.old, &mutant.new, 1);
        let c = compiler.compile(mutant.module.file, &text, PTX_ARCH, &mutant.module.defines())?;
        files.insert(format!("{}.ptx.z", mutant.name), images::pack(c.ptx.as_bytes()));
    }
    Ok(files)
}

/// Where planted bugs lie.
const MUTANTS: &str = "tests/mutants";

const HEAD: &str = "# Written by build-kernels from cuda/*.cu; a register more is a line to review.\n\
                    # module NAME SOURCE, then for each architecture its cubin, then for each kernel what it needs.\n";

/// The compiler's own version, from the head of a PTX.
fn version(ptx: &str) -> &str {
    ptx.lines().find_map(|line| line.split(", V").nth(1)).unwrap_or("unknown")
}

/// Compiles, and refuses what must not ship.
fn compile(compiler: &Compiler, m: &Module, arch: &str) -> Result<Compiled, String> {
    let c =
        compiler.compile(m.file, &text(m)?, arch, &m.defines()).map_err(|log| format!("{} {arch}:\n{log}", m.name))?;
    let bad = faults(m, arch, &c);
    if bad.is_empty() { Ok(c) } else { Err(bad.join("\n")) }
}

/// What must not ship.
fn faults(m: &Module, arch: &str, c: &Compiled) -> Vec<String> {
    let spilling = c.entries.iter().filter(|e| e.stack + e.spills > 0);
    spilling
        .map(|e| format!("{} {arch}: {} has a stack of {} bytes and spills {}", m.name, e.name, e.stack, e.spills))
        .chain(c.warnings.iter().map(|w| format!("{} {arch}: {w}", m.name)))
        .collect()
}

impl Made {
    /// Each folder with what belongs there.
    fn folders(&self) -> [(PathBuf, &BTreeMap<String, Vec<u8>>); 2] {
        [(root().join("prebuilt"), &self.files), (root().join(MUTANTS), &self.planted)]
    }

    fn write(&self) -> Result<(), String> {
        let say = |path: &Path, e: std::io::Error| format!("{}: {e}", path.display());
        for (folder, files) in self.folders() {
            fs::create_dir_all(&folder).map_err(|e| say(&folder, e))?;
            for old in stored(&folder)?.iter().filter(|old| !files.contains_key(*old)) {
                fs::remove_file(folder.join(old)).map_err(|e| say(&folder.join(old), e))?;
            }
            for (name, bytes) in files {
                // An image that is as it was keeps its time, so that cargo does not build anew for nothing.
                let path = folder.join(name);
                if fs::read(&path).ok().as_ref() != Some(bytes) {
                    fs::write(&path, bytes).map_err(|e| say(&path, e))?;
                }
            }
            let bytes: usize = files.values().map(Vec::len).sum();
            println!("{}: {} images, {:.2} MB", folder.display(), files.len(), bytes as f64 / 1e6);
        }
        let lock = root().join("kernels.lock");
        fs::write(&lock, &self.lock).map_err(|e| say(&lock, e))
    }

    fn compare(&self) -> Result<(), String> {
        let mut wrong = Vec::new();
        for (folder, files) in self.folders() {
            for (name, bytes) in files {
                if fs::read(folder.join(name)).ok().as_ref() != Some(bytes) {
                    wrong.push(format!("{}/{name} is not what cuda/ compiles to", folder.display()));
                }
            }
            for name in stored(&folder)?.iter().filter(|name| !files.contains_key(*name)) {
                wrong.push(format!("{}/{name} belongs to nothing", folder.display()));
            }
        }
        if fs::read_to_string(root().join("kernels.lock")).ok().as_ref() != Some(&self.lock) {
            wrong.push("kernels.lock is not what cuda/ compiles to".into());
        }
        if !wrong.is_empty() {
            return Err(format!("{}\nrun build-kernels and commit what it writes", wrong.join("\n")));
        }
        println!("{} images are as committed", self.files.len() + self.planted.len());
        Ok(())
    }
}

/// Names of the images on disk.
fn stored(folder: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| n.ends_with(".z")).collect())
}

fn one(compiler: &Compiler, file: &str) -> Result<(), String> {
    let name = Path::new(file).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let modules: Vec<&Module> = MODULES.iter().filter(|m| m.file == name || m.name == name).collect();
    if modules.is_empty() {
        return Err(format!("{file}: not one of {}", MODULES.iter().map(|m| m.file).collect::<Vec<_>>().join(", ")));
    }
    let mut bad = Vec::new();
    println!("{:<20} {:<8} {:<34} registers  stack  spills  shared  tensor", "module", "arch", "kernel");
    for m in &modules {
        for arch in ARCHS {
            let c = compiler.compile(m.file, &text(m)?, arch, &m.defines())?;
            for e in &c.entries {
                println!(
                    "{:<20} {arch:<8} {:<34} {:>9}  {:>5}  {:>6}  {:>6}  {:>6}",
                    m.name, e.name, e.registers, e.stack, e.spills, e.shared, e.tensor
                );
            }
            bad.extend(faults(m, arch, &c));
        }
    }
    conformance(&modules)?;
    if bad.is_empty() { Ok(()) } else { Err(bad.join("\n")) }
}

/// Operations or bytes of the dearest case that the simulator is asked to run here.
const DEAREST: f64 = 1e6;

/// Whether the kernels still agree with the reference, by the simulator.
fn conformance(modules: &[&Module]) -> Result<(), String> {
    if modules.iter().any(|m| text(m).as_ref() != Ok(&m.text())) {
        return Err(
            "cuda/ was changed after this program was built: use `cargo run -p esker-kernels --bin build-kernels`"
                .into(),
        );
    }
    let s = Stream::sim(0).map_err(|e| e.to_string())?;
    for op in OPS.iter().filter(|op| modules.iter().any(|m| m.name.starts_with(op.name))) {
        match catch_unwind(AssertUnwindSafe(|| op.conform(&s, DEAREST))) {
            Ok((ran, all)) => println!("{}: {ran} of {all} cases agree with the reference on the simulator", op.name),
            // The panic has said which case, and how far off.
            Err(_) => return Err(format!("{}: does not agree with the reference", op.name)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `--one` does after compiling, for the ops of a module and for those of a part of one.
    #[test]
    fn the_ops_of_a_module_are_run_on_the_simulator() {
        for name in ["swiglu", "attention_delta"] {
            conformance(&[images::module(name)]).unwrap();
        }
    }

    #[test]
    fn spills_and_warnings_are_named() {
        let m = images::module("cast");
        let entry = esker_kernels::gpu::nvrtc::Entry { name: "f".into(), spills: 8, ..Default::default() };
        let c = Compiled { cubin: vec![], ptx: String::new(), entries: vec![entry], warnings: vec!["C7512".into()] };
        assert_eq!(faults(m, "sm_80", &c).len(), 2);
    }
}
