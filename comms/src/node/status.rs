//! What a process is doing, as a value; and that value as Prometheus text and as JSON.
//!
//! The HTTP server is elsewhere: these are pure functions of a snapshot.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::Setup;
use super::drive::ends_round;
use crate::blob::{Fetcher, Store};
use crate::net::{Net, clock_ms};
use crate::round::{Event, Fact, Machine};
use crate::{Hash, PeerId};

/// Rounds kept for the page.
const ROUNDS: usize = 256;

/// One round, as this process saw it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundLine {
    /// The round.
    pub round: u64,
    /// Root of the state after it, once it is applied here.
    pub root: Option<Hash>,
    /// When its manifest came, milliseconds since 1970.
    pub at_ms: u64,
    /// From the manifest before to this one, milliseconds; 0 for the first.
    pub took_ms: u64,
    /// Updates that count.
    pub entries: u32,
    /// Updates that do not.
    pub rejects: u32,
    /// Whether ours counted: none where we had none.
    pub counted: Option<bool>,
    /// Our training loss in it.
    pub loss: Option<f32>,
    /// Bytes sent up to its end, since the start.
    pub up_bytes: u64,
    /// Bytes received.
    pub down_bytes: u64,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerLine {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub addr: String,
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// Bits of its roles.
    pub roles: u8,
    /// Bulk connections to it.
    pub pipes: usize,
    /// Its clock less ours when it came, milliseconds, half a round trip allowed for.
    pub skew_ms: i64,
}

/// What a process is doing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// The run.
    pub run: Hash,
    /// Its name.
    pub name: String,
    /// Who we are.
    pub me: PeerId,
    /// Bits of our roles.
    pub roles: u8,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// The newest manifest's round.
    pub tip: u64,
    /// The round whose state is held.
    pub applied: u64,
    /// Its root.
    pub root: Hash,
    /// Whether the state is that of the newest manifest.
    pub level: bool,
    /// The round that is being trained.
    pub training: Option<u64>,
    /// Peers with a link.
    pub peers: Vec<PeerLine>,
    /// The last rounds, oldest first.
    pub rounds: Vec<RoundLine>,
    /// Bytes sent since the start.
    pub up_bytes: u64,
    /// Bytes received.
    pub down_bytes: u64,
    /// Bytes of blobs held or promised.
    pub store_bytes: u64,
    /// What they may take.
    pub store_quota_bytes: u64,
    /// Chunks that came.
    pub chunks: u64,
    /// Answers that were false.
    pub lies: u64,
    /// Requests for chunks that failed.
    pub requests_failed: u64,
    /// Handshakes turned away.
    pub handshakes_refused: u64,
    /// Messages that did not decode or were not signed as they must be.
    pub messages_refused: u64,
    /// States that differed from the majority's and were mended.
    pub mismatches: u64,
}

/// Where the driver writes and others read.
pub struct Board {
    start_ms: u64,
    now: Mutex<Snapshot>,
}

impl Board {
    /// A board before the start.
    pub fn new(setup: &Setup) -> Board {
        let spec = &setup.spec;
        let now = Snapshot {
            run: spec.id(),
            name: spec.name.clone(),
            me: setup.key.id(),
            roles: setup.roles,
            uptime_s: 0.0,
            tip: 0,
            applied: 0,
            root: spec.genesis,
            level: false,
            training: None,
            peers: Vec::new(),
            rounds: Vec::new(),
            up_bytes: 0,
            down_bytes: 0,
            store_bytes: 0,
            store_quota_bytes: setup.quota,
            chunks: 0,
            lies: 0,
            requests_failed: 0,
            handshakes_refused: 0,
            messages_refused: 0,
            mismatches: 0,
        };
        Board { start_ms: clock_ms(), now: Mutex::new(now) }
    }

