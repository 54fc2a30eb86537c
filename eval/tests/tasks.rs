//! Benchmarks against what lm-evaluation-harness 0.4.13 asks and makes of the answers.
//!
//! The goldens were written by tools/make_eval_golden.py on the rows in `data/` (their README names the sources). Its
//! model answers by a digest of the strings, so the same answers are given here.

use esker_eval::report;
use esker_eval::request::{Answer, Request};
use esker_eval::tasks::{Options, Suite, Task, TaskError};
use serde::Deserialize;
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

fn load(name: &str, shots: Option<usize>, limit: Option<usize>) -> Suite {
    let options = Options { limit, num_fewshot: shots, bootstrap_iters: 1000, ..Options::default() };
    Suite::load(&[name], &here("data"), &options).unwrap_or_else(|e| panic!("{name}, {shots:?} shots: {e}"))
}

fn unzipped(path: &Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).expect("a golden file");
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    text
}

/// A document of requests.jsonl.gz.
#[derive(Deserialize)]
struct Golden {
    task: String,
    shots: Option<usize>,
    doc_id: usize,
    requests: Vec<(String, Value)>,
}

fn same(got: &Request, want: &(String, Value)) -> bool {
    match got {
        Request::LogLikelihood { context, continuation } => *context == want.0 && want.1 == **continuation,
        Request::Generate { context, until, max_tokens } => {
            *context == want.0 && want.1["until"] == serde_json::json!(until) && want.1["max_gen_toks"] == *max_tokens
        }
        Request::Rolling { .. } => false,
    }
}

