//! Runs on several sources, on token files of other programs, and the choices at the bounds of documents.

use crate::tiny::{Place, print, resume, train};
use esker_data::shard::{Check, Shard};
use esker_train::{metrics, run::Start};

/// Seven rows of ten from the training shard, the rest from the smaller one, which is read several times over.
fn mixture(place: &Place, names: [&str; 2], weights: [f64; 2]) -> String {
    let source = |i: usize, file: &str| {
        let path = place.dir.path().join(file);
        format!("{{ name = \"{}\", weight = {}, train = [\"{}\"] }}", names[i], weights[i], path.display())
    };
    format!("data.mixture=[{}, {}]", source(0, "train-00000.shard"), source(1, "val-00000.shard"))
}

#[test]
fn a_mixture_resumes_and_does_not_depend_on_micro_batches() {
    let place = Place::new();
    let mixed = mixture(&place, ["web", "books"], [0.7, 0.3]);
    let sets = ["data.train=[]", mixed.as_str(), "batch.virtual_ranks=2", "train.steps=12"];
    let run = |more: &[&str]| place.run(&[sets.as_slice(), more].concat());
    let straight = print(&place.train(run(&[]), 0));
    assert_eq!(print(&place.train(run(&["batch.micro_rows=3", "train.threads=2"]), 0)), straight);
    for stop in [1, 6, 11] {
        let stopped = place.train(run(&[]), stop);
        // The configuration that the folder keeps is the mixture.
        assert_eq!(print(&resume(&stopped.folder, None, 0).unwrap()), straight, "stopped after {stop}");
    }
    let plain = print(&place.train(place.run(&["batch.virtual_ranks=2", "train.steps=12"]), 0));
    assert_ne!(plain.weights, straight.weights);

    // Other names are the same run; other weights, or the sources the other way round, are not.
    let stopped = place.train(run(&[]), 3);
    let renamed = mixture(&place, ["a", "b"], [7.0, 3.0]);
    let refused = resume(&stopped.folder, Some(run(&[&renamed])), 0).unwrap_err().to_string();
    assert!(refused.contains("data.mixture was"), "{refused}");
    let renamed = mixture(&place, ["a", "b"], [0.7, 0.3]);
    assert_eq!(print(&resume(&stopped.folder, Some(run(&[&renamed])), 0).unwrap()).weights, straight.weights);
}

/// A run on a file of nanoGPT takes the steps of the run on the shard with the same tokens, and knows the file again.
#[test]
fn token_files_of_other_programs_are_read_in_place() {
    let place = Place::new();
    let shard = Shard::open(&place.dir.path().join("train-00000.shard"), Check::Everything).unwrap();
    let mut ids = vec![0; shard.header().tokens as usize];
    shard.tokens(0, &mut ids).unwrap();
    let file = place.dir.path().join("train.bin");
    let write = |ids: &[u32]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect();
        std::fs::write(&file, bytes).unwrap();
    };
    write(&ids);
    let named = format!("data.train=[\"{}\"]", file.display());
    let foreign = ["data.source=foreign", "data.foreign={ format = \"nanogpt\", dtype = \"u16\" }", named.as_str()];
    let ours = print(&place.train(place.run(&[]), 0));
    let theirs = print(&place.train(place.run(&foreign), 0));
    assert_eq!((ours.weights, &ours.steps, &ours.evals), (theirs.weights, &theirs.steps, &theirs.evals));

    let stopped = place.train(place.run(&foreign), 3);
    assert_eq!(print(&resume(&stopped.folder, None, 0).unwrap()), theirs);
    let stopped = place.train(place.run(&foreign), 3);
    ids.swap(5, 6);
    write(&ids);
    let refused = resume(&stopped.folder, None, 0).unwrap_err().to_string();
    assert!(refused.contains("tokens"), "{refused}");
    ids[9] = 300;
    write(&ids);
    let steps = [foreign.as_slice(), &["train.steps=60"]].concat();
    let refused = train(Start::New { run: place.run(&steps), out: place.out() }, 0).unwrap_err().to_string();
    assert!(refused.contains("train.bin") && refused.contains("300"), "{refused}");
}

#[test]
fn a_first_token_of_a_document_is_a_target_where_that_is_asked_for() {
    let place = Place::new();
    let targets = |sets: &[&str]| -> u64 {
        let outcome = place.train(place.run(&[sets, &["train.steps=3", "schedule.warmup_steps=0"]].concat()), 0);
        metrics::read_steps(&outcome.folder).unwrap().iter().map(|row| row.targets).sum()
    };
    let all = 3 * 128;
    for mask in ["data.document_mask=true", "data.document_mask=false"] {
        assert_eq!(targets(&[mask, "data.boundary_loss=true"]), all);
        let without = targets(&[mask, "data.boundary_loss=false"]);
        assert!((1..all).contains(&without), "{without} of {all} targets");
    }
    assert_eq!(targets(&["data.document_mask=false"]), all);
    assert!(targets(&[]) < all);
    // Written out or left out, the same run.
    let stopped = place.train(place.run(&[]), 3);
    let run = place.run(&["data.boundary_loss=false"]);
    resume(&stopped.folder, Some(run), 0).unwrap();
    let stopped = place.train(place.run(&[]), 3);
    let refused = resume(&stopped.folder, Some(place.run(&["data.boundary_loss=true"])), 0).unwrap_err().to_string();
    assert!(refused.contains("data.boundary_loss was absent and is now true"), "{refused}");
}
