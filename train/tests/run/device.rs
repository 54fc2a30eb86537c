//! A run on a device is the run on the CPU, but for rounding: the simulator trains as a card would.

use crate::tiny::{self, Place};
use esker_kernels::device::{Kind, Stream};
use esker_kernels::gpu::{Counts, Gpu, OWN_BYTES};
use esker_kernels::tensor::{Arena, DType};
use esker_train::bare::{self, Sizes};
use esker_train::masters::{self, Masters};
use esker_train::metrics;
use esker_train::optim;
use esker_train::plan::Plan;
use esker_train::run::{Outcome, Start};
use esker_train::state::State;

/// Three steps of the tiny run, of two layers, on `device`.
fn three_steps(device: Kind, sets: &[&str]) -> (Place, Outcome) {
    let place = Place::new();
    let all = [&["train.steps=3", "validation.every_steps=0", "validation.tokens=32"], sets].concat();
    let start = Start::New { run: place.run(&all), out: place.out() };
    let outcome = tiny::train_on(device, start, 0).unwrap_or_else(|e| panic!("{e}"));
    (place, outcome)
}

fn agree(sets: &[&str], tolerance: f64) {
    let (cpu, sim) = (three_steps(Kind::Cpu, sets), three_steps(Kind::Sim, sets));
    let rows = |o: &Outcome| metrics::read_steps(&o.folder).unwrap();
    let (cpu_rows, sim_rows) = (rows(&cpu.1), rows(&sim.1));
    assert_eq!((cpu_rows.len(), sim_rows.len()), (3, 3));
    for (a, b) in cpu_rows.iter().zip(&sim_rows) {
        assert!((a.loss - b.loss).abs() <= tolerance * a.loss, "{sets:?}: loss {} and {}", a.loss, b.loss);
        let (x, y) = (a.grad_norm, b.grad_norm);
        assert!((x - y).abs() <= 10.0 * tolerance * x, "{sets:?}: gradient norm {x} and {y}");
    }
}

#[test]
fn three_steps_on_the_simulator_are_those_of_the_cpu() {
    agree(&[], 1e-5);
}

#[test]
fn three_steps_in_bf16_are_those_of_the_cpu() {
    // Heads of eight and rows of whole pieces: what tensor cores take.
    agree(&["train.dtype=bf16", "model.head_dim=8", "model.hidden=32", "train.recompute=block"], 5e-3);
}

/// A checkpoint does not know where it was made.
#[test]
fn a_run_moves_from_the_cpu_to_a_device_and_back() {
    let place = Place::new();
    let sets = ["train.steps=4", "validation.every_steps=0", "validation.tokens=32"];
    let straight = tiny::train_on(Kind::Cpu, Start::New { run: place.run(&sets), out: place.out() }, 0).unwrap();
    let mut moved = tiny::train_on(Kind::Cpu, Start::New { run: place.run(&sets), out: place.out() }, 2).unwrap();
    for (device, stop) in [(Kind::Sim, 3), (Kind::Cpu, 0)] {
        let start = Start::Resume { folder: moved.folder.clone(), run: None };
        moved = tiny::train_on(device, start, stop).unwrap();
    }
    let rows = [straight, moved].map(|o| metrics::read_steps(&o.folder).unwrap());
    assert_eq!((rows[0].len(), rows[1].len()), (4, 4));
    for (a, b) in rows[0].iter().zip(&rows[1]) {
        assert!((a.loss - b.loss).abs() <= 1e-5 * a.loss, "step {}: loss {} and {}", a.step, a.loss, b.loss);
    }
}

/// In a bf16 run a device keeps masters in halves: a stop and a resume there change no bit, and the CPU goes on from them.
#[test]
fn masters_in_halves_survive_a_checkpoint() {
    let place = Place::new();
    let sets = ["train.steps=3", "validation.every_steps=0", "validation.tokens=32", "train.dtype=bf16"];
    let sets = [&sets[..], &["model.head_dim=8", "model.hidden=32", "checkpoint.keep_last=3"]].concat();
    let new = || Start::New { run: place.run(&sets), out: place.out() };
    let resume = |from: &Outcome| Start::Resume { folder: from.folder.clone(), run: None };
    let straight = tiny::train_on(Kind::Sim, new(), 2).unwrap();
    let moved = tiny::train_on(Kind::Sim, new(), 1).unwrap();
    let moved = tiny::train_on(Kind::Sim, resume(&moved), 2).unwrap();
    assert_eq!(tiny::print(&straight), tiny::print(&moved));
    let (ended, other) = (
        tiny::train_on(Kind::Cpu, resume(&moved), 0).unwrap(),
        tiny::train_on(Kind::Sim, resume(&straight), 0).unwrap(),
    );
    let (a, b) = (ended.last_loss.unwrap(), other.last_loss.unwrap());
    assert!((a - b).abs() <= 5e-3 * a, "loss {a} and {b}");
}

