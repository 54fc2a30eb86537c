//! Owners over a network: the real thing, small.

use crate::tiny::Place;
use esker_comms::net::Config;
use esker_comms::node::{Made, Node, Setup, TrainJob, Way, Work, role};
use esker_comms::round::log::{Line, Timed};
use esker_comms::round::{Expect, Part, Sound};
use esker_comms::wire::Reason;
use esker_comms::{Hash, Key, RunSpec};
use esker_kernels::device::Stream;
use esker_train::config::Run;
use esker_train::outer::{Layout, Owner};
use esker_train::peers::spec::spec;
use esker_train::peers::work::OwnerWork;
use esker_train::source;
use esker_train::study::{Forger, Lie};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// More time than a test can take: no result here follows from how fast the machine is.
const DAY_MS: u64 = 86_400_000;

/// A guard against waiting for ever, and no more.
const HANGS: Duration = Duration::from_secs(900);

/// Owners that wait for each other, however long it takes: no deadline passes, so every update counts.
const PEERS: &[&str] = &[
    "outer.codec=compact",
    "outer.k=256",
    "outer.beta=0.95",
    "outer.mean=senders",
    "outer.clip=median",
    "outer.alpha=[{ round = 0, value = 1.0 }]",
    "peers.validators=[]",
    "peers.delay=0",
    "peers.train_s=86400.0",
    "peers.grace_s=86400.0",
    "peers.collect_s=86400.0",
    "peers.retry_s=0.05",
    "peers.route=mesh",
    "peers.admission=open",
];

fn run(place: &Place, sets: &[&str]) -> Run {
    place.run(&[PEERS, sets].concat())
}

#[test]
fn four_processes_train_one_model() {
    let place = Place::new();
    let sets = ["outer.slots=4", "outer.inner_steps=3", "peers.owners_min=4", "train.steps=11"];
    let config = place.dir.path().join("run.toml");
    std::fs::write(&config, run(&place, &sets).to_toml()).unwrap();
    let out = place.out();
    let mut command = Command::new(env!("CARGO_BIN_EXE_esker"));
    command.args(["peers", "local", "--n", "4", "--json"]).arg(&config).arg("--out").arg(&out);
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let outcome: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let rows = outcome["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "{said}");
    let update = outcome["update_bytes"].as_f64().unwrap();
    let mut roots: Vec<&str> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row["round"], i as u64 + 1);
        assert_eq!(row["counted"], serde_json::json!([true, true, true, true]), "{row}");
        roots.push(row["root"].as_str().unwrap());
    }
    // An owner gives its update to three others, and there is talk around it. A row is taken when a round is applied, and
    // the last bytes of it may show in the next.
    let moved = |way: &str| rows.iter().map(|row| row[way].as_f64().unwrap()).sum::<f64>();
    for way in ["up_bytes", "down_bytes"] {
        assert!((2.0 * 3.0 * update..4.0 * (3.0 * update + 40_000.0)).contains(&moved(way)), "{way}: {outcome}");
    }
    assert!(roots.iter().all(|root| root.len() == 64 && roots.iter().filter(|other| *other == root).count() == 1));
    for loss in [&outcome["nll"], &outcome["alone"]["nll"]] {
        assert!((0.0..6.0).contains(&loss.as_f64().unwrap()), "{outcome}");
    }
    let folder = out.join("tiny-001");
    let lines = std::fs::read_to_string(folder.join("rounds.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 4);
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("<svg"), "{page}");
    // What each kept is of the last round, which all have in common.
    for owner in 1..=4 {
        let kept = kept(&folder.join(format!("owner-{owner}/owner.safetensors")));
        assert_eq!((kept["round"].as_u64(), kept["root"].as_str()), (Some(4), roots.last().copied()), "owner {owner}");
    }
}

/// Where an owner stood when it was kept.
fn kept(file: &Path) -> serde_json::Value {
    let bytes = std::fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    serde_json::from_str(header["__metadata__"]["esker"].as_str().unwrap()).unwrap()
}

