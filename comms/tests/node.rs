//! Whole processes on loopback: real sockets, real disks, real threads, a toy for work.

mod toy;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use esker_comms::net::Config;
use esker_comms::node::{Node, Setup, Way, doctor, role};
use esker_comms::round::log::Line;
use esker_comms::{Hash, RunSpec};
use toy::{Toy, key, spec};

fn start(n: u8, roles: u8, spec: &Arc<RunSpec>, root: &Path, join: &[SocketAddr], way: Way) -> (Node, Arc<Toy>) {
    start_told(n, roles, spec, root, join, way, |_| ())
}

/// [`start`], and `tell` hears what the process logs.
fn start_told(
    n: u8,
    roles: u8,
    spec: &Arc<RunSpec>,
    root: &Path,
    join: &[SocketAddr],
    way: Way,
    tell: impl Fn(&Line) + Send + 'static,
) -> (Node, Arc<Toy>) {
    let dir = root.join(format!("peer{n}"));
    let work = Arc::new(Toy::open(&dir, spec, Duration::from_millis(200)));
    let setup = Setup {
        spec: spec.clone(),
        key: key(n),
        roles,
        dir,
        quota: 1 << 30,
        join: join.to_vec(),
        token: None,
        way,
        log: Box::new(move |timed| {
            tell(&timed.line);
            // `ESKER_TEST_LOG=1` shows what each process logs.
            if std::env::var_os("ESKER_TEST_LOG").is_some() {
                println!("{} {n}: {:?}", timed.at, timed.line);
            }
        }),
    };
    let net = Config::new("127.0.0.1:0".parse().unwrap(), 0);
    (Node::start(setup, net, work.clone()).unwrap(), work)
}

/// A guard against waiting for ever, and no more: a round is as long as the machine makes it.
const HANGS: Duration = Duration::from_secs(900);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < HANGS, "{what}: not within {HANGS:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Roots of the rounds that a process applied, as its board shows them.
fn roots(node: &Node) -> BTreeMap<u64, Hash> {
    node.snapshot().rounds.iter().filter_map(|r| Some((r.round, r.root?))).collect()
}

fn assert_equal(nodes: &[&Node]) {
    let mut all: BTreeMap<u64, Hash> = BTreeMap::new();
    for node in nodes {
        for (round, root) in roots(node) {
            assert_eq!(*all.entry(round).or_insert(root), root, "round {round}");
        }
    }
    assert!(all.len() > 1);
}

#[test]
fn four_owners_one_killed_one_late() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec(&[key(1).id()], 8));
    let peer = role::PEER;
    let (a, _) = start(1, role::ALL, &spec, dir.path(), &[], Way::Mesh);
    let join = [a.addr()];
    let (b, _) = start(2, peer, &spec, dir.path(), &join, Way::Mesh);
    let (c, _) = start(3, peer, &spec, dir.path(), &join, Way::Mesh);
    until("three contribute", || a.snapshot().rounds.iter().any(|r| r.entries == 3 && r.root.is_some()));

    // A late one contributes. That it takes two rounds where it has the time is proved in virtual time (sim/tests.rs):
    // here a machine that stands still may cost it some.
    let before = a.snapshot().applied;
    let (d, _) = start(4, peer, &spec, dir.path(), &join, Way::Mesh);
    until("the late one has a state", || d.snapshot().applied > 0);
    let came = d.snapshot().applied.max(before);
    until("the late one counts", || d.snapshot().rounds.iter().any(|r| r.counted == Some(true)));
    let counted = d.snapshot().rounds.iter().find(|r| r.counted == Some(true)).unwrap().round;
    println!("had a state at {came}, counted in {counted}");

    // One dies without a word and comes back with its disk.
    let lost = c.snapshot();
    c.kill().unwrap();
    let (c, _) = start(3, peer, &spec, dir.path(), &join, Way::Mesh);
    let back = a.snapshot().tip;
    until("the killed one counts again", || {
        c.snapshot().rounds.iter().any(|r| r.counted == Some(true) && r.round >= back)
    });
    println!("killed after round {}, back while round {back} was the newest", lost.applied);
    // All four in one round again: nobody is asked through what led to the dead process.
    until("all four count", || a.snapshot().rounds.iter().any(|r| r.round > back && r.entries == 4));
    until("rounds go on", || a.snapshot().applied > back + 2);
    assert_equal(&[&a, &b, &c, &d]);
    let last = a.snapshot();
    println!("round {}, up {} KiB, down {} KiB", last.applied, last.up_bytes >> 10, last.down_bytes >> 10);
    for node in [d, c, b, a] {
        node.stop().unwrap();
    }
}

