//! What no type can say: relations between numbers. Each refusal names a key and gives the numbers.

use super::{Action, Batch, Data, Eval, File, Guard, Optim, Sample, Schedule, Source, TokenizerChoice, Train};
use esker_data::mix::{Mix, MixError};
use esker_eval::tasks;
use esker_kernels::tensor::DType;

/// A key and what is wrong with it.
type Refusal = (String, String);

/// Tokens of a run are counted in f64 here and there, which is exact below this.
const TOKENS_MAX: u64 = 1 << 53;
/// More than anyone has put into a step, hundreds of times over: a step cannot be stopped in its middle.
const STEP_TOKENS_MAX: usize = 1 << 32;
/// A window longer than this is a mistake, and its state would be large.
const WINDOW_MAX: usize = 1 << 16;
/// More threads than any machine has.
const THREADS_MAX: usize = 4096;

/// Checks what the types of [`File`] leave open.
pub(super) fn check(f: &File) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let named = !f.name.is_empty() && f.name.len() <= 64 && !f.name.starts_with('.') && f.name.chars().all(plain);
    holds(named, "name", || {
        format!("{:?} names a folder: 1 to 64 letters, digits, '.', '_' or '-', and no leading '.'", f.name)
    })?;
    f.model.check().map_err(|e| (format!("model.{}", e.key), format!("{}: expected {}", e.got, e.want)))?;
    data(&f.data, f.model.vocab)?;
    batch(&f.batch, f.model.context)?;
    optim(&f.optim)?;
    train(&f.train)?;
    schedule(&f.schedule, f.train.steps)?;
    guard(&f.guard)?;
    let whole = (f.train.steps as u128) * (f.batch.tokens_per_step as u128);
    holds(whole <= TOKENS_MAX as u128, "train.steps", || {
        format!("{} steps of {} tokens are more than 2^53 tokens", f.train.steps, f.batch.tokens_per_step)
    })?;
    holds(f.validation.tokens >= f.batch.seq_len as u64, "validation.tokens", || {
        format!("{} is less than one sequence, batch.seq_len = {}", f.validation.tokens, f.batch.seq_len)
    })?;
    holds(f.checkpoint.keep_last >= 1, "checkpoint.keep_last", || "0 would keep none; at least 1".into())?;
    let outer = f.outer.as_ref().map_or(Ok(()), |outer| outer.check());
    outer.map_err(|(key, why)| (format!("outer.{key}"), why))?;
    if let Some(peers) = &f.peers {
        let slots = f.outer.as_ref().map(|outer| outer.slots);
        let slots = slots.ok_or_else(|| ("peers".to_string(), "needs a section [outer] beside it".to_string()))?;
        peers.check(slots).map_err(|(key, why)| (format!("peers.{key}"), why))?;
    }
    f.eval.as_ref().map_or(Ok(()), eval)?;
    f.sample.as_ref().map_or(Ok(()), sample)
}

fn holds(good: bool, key: &str, why: impl FnOnce() -> String) -> Result<(), Refusal> {
    if good { Ok(()) } else { Err((key.to_string(), why())) }
}

/// `value` is finite and `good`; `range` says what good is.
fn real(value: f64, good: bool, key: &str, range: &str) -> Result<(), Refusal> {
    holds(value.is_finite() && good, key, || format!("{value} is outside of {range}"))
}

