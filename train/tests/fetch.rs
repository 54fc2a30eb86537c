//! `esker fetch`, from outside. With the feature `hub`, against a hub of our own on the loopback.

mod esker;

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_it_says_how_to_get_one() {
    let words = ["--features hub", "by hand"];
    esker::fails(&["fetch", "model", "a/b", "--out", "somewhere"], 2, &words);
}

#[cfg(feature = "hub")]
mod hub {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;
    use std::process::Command;

    const CONFIG: &str = "{\"model_type\": \"llama\"}";
    /// Large enough to be fetched in parts.
    fn weights() -> String {
        "0123456789abcdef".repeat(20_000)
    }

    /// Answers as the hub does, for a repository `a/b` with four files.
    fn serve(listener: TcpListener) {
        for stream in listener.incoming() {
            std::thread::spawn(|| answer(stream.unwrap()));
        }
    }

    fn answer(mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        loop {
            let (mut path, mut range) = (String::new(), 0..);
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap_or(0) > 0 && line != "\r\n" {
                if let Some(rest) = line.strip_prefix("GET ") {
                    path = rest.split(' ').next().unwrap().into();
                }
                if let Some((_, bytes)) = line.to_lowercase().split_once("range: bytes=") {
                    let (from, to) = bytes.trim().split_once('-').unwrap();
                    let from = from.parse::<usize>().unwrap();
                    range = from..;
                    if !to.is_empty() {
                        path.push_str(" head");
                    }
                }
                line.clear();
            }
            if path.is_empty() {
                return;
            }
            let (path, head) = path.strip_suffix(" head").map_or((path.as_str(), false), |p| (p, true));
            let siblings = ["config.json", "model.safetensors", "README.md", "sub/tokenizer.json"]
                .map(|name| format!("{{\"rfilename\": {name:?}}}"))
                .join(", ");
            let (status, body) = match path {
                "/api/models/a/b/revision/main" => {
                    (200, format!("{{\"sha\": \"c0ffee\", \"siblings\": [{siblings}]}}"))
                }
                "/api/models/a/out/revision/main" => {
                    (200, "{\"sha\": \"c0ffee\", \"siblings\": [{\"rfilename\": \"../config.json\"}]}".into())
                }
                "/a/b/resolve/c0ffee/config.json" => (206, CONFIG.into()),
                "/a/b/resolve/c0ffee/model.safetensors" => (206, weights()),
                "/a/b/resolve/c0ffee/sub/tokenizer.json" => (206, "{}".into()),
                _ => (404, "nothing here".into()),
            };
            let all = body.len();
            let part = if status != 206 {
                &body[..]
            } else if head {
                &body[..1]
            } else {
                &body[range.start.min(all)..]
            };
            let etag = path.replace('/', "_").replace('.', "-");
            let answer = format!(
                "HTTP/1.1 {status} X\r\netag: \"{etag}\"\r\nx-repo-commit: c0ffee\r\n\
                 content-range: bytes {}-{}/{all}\r\ncontent-length: {}\r\n\r\n{part}",
                range.start,
                all.max(1) - 1,
                part.len()
            );
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn fetch(endpoint: &str, args: &[&str], out: &Path) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
        // The hub of this test is on this machine, whatever way this machine has to the real one.
        for name in ["HF_TOKEN", "HF_HOME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        let done = command.arg("fetch").args(args).arg("--out").arg(out).env("HF_ENDPOINT", endpoint).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    }

    #[test]
    fn files_come_into_the_folder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(|| serve(listener));
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("model");

        let (code, stdout, stderr) = fetch(&endpoint, &["model", "a/b"], &out);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains("model.safetensors") && stdout.contains("c0ffee"), "{stdout}");
        assert_eq!(std::fs::read_to_string(out.join("config.json")).unwrap(), CONFIG);
        assert_eq!(std::fs::read_to_string(out.join("model.safetensors")).unwrap(), weights());
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);

        // What stands is kept; what was fetched in part is gone on with.
        std::fs::remove_file(out.join("model.safetensors")).unwrap();
        let blobs = out.join(".fetch/models--a--b/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let part = blobs.join("_a_b_resolve_c0ffee_model-safetensors.part");
        std::fs::write(&part, &weights()[..99_999]).unwrap();
        let (code, stdout, stderr) = fetch(&endpoint, &["model", "a/b"], &out);
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.contains("stands already"), "{stdout}");
        assert_eq!(std::fs::read_to_string(out.join("model.safetensors")).unwrap(), weights());

        let (code, _, stderr) = fetch(&endpoint, &["model", "a/b", "--file", "*/tokenizer.json"], &out);
        assert_eq!(code, 0, "{stderr}");
        assert!(out.join("sub/tokenizer.json").is_file());
        let (code, _, stderr) = fetch(&endpoint, &["model", "no/such"], &out);
        assert!(code == 2 && stderr.contains("is the name right"), "{stderr}");
        let (code, _, stderr) = fetch(&endpoint, &["dataset", "a/b"], &out);
        assert!(code == 2 && stderr.contains("is the name right"), "{stderr}");
        let (code, _, stderr) = fetch(&endpoint, &["model", "a/out", "--file", "*"], &out);
        assert!(code == 2 && stderr.contains("leads out of the folder"), "{stderr}");
    }

    /// No network: what was tried, and what to do.
    #[test]
    fn nobody_answers() {
        let dir = tempfile::tempdir().unwrap();
        // A port that no system hands out and nobody here listens at.
        let endpoint = "http://127.0.0.1:1".to_owned();
        let (code, _, stderr) = fetch(&endpoint, &["tokenizer", "a/b"], dir.path());
        assert_eq!(code, 2);
        assert!(
            stderr.contains(&endpoint) && stderr.contains("a/b") && stderr.contains("is there a network"),
            "{stderr}"
        );
        assert!(stderr.contains("copy the files by hand"), "{stderr}");
    }
}
