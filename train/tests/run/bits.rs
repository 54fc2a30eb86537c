//! The same bits: a step's result is a function of the configuration, not of threads, micro-batch or a second try.

use crate::tiny::{Place, Print, print};

/// Trains with each of `variants` on top of `base` and holds weights, optimiser, losses and validations equal.
fn check(base: &[&str], variants: &[&[&str]]) -> Print {
    let place = Place::new();
    let straight = print(&place.train(place.run(base), 0));
    assert_eq!(straight.steps.len(), 6);
    for variant in variants {
        let sets: Vec<&str> = base.iter().chain(*variant).copied().collect();
        let other = print(&place.train(place.run(&sets), 0));
        assert_eq!(other, straight, "{sets:?} against {base:?}");
    }
    straight
}

const HARMLESS: &[&[&str]] = &[
    &[],
    &["train.threads=2"],
    &["train.threads=3"],
    &["batch.micro_rows=1"],
    &["batch.micro_rows=2", "train.threads=2"],
    &["batch.micro_rows=3"],
    &["batch.micro_rows=5", "train.threads=3"],
    &["batch.micro_rows=8"],
    &["batch.micro_rows=64"],
    &["train.recompute=block"],
];

#[test]
fn f32_with_a_tied_embedding() {
    check(&[], HARMLESS);
}

#[test]
fn f32_untied_with_qk_norm_and_no_document_mask() {
    check(&["model.tied=false", "model.family=qwen3", "data.document_mask=false"], HARMLESS);
}

#[test]
fn bf16() {
    check(&["train.dtype=bf16"], HARMLESS);
}

#[test]
fn grains_of_two_rows() {
    let variants: &[&[&str]] =
        &[&["batch.micro_rows=2"], &["batch.micro_rows=6", "train.threads=2"], &["batch.micro_rows=8"]];
    check(&["batch.grain_rows=2"], variants);
    check(&["batch.grain_rows=2", "train.dtype=bf16"], variants);
}

#[test]
fn virtual_ranks() {
    let variants: &[&[&str]] = &[&["batch.micro_rows=1"], &["batch.micro_rows=3", "train.threads=2"]];
    let mut losses = Vec::new();
    for dtype in ["train.dtype=f32", "train.dtype=bf16"] {
        let ranks =
            ["batch.virtual_ranks=1", "batch.virtual_ranks=2", "batch.virtual_ranks=4", "batch.virtual_ranks=8"];
        let prints: Vec<Print> = ranks.map(|ranks| check(&[dtype, ranks], variants)).into();
        // Another order of additions, so other bits, but the same numbers: the first loss agrees to f64 rounding.
        losses.push(prints);
    }
    for prints in losses {
        let loss = |p: &Print| -> f64 {
            let text = p.steps[0].split("loss: ").nth(1).unwrap();
            text.split(',').next().unwrap().parse().unwrap()
        };
        for p in &prints[1..] {
            assert!((loss(p) - loss(&prints[0])).abs() < 1e-12);
            assert_ne!(p.state, prints[0].state, "the configuration is part of the state");
        }
    }
}

#[test]
fn another_seed_gives_other_bits() {
    let place = Place::new();
    let a = print(&place.train(place.run(&[]), 0));
    let b = print(&place.train(place.run(&["seed=8"]), 0));
    assert_ne!(a.weights, b.weights);
    assert_ne!(a.steps, b.steps);
}
