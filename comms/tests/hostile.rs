//! What strangers and liars can do, over real quinn in virtual time: nothing but cost themselves.

mod virtual_net;

use std::sync::Arc;
use std::time::Duration;

use esker_comms::blob::ask::{REQUEST_BYTES, Request};
use esker_comms::blob::serve::{Open, serve};
use esker_comms::blob::{CHUNK, Fetcher, Priority, Store};
use esker_comms::net::{Event, Net, NetError, Stream};
use esker_comms::{Hash, PeerId};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use virtual_net::{Line, Wire, drain, key, noise, run};

fn line() -> Line {
    Line::of(100.0, 40)
}

/// A holder that answers as `how` says.
fn liar<F, T>(wire: &Wire, n: u16, how: F) -> Net
where
    F: Fn(Stream, Request) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let (net, inbox) = wire.net(n, line(), |_| {});
    drain(inbox.events);
    let mut streams = inbox.streams;
    let how = Arc::new(how);
    tokio::spawn(async move {
        while let Some(mut stream) = streams.recv().await {
            let how = how.clone();
            tokio::spawn(async move {
                let mut bytes = [0; REQUEST_BYTES];
                if stream.read_exact(&mut bytes).await.is_ok() {
                    how(stream, Request::parse(&bytes).unwrap()).await;
                }
            });
        }
    });
    net
}

fn honest(wire: &Wire, n: u16, store: &Arc<Store>) -> Net {
    let (net, inbox) = wire.net(n, line(), |_| {});
    drain(inbox.events);
    tokio::spawn(serve(net.clone(), inbox.streams, store.clone(), Arc::new(Open)));
    net
}

struct Me {
    net: Net,
    store: Arc<Store>,
    fetcher: Fetcher,
    liars: mpsc::UnboundedReceiver<(PeerId, Hash)>,
}

fn me(wire: &Wire) -> Me {
    let (net, inbox) = wire.net(0, line(), |_| {});
    drain(inbox.events);
    let store = Arc::new(Store::memory(1 << 30));
    let (tx, liars) = mpsc::unbounded_channel();
    let fetcher = Fetcher::start(net.clone(), store.clone(), 1, tx);
    Me { net, store, fetcher, liars }
}

const MIB: usize = CHUNK;

#[test]
fn lying_chunks_outlines_and_lengths_cost_one_request_each() {
    run(async {
        let wire = Wire::new(1);
        let blob = noise(6 * MIB + 5, 3);
        let theirs = Arc::new(Store::memory(1 << 30));
        let name = theirs.insert(&blob, 0).unwrap();
        let mut me = me(&wire);
        // One sends noise, one too much, one too little, one nothing at all, one an answer that is none.
        let noisy = liar(&wire, 1, |mut s, _| async move {
            let _ = s.write(&[0, 0]).await;
            let _ = s.write(&noise(MIB, 9)).await;
            s.finish();
            let _ = s.sent().await;
        });
        let much = liar(&wire, 2, |mut s, _| async move {
            let _ = s.write(&[0, 0]).await;
            let _ = s.write(&vec![1; 8 * MIB]).await;
        });
        let little = liar(&wire, 3, |mut s, _| async move {
            let _ = s.write(&[0, 0, 1, 2, 3]).await;
            s.finish();
            let _ = s.sent().await;
        });
        let silent = liar(&wire, 4, |s, _| async move {
            sleep(Duration::from_secs(3600)).await;
            drop(s);
        });
        let babble = liar(&wire, 5, |mut s, _| async move {
            let _ = s.write(&[77; 100]).await;
            s.finish();
            let _ = s.sent().await;
        });
        let good = honest(&wire, 6, &theirs);
        let all: Vec<PeerId> = [&noisy, &much, &little, &silent, &babble, &good].map(Net::me).to_vec();
        for n in 1..=6 {
            me.net.connect(Wire::addr(n), None).await.unwrap();
        }
        let start = Instant::now();
        let size = blob.len() as u64;
        me.fetcher.fetch(name, size, 0, Priority::Round, all).await.unwrap();
        println!("{} bytes past five liars in {:?}", size, start.elapsed());
        assert_eq!(me.store.read_all(&name).unwrap().unwrap(), blob);
        assert!(start.elapsed() < Duration::from_secs(60));
        let mut named = Vec::new();
        while let Ok((peer, blob)) = me.liars.try_recv() {
            assert_eq!(blob, name);
            named.push(peer);
        }
        assert!(!named.contains(&good.me()) && named.len() <= 2, "{named:?}");
        // What came in beyond the blob: at most some chunks of each liar.
        assert!(me.net.traffic().down_bytes < size + 16 * MIB as u64);
    });
}

