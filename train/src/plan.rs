//! What a run will take, before it takes it: parameters, arithmetic, memory.
//!
//! The bytes come from [`State::layout`] on an arena that only measures: the very code that places the run's tensors, so
//! the table cannot lie. Nothing is allocated, so a model of 72 billion parameters is planned on any laptop. Beside the
//! arena stand what the stream keeps for its ops, the host's own buffers for tokens, and what the process takes before
//! it begins. On a device, what must fit there is the arena and the stream's own memory; the host's stands beside it, and
//! so do mirrors of the tensors that are drawn, loaded or saved there, for which pages come and stay as they are touched.

use crate::config::{Run, Source};
use crate::masters::Masters;
use crate::state::State;
use crate::step::Host;
use esker_kernels::gpu::{OWN_BYTES, PINNED_BYTES};
use esker_kernels::pool::{LANE_BYTES, SHARED_BYTES};
use esker_kernels::tensor::{Arena, Class, DType, Table};
use esker_model::Recompute;
use serde::Serialize;

/// The binary, its threads' stacks and small buffers: measured on Linux, rounded up.
const PROCESS_BYTES: usize = 8 << 20;
/// The embedded corpus and what making a tokenizer of it leaves with the allocator: 2 to 28 MiB were measured, less when
/// the run is resumed.
const CORPUS_BYTES: usize = 12 << 20;

/// Parameters of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Which weights.
    pub name: &'static str,
    /// How many.
    pub params: u64,
}

/// What a run will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The run's name.
    pub name: String,
    /// Blocks of the network.
    pub layers: usize,
    /// Parameters by kind.
    pub groups: Vec<Group>,
    /// All of them.
    pub params: u64,
    /// Of a training token, forward and backward.
    pub flops_per_token: f64,
    /// Where that comes from.
    pub flops_formula: String,
    /// What the ops read.
    pub dtype: DType,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// Tokens in memory at once.
    pub micro_tokens: u64,
    /// Updates.
    pub steps: u64,
    /// Tokens of the run.
    pub tokens: u64,
    /// Of a step.
    pub step_flops: f64,
    /// Of the run.
    pub total_flops: f64,
    /// The arena by class.
    pub bytes: Table,
    /// The whole arena.
    pub arena_bytes: u64,
    /// What the stream keeps for its ops.
    pub stream_bytes: u64,
    /// Host buffers for tokens, and the process itself.
    pub host_bytes: u64,
    /// Whether a device holds arena and stream.
    pub on_device: bool,
    /// Arena, stream and host; on a device, what it holds.
    pub total_bytes: u64,
    /// Memory this machine or the device can give, where it says so.
    pub available_bytes: Option<u64>,
    /// Threads of the run on this machine.
    pub threads: usize,
    /// Whether the total is at most what is available.
    pub fits: Option<bool>,
    /// What to change, with what it would then take.
    pub advice: Vec<String>,
}

impl Plan {
    /// Plans `run` for this machine.
    pub fn of(run: &Run) -> Plan {
        Plan::with_available(run, available_bytes())
    }

    /// Plans `run` for a machine that can give `available_bytes`.
    pub fn with_available(run: &Run, available_bytes: Option<u64>) -> Plan {
        Plan::at(run, Where::Host, available_bytes)
    }

    /// Plans `run` for a device that has `free_bytes` free once it is open, where that is known.
    pub fn on_device(run: &Run, free_bytes: Option<u64>) -> Plan {
        Plan::at(run, Where::Device, free_bytes.map(|free| free.saturating_add(OWN_BYTES as u64)))
    }

    /// Whether a device has room; the host's memory may be swapped, and is not judged.
    pub fn check_device(&self) -> Result<(), DoesNotFit> {
        match self.available_bytes {
            Some(available_bytes) if self.on_device && self.total_bytes > available_bytes => {
                let (name, total_bytes, advice) = (self.name.clone(), self.total_bytes, self.advice.join("; "));
                Err(DoesNotFit { name, total_bytes, available_bytes, advice })
            }
            _ => Ok(()),
        }
    }

