//! A run that is small: a state of 300 000 values in two tensors, updates of a megabyte and a half of which 64 records
//! mean something.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use esker_comms::net::backoff::Jitter;
use esker_comms::node::{Made, TrainJob, Work};
use esker_comms::round::{Expect, Part, Picks, Signs, Sound};
use esker_comms::state::{Leaves, Tree};
use esker_comms::wire::Reason;
use esker_comms::{Hash, Key, LEAF_BYTES, Limits, Outer, PeerId, RunSpec, Shape, Times};

const SHAPES: [Shape; 2] = [Shape { rows: 4, cols: 70_000 }, Shape { rows: 1, cols: 20_000 }];
const VALUES: usize = 300_000;
const PICKS: usize = 64;
const HEAD: usize = 32 + 8 + 32 + 32;
const UPDATE: usize = 3 << 19;

pub fn key(n: u8) -> Key {
    Key::from_seed([n; 32])
}

pub fn spec(validators: &[PeerId], slots: u32) -> RunSpec {
    let usual = esker_comms::sim::spec(validators);
    let mut spec = RunSpec {
        name: "toy".into(),
        tensors: SHAPES.to_vec(),
        outer: Outer { tile: 4096, ..usual.outer },
        blob_bytes: UPDATE as u64,
        times: Times { train_ms: 1500, grace_ms: 500, collect_ms: 1500, attempt_ms: 1000, retry_ms: 300 },
        limits: Limits {
            rounds: 1 << 20,
            slots,
            contributors: slots,
            behind_rounds: 3,
            checkpoint_rounds: 4,
            ..usual.limits
        },
        ..usual
    };
    spec.genesis = Tree::of(&spec, &Values(&vec![0.0; VALUES])).root();
    spec
}

struct Values<'a>(&'a [f32]);

impl Leaves for Values<'_> {
    fn leaf(&self, index: u64, into: &mut Vec<u8>) {
        into.extend(self.0[range(index)].iter().flat_map(|x| x.to_le_bytes()));
    }
}

/// Which values leaf `index` has: leaves do not cross tensors.
fn range(index: u64) -> std::ops::Range<usize> {
    let (mut first, mut start) = (0, 0);
    for shape in SHAPES {
        let values = shape.values() as usize;
        if index < first + shape.leaves() {
            let at = (index - first) as usize * (LEAF_BYTES / 4) as usize;
            return start + at..start + values.min(at + (LEAF_BYTES / 4) as usize);
        }
        first += shape.leaves();
        start += values;
    }
    panic!("toy: leaf {index}");
}

pub struct Toy {
    file: PathBuf,
    values: Mutex<Vec<f32>>,
    settled: Mutex<(u64, Hash)>,
    train: Duration,
    pub trained: AtomicU64,
    /// Panics at the next fold.
    pub broken: AtomicBool,
}

impl Toy {
    pub fn open(dir: &Path, spec: &RunSpec, train: Duration) -> Toy {
        std::fs::create_dir_all(dir).unwrap();
        let file = dir.join("state");
        let (settled, values) = match std::fs::read(&file) {
            Ok(bytes) => {
                let round = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                let root = Hash(bytes[8..40].try_into().unwrap());
                let values = bytes[40..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                ((round, root), values)
            }
            Err(_) => ((0, spec.genesis), vec![0.0; VALUES]),
        };
        let (values, settled) = (Mutex::new(values), Mutex::new(settled));
        Toy { file, values, settled, train, trained: AtomicU64::new(0), broken: AtomicBool::new(false) }
    }

    /// Flips one bit of one value in memory.
    pub fn flip(&self, at: usize) {
        let mut values = self.values.lock().unwrap();
        values[at] = f32::from_bits(values[at].to_bits() ^ 4);
    }
}

fn head(run: &Hash, round: u64, peer: &PeerId, base: &Hash) -> Vec<u8> {
    [&run.0[..], &round.to_le_bytes(), &peer.0, &base.0].concat()
}

fn records(update: &[u8]) -> impl Iterator<Item = (usize, f32)> {
    update[HEAD..HEAD + PICKS * 8].as_chunks::<8>().0.iter().map(|r| {
        let (at, x) = r.split_at(4);
        (u32::from_le_bytes(at.try_into().unwrap()) as usize, f32::from_le_bytes(x.try_into().unwrap()))
    })
}

impl Work for Toy {
    fn settled(&self) -> (u64, Hash) {
        *self.settled.lock().unwrap()
    }

    fn train(&self, job: &TrainJob, stop: &dyn Fn() -> bool) -> Result<Made, String> {
        let steps = 10;
        let mut made = 0;
        while made < steps && !stop() {
            std::thread::sleep(self.train / steps);
            made += 1;
        }
        self.trained.fetch_add(1, Ordering::Relaxed);
        let mut dice = Jitter::new(u64::from_le_bytes(job.peer.0[..8].try_into().unwrap()) ^ job.round << 40);
        let mut update = head(&job.run, job.round, &job.peer, &job.base_root);
        for n in 0..PICKS {
            let width = VALUES / PICKS;
            let at = n * width + (dice.draw() % width as u64) as usize;
            update.extend_from_slice(&(at as u32).to_le_bytes());
            update.extend_from_slice(&(dice.unit() as f32 - 0.5).to_le_bytes());
        }
        while update.len() < UPDATE {
            update.extend_from_slice(&dice.draw().to_le_bytes());
        }
        update.truncate(UPDATE);
        Ok(Made { update, tokens: 1 << 12, steps: made, loss: Some(1.0 / job.round as f32) })
    }

    fn check(&self, run: &Hash, update: &[u8], expect: &Expect) -> Result<Sound, Reason> {
        if update.len() != UPDATE {
            return Err(Reason::Malformed);
        }
        let fits = |base: &Hash| update[..HEAD] == head(run, expect.round, &expect.peer, base);
        if !expect.bases.iter().any(fits) {
            return Err(Reason::StaleBase);
        }
        let norm = records(update).map(|(_, x)| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        Ok(Sound { norm, picks: Picks::of(records(update).map(|(at, _)| at as u64)), signs: Signs::default() })
    }

    fn fold(&self, _: u64, parts: &[Part], read: &dyn Fn(&Hash) -> Result<Vec<u8>, String>) -> Result<(), String> {
        assert!(!self.broken.load(Ordering::Relaxed), "the toy is broken");
        let mut values = self.values.lock().unwrap();
        for part in parts {
            for (at, x) in records(&read(&part.blob)?) {
                values[at] -= x * (part.weight as f32 / 65536.0) / parts.len() as f32;
            }
        }
        Ok(())
    }

    fn leaf(&self, index: u64, into: &mut Vec<u8>) {
        Values(&self.values.lock().unwrap()).leaf(index, into);
    }

    fn mend(&self, index: u64, bytes: &[u8]) -> Result<(), String> {
        let mut values = self.values.lock().unwrap();
        for (x, b) in values[range(index)].iter_mut().zip(bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*b);
        }
        Ok(())
    }

    fn settle(&self, round: u64, root: Hash) -> Result<(), String> {
        let mut bytes = round.to_le_bytes().to_vec();
        bytes.extend_from_slice(&root.0);
        bytes.extend(self.values.lock().unwrap().iter().flat_map(|x| x.to_le_bytes()));
        let aside = self.file.with_extension("new");
        let write = std::fs::write(&aside, bytes).and_then(|()| std::fs::rename(&aside, &self.file));
        write.map_err(|e| e.to_string())?;
        *self.settled.lock().unwrap() = (round, root);
        Ok(())
    }
}
