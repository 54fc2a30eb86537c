//! Hostile and careless configurations: each error names file, line and key, says what was expected, and nothing panics.

use esker_train::config::{self, ConfigError};

const GOOD: &str = include_str!("good.toml");

fn refuse(text: &str, sets: &[&str]) -> String {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    match config::parse(text, "x.toml", &sets) {
        Ok(_) => panic!("accepted with {sets:?}:\n{text}"),
        Err(e) => e.to_string(),
    }
}

/// Every key of the good file: section, key, line.
fn keys() -> Vec<(String, String, usize)> {
    let (mut section, mut keys) = (String::new(), Vec::new());
    for (i, line) in GOOD.lines().enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_string();
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            keys.push((section.clone(), key.to_string(), i + 1));
        }
    }
    keys
}

fn without_or_with(line: usize, new: Option<&str>) -> String {
    let mut lines: Vec<&str> = GOOD.lines().collect();
    match new {
        Some(new) => lines[line - 1] = new,
        None => drop(lines.remove(line - 1)),
    }
    lines.join("\n")
}

#[test]
fn every_key_is_needed_and_every_misspelling_is_seen() {
    let mut cases = 0;
    for (section, key, line) in keys() {
        let full = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        let said = refuse(&without_or_with(line, None), &[]);
        let inside_enum = full == "schedule.kind" || section == "schedule";
        assert!(said.contains(&full) || inside_enum && said.contains(&key), "{full} missing: {said}");
        let good = GOOD.lines().nth(line - 1).unwrap();
        let misspelt = format!("{}x{}", &key[..1], &key[1..]);
        let said = refuse(&without_or_with(line, Some(&good.replacen(&key, &misspelt, 1))), &[]);
        if full != "schedule.kind" {
            assert!(said.contains(&misspelt) && said.contains(&format!("did you mean {full}?")), "{full}: {said}");
            assert!(said.starts_with("x.toml:"), "{full}: {said}");
        }
        let said = refuse(&without_or_with(line, Some(&format!("{key} = {{ what = 1 }}"))), &[]);
        assert!(said.contains(&full) || inside_enum, "{full} of another type: {said}");
        cases += 3;
    }
    assert!(cases > 100, "{cases}");
}

