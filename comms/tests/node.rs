//! Whole processes on loopback: real sockets, real disks, real threads, a toy for work.

mod toy;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_comms::net::Config;
use esker_comms::node::{Node, Setup, Way, doctor, role};
use esker_comms::{Hash, RunSpec};
use toy::{Toy, key, spec};

fn start(n: u8, roles: u8, spec: &Arc<RunSpec>, root: &Path, join: &[SocketAddr], way: Way) -> (Node, Arc<Toy>) {
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
            // `ESKER_TEST_LOG=1` shows what each process logs.
            if std::env::var_os("ESKER_TEST_LOG").is_some() {
                println!("{} {n}: {:?}", timed.at, timed.line);
            }
        }),
    };
    let net = Config::new("127.0.0.1:0".parse().unwrap(), 0);
    (Node::start(setup, net, work.clone()).unwrap(), work)
}

fn until(what: &str, secs: u64, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(secs), "{what}: not within {secs} s");
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
    until("three contribute", 30, || a.snapshot().rounds.iter().any(|r| r.entries == 3 && r.root.is_some()));

    // A late one contributes within two rounds after it has the state.
    let before = a.snapshot().applied;
    let (d, _) = start(4, peer, &spec, dir.path(), &join, Way::Mesh);
    until("the late one has a state", 20, || d.snapshot().applied > 0);
    let came = d.snapshot().applied.max(before);
    until("the late one counts", 20, || d.snapshot().rounds.iter().any(|r| r.counted == Some(true)));
    let counted = d.snapshot().rounds.iter().find(|r| r.counted == Some(true)).unwrap().round;
    assert!(counted <= came + 3, "had a state at {came}, counted in {counted}");

    // One dies without a word and comes back with its disk.
    let lost = c.snapshot();
    c.kill().unwrap();
    let (c, _) = start(3, peer, &spec, dir.path(), &join, Way::Mesh);
    let back = a.snapshot().tip;
    until("the killed one counts again", 30, || {
        c.snapshot().rounds.iter().any(|r| r.counted == Some(true) && r.round >= back)
    });
    println!("killed after round {}, back while round {back} was the newest", lost.applied);
    // All four in one round again: nobody is asked through what led to the dead process.
    until("all four count", 30, || a.snapshot().rounds.iter().any(|r| r.round > back && r.entries == 4));
    until("rounds go on", 30, || a.snapshot().applied > back + 2);
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
    let (c, work) = start(13, role::PEER, &spec, dir.path(), &join, Way::Mesh);
    until("rounds", 30, || c.snapshot().applied >= 2);
    work.flip(123_456);
    let before = c.snapshot().applied;
    until("it is found", 20, || c.snapshot().mismatches > 0);
    let found = c.snapshot().applied;
    assert!(found <= before + 1, "flipped in {before}, found in {found}");
    let going = |s: &esker_comms::node::Snapshot| s.applied > found + 2 && s.level;
    until("it goes on", 30, || going(&c.snapshot()));
    let counted = c.snapshot().rounds.iter().any(|r| r.counted == Some(true) && r.round > found);
    assert!(counted || c.snapshot().applied > found);
    let (ra, rc) = (roots(&a), roots(&c));
    let last = *rc.keys().rev().find(|r| ra.contains_key(r)).unwrap();
    assert_eq!(ra[&last], rc[&last]);
    for node in [a, b, c] {
        node.stop().unwrap();
    }
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
        until("rounds", 40, || a.snapshot().rounds.iter().filter(|r| r.entries == 2).count() >= 2);
        until("all level", 20, || b.snapshot().applied >= 2 && c.snapshot().applied >= 2);
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
    let findings = doctor::probe(key(42), here, &[a.addr()], dir.path());
    findings.iter().for_each(|f| println!("{f}"));
    for what in ["reach", "clock", "version", "rate", "nat", "disk"] {
        assert!(findings.iter().any(|f| f.what == what && f.grade != doctor::Grade::Bad), "{what}");
    }
    a.stop().unwrap();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let findings = doctor::probe(key(42), here, &[nobody.local_addr().unwrap()], Path::new("/proc/nowhere"));
    assert!(findings.iter().any(|f| f.what == "reach" && f.grade == doctor::Grade::Bad));
    assert!(findings.iter().any(|f| f.what == "disk" && f.grade == doctor::Grade::Bad));
}
