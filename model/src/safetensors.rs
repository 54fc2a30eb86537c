//! The safetensors format, read with distrust and written as a stream.
//!
//! u64 n, little-endian │ n bytes of JSON │ data
//! JSON: {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {"key": "text"}}
//! Offsets count from the start of the data; the tensors cover all of it, without holes or overlaps.
//!
//! What a header may say is the crate `safetensors`' to define: its [`Dtype`] names the elements and sizes them, its
//! [`TensorInfo`] is an entry, its [`Metadata`] checks and spells the header that is written. What surrounds the header is
//! ours, as the crate wants the whole file in one slice to read it and does not sync what it writes.
//!
//! [`Reader::open`] reads the header alone and believes nothing in it: its length is held against the file's before a
//! byte of memory is taken, and every dtype, shape and offset against the others. Tensors are then read one at a time
//! into memory that is already laid out; the file is not mapped, since mapped pages would count as memory in use and a
//! file cut short behind our back would kill the process instead of giving an error. Offsets that are not multiples of an
//! element are accepted: nothing here depends on them.
//!
//! [`write()`] makes the bytes that the crate's `serialize` makes, and streams them: its `serialize_to_file` would hold each
//! tensor a second time to round it, leave the file readable by its owner alone, and rename it unsynced.
//! Source: the format's page in the safetensors repository.

use crate::hf::HfError;
use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};
use esker_kernels::tensor::{DType, Tensor};
use half::{bf16, f16};
use serde::{
    Deserialize, Serialize,
    de::{Deserializer, Error, IntoDeserializer, MapAccess, Visitor, value},
};
use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// No header of a real model comes near this.
const HEADER_BYTES_MAX: u64 = 16 << 20;
/// Longest name, and most dimensions, of a tensor; so that a message about one fits a screen.
pub(crate) const NAME_BYTES_MAX: usize = 200;
const RANK_MAX: usize = 8;
/// Bytes converted or compared at one time.
const PIECE_BYTES: usize = 1 << 20;

