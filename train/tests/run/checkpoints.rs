//! Hostile checkpoints: truncated, flipped, lying. Each is refused with its file named, nothing panics, and the newest
//! whole one is found behind it.

use crate::tiny::{self, Place, print, resume};
use esker_train::checkpoint::{self, CheckpointError, Manifest};
use std::fs;
use std::path::{Path, PathBuf};

/// A finished run with checkpoints of steps 2, 4 and 6.
fn finished(place: &Place) -> PathBuf {
    let run = place.run(&["checkpoint.every_steps=2", "checkpoint.keep_last=3"]);
    let folder = place.train(run, 0).folder;
    let steps: Vec<u64> = checkpoint::listed(&folder.join("ckpt")).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [2, 4, 6]);
    folder
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(|_| ()).unwrap() }
    }
}

/// The search passes over the damaged newest one, names `file`, and finds step 4.
fn refused(folder: &Path, file: &Path, what: &str) {
    let newest = checkpoint::newest_valid(folder).unwrap();
    assert_eq!(newest.found.expect("an older one is whole").step, 4, "{what}");
    let (path, why) = &newest.refused[0];
    let said = why.to_string();
    assert!(path.ends_with("step-000006") && newest.refused.len() == 1, "{what}");
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(name), "{what}: {said}");
}

#[test]
fn a_truncated_or_flipped_or_missing_file_is_found_out() {
    let place = Place::new();
    let folder = finished(&place);
    let newest = folder.join("ckpt/step-000006");
    let mut cases = 0;
    for file in files(&newest) {
        let good = fs::read(&file).unwrap();
        let n = good.len();
        for cut in [0, 1, 7, 8, n / 3, n / 2, n - 1] {
            fs::write(&file, &good[..cut.min(n - 1)]).unwrap();
            refused(&folder, &file, &format!("{} cut to {cut} of {n}", file.display()));
            cases += 1;
        }
        for i in 0..8 {
            let at = (i * 2_654_435_761 + 13 * i) % n;
            let mut bad = good.clone();
            bad[at] ^= 1 << (i % 8);
            fs::write(&file, &bad).unwrap();
            let newest = checkpoint::newest_valid(&folder).unwrap();
            // A flip inside white space or a digit of the manifest's own text may leave the same manifest or say
            // something else; it never passes for another content.
            let step = newest.found.unwrap().step;
            let harmless = file.ends_with("manifest.json") && step == 6;
            assert!(step == 4 || harmless, "{} bit {i} of byte {at}", file.display());
            cases += 1;
        }
        fs::write(&file, [good.as_slice(), b"x"].concat()).unwrap();
        refused(&folder, &file, &format!("{} and one byte more", file.display()));
        fs::remove_file(&file).unwrap();
        refused(&folder, &file, &format!("{} removed", file.display()));
        fs::write(&file, &good).unwrap();
        cases += 2;
    }
    assert!(cases >= 60, "{cases}");
    assert_eq!(checkpoint::newest_valid(&folder).unwrap().found.unwrap().step, 6);
}

#[test]
fn a_lying_manifest_is_refused() {
    let place = Place::new();
    let folder = finished(&place);
    let path = folder.join("ckpt/step-000006/manifest.json");
    let good: Manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let lies: Vec<(&str, String)> = vec![
        ("no json", "{".into()),
        ("another type", "[]".into()),
        ("a field too many", good.to_json().replacen('{', "{\"extra\": 1,", 1)),
        ("a later version", good.to_json().replace("\"version\": 1", "\"version\": 2")),
        ("another step", good.to_json().replace("\"step\": 6", "\"step\": 4")),
        ("a huge length", lie(&good, |m| m.files[0].bytes = u64::MAX)),
        ("a huge list", format!("{}{}", good.to_json(), " ".repeat(2 << 20))),
        ("a path", lie(&good, |m| m.files[0].name = "../../config.toml".into())),
        ("an absolute path", lie(&good, |m| m.files[0].name = "/etc/hostname".into())),
        ("an empty name", lie(&good, |m| m.files[0].name = String::new())),
        ("no files", lie(&good, |m| m.files.clear())),
        ("no optimiser", lie(&good, |m| m.files.retain(|f| f.name != "state.safetensors"))),
        ("no weights", lie(&good, |m| m.files.retain(|f| f.name != "model.safetensors"))),
        ("another digest", lie(&good, |m| m.files[0].blake3 = "0".repeat(64))),
        ("an entry twice", lie(&good, |m| m.files.push(m.files[0].clone()))),
        ("no digest", lie(&good, |m| m.files[0].blake3 = String::new())),
    ];
    for (what, text) in lies {
        fs::write(&path, text).unwrap();
        let newest = checkpoint::newest_valid(&folder).unwrap();
        assert_eq!(newest.found.unwrap().step, 4, "{what}");
        let said = newest.refused[0].1.to_string();
        assert!(said.contains("step-000006"), "{what}: {said}");
    }
}

fn lie(good: &Manifest, change: impl Fn(&mut Manifest)) -> String {
    let mut manifest = good.clone();
    change(&mut manifest);
    manifest.to_json()
}