    /// What is on it.
    pub fn snapshot(&self) -> Snapshot {
        let mut now = self.lock().clone();
        now.uptime_s = clock_ms().saturating_sub(self.start_ms) as f64 / 1000.0;
        now
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Snapshot> {
        self.now.lock().expect("no panic under the board's lock")
    }

    pub(super) fn opened(&self, applied: u64, root: Hash) {
        let mut s = self.lock();
        (s.applied, s.root) = (applied, root);
    }

    pub(super) fn refused_message(&self) {
        self.lock().messages_refused += 1;
    }

    pub(super) fn training(&self, round: Option<u64>) {
        self.lock().training = round;
    }

    pub(super) fn trained(&self, fact: &Fact, loss: Option<f32>) {
        let Fact::Trained { round, .. } = fact else { return };
        let mut s = self.lock();
        s.training = None;
        line(&mut s, *round).loss = loss;
    }

    pub(super) fn event(&self, event: &Event) {
        let mut s = self.lock();
        match event {
            Event::Accepted { round, entries, rejects, .. } => {
                let before = s.rounds.iter().rfind(|r| r.round + 1 == *round).map(|r| r.at_ms).filter(|t| *t > 0);
                let now = clock_ms();
                let (up, down) = (s.up_bytes, s.down_bytes);
                let l = line(&mut s, *round);
                (l.entries, l.rejects, l.at_ms) = (*entries, *rejects, now);
                l.took_ms = before.map_or(0, |b| now.saturating_sub(b));
                (l.up_bytes, l.down_bytes) = (up, down);
            }
            Event::Counted { round } => line(&mut s, *round).counted = Some(true),
            Event::TurnedAway { round, .. } => line(&mut s, *round).counted = Some(false),
            Event::Mismatch { .. } => s.mismatches += 1,
            _ => {}
        }
        if let Some((round, root)) = ends_round(event) {
            line(&mut s, round).root = Some(root);
        }
    }

    pub(super) fn now(&self, machine: &Machine, net: &Net, store: &Store, fetcher: &Fetcher) {
        let traffic = net.traffic();
        let peers = net.peers();
        let mut s = self.lock();
        (s.applied, s.root) = machine.applied();
        s.tip = machine.tip().map_or(0, |t| t.manifest.round);
        s.level = machine.level();
        (s.up_bytes, s.down_bytes) = (traffic.up_bytes, traffic.down_bytes);
        s.handshakes_refused = traffic.refused;
        s.store_bytes = store.used();
        let counts = fetcher.counts();
        s.chunks = counts.chunks.load(Ordering::Relaxed);
        s.lies = counts.lies.load(Ordering::Relaxed);
        s.requests_failed = counts.failed.load(Ordering::Relaxed);
        s.peers = peers
            .into_iter()
            .map(|p| PeerLine {
                peer: p.peer,
                addr: p.addr.to_string(),
                rtt_ms: p.rtt.as_secs_f64() * 1e3,
                roles: p.hello.roles,
                pipes: p.pipes,
                skew_ms: p.skew_ms,
            })
            .collect();
    }
}

/// The line of a round, made where it is not there; the oldest go.
fn line(s: &mut Snapshot, round: u64) -> &mut RoundLine {
    let at = match s.rounds.binary_search_by_key(&round, |r| r.round) {
        Ok(at) => at,
        Err(at) => {
            let fresh = RoundLine {
                round,
                root: None,
                at_ms: 0,
                took_ms: 0,
                entries: 0,
                rejects: 0,
                counted: None,
                loss: None,
                up_bytes: 0,
                down_bytes: 0,
            };
            s.rounds.insert(at, fresh);
            if s.rounds.len() > ROUNDS && at > 0 {
                let mut rounds = VecDeque::from(std::mem::take(&mut s.rounds));
                rounds.pop_front();
                s.rounds = rounds.into();
                at - 1
            } else {
                at
            }
        }
    };
    &mut s.rounds[at]
}

/// The snapshot as Prometheus text, version 0.0.4 of the format.
pub fn metrics_text(s: &Snapshot) -> String {
    let mut out = String::new();
    let mut put = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(out, "# HELP esker_{name} {help}\n# TYPE esker_{name} {kind}\nesker_{name} {value}");
    };
    let last = s.rounds.iter().rfind(|r| r.at_ms > 0);
    put("uptime_seconds", "gauge", "Since the start of the process.", s.uptime_s);
    put("round", "gauge", "Round of the newest manifest.", s.tip as f64);
    put("round_applied", "gauge", "Round whose state is held.", s.applied as f64);
    put("level", "gauge", "1 if the state is that of the newest manifest.", f64::from(u8::from(s.level)));
    put("peers", "gauge", "Peers with a link.", s.peers.len() as f64);
    if let Some(last) = last {
        put("round_entries", "gauge", "Updates that counted in the last round.", f64::from(last.entries));
        put("round_rejects", "gauge", "Updates turned away in the last round.", f64::from(last.rejects));
        put("round_seconds", "gauge", "Length of the last round.", last.took_ms as f64 / 1e3);
    }
    if let Some(loss) = s.rounds.iter().rev().find_map(|r| r.loss) {
        put("train_loss", "gauge", "Mean training loss of the last round trained here.", f64::from(loss));
    }
    put("up_bytes_total", "counter", "Bytes of messages and blobs sent.", s.up_bytes as f64);
    put("down_bytes_total", "counter", "Bytes of messages and blobs received.", s.down_bytes as f64);
    put("store_bytes", "gauge", "Bytes of blobs held or promised.", s.store_bytes as f64);
    put("store_quota_bytes", "gauge", "What blobs may take.", s.store_quota_bytes as f64);
    put("chunks_total", "counter", "Chunks that came and were true.", s.chunks as f64);
    put("lies_total", "counter", "Answers that were false.", s.lies as f64);
    put("requests_failed_total", "counter", "Requests for chunks that failed.", s.requests_failed as f64);
    put("handshakes_refused_total", "counter", "Handshakes turned away.", s.handshakes_refused as f64);
    put("messages_refused_total", "counter", "Messages malformed or unsigned.", s.messages_refused as f64);
    put("mismatches_total", "counter", "States that differed from the majority's.", s.mismatches as f64);
    out
}