/// An open file whose header holds together.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    data_at: u64,
    /// In the order of the data.
    pub entries: Vec<Entry>,
    pub metadata: Vec<(String, String)>,
}

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: String,
    info: TensorInfo,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Reader, HfError> {
        let io = |source| HfError::Io { path: path.into(), action: "read", source };
        let bad = |why: String| HfError::Format { file: path.into(), why };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size < 8 {
            return Err(bad(format!("{size} bytes long, too short to be a safetensors file")));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let n = u64::from_le_bytes(length);
        if n > size - 8 {
            return Err(bad(format!(
                "the header claims {n} bytes, the file has {size}: it is cut short or not safetensors"
            )));
        }
        if n > HEADER_BYTES_MAX {
            return Err(bad(format!("the header claims {n} bytes, more than the limit of {HEADER_BYTES_MAX}")));
        }
        let mut text = vec![0; n as usize];
        file.read_exact(&mut text).map_err(io)?;
        let header: Header = serde_json::from_slice(&text).map_err(|e| bad(format!("the header is not valid: {e}")))?;
        let Header { mut entries, metadata } = header;
        entries.sort_by_key(|e| e.info.data_offsets);
        let mut names = HashSet::new();
        let mut at = 0;
        for e in &entries {
            if e.name.len() > NAME_BYTES_MAX {
                return Err(bad(format!(
                    "a tensor's name is {} bytes long, at most {NAME_BYTES_MAX} expected",
                    e.name.len()
                )));
            }
            if !names.insert(e.name.as_str()) {
                return Err(HfError::Duplicate { file: path.into(), tensor: e.name.clone() });
            }
            e.check(at).map_err(|why| bad(format!("tensor {:?}: {why}", e.name)))?;
            at = e.info.data_offsets.1;
        }
        if at as u64 != size - 8 - n {
            return Err(bad(format!("the tensors take {at} bytes, the file has {} for them", size - 8 - n)));
        }
        Ok(Reader { path: path.into(), file, data_at: 8 + n, entries, metadata })
    }

    /// Checks that `e` fits `to`, in shape and in kind.
    pub fn fits(&self, e: &Entry, to: &Tensor) -> Result<(), HfError> {
        let TensorInfo { dtype, shape, .. } = &e.info;
        if shape != to.shape() {
            return Err(HfError::Shape {
                file: self.path.clone(),
                tensor: e.name.clone(),
                got: format!("{shape:?}"),
                want: format!("{:?}", to.shape()),
            });
        }
        let (fit, want) = match to.dtype() {
            DType::U32 => (&[Dtype::U32][..], "U32"),
            DType::F32 | DType::Bf16 => (&[Dtype::F32, Dtype::BF16, Dtype::F16][..], "F32, BF16 or F16"),
        };
        if fit.contains(dtype) {
            return Ok(());
        }
        Err(HfError::Dtype { file: self.path.clone(), tensor: e.name.clone(), got: dtype.to_string(), want })
    }

    /// Reads `e`, which [`Reader::fits`], into `to`.
    pub fn read(&mut self, e: &Entry, to: &mut Tensor) -> Result<(), HfError> {
        assert!(self.fits(e, to).is_ok(), "safetensors: {} read unchecked", e.name);
        let io = |source| HfError::Io { path: self.path.clone(), action: "read", source };
        self.file.seek(SeekFrom::Start(self.data_at + e.begin())).map_err(io)?;
        let stored = e.info.dtype;
        if stored == stored_as(to.dtype()) {
            return self.file.read_exact(to.bytes_mut()).map_err(io);
        }
        let wide = stored.bitsize() / 8;
        let mut piece = vec![0; PIECE_BYTES.min(e.bytes() as usize)];
        let mut at = 0;
        while at < to.len() {
            let n = (to.len() - at).min(PIECE_BYTES / wide);
            let bytes = &mut piece[..n * wide];
            self.file.read_exact(bytes).map_err(io)?;
            let values = bytes.chunks_exact(wide).map(|b| match *b {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [a, b] if stored == Dtype::BF16 => bf16::from_le_bytes([a, b]).to_f32(),
                [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                _ => unreachable!("safetensors: elements of {wide} bytes"),
            });
            match to.dtype() {
                DType::F32 => to.f32_mut()[at..at + n].iter_mut().zip(values).for_each(|(x, v)| *x = v),
                DType::Bf16 => {
                    to.bf16_mut()[at..at + n].iter_mut().zip(values).for_each(|(x, v)| *x = bf16::from_f32(v));
                }
                DType::U32 => unreachable!("safetensors: u32 is read as stored"),
            }
            at += n;
        }
        Ok(())
    }

    /// Whether two tensors are stored with the same bytes.
    pub fn same(&mut self, a: &Entry, other: &mut Reader, b: &Entry) -> Result<bool, HfError> {
        if (a.info.dtype, &a.info.shape) != (b.info.dtype, &b.info.shape) {
            return Ok(false);
        }
        let mut pieces = [vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]];
        let mut at = 0;
        while at < a.bytes() {
            let n = (a.bytes() - at).min(PIECE_BYTES as u64);
            for ((r, e), piece) in [(&mut *self, a), (&mut *other, b)].into_iter().zip(&mut pieces) {
                let io = |source| HfError::Io { path: r.path.clone(), action: "read", source };
                r.file.seek(SeekFrom::Start(r.data_at + e.begin() + at)).map_err(io)?;
                r.file.read_exact(&mut piece[..n as usize]).map_err(io)?;
            }
            if pieces[0][..n as usize] != pieces[1][..n as usize] {
                return Ok(false);
            }
            at += n;
        }
        Ok(true)
    }

    /// Another handle on the same file, for [`Reader::same`].
    pub fn again(&self) -> Result<Reader, HfError> {
        Reader::open(&self.path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Entry {
    /// Where its bytes begin in the data, and how many there are.
    fn begin(&self) -> u64 {
        self.info.data_offsets.0 as u64
    }

    fn bytes(&self) -> u64 {
        (self.info.data_offsets.1 - self.info.data_offsets.0) as u64
    }

    /// Checks shape and offsets, of which the first must be `from`.
    fn check(&self, from: usize) -> Result<(), String> {
        let TensorInfo { dtype, shape, data_offsets: (begin, end) } = &self.info;
        if shape.len() > RANK_MAX {
            return Err(format!("{} dimensions, at most {RANK_MAX} expected", shape.len()));
        }
        if *begin != from || end < begin {
            return Err(format!("data_offsets [{begin}, {end}], expected to begin at {from}"));
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        if bits.is_none() || bits != (end - begin).checked_mul(8) {
            return Err(format!("{dtype} of {shape:?} does not take {} bytes", end - begin));
        }
        Ok(())
    }
}

/// Writes `tensors` to `path`: aside, then synced, then renamed, without a second copy of any of them. Floats are rounded
/// to `dtype` when one is given. The same tensors and metadata give the same bytes. Returns the size of the file.
pub(crate) fn write<'a, N: std::fmt::Display>(
    path: &Path,
    tensors: impl Iterator<Item = (N, &'a Tensor)>,
    dtype: Option<DType>,
    metadata: &[(&str, &str)],
) -> Result<u64, HfError> {
    let as_stored = |t: &Tensor| match (t.dtype(), dtype) {
        (DType::U32, _) | (_, None) => t.dtype(),
        (_, Some(dtype)) => dtype,
    };
    let mut tensors: Vec<_> = tensors.map(|(name, t)| (name.to_string(), as_stored(t), t)).collect();
    // The crate's order: widest elements first, so that each lies on a multiple of its size; then by name.
    tensors.sort_by(|(a, x, _), (b, y, _)| stored_as(*y).cmp(&stored_as(*x)).then_with(|| a.cmp(b)));
    let (header, data_bytes) = header(&tensors, metadata);
    replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        tensors.iter().try_for_each(|(_, dtype, t)| write_tensor(file, t, *dtype, &mut piece))
    })?;
    Ok(8 + header.len() as u64 + data_bytes)
}

/// The header of `tensors`, laid out in that order, and the bytes of their data.
fn header(tensors: &[(String, DType, &Tensor)], metadata: &[(&str, &str)]) -> (Vec<u8>, u64) {
    #[derive(Serialize)]
    struct Text<'a> {
        /// Beside the crate's own, which would stand in an order of chance.
        #[serde(rename = "__metadata__", skip_serializing_if = "BTreeMap::is_empty")]
        metadata: BTreeMap<&'a str, &'a str>,
        #[serde(flatten)]
        tensors: Metadata,
    }
    let mut at = 0;
    let entry = |(name, dtype, t): &(String, DType, &Tensor)| {
        let begin = at;
        at += t.len() * dtype.bytes();
        (name.clone(), TensorInfo { dtype: stored_as(*dtype), shape: t.shape().to_vec(), data_offsets: (begin, at) })
    };
    let entries = tensors.iter().map(entry).collect();
    let entries = Metadata::new(None, entries).expect("safetensors: tensors laid out one after another");
    assert_eq!(entries.offset_keys().len(), tensors.len(), "safetensors: a name twice");
    let text = Text { metadata: metadata.iter().copied().collect(), tensors: entries };
    let mut text = serde_json::to_vec(&text).expect("safetensors: a header of texts and numbers");
    // Data begins on a multiple of eight bytes, as the format asks of writers.
    text.resize(text.len().next_multiple_of(8), b' ');
    (text, at as u64)
}

fn write_tensor(file: &mut File, t: &Tensor, dtype: DType, piece: &mut Vec<u8>) -> std::io::Result<()> {
    if t.dtype() == dtype {
        return file.write_all(t.bytes());
    }
    for from in (0..t.len()).step_by(PIECE_BYTES / 4) {
        let to = (from + PIECE_BYTES / 4).min(t.len());
        piece.clear();
        match t.dtype() {
            DType::F32 => t.f32()[from..to].iter().for_each(|&x| piece.extend(bf16::from_f32(x).to_le_bytes())),
            DType::Bf16 => t.bf16()[from..to].iter().for_each(|x| piece.extend(x.to_f32().to_le_bytes())),
            DType::U32 => unreachable!("safetensors: u32 is written as it is"),
        }
        file.write_all(piece)?;
    }
    Ok(())
}

/// Writes a file beside `path`, syncs it, and renames it over `path`: after a crash there is the old file or the new one.
pub(crate) fn replace(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), HfError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".partial");
    let aside = PathBuf::from(aside);
    let written = (|| {
        let mut file = File::create(&aside)?;
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        // The rename itself lives in the folder.
        #[cfg(unix)]
        if let Some(dir) = path.parent() {
            File::open(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?.sync_all()?;
        }
        Ok(())
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&aside);
        HfError::Io { path: path.into(), action: "write", source }
    })
}

