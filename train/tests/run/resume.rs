//! Stop and resume: at every step, under every precision, the end is that of the straight run.

use crate::tiny::{Place, print, resume, train};
use esker_train::run::{Start, TrainError};

/// Stops after each step in turn and resumes; then once more, stopping after every single step.
fn check(sets: &[&str]) {
    let place = Place::new();
    let run = place.run(sets);
    let straight = print(&place.train(run.clone(), 0));
    for stop in 1..run.train.steps {
        let stopped = place.train(run.clone(), stop);
        assert!(stopped.stopped && stopped.step == stop);
        let resumed = resume(&stopped.folder, None, 0).unwrap();
        assert!(!resumed.stopped);
        assert_eq!(print(&resumed), straight, "{sets:?}, stopped after {stop}");
    }
    let mut outcome = place.train(run.clone(), 1);
    for stop in 2..=run.train.steps {
        outcome = resume(&outcome.folder, Some(run.clone()), stop).unwrap();
    }
    assert_eq!(print(&outcome), straight, "{sets:?}, stopped after every step");
}

#[test]
fn f32_resumes_at_every_step() {
    check(&[]);
}

#[test]
fn bf16_resumes_at_every_step() {
    check(&["train.dtype=bf16", "model.tied=false"]);
}

#[test]
fn ranks_and_a_full_guard_resume_at_every_step() {
    // A low sigma skips some updates, which the window and the count of updates must survive.
    check(&["batch.virtual_ranks=4", "guard.window=2", "guard.sigma=0.5", "guard.action=skip", "train.steps=9"]);
}

#[test]
fn harmless_keys_may_change_on_resume() {
    let place = Place::new();
    let straight = print(&place.train(place.run(&[]), 0));
    let stopped = place.train(place.run(&[]), 3);
    let sets = ["train.threads=2", "batch.micro_rows=3", "train.recompute=block", "checkpoint.keep_last=1"];
    let resumed = resume(&stopped.folder, Some(place.run(&sets)), 0).unwrap();
    assert_eq!(print(&resumed), straight);
    assert_eq!(std::fs::read_dir(stopped.folder.join("ckpt")).unwrap().count(), 1);
}

#[test]
fn what_changes_a_result_is_refused_by_name() {
    let place = Place::new();
    let stopped = place.train(place.run(&[]), 3);
    let before = std::fs::read(stopped.folder.join("config.toml")).unwrap();
    for (set, want) in [
        ("optim.lr=2e-2", "optim.lr was 0.01 and is now 0.02"),
        ("seed=8", "seed was 7 and is now 8"),
        ("train.steps=7", "train.steps was 6 and is now 7"),
        ("batch.virtual_ranks=2", "batch.virtual_ranks was 1 and is now 2"),
        ("schedule.warmup_steps=1", "schedule.warmup_steps was 2 and is now 1"),
        ("guard.sigma=5.0", "guard.sigma was 6.0 and is now 5.0"),
    ] {
        let error = resume(&stopped.folder, Some(place.run(&[set])), 0).unwrap_err().to_string();
        assert!(error.contains(want), "{set}: {error}");
    }
    assert_eq!(std::fs::read(stopped.folder.join("config.toml")).unwrap(), before, "a refusal changes nothing");
    resume(&stopped.folder, None, 0).unwrap();
}

#[test]
fn a_constant_schedule_may_be_prolonged() {
    let place = Place::new();
    let constant = |steps: &str| {
        let steps = format!("train.steps={steps}");
        place.run(&["schedule={ kind = \"constant\", warmup_steps = 2 }", &steps])
    };
    let straight = place.train(constant("8"), 0);
    let short = place.train(constant("5"), 0);
    let longer = resume(&short.folder, Some(constant("8")), 0).unwrap();
    assert_eq!(print(&longer).weights, print(&straight).weights);
    assert_eq!(print(&longer).state, print(&straight).state);
}

#[test]
fn other_tokens_are_refused() {
    let place = Place::new();
    let stopped = place.train(place.run(&[]), 3);
    let text = place.toml().replace("train-00000.shard", "val-00000.shard");
    let other = esker_train::config::parse(&text, "other.toml", &[]).unwrap();
    let error = resume(&stopped.folder, Some(other), 0).unwrap_err().to_string();
    assert!(error.contains("other training tokens"), "{error}");
}

#[test]
fn a_finished_run_stays_finished() {
    let place = Place::new();
    let done = place.train(place.run(&[]), 0);
    let again = resume(&done.folder, None, 0).unwrap();
    assert!(again.step == 6 && again.last_loss.is_none());
    assert_eq!(print(&again), print(&done));
}

#[test]
fn a_run_without_a_checkpoint_yet_begins_again() {
    let place = Place::new();
    let straight = place.train(place.run(&[]), 0);
    std::fs::remove_dir_all(straight.folder.join("ckpt/step-000006")).unwrap();
    let before = print(&place.train(place.run(&[]), 0));
    let again = resume(&straight.folder, None, 0).unwrap();
    assert_eq!(print(&again), before);
}

#[test]
fn a_loss_that_is_no_number_stops_before_the_update() {
    let place = Place::new();
    // Weights explode, and the loss with them.
    let sets = ["optim.lr=1e30", "optim.weight_decay=0.0", "optim.clip_norm=0.0", "schedule.warmup_steps=0"];
    let error = train(Start::New { run: place.run(&sets), out: place.out() }, 0).unwrap_err();
    assert!(matches!(error, TrainError::Diverged { .. }), "{error}");
    let skipping = [sets.as_slice(), &["guard.action=skip"]].concat();
    let outcome = place.train(place.run(&skipping), 0);
    let rows = esker_train::metrics::read_steps(&outcome.folder).unwrap();
    assert!(rows.iter().any(|row| row.skipped));
}
