//! A run on a device is the run on the CPU, but for rounding: the simulator trains as a card would.

use crate::tiny::{self, Place};
use esker_kernels::device::Kind;
use esker_train::metrics;
use esker_train::run::{Outcome, Start};

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
