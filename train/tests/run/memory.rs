//! Memory is what the plan says: the arena to the byte, the process within 2 % and 20 MB.

use crate::tiny::{self, Place};
use esker_kernels::device::Stream;
use esker_kernels::tensor::Arena;
use esker_train::plan::Plan;
use esker_train::state::State;
use std::process::Command;

/// Set in the child process, to the folder of the shards.
const CHILD: &str = "ESKER_MEMORY_CHILD";
const DTYPE: &str = "ESKER_MEMORY_DTYPE";

#[test]
fn the_arena_takes_what_the_plan_says() {
    let place = Place::new();
    for sets in [
        ["train.dtype=f32", "batch.virtual_ranks=1", "train.recompute=none", "model.tied=true"],
        ["train.dtype=bf16", "batch.virtual_ranks=4", "train.recompute=block", "model.tied=false"],
        ["train.dtype=bf16", "batch.virtual_ranks=8", "train.recompute=none", "data.document_mask=false"],
    ] {
        let run = place.run(&sets);
        let plan = Plan::of(&run);
        let stream = Stream::cpu(run.train.threads).unwrap();
        let (_state, table) = Arena::build(&stream, |arena| State::layout(arena, &run)).unwrap();
        assert_eq!(table, plan.bytes, "{sets:?}");
        assert_eq!(table.values().sum::<usize>() as u64, plan.arena_bytes);
        assert_eq!(stream.own_bytes() as u64, plan.stream_bytes);
    }
}

fn large(dtype: &str) -> Vec<String> {
    let dtype = format!("train.dtype={dtype}");
    let sets = [
        "model.vocab=8192",
        "model.context=256",
        "model.hidden=256",
        "model.layers=4",
        "model.heads=4",
        "model.kv_heads=4",
        "model.head_dim=64",
        "model.ffn=704",
        "batch.tokens_per_step=1024",
        "batch.seq_len=256",
        "batch.micro_rows=4",
        "validation.tokens=512",
        "schedule.warmup_steps=0",
        "train.steps=2",
        "train.threads=2",
    ];
    sets.into_iter().map(String::from).chain([dtype]).collect()
}

/// Trains in a process of its own when the test below asks for it.
#[test]
fn child() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let sets = large(&std::env::var(DTYPE).unwrap());
    let toml = tiny::TOML.replace('@', &folder);
    let run = esker_train::config::parse(&toml, "tiny.toml", &sets).unwrap();
    let out = std::path::Path::new(&folder).join("runs");
    tiny::train(esker_train::run::Start::New { run, out }, 0).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    println!("peak kB: {}", peak.trim().trim_end_matches("kB").trim());
}

#[test]
#[cfg(target_os = "linux")]
fn the_peak_of_a_process_is_that_of_the_plan() {
    let place = Place::new();
    for dtype in ["f32", "bf16"] {
        let sets = large(dtype);
        let run = place.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
        let plan = Plan::of(&run);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::child", "--nocapture", "--test-threads=1"])
            .env(CHILD, place.dir.path())
            .env(DTYPE, dtype)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|l| l.split("peak kB: ").nth(1)).unwrap_or_else(|| panic!("{text}"));
        let peak = line.trim().parse::<u64>().unwrap() << 10;
        let allowed = plan.total_bytes / 50 + (20 << 20);
        println!("{dtype}: plan {}, peak {peak}", plan.total_bytes);
        assert!(plan.total_bytes.abs_diff(peak) <= allowed, "{dtype}: peak {peak}, plan {plan}");
    }
}