#[test]
fn every_string_is_the_harnesses() {
    let goldens: Vec<Golden> = unzipped(&here("golden/requests.jsonl.gz"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("a golden line"))
        .collect();
    let (mut at, mut tasks) = (0, 0);
    while at < goldens.len() {
        let (name, shots) = (&goldens[at].task, goldens[at].shots);
        let suite = load(name, shots, Some(4));
        let mut asked = suite.tasks[0].requests().into_iter();
        while at < goldens.len() && goldens[at].task == *name && goldens[at].shots == shots {
            for want in &goldens[at].requests {
                let got = asked.next().unwrap_or_else(|| panic!("{name}, {shots:?}: too few requests"));
                assert!(
                    same(&got, want),
                    "{name}, {shots:?} shots, document {}:\n{got:?}\n{want:?}",
                    goldens[at].doc_id
                );
            }
            at += 1;
        }
        assert_eq!(asked.next(), None, "{name}, {shots:?}: too many requests");
        tasks += 1;
    }
    assert!(tasks > 150, "{tasks}");
}

fn fnv(texts: &[&str]) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    texts.join("\0").bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The answers of the golden's model.
fn answers(task: &Task) -> Vec<Answer> {
    let requests = task.requests();
    // Requests for texts are one a document; the documents stand in the samples.
    let docs: Vec<Value> = match requests.first() {
        Some(Request::Generate { .. }) => {
            let empty = vec![Answer::Generate { text: String::new() }; requests.len()];
            task.samples(&empty, &task.score(&empty)).collect()
        }
        _ => Vec::new(),
    };
    let one = |(i, request): (usize, &Request)| match request {
        Request::LogLikelihood { context, continuation } => {
            let h = fnv(&[context, continuation]);
            let sum = -(((h >> 40) % 50_000) as f64) / 1000.0;
            Answer::LogLikelihood { sum, greedy: h.is_multiple_of(3), tokens: 1 }
        }
        Request::Generate { context, .. } => {
            let field = |key: &str| docs[i]["doc"][key].as_str().map(str::to_owned);
            let texts = match field("solution") {
                Some(solution) => {
                    let open = solution.find("\\boxed{").expect("a box") + 7;
                    let answer = &solution[open..solution.rfind('}').expect("an end")];
                    [
                        solution.clone(),
                        format!("It is ${answer}$"),
                        "none".into(),
                        format!("Final Answer: The final answer is ${answer}$. I hope it is correct."),
                    ]
                }
                None => {
                    let answer = field("answer").expect("an answer");
                    let told = answer.replace("#### ", "it is ");
                    [answer, "#### 7 it is, or 12.".into(), "none".into(), told]
                }
            };
            Answer::Generate { text: texts[(fnv(&[context]) % 4) as usize].clone() }
        }
        Request::Rolling { .. } => panic!("no task asks this"),
    };
    requests.iter().enumerate().map(one).collect()
}

/// Compares trees; numbers within `tolerance`, relative. Keys that only we have, or that we leave out, are passed over.
fn compare(got: &Value, want: &Value, path: &str) {
    let left_out = |key: &str| key.starts_with("acc_bytes");
    match (got, want) {
        (Value::Object(g), Value::Object(w)) => {
            for (key, want) in w.iter().filter(|(key, _)| !left_out(key)) {
                let got = g.get(key).unwrap_or_else(|| panic!("{path}: no {key}"));
                compare(got, want, &format!("{path}.{key}"));
            }
            for key in g.keys().filter(|key| !left_out(key)) {
                // The harness passes over groups of groups in these two.
                let more = key == "mmlu" && ["n-shot", "higher_is_better"].contains(&path);
                assert!(more || w.contains_key(key), "{path}: {key} is not the harness's");
            }
        }
        (Value::Number(g), Value::Number(w)) => {
            let (g, w) = (g.as_f64().unwrap(), w.as_f64().unwrap());
            assert!((g - w).abs() <= 1e-12 * w.abs(), "{path}: {g} for {w}");
        }
        _ => assert_eq!(got, want, "{path}"),
    }
}

#[test]
fn every_result_is_the_harnesses() {
    let text = std::fs::read_to_string(here("golden/results.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    for (name, want) in golden.as_object().unwrap() {
        check_results(&load(name, None, Some(4)), want);
    }
}

fn check_results(suite: &Suite, want: &Value) {
    let scored: Vec<_> = suite.tasks.iter().map(|task| task.score(&answers(task))).collect();
    let outcomes = suite.gather(&scored);
    let got = report::json(&outcomes);
    for (key, want) in want.as_object().unwrap() {
        compare(&got[key], want, key);
    }
    let table = report::table(&outcomes);
    assert!(outcomes.iter().all(|o| table.contains(&o.alias)), "{table}");
}

/// With every row of the benchmarks at hand: `ESKER_EVAL_DATA`, their folder, and `ESKER_EVAL_GOLDEN`, the folder that
/// `tools/make_eval_golden.py --docs 0` wrote of them.
#[test]
fn all_rows_when_they_are_at_hand() {
    let (Ok(data), Ok(golden)) = (std::env::var("ESKER_EVAL_DATA"), std::env::var("ESKER_EVAL_GOLDEN")) else { return };
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(Path::new(&golden).join(name)).unwrap()).unwrap()
    };
    let mut requests = 0;
    for want in read("digests.json").as_array().unwrap() {
        let (name, shots) = (want["task"].as_str().unwrap(), want["shots"].as_u64().map(|n| n as usize));
        let options = Options { num_fewshot: shots, ..Options::default() };
        let suite = Suite::load(&[name], Path::new(&data), &options).unwrap();
        let asked = suite.tasks[0].requests();
        assert_eq!(want["requests"], asked.len(), "{name}, {shots:?}");
        assert_eq!(want["sha256"], sha256(&asked), "{name}, {shots:?}");
        requests += asked.len();
    }
    println!("{requests} requests equal");
    for (name, want) in read("results.json").as_object().unwrap() {
        let options = Options { bootstrap_iters: 1000, ..Options::default() };
        check_results(&Suite::load(&[name.as_str()], Path::new(&data), &options).unwrap(), want);
        println!("{name}: results equal");
    }
}

fn sha256(requests: &[Request]) -> String {
    use std::process::{Command, Stdio};
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = std::io::BufWriter::new(child.stdin.take().unwrap());
    for request in requests {
        let (a, b) = match request {
            Request::LogLikelihood { context, continuation } => (context.as_str(), continuation.as_str()),
            Request::Generate { context, .. } => (context.as_str(), ""),
            Request::Rolling { text } => (text.as_str(), ""),
        };
        write!(pipe, "{a}\0{b}\0").unwrap();
    }
    drop(pipe);
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()[..64].into()
}

#[test]
fn what_was_asked_wrongly_is_named() {
    let all = Options::default();
    let error = |names: &[&str], options: &Options| Suite::load(names, &here("data"), options).unwrap_err().to_string();
    assert!(error(&["arc_eesy"], &all).contains("no task \"arc_eesy\"; there are arc_easy, "));
    assert!(error(&[], &all).contains("no task is named"));
    assert!(error(&["piqa"], &Options { limit: Some(0), ..all.clone() }).contains("at least 1"));
    let shots = |n| Options { num_fewshot: Some(n), ..Options::default() };
    assert!(error(&["mmlu_anatomy"], &shots(6)).contains("mmlu_anatomy: 6 examples are more than the 2"));
    assert!(error(&["minerva_math_algebra"], &shots(5)).contains("more than the 4"));
    assert!(error(&["piqa"], &shots(10)).contains("piqa: 11 examples are more than the 10"));
    let empty = tempfile::tempdir().unwrap();
    let missing = Suite::load(&["hellaswag"], empty.path(), &all).unwrap_err().to_string();
    for part in ["no hellaswag.validation.jsonl", "ctx_b", "Rowan/hellaswag"] {
        assert!(missing.contains(part), "{missing}");
    }
    assert_eq!(load("piqa", Some(2), None).parts().len(), 1);
    assert_eq!(load("piqa", None, None).parts().len(), 0);
}