/// Rounds in which the liar is honest, and then of each lie. The first sends what counted in an honest round.
const HONEST: u64 = 5;
const EACH: u64 = 2;
const LIES: [Lie; 6] = [Lie::Stale, Lie::SignFlip, Lie::Million, Lie::Noise, Lie::Copy, Lie::Zeros];
const ROUNDS: u64 = HONEST + EACH * LIES.len() as u64 + 1;
/// Where an update names the weights that it moves from.
const BASE: std::ops::Range<usize> = 80..112;

/// The lie of a round; in the last one it is about the weights it began with.
fn lie(round: u64) -> Option<Lie> {
    LIES.get(round.checked_sub(HONEST + 1)? as usize / EACH as usize).copied()
}

/// An owner whose updates are lies: one after the other, all through.
struct Liar {
    own: OwnerWork,
    layout: Layout,
    forgers: Mutex<Vec<Forger>>,
    /// Another's update of the round before.
    other: Mutex<Option<Vec<u8>>>,
}

impl Work for Liar {
    fn settled(&self) -> (u64, Hash) {
        self.own.settled()
    }

    fn train(&self, job: &TrainJob, stop: &dyn Fn() -> bool) -> Result<Made, String> {
        let made = self.own.train(job, stop)?;
        let other = self.other.lock().unwrap().take();
        let mut update = made.update.clone();
        // Each sees every round, for the one with old updates must have some.
        for (forger, of) in self.forgers.lock().unwrap().iter_mut().zip(LIES) {
            let forged = forger.forge(&self.layout, other.as_deref(), made.update.clone()).unwrap();
            if lie(job.round) == Some(of) {
                update = forged;
            }
        }
        if job.round == ROUNDS {
            update[BASE].fill(0);
        }
        Ok(Made { update, ..made })
    }

    fn check(&self, run: &Hash, update: &[u8], expect: &Expect) -> Result<Sound, Reason> {
        self.own.check(run, update, expect)
    }

    fn fold(&self, round: u64, parts: &[Part], read: &dyn Fn(&Hash) -> Result<Vec<u8>, String>) -> Result<(), String> {
        let other = parts.iter().find(|part| part.peer != key(0).id()).map(|part| read(&part.blob));
        *self.other.lock().unwrap() = other.transpose()?;
        self.own.fold(round, parts, read)
    }

    fn leaf(&self, index: u64, into: &mut Vec<u8>) {
        self.own.leaf(index, into);
    }

    fn mend(&self, index: u64, bytes: &[u8]) -> Result<(), String> {
        self.own.mend(index, bytes)
    }

    fn settle(&self, round: u64, root: Hash) -> Result<(), String> {
        self.own.settle(round, root)
    }
}

fn key(n: usize) -> Key {
    Key::from_seed([n as u8 + 1; 32])
}

/// What happened to the update of owner n in a round: none, it counted.
type Told = BTreeMap<(usize, u64), Option<Option<Reason>>>;

