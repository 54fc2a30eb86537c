//! The graders against verdicts of lm-evaluation-harness 0.4.13, one case a line: see `tools/make_grader_cases.py`.
//!
//! The cases under `tests/graders` run always; `ESKER_GRADER_CASES=FILE[:FILE]` with `--ignored` runs others and prints
//! how many agree.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use esker_eval::graders::math::{hendrycks, minerva};
use esker_eval::graders::{gsm8k, ifeval};
use serde_json::Value;

/// Verdicts that agree, all verdicts, by grader and name.
type Tally = BTreeMap<String, (usize, usize)>;

fn cases(path: &Path) -> Vec<Value> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzipped UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a case is JSON")).collect()
}

/// The verdicts of one case: the name of each, ours, theirs.
fn verdicts(case: &Value) -> Vec<(String, Value, Value)> {
    let text = |key: &str| case[key].as_str().unwrap_or_else(|| panic!("{key} of {case}"));
    let named = |name: &str, ours: Value| (name.to_owned(), ours, case[name].clone());
    match text("grader") {
        "gsm8k" => {
            let (strict, flexible) =
                (gsm8k::strict_match(text("generation")), gsm8k::flexible_extract(text("generation")));
            vec![
                named("strict_match", gsm8k::exact_match(&strict, text("answer")).into()),
                named("flexible_match", gsm8k::exact_match(&flexible, text("answer")).into()),
                named("strict", strict.into()),
                named("flexible", flexible.into()),
            ]
        }
        "hendrycks" => {
            vec![named("exact_match", hendrycks::process_results(text("generation"), text("solution")).into())]
        }
        "minerva" => {
            let ours = minerva::process_results(text("generation"), text("solution"));
            let answer = minerva::normalize_final_answer(&minerva::unnormalized_answer(text("generation")));
            vec![
                named("answer", answer.into()),
                named("exact_match", ours.exact_match.into()),
                named("math_verify", ours.math_verify.into()),
            ]
        }
        "ifeval" => {
            let list = |key: &str| case[key].as_array().unwrap_or_else(|| panic!("{key} of {case}"));
            let ids: Vec<&str> = list("instruction_id_list").iter().map(|id| id.as_str().expect("an id")).collect();
            let ours = ifeval::verdict(&ids, list("kwargs"), text("response")).unwrap_or_else(|e| panic!("{e}"));
            let row = |level: &str, flags: &[bool]| {
                let pairs =
                    ids.iter().zip(flags).zip(list(level)).map(|((id, ours), theirs)| (id, *ours, theirs.clone()));
                pairs.map(|(id, ours, theirs)| (format!("{level} {id}"), ours.into(), theirs)).collect::<Vec<_>>()
            };
            [row("strict", &ours.strict), row("loose", &ours.loose)].concat()
        }
        other => panic!("no grader is called {other}"),
    }
}

fn compare(path: &Path, show: usize) -> Tally {
    let mut tally = Tally::new();
    let mut shown = 0;
    for case in cases(path) {
        for (name, ours, theirs) in verdicts(&case) {
            let count = tally.entry(format!("{} {name}", case["grader"].as_str().expect("checked"))).or_default();
            count.1 += 1;
            if ours == theirs {
                count.0 += 1;
            } else if shown < show {
                shown += 1;
                println!("{name}: ours {ours}, theirs {theirs}: {case}");
            }
        }
    }
    tally
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graders").join(name)
}

/// All verdicts of a fixture agree.
fn check(name: &str) {
    let tally = compare(&fixture(name), 5);
    assert!(!tally.is_empty());
    for (name, (agree, all)) in tally {
        assert_eq!(agree, all, "{name}: {agree} of {all} agree");
    }
}

#[test]
fn gsm8k_agrees_with_the_harness() {
    check("gsm8k.jsonl.gz");
}

#[test]
fn hendrycks_math_agrees_with_the_harness() {
    check("hendrycks.jsonl.gz");
}

#[test]
fn minerva_math_agrees_with_the_harness() {
    check("minerva.jsonl.gz");
}

#[test]
fn ifeval_agrees_with_the_harness() {
    check("ifeval.jsonl.gz");
}

#[test]
#[ignore = "needs files of cases, named by ESKER_GRADER_CASES"]
fn other_cases() {
    let files = std::env::var("ESKER_GRADER_CASES").expect("ESKER_GRADER_CASES names files of cases");
    for file in files.split(':') {
        for (name, (agree, all)) in compare(Path::new(file), 20) {
            println!("{file}: {name}: {agree} of {all} agree");
        }
    }
}
