//! The header of a GGUF file, read with distrust.
//!
//! A string is a u64 length and its bytes; an array a u32 type, a u64 length and its elements. Nothing is taken on trust:
//! a length is held against what is left of the file before a byte is read for it, lists grow as their elements come, and
//! only the pairs that are asked for later are kept. Tensors may lie anywhere in the data, each inside it.

use super::blocks::Kind;
use crate::{hf::HfError, safetensors::NAME_BYTES_MAX};
use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Most pairs, and most tensors.
const COUNT_MAX: u64 = 1 << 17;
/// Most elements of an array that is kept: no vocabulary, and no list of merges, comes near it.
const ARRAY_MAX: u64 = 1 << 21;
/// Longest text of a pair that is kept.
const TEXT_MAX: u64 = 1 << 16;
/// Deepest arrays of arrays that are passed over.
const DEPTH_MAX: usize = 4;
/// Most dimensions of a tensor.
const RANK_MAX: u32 = 4;

/// An open file.
#[derive(Debug)]
pub(super) struct File {
    pub path: PathBuf,
    reader: BufReader<fs::File>,
    /// Where the reader is.
    at: u64,
    /// Of the whole file.
    len: u64,
    data_at: u64,
    pairs: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Info>,
}

/// What a key says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Whole(i128),
    Real(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<f32>),
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Info {
    /// Outermost first.
    pub shape: Vec<u64>,
    pub kind: Kind,
    /// From the start of the data.
    offset: u64,
}

impl Info {
    /// Numbers of a row.
    pub fn cols(&self) -> usize {
        *self.shape.last().expect("gguf: a rank of at least one") as usize
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Whole(n) => write!(f, "{n}"),
            Value::Real(x) => write!(f, "{x}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Text(text) => write!(f, "{:?}", text.chars().take(60).collect::<String>()),
            Value::Texts(all) => write!(f, "a list of {} texts", all.len()),
            Value::Numbers(all) => write!(f, "a list of {} numbers", all.len()),
        }
    }
}

