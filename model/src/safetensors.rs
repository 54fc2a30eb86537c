//! The safetensors format, read with distrust and written as a stream.
//!
//! u64 n, little-endian │ n bytes of JSON │ data
//! JSON: {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, .., "__metadata__": {"key": "text"}}
//! Offsets count from the start of the data; the tensors cover all of it, without holes or overlaps.
//!
//! [`Reader::open`] reads the header alone and believes nothing in it: its length is held against the file's before a
//! byte of memory is taken, and every dtype, shape and offset against the others. Tensors are then read one at a time
//! into memory that is already laid out; the file is not mapped, since mapped pages would count as memory in use and a
//! file cut short behind our back would kill the process instead of giving an error. Offsets that are not multiples of an
//! element are accepted: nothing here depends on them.
//! Source: the format's page in the safetensors repository. The crate itself reads what the tests write.

use crate::hf::HfError;
use esker_kernels::tensor::{DType, Tensor};
use half::{bf16, f16};
use serde::de::{Deserializer, MapAccess, Visitor};
use std::{
    collections::HashSet,
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
    pub dtype: String,
    pub shape: Vec<u64>,
    begin: u64,
    end: u64,
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
        entries.sort_by_key(|e| (e.begin, e.end));
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
            at = e.end;
        }
        if at != size - 8 - n {
            return Err(bad(format!("the tensors take {at} bytes, the file has {} for them", size - 8 - n)));
        }
        Ok(Reader { path: path.into(), file, data_at: 8 + n, entries, metadata })
    }

    /// Checks that `e` fits `to`, in shape and in kind.
    pub fn fits(&self, e: &Entry, to: &Tensor) -> Result<(), HfError> {
        if !e.shape.iter().copied().eq(to.shape().iter().map(|&n| n as u64)) {
            return Err(HfError::Shape {
                file: self.path.clone(),
                tensor: e.name.clone(),
                got: format!("{:?}", e.shape),
                want: format!("{:?}", to.shape()),
            });
        }
        let want = match to.dtype() {
            DType::U32 => "U32",
            _ => "F32, BF16 or F16",
        };
        if want.split([',', ' ']).any(|w| w == e.dtype) {
            return Ok(());
        }
        Err(HfError::Dtype { file: self.path.clone(), tensor: e.name.clone(), got: e.dtype.clone(), want })
    }

    /// Reads `e`, which [`Reader::fits`], into `to`.
    pub fn read(&mut self, e: &Entry, to: &mut Tensor) -> Result<(), HfError> {
        assert!(self.fits(e, to).is_ok(), "safetensors: {} read unchecked", e.name);
        let io = |source| HfError::Io { path: self.path.clone(), action: "read", source };
        self.file.seek(SeekFrom::Start(self.data_at + e.begin)).map_err(io)?;
        if stored_as(to.dtype()) == e.dtype {
            return self.file.read_exact(to.bytes_mut()).map_err(io);
        }
        let wide = element_bytes(&e.dtype).expect("safetensors: checked dtype") as usize;
        let mut piece = vec![0; PIECE_BYTES.min((e.end - e.begin) as usize)];
        let mut at = 0;
        while at < to.len() {
            let n = (to.len() - at).min(PIECE_BYTES / wide);
            let bytes = &mut piece[..n * wide];
            self.file.read_exact(bytes).map_err(io)?;
            let values = bytes.chunks_exact(wide).map(|b| match *b {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [a, b] if e.dtype == "BF16" => bf16::from_le_bytes([a, b]).to_f32(),
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
        if (&a.dtype, &a.shape) != (&b.dtype, &b.shape) {
            return Ok(false);
        }
        let mut pieces = [vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]];
        let mut at = 0;
        while at < a.end - a.begin {
            let n = (a.end - a.begin - at).min(PIECE_BYTES as u64);
            for ((r, e), piece) in [(&mut *self, a), (&mut *other, b)].into_iter().zip(&mut pieces) {
                let io = |source| HfError::Io { path: r.path.clone(), action: "read", source };
                r.file.seek(SeekFrom::Start(r.data_at + e.begin + at)).map_err(io)?;
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
    /// Checks dtype, shape and offsets, of which the first must be `from`.
    fn check(&self, from: u64) -> Result<(), String> {
        let Entry { begin, end, .. } = *self;
        let dtype = || self.dtype.chars().take(20).collect::<String>();
        let element = element_bytes(&self.dtype).ok_or_else(|| format!("unknown dtype {:?}", dtype()))?;
        if self.shape.len() > RANK_MAX {
            return Err(format!("{} dimensions, at most {RANK_MAX} expected", self.shape.len()));
        }
        let bytes = self.shape.iter().try_fold(element, |n, &d| n.checked_mul(d));
        if begin != from || end < begin {
            return Err(format!("data_offsets [{begin}, {end}], expected to begin at {from}"));
        }
        if bytes != Some(end - begin) {
            return Err(format!("{} of {:?} does not take {} bytes", self.dtype, self.shape, end - begin));
        }
        Ok(())
    }
}

/// Writes `tensors` to `path`: aside, then synced, then renamed, without a second copy of any of them. Floats are rounded
/// to `dtype` when one is given.
pub(crate) fn write<'a, N: std::fmt::Display>(
    path: &Path,
    tensors: impl Iterator<Item = (N, &'a Tensor)> + Clone,
    dtype: Option<DType>,
    metadata: &[(&str, &str)],
) -> Result<u64, HfError> {
    let as_stored = |t: &Tensor| match (t.dtype(), dtype) {
        (DType::U32, _) | (_, None) => t.dtype(),
        (_, Some(dtype)) => dtype,
    };
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut header = String::from("{\"__metadata__\":{");
    for (i, (key, value)) in metadata.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        header += &format!("{comma}{}:{}", quoted(key), quoted(value));
    }
    header += "}";
    let mut at = 0;
    for (name, t) in tensors.clone() {
        let end = at + (t.len() * as_stored(t).bytes()) as u64;
        let (name, dtype) = (quoted(&name.to_string()), stored_as(as_stored(t)));
        header += &format!(",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{:?},\"data_offsets\":[{at},{end}]}}", t.shape());
        at = end;
    }
    header += "}";
    // Data begins on a multiple of eight bytes, as the format asks of writers.
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    replace(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        tensors.clone().try_for_each(|(_, t)| write_tensor(file, t, as_stored(t), &mut piece))
    })?;
    Ok(8 + header.len() as u64 + at)
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

fn stored_as(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::U32 => "U32",
    }
}

fn element_bytes(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "I16" | "U16" | "F16" | "BF16" => 2,
        "I32" | "U32" | "F32" => 4,
        "I64" | "U64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

/// A header as it stands: in the order of the text, with whatever stands there twice.
struct Header {
    entries: Vec<Entry>,
    metadata: Vec<(String, String)>,
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Header, D::Error> {
        #[derive(serde::Deserialize)]
        struct Info {
            dtype: String,
            shape: Vec<u64>,
            data_offsets: (u64, u64),
        }
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Header;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with one entry a tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { entries: Vec::new(), metadata: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        let pairs: std::collections::BTreeMap<String, String> = map.next_value()?;
                        header.metadata = pairs.into_iter().collect();
                        continue;
                    }
                    let Info { dtype, shape, data_offsets: (begin, end) } = map.next_value()?;
                    header.entries.push(Entry { name, dtype, shape, begin, end });
                }
                Ok(header)
            }
        }
        d.deserialize_map(Map)
    }
}
