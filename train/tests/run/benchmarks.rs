//! Benchmarks in the loop: they are kept, drawn, and change no weight.

use crate::tiny::{Place, print, resume};
use esker_train::metrics;
use esker_train::report;

/// Rows that fit into the context of the tiny run.
fn rows(place: &Place) -> String {
    let piqa: String = (0..6)
        .map(|i| format!("{{\"goal\":\"g{i}\",\"sol1\":\"ice\",\"sol2\":\"oak\",\"label\":{}}}\n", i % 2))
        .collect();
    std::fs::write(place.dir.path().join("piqa.validation.jsonl"), piqa).unwrap();
    format!("eval={{every_steps=2,tasks=[\"piqa\"],data=\"{}\",limit=5}}", place.dir.path().display())
}

#[test]
fn benchmarks_in_the_loop_are_kept_and_change_nothing() {
    let place = Place::new();
    let section = rows(&place);
    let plain = place.train(place.run(&[]), 0);
    let scored = place.train(place.run(&[&section]), 0);
    assert_eq!(print(&scored), print(&plain));
    let kept = metrics::read_tasks(&scored.folder).unwrap();
    assert_eq!(kept.iter().map(|row| row.step).collect::<Vec<_>>(), [2, 4, 6]);
    assert!(kept.iter().all(|row| row.documents == 5 && row.metrics.contains_key("acc_norm_stderr,none")));
    // Stopped, and taken up again: the same lines.
    let stopped = place.train(place.run(&[&section]), 3);
    resume(&stopped.folder, None, 0).unwrap();
    assert_eq!(metrics::read_tasks(&stopped.folder).unwrap(), kept);
    let page = std::fs::read_to_string(report::write(&scored.folder).unwrap()).unwrap();
    assert!(page.contains("<h2>Benchmarks</h2>") && page.contains("piqa"), "no curve");
}

#[test]
fn a_section_that_cannot_be_run_is_refused_before_the_first_step() {
    let place = Place::new();
    let good = rows(&place);
    for (from, to, want) in [("\"piqa\"", "\"pika\"", "eval.tasks"), ("[\"piqa\"]", "[]", "eval.tasks")] {
        let error = esker_train::config::parse(&place.toml(), "tiny.toml", &[good.replace(from, to)]).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    std::fs::remove_file(place.dir.path().join("piqa.validation.jsonl")).unwrap();
    let run = place.run(&[&good]);
    let error = crate::tiny::train(esker_train::run::Start::New { run, out: place.out() }, 0).unwrap_err().to_string();
    assert!(error.contains("piqa.validation.jsonl"), "{error}");
}