fn stored_as(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::U32 => Dtype::U32,
    }
}

/// A header as it stands: in the order of the text, with whatever stands there twice. The crate's own [`Metadata`] would
/// keep one of two tensors with one name, and could not say which tensor is wrong.
struct Header {
    entries: Vec<Entry>,
    metadata: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Header, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with one entry a tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut metadata: Option<BTreeMap<String, String>> = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        entries.push(Entry { info: info(&name, map.next_value()?)?, name });
                    } else if metadata.replace(map.next_value()?).is_some() {
                        return Err(A::Error::duplicate_field("__metadata__"));
                    }
                }
                Ok(Header { entries, metadata: metadata.into_iter().flatten().collect() })
            }
        }
        d.deserialize_map(Map)
    }
}

/// An entry whose dtype is still a text, so that a dtype unknown to the crate is told with its tensor and not with a list
/// of all there are.
#[derive(Deserialize)]
struct Untyped {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn info<E: Error>(name: &str, Untyped { dtype, shape, data_offsets }: Untyped) -> Result<TensorInfo, E> {
    let text: value::StrDeserializer<'_, value::Error> = dtype.as_str().into_deserializer();
    match Dtype::deserialize(text) {
        Ok(dtype) => Ok(TensorInfo { dtype, shape, data_offsets }),
        Err(_) => {
            let start = |text: &str, n| text.chars().take(n).collect::<String>();
            Err(E::custom(format!("tensor {:?}: unknown dtype {:?}", start(name, 60), start(&dtype, 20))))
        }
    }
}
