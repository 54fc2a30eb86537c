//! The bytes of a file, unpacked as they are read.
//!
//! - gzip (RFC 1952): any number of members, one behind the other; each member's CRC is checked.
//! - zstd (RFC 8878): any number of frames, skippable ones passed over; checksum and content size
//!   are checked where a frame has them. A window of more than 128 MiB is refused, as the `zstd`
//!   program does.
//!
//! Memory: 0.5 MB, and for zstd the window that the data really uses, whatever a header says.
//! What is read is counted and hashed on the way, so that a file is read once.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::brief;

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Longest distance back that a frame of zstd may name.
const WINDOW_MAX: u64 = 128 << 20;
/// Bytes asked of a file at a time.
const READ_BYTES: usize = 1 << 18;
/// Unpacked bytes kept for the reader.
const UNPACKED_BYTES: usize = 1 << 17;

/// The unpacked bytes of one file.
pub struct Stream<R = File>(Inner<R>);

enum Inner<R> {
    Plain(BufReader<Tap<R>>),
    Gzip(BufReader<MultiGzDecoder<BufReader<Tap<R>>>>),
    Zstd(Box<Zstd<R>>),
}

impl<R: Read> Stream<R> {
    /// Reads `file`, adding the bytes taken from it to `meter` as they are read.
    pub fn new(file: R, packing: Packing, meter: Arc<AtomicU64>) -> Stream<R> {
        let tap = Tap { file, hasher: blake3::Hasher::new(), bytes: 0, meter, fault: None };
        let input = BufReader::with_capacity(READ_BYTES, tap);
        Stream(match packing {
            Packing::Plain => Inner::Plain(input),
            Packing::Gzip => Inner::Gzip(BufReader::with_capacity(UNPACKED_BYTES, MultiGzDecoder::new(input))),
            Packing::Zstd => Inner::Zstd(Box::new(Zstd {
                input,
                frame: None,
                start: 0,
                produced: 0,
                out: vec![0; UNPACKED_BYTES],
                ready: 0..0,
            })),
        })
    }

    /// Size and blake3 of the packed file; of all of it once the end was reached.
    pub fn finish(self) -> (u64, [u8; 32]) {
        let tap = match self.0 {
            Inner::Plain(input) => input.into_inner(),
            Inner::Gzip(unpacked) => unpacked.into_inner().into_inner().into_inner(),
            Inner::Zstd(zstd) => zstd.input.into_inner(),
        };
        (tap.bytes, *tap.hasher.finalize().as_bytes())
    }
}

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let ready = self.fill_buf()?;
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Stream<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        match &mut self.0 {
            Inner::Plain(input) => input.fill_buf(),
            Inner::Gzip(unpacked) => {
                if unpacked.buffer().is_empty()
                    && let Err(e) = unpacked.fill_buf()
                {
                    return Err(unpacked.get_mut().get_mut().get_mut().blame("gzip", 0, e));
                }
                Ok(unpacked.buffer())
            }
            Inner::Zstd(zstd) => zstd.fill(),
        }
    }

    fn consume(&mut self, n: usize) {
        match &mut self.0 {
            Inner::Plain(input) => input.consume(n),
            Inner::Gzip(unpacked) => unpacked.consume(n),
            Inner::Zstd(zstd) => zstd.ready.start = (zstd.ready.start + n).min(zstd.ready.end),
        }
    }
}

/// Counts and hashes what passes.
struct Tap<R> {
    file: R,
    hasher: blake3::Hasher,
    bytes: u64,
    meter: Arc<AtomicU64>,
    /// An error of the file itself: decoders wrap it until it cannot be told from damage.
    fault: Option<(ErrorKind, String)>,
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let n = match self.file.read(out) {
            Err(e) if e.kind() != ErrorKind::Interrupted => {
                self.fault = Some((e.kind(), e.to_string()));
                return Err(e);
            }
            read => read?,
        };
        self.hasher.update(&out[..n]);
        self.bytes += n as u64;
        self.meter.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl<R> Tap<R> {
    /// Says where a packed file is damaged, unless the fault is the file's. `start` is the byte
    /// at which what is damaged begins.
    fn blame(&mut self, what: &str, start: u64, reason: impl std::fmt::Display) -> Error {
        if let Some((kind, text)) = self.fault.take() {
            return Error::new(kind, text);
        }
        let text = format!(
            "{what} from byte {start} on is cut short or damaged before byte {}: {}; copy the file again",
            self.bytes,
            brief(reason)
        );
        Error::new(ErrorKind::InvalidData, text)
    }
}

/// Unpacks frame after frame.
struct Zstd<R> {
    input: BufReader<Tap<R>>,
    frame: Option<FrameDecoder>,
    /// Byte of the file at which the frame starts.
    start: u64,
    /// Unpacked bytes of this frame so far.
    produced: u64,
    out: Vec<u8>,
    /// Part of `out` that is not consumed.
    ready: std::ops::Range<usize>,
}

impl<R: Read> Zstd<R> {
    fn fill(&mut self) -> Result<&[u8]> {
        while self.ready.is_empty() {
            match self.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(reason) => {
                    // What follows cannot be trusted: the stream stays at its fault.
                    self.frame = None;
                    let start = self.start;
                    return Err(self.input.get_mut().blame("zstd frame", start, reason));
                }
            }
        }
        Ok(&self.out[self.ready.clone()])
    }

