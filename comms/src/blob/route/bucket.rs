//! Blobs by way of a bucket.
//!
//! A blob is two objects: `blobs/NAME`, its bytes, and `blobs/NAME.outline`, the leaves of its tree. The outline is
//! written last: what has one is whole. Who fetches reads the outline, checks it against the name, and then ranges of up
//! to 16 MiB, each MiB checked against the outline; a killed fetch goes on where it was. The bucket's clock is nobody's
//! deadline.

use std::sync::Arc;

use super::{POLL, Route, RouteError, Want};
use crate::blob::bucket::{BucketError, Objects, Parts};
use crate::blob::store::{Put, Store, StoreError};
use crate::blob::tree::{CHUNK, Outline, chunks};
use crate::blob::{Boxed, off};
use crate::hash::Hash;

/// By way of a bucket.
pub struct Bucket {
    /// The store.
    pub store: Arc<Store>,
    /// The bucket.
    pub bucket: Arc<dyn Objects>,
}

impl Route for Bucket {
    fn name(&self) -> &'static str {
        "bucket"
    }

    fn publish(&self, name: Hash) -> Boxed<'_, Result<(), RouteError>> {
        Box::pin(publish(&self.store, &*self.bucket, name))
    }

    fn fetch(&self, want: Want) -> Boxed<'_, Result<(), RouteError>> {
        Box::pin(async move {
            let Want { name, size, keep, .. } = want;
            off(&self.store, move |s| s.begin(name, size, keep)).await.map_err(Arc::new)?;
            loop {
                match fetch(&self.store, &*self.bucket, name, size).await {
                    // Its maker is writing it: the caller says how long to wait.
                    Err(RouteError::Bucket(e)) if matches!(*e, BucketError::Absent { .. }) => {
                        tokio::time::sleep(POLL).await;
                    }
                    other => return other,
                }
            }
        })
    }
}

/// Bytes of one range.
const RANGE: u64 = 16 * CHUNK as u64;

fn keys(name: &Hash) -> (String, String) {
    (format!("blobs/{name}"), format!("blobs/{name}.outline"))
}

async fn publish(store: &Arc<Store>, bucket: &dyn Objects, name: Hash) -> Result<(), RouteError> {
    let absent = RouteError::Absent { name };
    let size = store.size(&name).filter(|_| store.is_whole(&name)).ok_or(absent.clone())?;
    let outline = store.outline(&name).ok_or(absent)?;
    let (blob, leaves) = keys(&name);
    if bucket.has(&leaves).await.map_err(Arc::new)? {
        return Ok(());
    }
    let (from, key) = (store.clone(), blob.clone());
    let parts: Parts = Arc::new(move |at| {
        let why = |why: String| BucketError::Service { key: key.clone(), why };
        let chunk = from.read(&name, (at / CHUNK as u64) as u32).map_err(|e| why(e.to_string()))?;
        chunk.ok_or_else(|| why("it was pruned".into()))
    });
    bucket.put(&blob, size, parts).await.map_err(Arc::new)?;
    let leaves_bytes = outline.bytes().len() as u64;
    bucket.put(&leaves, leaves_bytes, Arc::new(move |_| Ok(outline.bytes().to_vec()))).await.map_err(Arc::new)?;
    Ok(())
}

async fn fetch(store: &Arc<Store>, bucket: &dyn Objects, name: Hash, size: u64) -> Result<(), RouteError> {
    let (blob, leaves) = keys(&name);
    if !bucket.has(&leaves).await.map_err(Arc::new)? {
        return Err(Arc::new(BucketError::Absent { key: blob }).into());
    }
    if store.outline(&name).is_none() {
        let bytes = bucket.get(&leaves, 0..Outline::len_for(size) as u64).await.map_err(Arc::new)?;
        let good = off(store, move |s| s.put_outline(&name, &bytes)).await.map_err(Arc::new)?;
        if !good {
            return Err(Arc::new(BucketError::Lie { key: leaves, at: 0 }).into());
        }
    }
    let len = chunks(size);
    let mut i = 0;
    while i < len {
        let Some(have) = store.have(&name) else { return Err(RouteError::Absent { name }) };
        if have.get(i) {
            i += 1;
            continue;
        }
        let run = (i..len).take((RANGE / CHUNK as u64) as usize).take_while(|j| !have.get(*j)).count() as u32;
        let at = u64::from(i) * CHUNK as u64;
        let end = (at + u64::from(run) * CHUNK as u64).min(size);
        let bytes = bucket.get(&blob, at..end).await.map_err(Arc::new)?;
        if bytes.len() as u64 != end - at {
            let why = format!("{} bytes for a range of {}", bytes.len(), end - at);
            return Err(Arc::new(BucketError::Service { key: blob, why }).into());
        }
        let first = i;
        let put = off(store, move |s| put_range(s, &name, first, &bytes));
        if let Some(n) = put.await.map_err(Arc::new)? {
            return Err(Arc::new(BucketError::Lie { key: blob, at: at + n * CHUNK as u64 }).into());
        }
        i += run;
    }
    Ok(())
}

/// Puts chunks from `first` on; says which was the first lie.
fn put_range(store: &Store, name: &Hash, first: u32, bytes: &[u8]) -> Result<Option<u64>, StoreError> {
    for (n, piece) in bytes.chunks(CHUNK).enumerate() {
        if store.put(name, first + n as u32, piece)? == Put::Lie {
            return Ok(Some(n as u64));
        }
    }
    Ok(None)
}
