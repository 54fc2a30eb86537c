//! A shared run in a terminal: asks a process for `/status.json` and draws it, again and again.

use serde::Deserialize;
use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer: what a few hundred rounds and a thousand peers take, several times over.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Rounds and peers drawn.
const ROWS: usize = 16;

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// Nobody answers there.
    #[error("{addr} does not answer: {source}; is a process of the run started there, with --page {addr}?")]
    Silent {
        /// Which.
        addr: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Something else answers there.
    #[error("{addr} answers, though not as a process of a run does: {why}; expected its /status.json")]
    Strange {
        /// Which.
        addr: SocketAddr,
        /// What was found.
        why: String,
    },
}

#[derive(Debug, Deserialize)]
struct Status {
    name: String,
    run: String,
    me: String,
    roles: u8,
    uptime_s: f64,
    tip: u64,
    applied: u64,
    root: String,
    level: bool,
    training: Option<u64>,
    peers: Vec<Peer>,
    rounds: Vec<Round>,
    up_bytes: u64,
    down_bytes: u64,
    mismatches: u64,
    lies: u64,
    messages_refused: u64,
}

#[derive(Debug, Deserialize)]
struct Peer {
    peer: String,
    addr: String,
    rtt_ms: f64,
    roles: u8,
}

#[derive(Debug, Deserialize)]
struct Round {
    round: u64,
    root: Option<String>,
    took_ms: u64,
    entries: u32,
    rejects: u32,
    counted: Option<bool>,
    loss: Option<f32>,
}

/// Status and body that a plain GET of `path` gives.
///
/// # Errors
/// [`WatchError`] where nobody answers in five seconds, or not in HTTP, or with more than 4 MiB.
pub fn get(addr: SocketAddr, path: &str) -> Result<(u16, String), WatchError> {
    let silent = |source| WatchError::Silent { addr, source };
    let strange = |why: &str| WatchError::Strange { addr, why: why.to_owned() };
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    // Version 1.0 asks for a body that ends with the connection, in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\nConnection: close\r\n\r\n").map_err(silent)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer).map_err(silent)?;
    if answer.len() as u64 > ANSWER_BYTES_MAX {
        return Err(strange("more than 4 MiB"));
    }
    let answer = String::from_utf8(answer).map_err(|_| strange("bytes that are no text"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| strange("no HTTP head"))?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(|| strange("no HTTP status"))?, body.to_owned()))
}

/// What `addr` is doing, as lines of text.
///
/// # Errors
/// [`WatchError`], as [`get`], or where the answer is not a process' status.
pub fn drawn(addr: SocketAddr) -> Result<String, WatchError> {
    let (status, body) = get(addr, "/status.json")?;
    let strange = |why: String| WatchError::Strange { addr, why };
    if status != 200 {
        return Err(strange(format!("HTTP status {status}")));
    }
    let status: Status = serde_json::from_str(&body).map_err(|e| strange(e.to_string()))?;
    Ok(lines(&status))
}

fn lines(s: &Status) -> String {
    let mut out = String::new();
    let mut put = |line: String| {
        let _ = writeln!(out, "{}", plain(&line));
    };
    let level = if s.level { "level" } else { "behind" };
    let training = s.training.map_or_else(|| "not training".to_owned(), |round| format!("training round {round}"));
    put(format!("{}  run {}  this is {} ({})", s.name, short(&s.run), short(&s.me), roles(s.roles)));
    put(format!(
        "round {}, applied {} ({level}), root {}, {training}, up {:.0} s",
        s.tip,
        s.applied,
        short(&s.root),
        s.uptime_s
    ));
    put(format!(
        "{} peers, sent {}, received {}; {} states mended, {} false chunks, {} messages refused",
        s.peers.len(),
        size(s.up_bytes),
        size(s.down_bytes),
        s.mismatches,
        s.lies,
        s.messages_refused
    ));
    put(format!(
        "\n{:>7}  {:12}  {:>8}  {:>6}  {:>6}  {:11}  {:>8}",
        "round", "root", "loss", "count", "away", "ours", "took"
    ));
    for r in s.rounds.iter().rev().take(ROWS) {
        let loss = r.loss.map_or_else(String::new, |loss| format!("{loss:.4}"));
        let ours = r.counted.map_or("", |counted| if counted { "counted" } else { "turned away" });
        let root = r.root.as_deref().map_or("", short);
        let took = format!("{:.1} s", r.took_ms as f64 / 1e3);
        put(format!("{:>7}  {root:12}  {loss:>8}  {:>6}  {:>6}  {ours:11}  {took:>8}", r.round, r.entries, r.rejects));
    }
    put(format!("\n{:12}  {:24}  {:28}  {:>10}", "peer", "address", "roles", "round trip"));
    for p in s.peers.iter().take(ROWS) {
        put(format!("{:12}  {:24}  {:28}  {:>7.1} ms", short(&p.peer), p.addr, roles(p.roles), p.rtt_ms));
    }
    if s.peers.len() > ROWS {
        put(format!("and {} more", s.peers.len() - ROWS));
    }
    out
}