#[test]
fn relations_are_checked_with_their_numbers() {
    for (set, wants) in [
        ("batch.tokens_per_step=1000", ["batch.tokens_per_step", "1000", "256 * 1 * 1"]),
        ("batch.tokens_per_step=0", ["batch.tokens_per_step", "0", "256"]),
        ("batch.seq_len=512", ["batch.seq_len", "512", "model.context = 256"]),
        ("batch.seq_len=0", ["batch.seq_len", "0", "at least 1"]),
        ("batch.virtual_ranks=3", ["batch.virtual_ranks", "3", "power of two"]),
        ("batch.virtual_ranks=0", ["batch.virtual_ranks", "0", "power of two"]),
        ("batch.virtual_ranks=9223372036854775808", ["batch.virtual_ranks", "", ""]),
        ("batch.grain_rows=3", ["batch.micro_rows", "8", "batch.grain_rows = 3"]),
        ("batch.grain_rows=0", ["batch.grain_rows", "0", "at least 1"]),
        ("batch.micro_rows=0", ["batch.micro_rows", "0", "multiple"]),
        ("model.kv_heads=4", ["model.kv_heads", "4", "6"]),
        ("model.layers=0", ["model.layers", "0", "1"]),
        ("model.layers=1000000000", ["model.layers", "1000000000", ""]),
        ("model.vocab=1024", ["model.vocab", "1024", "2048"]),
        ("model.hidden=-1", ["model.hidden", "-1", "whole number"]),
        ("data.tokenizer.vocab=100", ["data.tokenizer", "100", "257"]),
        ("data.train=[\"a.shard\"]", ["data.train", "embedded", "shards"]),
        ("data.source=shards", ["data.train", "empty", "shard"]),
        ("data.mixture=[{name='a', weight=1, train=['x']}]", ["data.mixture", "embedded", "shards"]),
        ("data.mixture=[{name='a', weigth=1, train=['x']}]", ["data.mixture[0].weigth", "did you mean", "weight"]),
        ("data.mixture=[{name='a', weight=1}]", ["data.mixture[0].train", "missing", ""]),
        ("data.boundary_los=true", ["data.boundary_los", "did you mean", "data.boundary_loss"]),
        ("optim.lr=0", ["optim.lr", "0", "(0, inf)"]),
        ("optim.lr=nan", ["optim.lr", "NaN", "(0, inf)"]),
        ("optim.lr=inf", ["optim.lr", "inf", "(0, inf)"]),
        ("optim.lr=fast", ["optim.lr", "fast", "a number"]),
        ("optim.beta1=1.0", ["optim.beta1", "1", "[0, 1)"]),
        ("optim.beta2=-0.1", ["optim.beta2", "-0.1", "[0, 1)"]),
        ("optim.eps=0", ["optim.eps", "0", "(0, inf)"]),
        ("optim.weight_decay=1000", ["optim.weight_decay", "1000", "below 1"]),
        ("optim.clip_norm=-1", ["optim.clip_norm", "-1", "off"]),
        ("optim.kind=sgd", ["optim.kind", "sgd", "adamw"]),
        ("schedule.warmup_steps=301", ["schedule.warmup_steps", "301", "train.steps = 300"]),
        ("schedule.final_ratio=1.5", ["schedule.final_ratio", "1.5", "[0, 1]"]),
        ("schedule.kind=cosin", ["schedule", "cosin", "did you mean \"cosine\"?"]),
        ("train.steps=0", ["train.steps", "0", "at least 1"]),
        ("train.steps=-5", ["train.steps", "-5", "whole number"]),
        ("train.steps=9223372036854775807", ["train.steps", "8192", "2^53"]),
        ("train.dtype=u32", ["train.dtype", "u32", "bf16"]),
        ("train.dtype=f16", ["train.dtype", "f16", "did you mean"]),
        ("train.recompute=all", ["train.recompute", "all", "block"]),
        ("train.threads=100000", ["train.threads", "100000", "4096"]),
        ("train.treads=1", ["train.treads", "did you mean train.threads?", "[train]"]),
        ("trian.steps=1", ["unknown key trian", "did you mean train?", "the file"]),
        ("name.x=1", ["name.x", "string", "not a section"]),
        ("guard.window=1", ["guard.window", "1", "65536"]),
        ("guard.window=1000000", ["guard.window", "1000000", "65536"]),
        ("guard.sigma=-1", ["guard.sigma", "-1", "off"]),
        ("validation.tokens=100", ["validation.tokens", "100", "256"]),
        ("checkpoint.keep_last=0", ["checkpoint.keep_last", "0", "at least 1"]),
        ("sample.top_p=0", ["sample.top_p", "0", "(0, 1]"]),
        ("sample.temperature=-1", ["sample.temperature", "-1", "[0, inf)"]),
        ("sample.tokens=0", ["sample.tokens", "0", "leave"]),
        ("name=a/b", ["name", "a/b", "letters"]),
        ("name=.hidden", ["name", ".hidden", "letters"]),
        ("seed=-1", ["seed", "-1", "whole number"]),
    ] {
        let said = refuse(GOOD, &[set]);
        for want in wants {
            assert!(said.contains(want), "--set {set}: {want:?} not in: {said}");
        }
        assert!(said.starts_with("--set ") || said.starts_with("x.toml"), "{said}");
    }
}

#[test]
fn an_error_in_the_file_gives_its_line() {
    let (_, _, line) = keys().into_iter().find(|(section, key, _)| section == "optim" && key == "lr").unwrap();
    for bad in ["lr = 0.0", "lr = \"fast\""] {
        let said = refuse(&without_or_with(line, Some(bad)), &[]);
        assert!(said.starts_with(&format!("x.toml:{line}: optim.lr: ")), "{said}");
    }
    let said = refuse(&without_or_with(line, Some("lr = ")), &[]);
    assert!(said.starts_with(&format!("x.toml:{line}: not TOML")), "{said}");
    let said = refuse(&without_or_with(line, Some("lr = 1.0\nlr = 2.0")), &[]);
    assert!(said.starts_with("x.toml:") && said.contains("duplicate"), "{said}");
}