    fn at(run: &Run, place: Where, available_bytes: Option<u64>) -> Plan {
        let arena = arena(run, place);
        let params = run.model.params();
        let flops_per_token = run.model.flops_per_token(run.batch.seq_len);
        let step_tokens = run.batch.tokens_per_step as u64;
        let total_bytes = total_bytes(run, place);
        let fits = available_bytes.map(|available| total_bytes <= available);
        Plan {
            name: run.name.clone(),
            layers: run.model.layers,
            groups: params.groups().into_iter().map(|(name, params)| Group { name, params }).collect(),
            params: params.total(),
            flops_per_token,
            flops_formula: run.model.flops_formula(run.batch.seq_len),
            dtype: run.train.dtype,
            step_tokens,
            micro_tokens: (run.micro_rows() * run.batch.seq_len) as u64,
            steps: run.train.steps,
            tokens: run.tokens(),
            step_flops: flops_per_token * step_tokens as f64,
            total_flops: flops_per_token * run.tokens() as f64,
            bytes: arena.table().clone(),
            arena_bytes: arena.bytes() as u64,
            stream_bytes: stream_bytes(run, place) as u64,
            host_bytes: host_bytes(run, place) as u64,
            on_device: place == Where::Device,
            total_bytes,
            available_bytes,
            threads: run.threads(),
            fits,
            advice: match (fits, available_bytes) {
                (Some(false), Some(available)) => advice(run, place, available),
                _ => Vec::new(),
            },
        }
    }
}

/// A run that its device cannot hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{name} takes {} of the device's memory, which has {} to give: {advice}",
    size(*total_bytes), size(*available_bytes)
)]
pub struct DoesNotFit {
    /// The run.
    pub name: String,
    /// What it takes there.
    pub total_bytes: u64,
    /// What the device has for it.
    pub available_bytes: u64,
    /// What to change.
    pub advice: String,
}

/// Where the tensors lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Host,
    Device,
}

fn arena(run: &Run, place: Where) -> Arena {
    let mut arena = Arena::measure();
    State::layout_as(&mut arena, run, Masters::of(run, place == Where::Device));
    arena
}

fn stream_bytes(run: &Run, place: Where) -> usize {
    match place {
        Where::Host => pool_bytes(run),
        Where::Device => OWN_BYTES,
    }
}

/// What the host's threads have for their ops.
fn pool_bytes(run: &Run) -> usize {
    SHARED_BYTES + run.threads() * LANE_BYTES
}

fn host_bytes(run: &Run, place: Where) -> usize {
    let corpus = match run.data.source {
        Source::Embedded => CORPUS_BYTES,
        Source::Shards | Source::Foreign => 0,
    };
    let device = match place {
        Where::Host => 0,
        Where::Device => pool_bytes(run) + PINNED_BYTES,
    };
    Host::bytes(run) + PROCESS_BYTES + corpus + device
}

fn total_bytes(run: &Run, place: Where) -> u64 {
    let host = match place {
        Where::Host => host_bytes(run, place),
        Where::Device => 0,
    };
    (arena(run, place).bytes() + stream_bytes(run, place) + host) as u64
}