/// Masters after some steps whose learning rate, clip, scale and tokens change each time; and what graphs did.
fn some_steps(graphs: bool) -> (Vec<u8>, Counts) {
    let place = Place::new();
    let like = place.run(&["train.dtype=bf16", "model.head_dim=8", "model.hidden=32"]);
    let sizes = Sizes { rows: 2, seq: 16, steps: 1, dtype: DType::Bf16 };
    let run = bare::run(like.model.clone(), &sizes, like.optim.clone()).unwrap();
    let gpu = Gpu::sim(1, false, 1).unwrap();
    gpu.use_graphs(graphs);
    let s = Stream::Gpu(gpu.clone());
    let mut state = Arena::build(&s, |arena| State::layout_as(arena, &run, Masters::Split)).unwrap().0;
    state.buffers.ready(&s, &run.model).unwrap();
    state.draw(&s, &run).unwrap();
    for t in 1..6u32 {
        let ids: Vec<u32> = (0..32).map(|i| (i * i + 31 * t) % 257).collect();
        s.upload_u32(&ids, &mut state.buffers.inputs).unwrap();
        s.upload_u32(&ids, &mut state.buffers.targets).unwrap();
        let part = s.graph("step", 0, || {
            let State { master, grads, buffers, .. } = &mut state;
            esker_model::train_micro(&s, &run.model, master, grads, buffers, 2, 1.0 / (32 + t) as f32)?;
            state.grads.join(&s)?;
            optim::update(&s, &run, &mut state, 1e-2 / f64::from(t), t.into(), 1.0 / t as f32)
        });
        part.unwrap();
    }
    let whole = masters::join(&run, &state).unwrap().expect("halves");
    (whole.each().flat_map(|(_, t)| t.bytes().to_vec()).collect(), gpu.counts())
}

/// What a step is given is read afresh each time, though its launches are those of a graph built once.
#[test]
fn steps_as_graphs_have_the_bits_of_single_launches() {
    let (graphs, single) = (some_steps(true), some_steps(false));
    assert_eq!(single.1, Counts::default());
    assert!(graphs.0 == single.0, "masters differ");
    let counts = graphs.1;
    // The first time the weights come over in the midst of it, the second all launches are seen in a row, the third builds
    // one graph of forward, backward and update.
    assert_eq!((counts.built, counts.graphs), (1, 3), "{counts:?}");
    assert!(counts.single > 120 && 2 * counts.kernels == 3 * counts.single, "{counts:?}");
    // Twenty tensors and the loss were given other numbers, twice after that; nothing else was touched.
    let tensors = 1 + 2 * 9 + 1;
    assert_eq!(counts.changed, 2 * (tensors + 1), "{counts:?}");
}

/// A plan for a device is what a run takes there, to the byte; with a byte less it is refused before it begins.
#[test]
fn a_run_that_its_device_cannot_hold_is_refused() {
    let place = Place::new();
    let run = place.run(&["train.dtype=bf16"]);
    let plan = Plan::on_device(&run, None);
    let place_on = |bytes: u64| {
        let s = Stream::Gpu(Gpu::sim_of(bytes as usize, 1)?);
        let free = s.free_bytes()?.expect("a device");
        let placed = Arena::build(&s, |arena| State::layout_as(arena, &run, Masters::Split));
        placed.map(|_| free)
    };
    let free = place_on(plan.total_bytes).unwrap();
    assert_eq!(free as u64, plan.total_bytes - OWN_BYTES as u64);
    Plan::on_device(&run, Some(free as u64)).check_device().unwrap();
    assert!(place_on(plan.total_bytes - 1).is_err());
    let said = Plan::on_device(&run, Some(free as u64 - 1)).check_device().unwrap_err().to_string();
    assert!(said.contains("the device's memory") && said.contains("batch.micro_rows = 1"), "{said}");
    assert!(!said.contains('\n'), "{said}");
    // Four bytes a number of a matrix, where whole masters and their copy take six.
    let (split, whole) = (&plan.bytes, Plan::of(&run).bytes);
    let class = esker_kernels::tensor::Class::Weights;
    assert!((split[&class] as f64) < 0.7 * whole[&class] as f64);
}

/// Two hundred steps on the simulator end where they end on the CPU, in both kinds of arithmetic. Some minutes, optimised:
/// `cargo test --release -p esker-train --test run two_hundred -- --ignored --nocapture`.
#[test]
#[ignore = "minutes"]
fn two_hundred_steps_end_where_the_cpu_ends() {
    for (dtype, more) in [("f32", ""), ("bf16", "model.head_dim=8")] {
        let dtype_set = format!("train.dtype={dtype}");
        let sets = ["train.steps=200", "batch.tokens_per_step=32", "batch.micro_rows=2", "validation.every_steps=0"];
        let mut sets = [&sets[..], &[&dtype_set, "model.hidden=32", "optim.lr=3e-3"]].concat();
        sets.extend(Some(more).filter(|more| !more.is_empty()));
        let place = Place::new();
        let ends = [Kind::Cpu, Kind::Sim].map(|device| {
            let start = Start::New { run: place.run(&sets), out: place.out() };
            let outcome = tiny::train_on(device, start, 0).unwrap();
            let rows = metrics::read_steps(&outcome.folder).unwrap();
            let last = rows[180..].iter().map(|row| row.loss).sum::<f64>() / 20.0;
            println!(
                "{dtype} {device:?}: first {:.4}, last 20 {last:.5}, validation {:?}",
                rows[0].loss, outcome.validation
            );
            (last, outcome.validation.unwrap().nll)
        });
        let [(a, x), (b, y)] = ends;
        println!(
            "{dtype}: {:.4} % of the loss, {:.4} % of validation",
            100.0 * (a - b).abs() / a,
            100.0 * (x - y).abs() / x
        );
        assert!((a - b).abs() <= 5e-3 * a && (x - y).abs() <= 5e-3 * x, "{dtype}: {ends:?}");
    }
}

/// A machine without a driver says so in one line.
#[test]
fn without_a_driver_there_is_one_clear_line() {
    if esker_kernels::gpu::card::driver_present() {
        return;
    }
    let place = Place::new();
    let start = Start::New { run: place.run(&[]), out: place.out() };
    let Err(said) = tiny::train_on(Kind::Cuda, start, 0) else { panic!("there is no driver") };
    let said = said.to_string();
    assert!(said.contains("no NVIDIA driver") && said.contains("--device cpu") && !said.contains('\n'), "{said}");
}