/// Writes files that lie, with a manifest that fits them, so that only the reader of each file can object.
#[test]
fn files_that_lie_under_a_true_manifest_are_refused_on_loading() {
    let place = Place::new();
    let folder = finished(&place);
    let newest = folder.join("ckpt/step-000006");
    let mut cases = 0;
    for name in ["state.safetensors", "model.safetensors"] {
        let file = newest.join(name);
        let good = fs::read(&file).unwrap();
        let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let text = std::str::from_utf8(&good[8..8 + header]).unwrap();
        let with = |text: &str| {
            let mut padded = text.to_string();
            while !padded.len().is_multiple_of(8) {
                padded.push(' ');
            }
            [&(padded.len() as u64).to_le_bytes(), padded.as_bytes(), &good[8 + header..]].concat()
        };
        let mut lies: Vec<Vec<u8>> = vec![
            [&u64::MAX.to_le_bytes(), &good[8..]].concat(),
            [&(good.len() as u64 * 2).to_le_bytes(), &good[8..]].concat(),
            [&0u64.to_le_bytes(), &good[8..]].concat(),
            good[..good.len() - 4].to_vec(),
            good[..8 + header].to_vec(),
            vec![],
            with("{}"),
            with(&text.replacen("F32", "F64", 1)),
            with(&text.replacen("F32", "I32", 1)),
            with(&text.replacen("[16]", "[17]", 1)),
            with(&text.replacen("[16]", "[18446744073709551615]", 1)),
            with(&text.replacen("[16]", "[4,4]", 1)),
            with(&text.replacen("layers.1.", "layers.7.", 1)),
        ];
        if name == "state.safetensors" {
            for (from, to) in [
                (r#"\"version\":1"#, r#"\"version\":9"#),
                (r#"\"step\":6"#, r#"\"step\":5"#),
                (r#"\"updates\":6"#, r#"\"updates\":7"#),
                (r#"\"position\":48"#, r#"\"position\":49"#),
                (r#"\"position\":48"#, r#"\"position\":18446744073709551615"#),
                (r#"\"tokens\":\""#, r#"\"tokens\":\"0"#),
                (r#"\"losses\":["#, r#"\"losses\":[1,2,3,4,5,6,7,8,"#),
                (r#"\"norms\":["#, r#"\"norms\":[-1,"#),
                (r#"\"seed\":7"#, r#"\"seed\":8"#),
                (r#"\"guard\""#, r#"\"gard\""#),
                ("esker", "eskar"),
            ] {
                assert!(text.contains(from), "{from} in {text}");
                lies.push(with(&text.replacen(from, to, 1)));
            }
        }
        for (i, lie) in lies.iter().enumerate() {
            fs::write(&file, lie).unwrap();
            let manifest = Manifest::of_files(&newest, 6).unwrap();
            fs::write(newest.join("manifest.json"), manifest.to_json()).unwrap();
            assert_eq!(checkpoint::newest_valid(&folder).unwrap().found.unwrap().step, 6);
            let error = resume(&folder, None, 0).expect_err(&format!("{name}, lie {i}")).to_string();
            assert!(error.contains("step-000006"), "{name}, lie {i}: {error}");
            cases += 1;
        }
        fs::write(&file, &good).unwrap();
    }
    assert!(cases >= 30, "{cases}");
}

#[test]
fn a_run_goes_on_from_the_newest_whole_one_and_ends_the_same() {
    let place = Place::new();
    let folder = finished(&place);
    let straight = tiny::print_of(&folder, &folder.join("ckpt/step-000006"));
    fs::write(folder.join("ckpt/step-000006/model.safetensors"), b"short").unwrap();
    let resumed = resume(&folder, None, 0).unwrap();
    assert_eq!(print(&resumed), straight);
    assert_eq!(checkpoint::newest_valid(&folder).unwrap().found.unwrap().step, 6);
}

#[test]
fn with_none_whole_nothing_begins_by_itself() {
    let place = Place::new();
    let folder = finished(&place);
    let other = place.dir.path().join("copy");
    copy(&folder, &other);
    for step in [2, 4, 6] {
        fs::write(other.join(format!("ckpt/step-00000{step}/state.safetensors")), b"").unwrap();
    }
    let error = resume(&other, None, 0).unwrap_err().to_string();
    assert!(error.contains("none of its checkpoints is whole") && error.contains("state.safetensors"), "{error}");
    assert!(matches!(checkpoint::newest_valid(&other).unwrap().refused[0].1, CheckpointError::Damaged { .. }));
}

#[test]
fn a_checkpoint_is_a_model_that_others_load() {
    let place = Place::new();
    let outcome = place.train(place.run(&["train.dtype=bf16"]), 0);
    let checkpoint = outcome.checkpoint.unwrap();
    let card = esker_model::hf::read_card(&checkpoint).unwrap();
    assert_eq!(card.config, place.run(&[]).model);
    assert_eq!(card.eos, [256]);
    let tokenizer = esker_data::tokenizer::Tokenizer::from_file(&checkpoint).unwrap();
    assert_eq!(tokenizer.vocab_size(), 257);
}
