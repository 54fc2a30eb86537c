//! Buckets of services: S3, Google Cloud Storage and Azure, by the crate object_store.

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};

use super::{Answer, Arc, BucketError, Objects, Parts, Range};
use crate::blob::blocking;

/// The service behind a URL's scheme.
pub(super) fn open(url: &str, scheme: &str, rest: &str) -> Result<Arc<dyn Objects>, BucketError> {
    use object_store::{aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder};
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let name = |why: String| BucketError::Name { url: url.into(), why };
    if bucket.is_empty() {
        return Err(name("it names no bucket".into()));
    }
    let fail = |e: Error| name(e.to_string());
    let store: Arc<dyn ObjectStore> = match scheme {
        "s3" => Arc::new(AmazonS3Builder::from_env().with_bucket_name(bucket).build().map_err(fail)?),
        "gs" => Arc::new(GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).build().map_err(fail)?),
        _ => Arc::new(MicrosoftAzureBuilder::from_env().with_container_name(bucket).build().map_err(fail)?),
    };
    Ok(Arc::new(Remote::new(store, prefix)))
}

/// A bucket of S3, Google Cloud Storage, Azure, or anything else that object_store speaks to.
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// Up to here an object is one request, which can be made conditional.
const ONE_PUT_MAX: u64 = 64 << 20;

impl Remote {
    /// Keys go under `prefix`.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Remote {
        Remote { store, prefix: Path::from(prefix) }
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').fold(self.prefix.clone(), |p, part| p.join(part))
    }
}

fn fault(key: &str, e: Error) -> BucketError {
    match e {
        Error::NotFound { .. } => BucketError::Absent { key: key.into() },
        e => BucketError::Service { key: key.into(), why: e.to_string() },
    }
}

impl Objects for Remote {
    fn get<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Vec<u8>> {
        Box::pin(async move {
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let bytes = self.store.get_range(&self.path(key), range).await.map_err(|e| fault(key, e))?;
            Ok(bytes.to_vec())
        })
    }

    fn put<'a>(&'a self, key: &'a str, size: u64, parts: Parts) -> Answer<'a, ()> {
        Box::pin(async move {
            let path = self.path(key);
            let part = |at| {
                let parts = parts.clone();
                blocking(move || parts(at))
            };
            if size <= ONE_PUT_MAX {
                let mut bytes = Vec::with_capacity(size as usize);
                while (bytes.len() as u64) < size {
                    bytes.extend(part(bytes.len() as u64).await?);
                }
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                return match self.store.put_opts(&path, PutPayload::from(bytes), options).await {
                    Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(()),
                    Err(e) => Err(fault(key, e)),
                };
            }
            // Parts cannot be conditional; whoever ends last writes what the others wrote.
            let upload = self.store.put_multipart(&path).await.map_err(|e| fault(key, e))?;
            let mut writer = WriteMultipart::new_with_chunk_size(upload, 16 << 20);
            let mut at = 0;
            while at < size {
                let bytes = part(at).await?;
                at += bytes.len() as u64;
                writer.wait_for_capacity(4).await.map_err(|e| fault(key, e))?;
                writer.write(&bytes);
            }
            writer.finish().await.map(drop).map_err(|e| fault(key, e))
        })
    }

    fn has<'a>(&'a self, key: &'a str) -> Answer<'a, bool> {
        Box::pin(async move {
            match self.store.head(&self.path(key)).await {
                Ok(_) => Ok(true),
                Err(Error::NotFound { .. }) => Ok(false),
                Err(e) => Err(fault(key, e)),
            }
        })
    }
}