#[test]
fn every_lie_is_turned_away_by_the_protocol() {
    const N: usize = 5;
    let place = Place::new();
    let validators = format!("peers.validators=[\"{}\"]", key(1).id());
    let steps = format!("train.steps={}", 6 * ROUNDS);
    let sets = ["outer.slots=5", "outer.inner_steps=6", "peers.owners_min=5", "model.hidden=32", &validators, &steps];
    let run = run(&place, &sets);
    let told: Arc<Mutex<Told>> = Arc::default();
    let mut nodes: Vec<Node> = Vec::new();
    // Owner 0 lies; owner 1 validates, and is whom the others dial.
    for n in [1, 0, 2, 3, 4] {
        let dir = place.dir.path().join(format!("owner-{n}"));
        std::fs::create_dir_all(&dir).unwrap();
        let (spec, work) = work(&place, &run, n, &dir);
        let told = Arc::clone(&told);
        let log = Box::new(move |timed: &Timed| match timed.line {
            Line::Counted { round } => _ = told.lock().unwrap().insert((n, round), None),
            Line::TurnedAway { round, reason } => _ = told.lock().unwrap().insert((n, round), Some(reason)),
            _ => {}
        });
        let join = nodes.first().map(Node::addr).into_iter().collect();
        let setup = Setup {
            spec: Arc::new(spec),
            key: key(n),
            roles: role::ALL,
            dir,
            quota: 1 << 30,
            join,
            token: None,
            way: Way::Mesh,
            log,
        };
        nodes.push(Node::start(setup, Config::new("127.0.0.1:0".parse().unwrap(), 0), work).unwrap());
    }
    let begin = Instant::now();
    while nodes.iter().any(|node| node.snapshot().applied < ROUNDS) {
        assert!(begin.elapsed() < HANGS, "{:?}", told.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    for node in nodes {
        node.stop().unwrap();
    }
    let told = told.lock().unwrap();
    for round in 1..=ROUNDS {
        for n in 1..N {
            assert_eq!(told.get(&(n, round)), Some(&None), "round {round}, {:?}: owner {n} is honest", lie(round));
        }
        let want = match lie(round) {
            Some(Lie::SignFlip | Lie::Noise) => Some(Reason::Signs),
            Some(Lie::Copy | Lie::Stale) => Some(Reason::Overlap),
            Some(Lie::Million) => Some(Reason::Norm),
            Some(Lie::Zeros) => Some(Reason::Zero),
            None => (round == ROUNDS).then_some(Reason::StaleBase),
        };
        assert_eq!(told.get(&(0, round)), Some(&want.map(Some)), "round {round}, {:?}", lie(round));
    }
}

/// What owner `n` does.
fn work(place: &Place, run: &Run, n: usize, dir: &Path) -> (RunSpec, Arc<dyn Work>) {
    let opened = source::open(run, place.dir.path()).unwrap();
    let mut owner = Owner::open(Arc::new(Stream::cpu(1).unwrap()), run.clone(), &opened).unwrap();
    let spec = spec(run, &owner, &opened.identity, key(n).id()).unwrap();
    owner.name_run(spec.id().0);
    let layout = owner.layout().clone();
    let own = OwnerWork::new(owner, key(n).id(), dir.to_path_buf());
    if n > 0 {
        return (spec, Arc::new(own));
    }
    let forgers = LIES.into_iter().zip(0..).map(|(lie, seed)| Forger::new(Some(lie), seed)).collect();
    (spec, Arc::new(Liar { own, layout, forgers: Mutex::new(forgers), other: Mutex::new(None) }))
}

/// A round that ends before a peer has made all its steps has those that it made; a commit that tells of others is found
/// out by the update's header.
#[test]
fn who_has_no_time_sends_a_shorter_round() {
    let place = Place::new();
    let validators = format!("peers.validators=[\"{}\"]", key(1).id());
    let sets = ["outer.slots=2", "outer.inner_steps=3", "peers.owners_min=1", "train.steps=6", &validators];
    let run = run(&place, &sets);
    let (spec, work) = work(&place, &run, 1, &place.out());
    let (round, base_root) = work.settled();
    let train = |budget_ms| {
        let (run, peer) = (spec.id(), key(1).id());
        let job = TrainJob { run, round: 1, peer, slot: 0, slots: 2, base: round, base_root, budget_ms };
        work.train(&job, &|| false).unwrap()
    };
    let (short, whole) = (train(0), train(DAY_MS));
    assert_eq!((short.steps, short.tokens * 3), (1, whole.tokens));
    assert_eq!(whole.steps, 3);
    let check = |made: &Made, steps, tokens| {
        let (peer, bytes, bases) = (key(1).id(), spec.blob_bytes, vec![base_root]);
        work.check(&spec.id(), &made.update, &Expect { round: 1, peer, bytes, tokens, steps, bases }).map(drop)
    };
    assert_eq!(check(&short, 1, short.tokens), Ok(()));
    assert_eq!(check(&whole, 3, whole.tokens), Ok(()));
    // More work than there is in it, less, none, and more than a round has.
    assert_eq!(check(&short, 3, whole.tokens), Err(Reason::Tokens));
    assert_eq!(check(&whole, 1, short.tokens), Err(Reason::Tokens));
    assert_eq!(check(&whole, 3, short.tokens), Err(Reason::Tokens));
    assert_eq!(check(&short, 0, 0), Err(Reason::Tokens));
    assert_eq!(check(&whole, 4, whole.tokens / 3 * 4), Err(Reason::Tokens));
}
