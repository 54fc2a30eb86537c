//! Answers what peers ask about blobs.
//!
//! A policy says which blob a peer may have (before the reveal of a round nobody may have its updates) and which
//! offers are taken. At most as many chunks are served at once as the owner's cap lets go at 128 KiB a second each;
//! who comes above that is told to come later, in two bytes.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

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
    let slots = Arc::new(Semaphore::new(net.serve_slots()));
    while let Some(stream) = streams.recv().await {
        let (store, policy, slots) = (store.clone(), policy.clone(), slots.clone());
        tokio::spawn(async move {
            let peer = stream.peer;
            if let Err(e) = answer(stream, store, policy, slots).await {
                tracing::debug!(target: "esker::blob", %peer, error = %e, "serve");
            }
        });
    }
}

async fn answer(
    mut stream: Stream,
    store: Arc<Store>,
    policy: Arc<dyn Policy>,
    slots: Arc<Semaphore>,
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
    let _slot = match (allowed, request.what) {
        (true, Ask::Chunk(_) | Ask::Down(_) | Ask::Up(_)) => match slots.try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => return say(stream, Status::Busy, &[]).await,
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