/// The snapshot as JSON.
pub fn status_json(s: &Snapshot) -> String {
    serde_json::to_string(s).expect("numbers, names and lists")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let setup = Setup {
            spec: std::sync::Arc::new(crate::sim::spec(&[PeerId([1; 32])])),
            key: crate::Key::from_seed([2; 32]),
            roles: 1,
            dir: "x".into(),
            quota: 7,
            join: Vec::new(),
            token: None,
            way: super::super::Way::Mesh,
            log: Box::new(|_| {}),
        };
        Board::new(&setup).snapshot()
    }

    #[test]
    fn a_snapshot_is_prometheus_text_and_json() {
        let mut s = snapshot();
        line(&mut s, 3).loss = Some(2.5);
        let text = metrics_text(&s);
        assert!(text.contains("\nesker_train_loss 2.5\n") && text.contains("esker_store_quota_bytes 7\n"));
        for row in text.lines().filter(|l| !l.starts_with('#')) {
            let (name, value) = row.split_once(' ').unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && value.parse::<f64>().is_ok(), "{row}");
        }
        let json: serde_json::Value = serde_json::from_str(&status_json(&s)).unwrap();
        assert_eq!(json["rounds"][0]["round"], 3);
    }

    #[test]
    fn old_rounds_go() {
        let mut s = snapshot();
        for round in 0..1000 {
            assert_eq!(line(&mut s, round).round, round);
        }
        assert_eq!(s.rounds.len(), ROUNDS);
        assert_eq!(s.rounds[0].round, 1000 - ROUNDS as u64);
    }
}
