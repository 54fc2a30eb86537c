//! The driver: facts into the machine, orders out of it.
//!
//! One task owns the machine. What it starts (requests, timers, the work) comes back as news over one channel, so that
//! the machine sees one thing after another. Orders are carried out in their order; a record is on disk before the
//! order behind it is begun.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::journal::Journal;
use super::policy::{Offer, Rules, keep_offers};
use super::status::Board;
use super::threads::{self, Hands, Task};
use super::{NodeError, Setup, Stop, TrainJob, Way, Work, role, sync};
use crate::blob::route::{Bucket, Mesh, Seeded, Want as BlobWant};
use crate::blob::serve::serve;
use crate::blob::{BLOB_MAX, Fetcher, Priority, Route, Store};
use crate::net::{Event as NetEvent, Inbox, Net, clock_ms};
use crate::round::admit::BySpec;
use crate::round::log::{Line, Timed, of_fact, of_order};
use crate::round::{Event, Fact, Machine, Order, Record, Recovered, Time, Urgency, Want, Whom};
use crate::state::Tree;
use crate::wire::{Body, Message, Reason, WireFault};
use crate::{Hash, PeerId, RunSpec};

/// What comes back to the driver.
pub(super) enum News {
    Fact(Fact),
    Trained {
        fact: Fact,
        loss: Option<f32>,
    },
    /// A fetch has ended.
    Blob {
        name: Hash,
        held: bool,
    },
    /// The leaves of a sync are in the store.
    Fetched {
        round: u64,
        root: Hash,
        leaves: Vec<(u64, Hash)>,
    },
    Broken(NodeError),
}

/// A blob that is still not here after this long is asked for anew.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Keys are free: of no more than this many peers it is told that they are of another run.
const FOREIGN_MAX: usize = 64;
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// Runs a process until it is told to stop. `up` is called once it is on the network and knows its state.
///
/// # Errors
/// When the disk fails, the work fails, or the state at hand is not the run's.
pub async fn run(
    setup: Setup,
    net: Net,
    inbox: Inbox,
    work: Arc<dyn Work>,
    stop: Arc<Stop>,
    board: Arc<Board>,
    up: impl FnOnce(),
) -> Result<(), NodeError> {
    let (mut driver, mut news) = Driver::new(setup, net, work, board).await?;
    let offers = driver.offers.take().expect("fresh");
    let Inbox { mut events, streams } = inbox;
    tokio::spawn(serve(driver.net.clone(), streams, driver.store.clone(), driver.hands.rules.clone()));
    tokio::spawn(keep_offers(offers, driver.fetcher.clone(), driver.hands.rules.clone(), driver.applied.clone()));
    up();
    let mut orders = std::mem::take(&mut driver.first);
    let result = loop {
        if let Err(e) = driver.carry_out(&mut orders) {
            break Err(e);
        }
        match stop.asked() {
            0 => {}
            1 => break Ok(()),
            _ => {
                driver.end_work().await;
                return Ok(());
            }
        }
        let wake = driver.wakes.first().map_or(Duration::from_secs(3600), |t| Duration::from_millis(*t));
        tokio::select! {
            biased;
            () = stop.told.notified() => continue,
            Some(word) = news.recv() => {
                if let Err(e) = driver.take(word, &mut orders) {
                    break Err(e);
                }
            }
            Some(event) = events.recv() => driver.event(event, &mut orders),
            () = sleep_until(driver.start + wake) => {
                let now = driver.now();
                driver.wakes = driver.wakes.split_off(&(now + 1));
                driver.step(now, Fact::Tick, &mut orders);
            }
        }
    };
    driver.end_work().await;
    driver.net.close().await;
    result
}

