//! Answers what peers ask about blobs.
//!
//! A policy says which blob a peer may have (before the reveal of a round nobody may have its updates) and which
//! offers are taken. At most as many chunks are served at once as the owner's cap lets go at 128 KiB a second each;
//! who comes above that is told to come later, in two bytes. So is who has many turns while few are left:
//!
//! turns of one peer ≤ 2 · free turns,   a free turn in eight kept for the peers of the run
//!
//! Alone a peer gets two thirds of all turns; n who ask for all get about a n-th each, and one more always finds some
//! free. The rule is that of buffers in switches: Choudhury & Hahne 1998, "Dynamic queue length thresholds".

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

use super::ask::{Ask, REQUEST_BYTES, Request, Status};
use super::off;
use super::store::Store;
use super::tree::Bits;
use crate::hash::Hash;
use crate::key::PeerId;
use crate::net::{Net, Stream, StreamFault};

/// Says what peers may have and what we keep for them.
pub trait Policy: Send + Sync + 'static {
    /// Whether `peer` may have the blob now.
    fn may_have(&self, peer: &PeerId, name: &Hash) -> bool;

    /// Whether we fetch from `peer` a blob of `size` bytes that it offers, and keep it. If so, the callee sees to the
    /// fetching.
    fn offered(&self, peer: &PeerId, name: &Hash, size: u64) -> bool;

    /// Bytes of at most one chunk that are known by their blake3 and lie elsewhere than in the store: parts of a state.
    /// May block.
    fn part(&self, name: &Hash) -> Option<Vec<u8>> {
        let _ = name;
        None
    }
}

/// All blobs for all, no offers.
#[derive(Debug, Clone, Copy)]
pub struct Open;

impl Policy for Open {
    fn may_have(&self, _: &PeerId, _: &Hash) -> bool {
        true
    }

    fn offered(&self, _: &PeerId, _: &Hash, _: u64) -> bool {
        false
    }
}

/// Answers streams until there are no more. Meant to be spawned.
pub async fn serve(net: Net, mut streams: mpsc::Receiver<Stream>, store: Arc<Store>, policy: Arc<dyn Policy>) {
    let turns = Turns::new(net.serve_slots());
    while let Some(stream) = streams.recv().await {
        let (store, policy, turns, net) = (store.clone(), policy.clone(), turns.clone(), net.clone());
        tokio::spawn(async move {
            let peer = stream.peer;
            let turn = || turns.take(peer, net.favours(&peer));
            if let Err(e) = answer(stream, store, policy, turn).await {
                tracing::debug!(target: "esker::blob", %peer, error = %e, "serve");
            }
        });
    }
}

/// Chunks that are served at once, by whom they go to.
#[derive(Clone)]
struct Turns(Arc<Mutex<Held>>);

struct Held {
    free: usize,
    /// Turns kept for the peers of the run.
    kept: usize,
    by: BTreeMap<PeerId, usize>,
}

/// A turn, until it is dropped.
struct Turn {
    of: Turns,
    peer: PeerId,
}

impl Turns {
    fn new(all: usize) -> Turns {
        Turns(Arc::new(Mutex::new(Held { free: all, kept: all / 8, by: BTreeMap::new() })))
    }

    fn take(&self, peer: PeerId, favoured: bool) -> Option<Turn> {
        let mut held = self.0.lock().expect("no panic under this lock");
        let free = if favoured { held.free } else { held.free.saturating_sub(held.kept) };
        let own = held.by.get(&peer).copied().unwrap_or(0);
        if free == 0 || own > 2 * free {
            return None;
        }
        held.free -= 1;
        held.by.insert(peer, own + 1);
        Some(Turn { of: self.clone(), peer })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut held = self.of.0.lock().expect("no panic under this lock");
        held.free += 1;
        let own = held.by.get_mut(&self.peer).expect("serve: a turn that was taken");
        *own -= 1;
        if *own == 0 {
            held.by.remove(&self.peer);
        }
    }
}

