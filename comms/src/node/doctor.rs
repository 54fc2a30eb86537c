//! Why a process cannot take part: one line each.
//!
//! Dials the given addresses as a run would and measures what a round needs. The key should be one of its own: a link
//! made with that of a process that runs would take the place of that process's. Each finding is a
//! fact with its figure; a bad one says what to do. Nothing here changes anything, save 8 MiB written to the run's
//! folder and deleted.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::blob::ask::{Ask, Request, Status};
use crate::blob::fetch::ask;
use crate::net::frame::{Hello, PROTOCOL};
use crate::net::{Config, Event, Net, NetError};
use crate::{Hash, Key, PeerId};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// As it should be.
    Good,
    /// It works, with a drawback.
    Fair,
    /// It does not work.
    Bad,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What was looked at: `reach`, `clock`, `version`, `nat`, `rate`, `disk`.
    pub what: &'static str,
    /// How it is.
    pub grade: Grade,
    /// The fact, and what to do if it is bad.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.grade {
            Grade::Good => "ok  ",
            Grade::Fair => "note",
            Grade::Bad => "BAD ",
        };
        write!(f, "{mark} {:8} {}", self.what, self.text)
    }
}

fn finding(what: &'static str, grade: Grade, text: String) -> Finding {
    Finding { what, grade, text }
}

/// Looks at the ways to `addrs` from `bind`, and at the disk under `dir`. Blocks for some seconds; makes a runtime of
/// its own.
pub fn probe(key: Key, bind: SocketAddr, addrs: &[SocketAddr], dir: &Path) -> Vec<Finding> {
    let mut out = Vec::new();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(probe_net(key, bind, addrs, &mut out)),
        Err(e) => out.push(finding("reach", Grade::Bad, format!("no runtime: {e}"))),
    }
    out.push(probe_disk(dir));
    out
}

async fn probe_net(key: Key, bind: SocketAddr, addrs: &[SocketAddr], out: &mut Vec<Finding>) {
    let (net, mut inbox) = match Net::bind(Config::new(bind, 64 << 10), key) {
        Ok(bound) => bound,
        Err(e) => return out.push(finding("reach", Grade::Bad, e.to_string())),
    };
    let mut seen = BTreeSet::new();
    for addr in addrs {
        let start = Instant::now();
        match net.connect(*addr, None).await {
            Ok(peer) => {
                let ms = start.elapsed().as_secs_f64() * 1e3;
                out.push(finding("reach", Grade::Good, format!("{addr} is {}, in {ms:.0} ms", peer.short())));
                if let Some((hello, at_ms)) = greeting(&mut inbox.events, peer).await {
                    let rtt = net.peers().iter().find(|p| p.peer == peer).map_or(Duration::ZERO, |p| p.rtt);
                    out.push(clock(&hello, at_ms, rtt));
                    out.push(version(&hello));
                    seen.insert(hello.observed);
                }
                out.extend(rate(&net, peer).await);
            }
            Err(NetError::Version { oldest, newest, .. }) => {
                let text = format!("{addr} speaks {oldest} to {newest}, this build {} to {}", PROTOCOL.0, PROTOCOL.1);
                out.push(finding("version", Grade::Bad, text));
            }
            Err(e) => {
                let text = format!("{e}; is UDP let through, here and there, and does it run?");
                out.push(finding("reach", Grade::Bad, text));
            }
        }
    }
    if !seen.is_empty() {
        out.push(nat(net.local_addr(), &seen));
    }
    net.close().await;
}

async fn greeting(events: &mut tokio::sync::mpsc::Receiver<Event>, from: PeerId) -> Option<(Hello, u64)> {
    let wait = async {
        while let Some(event) = events.recv().await {
            if let Event::Up { peer, hello, at_ms } = event
                && peer == from
            {
                return Some((hello, at_ms));
            }
        }
        None
    };
    timeout(Duration::from_secs(5), wait).await.ok().flatten()
}

fn clock(hello: &Hello, at_ms: u64, rtt: Duration) -> Finding {
    // Its clock may say anything.
    let skew = (hello.clock_ms as i64).saturating_add(rtt.as_millis() as i64 / 2).saturating_sub(at_ms as i64);
    let text = format!("its clock is {skew} ms from ours");
    // Deadlines count from receipt, so a wrong clock spoils logs and nothing else.
    match skew.unsigned_abs() {
        0..2_000 => finding("clock", Grade::Good, text),
        _ => finding("clock", Grade::Fair, format!("{text}; logs of owners will not line up: set it by NTP")),
    }
}

fn version(hello: &Hello) -> Finding {
    let text = format!("protocol {} to {} there, {} to {} here", hello.oldest, hello.newest, PROTOCOL.0, PROTOCOL.1);
    finding("version", Grade::Good, text)
}