#[test]
fn a_flipped_bit_is_found_and_mended_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec(&[key(11).id()], 8));
    let (a, _) = start(11, role::VALIDATOR, &spec, dir.path(), &[], Way::Mesh);
    let join = [a.addr()];
    let (b, _) = start(12, role::PEER, &spec, dir.path(), &join, Way::Mesh);
    // The round after which it first differed from the others.
    let differs = Arc::new(OnceLock::new());
    let tell = Arc::clone(&differs);
    let tell = move |line: &Line| {
        if let Line::Mismatch { round, .. } = line {
            let _ = tell.set(*round);
        }
    };
    let (c, work) = start_told(13, role::PEER, &spec, dir.path(), &join, Way::Mesh, tell);
    until("rounds", || c.snapshot().applied >= 2);
    work.flip(123_456);
    let before = c.snapshot().applied;
    until("it is found", || differs.get().is_some());
    let found = *differs.get().unwrap();
    assert!(found <= before + 1, "flipped in {before}, found in {found}");
    until("it is told", || c.snapshot().mismatches > 0);
    let going = |s: &esker_comms::node::Snapshot| s.applied > found + 2 && s.level;
    until("it goes on", || going(&c.snapshot()));
    let counted = c.snapshot().rounds.iter().any(|r| r.counted == Some(true) && r.round > found);
    assert!(counted || c.snapshot().applied > found);
    let (ra, rc) = (roots(&a), roots(&c));
    let last = *rc.keys().rev().find(|r| ra.contains_key(r)).unwrap();
    assert_eq!(ra[&last], rc[&last]);
    for node in [a, b, c] {
        node.stop().unwrap();
    }
}

/// A panic in the work once left a process that looked alive and never folded again.
#[test]
fn a_panic_of_the_work_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec(&[key(61).id()], 8));
    let (a, work) = start(61, role::ALL, &spec, dir.path(), &[], Way::Mesh);
    until("a round", || a.snapshot().applied >= 1);
    work.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    until("it has ended", || !a.is_running());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| a.stop())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the toy is broken"));
}

#[test]
fn updates_travel_by_seeders_and_by_a_bucket() {
    let bucket = tempfile::tempdir().unwrap();
    let folder = Way::Bucket(esker_comms::blob::bucket::open(bucket.path().to_str().unwrap()).unwrap());
    #[cfg(feature = "bucket")]
    let remote = {
        let local = object_store::local::LocalFileSystem::new_with_prefix(bucket.path()).unwrap();
        Way::Bucket(Arc::new(esker_comms::blob::bucket::Remote::new(Arc::new(local), "run/of/ours")))
    };
    let ways = [
        (21, Way::Seeded),
        (31, folder),
        #[cfg(feature = "bucket")]
        (51, remote),
    ];
    for (n, way) in ways {
        let dir = tempfile::tempdir().unwrap();
        let spec = Arc::new(spec(&[key(n).id()], 8));
        let (a, _) = start(n, role::VALIDATOR, &spec, dir.path(), &[], way.clone());
        let join = [a.addr()];
        let (b, _) = start(n + 1, role::PEER, &spec, dir.path(), &join, way.clone());
        let (c, _) = start(n + 2, role::PEER, &spec, dir.path(), &join, way.clone());
        until("rounds", || a.snapshot().rounds.iter().filter(|r| r.entries == 2).count() >= 2);
        until("all level", || b.snapshot().applied >= 2 && c.snapshot().applied >= 2);
        assert_equal(&[&a, &b, &c]);
        for node in [a, b, c] {
            node.stop().unwrap();
        }
    }
}

#[test]
fn the_doctor_sees_a_process_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let spec = Arc::new(spec(&[key(41).id()], 8));
    let (a, _) = start(41, role::ALL, &spec, dir.path(), &[], Way::Mesh);
    let here = "127.0.0.1:0".parse().unwrap();
    // A machine that stands still is ill, and the doctor says so: asked again until it finds it well.
    until("all is well", || {
        let findings = doctor::probe(key(42), here, &[a.addr()], dir.path());
        findings.iter().for_each(|f| println!("{f}"));
        ["reach", "clock", "version", "rate", "nat", "disk"]
            .iter()
            .all(|what| findings.iter().any(|f| f.what == *what && f.grade != doctor::Grade::Bad))
    });
    a.stop().unwrap();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // A folder in a file: nobody can make one, root neither.
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let findings = doctor::probe(key(42), here, &[nobody.local_addr().unwrap()], &file.join("nowhere"));
    assert!(findings.iter().any(|f| f.what == "reach" && f.grade == doctor::Grade::Bad));
    assert!(findings.iter().any(|f| f.what == "disk" && f.grade == doctor::Grade::Bad));
}