/// Changes that lower the bytes without changing a bit, then those that do, until the run fits.
fn advice(run: &Run, place: Where, available: u64) -> Vec<String> {
    let mut said = Vec::new();
    let mut best = run.clone();
    let mut keys: Vec<&str> = Vec::new();
    let grain = run.batch.grain_rows;
    type Change = (&'static str, Box<dyn Fn(&mut crate::config::File)>);
    let changes: [Change; 4] = [
        ("batch.micro_rows", Box::new(move |f| f.batch.micro_rows = grain)),
        ("train.recompute", Box::new(|f| f.train.recompute = Recompute::Block)),
        ("batch.virtual_ranks", Box::new(|f| f.batch.virtual_ranks = 1)),
        ("train.threads", Box::new(|f| f.train.threads = 1)),
    ];
    for (key, change) in changes {
        let Some(tried) = best.varied(change) else { continue };
        let (before, after) = (total_bytes(&best, place), total_bytes(&tried, place));
        if after >= before {
            continue;
        }
        keys.push(key);
        best = tried;
        let value = match key {
            "batch.micro_rows" => format!("{grain}"),
            "train.recompute" => "\"block\"".into(),
            _ => "1".into(),
        };
        let note = if key == "batch.virtual_ranks" { " (other bits)" } else { "" };
        said.push(format!("set {key} = {value}{note}: {}", size(after)));
        if after <= available {
            return said;
        }
    }
    let all =
        if keys.is_empty() { "nothing in this file helps".to_string() } else { "all of that is not enough".into() };
    let weights = total_bytes(&best, place);
    said.push(format!("{all}: take a smaller model, or a machine with {} of free memory", size(weights)));
    said
}

/// What the system says it can give without swapping; Linux only.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Bytes for people: three digits and a unit of 1024.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut x, mut unit) = (bytes as f64, 0);
    while x >= 1000.0 && unit + 1 < units.len() {
        x /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if x < 10.0 => format!("{x:.2} {}", units[unit]),
        _ if x < 100.0 => format!("{x:.1} {}", units[unit]),
        _ => format!("{x:.0} {}", units[unit]),
    }
}

/// A number for people, in groups of three digits.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "plan of {}", self.name)?;
        writeln!(f, "  parameters   {:>18}   in {} layers, {}", grouped(self.params), self.layers, self.dtype)?;
        for group in self.groups.iter().filter(|g| g.params > 0) {
            writeln!(f, "    {:<10} {:>18}", group.name, grouped(group.params))?;
        }
        let tokens_a_step = grouped(self.step_tokens);
        writeln!(f, "  tokens       {:>18}   {} steps of {tokens_a_step}", grouped(self.tokens), grouped(self.steps))?;
        writeln!(
            f,
            "  flops        {:>18.3e}   {:.3e} a step, {:.3e} a token",
            self.total_flops, self.step_flops, self.flops_per_token
        )?;
        writeln!(f, "    a token = {}", self.flops_formula)?;
        let holder = if self.on_device { "on the device".into() } else { format!("with {} threads", self.threads) };
        writeln!(f, "  memory       {:>18}   {holder}", size(self.total_bytes))?;
        for class in Class::ALL {
            if let Some(&bytes) = self.bytes.get(&class) {
                writeln!(f, "    {:<12} {:>16}", name_of(class), size(bytes as u64))?;
            }
        }
        writeln!(f, "    {:<12} {:>16}", "ops' own", size(self.stream_bytes))?;
        let beside = if self.on_device { "   here, beside it" } else { "" };
        writeln!(f, "    {:<12} {:>16}{beside}", "process", size(self.host_bytes))?;
        let giver = if self.on_device { "the device" } else { "this machine" };
        match (self.fits, self.available_bytes) {
            (Some(true), Some(available)) => {
                writeln!(f, "  fits         in the {} {giver} can give", size(available))
            }
            (Some(false), Some(available)) => {
                writeln!(f, "  DOES NOT FIT in the {} {giver} can give", size(available))?;
                self.advice.iter().try_for_each(|line| writeln!(f, "    {line}"))
            }
            _ => writeln!(f, "  {giver} does not say how much memory it can give"),
        }
    }
}

fn name_of(class: Class) -> &'static str {
    match class {
        Class::Weights => "weights",
        Class::Gradients => "gradients",
        Class::Optimiser => "optimiser",
        Class::Activations => "activations",
        Class::Scratch => "scratch",
        Class::Inputs => "inputs",
        Class::Cache => "cache",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1 << 20), "1.00 MiB");
        assert_eq!(size(150 << 30), "150 GiB");
        assert_eq!(grouped(72_747_327_488), "72,747,327,488");
        assert_eq!(grouped(12), "12");
    }
}
