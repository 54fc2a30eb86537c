//! Fetching, through the crate `hf-hub`.
//!
//! The names of the files come first, then each file, into `OUT/.fetch` and from there into its place; a part that is
//! there is gone on with. All are of one commit, which the last line names. A file that stands with the size it has on
//! the hub is kept. `HF_ENDPOINT` names another hub, `HF_TOKEN` opens what is closed.
//!
//! The hub is a peer: names that lead out of the folder are refused, and a file that came short is not put in place.

use crate::{
    cli::fetch::{Fetch, What},
    commands::{Failure, print},
    plan::size,
};
use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    path::{Component, Path},
};

const HUB: &str = "https://huggingface.co";
/// Attempts after the first, for each file.
const RETRIES: usize = 3;
const TOKENIZER: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];
const MODEL: [&str; 3] = ["config.json", "*.safetensors", "*.safetensors.index.json"];

pub fn run(args: Fetch) -> Result<(), Failure> {
    let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| HUB.into());
    let aside = args.out.join(".fetch");
    std::fs::create_dir_all(&aside).map_err(|e| Failure::file(&aside, &e))?;
    // Absolute: the crate links from one folder of its cache to another.
    let aside = aside.canonicalize().map_err(|e| Failure::file(&aside, &e))?;
    let api = ApiBuilder::from_cache(Cache::new(aside.clone()))
        .with_endpoint(endpoint.trim_end_matches('/').into())
        .with_token(std::env::var("HF_TOKEN").ok())
        .with_progress(false)
        .with_retries(RETRIES)
        .with_user_agent("esker", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|e| failed(&args, &endpoint, &e))?;
    let kind = if args.what == What::Dataset { RepoType::Dataset } else { RepoType::Model };
    let at = |revision: &str| api.repo(Repo::with_revision(args.repo.clone(), kind, revision.into()));
    let info = at(&args.revision).info().map_err(|e| failed(&args, &endpoint, &e))?;
    let names: Vec<&String> = info.siblings.iter().map(|s| &s.rfilename).filter(|name| wanted(&args, name)).collect();
    if names.is_empty() {
        let there: Vec<&str> = info.siblings.iter().take(10).map(|s| s.rfilename.as_str()).collect();
        return Err(Failure::input(format!("{}: no file in it is asked for", args.repo))
            .help(format!("name some with --file; it has {}", there.join(", "))));
    }
    let repo = at(&info.sha);
    let mut total = 0;
    for name in names {
        total += take(&args, &endpoint, &api, &repo, name)?;
    }
    // What is left there is links and names; the files are in place.
    std::fs::remove_dir_all(&aside).map_err(|e| Failure::file(&aside, &e))?;
    print(&format!("{} of {} at {}: {}\n", args.out.display(), args.repo, info.sha, size(total)))
}

/// Whether the file is one to take.
fn wanted(args: &Fetch, name: &str) -> bool {
    let any = |patterns: &[&str]| patterns.iter().any(|p| matches(p, name));
    if !args.files.is_empty() {
        return args.files.iter().any(|p| matches(p, name));
    }
    match args.what {
        What::Dataset => true,
        What::Tokenizer => any(&TOKENIZER),
        What::Model => any(&TOKENIZER) || any(&MODEL),
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| matches(tail, &rest[at..]))
}

/// Fetches one file and puts it in place; its size.
fn take(args: &Fetch, endpoint: &str, api: &Api, repo: &ApiRepo, name: &str) -> Result<u64, Failure> {
    let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
    if !inside || name.starts_with(".fetch") {
        return Err(Failure::input(format!("{}: the name {name:?} leads out of the folder", args.repo)));
    }
    let there = api.metadata(&repo.url(name)).map_err(|e| failed(args, endpoint, &e))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if !there.etag().chars().all(plain) || !there.commit_hash().chars().all(plain) {
        return Err(Failure::input(format!("{}: {name}: the hub names it by {:?}", args.repo, there.etag())));
    }
    let (to, bytes) = (args.out.join(name), there.size() as u64);
    if std::fs::metadata(&to).is_ok_and(|m| m.is_file() && m.len() == bytes) {
        print(&format!("{name}  {}  stands already\n", size(bytes)))?;
        return Ok(bytes);
    }
    let link = repo.download_with_progress(name, Bar::new(name)).map_err(|e| failed(args, endpoint, &e))?;
    let file = link.canonicalize().map_err(|e| Failure::file(&link, &e))?;
    let got = std::fs::metadata(&file).map_err(|e| Failure::file(&file, &e))?.len();
    if got != bytes {
        std::fs::remove_file(&file).map_err(|e| Failure::file(&file, &e))?;
        return Err(Failure::input(format!("{name}: {got} bytes came of {bytes}")).help("fetch again"));
    }
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Failure::file(folder, &e))?;
    }
    std::fs::rename(&file, &to).map_err(|e| Failure::file(&to, &e))?;
    std::fs::remove_file(&link).map_err(|e| Failure::file(&link, &e))?;
    print(&format!("{name}  {}\n", size(bytes)))?;
    Ok(bytes)
}

/// What was tried, why it failed, what to do.
fn failed(args: &Fetch, endpoint: &str, error: &ApiError) -> Failure {
    let why = error.to_string();
    let tried = format!("{} from {endpoint}: {why}", args.repo);
    // The client's own words for an answer that is no success.
    if let Some((_, status)) = why.split_once("http status: ") {
        let help = match status.trim() {
            "401" | "403" => "is the name right? A closed repository needs HF_TOKEN in the environment",
            "404" => "is the name right, and the revision?",
            _ => "the hub answers so; try again later",
        };
        return Failure::input(tried).help(help);
    }
    if let ApiError::IoError(e) = error {
        return Failure::file(&args.out, e);
    }
    Failure::input(format!("{tried}; is there a network?")).help(format!(
        "without one, copy the files by hand into {}, and go on as if they were fetched (`esker import`, `esker data prepare`)",
        args.out.display()
    ))
}

/// A bar on a terminal, nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(name: &str) -> Bar {
        Bar(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
            let style = "{bar:24.cyan/blue} {bytes}/{total_bytes}  {bytes_per_sec}  eta {eta}  {msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a template of ours").progress_chars("━╸─"));
            bar.set_message(name.to_string());
            bar
        }))
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, _: &str) {
        self.0.iter().for_each(|bar| {
            bar.set_length(size as u64);
            bar.set_position(0);
        });
    }

    fn update(&mut self, size: usize) {
        self.0.iter().for_each(|bar| bar.inc(size as u64));
    }

    fn finish(&mut self) {
        self.0.iter().for_each(ProgressBar::finish_and_clear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("config.json", "config.json", true),
            ("config.json", "my-config.json", false),
            ("*.safetensors", "model-00001-of-00002.safetensors", true),
            ("*.safetensors", "model.safetensors.index.json", false),
            ("global-shard_01*/*.zst", "global-shard_01_of_10/local-shard_0/x.jsonl.zst", true),
            ("*é*", "é", true),
            ("*", "", true),
            ("a*b", "ab", true),
            ("a*b", "aé", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }
}