struct Driver {
    run: Hash,
    spec: Arc<RunSpec>,
    machine: Machine,
    first: Vec<Order>,
    net: Net,
    store: Arc<Store>,
    fetcher: Fetcher,
    route: Arc<dyn Route>,
    seeded: bool,
    hands: Hands,
    journal: Journal,
    train: Option<std_mpsc::Sender<TrainJob>>,
    state: Option<std_mpsc::Sender<Task>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    offers: Option<mpsc::UnboundedReceiver<Offer>>,
    /// Blobs under way: how urgent, and whose.
    fetching: BTreeMap<Hash, (Urgency, PeerId)>,
    /// Peers of other runs that were told of.
    foreign: BTreeSet<PeerId>,
    /// Why a validator turned us away last.
    refused: Option<Reason>,
    wakes: BTreeSet<Time>,
    shown: Instant,
    start: Instant,
    applied: Arc<AtomicU64>,
    board: Arc<Board>,
    log: super::Log,
}

type Opened = (Driver, mpsc::UnboundedReceiver<News>);

impl Driver {
    async fn new(setup: Setup, net: Net, work: Arc<dyn Work>, board: Arc<Board>) -> Result<Opened, NodeError> {
        let Setup { spec, key, roles, dir, quota, join, token, way, log } = setup;
        if spec.blob_bytes > BLOB_MAX {
            return Err(NodeError::Updates { bytes: spec.blob_bytes });
        }
        let run = spec.id();
        let (applied, _) = work.settled();
        let tree = Arc::new(Tree::of(&spec, &threads::View(&*work)));
        // What the weights are counts, not what they were: a flipped bit is found by the first comparison.
        let root = tree.root();
        if applied == 0 && root != spec.genesis {
            return Err(NodeError::Genesis { got: root, want: spec.genesis });
        }
        let (store, found) = Store::open(&dir.join("blobs"), quota)?;
        tracing::info!(target: "esker::peer", ?found, "blobs");
        let store = Arc::new(store);
        let (journal, records) = Journal::open(&dir, &spec, keep_from(&spec, applied))?;
        let (news, news_rx) = mpsc::unbounded_channel();
        let (offers, offers_rx) = mpsc::unbounded_channel();
        let seeds = roles & (role::SEEDER | role::VALIDATOR) != 0 || spec.is_validator(&key.id());
        let place = (net.clone(), store.clone());
        let rules = Arc::new(Rules::new(spec.blob_bytes, seeds, place, offers, work.clone()));
        rules.set_tree(tree);
        hide_unrevealed(&rules, &spec, &records, applied);
        let (liars, liars_rx) = mpsc::unbounded_channel();
        tokio::spawn(tell_liars(liars_rx));
        let seed = u64::from_le_bytes(key.id().0[..8].try_into().expect("8 of 32 bytes"));
        let fetcher = Fetcher::start(net.clone(), store.clone(), seed, liars);
        let (route, seeded): (Arc<dyn Route>, bool) = match way {
            Way::Mesh => (Arc::new(Mesh { fetcher: fetcher.clone() }), false),
            Way::Seeded => {
                let seeders = spec.validators.iter().copied().filter(|v| *v != net.me()).collect();
                let (net, store, fetcher) = (net.clone(), store.clone(), fetcher.clone());
                (Arc::new(Seeded { net, store, fetcher, seeders }), true)
            }
            Way::Bucket(bucket) => (Arc::new(Bucket { store: store.clone(), bucket }), false),
        };
        let stop_to = Arc::new(AtomicU64::new(0));
        let hands = Hands { spec: spec.clone(), work, store: store.clone(), rules, news, stop_to };
        let (train, state, threads) = threads::start(&hands)?;
        let held = store.list().into_iter().filter(|(_, _, whole)| *whole).map(|(name, ..)| name).collect();
        let recovered = Recovered { applied, root, records, held };
        let mut first = Vec::new();
        let trains = roles & role::PEER != 0;
        let machine = Machine::new(spec.clone(), key, trains, token, Box::new(BySpec), recovered, 0, &mut first);
        net.keep(join, spec.validators.iter().copied().collect());
        board.opened(applied, root);
        let driver = Driver {
            run,
            spec,
            machine,
            first,
            net,
            store,
            fetcher,
            route,
            seeded,
            hands,
            journal,
            train: Some(train),
            state: Some(state),
            threads,
            offers: Some(offers_rx),
            fetching: BTreeMap::new(),
            foreign: BTreeSet::new(),
            refused: None,
            wakes: BTreeSet::new(),
            shown: Instant::now(),
            start: Instant::now(),
            applied: Arc::new(AtomicU64::new(applied)),
            board,
            log,
        };
        driver.favour();
        Ok((driver, news_rx))
    }

