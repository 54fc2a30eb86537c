//! Blobs by way of a bucket: a store of objects that need not be trusted.
//!
//! A blob is two objects: `blobs/NAME`, its bytes, and `blobs/NAME.outline`, the leaves of its tree. Both are written
//! once, only if absent, the outline last: what has an outline is whole. Who fetches reads the outline, checks it
//! against the name, and then ranges of up to 16 MiB, each MiB checked against the outline; a killed fetch goes on where
//! it was. The bucket's clock is nobody's deadline.
//!
//! `Folder` is a bucket in a folder that several machines mount. The feature `bucket` adds S3, Google Cloud Storage
//! and Azure (`Remote`).

#[cfg(feature = "bucket")]
mod remote;

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::off;
use super::route::{Boxed, RouteError};
use super::store::{Put, Store, StoreError};
use super::tree::{CHUNK, Outline, chunks};
use crate::hash::Hash;

#[cfg(feature = "bucket")]
pub use remote::Remote;

/// Why a bucket failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The object is not there.
    #[error("{key} is not in the bucket (yet)")]
    Absent {
        /// Its key.
        key: String,
    },
    /// The object is not what its name says.
    #[error("{key} is false: bytes {at} and on are not the blob's; delete it and have it published again")]
    Lie {
        /// Its key.
        key: String,
        /// Where.
        at: u64,
    },
    /// No bucket can be had by that name.
    #[error("bucket {url:?}: {why}")]
    Name {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The bucket's service or disk failed.
    #[error("bucket, {key}: {why}")]
    Service {
        /// The key.
        key: String,
        /// What it said.
        why: String,
    },
}

/// A store of objects by key.
pub trait Objects: Send + Sync {
    /// The bytes of `range`: as many as asked for, or an error.
    fn get<'a>(&'a self, key: &'a str, range: Range<u64>) -> Boxed<'a, Result<Vec<u8>, BucketError>>;

    /// Writes an object unless there is one. `parts` come in order and are the whole.
    fn put<'a>(
        &'a self,
        key: &'a str,
        size: u64,
        part: &'a mut (dyn FnMut(u64) -> Result<Vec<u8>, BucketError> + Send),
    ) -> Boxed<'a, Result<(), BucketError>>;

    /// Whether there is such an object.
    fn has<'a>(&'a self, key: &'a str) -> Boxed<'a, Result<bool, BucketError>>;
}

/// The bucket that `url` names: a folder (`file:///mnt/run`, or a path), or with the feature `bucket` `s3://BUCKET/PREFIX`,
/// `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, with credentials from the environment as those services' own tools
/// read them (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
///
/// # Errors
/// [`BucketError::Name`] for a scheme that this build does not speak, or settings that do not go together.
pub fn open(url: &str) -> Result<Arc<dyn Objects>, BucketError> {
    match url.split_once("://") {
        None => Ok(Arc::new(Folder::new(url))),
        Some(("file", path)) => Ok(Arc::new(Folder::new(path))),
        #[cfg(feature = "bucket")]
        Some((scheme @ ("s3" | "gs" | "az"), rest)) => remote::open(url, scheme, rest),
        Some((scheme, _)) => {
            let known = if cfg!(feature = "bucket") {
                "s3, gs, az and file"
            } else {
                "file; s3, gs and az with --features bucket"
            };
            Err(BucketError::Name { url: url.into(), why: format!("{scheme:?} is not spoken here: {known}") })
        }
    }
}

/// Bytes of one range.
const RANGE: u64 = 16 * CHUNK as u64;

fn keys(name: &Hash) -> (String, String) {
    (format!("blobs/{name}"), format!("blobs/{name}.outline"))
}