/// Two documents of the harness's pool are equal to documents asked, so that draws are repeated.
#[test]
fn a_document_is_not_among_its_own_examples() {
    let suite = load("piqa", Some(3), None);
    for request in suite.tasks[0].requests() {
        let Request::LogLikelihood { context, .. } = request else { panic!("not a choice") };
        let question = context.rsplit("Question: ").next().unwrap();
        assert_eq!(context.matches(question).count(), 1, "{context}");
    }
}

/// Files cut short, bytes flipped, values of other types, keys gone, bad UTF-8: refused by file and line, or read.
#[test]
fn damaged_files_are_refused() {
    let names = [
        "arc_easy",
        "piqa",
        "openbookqa",
        "hellaswag",
        "winogrande",
        "boolq",
        "lambada_openai",
        "gsm8k",
        "ifeval",
        "mmlu_anatomy",
        "hendrycks_math_algebra",
        "minerva_math_algebra",
    ];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let (mut refused, mut tried) = (0, 0);
    for name in names {
        let stem = name.split_once("_math_").map_or(name, |_| "hendrycks_math");
        let stem = if stem.starts_with("mmlu") { "mmlu" } else { stem };
        let files: Vec<PathBuf> = std::fs::read_dir(here("data")).unwrap().map(|e| e.unwrap().path()).collect();
        let own = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(stem);
        for path in files.iter().filter(own) {
            let zipped = path.extension().is_some_and(|e| e == "gz");
            let plain = if zipped { unzipped(path).into_bytes() } else { std::fs::read(path).unwrap() };
            let whole = std::fs::read(path).unwrap();
            for kind in 0..10 {
                let mut bytes = if kind < 5 { plain.clone() } else { whole.clone() };
                let at = random(bytes.len());
                match kind {
                    0 | 5 => bytes.truncate(at),
                    1 | 6 => bytes[at] ^= 1 << random(8),
                    2 => bytes[at] = 0xff,
                    3 => bytes = retyped(&bytes, &mut random),
                    4 => bytes.splice(0..0, *b"{\"text\": 3}\n").for_each(drop),
                    7 => bytes = vec![0; random(200)],
                    8 => bytes.extend(b"\x1f\x8b\x08\0\0\0\0\0\0\0garbage"),
                    _ => bytes.rotate_left(at),
                }
                let dir = tempfile::tempdir().unwrap();
                for other in files.iter().filter(own).filter(|p| *p != path) {
                    std::fs::copy(other, dir.path().join(other.file_name().unwrap())).unwrap();
                }
                let file = path.file_name().unwrap().to_str().unwrap();
                let file = if kind < 5 { file.trim_end_matches(".gz") } else { file };
                std::fs::write(dir.path().join(file), &bytes).unwrap();
                let options = Options { num_fewshot: Some(1), ..Options::default() };
                tried += 1;
                match Suite::load(&[name], dir.path(), &options) {
                    Ok(suite) => drop(suite.tasks[0].requests()),
                    Err(TaskError::Examples { .. }) => refused += 1,
                    Err(e) => {
                        refused += 1;
                        let e = e.to_string();
                        assert!(e.contains(file) || e.contains("no "), "{e}");
                    }
                }
            }
        }
    }
    assert!(tried >= 200 && refused > tried / 3, "{refused} of {tried}");
}

/// One value of one row becomes another type, or goes.
fn retyped(bytes: &[u8], random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let row = random(rows.len());
    let fields = rows[row].as_object_mut().unwrap();
    let key = fields.keys().nth(random(fields.len())).unwrap().clone();
    match random(6) {
        0 => drop(fields.remove(&key)),
        1 => fields[&key] = Value::Null,
        2 => fields[&key] = serde_json::json!(-1),
        3 => fields[&key] = serde_json::json!(1e300),
        4 => fields[&key] = serde_json::json!([[], {}, "x"]),
        _ => fields[&key] = serde_json::json!({"text": ["a"], "label": 7}),
    }
    rows.iter().map(|r| format!("{r}\n")).collect::<String>().into_bytes()
}