    /// Validators and who holds a slot go before strangers.
    fn favour(&self) {
        let tip = self.machine.tip().map_or(0, |s| s.manifest.round);
        let newest = (tip.saturating_sub(1)..=tip).filter_map(|round| self.machine.manifest(round));
        let slots = newest.flat_map(|s| s.manifest.slots.iter().map(|slot| slot.peer));
        self.net.favour(slots.chain(self.spec.validators.iter().copied()).collect());
    }

    fn now(&self) -> Time {
        self.start.elapsed().as_millis() as Time
    }

    /// Lets the work's threads end, training at its next step, and waits for them.
    async fn end_work(&mut self) {
        self.hands.stop_to.store(u64::MAX, Ordering::Release);
        (self.train, self.state) = (None, None);
        let threads = std::mem::take(&mut self.threads);
        let join = move || threads.into_iter().try_for_each(std::thread::JoinHandle::join);
        if let Ok(Err(panic)) = tokio::task::spawn_blocking(join).await {
            std::panic::resume_unwind(panic);
        }
    }

    fn event(&mut self, event: NetEvent, orders: &mut Vec<Order>) {
        let now = self.now();
        let fact = match event {
            NetEvent::Up { peer, .. } => {
                // Who comes back is asked again for what it is known to have.
                let theirs = self.fetching.iter().filter(|(_, (_, from))| *from == peer);
                theirs.for_each(|(name, _)| self.fetcher.holds(*name, peer, true));
                Fact::Up(peer)
            }
            NetEvent::Down { peer, .. } => {
                self.fetcher.gone(peer);
                Fact::Down(peer)
            }
            NetEvent::Message { peer, .. } if !self.machine.listens(&peer) => return self.board.refused_message(),
            NetEvent::Message { peer, bytes } => match Message::open(&self.spec, &self.run, bytes) {
                Ok(msg) => Fact::Message { from: peer, msg },
                Err(e) => {
                    tracing::debug!(target: "esker::peer", %peer, error = %e, "message");
                    self.foreign(peer, &e);
                    self.board.refused_message();
                    Fact::Babble { from: peer }
                }
            },
        };
        self.step(now, fact, orders);
    }

    /// Tells once of a peer whose own signature is of another run: mostly a configuration that differs from ours.
    fn foreign(&mut self, peer: PeerId, fault: &WireFault) {
        let other = match fault {
            WireFault::OtherRun { .. } => true,
            WireFault::Signature { signer, .. } => *signer == peer,
            _ => false,
        };
        if other && self.foreign.len() < FOREIGN_MAX && self.foreign.insert(peer) {
            tracing::warn!(target: "esker::peer", %peer, ours = %self.run, "takes part in another run than ours: all need the same config, --set included");
        }
    }

    fn step(&mut self, now: Time, fact: Fact, orders: &mut Vec<Order>) {
        self.note(of_fact(&fact));
        self.machine.step(now, fact, orders);
    }

    /// Keeps a line in the event log.
    fn note(&mut self, line: Option<Line>) {
        if let Some(line) = line {
            (self.log)(&Timed { at: clock_ms(), line });
        }
    }

    fn take(&mut self, news: News, orders: &mut Vec<Order>) -> Result<(), NodeError> {
        let now = self.now();
        let fact = match news {
            News::Fact(fact) => {
                if let Fact::Folded { round, .. } | Fact::Synced { round, .. } = fact {
                    self.applied.store(round, Ordering::Relaxed);
                    self.prune(round);
                    self.journal.shorten(&self.spec, keep_from(&self.spec, round))?;
                }
                fact
            }
            News::Trained { fact, loss } => {
                self.board.trained(&fact, loss);
                fact
            }
            News::Blob { name, held } => {
                self.fetching.remove(&name);
                if held { Fact::Held(vec![name]) } else { Fact::Lacking(vec![name]) }
            }
            News::Fetched { round, root, leaves } => {
                self.task(Task::Mend { round, root, leaves });
                return Ok(());
            }
            News::Broken(e) => return Err(e),
        };
        self.step(now, fact, orders);
        Ok(())
    }

