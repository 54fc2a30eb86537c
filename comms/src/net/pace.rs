//! Bandwidth that the owner grants, shared fairly among peers.
//!
//! A token bucket of `rate` bytes a second and a burst of a twentieth of a second (256 KiB at least) stands over the
//! process, and one of `each` over every peer. Who wants to move bytes queues under its peer's name; turns go round
//! the peers, not round the requests, so that a peer with a hundred open streams gets what a peer with one gets.
//!
//! `Fair` is the arithmetic, without a clock; `Pacer` lets tasks wait on it. Moving a piece of 64 KiB costs one turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::key::PeerId;

/// Bytes that may pass at a rate, with a burst.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    at: Duration,
}

impl Bucket {
    /// A full bucket that gains `rate` a second and holds `burst` at most. `rate` must be above zero.
    pub fn new(rate: f64, burst: f64) -> Bucket {
        assert!(rate > 0.0 && burst > 0.0, "bucket: rate {rate}, burst {burst}");
        Bucket { rate, burst, level: burst, at: Duration::ZERO }
    }

    /// How long until `n` may be taken; zero if now. More than the burst may be taken when the bucket is full, and is
    /// then owed.
    pub fn wait(&mut self, now: Duration, n: f64) -> Duration {
        let gained = now.saturating_sub(self.at).as_secs_f64() * self.rate;
        self.at = self.at.max(now);
        self.level = (self.level + gained).min(self.burst);
        let lacking = n.min(self.burst) - self.level;
        if lacking <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(lacking / self.rate) }
    }

    /// Takes `n`, after a `wait` of zero.
    pub fn take(&mut self, n: f64) {
        self.level -= n;
    }

    /// Takes `n` if it may be taken now.
    pub fn try_take(&mut self, now: Duration, n: f64) -> bool {
        let free = self.wait(now, n).is_zero();
        if free {
            self.take(n);
        }
        free
    }

    /// Whether nothing has been taken for long enough that the bucket is full again.
    pub fn is_full(&mut self, now: Duration) -> bool {
        self.wait(now, 0.0);
        self.level >= self.burst
    }
}

/// What `Fair::pop` says.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// This request may move its bytes.
    Go(u64),
    /// Nothing may move before this long.
    Wait(Duration),
    /// Nobody asks.
    Idle,
}

#[derive(Debug)]
struct Lane {
    bucket: Option<Bucket>,
    queue: VecDeque<(u64, usize)>,
}

/// Turns among peers under a cap for all and a cap for each.
#[derive(Debug)]
pub struct Fair {
    all: Option<Bucket>,
    each: Option<f64>,
    lanes: BTreeMap<PeerId, Lane>,
    last: Option<PeerId>,
    tickets: u64,
}

fn bucket(rate: f64) -> Bucket {
    Bucket::new(rate, (rate / 20.0).max(256.0 * 1024.0))
}

impl Fair {
    /// Caps in bytes a second; `None` is no cap.
    pub fn new(all: Option<f64>, each: Option<f64>) -> Fair {
        Fair { all: all.map(bucket), each, lanes: BTreeMap::new(), last: None, tickets: 0 }
    }

    /// Queues `bytes` for `peer` and names the request.
    pub fn push(&mut self, peer: PeerId, bytes: usize) -> u64 {
        self.tickets += 1;
        let each = self.each;
        let lane = self.lanes.entry(peer).or_insert_with(|| Lane { bucket: each.map(bucket), queue: VecDeque::new() });
        lane.queue.push_back((self.tickets, bytes));
        self.tickets
    }

    /// The next request that may go at `now`: the first peer after the last one served that has a request and, if
    /// peers are capped, the tokens for it.
    pub fn pop(&mut self, now: Duration) -> Turn {
        let mut soonest: Option<Duration> = None;
        let order: Vec<PeerId> = match self.last {
            None => self.lanes.keys().copied().collect(),
            Some(last) => {
                let after = self.lanes.range(last..).map(|(p, _)| *p).filter(|p| *p != last);
                after.chain(self.lanes.range(..=last).map(|(p, _)| *p)).collect()
            }
        };
        for peer in order {
            let lane = self.lanes.get_mut(&peer).expect("the order lists lanes");
            let Some(&(ticket, bytes)) = lane.queue.front() else { continue };
            let own = lane.bucket.as_mut().map_or(Duration::ZERO, |b| b.wait(now, bytes as f64));
            let all = self.all.as_mut().map_or(Duration::ZERO, |b| b.wait(now, bytes as f64));
            let wait = own.max(all);
            if wait.is_zero() {
                lane.queue.pop_front();
                lane.bucket.iter_mut().chain(self.all.as_mut()).for_each(|b| b.take(bytes as f64));
                self.last = Some(peer);
                self.forget(now);
                return Turn::Go(ticket);
            }
            soonest = Some(soonest.map_or(wait, |s| s.min(wait)));
        }
        soonest.map_or(Turn::Idle, Turn::Wait)
    }