async fn answer(
    mut stream: Stream,
    store: Arc<Store>,
    policy: Arc<dyn Policy>,
    turn: impl Fn() -> Option<Turn>,
) -> Result<(), StreamFault> {
    let mut bytes = [0; REQUEST_BYTES];
    stream.read_exact(&mut bytes).await?;
    let Ok(request) = Request::parse(&bytes) else { return Ok(()) };
    if !matches!(request.what, Ask::Up(_)) {
        // The request's end is read, so that its half of the stream is free and the asker may open another.
        stream.end().await?;
    }
    let name = request.name;
    let allowed =
        !matches!(request.what, Ask::Chunk(_) | Ask::Outline(_) | Ask::Have(_)) || policy.may_have(&stream.peer, &name);
    let _turn = match (allowed, request.what) {
        (true, Ask::Chunk(_) | Ask::Down(_) | Ask::Up(_)) => match turn() {
            Some(turn) => Some(turn),
            None => return say(stream, Status::Busy, &[]).await,
        },
        _ => None,
    };
    let body: Option<Vec<u8>> = match (allowed, request.what) {
        (false, _) => None,
        (_, Ask::Chunk(i)) => chunk(&store, &policy, name, i).await,
        (_, Ask::Outline(size)) => {
            let outline = store.outline(&name).filter(|_| store.size(&name) == Some(size));
            outline.map(|o| o.bytes().to_vec())
        }
        (_, Ask::Have(size)) => {
            let have = store.have(&name).filter(|_| store.size(&name) == Some(size));
            Some(have.unwrap_or_else(|| Bits::none(super::tree::chunks(size))).bytes().to_vec())
        }
        (_, Ask::Keep(size)) => {
            let keeps = store.is_whole(&name) || policy.offered(&stream.peer, &name, size);
            keeps.then(Vec::new)
        }
        (_, Ask::Down(n)) => Some(vec![0; n as usize]),
        (_, Ask::Up(n)) => {
            let mut left = n as usize;
            let mut some = [0; 4096];
            while left > 0 {
                let part = left.min(some.len());
                stream.read_exact(&mut some[..part]).await?;
                left -= part;
            }
            Some(Vec::new())
        }
    };
    match body {
        Some(body) => say(stream, Status::Here, &body).await,
        None => say(stream, Status::Absent, &[]).await,
    }
}

async fn chunk(store: &Arc<Store>, policy: &Arc<dyn Policy>, name: Hash, index: u32) -> Option<Vec<u8>> {
    let held = off(store, move |s| s.read(&name, index)).await.unwrap_or_else(|e| {
        tracing::error!(target: "esker::blob", error = %e, "read");
        None
    });
    if held.is_some() || index > 0 {
        return held;
    }
    let policy = policy.clone();
    tokio::task::spawn_blocking(move || policy.part(&name)).await.ok().flatten()
}

async fn say(mut stream: Stream, status: Status, body: &[u8]) -> Result<(), StreamFault> {
    let head = [status as u8, stream.loss_e4()];
    stream.write(&head).await?;
    stream.write(body).await?;
    stream.finish();
    stream.sent().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    /// Takes as many as there are.
    fn all(turns: &Turns, peer: PeerId, favoured: bool) -> Vec<Turn> {
        std::iter::from_fn(|| turns.take(peer, favoured)).collect()
    }

    #[test]
    fn no_peer_has_all_turns_and_strangers_leave_some_to_the_run() {
        let turns = Turns::new(64);
        let greedy = all(&turns, id(1), false);
        assert!((32..48).contains(&greedy.len()), "{}", greedy.len());
        // Whoever comes finds some, and strangers under many keys leave those kept for the peers of the run.
        let crowd: Vec<Vec<Turn>> = (2..200).map(|n| all(&turns, id(n), false)).collect();
        assert!(crowd[0].len() >= 4 && crowd.iter().flatten().count() + greedy.len() == 56);
        let ours = [all(&turns, id(201), true), all(&turns, id(202), true)];
        assert_eq!(ours.each_ref().map(Vec::len), [6, 2]);
        drop((greedy, crowd, ours));
        assert_eq!(turns.0.lock().unwrap().free, 64);
        assert!(turns.0.lock().unwrap().by.is_empty());
        // A line that carries two has two.
        let few = Turns::new(2);
        assert_eq!(all(&few, id(1), false).len(), 2);
    }
}
