//! Hostile bytes: the corpora of `fuzz/`, and mutants of them and of valid messages, through the functions that the
//! fuzz targets call. None may panic, none may take more memory than twice its declared bound, and what is taken is
//! written again byte for byte.
//!
//! `ESKER_FUZZ=N` plays N mutants a target instead of 20000, `ESKER_FUZZ_ONLY=frame,request` of these targets alone; the
//! seed is printed by the run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use esker_comms::net::frame::OWN_FRAME_MAX;
use esker_comms::round::Record;
use esker_comms::round::log::{Line, Timed};
use esker_comms::sim::work::Rng;
use esker_comms::wire::{
    Attest, Ballot, Body, Canonical, Checkpoint, Close, Commit, Entry, Have, Join, Kind, Manifest, Message, Phase,
    Propose, Pull, Reason, Refuse, Reject, Reveal, Sealed, Slot, Status, Vote,
};
use esker_comms::{Hash, Key, PeerId, Protocol, SPEC_BYTES_MAX};
use std::sync::Arc;

#[path = "../fuzz/entries"]
mod entries {
    pub mod blob_map;
    pub mod frame;
    pub mod journal;
    pub mod log;
    pub mod manifest;
    pub mod message;
    pub mod request;
    pub mod spec;
}

/// A decoder that may refuse, and must not panic.
type Decode = fn(&[u8]);

/// What the rounds read, by name. Their valid bytes are made here.
const ROUNDS: [(&str, Decode); 5] = [
    ("message", entries::message::run),
    ("manifest", entries::manifest::run),
    ("spec", entries::spec::run),
    ("journal", entries::journal::run),
    ("log", entries::log::run),
];

/// A decoder that says whether it took the bytes.
type Verdict = fn(&[u8]) -> Result<(), String>;

/// What the transport and the blobs read. Files of their corpora begin with `valid` where they are taken.
const WIRE: [(&str, Verdict); 3] =
    [("frame", entries::frame::run), ("request", entries::request::run), ("blob_map", entries::blob_map::run)];

/// All targets by name.
fn targets() -> Vec<(&'static str, Decode)> {
    let wire: [Decode; 3] = [
        |bytes| drop(entries::frame::run(bytes)),
        |bytes| drop(entries::request::run(bytes)),
        |bytes| drop(entries::blob_map::run(bytes)),
    ];
    ROUNDS.into_iter().chain(WIRE.map(|(name, _)| name).into_iter().zip(wire)).collect()
}

/// The files of a target's corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let read = |file: std::io::Result<std::fs::DirEntry>| {
        let file = file.unwrap();
        (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())
    };
    let mut files: Vec<_> = files.map(read).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files
}

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; counters are all that is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.get() + layout.size() as isize;
        LIVE.set(live);
        PEAK.set(PEAK.get().max(live));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get() - layout.size() as isize);
        // SAFETY: `at` came from `System` with this layout, as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `run` held at once, beyond what stood before.
fn peak(run: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    run();
    (PEAK.get() - before).max(0) as usize
}

fn manifest(run: Hash) -> Manifest {
    let mut peers: Vec<PeerId> = (0..12u8).map(|i| Key::from_seed([i + 1; 32]).id()).collect();
    peers.sort_unstable();
    Manifest {
        run,
        round: 7,
        prev: Hash::of(b"prev"),
        prev_root: Hash::of(b"root"),
        checkpoint: Some(Checkpoint { round: 5, root: Hash::of(b"five") }),
        train_ms: 60_000,
        collect_ms: 20_000,
        entries: peers[..5]
            .iter()
            .map(|p| Entry { peer: *p, blob: Hash::of(&p.0), tokens: 9, weight: 65536 })
            .collect(),
        rejects: peers[5..7].iter().map(|p| Reject { peer: *p, reason: Reason::Norm }).collect(),
        slots: peers.iter().map(|p| Slot { peer: *p, since: 2 }).collect(),
    }
}

/// One valid message of each kind.
fn messages() -> Vec<Vec<u8>> {
    let (spec, key) = (entries::message::run_spec(), Key::from_seed([7; 32]));
    let (run, h) = (spec.id(), Hash::of(b"h"));
    let manifest = manifest(run);
    let ballot = Ballot { round: 7, attempt: 0, phase: Phase::Sign, manifest: Some(manifest.hash()) };
    let signature = Message::new(&key, &run, Body::Ballot(ballot.clone())).signature().unwrap();
    let votes = vec![Vote { validator: key.id(), signature }];
    let sealed = Sealed { hash: manifest.hash(), manifest: manifest.clone(), attempt: 0, votes };
    let bodies = [
        Body::Join(Join { protocol: Protocol { min: 1, max: 1 }, token: Some(signature) }),
        Body::Commit(Commit { round: 7, after: h, blob: h, bytes: 396, tokens: 5, steps: 30 }),
        Body::Reveal(Reveal { round: 7, blob: h }),
        Body::Close(Close { round: 7, after: h }),
        Body::Have(Have { round: 7, after: h, whole: true, slots: vec![0, 255, 3] }),
        Body::Propose(Box::new(Propose { attempt: 1, ready: Some(0), manifest })),
        Body::Ballot(ballot),
        Body::Sealed(Arc::new(sealed)),
        Body::Attest(Attest { round: 7, manifest: h, root: h }),
        Body::Refuse(Refuse { round: 7, peer: key.id(), reason: Reason::Late }),
        Body::Status(Status { round: 7, manifest: h, applied: 6 }),
        Body::Pull(Pull { from: 3 }),
    ];
    assert_eq!(bodies.len(), Kind::ALL.len());
    bodies.into_iter().map(|b| Message::new(&key, &run, b).bytes().to_vec()).collect()
}

