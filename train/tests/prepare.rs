//! `esker data prepare` from outside: kill -9 at random moments, taken up until it ends, gives the bytes of a run that
//! nobody disturbed.

mod esker;

use esker::{esker, fails};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 16;

/// Starts a preparation of `inputs` into `out`, in pieces of a few kilobytes.
fn start(inputs: &[PathBuf], out: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_esker"))
        .args(["data", "prepare", "--tokenizer", "bytes", "--piece-bytes", "20000", "--val-fraction", "0.2"])
        .args(["--shard-tokens", "150000", "--bad", "drop", "--threads", "3", "--out"])
        .arg(out)
        .args(inputs)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Names and bytes of all files in a folder; a folder in it shows by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<_> = entries
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap_or_default()))
        .collect();
    all.sort();
    all
}

/// Whether a piece lies ready in what a killed preparation has left.
fn left(out: &Path) -> bool {
    let entries = std::fs::read_dir(out.join(".prepare"));
    entries.is_ok_and(|all| all.flatten().any(|e| e.file_name().to_string_lossy().ends_with(".json")))
}

#[test]
fn killed_and_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let inputs: Vec<PathBuf> = (0..4)
        .map(|i| {
            let path = dir.path().join(format!("{i}.{}", ["jsonl", "txt"][i % 2]));
            let line = |d: usize| match (i % 2, d % 50) {
                (0, 7) => "no JSON\n".into(),
                (0, _) => format!("{{\"text\":\"document {d} of {i} {}\"}}\n", "word ".repeat(d * 13 % 97)),
                _ => format!("line {d} of {i} {}\n", "ridge ".repeat(d * 7 % 71)),
            };
            std::fs::write(&path, (0..1000).map(line).collect::<String>()).unwrap();
            path
        })
        .collect();
    let began = Instant::now();
    let straight = dir.path().join("straight");
    assert!(start(&inputs, &straight).wait().unwrap().success());
    let mut span = began.elapsed();
    let want = files(&straight);
    assert!(want.len() > 5 && want.iter().all(|(name, _)| !name.starts_with('.')), "{} files", want.len());

    let seed = u64::from(std::process::id()) ^ began.elapsed().as_nanos() as u64 | 1;
    println!("seed {seed}, {span:?} undisturbed");
    let mut random = Random(seed);
    let (mut kills, mut resumed, mut runs) = (0, 0, 0);
    while kills < KILLS || resumed == 0 {
        runs += 1;
        let out = dir.path().join(format!("out-{runs}"));
        // A folder is killed a few times, and then spared.
        for _ in 0..4 {
            let mut child = start(&inputs, &out);
            let born = Instant::now();
            let mut alive = || child.try_wait().unwrap().is_none();
            // Half of them once a piece is left; the others at any time, from the start on.
            let waits = random.below(2) == 0;
            while waits && !left(&out) && alive() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let moment = born.elapsed() + span * random.below(1000) / 1000;
            while alive() && born.elapsed() < moment {
                std::thread::sleep(Duration::from_millis(1));
            }
            // One that was through before its moment shows how long there is, where the machine was slower before.
            if alive() {
                kills += 1;
            } else {
                span = born.elapsed();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            resumed += usize::from(left(&out));
        }
        let status = start(&inputs, &out).wait().unwrap();
        // One that ended before its kill has nothing left to do.
        assert!(status.success() || out.join("manifest.json").is_file(), "seed {seed}, run {runs}: {status}");
        assert!(
            files(&out) == want,
            "seed {seed}, run {runs}: {:?}",
            files(&out).iter().map(|f| &f.0).collect::<Vec<_>>()
        );
    }
    println!("{kills} kills in {runs} runs, {resumed} left pieces, {:?}", began.elapsed());
}

#[test]
fn options_and_faults() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("in.jsonl"), "{\"body\":\"a\"}\n{\"body\":\"\"}\nno\n").unwrap();
    let out = path("out");
    let base = ["data", "prepare", "--tokenizer", "bytes", "--val-fraction", "0", "--out", &out];
    let input = path("in.jsonl");
    let with = |more: &[&'static str]| [&base[..], more, &[input.as_str()]].concat();
    let fail = |more: &[&'static str], words: &[&str]| fails(&with(more), 2, words);
    fail(&[], &["in.jsonl, line 1", "missing field `text`"]);
    fail(&["--text-key", "body"], &["in.jsonl, line 3"]);
    fail(&["--piece-bytes", "0"], &["piece_bytes is 0"]);
    fails(&["data", "prepare", "--tokenizer", "bytes", "--out", &out, &path("out.md")], 3, &["out.md"]);
    let ran = esker(&with(&["--text-key", "body", "--bad", "drop"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("dropped      2 documents: 1 empty, 1 not JSON"), "{}", ran.stdout);
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % u64::from(n)) as u32
    }
}
