//! An owner as the node wants it: one thread trains, another checks, folds and keeps.
//!
//! The protocol's state after round r is the weights that hold r rounds, so its round r is the owner's round r − 1, and
//! `alpha` and rows follow the owner's count. The bytes of the state's leaves stand beside the owner, as they were
//! after the last fold: whoever reads them never waits for a step.

use crate::outer::inner::Word;
use crate::outer::judge;
use crate::outer::{BlobFault, Layout, OuterError, Owner, blob, leaves};
use esker_comms::node::{Made, TrainJob, Work};
use esker_comms::round::{Expect, Part, Sound};
use esker_comms::wire::Reason;
use esker_comms::{Hash, PeerId};
use esker_kernels::ops::chunk_topk::record::Fault;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A weight of 1 in the protocol.
const WHOLE: f32 = 65_536.0;

/// An owner that others can ask.
#[derive(Debug)]
pub struct OwnerWork {
    owner: Mutex<Owner>,
    layout: Layout,
    /// The header of a round's updates, the names in it aside.
    rounds: Rounds,
    leaves: RwLock<Vec<Vec<u8>>>,
    dir: PathBuf,
}

/// Steps and tokens of a round.
#[derive(Clone, Copy, Debug)]
struct Rounds {
    inner_steps: u64,
    steps: u64,
    tokens_per_step: u64,
}

impl OwnerWork {
    /// Takes the owner as it stands, who is `peer` to the others; it is kept in `dir`.
    pub fn new(mut owner: Owner, peer: PeerId, dir: PathBuf) -> OwnerWork {
        owner.name_peer(peer.0);
        let (layout, run) = (owner.layout().clone(), owner.run());
        let outer = run.shared().expect("work: an owner of a shared run");
        let rounds = Rounds {
            inner_steps: outer.inner_steps,
            steps: run.train.steps,
            tokens_per_step: run.batch.tokens_per_step as u64,
        };
        let work = OwnerWork { layout, rounds, leaves: RwLock::default(), owner: Mutex::new(owner), dir };
        work.show(&work.owner());
        work
    }

    /// Nobody panics while holding it with a half-made state that another would use: a panic ends the process.
    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scores the shared weights.
    pub fn score(&self) -> Result<Option<crate::metrics::Validated>, OuterError> {
        self.owner().score()
    }

    fn show(&self, owner: &Owner) {
        let fresh = leaves::each(owner.anchor()).map(<[u8]>::to_vec).collect();
        *self.leaves.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    /// What an update begins with whose commit tells of so many steps and tokens.
    fn header(&self, run: &Hash, expect: &Expect, base: &Hash) -> Result<blob::Header, BlobFault> {
        let round = expect.round.checked_sub(1).ok_or(BlobFault::WrongRound { got: 0, want: 1 })?;
        let left = self.rounds.steps.saturating_sub(round.saturating_mul(self.rounds.inner_steps));
        let steps = left.min(self.rounds.inner_steps);
        let each = self.rounds.tokens_per_step;
        let told = u64::from(expect.steps);
        // Whoever had no time for all of a round's steps says so, and counts for less.
        if !(1..=steps).contains(&told) || expect.tokens != told * each {
            let (got_steps, got_tokens) = (expect.steps, expect.tokens);
            return Err(BlobFault::Work { got_steps, got_tokens, steps: steps as u32, tokens: steps * each });
        }
        let (run, peer, base) = (run.0, expect.peer.0, base.0);
        Ok(blob::Header { run, peer, base, round, tokens: expect.tokens, inner_steps: expect.steps })
    }
}

impl Work for OwnerWork {
    fn settled(&self) -> (u64, Hash) {
        let owner = self.owner();
        (owner.round(), Hash(owner.root()))
    }

    fn train(&self, job: &TrainJob, stop: &dyn Fn() -> bool) -> Result<Made, String> {
        let mut owner = self.owner();
        if owner.round() != job.base || owner.root() != job.base_root.0 {
            return Err(format!("the weights hold round {}, training shall begin at {}", owner.round(), job.base));
        }
        owner.name_run(job.run.0);
        let round = job.round.checked_sub(1).ok_or("there is no round 0 to train")?;
        let (begun, budget) = (Instant::now(), Duration::from_millis(job.budget_ms));
        let word = |done: u64| {
            let spent = begun.elapsed();
            // The next step will take as long as those before it did.
            let late = done > 0 && spent + spent.div_f64(done as f64) > budget;
            if stop() {
                Word::Stop
            } else if late {
                Word::Enough
            } else {
                Word::GoOn
            }
        };
        let prepared = owner.prepare_until(round, u64::from(job.slot), job.peer.0, &word).map_err(|e| e.to_string())?;
        Ok(Made {
            tokens: prepared.header.tokens,
            steps: prepared.header.inner_steps,
            loss: Some(prepared.trained.loss as f32),
            update: prepared.blob,
        })
    }

    fn check(&self, run: &Hash, update: &[u8], expect: &Expect) -> Result<Sound, Reason> {
        let fault = |base: &Hash| blob::check(&self.layout, &self.header(run, expect, base)?, update);
        let mut found = Err(BlobFault::StaleBase);
        for base in &expect.bases {
            found = fault(base);
            if !matches!(found, Err(BlobFault::StaleBase)) {
                break;
            }
        }
        found.map_err(|fault| reason(&fault))?;
        Ok(judge::sound(&self.layout, update))
    }

    fn fold(&self, round: u64, parts: &[Part], read: &dyn Fn(&Hash) -> Result<Vec<u8>, String>) -> Result<(), String> {
        // On probation: listed, and worth nothing yet.
        let counting = || parts.iter().filter(|part| part.weight > 0);
        let blobs = counting().map(|part| read(&part.blob)).collect::<Result<Vec<_>, _>>()?;
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        let weights: Vec<f32> = counting().map(|part| part.weight as f32 / WHOLE).collect();
        let round = round.checked_sub(1).ok_or("there is no round 0 to fold")?;
        let mut owner = self.owner();
        owner.apply_weighted(round, &blobs, &weights).map_err(|e| e.to_string())?;
        self.show(&owner);
        Ok(())
    }

    fn leaf(&self, index: u64, into: &mut Vec<u8>) {
        let leaves = self.leaves.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(index as usize) {
            into.extend_from_slice(leaf);
        }
    }

    fn mend(&self, index: u64, bytes: &[u8]) -> Result<(), String> {
        if !self.owner().set_leaf(index as usize, bytes) {
            return Err(format!("leaf {index} of {} bytes is none of this model's", bytes.len()));
        }
        let mut leaves = self.leaves.write().unwrap_or_else(PoisonError::into_inner);
        leaves[index as usize] = bytes.to_vec();
        Ok(())
    }

    fn settle(&self, round: u64, root: Hash) -> Result<(), String> {
        let mut owner = self.owner();
        let got = owner.settle_at(round).map_err(|e| e.to_string())?;
        if got != root.0 {
            return Err(format!("the weights after round {round} have root {}, not {root}", Hash(got)));
        }
        owner.save(&self.dir).map_err(|e| e.to_string())
    }
}

/// What the protocol calls a fault.
fn reason(fault: &BlobFault) -> Reason {
    match fault {
        BlobFault::StaleBase => Reason::StaleBase,
        BlobFault::Work { .. } => Reason::Tokens,
        BlobFault::Record { what, .. } if what.what == Fault::NotFinite => Reason::NotFinite,
        _ => Reason::Malformed,
    }
}