/// What stands between us and the others, by how they see us.
fn nat(local: SocketAddr, seen: &BTreeSet<SocketAddr>) -> Finding {
    let first = seen.first().expect("somebody saw us");
    let own = !local.ip().is_unspecified() && *first == local;
    match (own, seen.len()) {
        (true, 1) => finding("nat", Grade::Good, format!("none: we are seen as we are, {local} (tier 1)")),
        (_, 1) if first.ip().is_loopback() => {
            finding("nat", Grade::Good, format!("none: both ends are on this machine, {first}"))
        }
        (_, 1) if first.port() == local.port() => {
            let text = format!("seen as {first} with our own port: open it to the outside for tier 1, else tier 2");
            finding("nat", Grade::Good, text)
        }
        (_, 1) => {
            let text = format!("seen as {first} through a translator: others reach us by a punch (tier 2)");
            finding("nat", Grade::Fair, text)
        }
        _ => {
            let text = format!(
                "{} addresses for {} that see us: a port for each, so nobody can dial us; use the route `seeded` \
                or open the port (tier 3)",
                seen.len(),
                seen.len()
            );
            finding("nat", Grade::Fair, text)
        }
    }
}

/// MiB moved for a measurement, in requests of one.
const PROBES: usize = 8;

async fn rate(net: &Net, peer: PeerId) -> Vec<Finding> {
    let size = 1usize << 20;
    let mbit = |secs: f64| (PROBES * size) as f64 * 8e-6 / secs.max(1e-6);
    let name = Hash::NONE;
    let start = Instant::now();
    let down = (0..PROBES).map(|_| {
        let net = net.clone();
        tokio::spawn(async move { ask(&net, peer, Request { name, what: Ask::Down(size as u32) }, size).await })
    });
    let mut fault = None;
    for task in down.collect::<Vec<_>>() {
        if let Ok(Err(e)) = task.await {
            fault = Some(e);
        }
    }
    let line = |way: &str, secs: f64, fault: Option<String>| match fault {
        None => {
            finding("rate", Grade::Good, format!("{way} {:.0} Mbit/s, over {PROBES} MiB from a cold start", mbit(secs)))
        }
        Some(e) => finding("rate", Grade::Bad, format!("{way}: {e}")),
    };
    let mut out = vec![line("down", start.elapsed().as_secs_f64(), fault)];
    let start = Instant::now();
    let up = (0..PROBES).map(|_| {
        let net = net.clone();
        tokio::spawn(async move { push(&net, peer, size).await })
    });
    let mut fault = None;
    for task in up.collect::<Vec<_>>() {
        if let Ok(Err(e)) = task.await {
            fault = Some(e);
        }
    }
    out.push(line("up", start.elapsed().as_secs_f64(), fault));
    out
}

async fn push(net: &Net, peer: PeerId, size: usize) -> Result<(), String> {
    let text = |e: crate::net::StreamFault| e.to_string();
    let mut stream = net.open(peer).await.map_err(|e| e.to_string())?;
    stream.write(&Request { name: Hash::NONE, what: Ask::Up(size as u32) }.to_bytes()).await.map_err(text)?;
    stream.write(&vec![0; size]).await.map_err(text)?;
    stream.finish();
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.map_err(text)?;
    match Status::of(head[0]) {
        Some(Status::Here) => Ok(()),
        _ => Err("it is busy".into()),
    }
}

fn probe_disk(dir: &Path) -> Finding {
    let path = dir.join("doctor.tmp");
    let block = vec![7; 1 << 20];
    let start = std::time::Instant::now();
    let write = || {
        std::fs::create_dir_all(dir)?;
        let mut file = std::fs::File::create(&path)?;
        for _ in 0..8 {
            file.write_all(&block)?;
        }
        file.sync_all()
    };
    let written = write();
    let _ = std::fs::remove_file(&path);
    match written {
        Ok(()) => {
            let rate = 8.0 / start.elapsed().as_secs_f64().max(1e-6);
            finding("disk", Grade::Good, format!("{} takes {rate:.0} MiB/s, synced", dir.display()))
        }
        Err(e) => finding("disk", Grade::Bad, format!("{}: {e}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_follow_from_how_others_see_us() {
        let a: SocketAddr = "192.0.2.1:4000".parse().unwrap();
        let any: SocketAddr = "0.0.0.0:4000".parse().unwrap();
        let b: SocketAddr = "198.51.100.1:61000".parse().unwrap();
        let c: SocketAddr = "198.51.100.1:61001".parse().unwrap();
        assert!(nat(a, &BTreeSet::from([a])).text.contains("tier 1"));
        for clock_ms in [0, u64::MAX, i64::MAX as u64, i64::MIN as u64] {
            let hello = Hello { oldest: 1, newest: 1, clock_ms, observed: a, roles: 0, session: 0 };
            assert_eq!(clock(&hello, 1 << 40, Duration::from_secs(1)).grade, Grade::Fair);
        }
        assert!(nat(any, &BTreeSet::from([b])).text.contains("tier 2"));
        assert!(nat(any, &BTreeSet::from([b, c])).text.contains("tier 3"));
        assert_eq!(nat(any, &BTreeSet::from([b, c])).grade, Grade::Fair);
    }

    #[test]
    fn a_line_is_a_line() {
        let f = finding("disk", Grade::Bad, "full".into());
        assert_eq!(f.to_string(), "BAD  disk     full");
    }
}