#[test]
fn overrides_are_applied_in_order_and_make_what_is_missing() {
    let sets =
        ["optim.lr=1", "optim.lr=5e-4", "train.dtype=bf16", "sample.prompt=Once upon a time", "batch.micro_rows = 4"];
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let run = config::parse(GOOD, "x.toml", &sets).unwrap();
    assert_eq!((run.optim.lr, run.batch.micro_rows), (5e-4, 4));
    assert_eq!(run.sample.as_ref().unwrap().prompt, "Once upon a time");
    let without = GOOD.split("[checkpoint]").next().unwrap();
    let sets = ["checkpoint.every_steps=5", "checkpoint.keep_last=2", "checkpoint.keep_every=0"].map(String::from);
    assert!(config::parse(without, "x.toml", &sets).unwrap().sample.is_none());
    assert!(refuse(GOOD, &["optim.lr"]).contains("expected key=value"));
    assert!(refuse(GOOD, &["=1"]).contains("expected key=value"));
}

#[test]
fn damage_never_panics() {
    let mut refused = 0;
    for cut in (0..GOOD.len()).step_by(7).filter(|&cut| GOOD.is_char_boundary(cut)) {
        refused += usize::from(config::parse(&GOOD[..cut], "x.toml", &[]).is_err());
    }
    for i in 0..400usize {
        let mut bytes = GOOD.as_bytes().to_vec();
        let at = (i * 2_654_435_761) % bytes.len();
        bytes[at] ^= 1 << (i % 7);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        refused += usize::from(config::parse(&text, "x.toml", &[]).is_err());
    }
    assert!(refused > 200, "{refused}");
    let deep = format!("name = {}1{}", "[".repeat(5000), "]".repeat(5000));
    assert!(config::parse(&deep, "x.toml", &[]).is_err());
}

#[test]
fn a_file_that_is_no_text_or_too_long_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let load = || config::load(&path, &[]).unwrap_err();
    assert!(matches!(load(), ConfigError::Unreadable { .. }));
    std::fs::write(&path, b"name = \"\xff\"").unwrap();
    assert!(load().to_string().contains("run.toml: not TOML: not UTF-8 text at byte 8"));
    std::fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(load().to_string().contains("longer than"));
}

/// Sources that cannot be mixed are refused under their own key and line.
#[test]
fn mixtures_are_checked() {
    let shards = |sources: &str| {
        let data = GOOD.replace("source = \"embedded\"", "source = \"shards\"");
        let data = data.replace("kind = \"bpe\", vocab = 2048", "kind = \"bytes\"");
        format!("{data}{sources}")
    };
    let source = |name: &str, weight: &str, train: &str| {
        format!("[[data.mixture]]\nname = \"{name}\"\nweight = {weight}\ntrain = [{train}]\n")
    };
    let two = |second: String| shards(&format!("{}{second}", source("a", "0.75", "'x.shard'")));
    let run = config::parse(&two(source("b", "0.25", "'y.shard', 'z.shard'")), "x.toml", &[]).unwrap();
    assert_eq!(run.mix().weights(), [3, 1]);
    assert_eq!(
        run.sources().iter().map(|(name, paths)| (*name, paths.len())).collect::<Vec<_>>(),
        [("a", 1), ("b", 2)]
    );
    assert_eq!(config::parse(&run.to_toml(), "again", &[]).unwrap(), run);
    for (second, key, words) in [
        (source("a", "1", "'y'"), "data.mixture[1].name", "another source"),
        (source("", "1", "'y'"), "data.mixture[1].name", "1 to 64"),
        (source("b", "0", "'y'"), "data.mixture[1].weight", "above 0"),
        (source("b", "-0.1", "'y'"), "data.mixture[1].weight", "above 0"),
        (source("b", "nan", "'y'"), "data.mixture[1].weight", "above 0"),
        (source("b", "1e-12", "'y'"), "data.mixture[1].weight", "decimals"),
        (source("b", "0.12345678", "'y'"), "data.mixture", "fewer digits"),
        (source("b", "1", ""), "data.mixture[1].train", "empty"),
    ] {
        let text = two(second);
        let said = config::parse(&text, "x.toml", &[]).unwrap_err().to_string();
        assert!(said.contains(&format!("{key}: ")) && said.contains(words), "{key}: {said}");
        assert!(said.starts_with("x.toml:"), "{said}");
    }
    let said = config::parse(&two(String::new()), "x.toml", &["data.train=['q']".into()]).unwrap_err().to_string();
    assert!(said.contains("data.train: must be [] beside"), "{said}");
}
