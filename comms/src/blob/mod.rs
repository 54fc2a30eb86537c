//! Blobs: bytes by their blake3, from whoever has them, resumed after any death.
//!
//! - `tree.rs`: chunks, the outline, what is proven by what;
//! - `store.rs`, `map.rs`: on disk, with a journal and a quota;
//! - `plan.rs`: which chunk to ask of whom, pure;
//! - `ask.rs`, `serve.rs`, `fetch.rs`: over pipes;
//! - `bucket.rs`: stores of objects: folders, and services;
//! - `route.rs`, `route/bucket.rs`: by which way a blob goes out and comes in.
//!
//! The size of a blob is computed by who wants it, from the run's spec or a signed message. No length from a source
//! is believed, no memory is taken for one, and each MiB is checked as it arrives.

pub mod ask;
pub mod bucket;
pub mod fetch;
pub mod map;
pub mod plan;
pub mod route;
pub mod serve;
pub mod store;
pub mod tree;

pub use fetch::{FetchError, Fetcher};
pub use plan::Priority;
pub use route::{Route, RouteError};
pub use store::{Put, Store, StoreError};
pub use tree::{BLOB_MAX, CHUNK};

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// A future in a box, since a trait object returns it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Runs what blocks off the thread of the network.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => value,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

/// Runs a call that blocks on the disk, off the thread of the network when there is a disk.
pub(crate) async fn off<T: Send + 'static>(store: &Arc<Store>, f: impl FnOnce(&Store) -> T + Send + 'static) -> T {
    if !store.on_disk() {
        return f(store);
    }
    let store = store.clone();
    blocking(move || f(&store)).await
}