    /// Drops the lanes of peers who ask for nothing and owe nothing.
    fn forget(&mut self, now: Duration) {
        self.lanes.retain(|_, l| !l.queue.is_empty() || l.bucket.as_mut().is_some_and(|b| !b.is_full(now)));
    }
}

struct Waiting {
    fair: Fair,
    tickets: BTreeMap<u64, oneshot::Sender<()>>,
    pumping: bool,
}

/// Lets tasks wait for their turn.
pub struct Pacer {
    capped: bool,
    start: Instant,
    waiting: Arc<Mutex<Waiting>>,
}

impl Pacer {
    /// Caps in Mbit/s for the process and for each peer; `None` is no cap.
    pub fn new(all_mbit: Option<f64>, each_mbit: Option<f64>) -> Pacer {
        let rate = |m: f64| m * 125_000.0;
        Pacer {
            capped: all_mbit.is_some() || each_mbit.is_some(),
            start: Instant::now(),
            waiting: Arc::new(Mutex::new(Waiting {
                fair: Fair::new(all_mbit.map(rate), each_mbit.map(rate)),
                tickets: BTreeMap::new(),
                pumping: false,
            })),
        }
    }

    /// Returns when `bytes` may move to or from `peer`.
    pub async fn acquire(&self, peer: PeerId, bytes: usize) {
        if !self.capped {
            return;
        }
        let (tx, rx) = oneshot::channel();
        let pump = {
            let mut w = self.waiting.lock().expect("no panic under this lock");
            let ticket = w.fair.push(peer, bytes);
            w.tickets.insert(ticket, tx);
            !std::mem::replace(&mut w.pumping, true)
        };
        if pump {
            tokio::spawn(pump_turns(self.start, self.waiting.clone()));
        }
        // The pump answers every ticket; it ends early only with the runtime, and then nobody waits.
        let _ = rx.await;
    }
}

async fn pump_turns(start: Instant, waiting: Arc<Mutex<Waiting>>) {
    loop {
        let wait = {
            let mut w = waiting.lock().expect("no panic under this lock");
            match w.fair.pop(start.elapsed()) {
                Turn::Go(ticket) => {
                    let tx = w.tickets.remove(&ticket).expect("a ticket for each request");
                    let _ = tx.send(());
                    continue;
                }
                Turn::Wait(wait) => wait,
                Turn::Idle => {
                    w.pumping = false;
                    return;
                }
            }
        };
        // Timers have a grain of a millisecond.
        tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn the_cap_holds_over_time() {
        let mut f = Fair::new(Some(1e6), None);
        let mut now = Duration::ZERO;
        let mut moved = 0;
        for _ in 0..200 {
            f.push(id(1), 65_536);
        }
        loop {
            match f.pop(now) {
                Turn::Go(_) => moved += 65_536,
                Turn::Wait(d) => now += d,
                Turn::Idle => break,
            }
        }
        let rate = moved as f64 / now.as_secs_f64();
        assert!((0.95e6..1.05e6).contains(&rate), "{rate} bytes/s");
    }

    #[test]
    fn turns_go_round_peers_not_requests() {
        let mut f = Fair::new(Some(1e6), None);
        let many: Vec<u64> = (0..100).map(|_| f.push(id(1), 65_536)).collect();
        let few: Vec<u64> = (0..10).map(|_| f.push(id(2), 65_536)).collect();
        let mut now = Duration::ZERO;
        let mut first = Vec::new();
        while first.len() < 20 {
            match f.pop(now) {
                Turn::Go(t) => first.push(t),
                Turn::Wait(d) => now += d,
                Turn::Idle => unreachable!("work is left"),
            }
        }
        assert_eq!(first.iter().filter(|t| few.contains(t)).count(), 10);
        assert_eq!(first.iter().filter(|t| many.contains(t)).count(), 10);
    }

    #[test]
    fn a_capped_peer_does_not_hold_the_others() {
        let mut f = Fair::new(None, Some(1000.0));
        for _ in 0..8 {
            f.push(id(1), 65_536);
        }
        let other = f.push(id(2), 65_536);
        let mut went = Vec::new();
        while let Turn::Go(t) = f.pop(Duration::ZERO) {
            went.push(t);
        }
        assert!(went.contains(&other) && went.len() < 9, "{went:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_wait_their_turn() {
        let pacer = Pacer::new(Some(8.0), None);
        let start = Instant::now();
        for _ in 0..64 {
            pacer.acquire(id(1), 65_536).await;
        }
        let secs = start.elapsed().as_secs_f64();
        // 4 MiB at 1 MB/s, less the burst.
        assert!((3.8..4.3).contains(&secs), "{secs}");
    }
}