    /// One step towards more bytes; false at the end of the file.
    fn step(&mut self) -> std::result::Result<bool, String> {
        let Some(frame) = &mut self.frame else { return self.open_frame() };
        if frame.can_collect() == 0 && !frame.is_finished() {
            let blocks = BlockDecodingStrategy::UptoBlocks(1);
            frame.decode_blocks(&mut self.input, blocks).map_err(|e| e.to_string())?;
            return Ok(true);
        }
        let n = frame.read(&mut self.out).map_err(|e| e.to_string())?;
        self.ready = 0..n;
        self.produced += n as u64;
        if n == 0 && frame.is_finished() {
            let size = frame.content_size();
            if size != 0 && size != self.produced {
                return Err(format!("{} bytes came out, its header speaks of {size}", self.produced));
            }
            let said = frame.get_checksum_from_data();
            if said.is_some() && said != frame.get_calculated_checksum() {
                return Err("the checksum does not match what came out".into());
            }
            self.frame = None;
        }
        Ok(true)
    }

    fn open_frame(&mut self) -> std::result::Result<bool, String> {
        if self.input.fill_buf().map_err(|e| e.to_string())?.is_empty() {
            return Ok(false);
        }
        self.start = self.input.get_ref().bytes - self.input.buffer().len() as u64;
        // A new one each time: a used decoder takes a window's memory on a header's word.
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(WINDOW_MAX);
        match frame.reset(&mut self.input) {
            Ok(()) => {
                self.produced = 0;
                self.frame = Some(frame);
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                let mut skipped = (&mut self.input).take(length.into());
                let bytes = std::io::copy(&mut skipped, &mut std::io::sink()).map_err(|e| e.to_string())?;
                if bytes != u64::from(length) {
                    return Err(format!("a skippable frame of {length} bytes ends after {bytes}"));
                }
            }
            // That enum shows this one as code.
            Err(FrameDecoderError::ReadFrameHeaderError(e)) => return Err(e.to_string()),
            Err(e) => return Err(e.to_string()),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn unpack(packed: &[u8], packing: Packing) -> Result<(Vec<u8>, u64, [u8; 32])> {
        let meter = Arc::new(AtomicU64::new(0));
        let mut stream = Stream::new(packed, packing, meter.clone());
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        let (bytes, digest) = stream.finish();
        assert_eq!(bytes, meter.load(Ordering::Relaxed));
        Ok((all, bytes, digest))
    }

    /// Parts one behind the other are one stream; what is hashed is the packed file.
    #[test]
    fn members_and_frames_follow_each_other() {
        let parts: Vec<Vec<u8>> = (0..4)
            .map(|i| (0..i * 70_000u32).flat_map(|x| (x.wrapping_mul(x) % 977).to_le_bytes()).collect())
            .collect();
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"aside"].concat();
        for (packing, pack) in
            [(Packing::Plain, (|b| b.to_vec()) as fn(&[u8]) -> Vec<u8>), (Packing::Gzip, gzip), (Packing::Zstd, zstd)]
        {
            let mut packed: Vec<u8> = parts.iter().flat_map(|p| pack(p)).collect();
            if packing == Packing::Zstd {
                packed.splice(0..0, skippable.clone());
                packed.extend(&skippable);
            }
            let (all, bytes, digest) = unpack(&packed, packing).unwrap();
            assert!(all == parts.concat(), "{packing:?}");
            assert_eq!((bytes, digest), (packed.len() as u64, *blake3::hash(&packed).as_bytes()));
        }
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let text = b"an esker is a ridge laid down by a stream under ice".repeat(40);
        let two = [zstd(&text), zstd(&text)].concat();
        let cut = unpack(&two[..two.len() - 3], Packing::Zstd).unwrap_err().to_string();
        let want =
            format!("zstd frame from byte {} on is cut short or damaged before byte {}", two.len() / 2, two.len() - 3);
        assert!(cut.starts_with(&want), "{cut}");
        let tail = [&two[..], b"tail"].concat();
        assert!(unpack(&tail, Packing::Zstd).unwrap_err().to_string().contains("magic number"));
        let two = [gzip(&text), gzip(&text)].concat();
        let cut = unpack(&two[..two.len() - 3], Packing::Gzip).unwrap_err();
        assert!(cut.to_string().starts_with("gzip from byte 0 on is cut short"), "{cut}");
        assert_eq!(cut.kind(), ErrorKind::InvalidData);
        let mut flipped = two.clone();
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        assert!(unpack(&flipped, Packing::Gzip).is_err());
    }

    /// A fault of the disk is the system's, not the file's.
    #[test]
    fn the_files_own_errors_stay_what_they_are() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> Result<usize> {
                Err(Error::new(ErrorKind::TimedOut, "the disk is gone"))
            }
        }
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let mut stream = Stream::new(Broken, packing, Arc::default());
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::TimedOut, "the disk is gone"));
        }
    }
}