    /// Deletes what no round from `round` on needs, beside this thread: an old checkpoint is thousands of files.
    fn prune(&self, round: u64) {
        let (store, news) = (self.store.clone(), self.hands.news.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(e) = store.prune(round) {
                let _ = news.send(News::Broken(e.into()));
            }
        });
    }

    fn task(&self, task: Task) {
        // A thread that has ended has said why; its news comes next.
        if let Some(state) = &self.state {
            let _ = state.send(task);
        }
    }

    fn carry_out(&mut self, orders: &mut Vec<Order>) -> Result<(), NodeError> {
        for order in orders.drain(..) {
            self.order(order)?;
        }
        // The board costs a look at each link: twenty times a second is enough, and the last look is never left out.
        if self.shown.elapsed() >= SHOW_EVERY {
            self.shown = Instant::now();
            self.board.now(&self.machine, &self.net, &self.store, &self.fetcher);
        } else {
            self.wakes.insert(self.now() + SHOW_EVERY.as_millis() as Time);
        }
        Ok(())
    }

    fn order(&mut self, order: Order) -> Result<(), NodeError> {
        self.note(of_order(&order));
        match order {
            // A link that is gone is a fact that the machine is about to hear.
            Order::Send { to, msg } => drop(self.net.send(to, msg.bytes())),
            Order::Flood { to, msg } => {
                let spec = self.spec.clone();
                let among = |peer: &PeerId| match to {
                    Whom::All => true,
                    Whom::Validators => spec.is_validator(peer),
                    Whom::Mesh => !spec.is_validator(peer),
                };
                let peers: Vec<PeerId> = self.machine.connected().copied().filter(among).collect();
                peers.into_iter().for_each(|peer| drop(self.net.send(peer, msg.bytes())));
            }
            Order::Train { round, slot, slots, base, base_root, deadline } => {
                let budget_ms = deadline.saturating_sub(self.now());
                let (run, peer) = (self.run, self.net.me());
                let job = TrainJob { run, round, peer, slot, slots, base, base_root, budget_ms };
                self.board.training(Some(round));
                // A thread that has ended has said why; its news comes next.
                if let Some(train) = &self.train {
                    let _ = train.send(job);
                }
            }
            Order::Stop { round } => drop(self.hands.stop_to.fetch_max(round, Ordering::AcqRel)),
            Order::Serve { blob } => self.reveal(blob),
            Order::Fetch { wants, urgency } => wants.into_iter().for_each(|want| self.fetch(want, urgency)),
            Order::Check { blob, expect } => self.task(Task::Check { blob, expect }),
            Order::Fold { round, parts } => self.task(Task::Fold { round, parts }),
            Order::Snapshot { round, .. } => self.task(Task::Snapshot { round }),
            Order::Sync { round, root, from } => {
                tokio::spawn(sync::run(sync::Job {
                    spec: self.spec.clone(),
                    store: self.store.clone(),
                    fetcher: self.fetcher.clone(),
                    news: self.hands.news.clone(),
                    own: self.hands.rules.tree(),
                    round,
                    root,
                    from,
                    keep: round + 1,
                }));
            }
            Order::Forget { blobs } => {
                for blob in blobs {
                    self.fetcher.drop_want(blob);
                    self.hands.rules.show(&blob);
                    self.store.remove(&blob)?;
                }
            }
            Order::Persist(record) => self.journal.append(&record)?,
            Order::Wake(at) => drop(self.wakes.insert(at)),
            Order::Log(event) => {
                match event {
                    Event::Accepted { .. } => self.favour(),
                    // A validator says it for each attempt; whoever started us needs it once.
                    Event::Refused { by, reason } if self.spec.is_validator(&by) && self.refused != Some(reason) => {
                        self.refused = Some(reason);
                        tracing::warn!(target: "esker::peer", validator = %by, %reason, "turned away");
                    }
                    _ => {}
                }
                self.board.event(&event);
            }
        }
        Ok(())
    }

    /// Shows our update and sends it out by the run's way.
    fn reveal(&self, blob: Hash) {
        self.hands.rules.show(&blob);
        let route = self.route.clone();
        tokio::spawn(async move {
            if let Err(e) = route.publish(blob).await {
                tracing::warn!(target: "esker::peer", route = route.name(), error = %e, "publish");
            }
        });
    }

    fn fetch(&mut self, want: Want, urgency: Urgency) {
        let Want { blob: name, bytes: size, from } = want;
        let news = self.hands.news.clone();
        if self.store.is_whole(&name) {
            let _ = news.send(News::Blob { name, held: true });
            return;
        }
        let known = self.fetching.get(&name).map(|(urgency, _)| *urgency);
        if known.is_some_and(|u| u <= urgency) {
            // Under way: but who was gone may be back, and who had it not yet may have it by now.
            self.fetcher.holds(name, from, true);
            let validators = self.spec.validators.iter().filter(|v| **v != from && self.net.linked(v));
            validators.for_each(|v| self.fetcher.holds(name, *v, false));
            return;
        }
        self.fetching.insert(name, (urgency, from));
        let mut holders = vec![from];
        if urgency != Urgency::Collect {
            // A manifest lists only what a quorum of the validators holds.
            holders.extend(self.spec.validators.iter().filter(|v| **v != from && self.net.linked(v)));
        } else if self.seeded {
            holders.retain(|p| self.net.linked(p));
        }
        let priority = match urgency {
            Urgency::Listed => Priority::Manifest,
            Urgency::Collect => Priority::Round,
            Urgency::CatchUp => Priority::CatchUp,
        };
        let keep = self.hands.keep(self.machine.tip().map_or(0, |s| s.manifest.round) + 1);
        let (route, fetcher) = (self.route.clone(), self.fetcher.clone());
        let limit = match urgency {
            Urgency::Collect => Duration::from_millis(self.spec.times.collect_ms).max(Duration::from_secs(5)),
            _ => GIVE_UP,
        };
        tokio::spawn(async move {
            let come = timeout(limit, route.fetch(BlobWant { name, size, keep, priority, holders })).await;
            let held = match come {
                Ok(Ok(())) => true,
                Ok(Err(e)) => {
                    tracing::debug!(target: "esker::peer", blob = %name, error = %e, "fetch");
                    false
                }
                Err(_) => {
                    fetcher.drop_want(name);
                    false
                }
            };
            let _ = news.send(News::Blob { name, held });
        });
    }
}

/// Manifests from this round on are kept, where the state is that of `applied`.
fn keep_from(spec: &RunSpec, applied: u64) -> u64 {
    applied.saturating_sub(2 * u64::from(spec.limits.checkpoint_rounds) + 2)
}

/// Our commits of rounds that are not settled: their updates stay hidden until a quorum closes the round again.
fn hide_unrevealed(rules: &Rules, spec: &RunSpec, records: &[Record], applied: u64) {
    for record in records {
        if let Record::Commit(bytes) = record
            && let Ok((Body::Commit(commit), _)) = Message::decode(spec, bytes)
            && commit.round > applied
        {
            rules.hide(commit.blob);
        }
    }
}

async fn tell_liars(mut liars: mpsc::UnboundedReceiver<(PeerId, Hash)>) {
    while let Some((peer, blob)) = liars.recv().await {
        tracing::warn!(target: "esker::peer", %peer, %blob, "it sent bytes that are not the blob's");
    }
}

/// Whether an event ends a round, for the board.
pub(super) fn ends_round(event: &Event) -> Option<(u64, Hash)> {
    match event {
        Event::Applied { round, root } | Event::Synced { round, root } => Some((*round, *root)),
        _ => None,
    }
}
