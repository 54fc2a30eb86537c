//! kill -9 at fifty random moments of a short run: each resume ends equal to the straight run, and no checkpoint that
//! cannot be read ever bears a checkpoint's name.

use crate::tiny::{self, Place, print_of};
use esker_train::checkpoint;
use esker_train::folder;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const KILLS: usize = 50;
const STEPS: usize = 40;

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command.arg("train").args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// What the newest checkpoint of a finished run shares with the straight run's.
fn ended(folder: &Path) -> tiny::Print {
    let newest = checkpoint::newest_valid(folder).unwrap();
    assert!(newest.refused.is_empty(), "{:?}", newest.refused);
    let found = newest.found.unwrap();
    assert_eq!(found.step as usize, STEPS);
    print_of(folder, &found.path)
}

/// Every folder with a checkpoint's name is whole.
fn all_whole(folder: &Path) {
    for (step, path) in checkpoint::listed(&folder.join("ckpt")).unwrap() {
        checkpoint::Manifest::verify(&path, step).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn fifty_kills() {
    let place = Place::new();
    let config = place.dir.path().join("tiny.toml");
    let every = "every_steps = 0\nkeep_last = 2";
    let toml = place.toml().replace("steps = 6", &format!("steps = {STEPS}"));
    std::fs::write(&config, toml.replace(every, "every_steps = 3\nkeep_last = 2")).unwrap();
    let config = config.to_str().unwrap();
    let out = |name: &str| place.dir.path().join(name);

    let began = Instant::now();
    assert!(start(&[config, "--out", out("straight").to_str().unwrap()]).wait().unwrap().success());
    let whole = began.elapsed();
    let straight = ended(&folder::latest(&out("straight"), None).unwrap());
    assert_eq!(straight.steps.len(), STEPS);

    let seed = u64::from(std::process::id()) ^ whole.as_nanos() as u64 | 1;
    println!("seed {seed}, a whole run takes {whole:?}");
    let mut random = Random(seed);
    let (mut kills, mut runs) = (0, 0);
    while kills < KILLS {
        // A run is killed, and its resumes too, until one is spared and gets through.
        runs += 1;
        let out = out(&format!("out-{runs}"));
        let mut folder: Option<PathBuf> = None;
        loop {
            let mut child = match &folder {
                None => start(&[config, "--out", out.to_str().unwrap()]),
                Some(folder) => start(&["--resume", folder.to_str().unwrap()]),
            };
            if folder.is_some() && random.below(3) == 0 {
                let status = child.wait().unwrap();
                assert!(status.success(), "seed {seed}, run {runs}: {status}");
                break;
            }
            std::thread::sleep(whole * random.below(1000) / 1000);
            // Only a process that still runs can be killed.
            kills += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
            folder = folder.or_else(|| folder::latest(&out, None));
            folder.iter().for_each(|folder| all_whole(folder));
        }
        assert_eq!(ended(&folder.unwrap()), straight, "seed {seed}, run {runs}");
    }
    println!("{kills} kills in {runs} runs, {:?}", began.elapsed());
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
