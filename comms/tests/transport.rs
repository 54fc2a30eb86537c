//! Real quinn in virtual time: full links, meshes, equal traces, punched holes, messages.

mod virtual_net;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use esker_comms::blob::serve::{Open, serve};
use esker_comms::blob::{Fetcher, Priority, Store};
use esker_comms::net::{Event, Net, NetError, ROLE_BOOTSTRAP};
use esker_comms::{Hash, PeerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use virtual_net::{Line, Wire, drain, key, noise, run};

/// Holders at hosts 1.., all with the blobs of `store`; the fetcher at host 0 with a link to each.
async fn swarm(
    wire: &Wire,
    holders: u16,
    line: Line,
    store: &Arc<Store>,
) -> (Net, Arc<Store>, Fetcher, Vec<PeerId>, Vec<Net>) {
    let (me, inbox) = wire.net(0, line, |c| c.links_max = 256);
    drain(inbox.events);
    let mut ids = Vec::new();
    let mut nets = Vec::new();
    for n in 1..=holders {
        let (net, inbox) = wire.net(n, line, |_| {});
        drain(inbox.events);
        tokio::spawn(serve(net.clone(), inbox.streams, store.clone(), Arc::new(Open)));
        ids.push(me.connect(Wire::addr(n), Some(net.me())).await.unwrap());
        nets.push(net);
    }
    let mine = Arc::new(Store::memory(4 << 30));
    let fetcher = Fetcher::start(me.clone(), mine.clone(), 7, mpsc::unbounded_channel().0);
    (me, mine, fetcher, ids, nets)
}

struct Result {
    mbit: f64,
    sent: u64,
    lost: u64,
    trace: (u64, u64, u64),
    pipes: usize,
}

/// Fetches `count` blobs of `mib` MiB, four at a time, and forgets each once it is whole.
fn fetch(holders: u16, line: Line, count: u64, mib: usize) -> Result {
    run(async move {
        let wire = Wire::new(1);
        let theirs = Arc::new(Store::memory(8 << 30));
        // Four blobs in turn, so that long transfers take little memory.
        let four: Vec<Hash> = (0..4).map(|n| theirs.insert(&noise(mib << 20, n), 0).unwrap()).collect();
        let names: Vec<Hash> = (0..count as usize).map(|n| four[n % 4]).collect();
        let (me, mine, fetcher, ids, nets) = swarm(&wire, holders, line, &theirs).await;
        let start = Instant::now();
        let size = (mib as u64) << 20;
        let one = |name: Hash| {
            let (fetcher, ids, mine) = (fetcher.clone(), ids.clone(), mine.clone());
            async move {
                fetcher.fetch(name, size, 0, Priority::Manifest, ids).await.unwrap();
                assert!(mine.is_whole(&name));
                mine.remove(&name).unwrap();
            }
        };
        let one = &one;
        // Four at a time, as a round wants many updates at once; each in turn once the one before it is whole.
        let lane = |n: usize| {
            let list: Vec<Hash> = names.iter().skip(n).step_by(4).copied().collect();
            async move {
                for name in list {
                    one(name).await;
                }
            }
        };
        let (a, b, c, d) = (lane(0), lane(1), lane(2), lane(3));
        tokio::join!(a, b, c, d);
        let mbit = (count * size) as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64();
        let (sent, lost) = nets.iter().map(Net::packets).fold((0, 0), |(s, l), (a, b)| (s + a, l + b));
        // No connection was killed: every holder still has its link and its pipe.
        assert_eq!(me.traffic().links, usize::from(holders));
        Result { mbit, sent, lost, trace: wire.trace(), pipes: me.traffic().pipes }
    })
}

fn report(what: &str, r: &Result) {
    println!(
        "{what}: {:.0} Mbit/s; holders sent {} packets, saw {} lost; {} pipes; trace {:?}",
        r.mbit, r.sent, r.lost, r.pipes, r.trace
    );
}

#[test]
fn twenty_holders_fill_the_link() {
    let r = fetch(20, Line::of(500.0, 100), 24, 48);
    report("20 holders, 500 Mbit/s, 100 ms", &r);
    assert!(r.mbit >= 450.0, "{:.0} Mbit/s", r.mbit);
    assert!(r.pipes >= 20);
}

#[test]
fn twenty_holders_bear_loss() {
    let line = Line { loss: 0.001, ..Line::of(500.0, 100) };
    let r = fetch(20, line, 4, 48);
    report("20 holders, 500 Mbit/s, 100 ms, 0.1 % lost", &r);
    assert!(r.mbit >= 80.0, "{:.0} Mbit/s", r.mbit);
    assert!(r.pipes >= 20);
}

/// Ten times as many requests as a pipe has streams, all at once and then in turn: each is read to its end, so that its
/// stream is free for the next.
#[test]
fn more_requests_than_streams_cross_one_pipe() {
    run(async {
        let wire = Wire::new(3);
        let theirs = Arc::new(Store::memory(1 << 30));
        let blob = |n: u64| (theirs.insert(&noise(1000 + n as usize, n), 0).unwrap(), 1000 + n);
        let (crowd, queue): (Vec<_>, Vec<_>) = ((0..640).map(blob).collect(), (640..800).map(blob).collect());
        let (me, mine, fetcher, ids, _nets) = swarm(&wire, 1, Line::of(110.0, 80), &theirs).await;
        let start = Instant::now();
        let one = |(name, size): (Hash, u64)| {
            let (fetcher, ids) = (fetcher.clone(), ids.clone());
            async move { fetcher.fetch(name, size, 0, Priority::Round, ids).await }
        };
        let all: Vec<_> = crowd.iter().map(|blob| tokio::spawn(one(*blob))).collect();
        for task in all {
            task.await.unwrap().unwrap();
        }
        for blob in &queue {
            one(*blob).await.unwrap();
        }
        assert!(crowd.iter().chain(&queue).all(|(name, _)| mine.is_whole(name)));
        println!("800 small blobs in {:.1} virtual s over {} pipes", start.elapsed().as_secs_f64(), me.traffic().pipes);
        assert!(start.elapsed() < Duration::from_secs(120));
    });
}

/// The table of README.md: `cargo test -p esker-comms --release --test transport matrix -- --ignored --nocapture`.
#[test]
#[ignore = "minutes; prints the table of paths"]
fn matrix() {
    for holders in [1, 20] {
        for (mbit, rtt) in [(20.0, 10), (110.0, 80), (500.0, 100), (500.0, 300)] {
            for loss in [0.0, 0.001, 0.01] {
                let line = Line { loss, ..Line::of(mbit, rtt) };
                let mib = if mbit < 100.0 { 8 } else { 64 };
                report(
                    &format!("{holders} holders, {mbit} Mbit/s, {rtt} ms, loss {loss}"),
                    &fetch(holders, line, 8, mib),
                );
            }
        }
    }
}

#[test]
fn one_seed_one_trace() {
    let line = Line { loss: 0.001, reorder: 0.01, duplicate: 0.002, ..Line::of(200.0, 40) };
    let go = || fetch(4, line, 2, 12);
    let (a, b) = (go(), go());
    report("4 holders, first", &a);
    assert_eq!(a.trace, b.trace);
    assert!(a.trace.1 > 0);
}

#[test]
fn seventy_peers_mesh() {
    const PEERS: u16 = 70;
    run(async {
        let wire = Wire::new(2);
        let line = Line::of(100.0, 60);
        let mut nets = Vec::new();
        for n in 0..PEERS {
            let (net, inbox) = wire.net(n, line, |c| c.links_max = 128);
            let up = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
            let (events, seen) = (inbox.events, up.clone());
            tokio::spawn(async move {
                let mut events = events;
                while let Some(event) = events.recv().await {
                    if let Event::Message { peer, .. } = event {
                        seen.lock().unwrap().insert(peer);
                    }
                }
            });
            // All know one address only.
            net.keep(vec![Wire::addr(0)], BTreeSet::new());
            nets.push((net, up));
        }
        let start = Instant::now();
        let whole = |n: &Net| n.traffic().links == usize::from(PEERS) - 1;
        while !nets.iter().all(|(n, _)| whole(n)) {
            sleep(Duration::from_millis(200)).await;
            assert!(
                start.elapsed() < Duration::from_secs(90),
                "{:?}",
                nets.iter().map(|n| n.0.traffic().links).collect::<Vec<_>>()
            );
        }
        println!(
            "{PEERS} peers meshed in {:.1} s of their time, {} packets",
            start.elapsed().as_secs_f64(),
            wire.trace().0
        );
        for (a, _) in &nets {
            for (b, _) in &nets {
                if a.me() != b.me() {
                    a.send(b.me(), &[7; 1000]).unwrap();
                }
            }
        }
        sleep(Duration::from_secs(5)).await;
        for (net, seen) in &nets {
            assert_eq!(seen.lock().unwrap().len(), usize::from(PEERS) - 1);
            assert!(whole(net));
        }
    });
}

#[test]
fn filtered_peers_meet_by_a_punch() {
    run(async {
        let wire = Wire::new(3);
        let open = Line::of(100.0, 40);
        let filtered = Line { filtered: true, ..Line::of(50.0, 80) };
        let (boot, inbox) = wire.net(1, open, |c| c.roles = ROLE_BOOTSTRAP);
        drain(inbox.events);
        let (a, inbox) = wire.net(2, filtered, |_| {});
        drain(inbox.events);
        let (b, inbox) = wire.net(3, filtered, |_| {});
        drain(inbox.events);
        for net in [&a, &b] {
            net.connect(Wire::addr(1), Some(boot.me())).await.unwrap();
        }
        // Alone neither gets through.
        assert!(matches!(a.connect(Wire::addr(3), None).await, Err(NetError::Dial { .. })));
        sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        a.reach(b.me()).await.unwrap();
        println!("punched after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(11));
        assert!(a.linked(&b.me()));
        sleep(Duration::from_secs(1)).await;
        assert!(b.linked(&a.me()));
        assert_eq!(b.observed()[&a.me()], Wire::addr(3));
    });
}

#[test]
fn links_carry_messages_and_end_gently() {
    run(async {
        let wire = Wire::new(4);
        let line = Line { loss: 0.01, ..Line::of(100.0, 50) };
        let (a, inbox) = wire.net(1, line, |_| {});
        drain(inbox.events);
        let (b, mut inbox) = wire.net(2, line, |_| {});
        a.connect(Wire::addr(2), Some(b.me())).await.unwrap();
        for n in 0..500u32 {
            a.send(b.me(), &n.to_le_bytes().repeat(500)).unwrap();
        }
        assert!(matches!(a.send(b.me(), &vec![0; (64 << 10) + 1]), Err(NetError::Long { .. })));
        assert!(matches!(a.send(PeerId([9; 32]), &[]), Err(NetError::NoLink { .. })));
        tokio::spawn(async move { a.close().await });
        let mut next = 0u32;
        while let Some(event) = inbox.events.recv().await {
            match event {
                Event::Message { bytes, .. } => {
                    assert_eq!(bytes, next.to_le_bytes().repeat(500));
                    next += 1;
                }
                Event::Down { .. } => break,
                Event::Up { .. } => {}
            }
        }
        assert_eq!(next, 500);
    });
}

#[test]
fn two_that_dial_at_once_keep_one_link() {
    run(async {
        let wire = Wire::new(5);
        let line = Line::of(100.0, 50);
        let (a, mut from_a) = wire.net(1, line, |_| {});
        let (b, mut from_b) = wire.net(2, line, |_| {});
        let (x, y) = tokio::join!(a.connect(Wire::addr(2), None), b.connect(Wire::addr(1), None));
        x.unwrap();
        y.unwrap();
        a.send(b.me(), b"ab").unwrap();
        b.send(a.me(), b"ba").unwrap();
        sleep(Duration::from_secs(12)).await;
        assert!(a.linked(&b.me()) && b.linked(&a.me()));
        a.send(b.me(), b"ab").unwrap();
        b.send(a.me(), b"ba").unwrap();
        sleep(Duration::from_secs(1)).await;
        for (events, text) in [(&mut from_a.events, b"ba"), (&mut from_b.events, b"ab")] {
            let mut got = 0;
            while let Ok(event) = events.try_recv() {
                if let Event::Message { bytes, .. } = event {
                    assert_eq!(bytes, text);
                    got += 1;
                }
            }
            assert_eq!(got, 2);
        }
    });
}

#[test]
fn a_successor_replaces_a_dead_process_at_once() {
    run(async {
        let wire = Wire::new(6);
        let line = Line::of(100.0, 50);
        let (a, mut from_a) = wire.net(1, line, |_| {});
        let (b, inbox) = wire.net(2, line, |_| {});
        drain(inbox.events);
        a.connect(Wire::addr(2), Some(b.me())).await.unwrap();
        drop(b);
        // The same key, the same address, another process; the old link has 45 s to go.
        let (b, mut inbox) = wire.net(2, line, |_| {});
        b.connect(Wire::addr(1), Some(key(1).id())).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        a.send(b.me(), b"again").unwrap();
        let mut got = false;
        let until = Instant::now() + Duration::from_secs(2);
        while let Ok(Some(event)) = tokio::time::timeout_at(until, inbox.events.recv()).await {
            got |= matches!(event, Event::Message { .. });
        }
        assert!(got);
        // The layer above learns of it as of a peer that left and came.
        let seen: Vec<bool> =
            std::iter::from_fn(|| from_a.events.try_recv().ok()).map(|e| matches!(e, Event::Up { .. })).collect();
        assert_eq!(seen, [true, false, true]);
    });
}