impl File {
    /// Reads the header.
    pub fn open(path: &Path) -> Result<File, HfError> {
        let io = |source| HfError::Io { path: path.into(), action: "read", source };
        let file = fs::File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let reader = BufReader::with_capacity(1 << 16, file);
        let (pairs, tensors) = (BTreeMap::new(), BTreeMap::new());
        let mut file = File { path: path.into(), reader, at: 0, len, data_at: 0, pairs, tensors };
        file.header()?;
        Ok(file)
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    /// A whole number of at least 0.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, HfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Whole(n)) if u64::try_from(*n).is_ok() => Ok(Some(*n as u64)),
            Some(other) => Err(self.bad(format!("{key} = {other}: expected a whole number of at least 0"))),
        }
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>, HfError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Real(x)) => Ok(Some(*x)),
            Some(Value::Whole(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(self.bad(format!("{key} = {other}: expected a number"))),
        }
    }

    /// What is wrong with this file.
    pub fn bad(&self, why: String) -> HfError {
        HfError::Format { file: self.path.clone(), why }
    }

    /// Goes to the beginning of a tensor.
    pub fn seek_data(&mut self, info: &Info) -> Result<(), HfError> {
        self.at = self.data_at + info.offset;
        let to = SeekFrom::Start(self.at);
        self.reader.seek(to).map(drop).map_err(|source| self.io(source))
    }

    /// Fills `bytes`.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<(), HfError> {
        self.need(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|source| self.io(source))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn io(&self, source: std::io::Error) -> HfError {
        HfError::Io { path: self.path.clone(), action: "read", source }
    }

    /// Whether the file has so many more bytes.
    fn need(&self, bytes: u64) -> Result<(), HfError> {
        let left = self.len - self.at;
        if bytes > left {
            return Err(self.bad(format!(
                "{bytes} bytes are wanted at byte {} and {left} are left: the file is cut short or a length lies",
                self.at
            )));
        }
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), HfError> {
        self.need(bytes)?;
        let step = i64::try_from(bytes).map_err(|_| self.bad(format!("a value of {bytes} bytes")))?;
        self.reader.seek_relative(step).map_err(|source| self.io(source))?;
        self.at += bytes;
        Ok(())
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], HfError> {
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, HfError> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64, HfError> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn text(&mut self, most: u64) -> Result<String, HfError> {
        let (at, n) = (self.at, self.u64()?);
        self.need(n)?;
        if n > most {
            return Err(self.bad(format!("a text of {n} bytes at byte {at}: expected at most {most}")));
        }
        let mut bytes = vec![0; n as usize];
        self.read(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| self.bad(format!("the text at byte {at} is not UTF-8")))
    }

    fn header(&mut self) -> Result<(), HfError> {
        let magic: [u8; 4] = self.fixed()?;
        if &magic != b"GGUF" {
            return Err(self.bad("not a GGUF file: it begins with other letters".into()));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(self.bad(match version.swap_bytes() {
                2 | 3 => "big-endian; convert it to little-endian first".into(),
                _ => format!("GGUF version {version}: 2 and 3 can be read"),
            }));
        }
        let (tensors, pairs) = (self.u64()?, self.u64()?);
        if tensors > COUNT_MAX || pairs > COUNT_MAX {
            return Err(self.bad(format!("{tensors} tensors and {pairs} keys: expected at most {COUNT_MAX} of each")));
        }
        for _ in 0..pairs {
            self.pair()?;
        }
        for _ in 0..tensors {
            self.info()?;
        }
        let align = self.whole("general.alignment")?.unwrap_or(32);
        if !align.is_power_of_two() || align > 1 << 20 {
            return Err(self.bad(format!("general.alignment = {align}: expected a power of two up to {}", 1 << 20)));
        }
        self.data_at = self.at.next_multiple_of(align);
        self.check_places(align)
    }

    /// Every tensor lies inside the data.
    fn check_places(&self, align: u64) -> Result<(), HfError> {
        let room = self.len.saturating_sub(self.data_at);
        for (name, info) in &self.tensors {
            let cols = info.cols();
            if !cols.is_multiple_of(info.kind.block()) {
                let block = info.kind.block();
                return Err(self.bad(format!("tensor {name}: rows of {cols} are not made of blocks of {block}")));
            }
            let rows = info.shape[..info.shape.len() - 1].iter().try_fold(1u64, |n, &d| n.checked_mul(d));
            let row = (cols / info.kind.block()) as u64;
            let bytes = rows.and_then(|n| n.checked_mul(row.checked_mul(info.kind.block_bytes() as u64)?));
            let end = bytes.and_then(|n| n.checked_add(info.offset));
            if end.is_none_or(|end| end > room) || !info.offset.is_multiple_of(align) {
                let (shape, at) = (&info.shape, info.offset);
                return Err(self.bad(format!(
                    "tensor {name} of shape {shape:?} at {at} does not lie in the {room} bytes of data: the file is cut short or lies"
                )));
            }
        }
        Ok(())
    }

    fn pair(&mut self) -> Result<(), HfError> {
        let key = self.text(NAME_BYTES_MAX as u64)?;
        let kind = self.u32()?;
        let wanted = ["general.architecture", "general.alignment"].contains(&key.as_str())
            || key.starts_with("tokenizer.ggml.")
            || key == "tokenizer.chat_template"
            || ["llama.", "qwen3."].iter().any(|arch| key.starts_with(arch));
        if !wanted {
            return self.pass(kind, 1, 0);
        }
        let value = match kind {
            8 => Value::Text(self.text(TEXT_MAX)?),
            9 => self.array(&key)?,
            _ => self.scalar(kind)?,
        };
        match self.pairs.insert(key, value) {
            None => Ok(()),
            Some(_) => Err(self.bad("a key is there twice".into())),
        }
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, HfError> {
        Ok(match kind {
            0 => Value::Whole(u8::from_le_bytes(self.fixed()?).into()),
            1 => Value::Whole(i8::from_le_bytes(self.fixed()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.fixed()?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.fixed()?).into()),
            4 => Value::Whole(u32::from_le_bytes(self.fixed()?).into()),
            5 => Value::Whole(i32::from_le_bytes(self.fixed()?).into()),
            // The shortest number that rounds to it: 1e-5 was meant, not 9.999999747e-6.
            6 => Value::Real(f32::from_le_bytes(self.fixed()?).to_string().parse().expect("gguf: a number's text")),
            7 => Value::Bool(self.fixed::<1>()?[0] != 0),
            10 => Value::Whole(u64::from_le_bytes(self.fixed()?).into()),
            11 => Value::Whole(i64::from_le_bytes(self.fixed()?).into()),
            12 => Value::Real(f64::from_le_bytes(self.fixed()?)),
            _ => return Err(self.bad(format!("a value of unknown type {kind} at byte {}", self.at))),
        })
    }

    fn array(&mut self, key: &str) -> Result<Value, HfError> {
        let (kind, n) = (self.u32()?, self.u64()?);
        if n > ARRAY_MAX {
            return Err(self.bad(format!("{key} has {n} elements: expected at most {ARRAY_MAX}")));
        }
        match kind {
            8 => {
                let mut all = Vec::new();
                for _ in 0..n {
                    all.push(self.text(TEXT_MAX)?);
                }
                Ok(Value::Texts(all))
            }
            9 => Err(self.bad(format!("{key} is a list of lists"))),
            _ => {
                let mut all = Vec::new();
                for _ in 0..n {
                    all.push(match self.scalar(kind)? {
                        Value::Whole(n) => n as f32,
                        Value::Real(x) => x as f32,
                        other => return Err(self.bad(format!("{key} has an element {other}"))),
                    });
                }
                Ok(Value::Numbers(all))
            }
        }
    }

    /// Passes over `n` values of a type.
    fn pass(&mut self, kind: u32, n: u64, depth: usize) -> Result<(), HfError> {
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 | 9 if depth > DEPTH_MAX => return Err(self.bad("lists of lists of lists".into())),
            8 => {
                for _ in 0..n {
                    let bytes = self.u64()?;
                    self.skip(bytes)?;
                }
                return Ok(());
            }
            9 => {
                for _ in 0..n {
                    let (kind, n) = (self.u32()?, self.u64()?);
                    self.pass(kind, n, depth + 1)?;
                }
                return Ok(());
            }
            _ => return Err(self.bad(format!("a value of unknown type {kind} at byte {}", self.at))),
        };
        match n.checked_mul(size) {
            Some(bytes) => self.skip(bytes),
            None => Err(self.bad(format!("a list of {n} values at byte {}: more than any file holds", self.at))),
        }
    }

    fn info(&mut self) -> Result<(), HfError> {
        let name = self.text(NAME_BYTES_MAX as u64)?;
        let rank = self.u32()?;
        if !(1..=RANK_MAX).contains(&rank) {
            return Err(self.bad(format!("tensor {name:?} has {rank} dimensions: expected 1 to {RANK_MAX}")));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            shape.push(self.u64()?);
        }
        // The file has the innermost first.
        shape.reverse();
        if shape.iter().any(|&d| d == 0 || d > 1 << 40) {
            return Err(self.bad(format!("tensor {name:?} has shape {shape:?}")));
        }
        let kind = self.u32()?;
        let kind = Kind::new(kind).map_err(|kind| {
            self.bad(format!(
                "tensor {name:?} is {kind}: F32, F16, BF16, Q8_0, Q4_0 and Q4_1 can be read; convert it to one of them"
            ))
        })?;
        let offset = self.u64()?;
        match self.tensors.insert(name, Info { shape, kind, offset }) {
            None => Ok(()),
            Some(_) => Err(self.bad("a tensor is there twice".into())),
        }
    }
}