pub(super) async fn publish(store: &Arc<Store>, bucket: &dyn Objects, name: Hash) -> Result<(), RouteError> {
    let absent = RouteError::Absent { name };
    let size = store.size(&name).filter(|_| store.is_whole(&name)).ok_or(absent.clone())?;
    let outline = store.outline(&name).ok_or(absent)?;
    let (blob, leaves) = keys(&name);
    if bucket.has(&leaves).await.map_err(Arc::new)? {
        return Ok(());
    }
    let mut part = |at: u64| {
        let why = |why: String| BucketError::Service { key: blob.clone(), why };
        let chunk = store.read(&name, (at / CHUNK as u64) as u32).map_err(|e| why(e.to_string()))?;
        chunk.ok_or_else(|| why("it was pruned".into()))
    };
    bucket.put(&blob, size, &mut part).await.map_err(Arc::new)?;
    let mut whole = |_| Ok(outline.bytes().to_vec());
    bucket.put(&leaves, outline.bytes().len() as u64, &mut whole).await.map_err(Arc::new)?;
    Ok(())
}

pub(super) async fn fetch(store: &Arc<Store>, bucket: &dyn Objects, name: Hash, size: u64) -> Result<(), RouteError> {
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

/// A bucket in a folder.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The bucket in `root`; the folder is made at the first write.
    pub fn new(root: impl Into<PathBuf>) -> Folder {
        Folder { root: root.into() }
    }

    fn fault(key: &str, e: &io::Error) -> BucketError {
        match e.kind() {
            io::ErrorKind::NotFound => BucketError::Absent { key: key.into() },
            _ => BucketError::Service { key: key.into(), why: e.to_string() },
        }
    }
}

impl Objects for Folder {
    fn get<'a>(&'a self, key: &'a str, range: Range<u64>) -> Boxed<'a, Result<Vec<u8>, BucketError>> {
        Box::pin(async move {
            let read = || {
                let mut file = std::fs::File::open(self.root.join(key))?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut out = Vec::new();
                file.take(range.end - range.start).read_to_end(&mut out)?;
                Ok(out)
            };
            read().map_err(|e| Folder::fault(key, &e))
        })
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        size: u64,
        part: &'a mut (dyn FnMut(u64) -> Result<Vec<u8>, BucketError> + Send),
    ) -> Boxed<'a, Result<(), BucketError>> {
        Box::pin(async move {
            let path = self.root.join(key);
            let fault = |e: io::Error| Folder::fault(key, &e);
            std::fs::create_dir_all(path.parent().expect("keys have a folder")).map_err(fault)?;
            // Two writers write aside under names of their own; the link takes one of them.
            let aside = self.root.join(format!("{key}.{}-{:p}", std::process::id(), &raw const *part));
            let mut file = std::fs::File::create(&aside).map_err(fault)?;
            let mut at = 0;
            while at < size {
                let bytes = part(at)?;
                file.write_all(&bytes).map_err(fault)?;
                at += bytes.len() as u64;
            }
            file.sync_all().map_err(fault)?;
            let linked = std::fs::hard_link(&aside, &path);
            std::fs::remove_file(&aside).map_err(fault)?;
            match linked {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(fault(e)),
                _ => Ok(()),
            }
        })
    }

    fn has<'a>(&'a self, key: &'a str) -> Boxed<'a, Result<bool, BucketError>> {
        Box::pin(async move { self.root.join(key).try_exists().map_err(|e| Folder::fault(key, &e)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        match open(url) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{url} is taken for a bucket"),
        }
    }

    #[test]
    fn a_name_is_a_folder_or_a_service_or_refused() {
        assert!(open("/mnt/run").is_ok() && open("file:///mnt/run").is_ok());
        let text = refused("ftp://host/run");
        assert!(text.contains("ftp://host/run") && text.contains("file"), "{text}");
        #[cfg(not(feature = "bucket"))]
        assert!(refused("s3://run/of/ours").contains("--features bucket"));
        #[cfg(feature = "bucket")]
        assert!(refused("s3:///of/ours").contains("names no bucket"));
    }
}