fn data(d: &Data, vocab: usize) -> Result<(), Refusal> {
    match d.source {
        Source::Embedded => {
            let none = d.train.is_empty() && d.validation.is_empty();
            let key = if d.train.is_empty() { "data.validation" } else { "data.train" };
            holds(none, key, || {
                "must be [] with source = \"embedded\"; set source = \"shards\" to read shards".into()
            })?;
            holds(d.mixture.is_empty(), "data.mixture", || {
                "is of shards; set source = \"shards\", or leave it out with source = \"embedded\"".into()
            })?;
        }
        Source::Shards | Source::Foreign => {
            mixture(d)?;
            let kind = !matches!(d.tokenizer, TokenizerChoice::Bpe { .. });
            holds(kind, "data.tokenizer", || {
                "kind = \"bpe\" is trained on the embedded corpus; tokens on disk need the tokenizer they were made with: kind = \"file\" or \"bytes\"".into()
            })?;
        }
    }
    holds(d.foreign.is_none() || d.source == Source::Foreign, "data.foreign", || {
        "says how token files of other programs are read; set source = \"foreign\", or leave it out".into()
    })?;
    let needed = match d.tokenizer {
        TokenizerChoice::Bpe { vocab } => {
            holds(vocab >= 257, "data.tokenizer.vocab", || {
                format!("{vocab} leaves no room: 256 bytes and the end of a text need 257")
            })?;
            vocab as usize
        }
        TokenizerChoice::Bytes {} => 257,
        // Known when the file is read, and checked then.
        TokenizerChoice::File { .. } => 0,
    };
    holds(needed <= vocab, "model.vocab", || format!("{vocab} rows are too few for the tokenizer's {needed} tokens"))
}

/// Shards stand in `train` or in `mixture`, and weights are ones that a mixture can keep.
fn mixture(d: &Data) -> Result<(), Refusal> {
    if d.mixture.is_empty() {
        return holds(!d.train.is_empty(), "data.train", || {
            "is empty; name at least one shard of the training set, or several sets in [[data.mixture]]".into()
        });
    }
    holds(d.train.is_empty(), "data.train", || {
        "must be [] beside [[data.mixture]]; give these shards a source of their own there".into()
    })?;
    for (i, source) in d.mixture.iter().enumerate() {
        let key = |key: &str| format!("data.mixture[{i}].{key}");
        let plain = !source.name.is_empty() && source.name.len() <= 64 && !source.name.contains(char::is_control);
        holds(plain, &key("name"), || "1 to 64 characters, to be told by".into())?;
        let same = d.mixture[..i].iter().any(|other| other.name == source.name);
        holds(!same, &key("name"), || format!("{:?} is the name of another source", source.name))?;
        holds(!source.train.is_empty(), &key("train"), || "is empty; name at least one shard".into())?;
    }
    let weights: Vec<f64> = d.mixture.iter().map(|source| source.weight).collect();
    Mix::of_decimals(&weights).map(drop).map_err(|e| match e {
        MixError::Weight { source_number, .. } => (format!("data.mixture[{source_number}].weight"), e.to_string()),
        _ => ("data.mixture".into(), e.to_string()),
    })
}

fn eval(e: &Eval) -> Result<(), Refusal> {
    holds(!e.tasks.is_empty(), "eval.tasks", || format!("is empty; there are {}", tasks::NAMES.join(", ")))?;
    let unknown = e.tasks.iter().find(|name| !tasks::exists(name));
    holds(unknown.is_none(), "eval.tasks", || {
        format!("{:?} is no task; there are {}", unknown.expect("just found"), tasks::NAMES.join(", "))
    })
}

fn batch(b: &Batch, context: usize) -> Result<(), Refusal> {
    holds(b.tokens_per_step <= STEP_TOKENS_MAX, "batch.tokens_per_step", || {
        format!("{}; at most {STEP_TOKENS_MAX}, since a step is done as a whole", b.tokens_per_step)
    })?;
    holds(b.seq_len >= 1, "batch.seq_len", || "0; at least 1".into())?;
    holds(b.seq_len <= context, "batch.seq_len", || format!("{} is more than model.context = {context}", b.seq_len))?;
    holds(b.grain_rows >= 1, "batch.grain_rows", || "0; at least 1".into())?;
    holds(b.virtual_ranks.is_power_of_two(), "batch.virtual_ranks", || {
        format!("{} is no power of two", b.virtual_ranks)
    })?;
    holds(b.micro_rows >= 1 && b.micro_rows.is_multiple_of(b.grain_rows), "batch.micro_rows", || {
        format!("{} is no multiple of batch.grain_rows = {}", b.micro_rows, b.grain_rows)
    })?;
    let unit = b.seq_len.checked_mul(b.grain_rows).and_then(|n| n.checked_mul(b.virtual_ranks));
    let whole = unit.is_some_and(|unit| b.tokens_per_step >= 1 && b.tokens_per_step.is_multiple_of(unit));
    holds(whole, "batch.tokens_per_step", || {
        let product = format!(
            "batch.seq_len * batch.grain_rows * batch.virtual_ranks = {} * {} * {}",
            b.seq_len, b.grain_rows, b.virtual_ranks
        );
        match unit {
            None => format!("{product} is too large"),
            Some(unit) => {
                let near = (b.tokens_per_step / unit).max(1) * unit;
                format!("{} is no multiple of {product} = {unit}; the nearest below is {near}", b.tokens_per_step)
            }
        }
    })
}