#[test]
fn a_slow_holder_does_not_hold_the_blob() {
    run(async {
        let wire = Wire::new(2);
        let blob = noise(8 * MIB, 4);
        let theirs = Arc::new(Store::memory(1 << 30));
        let name = theirs.insert(&blob, 0).unwrap();
        let me = me(&wire);
        let held = theirs.clone();
        // A byte a second, right to the bit.
        let slow = liar(&wire, 1, move |mut s, r| {
            let held = held.clone();
            async move {
                let esker_comms::blob::ask::Ask::Chunk(i) = r.what else {
                    let _ = s.write(&[1, 0]).await;
                    return;
                };
                let bytes = held.read(&r.name, i).unwrap().unwrap();
                let _ = s.write(&[0, 0]).await;
                for b in bytes {
                    if s.write(&[b]).await.is_err() {
                        return;
                    }
                    sleep(Duration::from_secs(1)).await;
                }
            }
        });
        let good = honest(&wire, 2, &theirs);
        for n in 1..=2 {
            me.net.connect(Wire::addr(n), None).await.unwrap();
        }
        let start = Instant::now();
        let holders = vec![slow.me(), good.me()];
        me.fetcher.fetch(name, blob.len() as u64, 0, Priority::Round, holders).await.unwrap();
        println!("8 MiB beside a slow holder in {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(30));
        // Alone it is given up, again and again, and never believed to be done.
        let more = noise(2 * MIB, 5);
        let name = theirs.insert(&more, 0).unwrap();
        let come = me.fetcher.fetch(name, more.len() as u64, 0, Priority::Round, vec![slow.me()]);
        assert!(!matches!(timeout(Duration::from_secs(120), come).await, Ok(Ok(()))));
    });
}

#[test]
fn slow_readers_do_not_hold_the_server() {
    run(async {
        let wire = Wire::new(3);
        let blob = noise(16 * MIB, 6);
        let store = Arc::new(Store::memory(1 << 30));
        let name = store.insert(&blob, 0).unwrap();
        let server = honest(&wire, 100, &store);
        let mut held = Vec::new();
        // Forty peers ask for everything and read nothing.
        for n in 1..=40 {
            let (net, inbox) = wire.net(n, line(), |_| {});
            drain(inbox.events);
            let peer = net.connect(Wire::addr(100), None).await.unwrap();
            for i in 0..8 {
                let mut stream = net.open(peer).await.unwrap();
                let what = esker_comms::blob::ask::Ask::Chunk(i);
                stream.write(&Request { name, what }.to_bytes()).await.unwrap();
                held.push(stream);
            }
            held.push(net.open(peer).await.unwrap());
            std::mem::forget(net);
        }
        let me = me(&wire);
        me.net.connect(Wire::addr(100), None).await.unwrap();
        let start = Instant::now();
        me.fetcher.fetch(name, blob.len() as u64, 0, Priority::Round, vec![server.me()]).await.unwrap();
        println!("16 MiB beside 40 readers that read nothing in {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(60));
    });
}

#[test]
fn another_key_is_refused_and_named() {
    run(async {
        let wire = Wire::new(4);
        let (a, inbox) = wire.net(1, line(), |_| {});
        drain(inbox.events);
        let (b, inbox) = wire.net(2, line(), |_| {});
        drain(inbox.events);
        let want = key(9).id();
        match a.connect(Wire::addr(2), Some(want)).await {
            Err(NetError::WrongKey { want: w, got, .. }) => assert_eq!((w, got), (want, b.me())),
            other => panic!("{other:?}"),
        }
        assert!(matches!(a.connect(Wire::addr(1), None).await, Err(NetError::Own { .. })));
        sleep(Duration::from_secs(1)).await;
        assert!(!b.linked(&a.me()));
        // Who is not on the list does not get in.
        let list = key(1).id();
        let (c, inbox) = wire.net(3, line(), |c| c.admit = Some(Arc::new(move |p| *p == list)));
        drain(inbox.events);
        a.connect(Wire::addr(3), Some(c.me())).await.unwrap();
        assert!(b.connect(Wire::addr(3), Some(c.me())).await.is_err());
        assert!(c.linked(&a.me()) && !c.linked(&b.me()));
    });
}

#[test]
fn a_frame_beyond_the_bound_ends_the_link_before_it_is_read() {
    run(async {
        let wire = Wire::new(5);
        let (a, inbox) = wire.net(1, line(), |c| c.message_bytes_max = 1 << 30);
        drain(inbox.events);
        let (b, mut inbox) = wire.net(2, line(), |c| c.message_bytes_max = 1 << 10);
        a.connect(Wire::addr(2), None).await.unwrap();
        a.send(b.me(), &[1; 1 << 10]).unwrap();
        a.send(b.me(), &vec![1; 4 * MIB]).unwrap();
        let mut whole = 0;
        loop {
            match inbox.events.recv().await.unwrap() {
                Event::Message { bytes, .. } => whole += bytes.len(),
                Event::Down { why, .. } => {
                    assert!(why.contains("a frame of kind 0"), "{why}");
                    break;
                }
                Event::Up { .. } => {}
            }
        }
        assert_eq!(whole, 1 << 10);
        assert!(b.traffic().down_bytes < 4096);
    });
}

#[test]
fn a_flood_of_handshakes_is_bounded_and_honest_peers_get_in() {
    run(async {
        let wire = Wire::new(6);
        let (victim, inbox) = wire.net(0, line(), |_| {});
        drain(inbox.events);
        let mut tasks = Vec::new();
        for n in 1..=50 {
            let (net, inbox) = wire.net(n, line(), |_| {});
            drain(inbox.events);
            tasks.push(tokio::spawn(async move {
                for _ in 0..40 {
                    let _ = net.connect(Wire::addr(0), None).await;
                }
                net
            }));
        }
        // Garbage that looks like the beginning of a handshake, from everywhere.
        let mut dice = noise(1200, 8);
        dice[0] = 0xc3;
        dice[1..5].copy_from_slice(&1u32.to_be_bytes());
        for n in 0..5000u16 {
            dice[6] = n as u8;
            dice[7] = (n >> 8) as u8;
            wire.inject(Wire::addr(1000 + n), Wire::addr(0), &dice);
        }
        sleep(Duration::from_millis(300)).await;
        let (good, inbox) = wire.net(900, line(), |_| {});
        drain(inbox.events);
        let start = Instant::now();
        good.connect(Wire::addr(0), Some(victim.me())).await.unwrap();
        println!("an honest peer is in after {:?}; {:?}", start.elapsed(), victim.traffic());
        assert!(start.elapsed() < Duration::from_secs(5));
        for task in tasks {
            let _ = task.await;
        }
        let traffic = victim.traffic();
        println!("after the flood: {traffic:?}");
        assert!(traffic.links <= 51);
    });
}

/// Strangers under many keys hold every place of a process; a peer of the run gets in all the same, and is served.
#[test]
fn strangers_do_not_crowd_out_the_run() {
    run(async {
        let wire = Wire::new(7);
        let (victim, mut inbox) = wire.net(0, line(), |c| (c.links_max, c.bulk_peers_max) = (4, 4));
        let store = Arc::new(Store::memory(1 << 30));
        let name = store.insert(&noise(MIB, 1), 0).unwrap();
        tokio::spawn(serve(victim.clone(), inbox.streams, store, Arc::new(Open)));
        let mut strangers = Vec::new();
        for n in 1..=12 {
            let (net, inbox) = wire.net(n, line(), |_| {});
            drain(inbox.events);
            let linked = net.connect(Wire::addr(0), None).await.is_ok();
            let stream = net.open(victim.me()).await;
            strangers.push((net, linked, stream));
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!((victim.traffic().links, victim.traffic().pipes), (8, 4));
        let (ours, other) = (key(50), key(51));
        victim.favour([ours.id()].into());
        let (mut fetchers, mut came) = (Vec::new(), Vec::new());
        for n in [50, 51] {
            let (net, inbox) = wire.net(n, line(), |_| {});
            drain(inbox.events);
            let _ = net.connect(Wire::addr(0), None).await;
            let mine = Arc::new(Store::memory(1 << 30));
            let fetcher = Fetcher::start(net.clone(), mine.clone(), 1, mpsc::unbounded_channel().0);
            let come = fetcher.fetch(name, MIB as u64, 0, Priority::Round, vec![victim.me()]);
            came.push(timeout(Duration::from_secs(15), come).await.is_ok_and(|r| r.is_ok()));
            fetchers.push((net, fetcher));
        }
        assert_eq!(came, [true, false], "one of the run, one more stranger");
        assert!(victim.linked(&ours.id()) && !victim.linked(&other.id()));
        let mut gone = 0;
        while let Ok(event) = inbox.events.try_recv() {
            gone += usize::from(matches!(event, Event::Down { why, .. } if why.contains("a peer of the run")));
        }
        assert_eq!(gone, 1, "the stranger that gave way is told to the layer above");
    });
}
