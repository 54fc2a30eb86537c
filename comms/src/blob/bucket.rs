//! Stores of objects that need not be trusted: what a bucket must be able to do, and one in a folder.
//!
//! An object is written once, only if absent, and appears whole. `Folder` is a bucket in a folder that several machines
//! mount; the feature `bucket` adds S3, Google Cloud Storage and Azure (`Remote`). How a blob lies in a bucket is said in
//! `route/bucket.rs`.

#[cfg(feature = "bucket")]
mod remote;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Boxed, blocking};

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

/// What a bucket answers.
pub type Answer<'a, T> = Boxed<'a, Result<T, BucketError>>;

/// Gives an object's bytes from a place on, as many as it likes and one at least; never asked at the end. May block.
pub type Parts = Arc<dyn Fn(u64) -> Result<Vec<u8>, BucketError> + Send + Sync>;

/// A store of objects by key. No answer holds the thread that waits for it.
pub trait Objects: Send + Sync {
    /// The bytes of `range`: as many as asked for, or an error.
    fn get<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Vec<u8>>;

    /// Writes an object of `size` bytes unless there is one.
    fn put<'a>(&'a self, key: &'a str, size: u64, parts: Parts) -> Answer<'a, ()>;

    /// Whether there is such an object.
    fn has<'a>(&'a self, key: &'a str) -> Answer<'a, bool>;
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

    /// Runs `f` on the path of `key`, off the thread that waits: what is mounted may answer as slowly as a network does.
    fn at<'a, T: Send + 'static>(
        &'a self,
        key: &'a str,
        f: impl FnOnce(&Path, &dyn Fn(io::Error) -> BucketError) -> Result<T, BucketError> + Send + 'static,
    ) -> Answer<'a, T> {
        let (path, key) = (self.root.join(key), key.to_string());
        Box::pin(blocking(move || f(&path, &|e| fault(&key, &e))))
    }
}

fn fault(key: &str, e: &io::Error) -> BucketError {
    match e.kind() {
        io::ErrorKind::NotFound => BucketError::Absent { key: key.into() },
        _ => BucketError::Service { key: key.into(), why: e.to_string() },
    }
}

impl Objects for Folder {
    fn get<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Vec<u8>> {
        self.at(key, move |path, fault| {
            let read = || {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut out = Vec::new();
                file.take(range.end - range.start).read_to_end(&mut out)?;
                Ok(out)
            };
            read().map_err(fault)
        })
    }

    fn put<'a>(&'a self, key: &'a str, size: u64, parts: Parts) -> Answer<'a, ()> {
        self.at(key, move |path, fault| {
            let dir = path.parent().expect("keys have a folder");
            fs::create_dir_all(dir).map_err(fault)?;
            // Two writers, on whatever machines, write aside under names of their own; the link takes one of them.
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{:016x}", draw()));
            let aside = PathBuf::from(name);
            let written = write_aside(&aside, size, &parts, fault);
            let linked = written.and_then(|()| match fs::hard_link(&aside, path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(fault(e)),
                _ => File::open(dir).and_then(|dir| dir.sync_all()).map_err(fault),
            });
            // What is left aside by a failure costs room alone, and the failure is what counts.
            let _ = fs::remove_file(&aside);
            linked
        })
    }

    fn has<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        self.at(key, |path, fault| path.try_exists().map_err(fault))
    }
}

fn write_aside(
    aside: &Path,
    size: u64,
    parts: &Parts,
    fault: &dyn Fn(io::Error) -> BucketError,
) -> Result<(), BucketError> {
    let mut file = File::options().write(true).create_new(true).open(aside).map_err(fault)?;
    let mut at = 0;
    while at < size {
        let bytes = parts(at)?;
        file.write_all(&bytes).map_err(fault)?;
        at += bytes.len() as u64;
    }
    file.sync_all().map_err(fault)
}

/// A number that no other writer has.
fn draw() -> u64 {
    let mut bytes = [0; 8];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).expect("the system draws numbers");
    u64::from_le_bytes(bytes)
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

    /// A folder once wrote, and waited for the disk, on the network's own thread: links went while a large update was on
    /// its way.
    #[tokio::test]
    async fn a_folder_holds_nobody_while_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        let bucket = open(dir.path().to_str().unwrap()).unwrap();
        let (told, tells) = std::sync::mpsc::channel();
        let tells = std::sync::Mutex::new(tells);
        // Nothing is to be had before another task of the same thread has had its turn.
        let parts: Parts = Arc::new(move |at| {
            let word = tells.lock().unwrap().recv_timeout(std::time::Duration::from_secs(10));
            word.map_err(|e| BucketError::Service { key: "x".into(), why: e.to_string() })?;
            Ok(vec![at as u8; 2])
        });
        let other = async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
                told.send(()).unwrap();
            }
        };
        tokio::join!(bucket.put("blobs/x", 6, parts.clone()), other).0.unwrap();
        assert_eq!(bucket.get("blobs/x", 1..6).await.unwrap(), [0, 2, 2, 4, 4]);
        // Who comes later changes nothing, and nothing is left aside by either, nor by one whose bytes end early.
        let zeros: Parts = Arc::new(|_| Ok(vec![0; 6]));
        bucket.put("blobs/x", 6, zeros).await.unwrap();
        assert_eq!(bucket.get("blobs/x", 0..1).await.unwrap(), [0]);
        assert!(bucket.put("blobs/y", 6, Arc::new(|_| Err(BucketError::Absent { key: "y".into() }))).await.is_err());
        assert!(bucket.has("blobs/x").await.unwrap() && !bucket.has("blobs/y").await.unwrap());
        assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 1);
    }
}