fn optim(o: &Optim) -> Result<(), Refusal> {
    real(o.lr, o.lr > 0.0, "optim.lr", "(0, inf)")?;
    real(o.beta1, 0.0 <= o.beta1 && o.beta1 < 1.0, "optim.beta1", "[0, 1)")?;
    real(o.beta2, 0.0 <= o.beta2 && o.beta2 < 1.0, "optim.beta2", "[0, 1)")?;
    real(o.eps, o.eps > 0.0, "optim.eps", "(0, inf)")?;
    real(o.weight_decay, o.weight_decay >= 0.0, "optim.weight_decay", "[0, inf)")?;
    let shrink = o.lr * o.weight_decay;
    holds(shrink < 1.0, "optim.weight_decay", || {
        format!("lr * weight_decay = {} * {} = {shrink} takes a whole matrix away; below 1", o.lr, o.weight_decay)
    })?;
    real(o.clip_norm, o.clip_norm >= 0.0, "optim.clip_norm", "[0, inf), where 0 is off")
}

fn train(t: &Train) -> Result<(), Refusal> {
    holds(t.steps >= 1, "train.steps", || "0; at least 1".into())?;
    holds(t.dtype != DType::U32, "train.dtype", || "u32 is for tokens; f32 or bf16".into())?;
    holds(t.threads <= THREADS_MAX, "train.threads", || format!("{} threads; at most {THREADS_MAX}", t.threads))
}

fn schedule(s: &Schedule, steps: u64) -> Result<(), Refusal> {
    let ratio = |r: f64| real(r, (0.0..=1.0).contains(&r), "schedule.final_ratio", "[0, 1]");
    let fits = |n: u64, key: &str| holds(n <= steps, key, || format!("{n} is more than train.steps = {steps}"));
    match *s {
        Schedule::Cosine { warmup_steps, final_ratio } => {
            fits(warmup_steps, "schedule.warmup_steps")?;
            ratio(final_ratio)
        }
        Schedule::Wsd { warmup_steps, decay_steps, final_ratio } => {
            fits(warmup_steps, "schedule.warmup_steps")?;
            fits(decay_steps, "schedule.decay_steps")?;
            holds(warmup_steps.saturating_add(decay_steps) <= steps, "schedule.decay_steps", || {
                format!(
                    "warmup_steps + decay_steps = {warmup_steps} + {decay_steps} is more than train.steps = {steps}"
                )
            })?;
            ratio(final_ratio)
        }
        Schedule::Constant { warmup_steps } => fits(warmup_steps, "schedule.warmup_steps"),
    }
}

fn guard(g: &Guard) -> Result<(), Refusal> {
    real(g.sigma, g.sigma >= 0.0, "guard.sigma", "[0, inf), where 0 turns the guard off")?;
    let needed = if g.sigma > 0.0 || g.action == Action::Skip { 2 } else { 0 };
    holds((needed..=WINDOW_MAX).contains(&g.window), "guard.window", || {
        format!("{} is outside of {needed} to {WINDOW_MAX}", g.window)
    })
}

fn sample(s: &Sample) -> Result<(), Refusal> {
    holds(s.tokens >= 1, "sample.tokens", || "0; at least 1, or leave [sample] out".into())?;
    real(s.temperature.into(), s.temperature >= 0.0, "sample.temperature", "[0, inf)")?;
    real(s.top_p.into(), 0.0 < s.top_p && s.top_p <= 1.0, "sample.top_p", "(0, 1]")
}
