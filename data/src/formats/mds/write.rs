//! Writes MDS: samples into shards and their index, with the bytes that streaming's own writer
//! would write.

use sha1::{Digest, Sha1};

use super::super::export::{Job, Written};
use super::super::{FormatError, Int};
use super::{FILE_BYTES, INDEX, sha1_hex};

/// Writes SPLIT/index.json and SPLIT/shard.00000.mds and so on, with the bytes that streaming's
/// own writer would.
pub(in crate::formats) fn write(job: &Job<'_>) -> Result<Written, FormatError> {
    let length = match job.options.records {
        true => 0,
        false => job.seq_len("the ids of a sample")?,
    };
    let int = job.options.int.unwrap_or(if job.options.bytes_column { Int::I64 } else { Int::I32 });
    let limit = job.options.file_bytes.unwrap_or(FILE_BYTES);
    let encoding = match int.name().split_at(1) {
        _ if job.options.bytes_column => "bytes".to_string(),
        ("u", bits) => format!("ndarray:uint{bits}"),
        (_, bits) => format!("ndarray:int{bits}"),
    };
    let compression = if job.options.zstd { "\"zstd:1\"" } else { "null" };
    // The keys in the order and the spacing of Python's json.dumps(sort_keys=True).
    let config = format!(
        "\"column_encodings\": [\"{encoding}\"], \"column_names\": [\"tokens\"], \"column_sizes\": [null], \
         \"compression\": {compression}, \"format\": \"mds\", \"hashes\": [\"sha1\", \"xxh64\"]"
    );
    let mut shards = Shards {
        job,
        head: format!("{{{config}, \"size_limit\": {limit}, \"version\": 2}}"),
        config,
        limit,
        ends: Vec::new(),
        samples: Vec::new(),
        entries: Vec::new(),
        written: Written::default(),
    };
    let rest = job.samples(length, |ids| {
        let mut sample = Vec::new();
        if !job.options.bytes_column {
            let n = ids.len() as u64;
            let width = (0..3).find(|w| n >> (8 << w) == 0).unwrap_or(3);
            sample.push(1 << 2 | width as u8);
            sample.extend(&n.to_le_bytes()[..1 << width]);
        }
        int.write(ids, &mut sample).map_err(|id| FormatError::Wide { path: job.out.into(), id, int })?;
        shards.push(&sample)
    })?;
    shards.flush()?;
    let Shards { entries, mut written, .. } = shards;
    let mut index = job.create_in(INDEX)?;
    index.bytes(format!("{{\"shards\": [{}], \"version\": 2}}", entries.join(", ")).as_bytes())?;
    written.add(index.finish()?);
    written.dropped_tokens = rest.len() as u64;
    Ok(written)
}

/// Samples on their way into shards.
struct Shards<'a, 'b> {
    job: &'a Job<'b>,
    /// JSON in each shard, and the part that the index repeats.
    head: String,
    config: String,
    limit: u64,
    ends: Vec<u64>,
    samples: Vec<u8>,
    /// JSON of the shards done.
    entries: Vec<String>,
    written: Written,
}

impl Shards<'_, '_> {
    fn push(&mut self, sample: &[u8]) -> Result<(), FormatError> {
        let bytes = 8 + self.head.len() as u64 + 4 * self.ends.len() as u64 + self.samples.len() as u64;
        let more = 4 + 4 + sample.len() as u64;
        if bytes + more > self.limit && !self.ends.is_empty() {
            self.flush()?;
        }
        let size = u32::try_from(sample.len()).ok().filter(|&size| size < 1 << 31);
        let size =
            size.ok_or_else(|| FormatError::refused(self.job.out, "a sample takes 2^31 bytes; MDS counts in 32 bits"))?;
        self.samples.extend(size.to_le_bytes());
        self.samples.extend(sample);
        self.ends.push(self.samples.len() as u64);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), FormatError> {
        if self.ends.is_empty() {
            return Ok(());
        }
        let n = self.ends.len();
        let start = 4 + 4 * (n + 1) + self.head.len();
        let mut raw = (n as u32).to_le_bytes().to_vec();
        for end in std::iter::once(0).chain(std::mem::take(&mut self.ends)) {
            let at = u32::try_from(start as u64 + end)
                .map_err(|_| FormatError::refused(self.job.out, "a shard takes 2^32 bytes; choose a smaller limit"))?;
            raw.extend(at.to_le_bytes());
        }
        raw.extend(self.head.as_bytes());
        raw.append(&mut self.samples);
        let name = format!("shard.{:05}.mds", self.entries.len());
        let raw_data = entry(&name, &raw);
        let (name, bytes, zip_data) = match self.job.options.zstd {
            false => (name, raw, "null".into()),
            true => {
                let packed = ruzstd::encoding::compress_to_vec(&raw[..], ruzstd::encoding::CompressionLevel::Fastest);
                let name = format!("{name}.zstd");
                let zip_data = entry(&name, &packed);
                (name, packed, zip_data)
            }
        };
        let mut file = self.job.create_in(&name)?;
        file.bytes(&bytes)?;
        self.written.add(file.finish()?);
        let (config, limit) = (&self.config, self.limit);
        self.entries.push(format!(
            "{{{config}, \"raw_data\": {raw_data}, \"samples\": {n}, \"size_limit\": {limit}, \"version\": 2, \"zip_data\": {zip_data}}}"
        ));
        Ok(())
    }
}

fn entry(name: &str, bytes: &[u8]) -> String {
    let sha1 = sha1_hex(Sha1::new_with_prefix(bytes));
    let xxh64 = xxhash_rust::xxh64::xxh64(bytes, 0);
    format!(
        "{{\"basename\": \"{name}\", \"bytes\": {}, \"hashes\": {{\"sha1\": \"{sha1}\", \"xxh64\": \"{xxh64:016x}\"}}}}",
        bytes.len()
    )
}
