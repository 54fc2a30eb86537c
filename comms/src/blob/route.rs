//! By which way a blob goes out and comes in.
//!
//! | route | out | in | for |
//! | --- | --- | --- | --- |
//! | `Mesh` | nothing: it is served | from its maker and from each other | small models, fat links |
//! | `Seeded` | once, to a seeder | from the seeders | peers that can only dial out |
//! | `Bucket` | one object | ranges of it | large models |
//!
//! Uplink per peer and round, for N peers and updates of S bytes: mesh S·(N−1) on average, seeded and bucket S. A run
//! may use several at once: the store does not ask where a chunk came from.

mod bucket;

use std::sync::Arc;
use std::time::Duration;

use super::Boxed;
use super::ask::{Ask, Request, Status};
use super::bucket::BucketError;
use super::fetch::{FetchError, Fetcher, ask};
use super::plan::Priority;
use super::store::{Store, StoreError};
use super::tree::{Bits, chunks};
use crate::hash::Hash;
use crate::key::PeerId;
use crate::net::Net;

pub use bucket::Bucket;

/// Why a route did not carry a blob.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// The fetcher's reason.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The bucket's reason.
    #[error(transparent)]
    Bucket(#[from] Arc<BucketError>),
    /// The blob to send is not here whole.
    #[error("{name} is not here as a whole")]
    Absent {
        /// The blob.
        name: Hash,
    },
    /// No seeder took it.
    #[error("no seeder took {name}: {why}")]
    NoSeeder {
        /// The blob.
        name: Hash,
        /// What the last one said.
        why: String,
    },
}

/// A blob that is wanted.
#[derive(Debug, Clone)]
pub struct Want {
    /// Its name.
    pub name: Hash,
    /// Its size, computed here.
    pub size: u64,
    /// The last round that needs it.
    pub keep: u64,
    /// How urgent it is.
    pub priority: Priority,
    /// Who is known to hold it.
    pub holders: Vec<PeerId>,
}

/// A way for blobs.
pub trait Route: Send + Sync {
    /// Its name in configs and logs.
    fn name(&self) -> &'static str;

    /// Sends out a blob that the store holds whole; returns when others can get it.
    fn publish(&self, name: Hash) -> Boxed<'_, Result<(), RouteError>>;

    /// Brings a blob into the store.
    fn fetch(&self, want: Want) -> Boxed<'_, Result<(), RouteError>>;
}

/// From whoever has it.
pub struct Mesh {
    /// Fetches.
    pub fetcher: Fetcher,
}

impl Route for Mesh {
    fn name(&self) -> &'static str {
        "mesh"
    }

    fn publish(&self, _: Hash) -> Boxed<'_, Result<(), RouteError>> {
        // Serving is all there is to do, and the server runs.
        Box::pin(async { Ok(()) })
    }

    fn fetch(&self, w: Want) -> Boxed<'_, Result<(), RouteError>> {
        Box::pin(async move { Ok(self.fetcher.fetch(w.name, w.size, w.keep, w.priority, w.holders).await?) })
    }
}

/// By way of seeders.
pub struct Seeded {
    /// The network.
    pub net: Net,
    /// The store.
    pub store: Arc<Store>,
    /// Fetches.
    pub fetcher: Fetcher,
    /// Who seeds, the preferred first.
    pub seeders: Vec<PeerId>,
}

const POLL: Duration = Duration::from_millis(250);

impl Seeded {
    /// Offers a blob to a seeder and waits until it has it. It fetches over the pipe that the offer came by.
    async fn push(&self, seeder: PeerId, name: Hash, size: u64) -> Result<(), String> {
        let offer = ask(&self.net, seeder, Request { name, what: Ask::Keep(size) }, 0).await?;
        if offer.status != Status::Here {
            return Err(format!("{seeder} does not keep it"));
        }
        let len = chunks(size);
        let (mut had, mut still) = (0, 0);
        loop {
            let now = ask(&self.net, seeder, Request { name, what: Ask::Have(size) }, Bits::bytes_for(len)).await?;
            let has = Bits::checked(&now.body, len).ok_or("it answers with no bits")?;
            if has.is_full() {
                return Ok(());
            }
            still = if has.count() > had { 0 } else { still + 1 };
            had = has.count();
            if still >= 120 {
                return Err(format!("{seeder} has had {had} of {len} chunks for 30 s"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Route for Seeded {
    fn name(&self) -> &'static str {
        "seeded"
    }

    fn publish(&self, name: Hash) -> Boxed<'_, Result<(), RouteError>> {
        Box::pin(async move {
            let whole = self.store.size(&name).filter(|_| self.store.is_whole(&name));
            let size = whole.ok_or(RouteError::Absent { name })?;
            let mut why = "there is none".to_string();
            for seeder in &self.seeders {
                match self.push(*seeder, name, size).await {
                    Ok(()) => return Ok(()),
                    Err(e) => why = e,
                }
            }
            Err(RouteError::NoSeeder { name, why })
        })
    }

    fn fetch(&self, w: Want) -> Boxed<'_, Result<(), RouteError>> {
        Box::pin(async move {
            let come = self.fetcher.fetch(w.name, w.size, w.keep, w.priority, w.holders);
            // A seeder may have it in part or not yet: it is asked, and asked again.
            let tell = async {
                tokio::task::yield_now().await;
                self.seeders.iter().for_each(|s| self.fetcher.holds(w.name, *s, false));
            };
            Ok(tokio::join!(come, tell).0?)
        })
    }
}