/// Text of strangers must not steer a terminal.
fn plain(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

fn short(hash: &str) -> &str {
    hash.char_indices().nth(12).map_or(hash, |(at, _)| &hash[..at])
}

fn roles(bits: u8) -> String {
    let names = ["peer", "validator", "seeder", "bootstrap", "observer"];
    let held: Vec<&str> = names.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, n)| *n).collect();
    held.join(", ")
}

fn size(bytes: u64) -> String {
    let mut n = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if n < 1000.0 {
            return format!("{n:.1} {unit}");
        }
        n /= 1000.0;
    }
    format!("{n:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const STATUS: &str = r#"{"run": "0123456789abcdef", "name": "a\u001b[2Jrun", "me": "fedcba9876543210", "roles": 3,
        "uptime_s": 12.0, "tip": 4, "applied": 3, "root": "aaaaaaaaaaaaaaaa", "level": false, "training": null,
        "peers": [{"peer": "0f0f0f0f0f0f0f0f", "addr": "127.0.0.1:9", "rtt_ms": 0.25, "roles": 2, "pipes": 1, "skew_ms": 0}],
        "rounds": [{"round": 3, "root": null, "at_ms": 1, "took_ms": 1500, "entries": 4, "rejects": 0, "counted": true,
        "loss": 2.5, "up_bytes": 1, "down_bytes": 2}], "up_bytes": 1500, "down_bytes": 2000000, "store_bytes": 1,
        "store_quota_bytes": 2, "chunks": 1, "lies": 0, "requests_failed": 0, "handshakes_refused": 0,
        "messages_refused": 0, "mismatches": 0}"#;

    #[test]
    fn a_status_is_drawn_and_cannot_steer_the_terminal() {
        let text = lines(&serde_json::from_str(STATUS).unwrap());
        assert!(text.contains("round 4, applied 3 (behind), root aaaaaaaaaaaa, not training"), "{text}");
        assert!(text.contains("sent 1.5 kB, received 2.0 MB") && text.contains("2.5000") && text.contains("counted"));
        assert!(!text.contains('\u{1b}') && text.contains("peer, validator"), "{text}");
    }

    /// What answers one connection with `answer`.
    fn strange(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            if let Ok((mut stream, _)) = listener.accept() {
                let mut asked = [0; 512];
                let _ = stream.read(&mut asked);
                let _ = stream.write_all(answer);
            }
        });
        addr
    }

    #[test]
    fn whatever_else_answers_is_an_error_that_names_it() {
        for answer in [
            &b""[..],
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n[]",
            b"HTTP/1.1 404 no\r\n\r\n",
            b"\xff\xff\r\n\r\n",
        ] {
            let addr = strange(answer);
            let text = drawn(addr).unwrap_err().to_string();
            assert!(text.contains(&addr.to_string()) && text.contains("status.json"), "{text}");
        }
        // A port that no system hands out and nobody here listens at.
        let gone = SocketAddr::from(([127, 0, 0, 1], 1));
        assert!(matches!(drawn(gone), Err(WatchError::Silent { .. })));
    }
}