/// Valid bytes for each target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let spec = entries::message::run_spec();
    let messages = messages();
    let sealed = messages[7][1..].to_vec();
    match target {
        "message" => messages,
        "manifest" => vec![sealed],
        "spec" => vec![spec.encode()],
        "journal" => {
            let ballot = Ballot { round: 7, attempt: 2, phase: Phase::Ready, manifest: None };
            let records = [
                Record::Sealed(Arc::new(Sealed::decode(&sealed).unwrap())),
                Record::Commit(messages[1].clone()),
                Record::Propose(messages[5].clone()),
                Record::Ballot(ballot),
                Record::Lock(1, Box::new(manifest(spec.id()))),
            ];
            vec![records.iter().flat_map(Record::encode).collect()]
        }
        "frame" | "request" | "blob_map" => corpus(target).into_iter().map(|(_, bytes)| bytes).collect(),
        _ => {
            let lines = [Line::Counted { round: 3 }, Line::Refused { by: PeerId([1; 32]), reason: Reason::Late }];
            vec![lines.into_iter().flat_map(|line| Timed { at: 5, line }.encode_framed()).collect()]
        }
    }
}

/// What a target may hold at once: twice its declared bound, and a little for errors.
fn bound(target: &str, input: usize) -> usize {
    let message = entries::message::run_spec().message_bytes_max();
    4096 + 2 * match target {
        "message" => message,
        "spec" => SPEC_BYTES_MAX,
        "frame" => input.max(OWN_FRAME_MAX),
        "request" | "blob_map" => input,
        // A manifest, a journal and a log are held against the bytes that are there.
        _ => input.max(message),
    }
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..1 + rng.below(4) {
        let len = bytes.len() as u64;
        match rng.below(6) {
            0 if len > 0 => bytes[rng.below(len) as usize] ^= 1 << rng.below(8),
            1 if len > 0 => bytes[rng.below(len) as usize] = rng.bits() as u8,
            2 => bytes.truncate(rng.below(len + 1) as usize),
            3 => bytes.extend((0..rng.below(40)).map(|_| 0)),
            4 if len >= 4 => {
                // A count or a length that lies.
                let at = rng.below(len - 3) as usize;
                let lie = [u32::MAX, 1 << 20, 64, 65, 0, 1][rng.below(6) as usize];
                bytes[at..at + 4].copy_from_slice(&lie.to_le_bytes());
            }
            _ if len > 0 => {
                let (from, to) = (rng.below(len) as usize, rng.below(len) as usize);
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                let at = rng.below(len) as usize;
                bytes.splice(at..at, piece.into_iter().take(200));
            }
            _ => {}
        }
    }
}

#[test]
fn corpora() {
    for (target, run) in ROUNDS {
        corpus(target).iter().for_each(|(_, bytes)| run(bytes));
    }
    for (target, run) in WIRE {
        for (file, bytes) in corpus(target) {
            let outcome = run(&bytes);
            assert_eq!(outcome.is_ok(), file.starts_with("valid"), "{target}/{file}: {outcome:?}");
        }
    }
}

/// The files of bytes kept for ever: what is valid today decodes tomorrow. `ESKER_CORPUS=1` writes them.
#[test]
fn kept_bytes_are_those_of_today() {
    for (target, run) in ROUNDS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        for (i, bytes) in seeds(target).into_iter().enumerate() {
            let file = folder.join(format!("valid-{i:02}"));
            if std::env::var_os("ESKER_CORPUS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&file, &bytes).unwrap();
            }
            assert_eq!(std::fs::read(&file).unwrap(), bytes, "{}", file.display());
            run(&bytes);
        }
    }
}

#[test]
fn mutants() {
    let times: u64 = std::env::var("ESKER_FUZZ").map_or(20_000, |n| n.parse().expect("ESKER_FUZZ: a number"));
    let only = std::env::var("ESKER_FUZZ_ONLY").ok();
    let named = |target: &str| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == target));
    for (target, run) in targets().into_iter().filter(|(target, _)| named(target)) {
        let seeds = seeds(target);
        // What a target makes once and keeps is not held for an input.
        seeds.iter().for_each(|seed| run(seed));
        let (mut rng, mut most, mut taken) = (Rng(0xe5ce), 0, 0u64);
        let mut bytes = Vec::new();
        for i in 0..times {
            bytes.clear();
            bytes.extend_from_slice(&seeds[i as usize % seeds.len()]);
            mutate(&mut bytes, &mut rng);
            let held = peak(|| run(&bytes));
            most = most.max(held);
            taken += bytes.len() as u64;
            assert!(held <= bound(target, bytes.len()), "{target}: {held} bytes held for {} of input", bytes.len());
        }
        println!("{target}: {times} mutants, {} MB, at most {most} bytes held; seed 0xe5ce", taken >> 20);
    }
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    let spec = entries::message::run_spec();
    for message in messages() {
        for at in 0..message.len().saturating_sub(4) {
            let mut bytes = message.clone();
            bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let held = peak(|| {
                let _ = Message::decode(spec, &bytes);
            });
            assert!(held <= 2 * message.len() + 4096, "{held} bytes held for a message of {}", message.len());
        }
    }
}
