//! kill -9 at fifty random moments of a short run: each resume ends equal to the straight run, and no checkpoint that
//! cannot be read ever bears a checkpoint's name.
//!
//! A process takes most of its time to start; so three moments of four are drawn from the time in which it trains,
//! which begins when `steps.jsonl` first changes, and one of four from its start.

use crate::tiny::{self, Place, print_of};
use esker_train::checkpoint;
use esker_train::folder;
use esker_train::metrics::STEPS as LINES;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 50;
const STEPS: usize = 24;

#[test]
fn fifty_kills() {
    let place = Place::new();
    let config = place.dir.path().join("tiny.toml");
    let every = "every_steps = 0\nkeep_last = 2";
    let toml = place.toml().replace("steps = 6", &format!("steps = {STEPS}"));
    std::fs::write(&config, toml.replace(every, "every_steps = 3\nkeep_last = 2")).unwrap();

    let began = Instant::now();
    let mut straight = Process::start(&config, &place.dir.path().join("straight"), None);
    let mut starting = straight.wait_until_it_trains();
    let training = Instant::now();
    assert!(straight.child.wait().unwrap().success());
    let mut training = training.elapsed();
    let want = ended(&straight.folder().unwrap());
    assert_eq!(want.steps.len(), STEPS);

    let seed = u64::from(std::process::id()) ^ began.elapsed().as_nanos() as u64 | 1;
    println!("seed {seed}, {starting:?} to start and {training:?} to train");
    let mut random = Random(seed);
    let (mut kills, mut runs) = (0, 0);
    while kills < KILLS {
        // A run is killed, and its resumes too, until one is spared and gets through.
        runs += 1;
        let out = place.dir.path().join(format!("out-{runs}"));
        let mut folder: Option<PathBuf> = None;
        loop {
            let mut process = Process::start(&config, &out, folder.as_deref());
            if folder.is_some() && random.below(4) == 0 {
                let status = process.child.wait().unwrap();
                assert!(status.success(), "seed {seed}, run {runs}: {status}");
                break;
            }
            let span = if random.below(4) == 0 {
                &mut starting
            } else {
                process.wait_until_it_trains();
                &mut training
            };
            // One that was through before its moment shows how long there is, where the machine was slower before.
            if let Some(took) = process.ends_within(*span * random.below(1000) / 1000) {
                *span = took;
            }
            kills += usize::from(process.kill());
            folder = folder.or_else(|| process.folder());
            folder.iter().for_each(|folder| all_whole(folder));
        }
        assert_eq!(ended(&folder.unwrap()), want, "seed {seed}, run {runs}");
    }
    println!("{kills} kills in {runs} runs, {:?}", began.elapsed());
}

/// The binary, training.
struct Process {
    child: Child,
    out: PathBuf,
    resumed: Option<PathBuf>,
    /// Bytes of the lines before it began.
    before: u64,
}

impl Process {
    fn start(config: &Path, out: &Path, resumed: Option<&Path>) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
        command.arg("train");
        match resumed {
            None => command.arg(config).arg("--out").arg(out),
            Some(folder) => command.arg("--resume").arg(folder),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (out, resumed) = (out.to_path_buf(), resumed.map(Path::to_path_buf));
        let before = resumed.as_deref().map_or(0, lines_bytes);
        Process { child: command.spawn().unwrap(), out, resumed, before }
    }

    fn folder(&self) -> Option<PathBuf> {
        // By its name: one that is not yet whole lies beside it under another.
        self.resumed.clone().or_else(|| folder::latest(&self.out, "tiny"))
    }

    /// Waits for a change in its lines, or for its end.
    fn wait_until_it_trains(&mut self) -> Duration {
        let start = Instant::now();
        while self.folder().map_or(0, |folder| lines_bytes(&folder)) == self.before
            && self.child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        start.elapsed()
    }

    /// Lets it run for `time`, or to its end: how long that took then.
    fn ends_within(&mut self, time: Duration) -> Option<Duration> {
        let start = Instant::now();
        while start.elapsed() < time {
            if self.child.try_wait().unwrap().is_some() {
                return Some(start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(1).min(time));
        }
        None
    }

    /// Kills it; false when it had ended before.
    fn kill(&mut self) -> bool {
        let alive = self.child.try_wait().unwrap().is_none();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        alive
    }
}

fn lines_bytes(folder: &Path) -> u64 {
    std::fs::metadata(folder.join(LINES)).map_or(0, |m| m.len())
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
