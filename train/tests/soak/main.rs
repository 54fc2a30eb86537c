//! Real processes that come and go: every 0.5 to 2 s one is started (60 %) or killed as by `kill -9` (40 %), ten at
//! most, over QUIC on loopback. Validators are killed like everybody else. Never 60 s without a finished round, and one
//! root a round, whoever tells it. The script is PCCL's soak.
//!
//! ```text
//! ESKER_SOAK_S=300 cargo test --release -p esker-train --test soak -- --ignored --nocapture
//! ```
//!
//! `ESKER_SOAK_SEED` draws another history of starts and kills; how processes meet in it is the machine's own chance.
//! What a failed soak leaves (a folder an owner, with its log) stays in the target's folder for tests.

#[path = "../esker/mod.rs"]
mod esker;
mod world;

use esker::{esker, fails};
use std::time::{Duration, Instant};
use world::{Tally, World};

/// Longest time without a finished round, where the soak is asked for by name: what is promised of a machine of one's own.
const STUCK: Duration = Duration::from_secs(60);
/// The same among all tests, on a machine that may be anybody's and stand still: a guard against waiting for ever.
const HANGS: Duration = Duration::from_secs(900);
/// Owners who also validate; three of four make a quorum.
const VALIDATORS: usize = 4;

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// For so many seconds, and until `enough` has happened.
fn soak(name: &str, seconds: u64, stuck: Duration, enough: fn(&Tally) -> bool) -> (World, Tally) {
    let seed = setting("ESKER_SOAK_SEED", 1);
    println!("{name}: {seconds} s, seed {seed}");
    let mut world = World::new(name, seed, VALIDATORS);
    world.stir(Duration::from_secs(seconds), stuck, enough);
    world.settle(stuck);
    let tally = world.tally();
    println!("{tally}");
    (world, tally)
}

/// The short soak; then what a user asks of processes and of what they left.
#[test]
fn for_twenty_seconds() {
    let (mut world, _) = soak("short", 20, HANGS, |tally| tally.rounds > 5 && tally.kills > 2);

    let dir = world.dir().to_str().unwrap();
    let ask = || esker(&["doctor", "--join", world.addr(0), "--dir", dir, "--listen", "127.0.0.1:0"]);
    // A machine that stands still is ill, and the doctor says so: asked again until it finds it well.
    let (begin, mut doctor) = (Instant::now(), ask());
    while doctor.code != 0 {
        assert!(begin.elapsed() < HANGS, "{}{}", doctor.stdout, doctor.stderr);
        doctor = ask();
    }
    for what in ["reach", "clock", "version", "rate", "nat", "disk"] {
        assert!(doctor.stdout.lines().any(|line| line.starts_with(&format!("ok   {what}"))), "{}", doctor.stdout);
    }
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    fails(&["doctor", "--join", &nobody, "--dir", dir, "--listen", "127.0.0.1:0"], 1, &["keep this machine out"]);

    // A second process in a folder that one has; that a killed one leaves it free is what the soak did all along.
    fails(&["peer", world.config(), "--dir", world.folder(0)], 3, &["is in use by process", "--dir"]);

    // The newest that the first owner told; others may be ahead of it.
    world.catch_up(HANGS);
    let (_, told) = world.of(0);
    world.end();
    let folder = world.folder(0);
    let text = esker(&["replay", folder]).stdout;
    assert!(text.contains("00001.log") && text.contains("Sealed"), "{text}");
    let rows = esker(&["replay", folder, "--json"]).stdout;
    let rows: Vec<serde_json::Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().any(|row| row["round"] == told && row["root"].is_string()), "round {told} of {}", rows.len());
    let lines = esker(&["replay", folder, "--lines", "--round", &told.to_string()]).stdout;
    let came = lines.contains("applied") || lines.contains("synced");
    assert!(lines.contains("accepted") && came, "{lines}");
}

#[test]
#[ignore = "five minutes; ESKER_SOAK_S says how long"]
fn for_as_long_as_asked() {
    let seconds = setting("ESKER_SOAK_S", 300);
    let (_, tally) = soak("long", seconds, STUCK, |_| true);
    assert!(tally.rounds > seconds / 10 && tally.kills > seconds / 8, "{tally}");
}

/// A run for invited guests, whose updates go by a folder that all mount.
#[test]
fn guests_show_an_invitation_and_a_bucket_carries_their_updates() {
    let mut world = World::new("guests", 1, 1);
    let key = esker(&["peers", "key", world.folder(0)]).stdout.trim().to_owned();
    let admission = format!("peers.admission={{ invite = \"{key}\" }}");
    world.set(admission.clone());
    let bucket = world.dir().join("bucket");
    world.set(format!("peers.route={{ bucket = {bucket:?} }}"));
    world.start(0, &[]);
    let (asked, unasked) = (world.newcomer(), world.newcomer());
    let guest = esker(&["peers", "key", world.folder(asked)]).stdout.trim().to_owned();
    let invite = ["peers", "invite", world.config(), "--set", &admission, "--guest", &guest];
    let token = esker(&[&invite[..], &["--dir", world.folder(0)]].concat());
    assert_eq!(token.code, 0, "{}", token.stderr);
    fails(&[&invite[..], &["--dir", world.folder(asked)]].concat(), 2, &["invitation", "peers.admission"]);
    world.start(asked, &["--invite", token.stdout.trim()]);
    // A stranger shows another's invitation, and is turned away.
    world.start(unasked, &["--invite", token.stdout.trim()]);
    world.counts(asked, 3, HANGS);
    let best = world.best();
    world.until(best + 2, HANGS);
    assert_eq!(world.of(unasked).0, 0, "an update of an uninvited owner counted");
    assert!(std::fs::read_dir(bucket.join("blobs")).unwrap().count() > 4, "nothing is in the bucket");
    world.end();
}
